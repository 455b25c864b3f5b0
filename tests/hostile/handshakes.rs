//! Crowds that do not get through their handshake, or that break the protocol right after it.

use dragonwire::{DisconnectCause, ProtocolError, Version};

use crate::peer::{MS, Peer, SIGNATURE, command, encode, greeting, property, ready};
use crate::scene::{Scene, addresses, crowd, scale};
use crate::victim::shown;

fn header(flags: u8, length: u64) -> Vec<u8> {
    [&[flags | 2][..], &length.to_be_bytes()].concat()
}

/// Each way to do it by dozens, all at once.
#[tokio::test]
async fn crowds_that_break_the_protocol() {
    let each = scale(20, 100);
    let before = |octets: &[u8]| [&greeting(1, "NULL"), octets].concat();
    let after = |octets: &[u8]| [&greeting(1, "NULL"), &ready("PUSH"), octets].concat();
    let endless: Vec<u8> =
        (0..5_000).flat_map(|i| property(&format!("X-{i}"), b"and more")).collect();
    let error = |letter: u8, padding: usize| {
        command("ERROR", &[&[255][..], &[letter; 255], &vec![b'.'; padding]].concat())
    };
    let refused = |reason: String| ProtocolError::PeerError { reason };
    let large = ProtocolError::HandshakeTooLarge { limit: 8192 };
    let plain = ProtocolError::MechanismMismatch { ours: "NULL", theirs: "PLAIN".to_owned() };
    let many = ProtocolError::TooManyFrames { limit: 65_536 };
    // whether before READY, what is said, what comes of it
    let mut attacks = vec![
        (true, before(&header(4, 1 << 36)), large.clone()),
        (true, [greeting(1, "PLAIN"), ready("PUSH")].concat(), plain),
        (true, before(&[&header(4, 1 << 40), &endless[..]].concat()), large.clone()),
        (true, before(&command("READY", &endless)), large.clone()),
        (true, before(&error(b'x', 4_000)), refused("x".repeat(255))),
        (false, after(&error(0, 60_000)), refused("\\x00".repeat(255))),
        (false, after(&[1, 0].repeat(65_537)), many),
    ];
    for announced in [1 << 40, 1 << 63, u64::MAX] {
        attacks.push((true, before(&header(4, announced)), large.clone()));
        for flags in [0, 1, 4] {
            let error = ProtocolError::FrameTooLarge { announced, limit: 64 << 20 };
            attacks.push((false, after(&header(flags, announced)), error));
        }
    }
    let mut scene = Scene::new("PULL").await;
    let endpoint = scene.endpoint();
    let attack = async |i: usize| {
        let mut peer = Peer::connect(&endpoint).await;
        // it may be closed before it has said all
        drop(peer.try_write(&attacks[i % attacks.len()].1).await);
        peer.read_to_end().await;
        peer
    };
    let peers = scene.during(crowd(attacks.len() * each, attack)).await;
    let ends = scene.victim.all_ended(&addresses(&peers)).await;
    for ((before_ready, octets, error), end) in attacks.iter().cycle().zip(ends) {
        let what = octets[..octets.len().min(100)].escape_ascii();
        assert_eq!(end, (*before_ready, shown(error.clone())), "{what}");
    }
    scene.end("crowds that break the protocol").await;
}

#[tokio::test]
async fn connections_that_say_nothing() {
    let mut scene = Scene::new("PULL handshake=2000").await;
    let endpoint = scene.endpoint();
    let count = scale(2_000, 10_000);
    let (mut peers, mut newcomers) = (Vec::new(), 0);
    while peers.len() < count {
        peers.extend(scene.during(crowd(500, async |_| Peer::connect(&endpoint).await)).await);
        scene.newcomer().await;
        newcomers += 1;
    }
    let ends = scene.during_ends(&addresses(&peers)).await;
    let reasons = [DisconnectCause::HandshakeTimeout(MS(2000)), DisconnectCause::TooManyHandshakes];
    let reasons = reasons.map(shown);
    for (before_ready, why) in ends {
        assert!(before_ready && reasons.contains(&why), "{why}");
    }
    assert_eq!(scene.victim.figures().await["connections"], newcomers + 1);
    scene.end("connections that say nothing").await;
}

/// A READY as large as may be, of which the last octet does not come.
#[tokio::test]
async fn handshakes_that_lack_their_last_octet() {
    let mut scene = Scene::new("PULL handshake=1500").await;
    let endpoint = scene.endpoint();
    let padding = property("X-padding", &vec![b'x'; 8_000]);
    let whole = [greeting(1, "NULL"), command("READY", &padding)].concat();
    let begun = &whole[..whole.len() - 1];
    let attack = async |_| {
        let mut peer = Peer::connect(&endpoint).await;
        assert_eq!(peer.read(SIGNATURE.len()).await, SIGNATURE);
        drop(peer.try_write(begun).await);
        peer
    };
    let peers = scene.during(crowd(scale(1_000, 5_000), attack)).await;
    scene.newcomer().await;
    let ends = scene.during_ends(&addresses(&peers)).await;
    let reasons = [DisconnectCause::HandshakeTimeout(MS(1500)), DisconnectCause::TooManyHandshakes];
    let reasons = reasons.map(shown);
    for (before_ready, why) in ends {
        assert!(before_ready && reasons.contains(&why), "{why}");
    }
    scene.end("handshakes that lack their last octet").await;
}

/// Half of them in their handshake, which is to end within three seconds and would take five; the others
/// in a message, for which there is no limit of time.
#[tokio::test]
async fn octets_that_drip() {
    const COUNT: usize = 300;
    let mut scene = Scene::new("PULL handshake=3000").await;
    let endpoint = scene.endpoint();
    let handshake = [greeting(1, "NULL"), ready("PUSH")].concat();
    let message = encode(Version::V3_1, &["slow", "but in earnest"]);
    let script = [&handshake[..], &message].concat();
    let attack = async {
        let patient = async |i: usize| {
            let mut peer = Peer::connect(&endpoint).await;
            if i.is_multiple_of(2) {
                peer.write(&handshake).await;
                assert_eq!(peer.read(64).await, greeting(1, "NULL"));
            }
            peer
        };
        let mut peers = crowd(COUNT, patient).await;
        let mut pace = tokio::time::interval(MS(50));
        for at in 0..script.len() {
            pace.tick().await;
            for (i, peer) in peers.iter_mut().enumerate() {
                let from = if i.is_multiple_of(2) { handshake.len() } else { 0 };
                if let Some(octet) = script.get(from + at) {
                    // those in their handshake are cut off one after the other
                    drop(peer.try_write(&[*octet]).await);
                }
            }
        }
        peers
    };
    let peers = scene.during(attack).await;
    let late: Vec<_> = addresses(&peers).into_iter().skip(1).step_by(2).collect();
    for end in scene.victim.all_ended(&late).await {
        assert_eq!(end, (true, shown(DisconnectCause::HandshakeTimeout(MS(3000)))));
    }
    // whoever was slow and polite was served
    scene
        .victim
        .hears("the slow ones' messages", |line| (line == "got others 150").then_some(()))
        .await;
    scene.end("octets that drip").await;
}
