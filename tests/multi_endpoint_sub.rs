//! One subscriber that follows many publishers, and changes which and what while they publish.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use deadline::{until, within};
use dragonwire::{
    DisconnectCause, DropReason, Endpoint, EndpointState, EndpointStates, Error, Event, Message,
    OnFull, PubSocket, RecvError, SocketOptions, SubSocket,
};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::yield_now;

fn quick() -> SocketOptions {
    SocketOptions::new().reconnect_interval(Duration::from_millis(5))
}

fn lossless() -> PubSocket {
    PubSocket::with_options(SocketOptions::new().on_full(OnFull::Wait)).unwrap()
}

fn number(message: &Message) -> u64 {
    u64::from_be_bytes(message.frame(1).unwrap().try_into().unwrap())
}

async fn topics(subscriber: &mut SubSocket, count: usize) -> Vec<String> {
    let mut topics = Vec::new();
    for _ in 0..count {
        let message = within(subscriber.recv()).await.unwrap();
        topics.push(String::from_utf8(message.topic().to_vec()).unwrap());
    }
    topics
}

async fn state(
    states: &mut EndpointStates,
    endpoint: &Endpoint,
    wanted: impl Fn(&EndpointState) -> bool,
) -> EndpointState {
    loop {
        let status = within(states.recv()).await.expect("the stream ended");
        if status.endpoint == *endpoint && wanted(&status.state) {
            return status.state;
        }
    }
}

const STABLE: usize = 8;
const PUBLISHERS: usize = 12;

