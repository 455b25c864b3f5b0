//! Closing: what is still sent, what is reported, and that nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;
#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use deadline::{DEADLINE, event, within};
use dragonwire::{
    DropReason, Endpoint, Error, Event, Message, Monitor, PubSocket, PullSocket, PushSocket,
    RecvError, SocketOptions, SubSocket, TrySendError, Version, XPubSocket, XSubSocket,
};
use futures::StreamExt;
use peer::Peer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::timeout;

/// What the kernel has yet to send would be lost if the peer said something to a connection that is gone.
#[tokio::test]
async fn a_slow_reader_that_sends_pings_gets_what_was_sent_before_the_close() {
    let push = PushSocket::new();
    let endpoint = push.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut reader = Peer::connect_narrow(&endpoint).await;
    reader.shake(Version::V3_1, "PULL").await;
    let body = vec![7; 10_000];
    for _ in 0..20 {
        within(push.send(body.clone())).await.unwrap();
    }
    let mut closing = std::pin::pin!(push.close());
    assert!(timeout(Duration::from_secs(1), &mut closing).await.is_err(), "it has not been read");
    reader.write(&peer::ping(0, b"")).await;
    let reading = async {
        let message = peer::encode(Version::V3_1, &[&body]);
        for _ in 0..20 {
            assert!(reader.read(message.len()).await == message);
        }
        reader.hang_up();
    };
    let (report, ()) = within(async { tokio::join!(closing, reading) }).await;
    assert_eq!(report.discarded, 0);
}

/// How often the leak tests connect and disconnect.
const CYCLES: usize = 2000;

async fn up(monitor: &mut Monitor) {
    event(monitor, |event| matches!(event, Event::HandshakeSucceeded { .. })).await;
}

fn linger(linger: Option<Duration>) -> SocketOptions {
    SocketOptions::new().linger(linger).reconnect_interval(Duration::from_millis(5))
}

/// What a PULL peer of ZMTP 3.1 sends first.
const HELLO: &[u8] = b"\xFF\0\0\0\0\0\0\0\x01\x7F\x03\x01NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \x04\x1A\x05READY\x0bSocket-Type\0\0\0\x04PULL";

/// A peer that does the handshake and then nothing.
async fn stalled(listener: &TcpListener) -> TcpStream {
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    stream.write_all(HELLO).await.unwrap();
    stream
}

#[tokio::test]
async fn closing_sends_what_is_queued_and_reports_it() {
    const COUNT: u32 = 200;
    let mut pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::new();
    push.connect(&endpoint).await.unwrap();
    // all of it is queued before there is a connection
    let payload = vec![1; 64 << 10];
    for i in 0..COUNT {
        push.send_frames(&[&i.to_be_bytes(), &payload]).await.unwrap();
    }
    let queued = push.stats().outgoing.queued;
    assert_eq!(queued, u64::from(COUNT));
    let other = push.clone();
    let closing = tokio::spawn(async move { other.close().await });
    for i in 0..COUNT {
        let message = within(pull.recv()).await.unwrap();
        assert_eq!(message.topic(), i.to_be_bytes());
    }
    let report = within(closing).await.unwrap();
    assert_eq!((report.flushed, report.discarded, report.unread), (queued, 0, 0));
    let stats = push.stats().outgoing;
    assert_eq!((stats.accepted, stats.sent, stats.queued), (queued, queued, 0));
}

