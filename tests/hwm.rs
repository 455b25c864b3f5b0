//! High-water marks: exact in messages and in octets, in both directions, and what happens at them.

#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use std::time::Duration;

use dragonwire::{
    Delivery, DropReason, Endpoint, Event, Message, OnFull, PeerInfo, PubSocket, PullSocket,
    PushSocket, SocketOptions, SubSocket, TrySendError, Version, XPubSocket, XPubVerbose,
};
use peer::{Listener, MS, Peer, encode, event, ping, subscription, within};
use tokio::time::{MissedTickBehavior, timeout};

/// An endpoint where nobody listens yet.
fn nowhere(name: &str) -> Endpoint {
    format!("ipc://@dragonwire-hwm-{name}-{}", std::process::id()).parse().unwrap()
}

fn options() -> SocketOptions {
    SocketOptions::new().reconnect_interval(MS(5)).linger(Some(Duration::ZERO))
}

fn numbered(i: usize, size: usize) -> Vec<u8> {
    let mut frame = (i as u64).to_be_bytes().to_vec();
    frame.resize(size.max(8), b'.');
    frame
}

fn number(frame: &[u8]) -> usize {
    u64::from_be_bytes(frame[..8].try_into().unwrap()) as usize
}

#[track_caller]
fn full(result: Result<(), TrySendError>) -> Message {
    match result {
        Err(TrySendError::Full(message)) => message,
        other => panic!("{other:?} instead of Full"),
    }
}

/// Long enough for whatever would happen to have happened.
const A_WHILE: Duration = Duration::from_millis(100);

#[tokio::test]
async fn push_queues_exactly_the_mark_before_any_peer_is_there() {
    for hwm in [1, 2, 3, 10, 1000] {
        let push = PushSocket::with_options(options().send_hwm(hwm)).unwrap();
        let endpoint = nowhere(&format!("before-{hwm}"));
        push.connect(&endpoint).await.unwrap();
        for i in 0..hwm {
            push.try_send(numbered(i, 8)).unwrap();
        }
        assert_eq!(full(push.try_send(["back", "again"])), ["back", "again"].into());
        let stats = push.stats().outgoing;
        assert_eq!((stats.accepted, stats.queued, stats.sent), (hwm as u64, hwm as u64, 0));
        assert_eq!(stats.queued_bytes, hwm as u64 * 10);
        // a second endpoint is another queue
        push.connect(nowhere("second")).await.unwrap();
        for _ in 0..hwm {
            push.try_send("other").unwrap();
        }
        full(push.try_send("too many"));
        push.disconnect(nowhere("second")).await.unwrap();

        let mut pull = PullSocket::new();
        pull.bind(&endpoint).await.unwrap();
        for i in 0..hwm {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(number(received.topic()), i);
        }
    }
}

#[tokio::test]
async fn without_an_endpoint_push_has_no_room() {
    let push = PushSocket::with_options(options()).unwrap();
    assert_eq!(full(push.try_send("x")), "x".into());
    push.bind("tcp://127.0.0.1:*").await.unwrap();
    full(push.try_send("bound is no peer"));
    assert_eq!(push.stats().outgoing.accepted, 0);
}

#[tokio::test]
async fn immediate_queues_for_connections_only() {
    let push = PushSocket::with_options(options().immediate(true)).unwrap();
    let mut monitor = push.monitor();
    let listener = Listener::tcp().await;
    push.connect(listener.endpoint()).await.unwrap();
    assert_eq!(full(push.try_send("x")), "x".into());
    let mut peer = listener.accept().await;
    full(push.try_send("not before the handshake"));
    peer.shake(Version::V3_1, "PULL").await;
    event("a handshake", &mut monitor, |event| {
        matches!(event, Event::HandshakeSucceeded { .. }).then_some(())
    })
    .await;
    push.try_send("y").unwrap();
    assert_eq!(peer.message().await, [b"y"]);
    drop(peer);
    event("the end", &mut monitor, |event| {
        matches!(event, Event::Disconnected { .. }).then_some(())
    })
    .await;
    full(push.try_send("nor after the connection"));
    // who waits goes on when there is one again
    let (sent, ()) = tokio::join!(within("a peer", push.send("z")), async {
        let mut peer = listener.accept().await;
        peer.shake(Version::V3_1, "PULL").await;
        assert_eq!(peer.message().await, [b"z"]);
    });
    sent.unwrap();
}

