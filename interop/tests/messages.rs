//! Messages of every size that an encoding treats differently, and of many frames; long and binary
//! topics.

use dragonwire::SocketType::{Pub, Pull, Push, Sub, XPub, XSub};
use dragonwire::{DisconnectCause, Event, Message, ProtocolError, PushSocket, SocketOptions};
use dragonwire_interop::libzmq::{Context, Opt};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::side::{Dragon, Frames, Maker, Side, frames, subscription, texts};
use dragonwire_interop::within;

/// Dragonwire pushes to libzmq, and the other way round.
async fn push_each(transport: Transport, options: &SocketOptions, messages: &[Frames]) {
    for maker in Maker::BOTH {
        let context = Context::new();
        let side = |maker, kind| match maker {
            Maker::Dragonwire => Side::Dragonwire(Dragon::new(kind, options.clone())),
            Maker::Libzmq => maker.socket(&context, kind),
        };
        let (push, mut pull) = (side(maker, Push), side(maker.other(), Pull));
        let place = Place::new(transport);
        push.connect(&pull.bind(place.endpoint()).await).await;
        for message in messages {
            push.send(message).await;
            let received = pull.recv().await;
            // not assert_eq!, which would print megabytes
            assert!(received == *message, "{maker:?}: another message of {}", shape(message));
        }
    }
}

fn shape(message: &[Vec<u8>]) -> String {
    format!("{} frames, {} octets", message.len(), message.iter().map(Vec::len).sum::<usize>())
}

