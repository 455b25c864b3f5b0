//! The events of a socket: which come in which order, and what they carry.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::io::ErrorKind;
use std::time::Duration;

use deadline::{event, within};
use dragonwire::{
    DisconnectCause, DropReason, Endpoint, EndpointState, Event, Monitor, ProtocolError, PubSocket,
    PullSocket, PushSocket, SocketOptions, SocketType, SubSocket, Version,
};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn next(monitor: &mut Monitor) -> Event {
    within(monitor.recv()).await.expect("the monitor ended")
}

/// What a peer of this version and type sends first.
fn hello(minor: u8, socket_type: &str, properties: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = vec![0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, minor];
    out.extend_from_slice(b"NULL");
    out.resize(64, 0);
    let mut body = b"\x05READY".to_vec();
    for (name, value) in [&[("Socket-Type", socket_type.as_bytes())], properties].concat() {
        body.push(name.len() as u8);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value);
    }
    out.extend_from_slice(&[4, body.len() as u8]);
    out.extend_from_slice(&body);
    out
}

#[tokio::test]
async fn the_bound_side_tells_the_whole_life_of_a_connection() {
    let mut pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    assert_eq!(next(&mut monitor).await, Event::Listening { endpoint: endpoint.clone() });

    let push = PushSocket::new();
    push.connect(&endpoint).await.unwrap();
    push.send("a").await.unwrap();
    let Event::Accepted { peer: accepted } = next(&mut monitor).await else { panic!() };
    assert!(accepted.accepted);
    assert_eq!(accepted.session, None);
    assert_eq!(accepted.endpoint, endpoint);
    let Event::HandshakeSucceeded { peer } = next(&mut monitor).await else { panic!() };
    assert_eq!(peer.id, accepted.id);
    let session = peer.session.as_ref().unwrap();
    assert_eq!(session.socket_type, Some(SocketType::Push));
    assert_eq!(session.version, Version::V3_1);
    assert_eq!(session.mechanism, "NULL");

    within(pull.recv()).await.unwrap();
    assert_eq!(pull.last_peer(), Some(peer.id));
    let in_stats = pull.stats().peers[0].peer.clone().unwrap();
    assert_eq!(in_stats, peer);

    within(push.close()).await;
    let gone = next(&mut monitor).await;
    let cause = DisconnectCause::PeerClosed;
    assert_eq!(gone, Event::Disconnected { peer, cause, discarded: 0 });
    within(pull.unbind(&endpoint)).await.unwrap();
    assert_eq!(next(&mut monitor).await, Event::Unbound { endpoint });
    within(pull.close()).await;
    assert_eq!(next(&mut monitor).await, Event::Closed);
    assert_eq!(within(monitor.recv()).await, None);
    assert_eq!(within(monitor.next()).await, None);
}

