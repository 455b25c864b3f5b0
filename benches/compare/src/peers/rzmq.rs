//! The crate `rzmq`, with what its usage guide and its author's benchmark tool set, where it helps.
//!
//! - The adaptive throttle is off, as in the tool: traffic here goes one way.
//! - Writes hold up to 512 messages and 1 MiB (`SNDBATCH_COUNT`, `SNDBATCH_BYTES`), the guide's
//!   advice for many small messages; it does no harm to large ones.
//! - Socket buffers are of 64 KiB, as in the tool, where they help: over tcp, if no message may be
//!   dropped, and not for messages from 1 KiB to 64 KiB. Elsewhere the kernel's own are faster, and
//!   a PUB that may drop drops less.
//! - A publisher that may not lose anything has `XPUB_NODROP`. One that may yields after each 64
//!   messages, lest on a runtime of one thread most are dropped at the default mark, which is 256.
//! - Messages of two frames go by `send_multipart` and `recv_multipart`, the guide's preference.
//! - Round trips go by REQ and REP, which are quicker than two pairs of PUSH and PULL.
//!
//! Left out after trials on two cores, one process each: `TCP_CORK`, which made no difference to
//! small messages and cost processor time with larger ones, and the io_uring backend, whose worker
//! thread competes with the application's (0.57 against 0.36 us of processor time for a message of
//! 64 octets, a round trip in 37 against 20 us; it has nothing for ipc).

use std::time::Instant;

use bytes::Bytes;
use futures::future;
use rzmq::socket::{
    ADAPTIVE_THROTTLE, LAST_ENDPOINT, MAX_CONNECTIONS, RCVBUF, RCVHWM, SNDBATCH_BYTES,
    SNDBATCH_COUNT, SNDBUF, SNDHWM, SUBSCRIBE, SocketEvent, XPUB_NODROP,
};
use rzmq::{Context, Msg, Socket, SocketType};
use tokio::task::JoinSet;

use crate::receipt::{Counter, Receipt};
use crate::role::{PROBE, Role, Verb};
use crate::signals::{self, Go};
use crate::tally::{Laps, Tally};

pub const SETTINGS: &str = "default marks, which are 256; ADAPTIVE_THROTTLE 0; SNDBATCH_COUNT 512, \
     SNDBATCH_BYTES 1 MiB; SNDBUF and RCVBUF 64 KiB over tcp where nothing may be dropped, but for \
     messages from 1 KiB to 64 KiB; XPUB_NODROP for lossless publishing, otherwise a PUB yields \
     after each 64 messages; a context for each subscriber; round trips by REQ and REP; neither \
     TCP_CORK nor io_uring, which did not help on two cores";

pub fn version() -> String {
    super::locked_version("rzmq")
}

pub fn declines(role: &Role) -> bool {
    role.is_of_pipeline()
}

pub fn run(role: &Role) -> Tally {
    let role = role.clone();
    super::block_on(role.runtime, async move {
        let context = Context::new().expect("a context");
        match role.verb {
            Verb::Push => push(&role, &context).await,
            Verb::Pull => pull(&role, &context).await,
            Verb::Pub => publish(&role, &context).await,
            Verb::Sub => subscribe(&role).await,
            Verb::Ping => ping(&role, &context).await,
            Verb::Pong => pong(&role, &context).await,
            Verb::Idle => stay(&role).await,
            Verb::Produce | Verb::Relay | Verb::Consume => unreachable!("it is declined"),
        }
    })
}

async fn socket(role: &Role, context: &Context, kind: SocketType) -> Socket {
    let socket = context.socket(kind).expect("a socket");
    let mut options = vec![(ADAPTIVE_THROTTLE, 0)];
    if !matches!(role.verb, Verb::Ping | Verb::Pong) {
        options.extend([(SNDBATCH_COUNT, 512), (SNDBATCH_BYTES, 1024 * 1024)]);
        let lossless = role.lossless || matches!(role.verb, Verb::Push | Verb::Pull);
        if lossless && role.endpoint.starts_with("tcp:") && !(1024..65536).contains(&role.size) {
            options.extend([(SNDBUF, 65536), (RCVBUF, 65536)]);
        }
    }
    if kind == SocketType::Pub {
        options.push((XPUB_NODROP, i32::from(role.lossless)));
        // the default is 1024
        options.push((MAX_CONNECTIONS, 1024.max(role.peers as i32)));
    }
    if let Some(hwm) = role.hwm {
        options.extend([(SNDHWM, hwm as i32), (RCVHWM, hwm as i32)]);
    }
    for (option, value) in options {
        socket.set_option(option, value).await.expect("it knows the option");
    }
    socket
}

async fn push(role: &Role, context: &Context) -> Tally {
    let socket = socket(role, context, SocketType::Push).await;
    attach(&socket, role).await;
    let payload = Bytes::from(vec![7; role.size]);
    let start = Instant::now();
    for _ in 0..role.count {
        socket.send(Msg::from_bytes(payload.clone())).await.expect("it is open");
    }
    let tally = Tally::of(role.count, start.elapsed().as_secs_f64());
    linger(&socket, context).await;
    tally
}

async fn pull(role: &Role, context: &Context) -> Tally {
    let receipt = Receipt::watch();
    let mut counter = receipt.counter(role.count);
    let socket = socket(role, context, SocketType::Pull).await;
    attach(&socket, role).await;
    loop {
        std::hint::black_box(socket.recv().await.expect("it is open"));
        if !counter.one() {
            return receipt.tally();
        }
    }
}

