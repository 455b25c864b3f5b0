//! The books: every message is accounted for, at any moment and end to end.

#[allow(dead_code, reason = "not every test needs all of it")]
mod peer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dragonwire::{
    DropReason, Event, Incoming, OnFull, Outgoing, PubSocket, PullSocket, PushSocket,
    SocketOptions, SocketStats, SubSocket, Version,
};
use peer::{MS, Peer, event, ping, within};

/// Holds both equations, for the socket and for each of its peers.
#[track_caller]
fn balance(stats: &SocketStats) {
    let outgoing = |out: &Outgoing| {
        assert_eq!(out.accepted, out.sent + out.queued + out.dropped.total(), "{out:?}");
    };
    let incoming = |inc: &Incoming| {
        assert_eq!(inc.received, inc.delivered + inc.queued + inc.dropped.total(), "{inc:?}");
    };
    outgoing(&stats.outgoing);
    incoming(&stats.incoming);
    let (mut accepted, mut received) = (0, 0);
    for peer in &stats.peers {
        outgoing(&peer.outgoing);
        incoming(&peer.incoming);
        accepted += peer.outgoing.accepted;
        received += peer.incoming.received;
    }
    assert!(accepted <= stats.outgoing.accepted, "the peers' sum is part of the socket's");
    assert!(received <= stats.incoming.received, "the peers' sum is part of the socket's");
}

/// Samples the books from a thread of its own until it is told to stop; returns how often.
struct Auditor {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Auditor {
    fn new(mut sample: impl FnMut() -> SocketStats + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut samples = 0;
                while !stop.load(Ordering::Relaxed) {
                    balance(&sample());
                    samples += 1;
                }
                samples
            }
        });
        Self { stop, thread }
    }

    #[track_caller]
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let samples = self.thread.join().expect("the books did not balance");
        assert!(samples > 100, "only {samples} samples");
    }
}

fn options() -> SocketOptions {
    SocketOptions::new().reconnect_interval(MS(5))
}

fn payload(i: u64) -> Vec<u8> {
    // from the smallest to those that are chained
    let mut payload = i.to_be_bytes().to_vec();
    payload.resize(8 + (i % 50) as usize * 300, b'.');
    payload
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_and_pull_under_load() {
    for endpoint in ["tcp://127.0.0.1:*", "ipc://*"] {
        let mut pull = PullSocket::new();
        let endpoint = pull.bind(endpoint).await.unwrap();
        let push = PushSocket::with_options(options().send_hwm(100)).unwrap();
        let auditor = Auditor::new({
            let push = push.clone();
            move || push.stats()
        });
        for _ in 0..3 {
            push.connect(&endpoint).await.unwrap();
        }
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let push = push.clone();
                tokio::spawn(async move {
                    for i in 0..2000 {
                        push.send(payload(i)).await.unwrap();
                    }
                })
            })
            .collect();
        for _ in 0..6000 {
            within("a message", pull.recv()).await.unwrap();
            balance(&pull.stats());
        }
        for sender in senders {
            within("the end of a sender", sender).await.unwrap();
        }
        within("the end", push.close()).await;
        auditor.end();
        let (out, inc) = (push.stats().outgoing, pull.stats().incoming);
        assert_eq!((out.accepted, out.sent, out.queued, out.dropped.total()), (6000, 6000, 0, 0));
        assert_eq!(
            (inc.received, inc.delivered, inc.queued, inc.dropped.total()),
            (6000, 6000, 0, 0)
        );
        assert_eq!(out.queued_bytes, 0);
    }
}

