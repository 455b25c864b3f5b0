//! The end of sockets and endpoints: nothing that was sent in time is lost, and nobody else notices.

use std::time::Duration;

use dragonwire::{
    DropReason, Event, Message, Monitor, PubSocket, PullSocket, PushSocket, SocketOptions,
    SubSocket, XPubSocket,
};
use dragonwire_interop::libzmq::{self, Context, MonitorEvent, Opt, SocketType};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::side::{Maker, Side, cancellation, frames, subscription, texts};
use dragonwire_interop::{DEADLINE, until, within};

const PAYLOAD: [u8; 1000] = [b'x'; 1000];

async fn see(monitor: &mut Monitor, what: &str, wanted: impl Fn(&Event) -> bool) {
    within(what, async { while !wanted(&monitor.recv().await.expect("an open socket")) {} }).await;
}

fn is_gone(event: &Event) -> bool {
    matches!(event, Event::Disconnected { .. })
}

fn is_there(event: &Event) -> bool {
    matches!(event, Event::HandshakeSucceeded { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn push_sends_the_rest_before_it_closes() {
    let context = Context::new();
    for transport in Transport::ALL {
        for dropped in [false, true] {
            let place = Place::new(transport);
            let pull = context.socket(SocketType::Pull);
            let endpoint = pull.bind(place.endpoint()).unwrap();
            let push = PushSocket::new();
            push.connect(&endpoint).await.unwrap();
            for i in 0..500 {
                let message = Message::from([i.to_string().as_bytes(), &PAYLOAD]);
                within("room", push.send(message)).await.unwrap();
            }
            if dropped {
                drop(push);
            } else {
                let report = within("it closes", push.close()).await;
                assert_eq!(report.discarded, 0);
                assert!(report.flushed <= 500);
                let outgoing = push.stats().outgoing;
                assert_eq!((outgoing.sent, outgoing.queued), (500, 0));
            }
            for i in 0..500 {
                assert_eq!(pull.recv().unwrap()[0], i.to_string().into_bytes());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_sends_the_rest_before_it_closes() {
    for transport in Transport::ALL {
        let context = Context::new();
        let place = Place::new(transport);
        let mut pull = PullSocket::new();
        let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
        let push = context.socket(SocketType::Push);
        push.set(Opt::Linger, DEADLINE.as_millis() as i32).unwrap();
        push.connect(&endpoint).unwrap();
        for i in 0..500 {
            push.send([i.to_string().as_bytes(), &PAYLOAD]).unwrap();
        }
        drop(push);
        for i in 0..500 {
            let received = within("a message", pull.recv()).await.unwrap();
            assert_eq!(received.frame(0), Some(i.to_string().as_bytes()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pub_sends_the_rest_before_it_closes() {
    for maker in Maker::BOTH {
        let context = Context::new();
        let publisher = maker.socket(&context, SocketType::Pub);
        if let Side::Libzmq(socket) = &publisher {
            socket.set(Opt::Linger, DEADLINE.as_millis() as i32).unwrap();
        }
        let mut sub = maker.other().socket(&context, SocketType::Sub);
        sub.subscribe(b"t").await;
        sub.connect(&publisher.bind("tcp://127.0.0.1:*").await).await;
        publisher.settle(&mut sub).await;
        for i in 0..500 {
            publisher.send(&texts(&["t", &i.to_string()])).await;
        }
        match publisher {
            Side::Dragonwire(dragonwire_interop::side::Dragon::Pub(socket)) => {
                assert_eq!(within("it closes", socket.close()).await.discarded, 0);
            }
            libzmq => drop(libzmq),
        }
        for i in 0..500 {
            assert_eq!(sub.recv().await, texts(&["t", &i.to_string()]));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_linger_was_too_short_for_is_counted() {
    let context = Context::new();
    let pull = context.socket(SocketType::Pull);
    pull.set(Opt::RcvHwm, 1).unwrap();
    pull.set(Opt::RcvBuf, 16_384).unwrap();
    let endpoint = pull.bind("tcp://127.0.0.1:*").unwrap();
    let linger = Duration::from_millis(200);
    let options = SocketOptions::new().linger(Some(linger)).send_hwm(0).send_buffer(16_384);
    let push = PushSocket::with_options(options).unwrap();
    push.connect(&endpoint).await.unwrap();
    let accepted = 5000;
    for i in 0..accepted {
        push.send(Message::from([i.to_string().as_bytes(), &PAYLOAD])).await.unwrap();
    }
    let report = within("it closes", push.close()).await;
    let outgoing = push.stats().outgoing;
    assert!(report.discarded > 0, "{report:?}");
    assert_eq!(outgoing.dropped.get(DropReason::Linger), report.discarded);
    assert_eq!(outgoing.dropped.total(), report.discarded);
    assert_eq!(outgoing.sent + report.discarded, accepted);
    assert_eq!(outgoing.queued, 0);
    // what the kernel had whole arrives, and nothing else
    for i in 0..outgoing.sent {
        assert_eq!(pull.recv().unwrap()[0], i.to_string().into_bytes());
    }
    assert_eq!(pull.recv_within(Duration::from_millis(100)), Err(libzmq::Error::AGAIN));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unbind_closes_its_connections_and_no_others() {
    let context = Context::new();
    let places = [Transport::Tcp, Transport::Ipc].map(Place::new);
    let mut pull = PullSocket::new();
    let mut peers = Vec::new();
    for place in &places {
        let endpoint = pull.bind(place.endpoint()).await.unwrap().to_string();
        let push = context.socket(SocketType::Push);
        let monitor = push.monitor();
        push.connect(&endpoint).unwrap();
        monitor.wait_for(&[MonitorEvent::HANDSHAKE_SUCCEEDED]);
        peers.push((endpoint, push, monitor));
    }
    let (endpoint, push, monitor) = peers.remove(0);
    push.send(["before"]).unwrap();
    assert_eq!(frames(&within("a message", pull.recv()).await.unwrap()), texts(&["before"]));
    within("unbind", pull.unbind(&endpoint)).await.unwrap();
    monitor.wait_for(&[MonitorEvent::DISCONNECTED]);
    // nobody listens there any more, and the other one goes on
    monitor.wait_for(&[MonitorEvent::CLOSED]);
    let (_, other, other_monitor) = &peers[0];
    other.send(["other"]).unwrap();
    assert_eq!(frames(&within("a message", pull.recv()).await.unwrap()), texts(&["other"]));
    while let Some(event) = other_monitor.next_within(Duration::ZERO) {
        assert_ne!(event.event, MonitorEvent::DISCONNECTED);
    }
    // bound again, it comes back
    push.send(["again"]).unwrap();
    pull.bind(&endpoint).await.unwrap();
    assert_eq!(frames(&within("a message", pull.recv()).await.unwrap()), texts(&["again"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unbind_of_a_publisher_sends_the_rest() {
    let context = Context::new();
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let sub = context.socket(SocketType::Sub);
    let monitor = sub.monitor();
    sub.subscribe("").unwrap();
    sub.connect(&endpoint).unwrap();
    within("a subscriber", publisher.wait_for_subscribers("", 1)).await.unwrap();
    for i in 0..500 {
        let delivery = publisher.publish(i.to_string(), PAYLOAD).await.unwrap();
        assert_eq!(delivery.queued, 1);
    }
    within("unbind", publisher.unbind(&endpoint)).await.unwrap();
    monitor.wait_for(&[MonitorEvent::DISCONNECTED]);
    for i in 0..500 {
        assert_eq!(sub.recv().unwrap()[0], i.to_string().into_bytes());
    }
    assert_eq!(publisher.stats().outgoing.dropped.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnect_sends_the_rest() {
    let context = Context::new();
    for transport in [Transport::Tcp, Transport::Ipc] {
        let place = Place::new(transport);
        let pull = context.socket(SocketType::Pull);
        let monitor = pull.monitor();
        let endpoint = pull.bind(place.endpoint()).unwrap();
        let push = PushSocket::new();
        push.connect(&endpoint).await.unwrap();
        for i in 0..500 {
            let message = Message::from([i.to_string().as_bytes(), &PAYLOAD]);
            within("room", push.send(message)).await.unwrap();
        }
        within("disconnect", push.disconnect(&endpoint)).await.unwrap();
        for i in 0..500 {
            assert_eq!(pull.recv().unwrap()[0], i.to_string().into_bytes());
        }
        monitor.wait_for(&[MonitorEvent::DISCONNECTED]);
        assert!(push.endpoints().is_empty());
        // and it can be connected to again
        push.connect(&endpoint).await.unwrap();
        push.send("again").await.unwrap();
        assert_eq!(pull.recv().unwrap(), texts(&["again"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_unbinds_and_binds_again() {
    let context = Context::new();
    let xpub = context.socket(SocketType::XPub);
    let place = Place::fixed(Transport::Ipc);
    xpub.bind(place.endpoint()).unwrap();
    let mut sub = SubSocket::new();
    sub.subscribe("a").unwrap();
    let mut monitor = sub.monitor();
    sub.connect(place.endpoint()).await.unwrap();
    assert_eq!(xpub.recv().unwrap(), subscription("a"));
    for _ in 0..3 {
        xpub.unbind(place.endpoint()).unwrap();
        // libzmq closes the connections in the course of its socket's next use
        assert_eq!(xpub.recv().unwrap(), cancellation("a"));
        see(&mut monitor, "the end of the connection", is_gone).await;
        until("the path is free", || xpub.bind(place.endpoint()).is_ok()).await;
        assert_eq!(xpub.recv().unwrap(), subscription("a"));
        xpub.send(["a", "x"]).unwrap();
        assert_eq!(frames(&within("a message", sub.recv()).await.unwrap()), texts(&["a", "x"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmq_disconnects() {
    let context = Context::new();
    let mut xpub = XPubSocket::new();
    let mut monitor = xpub.monitor();
    let endpoint = xpub.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let (one, two) = (context.socket(SocketType::Sub), context.socket(SocketType::Sub));
    for (sub, topic) in [(&one, "one"), (&two, "two")] {
        sub.subscribe(topic).unwrap();
        sub.connect(&endpoint).unwrap();
        see(&mut monitor, "a peer", is_there).await;
        let told = within("a subscription", xpub.recv()).await.unwrap();
        assert_eq!(frames(&told), subscription(topic));
    }
    one.disconnect(&endpoint).unwrap();
    // libzmq closes the connection in the course of its socket's next use
    until("the cancellation", || {
        one.events();
        xpub.stats().incoming.queued > 0
    })
    .await;
    let told = within("a cancellation", xpub.recv()).await.unwrap();
    assert_eq!(frames(&told), cancellation("one"));
    see(&mut monitor, "the end of the connection", is_gone).await;
    assert_eq!(xpub.send("two").await.unwrap().queued, 1);
    assert_eq!(two.recv().unwrap(), texts(&["two"]));
    one.connect(&endpoint).unwrap();
    let told = within("a subscription", xpub.recv()).await.unwrap();
    assert_eq!(frames(&told), subscription("one"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_application_did_not_receive_is_reported() {
    let context = Context::new();
    let pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let push = context.socket(SocketType::Push);
    push.connect(&endpoint).unwrap();
    for i in 0..50 {
        push.send([i.to_string()]).unwrap();
    }
    until("all have come", || pull.stats().incoming.received == 50).await;
    assert_eq!(within("it closes", pull.close()).await.unread, 50);
    let incoming = pull.stats().incoming;
    assert_eq!((incoming.delivered, incoming.dropped.get(DropReason::Closed)), (0, 50));
}
