//! A budget of memory: who may hold how much of it, who gives way, and that nothing good is lost by it.

#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use std::net::SocketAddr;

use dragonwire::{
    Budget, DisconnectCause, DropReason, Endpoint, Event, Monitor, PubSocket, PullSocket,
    PushSocket, SocketOptions, SubSocket, TrySendError, Version, XPubSocket,
};
use futures::FutureExt;
use peer::{MS, Peer, command, encode, ended, event, subscription, within};

const MIB: usize = 1 << 20;

fn options(budget: &Budget) -> SocketOptions {
    let linger = Some(std::time::Duration::ZERO);
    SocketOptions::new().budget(budget).send_hwm(0).recv_hwm(0).recv_hwm_bytes(0).linger(linger)
}

async fn publisher(budget: &Budget) -> (PubSocket, Endpoint, Monitor) {
    let publisher = PubSocket::with_options(options(budget)).unwrap();
    let monitor = publisher.monitor();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    (publisher, endpoint, monitor)
}

/// A subscriber that never reads what it is sent.
async fn stalled(publisher: &PubSocket, endpoint: &Endpoint, topic: &str) -> Peer {
    let mut peer = Peer::connect_narrow(endpoint).await;
    peer.shake(Version::V3_1, "SUB").await;
    peer.subscribe(topic).await;
    within("a subscription", publisher.wait_for_subscribers(topic, 1)).await.unwrap();
    peer
}

async fn good(publisher: &PubSocket, endpoint: &Endpoint, topic: &str) -> SubSocket {
    let subscriber = SubSocket::new();
    subscriber.subscribe(topic).unwrap();
    subscriber.connect(endpoint).await.unwrap();
    within("ready", subscriber.ready()).await.unwrap();
    within("a subscription", publisher.wait_for_subscribers(topic, 1)).await.unwrap();
    subscriber
}

#[track_caller]
fn within_budget(budget: &Budget) {
    let usage = budget.usage();
    assert!(usage.peak <= usage.chargeable, "{usage:?}");
}

/// That all is given back once nobody is left.
async fn all_is_given_back<S>(budget: &Budget, socket: S, mut monitor: Monitor) {
    drop(socket);
    event("the end", &mut monitor, |event| (event == Event::Closed).then_some(())).await;
    assert_eq!(budget.usage().used, 0);
}

#[tokio::test]
async fn one_that_hoards_gets_half_and_one_that_reads_gets_everything() {
    let budget = Budget::process(8 * MIB);
    let (publisher, endpoint, mut monitor) = publisher(&budget).await;
    let mut bad = stalled(&publisher, &endpoint, "").await;
    let mut subscriber = good(&publisher, &endpoint, "a").await;
    for i in 0..4000_u32 {
        let body = [&i.to_be_bytes()[..], &[0; 10_000]].concat();
        within("room", publisher.send([&b"a"[..], &body])).await.unwrap();
        let message = within("a message", subscriber.recv()).await.unwrap();
        assert_eq!(message.frame(1).unwrap()[..4], i.to_be_bytes());
    }
    within_budget(&budget);
    let dropping = event("dropping", &mut monitor, |event| match event {
        Event::Dropping { peer, reason, .. } => Some((peer.unwrap().remote, reason)),
        _ => None,
    });
    assert_eq!(dropping.await, (Some(bad.remote()), DropReason::Memory));
    let stats = publisher.stats();
    let hoarder = |stats: &dragonwire::SocketStats| {
        let of = |peer: &&dragonwire::PeerStats| {
            peer.peer.as_ref().is_some_and(|info| info.remote == Some(bad.remote()))
        };
        stats.peers.iter().find(of).map(|peer| peer.outgoing)
    };
    let held = hoarder(&stats).unwrap();
    let dropped = held.dropped.get(DropReason::Memory);
    assert_eq!(held.accepted, held.sent + held.queued + dropped);
    assert_eq!(budget.usage().refused, dropped);
    let chargeable = budget.usage().chargeable as u64;
    assert!((chargeable / 4..chargeable * 5 / 8).contains(&held.queued_bytes), "{held:?}");

    bad.hang_up();
    ended(&mut monitor, bad.remote()).await;
    assert!(budget.usage().used < MIB / 2, "{:?}", budget.usage());
    publisher.close().await;
    all_is_given_back(&budget, publisher, monitor).await;
}

