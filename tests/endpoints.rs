//! Binding, connecting, and the opposite of both, on every kind of endpoint.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use deadline::{event, within};
use dragonwire::{
    DisconnectCause, Endpoint, EndpointError, EndpointFault, EndpointState, Error, Event, Monitor,
    PubSocket, PullSocket, PushSocket, SocketOptions, SubSocket, XSubSocket,
};

async fn up(monitor: &mut Monitor) {
    event(monitor, |event| matches!(event, Event::HandshakeSucceeded { .. })).await;
}

async fn down(monitor: &mut Monitor) -> DisconnectCause {
    match event(monitor, |event| matches!(event, Event::Disconnected { .. })).await {
        Event::Disconnected { cause, .. } => cause,
        other => panic!("{other:?}"),
    }
}

/// A text that names no endpoint of another test.
fn abstract_name(name: &str) -> String {
    format!("ipc://@dragonwire-endpoints-{}-{name}", std::process::id())
}

#[tokio::test]
async fn one_socket_binds_and_connects_many_endpoints() {
    let mut pull = PullSocket::new();
    let push = PushSocket::new();
    let mut endpoints = Vec::new();
    let many = abstract_name("many");
    for text in ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "ipc://*", "ipc://*", &many] {
        let real = pull.bind(text).await.unwrap();
        assert!(!endpoints.contains(&real));
        push.connect(&real).await.unwrap();
        endpoints.push(real);
    }
    for text in ["tcp://127.0.0.1:*", "ipc://*"] {
        let mut monitor = push.monitor();
        let real = push.bind(text).await.unwrap();
        pull.connect(&real).await.unwrap();
        let here =
            |e: &Event| matches!(e, Event::HandshakeSucceeded { peer } if peer.endpoint == real);
        event(&mut monitor, here).await;
        endpoints.push(real);
    }
    let bound: Vec<_> = pull.endpoints().into_iter().map(|status| status.endpoint).collect();
    assert_eq!(bound, endpoints);
    for i in 0..70u32 {
        push.send(&i.to_be_bytes()).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..70 {
        let message = within(pull.recv()).await.unwrap();
        seen.push(u32::from_be_bytes(message.topic().try_into().unwrap()));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..70).collect::<Vec<_>>());
    // every endpoint had its part
    let stats = pull.stats();
    let mut counts: Vec<_> =
        stats.peers.iter().map(|peer| (&peer.endpoint, peer.incoming.received)).collect();
    assert_eq!(counts.len(), endpoints.len());
    counts.retain(|(endpoint, received)| *received != 10 || !endpoints.contains(endpoint));
    assert_eq!(counts, []);
}

#[tokio::test]
async fn a_wildcard_tells_the_real_endpoint() {
    let named = abstract_name("wildcard");
    for text in
        ["tcp://127.0.0.1:*", "tcp://127.0.0.1:0", "tcp://*:0", "tcp://*:*", "ipc://*", &named]
    {
        let mut pull = PullSocket::new();
        let mut monitor = pull.monitor();
        let real = pull.bind(text).await.unwrap();
        assert!(real.port() != Some(0), "{real}");
        if text == "ipc://*" {
            assert!(real.path().unwrap().exists(), "{real}");
        }
        if text == named {
            assert_eq!(real.to_string(), named);
        }
        let told = within(monitor.recv()).await.unwrap();
        assert_eq!(told, Event::Listening { endpoint: real.clone() });
        let status = pull.endpoints().remove(0);
        assert_eq!(status.endpoint, real);
        assert_eq!(status.state, EndpointState::Listening { connections: 0 });
        let push = PushSocket::new();
        push.connect(real.to_string()).await.unwrap();
        push.send(text).await.unwrap();
        assert_eq!(within(pull.recv()).await.unwrap(), text.into());
        assert_eq!(pull.endpoints()[0].state, EndpointState::Listening { connections: 1 });
    }
}

