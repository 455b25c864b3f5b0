//! What the processes of a run tell each other while it goes on, by way of the driver: lines on the
//! standard error, and one line to the standard input.
//!
//! ```text
//! listening ENDPOINT   a binder, once others can connect
//! connecting           idle subscribers, before the first connects
//! subscribed           all subscribers are there: said by the publisher if its library tells it so,
//!                      else by the subscribers, when each has had a message with the topic PROBE,
//!                      which such a publisher sends every few milliseconds until it is told to go
//! ```
//!
//! The line to the standard input means go: a publisher starts with what is measured, idle
//! subscribers end, an idle publisher (whose count is 0) and a relay do too, and a receiver learns
//! that the sender has ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub fn listening(endpoint: impl std::fmt::Display) {
    eprintln!("listening {endpoint}");
}

pub fn connecting() {
    eprintln!("connecting");
}

pub fn subscribed() {
    eprintln!("subscribed");
}

/// Whether the driver has said go.
#[derive(Debug, Clone)]
pub struct Go(Arc<AtomicBool>);

impl Go {
    /// Begins to listen for it.
    pub fn listen() -> Self {
        let said = Arc::new(AtomicBool::new(false));
        let go = Self(Arc::clone(&said));
        std::thread::spawn(move || {
            wait_for_go();
            said.store(true, Ordering::Release);
        });
        go
    }

    pub fn said(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Waits for it, on a thread.
    pub fn wait(&self) {
        while !self.said() {
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits for it, in a task.
    pub async fn wait_async(&self) {
        while !self.said() {
            tokio::time::sleep(GLANCE).await;
        }
    }
}

/// Waits for the driver's go where nothing else is to be done at it, without a look now and then.
pub fn wait_for_go() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the standard input can be read");
}

/// The same in a task.
pub async fn go() {
    tokio::task::spawn_blocking(wait_for_go).await.expect("waiting does not panic");
}

/// How long a publisher that cannot tell who is there waits between probes: longer for many
/// subscribers, lest the probes be what is measured.
#[cfg(feature = "others")]
pub fn probe_pause(subscribers: usize) -> Duration {
    GLANCE * (1 + subscribers / 100) as u32
}

/// How often what nobody announces is looked at.
const GLANCE: Duration = Duration::from_millis(1);
