//! The network driver: PUB and SUB.

use std::sync::mpsc;

use dragonwire::driver::codec::Codec;
use dragonwire::driver::{
    Action, DriverError, PubSubDriver, SubscriberEvent, Sync, SyncCause, Update,
};
use dragonwire::{PubSocket, SubSocket};

use crate::side::{DEADLINE, network, next, next_key, options, publisher, soon, subscriber};

fn update(key: &str) -> Update {
    Update::new("lport", key, Action::Create)
}

#[tokio::test]
async fn an_event_arrives_as_it_was_sent_in_every_form() {
    for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
        let mut options = options();
        options.codec = Some(codec);
        let (publisher, uri) = publisher(options.clone()).await;
        let (_subscriber, mut updates) = subscriber(options, &["D"], &[&uri]).await;
        let sent = update("7e4a").with_value("{\"id\": \"7e4a\", \"name\": \"ß\"}");
        publisher.send_event(&sent, None).await.unwrap();
        let SubscriberEvent::Update(got) = next(&mut updates).await else { panic!() };
        let expected = if codec == Codec::Protobuf {
            // microseconds are carried
            assert!(got.timestamp.is_some());
            Update { timestamp: got.timestamp, ..sent }
        } else {
            Update { timestamp: None, ..sent }
        };
        assert_eq!(got, expected, "{codec:?}");
        publisher.close().await.unwrap();
    }
}

/// A tenant's topic is not heard before it is registered, is a prefix, and not heard afterwards.
#[tokio::test]
async fn topics_come_and_go_while_it_runs() {
    let (publisher, uri) = publisher(options()).await;
    let (subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    let send = async |key: &str, own: Option<&str>, given: Option<&str>| {
        let update = Update { topic: own.map(str::to_owned), ..update(key) };
        publisher.send_event(&update, given).await.unwrap();
    };
    send("k1", Some("tenant-1"), None).await;
    assert!(subscriber.register_topic("tenant-1").await.unwrap());
    assert!(!subscriber.register_topic("tenant-1").await.unwrap());
    soon(subscriber.ready()).await.unwrap();
    send("k2", Some("tenant-1"), None).await;
    send("k3", Some("tenant-10"), None).await;
    send("k4", Some("Dxyz"), None).await;
    send("k5", Some("D"), Some("tenant-1")).await;
    send("k6", None, None).await;
    send("k7", Some(""), None).await;
    for key in ["k2", "k3", "k4", "k5", "k6", "k7"] {
        assert_eq!(next_key(&mut updates).await, key);
    }
    assert!(subscriber.register_topic("ténant").await.unwrap());
    soon(subscriber.ready()).await.unwrap();
    send("k8", Some("ténant"), None).await;
    assert_eq!(next_key(&mut updates).await, "k8");
    subscriber.unregister_topic("tenant-1").await.unwrap();
    let unknown = subscriber.unregister_topic("tenant-1").await;
    assert!(matches!(unknown, Err(DriverError::UnknownTopic { .. })), "{unknown:?}");
    soon(subscriber.ready()).await.unwrap();
    send("k9", Some("tenant-1"), None).await;
    send("last", None, None).await;
    assert_eq!(next_key(&mut updates).await, "last");
}

#[tokio::test]
async fn with_exact_topics_a_longer_one_is_another() {
    let (publisher, uri) = publisher(options()).await;
    let mut exact = options();
    exact.exact_topics = true;
    let (_subscriber, mut updates) = subscriber(exact, &["tenant-1"], &[&uri]).await;
    publisher.send_event(&update("1").with_topic("tenant-10"), None).await.unwrap();
    publisher.send_event(&update("2").with_topic("tenant-1"), None).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "2");
}

#[tokio::test]
async fn publishers_come_and_go_while_it_runs() {
    let (first, first_uri) = publisher(options()).await;
    let (second, second_uri) = publisher(options()).await;
    let (subscriber, mut updates) = subscriber(options(), &["D"], &[&first_uri]).await;
    first.send_event(&update("1"), None).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "1");
    assert!(subscriber.register_listen_address(&second_uri).await.unwrap());
    assert!(!subscriber.register_listen_address(&second_uri).await.unwrap());
    soon(subscriber.ready()).await.unwrap();
    second.send_event(&update("2"), None).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "2");
    subscriber.unregister_listen_address(&second_uri).await.unwrap();
    let unknown = subscriber.unregister_listen_address(&second_uri).await;
    assert!(matches!(unknown, Err(DriverError::UnknownAddress { .. })), "{unknown:?}");
    second.send_event(&update("3"), None).await.unwrap();
    first.send_event(&update("4"), None).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "4");
    let bad = subscriber.register_listen_address("udp://127.0.0.1:1").await;
    assert!(matches!(bad, Err(DriverError::Address { .. })), "{bad:?}");
    assert!(subscriber.is_running());
}