#[tokio::test]
async fn send_waits_at_the_mark_and_goes_on() {
    let push = PushSocket::with_options(options().send_hwm(10)).unwrap();
    let endpoint = nowhere("waits");
    push.connect(&endpoint).await.unwrap();
    for i in 0..10 {
        push.send(numbered(i, 8)).await.unwrap();
    }
    assert!(timeout(A_WHILE, push.send("cancelled, so not sent")).await.is_err());
    let waiting = tokio::spawn({
        let push = push.clone();
        async move {
            for i in 10..1000 {
                push.send(numbered(i, 8)).await.unwrap();
            }
        }
    });
    assert!(timeout(A_WHILE, push.send("nor this")).await.is_err());
    assert_eq!(push.stats().outgoing.accepted, 10);
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    for i in 0..1000 {
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(number(received.topic()), i);
    }
    within("the end of the sender", waiting).await.unwrap();
}

#[tokio::test]
async fn close_ends_waiting_and_gives_the_message_back() {
    let push = PushSocket::with_options(options().send_hwm(1)).unwrap();
    push.connect(nowhere("closed")).await.unwrap();
    push.send("first").await.unwrap();
    let waiting = push.send("second");
    let (sent, _) = tokio::join!(within("the error", waiting), async {
        tokio::task::yield_now().await;
        within("the end", push.close()).await
    });
    assert_eq!(sent.unwrap_err().0, "second".into());
    assert!(matches!(push.try_send("x"), Err(TrySendError::Closed(_))));
}

#[tokio::test]
async fn push_holds_exactly_the_mark_for_a_stalled_peer() {
    for size in [8, 1000, 20_000] {
        let push = PushSocket::with_options(options().send_hwm(50).send_buffer(4096)).unwrap();
        let endpoint = push.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut peer = Peer::connect_narrow(&endpoint).await;
        let mut monitor = push.monitor();
        peer.shake(Version::V3_1, "PULL").await;
        event("a handshake", &mut monitor, |event| {
            matches!(event, Event::HandshakeSucceeded { .. }).then_some(())
        })
        .await;
        let mut sent = 0;
        // until it takes no more for good
        while timeout(A_WHILE, push.send(numbered(sent, size))).await.is_ok() {
            sent += 1;
            assert!(sent < 1_000_000, "the kernel takes everything");
        }
        let stats = push.stats().outgoing;
        assert_eq!(stats.queued, 50, "size {size}");
        assert_eq!((stats.accepted, stats.sent), (sent as u64, sent as u64 - 50));
        for i in 0..sent {
            assert_eq!(peer.message().await, [numbered(i, size)]);
        }
        let waiting = push.send("room again");
        within("room", waiting).await.unwrap();
        assert_eq!(peer.message().await, [b"room again"]);
        let stats = push.stats().outgoing;
        assert_eq!((stats.queued, stats.queued_bytes), (0, 0));
    }
}

/// A publisher with a subscriber that does not read, and one that does.
struct Publishing {
    publisher: PubSocket,
    stalled: Peer,
    good: SubSocket,
}

impl Publishing {
    async fn new(options: SocketOptions) -> Self {
        let publisher = PubSocket::with_options(options.send_buffer(4096)).unwrap();
        let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut stalled = Peer::connect_narrow(&endpoint).await;
        stalled.shake(Version::V3_1, "SUB").await;
        stalled.subscribe("").await;
        let good = SubSocket::new();
        good.subscribe("").unwrap();
        good.connect(&endpoint).await.unwrap();
        within("the subscription", good.ready()).await.unwrap();
        within("both", publisher.wait_for_subscribers("", 2)).await.unwrap();
        Self { publisher, stalled, good }
    }

    async fn good_gets(&mut self, expected: impl IntoIterator<Item = usize>) {
        for i in expected {
            let received = within("a message", self.good.recv()).await.unwrap();
            assert_eq!(number(received.topic()), i);
        }
    }
}

