//! The crate `zeromq`, also known as zmq.rs, as its own benchmarks use it.
//!
//! It has hardly anything to set: neither a high-water mark (each peer's queue holds 100 000
//! messages) nor batching (128 messages a flush) nor a linger time; TCP buffers of 4 MiB and the
//! read buffer up to 64 KiB are its defaults and stay. What an application can choose:
//!
//! - PUB drops what a subscriber has no room for and cannot be told otherwise. XPUB waits until
//!   the kernel has taken a message for each subscriber, so it is the publisher where nothing may
//!   be lost; it also hands subscriptions to the application, where PUB has to be probed.
//! - PUB's `send` never waits, so that on a runtime of one thread nothing is written unless the
//!   publisher yields. It yields after each batch that the library would write in one go.
//! - Round trips go by REQ and REP, which write and read in the calling task; from PUSH a message
//!   takes another task to the socket.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, future, stream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use zeromq::{
    PubSocket, PullSocket, PushSocket, RepSocket, ReqSocket, Socket, SocketEvent, SocketRecv,
    SocketSend, SubSocket, XPubSocket, ZmqMessage,
};

use crate::receipt::{Counter, Receipt};
use crate::role::{PROBE, Role, Verb};
use crate::signals::{self, Go};
use crate::tally::{Laps, Tally};

pub const SETTINGS: &str = "defaults, which are a queue of 100 000 messages for each peer that \
     cannot be changed; lossless publishing by XPUB, since PUB always drops; PUB yields after each \
     128 messages; round trips by REQ and REP";

pub fn version() -> String {
    super::locked_version("zeromq")
}

pub fn declines(role: &Role) -> bool {
    role.is_of_pipeline()
}

pub fn run(role: &Role) -> Tally {
    let role = role.clone();
    super::block_on(role.runtime, async move {
        let tally = match role.verb {
            Verb::Push => push(&role).await,
            Verb::Pull => pull(&role).await,
            Verb::Pub if role.lossless => publish_all(&role).await,
            Verb::Pub => publish(&role).await,
            Verb::Sub => subscribe(&role).await,
            Verb::Ping => ping(&role).await,
            Verb::Pong => pong(&role).await,
            Verb::Idle => stay(&role).await,
            Verb::Produce | Verb::Relay | Verb::Consume => unreachable!("it is declined"),
        };
        Tally { note: note(&role), ..tally }
    })
}

/// What the library did in another way than the role has it.
fn note(role: &Role) -> Option<String> {
    let note = match role.verb {
        Verb::Pub | Verb::Sub if role.lossless => "XPUB, as PUB always drops",
        _ if role.hwm.is_some() => "its marks are fixed at 100 000",
        _ => return None,
    };
    Some(note.to_owned())
}

async fn push(role: &Role) -> Tally {
    let before = tasks();
    let mut socket = PushSocket::new();
    let mut events = socket.monitor();
    attach(&mut socket, role).await;
    while role.bind && !matches!(events.next().await, Some(SocketEvent::Accepted(..))) {}
    let payload = Bytes::from(vec![7; role.size]);
    let start = Instant::now();
    for _ in 0..role.count {
        socket.send(ZmqMessage::from(payload.clone())).await.expect("it is connected");
    }
    let tally = Tally::of(role.count, start.elapsed().as_secs_f64());
    // there is no linger: the tasks that write end when their queues are empty and closed
    drop(socket);
    while tasks() > before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tally
}

async fn pull(role: &Role) -> Tally {
    let receipt = Receipt::watch();
    let mut counter = receipt.counter(role.count);
    let mut socket = PullSocket::new();
    attach(&mut socket, role).await;
    receive(&mut socket, &mut counter).await;
    receipt.tally()
}

async fn receive(socket: &mut impl SocketRecv, counter: &mut Counter) {
    loop {
        std::hint::black_box(socket.recv().await.expect("the sender stays"));
        if !counter.one() {
            return;
        }
    }
}

