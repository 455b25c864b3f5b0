//! Connections that break, servers that go and come back, and others that take over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dragonwire::driver::codec::{Body, Codec, decode};
use dragonwire::driver::{
    DriverContext, DriverError, PubSubDriver, Publisher, RedisDriver, SubscriberEvent, SyncCause,
    Updates,
};

use crate::relay::Relay;
use crate::scripted;
use crate::server::Server;
use crate::side::{
    CODECS, driver, next, next_key, next_sync, options, publish, publisher, refusal, send, soon,
    subscriber, until, update, with_codec,
};

#[tokio::test]
async fn a_connection_that_is_cut_costs_one_sync() {
    let server = Server::start();
    for codec in CODECS {
        let relay = Relay::start(server.at()).await;
        let publisher = publisher(with_codec(&[server.at()], codec)).await;
        let (subscriber, mut updates) = subscriber(options(&[relay.at()]), &["D"]).await;
        for round in 0..3 {
            publish(&publisher, round).await;
            assert_eq!(next_key(&mut updates).await, round.to_string());
            relay.cut();
            next_sync(&mut updates, SyncCause::Reconnected).await;
            soon(subscriber.ready()).await.unwrap();
        }
        // lost with the connection, and told already
        let _: usize = server.ask("CLIENT KILL TYPE pubsub");
        until(|| server.ask::<Vec<String>>("PUBSUB CHANNELS") == ["D"]).await;
        next_sync(&mut updates, SyncCause::Reconnected).await;
        publish(&publisher, "on").await;
        assert_eq!(next_key(&mut updates).await, "on");
        assert_eq!((subscriber.stats().syncs, subscriber.stats().missing), (4, 0));
    }
}

