//! The crate `omq-tokio`, in the ways that its own benchmark peer and its documentation show.
//!
//! All sockets run on the caller's runtime, as `Context::current` would have it; the author's
//! other set-up, threads for IO next to the application's, needs more cores than one a process.
//! Options are the defaults (high-water marks of 1000, messages under 4 KiB copied into one
//! buffer, larger ones written by reference) but for these:
//!
//! - senders linger until everything is written, where the default is to discard it;
//! - receiving is in bulk, up to 128 messages at a time, with `recv_batching`;
//! - a publisher that may not lose anything has `xpub_nodrop`.
//!
//! PUSH and a lossless PUB use `try_send` and fall back to `send`. A PUB that may drop uses `send`,
//! which yields after each 4096 messages; since on a runtime of one thread most of these would be
//! dropped, it yields after each 256. Two-frame messages are made by `Message::with_prefix`; with
//! `multipart` they cost a fifth more processor time in all, with or without a `MessagePool`.
//!
//! Round trips go by PAIR: over tcp by the sockets of the module `exclusive`, which write and read
//! in the calling task and are meant for this, over ipc, which those do not have, by ordinary ones
//! with the profile for latency.

use std::time::{Duration, Instant};

use bytes::Bytes;
use omq_tokio::exclusive;
use omq_tokio::options::WorkloadProfile;
use omq_tokio::{Message, Options, Socket, SocketType, TrySendError};
use tokio::task::JoinSet;

use crate::receipt::{Counter, Receipt};
use crate::role::{Role, Verb};
use crate::signals::{self, Go};
use crate::tally::{Laps, Tally};

pub const SETTINGS: &str = "sockets on the caller's runtime; unlimited linger; recv_batching with \
     bulk receives of 128; try_send where nothing may be lost, xpub_nodrop for lossless \
     publishing; a PUB that may drop yields after each 256 messages; round trips by PAIR, over \
     tcp an exclusive one, over ipc with the latency profile";

pub fn version() -> String {
    super::locked_version("omq-tokio")
}

pub fn declines(role: &Role) -> bool {
    role.is_of_pipeline()
}

pub fn run(role: &Role) -> Tally {
    let role = role.clone();
    super::block_on(role.runtime, async move {
        let direct = role.endpoint.starts_with("tcp:");
        match role.verb {
            Verb::Push => push(&role).await,
            Verb::Pull => pull(&role).await,
            Verb::Pub => publish(&role).await,
            Verb::Sub => subscribe(&role).await,
            Verb::Ping if direct => ping_directly(&role).await,
            Verb::Ping => ping(&role).await,
            Verb::Pong if direct => pong_directly(&role).await,
            Verb::Pong => pong(&role).await,
            Verb::Idle => stay(&role).await,
            Verb::Produce | Verb::Relay | Verb::Consume => unreachable!("it is declined"),
        }
    })
}

fn options(role: &Role) -> Options {
    let options = Options::default().recv_batching(true);
    match role.hwm {
        Some(hwm) => options.send_hwm(hwm as u32).recv_hwm(hwm as u32),
        None => options,
    }
}

async fn push(role: &Role) -> Tally {
    let socket = Socket::new(SocketType::Push, options(role).linger_forever());
    attach(&socket, role).await;
    socket.wait_connected(1, PATIENCE).await.expect("somebody pulls");
    let message = Message::from_slice(&vec![7; role.size]);
    let start = Instant::now();
    for _ in 0..role.count {
        send(&socket, message.clone()).await;
    }
    let tally = Tally::of(role.count, start.elapsed().as_secs_f64());
    socket.close().await.expect("it was open");
    tally
}

#[inline]
async fn send(socket: &Socket, message: Message) {
    match socket.try_send(message) {
        Ok(()) => {}
        Err(TrySendError::Full(message)) => socket.send(message).await.expect("it is open"),
        Err(error) => panic!("{error}"),
    }
}

async fn pull(role: &Role) -> Tally {
    let receipt = Receipt::watch();
    let mut counter = receipt.counter(role.count);
    let socket = Socket::new(SocketType::Pull, options(role));
    attach(&socket, role).await;
    receive(&socket, &mut counter).await;
    receipt.tally()
}

async fn receive(socket: &Socket, counter: &mut Counter) {
    let mut messages = Vec::with_capacity(BULK);
    loop {
        socket.recv_many_into(BULK, &mut messages).await.expect("it is open");
        for message in messages.drain(..) {
            std::hint::black_box(message);
            if !counter.one() {
                return;
            }
        }
        // bulk receives that find something do not wait, so others would never run
        tokio::task::coop::consume_budget().await;
    }
}

