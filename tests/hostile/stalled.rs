//! Subscribers that subscribe to everything and read nothing.

use dragonwire::{Endpoint, Version};

use crate::peer::{Peer, greeting, ready, subscription};
use crate::scene::{Pace, Scene, crowd, scale};
use crate::within;

/// They answer no PINGs either, which is not to be what ends them.
const PATIENT: &str = "heartbeat=60000";

async fn stalled(endpoint: &Endpoint, count: usize) -> Vec<Peer> {
    let all = subscription(Version::V3_1, true, "");
    let script = [greeting(1, "NULL"), ready("SUB"), all].concat();
    let answer = [greeting(1, "NULL"), ready("PUB")].concat().len();
    let join = async || loop {
        let mut peer = Peer::connect_narrow(endpoint).await;
        let said = peer.try_write(&script).await;
        // where the machine is busy a slow handshake has to go for the next ones
        if said.is_ok() && peer.try_read(answer).await.is_ok() {
            return peer;
        }
    };
    crowd(count, async |_| within("a stalled subscriber", join()).await).await
}

/// No mark keeps it from having all of 200 000 messages of 10 KB queued, 2 GB.
#[tokio::test]
async fn a_stalled_subscriber() {
    let mut scene = Scene::new(&format!("PUB hwm=0 {PATIENT}")).await;
    let endpoint = scene.endpoint();
    let peers = stalled(&endpoint, 1).await;
    scene.set_pace(Pace { size: 10_000, burst: 20 });
    for _ in 0..scale(1_000, 10_000) {
        scene.good_goes_on().await;
    }
    scene.victim.tells_of(peers[0].remote(), &["dropping", "reclaimed"]).await;
    let figures = scene.victim.figures().await;
    assert!(figures["refused"] + figures["reclaimed"] > 0, "{figures:?}");
    scene.end("a stalled subscriber").await;
}

/// All have as little, so that there is no worst one; one that reads gets everything.
#[tokio::test]
async fn thousands_of_stalled_subscribers() {
    let mut scene = Scene::new(&format!("PUB buffer=4096 {PATIENT}")).await;
    let endpoint = scene.endpoint();
    scene.set_pace(Pace { size: 100, burst: 20 });
    let peers = scene.during(stalled(&endpoint, 10_000)).await;
    for (size, burst) in [(50, 20), (10_000, 1)] {
        scene.set_pace(Pace { size, burst });
        for _ in 0..scale(4, 40) {
            scene.good_goes_on().await;
        }
    }
    let figures = scene.victim.figures().await;
    assert!(figures["refused"] + figures["reclaimed"] > 0, "{figures:?}");
    drop(peers);
    scene.end("ten thousand stalled subscribers").await;
}