async fn publish(role: &Role, context: &Context) -> Tally {
    let socket = socket(role, context, SocketType::Pub).await;
    // it does not tell of subscriptions, but of handshakes; probes before all have done theirs
    // would be what takes the time
    let events = socket.monitor(EVENTS * role.peers).await.expect("it is open");
    attach(&socket, role).await;
    let go = Go::listen();
    let mut absent = role.peers;
    while absent > 0
        && let Ok(event) = events.recv().await
    {
        absent -= usize::from(matches!(event, SocketEvent::HandshakeSucceeded { .. }));
    }
    while !go.said() {
        let probe = vec![Msg::from_static(PROBE.as_bytes()), Msg::new()];
        socket.send_multipart(probe).await.expect("it is open");
        tokio::time::sleep(signals::probe_pause(role.peers)).await;
    }
    let topics: Vec<Bytes> = role.topics().into_iter().map(Bytes::from).collect();
    let payload = Bytes::from(vec![7; role.size]);
    let start = Instant::now();
    for (n, topic) in (1..=role.count).zip(topics.iter().cycle()) {
        let message = vec![Msg::from_bytes(topic.clone()), Msg::from_bytes(payload.clone())];
        socket.send_multipart(message).await.expect("it is open");
        if n % YIELD == 0 && !role.lossless {
            tokio::task::yield_now().await;
        }
    }
    let tally = Tally::of(role.count, start.elapsed().as_secs_f64());
    linger(&socket, context).await;
    tally
}

async fn subscribe(role: &Role) -> Tally {
    let receipt = Receipt::watch();
    let mut sockets = subscribers(role).await;
    let stalled = sockets.split_off(role.receiving());
    let mut receiving = sockets.into_iter().enumerate().map(|(n, (context, socket))| {
        let mut counter = receipt.counter(role.share(n));
        async move {
            receive(&socket, &mut counter).await;
            drop(context);
        }
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

async fn receive(socket: &Socket, counter: &mut Counter) {
    while is_probe(&socket.recv_multipart().await.expect("it is open")) {}
    while counter.one() {
        std::hint::black_box(socket.recv_multipart().await.expect("it is open"));
    }
}

async fn stay(role: &Role) -> Tally {
    signals::connecting();
    let go = Go::listen();
    let _sockets = subscribers(role).await;
    go.wait_async().await;
    Tally::default()
}

/// A process's subscribers, when the publisher has all their subscriptions.
///
/// Each has a context of its own, as it would have in a process of its own: sockets in one context
/// all hear of each other's connections, which makes a thousand of them take many seconds.
async fn subscribers(role: &Role) -> Vec<(Context, Socket)> {
    let mut sockets = Vec::with_capacity(role.peers);
    for number in 0..role.peers {
        let context = Context::new().expect("a context");
        let socket = socket(role, &context, SocketType::Sub).await;
        let events = socket.monitor_default().await.expect("it is open");
        attach(&socket, role).await;
        // after connecting, which makes a queue for them: what is there before goes out backwards,
        // the probe first
        for prefix in role.subscriptions(number) {
            socket.set_option(SUBSCRIBE, prefix).await.expect("it is open");
        }
        // one at a time, lest they be too many for the listener, which has them try again later
        while !matches!(events.recv().await, Ok(SocketEvent::HandshakeSucceeded { .. })) {}
        sockets.push((context, socket));
    }
    future::join_all(sockets.iter().map(|(_, socket)| probed(socket))).await;
    signals::subscribed();
    sockets
}

async fn probed(socket: &Socket) {
    while !is_probe(&socket.recv_multipart().await.expect("it is open")) {}
}

fn is_probe(message: &[Msg]) -> bool {
    message[0].data() == Some(PROBE.as_bytes())
}

async fn ping(role: &Role, context: &Context) -> Tally {
    let socket = socket(role, context, SocketType::Req).await;
    attach(&socket, role).await;
    let payload = Bytes::from(vec![7; role.size]);
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        socket.send(Msg::from_bytes(payload.clone())).await.expect("pong stays");
        std::hint::black_box(socket.recv().await.expect("pong stays"));
        laps.stop();
    }
    laps.tally()
}

async fn pong(role: &Role, context: &Context) -> Tally {
    let socket = socket(role, context, SocketType::Rep).await;
    attach(&socket, role).await;
    for _ in 0..role.round_trips() {
        let message = socket.recv().await.expect("ping stays");
        socket.send(message).await.expect("ping stays");
    }
    linger(&socket, context).await;
    Tally::default()
}

async fn attach(socket: &Socket, role: &Role) {
    if role.bind {
        let endpoint = role.endpoint.replace(":*", ":0");
        socket.bind(&endpoint).await.expect("it can bind");
        let bound = socket.get_option(LAST_ENDPOINT).await.expect("it is bound");
        signals::listening(String::from_utf8_lossy(&bound));
    } else {
        socket.connect(&role.endpoint).await.expect("it can connect");
    }
}

/// Until the kernel has taken what is queued; the linger time is without limit.
async fn linger(socket: &Socket, context: &Context) {
    socket.close().await.expect("it was open");
    context.term().await.expect("nothing uses it any more");
}

/// Enough of them for each peer.
const EVENTS: usize = 8;
/// A quarter of the default high-water mark.
const YIELD: u64 = 64;