#[tokio::test]
async fn the_worst_hoarder_gives_way_to_those_who_have_little() {
    let budget = Budget::process(16 * MIB);
    let (publisher, endpoint, mut monitor) = publisher(&budget).await;
    let _ = publisher.new_subscriptions().now_or_never();
    let (mut peers, mut news) = (Vec::new(), Vec::new());
    for topic in ["a", "b", "c", "d", "e"] {
        peers.push(stalled(&publisher, &endpoint, topic).await);
        news.extend(within("a subscription", publisher.new_subscriptions()).await.unwrap());
        for _ in 0..2000 {
            publisher.send([topic.as_bytes(), &[0; 6000]]).await.unwrap();
        }
    }
    let (remote, messages, held) =
        event("a hoarder giving way", &mut monitor, |event| match event {
            Event::Reclaimed { peer, messages, held, .. } => {
                Some((peer.unwrap().remote, messages, held))
            }
            _ => None,
        })
        .await;
    assert_eq!(remote, Some(peers[0].remote()), "the first had half of it");
    news.extend(publisher.new_subscriptions().now_or_never().into_iter().flatten().flatten());
    let greeted = |topic: &str| news.iter().filter(|news| *news == topic).count();
    assert!(greeted("a") == 2 && greeted("e") == 1, "it is to be greeted again: {news:?}");
    assert!(messages > 500 && held > budget.usage().chargeable / 4, "{messages}, {held}");
    assert!(budget.usage().reclaimed >= messages);
    let stats = publisher.stats().outgoing;
    assert_eq!(stats.accepted, stats.sent + stats.queued + stats.dropped.total());
    assert_eq!(
        stats.dropped.get(DropReason::Memory),
        budget.usage().refused + budget.usage().reclaimed
    );
    within_budget(&budget);
    publisher.close().await;
    all_is_given_back(&budget, publisher, monitor).await;
}

#[tokio::test]
async fn a_peer_with_too_many_subscriptions_has_to_go() {
    let budget = Budget::process(8 * MIB);
    let (publisher, endpoint, mut monitor) = publisher(&budget).await;
    let mut subscriber = good(&publisher, &endpoint, "good").await;
    let mut bad = Peer::join(&endpoint, Version::V3_1, "SUB").await;
    let mut refused = false;
    for i in 0..100_000_u32 {
        let octets = subscription(Version::V3_1, true, &format!("bad-{i}"));
        refused = bad.try_write(&octets).await.is_err();
        if refused {
            break;
        }
    }
    let (before_ready, cause) = ended(&mut monitor, bad.remote()).await;
    let DisconnectCause::Memory { held } = cause else { panic!("{cause:?}") };
    assert!(!before_ready && held > MIB, "{refused}, {held}");
    publisher.send(["good", "one"]).await.unwrap();
    let message = within("a message", subscriber.recv()).await.unwrap();
    assert_eq!(message, ["good", "one"].into());
    assert_eq!(budget.usage().disconnected, 1);
    within_budget(&budget);
    publisher.close().await;
    all_is_given_back(&budget, publisher, monitor).await;
}

#[tokio::test]
async fn a_peer_that_cancels_what_it_never_had_has_to_go() {
    let budget = Budget::process(8 * MIB);
    let publisher = XPubSocket::with_options(options(&budget)).unwrap();
    let mut monitor = publisher.monitor();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut bad = Peer::join(&endpoint, Version::V3_1, "XSUB").await;
    // each is a notice for an application that does not receive
    let message = encode(Version::V3_1, &[[0, b'x']; 60_000]);
    // it may be refused before it is through
    let _ = bad.try_write(&message).await;
    let (_, cause) = ended(&mut monitor, bad.remote()).await;
    assert!(matches!(cause, DisconnectCause::Memory { .. }), "{cause:?}");
    within_budget(&budget);
    publisher.close().await;
    all_is_given_back(&budget, publisher, monitor).await;
}

#[tokio::test]
async fn messages_that_never_end_make_room_for_those_that_do() {
    let budget = Budget::process(8 * MIB);
    let mut puller = PullSocket::with_options(options(&budget)).unwrap();
    let mut monitor = puller.monitor();
    let endpoint = puller.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut bad = Vec::new();
    for _ in 0..100 {
        let mut peer = Peer::connect(&endpoint).await;
        let whole = encode(Version::V3_1, &[vec![0; 300_000]]);
        let hello = [peer::greeting(1, "NULL"), peer::ready("PUSH"), whole[..150_000].into()];
        // as far as it is let
        drop(tokio::time::timeout(MS(50), peer.try_write(&hello.concat())).await);
        bad.push(peer);
    }
    let pusher = PushSocket::new();
    pusher.connect(&endpoint).await.unwrap();
    for i in 0..50_u8 {
        within("room", pusher.send([&[i][..], &[0; 500_000]])).await.unwrap();
        let message = within("a message", puller.recv()).await.unwrap();
        assert_eq!((message.frame(0).unwrap()[0], message.frames().count()), (i, 2));
    }
    let victims = budget.usage().disconnected;
    assert!(victims > 0, "{:?}", budget.usage());
    let remotes: Vec<SocketAddr> = bad.iter().map(Peer::remote).collect();
    let (remote, cause) = event("the end of a bad peer", &mut monitor, |event| match event {
        Event::Disconnected { peer, cause, .. } => Some((peer.remote, cause)),
        _ => None,
    })
    .await;
    assert!(remotes.contains(&remote.unwrap()) && matches!(cause, DisconnectCause::Memory { .. }));
    within_budget(&budget);
    puller.close().await;
    all_is_given_back(&budget, puller, monitor).await;
}

