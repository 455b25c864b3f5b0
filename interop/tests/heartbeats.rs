//! Heartbeats: nobody alive is given up, whoever hangs is, and comes back.

use std::time::Duration;

use dragonwire::SocketType::{Pub, Pull, Push, Sub, XPub, XSub};
use dragonwire::{
    DisconnectCause, Event, Message, Monitor, PubSocket, PullSocket, PushSocket, SocketOptions,
};
use dragonwire_interop::libzmq::{self, Context, MonitorEvent, Opt};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::process::Process;
use dragonwire_interop::side::{Dragon, frames, texts};
use dragonwire_interop::{until, within};

const LINES: &str = env!("CARGO_BIN_EXE_libzmq_lines");

const INTERVAL: Duration = Duration::from_millis(40);
/// Ten intervals: a busy machine must not look like a dead one.
const TIMEOUT: Duration = Duration::from_millis(400);
/// As many intervals as three timeouts have.
const BEATS: u64 = 30;
/// The octets of a PING without context, and of its PONG: flags, length, name and, in a PING, TTL.
const PING: u64 = 9;
const PONG: u64 = 7;
/// More than the octets of a handshake, and of the messages that come before the counting.
const HEAD: u64 = 200;

fn impatient(socket: &libzmq::Socket) {
    socket.set(Opt::HeartbeatIvl, INTERVAL.as_millis() as i32).unwrap();
    socket.set(Opt::HeartbeatTimeout, TIMEOUT.as_millis() as i32).unwrap();
}

fn quiet() -> SocketOptions {
    SocketOptions::new().heartbeat_interval(None)
}

fn lively() -> SocketOptions {
    SocketOptions::new()
        .heartbeat_interval(Some(INTERVAL))
        .heartbeat_timeout(Some(TIMEOUT))
        .handshake_timeout(Some(TIMEOUT))
        .reconnect_interval(INTERVAL)
}

/// That the connection has lived since the monitor was asked for.
#[track_caller]
fn assert_undisturbed(monitor: &libzmq::Monitor) {
    while let Some(event) = monitor.next_within(Duration::ZERO) {
        assert_ne!(event.event, MonitorEvent::DISCONNECTED, "{event:?}");
    }
}