#[tokio::test]
async fn ipv6_addresses_work() {
    let mut pull = PullSocket::new();
    let real = pull.bind("tcp://[::1]:*").await.unwrap();
    assert!(real.to_string().starts_with("tcp://[::1]:"), "{real}");
    let push = PushSocket::new();
    push.connect(&real).await.unwrap();
    push.send("six").await.unwrap();
    assert_eq!(within(pull.recv()).await.unwrap(), "six".into());
}

#[tokio::test]
async fn all_interfaces_are_of_ipv6_only_when_asked_for() {
    for ipv6 in [true, false] {
        let mut pull = PullSocket::with_options(SocketOptions::new().ipv6(ipv6)).unwrap();
        let port = pull.bind("tcp://*:*").await.unwrap().port().unwrap();
        let four = PushSocket::new();
        four.connect(format!("tcp://127.0.0.1:{port}")).await.unwrap();
        four.send("four").await.unwrap();
        assert_eq!(within(pull.recv()).await.unwrap(), "four".into());
        let six =
            PushSocket::with_options(SocketOptions::new().linger(Some(Duration::ZERO))).unwrap();
        let mut monitor = six.monitor();
        six.connect(format!("tcp://[::1]:{port}")).await.unwrap();
        six.send("six").await.unwrap();
        if ipv6 {
            assert_eq!(within(pull.recv()).await.unwrap(), "six".into());
        } else {
            let retry = event(&mut monitor, |e| matches!(e, Event::Retry { .. })).await;
            let Event::Retry { cause, .. } = retry else { unreachable!() };
            assert!(
                matches!(cause, DisconnectCause::Io(ErrorKind::ConnectionRefused, _)),
                "{cause:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_host_name_is_looked_up() {
    for ipv6 in [false, true] {
        let options = SocketOptions::new().ipv6(ipv6);
        let mut pull = PullSocket::new();
        // with IPv6 the name has an address more, that nobody listens on
        let port = pull.bind("tcp://127.0.0.1:*").await.unwrap().port().unwrap();
        let push = PushSocket::with_options(options).unwrap();
        push.connect(format!("tcp://localhost:{port}")).await.unwrap();
        push.send("by name").await.unwrap();
        assert_eq!(within(pull.recv()).await.unwrap(), "by name".into());
    }
    let mut pull = PullSocket::new();
    let real = pull.bind("tcp://localhost:*").await.unwrap();
    let push = PushSocket::new();
    push.connect(&real).await.unwrap();
    push.send("to a name").await.unwrap();
    assert_eq!(within(pull.recv()).await.unwrap(), "to a name".into());
}

#[tokio::test]
async fn a_connection_comes_from_the_source_address() {
    let mut pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let port = pull.bind("tcp://127.0.0.1:*").await.unwrap().port().unwrap();
    let push = PushSocket::new();
    let asked = format!("tcp://127.0.0.2:0;127.0.0.1:{port}");
    let connected = push.connect(&asked).await.unwrap();
    assert_eq!(connected.to_string(), asked);
    push.send("from there").await.unwrap();
    assert_eq!(within(pull.recv()).await.unwrap(), "from there".into());
    let accepted = event(&mut monitor, |event| matches!(event, Event::Accepted { .. })).await;
    let Event::Accepted { peer } = accepted else { unreachable!() };
    assert_eq!(peer.remote.unwrap().ip(), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
    assert_eq!(push.stats().peers[0].peer.as_ref().unwrap().local, peer.remote);
}

#[tokio::test]
async fn unbinding_frees_the_endpoint_and_closes_what_it_accepted() {
    for text in ["tcp://127.0.0.1:*", "ipc://*", &abstract_name("unbind")] {
        let publisher = PubSocket::new();
        let mut events = publisher.monitor();
        let gone = publisher.bind(text).await.unwrap();
        let stays = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
        let (mut one, mut other) = (SubSocket::new(), SubSocket::new());
        let mut monitor = one.monitor();
        for (subscriber, endpoint) in [(&one, &gone), (&other, &stays)] {
            subscriber.subscribe("").unwrap();
            subscriber.connect(endpoint).await.unwrap();
            within(subscriber.ready()).await.unwrap();
        }
        publisher.publish("before", "").await.unwrap();

        within(publisher.unbind(&gone)).await.unwrap();
        event(&mut events, |e| *e == Event::Unbound { endpoint: gone.clone() }).await;
        if let Some(path) = gone.path() {
            assert!(!path.exists());
        }
        assert_eq!(down(&mut monitor).await, DisconnectCause::PeerClosed);
        let left: Vec<_> = publisher.endpoints().into_iter().map(|s| s.endpoint).collect();
        assert_eq!(left, [stays]);
        // what was sent before is there, and the other endpoint's peer was not disturbed
        assert_eq!(within(one.recv()).await.unwrap().topic(), b"before");
        publisher.publish("after", "").await.unwrap();
        for wanted in ["before", "after"] {
            assert_eq!(within(other.recv()).await.unwrap().topic(), wanted.as_bytes());
        }

        if text.starts_with("ipc://*") {
            continue; // its folder is gone
        }
        // the endpoint is free at once, for anybody
        let successor = PubSocket::new();
        assert_eq!(successor.bind(&gone).await.unwrap(), gone);
        within(one.ready()).await.unwrap();
        within(successor.wait_for_subscribers("", 1)).await.unwrap();
        successor.publish("successor", "").await.unwrap();
        assert_eq!(within(one.recv()).await.unwrap().topic(), b"successor");
        within(successor.unbind(&gone)).await.unwrap();
        publisher.bind(&gone).await.unwrap();
    }
}

#[tokio::test]
async fn unbinding_takes_what_was_asked_for_as_well() {
    let pull = PullSocket::new();
    let real = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    within(pull.unbind("tcp://127.0.0.1:*")).await.unwrap();
    assert_eq!(pull.endpoints(), []);
    TcpListener::bind(("127.0.0.1", real.port().unwrap())).unwrap();
}

#[tokio::test]
async fn unbinding_closes_connections_in_their_handshake() {
    let pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let real = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let silent = tokio::net::TcpStream::connect(("127.0.0.1", real.port().unwrap())).await.unwrap();
    event(&mut monitor, |event| matches!(event, Event::Accepted { .. })).await;
    within(pull.unbind(&real)).await.unwrap();
    let failed = event(&mut monitor, |e| matches!(e, Event::HandshakeFailed { .. })).await;
    let Event::HandshakeFailed { cause, .. } = failed else { unreachable!() };
    assert_eq!(cause, DisconnectCause::Local);
    drop(silent);
}

#[tokio::test]
async fn disconnecting_leaves_other_connections_alone() {
    let (mut one, mut other) = (PullSocket::new(), PullSocket::new());
    let mut monitor = one.monitor();
    let push = PushSocket::new();
    let mut endpoints = Vec::new();
    for pull in [&one, &other] {
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        push.connect(&endpoint).await.unwrap();
        endpoints.push(endpoint);
    }
    for i in 0..10u8 {
        push.send(&[i]).await.unwrap();
    }
    within(push.disconnect(&endpoints[0])).await.unwrap();
    assert_eq!(down(&mut monitor).await, DisconnectCause::PeerClosed);
    for i in 10..20u8 {
        push.send(&[i]).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(within(one.recv()).await.unwrap().topic()[0]);
    }
    for _ in 0..15 {
        seen.push(within(other.recv()).await.unwrap().topic()[0]);
    }
    // what was queued for the endpoint that left was sent before it did
    seen.sort_unstable();
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
    assert_eq!(push.stats().outgoing.dropped.total(), 0);
    let left: Vec<_> = push.endpoints().into_iter().map(|status| status.endpoint).collect();
    assert_eq!(left, endpoints[1..]);
}

#[tokio::test]
async fn pub_and_sub_connect_to_an_endpoint_once() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscriber = SubSocket::new();
    subscriber.subscribe("").unwrap();
    for _ in 0..3 {
        subscriber.connect(&endpoint).await.unwrap();
    }
    assert_eq!(subscriber.endpoints().len(), 1);
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.publish("once", "").await.unwrap().matched, 1);
    assert_eq!(publisher.stats().connections, 1);
    assert_eq!(within(subscriber.recv()).await.unwrap().topic(), b"once");

    let subscriber = SubSocket::new();
    let endpoint = subscriber.bind("tcp://127.0.0.1:*").await.unwrap();
    subscriber.subscribe("").unwrap();
    publisher.connect(&endpoint).await.unwrap();
    publisher.connect(&endpoint).await.unwrap();
    within(publisher.wait_for_subscribers("", 2)).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(subscriber.stats().connections, 1);
}

#[tokio::test]
async fn other_sockets_make_a_connection_of_each_connect() {
    let pull = PullSocket::new();
    let mut monitor = pull.monitor();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::new();
    for _ in 0..3 {
        push.connect(&endpoint).await.unwrap();
    }
    for _ in 0..3 {
        up(&mut monitor).await;
    }
    assert_eq!(push.endpoints().len(), 3);
    // each is taken back by itself
    within(push.disconnect(&endpoint)).await.unwrap();
    down(&mut monitor).await;
    assert_eq!(push.endpoints().len(), 2);

    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let subscriber = XSubSocket::new();
    subscriber.subscribe("").unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    within(subscriber.ready()).await.unwrap();
    assert_eq!(publisher.publish("twice", "").await.unwrap().matched, 2);
}

#[tokio::test]
async fn a_text_that_is_no_endpoint_is_told() {
    let pull = PullSocket::new();
    for (text, fault) in [
        ("127.0.0.1:5555", EndpointFault::NoTransport),
        ("udp://127.0.0.1:5555", EndpointFault::UnknownTransport("udp".into())),
        ("tcp://127.0.0.1", EndpointFault::NoPort),
        ("tcp://127.0.0.1:http", EndpointFault::BadPort("http".into())),
        ("tcp://:5555", EndpointFault::BadHost(String::new())),
        ("ipc://", EndpointFault::BadPath),
    ] {
        for result in [
            pull.bind(text).await,
            pull.connect(text).await,
            pull.unbind(text).await.map(|()| unreachable!()),
            pull.disconnect(text).await.map(|()| unreachable!()),
        ] {
            let Err(Error::Endpoint(EndpointError { text: told, reason, .. })) = result else {
                panic!("{text}: {result:?}");
            };
            assert_eq!((told.as_str(), &reason), (text, &fault));
        }
    }
    let long = format!("ipc:///tmp/{}", "x".repeat(200));
    let error = pull.bind(&long).await.unwrap_err();
    assert!(error.to_string().contains(&long), "{error}");
    let Error::Endpoint(EndpointError { reason, .. }) = error else { panic!("{error:?}") };
    assert_eq!(reason, EndpointFault::PathTooLong { length: 205, limit: 107 });
    assert_eq!(pull.endpoints(), []);
}

#[tokio::test]
async fn a_wildcard_cannot_be_connected_to_nor_a_source_bound() {
    let pull = PullSocket::new();
    for text in ["tcp://*:5555", "tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "ipc://*"] {
        let error = pull.connect(text).await.unwrap_err();
        let Error::Endpoint(EndpointError { reason, .. }) = error else { panic!("{error:?}") };
        assert_eq!(reason, EndpointFault::NotConnectable, "{text}");
    }
    let error = pull.bind("tcp://127.0.0.1:0;127.0.0.1:5555").await.unwrap_err();
    let Error::Endpoint(EndpointError { reason, .. }) = error else { panic!("{error:?}") };
    assert_eq!(reason, EndpointFault::NotBindable);
    assert_eq!(pull.endpoints(), []);
}

#[tokio::test]
async fn what_the_system_refuses_to_bind_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ours = PushSocket::new().bind("tcp://127.0.0.1:*").await.unwrap();
    let holder = PushSocket::new();
    let held = holder.bind("tcp://127.0.0.1:*").await.unwrap();
    let name = abstract_name("taken");
    holder.bind(&name).await.unwrap();
    let pull = PullSocket::new();
    for (text, kind) in [
        (format!("tcp://127.0.0.1:{port}"), ErrorKind::AddrInUse),
        (held.to_string(), ErrorKind::AddrInUse),
        (name, ErrorKind::AddrInUse),
        ("tcp://192.0.2.1:5555".into(), ErrorKind::AddrNotAvailable),
        ("ipc:///no/such/folder/socket".into(), ErrorKind::NotFound),
    ] {
        let error = pull.bind(&text).await.unwrap_err();
        assert!(error.to_string().contains(&text), "{error}");
        let Error::Bind { endpoint, source, .. } = error else { panic!("{error:?}") };
        assert_eq!(endpoint.to_string(), text);
        assert_eq!(source.kind(), kind, "{text}");
    }
    assert_eq!(pull.endpoints(), []);
    drop(ours);
    // a socket that was refused is as good as before
    pull.bind("tcp://127.0.0.1:*").await.unwrap();
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_cannot_be_removed() {
    let pull = PullSocket::new();
    let bound = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let connected = pull.connect("ipc:///nobody/there").await.unwrap();
    for result in [
        pull.unbind("tcp://127.0.0.1:1").await,
        pull.disconnect("tcp://127.0.0.1:1").await,
        // each the wrong way round
        pull.unbind(&connected).await,
        pull.disconnect(&bound).await,
    ] {
        let error = result.unwrap_err();
        let Error::UnknownEndpoint { endpoint, .. } = &error else { panic!("{error:?}") };
        assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
    }
    within(pull.disconnect(&connected)).await.unwrap();
    within(pull.unbind(&bound)).await.unwrap();
    assert!(matches!(pull.unbind(&bound).await, Err(Error::UnknownEndpoint { .. })));
    assert!(matches!(pull.disconnect(&connected).await, Err(Error::UnknownEndpoint { .. })));
}

#[test]
fn without_a_runtime_there_is_an_error() {
    fn once<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => done,
            Poll::Pending => panic!("it waits"),
        }
    }
    let subscriber = SubSocket::new();
    assert!(matches!(once(subscriber.bind("tcp://127.0.0.1:*")), Err(Error::NoRuntime)));
    assert!(matches!(once(subscriber.connect("tcp://127.0.0.1:5555")), Err(Error::NoRuntime)));
    assert!(matches!(once(subscriber.add("tcp://127.0.0.1:5555")), Err(Error::NoRuntime)));
    assert_eq!(subscriber.endpoints(), []);
    // what needs none works
    assert!(subscriber.subscribe("a").unwrap());
    once(subscriber.close());
}

#[tokio::test]
async fn a_closed_socket_opens_nothing() {
    let subscriber = SubSocket::new();
    let endpoint = subscriber.bind("tcp://127.0.0.1:*").await.unwrap();
    within(subscriber.close()).await;
    assert!(matches!(subscriber.bind("tcp://127.0.0.1:*").await, Err(Error::Closed)));
    assert!(matches!(subscriber.connect(&endpoint).await, Err(Error::Closed)));
    assert!(matches!(subscriber.add(&endpoint).await, Err(Error::Closed)));
    assert!(matches!(subscriber.replace_all([&endpoint]).await, Err(Error::Closed)));
    assert!(matches!(subscriber.subscribe(""), Err(Error::Closed)));
    assert!(matches!(subscriber.unsubscribe(""), Err(Error::Closed)));
    assert!(matches!(within(subscriber.ready()).await, Err(Error::Closed)));
    // and listens no longer
    TcpListener::bind(("127.0.0.1", endpoint.port().unwrap())).unwrap();
    let endpoint: Endpoint = endpoint.to_string().parse().unwrap();
    let publisher = PubSocket::new();
    within(publisher.close()).await;
    assert!(matches!(publisher.bind(&endpoint).await, Err(Error::Closed)));
}