#[tokio::test]
async fn without_linger_closing_discards_and_counts() {
    let push = PushSocket::with_options(linger(Some(Duration::ZERO))).unwrap();
    push.connect("ipc:///nobody/there").await.unwrap();
    for _ in 0..10 {
        push.send("lost").await.unwrap();
    }
    let report = within(push.close()).await;
    assert_eq!((report.flushed, report.discarded, report.unread), (0, 10, 0));
    let stats = push.stats().outgoing;
    assert_eq!((stats.accepted, stats.sent, stats.queued), (10, 0, 0));
    assert_eq!(stats.dropped.get(DropReason::Linger), 10);

    // the same with a peer that does not read
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = linger(Some(Duration::ZERO)).send_buffer(64 << 10);
    let push = PushSocket::with_options(options).unwrap();
    let mut monitor = push.monitor();
    push.connect(Endpoint::tcp(listener.local_addr().unwrap())).await.unwrap();
    let mut peer = stalled(&listener).await;
    up(&mut monitor).await;
    for _ in 0..50 {
        push.send(vec![0; 1 << 20]).await.unwrap();
    }
    let report = within(push.close()).await;
    let stats = push.stats().outgoing;
    assert!(report.discarded > 0);
    assert_eq!((stats.accepted, stats.sent + report.discarded, stats.queued), (50, 50, 0));
    assert_eq!(stats.dropped.total(), report.discarded);
    let gone = event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    let Event::Disconnected { discarded, .. } = gone else { unreachable!() };
    assert_eq!(discarded, report.discarded);
    // it gets what the kernel had, and then the end
    let mut read = Vec::new();
    let end = within(peer.read_to_end(&mut read)).await;
    assert!(end.is_ok() || end.unwrap_err().kind() == ErrorKind::ConnectionReset);
    assert!(read.len() < 50 << 20);
}

#[tokio::test]
async fn linger_bounds_closing_when_nobody_takes_it() {
    let limit = Duration::from_millis(150);
    // a peer that is not there
    let push = PushSocket::with_options(linger(Some(limit))).unwrap();
    push.connect("ipc:///nobody/there").await.unwrap();
    push.send("lost").await.unwrap();
    let begun = Instant::now();
    let report = within(push.close()).await;
    assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    assert_eq!((report.flushed, report.discarded), (0, 1));
    // a peer that does not read
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let push = PushSocket::with_options(linger(Some(limit)).send_buffer(64 << 10)).unwrap();
    let mut monitor = push.monitor();
    push.connect(Endpoint::tcp(listener.local_addr().unwrap())).await.unwrap();
    let _peer = stalled(&listener).await;
    up(&mut monitor).await;
    for _ in 0..50 {
        push.send(vec![0; 1 << 20]).await.unwrap();
    }
    let begun = Instant::now();
    let report = within(push.close()).await;
    assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    assert!(report.discarded > 0);
    assert_eq!(push.stats().outgoing.dropped.get(DropReason::Linger), report.discarded);
    // nothing queued, nothing to wait for
    let push = PushSocket::with_options(linger(None)).unwrap();
    push.connect("ipc:///nobody/there").await.unwrap();
    assert_eq!(within(push.close()).await, Default::default());
}

#[tokio::test]
async fn a_peer_that_comes_while_closing_still_gets_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp(listener.local_addr().unwrap());
    drop(listener);
    for by_drop in [false, true] {
        let push = PushSocket::with_options(linger(None)).unwrap();
        let mut monitor = push.monitor();
        push.connect(&endpoint).await.unwrap();
        for i in 0..10u8 {
            push.send(&[i]).await.unwrap();
        }
        event(&mut monitor, |e| matches!(e, Event::Retry { .. })).await;
        let closing = tokio::spawn(async move {
            if by_drop {
                drop(push);
                None
            } else {
                Some(push.close().await)
            }
        });
        event(&mut monitor, |e| matches!(e, Event::Retry { .. })).await;
        let mut pull = PullSocket::new();
        pull.bind(&endpoint).await.unwrap();
        for i in 0..10u8 {
            assert_eq!(within(pull.recv()).await.unwrap().topic(), [i]);
        }
        if let Some(report) = within(closing).await.unwrap() {
            assert_eq!((report.flushed, report.discarded), (10, 0));
        }
        event(&mut monitor, |e| *e == Event::Closed).await;
        within(pull.close()).await;
    }
}