async fn see(monitor: &mut Monitor, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
    within(what, async {
        loop {
            let event = monitor.recv().await.expect("an open socket");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}

async fn see_timeout(monitor: &mut Monitor) {
    let end = see(monitor, "a timeout", |e| matches!(e, Event::Disconnected { .. })).await;
    let Event::Disconnected { cause, .. } = end else { unreachable!("by the condition above") };
    assert!(matches!(cause, DisconnectCause::HeartbeatTimeout(_)), "{cause:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_dragonwire_answers_libzmq() {
    let context = Context::new();
    let mut pairs = Vec::new();
    let types = [(Pub, Sub), (Sub, Pub), (XPub, XSub), (XSub, XPub), (Push, Pull), (Pull, Push)];
    for (ours, theirs) in types {
        for we_bind in [true, false] {
            let dragon = Dragon::new(ours, quiet());
            let socket = context.socket(theirs);
            impatient(&socket);
            let monitor = socket.monitor();
            if we_bind {
                socket.connect(&dragon.bind("tcp://127.0.0.1:*").await.unwrap()).unwrap();
            } else {
                dragon.connect(&socket.bind("tcp://127.0.0.1:*").unwrap()).await.unwrap();
            }
            pairs.push((dragon, socket, monitor));
        }
    }
    // all of them at the same time
    for (dragon, socket, monitor) in &pairs {
        monitor.wait_for(&[MonitorEvent::HANDSHAKE_SUCCEEDED]);
        until("PINGs have come", || dragon.stats().incoming.bytes >= HEAD + BEATS * PING).await;
        assert_undisturbed(monitor);
        assert_eq!(dragon.stats().connections, 1);
        socket.events();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_answers_an_idle_dragonwire() {
    let context = Context::new();
    let pull = context.socket(Pull);
    let endpoint = pull.bind("tcp://127.0.0.1:*").unwrap();
    let push = PushSocket::with_options(lively()).unwrap();
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    until("PONGs have come", || push.stats().incoming.bytes >= HEAD + BEATS * PONG).await;
    while let Some(event) = monitor.try_recv() {
        assert!(!matches!(event, Event::Disconnected { .. }), "{event:?}");
    }
    push.send("x").await.unwrap();
    assert_eq!(pull.recv().unwrap(), texts(&["x"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_does_not_receive_is_alive() {
    let context = Context::new();
    for transport in [Transport::Tcp, Transport::Ipc] {
        let mut pull = PullSocket::with_options(quiet()).unwrap();
        let place = Place::new(transport);
        let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
        let push = context.socket(Push);
        impatient(&push);
        let monitor = push.monitor();
        push.connect(&endpoint).unwrap();
        for i in 0..100 {
            push.send([i.to_string()]).unwrap();
        }
        let received = || pull.stats().incoming;
        until("all have come", || received().received == 100).await;
        let before = received().bytes;
        until("PINGs have come", || received().bytes >= before + BEATS * PING).await;
        assert_undisturbed(&monitor);
        for i in 0..100 {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(received, Message::from(i.to_string()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_receive_queue_is_alive() {
    let context = Context::new();
    for transport in [Transport::Tcp, Transport::Ipc] {
        for from_the_start in [true, false] {
            let mut pull = PullSocket::with_options(quiet().recv_hwm(10)).unwrap();
            let place = Place::new(transport);
            let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
            let push = context.socket(Push);
            impatient(&push);
            let monitor = push.monitor();
            push.connect(&endpoint).unwrap();
            if !from_the_start {
                let pings = || pull.stats().incoming.bytes >= HEAD + 5 * PING;
                until("PINGs have come", pings).await;
            }
            for i in 0..200 {
                push.send([i.to_string()]).unwrap();
            }
            until("the queue is full", || pull.stats().incoming.queued == 10).await;
            let before = pull.stats().outgoing.bytes;
            let pongs = || pull.stats().outgoing.bytes >= before + BEATS * PONG;
            until("PONGs have gone", pongs).await;
            assert_undisturbed(&monitor);
            for i in 0..200 {
                let received = within("a message", pull.recv()).await.unwrap();
                assert_eq!(received, Message::from(i.to_string()));
            }
            assert_eq!(pull.stats().connections, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_libzmq_that_hangs_is_given_up_and_comes_back() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let mut pull = Process::start(LINES, &["pull", "--bind", place.endpoint()]);
        let push = PushSocket::with_options(lively()).unwrap();
        let mut monitor = push.monitor();
        push.connect(pull.endpoint()).await.unwrap();
        push.send("before").await.unwrap();
        assert_eq!(pull.recv(), texts(&["before"]));

        pull.stop();
        see_timeout(&mut monitor).await;
        push.send("meanwhile").await.unwrap();
        pull.go_on();
        assert_eq!(pull.recv(), texts(&["meanwhile"]));
        push.send("after").await.unwrap();
        assert_eq!(pull.recv(), texts(&["after"]));
        pull.finish();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_libzmq_subscriber_that_hangs_is_given_up_and_comes_back() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let publisher = PubSocket::with_options(lively()).unwrap();
        let mut monitor = publisher.monitor();
        let endpoint = publisher.bind(place.endpoint()).await.unwrap().to_string();
        let arguments =
            ["sub", "--set", "RECONNECT_IVL=20", "--subscribe", "-", "--connect", &endpoint];
        let mut sub = Process::start(LINES, &arguments);
        within("a subscriber", publisher.wait_for_subscribers("", 1)).await.unwrap();

        sub.stop();
        see_timeout(&mut monitor).await;
        assert_eq!(publisher.send("nobody").await.unwrap().matched, 0);
        sub.go_on();
        within("a subscriber", publisher.wait_for_subscribers("", 1)).await.unwrap();
        assert_eq!(publisher.send("somebody").await.unwrap().matched, 1);
        assert_eq!(sub.recv(), texts(&["somebody"]));
        sub.finish();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ttl_that_libzmq_asks_for_is_kept() {
    let mut pull = PullSocket::with_options(quiet()).unwrap();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let arguments = [
        "push",
        "--set",
        "RECONNECT_IVL=20",
        "--set",
        "HEARTBEAT_IVL=40",
        "--set",
        "HEARTBEAT_TIMEOUT=5000",
        "--set",
        "HEARTBEAT_TTL=400",
        "--connect",
        &endpoint,
    ];
    let mut push = Process::start(LINES, &arguments);
    assert!(push.send(&["before"]));
    let received = within("a message", pull.recv()).await.unwrap();
    assert_eq!(frames(&received), texts(&["before"]));
    until("PINGs have come", || pull.stats().incoming.bytes >= HEAD + BEATS * PING).await;
    assert_eq!(pull.stats().connections, 1);
    push.stop();
    see_timeout(&mut monitor).await;
    push.go_on();
    see(&mut monitor, "it is back", |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
    assert!(push.send(&["after"]));
    let received = within("a message", pull.recv()).await.unwrap();
    assert_eq!(frames(&received), texts(&["after"]));
    push.finish();
}
