//! What happens when the other side is not there, goes, and comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use deadline::{event, within};
use dragonwire::{
    DisconnectCause, Endpoint, EndpointState, Event, Monitor, ProtocolError, PubSocket, PullSocket,
    PushSocket, SocketOptions, SubSocket,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn retry(monitor: &mut Monitor) -> (DisconnectCause, u32, Duration) {
    match event(monitor, |event| matches!(event, Event::Retry { .. })).await {
        Event::Retry { cause, attempt, delay, .. } => (cause, attempt, delay),
        other => panic!("{other:?}"),
    }
}

fn quick() -> SocketOptions {
    SocketOptions::new().reconnect_interval(Duration::from_millis(5))
}

/// An endpoint that nobody listens on.
async fn free_endpoint() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Endpoint::tcp(listener.local_addr().unwrap())
}

async fn connect_before_bind(endpoint: Endpoint) {
    let push = PushSocket::with_options(quick()).unwrap();
    let subscriber = SubSocket::with_options(quick()).unwrap();
    let mut monitor = push.monitor();
    subscriber.subscribe("").unwrap();
    push.connect(&endpoint).await.unwrap();
    push.send("early").await.unwrap();
    retry(&mut monitor).await;
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    assert_eq!(within(pull.recv()).await.unwrap(), "early".into());
    within(push.disconnect(&endpoint)).await.unwrap();
    within(pull.unbind(&endpoint)).await.unwrap();

    let mut subscriber = subscriber;
    let mut monitor = subscriber.monitor();
    subscriber.connect(&endpoint).await.unwrap();
    retry(&mut monitor).await;
    let publisher = PubSocket::new();
    publisher.bind(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.publish("topic", "").await.unwrap().queued, 1);
    assert_eq!(within(subscriber.recv()).await.unwrap().topic(), b"topic");
}