#[tokio::test]
async fn dropping_does_not_wait_and_what_was_queued_arrives() {
    const COUNT: u32 = 300;
    let mut pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::new();
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    let payload = vec![1; 64 << 10];
    for i in 0..COUNT {
        push.send_frames(&[&i.to_be_bytes(), &payload]).await.unwrap();
    }
    // a current-thread runtime: nothing of it can have gone before the drop returns
    drop(push);
    for i in 0..COUNT {
        assert_eq!(within(pull.recv()).await.unwrap().topic(), i.to_be_bytes());
    }
    event(&mut monitor, |e| *e == Event::Closed).await;
    assert_eq!(within(monitor.recv()).await, None);
    // the same for a publisher that is bound
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("ipc://*").await.unwrap();
    let mut subscriber = SubSocket::new();
    subscriber.subscribe("").unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    for i in 0..COUNT {
        assert_eq!(publisher.publish(i.to_be_bytes(), &payload).await.unwrap().queued, 1);
    }
    drop(publisher);
    for i in 0..COUNT {
        assert_eq!(within(subscriber.recv()).await.unwrap().topic(), i.to_be_bytes());
    }
}

#[tokio::test]
async fn what_was_not_read_is_reported() {
    let mut pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::new();
    push.connect(&endpoint).await.unwrap();
    for _ in 0..10 {
        push.send("x").await.unwrap();
    }
    within(async {
        while pull.stats().incoming.received < 10 {
            yield_now().await;
        }
    })
    .await;
    for _ in 0..4 {
        within(pull.recv()).await.unwrap();
    }
    let report = within(pull.close()).await;
    assert_eq!((report.flushed, report.discarded, report.unread), (0, 0, 6));
    assert_eq!(within(pull.recv()).await.unwrap_err(), RecvError::Closed);
    let stats = pull.stats().incoming;
    assert_eq!((stats.received, stats.delivered, stats.queued), (10, 4, 0));
    assert_eq!(stats.dropped.get(DropReason::Closed), 6);
}

#[tokio::test]
async fn a_closed_socket_receives_nothing_and_gives_messages_back() {
    let mut pull = PullSocket::new();
    pull.bind("tcp://127.0.0.1:*").await.unwrap();
    within(pull.close()).await;
    assert_eq!(within(pull.recv()).await.unwrap_err(), RecvError::Closed);
    assert_eq!(pull.try_recv().unwrap_err(), RecvError::Closed);
    assert_eq!(within(pull.recv_many(&mut Vec::new(), 5)).await.unwrap_err(), RecvError::Closed);
    assert!(within(pull.next()).await.is_none());

    let message: Message = ["keep", "me"].into();
    let push = PushSocket::new();
    within(push.close()).await;
    assert_eq!(within(push.send(message.clone())).await.unwrap_err().0, message);
    let TrySendError::Closed(back) = push.try_send(message.clone()).unwrap_err() else { panic!() };
    assert_eq!(back, message);
    let mut many = VecDeque::from([message.clone(), "b".into()]);
    assert!(matches!(within(push.send_many(&mut many)).await, Err(Error::Closed)));
    assert_eq!(many, [message.clone(), "b".into()]);
    assert!(matches!(within(push.send_frames(&[b"a"])).await, Err(Error::Closed)));

    let publisher = PubSocket::new();
    within(publisher.close()).await;
    assert_eq!(within(publisher.send(message.clone())).await.unwrap_err().0, message);
    let back = publisher.try_send(message.clone()).unwrap_err();
    assert!(matches!(back, TrySendError::Closed(back) if back == message));
    assert!(matches!(within(publisher.publish("a", "b")).await, Err(Error::Closed)));
    assert!(matches!(within(publisher.send_many(&mut many)).await, Err(Error::Closed)));
    assert_eq!(many.len(), 2);
    assert!(matches!(within(publisher.wait_for_subscribers("", 1)).await, Err(Error::Closed)));
    let xsub = XSubSocket::new();
    within(xsub.close()).await;
    assert_eq!(within(xsub.send(message.clone())).await.unwrap_err().0, message);
}

