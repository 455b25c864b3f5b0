//! Every pair of socket types, with dragonwire on either side of it, either side binding, over every
//! transport.

use dragonwire::SocketType::{self, Pub, Pull, Push, Sub, XPub, XSub};
use dragonwire_interop::libzmq::Context;
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::side::{Frames, Maker, Side, cancellation, subscription, texts};

/// A test for each pair and each maker of its first socket.
macro_rules! pairs {
    ($($name:ident: $scenario:ident($from:expr, $to:expr) with $maker:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let context = Context::new();
            for transport in Transport::ALL {
                for first_binds in [true, false] {
                    println!("{transport:?}, {} binds", if first_binds { $from } else { $to });
                    let mut from = Maker::$maker.socket(&context, $from);
                    let mut to = Maker::$maker.other().socket(&context, $to);
                    let place = Place::new(transport);
                    $scenario((&mut from, $from), (&mut to, $to), first_binds, &place).await;
                }
            }
        }
    )*};
}

pairs! {
    pub_to_libzmq_sub: publish(Pub, Sub) with Dragonwire;
    pub_to_libzmq_xsub: publish(Pub, XSub) with Dragonwire;
    xpub_to_libzmq_sub: publish(XPub, Sub) with Dragonwire;
    xpub_to_libzmq_xsub: publish(XPub, XSub) with Dragonwire;
    libzmq_pub_to_sub: publish(Pub, Sub) with Libzmq;
    libzmq_pub_to_xsub: publish(Pub, XSub) with Libzmq;
    libzmq_xpub_to_sub: publish(XPub, Sub) with Libzmq;
    libzmq_xpub_to_xsub: publish(XPub, XSub) with Libzmq;
    push_to_libzmq_pull: push(Push, Pull) with Dragonwire;
    libzmq_push_to_pull: push(Push, Pull) with Libzmq;
}

async fn meet(from: &Side, to: &Side, first_binds: bool, place: &Place) {
    let (binds, connects) = if first_binds { (from, to) } else { (to, from) };
    let endpoint = binds.bind(place.endpoint()).await;
    connects.connect(&endpoint).await;
}

async fn publish(
    (publisher, publisher_type): (&mut Side, SocketType),
    (subscriber, subscriber_type): (&mut Side, SocketType),
    publisher_binds: bool,
    place: &Place,
) {
    let tells = publisher_type == XPub;
    // one subscription is older than the connection, the others come over it
    subscriber.subscribe(b"a").await;
    meet(publisher, subscriber, publisher_binds, place).await;
    if tells {
        assert_eq!(publisher.recv_from(subscriber).await, subscription("a"));
    }
    for topic in ["bb", "bb", "\0"] {
        subscriber.subscribe(topic.as_bytes()).await;
    }
    if tells {
        assert_eq!(publisher.recv_from(subscriber).await, subscription("bb"));
        assert_eq!(publisher.recv_from(subscriber).await, subscription("\0"));
    } else {
        publisher.settle(subscriber).await;
    }

    let wanted = messages(&["a", "abc", "bb", "bbb", "\0\0"]);
    let others = messages(&["", "b", "A", "c", "\u{1}"]);
    for (wanted, other) in wanted.iter().zip(&others) {
        publisher.send(other).await;
        publisher.send(wanted).await;
    }
    for wanted in &wanted {
        assert_eq!(&subscriber.recv().await, wanted);
    }

    // subscribed to twice: it takes as many cancellations
    for topic in ["bb", "a"] {
        subscriber.unsubscribe(topic.as_bytes()).await;
    }
    if tells {
        assert_eq!(publisher.recv_from(subscriber).await, cancellation("a"));
    } else {
        publisher.settle(subscriber).await;
    }
    let received = received_by(subscriber);
    for message in [texts(&["a", "no"]), texts(&["bb", "yes"]), texts(&["abc"])] {
        publisher.send(&message).await;
    }
    publisher.send(&texts(&["\0", "end"])).await;
    assert_eq!(subscriber.recv().await, texts(&["bb", "yes"]));
    assert_eq!(subscriber.recv().await, texts(&["\0", "end"]));
    if let Some(before) = received {
        let after = received_by(subscriber).expect("the same socket");
        assert_eq!(after - before, 2, "what is not subscribed to does not travel");
    }

    subscriber.unsubscribe(b"bb").await;
    if tells {
        assert_eq!(publisher.recv_from(subscriber).await, cancellation("bb"));
    }
    if subscriber_type == XSub {
        let up = [texts(&["up"]), texts(&["more", "", "z"]), texts(&[""])];
        for message in &up {
            subscriber.send(message).await;
        }
        if tells {
            for message in up {
                assert_eq!(publisher.recv().await, message);
            }
        } else {
            // PUB has no use for them, and goes on
            publisher.settle(subscriber).await;
        }
    }
}

/// What has come off the wire, if dragonwire counts it.
fn received_by(subscriber: &Side) -> Option<u64> {
    match subscriber {
        Side::Dragonwire(socket) => Some(socket.stats().incoming.received),
        Side::Libzmq(_) => None,
    }
}

async fn push(
    (push, _): (&mut Side, SocketType),
    (pull, _): (&mut Side, SocketType),
    push_binds: bool,
    place: &Place,
) {
    meet(push, pull, push_binds, place).await;
    let messages = messages(&["", "a", "b", "\0", "\u{1}"]);
    for message in &messages {
        push.send(message).await;
    }
    for message in &messages {
        assert_eq!(&pull.recv().await, message);
    }
}

/// Messages of one to five frames, some of them empty, for each topic.
fn messages(topics: &[&str]) -> Vec<Frames> {
    let rests: [&[&str]; 8] = [
        &[],
        &[""],
        &["x"],
        &["", ""],
        &["x", ""],
        &["", "x", "yy"],
        &["\0", "", "", "z"],
        &["", "", "", ""],
    ];
    let frames = |topic, rest: &[&str]| texts(&[&[topic], rest].concat());
    topics.iter().flat_map(|topic| rests.iter().map(|rest| frames(*topic, rest))).collect()
}