#[tokio::test]
async fn a_hundred_events_in_a_row_arrive_once_and_in_order() {
    let (publisher, uri) = publisher(options()).await;
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    for key in 0..100 {
        publisher.send_event(&update(&key.to_string()), None).await.unwrap();
    }
    for key in 0..100 {
        assert_eq!(next_key(&mut updates).await, key.to_string());
    }
    assert!(updates.try_recv().is_none());
}

#[tokio::test]
async fn values_go_out_only_with_log_when_that_is_asked_for() {
    let mut trigger = options();
    trigger.trigger_only = true;
    let (publisher, uri) = publisher(trigger).await;
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    let sent = update("1").with_value("text");
    publisher.send_event(&sent, None).await.unwrap();
    publisher.send_event(&Update { action: Some(Action::Log), ..sent }, None).await.unwrap();
    for value in [None, Some("text")] {
        let SubscriberEvent::Update(update) = next(&mut updates).await else { panic!() };
        assert_eq!(update.value.as_ref().and_then(|value| value.as_text()), value);
    }
}

#[tokio::test]
async fn a_publisher_with_no_words_before_initialize_binds_at_its_first_event() {
    let publisher = network(options()).get_publisher();
    assert_eq!(publisher.endpoint(), None);
    publisher.send_event(&update("1"), None).await.unwrap();
    let uri = publisher.endpoint().unwrap().to_string();
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    publisher.send_event(&update("2"), None).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "2");
    assert_eq!(publisher.stats().published, 2);
    assert_eq!(publisher.stats().unheard, 1);
}

#[tokio::test]
async fn a_busy_port_is_an_error_that_names_it() {
    let (_publisher, uri) = publisher(options()).await;
    let mut same = options();
    same.publisher_port = uri.rsplit(':').next().unwrap().parse().unwrap();
    let error = network(same).get_publisher().initialize().await.unwrap_err();
    assert!(error.to_string().contains(&uri["tcp://".len()..]), "{error}");
}

#[tokio::test]
async fn closing_twice_is_closing_and_a_closed_publisher_opens_again() {
    let (publisher, uri) = publisher(options()).await;
    let (subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    publisher.send_event(&update("1"), None).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "1");
    publisher.close().await.unwrap();
    publisher.close().await.unwrap();
    assert_eq!(publisher.endpoint(), None);
    publisher.send_event(&update("2"), None).await.unwrap();
    assert_eq!(publisher.stats().published, 2);
    subscriber.close().await.unwrap();
    subscriber.close().await.unwrap();
    assert!(!subscriber.is_running());
    assert_eq!(updates.recv().await, None);
    let closed = subscriber.register_topic("x").await;
    assert!(matches!(closed, Err(DriverError::Closed { .. })), "{closed:?}");
}

#[tokio::test]
async fn a_subscriber_is_initialized_once_and_first() {
    let subscriber = network(options()).get_subscriber();
    let early = subscriber.register_topic("D").await;
    assert!(matches!(early, Err(DriverError::NotInitialized { .. })), "{early:?}");
    let early = subscriber.daemonize().await;
    assert!(matches!(early, Err(DriverError::NotInitialized { .. })), "{early:?}");
    subscriber.initialize(Box::new(drop)).unwrap();
    let again = subscriber.initialize_stream();
    assert!(matches!(again, Err(DriverError::Already { .. })), "{again:?}");
    subscriber.daemonize().await.unwrap();
    let again = subscriber.daemonize().await;
    assert!(matches!(again, Err(DriverError::Already { .. })), "{again:?}");
}

