//! The hot paths without sockets, for `benches/` (feature `__bench`; no part of the API).

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

use crate::endpoint::Endpoint;
use crate::framing::{Framing, Limits, Room, Scanner, UNLIMITED, put_header};
use crate::governor::Budget;
use crate::greeting::Version;
use crate::hub::{Hub, Wire};
use crate::inbox::Chunk;
use crate::options::SocketOptions;
use crate::outbox::Payload;
use crate::peer::{ConnectionId, PeerInfo};
use crate::socket_type::SocketType;
use crate::subscription::{SubscriptionSet, Subscriptions};

/// A kernel that takes everything.
#[derive(Debug)]
struct Sink;

impl Wire for Sink {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

/// A PUB or PUSH socket's state with peers whose kernels take everything.
#[derive(Debug)]
pub struct Sending {
    hub: Arc<Hub>,
    publish: bool,
}

impl Sending {
    /// PUSH with one peer, or PUB with so many that are subscribed to everything.
    #[must_use]
    pub fn new(publish: bool, peers: usize) -> Self {
        Self::with_options(publish, peers, SocketOptions::new())
    }

    /// The same that keeps within a budget.
    #[must_use]
    pub fn within(budget: &Budget, publish: bool, peers: usize) -> Self {
        Self::with_options(publish, peers, SocketOptions::new().budget(budget))
    }

    fn with_options(publish: bool, peers: usize, options: SocketOptions) -> Self {
        let kind = if publish { SocketType::Pub } else { SocketType::Push };
        let hub = Hub::new(kind, Arc::new(options));
        for id in 0..peers as u64 {
            let endpoint = Endpoint::tcp(([127, 0, 0, 1], 1).into());
            let peer = hub.add_peer(endpoint.clone(), false);
            let info = PeerInfo::new(ConnectionId(id), endpoint, true);
            hub.attach(peer, Arc::new(info), Version::V3_1, Arc::new(Sink));
            if publish {
                let all = crate::command::Subscription::Subscribe(b"");
                let taken = hub.peer_subscription(peer, all);
                debug_assert!(taken.is_ok());
            }
        }
        Self { hub, publish }
    }

    /// Sends a message of these frames.
    pub fn send(&self, frames: &[&[u8]]) {
        let payload = Payload::Slices(frames);
        let sent = match self.publish {
            true => self.hub.publish(&payload).map(drop),
            false => self.hub.push(&payload),
        };
        debug_assert!(sent.is_ok(), "the kernel takes everything");
    }
}

/// Octets of so many messages of one frame.
#[must_use]
pub fn block(messages: usize, size: usize) -> Bytes {
    let mut out = Vec::new();
    for _ in 0..messages {
        put_header(&mut out, size, false);
        out.resize(out.len() + size, 7);
    }
    out.into()
}

/// Scans a block and slices every message of it, as a connection and a receiver do; the sum of
/// their first frames' lengths.
#[must_use]
pub fn decode(block: &Bytes) -> usize {
    let limits = Limits { message: UNLIMITED, frames: 65_536 };
    let room = Room { messages: 500, ..Room::ANY };
    let mut scanner = Scanner::new(Framing::New, limits);
    let mut sum = 0;
    let mut buf = block.clone();
    loop {
        let scanned = scanner.scan(&buf, room);
        debug_assert!(scanned.is_ok(), "the block is well-formed");
        let (octets, messages) = scanner.take(&buf, room);
        if messages == 0 {
            return sum;
        }
        let bytes = buf.split_to(octets);
        let mut chunk = Chunk { bytes, messages, framing: Framing::New };
        while let Some(message) = chunk.next_message() {
            sum += message.topic().len();
        }
    }
}

/// A publisher's subscriptions.
#[derive(Debug, Default)]
pub struct Matching {
    subscriptions: Subscriptions,
    set: SubscriptionSet,
}

impl Matching {
    /// So many topics, each of one of `peers`.
    #[must_use]
    pub fn new(topics: usize, peers: u32) -> Self {
        let mut this = Self::default();
        for i in 0..topics as u32 {
            let topic = format!("topic.{i:07}.");
            this.subscriptions.subscribe(i % peers, topic.as_bytes());
            this.set.add(topic.as_bytes());
        }
        this
    }

    /// How many peers get a message of this topic.
    pub fn peers(&mut self, topic: &[u8]) -> usize {
        let mut count = 0;
        self.subscriptions.matching(topic, |_| count += 1);
        count
    }

    /// Whether a subscriber to all of the topics wants a message of this one.
    #[must_use]
    pub fn wanted(&self, topic: &[u8]) -> bool {
        self.set.matches(topic)
    }
}
