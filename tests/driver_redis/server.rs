//! A real Redis server on a port of its own, that ends with the test.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use tempfile::TempDir;

/// The server; killed when it is dropped, also by a panic.
pub(crate) struct Server {
    port: u16,
    arguments: Vec<String>,
    folder: TempDir,
    process: Option<Child>,
    asking: Mutex<Option<redis::Connection>>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments, as on the command line.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut server =
            Self { port: 0, arguments, folder, process: None, asking: Mutex::default() };
        // another process may take a port that was free
        for _ in 0..10 {
            server.port = free_port();
            if server.run().is_ok() {
                return server;
            }
        }
        server.run().unwrap();
        server
    }

    /// Sentinel that watches the master at this port by the name `mymaster`.
    pub(crate) fn start_sentinel(master: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().join("sentinel.conf");
        let text = format!(
            "sentinel monitor mymaster 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds mymaster 1000\n"
        );
        std::fs::write(&configuration, text).unwrap();
        let arguments = vec![configuration.to_str().unwrap().to_owned(), "--sentinel".to_owned()];
        let mut server =
            Self { port: free_port(), arguments, folder, process: None, asking: Mutex::default() };
        server.run().unwrap();
        server
    }

    pub(crate) fn at(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// At once, as by `kill -9`.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Again at the same port, with nothing in it.
    pub(crate) fn start_again(&mut self) {
        self.stop();
        self.run().unwrap();
    }

    /// The answer to a command.
    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut asking = self.asking.lock().unwrap();
        // one connection for all questions, unless the server is another one since
        let open = asking.take().filter(redis::ConnectionLike::is_open);
        let mut connection = open.unwrap_or_else(|| {
            let client = redis::Client::open(format!("redis://{}", self.at())).unwrap();
            client.get_connection().unwrap()
        });
        let mut words = command.split(' ');
        let mut question = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            question.arg(word);
        });
        let answer = question.query(&mut connection).unwrap();
        *asking = Some(connection);
        answer
    }

    /// Until it accepts connections, or with what it says otherwise.
    fn run(&mut self) -> Result<(), String> {
        let port = self.port.to_string();
        let folder = self.folder.path().to_str().unwrap();
        // a file of options has to be the first argument
        let mut command = Command::new("redis-server");
        command.args(&self.arguments);
        command.args(["--port", &port, "--bind", "127.0.0.1", "--dir", folder]);
        if !self.arguments.iter().any(|argument| argument == "--sentinel") {
            command.args(["--save", "", "--appendonly", "no"]);
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut process = spawned.unwrap_or_else(|error| {
            panic!("redis-server: {error}; the Debian package is redis-server")
        });
        let output = BufReader::new(process.stdout.take().unwrap());
        self.process = Some(process);
        *self.asking.lock().unwrap() = None;
        let (told, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // it must be able to go on writing
                let _ = told.send(line);
            }
        });
        let mut log = String::new();
        loop {
            match heard.recv_timeout(Duration::from_secs(30)) {
                Ok(line) if line.contains("Ready to accept") || line.contains("+monitor") => {
                    return Ok(());
                }
                Ok(line) => log += &format!("{line}\n"),
                Err(error) => {
                    self.stop();
                    return Err(format!("redis-server did not start: {error}\n{log}"));
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