#[tokio::test]
async fn pub_at_the_mark_drops_for_that_peer_only_and_counts() {
    for (options, reason, at_the_mark) in [
        (options().send_hwm(100), DropReason::PeerHwmMessages, 100),
        (options().send_hwm(0).send_hwm_bytes(100 * 1009), DropReason::PeerHwmBytes, 100),
    ] {
        let mut scene = Publishing::new(options).await;
        let mut monitor = scene.publisher.monitor();
        let mut sum = Delivery::default();
        let mut taken = Vec::new();
        for i in 0..5000 {
            let delivery = scene.publisher.send(numbered(i, 1000)).await.unwrap();
            assert_eq!(delivery.matched, 2);
            assert_eq!(delivery.queued + delivery.dropped, 2);
            if delivery.dropped == 0 {
                taken.push(i);
            }
            sum += delivery;
            if i % 20 == 19 {
                scene.good_gets(i - 19..=i).await;
            }
        }
        assert_eq!((sum.matched, sum.queued), (10_000, 5000 + taken.len() as u32));
        assert!(taken.len() < 4000, "{} were taken: it was not stalled", taken.len());
        let stats = scene.publisher.stats();
        assert_eq!(stats.outgoing.accepted, 10_000);
        let dropped: Vec<_> = stats.outgoing.dropped.iter().collect();
        assert_eq!(dropped, [(reason, sum.dropped as u64)]);
        let peer = stats.peers.iter().find(|peer| {
            peer.peer.as_ref().is_some_and(|info| info.remote == scene.stalled.address)
        });
        let peer = peer.expect("the stalled peer").outgoing;
        assert_eq!((peer.accepted, peer.queued), (5000, at_the_mark), "{reason}");
        assert_eq!(peer.dropped.get(reason), sum.dropped as u64);
        assert_eq!(peer.accepted, peer.sent + peer.queued + peer.dropped.total());
        let (who, why) = event("drops", &mut monitor, |event| match event {
            Event::Dropping { peer, reason, .. } => Some((peer.unwrap().remote, reason)),
            _ => None,
        })
        .await;
        assert_eq!((who, why), (scene.stalled.address, reason));
        while let Some(event) = monitor.try_recv() {
            assert!(!matches!(event, Event::Dropping { .. }), "said once");
        }
        // what was taken arrives, and then it is as good as any
        for i in taken {
            assert_eq!(scene.stalled.message().await, [numbered(i, 1000)]);
        }
        let delivery = scene.publisher.send(numbered(5000, 8)).await.unwrap();
        assert_eq!((delivery.queued, delivery.dropped), (2, 0));
        assert_eq!(scene.stalled.message().await, [numbered(5000, 8)]);
        scene.good_gets([5000]).await;
    }
}

#[tokio::test]
async fn delivery_tells_how_many_matched() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut peers = Vec::new();
    for topic in ["a", "ab", "b"] {
        let mut peer = Peer::join(&endpoint, Version::V3_1, "SUB").await;
        peer.subscribe(topic).await;
        peers.push(peer);
    }
    within("all", publisher.wait_for_subscribers("ab", 2)).await.unwrap();
    within("all", publisher.wait_for_subscribers("b", 1)).await.unwrap();
    for (topic, matched) in [("abc", 2), ("a", 1), ("b", 1), ("c", 0), ("", 0)] {
        let delivery = publisher.send(topic).await.unwrap();
        assert_eq!((delivery.matched, delivery.queued, delivery.dropped), (matched, matched, 0));
    }
    let stats = publisher.stats().outgoing;
    assert_eq!(stats.accepted, 2 + 1 + 1 + 1 + 1);
    assert_eq!(stats.dropped.get(DropReason::NoSubscriber), 2);
}

#[tokio::test]
async fn with_wait_the_publisher_waits_and_nothing_is_lost() {
    let mut scene = Publishing::new(options().send_hwm(50).on_full(OnFull::Wait)).await;
    let mut sent = 0;
    loop {
        match timeout(A_WHILE, scene.publisher.send(numbered(sent, 1000))).await {
            Ok(delivery) => {
                let delivery = delivery.unwrap();
                assert_eq!((delivery.matched, delivery.queued, delivery.dropped), (2, 2, 0));
            }
            Err(_) => break,
        }
        scene.good_gets([sent]).await;
        sent += 1;
        assert!(sent < 100_000, "it was not stalled");
    }
    let refused = scene.publisher.try_send(numbered(sent, 1000));
    let Err(TrySendError::Full(message)) = refused else { panic!("{refused:?}") };
    assert_eq!(number(message.topic()), sent);
    let stats = scene.publisher.stats().outgoing;
    assert_eq!((stats.accepted, stats.queued), (2 * sent as u64, 50), "all or none take it");
    assert_eq!(stats.dropped.total(), 0);

    let waiting = tokio::spawn({
        let publisher = scene.publisher.clone();
        async move {
            for i in sent..sent + 200 {
                publisher.send(numbered(i, 1000)).await.unwrap();
            }
        }
    });
    for i in 0..sent + 200 {
        assert_eq!(scene.stalled.message().await, [numbered(i, 1000)]);
    }
    within("the end of the sender", waiting).await.unwrap();
    scene.good_gets(sent..sent + 200).await;
    assert_eq!(scene.publisher.stats().outgoing.dropped.total(), 0);
}