/// While a callback blocks, publishing and registering go on; one that panics is called again.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_callback_may_block_and_panic() {
    let (publisher, uri) = publisher(options()).await;
    let subscriber = network(options()).get_subscriber();
    let (told, heard) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let callback = move |event: SubscriberEvent| {
        told.send(event.clone()).unwrap();
        if let SubscriberEvent::Update(update) = event {
            match update.key.as_deref() {
                Some("block") => wait.recv_timeout(DEADLINE).unwrap(),
                Some("panic") => panic!("a fault of the callback"),
                _ => {}
            }
        }
    };
    subscriber.initialize(Box::new(callback)).unwrap();
    subscriber.register_topic("D").await.unwrap();
    subscriber.register_listen_address(&uri).await.unwrap();
    subscriber.daemonize().await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    for key in ["block", "panic", "last"] {
        publisher.send_event(&update(key), None).await.unwrap();
    }
    let key = |event: SubscriberEvent| match event {
        SubscriberEvent::Update(update) => update.key.unwrap(),
        SubscriberEvent::Sync(sync) => sync.cause.to_string(),
    };
    let next = || key(heard.recv_timeout(DEADLINE).unwrap());
    assert_eq!(next(), "block");
    assert!(soon(subscriber.register_topic("more")).await.unwrap());
    soon(subscriber.unregister_topic("more")).await.unwrap();
    soon(publisher.send_event(&update("more"), None)).await.unwrap();
    release.send(()).unwrap();
    let told: Vec<_> = (0..4).map(|_| next()).collect();
    assert_eq!(told.iter().filter(|word| *word == "callback_panicked").count(), 1);
    let keys: Vec<_> = told.iter().filter(|word| *word != "callback_panicked").collect();
    assert_eq!(keys, ["panic", "last", "more"]);
    assert_eq!(subscriber.stats().callback_panics, 1);
    soon(subscriber.close()).await.unwrap();
}

fn undecodable() -> SubscriberEvent {
    SubscriberEvent::Sync(Sync { missing: None, cause: SyncCause::Undecodable })
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_counted_and_the_next_event_comes() {
    let socket = PubSocket::new();
    let uri = socket.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let (subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    let good = b"\x85\xa5table\xa1t\xa3key\xa1k\xa6action\xa3set\xa5value\xc0\xa5topic\xa1D";
    let bad: [&[&[u8]]; 8] = [
        &[b"D"],
        &[b"D", good, b"more"],
        &[b"D", b"\xc1"],
        &[b"D", b""],
        &[b"D", &good[..20]],
        &[b"D", b"\x05"],
        &[b"D", b"\x81\xa5table\xa1t"],
        &[b"D", b"\xa3abc"],
    ];
    for frames in bad {
        soon(socket.send_frames(frames)).await.unwrap();
        assert_eq!(next(&mut updates).await, undecodable(), "{frames:?}");
        soon(socket.send_frames(&[b"D", good])).await.unwrap();
        assert_eq!(next_key(&mut updates).await, "k");
    }
    assert_eq!(subscriber.stats().undecodable, 8);
    assert!(subscriber.is_running());
}

#[tokio::test]
async fn a_peer_that_numbers_nothing_and_was_away_is_a_sync() {
    let socket = PubSocket::new();
    let endpoint = socket.bind("tcp://127.0.0.1:*").await.unwrap();
    let uri = endpoint.to_string();
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    socket.close().await;
    let socket = PubSocket::new();
    socket.bind(&endpoint).await.unwrap();
    soon(socket.wait_for_subscribers("D", 1)).await.unwrap();
    let sync = Sync { missing: None, cause: SyncCause::Reconnected };
    assert_eq!(next(&mut updates).await, SubscriberEvent::Sync(sync));
}

/// A plain SUB socket sees two frames, the topic and the body.
#[tokio::test]
async fn on_the_wire_an_event_is_two_frames() {
    let mut options = options();
    options.codec = Some(Codec::Msgpack);
    let (publisher, uri) = publisher(options).await;
    let mut socket = SubSocket::new();
    socket.subscribe("D").unwrap();
    socket.connect(uri.as_str()).await.unwrap();
    soon(socket.ready()).await.unwrap();
    let deleted = Update::new("lport", "7e4a", Action::Delete);
    publisher.send_event(&deleted, None).await.unwrap();
    let message = soon(socket.recv()).await.unwrap();
    let body =
        b"\x85\xa5table\xa5lport\xa3key\xa47e4a\xa6action\xa6delete\xa5value\xc0\xa5topic\xa1D";
    assert_eq!(message.frames().collect::<Vec<_>>(), [&b"D"[..], body]);
}
