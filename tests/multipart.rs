//! Messages of many frames and of every size travel whole or not at all.

#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use std::time::Duration;

use bytes::Bytes;
use dragonwire::{
    DisconnectCause, Event, Message, PubSocket, PullSocket, PushSocket, SocketOptions, SubSocket,
    Version,
};
use peer::{Listener, MS, Peer, command, encode, ended, event, within};

/// Octets that differ from place to place, so that none can be lost or doubled unseen.
fn octets(seed: usize, len: usize) -> Bytes {
    (0..len).map(|i| (i.wrapping_mul(31) + (i >> 8) + seed) as u8).collect()
}

fn message(sizes: &[usize]) -> Message {
    Message::from_frames(sizes.iter().enumerate().map(|(seed, len)| octets(seed, *len)))
}

/// A PUSH and a PULL socket that are connected.
async fn pair(endpoint: &str) -> (PushSocket, PullSocket) {
    let pull = PullSocket::new();
    let endpoint = pull.bind(endpoint).await.unwrap();
    let push = PushSocket::new();
    push.connect(&endpoint).await.unwrap();
    (push, pull)
}

/// Sends and receives at the same time; everything arrives, whole and in order.
async fn travel(push: &PushSocket, pull: &mut PullSocket, messages: &[Message]) {
    let sending = async {
        for message in messages {
            within("room", push.send(message.clone())).await.unwrap();
        }
    };
    let receiving = async {
        for message in messages {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(received.frames().count(), message.frames().count());
            // without printing megaoctets
            assert!(received == *message, "{received:?} is not {message:?}");
        }
    };
    tokio::join!(sending, receiving);
}

#[tokio::test]
async fn from_one_frame_to_a_thousand() {
    for endpoint in ["tcp://127.0.0.1:*", "ipc://*"] {
        let (push, mut pull) = pair(endpoint).await;
        let messages: Vec<_> = (1..=1000)
            .filter(|count| *count < 20 || *count > 990 || count % 37 == 0)
            .map(|count| Message::from_frames((0..count).map(|i| octets(i, i % 7))))
            .collect();
        travel(&push, &mut pull, &messages).await;
        let empty: Vec<_> =
            [1, 2, 3, 1000].map(|count| Message::from_frames(vec![Bytes::new(); count])).into();
        travel(&push, &mut pull, &empty).await;
    }
}

#[tokio::test]
async fn sizes_about_every_border() {
    let borders = [0_usize, 255, 256, 4 << 10, 8 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20];
    for endpoint in ["tcp://127.0.0.1:*", "ipc://*"] {
        let (push, mut pull) = pair(endpoint).await;
        let mut messages = Vec::new();
        for border in borders {
            for size in border.saturating_sub(2)..=border + 2 {
                // by itself, before and after another frame, and behind a small message
                messages.extend([&[size][..], &[size, 1], &[1, size], &[3]].map(message));
            }
        }
        travel(&push, &mut pull, &messages).await;
    }
}

#[tokio::test]
async fn large_frames_of_one_message() {
    let (push, mut pull) = pair("tcp://127.0.0.1:*").await;
    let sizes = [1 << 20, 0, 256 << 10, 1, 8 << 10, 64 << 10, 255, 256, 3 << 20];
    travel(&push, &mut pull, &[message(&sizes), message(&[1]), message(&sizes)]).await;
}

#[tokio::test]
async fn sixty_four_mebioctets() {
    let (push, mut pull) = pair("tcp://127.0.0.1:*").await;
    let large = Bytes::from(vec![7; 64 << 20]);
    let messages = ["before".into(), large.into(), "behind".into()];
    travel(&push, &mut pull, &messages).await;
}

#[tokio::test]
async fn what_is_copied_and_what_is_chained_arrives_alike() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscriber = SubSocket::new();
    subscriber.subscribe("").unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    within("the subscription", subscriber.ready()).await.unwrap();
    let large = octets(1, 100_000);
    let expected: [Message; 4] = [
        Message::pair("t", large.clone()),
        Message::from_frames([Bytes::from("t"), Bytes::new(), large.clone(), Bytes::from("x")]),
        "".into(),
        Message::from_frames([large.clone(), Bytes::new(), large.clone()]),
    ];
    for (i, expected) in expected.into_iter().enumerate() {
        match i {
            0 => publisher.publish("t", &large).await.unwrap(),
            1 => publisher.send_frames(&[b"t", b"", &large, b"x"]).await.unwrap(),
            2 => publisher.send_frames(&[]).await.unwrap(),
            _ => publisher.send(expected.clone()).await.unwrap(),
        };
        // and on as it came
        for _ in 0..2 {
            let received = within("a message", subscriber.recv()).await.unwrap();
            assert!(received == expected, "{received:?} is not {expected:?}");
            publisher.send(received).await.unwrap();
        }
        let received = within("a message", subscriber.recv()).await.unwrap();
        assert!(received == expected, "{received:?} is not {expected:?}");
    }
}