#[tokio::test]
async fn closing_ends_what_others_wait_for() {
    // a send at the mark, a receive, ready and wait_for_subscribers, through other handles
    let push = PushSocket::new();
    let sender = push.clone();
    let send = tokio::spawn(async move { sender.send("no peer").await });
    let mut xsub = XSubSocket::new();
    let upstream = xsub.sender();
    let recv = tokio::spawn(async move { xsub.recv().await });
    let subscriber = SubSocket::new();
    subscriber.connect("ipc:///nobody/there").await.unwrap();
    let handle = subscriber.handle();
    let ready = tokio::spawn(async move { handle.ready().await });
    let xpub = XPubSocket::new();
    let publisher = xpub.sender();
    let wait = tokio::spawn(async move { publisher.wait_for_subscribers("", 1).await });
    for _ in 0..10 {
        yield_now().await;
    }
    assert!(!send.is_finished() && !recv.is_finished());
    assert!(!ready.is_finished() && !wait.is_finished());
    within(push.close()).await;
    within(upstream.close()).await;
    within(subscriber.close()).await;
    within(xpub.close()).await;
    assert_eq!(within(send).await.unwrap().unwrap_err().0, "no peer".into());
    assert_eq!(within(recv).await.unwrap().unwrap_err(), RecvError::Closed);
    assert!(matches!(within(ready).await.unwrap(), Err(Error::Closed)));
    assert!(matches!(within(wait).await.unwrap(), Err(Error::Closed)));
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// For the end of tasks, of which no event tells.
async fn tasks_come_down_to(count: usize) {
    let down = async {
        while tasks() > count {
            yield_now().await;
        }
    };
    if timeout(DEADLINE, down).await.is_err() {
        panic!("{} tasks are left, {count} were there before", tasks());
    }
}

/// Every test of this file runs in one process, in which descriptors come and go: who counts them
/// runs alone in a process of its own.
fn alone(test: &str, limit: Option<u32>) {
    let program = std::env::current_exe().unwrap();
    let limit = limit.map_or(String::new(), |limit| format!("ulimit -n {limit}; "));
    let script =
        format!("{limit}exec \"$0\" --exact --ignored --nocapture --test-threads 1 {test}");
    let run = Command::new("bash")
        .args(["-c", &script])
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
    print!("{said}");
}

#[test]
fn nothing_is_left_of_sockets_that_are_gone() {
    alone("inside_cycles", None);
}

async fn settled() -> (usize, usize) {
    // the runtime's own descriptors are there from the start
    let push = PushSocket::new();
    push.bind("tcp://127.0.0.1:*").await.unwrap();
    within(push.close()).await;
    drop(push);
    tasks_come_down_to(0).await;
    (tasks(), descriptors())
}

#[test]
#[ignore = "run by nothing_is_left_of_sockets_that_are_gone"]
fn inside_cycles() {
    let cycles = std::env::var("CYCLES").map_or(CYCLES, |text| text.parse().unwrap());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        let before = settled().await;
        let begun = Instant::now();
        // one socket that stays, and peers that come and go, politely and not
        let mut pull = PullSocket::new();
        let tcp = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let ipc = pull.bind("ipc://*").await.unwrap();
        let fixed = (tasks(), descriptors());
        for i in 0..cycles {
            let endpoint = if i % 2 == 0 { &tcp } else { &ipc };
            let push = PushSocket::new();
            push.connect(endpoint).await.unwrap();
            push.send("x").await.unwrap();
            within(pull.recv()).await.unwrap();
            match i % 4 {
                0 | 1 => drop(within(push.close()).await),
                2 => within(push.disconnect(endpoint)).await.unwrap(),
                _ => {}
            }
        }
        tasks_come_down_to(fixed.0).await;
        assert_eq!((tasks(), descriptors()), fixed);
        assert_eq!(pull.stats().peers.len(), 0);
        // and one socket that connects and disconnects, and is bound and unbound
        let push = PushSocket::new();
        for i in 0..cycles / 10 {
            let endpoint = if i % 2 == 0 { &tcp } else { &ipc };
            push.connect(endpoint).await.unwrap();
            push.send("x").await.unwrap();
            within(pull.recv()).await.unwrap();
            within(push.disconnect(endpoint)).await.unwrap();
            let bound = push.bind(if i % 2 == 0 { "tcp://127.0.0.1:*" } else { "ipc://*" });
            let bound = bound.await.unwrap();
            // one that is still in its handshake is closed as well
            pull.connect(&bound).await.unwrap();
            within(push.unbind(&bound)).await.unwrap();
            within(pull.disconnect(&bound)).await.unwrap();
        }
        within(push.close()).await;
        drop(push);
        tasks_come_down_to(fixed.0).await;
        assert_eq!((tasks(), descriptors()), fixed);
        within(pull.close()).await;
        drop(pull);
        tasks_come_down_to(before.0).await;
        assert_eq!((tasks(), descriptors()), before);
        println!("{cycles} cycles in {:?}", begun.elapsed());
    });
}