/// Publishes numbers until told to stop, then a last message with how many there were.
async fn publish_numbers(publisher: PubSocket, topic: String, stop: Arc<AtomicBool>) -> u64 {
    let mut next = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let sent = publisher.publish(&topic, next.to_be_bytes()).await.unwrap();
        next += 1;
        if sent.matched == 0 {
            // nobody: until somebody is there again, or all is over
            tokio::select! {
                there = publisher.wait_for_subscribers(&topic, 1) => there.unwrap(),
                () = async { while !stop.load(Ordering::Relaxed) { yield_now().await } } => {}
            }
        }
        yield_now().await;
    }
    publisher.send_frames(&[topic.as_bytes(), &next.to_be_bytes(), b"end"]).await.unwrap();
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_some_publishers_loses_nothing_from_the_others() {
    let mut subscriber = SubSocket::with_options(quick()).unwrap();
    subscriber.subscribe("publisher.").unwrap();
    let handle = subscriber.handle();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut endpoints, mut publishers) = (Vec::new(), Vec::new());
    for i in 0..PUBLISHERS {
        let publisher = lossless();
        let text = if i % 2 == 0 { "tcp://127.0.0.1:*" } else { "ipc://*" };
        endpoints.push(publisher.bind(text).await.unwrap());
        publishers.push(publisher);
    }
    for endpoint in &endpoints[..STABLE] {
        assert!(handle.add(endpoint).await.unwrap());
    }
    within(handle.ready()).await.unwrap();
    let tasks: Vec<_> = publishers
        .iter()
        .enumerate()
        .map(|(i, publisher)| {
            let topic = format!("publisher.{i:02}");
            tokio::spawn(publish_numbers(publisher.clone(), topic, stop.clone()))
        })
        .collect();

    let (told, mut heard) = watch::channel([0u64; PUBLISHERS]);
    let receiver = tokio::spawn(async move {
        let mut next = [0u64; PUBLISHERS];
        let mut ended = 0;
        let mut seen = HashSet::new();
        while ended < STABLE {
            let message = within(subscriber.recv()).await.unwrap();
            let topic = std::str::from_utf8(message.topic()).unwrap();
            let from: usize = topic.strip_prefix("publisher.").unwrap().parse().unwrap();
            let number = number(&message);
            if from < STABLE {
                assert_eq!(number, next[from], "from {topic}");
                ended += usize::from(message.frame(2).is_some());
            } else {
                // an earlier connection may still be bringing what was sent on it, but nothing twice
                assert!(seen.insert((from, number)), "{number} from {topic} came twice");
            }
            next[from] = number + 1;
            told.send_modify(|heard| heard[from] += 1);
        }
        next
    });
    let mut after_more = async |from: std::ops::Range<usize>| {
        let before = *heard.borrow_and_update();
        let more =
            |now: &[u64; PUBLISHERS]| from.clone().all(|from| now[from] >= before[from] + 50);
        within(heard.wait_for(more)).await.unwrap();
    };
    for round in 0..12 {
        let all = &endpoints;
        let one = STABLE + round % (PUBLISHERS - STABLE);
        assert!(handle.add(&all[one]).await.unwrap());
        assert!(!handle.add(&all[one]).await.unwrap());
        after_more(0..STABLE).await;
        after_more(one..one + 1).await;
        assert!(within(handle.remove(&all[one])).await.unwrap());
        assert!(!within(handle.remove(&all[one])).await.unwrap());
        let replaced = within(handle.replace_all(all)).await.unwrap();
        assert_eq!((replaced.added.as_slice(), replaced.removed.len()), (&all[STABLE..], 0));
        after_more(0..PUBLISHERS).await;
        let replaced = within(handle.replace_all(&all[..STABLE])).await.unwrap();
        assert_eq!((replaced.added.len(), replaced.removed.as_slice()), (0, &all[STABLE..]));
        after_more(0..STABLE).await;
        // what comes and goes among the subscriptions does not matter either
        assert!(handle.subscribe(format!("publisher.{one:02}")).unwrap());
        assert!(handle.unsubscribe(format!("publisher.{one:02}")).unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let next = within(receiver).await.unwrap();
    for (i, task) in tasks.into_iter().enumerate() {
        let sent = within(task).await.unwrap();
        if i < STABLE {
            assert_eq!(next[i], sent + 1, "from publisher {i}");
        }
    }
}

#[tokio::test]
async fn what_a_removed_publisher_sent_before_is_received() {
    const COUNT: u64 = 3000;
    // more than the receive queue holds
    let mut subscriber = SubSocket::with_options(SocketOptions::new().recv_hwm(100)).unwrap();
    subscriber.subscribe("").unwrap();
    let publisher = lossless();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    subscriber.add(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    for i in 0..COUNT {
        publisher.publish("topic", i.to_be_bytes()).await.unwrap();
    }
    until(|| publisher.stats().outgoing.sent == COUNT).await;
    assert!(within(subscriber.remove(&endpoint)).await.unwrap());
    assert_eq!(subscriber.endpoints(), []);
    for i in 0..COUNT {
        assert_eq!(number(&within(subscriber.recv()).await.unwrap()), i);
    }
    assert_eq!(subscriber.try_recv().unwrap_err(), RecvError::Empty);
    let stats = subscriber.stats().incoming;
    assert_eq!((stats.received, stats.delivered, stats.queued), (COUNT, COUNT, 0));
}

#[tokio::test]
async fn the_state_of_an_endpoint_is_a_value_and_a_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp(listener.local_addr().unwrap());
    drop(listener);
    let subscriber = SubSocket::with_options(quick()).unwrap();
    let now = || subscriber.endpoints();
    let mut states = subscriber.endpoint_states();
    subscriber.add(&endpoint).await.unwrap();
    assert_eq!(now()[0].endpoint, endpoint);
    assert_eq!(now()[0].state, EndpointState::Connecting { attempt: 1 });
    let begun = EndpointState::Connecting { attempt: 1 };
    assert_eq!(state(&mut states, &endpoint, |_| true).await, begun);
    let waits = state(&mut states, &endpoint, |s| matches!(s, EndpointState::Backoff { .. })).await;
    let EndpointState::Backoff { cause, attempt, delay } = waits else { unreachable!() };
    assert!(matches!(cause, DisconnectCause::Io(..)), "{cause:?}");
    assert!(attempt >= 2 && delay >= Duration::from_millis(5), "{attempt} {delay:?}");

    for _ in 0..3 {
        let publisher = PubSocket::new();
        publisher.bind(&endpoint).await.unwrap();
        state(&mut states, &endpoint, |state| *state == EndpointState::Ready).await;
        assert_eq!(now()[0].state, EndpointState::Ready);
        // a stream that is asked for later begins with how it is
        let mut late = subscriber.endpoint_states();
        assert_eq!(within(late.recv()).await.unwrap(), now()[0]);
        within(publisher.close()).await;
        let backoff = |s: &EndpointState| matches!(s, EndpointState::Backoff { attempt: 1, .. });
        state(&mut states, &endpoint, backoff).await;
    }
    within(subscriber.remove(&endpoint)).await.unwrap();
    state(&mut states, &endpoint, |state| *state == EndpointState::Removed).await;
    assert_eq!(now(), []);
    within(subscriber.close()).await;
    assert_eq!(within(states.recv()).await, None);
}

#[tokio::test]
async fn the_stream_of_states_tells_of_many_endpoints() {
    let publisher = PubSocket::new();
    let subscriber = SubSocket::new();
    let mut states = subscriber.endpoint_states();
    let mut bound = publisher.endpoint_states();
    let mut endpoints = Vec::new();
    for _ in 0..5 {
        let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
        subscriber.add(&endpoint).await.unwrap();
        endpoints.push(endpoint);
    }
    for endpoint in &endpoints {
        let one = |s: &EndpointState| *s == EndpointState::Listening { connections: 1 };
        state(&mut bound, endpoint, one).await;
    }
    within(subscriber.ready()).await.unwrap();
    let mut left: Vec<_> = endpoints.clone();
    while !left.is_empty() {
        let status = within(states.recv()).await.unwrap();
        if status.state == EndpointState::Ready {
            left.retain(|endpoint| *endpoint != status.endpoint);
        }
    }
    within(subscriber.replace_all([&endpoints[4]])).await.unwrap();
    let mut left = endpoints[..4].to_vec();
    while !left.is_empty() {
        let status = within(states.recv()).await.unwrap();
        assert_eq!(status.state, EndpointState::Removed, "{:?}", status.endpoint);
        left.retain(|endpoint| *endpoint != status.endpoint);
    }
    let none = |s: &EndpointState| *s == EndpointState::Listening { connections: 0 };
    state(&mut bound, &endpoints[3], none).await;
}

#[tokio::test]
async fn a_handle_acts_while_receiving_waits() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscriber = SubSocket::new();
    let handle = subscriber.handle();
    let (started, starts) = tokio::sync::oneshot::channel();
    let receiver = tokio::spawn(async move {
        let first = {
            let mut first = pin!(subscriber.recv());
            assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            started.send(()).unwrap();
            first.await
        };
        (first, subscriber.recv().await)
    });
    within(starts).await.unwrap();
    assert!(handle.subscribe("a").unwrap());
    assert!(handle.add(&endpoint).await.unwrap());
    within(handle.ready()).await.unwrap();
    publisher.publish("a", "").await.unwrap();
    until(|| handle.stats().incoming.delivered == 1).await;
    let other = handle.clone();
    within(other.close()).await;
    let (first, second) = within(receiver).await.unwrap();
    assert_eq!(first.unwrap().topic(), b"a");
    assert_eq!(second.unwrap_err(), RecvError::Closed);
    assert!(matches!(handle.subscribe("b"), Err(Error::Closed)));
}