#[tokio::test]
async fn the_connecting_side_tells_the_whole_life_of_a_connection() {
    let pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::with_options(
        SocketOptions::new().reconnect_interval(Duration::from_millis(10)),
    )
    .unwrap();
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    let begins = Event::Connecting { endpoint: endpoint.clone(), attempt: 1 };
    assert_eq!(next(&mut monitor).await, begins);
    let Event::Connected { peer: connected } = next(&mut monitor).await else { panic!() };
    assert!(!connected.accepted);
    assert_eq!(connected.remote.unwrap().port(), endpoint.port().unwrap());
    let Event::HandshakeSucceeded { peer } = next(&mut monitor).await else { panic!() };
    assert_eq!(peer.id, connected.id);
    assert_eq!(peer.session.as_ref().unwrap().socket_type, Some(SocketType::Pull));

    // the connection is lost, and there is nobody for a while
    within(pull.unbind(&endpoint)).await.unwrap();
    let cause = DisconnectCause::PeerClosed;
    let lost = Event::Disconnected { peer, cause: cause.clone(), discarded: 0 };
    assert_eq!(next(&mut monitor).await, lost);
    let Event::Retry { endpoint: where_to, cause: why, attempt, delay } = next(&mut monitor).await
    else {
        panic!()
    };
    assert_eq!((where_to, why, attempt), (endpoint.clone(), cause, 1));
    assert!(delay >= Duration::from_millis(10) && delay < Duration::from_millis(20), "{delay:?}");
    for attempt in 1..4 {
        let begins = Event::Connecting { endpoint: endpoint.clone(), attempt };
        assert_eq!(next(&mut monitor).await, begins);
        let Event::Retry { cause, attempt: following, .. } = next(&mut monitor).await else {
            panic!()
        };
        assert!(matches!(cause, DisconnectCause::Io(ErrorKind::ConnectionRefused, _)), "{cause:?}");
        assert_eq!(following, attempt + 1);
    }
    // somebody comes again
    pull.bind(&endpoint).await.unwrap();
    let Event::HandshakeSucceeded { peer } =
        event(&mut monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await
    else {
        unreachable!()
    };
    assert!(peer.id > connected.id);
    within(push.disconnect(&endpoint)).await.unwrap();
    let local = Event::Disconnected { peer, cause: DisconnectCause::Local, discarded: 0 };
    assert_eq!(next(&mut monitor).await, local);
    assert_eq!(next(&mut monitor).await, Event::EndpointRemoved { endpoint });
    within(push.close()).await;
    assert_eq!(next(&mut monitor).await, Event::Closed);
    assert_eq!(within(monitor.recv()).await, None);
}

#[tokio::test]
async fn closing_tells_of_each_connection_before_the_end() {
    let pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let peers: Vec<_> = (0..3).map(|_| PushSocket::new()).collect();
    for push in &peers {
        push.connect(&endpoint).await.unwrap();
        event(&mut monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
    }
    within(pull.close()).await;
    let mut disconnected = 0;
    let mut unbound = 0;
    loop {
        match next(&mut monitor).await {
            Event::Disconnected { cause: DisconnectCause::Local, .. } => disconnected += 1,
            Event::Unbound { .. } => unbound += 1,
            Event::Closed => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((disconnected, unbound), (3, 1));
    assert_eq!(within(monitor.recv()).await, None);
}

#[tokio::test]
async fn the_end_is_told_once_however_many_handles_close() {
    let push = PushSocket::new();
    let mut monitor = push.monitor();
    push.bind("tcp://127.0.0.1:*").await.unwrap();
    let other = push.clone();
    let (one, two) = within(async { tokio::join!(push.close(), other.close()) }).await;
    assert_eq!(one, two);
    within(push.close()).await;
    drop((push, other));
    let mut events = Vec::new();
    while let Some(event) = within(monitor.recv()).await {
        events.push(event);
    }
    assert_eq!(events.iter().filter(|event| **event == Event::Closed).count(), 1, "{events:?}");
    assert_eq!(events.last(), Some(&Event::Closed));
}

#[tokio::test]
async fn peers_are_described() {
    let options = SocketOptions::new()
        .metadata("X-Build", "7")
        .metadata("X-Site", &b"\x00oslo"[..])
        .routing_id("ignored in 3.x");
    let push = PushSocket::with_options(options).unwrap();
    let pull = PullSocket::with_options(SocketOptions::new().metadata("X-Sink", "")).unwrap();
    let (mut theirs, mut ours) = (push.monitor(), pull.monitor());
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    push.connect(&endpoint).await.unwrap();
    let up = |e: &Event| matches!(e, Event::HandshakeSucceeded { .. });
    let Event::HandshakeSucceeded { peer: pusher } = event(&mut ours, up).await else { panic!() };
    let Event::HandshakeSucceeded { peer: puller } = event(&mut theirs, up).await else { panic!() };
    let property = |name: &str, value: &'static [u8]| (name.to_owned(), value.into());
    let session = pusher.session.as_ref().unwrap();
    assert_eq!(session.metadata, [property("X-Build", b"7"), property("X-Site", b"\x00oslo")]);
    assert_eq!(puller.session.as_ref().unwrap().metadata, [property("X-Sink", b"")]);
    assert_ne!(pusher.id, puller.id);
    assert!(pusher.accepted && !puller.accepted);
    assert_eq!((pusher.local, pusher.remote), (puller.remote, puller.local));
    assert_eq!(pusher.local.unwrap().port(), endpoint.port().unwrap());
    assert_eq!((&pusher.endpoint, &puller.endpoint), (&endpoint, &endpoint));
    assert_eq!((pusher.credentials, puller.credentials), (None, None));
    let shown = pusher.to_string();
    let address = pusher.remote.unwrap().to_string();
    assert!(shown.contains("PUSH") && shown.contains(&address), "{shown}");
}

#[tokio::test]
async fn a_scripted_peer_is_described_as_it_said() {
    let pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", endpoint.port().unwrap())).await.unwrap();
    let greeting = hello(0, "DEALER", &[]);
    stream.write_all(&greeting).await.unwrap();
    let failed = event(&mut monitor, |e| matches!(e, Event::HandshakeFailed { .. })).await;
    let Event::HandshakeFailed { cause, .. } = failed else { unreachable!() };
    let DisconnectCause::Protocol(ProtocolError::SocketTypeMismatch { ours, theirs, .. }) = cause
    else {
        panic!("{cause:?}")
    };
    assert_eq!((ours, theirs.as_str()), (SocketType::Pull, "DEALER"));

    let mut stream = TcpStream::connect(("127.0.0.1", endpoint.port().unwrap())).await.unwrap();
    let greeting = hello(0, "PUSH", &[("Identity", b"me"), ("X-a", b"1")]);
    stream.write_all(&greeting).await.unwrap();
    let up = event(&mut monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
    let Event::HandshakeSucceeded { peer } = up else { unreachable!() };
    let session = peer.session.as_ref().unwrap();
    assert_eq!(session.version, Version::V3_0);
    assert_eq!(session.routing_id, "me");
    assert_eq!(session.metadata, [("X-a".to_owned(), "1".into())]);
    assert_eq!(peer.remote, Some(stream.local_addr().unwrap()));

    // octets that break the protocol are told with their reason, and of recv they are no error
    stream.write_all(&[0xFF; 16]).await.unwrap();
    let gone = event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    let Event::Disconnected { peer: who, cause, .. } = gone else { unreachable!() };
    assert_eq!(who.id, peer.id);
    assert!(matches!(cause, DisconnectCause::Protocol(_)), "{cause:?}");
    let stats = pull.stats();
    assert_eq!((stats.connections, stats.failed_handshakes), (1, 1));
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_told() {
    let limit = Duration::from_millis(50);
    let options = || SocketOptions::new().handshake_timeout(Some(limit));
    // of a peer that was accepted
    let pull = PullSocket::with_options(options()).unwrap();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut silent = TcpStream::connect(("127.0.0.1", endpoint.port().unwrap())).await.unwrap();
    let failed = event(&mut monitor, |e| matches!(e, Event::HandshakeFailed { .. })).await;
    let Event::HandshakeFailed { cause, peer } = failed else { unreachable!() };
    assert_eq!(cause, DisconnectCause::HandshakeTimeout(limit));
    assert_eq!(peer.remote, Some(silent.local_addr().unwrap()));
    within(silent.read_to_end(&mut Vec::new())).await.unwrap();
    // and of one that was connected to
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp(listener.local_addr().unwrap());
    let push = PushSocket::with_options(options()).unwrap();
    let mut monitor = push.monitor();
    push.connect(&endpoint).await.unwrap();
    let failed = event(&mut monitor, |e| matches!(e, Event::HandshakeFailed { .. })).await;
    let Event::HandshakeFailed { cause, .. } = failed else { unreachable!() };
    assert_eq!(cause, DisconnectCause::HandshakeTimeout(limit));
    let Event::Retry { cause, attempt, .. } = next(&mut monitor).await else { panic!() };
    assert_eq!((cause, attempt), (DisconnectCause::HandshakeTimeout(limit), 2));
    let state = push.endpoints()[0].state.clone();
    assert!(matches!(state, EndpointState::Backoff { attempt: 2, .. }), "{state:?}");
}

#[tokio::test]
async fn dropping_is_told_once_until_the_queue_was_empty() {
    let publisher = PubSocket::with_options(SocketOptions::new().send_hwm(5)).unwrap();
    let mut monitor = publisher.monitor();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let options = SocketOptions::new().recv_hwm(1).recv_buffer(4096);
    let mut subscriber = SubSocket::with_options(options).unwrap();
    subscriber.subscribe("").unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    let payload = vec![0; 1 << 20];
    let mut dropped = 0;
    let mut queued = 0;
    for _ in 0..50 {
        let delivery = publisher.publish("", &payload).await.unwrap();
        dropped += delivery.dropped;
        queued += delivery.queued;
    }
    assert!(dropped > 1, "{dropped}");
    let told = event(&mut monitor, |e| matches!(e, Event::Dropping { .. })).await;
    let Event::Dropping { peer, endpoint: told, reason } = told else { unreachable!() };
    assert_eq!((told, reason), (endpoint, DropReason::PeerHwmMessages));
    assert_eq!(peer.unwrap().session.as_ref().unwrap().socket_type, Some(SocketType::Sub));
    for _ in 0..queued {
        within(subscriber.recv()).await.unwrap();
    }
    let more: Vec<_> = std::iter::from_fn(|| monitor.try_recv()).collect();
    assert_eq!(more, []);
}

#[tokio::test]
async fn a_slow_monitor_is_told_how_much_it_missed() {
    let push = PushSocket::new();
    let mut slow = push.monitor();
    let mut quick = push.monitor();
    let mut told = 0u64;
    let endpoint: Endpoint = "ipc:///nobody/there".parse().unwrap();
    while told < 2000 {
        push.connect(&endpoint).await.unwrap();
        within(push.disconnect(&endpoint)).await.unwrap();
        loop {
            told += 1;
            if matches!(next(&mut quick).await, Event::EndpointRemoved { .. }) {
                break;
            }
        }
    }
    let mut got = 0u64;
    let missed = loop {
        match next(&mut slow).await {
            Event::Missed { events } => break events,
            _ => got += 1,
        }
    };
    assert_eq!(got + missed, told);
    assert!(missed > 0 && got >= 1024, "{got} {missed}");
    assert_eq!(push.stats().missed_events, missed);
    // from here on it hears everything again
    let bound = push.bind("tcp://127.0.0.1:*").await.unwrap();
    assert_eq!(next(&mut slow).await, Event::Listening { endpoint: bound });
}

#[tokio::test]
async fn a_monitor_begins_with_what_comes_after_it() {
    let pull = PullSocket::new();
    let mut early = pull.monitor();
    let first = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut late = pull.monitor();
    let second = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    assert_eq!(next(&mut early).await, Event::Listening { endpoint: first });
    for monitor in [&mut early, &mut late] {
        assert_eq!(next(monitor).await, Event::Listening { endpoint: second.clone() });
    }
    assert_eq!(late.try_recv(), None);
}
