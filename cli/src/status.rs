//! How a publisher service is: the Unix socket where it tells, and `dragonwire status`, which asks
//! there.
//!
//! Whoever connects is told one JSON object on one line; then the connection is closed.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{Role, ServiceStats};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::console::Console;
use crate::driver_options::{OptionArgs, Side};
use crate::ending::{Ending, Failure};

/// Which service is asked.
#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    /// The service's local socket, or its status socket [default: what the option files say]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// An option file of the service; repeatable
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// A folder of option files of the service; repeatable
    #[arg(long, value_name = "DIR")]
    config_dir: Vec<PathBuf>,
    /// The service's role [default: neutron-server]
    #[arg(long, value_name = "ROLE")]
    role: Option<Role>,
}

/// Asks a service and prints what it says: for people at a terminal, else in one line.
pub(crate) async fn run(args: StatusArgs, console: &Console) -> Result<Ending, Failure> {
    let path = match args.socket {
        Some(path) => {
            let beside = beside(&path);
            if beside.exists() { beside } else { path }
        }
        None => {
            let StatusArgs { config, config_dir, role, .. } = args;
            let files = OptionArgs { config, config_dir, role, ..OptionArgs::default() };
            let options = files.load(Side::Publisher)?.say_doubts(console);
            socket_of(&options, Some(&options.publisher_multiproc_socket)).unwrap_or_default()
        }
    };
    let nobody = |reason: String| {
        Failure::new(format!("no publisher service answers at {}: {reason}", path.display()))
    };
    let text = match timeout(PATIENCE, ask(&path)).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => return Err(nobody(error.to_string())),
        Err(_) => return Err(nobody("it says nothing".to_owned())),
    };
    let status: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|_| nobody("what answers there is another program".to_owned()))?;
    let mut output = io::stdout().lock();
    let line = if output.is_terminal() { format!("{status:#}\n") } else { format!("{status}\n") };
    match output.write_all(line.as_bytes()) {
        Ok(()) => Ok(Ending::Done),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Ending::ReaderGone),
        Err(error) => Err(Failure::new(format!("cannot write the standard output: {error}"))),
    }
}

async fn ask(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    UnixStream::connect(path).await?.take(LONGEST).read_to_end(&mut text).await?;
    Ok(text)
}

/// Where a service tells how it is; `None` if its local socket has no path to be beside of.
pub(crate) fn socket_of(options: &DriverOptions, local: Option<&Path>) -> Option<PathBuf> {
    options.status_socket.clone().or_else(|| local.map(beside))
}

fn beside(local: &Path) -> PathBuf {
    let mut path = OsString::from(local);
    path.push(".status");
    path.into()
}

/// What a service says of itself.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) version: &'static str,
    pub(crate) uptime_seconds: u64,
    pub(crate) role: &'static str,
    pub(crate) codec: &'static str,
    pub(crate) directory: Vec<String>,
    #[serde(flatten)]
    pub(crate) stats: ServiceStats,
}

/// The socket where a service tells how it is. Its file is removed with it.
#[derive(Debug)]
pub(crate) struct StatusSocket {
    listener: UnixListener,
    places: Arc<Semaphore>,
    file: PathBuf,
    device: u64,
    inode: u64,
    last_fault: Option<Instant>,
}

impl StatusSocket {
    /// Listens; replaces a socket file that nobody listens on.
    pub(crate) async fn bind(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path).await?;
                UnixListener::bind(path)?
            }
            listener => listener?,
        };
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            listener,
            places: Arc::new(Semaphore::new(PLACES)),
            file: std::path::absolute(path)?,
            device: found.dev(),
            inode: found.ino(),
            last_fault: None,
        })
    }

    /// The next who asks, once there is a place.
    pub(crate) async fn next(&mut self, console: &Console) -> Asked {
        loop {
            // never closed
            let place = self.places.clone().acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((stream, _)) => return Asked { stream, _place: place },
                Err(error) => {
                    let recently = |last: Instant| last.elapsed() < FAULTS;
                    if !self.last_fault.is_some_and(recently) {
                        console.say(format!("dragonwire: nobody can ask for the status: {error}"));
                        self.last_fault = Some(Instant::now());
                    }
                    sleep(AGAIN).await;
                }
            }
        }
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.file)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if ours {
            // a file that stays is stale, and replaced by the next service
            let _ = fs::remove_file(&self.file);
        }
    }
}

/// Somebody who wants to know.
#[derive(Debug)]
pub(crate) struct Asked {
    stream: UnixStream,
    _place: Option<OwnedSemaphorePermit>,
}

impl Asked {
    /// Tells, in the background and not for long.
    pub(crate) fn tell(mut self, status: &Status) {
        // numbers and text, which is always JSON
        let mut line = serde_json::to_vec(status).unwrap_or_default();
        line.push(b'\n');
        tokio::spawn(async move {
            let told = async {
                self.stream.write_all(&line).await?;
                self.stream.shutdown().await
            };
            // who does not listen does not need it
            let _ = timeout(PATIENCE, told).await;
        });
    }
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let reason = "the path exists and is not a socket";
        return Err(io::Error::new(ErrorKind::AlreadyExists, reason));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => {
            let reason = "another program listens there";
            Err(io::Error::new(ErrorKind::AddrInUse, reason))
        }
    }
}

/// Who is told at one time; others wait in the kernel.
const PLACES: usize = 16;

/// How long telling, and being told, may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// A status is much shorter.
const LONGEST: u64 = 1 << 20;

/// How soon it is tried again when nobody can be accepted, and how often that is said.
const AGAIN: Duration = Duration::from_millis(100);
const FAULTS: Duration = Duration::from_secs(60);