/// Fills the queue of the stalled subscriber, until the publisher waits.
async fn fill(scene: &mut Publishing) -> usize {
    let mut sent = 0;
    while timeout(A_WHILE, scene.publisher.send(numbered(sent, 1000))).await.is_ok() {
        scene.good_gets([sent]).await;
        sent += 1;
        assert!(sent < 100_000, "it was not stalled");
    }
    sent
}

#[tokio::test]
async fn a_waiting_publisher_goes_on_when_the_stalled_subscriber_goes() {
    let mut scene = Publishing::new(options().send_hwm(50).on_full(OnFull::Wait)).await;
    let sent = fill(&mut scene).await;
    let Publishing { publisher, stalled, good } = &mut scene;
    let waiting = within("the others' turn", publisher.send(numbered(sent, 8)));
    let gone = async {
        tokio::task::yield_now().await;
        stalled.hang_up();
    };
    let (delivery, ()) = tokio::join!(waiting, gone);
    assert_eq!(delivery.unwrap().matched, 1);
    let received = within("a message", good.recv()).await.unwrap();
    assert_eq!(number(received.topic()), sent);
}

#[tokio::test]
async fn a_waiting_publisher_goes_on_when_the_stalled_subscriber_cancels() {
    let mut scene = Publishing::new(options().send_hwm(50).on_full(OnFull::Wait)).await;
    let sent = fill(&mut scene).await;
    let Publishing { publisher, stalled, good } = &mut scene;
    let waiting = within("the others' turn", publisher.send(numbered(sent, 8)));
    let cancelled = async {
        tokio::task::yield_now().await;
        stalled.write(&subscription(Version::V3_1, false, "")).await;
    };
    let (delivery, ()) = tokio::join!(waiting, cancelled);
    assert_eq!(delivery.unwrap().matched, 1);
    let received = within("a message", good.recv()).await.unwrap();
    assert_eq!(number(received.topic()), sent);
}

#[tokio::test]
async fn a_waiting_publisher_goes_on_when_the_endpoint_is_unbound() {
    let mut scene = Publishing::new(options().send_hwm(50).on_full(OnFull::Wait)).await;
    let sent = fill(&mut scene).await;
    let publisher = &scene.publisher;
    let endpoint = publisher.endpoints()[0].endpoint.clone();
    let waiting = within("nobody left", publisher.send(numbered(sent, 8)));
    let (delivery, ()) = tokio::join!(waiting, async {
        tokio::task::yield_now().await;
        within("the end", publisher.unbind(&endpoint)).await.unwrap();
    });
    assert_eq!(delivery.unwrap().matched, 0);
}

#[tokio::test]
async fn the_send_mark_in_octets() {
    let push = PushSocket::with_options(options().send_hwm(0).send_hwm_bytes(1020)).unwrap();
    let endpoint = nowhere("octets");
    push.connect(&endpoint).await.unwrap();
    for i in 0..10 {
        push.try_send(numbered(i, 100)).unwrap();
    }
    assert_eq!(push.stats().outgoing.queued_bytes, 1020);
    full(push.try_send(""));
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    for i in 0..10 {
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(number(received.topic()), i);
    }

    // a larger one than the mark is taken when the queue is empty, and alone
    let push = PushSocket::with_options(options().send_hwm_bytes(1020)).unwrap();
    let endpoint = nowhere("larger");
    push.connect(&endpoint).await.unwrap();
    push.try_send(vec![7; 5000]).unwrap();
    full(push.try_send(""));
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    within("room", push.send("next")).await.unwrap();
    assert_eq!(within("a message", pull.recv()).await.unwrap().size(), 5000);
    assert_eq!(within("a message", pull.recv()).await.unwrap(), "next".into());

    // what fits is exact with more than one frame and the long form of a header
    let push = PushSocket::with_options(options().send_hwm_bytes(9 + 300 + 2 + 1 + 2)).unwrap();
    push.connect(nowhere("exact")).await.unwrap();
    push.try_send(Message::pair(vec![7; 300], "x")).unwrap();
    full(push.try_send("x"));
    push.try_send("").unwrap();
    assert_eq!(push.stats().outgoing.queued_bytes, 9 + 300 + 2 + 1 + 2);
}

