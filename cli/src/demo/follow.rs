//! The subscriber's side: who sent how much, and what was missing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dragonwire::{Endpoint, Message, SubSocket};
use tokio::sync::Notify;

use crate::demo::books::Seen;

/// What came from each life of each publisher. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the number of the life.
    lives: BTreeMap<u32, Expected>,
    /// Messages that no publisher of the demo sent.
    strange: u64,
    example: Option<String>,
}

#[derive(Debug)]
struct Expected {
    publisher: char,
    endpoint: Endpoint,
    seen: Seen,
}

impl Tally {
    /// From now on there is one more life of a publisher.
    pub(crate) fn expect(&self, life: u32, publisher: char, endpoint: Endpoint) {
        self.lock().lives.insert(life, Expected { publisher, endpoint, seen: Seen::default() });
    }

    /// Receives until the socket is closed.
    pub(crate) async fn follow(self, mut socket: SubSocket) {
        let mut messages = Vec::new();
        while socket.recv_many(&mut messages, BATCH).await.is_ok() {
            let mut inner = self.lock();
            for message in messages.drain(..) {
                inner.note(&message);
            }
            drop(inner);
            self.0.grown.notify_waiters();
        }
    }

    pub(crate) fn seen(&self, life: u32) -> Seen {
        self.lock().lives.get(&life).map(|expected| expected.seen).unwrap_or_default()
    }

    /// For each publisher where it is, and how much came from all its lives.
    pub(crate) fn publishers(&self) -> BTreeMap<char, (Endpoint, u64)> {
        let mut publishers = BTreeMap::new();
        for expected in self.lock().lives.values() {
            let (_, delivered) = publishers
                .entry(expected.publisher)
                .or_insert_with(|| (expected.endpoint.clone(), 0));
            *delivered += expected.seen.delivered;
        }
        publishers
    }

    pub(crate) fn strange(&self) -> u64 {
        self.lock().strange
    }

    /// A message as it came, once one has come.
    pub(crate) async fn example(&self) -> String {
        loop {
            let grown = self.0.grown.notified();
            if let Some(example) = self.lock().example.clone() {
                return example;
            }
            grown.await;
        }
    }

    /// Waits until so much has come from a life of a publisher.
    pub(crate) async fn reached(&self, life: u32, delivered: u64) {
        loop {
            let grown = self.0.grown.notified();
            if self.seen(life).delivered >= delivered {
                return;
            }
            grown.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn note(&mut self, message: &Message) {
        let body = message.frame(1).and_then(|body| std::str::from_utf8(body).ok());
        let numbers = body.and_then(life_and_number);
        let expected =
            numbers.and_then(|(life, number)| Some((self.lives.get_mut(&life)?, number)));
        let Some((expected, number)) = expected else {
            self.strange += 1;
            return;
        };
        expected.seen.note(number);
        if self.example.is_none() {
            let topic = String::from_utf8_lossy(message.topic());
            self.example = Some(format!("{topic} | {}", body.unwrap_or_default()));
        }
    }
}

fn life_and_number(body: &str) -> Option<(u32, u64)> {
    let mut words = body.split(' ');
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Messages received in one go.
const BATCH: usize = 512;
