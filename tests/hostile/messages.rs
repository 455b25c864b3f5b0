//! Messages that are too many, too large or do not end, for a receiver.

use std::time::Duration;

use dragonwire::{PushSocket, Version};

use crate::peer::{MS, Peer, encode, greeting, ready};
use crate::scene::{Scene, crowd, flood, scale, send};
use crate::within;

#[tokio::test]
async fn millions_of_empty_frames_that_are_allowed() {
    let mut scene = Scene::new("PULL frames=10000000").await;
    let endpoint = scene.endpoint();
    let frames = scale(1_000_000, 5_000_000);
    // two that stop midway, one that comes to an end: as many as there is room for
    let attack = async |i: usize| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        let mut script = [1, 0].repeat(frames);
        if i == 2 {
            script.extend([0, 0]);
        }
        flood(&mut peer, &script).await;
        peer
    };
    let peers = scene.during(crowd(3, attack)).await;
    scene.victim.hears("the message", |line| (line == "got others 1").then_some(())).await;
    drop(peers);
    scene.end("millions of empty frames").await;
}

/// 2 000 peers that each send 10 KB of a message of 200 KB: three times as much as there is memory
/// for, if they are believed.
#[tokio::test]
async fn thousands_of_messages_that_stop_midway() {
    let mut scene = Scene::new("PULL").await;
    let endpoint = scene.endpoint();
    let whole = encode(Version::V3_1, &[vec![7; 200_000]]);
    let attack = async |_| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        peer.write(&whole[..10_000]).await;
        peer
    };
    let peers = scene.during(crowd(2_000, attack)).await;
    scene.good_goes_on().await;
    scene.newcomer().await;
    drop(peers);
    scene.end("messages that stop midway").await;
}

/// For each of them there is memory, but for eight there is not: those that do not come to an end go.
#[tokio::test]
async fn messages_that_do_not_fit_together() {
    let mut scene = Scene::new("PULL").await;
    let endpoint = scene.endpoint();
    let whole = encode(Version::V3_1, &[vec![7; 16 << 20]]);
    let attack = async |i: usize| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        // all but one stop short of the last octet, and say one more now and then
        let (begun, rest) = whole.split_at(whole.len() - 500);
        let limit = Duration::from_secs(2);
        let mut written = peer.write_until_blocked(begun, limit).await;
        if i == 7 {
            written += peer.write_until_blocked(rest, limit).await;
            return (peer, written);
        }
        for octet in &rest[..100] {
            written += peer.write_until_blocked(&[*octet], MS(10)).await;
        }
        (peer, written)
    };
    let peers = scene.during(crowd(8, attack)).await;
    for (peer, written) in &peers {
        if *written <= whole.len() - 500 {
            scene.victim.tells_of(peer.remote(), &["paused", "ended"]).await;
        }
    }
    scene.newcomer().await;
    drop(peers);
    scene.end("messages that do not fit together").await;
}

/// What the application does not receive stays with the senders, and comes when it does.
#[tokio::test]
async fn an_application_that_does_not_receive() {
    const SENDERS: usize = 40;
    const EACH: u64 = 300;
    let mut scene = Scene::new("PULL hwm=1000000").await;
    scene.victim.tell("idle");
    let endpoint = scene.endpoint();
    let payload = vec![7; 20_000];
    let senders: Vec<_> = (0..SENDERS).map(|_| PushSocket::new()).collect();
    for sender in &senders {
        sender.connect(&endpoint).await.unwrap();
    }
    for (i, sender) in senders.iter().enumerate() {
        let topic = format!("good sender {i}");
        for number in 0..EACH {
            let frames: [&[u8]; 3] = [topic.as_bytes(), &number.to_be_bytes(), &payload];
            within("room", sender.send_frames(&frames)).await.unwrap();
        }
    }
    scene
        .victim
        .hears("that a peer is not read from", |line| line.contains("told paused").then_some(()))
        .await;
    let figures = scene.victim.figures().await;
    assert!(figures["used"] < 48 << 20, "{figures:?}");
    assert!(figures["received"] < SENDERS as u64 * EACH, "{figures:?}");
    // one that comes now has to wait as well, and no longer
    let late = PushSocket::new();
    late.connect(&endpoint).await.unwrap();
    send(&late, "good latecomer", 0..10).await;
    scene.victim.tell("receive");
    let mut missing: Vec<_> = (0..SENDERS).map(|i| format!("got good sender {i} {EACH}")).collect();
    missing.push("got good latecomer 10".to_owned());
    scene
        .victim
        .hears("every message", |line| {
            missing.retain(|expected| expected != line);
            missing.is_empty().then_some(())
        })
        .await;
    scene.end("an application that does not receive").await;
}

/// The same with peers that are in no earnest, and leave what they have sent behind.
#[tokio::test]
async fn messages_of_peers_that_are_gone() {
    let mut scene = Scene::new("PULL").await;
    scene.victim.tell("idle");
    let endpoint = scene.endpoint();
    let messages = encode(Version::V3_1, &[[7; 2000]]).repeat(500);
    let answer = [greeting(1, "NULL"), ready("PULL")].concat().len();
    let attack = async |_| {
        let mut peer = Peer::connect(&endpoint).await;
        peer.write(&[greeting(1, "NULL"), ready("PUSH")].concat()).await;
        // when there is no memory left it is not let in
        if peer.try_read(answer).await.is_ok() {
            peer.write_until_blocked(&messages, MS(100)).await;
        }
    };
    crowd(scale(200, 2_000), attack).await;
    scene.victim.tell("receive");
    scene.good_goes_on().await;
    scene.end("messages of peers that are gone").await;
}
