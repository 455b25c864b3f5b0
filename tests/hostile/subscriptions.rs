//! Subscriptions without end, for publishers.

use std::time::Duration;

use dragonwire::Version;

use crate::peer::{Peer, command, greeting, ready};
use crate::scene::{Scene, addresses, crowd, flood, scale};

/// A peer that nothing was taken from for so long is not read from.
const PATIENCE: Duration = Duration::from_secs(2);

/// As many subscriptions as are taken; how many octets that were.
async fn subscribe(peer: &mut Peer, topics: impl Iterator<Item = Vec<u8>>) -> usize {
    let mut written = 0;
    let mut batch = Vec::new();
    for topic in topics {
        batch.extend(command("SUBSCRIBE", &topic));
        if batch.len() > 100_000 {
            let octets = peer.write_until_blocked(&batch, PATIENCE).await;
            written += octets;
            if octets < batch.len() {
                return written;
            }
            batch.clear();
        }
    }
    written + peer.write_until_blocked(&batch, PATIENCE).await
}

fn topics(i: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..scale(500_000, 10_000_000)).map(move |n| format!("topic {i} {n}").into_bytes())
}

/// Nobody has memory for them: one that asks for all loses its connection and them with it.
#[tokio::test]
async fn a_million_subscriptions() {
    let mut scene = Scene::new("PUB").await;
    let endpoint = scene.endpoint();
    let attack = async |i: usize| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "SUB").await;
        subscribe(&mut peer, topics(i)).await;
        peer
    };
    let peers = scene.during(crowd(4, attack)).await;
    for (before_ready, why) in scene.during_ends(&addresses(&peers)).await {
        assert!(!before_ready && why.starts_with("Memory"), "{why}");
    }
    scene.end("a million subscriptions").await;
}

/// An XPUB whose application does not want to hear of them: they stay with the peers.
#[tokio::test]
async fn an_unheard_million_subscriptions() {
    let mut scene = Scene::new("XPUB").await;
    let endpoint = scene.endpoint();
    let attack = async |i: usize| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "SUB").await;
        subscribe(&mut peer, topics(i)).await;
        peer
    };
    let peers = scene.during(crowd(20, attack)).await;
    scene.newcomer().await;
    drop(peers);
    scene.end("a million subscriptions that XPUB's application does not hear of").await;
}

/// The same, where each leaves its place to the next before it is full.
#[tokio::test]
async fn subscribers_that_come_again_and_again() {
    let mut scene = Scene::new("XPUB").await;
    let endpoint = scene.endpoint();
    let attack = async |i: usize| {
        let mut peer = Peer::connect(&endpoint).await;
        peer.write(&[greeting(1, "NULL"), ready("SUB")].concat()).await;
        // when there is no memory left it is not let in
        if peer.try_read(64 + 27).await.is_ok() {
            subscribe(&mut peer, topics(i).take(900)).await;
        }
    };
    scene.during(crowd(scale(500, 2_000), attack)).await;
    scene.newcomer().await;
    scene.end("subscribers that come again and again").await;
}

/// Topics of up to 64 KiB, each of which begins with the one before.
#[tokio::test]
async fn topics_in_depth() {
    let mut scene = Scene::new("PUB").await;
    let endpoint = scene.endpoint();
    let step = scale(64, 8);
    let attack = async |i: usize| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "SUB").await;
        // the last one goes as deep as is taken, an octet at a time
        let step = if i == 3 { 1 } else { step };
        let topics = (1..=65_536 / step).map(|depth| vec![b'a' + i as u8; depth * step]);
        subscribe(&mut peer, topics).await;
        peer
    };
    let peers = scene.during(crowd(4, attack)).await;
    for (before_ready, why) in scene.during_ends(&addresses(&peers)).await {
        assert!(!before_ready && why.starts_with("Memory"), "{why}");
    }
    scene.end("topics in depth").await;
}

/// The same few topics for ever: nothing piles up.
#[tokio::test]
async fn subscribing_and_cancelling_without_end() {
    let mut scene = Scene::new("PUB").await;
    let endpoint = scene.endpoint();
    let pair = [command("SUBSCRIBE", &[b'x'; 200]), command("CANCEL", &[b'x'; 200])].concat();
    let attack = async |_| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "SUB").await;
        let pairs = pair.repeat(1000);
        for _ in 0..scale(30, 500) {
            flood(&mut peer, &pairs).await;
        }
    };
    scene.during(crowd(4, attack)).await;
    scene.end("subscribing and cancelling").await;
}
