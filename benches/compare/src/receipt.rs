//! How a receiving process counts, and how it ends when not everything comes.
//!
//! Each socket has a [`Counter`], which costs it one store per message. A thread looks at the sum
//! now and then; when that stays the same for two seconds, or shorter once the driver has said go
//! because the sender is gone, it reports what there is and ends the process: no library's receiving
//! loop needs a timeout in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::signals::Go;
use crate::tally::Tally;

#[derive(Debug, Clone)]
pub struct Receipt(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    first: OnceLock<Instant>,
    last: Mutex<Option<Instant>>,
    sockets: Mutex<Vec<Arc<Cell>>>,
    /// Messages that a socket was told to be missing, if it can be told.
    told: OnceLock<AtomicU64>,
}

/// On a cache line of its own, since sockets may be on several threads.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicU64);

/// Counts the messages of one socket.
#[derive(Debug)]
pub struct Counter {
    shared: Arc<Shared>,
    cell: Arc<Cell>,
    seen: u64,
    missing: u64,
    expected: u64,
}

impl Receipt {
    /// Begins to watch.
    pub fn watch() -> Self {
        Self::watch_with(REST)
    }

    /// The same for a library that tells what is missing, for which it takes its time.
    pub fn watch_telling() -> Self {
        let receipt = Self::watch_with(SILENCE);
        receipt.0.told.get_or_init(AtomicU64::default);
        receipt
    }

    /// `rest` is how long it waits after the sender's end.
    fn watch_with(rest: Duration) -> Self {
        let receipt = Self(Arc::default());
        let watched = receipt.clone();
        std::thread::spawn(move || watched.give_up_in_the_end(rest));
        receipt
    }

    /// For a socket that should get so many messages.
    pub fn counter(&self, expected: u64) -> Counter {
        let cell = Arc::<Cell>::default();
        self.0.sockets.lock().unwrap().push(Arc::clone(&cell));
        Counter { shared: Arc::clone(&self.0), cell, seen: 0, missing: 0, expected }
    }

    /// When all sockets have what they should get.
    pub fn tally(&self) -> Tally {
        let last = self.0.last.lock().unwrap().unwrap_or_else(Instant::now);
        self.tally_until(last)
    }

    fn tally_until(&self, last: Instant) -> Tally {
        let seconds = self.0.first.get().map_or(0.0, |&first| (last - first).as_secs_f64());
        let told = self.0.told.get().map(|told| told.load(Ordering::Relaxed));
        Tally { told, ..Tally::of(self.messages(), seconds) }
    }

    fn messages(&self) -> u64 {
        self.0.sockets.lock().unwrap().iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }

    fn give_up_in_the_end(&self, rest: Duration) {
        let sender_gone = Go::listen();
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(GLANCE);
            let now = self.messages();
            if now != seen {
                (seen, since) = (now, Instant::now());
                continue;
            }
            let patience = match seen {
                _ if sender_gone.said() => rest,
                0 => PATIENCE,
                _ => SILENCE,
            };
            if since.elapsed() > patience {
                self.tally_until(since).print();
                std::process::exit(0);
            }
        }
    }
}

impl Counter {
    /// A message has come. Are there more to come?
    #[inline]
    pub fn one(&mut self) -> bool {
        self.seen += 1;
        self.cell.0.store(self.seen, Ordering::Relaxed);
        if self.seen == 1 {
            self.shared.first.get_or_init(Instant::now);
        }
        if self.seen + self.missing < self.expected {
            return true;
        }
        self.pause();
        false
    }

    /// The messages that have come are all there is for now. Who waits for what is
    /// [`missing`](Self::missing) says so, as the last message came before that.
    pub fn pause(&self) {
        *self.shared.last.lock().unwrap() = Some(Instant::now());
    }

    /// So many messages do not come. Are there more to come?
    pub fn missing(&mut self, messages: u64) -> bool {
        self.missing += messages;
        if let Some(told) = self.shared.told.get() {
            told.fetch_add(messages, Ordering::Relaxed);
        }
        self.seen + self.missing < self.expected
    }
}

/// The error that this makes in the time of a run that did not get everything.
const GLANCE: Duration = Duration::from_millis(5);
/// Without a message, after there have been some.
const SILENCE: Duration = Duration::from_secs(2);
/// After the sender's end, when everything is with the kernel.
const REST: Duration = Duration::from_millis(300);
/// For the first.
const PATIENCE: Duration = Duration::from_secs(40);
