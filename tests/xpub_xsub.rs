//! XPUB and XSUB: subscriptions as messages, in every mode, and as a chain.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use deadline::{event, within};
use dragonwire::{
    DropReason, Endpoint, Error, Event, Message, OnFull, PubSocket, SocketOptions, SubSocket,
    TrySendError, XPubSocket, XPubVerbose, XSubSocket,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::yield_now;

fn on(topic: &str) -> Message {
    [&[1], topic.as_bytes()].concat().into()
}

fn off(topic: &str) -> Message {
    [&[0], topic.as_bytes()].concat().into()
}

async fn bound(options: SocketOptions) -> (XPubSocket, Endpoint) {
    let publisher = XPubSocket::with_options(options).unwrap();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    (publisher, endpoint)
}

/// A subscriber whose connection is up.
async fn sub(publisher: &XPubSocket, endpoint: &Endpoint) -> SubSocket {
    let mut monitor = publisher.monitor();
    let subscriber = SubSocket::new();
    subscriber.connect(endpoint).await.unwrap();
    event(&mut monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
    subscriber
}

async fn next(publisher: &mut XPubSocket) -> Message {
    within(publisher.recv()).await.unwrap()
}

#[tokio::test]
async fn the_first_subscription_and_the_last_cancellation_are_heard() {
    let (mut publisher, endpoint) = bound(SocketOptions::new()).await;
    let one = sub(&publisher, &endpoint).await;
    let two = sub(&publisher, &endpoint).await;
    one.subscribe("a").unwrap();
    assert_eq!(next(&mut publisher).await, on("a"));
    // nothing is heard of the same again, from the same peer or another
    one.subscribe("a").unwrap();
    within(one.ready()).await.unwrap();
    two.subscribe("a").unwrap();
    within(two.ready()).await.unwrap();
    one.subscribe("b").unwrap();
    assert_eq!(next(&mut publisher).await, on("b"));
    // nor of a cancellation while another peer has it
    one.unsubscribe("a").unwrap();
    one.unsubscribe("a").unwrap();
    within(one.ready()).await.unwrap();
    one.unsubscribe("b").unwrap();
    assert_eq!(next(&mut publisher).await, off("b"));
    two.unsubscribe("a").unwrap();
    assert_eq!(next(&mut publisher).await, off("a"));
    two.subscribe("").unwrap();
    assert_eq!(next(&mut publisher).await, on(""));
    assert!(publisher.try_recv().is_err());
}

#[tokio::test]
async fn verbose_hears_of_each_subscription_and_verboser_of_each_cancellation() {
    for verbose in [XPubVerbose::Subscriptions, XPubVerbose::All] {
        let (mut publisher, endpoint) = bound(SocketOptions::new().xpub_verbose(verbose)).await;
        let one = sub(&publisher, &endpoint).await;
        let two = sub(&publisher, &endpoint).await;
        for subscriber in [&one, &two] {
            subscriber.subscribe("a").unwrap();
            assert_eq!(next(&mut publisher).await, on("a"));
        }
        one.subscribe("a").unwrap();
        assert_eq!(next(&mut publisher).await, on("a"));
        // of its own two the subscriber tells the last only
        one.unsubscribe("a").unwrap();
        one.unsubscribe("a").unwrap();
        within(one.ready()).await.unwrap();
        if verbose == XPubVerbose::All {
            assert_eq!(next(&mut publisher).await, off("a"));
        }
        assert!(publisher.try_recv().is_err());
        two.unsubscribe("a").unwrap();
        assert_eq!(next(&mut publisher).await, off("a"));
        assert_eq!(publisher.publish("a", "").await.unwrap().matched, 0);
    }
}

#[tokio::test]
async fn a_subscriber_that_goes_is_unsubscribed() {
    for verbose in [XPubVerbose::Unique, XPubVerbose::Subscriptions, XPubVerbose::All] {
        let (mut publisher, endpoint) = bound(SocketOptions::new().xpub_verbose(verbose)).await;
        let mut monitor = publisher.monitor();
        let one = sub(&publisher, &endpoint).await;
        let two = sub(&publisher, &endpoint).await;
        for (subscriber, topic) in [(&one, "a"), (&two, "b"), (&one, "both")] {
            subscriber.subscribe(topic).unwrap();
            assert_eq!(next(&mut publisher).await, on(topic));
        }
        two.subscribe("both").unwrap();
        if verbose != XPubVerbose::Unique {
            assert_eq!(next(&mut publisher).await, on("both"));
        }
        within(two.ready()).await.unwrap();
        drop(one);
        event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
        let mut heard = vec![next(&mut publisher).await];
        if verbose == XPubVerbose::All {
            heard.push(next(&mut publisher).await);
            heard.sort_by_key(Message::size);
            assert_eq!(heard, [off("a"), off("both")]);
        } else {
            assert_eq!(heard, [off("a")]);
        }
        assert!(publisher.try_recv().is_err());
        assert_eq!(publisher.publish("a", "").await.unwrap().matched, 0);
        assert_eq!(publisher.publish("both", "").await.unwrap().matched, 1);
        drop(two);
        let mut heard = vec![next(&mut publisher).await, next(&mut publisher).await];
        heard.sort_by_key(Message::size);
        assert_eq!(heard, [off("b"), off("both")]);
    }
}

#[tokio::test]
async fn notices_that_are_not_received_stop_their_peer_at_the_mark() {
    const HWM: u64 = 10;
    for verbose in [XPubVerbose::Unique, XPubVerbose::All] {
        let options = SocketOptions::new().xpub_verbose(verbose).recv_hwm(HWM as usize);
        let (mut publisher, endpoint) = bound(options).await;
        let subscriber = sub(&publisher, &endpoint).await;
        for _ in 0..1000 {
            subscriber.subscribe("a").unwrap();
            subscriber.unsubscribe("a").unwrap();
        }
        let queued = |publisher: &XPubSocket| publisher.stats().incoming.queued;
        within(async {
            while queued(&publisher) < HWM {
                yield_now().await;
            }
        })
        .await;
        for _ in 0..1000 {
            for expected in [on("a"), off("a")] {
                assert!(queued(&publisher) <= HWM);
                assert_eq!(next(&mut publisher).await, expected);
            }
        }
    }
}

/// A subscriber that goes before the application has heard of it: it hears of both, unless it has
/// not received for long.
#[tokio::test]
async fn subscribers_that_nobody_heard_of_leave_little_behind() {
    const TOPICS: usize = 200;
    let (mut publisher, endpoint) = bound(SocketOptions::new()).await;
    let mut monitor = publisher.monitor();
    let stays = sub(&publisher, &endpoint).await;
    stays.subscribe("stays").unwrap();
    within(stays.ready()).await.unwrap();
    let shared = |i: usize| format!("shared {i}");
    for round in 0..50 {
        let goes = sub(&publisher, &endpoint).await;
        for i in 0..TOPICS {
            goes.subscribe(format!("{round} {i}")).unwrap();
        }
        goes.subscribe(shared(round)).unwrap();
        within(goes.ready()).await.unwrap();
        if round >= 40 {
            stays.subscribe(shared(round)).unwrap();
            within(stays.ready()).await.unwrap();
        }
        drop(goes);
        event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    }
    let stats = publisher.stats().incoming;
    assert!(stats.queued < 20 * TOPICS as u64, "{} notices", stats.queued);
    assert_eq!(stats.received, stats.queued + stats.dropped.get(DropReason::PeerGone));
    let mut known = std::collections::BTreeSet::new();
    let mut heard = 0;
    while let Ok(message) = publisher.try_recv() {
        let (first, topic) = message.topic().split_first().unwrap();
        let changed = if *first == 1 { known.insert(topic.to_vec()) } else { known.remove(topic) };
        assert!(changed, "{message:?}");
        heard += 1;
    }
    assert!(heard > 2 * TOPICS, "the first are heard of: {heard}");
    let shared = (40..50).map(|round| shared(round).into_bytes());
    assert_eq!(known, shared.chain([b"stays".to_vec()]).collect());
    // once it has caught up it hears of everything again
    let goes = sub(&publisher, &endpoint).await;
    goes.subscribe("late").unwrap();
    within(goes.ready()).await.unwrap();
    drop(goes);
    assert_eq!(next(&mut publisher).await, on("late"));
    assert_eq!(next(&mut publisher).await, off("late"));
}

#[tokio::test]
async fn in_manual_mode_the_application_subscribes_its_peers() {
    let (mut publisher, endpoint) = bound(SocketOptions::new().xpub_manual(true)).await;
    assert!(matches!(publisher.subscribe("x"), Err(Error::Option { .. })));
    let mut one = sub(&publisher, &endpoint).await;
    let mut two = sub(&publisher, &endpoint).await;
    one.subscribe("").unwrap();
    assert_eq!(next(&mut publisher).await, on(""));
    // it has no effect by itself
    assert_eq!(publisher.publish("A", "").await.unwrap().matched, 0);
    assert!(publisher.subscribe("A").unwrap());
    assert!(!publisher.subscribe("A").unwrap());
    two.subscribe("").unwrap();
    assert_eq!(next(&mut publisher).await, on(""));
    let second = publisher.last_peer().unwrap();
    assert!(publisher.subscribe("B").unwrap());
    for topic in ["A", "B"] {
        assert_eq!(publisher.publish(topic, "").await.unwrap().matched, 1, "{topic}");
    }
    assert_eq!(within(one.recv()).await.unwrap().topic(), b"A");
    assert_eq!(within(two.recv()).await.unwrap().topic(), b"B");
    two.unsubscribe("").unwrap();
    assert_eq!(next(&mut publisher).await, off(""));
    assert_eq!(publisher.last_peer(), Some(second));
    assert_eq!(publisher.publish("B", "").await.unwrap().matched, 1);
    assert!(publisher.unsubscribe("B").unwrap());
    assert!(!publisher.unsubscribe("B").unwrap());
    assert_eq!(publisher.publish("B", "").await.unwrap().matched, 0);
    // a peer that is gone cannot be subscribed
    let mut monitor = publisher.monitor();
    drop(two);
    event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    let gone = publisher.subscribe("B").unwrap_err();
    assert!(matches!(gone, Error::UnknownPeer { peer, .. } if peer == second), "{gone:?}");
    // what it was given is taken back, and what the other has stays
    assert_eq!(publisher.publish("B", "").await.unwrap().matched, 0);
    assert_eq!(publisher.publish("A", "").await.unwrap().matched, 1);
    drop(one);
    event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
    assert_eq!(publisher.publish("A", "").await.unwrap().matched, 0);
    assert_eq!(next(&mut publisher).await, off(""));
}

#[tokio::test]
async fn a_new_subscriber_is_welcomed() {
    let options = SocketOptions::new().xpub_welcome_message(["hello", "you"]);
    let (mut publisher, endpoint) = bound(options).await;
    for _ in 0..3 {
        let mut subscriber = SubSocket::new();
        // as in libzmq it is subject to the subscriber's filter
        subscriber.subscribe("hello").unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        assert_eq!(within(subscriber.recv()).await.unwrap(), ["hello", "you"].into());
        within(subscriber.ready()).await.unwrap();
        publisher.publish("hello", "again").await.unwrap();
        assert_eq!(within(subscriber.recv()).await.unwrap(), ["hello", "again"].into());
        let mut monitor = publisher.monitor();
        within(subscriber.close()).await;
        event(&mut monitor, |e| matches!(e, Event::Disconnected { .. })).await;
        assert_eq!(next(&mut publisher).await, on("hello"));
        assert_eq!(next(&mut publisher).await, off("hello"));
    }
    let mut unfiltered = XSubSocket::new();
    unfiltered.connect(&endpoint).await.unwrap();
    assert_eq!(within(unfiltered.recv()).await.unwrap(), ["hello", "you"].into());
}

#[tokio::test]
async fn a_publisher_that_does_not_drop_says_that_it_is_full() {
    let options = SocketOptions::new().on_full(OnFull::Wait).send_hwm(3);
    let (publisher, endpoint) = bound(options).await;
    let narrow = SocketOptions::new().recv_hwm(1).recv_buffer(4096);
    let mut slow = SubSocket::with_options(narrow).unwrap();
    slow.subscribe("").unwrap();
    slow.connect(&endpoint).await.unwrap();
    let mut quick = sub(&publisher, &endpoint).await;
    quick.subscribe("").unwrap();
    within(publisher.wait_for_subscribers("", 2)).await.unwrap();
    let payload = bytes::Bytes::from(vec![0; 1 << 20]);
    let mut accepted = 0u64;
    let mut received = 0u64;
    // until the slow one alone holds it up
    loop {
        match publisher.try_send(Message::pair("topic", payload.clone())) {
            Ok(delivery) => {
                assert_eq!((delivery.matched, delivery.queued), (2, 2));
                accepted += 1;
            }
            Err(TrySendError::Full(message)) => {
                assert_eq!(message.frame(1), Some(&payload[..]));
                if received == accepted {
                    break;
                }
            }
            Err(error) => panic!("{error:?}"),
        }
        while received < accepted {
            within(quick.recv()).await.unwrap();
            received += 1;
        }
    }
    let waiting = publisher.send(Message::pair("topic", payload.clone()));
    let draining = async {
        for _ in 0..accepted {
            within(slow.recv()).await.unwrap();
        }
    };
    let (sent, ()) = within(async { tokio::join!(waiting, draining) }).await;
    assert_eq!(sent.unwrap().queued, 2);
    within(slow.recv()).await.unwrap();
    within(quick.recv()).await.unwrap();
    let stats = publisher.stats().outgoing;
    assert_eq!((stats.accepted, stats.dropped.total()), (2 * accepted + 2, 0));
}

#[tokio::test]
async fn xsub_subscribes_by_message_and_by_method() {
    let (mut publisher, endpoint) = bound(SocketOptions::new()).await;
    let mut subscriber = XSubSocket::new();
    subscriber.connect(&endpoint).await.unwrap();
    subscriber.send(on("message")).await.unwrap();
    assert_eq!(next(&mut publisher).await, on("message"));
    assert!(subscriber.subscribe("method").unwrap());
    assert_eq!(next(&mut publisher).await, on("method"));
    assert!(!subscriber.subscribe("message").unwrap());
    within(subscriber.ready()).await.unwrap();
    for topic in ["message", "method"] {
        assert_eq!(publisher.publish(topic, "1").await.unwrap().matched, 1);
        assert_eq!(within(subscriber.recv()).await.unwrap().topic(), topic.as_bytes());
    }
    // a message takes back what a method asked for, and the other way round; they are counted alike
    subscriber.try_send(off("message")).unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.publish("message", "2").await.unwrap().matched, 1);
    assert!(subscriber.unsubscribe("message").unwrap());
    assert_eq!(next(&mut publisher).await, off("message"));
    subscriber.sender().send(off("method")).await.unwrap();
    assert_eq!(next(&mut publisher).await, off("method"));
    assert_eq!(publisher.stats().peers[0].subscriptions, 0);

    // a publisher that comes later is told what holds then
    subscriber.send(on("kept")).await.unwrap();
    let late = XPubSocket::new();
    let endpoint = late.bind("ipc://*").await.unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(late.publish("kept", "").await.unwrap().matched, 1);
    assert_eq!(late.publish("message", "").await.unwrap().matched, 0);
}

#[tokio::test]
async fn xsub_does_not_filter_itself() {
    let (mut publisher, endpoint) = bound(SocketOptions::new().xpub_manual(true)).await;
    let mut subscriber = XSubSocket::new();
    subscriber.connect(&endpoint).await.unwrap();
    subscriber.subscribe("asked").unwrap();
    next(&mut publisher).await;
    publisher.subscribe("given").unwrap();
    publisher.publish("given", "").await.unwrap();
    assert_eq!(within(subscriber.recv()).await.unwrap().topic(), b"given");
}

#[tokio::test]
async fn messages_of_users_go_upstream() {
    let (mut publisher, endpoint) = bound(SocketOptions::new()).await;
    let other = PubSocket::new();
    let silent = other.bind("tcp://127.0.0.1:*").await.unwrap();
    let subscriber = XSubSocket::new();
    let mut monitor = subscriber.monitor();
    subscriber.connect(&endpoint).await.unwrap();
    subscriber.connect(&silent).await.unwrap();
    for _ in 0..2 {
        event(&mut monitor, |e| matches!(e, Event::HandshakeSucceeded { .. })).await;
    }
    let messages: [Message; 5] = [
        "hello".into(),
        ["many", "frames"].into(),
        "".into(),
        Message::from(&[2u8][..]),
        ["", "\u{1}a"].into(),
    ];
    for message in &messages {
        subscriber.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut publisher).await, *message);
        assert!(publisher.last_peer().is_some());
    }
    // PUB has no use for them, and says so
    let unexpected = || other.stats().incoming.dropped.get(DropReason::Unexpected);
    within(async {
        while unexpected() < messages.len() as u64 {
            yield_now().await;
        }
    })
    .await;
    assert_eq!(unexpected(), messages.len() as u64);
    assert_eq!(publisher.stats().peers[0].subscriptions, 0);
}

