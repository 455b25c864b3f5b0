//! Whose turn it is: peers share a sender and a receiver, and none holds up the others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::collections::HashMap;
use std::time::Duration;

use deadline::{until, within};
use dragonwire::{
    DropReason, Event, Monitor, OnFull, PubSocket, PullSocket, PushSocket, SocketOptions, SubSocket,
};
use tokio::task::yield_now;

async fn up(monitor: &mut Monitor) {
    while !matches!(within(monitor.recv()).await, Some(Event::HandshakeSucceeded { .. })) {}
}

#[tokio::test]
async fn push_hands_out_in_turn() {
    const PEERS: usize = 5;
    let push = PushSocket::new();
    let mut monitor = push.monitor();
    let endpoint = push.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut pulls = Vec::new();
    for _ in 0..PEERS {
        let pull = PullSocket::new();
        pull.connect(&endpoint).await.unwrap();
        up(&mut monitor).await;
        pulls.push(pull);
    }
    for i in 0..100 * PEERS as u32 {
        push.send(&i.to_be_bytes()).await.unwrap();
    }
    for pull in &mut pulls {
        let mut numbers = Vec::new();
        for _ in 0..100 {
            let message = within(pull.recv()).await.unwrap();
            numbers.push(u32::from_be_bytes(message.topic().try_into().unwrap()));
        }
        // each had every fifth one, in order
        let steps: Vec<_> = numbers.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(steps, [PEERS as u32; 99]);
        assert!(pull.try_recv().is_err());
    }
    // one that leaves is left out, and the others go on in turn
    let gone = pulls.pop().unwrap();
    within(gone.close()).await;
    while !matches!(within(monitor.recv()).await, Some(Event::Disconnected { .. })) {}
    for i in 0..10 * pulls.len() as u32 {
        push.send(&i.to_be_bytes()).await.unwrap();
    }
    for pull in &mut pulls {
        for _ in 0..10 {
            within(pull.recv()).await.unwrap();
        }
        assert!(pull.try_recv().is_err());
    }
}

#[tokio::test]
async fn push_passes_over_a_peer_without_room() {
    let push = PushSocket::with_options(SocketOptions::new().send_hwm(2)).unwrap();
    let mut monitor = push.monitor();
    let endpoint = push.bind("tcp://127.0.0.1:*").await.unwrap();
    let options = SocketOptions::new().recv_hwm(1).recv_buffer(4096);
    let stalled = PullSocket::with_options(options).unwrap();
    stalled.connect(&endpoint).await.unwrap();
    up(&mut monitor).await;
    let payload = bytes::Bytes::from(vec![0; 1 << 20]);
    // until neither its queue nor the kernel takes more
    loop {
        match push.try_send(payload.clone()) {
            Ok(()) => yield_now().await,
            Err(_) => {
                let before = push.stats().outgoing;
                for _ in 0..20 {
                    yield_now().await;
                }
                if push.stats().outgoing == before && push.try_send(payload.clone()).is_err() {
                    break;
                }
            }
        }
    }
    let mut live = PullSocket::new();
    live.connect(&endpoint).await.unwrap();
    up(&mut monitor).await;
    let held = push.stats().outgoing.accepted;
    // the kernel may still have found room for one or the other of the large ones
    let receiver = tokio::spawn(async move {
        let mut got = Vec::new();
        loop {
            let message = within(live.recv()).await.unwrap();
            if message.topic() == b"end" {
                return got;
            }
            got.push(message);
        }
    });
    for i in 0..200u32 {
        within(push.send(&i.to_be_bytes())).await.unwrap();
    }
    // at most two of these can be for the stalled one
    for _ in 0..4 {
        within(push.send("end")).await.unwrap();
    }
    let got = within(receiver).await.unwrap();
    assert!(got.len() >= 190, "{}", got.len());
    let stats = push.stats();
    assert_eq!(stats.outgoing.accepted, held + 204);
    assert_eq!(stats.outgoing.dropped.total(), 0);
    drop(stalled);
}

