//! The other processes of the demo: this program again, told what to do by its arguments, telling how
//! it goes in lines of JSON.

use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::ending::Failure;

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    process: tokio::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// Its end tells the process to come to its own.
    stdin: Option<ChildStdin>,
}

/// What a process says of itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Said<T> {
    /// It listens on this TCP endpoint.
    Listening(String),
    /// The subscriber is there, and it forwards what comes.
    Flowing,
    /// Its account: all is done.
    Finished(T),
}

impl Child {
    pub(crate) fn start(name: String, arguments: &[String]) -> Result<Self, Failure> {
        let failed = |error| Failure::new(format!("cannot start {name}: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let stdin = process.stdin.take();
        let Some(stdout) = process.stdout.take() else {
            return Err(Failure::new(format!("{name} has no output")));
        };
        Ok(Self { name, process, lines: BufReader::new(stdout).lines(), stdin })
    }

    /// The next thing the process says.
    pub(crate) async fn said<T: DeserializeOwned>(&mut self) -> Result<Said<T>, Failure> {
        let name = &self.name;
        let line = match timeout(PATIENCE, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Err(Failure::new(format!("{name} ended too early"))),
            Ok(Err(error)) => return Err(Failure::new(format!("{name}: {error}"))),
            Err(_) => return Err(Failure::new(format!("{name} says nothing for {PATIENCE:?}"))),
        };
        serde_json::from_str(&line).map_err(|_| Failure::new(format!("{name} said {line:?}")))
    }

    /// What the process says next has to be its account.
    pub(crate) async fn finished<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        match self.said().await? {
            Said::Finished(account) => Ok(account),
            Said::Listening(_) | Said::Flowing => {
                Err(Failure::new(format!("{} did not tell its account", self.name)))
            }
        }
    }

    /// Tells the process that it is time to end.
    pub(crate) fn stop(&mut self) {
        self.stdin = None;
    }

    /// Waits until the process has ended as it should.
    pub(crate) async fn ended(mut self) -> Result<(), Failure> {
        self.stop();
        match timeout(PATIENCE, self.process.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Failure::new(format!("{} ended with {status}", self.name))),
            Ok(Err(error)) => Err(Failure::new(format!("{}: {error}", self.name))),
            Err(_) => Err(Failure::new(format!("{} does not end", self.name))),
        }
    }

    /// Kills the process, which cannot prepare for it, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        self.process.kill().await.map_err(|error| Failure::new(format!("{}: {error}", self.name)))
    }
}

/// The other side: what a process says to the one that started it.
pub(crate) fn say<T: Serialize>(said: &Said<T>) -> Result<(), Failure> {
    let line = serde_json::to_string(said).map_err(|error| Failure::new(error.to_string()))?;
    // through the standard library's own lock and flush at the end of the line
    println!("{line}");
    Ok(())
}

/// Waits on a thread of its own until the standard input ends: the process that holds the other end
/// said so, or is no more.
pub(crate) fn end_of_input() -> tokio::sync::oneshot::Receiver<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = sender.send(());
    });
    receiver
}

/// How long a process may take for a step that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