#[test]
fn with_all_descriptors_in_use_accepting_goes_on_later() {
    alone("inside_few_descriptors", Some(64));
}

#[tokio::test]
#[ignore = "run by with_all_descriptors_in_use_accepting_goes_on_later"]
async fn inside_few_descriptors() {
    let mut pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let good = PushSocket::new();
    good.connect(&endpoint).await.unwrap();
    up(&mut monitor).await;
    // connections that say nothing, and then files, until there are no more
    let address = ("127.0.0.1", endpoint.port().unwrap());
    let mut hoard = Vec::new();
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(
            socket2::Socket::new(
                socket2::Domain::IPV4,
                socket2::Type::STREAM,
                Some(socket2::Protocol::TCP),
            )
            .unwrap(),
        );
    }
    loop {
        match std::fs::File::open("/dev/null") {
            Ok(file) => hoard.push(file),
            Err(error) => break assert_eq!(error.raw_os_error(), Some(24)),
        }
    }
    for socket in &silent {
        let address: std::net::SocketAddr = format!("{}:{}", address.0, address.1).parse().unwrap();
        socket.connect(&address.into()).unwrap();
    }
    // it backs off: the waits grow
    let mut waits = Vec::new();
    while waits.len() < 4 {
        let failed = event(&mut monitor, |e| matches!(e, Event::AcceptFailed { .. })).await;
        let Event::AcceptFailed { endpoint: told, retry_in, .. } = failed else { unreachable!() };
        assert_eq!(told, endpoint);
        waits.push(retry_in);
    }
    assert!(waits.windows(2).all(|pair| pair[1] > pair[0]), "{waits:?}");
    // who is there already does not notice
    for i in 0..100u32 {
        good.send(&i.to_be_bytes()).await.unwrap();
        assert_eq!(within(pull.recv()).await.unwrap().topic(), i.to_be_bytes());
    }
    // connecting fails in the same way, and is tried again
    let late = PushSocket::with_options(linger(None)).unwrap();
    let mut events = late.monitor();
    late.connect(&endpoint).await.unwrap();
    late.send("late").await.unwrap();
    event(&mut events, |e| matches!(e, Event::Retry { .. })).await;
    // binding too is refused, with the reason
    let Err(Error::Bind { source, .. }) = late.bind("tcp://127.0.0.1:*").await else { panic!() };
    assert_eq!(source.raw_os_error(), Some(24));
    // with room again everything goes on
    drop(hoard);
    assert_eq!(within(pull.recv()).await.unwrap(), "late".into());
    drop(silent);
    within(late.close()).await;
    within(good.close()).await;
    within(pull.close()).await;
}

#[test]
fn a_wildcard_that_cannot_be_bound_leaves_no_folder() {
    alone("inside_failed_wildcard", Some(64));
}

#[tokio::test]
#[ignore = "run by a_wildcard_that_cannot_be_bound_leaves_no_folder"]
async fn inside_failed_wildcard() {
    let hoard: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let pull = PullSocket::new();
    let Err(Error::Bind { source, .. }) = pull.bind("ipc://*").await else { panic!() };
    assert_eq!(source.raw_os_error(), Some(24));
    drop(hoard);
    let ours = format!("dragonwire-{}-", std::process::id());
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<_> = names.filter(|name| name.starts_with(&ours)).collect();
    for name in &left {
        std::fs::remove_dir(std::env::temp_dir().join(name)).unwrap();
    }
    assert_eq!(left, Vec::<String>::new());
}
