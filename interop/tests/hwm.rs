//! High-water marks, counted to the message.

use std::time::Duration;

use dragonwire::{
    DropReason, Message, OnFull, PubSocket, PullSocket, PushSocket, SocketOptions, TrySendError,
    XPubSocket,
};
use dragonwire_interop::libzmq::{self, Context, Opt, Socket, SocketType};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::side::{frames, subscription, texts};
use dragonwire_interop::{until, within};

/// A subscriber that takes as little as possible while its application does not receive.
fn stalled(context: &Context, endpoint: &str) -> Socket {
    let sub = context.socket(SocketType::Sub);
    sub.set(Opt::RcvHwm, 1).unwrap();
    sub.set(Opt::RcvBuf, 4096).unwrap();
    sub.subscribe("").unwrap();
    sub.connect(endpoint).unwrap();
    sub
}

fn tight(hwm: usize) -> SocketOptions {
    SocketOptions::new().send_hwm(hwm).send_buffer(4096)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_queues_exactly_its_mark_for_a_peer_that_is_not_there() {
    for transport in Transport::ALL {
        for hwm in [1, 2, 10, 1000] {
            let place = Place::fixed(transport);
            let push = PushSocket::with_options(SocketOptions::new().send_hwm(hwm)).unwrap();
            push.connect(place.endpoint()).await.unwrap();
            let mut taken = 0;
            while let Ok(()) = push.try_send(taken.to_string()) {
                taken += 1;
            }
            assert_eq!(taken, hwm);
            let Err(TrySendError::Full(back)) = push.try_send("one too many") else { panic!() };
            assert_eq!(back, Message::from("one too many"));

            let context = Context::new();
            let pull = context.socket(SocketType::Pull);
            pull.bind(place.endpoint()).unwrap();
            for i in 0..hwm {
                assert_eq!(pull.recv().unwrap(), texts(&[&i.to_string()]));
            }
            assert_eq!(pull.try_recv(), Err(libzmq::Error::AGAIN));
            within("room in the queue", push.send("the end")).await.unwrap();
            assert_eq!(pull.recv().unwrap(), texts(&["the end"]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_queues_exactly_its_mark_for_dragonwire() {
    let place = Place::fixed(Transport::Ipc);
    let context = Context::new();
    let push = context.socket(SocketType::Push);
    push.set(Opt::SndHwm, 10).unwrap();
    push.set(Opt::ReconnectIvl, 20).unwrap();
    push.connect(place.endpoint()).unwrap();
    let mut taken = 0;
    while push.try_send([taken.to_string()]).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 10);
    let mut pull = PullSocket::new();
    pull.bind(place.endpoint()).await.unwrap();
    for i in 0..10 {
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(received, Message::from(i.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pub_counts_every_message_a_stalled_subscriber_misses() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let context = Context::new();
        let place = Place::new(transport);
        let publisher = PubSocket::with_options(tight(10)).unwrap();
        let endpoint = publisher.bind(place.endpoint()).await.unwrap().to_string();
        let sub = stalled(&context, &endpoint);
        within("a subscriber", publisher.wait_for_subscribers("", 1)).await.unwrap();

        let sent = 3000;
        let (mut queued, mut dropped) = (0, 0);
        for i in 0..sent {
            let payload = format!("{i:<1000}");
            let delivery = publisher.send(Message::from(["t", &payload])).await.unwrap();
            assert_eq!((delivery.matched, delivery.queued + delivery.dropped), (1, 1));
            queued += delivery.queued as u64;
            dropped += delivery.dropped as u64;
        }
        assert!(dropped > 0, "the kernel took all of it");
        let outgoing = publisher.stats().outgoing;
        assert_eq!(outgoing.accepted, sent);
        assert_eq!(outgoing.dropped.get(DropReason::PeerHwmMessages), dropped);
        assert_eq!(outgoing.dropped.total(), dropped);
        assert_eq!(outgoing.sent + outgoing.queued + dropped, sent);
        // it stands still, so that what is queued stays at the mark
        assert!(outgoing.queued <= 10, "{outgoing:?}");

        let mut last = None;
        for _ in 0..queued {
            let received = sub.recv().unwrap();
            let number: u64 = std::str::from_utf8(&received[1]).unwrap().trim().parse().unwrap();
            assert!(last < Some(number), "{number} after {last:?}");
            last = Some(number);
        }
        assert_eq!(sub.try_recv(), Err(libzmq::Error::AGAIN));
        until("all is sent", || publisher.stats().outgoing.queued == 0).await;
        assert_eq!(publisher.stats().outgoing.sent, queued);
        publisher.send("the end").await.unwrap();
        assert_eq!(sub.recv().unwrap(), texts(&["the end"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_subscriber_costs_the_others_nothing() {
    let context = Context::new();
    let publisher = PubSocket::with_options(tight(100)).unwrap();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let stalled = stalled(&context, &endpoint);
    let good = context.socket(SocketType::Sub);
    good.subscribe("").unwrap();
    good.connect(&endpoint).unwrap();
    within("both", publisher.wait_for_subscribers("", 2)).await.unwrap();
    let payload = vec![b'x'; 1000];
    let mut queued_for_both = 0;
    for i in 0..3000 {
        let message = Message::from([i.to_string().as_bytes(), &payload]);
        let delivery = publisher.send(message).await.unwrap();
        assert_eq!(delivery.matched, 2);
        queued_for_both += delivery.queued;
        // in step with the one that reads, so that only the other one can be at its mark
        assert_eq!(good.recv().unwrap()[0], i.to_string().into_bytes());
    }
    let for_stalled = queued_for_both - 3000;
    assert!(for_stalled < 3000, "the kernel took all of it");
    assert_eq!(publisher.stats().outgoing.dropped.total(), 3000 - for_stalled as u64);
    for _ in 0..for_stalled {
        stalled.recv().unwrap();
    }
    assert_eq!(stalled.try_recv(), Err(libzmq::Error::AGAIN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xpub_that_waits_loses_nothing() {
    let context = Context::new();
    let options = tight(10).on_full(OnFull::Wait);
    let mut xpub = XPubSocket::with_options(options).unwrap();
    let endpoint = xpub.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let sub = stalled(&context, &endpoint);
    let told = within("a subscription", xpub.recv()).await.unwrap();
    assert_eq!(frames(&told), subscription(""));

    let payload = vec![b'x'; 1000];
    let mut sent: u64 = 0;
    let message = |i: u64| Message::from([i.to_string().as_bytes(), &payload]);
    // until it would have to wait, and still would after a while in which nobody reads
    loop {
        while xpub.try_send(message(sent)).is_ok() {
            sent += 1;
        }
        let waiting = tokio::time::timeout(Duration::from_millis(200), xpub.send(message(sent)));
        match waiting.await {
            Ok(delivery) => assert_eq!(delivery.unwrap().queued, 1),
            Err(_) => break,
        }
        sent += 1;
    }
    let outgoing = xpub.stats().outgoing;
    assert_eq!(outgoing.queued, 10);
    assert_eq!((outgoing.accepted, outgoing.dropped.total()), (sent, 0));

    // it goes on when the subscriber does, and the message that waited in vain was not sent
    let sender = xpub.sender();
    let rest = tokio::spawn(async move {
        for i in sent..sent + 1000 {
            let message = Message::from([i.to_string().as_bytes(), &[b'x'; 1000]]);
            assert_eq!(sender.send(message).await.unwrap().queued, 1);
        }
    });
    for i in 0..sent + 1000 {
        assert_eq!(sub.recv().unwrap()[0], i.to_string().into_bytes());
    }
    within("all is sent", rest).await.unwrap();
    assert_eq!(sub.try_recv(), Err(libzmq::Error::AGAIN));
    assert_eq!(xpub.stats().outgoing.dropped.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_takes_no_more_than_its_mark() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let context = Context::new();
        let place = Place::new(transport);
        let options = SocketOptions::new().recv_hwm(10).recv_buffer(4096);
        let mut pull = PullSocket::with_options(options).unwrap();
        let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
        let push = context.socket(SocketType::Push);
        push.set(Opt::SndHwm, 10).unwrap();
        push.set(Opt::SndBuf, 4096).unwrap();
        push.connect(&endpoint).unwrap();
        // until libzmq has had no room for a while
        push.set(Opt::SndTimeo, 300).unwrap();
        let mut sent = 0;
        while push.send([sent.to_string().as_bytes(), &[b'x'; 1000]]).is_ok() {
            sent += 1;
            assert!(sent < 100_000, "it takes everything");
        }
        let incoming = pull.stats().incoming;
        assert_eq!((incoming.queued, incoming.delivered), (10, 0), "{incoming:?}");
        for i in 0..sent {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(received.frame(0), Some(i.to_string().as_bytes()));
        }
        let incoming = pull.stats().incoming;
        assert_eq!((incoming.received, incoming.delivered, incoming.queued), (sent, sent, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_to_a_stalled_libzmq_waits_and_loses_nothing() {
    let context = Context::new();
    let pull = context.socket(SocketType::Pull);
    pull.set(Opt::RcvHwm, 1).unwrap();
    pull.set(Opt::RcvBuf, 4096).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").unwrap();
    let push = PushSocket::with_options(tight(10)).unwrap();
    push.connect(&endpoint).await.unwrap();
    let payload = [b'x'; 1000];
    let message = |i: u64| Message::from([i.to_string().as_bytes(), &payload]);
    let mut sent = 0;
    let patience = Duration::from_millis(200);
    while let Ok(done) = tokio::time::timeout(patience, push.send(message(sent))).await {
        done.unwrap();
        sent += 1;
    }
    let outgoing = push.stats().outgoing;
    assert_eq!((outgoing.queued, outgoing.accepted), (10, sent), "{outgoing:?}");
    for i in 0..sent {
        assert_eq!(pull.recv().unwrap()[0], i.to_string().into_bytes());
    }
    assert_eq!(pull.try_recv(), Err(libzmq::Error::AGAIN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_shares_out_evenly_between_libzmq_peers() {
    let context = Context::new();
    let push = PushSocket::new();
    let endpoint = push.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let pulls: Vec<Socket> = (0..4).map(|_| context.socket(SocketType::Pull)).collect();
    for pull in &pulls {
        pull.connect(&endpoint).unwrap();
    }
    until("all are there", || push.stats().connections == 4).await;
    for i in 0..400 {
        push.send(i.to_string()).await.unwrap();
    }
    let mut all = Vec::new();
    for pull in &pulls {
        for _ in 0..100 {
            let received = pull.recv().unwrap();
            all.push(std::str::from_utf8(&received[0]).unwrap().parse::<u32>().unwrap());
        }
        assert_eq!(pull.try_recv(), Err(libzmq::Error::AGAIN));
    }
    all.sort_unstable();
    assert_eq!(all, (0..400).collect::<Vec<_>>());
}
