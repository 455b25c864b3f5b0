//! A running command with its standard streams, and a deadline for everything.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Long enough for any machine; a test that reaches it has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// How long the output of a command must be silent to be called silent.
pub(crate) const QUIET: Duration = Duration::from_millis(1500);

/// A process of the command. It is killed when this is dropped.
pub(crate) struct Dragonwire {
    pid: Pid,
    stdin: Option<ChildStdin>,
    held_stdout: Option<ChildStdout>,
    output: Receiver<String>,
    errors: Receiver<String>,
    exited: Receiver<ExitStatus>,
    running: bool,
}

/// How it ended, and what it had not been asked for.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<i32>,
    pub(crate) output: Vec<String>,
    pub(crate) errors: Vec<String>,
}

impl Dragonwire {
    /// Starts the command with these words as arguments.
    pub(crate) fn start(arguments: &str) -> Self {
        Self::start_with(&arguments.split_whitespace().collect::<Vec<_>>(), |_| {})
    }

    pub(crate) fn start_with(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut this = Self::start_unread(arguments, prepare);
        if let Some(stdout) = this.held_stdout.take() {
            this.output = read_lines(stdout);
        }
        this
    }

    /// Nobody reads its standard output until [`read`](Self::read) is called.
    pub(crate) fn start_unread(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dragonwire"));
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare(&mut command);
        Self::spawn_unread(&mut command)
    }

    /// Starts a command that becomes this one.
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut this = Self::spawn_unread(&mut command);
        this.read();
        this
    }

    fn spawn_unread(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (exit, exited) = channel();
        let (stdin, held_stdout) = (child.stdin.take(), child.stdout.take());
        let errors = read_lines(child.stderr.take().unwrap());
        let pid = Pid::from_child(&child);
        thread::spawn(move || exit.send(child.wait().unwrap()));
        let output = channel().1;
        Self { pid, stdin, held_stdout, output, errors, exited, running: true }
    }

    /// From now on its standard output is read.
    pub(crate) fn read(&mut self) {
        self.output = read_lines(self.held_stdout.take().unwrap());
    }

    /// Closes the reading end of its standard output.
    pub(crate) fn close_output(&mut self) {
        self.held_stdout = None;
    }

    /// Writes a line to its standard input.
    pub(crate) fn write(&mut self, line: &str) {
        self.write_octets(format!("{line}\n").as_bytes());
    }

    pub(crate) fn write_octets(&mut self, octets: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(octets).unwrap();
    }

    /// Takes the writing end of its standard input.
    pub(crate) fn take_input(&mut self) -> ChildStdin {
        self.stdin.take().unwrap()
    }

    /// Ends its standard input.
    pub(crate) fn end_input(&mut self) {
        self.stdin = None;
    }

    /// The next line of its standard output.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        match self.output.recv_timeout(DEADLINE) {
            Ok(line) => line,
            Err(error) => panic!("no line on the standard output: {error}: {:?}", self.said()),
        }
    }

    /// The next line of its standard output, if one comes within that time.
    pub(crate) fn line_within(&mut self, time: Duration) -> Option<String> {
        match self.output.recv_timeout(time) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("it has ended: {:?}", self.said()),
        }
    }

    /// Reads lines of its standard error up to one that begins so; returns what follows that.
    #[track_caller]
    pub(crate) fn told(&mut self, beginning: &str) -> String {
        let mut others = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.errors.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.strip_prefix(beginning) {
                    Some(rest) => return rest.to_owned(),
                    None => others.push(line),
                },
                Err(error) => panic!("{error}: no {beginning:?} after {others:?}"),
            }
        }
    }

    /// The endpoint it has bound.
    #[track_caller]
    pub(crate) fn bound(&mut self) -> String {
        self.told("bound ")
    }

    /// Waits until it has connected; returns to what.
    #[track_caller]
    pub(crate) fn connected(&mut self) -> String {
        self.told("connected ")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Waits for its end, which comes by itself.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> Ended {
        let status = match self.exited.recv_timeout(DEADLINE) {
            Ok(status) => status,
            Err(error) => panic!("it does not end: {error}: {:?}", self.said()),
        };
        self.running = false;
        assert_eq!(status.signal(), None, "killed by a signal: {:?}", self.said());
        // both end with the last process that holds them, which may be a child of this one
        let rest = |lines: &Receiver<String>| {
            let mut all = Vec::new();
            while let Ok(line) = lines.recv_timeout(DEADLINE) {
                all.push(line);
            }
            all
        };
        Ended { status: status.code(), output: rest(&self.output), errors: rest(&self.errors) }
    }

    /// Waits for its end by a signal that it cannot catch.
    #[track_caller]
    pub(crate) fn wait_killed(&mut self) {
        let status = self.exited.recv_timeout(DEADLINE).unwrap();
        self.running = false;
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{:?}", self.said());
    }

    /// Ends its standard input and waits for its end, which must be a good one.
    #[track_caller]
    pub(crate) fn finish(&mut self) -> Ended {
        self.end_input();
        let ended = self.ended();
        assert_eq!(ended.status, Some(0), "{ended:?}");
        ended
    }

    /// Ends it by a signal.
    #[track_caller]
    pub(crate) fn end_by(&mut self, signal: Signal) -> Ended {
        self.signal(signal);
        self.ended()
    }

    fn said(&self) -> Vec<String> {
        self.errors.try_iter().collect()
    }
}

impl Drop for Dragonwire {
    fn drop(&mut self) {
        // its number is its own until it has been waited for
        if self.running && self.exited.try_recv().is_err() {
            let _ = kill_process(self.pid, Signal::KILL);
            let _ = self.exited.recv_timeout(DEADLINE);
        }
    }
}

fn read_lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches('\n').to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// An address that another endpoint can be bound to or connected to.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn ipc(&self, name: &str) -> String {
        format!("ipc://{}", self.folder.path().join(name).display())
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.folder.path()
    }
}