/// Messages of the slow peer among those of a flood: none waits for more than its turn.
fn assert_fair(order: &[bool]) {
    let gaps: Vec<_> = order.split(|slow| *slow).map(<[bool]>::len).collect();
    let (last, waits) = gaps.split_last().unwrap();
    assert!(waits.iter().all(|wait| *wait <= 1000), "{gaps:?}");
    // the flood was still going on when the slow peer had its last turn
    assert!(*last > 0, "{gaps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_takes_from_a_slow_peer_during_a_flood() {
    const SLOW: usize = 50;
    let mut pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let now = SocketOptions::new().linger(Some(Duration::ZERO));
    let flooding = PushSocket::with_options(now).unwrap();
    flooding.connect(&endpoint).await.unwrap();
    let (flood, slow) = (flooding.clone(), PushSocket::new());
    let flood = tokio::spawn(async move { while flood.send("flood").await.is_ok() {} });
    slow.connect(&endpoint).await.unwrap();
    assert_eq!(within(pull.recv()).await.unwrap(), "flood".into());
    let mut order = Vec::new();
    slow.send("slow").await.unwrap();
    let mut left = SLOW;
    let mut after = 0;
    while after < 5000 {
        let is_slow = within(pull.recv()).await.unwrap().topic() == b"slow";
        order.push(is_slow);
        if is_slow {
            left -= 1;
            if left > 0 {
                slow.send("slow").await.unwrap();
            }
        }
        after += usize::from(left == 0);
        assert!(order.len() < 5_000_000, "{left} messages of the slow peer never came");
    }
    assert_eq!(order.iter().filter(|slow| **slow).count(), SLOW);
    drop(pull);
    within(flooding.close()).await;
    within(flood).await.unwrap();
}

#[tokio::test]
async fn receivers_take_turns_between_queues_that_are_full() {
    // both queues are full before anything is received
    for inverse in [false, true] {
        let mut subscriber = SubSocket::new();
        let mut pull = PullSocket::new();
        let (sub_end, pull_end) = (
            subscriber.bind("tcp://127.0.0.1:*").await.unwrap(),
            pull.bind("tcp://127.0.0.1:*").await.unwrap(),
        );
        subscriber.subscribe("").unwrap();
        let names = if inverse { ["b", "a"] } else { ["a", "b"] };
        let mut sent = Vec::new();
        for (name, count) in names.into_iter().zip([20_000u32, 50]) {
            let options = SocketOptions::new().send_hwm(0);
            let publisher = PubSocket::with_options(options.clone()).unwrap();
            publisher.connect(&sub_end).await.unwrap();
            within(publisher.wait_for_subscribers("", 1)).await.unwrap();
            let push = PushSocket::with_options(options).unwrap();
            push.connect(&pull_end).await.unwrap();
            for _ in 0..count {
                publisher.publish(name, "").await.unwrap();
                push.send(name).await.unwrap();
            }
            sent.push((publisher, push));
        }
        until(|| subscriber.stats().peers.iter().all(|peer| peer.incoming.received >= 50)).await;
        until(|| pull.stats().peers.len() == 2).await;
        until(|| pull.stats().peers.iter().all(|peer| peer.incoming.received >= 50)).await;
        let few = names[1].as_bytes();
        let (mut of_sub, mut of_pull) = (Vec::new(), Vec::new());
        for _ in 0..20_050 {
            of_sub.push(within(subscriber.recv()).await.unwrap().topic() == few);
            of_pull.push(within(pull.recv()).await.unwrap().topic() == few);
        }
        for order in [of_sub, of_pull] {
            assert_eq!(order.iter().filter(|few| **few).count(), 50);
            assert_fair(&order);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_subscriber_of_64_costs_the_others_nothing() {
    const SUBSCRIBERS: usize = 64;
    const MESSAGES: u32 = 300;
    // lossless for the others, since a mark is per peer: the stalled one alone is at its own
    let publisher = PubSocket::with_options(SocketOptions::new().send_hwm(1000)).unwrap();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let options = SocketOptions::new().recv_hwm(1).recv_buffer(4096);
    let mut stalled = SubSocket::with_options(options).unwrap();
    stalled.subscribe("").unwrap();
    stalled.connect(&endpoint).await.unwrap();
    within(publisher.wait_for_subscribers("", 1)).await.unwrap();
    // its queue and the kernel's are full
    let block = vec![0; 64 << 10];
    let mut filled = 0u64;
    loop {
        let sent = publisher.publish("", &block).await.unwrap();
        if sent.dropped == 1 {
            let before = publisher.stats().outgoing.sent;
            for _ in 0..100 {
                yield_now().await;
            }
            if publisher.stats().outgoing.sent == before {
                break;
            }
        }
        filled += sent.queued as u64;
    }
    let mut others = Vec::new();
    for _ in 1..SUBSCRIBERS {
        let mut subscriber = SubSocket::new();
        subscriber.subscribe("").unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        within(subscriber.ready()).await.unwrap();
        others.push(tokio::spawn(async move {
            for i in 0..MESSAGES {
                let message = within(subscriber.recv()).await.unwrap();
                assert_eq!(message.frame(1).unwrap(), i.to_be_bytes());
            }
        }));
    }
    within(publisher.wait_for_subscribers("", SUBSCRIBERS)).await.unwrap();
    for i in 0..MESSAGES {
        let sent = publisher.publish("", i.to_be_bytes()).await.unwrap();
        assert_eq!(
            (sent.matched, sent.queued, sent.dropped),
            (SUBSCRIBERS as u32, SUBSCRIBERS as u32 - 1, 1)
        );
    }
    for other in others {
        within(other).await.unwrap();
    }
    // and it loses only what it had no room for
    let stats = publisher.stats();
    assert!(stats.outgoing.dropped.get(DropReason::PeerHwmMessages) >= u64::from(MESSAGES));
    for _ in 0..filled {
        assert_eq!(within(stalled.recv()).await.unwrap().frame(1).unwrap().len(), block.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_waits_waits_for_all_and_loses_nothing() {
    const MESSAGES: u32 = 5000;
    let options = SocketOptions::new().on_full(OnFull::Wait).send_hwm(10);
    let publisher = PubSocket::with_options(options).unwrap();
    let endpoint = publisher.bind("ipc://*").await.unwrap();
    let mut tasks = Vec::new();
    for i in 0..4 {
        let mut subscriber = SubSocket::with_options(SocketOptions::new().recv_hwm(10)).unwrap();
        subscriber.subscribe("").unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        within(subscriber.ready()).await.unwrap();
        tasks.push(tokio::spawn(async move {
            let mut counts = HashMap::<u32, u32>::new();
            for wanted in 0..MESSAGES {
                if i == 0 && wanted % 50 == 0 {
                    yield_now().await;
                }
                let message = within(subscriber.recv()).await.unwrap();
                let number = u32::from_be_bytes(message.frame(1).unwrap().try_into().unwrap());
                assert_eq!(number, wanted);
                *counts.entry(number).or_default() += 1;
            }
            assert!(counts.values().all(|count| *count == 1));
        }));
    }
    for i in 0..MESSAGES {
        let sent = within(publisher.publish("", i.to_be_bytes())).await.unwrap();
        assert_eq!((sent.matched, sent.queued, sent.dropped), (4, 4, 0));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    let stats = publisher.stats().outgoing;
    assert_eq!((stats.accepted, stats.dropped.total()), (4 * u64::from(MESSAGES), 0));
}