#[tokio::test]
async fn subscriptions_are_counted() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscriber = SubSocket::new();
    subscriber.connect(&endpoint).await.unwrap();
    assert!(!subscriber.unsubscribe("a").unwrap());
    assert!(subscriber.subscribe("a").unwrap());
    assert!(!subscriber.subscribe("a").unwrap());
    assert!(subscriber.subscribe("ab").unwrap());
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.stats().peers[0].subscriptions, 2);
    // a message comes once, however many subscriptions it matches
    assert_eq!(publisher.publish("ab", "").await.unwrap().matched, 1);
    assert!(!subscriber.unsubscribe("a").unwrap());
    within(subscriber.ready()).await.unwrap();
    publisher.publish("ac", "").await.unwrap();
    assert_eq!(topics(&mut subscriber, 2).await, ["ab", "ac"]);
    assert!(subscriber.unsubscribe("a").unwrap());
    assert!(!subscriber.unsubscribe("a").unwrap());
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.publish("ac", "").await.unwrap().matched, 0);
    assert_eq!(publisher.publish("ab", "").await.unwrap().matched, 1);
    assert_eq!(topics(&mut subscriber, 1).await, ["ab"]);
    assert_eq!(publisher.stats().peers[0].subscriptions, 1);
    // the same goes for an endpoint that comes later: it is told what holds then
    let late = PubSocket::new();
    let endpoint = late.bind("ipc://*").await.unwrap();
    subscriber.add(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(late.publish("ac", "").await.unwrap().matched, 0);
    assert_eq!(late.publish("ab", "").await.unwrap().matched, 1);
}