/// The message that a raw peer gets cut at every octet on its way to the application.
#[tokio::test]
async fn a_peer_that_dies_at_any_octet_leaves_nothing_behind() {
    let mut pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let whole = ["whole"];
    let half = encode(Version::V3_1, &[vec![1; 5], Vec::new(), vec![2; 300], vec![3; 2]]);
    let borders = [7, 9, 9 + 9, 9 + 9 + 300, 9 + 9 + 300 + 2];
    let cuts = (1..half.len()).filter(|cut| borders.iter().any(|at| cut.abs_diff(*at) < 3));
    let mut count = 0;
    for cut in cuts {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        peer.send(&whole).await;
        peer.write(&half[..cut]).await;
        let address = peer.remote();
        drop(peer);
        assert_eq!(ended(&mut monitor, address).await, (false, DisconnectCause::PeerClosed));
        assert_eq!(within("a message", pull.recv()).await.unwrap(), "whole".into());
        pull.try_recv().unwrap_err();
        count += 1;
    }
    let stats = pull.stats().incoming;
    assert_eq!((stats.received, stats.delivered, stats.queued), (count, count, 0));
    assert_eq!(stats.dropped.total(), 0);
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    peer.write(&half).await;
    assert_eq!(within("a message", pull.recv()).await.unwrap().frames().count(), 4);
}

/// A large message dies half-way, beside peers that go on.
#[tokio::test]
async fn half_a_large_message_is_not_received_either() {
    let mut pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("ipc://*").await.unwrap();
    let good = PushSocket::new();
    good.connect(&endpoint).await.unwrap();
    let half = encode(Version::V3_1, &[vec![1; 3 << 20], vec![2; 3 << 20]]);
    for round in 0..3u8 {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        peer.write(&half[..half.len() - 1 - usize::from(round)]).await;
        good.send([&[round][..], b"good"]).await.unwrap();
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received, [&[round][..], b"good"].into());
        drop(peer);
        event("the end", &mut monitor, |event| {
            matches!(event, Event::Disconnected { .. }).then_some(())
        })
        .await;
        pull.try_recv().unwrap_err();
    }
    assert_eq!(pull.stats().incoming.received, 3);
}

/// The peer that PUSH is connected to dies with a message half-way to it: the next connection gets
/// whole messages only, and those in order.
#[tokio::test]
async fn a_new_connection_begins_with_a_whole_message() {
    let options = SocketOptions::new().reconnect_interval(MS(5)).linger(Some(Duration::ZERO));
    for (size, count) in [(100, 40), (5000, 40), (20_000, 20), (600_000, 8)] {
        let push = PushSocket::with_options(options.clone()).unwrap();
        let listener = Listener::tcp().await;
        push.connect(listener.endpoint()).await.unwrap();
        let mut monitor = push.monitor();
        let parts = |i: usize| {
            let mut first = octets(i, size).to_vec();
            first[..8].copy_from_slice(&(i as u64).to_be_bytes());
            [first, vec![i as u8; 3], octets(i + 1, size).to_vec()]
        };
        let mut sent = 0;
        let mut next = 0;
        for round in 0..5 {
            for _ in 0..count {
                push.send(Message::from_frames(parts(sent))).await.unwrap();
                sent += 1;
            }
            if round == 4 {
                break;
            }
            let mut peer = listener.accept().await;
            peer.shake(Version::V3_1, "PULL").await;
            // some whole messages, and something of the next one
            for _ in 0..5 {
                let received = peer.message().await;
                let number = u64::from_be_bytes(received[0][..8].try_into().unwrap()) as usize;
                assert!(number >= next, "{number} came before");
                assert_eq!(received, parts(number), "size {size}, round {round}");
                next = number + 1;
            }
            peer.read(size + 5).await;
            drop(peer);
            event("the end", &mut monitor, |event| {
                matches!(event, Event::Disconnected { .. }).then_some(())
            })
            .await;
        }
        // the last connection: all the rest, without a gap from where it begins
        let mut peer = listener.accept().await;
        peer.shake(Version::V3_1, "PULL").await;
        let received = peer.message().await;
        let first = u64::from_be_bytes(received[0][..8].try_into().unwrap()) as usize;
        assert!(first >= next && received == parts(first));
        for number in first + 1..sent {
            assert_eq!(peer.message().await, parts(number), "size {size}");
        }
        let stats = push.stats().outgoing;
        assert_eq!(stats.accepted, stats.sent + stats.queued + stats.dropped.total());
    }
}

