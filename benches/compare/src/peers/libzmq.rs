//! libzmq through its C API, with tight loops as in its own `perf/local_thr.cpp`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dragonwire_interop::libzmq::{self, Context, Error, Frame, Opt, Socket, SocketType};

use super::pipeline::{Answers, Done, Gate, TOPIC, msgpack};
use crate::receipt::{Counter, Receipt};
use crate::role::{PROBE, Role, Verb};
use crate::signals::{self, Go};
use crate::tally::{Laps, Tally};

pub const SETTINGS: &str = "built with -O2 and what its configure finds on Linux; one IO thread; \
     zmq_msg_init_size and a copy for each frame sent, one zmq_msg_t reused to receive; PUB is an \
     XPUB, which knows its subscribers (ZMQ_XPUB_VERBOSE), with ZMQ_XPUB_NODROP where lossless; \
     several subscribers are sockets of one context, drained in turn by one thread, idle ones are \
     1000 a context; subscribers with more than 900 prefixes have ZMQ_SNDHWM 0, without which they \
     drop subscriptions; ZMQ_LINGER -1 for senders; in pipelines the relay hands on each zmq_msg_t \
     from PULL to XPUB, with ZMQ_XPUB_NODROP where a window holds the producer back, and bodies are \
     MessagePack, made before";

pub fn version() -> String {
    let (major, minor, patch) = libzmq::version();
    format!("{major}.{minor}.{patch}")
}

pub fn declines(_role: &Role) -> bool {
    false
}

pub fn run(role: &Role) -> Tally {
    let tally = match role.verb {
        Verb::Push => push(role),
        Verb::Pull => pull(role),
        Verb::Pub => publish(role),
        Verb::Sub => subscribe(role),
        Verb::Ping => ping(role),
        Verb::Pong => pong(role),
        Verb::Idle => idle(role),
        Verb::Relay => relay(role),
        Verb::Produce => return produce(role).unwrap_or_else(|error| panic!("produce: {error}")),
        Verb::Consume => return consume(role).unwrap_or_else(|error| panic!("consume: {error}")),
    };
    tally.unwrap_or_else(|error| panic!("{}: {error}", role.endpoint))
}

fn push(role: &Role) -> libzmq::Result<Tally> {
    let context = Context::new();
    let socket = socket(&context, SocketType::Push, role)?;
    meet(&socket, role)?;
    let payload = vec![b'x'; role.size];
    let start = Instant::now();
    for _ in 0..role.count {
        socket.send_frame(&mut Frame::copied(&payload), false)?;
    }
    Ok(Tally::of(role.count, start.elapsed().as_secs_f64()))
}

fn pull(role: &Role) -> libzmq::Result<Tally> {
    let context = Context::new();
    let socket = socket(&context, SocketType::Pull, role)?;
    meet(&socket, role)?;
    let receipt = Receipt::watch();
    receive(&socket, &mut receipt.counter(role.count))?;
    Ok(receipt.tally())
}

fn publish(role: &Role) -> libzmq::Result<Tally> {
    let go = Go::listen();
    let context = Context::new();
    let socket = socket(&context, SocketType::XPub, role)?;
    socket.set(Opt::XPubNoDrop, i32::from(role.lossless))?;
    socket.set(Opt::XPubVerbose, 1)?;
    meet(&socket, role)?;
    let mut frame = Frame::new();
    let mut missing = role.peers;
    while missing > 0 {
        socket.recv_frame(&mut frame)?;
        if frame.octets().strip_prefix(&[SUBSCRIBE]) == Some(PROBE.as_bytes()) {
            missing -= 1;
        }
    }
    signals::subscribed();
    go.wait();
    let payload = vec![b'x'; role.size];
    let topics = role.topics();
    let start = Instant::now();
    for topic in topics.iter().cycle().take(role.count as usize) {
        socket.send_frame(&mut Frame::copied(topic.as_bytes()), true)?;
        socket.send_frame(&mut Frame::copied(&payload), false)?;
    }
    Ok(Tally::of(role.count, start.elapsed().as_secs_f64()))
}