#[tokio::test]
async fn connecting_may_come_before_binding() {
    connect_before_bind(free_endpoint().await).await;
    let name = format!("ipc://@reconnect-test-{}", std::process::id());
    connect_before_bind(name.parse().unwrap()).await;
    let path = std::env::temp_dir().join(format!("reconnect-test-{}", std::process::id()));
    connect_before_bind(Endpoint::ipc(&path).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subscription_is_made_again_at_each_reconnect() {
    const FILTERS: u32 = 100_000;
    const RECONNECTS: u32 = 5;
    let endpoint = free_endpoint().await;
    let mut subscriber = SubSocket::with_options(quick()).unwrap();
    for i in 0..FILTERS {
        assert!(subscriber.subscribe(format!("topic.{i:06}")).unwrap());
    }
    subscriber.connect(&endpoint).await.unwrap();
    for round in 0..=RECONNECTS {
        let publisher = PubSocket::new();
        let mut gone = subscriber.monitor();
        publisher.bind(&endpoint).await.unwrap();
        within(subscriber.ready()).await.unwrap();
        let stats = publisher.stats();
        assert_eq!(stats.peers.len(), 1);
        assert_eq!(stats.peers[0].subscriptions, (FILTERS - round) as usize);
        for i in [round, FILTERS / 2, FILTERS - 1] {
            let topic = format!("topic.{i:06}");
            assert_eq!(publisher.publish(&topic, "").await.unwrap().queued, 1, "{topic}");
            assert_eq!(within(subscriber.recv()).await.unwrap().topic(), topic.as_bytes());
        }
        if let Some(before) = round.checked_sub(1) {
            let topic = format!("topic.{before:06}");
            assert_eq!(publisher.publish(&topic, "").await.unwrap().matched, 0, "{topic}");
        }
        within(publisher.close()).await;
        event(&mut gone, |e| matches!(e, Event::Disconnected { .. })).await;
        // what changes while nobody is there counts as well
        assert!(subscriber.unsubscribe(format!("topic.{round:06}")).unwrap());
    }
}

#[tokio::test]
async fn subscriptions_of_a_lost_connection_do_not_come_back() {
    let publisher = PubSocket::new();
    let mut monitor = publisher.monitor();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    for round in 0..3 {
        let subscriber = SubSocket::new();
        let topic = format!("topic.{round}");
        subscriber.subscribe(&topic).unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        within(publisher.wait_for_subscribers(&topic, 1)).await.unwrap();
        drop(subscriber);
        event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
        assert_eq!(publisher.publish(&topic, "").await.unwrap().matched, 0);
    }
    // the same where the publisher is the one that connects, and keeps the peer's place
    let endpoint = free_endpoint().await;
    let publisher = PubSocket::with_options(quick()).unwrap();
    publisher.connect(&endpoint).await.unwrap();
    for round in 0..3 {
        let mut monitor = publisher.monitor();
        let mut subscriber = SubSocket::new();
        let topic = format!("topic.{round}");
        subscriber.subscribe(&topic).unwrap();
        subscriber.bind(&endpoint).await.unwrap();
        within(publisher.wait_for_subscribers(&topic, 1)).await.unwrap();
        if round > 0 {
            let before = format!("topic.{}", round - 1);
            assert_eq!(publisher.publish(&before, "").await.unwrap().matched, 0);
        }
        publisher.publish(&topic, "").await.unwrap();
        assert_eq!(within(subscriber.recv()).await.unwrap().topic(), topic.as_bytes());
        within(subscriber.close()).await;
        event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    }
}

/// What a PULL peer of ZMTP 3.1 sends first.
fn hello(socket_type: &str) -> Vec<u8> {
    let mut out = vec![0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, 1];
    out.extend_from_slice(b"NULL");
    out.resize(64, 0);
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend_from_slice(&(socket_type.len() as u32).to_be_bytes());
    body.extend_from_slice(socket_type.as_bytes());
    out.extend_from_slice(&[4, body.len() as u8]);
    out.extend_from_slice(&body);
    out
}

/// Accepts and is through with the handshake.
async fn accept(listener: &TcpListener, socket_type: &str) -> TcpStream {
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    stream.write_all(&hello(socket_type)).await.unwrap();
    let mut greeting = [0; 64];
    within(stream.read_exact(&mut greeting)).await.unwrap();
    let mut header = [0; 2];
    within(stream.read_exact(&mut header)).await.unwrap();
    assert_eq!(header[0], 4);
    let mut ready = vec![0; usize::from(header[1])];
    within(stream.read_exact(&mut ready)).await.unwrap();
    assert!(ready.starts_with(b"\x05READY"));
    stream
}

fn number(message: &dragonwire::Message) -> u32 {
    u32::from_be_bytes(message.frame(0).unwrap().try_into().unwrap())
}

#[tokio::test]
async fn what_was_not_sent_when_the_connection_was_lost_is_sent_to_the_next() {
    const COUNT: u32 = 50;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp(listener.local_addr().unwrap());
    let push = PushSocket::with_options(quick().send_buffer(64 << 10)).unwrap();
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    let mut stream = accept(&listener, "PULL").await;
    // far more than the kernel takes, so that one message is with it in part
    let payload = vec![7; 1 << 20];
    for i in 0..COUNT {
        push.send_frames(&[&i.to_be_bytes(), &payload]).await.unwrap();
    }
    // the peer reads somewhat more than two messages, and dies in the middle of the third
    let mut some = vec![0; 2 * ((1 << 20) + 15) + 1000];
    within(stream.read_exact(&mut some)).await.unwrap();
    drop((stream, listener));
    event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    let stats = push.stats().outgoing;
    assert_eq!(stats.accepted, u64::from(COUNT));
    assert_eq!(stats.sent + stats.queued, u64::from(COUNT));
    assert!(stats.sent >= 2 && stats.queued > 0, "{stats:?}");

    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    // the message that was half sent comes first, and whole
    let first = stats.sent as u32;
    for i in first..COUNT {
        let message = within(pull.recv()).await.unwrap();
        assert_eq!(number(&message), i);
        assert_eq!(message.frames().count(), 2);
        assert_eq!(message.frame(1).unwrap(), payload);
    }
    let stats = push.stats().outgoing;
    assert_eq!((stats.sent, stats.queued), (u64::from(COUNT), 0));
    assert_eq!(stats.dropped.total(), 0);
}

#[tokio::test]
async fn a_queue_survives_many_lost_connections() {
    const ROUNDS: u32 = 20;
    let endpoint = free_endpoint().await;
    let push = PushSocket::with_options(quick()).unwrap();
    push.connect(&endpoint).await.unwrap();
    let mut seen = BTreeSet::new();
    let mut sent = 0u32;
    let mut unread = 0;
    for _ in 0..ROUNDS {
        let mut monitor = push.monitor();
        for _ in 0..20 {
            push.send(&sent.to_be_bytes()).await.unwrap();
            sent += 1;
        }
        let mut pull = PullSocket::new();
        pull.bind(&endpoint).await.unwrap();
        for _ in 0..10 {
            assert!(seen.insert(number(&within(pull.recv()).await.unwrap())));
        }
        // it ends like a good neighbour: what it had not read it says
        unread += within(pull.close()).await.unread;
        event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    }
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    push.send(&sent.to_be_bytes()).await.unwrap();
    sent += 1;
    loop {
        let got = number(&within(pull.recv()).await.unwrap());
        assert!(seen.insert(got), "{got} twice");
        if got == sent - 1 {
            break;
        }
    }
    let stats = push.stats().outgoing;
    assert_eq!((stats.accepted, stats.sent, stats.queued), (u64::from(sent), u64::from(sent), 0));
    assert_eq!(seen.len() as u64 + unread, u64::from(sent));
}

#[tokio::test]
async fn an_accepted_peer_that_is_lost_takes_its_queue_with_it_and_that_is_counted() {
    let push = PushSocket::with_options(SocketOptions::new().send_buffer(64 << 10)).unwrap();
    let mut monitor = push.monitor();
    let endpoint = push.bind("tcp://127.0.0.1:*").await.unwrap();
    let address = ("127.0.0.1", endpoint.port().unwrap());
    let mut stream = within(TcpStream::connect(address)).await.unwrap();
    stream.write_all(&hello("PULL")).await.unwrap();
    event(&mut monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
    for _ in 0..50 {
        push.send(vec![0; 1 << 20]).await.unwrap();
    }
    drop(stream);
    let gone = event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    let Event::Disconnected { discarded, .. } = gone else { unreachable!() };
    let stats = push.stats().outgoing;
    assert!(discarded > 0);
    assert_eq!(stats.dropped.get(dragonwire::DropReason::PeerGone), discarded);
    assert_eq!((stats.accepted, stats.sent + discarded, stats.queued), (50, 50, 0));
    // nobody is there now
    assert!(push.try_send("nobody").is_err());
}

#[tokio::test]
async fn waits_grow_from_the_interval_to_its_maximum_and_start_again() {
    let ms = Duration::from_millis;
    let options =
        SocketOptions::new().reconnect_interval(ms(4)).reconnect_interval_max(Some(ms(20)));
    let push = PushSocket::with_options(options).unwrap();
    let endpoint = free_endpoint().await;
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    let mut begun = Instant::now();
    for (attempt, wait) in [(2, 4), (3, 8), (4, 16), (5, 20), (6, 20)] {
        let (cause, told, delay) = retry(&mut monitor).await;
        assert!(matches!(cause, DisconnectCause::Io(ErrorKind::ConnectionRefused, _)), "{cause:?}");
        assert_eq!((told, delay), (attempt, ms(wait)));
        let state = EndpointState::Backoff { cause, attempt, delay };
        assert_eq!(push.endpoints()[0].state, state);
        // it does wait that long
        let before = begun;
        event(&mut monitor, |e| matches!(e, Event::Connecting { .. })).await;
        begun = Instant::now();
        assert!(begun - before >= delay, "{:?}", begun - before);
    }
    let pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    event(&mut monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
    assert_eq!(push.endpoints()[0].state, EndpointState::Ready);
    within(pull.close()).await;
    let (cause, attempt, delay) = retry(&mut monitor).await;
    assert_eq!((cause, attempt, delay), (DisconnectCause::PeerClosed, 1, ms(4)));
    let (_, attempt, delay) = retry(&mut monitor).await;
    assert_eq!((attempt, delay), (2, ms(8)));
}

#[tokio::test]
async fn a_peer_of_the_wrong_type_is_tried_again_ever_more_slowly() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::with_options(quick().linger(Some(Duration::ZERO))).unwrap();
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    let mut delays = Vec::new();
    for attempt in 2..8 {
        let (cause, told, delay) = retry(&mut monitor).await;
        let mismatch = ProtocolError::SocketTypeMismatch {
            ours: dragonwire::SocketType::Push,
            theirs: "PUB".into(),
        };
        assert_eq!(cause, DisconnectCause::Protocol(mismatch));
        assert_eq!(told, attempt);
        delays.push(delay);
    }
    // 5 ms doubled five times, and at most 5 ms of chance
    assert!(delays[5] >= Duration::from_millis(160), "{delays:?}");
    assert!(delays.windows(2).all(|pair| pair[1] > pair[0]), "{delays:?}");
    // the right peer in its place is found
    within(publisher.unbind(&endpoint)).await.unwrap();
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    push.send("at last").await.unwrap();
    assert_eq!(within(pull.recv()).await.unwrap(), "at last".into());
}

#[tokio::test]
async fn a_handshake_that_fails_tells_its_cause() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp(listener.local_addr().unwrap());
    let push = PushSocket::with_options(quick().linger(Some(Duration::ZERO))).unwrap();
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    // it closes at once
    drop(within(listener.accept()).await.unwrap());
    let (cause, attempt, _) = retry(&mut monitor).await;
    assert!(matches!(cause, DisconnectCause::PeerClosed | DisconnectCause::Io(..)), "{cause:?}");
    assert_eq!(attempt, 2);
    // it names another mechanism
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let mut greeting = hello("PULL");
    greeting[12..17].copy_from_slice(b"CURVE");
    stream.write_all(&greeting).await.unwrap();
    let (cause, attempt, _) = retry(&mut monitor).await;
    let DisconnectCause::Protocol(ProtocolError::MechanismMismatch { theirs, .. }) = cause else {
        panic!("{cause:?}")
    };
    assert_eq!((theirs.as_str(), attempt), ("CURVE", 3));
    // it refuses with an ERROR
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let mut greeting = hello("PULL");
    greeting.truncate(64);
    greeting.extend_from_slice(b"\x04\x0d\x05ERROR\x06go off");
    stream.write_all(&greeting).await.unwrap();
    let (cause, attempt, _) = retry(&mut monitor).await;
    let refused = ProtocolError::PeerError { reason: "go off".into() };
    assert_eq!((cause, attempt), (DisconnectCause::Protocol(refused), 4));
    // and in the end all is well: the queue was there all the time
    push.send("well").await.unwrap();
    let mut stream = accept(&listener, "PULL").await;
    let mut message = [0; 6];
    within(stream.read_exact(&mut message)).await.unwrap();
    assert_eq!(&message, b"\x00\x04well");
}