/// The same for a subscriber: another publisher's messages are not mixed up with half of one.
#[tokio::test]
async fn a_publisher_that_dies_half_way() {
    let mut subscriber =
        SubSocket::with_options(SocketOptions::new().reconnect_interval(MS(5))).unwrap();
    subscriber.subscribe("").unwrap();
    let (one, other) = (Listener::tcp().await, Listener::tcp().await);
    subscriber.connect(one.endpoint()).await.unwrap();
    subscriber.connect(other.endpoint()).await.unwrap();
    let mut steady = other.accept().await;
    steady.shake(Version::V3_1, "PUB").await;
    for round in 0..3 {
        let mut dying = one.accept().await;
        dying.shake(Version::V3_1, "PUB").await;
        dying.send(&["last", "words"]).await;
        let half = encode(Version::V3_1, &["half", "of", "it"]);
        dying.write(&half[..6 + round]).await;
        steady.send(&["steady"]).await;
        let mut received = Vec::new();
        for _ in 0..2 {
            received.push(within("a message", subscriber.recv()).await.unwrap());
        }
        received.sort_by_key(Message::size);
        assert_eq!(received, [Message::from("steady"), ["last", "words"].into()]);
    }
    drop(steady);
}

/// Reserved bits of the flags, and the long form for a short body, in whatever place.
#[tokio::test]
async fn odd_but_legal_frames_are_the_same_messages() {
    let mut pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    let short = |flags: u8, body: &str| [&[flags, body.len() as u8], body.as_bytes()].concat();
    let long = |flags: u8, body: &str| {
        [&[flags | 2][..], &(body.len() as u64).to_be_bytes(), body.as_bytes()].concat()
    };
    let scripts: [Vec<Vec<u8>>; 8] = [
        vec![short(0x01, "a"), command("NOBODY", b"knows"), short(0x00, "b")],
        vec![short(0xf8, "a")],
        vec![short(0x09, "a"), short(0x00, "b")],
        vec![short(0x01, "a"), short(0x80, "b")],
        vec![long(0x00, "a")],
        vec![long(0x01, ""), long(0x01, "b"), long(0x00, "")],
        vec![long(0xf9, "a"), short(0xf9, "b"), long(0xf8, "c")],
        vec![short(0x01, "a"), command("NOBODY", b"knows"), long(0x00, "b")],
    ];
    let bodies: [&[&str]; 8] = [
        &["a", "b"],
        &["a"],
        &["a", "b"],
        &["a", "b"],
        &["a"],
        &["", "b", ""],
        &["a", "b", "c"],
        &["a", "b"],
    ];
    let push = PushSocket::new();
    let onward = push.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut sink = Peer::join(&onward, Version::V3_1, "PULL").await;
    for (script, bodies) in scripts.iter().zip(bodies) {
        // one after the other, and all at once between plain ones
        for around in [false, true] {
            let plain = if around { encode(Version::V3_1, &["plain"]) } else { Vec::new() };
            peer.write(&[&plain[..], &script.concat(), &plain].concat()).await;
            let expected = Message::from_frames(bodies.iter().map(|body| body.to_string()));
            for expected in [["plain"].into(), expected.clone(), ["plain"].into()]
                .into_iter()
                .filter(|message| around || *message == expected)
            {
                let received = within("a message", pull.recv()).await.unwrap();
                assert_eq!(received, expected);
                assert_eq!(received.topic(), expected.topic());
                // it goes on in the plain form
                within("room", push.send(received.clone())).await.unwrap();
                let sent = sink.message().await;
                assert_eq!(Message::from_frames(sent), expected);
            }
        }
    }
    assert_eq!(pull.stats().incoming.dropped.total(), 0);
}