fn subscribe(role: &Role) -> libzmq::Result<Tally> {
    let context = Context::new();
    let mut sockets = Vec::new();
    for n in 0..role.peers {
        sockets.push(subscriber(&context, role, n)?);
    }
    let receipt = Receipt::watch();
    // never received from
    let _stalled = sockets.split_off(role.receiving());
    let mut receiving: Vec<_> = sockets
        .into_iter()
        .enumerate()
        .map(|(n, socket)| (socket, receipt.counter(role.share(n))))
        .collect();
    match &mut receiving[..] {
        [(socket, counter)] => receive(socket, counter)?,
        several => receive_in_turn(several)?,
    }
    Ok(receipt.tally())
}

/// From many sockets on one thread, which takes less of the processor than a thread for each.
fn receive_in_turn(sockets: &mut [(Socket, Counter)]) -> libzmq::Result<()> {
    for (socket, _) in &mut *sockets {
        socket.set(Opt::RcvTimeo, 0)?;
    }
    let mut frame = Frame::new();
    let mut unfinished: Vec<_> = sockets.iter_mut().collect();
    while !unfinished.is_empty() {
        let (mut idle, mut fault) = (true, None);
        unfinished.retain_mut(|(socket, counter)| {
            for _ in 0..FRAMES_IN_TURN {
                match socket.recv_frame(&mut frame) {
                    Ok(()) if frame.more() || counter.one() => idle = false,
                    Ok(()) => return false,
                    Err(Error::AGAIN) => return true,
                    Err(error) => {
                        fault = Some(error);
                        return false;
                    }
                }
            }
            true
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        if idle {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn idle(role: &Role) -> libzmq::Result<Tally> {
    let go = Go::listen();
    signals::connecting();
    let start = Instant::now();
    let mut sockets = Vec::new();
    let mut contexts = Vec::new();
    for n in 0..role.peers {
        if n % SOCKETS_OF_A_CONTEXT == 0 {
            contexts.push(Context::new());
        }
        sockets.push(subscriber(&contexts[contexts.len() - 1], role, n)?);
    }
    let seconds = start.elapsed().as_secs_f64();
    go.wait();
    Ok(Tally::of(role.peers as u64, seconds))
}

fn subscriber(context: &Context, role: &Role, number: usize) -> libzmq::Result<Socket> {
    let socket = socket(context, SocketType::Sub, role)?;
    // what a subscriber has left to say at the end is of no interest to a publisher that is gone
    socket.set(Opt::Linger, 0)?;
    if role.prefixes > SUBSCRIPTIONS_BELOW_MARK {
        socket.set(Opt::SndHwm, 0)?;
    }
    for prefix in role.subscriptions(number) {
        socket.subscribe(prefix)?;
    }
    meet(&socket, role)?;
    Ok(socket)
}

fn ping(role: &Role) -> libzmq::Result<Tally> {
    let context = Context::new();
    let (push, pull) =
        (socket(&context, SocketType::Push, role)?, socket(&context, SocketType::Pull, role)?);
    let back = pull.bind(role.back.as_deref().expect("a ping has a way back"))?;
    push.connect(&role.endpoint)?;
    push.send_frame(&mut Frame::copied(back.as_bytes()), false)?;
    let payload = vec![b'x'; role.size];
    let mut frame = Frame::new();
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        push.send_frame(&mut Frame::copied(&payload), false)?;
        pull.recv_frame(&mut frame)?;
        laps.stop();
    }
    Ok(laps.tally())
}

fn pong(role: &Role) -> libzmq::Result<Tally> {
    let context = Context::new();
    let (push, pull) =
        (socket(&context, SocketType::Push, role)?, socket(&context, SocketType::Pull, role)?);
    meet(&pull, role)?;
    let mut frame = Frame::new();
    pull.recv_frame(&mut frame)?;
    push.connect(std::str::from_utf8(frame.octets()).expect("an endpoint"))?;
    for _ in 0..role.round_trips() {
        pull.recv_frame(&mut frame)?;
        push.send_frame(&mut frame, false)?;
    }
    Ok(Tally::default())
}

fn produce(role: &Role) -> Done<Tally> {
    let tokio = runtime()?;
    let context = Context::new();
    let push = socket(&context, SocketType::Push, role)?;
    push.connect(&role.local)?;
    let body = msgpack(role);
    let mut gate = tokio.block_on(Gate::of(role))?;
    let events = role.round_trips();
    for sent in 0..events {
        if !gate.is_open(sent) {
            tokio.block_on(gate.pass(sent))?;
        }
        push.send_frame(&mut Frame::copied(TOPIC.as_bytes()), true)?;
        push.send_frame(&mut Frame::copied(&body), false)?;
    }
    tokio.block_on(gate.tally(events))
}

fn relay(role: &Role) -> libzmq::Result<Tally> {
    let context = Context::new();
    let (pull, publisher) =
        (socket(&context, SocketType::Pull, role)?, socket(&context, SocketType::XPub, role)?);
    // else it drops although nothing waits: it looks once in a millisecond whether its peer has read
    publisher.set(Opt::XPubNoDrop, i32::from(role.window.is_some()))?;
    pull.bind(&role.local)?;
    signals::listening(publisher.bind(&role.endpoint)?);
    let mut frame = Frame::new();
    // the one subscription
    publisher.recv_frame(&mut frame)?;
    signals::subscribed();
    let relayed = Arc::new(AtomicU64::new(0));
    let watched = Arc::clone(&relayed);
    std::thread::spawn(move || {
        signals::wait_for_go();
        Tally::of(watched.load(Ordering::Relaxed), 0.0).print();
        std::process::exit(0);
    });
    loop {
        pull.recv_frame(&mut frame)?;
        let more = frame.more();
        publisher.send_frame(&mut frame, more)?;
        if !more {
            relayed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn consume(role: &Role) -> Done<Tally> {
    let tokio = runtime()?;
    let context = Context::new();
    let subscriber = socket(&context, SocketType::Sub, role)?;
    subscriber.set(Opt::Linger, 0)?;
    subscriber.subscribe(TOPIC)?;
    subscriber.connect(&role.endpoint)?;
    let mut answers = tokio.block_on(Answers::of(role))?;
    let receipt = Receipt::watch();
    let mut counter = receipt.counter(role.round_trips());
    let mut frame = Frame::new();
    loop {
        subscriber.recv_frame(&mut frame)?;
        if frame.more() {
            continue;
        }
        let more = counter.one();
        if answers.are_due(1) {
            tokio.block_on(async {
                let said = answers.say().await;
                // the connection's task writes it
                tokio::task::yield_now().await;
                said
            })?;
        }
        if !more {
            tokio.block_on(answers.close());
            return Ok(receipt.tally());
        }
    }
}

/// For the answers, which are dragonwire's for all.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn receive(socket: &Socket, counter: &mut Counter) -> libzmq::Result<()> {
    let mut frame = Frame::new();
    loop {
        socket.recv_frame(&mut frame)?;
        if !frame.more() && !counter.one() {
            return Ok(());
        }
    }
}

/// Closing it, and then its context, waits until the kernel has everything.
fn socket(context: &Context, kind: SocketType, role: &Role) -> Result<Socket, Error> {
    let socket = context.socket(kind);
    for opt in [Opt::SndTimeo, Opt::RcvTimeo, Opt::Linger] {
        socket.set(opt, -1)?;
    }
    if let Some(hwm) = role.hwm {
        let hwm = i32::try_from(hwm).expect("a small number");
        socket.set(Opt::SndHwm, hwm)?;
        socket.set(Opt::RcvHwm, hwm)?;
    }
    Ok(socket)
}

fn meet(socket: &Socket, role: &Role) -> libzmq::Result<()> {
    if role.bind {
        signals::listening(socket.bind(&role.endpoint)?);
        Ok(())
    } else {
        socket.connect(&role.endpoint)
    }
}

/// What an XPUB's message begins with that tells of a subscription.
const SUBSCRIBE: u8 = 1;
/// `ZMQ_SNDHWM` is 1000 by default, and each subscription a message.
const SUBSCRIPTIONS_BELOW_MARK: usize = 900;
/// By default a context has at most 1023.
const SOCKETS_OF_A_CONTEXT: usize = 1000;
/// Before the next socket has its turn.
const FRAMES_IN_TURN: usize = 2000;
/// When no socket has anything.
const PAUSE: Duration = Duration::from_micros(100);
