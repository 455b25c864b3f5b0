//! PING and PONG: sent at their pace, answered whatever the application does, and what becomes of
//! those who do not answer.

#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use std::time::{Duration, Instant};

use dragonwire::{
    DisconnectCause, Endpoint, Event, PubSocket, PullSocket, PushSocket, SocketOptions, Version,
};
use peer::{Listener, MS, Peer, command, encode, ended, event, ping, within};

/// Ten PINGs at an interval of 50 ms take no longer on any machine.
const TEN_BEATS: Duration = Duration::from_secs(10);

fn beating(interval: u64, timeout: u64) -> SocketOptions {
    SocketOptions::new()
        .heartbeat_interval(Some(MS(interval)))
        .heartbeat_timeout(Some(MS(timeout)))
        .reconnect_interval(MS(5))
}

/// No heartbeats of its own, so that all that comes is an answer.
fn quiet() -> SocketOptions {
    SocketOptions::new().heartbeat_interval(None)
}

async fn pull_with(options: SocketOptions) -> (PullSocket, Endpoint) {
    let pull = PullSocket::with_options(options).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    (pull, endpoint)
}

#[tokio::test]
async fn a_3_1_peer_gets_a_ping_at_every_interval() {
    let (pull, endpoint) = pull_with(beating(50, 1000)).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    let begun = Instant::now();
    for beat in 1..=5 {
        assert_eq!(peer.command().await, b"\x04PING\0\0", "no TTL unless one is set");
        peer.write(&command("PONG", b"")).await;
        assert!(begun.elapsed() >= MS(50) * beat - MS(10), "{beat} after {:?}", begun.elapsed());
    }
    assert!(begun.elapsed() < MS(750), "5 PINGs took {:?}", begun.elapsed());
    drop(pull);
}

#[tokio::test]
async fn a_ping_carries_the_ttl() {
    let (_pull, endpoint) = pull_with(beating(20, 1000).heartbeat_ttl(Some(MS(2500)))).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    assert_eq!(peer.command().await, b"\x04PING\0\x19");
}

#[tokio::test]
async fn older_peers_get_no_ping_and_are_not_given_up() {
    let (mut pull, endpoint) = pull_with(beating(20, 60)).await;
    for version in [Version::V3_0, Version::V2_0, Version::V1_0] {
        let mut peer = Peer::join(&endpoint, version, "PUSH").await;
        assert_eq!(peer.read_within(MS(250)).await, None, "{version}");
        peer.send(&["x"]).await;
        assert_eq!(within("a message", pull.recv()).await.unwrap(), "x".into());
    }
}

#[tokio::test]
async fn without_an_interval_there_is_no_ping() {
    let (_pull, endpoint) = pull_with(quiet()).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    assert_eq!(peer.read_within(MS(250)).await, None);
}

#[tokio::test]
async fn a_pong_echoes_the_context() {
    let (mut pull, endpoint) = pull_with(quiet()).await;
    let push = PushSocket::with_options(quiet()).unwrap();
    let pushing = push.bind("tcp://127.0.0.1:*").await.unwrap();
    for (endpoint, kind) in [(&endpoint, "PUSH"), (&pushing, "PULL")] {
        let mut peer = Peer::join(endpoint, Version::V3_1, kind).await;
        for context in [&b""[..], b"x", b"0123456789abcdef"] {
            peer.write(&ping(0, context)).await;
            assert_eq!(peer.command().await, [b"\x04PONG", context].concat());
        }
        peer.write(&ping(0, b"more than sixteen octets")).await;
        let echo = peer.command().await;
        assert_eq!(echo, b"\x04PONGmore than sixtee", "of a longer one the first 16 octets");
        for i in 0..1000u16 {
            peer.write(&ping(100, &i.to_be_bytes())).await;
        }
        for i in 0..1000u16 {
            assert_eq!(peer.command().await, [&b"\x04PONG"[..], &i.to_be_bytes()].concat());
        }
    }
    // between the frames of a message, and from a peer of 3.0 as well
    for version in [Version::V3_1, Version::V3_0] {
        let mut peer = Peer::join(&endpoint, version, "PUSH").await;
        let octets = encode(version, &["a", "b"]);
        peer.write(&octets[..3]).await;
        peer.write(&ping(0, b"between")).await;
        assert_eq!(peer.command().await, b"\x04PONGbetween", "before the message is whole");
        peer.write(&octets[3..]).await;
        assert_eq!(within("a message", pull.recv()).await.unwrap(), ["a", "b"].into());
    }
}

