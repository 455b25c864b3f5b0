//! What each side's monitor says of the other, and what a peer of the wrong type costs.

use dragonwire::SocketType::{
    self, Dealer, Pair, Pub, Pull, Push, Rep, Req, Router, Sub, XPub, XSub,
};
use dragonwire::{Event, Message, PeerInfo, PullSocket, PushSocket, SocketOptions, Version};
use dragonwire_interop::libzmq::{self, Context, Frame, MonitorEvent};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::side::{Dragon, texts};
use dragonwire_interop::within;

const OURS: [SocketType; 6] = [Pub, Sub, XPub, XSub, Push, Pull];
const THEIRS: [SocketType; 11] = [Pub, Sub, XPub, XSub, Push, Pull, Pair, Req, Rep, Dealer, Router];

/// What came of a connection, as dragonwire sees it.
async fn outcome(monitor: &mut dragonwire::Monitor) -> Result<std::sync::Arc<PeerInfo>, String> {
    within("the end of a handshake", async {
        loop {
            match monitor.recv().await.expect("an open socket") {
                Event::HandshakeSucceeded { peer } => return Ok(peer),
                Event::HandshakeFailed { cause, .. } => return Err(cause.to_string()),
                _ => {}
            }
        }
    })
    .await
}

/// What came of a connection, as libzmq sees it.
fn libzmq_succeeded(monitor: &libzmq::Monitor) -> bool {
    let event = monitor.wait_for(&[
        MonitorEvent::HANDSHAKE_SUCCEEDED,
        MonitorEvent::HANDSHAKE_FAILED_NO_DETAIL,
        MonitorEvent::HANDSHAKE_FAILED_PROTOCOL,
        MonitorEvent::DISCONNECTED,
    ]);
    event.event == MonitorEvent::HANDSHAKE_SUCCEEDED
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn types_that_fit_and_types_that_do_not() {
    let context = Context::new();
    for ours in OURS {
        for theirs in THEIRS {
            for we_bind in [true, false] {
                let dragon = Dragon::new(ours, SocketOptions::new());
                let mut events = dragon.monitor();
                let socket = context.socket(theirs);
                let monitor = socket.monitor();
                if we_bind {
                    socket.connect(&dragon.bind("tcp://127.0.0.1:*").await.unwrap()).unwrap();
                } else {
                    dragon.connect(&socket.bind("tcp://127.0.0.1:*").unwrap()).await.unwrap();
                }
                let case = format!("{ours} {} {theirs}", if we_bind { "binds for" } else { "to" });
                let outcome = outcome(&mut events).await;
                assert_eq!(outcome.is_ok(), ours.fits(theirs), "{case}: {outcome:?}");
                assert_eq!(libzmq_succeeded(&monitor), ours.fits(theirs), "{case}");
                if let Ok(peer) = outcome {
                    let session = peer.session.clone().expect("the handshake is through");
                    assert_eq!(session.socket_type, Some(theirs), "{case}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_peers_are_not_disturbed_by_wrong_ones() {
    let context = Context::new();
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let mut pull = PullSocket::new();
        let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
        let good = context.socket(Push);
        let good_monitor = good.monitor();
        good.connect(&endpoint).unwrap();
        good.send(["0"]).unwrap();
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received, Message::from("0"));
        let mut events = pull.monitor();
        let wrong = THEIRS.into_iter().filter(|kind| !kind.fits(Pull));
        let mut next = 1;
        for kind in wrong {
            let bad = context.socket(kind);
            bad.connect(&endpoint).unwrap();
            // in the midst of what the good one sends
            for _ in 0..20 {
                good.send([next.to_string()]).unwrap();
                let received = within("a message", pull.recv()).await.unwrap();
                assert_eq!(received, Message::from(next.to_string()));
                next += 1;
            }
            assert!(outcome(&mut events).await.is_err(), "{kind}");
        }
        assert_eq!(pull.stats().connections, 1);
        assert!(pull.stats().failed_handshakes >= 10);
        while let Some(event) = good_monitor.next_within(std::time::Duration::ZERO) {
            assert_ne!(event.event, MonitorEvent::DISCONNECTED);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_side_knows_who_the_other_is() {
    let context = Context::new();
    for transport in Transport::ALL {
        for we_bind in [true, false] {
            let place = Place::new(transport);
            let options = SocketOptions::new().metadata("X-Name", "dragon");
            let push = PushSocket::with_options(options).unwrap();
            let mut events = push.monitor();
            let pull = context.socket(Pull);
            let monitor = pull.monitor();
            let endpoint = if we_bind {
                let endpoint = push.bind(place.endpoint()).await.unwrap().to_string();
                pull.connect(&endpoint).unwrap();
                endpoint
            } else {
                let endpoint = pull.bind(place.endpoint()).unwrap();
                push.connect(&endpoint).await.unwrap();
                endpoint
            };
            let peer = outcome(&mut events).await.unwrap();
            assert_eq!(peer.endpoint.to_string(), endpoint);
            assert_eq!(peer.accepted, we_bind);
            let session = peer.session.clone().unwrap();
            assert_eq!(session.version, Version::V3_1);
            assert_eq!(session.mechanism, "NULL");
            assert_eq!(session.socket_type, Some(Pull));
            match (transport, peer.remote, peer.credentials) {
                (Transport::Tcp, Some(remote), None) => assert!(remote.ip().is_loopback()),
                (Transport::Ipc | Transport::Abstract, None, Some(process)) => {
                    assert_eq!(process.pid, Some(std::process::id() as i32));
                }
                _ => panic!("{peer:?}"),
            }

            monitor.wait_for(&[MonitorEvent::HANDSHAKE_SUCCEEDED]);
            push.send("x").await.unwrap();
            let mut frame = Frame::new();
            pull.recv_frame(&mut frame).unwrap();
            assert_eq!(frame.octets(), b"x");
            assert_eq!(frame.property("Socket-Type"), Some("PUSH"));
            assert_eq!(frame.property("X-Name"), Some("dragon"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_the_wrong_type_is_tried_again() {
    let context = Context::new();
    let wrong = context.socket(Pub);
    let endpoint = wrong.bind("tcp://127.0.0.1:*").unwrap();
    let push = PushSocket::new();
    let mut events = push.monitor();
    push.connect(&endpoint).await.unwrap();
    push.send("x").await.unwrap();
    outcome(&mut events).await.unwrap_err();
    wrong.unbind(&endpoint).unwrap();
    drop(wrong);
    let right = context.socket(Pull);
    // the other socket's thread lets go of the address when it gets round to it
    dragonwire_interop::until("the address is free", || right.bind(&endpoint).is_ok()).await;
    assert_eq!(right.recv().unwrap(), texts(&["x"]));
}
