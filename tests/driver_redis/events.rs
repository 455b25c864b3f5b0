//! Events, topics and what is said of bad ones, on a server that stays.

use std::sync::mpsc;
use std::time::Duration;

use dragonwire::driver::codec::Codec;
use dragonwire::driver::{
    Action, DriverContext, DriverError, Drivers, PubSubDriver, RedisDriver, SubscriberEvent,
    SyncCause, Update,
};

use crate::server::Server;
use crate::side::{
    CODECS, driver, next, next_key, next_sync, options, publish, publisher, soon, subscriber,
    until, update, with_codec,
};

#[tokio::test]
async fn events_come_in_every_codec() {
    let server = Server::start();
    let (_subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    for codec in CODECS {
        let publisher = publisher(with_codec(&[server.at()], codec)).await;
        assert_eq!(publisher.endpoint().unwrap().to_string(), format!("tcp://{}", server.at()));
        for action in ["create", "set", "delete", "log", "no-such-action"] {
            let mut sent =
                Update::new("lport", "ключ", Action::from(action)).with_value("{\"a\": 1}");
            sent.timestamp = None;
            soon(publisher.send_event(&sent, None)).await.unwrap();
            assert_eq!(next(&mut updates).await, SubscriberEvent::Update(sent), "{codec}");
        }
        let stats = publisher.stats();
        assert_eq!((stats.published, stats.unheard, stats.dropped), (5, 0, 0));
        soon(publisher.close()).await.unwrap();
    }
}

#[tokio::test]
async fn topics_are_followed_exactly_and_while_it_runs() {
    let server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    let (subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    let send = async |key: u32, topic: &str| {
        soon(publisher.send_event(&update(key), Some(topic))).await.unwrap();
    };
    send(1, "Dxyz").await;
    assert_eq!(publisher.stats().unheard, 1);
    send(2, "D").await;
    assert_eq!(next_key(&mut updates).await, "2");
    assert!(subscriber.register_topic("ténant").await.unwrap());
    assert!(!subscriber.register_topic("ténant").await.unwrap());
    soon(subscriber.ready()).await.unwrap();
    send(3, "ténant").await;
    assert_eq!(next_key(&mut updates).await, "3");
    subscriber.unregister_topic("ténant").await.unwrap();
    let error = subscriber.unregister_topic("ténant").await.unwrap_err();
    assert!(matches!(error, DriverError::UnknownTopic { .. }), "{error}");
    // from now on, not from when the server has heard of it
    send(4, "ténant").await;
    send(5, "D").await;
    assert_eq!(next_key(&mut updates).await, "5");
    soon(subscriber.ready()).await.unwrap();
    let followed: Vec<String> = server.ask("PUBSUB CHANNELS");
    assert_eq!(followed, ["D"]);
    // what was published meanwhile is not missing
    assert!(subscriber.register_topic("ténant").await.unwrap());
    soon(subscriber.ready()).await.unwrap();
    send(6, "ténant").await;
    assert_eq!(next_key(&mut updates).await, "6");
}

#[tokio::test]
async fn a_value_is_sent_also_where_only_triggers_are_wanted() {
    let server = Server::start();
    let mut triggers = options(&[server.at()]);
    triggers.trigger_only = true;
    let publisher = publisher(triggers).await;
    let (_subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    let sent = Update { timestamp: None, ..update(1).with_value("v") };
    soon(publisher.send_event(&sent, None)).await.unwrap();
    assert_eq!(next(&mut updates).await, SubscriberEvent::Update(sent));
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_a_sync_and_nothing_else() {
    let server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    let (subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    publish(&publisher, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    for body in ["nonsense", "\u{1}", "{}", "\n"] {
        let heard: usize = server.ask(&format!("PUBLISH D {body}"));
        assert_eq!(heard, 1);
        next_sync(&mut updates, SyncCause::Undecodable).await;
    }
    publish(&publisher, 2).await;
    assert_eq!(next_key(&mut updates).await, "2");
    let stats = subscriber.stats();
    assert_eq!((stats.undecodable, stats.syncs, stats.delivered), (4, 4, 2));
}

#[tokio::test]
async fn an_announced_sync_is_a_sync() {
    let server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    let (_subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    soon(publisher.send_event(&Update::sync("D"), None)).await.unwrap();
    next_sync(&mut updates, SyncCause::Announced).await;
}

#[tokio::test]
async fn listen_addresses_are_a_list_without_meaning() {
    let subscriber = driver(options(&["127.0.0.1:1".to_owned()])).get_subscriber();
    let error = subscriber.register_listen_address("x").await.unwrap_err();
    assert!(matches!(error, DriverError::NotInitialized { .. }), "{error}");
    let _updates = subscriber.initialize_stream().unwrap();
    assert!(subscriber.register_listen_address("tcp://nobody").await.unwrap());
    assert!(!subscriber.register_listen_address("tcp://nobody").await.unwrap());
    subscriber.unregister_listen_address("tcp://nobody").await.unwrap();
    let error = subscriber.unregister_listen_address("tcp://nobody").await.unwrap_err();
    assert!(matches!(error, DriverError::UnknownAddress { .. }), "{error}");
}

// on more threads than the one that waits for the callback
#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_begins_runs_and_ends() {
    let server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    let subscriber = driver(options(&[server.at()])).get_subscriber();
    let not_initialized = |error| matches!(error, DriverError::NotInitialized { .. });
    assert!(not_initialized(subscriber.register_topic("D").await.unwrap_err()));
    assert!(not_initialized(subscriber.daemonize().await.unwrap_err()));
    assert!(not_initialized(subscriber.ready().await.unwrap_err()));
    let (told, heard) = mpsc::channel();
    let callback = move |event| told.send(event).unwrap();
    subscriber.initialize(Box::new(callback)).unwrap();
    let error = subscriber.initialize_stream().unwrap_err();
    assert!(matches!(error, DriverError::Already { .. }), "{error}");
    // nothing to confirm
    soon(subscriber.ready()).await.unwrap();
    assert!(!subscriber.is_running());
    subscriber.daemonize().await.unwrap();
    assert!(subscriber.is_running());
    let error = subscriber.daemonize().await.unwrap_err();
    assert!(matches!(error, DriverError::Already { .. }), "{error}");
    soon(subscriber.ready()).await.unwrap();
    subscriber.register_topic("D").await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    publish(&publisher, 1).await;
    let event = heard.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(matches!(event, SubscriberEvent::Update(_)), "{event:?}");
    soon(subscriber.close()).await.unwrap();
    soon(subscriber.close()).await.unwrap();
    assert!(!subscriber.is_running());
    let error = subscriber.register_topic("E").await.unwrap_err();
    assert!(matches!(error, DriverError::Closed { .. }), "{error}");
    let channels = || server.ask::<Vec<String>>("PUBSUB CHANNELS");
    until(|| channels().is_empty()).await;
    assert!(heard.recv_timeout(Duration::from_secs(30)).is_err(), "the callback is let go");
}

#[tokio::test]
async fn a_closed_publisher_opens_again_with_the_next_event() {
    let server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    let (_subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    for key in ["1", "2", "3"] {
        publish(&publisher, key).await;
        assert_eq!(next_key(&mut updates).await, key);
        soon(publisher.close()).await.unwrap();
        soon(publisher.close()).await.unwrap();
    }
}

#[tokio::test]
async fn the_driver_has_its_aliases_and_checks_addresses() {
    let drivers = Drivers::new();
    for alias in ["redis_db_pubsub_driver", "redis"] {
        let context = DriverContext::new(options(&["db:6379".to_owned()]));
        let driver = drivers.load(alias, context).unwrap();
        assert_eq!(driver.get_publisher().id(), driver.get_publisher().id());
    }
    for (hosts, expected) in [
        (vec![], "Redis at an empty list: no server is listed (remote_db_hosts)"),
        (
            vec!["redis://u:secret@db:x".to_owned()],
            "Redis at redis://...@db:x: expected HOST:PORT, redis://[[USER]:PASSWORD@]HOST:PORT[/DB] \
             or redis+sentinel:// (remote_db_hosts)",
        ),
    ] {
        let error = RedisDriver::new(DriverContext::new(options(&hosts))).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn the_password_is_needed_and_used() {
    let server = Server::start_with(&["--requirepass", "secret"]);
    for login in ["", ":wrong@"] {
        let url = format!("redis://{login}{}", server.at());
        let driver = driver(options(&[url]));
        let (publisher, subscriber) = (driver.get_publisher(), driver.get_subscriber());
        let _updates = subscriber.initialize_stream().unwrap();
        subscriber.register_topic("D").await.unwrap();
        subscriber.daemonize().await.unwrap();
        // at once: it is of no use to go on trying
        for error in [
            soon(subscriber.ready()).await.unwrap_err(),
            soon(publisher.initialize()).await.unwrap_err(),
            soon(publisher.send_event(&update(1), None)).await.unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.starts_with(&format!("Redis at {}: ", server.at())), "{text}");
            assert!(!text.contains("wrong"), "{text}");
        }
        assert_eq!(publisher.stats().published, 0);
    }
    let url = format!("redis://:secret@{}/3", server.at());
    let with_password = options(&[url]);
    let (_subscriber, mut updates) = subscriber(with_password.clone(), &["D"]).await;
    publish(&publisher(with_password).await, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
}

#[tokio::test]
async fn a_topic_that_the_user_may_not_follow_is_named_and_the_others_are_followed() {
    let server = Server::start();
    let _: String = server.ask("ACL SETUSER me on >secret resetchannels &D +@all");
    let url = format!("redis://me:secret@{}", server.at());
    let subscriber = driver(options(&[url])).get_subscriber();
    let mut updates = subscriber.initialize_stream().unwrap();
    for topic in ["D", "secret-topic"] {
        subscriber.register_topic(topic).await.unwrap();
    }
    subscriber.daemonize().await.unwrap();
    let error = soon(subscriber.ready()).await.unwrap_err().to_string();
    assert!(error.contains("topic \"secret-topic\" cannot be followed"), "{error}");
    publish(&publisher(options(&[server.at()])).await, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    subscriber.unregister_topic("secret-topic").await.unwrap();
    soon(subscriber.ready()).await.unwrap();
}

#[tokio::test]
async fn a_user_needs_no_more_than_the_channels() {
    let server = Server::start();
    let _: String =
        server.ask("ACL SETUSER me on >secret resetchannels &D +publish +subscribe +unsubscribe");
    let me = options(&[format!("redis://me:secret@{}", server.at())]);
    let (_subscriber, mut updates) = subscriber(me.clone(), &["D"]).await;
    publish(&publisher(me).await, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
}

/// The server drops a subscriber that does not read, which is told so when it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_read_is_told_what_it_lost() {
    let server = Server::start_with(&["--client-output-buffer-limit", "pubsub 1mb 0 0"]);
    let publisher = publisher(with_codec(&[server.at()], Codec::Msgpack)).await;
    let (subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    let large = "v".repeat(64 << 10);
    let mut count = 0_u64;
    // until it has been dropped
    let kept = || server.ask::<Vec<String>>("PUBSUB CHANNELS").len();
    while kept() > 0 {
        let event = update(count).with_value(large.clone());
        soon(publisher.send_event(&event, None)).await.unwrap();
        count += 1;
    }
    assert!(subscriber.stats().waiting <= 1024 + 256);
    // what came before is there, in order and without a gap, then the sync
    let mut seen = 0;
    loop {
        match next(&mut updates).await {
            SubscriberEvent::Update(update) => {
                assert_eq!(update.key, Some(seen.to_string()));
                seen += 1;
            }
            SubscriberEvent::Sync(sync) => {
                assert_eq!((sync.missing, sync.cause), (None, SyncCause::Reconnected));
                break;
            }
        }
    }
    assert!(seen < count);
    publish(&publisher, "after").await;
    assert_eq!(next_key(&mut updates).await, "after");
}