#[tokio::test]
async fn unsubscribing_takes_out_what_has_come_already() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscriber = SubSocket::new();
    for topic in ["a", "b", "c"] {
        subscriber.subscribe(topic).unwrap();
    }
    subscriber.connect(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    for topic in ["a", "a", "b", "a", "b", "a", "c"] {
        publisher.publish(topic, "").await.unwrap();
    }
    until(|| subscriber.stats().incoming.received == 7).await;
    assert_eq!(topics(&mut subscriber, 1).await, ["a"]);
    subscriber.unsubscribe("a").unwrap();
    assert_eq!(topics(&mut subscriber, 3).await, ["b", "b", "c"]);
    let stats = subscriber.stats().incoming;
    assert_eq!((stats.received, stats.delivered, stats.queued), (7, 4, 0));
    assert_eq!(stats.dropped.get(DropReason::Filtered), 3);
    // what has come and is subscribed to again before it is looked at stays
    publisher.publish("b", "").await.unwrap();
    until(|| subscriber.stats().incoming.received == 8).await;
    subscriber.unsubscribe("b").unwrap();
    subscriber.subscribe("b").unwrap();
    assert_eq!(topics(&mut subscriber, 1).await, ["b"]);
}

#[tokio::test]
async fn matching_can_be_inverted() {
    let options = SocketOptions::new().invert_matching(true);
    let publisher = PubSocket::with_options(options.clone()).unwrap();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscriber = SubSocket::with_options(options).unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    // of nothing it wants everything
    assert_eq!(publisher.publish("first", "").await.unwrap().matched, 1);
    subscriber.subscribe("noise.").unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.publish("noise.a", "").await.unwrap().matched, 0);
    assert_eq!(publisher.publish("noise", "").await.unwrap().matched, 1);
    assert_eq!(publisher.publish("signal", "").await.unwrap().matched, 1);
    assert_eq!(topics(&mut subscriber, 3).await, ["first", "noise", "signal"]);
    subscriber.unsubscribe("noise.").unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.publish("noise.b", "").await.unwrap().matched, 1);
    assert_eq!(topics(&mut subscriber, 1).await, ["noise.b"]);
}

