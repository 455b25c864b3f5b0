//! Lines for people, and one live line below them, on the standard error or output.
//!
//! A thread of its own writes, so that a stream that nobody reads never stops the rest of the
//! command, its signals above all.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

/// Where lines for people go. Clones write to the same place.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    entries: SyncSender<Entry>,
    shared: Arc<Shared>,
}

/// A stream for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Output,
    Error,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    /// Lines that the thread was too slow to take.
    skipped: AtomicU64,
    /// Whether the live line stands on the terminal now.
    live: AtomicBool,
}

#[derive(Debug)]
enum Entry {
    Line(String),
    Live(String),
    Flush(SyncSender<()>),
}

impl Console {
    /// Starts the thread.
    pub(crate) fn start(target: Target) -> Self {
        let (entries, queue) = sync_channel(QUEUE);
        let (skipped, live) = (AtomicU64::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { target, skipped, live });
        let theirs = Arc::clone(&shared);
        thread::spawn(move || write_entries(&queue, &theirs));
        Self { entries, shared }
    }

    /// Whether a person looks on.
    pub(crate) fn is_terminal(&self) -> bool {
        self.shared.target.is_terminal()
    }

    /// Writes a line; skips it, and says so later, when the stream is blocked.
    pub(crate) fn say(&self, line: impl Into<String>) {
        if let Err(TrySendError::Full(_)) = self.entries.try_send(Entry::Line(line.into())) {
            self.shared.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes a line; waits while the stream is blocked.
    pub(crate) fn say_surely(&self, line: impl Into<String>) {
        // fails only when the thread is gone, and nobody to be told with it
        let _ = self.entries.send(Entry::Line(line.into()));
    }

    /// Replaces the live line; on what is not a terminal it is a line like any other.
    pub(crate) fn show(&self, line: impl Into<String>) {
        // a live line that is skipped is soon followed by the next
        let _ = self.entries.try_send(Entry::Live(line.into()));
    }

    /// Takes the live line away before something else is written to the same terminal.
    pub(crate) fn clear_live(&self) {
        self.shared.clear_live();
    }

    /// Waits until everything is written, for a second at most.
    pub(crate) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.entries.try_send(Entry::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FLUSH);
        }
    }
}

impl Shared {
    fn clear_live(&self) {
        if self.live.swap(false, Ordering::Relaxed) {
            self.target.write("\r\x1b[K");
        }
    }
}

impl Target {
    fn is_terminal(self) -> bool {
        match self {
            Self::Output => std::io::stdout().is_terminal(),
            Self::Error => std::io::stderr().is_terminal(),
        }
    }

    /// A stream that is closed is no reason to end.
    fn write(self, text: &str) {
        let _ = match self {
            Self::Output => {
                let mut output = std::io::stdout();
                output.write_all(text.as_bytes()).and_then(|()| output.flush())
            }
            Self::Error => std::io::stderr().write_all(text.as_bytes()),
        };
    }
}

fn write_entries(queue: &Receiver<Entry>, shared: &Shared) {
    let terminal = shared.target.is_terminal();
    let write = |text: String| shared.target.write(&text);
    while let Ok(entry) = queue.recv() {
        let skipped = shared.skipped.swap(0, Ordering::Relaxed);
        match entry {
            Entry::Line(line) => {
                shared.clear_live();
                write(format!("{line}\n"));
            }
            Entry::Live(line) if terminal => {
                shared.live.store(true, Ordering::Relaxed);
                // without wrapping, as a second row would not be cleared
                write(format!("\r\x1b[?7l{line}\x1b[K\x1b[?7h"));
            }
            Entry::Live(line) => write(format!("{line}\n")),
            Entry::Flush(done) => {
                if shared.live.swap(false, Ordering::Relaxed) {
                    write("\n".to_owned());
                }
                let _ = done.try_send(());
            }
        }
        if skipped > 0 {
            write(format!("({skipped} lines were skipped: nobody read them in time)\n"));
        }
    }
}

/// A number that a person can read: `1 234 567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `1 message`, `2 messages`.
pub(crate) fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Lines that may wait; more than a person reads.
const QUEUE: usize = 1024;

/// How long the end of the command waits for a stream that is blocked.
const FLUSH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(counted(1, "message"), "1 message");
        assert_eq!(counted(2000, "message"), "2 000 messages");
    }
}
