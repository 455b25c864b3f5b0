//! Peers that are killed, restarted and late.

use std::io::ErrorKind;

use dragonwire::{
    DropReason, Endpoint, Error, Event, Message, Monitor, PubSocket, PullSocket, PushSocket,
    SubSocket, XPubSocket,
};
use dragonwire_interop::libzmq::{Context, SocketType};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::process::{Process, to_hex};
use dragonwire_interop::side::{Maker, cancellation, frames, subscription, texts};
use dragonwire_interop::{GLANCE, until, within};

const LINES: &str = env!("CARGO_BIN_EXE_libzmq_lines");

/// Binds an endpoint that was bound a moment before. A process that another test is just starting
/// still has all of this one's files open, the listening socket among them.
async fn until_bound<F: Future<Output = Result<Endpoint, Error>>>(
    what: &str,
    bind: impl Fn() -> F,
) {
    within(what, async {
        loop {
            match bind().await {
                Ok(_) => return,
                Err(Error::Bind { source, .. }) if source.kind() == ErrorKind::AddrInUse => {
                    tokio::time::sleep(GLANCE).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
}

async fn see(monitor: &mut Monitor, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
    within(what, async {
        loop {
            let event = monitor.recv().await.expect("an open socket");
            if wanted(&event) {
                return event;
            }
        }
    })
    .await
}

fn is_gone(event: &Event) -> bool {
    matches!(event, Event::Disconnected { .. })
}

fn is_there(event: &Event) -> bool {
    matches!(event, Event::HandshakeSucceeded { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_subscribes_again_by_itself() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let mut publisher = Process::start(LINES, &["xpub", "--bind", place.endpoint()]);
        let endpoint = publisher.endpoint().to_owned();
        let mut sub = SubSocket::new();
        sub.subscribe("a").unwrap();
        let mut monitor = sub.monitor();
        sub.connect(&endpoint).await.unwrap();
        assert_eq!(publisher.recv(), subscription("a"));
        sub.subscribe("b").unwrap();
        assert_eq!(publisher.recv(), subscription("b"));
        sub.subscribe("c").unwrap();
        assert_eq!(publisher.recv(), subscription("c"));
        sub.unsubscribe("c").unwrap();
        assert_eq!(publisher.recv(), cancellation("c"));
        for round in 0..3 {
            assert!(publisher.send(&["a", &round.to_string()]));
            let received = within("a message", sub.recv()).await.unwrap();
            assert_eq!(frames(&received), texts(&["a", &round.to_string()]));
            publisher.kill();
            see(&mut monitor, "the end of the connection", is_gone).await;
            publisher = Process::start(LINES, &["xpub", "--bind", &endpoint]);
            let mut told = [publisher.recv(), publisher.recv()];
            told.sort();
            assert_eq!(told, [subscription("a"), subscription("b")]);
        }
        assert!(publisher.send(&["b", "the end"]));
        let received = within("a message", sub.recv()).await.unwrap();
        assert_eq!(frames(&received), texts(&["b", "the end"]));
        publisher.finish();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_subscriber_takes_its_subscriptions_along() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let mut xpub = XPubSocket::new();
        let endpoint = xpub.bind(place.endpoint()).await.unwrap().to_string();
        for _ in 0..2 {
            let arguments =
                ["sub", "--subscribe", &to_hex(b"a"), "--subscribe", &to_hex(b"b"), "--connect"];
            let mut sub = Process::start(LINES, &[&arguments[..], &[&endpoint]].concat());
            let mut told = Vec::new();
            for _ in 0..2 {
                let message = within("a subscription", xpub.recv()).await.unwrap();
                told.push(frames(&message));
            }
            told.sort();
            assert_eq!(told, [subscription("a"), subscription("b")]);
            let delivery = xpub.send(Message::from(["b", "x"])).await.unwrap();
            assert_eq!((delivery.matched, delivery.queued), (1, 1));
            assert_eq!(sub.recv(), texts(&["b", "x"]));
            sub.kill();
            told.clear();
            for _ in 0..2 {
                let message = within("a cancellation", xpub.recv()).await.unwrap();
                told.push(frames(&message));
            }
            told.sort();
            assert_eq!(told, [cancellation("a"), cancellation("b")]);
            assert_eq!(xpub.send(Message::from(["b", "x"])).await.unwrap().matched, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_goes_on_where_it_stopped() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let mut pull = Process::start(LINES, &["pull", "--bind", place.endpoint()]);
        let endpoint = pull.endpoint().to_owned();
        let push = PushSocket::new();
        let mut monitor = push.monitor();
        push.connect(&endpoint).await.unwrap();
        let mut next = 0;
        for _ in 0..3 {
            for _ in 0..5 {
                push.send(next.to_string()).await.unwrap();
                assert_eq!(pull.recv(), texts(&[&next.to_string()]));
                next += 1;
            }
            pull.kill();
            see(&mut monitor, "the end of the connection", is_gone).await;
            // what is sent while nobody is there waits
            for i in next..next + 100 {
                within("room in the queue", push.send(i.to_string())).await.unwrap();
            }
            pull = Process::start(LINES, &["pull", "--bind", &endpoint]);
            for _ in 0..100 {
                assert_eq!(pull.recv(), texts(&[&next.to_string()]));
                next += 1;
            }
        }
        let outgoing = push.stats().outgoing;
        assert_eq!((outgoing.accepted, outgoing.dropped.total()), (next, 0));
        until("all is sent", || push.stats().outgoing.sent == next).await;
        pull.finish();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_takes_up_with_a_restarted_pusher() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let mut pull = PullSocket::new();
        let mut monitor = pull.monitor();
        let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
        for round in 0..3 {
            let mut push = Process::start(LINES, &["push", "--connect", &endpoint]);
            see(&mut monitor, "a peer", is_there).await;
            for i in 0..10 {
                let message = [round.to_string(), i.to_string()];
                assert!(push.send(&message));
                let received = within("a message", pull.recv()).await.unwrap();
                assert_eq!(frames(&received), message.map(String::into_bytes));
            }
            push.kill();
            see(&mut monitor, "the end of the connection", is_gone).await;
        }
        let mut push = Process::start(LINES, &["push", "--connect", &endpoint]);
        assert!(push.send(&["the end"]));
        push.finish();
        let received = within("a message", pull.recv()).await.unwrap();
        assert_eq!(frames(&received), texts(&["the end"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_comes_back_to_a_restarted_dragonwire() {
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let mut pull = PullSocket::new();
        let mut publisher = PubSocket::new();
        let publisher_place = Place::new(transport);
        let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
        let published = publisher.bind(publisher_place.endpoint()).await.unwrap().to_string();
        let mut push =
            Process::start(LINES, &["push", "--set", "RECONNECT_IVL=20", "--connect", &endpoint]);
        let mut sub = Process::start(
            LINES,
            &["sub", "--set", "RECONNECT_IVL=20", "--subscribe", "-", "--connect", &published],
        );
        for round in 0..3 {
            assert!(push.send(&["up", &round.to_string()]));
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(frames(&received), texts(&["up", &round.to_string()]));
            within("a subscriber", publisher.wait_for_subscribers("", 1)).await.unwrap();
            publisher.send(Message::from(["down", "x"])).await.unwrap();
            assert_eq!(sub.recv(), texts(&["down", "x"]));

            within("pull closes", pull.close()).await;
            within("publisher closes", publisher.close()).await;
            pull = PullSocket::new();
            publisher = PubSocket::new();
            until_bound("pull", || pull.bind(&endpoint)).await;
            until_bound("publisher", || publisher.bind(&published)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_late_gets_all_from_then_on() {
    for maker in Maker::BOTH {
        let context = Context::new();
        let publisher = maker.socket(&context, SocketType::Pub);
        let endpoint = publisher.bind("tcp://127.0.0.1:*").await;
        let mut early = maker.other().socket(&context, SocketType::Sub);
        early.subscribe(b"n").await;
        early.connect(&endpoint).await;
        publisher.settle(&mut early).await;
        let mut next = 0;
        for _ in 0..50 {
            publisher.send(&texts(&["n", &next.to_string()])).await;
            next += 1;
        }
        let mut late = maker.other().socket(&context, SocketType::Sub);
        late.subscribe(b"n").await;
        late.connect(&endpoint).await;
        publisher.settle(&mut late).await;
        let first_for_late = next;
        for _ in 0..50 {
            publisher.send(&texts(&["n", &next.to_string()])).await;
            next += 1;
        }
        for i in 0..next {
            assert_eq!(early.recv().await, texts(&["n", &i.to_string()]));
        }
        for i in first_for_late..next {
            assert_eq!(late.recv().await, texts(&["n", &i.to_string()]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_killed_publisher_of_three_costs_the_others_nothing() {
    let places = [Transport::Tcp, Transport::Ipc, Transport::Abstract].map(Place::new);
    let mut publishers: Vec<Process> =
        places.iter().map(|p| Process::start(LINES, &["xpub", "--bind", p.endpoint()])).collect();
    let mut sub = SubSocket::new();
    sub.subscribe("n").unwrap();
    let mut monitor = sub.monitor();
    for publisher in &publishers {
        assert!(sub.add(publisher.endpoint()).await.unwrap());
    }
    within("all have taken the subscription", sub.ready()).await.unwrap();
    for publisher in &mut publishers {
        assert_eq!(publisher.recv(), subscription("n"));
    }
    let victim = publishers.remove(1);
    let endpoint = victim.endpoint().to_owned();
    let mut victim = Some(victim);
    for i in 0..200 {
        if i == 50 {
            victim.take().unwrap().kill();
            see(&mut monitor, "the end of the connection", is_gone).await;
        }
        if i == 100 {
            let mut again = Process::start(LINES, &["xpub", "--bind", &endpoint]);
            assert_eq!(again.recv(), subscription("n"));
            victim = Some(again);
        }
        if i == 150 {
            assert!(sub.remove(&endpoint).await.unwrap());
            assert_eq!(victim.as_mut().unwrap().recv(), cancellation("n"));
        }
        for (name, publisher) in ["0", "2"].iter().zip(&mut publishers) {
            assert!(publisher.send(&["n", name, &i.to_string()]));
        }
    }
    let mut next = [0, 0];
    for _ in 0..400 {
        let received = frames(&within("a message", sub.recv()).await.unwrap());
        let slot = usize::from(received[1] == b"2");
        assert_eq!(received[2], next[slot].to_string().into_bytes());
        next[slot] += 1;
    }
    assert_eq!(next, [200, 200]);
    assert_eq!(sub.stats().incoming.dropped.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_subscriber_had_queued_is_counted() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let sub = Process::start(
        LINES,
        &[
            "sub",
            "--set",
            "RCVHWM=1",
            "--set",
            "RCVBUF=4096",
            "--subscribe",
            "-",
            "--connect",
            &endpoint,
        ],
    );
    within("a subscriber", publisher.wait_for_subscribers("", 1)).await.unwrap();
    let mut monitor = publisher.monitor();
    sub.stop();
    let payload = vec![0; 100_000];
    let mut queued = 0;
    for _ in 0..500 {
        queued += publisher.publish("t", &payload).await.unwrap().queued as u64;
    }
    sub.kill();
    see(&mut monitor, "the end of the connection", is_gone).await;
    let outgoing = publisher.stats().outgoing;
    assert!(outgoing.dropped.get(DropReason::PeerGone) > 0, "{outgoing:?}");
    assert_eq!(outgoing.queued, 0);
    assert_eq!(queued, outgoing.sent + outgoing.dropped.get(DropReason::PeerGone));
    assert_eq!(outgoing.accepted, outgoing.sent + outgoing.dropped.total());
}