/// Whether a peer that pings every 30 ms and gives up after `patience` hears signs of life all the
/// time.
async fn hears_life(peer: &mut Peer, patience: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let mut heard = begun;
    while begun.elapsed() < MS(700) {
        peer.write(&ping(0, b"there?")).await;
        while peer.read_within(MS(30)).await.is_some() {
            heard = Instant::now();
            if begun.elapsed() > MS(700) {
                break;
            }
        }
        if heard.elapsed() > patience {
            return Err(format!("silence since {:?}", heard - begun));
        }
    }
    Ok(())
}

/// The queue is full before the first PING, as when a busy peer has just connected.
#[tokio::test]
async fn pings_are_answered_while_the_application_does_not_receive() {
    let (mut pull, endpoint) = pull_with(SocketOptions::new().recv_hwm(1)).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    for i in 0..10 {
        peer.send(&[i.to_string()]).await;
    }
    hears_life(&mut peer, MS(300)).await.unwrap();
    for i in 0..10 {
        assert_eq!(within("a message", pull.recv()).await.unwrap(), i.to_string().into());
    }
    hears_life(&mut peer, MS(300)).await.unwrap();
}

/// So much is queued that the socket does not even come to read the PINGs; it has had one or two
/// before.
#[tokio::test]
async fn a_peer_behind_a_full_queue_hears_signs_of_life() {
    let (mut pull, endpoint) = pull_with(SocketOptions::new().recv_hwm(1)).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    for _ in 0..3 {
        peer.write(&ping(0, b"")).await;
        peer.command().await;
        assert_eq!(peer.read_within(MS(30)).await, None);
    }
    for i in 0..10 {
        peer.send(&[vec![i; 60_000]]).await;
    }
    hears_life(&mut peer, MS(300)).await.unwrap();
    for i in 0..10 {
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received.topic()[..2], [i, i]);
    }
}

/// The same where all that the peer ever said was the flood: what it expects is not known, but the
/// common second without a sign of life is not to be the end.
#[tokio::test]
async fn a_peer_that_floods_from_the_start_hears_signs_of_life() {
    let (mut pull, endpoint) = pull_with(SocketOptions::new().recv_hwm(1)).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    for i in 0..10 {
        peer.send(&[vec![i; 60_000]]).await;
    }
    let mut signs = 0;
    for _ in 0..3 {
        peer.write(&ping(0, b"")).await;
        signs += usize::from(peer.read_within(MS(700)).await.is_some());
    }
    assert!(signs > 0, "silence for 2.1 s");
    for i in 0..10 {
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received.topic()[..2], [i, i]);
    }
}

/// While this side does not read, nothing that the peer says is seen: that is not held against it.
#[tokio::test]
async fn a_peer_behind_a_full_queue_is_not_given_up() {
    let (mut pull, endpoint) = pull_with(beating(20, 60).recv_hwm(1)).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    peer.write(&ping(1, b"")).await;
    for i in 0..10 {
        peer.send(&[vec![i; 60_000]]).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < MS(500) {
        // its own PINGs; the end of the connection would fail this
        peer.read_within(MS(30)).await;
    }
    // still silent, but there is time to say something from the first moment of reading on
    for i in 0..10 {
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received.topic()[..2], [i, i]);
    }
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let (pull, endpoint) = pull_with(beating(50, 120)).await;
    let mut monitor = pull.monitor();
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    let begun = Instant::now();
    let end = ended(&mut monitor, peer.remote()).await;
    assert_eq!(end, (false, DisconnectCause::HeartbeatTimeout(MS(120))));
    let lasted = begun.elapsed();
    assert!(lasted >= MS(150) && lasted < MS(900), "{lasted:?}");
    peer.read_to_end().await;
}

