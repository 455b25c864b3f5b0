//! Commands without end, for a receiver.

use std::time::Duration;

use dragonwire::{DisconnectCause, Version};

use crate::peer::{MS, Peer, command, ping};
use crate::scene::{Scene, addresses, crowd, flood, join_all, scale};
use crate::victim::shown;

/// Of every size, between messages and in the middle of one.
#[tokio::test]
async fn unknown_commands() {
    let mut scene = Scene::new("PULL").await;
    let endpoint = scene.endpoint();
    let amount = scale(16 << 20, 256 << 20);
    let attack = async |i: usize| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        let octets = match i {
            0 => command("X", b"").repeat(20_000),
            1 => command("NOBODY", &vec![7; 60_000]),
            2 => command(&"N".repeat(255), &vec![7; 1 << 20]),
            // the name is cut off, which makes it no command at all
            _ => [4, 1, 255].repeat(20_000),
        };
        for _ in 0..amount / octets.len() {
            flood(&mut peer, &octets).await;
        }
        peer
    };
    let mut peers = scene.during(crowd(4, attack)).await;
    // none of that is a violation
    for peer in &mut peers {
        peer.send(&["after all"]).await;
    }
    scene.victim.hears("their messages", |line| (line == "got others 4").then_some(())).await;
    let mut inside = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    // a frame of five octets that is not the last one
    inside.write(b"\x01\x05begun").await;
    drop(inside.try_write(&command("X", &[7; 1000]).repeat(100)).await);
    let end = scene.victim.ended(inside.remote()).await;
    assert!(!end.0 && end.1.contains("TooManyCommands"), "{end:?}");
    scene.end("unknown commands").await;
}

/// Half a million PINGs, each of which is answered.
#[tokio::test]
async fn pings_whose_answers_are_read() {
    const AT_ONCE: usize = 1000;
    let mut scene = Scene::new("PULL").await;
    let endpoint = scene.endpoint();
    let attack = async |_| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        let pings = ping(0, b"").repeat(AT_ONCE);
        let answer = command("PONG", b"").repeat(AT_ONCE);
        for _ in 0..scale(50, 500) {
            peer.write(&pings).await;
            assert_eq!(peer.read(answer.len()).await, answer);
        }
    };
    scene.during(crowd(4, attack)).await;
    scene.end("PINGs whose answers are read").await;
}

/// They are not answered for ever: nothing is read from such a peer any more, and as that is all
/// that is heard of it, its heartbeats end.
#[tokio::test]
async fn pings_whose_answers_are_not_read() {
    // its timeout is long enough for a good peer on a busy machine
    let mut scene = Scene::new("PULL heartbeat=1000 buffer=8192").await;
    let endpoint = scene.endpoint();
    let pings = ping(0, b"as long as may be").repeat(scale(20_000, 200_000));
    let attack = async |_| {
        let mut peer = Peer::connect_narrow(&endpoint).await;
        peer.shake(Version::V3_1, "PUSH").await;
        peer.write_until_blocked(&pings, Duration::from_millis(500)).await;
        peer
    };
    let peers = scene.during(crowd(50, attack)).await;
    for end in scene.during_ends(&addresses(&peers)).await {
        assert_eq!(end, (false, shown(DisconnectCause::HeartbeatTimeout(MS(2000)))));
    }
    scene.end("PINGs whose answers are not read").await;
}

/// Peers that are through their handshake and say nothing cost what a connection costs.
#[tokio::test]
async fn peers_that_stay_for_nothing() {
    let mut scene = Scene::new("PULL").await;
    let endpoint = scene.endpoint();
    let count = scale(3_000, 10_000);
    let peers = scene.during(join_all(&endpoint, count, "PUSH")).await;
    assert_eq!(scene.victim.figures().await["connections"], count as u64 + 1);
    scene.newcomer().await;
    drop(peers);
    scene.end("peers that stay for nothing").await;
}