#[tokio::test]
async fn subscriptions_of_an_old_peer_come_as_messages() {
    let (mut publisher, endpoint) = bound(SocketOptions::new()).await;
    let address = ("127.0.0.1", endpoint.port().unwrap());
    let mut stream = TcpStream::connect(address).await.unwrap();
    // ZMTP 3.0, and a property that is not asked for
    let mut hello = vec![0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0x7F, 3, 0];
    hello.extend_from_slice(b"NULL");
    hello.resize(64, 0);
    hello.extend_from_slice(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB");
    hello.extend_from_slice(b"\x00\x02\x01a");
    stream.write_all(&hello).await.unwrap();
    assert_eq!(next(&mut publisher).await, on("a"));
    assert_eq!(publisher.publish("ab", "c").await.unwrap().queued, 1);
    // the greeting, READY and the message
    let mut greeting = [0; 64];
    within(stream.read_exact(&mut greeting)).await.unwrap();
    let mut header = [0; 2];
    within(stream.read_exact(&mut header)).await.unwrap();
    assert_eq!(header[0], 4);
    let mut ready = vec![0; header[1].into()];
    within(stream.read_exact(&mut ready)).await.unwrap();
    let mut message = [0; 7];
    within(stream.read_exact(&mut message)).await.unwrap();
    assert_eq!(&message, b"\x01\x02ab\x00\x01c");
    stream.write_all(b"\x00\x02\x00a").await.unwrap();
    assert_eq!(next(&mut publisher).await, off("a"));
    assert_eq!(publisher.publish("ab", "c").await.unwrap().matched, 0);
}

#[tokio::test]
async fn a_chain_forwards_messages_down_and_subscriptions_up() {
    const COUNT: u32 = 500;
    let publisher = PubSocket::new();
    let up = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut front = XSubSocket::new();
    front.connect(&up).await.unwrap();
    let (mut back, down) = bound(SocketOptions::new()).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let chain = tokio::spawn(async move {
        loop {
            tokio::select! {
                message = front.recv() => { back.send(message.unwrap()).await.unwrap(); }
                subscription = back.recv() => front.send(subscription.unwrap()).await.unwrap(),
                _ = &mut stopped => return (front.stats(), back.stats()),
            }
        }
    });
    let mut one = SubSocket::new();
    let mut two = SubSocket::new();
    for (subscriber, topics) in [(&one, &["a"][..]), (&two, &["a", "b"])] {
        for topic in topics {
            subscriber.subscribe(topic).unwrap();
        }
        subscriber.connect(&down).await.unwrap();
        within(subscriber.ready()).await.unwrap();
    }
    within(publisher.wait_for_subscribers("a", 1)).await.unwrap();
    within(publisher.wait_for_subscribers("b", 1)).await.unwrap();
    assert_eq!(publisher.stats().peers[0].subscriptions, 2);
    for i in 0..COUNT {
        for topic in ["a", "b", "c"] {
            publisher.publish(topic, i.to_be_bytes()).await.unwrap();
        }
        if i % 100 == 99 {
            // in step, so that no queue is at its mark
            let message = (i - 99..=i).map(|i| ("a", i));
            for (topic, i) in message {
                let message = within(one.recv()).await.unwrap();
                assert_eq!(
                    (message.topic(), message.frame(1).unwrap()),
                    (topic.as_bytes(), &i.to_be_bytes()[..])
                );
            }
            for i in i - 99..=i {
                for topic in ["a", "b"] {
                    let message = within(two.recv()).await.unwrap();
                    assert_eq!(
                        (message.topic(), message.frame(1).unwrap()),
                        (topic.as_bytes(), &i.to_be_bytes()[..])
                    );
                }
            }
        }
    }
    // the last subscriber's end comes through to the publisher
    within(two.close()).await;
    within(one.close()).await;
    within(async {
        while publisher.stats().peers[0].subscriptions > 0 {
            yield_now().await;
        }
    })
    .await;
    stop.send(()).unwrap();
    let (front, back) = within(chain).await.unwrap();
    assert_eq!(front.incoming.delivered, u64::from(2 * COUNT));
    assert_eq!(back.outgoing.accepted, u64::from(3 * COUNT));
    assert_eq!(back.outgoing.dropped.total(), 0);
}
