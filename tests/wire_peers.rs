//! Peers of every version of ZMTP, in raw octets, in both roles and over both transports.

#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use dragonwire::{
    Endpoint, Event, Message, Monitor, PubSocket, PullSocket, PushSocket, SocketType, SubSocket,
    Version,
};
use peer::{Listener, MS, Peer, SIGNATURE, command, event, greeting, ready, subscription, within};

const VERSIONS: [Version; 4] = [Version::V3_1, Version::V3_0, Version::V2_0, Version::V1_0];

/// Who connects, and over what.
#[derive(Debug, Clone, Copy)]
enum Way {
    PeerConnects(&'static str),
    SocketConnects(&'static str),
}

const WAYS: [Way; 4] = [
    Way::PeerConnects("tcp://127.0.0.1:*"),
    Way::PeerConnects("ipc://*"),
    Way::SocketConnects("tcp"),
    Way::SocketConnects("ipc"),
];

/// Brings a socket and a scripted peer together, up to the first octet.
macro_rules! meet {
    ($socket:expr, $way:expr) => {
        match $way {
            Way::PeerConnects(wildcard) => {
                let endpoint: Endpoint = $socket.bind(wildcard).await.unwrap();
                Peer::connect(&endpoint).await
            }
            Way::SocketConnects(transport) => {
                let listener = match transport {
                    "tcp" => Listener::tcp().await,
                    _ => Listener::ipc(),
                };
                $socket.connect(listener.endpoint()).await.unwrap();
                listener.accept().await
            }
        }
    };
}

/// Messages of every kind of frame header.
fn messages() -> Vec<Vec<Vec<u8>>> {
    let sizes: [&[usize]; 8] =
        [&[1], &[0], &[0, 0, 3], &[253], &[254, 255], &[256, 1], &[70_000, 0], &[1, 70_000]];
    let frame = |(i, size): (usize, &usize)| vec![b'a' + i as u8; *size];
    sizes.iter().map(|sizes| sizes.iter().enumerate().map(frame).collect()).collect()
}

/// What the monitor tells of the peer: the version spoken, and its socket type.
async fn introduced(monitor: &mut Monitor) -> (Version, Option<SocketType>) {
    event("a handshake", monitor, |event| match event {
        Event::HandshakeSucceeded { peer } => {
            let session = peer.session.as_ref().expect("a session after the handshake");
            Some((session.version, session.socket_type))
        }
        Event::HandshakeFailed { cause, .. } => panic!("{cause}"),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_push_peer_of_any_version_feeds_pull() {
    for version in VERSIONS {
        for way in WAYS {
            let mut pull = PullSocket::new();
            let mut monitor = pull.monitor();
            let mut peer = meet!(pull, way);
            peer.shake(version, "PUSH").await;
            let kind = (version != Version::V1_0).then_some(SocketType::Push);
            assert_eq!(introduced(&mut monitor).await, (version, kind), "{way:?}");
            for message in messages() {
                peer.send(&message).await;
            }
            for message in messages() {
                let received = within("a message", pull.recv()).await.unwrap();
                assert_eq!(received, Message::from_frames(message), "{version} {way:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_pull_peer_of_any_version_gets_what_push_sends() {
    for version in VERSIONS {
        for way in WAYS {
            let push = PushSocket::new();
            let mut monitor = push.monitor();
            let mut peer = meet!(push, way);
            // before the version is known, so that they are queued in no framing yet, as far as
            // there is an endpoint to queue them for
            let early = matches!(way, Way::SocketConnects(_));
            if early {
                for message in messages() {
                    push.send(Message::from_frames(message)).await.unwrap();
                }
            }
            peer.shake(version, "PULL").await;
            let kind = (version != Version::V1_0).then_some(SocketType::Pull);
            assert_eq!(introduced(&mut monitor).await, (version, kind), "{way:?}");
            for message in messages() {
                push.send(Message::from_frames(message)).await.unwrap();
            }
            for message in [messages(), messages()].iter().take(1 + usize::from(early)).flatten() {
                assert_eq!(&peer.message().await, message, "{version} {way:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_received_message_is_forwarded_to_a_peer_of_any_version() {
    for from in VERSIONS {
        for to in VERSIONS {
            let mut pull = PullSocket::new();
            let source = pull.bind("tcp://127.0.0.1:*").await.unwrap();
            let mut source = Peer::join(&source, from, "PUSH").await;
            let push = PushSocket::new();
            let sink = push.bind("tcp://127.0.0.1:*").await.unwrap();
            let mut sink = Peer::join(&sink, to, "PULL").await;
            for message in messages() {
                source.send(&message).await;
                let received = within("a message", pull.recv()).await.unwrap();
                within("room", push.send(received)).await.unwrap();
                assert_eq!(sink.message().await, message, "{from} to {to}");
            }
        }
    }
}

#[tokio::test]
async fn a_sub_peer_of_any_version_gets_what_it_subscribed_to() {
    for version in VERSIONS {
        for way in WAYS {
            let publisher = PubSocket::new();
            let mut monitor = publisher.monitor();
            let mut peer = meet!(publisher, way);
            peer.shake(version, "SUB").await;
            assert_eq!(introduced(&mut monitor).await.0, version);
            if version == Version::V1_0 {
                // it has no way to subscribe, and filters for itself
                within("everything", publisher.wait_for_subscribers("b", 1)).await.unwrap();
                publisher.publish("b", "1").await.unwrap();
                assert_eq!(peer.message().await, [b"b", b"1"]);
            } else {
                peer.subscribe("a").await;
                within("a subscription", publisher.wait_for_subscribers("a", 1)).await.unwrap();
                assert_eq!(publisher.publish("b", "1").await.unwrap().matched, 0, "{version}");
            }
            publisher.publish("ab", "2").await.unwrap();
            assert_eq!(peer.message().await, [&b"ab"[..], b"2"], "{version} {way:?}");
            if version != Version::V1_0 {
                peer.write(&subscription(version, false, "a")).await;
                peer.subscribe("c").await;
                within("a subscription", publisher.wait_for_subscribers("c", 1)).await.unwrap();
                assert_eq!(publisher.publish("ab", "3").await.unwrap().matched, 0);
                publisher.publish("c", "4").await.unwrap();
                assert_eq!(peer.message().await, [b"c", b"4"], "{version} {way:?}");
            }
        }
    }
}

#[tokio::test]
async fn sub_subscribes_at_a_pub_peer_in_the_form_of_its_version() {
    for version in VERSIONS {
        for way in WAYS {
            let mut subscriber = SubSocket::new();
            subscriber.subscribe("a").unwrap();
            let mut peer = meet!(subscriber, way);
            peer.shake(version, "PUB").await;
            let frame = async |peer: &mut Peer, on: bool, topic: &str| {
                let frame = peer.frame().await;
                let expected = match version {
                    Version::V3_1 if on => [b"\x09SUBSCRIBE", topic.as_bytes()].concat(),
                    Version::V3_1 => [b"\x06CANCEL", topic.as_bytes()].concat(),
                    _ => [&[u8::from(on)], topic.as_bytes()].concat(),
                };
                assert_eq!(frame.body, expected, "{version} {way:?}");
                assert_eq!(frame.command, version == Version::V3_1);
                assert!(!frame.more);
            };
            frame(&mut peer, true, "a").await;
            subscriber.subscribe("longer").unwrap();
            frame(&mut peer, true, "longer").await;
            subscriber.unsubscribe("longer").unwrap();
            frame(&mut peer, false, "longer").await;
            // a publisher may send what was not asked for: an old one sends everything
            for message in [["b", "1"], ["a", "2"], ["longer", "3"], ["ab", "4"]] {
                peer.send(&message).await;
            }
            for message in [["a", "2"], ["ab", "4"]] {
                let received = within("a message", subscriber.recv()).await.unwrap();
                assert_eq!(received, message.into(), "{version} {way:?}");
            }
        }
    }
}

#[tokio::test]
async fn both_forms_of_a_subscription_are_understood_from_anyone() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    for (version, form) in [(Version::V3_1, Version::V3_0), (Version::V3_0, Version::V3_1)] {
        let mut peer = Peer::join(&endpoint, version, "SUB").await;
        peer.write(&subscription(form, true, "a")).await;
        peer.write(&subscription(form, true, "b")).await;
        peer.write(&subscription(form, false, "a")).await;
        peer.write(&subscription(form, true, "c")).await;
        within("a subscription", publisher.wait_for_subscribers("c", 1)).await.unwrap();
        assert_eq!(publisher.publish("a", "").await.unwrap().matched, 0, "{version}");
        assert_eq!(publisher.publish("b", "").await.unwrap().matched, 1, "{version}");
        assert_eq!(peer.message().await, [&b"b"[..], b""]);
        peer.write(&subscription(form, false, "b")).await;
        peer.write(&subscription(form, false, "c")).await;
        peer.write(&subscription(form, true, "end")).await;
        within("a subscription", publisher.wait_for_subscribers("end", 1)).await.unwrap();
        peer.write(&subscription(form, false, "end")).await;
    }
}

#[tokio::test]
async fn a_topic_is_subscribed_to_once_per_peer() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    for version in [Version::V3_1, Version::V3_0, Version::V2_0] {
        let mut peer = Peer::join(&endpoint, version, "SUB").await;
        peer.subscribe("a").await;
        peer.subscribe("a").await;
        peer.write(&subscription(version, false, "a")).await;
        let mark = format!("{version}");
        peer.subscribe(&mark).await;
        within("a subscription", publisher.wait_for_subscribers(&mark, 1)).await.unwrap();
        assert_eq!(publisher.publish("a", "").await.unwrap().matched, 0, "{version}");
    }
}

/// Each side waits for the other's octets before it goes on, as libzmq does: a socket that wants to
/// see more of the greeting than it needs to would wait forever.
#[tokio::test]
async fn the_greeting_goes_in_pieces() {
    for way in WAYS {
        let mut pull = PullSocket::new();
        let mut peer = meet!(pull, way);
        assert_eq!(peer.read(10).await, SIGNATURE, "without any octet of the peer's");
        peer.write(&SIGNATURE).await;
        assert_eq!(peer.read(1).await, [3], "after the signature");
        peer.write(&[3]).await;
        let rest = peer.read(53).await;
        assert_eq!(rest, greeting(1, "NULL")[11..], "after the version octet");
        peer.write(&greeting(1, "NULL")[11..]).await;
        let theirs = peer.command().await;
        assert!(theirs.starts_with(b"\x05READY"), "without waiting for the peer's READY");
        peer.write(&ready("PUSH")).await;
        peer.send(&["x"]).await;
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received, "x".into(), "{way:?}");
    }
}

/// A peer of 2.0 waits for the version octet, then for the socket type, then for the identity.
#[tokio::test]
async fn the_greeting_of_2_0_goes_in_pieces() {
    for way in WAYS {
        let mut pull = PullSocket::new();
        let mut peer = meet!(pull, way);
        assert_eq!(peer.read(10).await, SIGNATURE);
        peer.write(&SIGNATURE).await;
        assert_eq!(peer.read(1).await, [3]);
        peer.write(&[1]).await;
        assert_eq!(peer.read(1).await, [7], "PULL");
        peer.write(&[8]).await;
        assert_eq!(peer.read(2).await, [0, 0], "an empty identity");
        peer.write(&[0, 2, b'm', b'e']).await;
        peer.version = Version::V2_0;
        peer.send(&["x", "y"]).await;
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received, ["x", "y"].into(), "{way:?}");
    }
}

#[tokio::test]
async fn the_handshake_may_come_octet_by_octet() {
    let streams: [(Version, Vec<u8>); 4] = [
        (Version::V3_1, [greeting(1, "NULL"), ready("PUSH")].concat()),
        (Version::V3_0, [greeting(0, "NULL"), ready("PUSH")].concat()),
        (Version::V2_0, [&SIGNATURE[..], &[1, 8, 0, 3], b"abc"].concat()),
        (Version::V1_0, b"\x04\x00abc".to_vec()),
    ];
    for way in [WAYS[0], WAYS[2]] {
        for (version, stream) in &streams {
            let mut pull = PullSocket::new();
            let mut monitor = pull.monitor();
            let mut peer = meet!(pull, way);
            peer.version = *version;
            let message = peer::encode(*version, &["", "x"]);
            // a pace at which each octet is read before the next one comes
            let mut pace = tokio::time::interval(MS(1));
            for octet in stream.iter().chain(&message) {
                pace.tick().await;
                peer.write(&[*octet]).await;
            }
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(received, ["", "x"].into(), "{version} {way:?}");
            assert_eq!(introduced(&mut monitor).await.0, *version);
        }
    }
}

#[tokio::test]
async fn what_the_handshake_told_is_in_the_event() {
    let pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut peer = Peer::connect(&endpoint).await;
    peer.write(&greeting(1, "NULL")).await;
    let properties = [
        peer::property("X-color", b"blue"),
        peer::property("Socket-Type", b"PUSH"),
        peer::property("Identity", b"me"),
    ];
    peer.write(&command("READY", &properties.concat())).await;
    let info = event("a handshake", &mut monitor, |event| match event {
        Event::HandshakeSucceeded { peer } => Some(peer),
        _ => None,
    })
    .await;
    assert_eq!((info.remote, info.accepted), (peer.address, true));
    assert_eq!(info.endpoint, endpoint);
    let session = info.session.as_ref().unwrap();
    assert_eq!((session.mechanism, session.socket_type), ("NULL", Some(SocketType::Push)));
    assert_eq!(session.routing_id, "me");
    assert_eq!(session.metadata, [("X-color".to_owned(), "blue".into())]);

    let mut old = Peer::connect(&endpoint).await;
    old.write(b"\x04\x00abc").await;
    let info = event("a handshake", &mut monitor, |event| match event {
        Event::HandshakeSucceeded { peer } => Some(peer),
        _ => None,
    })
    .await;
    assert_eq!(info.remote, old.address);
    assert_eq!(info.session.as_ref().unwrap().routing_id, "abc");
    assert_ne!(info.session.as_ref().unwrap().version, Version::V2_0);
}

/// Padding in the signature, any later minor or major, and commands nobody knows are let pass.
#[tokio::test]
async fn what_a_later_version_may_say_is_let_pass() {
    for (major, minor, version) in [
        (3, 1, Version::V3_1),
        (3, 9, Version::V3_1),
        (4, 0, Version::V3_1),
        (2, 0, Version::V3_1),
        (3, 0, Version::V3_0),
    ] {
        let mut pull = PullSocket::new();
        let mut monitor = pull.monitor();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut peer = Peer::connect(&endpoint).await;
        let mut octets = greeting(minor, "NULL");
        octets[1..9].copy_from_slice(b"anything");
        octets[10] = major;
        octets[40..].fill(0xaa);
        peer.write(&octets).await;
        peer.write(&ready("PUSH")).await;
        peer.write(&command("FUTURE", b"something")).await;
        peer.send(&["x"]).await;
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received, "x".into());
        assert_eq!(introduced(&mut monitor).await.0, version, "{major}.{minor}");
    }
}

#[tokio::test]
async fn commands_that_nobody_knows_are_counted() {
    let mut pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    for count in 1..4 {
        peer.write(&command("FUTURE", b"something")).await;
        peer.send(&["x"]).await;
        within("a message", pull.recv()).await.unwrap();
        assert_eq!(pull.stats().incoming.unknown_commands, count);
    }
}