#[tokio::test]
async fn nothing_is_told_of_a_cut_that_cost_nothing() {
    let server = Server::start();
    let relay = Relay::start(server.at()).await;
    let publisher = publisher(options(&[server.at()])).await;
    let (subscriber, mut updates) = subscriber(options(&[relay.at()]), &[]).await;
    let before = relay.accepted();
    relay.cut();
    until(|| relay.accepted() > before).await;
    subscriber.register_topic("D").await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    publish(&publisher, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    // nor of a topic that is not followed any more
    subscriber.register_topic("E").await.unwrap();
    subscriber.unregister_topic("D").await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    relay.close();
    subscriber.unregister_topic("E").await.unwrap();
    subscriber.register_topic("D").await.unwrap();
    relay.open();
    soon(subscriber.ready()).await.unwrap();
    publish(&publisher, 2).await;
    assert_eq!(next_key(&mut updates).await, "2");
}

#[tokio::test]
async fn without_syncs_for_reconnections_numbers_tell_what_is_missing() {
    let server = Server::start();
    let relay = Relay::start(server.at()).await;
    let publisher = publisher(options(&[server.at()])).await;
    let mut quiet = options(&[relay.at()]);
    quiet.sync_on_reconnect = false;
    let (subscriber, mut updates) = subscriber(quiet, &["D"]).await;
    publish(&publisher, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    relay.close();
    until(|| server.ask::<Vec<String>>("PUBSUB CHANNELS").is_empty()).await;
    for key in 2..=4 {
        publish(&publisher, key).await;
    }
    relay.open();
    soon(subscriber.ready()).await.unwrap();
    publish(&publisher, 5).await;
    let SubscriberEvent::Sync(sync) = next(&mut updates).await else { panic!() };
    let missing = sync.missing.unwrap();
    assert_eq!((missing.from, missing.to, sync.cause), (2, Some(4), SyncCause::Gap));
    assert_eq!(next_key(&mut updates).await, "5");
}

#[tokio::test]
async fn a_server_that_starts_again_costs_one_sync() {
    let mut server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    let (subscriber, mut updates) = subscriber(options(&[server.at()]), &["D", "E"]).await;
    for round in 0..2 {
        publish(&publisher, round).await;
        assert_eq!(next_key(&mut updates).await, round.to_string());
        server.start_again();
        next_sync(&mut updates, SyncCause::Reconnected).await;
    }
    publish(&publisher, "on").await;
    assert_eq!(next_key(&mut updates).await, "on");
    assert_eq!((subscriber.stats().syncs, subscriber.stats().missing), (2, 0));
}

/// Publishes until the subscriber has an event; everything else that comes has to be a `sync`.
async fn until_heard(publisher: &Arc<dyn Publisher>, updates: &mut Updates, what: &str) {
    let mut syncs = 0;
    for count in 0.. {
        let key = format!("{what}-{count}");
        let _ = send(publisher, &key).await;
        while let Ok(event) = tokio::time::timeout(Duration::from_millis(100), updates.recv()).await
        {
            match event.unwrap() {
                SubscriberEvent::Update(update) => {
                    assert!(update.key.unwrap().starts_with(what));
                    assert!(syncs > 0, "nothing was told of the move");
                    return;
                }
                SubscriberEvent::Sync(sync) => {
                    assert_eq!(sync.missing, None);
                    syncs += 1;
                }
            }
        }
        assert!(count < 600, "{what}");
    }
}

#[tokio::test]
async fn the_second_server_takes_over_and_the_first_is_returned_to() {
    let (mut first, second) = (Server::start(), Server::start());
    let servers = [first.at(), second.at()];
    for codec in [Codec::Protobuf, Codec::Msgpack] {
        let publisher = publisher(with_codec(&servers, codec)).await;
        let (subscriber, mut updates) = subscriber(options(&servers), &["D"]).await;
        let at = || publisher.endpoint().unwrap().to_string();
        publish(&publisher, 1).await;
        assert_eq!(next_key(&mut updates).await, "1");
        first.stop();
        until_heard(&publisher, &mut updates, "second").await;
        assert_eq!(at(), format!("tcp://{}", second.at()));
        first.start_again();
        let followed = || first.ask::<Vec<String>>("PUBSUB CHANNELS").len();
        until(|| followed() == 1).await;
        until_heard(&publisher, &mut updates, "first").await;
        until(|| at() == format!("tcp://{}", first.at())).await;
        soon(publisher.close()).await.unwrap();
        soon(subscriber.close()).await.unwrap();
    }
}

/// What it published on the server that it has left may have had nobody to hear it.
#[tokio::test]
async fn a_publisher_that_comes_from_another_server_says_so() {
    let (other, server) = (Server::start(), Server::start());
    for codec in CODECS {
        let relay = Relay::start(other.at()).await;
        let publisher = publisher(with_codec(&[relay.at(), server.at()], codec)).await;
        let (_subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
        publish(&publisher, "unheard").await;
        assert_eq!(publisher.stats().unheard, 1);
        relay.close();
        publish(&publisher, "heard").await;
        let mut told = Vec::new();
        for _ in 0..2 {
            told.push(match next(&mut updates).await {
                SubscriberEvent::Update(update) => update.key.unwrap(),
                SubscriberEvent::Sync(sync) => sync.cause.to_string(),
            });
        }
        told.sort_unstable();
        assert_eq!(told, ["announced", "heard"], "{codec}");
    }
}

#[tokio::test]
async fn a_replica_is_passed_over() {
    let master = Server::start();
    let port = master.port().to_string();
    let replica = Server::start_with(&["--replicaof", &format!("127.0.0.1 {port}")]);
    let servers = [replica.at(), master.at()];
    let publisher = publisher(options(&servers)).await;
    assert_eq!(publisher.endpoint().unwrap().to_string(), format!("tcp://{}", master.at()));
    let (_subscriber, mut updates) = subscriber(options(&servers), &["D"]).await;
    publish(&publisher, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    let error = refusal(options(&[replica.at()])).await;
    assert!(error.contains("it is a replica"), "{error}");
}

/// The relay accepts connections and closes them, as in the recordings, which a driver without pauses
/// answers with hundreds of attempts in each second.
#[tokio::test]
async fn a_server_that_is_gone_is_not_tried_without_pauses() {
    let server = Server::start();
    let relay = Relay::start(server.at()).await;
    let (_subscriber, mut updates) = subscriber(options(&[relay.at()]), &["D"]).await;
    relay.close();
    let (begun, before) = (Instant::now(), relay.accepted());
    until(|| relay.accepted() >= before + 6).await;
    // pauses of 100, 200, 400 and 800 ms at least
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(updates.try_recv().is_none());
    relay.open();
    next_sync(&mut updates, SyncCause::Reconnected).await;
}

#[tokio::test]
async fn publishing_fails_in_time_and_goes_on_when_the_server_is_back() {
    fails_and_goes_on(Codec::Protobuf).await;
}

#[tokio::test]
async fn publishing_without_numbers_fails_in_time_and_goes_on() {
    fails_and_goes_on(Codec::Json).await;
}

async fn fails_and_goes_on(codec: Codec) {
    let mut server = Server::start();
    let relay = Relay::start(server.at()).await;
    let publisher = publisher(with_codec(&[relay.at()], codec)).await;
    let (subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    publish(&publisher, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    server.stop();
    relay.close();
    let error = send(&publisher, 2).await.unwrap_err();
    assert!(matches!(&error, DriverError::Broker { at, .. } if *at == relay.at()), "{error}");
    // from then on without patience, and yet with pauses of a second between attempts
    let (begun, before) = (Instant::now(), relay.accepted());
    for _ in 0..3 {
        send(&publisher, 3).await.unwrap_err();
    }
    let (attempts, seconds) = (relay.accepted() - before, begun.elapsed().as_secs());
    assert!(attempts as u64 <= seconds + 2, "{attempts} in {seconds} s");
    server.start_again();
    relay.open();
    next_sync(&mut updates, SyncCause::Reconnected).await;
    publish(&publisher, 4).await;
    assert_eq!(next_key(&mut updates).await, "4");
    assert_eq!(publisher.stats().published, 2);
    // those that failed were not published, so that nothing of them is missing
    let stats = subscriber.stats();
    assert_eq!((stats.delivered, stats.missing, stats.syncs), (2, 0, 1));
}

#[tokio::test]
async fn an_event_waits_for_a_server_that_is_away_for_a_moment() {
    let mut server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    publish(&publisher, 1).await;
    server.stop();
    let event = update(2);
    let sending = publisher.send_event(&event, None);
    let starting = tokio::task::spawn_blocking(move || {
        server.start_again();
        server
    });
    let (sent, server) = soon(async { tokio::join!(sending, starting) }).await;
    sent.unwrap();
    drop(server);
    assert_eq!(publisher.stats().published, 2);
}

/// Both sides' connections are cut again and again. Of numbered events none comes twice or out of
/// order, and where some are missing it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_balance_over_cuts() {
    let server = Server::start();
    let (out, into) = (Relay::start(server.at()).await, Relay::start(server.at()).await);
    let publisher = publisher(options(&[out.at()])).await;
    let (subscriber, mut updates) = subscriber(options(&[into.at()]), &["D"]).await;
    let publishing = {
        let publisher = publisher.clone();
        tokio::spawn(async move {
            for key in 1..=6000_u64 {
                publish(&publisher, key).await;
                match key % 1000 {
                    300 => into.cut(),
                    600 => out.cut(),
                    _ => {}
                }
            }
            (into, out)
        })
    };
    let relays = publishing.await.unwrap();
    let (mut last, mut delivered, mut synced) = (0, 0, false);
    let mut published = 6000;
    while last < published {
        match next(&mut updates).await {
            SubscriberEvent::Update(update) => {
                let key: u64 = update.key.unwrap().parse().unwrap();
                assert!(key > last, "{key} after {last}");
                assert!(key == last + 1 || synced, "{key} after {last}, and no sync");
                (last, synced) = (key, false);
                delivered += 1;
            }
            SubscriberEvent::Sync(sync) => {
                assert_eq!((sync.missing, sync.cause), (None, SyncCause::Reconnected));
                synced = true;
                // whatever was lost, this comes
                published += 1;
                publish(&publisher, published).await;
            }
        }
    }
    assert_eq!(subscriber.stats().delivered, delivered);
    assert_eq!(publisher.stats().published, published);
    drop(relays);
}

/// A loss at the end of a stream shows by what the publisher says of it.
#[tokio::test]
async fn the_last_events_of_a_stream_are_missed_too() {
    let server = Server::start();
    let publisher = publisher(options(&[server.at()])).await;
    let (subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    publish(&publisher, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    let _: String = server.ask("ACL SETUSER default -publish");
    let error = send(&publisher, 2).await.unwrap_err().to_string();
    assert!(error.contains("permission"), "{error}");
    let _: String = server.ask("ACL SETUSER default +publish");
    publish(&publisher, 2).await;
    assert_eq!(next_key(&mut updates).await, "2");
    soon(publisher.close()).await.unwrap();
    assert_eq!(subscriber.stats().syncs, 0, "what was refused has no number");
}

#[tokio::test]
async fn a_successor_knows_where_its_predecessor_ended() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let named = || {
        let mut options = options(&[server.at()]);
        options.state_path = Some(folder.path().to_owned());
        let context = DriverContext::new(options).with_process_name("test");
        RedisDriver::new(context).unwrap().get_publisher()
    };
    // until the predecessor's task is gone, it holds the journal
    let successor = async || loop {
        let publisher = named();
        match publisher.initialize().await {
            Err(DriverError::Journal { .. }) => tokio::task::yield_now().await,
            initialized => break initialized.map(|()| publisher).unwrap(),
        }
    };
    let (subscriber, mut updates) = subscriber(options(&[server.at()]), &["D"]).await;
    for life in 0..3 {
        let publisher = soon(successor()).await;
        for event in 0..3 {
            let key = format!("{life}-{event}");
            publish(&publisher, &key).await;
            assert_eq!(next_key(&mut updates).await, key);
        }
        // without a word
        drop(publisher);
    }
    assert_eq!(subscriber.stats().syncs, 0);
}

/// What a scripted server is told to publish: the number and the key.
fn published(words: &[Vec<u8>]) -> (u64, String) {
    assert_eq!(words[0], b"PUBLISH");
    match decode(&words[2]) {
        Ok(Body::Event { update, origin: Some(origin) }) => (origin.sequence, update.key.unwrap()),
        other => panic!("{other:?}"),
    }
}

/// Or subscribers would take the one for the other, and pass over it.
#[tokio::test]
async fn an_event_that_may_have_left_keeps_its_number() {
    let (listener, at) = scripted::server().await;
    let publisher = driver(options(&[at])).get_publisher();
    let events = [update("first"), update("second"), update("third")];

    // the first is sent again when the connection breaks before the answer
    let mut sending = publisher.send_event(&events[0], None);
    let serving = async {
        let mut client = scripted::client(&listener).await;
        assert_eq!(published(&client.command().await.unwrap()), (1, "first".to_owned()));
        drop(client);
        let mut client = scripted::client(&listener).await;
        assert_eq!(published(&client.command().await.unwrap()), (1, "first".to_owned()));
        client.say(b":1\r\n").await;
        client
    };
    let (sent, mut client) = soon(async { tokio::join!(&mut sending, serving) }).await;
    sent.unwrap();
    // nobody waits for the second
    let mut sending = publisher.send_event(&events[1], None);
    let second = soon(async {
        tokio::select! {
            sent = &mut sending => panic!("{sent:?}"),
            second = next_event(&mut client) => second,
        }
    });
    assert_eq!(second.await, (2, "second".to_owned()));
    drop(sending);
    let serving = async {
        let third = next_event(&mut client).await;
        client.say(b":1\r\n:1\r\n").await;
        third
    };
    let third = publisher.send_event(&events[2], None);
    let (sent, third) = soon(async { tokio::join!(third, serving) }).await;
    sent.unwrap();
    assert_eq!(third, (3, "third".to_owned()));
}

/// The next event that a scripted server is sent; positions are answered.
async fn next_event(client: &mut scripted::Client) -> (u64, String) {
    loop {
        let words = client.command().await.unwrap();
        match decode(&words[2]) {
            Ok(Body::Positions(_)) => client.say(b":1\r\n").await,
            _ => return published(&words),
        }
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_any_more_is_left() {
    let (listener, at) = scripted::server().await;
    let subscriber = driver(options(&[at])).get_subscriber();
    let mut updates = subscriber.initialize_stream().unwrap();
    subscriber.register_topic("D").await.unwrap();
    subscriber.daemonize().await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..2 {
        let mut asking = scripted::client(&listener).await;
        assert_eq!(soon(asking.command()).await, None);
        let mut client = scripted::client(&listener).await;
        assert_eq!(soon(client.command()).await.unwrap(), [&b"SUBSCRIBE"[..], b"D"]);
        client.say(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nD\r\n:1\r\n").await;
        // its connection stays, without a word
        silent.push(client);
    }
    next_sync(&mut updates, SyncCause::Reconnected).await;
    assert_eq!(soon(silent[0].command()).await.unwrap(), [b"PING"]);
}

#[tokio::test]
async fn what_is_no_answer_of_a_server_ends_the_connection_and_no_more() {
    let (listener, at) = scripted::server().await;
    let subscriber = driver(options(&[at])).get_subscriber();
    let mut updates = subscriber.initialize_stream().unwrap();
    subscriber.register_topic("D").await.unwrap();
    subscriber.daemonize().await.unwrap();
    for nonsense in ["HTTP/1.1 400 Bad Request\r\n\r\n", "*-7\r\n", "*1\r\n$3\r\nfoo\r\n", ":\r\n"]
    {
        let mut asking = scripted::client(&listener).await;
        assert_eq!(soon(asking.command()).await, None);
        let mut client = scripted::client(&listener).await;
        assert_eq!(soon(client.command()).await.unwrap(), [&b"SUBSCRIBE"[..], b"D"]);
        client.say(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nD\r\n:1\r\n").await;
        client.say(nonsense.as_bytes()).await;
    }
    let mut asking = scripted::client(&listener).await;
    assert_eq!(soon(asking.command()).await, None);
    let mut client = scripted::client(&listener).await;
    assert_eq!(soon(client.command()).await.unwrap(), [&b"SUBSCRIBE"[..], b"D"]);
    client.say(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nD\r\n:1\r\n").await;
    next_sync(&mut updates, SyncCause::Reconnected).await;
}