/// Floods a PULL socket until it takes no more for a while; returns how many messages it was.
async fn flood(
    pull: &PullSocket,
    peer: &mut Peer,
    size: usize,
    bound: impl Fn(&PullSocket),
) -> usize {
    for i in 0..100_000 {
        if timeout(A_WHILE, peer.send(&[numbered(i, size)])).await.is_err() {
            return i;
        }
        bound(pull);
    }
    panic!("the flood was taken: {:?}", pull.stats().incoming);
}

#[tokio::test]
async fn the_receive_mark_bounds_what_is_taken_of_a_flood() {
    for hwm in [1, 2, 7, 1000] {
        let options = options().recv_hwm(hwm).recv_hwm_bytes(0).recv_buffer(4096);
        let mut pull = PullSocket::with_options(options).unwrap();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        let bound = |pull: &PullSocket| {
            let incoming = pull.stats().incoming;
            assert!(incoming.queued <= hwm as u64, "{} at a mark of {hwm}", incoming.queued);
        };
        let sent = flood(&pull, &mut peer, 1000, bound).await;
        assert_eq!(pull.stats().incoming.queued, hwm as u64, "it is made use of");
        for i in 0..sent {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(number(received.topic()), i);
            bound(&pull);
        }
    }
}

#[tokio::test]
async fn the_receive_mark_in_octets_bounds_what_is_taken_of_a_flood() {
    for (mark, size) in [(10_000, 1000), (100_000, 20_000), (1000, 5000), (50_000, 8)] {
        let options = options().recv_hwm(0).recv_hwm_bytes(mark);
        let mut pull = PullSocket::with_options(options).unwrap();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        let count = ((4 << 20) / size).min(20_000);
        let mut octets = Vec::new();
        for i in 0..count {
            octets.extend(encode(Version::V3_1, &[numbered(i, size)]));
        }
        // in large pieces, so that much is there at once
        let flood = tokio::spawn(async move {
            peer.write(&octets).await;
            peer
        });
        // one message beyond it, for one of any size is always taken
        let most = (mark + size + 9) as u64;
        let mut highest = 0;
        let mut look = |pull: &PullSocket| {
            highest = highest.max(pull.stats().incoming.queued_bytes);
        };
        let mut pace = tokio::time::interval(MS(1));
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..100 {
            pace.tick().await;
            look(&pull);
        }
        for i in 0..count {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(number(received.topic()), i);
            look(&pull);
        }
        assert!(highest > mark as u64 / 2, "{highest} of {mark}: it is made use of");
        assert!(highest <= most, "{highest} octets at a mark of {mark}, messages of {size}");
        drop(within("the end of the flood", flood).await.unwrap());
    }
}

/// A full queue of one peer does not hold up another.
#[tokio::test]
async fn the_receive_mark_is_each_peers_own() {
    let mut pull = PullSocket::with_options(options().recv_hwm(5).recv_buffer(4096)).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut flooding = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    let sent = flood(&pull, &mut flooding, 1000, |_| ()).await;
    let mut modest = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    modest.send(&["modest"]).await;
    modest.write(&ping(0, b"seen")).await;
    assert_eq!(modest.command().await, b"\x04PONGseen");
    // it has its turn after at most one run of the other's
    let mut before = 0;
    while within("a message", pull.recv()).await.unwrap() != "modest".into() {
        before += 1;
    }
    assert!(before <= 5, "{before} messages of the other peer first");
    for i in before..sent {
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(number(received.topic()), i);
    }
}

#[tokio::test]
async fn conflate_sends_the_newest() {
    let push = PushSocket::with_options(options().conflate(true)).unwrap();
    let endpoint = nowhere("conflate");
    push.connect(&endpoint).await.unwrap();
    for i in 0..100 {
        push.try_send(Message::pair(numbered(i, 8), "whole")).unwrap();
    }
    let stats = push.stats().outgoing;
    assert_eq!((stats.accepted, stats.queued), (100, 1));
    assert_eq!(stats.dropped.iter().collect::<Vec<_>>(), [(DropReason::Conflated, 99)]);
    assert_eq!(stats.queued_bytes, 10 + 7);
    let mut pull = PullSocket::new();
    pull.bind(&endpoint).await.unwrap();
    let received = within("a message", pull.recv()).await.unwrap();
    assert_eq!((number(received.topic()), received.frame(1)), (99, Some(&b"whole"[..])));
    push.send("next").await.unwrap();
    assert_eq!(within("a message", pull.recv()).await.unwrap(), "next".into());
}