/// What PUB counts as accepted for its peers either arrives or is counted as dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pub_and_sub_with_drops() {
    let publisher = PubSocket::with_options(options().send_hwm(10)).unwrap();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let auditor = Auditor::new({
        let publisher = publisher.clone();
        move || publisher.stats()
    });
    let mut receivers = Vec::new();
    for hwm in [1, 10, 1000] {
        let subscriber = SubSocket::with_options(options().recv_hwm(hwm)).unwrap();
        subscriber.subscribe("a").unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        within("the subscription", subscriber.ready()).await.unwrap();
        receivers.push(subscriber);
    }
    within("all", publisher.wait_for_subscribers("a", 3)).await.unwrap();
    let receivers: Vec<_> = receivers
        .into_iter()
        .map(|mut subscriber| {
            tokio::spawn(async move {
                let mut count = 0;
                loop {
                    let message = subscriber.recv().await.unwrap();
                    balance(&subscriber.stats());
                    if message.topic() == b"a end" {
                        let stats = subscriber.stats().incoming;
                        assert_eq!((stats.delivered, stats.queued), (count + 1, 0));
                        return stats;
                    }
                    count += 1;
                }
            })
        })
        .collect();
    let (mut matched, mut queued, mut dropped) = (0, 0, 0);
    for i in 0..5000u64 {
        let topic = if i % 10 == 0 { "b" } else { "a" };
        let delivery = publisher.publish(topic, payload(i)).await.unwrap();
        matched += delivery.matched as u64;
        queued += delivery.queued as u64;
        dropped += delivery.dropped as u64;
    }
    assert_eq!((matched, queued + dropped), (3 * 4500, 3 * 4500));
    // the last word is not to be dropped
    within("room for all", async {
        while publisher.stats().outgoing.queued > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(publisher.publish("a end", "").await.unwrap().queued, 3);
    let mut received = 0;
    for receiver in receivers {
        received += within("the end of a receiver", receiver).await.unwrap().received;
    }
    auditor.end();
    let out = publisher.stats().outgoing;
    assert_eq!(out.accepted, 3 * 4500 + 500 + 3);
    assert_eq!(out.dropped.get(DropReason::NoSubscriber), 500);
    assert_eq!(out.dropped.get(DropReason::PeerHwmMessages), dropped);
    assert_eq!(out.dropped.total(), 500 + dropped);
    assert_eq!((out.sent, received), (queued + 3, queued + 3), "sent is received");
}

/// SUB filters what comes once more; what it filters is counted.
#[tokio::test]
async fn what_sub_filters_is_counted() {
    let mut subscriber = SubSocket::with_options(options()).unwrap();
    let endpoint = subscriber.bind("tcp://127.0.0.1:*").await.unwrap();
    subscriber.subscribe("a").unwrap();
    subscriber.subscribe("b").unwrap();
    let mut peer = Peer::join(&endpoint, Version::V3_0, "PUB").await;
    for i in 0..300 {
        peer.send(&[["a", "b", "c"][i % 3]]).await;
    }
    peer.write(&ping(0, b"seen")).await;
    while peer.frame().await.body != b"\x04PONGseen" {}
    // an odd number, so that an unwanted one is in the receiver's hands already
    for _ in 0..51 {
        within("a message", subscriber.recv()).await.unwrap();
        balance(&subscriber.stats());
    }
    // what has come and is not wanted any more is filtered as well
    subscriber.unsubscribe("b").unwrap();
    let mut delivered = 51;
    while let Ok(message) = subscriber.try_recv() {
        assert_eq!(message, "a".into());
        delivered += 1;
        balance(&subscriber.stats());
    }
    assert_eq!(delivered, 100 + 25);
    let inc = subscriber.stats().incoming;
    assert_eq!((inc.received, inc.delivered, inc.queued), (300, delivered, 0));
    assert_eq!(inc.dropped.iter().collect::<Vec<_>>(), [(DropReason::Filtered, 300 - delivered)]);
    assert_eq!(inc.queued_bytes, 0);
}

/// Endpoints come and go while messages flow; within linger nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_and_pull_through_disconnect_and_unbind() {
    let mut pull = PullSocket::new();
    let steady = pull.bind("ipc://*").await.unwrap();
    let push = PushSocket::with_options(options().send_hwm(50)).unwrap();
    let auditor = Auditor::new({
        let push = push.clone();
        move || push.stats()
    });
    push.connect(&steady).await.unwrap();
    let sender = tokio::spawn({
        let push = push.clone();
        async move {
            for i in 0..6000 {
                push.send(payload(i)).await.unwrap();
            }
        }
    });
    let mut count = 0;
    for _ in 0..10 {
        // one that is connected to and disconnected again
        let passing = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        push.connect(&passing).await.unwrap();
        for _ in 0..250 {
            within("a message", pull.recv()).await.unwrap();
            balance(&pull.stats());
        }
        let disconnected = tokio::spawn({
            let push = push.clone();
            async move { push.disconnect(&passing).await.unwrap() }
        });
        // and one that push listens on
        let own = push.bind("tcp://127.0.0.1:*").await.unwrap();
        pull.connect(&own).await.unwrap();
        for _ in 0..250 {
            within("a message", pull.recv()).await.unwrap();
            balance(&pull.stats());
        }
        let unbound = tokio::spawn({
            let (push, own) = (push.clone(), own.clone());
            async move { push.unbind(&own).await.unwrap() }
        });
        for _ in 0..100 {
            within("a message", pull.recv()).await.unwrap();
            balance(&pull.stats());
        }
        count += 600;
        within("disconnect", disconnected).await.unwrap();
        within("unbind", unbound).await.unwrap();
        pull.disconnect(&own).await.unwrap();
    }
    assert_eq!(count, 6000);
    within("the end of the sender", sender).await.unwrap();
    let report = within("the end", push.close()).await;
    auditor.end();
    assert_eq!(report.discarded, 0);
    let (out, inc) = (push.stats().outgoing, pull.stats().incoming);
    assert_eq!((out.accepted, out.sent, out.dropped.total()), (6000, 6000, 0));
    assert_eq!((inc.received, inc.delivered, inc.dropped.total()), (6000, 6000, 0));
}