#[tokio::test]
async fn senders_wait_while_the_application_does_not_receive() {
    let budget = Budget::process(8 * MIB);
    let mut puller = PullSocket::with_options(options(&budget)).unwrap();
    let mut monitor = puller.monitor();
    let endpoint = puller.bind("tcp://127.0.0.1:*").await.unwrap();
    let senders = (0..8_u8).map(|sender| {
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            let pusher = PushSocket::with_options(SocketOptions::new().send_hwm(10)).unwrap();
            pusher.connect(&endpoint).await.unwrap();
            for i in 0..1000_u32 {
                let body = [&i.to_be_bytes()[..], &[0; 4000]].concat();
                pusher.send([&[sender][..], &body]).await.unwrap();
            }
            pusher.close().await
        })
    });
    let senders: Vec<_> = senders.collect();
    let held = event("a pause", &mut monitor, |event| match event {
        Event::ReadingPaused { held, .. } => Some(held),
        _ => None,
    });
    assert!(held.await > 100_000);
    assert!(budget.usage().paused > 0);
    let mut next = [0_u32; 8];
    for _ in 0..8 * 1000 {
        let message = within("a message", puller.recv()).await.unwrap();
        let sender = usize::from(message.frame(0).unwrap()[0]);
        assert_eq!(message.frame(1).unwrap()[..4], next[sender].to_be_bytes());
        next[sender] += 1;
    }
    for sender in senders {
        assert_eq!(within("the end of a sender", sender).await.unwrap().discarded, 0);
    }
    within_budget(&budget);
    assert_eq!(budget.usage().disconnected, 0);
    puller.close().await;
    all_is_given_back(&budget, puller, monitor).await;
}

#[tokio::test]
async fn push_waits_for_memory_and_drops_nothing() {
    let budget = Budget::process(4 * MIB);
    let pusher = PushSocket::with_options(options(&budget)).unwrap();
    let monitor = pusher.monitor();
    let endpoint: Endpoint =
        format!("ipc://@dragonwire-budget-{}", std::process::id()).parse().unwrap();
    pusher.connect(&endpoint).await.unwrap();
    let mut queued = 0_u32;
    loop {
        match pusher.try_send([&queued.to_be_bytes()[..], &[0; 1000]]) {
            Ok(()) => queued += 1,
            Err(TrySendError::Full(_)) => break,
            Err(closed) => panic!("{closed}"),
        }
    }
    let held = queued as usize * 1012;
    assert!(held > MIB / 2 && held < 3 * MIB, "{queued}");
    let rest = {
        let pusher = pusher.clone();
        tokio::spawn(async move {
            for i in queued..10_000 {
                pusher.send([&i.to_be_bytes()[..], &[0; 1000]]).await.unwrap();
            }
        })
    };
    let mut puller = PullSocket::new();
    puller.bind(&endpoint).await.unwrap();
    for i in 0..10_000_u32 {
        let message = within("a message", puller.recv()).await.unwrap();
        assert_eq!(message.frame(0).unwrap()[..4], i.to_be_bytes());
    }
    within("the sender", rest).await.unwrap();
    assert_eq!(pusher.stats().outgoing.dropped.total(), 0);
    within_budget(&budget);
    pusher.close().await;
    all_is_given_back(&budget, pusher, monitor).await;
}

#[tokio::test]
async fn a_message_larger_than_what_can_be_granted_is_still_pushed() {
    let budget = Budget::process(4 * MIB).per_peer(100_000);
    let pusher = PushSocket::with_options(options(&budget)).unwrap();
    let mut puller = PullSocket::new();
    let endpoint = puller.bind("tcp://127.0.0.1:*").await.unwrap();
    pusher.connect(&endpoint).await.unwrap();
    for i in 0..3_u8 {
        within("room", pusher.send([&[i][..], &vec![0; 2 * MIB]])).await.unwrap();
    }
    for i in 0..3_u8 {
        let message = within("a message", puller.recv()).await.unwrap();
        assert_eq!(message.frame(0).unwrap()[..], [i]);
    }
}

