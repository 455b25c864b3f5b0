//! Subscribers that subscribe to everything and read nothing.

use dragonwire::{Endpoint, Version};

use crate::peer::{Peer, greeting, ready, subscription};
use crate::scene::{Pace, Scene, crowd, scale};

async fn stalled(endpoint: &Endpoint, count: usize) -> Vec<Peer> {
    let all = subscription(Version::V3_1, true, "");
    let script = [greeting(1, "NULL"), ready("SUB"), all].concat();
    crowd(count, async |_| {
        let mut peer = Peer::connect_narrow(endpoint).await;
        peer.write(&script).await;
        peer
    })
    .await
}

/// No mark keeps it from having all of 200 000 messages of 10 KB queued, 2 GB.
#[tokio::test]
async fn a_stalled_subscriber() {
    let mut scene = Scene::new("PUB hwm=0").await;
    let endpoint = scene.endpoint();
    let peers = stalled(&endpoint, 1).await;
    scene.set_pace(Pace { size: 10_000, burst: 20 });
    for _ in 0..scale(1_000, 10_000) {
        scene.good_goes_on().await;
    }
    let told = scene.victim.told();
    let [peer] = &peers[..] else { unreachable!() };
    let ours = |what: &str| told.iter().any(|t| t.address == peer.remote() && t.what == what);
    assert!(ours("dropping") || ours("reclaimed"), "{told:?}");
    let figures = scene.victim.figures().await;
    assert!(figures["refused"] + figures["reclaimed"] > 0, "{figures:?}");
    scene.end("a stalled subscriber").await;
}

/// All have as little, so that there is no worst one; one that reads gets everything.
#[tokio::test]
async fn thousands_of_stalled_subscribers() {
    let mut scene = Scene::new("PUB buffer=4096").await;
    let endpoint = scene.endpoint();
    scene.set_pace(Pace { size: 100, burst: 20 });
    let peers = scene.during(stalled(&endpoint, 10_000)).await;
    for size in [50, 10_000] {
        scene.set_pace(Pace { size, burst: 20 });
        for _ in 0..scale(4, 40) {
            scene.good_goes_on().await;
        }
    }
    let figures = scene.victim.figures().await;
    assert!(figures["refused"] + figures["reclaimed"] > 0, "{figures:?}");
    drop(peers);
    scene.end("ten thousand stalled subscribers").await;
}