async fn publish(role: &Role) -> Tally {
    let mut socket = PubSocket::new();
    let mut events = socket.monitor();
    attach(&mut socket, role).await;
    let go = Go::listen();
    // it does not tell of subscriptions, but of connections; probes before all are there would be
    // what takes the time
    let mut absent = if role.bind { role.peers } else { 0 };
    while absent > 0
        && let Some(event) = events.next().await
    {
        absent -= usize::from(matches!(event, SocketEvent::Accepted(..)));
    }
    let probe = ZmqMessage::from(PROBE);
    while !go.said() {
        socket.send(probe.clone()).await.expect("the socket is open");
        tokio::time::sleep(signals::probe_pause(role.peers)).await;
    }
    let mut events = socket.monitor();
    let messages = Messages::of(role);
    let start = Instant::now();
    for (n, message) in messages.enumerate() {
        socket.send(message).await.expect("the socket is open");
        if n % BATCH == BATCH - 1 {
            tokio::task::yield_now().await;
        }
    }
    let tally = Tally::of(role.count, start.elapsed().as_secs_f64());
    // dropping the socket would drop what is still queued, and only the subscribers know when
    // nothing is
    let mut left = if role.count == 0 { 0 } else { role.peers };
    while left > 0 {
        let event = tokio::time::timeout(PARTING, events.next());
        match event.await {
            Ok(Some(SocketEvent::Disconnected(_))) => left -= 1,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    tally
}

async fn publish_all(role: &Role) -> Tally {
    let mut socket = XPubSocket::new();
    attach(&mut socket, role).await;
    let go = Go::listen();
    let mut absent = role.peers;
    while absent > 0 {
        let told = socket.recv().await.expect("the subscribers stay");
        if told.get(0).is_some_and(|told| told[..].ends_with(PROBE.as_bytes())) {
            absent -= 1;
        }
    }
    signals::subscribed();
    go.wait_async().await;
    let start = Instant::now();
    for message in Messages::of(role) {
        socket.send(message).await.expect("the subscribers stay");
    }
    Tally::of(role.count, start.elapsed().as_secs_f64())
}

/// What a publisher sends.
struct Messages {
    topics: Vec<Bytes>,
    payload: Bytes,
    sent: u64,
    count: u64,
}

impl Messages {
    fn of(role: &Role) -> Self {
        let topics = role.topics().into_iter().map(Bytes::from).collect();
        Self { topics, payload: Bytes::from(vec![7; role.size]), sent: 0, count: role.count }
    }
}

impl Iterator for Messages {
    type Item = ZmqMessage;

    #[inline]
    fn next(&mut self) -> Option<ZmqMessage> {
        if self.sent == self.count {
            return None;
        }
        let topic = &self.topics[self.sent as usize % self.topics.len()];
        self.sent += 1;
        Some(vec![topic.clone(), self.payload.clone()].try_into().expect("it is not empty"))
    }
}

async fn subscribe(role: &Role) -> Tally {
    let receipt = Receipt::watch();
    let mut sockets = subscribers(role).await;
    let stalled = sockets.split_off(role.receiving());
    let mut receiving = sockets.into_iter().enumerate().map(|(n, mut socket)| {
        let mut counter = receipt.counter(role.share(n));
        async move { receive_after_probes(&mut socket, &mut counter).await }
    });
    // the first in this task, so that a single subscriber is where the role wants the work
    let first = receiving.next();
    let others: JoinSet<_> = receiving.collect();
    if let Some(first) = first {
        first.await;
    }
    others.join_all().await;
    drop(stalled);
    receipt.tally()
}

async fn stay(role: &Role) -> Tally {
    signals::connecting();
    let go = Go::listen();
    let _sockets = subscribers(role).await;
    go.wait_async().await;
    Tally::default()
}

/// A process's subscribers, when the publisher has all their subscriptions.
async fn subscribers(role: &Role) -> Vec<SubSocket> {
    let connecting = (0..role.peers).map(|n| subscriber(role, n));
    let mut sockets: Vec<_> = stream::iter(connecting).buffered(CONNECTING).collect().await;
    // XPUB has seen it, PUB has to be asked
    if !role.lossless {
        future::join_all(sockets.iter_mut().map(probed)).await;
        signals::subscribed();
    }
    sockets
}

async fn subscriber(role: &Role, number: usize) -> SubSocket {
    let mut socket = SubSocket::new();
    attach(&mut socket, role).await;
    // after connecting: to who comes later it sends them in no order
    for prefix in role.subscriptions(number) {
        socket.subscribe(&prefix).await.expect("the publisher stays");
    }
    socket
}

async fn probed(socket: &mut SubSocket) {
    while !is_probe(&socket.recv().await.expect("the publisher stays")) {}
}

async fn receive_after_probes(socket: &mut SubSocket, counter: &mut Counter) {
    while is_probe(&socket.recv().await.expect("the publisher stays")) {}
    if counter.one() {
        receive(socket, counter).await;
    }
}

fn is_probe(message: &ZmqMessage) -> bool {
    message.get(0).is_some_and(|topic| topic[..] == *PROBE.as_bytes())
}

async fn ping(role: &Role) -> Tally {
    let mut socket = ReqSocket::new();
    attach(&mut socket, role).await;
    let payload = Bytes::from(vec![7; role.size]);
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        socket.send(ZmqMessage::from(payload.clone())).await.expect("pong stays");
        std::hint::black_box(socket.recv().await.expect("pong stays"));
        laps.stop();
    }
    laps.tally()
}

async fn pong(role: &Role) -> Tally {
    let mut socket = RepSocket::new();
    attach(&mut socket, role).await;
    for _ in 0..role.round_trips() {
        let message = socket.recv().await.expect("ping stays");
        socket.send(message).await.expect("ping stays");
    }
    Tally::default()
}

async fn attach(socket: &mut impl Socket, role: &Role) {
    if role.bind {
        let endpoint = role.endpoint.replace(":*", ":0");
        signals::listening(socket.bind(&endpoint).await.expect("it can bind"));
    } else {
        socket.connect(&role.endpoint).await.expect("it can connect");
    }
}

/// Tasks of this runtime that have not ended.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// What the library writes before it flushes.
const BATCH: usize = 128;
/// Subscribers that connect at the same time; it takes a round trip each.
const CONNECTING: usize = 64;
/// A publisher does not wait longer than this for a subscriber to leave.
const PARTING: Duration = Duration::from_secs(20);