/// Octets that show when they are moved.
fn octets(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_around_every_boundary() {
    let mut sizes = vec![0, 1, 2, 7, 8, 9, 63, 64, 65, 1 << 20];
    for boundary in [255, 256, 4096, 8192, 16_384, 65_535, 65_536, 262_144] {
        sizes.extend([
            boundary - 9,
            boundary - 2,
            boundary - 1,
            boundary,
            boundary + 1,
            boundary + 9,
        ]);
    }
    let single = sizes.iter().map(|size| vec![octets(*size)]);
    let double = sizes.iter().map(|size| vec![octets(size / 3), octets(*size)]);
    let messages: Vec<Frames> = single.chain(double).collect();
    for transport in [Transport::Tcp, Transport::Ipc] {
        push_each(transport, &SocketOptions::new(), &messages).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_frames() {
    let frames: Frames = (0..1000).map(|i| octets(i % 300)).collect();
    let empty = vec![Vec::new(); 1000];
    for transport in [Transport::Tcp, Transport::Ipc] {
        push_each(transport, &SocketOptions::new(), &[frames.clone(), empty.clone()]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes() {
    let options = SocketOptions::new().max_message_size(Some(65 << 20));
    let whole = vec![octets((64 << 20) + 1)];
    let parts = vec![octets(40 << 20), Vec::new(), octets(24 << 20)];
    for transport in [Transport::Tcp, Transport::Ipc] {
        push_each(transport, &options, &[whole.clone(), parts.clone()]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_disturbs_nobody_else() {
    let context = Context::new();
    let pull = Dragon::new(Pull, SocketOptions::new().max_message_size(Some(10_000)));
    let mut monitor = pull.monitor();
    let mut pull = Side::Dragonwire(pull);
    let endpoint = pull.bind("tcp://127.0.0.1:*").await;
    let (good, bad) = (context.socket(Push), context.socket(Push));
    good.connect(&endpoint).unwrap();
    bad.connect(&endpoint).unwrap();
    bad.send([octets(10_000)]).unwrap();
    assert_eq!(pull.recv().await, [octets(10_000)]);
    bad.send([octets(10_001)]).unwrap();
    let cause = within("the connection ends", async {
        loop {
            match monitor.recv().await {
                Some(Event::Disconnected { cause, .. }) => return cause,
                Some(_) => {}
                None => panic!("the monitor has ended"),
            }
        }
    });
    let cause = cause.await;
    let DisconnectCause::Protocol(ProtocolError::FrameTooLarge { announced, limit }) = cause else {
        panic!("{cause:?}")
    };
    assert_eq!((announced, limit), (10_001, 10_000));
    good.send(["good"]).unwrap();
    assert_eq!(pull.recv().await, texts(&["good"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_that_limits_sizes_loses_only_what_is_too_large() {
    let context = Context::new();
    let pull = context.socket(Pull);
    pull.set_max_message_size(1000).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").unwrap();
    let push = PushSocket::new();
    let mut monitor = push.monitor();
    push.connect(endpoint).await.unwrap();
    push.send(Message::from(octets(1000))).await.unwrap();
    assert_eq!(pull.recv().unwrap(), [octets(1000)]);
    push.send(Message::from(octets(1001))).await.unwrap();
    within("it connects again", async {
        let mut gone = false;
        loop {
            match monitor.recv().await {
                Some(Event::Disconnected { .. }) => gone = true,
                Some(Event::HandshakeSucceeded { .. }) if gone => return,
                Some(_) => {}
                None => panic!("the monitor has ended"),
            }
        }
    })
    .await;
    push.send("after").await.unwrap();
    assert_eq!(pull.recv().unwrap(), texts(&["after"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_and_binary_topics() {
    let topics = [
        octets(255),
        octets(256),
        octets(257),
        octets(70_000),
        vec![0],
        vec![0; 3],
        vec![1, 0],
        vec![0xff; 300],
        (0..=255).collect(),
        Vec::new(),
    ];
    for maker in Maker::BOTH {
        for subscriber_type in [Sub, XSub] {
            for topic in &topics {
                let context = Context::new();
                let mut publisher = maker.socket(&context, XPub);
                let mut subscriber = maker.other().socket(&context, subscriber_type);
                subscriber.subscribe(topic).await;
                subscriber.connect(&publisher.bind("tcp://127.0.0.1:*").await).await;
                let told = publisher.recv().await;
                assert!(told == subscription(topic), "{maker:?}: {}", shape(&told));
                let mut near = topic.clone();
                if near.pop().is_some() {
                    publisher.send(&[near]).await;
                }
                let there = vec![[&topic[..], b"+"].concat(), b"payload".to_vec()];
                publisher.send(&there).await;
                assert!(subscriber.recv().await == there, "{maker:?}, {}", topic.len());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_topics_at_once() {
    for maker in Maker::BOTH {
        let context = Context::new();
        let publisher = maker.socket(&context, Pub);
        let mut subscriber = maker.other().socket(&context, Sub);
        if let Side::Libzmq(socket) = &subscriber {
            // its subscriptions beyond the mark never leave
            socket.set(Opt::SndHwm, 0).unwrap();
        }
        for i in 0..10_000 {
            subscriber.subscribe(format!("topic-{i}.").as_bytes()).await;
        }
        subscriber.connect(&publisher.bind("tcp://127.0.0.1:*").await).await;
        publisher.settle(&mut subscriber).await;
        for i in (0..20_000).step_by(500) {
            publisher.send(&texts(&[&format!("topic-{i}."), "x"])).await;
        }
        for i in (0..10_000).step_by(500) {
            assert_eq!(subscriber.recv().await, texts(&[&format!("topic-{i}."), "x"]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_of_publish_are_two_frames() {
    let context = Context::new();
    let publisher = dragonwire::PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let subscriber = context.socket(Sub);
    subscriber.subscribe("t").unwrap();
    subscriber.connect(&endpoint).unwrap();
    within("a subscriber", publisher.wait_for_subscribers("t", 1)).await.unwrap();
    let delivery = publisher.publish("t1", "payload").await.unwrap();
    assert_eq!((delivery.matched, delivery.queued, delivery.dropped), (1, 1, 0));
    let delivery = publisher.publish("u", "payload").await.unwrap();
    assert_eq!((delivery.matched, delivery.queued, delivery.dropped), (0, 0, 0));
    assert_eq!(subscriber.recv().unwrap(), texts(&["t1", "payload"]));
    let message = Message::from(["t", "", "z"]);
    publisher.send(message.clone()).await.unwrap();
    assert_eq!(subscriber.recv().unwrap(), frames(&message));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_is_ready_misses_nothing() {
    let context = Context::new();
    for _ in 0..50 {
        let publisher = context.socket(Pub);
        let endpoint = publisher.bind("tcp://127.0.0.1:*").unwrap();
        let mut sub = dragonwire::SubSocket::new();
        for i in 0..500 {
            sub.subscribe(format!("{i}.")).unwrap();
        }
        sub.connect(&endpoint).await.unwrap();
        within("libzmq has read the subscriptions", sub.ready()).await.unwrap();
        // libzmq's thread answers before it hands on what it has read, and has done so when it
        // answers again
        sub.subscribe("another").unwrap();
        within("libzmq has read one more", sub.ready()).await.unwrap();
        publisher.events();
        for i in 0..500 {
            publisher.send([format!("{i}.")]).unwrap();
        }
        for i in 0..500 {
            let received = within("a message", sub.recv()).await.unwrap();
            assert_eq!(received, Message::from(format!("{i}.")));
        }
    }
}