#[tokio::test]
async fn a_peer_and_a_socket_have_limits_of_their_own() {
    let queued = async |budget: Budget, subscribers: usize| {
        let (publisher, endpoint, _monitor) = publisher(&budget).await;
        let mut peers = Vec::new();
        for _ in 0..subscribers {
            peers.push(stalled(&publisher, &endpoint, "").await);
        }
        within("subscriptions", publisher.wait_for_subscribers("", subscribers)).await.unwrap();
        for _ in 0..5000 {
            publisher.send(["a", &"x".repeat(1000)]).await.unwrap();
        }
        within_budget(&budget);
        let queued = publisher.stats().outgoing.queued_bytes as usize;
        // the same limits do not bind another socket
        let (other, ..) = self::publisher(&budget).await;
        assert_eq!(other.stats().outgoing.queued, 0);
        queued
    };
    let one = queued(Budget::process(64 * MIB).per_peer(500_000), 1).await;
    assert!((250_000..500_000).contains(&one), "{one}");
    let three = queued(Budget::process(64 * MIB).per_peer(500_000), 3).await;
    assert!((750_000..1_500_000).contains(&three), "{three}");
    let socket = queued(Budget::process(64 * MIB).per_socket(500_000), 3).await;
    assert!((150_000..500_000).contains(&socket), "{socket}");
}

#[tokio::test]
async fn connections_without_a_handshake_get_an_eighth_at_most() {
    let budget = Budget::process(MIB);
    let (publisher, endpoint, mut monitor) = publisher(&budget).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(Peer::connect(&endpoint).await);
    }
    let mut subscriber = good(&publisher, &endpoint, "").await;
    publisher.send("through").await.unwrap();
    assert_eq!(within("a message", subscriber.recv()).await.unwrap(), "through".into());
    let (before_ready, cause) = ended(&mut monitor, silent[0].remote()).await;
    assert!(before_ready && cause == DisconnectCause::TooManyHandshakes, "{cause:?}");
    let usage = budget.usage();
    assert!(usage.peak <= usage.chargeable / 8 + 16_384, "{usage:?}");
}

#[tokio::test]
async fn connections_beyond_the_budget_are_turned_away_by_name() {
    let budget = Budget::process(MIB);
    let (_publisher, endpoint, mut monitor) = publisher(&budget).await;
    let mut peers = Vec::new();
    let turned_away = loop {
        assert!(peers.len() < 1000, "{:?}", budget.usage());
        let mut peer = Peer::connect(&endpoint).await;
        let hello = [peer::greeting(1, "NULL"), peer::ready("SUB")].concat();
        drop(peer.try_write(&hello).await);
        let remote = peer.remote();
        peers.push(peer);
        let refused = event("an answer", &mut monitor, |event| match event {
            Event::HandshakeFailed { peer, cause } if peer.remote == Some(remote) => {
                Some(Some(cause))
            }
            Event::HandshakeSucceeded { peer } if peer.remote == Some(remote) => Some(None),
            _ => None,
        });
        if let Some(cause) = refused.await {
            break cause;
        }
    };
    assert_eq!(turned_away, DisconnectCause::Memory { held: 0 });
    assert_eq!(budget.usage().turned_away, 1);
    assert!(peers.len() > 100);
    within_budget(&budget);
}

#[tokio::test]
async fn pings_that_nobody_fetches_the_answers_of_cost_little() {
    let budget = Budget::process(4 * MIB);
    let (publisher, endpoint, _monitor) = publisher(&budget).await;
    let mut bad = Peer::connect_narrow(&endpoint).await;
    bad.shake(Version::V3_1, "SUB").await;
    let pings =
        command("PING", &[0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]).repeat(1000);
    // until the kernel has no room for more
    while tokio::time::timeout(MS(300), bad.try_write(&pings)).await.is_ok_and(|ok| ok.is_ok()) {}
    let mut subscriber = good(&publisher, &endpoint, "").await;
    publisher.send("through").await.unwrap();
    assert_eq!(within("a message", subscriber.recv()).await.unwrap(), "through".into());
    assert!(budget.usage().peak < MIB / 2, "{:?}", budget.usage());
}

/// Each of them fits alone. Begun at once, none leaves another what it needs: one has to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_do_not_wait_for_each_other_for_ever() {
    let budget = Budget::process(64 * MIB);
    let mut pull = PullSocket::with_options(options(&budget)).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let octets = encode(Version::V3_1, &[vec![7; 15 * MIB]]);
    let (begun, rest) = octets.split_at(9 * MIB);
    let mut peers = Vec::new();
    for _ in 0..3 {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        within("what there is room for", peer.write(begun)).await;
        peers.push(peer);
    }
    let writing = peers.into_iter().map(|mut peer| {
        let rest = rest.to_vec();
        tokio::spawn(async move {
            peer.write_until_blocked(&rest, peer::DEADLINE).await;
            peer
        })
    });
    let writing: Vec<_> = writing.collect();
    assert_eq!(within("a message", pull.recv()).await.unwrap().size(), 15 * MIB);
    let usage = budget.usage();
    assert!((1..3).contains(&usage.disconnected), "{usage:?}");
    within_budget(&budget);
    writing.iter().for_each(|task| task.abort());
}
