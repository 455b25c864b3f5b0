//! A libzmq socket in a process of its own, spoken to in lines.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::DEADLINE;
use crate::side::Frames;

/// A running `libzmq_lines`; killed when it is dropped.
///
/// Its lines, each of words with a space between them, and frames in hexadecimal, `-` for an empty
/// one:
///
/// | it is told | meaning |
/// | --- | --- |
/// | `send FRAME...` | send if that needs no waiting; it answers `sent` or `full` |
/// | `subscribe TOPIC`, `unsubscribe TOPIC` | SUB |
///
/// | it tells | meaning |
/// | --- | --- |
/// | `bound ENDPOINT` | once for each endpoint bound |
/// | `ready` | all endpoints are bound or being connected to |
/// | `recv FRAME...` | a message |
///
/// At the end of its standard input it closes its socket and ends.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    endpoint: Option<String>,
}

impl Process {
    /// Starts the program with these arguments and waits until it is ready.
    ///
    /// # Panics
    /// It cannot be started, or does not get ready within [`DEADLINE`].
    #[track_caller]
    pub fn start(program: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer's process");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut process = Self { child, stdin, lines, endpoint: None };
        loop {
            let line = process.line(DEADLINE).expect("a line of a peer that starts");
            match line.split_once(' ') {
                Some(("bound", endpoint)) => process.endpoint = Some(endpoint.to_owned()),
                _ => {
                    assert_eq!(line, "ready");
                    return process;
                }
            }
        }
    }

    /// The endpoint it has bound.
    ///
    /// # Panics
    /// It has bound none.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_deref().expect("it was told to bind")
    }

    fn line(&self, time: Duration) -> Option<String> {
        match self.lines.recv_timeout(time) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the peer's process has ended"),
        }
    }

    fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("open until it is finished");
        writeln!(stdin, "{line}").expect("the peer's process runs");
    }

    /// Lets it send, and says whether it had room.
    ///
    /// # Panics
    /// It does not answer within [`DEADLINE`].
    #[track_caller]
    pub fn send<F: AsRef<[u8]>>(&mut self, message: &[F]) -> bool {
        let mut line = "send".to_owned();
        for frame in message {
            line.push(' ');
            line.push_str(&to_hex(frame.as_ref()));
        }
        self.tell(&line);
        match self.line(DEADLINE).expect("an answer").as_str() {
            "sent" => true,
            "full" => false,
            other => panic!("an answer, not {other:?}"),
        }
    }

    /// Lets it subscribe.
    pub fn subscribe(&mut self, topic: impl AsRef<[u8]>) {
        let line = format!("subscribe {}", to_hex(topic.as_ref()));
        self.tell(&line);
    }

    /// The next message that it has received.
    ///
    /// # Panics
    /// There is none within [`DEADLINE`].
    #[track_caller]
    pub fn recv(&mut self) -> Frames {
        self.recv_within(DEADLINE).expect("a message within the deadline")
    }

    /// The next message that it has received, if there is one in that time.
    ///
    /// # Panics
    /// It said something else.
    #[track_caller]
    pub fn recv_within(&mut self, time: Duration) -> Option<Frames> {
        let line = self.line(time)?;
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("recv"), "{line}");
        Some(words.map(|word| from_hex(word).expect("hexadecimal")).collect())
    }

    /// `kill -9`; the kernel has closed its sockets when this returns.
    ///
    /// # Panics
    /// The process cannot be killed.
    pub fn kill(mut self) {
        self.child.kill().expect("a process of ours");
        self.child.wait().expect("it ends");
    }

    /// Stops it (`SIGSTOP`), as a machine that hangs.
    ///
    /// # Panics
    /// The process has ended.
    pub fn stop(&self) {
        kill_process(self.pid(), Signal::STOP).expect("a process of ours");
    }

    /// Lets it go on (`SIGCONT`).
    ///
    /// # Panics
    /// The process has ended.
    pub fn go_on(&self) {
        kill_process(self.pid(), Signal::CONT).expect("a process of ours");
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Ends its input and waits until it has closed its socket and ended.
    ///
    /// # Panics
    /// It does not end within [`DEADLINE`], or not well.
    pub fn finish(mut self) {
        self.stdin = None;
        let end = Instant::now() + DEADLINE;
        while self.lines.recv_timeout(end.saturating_duration_since(Instant::now())).is_ok() {}
        // its output has ended, so it is about to end itself, unless the deadline has passed
        if Instant::now() >= end {
            self.child.kill().expect("a process of ours");
        }
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // both fail only when it has been waited for
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Octets as one word.
#[must_use]
pub fn to_hex(octets: &[u8]) -> String {
    if octets.is_empty() {
        return "-".to_owned();
    }
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The octets of one word, if it is one that [`to_hex`] makes.
#[must_use]
pub fn from_hex(word: &str) -> Option<Vec<u8>> {
    if word == "-" {
        return Some(Vec::new());
    }
    let pairs = word.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back() {
        for octets in [&b""[..], b"\0", b"ab\xff"] {
            assert_eq!(from_hex(&to_hex(octets)).as_deref(), Some(octets));
        }
        assert_eq!(from_hex("xy"), None);
    }
}