/// Any octet is a sign of life, a part of a message as well.
#[tokio::test]
async fn any_octet_is_a_sign_of_life() {
    let (mut pull, endpoint) = pull_with(beating(20, 150)).await;
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    let mut pace = tokio::time::interval(MS(30));
    for octet in encode(Version::V3_1, &[&[7; 20][..]]) {
        pace.tick().await;
        peer.write(&[octet]).await;
    }
    let received = within("a message", pull.recv()).await.unwrap();
    assert_eq!(received.topic(), [7; 20]);
}

#[tokio::test]
async fn a_connected_endpoint_connects_again_after_silence() {
    let push = PushSocket::with_options(beating(30, 80)).unwrap();
    let mut monitor = push.monitor();
    let listener = Listener::tcp().await;
    push.connect(listener.endpoint()).await.unwrap();
    let expected = DisconnectCause::HeartbeatTimeout(MS(80));
    for _ in 0..2 {
        let mut silent = listener.accept().await;
        silent.shake(Version::V3_1, "PULL").await;
        let cause = event("a retry", &mut monitor, |event| match event {
            Event::Retry { cause, .. } => Some(cause),
            _ => None,
        })
        .await;
        assert_eq!(cause, expected);
    }
    let mut peer = listener.accept().await;
    peer.shake(Version::V3_1, "PULL").await;
    push.send("x").await.unwrap();
    assert_eq!(peer.message().await, [b"x"]);
}

#[tokio::test]
async fn the_ttl_that_a_peer_asks_for_is_kept() {
    let (pull, endpoint) = pull_with(quiet()).await;
    let mut monitor = pull.monitor();
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    // it does not run out while there are PINGs
    let mut pace = tokio::time::interval(MS(40));
    for _ in 0..8 {
        pace.tick().await;
        peer.write(&ping(1, b"")).await;
        peer.command().await;
    }
    let begun = Instant::now();
    let end = ended(&mut monitor, peer.remote()).await;
    assert_eq!(end, (false, DisconnectCause::HeartbeatTimeout(MS(100))));
    assert!(begun.elapsed() >= MS(80), "{:?}", begun.elapsed());
    peer.read_to_end().await;
    // a TTL of zero is none
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    peer.write(&ping(0, b"")).await;
    peer.command().await;
    assert_eq!(peer.read_within(MS(250)).await, None);
}

/// However much goes out, the PINGs are among it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_go_out_between_messages() {
    let publisher = PubSocket::with_options(beating(50, 2000)).unwrap();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut peer = Peer::join(&endpoint, Version::V3_1, "SUB").await;
    peer.subscribe("").await;
    within("the subscription", publisher.wait_for_subscribers("", 1)).await.unwrap();
    let sender = tokio::spawn(async move {
        let payload = vec![7; 100_000];
        while publisher.publish("x", &payload).await.is_ok_and(|delivery| delivery.matched > 0) {}
    });
    let begun = Instant::now();
    let mut pings = 0;
    while pings < 10 {
        let frame = peer.frame().await;
        if frame.command && frame.body.starts_with(b"\x04PING") {
            pings += 1;
            peer.write(&command("PONG", b"")).await;
        }
        assert!(begun.elapsed() < TEN_BEATS, "{pings} PINGs at an interval of 50 ms");
    }
    drop(peer);
    within("the end of the sender", sender).await.unwrap();
}

/// However much comes in, the PINGs go out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_go_out_while_a_flood_comes_in() {
    let (mut pull, endpoint) = pull_with(beating(50, 2000)).await;
    let receiver =
        tokio::spawn(async move { while pull.recv().await.is_ok_and(|m| m.size() > 1) {} });
    let mut flooding = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    let octets = encode(Version::V3_1, &[vec![7; 100_000]]);
    let begun = Instant::now();
    let mut octets_of_pings = 0;
    while octets_of_pings < 10 * 9 {
        for _ in 0..8 {
            flooding.write(&octets).await;
        }
        while flooding.read_within(Duration::ZERO).await.is_some() {
            octets_of_pings += 1;
        }
        assert!(begun.elapsed() < TEN_BEATS, "{} PINGs", octets_of_pings / 9);
    }
    flooding.send(&["."]).await;
    within("the end of the receiver", receiver).await.unwrap();
}