#[tokio::test]
async fn a_topic_matches_by_its_first_octets() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("ipc://*").await.unwrap();
    let long = [b"x".repeat(300), vec![0]].concat();
    let longer = [&long[..], b"y"].concat();
    let texts: [&[u8]; 12] = [
        b"",
        b"\0",
        b"\0\0",
        b"\xff",
        b"\xff\xfe",
        b"a",
        b"ab",
        b"abc",
        b"b",
        b"\x01a",
        &long,
        &longer,
    ];
    for chosen in [&[][..], &[0], &[1, 6], &[2, 3], &[4, 5, 9], &[7, 8], &[10], &[11, 1, 4]] {
        let mut subscriber = SubSocket::new();
        let wanted: Vec<&[u8]> = chosen.iter().map(|i| texts[*i]).collect();
        for prefix in &wanted {
            assert!(subscriber.subscribe(prefix).unwrap());
        }
        subscriber.connect(&endpoint).await.unwrap();
        within(subscriber.ready()).await.unwrap();
        let mut expected = Vec::new();
        for topic in texts {
            let matches = wanted.iter().any(|prefix| topic.starts_with(prefix));
            // the rest of the message does not count
            let sent = publisher.send_frames(&[topic, b"ab", b""]).await.unwrap();
            assert_eq!(sent.matched, u32::from(matches), "{topic:?} by {wanted:?}");
            if matches {
                expected.push(topic);
            }
        }
        for topic in expected {
            let message = within(subscriber.recv()).await.unwrap();
            assert_eq!(message.topic(), topic);
            assert_eq!(message.frames().count(), 3);
        }
        assert_eq!(subscriber.try_recv().unwrap_err(), RecvError::Empty);
        let mut monitor = publisher.monitor();
        within(subscriber.close()).await;
        while !matches!(within(monitor.recv()).await, Some(Event::Disconnected { .. })) {}
    }
}

#[tokio::test]
async fn replacing_all_changes_nothing_when_one_is_no_endpoint() {
    let subscriber = SubSocket::new();
    let (a, b): (Endpoint, Endpoint) =
        ("ipc:///nobody/a".parse().unwrap(), "ipc:///nobody/b".parse().unwrap());
    let replaced = within(subscriber.replace_all([&a, &a])).await.unwrap();
    assert_eq!((replaced.added, replaced.removed), (vec![a.clone()], vec![]));
    for bad in ["nonsense", "tcp://*:5555", "ipc://*"] {
        let result = within(subscriber.replace_all(["ipc:///nobody/b", bad])).await;
        assert!(matches!(result, Err(Error::Endpoint(_))), "{bad}");
        let left: Vec<_> = subscriber.endpoints().into_iter().map(|s| s.endpoint).collect();
        assert_eq!(left, std::slice::from_ref(&a), "{bad}");
    }
    let replaced = within(subscriber.replace_all([&b])).await.unwrap();
    assert_eq!((replaced.added, replaced.removed), (vec![b.clone()], vec![a]));
    let replaced = within(subscriber.replace_all(Vec::<Endpoint>::new())).await.unwrap();
    assert_eq!((replaced.added, replaced.removed), (vec![], vec![b]));
    assert_eq!(subscriber.endpoints(), []);
}

#[tokio::test]
async fn ready_waits_for_every_endpoint_that_is_still_followed() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let subscriber = SubSocket::new();
    subscriber.subscribe("").unwrap();
    // of no endpoints every one is ready
    within(subscriber.ready()).await.unwrap();
    subscriber.add(&endpoint).await.unwrap();
    subscriber.add("ipc:///nobody/there").await.unwrap();
    within(publisher.wait_for_subscribers("", 1)).await.unwrap();
    let mut ready = pin!(subscriber.ready());
    for _ in 0..100 {
        assert!(ready.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        yield_now().await;
    }
    within(subscriber.remove("ipc:///nobody/there")).await.unwrap();
    within(ready.as_mut()).await.unwrap();
    // a subscription made since is waited for anew
    subscriber.subscribe("more").unwrap();
    let poll = pin!(subscriber.ready()).poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(poll, Poll::Pending));
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.stats().peers[0].subscriptions, 2);
}