async fn publish(role: &Role) -> Tally {
    let mut options = options(role).linger_forever();
    options.xpub_nodrop = role.lossless;
    let socket = Socket::new(SocketType::Pub, options);
    attach(&socket, role).await;
    let go = Go::listen();
    let subscriptions = role.peers * role.subscriptions(0).len();
    socket.wait_subscribed(subscriptions as u64, PATIENCE).await.expect("subscribers come");
    signals::subscribed();
    go.wait_async().await;
    let topics: Vec<Bytes> = role.topics().into_iter().map(Bytes::from).collect();
    let payload = Message::from_slice(&vec![7; role.size]);
    let start = Instant::now();
    for (n, topic) in (1..=role.count).zip(topics.iter().cycle()) {
        let message = Message::with_prefix(topic.clone(), payload.clone());
        if role.lossless {
            send(&socket, message).await;
        } else {
            socket.send(message).await.expect("it is open");
            if n % YIELD == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    let tally = Tally::of(role.count, start.elapsed().as_secs_f64());
    socket.close().await.expect("it was open");
    tally
}

async fn subscribe(role: &Role) -> Tally {
    let receipt = Receipt::watch();
    let mut sockets = subscribers(role).await;
    let stalled = sockets.split_off(role.receiving());
    let mut receiving = sockets.into_iter().enumerate().map(|(n, socket)| {
        let mut counter = receipt.counter(role.share(n));
        async move { receive(&socket, &mut counter).await }
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

/// A process's subscribers; the publisher tells when it has all their subscriptions.
async fn subscribers(role: &Role) -> Vec<Socket> {
    let mut sockets = Vec::with_capacity(role.peers);
    for number in 0..role.peers {
        let socket = Socket::new(SocketType::Sub, options(role));
        for prefix in role.subscriptions(number) {
            socket.subscribe(prefix).await.expect("it is open");
        }
        attach(&socket, role).await;
        sockets.push(socket);
    }
    sockets
}

async fn ping_directly(role: &Role) -> Tally {
    let endpoint = role.endpoint.as_str();
    let options = exclusive::Options::default();
    let mut socket = exclusive::Socket::connect(SocketType::Pair, endpoint, options)
        .await
        .expect("it can connect");
    let message = Message::from_slice(&vec![7; role.size]);
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        socket.send(&message).await.expect("pong stays");
        std::hint::black_box(socket.recv().await.expect("pong stays"));
        laps.stop();
    }
    laps.tally()
}

async fn pong_directly(role: &Role) -> Tally {
    let endpoint = role.endpoint.as_str();
    let options = exclusive::Options::default();
    let (mut socket, bound) =
        exclusive::Socket::bind(SocketType::Pair, endpoint, options).await.expect("it can bind");
    signals::listening(bound);
    for _ in 0..role.round_trips() {
        let message = socket.recv().await.expect("ping stays");
        socket.send(&message).await.expect("ping stays");
    }
    Tally::default()
}

async fn ping(role: &Role) -> Tally {
    let options = options(role).workload_profile(WorkloadProfile::Latency);
    let socket = Socket::new(SocketType::Pair, options);
    attach(&socket, role).await;
    socket.wait_connected(1, PATIENCE).await.expect("pong is there");
    let message = Message::from_slice(&vec![7; role.size]);
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        socket.send(message.clone()).await.expect("it is open");
        std::hint::black_box(socket.recv().await.expect("it is open"));
        laps.stop();
    }
    laps.tally()
}

async fn pong(role: &Role) -> Tally {
    let options = options(role).workload_profile(WorkloadProfile::Latency).linger_forever();
    let socket = Socket::new(SocketType::Pair, options);
    attach(&socket, role).await;
    for _ in 0..role.round_trips() {
        let message = socket.recv().await.expect("it is open");
        socket.send(message).await.expect("it is open");
    }
    socket.close().await.expect("it was open");
    Tally::default()
}

async fn attach(socket: &Socket, role: &Role) {
    let endpoint = role.endpoint.as_str();
    if role.bind {
        signals::listening(socket.bind(endpoint).await.expect("it can bind"));
    } else {
        socket.connect(endpoint).await.expect("it can connect");
    }
}

/// The author's measure for a turn of receiving.
const BULK: usize = 128;
/// A quarter of the default high-water mark.
const YIELD: u64 = 256;
/// For peers and their subscriptions to be there.
const PATIENCE: Duration = Duration::from_secs(60);