#[tokio::test]
async fn conflate_receives_the_newest() {
    let mut pull = PullSocket::with_options(options().conflate(true)).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
    for i in 0..3000 {
        peer.send(&[&numbered(i, 8)[..], b"whole"]).await;
    }
    peer.write(&ping(0, b"seen")).await;
    assert_eq!(peer.command().await, b"\x04PONGseen");
    let received = pull.try_recv().unwrap();
    assert_eq!((number(received.topic()), received.frame(1)), (2999, Some(&b"whole"[..])));
    pull.try_recv().unwrap_err();
    let stats = pull.stats().incoming;
    assert_eq!((stats.received, stats.delivered, stats.queued), (3000, 1, 0));
    assert_eq!(stats.dropped.iter().collect::<Vec<_>>(), [(DropReason::Conflated, 2999)]);
}

/// One message may be half-way to the kernel; besides it only the newest is kept.
#[tokio::test]
async fn conflate_keeps_the_newest_for_a_stalled_peer() {
    for (size, messages) in [(10_000, 1000), (200, 20_000)] {
        let mut scene = Publishing::new(options().conflate(true)).await;
        for i in 0..messages {
            let delivery = scene.publisher.send(numbered(i, size)).await.unwrap();
            assert_eq!(delivery.queued, 2);
            tokio::task::yield_now().await;
        }
        let stats = scene.publisher.stats();
        let theirs = |info: &PeerInfo| info.remote == scene.stalled.address;
        let stalled = stats.peers.iter().find(|peer| peer.peer.as_deref().is_some_and(theirs));
        let out = stalled.expect("the stalled peer").outgoing;
        assert_eq!(out.accepted, messages as u64);
        assert!(out.queued <= 2, "{} messages, {} octets are queued", out.queued, out.queued_bytes);
        assert_eq!(out.accepted, out.sent + out.queued + out.dropped.get(DropReason::Conflated));
        let (mut last, mut count) = (0, 0);
        while last < messages - 1 {
            let message = scene.stalled.message().await;
            assert_eq!(message[0].len(), size);
            assert!(count == 0 || number(&message[0]) > last);
            last = number(&message[0]);
            count += 1;
        }
        assert_eq!(count, out.sent + out.queued);
    }
}

/// Octets of a header and a body, as they count for the marks.
#[tokio::test]
async fn queued_octets_are_those_on_the_wire() {
    let push = PushSocket::with_options(options()).unwrap();
    push.connect(nowhere("wire")).await.unwrap();
    let mut sum = 0;
    for frames in [&[&[7; 0][..]][..], &[&[7; 255]], &[&[7; 256]], &[&[7; 20_000], &[7; 1]]] {
        push.try_send(Message::from_frames(frames.iter().map(|frame| frame.to_vec()))).unwrap();
        sum += encode(Version::V3_1, frames).len() as u64;
        assert_eq!(push.stats().outgoing.queued_bytes, sum);
    }
}

#[tokio::test]
async fn subscriptions_wait_while_the_application_does_not_receive() {
    for version in [Version::V3_1, Version::V3_0] {
        let options = SocketOptions::new().recv_hwm(10).xpub_verbose(XPubVerbose::All);
        let mut publisher = XPubSocket::with_options(options).unwrap();
        let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut peer = Peer::join(&endpoint, version, "SUB").await;
        let octets: Vec<u8> = (0..20_000)
            .flat_map(|i| subscription(version, i % 2 == 0, &format!("topic-{}", i / 2)))
            .collect();
        let writing = tokio::spawn(async move {
            peer.write(&octets).await;
            peer
        });
        for i in 0..20_000 {
            let message = within("a subscription", publisher.recv()).await.unwrap();
            let expected =
                [&[u8::from(i % 2 == 0)], format!("topic-{}", i / 2).as_bytes()].concat();
            assert_eq!(message.frame(0).unwrap(), expected);
            if i % 1000 == 0 {
                let queued = publisher.stats().incoming.queued;
                assert!(queued <= 20, "{queued} of {version:?}");
            }
        }
        within("the peer", writing).await.unwrap();
    }
}
