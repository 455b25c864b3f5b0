//! Connections that come in masses, break, or seem to be there and are not.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use dragonwire::{DisconnectCause, Version};
use socket2::SockRef;

use crate::peer::{MS, Peer, SIGNATURE, command, encode, greeting, ping, ready};
use crate::scene::{Pace, Scene, addresses, crowd, scale};
use crate::victim::{Place, shown};

/// Of a receiver's session and of a publisher's. Every other one is reset before it can have been
/// looked at.
#[tokio::test]
async fn resets_at_every_octet() {
    for (kind, ours) in [("PULL", "PUSH"), ("PUB", "SUB")] {
        let mut scene = Scene::new(kind).await;
        let endpoint = scene.endpoint();
        let handshake = [greeting(1, "NULL"), ready(ours)].concat();
        let session = [
            handshake.clone(),
            ping(10, b"context"),
            command("SUBSCRIBE", b"topic"),
            encode(Version::V3_1, &["\x01old", "frames", ""]),
            command("CANCEL", b"topic"),
            encode(Version::V3_1, &[vec![7; 300]]),
        ]
        .concat();
        let handshake = handshake.len();
        let attack = async |i: usize| {
            let mut peer = Peer::connect_abrupt(&endpoint).await;
            let address = peer.remote();
            let octets = i / 2;
            if i.is_multiple_of(2) {
                assert_eq!(peer.read(SIGNATURE.len()).await, SIGNATURE);
            }
            peer.write(&session[..octets]).await;
            // once it has said all of its handshake it is answered with a whole greeting
            if i.is_multiple_of(4) && octets > handshake {
                peer.read(64 - SIGNATURE.len()).await;
            }
            address
        };
        let attackers = scene.during(crowd(2 * session.len(), attack)).await;
        for (_, why) in scene.during_ends(&attackers).await {
            let broken = why == "PeerClosed" || why.starts_with("Io(ConnectionReset");
            assert!(broken, "{why}");
        }
        scene.end(&format!("resets at every octet, {kind}")).await;
    }
}

/// Connected and gone, as fast as two threads can.
#[tokio::test]
async fn connects_by_the_thousand() {
    let mut scene = Scene::new("PULL").await;
    let address: SocketAddr = scene.endpoint().to_string()[6..].parse().unwrap();
    let count = scale(5_000, 20_000);
    let begun = Instant::now();
    let threads = [(); 2].map(|()| {
        tokio::task::spawn_blocking(move || {
            for _ in 0..count / 2 {
                let stream = TcpStream::connect(address).unwrap();
                // so that its port is free again
                SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        })
    });
    scene.during(futures::future::join_all(threads)).await;
    println!("{count} connects in {:?}", begun.elapsed());
    scene.newcomer().await;
    let failed = scene.victim.figures().await["failed"];
    assert!(failed > 0);
    scene.end("connects by the thousand").await;
}

/// More peers than descriptors, all of them through their handshake as far as they are let in.
#[tokio::test]
async fn descriptors_that_run_out() {
    let place = Place { descriptors: Some(64), ..Place::default() };
    let mut scene = Scene::at("PULL", place).await;
    let endpoint = scene.endpoint();
    let attack = async |_| {
        let mut peer = Peer::connect(&endpoint).await;
        peer.write(&[greeting(1, "NULL"), ready("PUSH")].concat()).await;
        peer
    };
    let peers = scene.during(crowd(200, attack)).await;
    scene
        .victim
        .hears("that no more are accepted", |line| {
            line.starts_with("accept failed: Too many open files")
                .then_some(())
                .or_else(|| line.starts_with("accept failed: No file descriptors").then_some(()))
        })
        .await;
    scene.good_goes_on().await;
    drop(peers);
    scene.newcomer().await;
    scene.end("descriptors that run out").await;
}

/// One side hears nothing more, not even that the other one has closed. Where that cannot be made, a
/// peer that says nothing must do.
#[tokio::test]
async fn a_cable_that_is_cut() {
    let network = Network::new();
    let place = match &network {
        Ok(network) => {
            Place { namespace: Some((&network.name, &network.inside)), ..Place::default() }
        }
        Err(reason) => {
            println!("nothing is cut here: {reason}");
            Place::default()
        }
    };
    // its timeout is long enough for a good peer on a busy machine
    let mut scene = Scene::at("PUB heartbeat=1000", place).await;
    let endpoint = scene.endpoint();
    // with messages under way, and without any
    let attack = async |i: usize| {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "SUB").await;
        if i.is_multiple_of(2) {
            peer.subscribe("").await;
        }
        peer
    };
    let mut peers = scene.during(crowd(10, attack)).await;
    let cut = addresses(&peers);
    if let Ok(network) = &network {
        network.cut(&cut);
        for peer in &mut peers {
            peer.hang_up();
        }
    }
    scene.set_pace(Pace { size: 10_000, burst: 20 });
    for end in scene.during_ends(&cut).await {
        assert_eq!(end, (false, shown(DisconnectCause::HeartbeatTimeout(MS(2000)))));
    }
    scene.end("a cable that is cut").await;
}

/// A network namespace for the victim, joined to this one by a cable.
struct Network {
    name: String,
    inside: String,
}

impl Network {
    fn new() -> Result<Self, String> {
        let process = std::process::id();
        let name = format!("dragonwire-hostile-{process}");
        let device = format!("dwh{process}");
        // a network of its own, should this run twice
        let address =
            |host| format!("10.{}.0.{}", 64 + process / 64 % 128, process % 64 * 4 + host);
        let network = Self { name, inside: address(2) };
        let (name, outside, inside) = (&network.name, address(1), &network.inside);
        for command in [
            format!("ip netns add {name}"),
            format!("ip link add {device} type veth peer name veth0 netns {name}"),
            format!("ip addr add {outside}/30 dev {device}"),
            format!("ip link set {device} up"),
            format!("ip -n {name} addr add {inside}/30 dev veth0"),
            format!("ip -n {name} link set veth0 up"),
            format!("ip netns exec {name} iptables -A INPUT -p tcp --sport 1 -j DROP"),
        ] {
            run(&command)?;
        }
        Ok(network)
    }

    /// Nothing of these reaches the victim any more.
    fn cut(&self, peers: &[SocketAddr]) {
        for peer in peers {
            let (name, port) = (&self.name, peer.port());
            let rule = format!("-A INPUT -p tcp --sport {port} -j DROP");
            run(&format!("ip netns exec {name} iptables {rule}")).unwrap();
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // there may be nothing to remove
        let _ = run(&format!("ip netns del {}", self.name));
    }
}

fn run(command: &str) -> Result<(), String> {
    let words: Vec<&str> = command.split(' ').collect();
    let done = Command::new(words[0]).args(&words[1..]).output();
    let done = done.map_err(|error| format!("{command}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&done.stderr).trim()))
}