/// With a linger of 0 what is queued dies, and is counted: sent is what arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_and_pull_through_disconnect_without_linger() {
    let mut pull = PullSocket::with_options(options().recv_hwm(20)).unwrap();
    let push =
        PushSocket::with_options(options().send_hwm(500).linger(Some(Duration::ZERO))).unwrap();
    let auditor = Auditor::new({
        let push = push.clone();
        move || push.stats()
    });
    for round in 0..5u64 {
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        push.connect(&endpoint).await.unwrap();
        // more than the kernel takes
        for _ in 0..400 {
            within("room", push.send(vec![7; 30_000])).await.unwrap();
        }
        for _ in 0..round * 10 {
            within("a message", pull.recv()).await.unwrap();
        }
        within("disconnect", push.disconnect(&endpoint)).await.unwrap();
        // nobody feeds it now: what is there is all there is
        within("all that was sent", async {
            loop {
                let (out, inc) = (push.stats().outgoing, pull.stats().incoming);
                if out.queued == 0 && inc.delivered == out.sent {
                    break;
                }
                match pull.try_recv() {
                    Ok(_) => balance(&pull.stats()),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        let out = push.stats().outgoing;
        assert_eq!(out.accepted, 400 * (round + 1));
        assert_eq!(out.dropped.total(), out.dropped.get(DropReason::Linger), "{out:?}");
    }
    auditor.end();
    assert!(push.stats().outgoing.dropped.get(DropReason::Linger) > 0);
}

/// A multi-endpoint subscriber changes its endpoints while all of them publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_through_add_remove_and_replace_all() {
    let mut publishers = Vec::new();
    let mut endpoints = Vec::new();
    for wildcard in ["tcp://127.0.0.1:*", "ipc://*", "tcp://127.0.0.1:*"] {
        let publisher = PubSocket::with_options(options().on_full(OnFull::Drop)).unwrap();
        endpoints.push(publisher.bind(wildcard).await.unwrap());
        publishers.push(publisher);
    }
    let mut subscriber = SubSocket::with_options(options()).unwrap();
    subscriber.subscribe("").unwrap();
    subscriber.add(&endpoints[0]).await.unwrap();
    within("ready", subscriber.ready()).await.unwrap();
    let auditor = Auditor::new({
        let handle = subscriber.handle();
        move || handle.stats()
    });
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = publishers
        .iter()
        .map(|publisher| {
            let (publisher, stop) = (publisher.clone(), stop.clone());
            tokio::spawn(async move {
                let mut i = 0;
                while !stop.load(Ordering::Relaxed) {
                    publisher.send(payload(i)).await.unwrap();
                    balance(&publisher.stats());
                    i += 1;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let changer = tokio::spawn({
        let (handle, endpoints) = (subscriber.handle(), endpoints.clone());
        async move {
            for round in 0..30 {
                within("add", handle.add(&endpoints[1])).await.unwrap();
                within("ready", handle.ready()).await.unwrap();
                within("remove", handle.remove(&endpoints[1])).await.unwrap();
                let wanted = [endpoints[0].clone(), endpoints[1 + round % 2].clone()];
                within("replace", handle.replace_all(wanted)).await.unwrap();
                within("ready", handle.ready()).await.unwrap();
            }
        }
    });
    while !changer.is_finished() {
        // the endpoint that stays never pauses for long
        within("a message", subscriber.recv()).await.unwrap();
    }
    within("the end of the changes", changer).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        within("the end of a sender", sender).await.unwrap();
    }
    // what was sent to peers arrives, or died with the connection on the side that closed it
    for publisher in &publishers {
        within("the end", publisher.close()).await;
        balance(&publisher.stats());
        assert_eq!(publisher.stats().outgoing.queued, 0);
    }
    while subscriber.try_recv().is_ok() {}
    auditor.end();
    let sent: u64 = publishers.iter().map(|publisher| publisher.stats().outgoing.sent).sum();
    let inc = subscriber.stats().incoming;
    assert_eq!(inc.queued, 0);
    assert_eq!((inc.received, inc.delivered), (sent, sent), "no process was killed");
}

#[tokio::test]
async fn close_reports_what_was_flushed_and_discarded() {
    // nobody there, no time
    let push = PushSocket::with_options(options().linger(Some(Duration::ZERO))).unwrap();
    push.connect("ipc://@dragonwire-nobody").await.unwrap();
    for i in 0..10 {
        push.send(payload(i)).await.unwrap();
    }
    let report = within("the end", push.close()).await;
    assert_eq!((report.flushed, report.discarded, report.unread), (0, 10, 0));
    let stats = push.stats();
    balance(&stats);
    assert_eq!(stats.outgoing.dropped.iter().collect::<Vec<_>>(), [(DropReason::Linger, 10)]);

    // nobody there, some time
    let push = PushSocket::with_options(options().linger(Some(MS(100)))).unwrap();
    push.connect("ipc://@dragonwire-nobody").await.unwrap();
    push.send("x").await.unwrap();
    let begun = std::time::Instant::now();
    let report = within("the end", push.close()).await;
    assert_eq!((report.flushed, report.discarded), (0, 1));
    assert!(begun.elapsed() >= MS(100));

    // somebody comes in time
    let endpoint = format!("ipc://@dragonwire-late-{}", std::process::id());
    let push = PushSocket::with_options(options()).unwrap();
    push.connect(endpoint.as_str()).await.unwrap();
    for i in 0..10 {
        push.send(payload(i)).await.unwrap();
    }
    let mut pull = PullSocket::new();
    let (report, ()) = tokio::join!(within("the end", push.close()), async {
        pull.bind(endpoint.as_str()).await.unwrap();
        for _ in 0..10 {
            within("a message", pull.recv()).await.unwrap();
        }
    });
    assert_eq!((report.flushed, report.discarded), (10, 0));
    assert_eq!(push.stats().outgoing.sent, 10);
}

/// A peer that takes some and then no more: what the kernel has is sent, the rest is discarded.
#[tokio::test]
async fn close_without_linger_of_a_stalled_peer() {
    for linger in [0, 100] {
        let options = options().linger(Some(MS(linger))).send_hwm(500).send_buffer(4096);
        let push = PushSocket::with_options(options).unwrap();
        let mut monitor = push.monitor();
        let endpoint = push.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut peer = Peer::connect_narrow(&endpoint).await;
        peer.shake(Version::V3_1, "PULL").await;
        event("a handshake", &mut monitor, |event| {
            matches!(event, Event::HandshakeSucceeded { .. }).then_some(())
        })
        .await;
        for _ in 0..500 {
            push.send(vec![7; 20_000]).await.unwrap();
        }
        let before = push.stats().outgoing;
        let report = within("the end", push.close()).await;
        let out = push.stats().outgoing;
        balance(&push.stats());
        assert_eq!((out.accepted, out.queued), (500, 0));
        assert_eq!(report.flushed, out.sent - before.sent);
        assert_eq!(report.discarded, out.dropped.total());
        assert!(report.discarded > 0);
        assert_eq!(out.dropped.total(), out.dropped.get(DropReason::Linger), "{out:?}");
        let discarded = event("the end", &mut monitor, |event| match event {
            Event::Disconnected { discarded, .. } => Some(discarded),
            _ => None,
        })
        .await;
        assert_eq!(discarded, report.discarded);
        // and what was sent is what arrives
        let rest = peer.read_to_end().await;
        assert_eq!(rest.len() / 20_009, out.sent as usize);
    }
}

/// A subscriber that goes takes its queue with it.
#[tokio::test]
async fn what_was_queued_for_a_peer_that_goes_is_counted() {
    let publisher = PubSocket::with_options(options().send_buffer(4096)).unwrap();
    let mut monitor = publisher.monitor();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut peer = Peer::connect_narrow(&endpoint).await;
    peer.shake(Version::V3_1, "SUB").await;
    peer.subscribe("").await;
    within("the subscription", publisher.wait_for_subscribers("", 1)).await.unwrap();
    for _ in 0..500 {
        publisher.send(vec![7; 20_000]).await.unwrap();
        balance(&publisher.stats());
    }
    drop(peer);
    let discarded = event("the end", &mut monitor, |event| match event {
        Event::Disconnected { discarded, .. } => Some(discarded),
        _ => None,
    })
    .await;
    let stats = publisher.stats();
    balance(&stats);
    assert!(discarded > 0 && stats.peers.is_empty());
    assert_eq!(stats.outgoing.queued, 0);
    assert_eq!(
        stats.outgoing.dropped.iter().collect::<Vec<_>>(),
        [(DropReason::PeerGone, discarded)]
    );
}

/// What had come in and was not received when the socket was closed.
#[tokio::test]
async fn close_reports_what_was_not_received() {
    for received in [0, 1, 10] {
        let mut pull = PullSocket::with_options(options()).unwrap();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut peer = Peer::join(&endpoint, Version::V3_1, "PUSH").await;
        for i in 0..10 {
            peer.send(&[payload(i)]).await;
        }
        peer.write(&ping(0, b"seen")).await;
        assert_eq!(peer.command().await, b"\x04PONGseen");
        for _ in 0..received {
            pull.try_recv().unwrap();
            balance(&pull.stats());
        }
        drop(peer);
        let report = within("the end", pull.close()).await;
        assert_eq!(report.unread, 10 - received, "{received} of 10 were received");
        balance(&pull.stats());
        pull.try_recv().unwrap_err();
        let stats = pull.stats();
        balance(&stats);
        let inc = stats.incoming;
        assert_eq!((inc.received, inc.delivered, inc.queued), (10, received, 0), "{inc:?}");
        assert_eq!(inc.dropped.get(DropReason::Closed), 10 - received);
    }
}

/// What still comes in while closing is counted too.
#[tokio::test]
async fn both_sides_close_in_the_middle() {
    for push_first in [true, false] {
        let mut pull = PullSocket::with_options(options().linger(Some(MS(200)))).unwrap();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let push = PushSocket::with_options(options().linger(Some(MS(200)))).unwrap();
        push.connect(&endpoint).await.unwrap();
        for i in 0..1000 {
            within("room", push.send(payload(i))).await.unwrap();
            if i % 4 == 0 {
                within("a message", pull.recv()).await.unwrap();
            }
        }
        let reports = if push_first {
            within("the end", push.close()).await;
            within("the end", pull.close()).await
        } else {
            let report = within("the end", pull.close()).await;
            within("the end", push.close()).await;
            report
        };
        while pull.try_recv().is_ok() {}
        let (out, inc) = (push.stats(), pull.stats());
        balance(&out);
        balance(&inc);
        assert_eq!((out.outgoing.accepted, out.outgoing.queued), (1000, 0));
        assert_eq!(inc.incoming.delivered, 250);
        assert_eq!(inc.incoming.queued, 0);
        assert!(reports.unread <= inc.incoming.dropped.get(DropReason::Closed));
        assert_eq!(out.outgoing.sent, inc.incoming.received, "sent is received: {out:?} {inc:?}");
    }
}
