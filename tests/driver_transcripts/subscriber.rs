//! Our subscriber and the recorded publishers.

use std::sync::Arc;

use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{DriverError, PubSubDriver, Subscriber, SubscriberEvent};
use futures::future::join_all;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::recording::{Connection, Recording, arguments, hex, json_message, unhex};
use crate::side::{DEADLINE, network, options, soon};
use crate::wire::{Wire, listener};

/// A subscriber that runs, and the calls of its callback.
pub(crate) struct Subscribed {
    pub(crate) subscriber: Arc<dyn Subscriber>,
    calls: UnboundedReceiver<Json>,
}

impl Subscribed {
    /// Of topic `D`, as every recorded subscriber is.
    async fn new(options: DriverOptions, uri: &str) -> Self {
        let subscribed = Self::initialized(network(options).get_subscriber());
        let Self { subscriber, .. } = &subscribed;
        assert!(subscriber.register_topic("D").await.unwrap());
        assert!(subscriber.register_listen_address(uri).await.unwrap());
        subscriber.daemonize().await.unwrap();
        subscribed
    }

    /// With a callback that panics at the key `boom`, as the recorded one raised.
    pub(crate) fn initialized(subscriber: Arc<dyn Subscriber>) -> Self {
        let (called, calls) = unbounded_channel();
        let callback = move |event: SubscriberEvent| {
            let call = arguments(&event);
            called.send(call.clone()).unwrap();
            assert_ne!(call["key"], "boom", "a fault of the callback");
        };
        subscriber.initialize(Box::new(callback)).unwrap();
        Self { subscriber, calls }
    }

    /// That the callback is given these next.
    #[track_caller]
    pub(crate) fn is_called_with(&mut self, expected: &[Json]) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            for expected in expected {
                let call = soon(self.calls.recv()).await.expect("the subscriber was closed");
                assert_eq!(call, *expected, "{caller}");
            }
        }
    }

    /// Closes it; the callback was not given anything more.
    pub(crate) async fn ends_without_more(self) {
        self.ends(None::<Wire<TcpStream>>).await;
    }

    /// The same, with the recorded peers' ends of its connections.
    pub(crate) async fn ends<S>(mut self, wires: impl IntoIterator<Item = Wire<S>>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let ended = join_all(wires.into_iter().map(Wire::ended));
        let (closed, _) = tokio::join!(soon(self.subscriber.close()), ended);
        closed.unwrap();
        assert!(!self.subscriber.is_running());
        assert_eq!(soon(self.calls.recv()).await, None);
    }
}

/// Accepts the subscriber's connection as the recorded publisher, up to its first subscription.
async fn meet(listener: &TcpListener, connection: &Connection) -> Wire<TcpStream> {
    let mut wire = Wire::accept(listener).await;
    wire.shake(&connection.server, &connection.client).await;
    // a message to a publisher of 3.0, a command to one of 3.1
    assert_eq!(hex(&wire.frame().await), hex(&connection.client.frames[0]));
    wire
}

fn sync() -> Json {
    json!({ "table": null, "key": null, "action": "sync", "value": null, "topic": null })
}

/// The recorded calls with these keys.
fn with_keys(recording: &Recording, keys: &Json) -> Vec<Json> {
    let keys = keys.as_array().unwrap().iter();
    let call = |key: &Json| recording.callbacks().iter().find(|call| call["key"] == *key).unwrap();
    keys.map(call).cloned().collect()
}

#[tokio::test]
async fn the_events_of_a_publisher_of_each_release_reach_the_callback() {
    for release in ["1.0.0", "3.0.0", "5.0.0", "6-master-py3"] {
        let recording = Recording::load(&format!("df-{release}-tcp-basic"));
        let connection = recording.connection("tcp");
        let (listener, uri) = listener().await;
        let mut subscribed = Subscribed::new(options(), &uri).await;
        let mut wire = meet(&listener, &connection).await;
        assert_eq!(connection.client.frames.len(), 1, "the subscription is all it said");
        wire.write_all(&connection.server.frames).await;
        subscribed.is_called_with(recording.callbacks()).await;
        subscribed.ends([wire]).await;
    }
}

/// A subscriber of `D` and a tenant's topic at the publisher service: what processes sent, then what the
/// service itself tells of tables.
#[tokio::test]
async fn the_events_of_a_publisher_service_reach_the_callback() {
    for release in ["1.0.0", "5.0.0"] {
        let recording = Recording::load(&format!("df-{release}-publisher-service"));
        let connection = recording.connection("tcp");
        let (listener, uri) = listener().await;
        let mut subscribed = Subscribed::new(options(), &uri).await;
        assert!(subscribed.subscriber.register_topic("tenant-1").await.unwrap());
        let mut wire = meet(&listener, &connection).await;
        assert_eq!(hex(&wire.frame().await), hex(&connection.client.frames[1]));
        let messages = connection.server.messages();
        let so_far = recording.step("callbacks so far")["got"].as_array().unwrap();
        wire.write_all(&messages[..so_far.len()].concat()).await;
        subscribed.is_called_with(so_far).await;
        wire.write_all(&messages[so_far.len()..].concat()).await;
        subscribed.is_called_with(&recording.callbacks()[so_far.len()..]).await;
        subscribed.ends([wire]).await;
    }
}

/// Registering and unregistering while it runs. `ténant` is the one topic whose octets differ: releases
/// up to 5.0.0 subscribe to `tnant`, which matches nothing that is published.
#[tokio::test]
async fn topics_are_registered_and_unregistered_at_the_recorded_steps() {
    for release in ["1.0.0", "5.0.0"] {
        let recording = Recording::load(&format!("df-{release}-tcp-topics"));
        let connection = recording.connection("tcp");
        let (listener, uri) = listener().await;
        let mut subscribed = Subscribed::new(options(), &uri).await;
        let mut wire = meet(&listener, &connection).await;
        let mut said = connection.client.frames[1..].iter();
        let mut events = connection.server.messages().into_iter();
        for step in recording.steps() {
            let subscriber = &subscribed.subscriber;
            match step["what"].as_str().unwrap() {
                "callbacks" => {
                    subscribed.is_called_with(step["got"].as_array().unwrap()).await;
                }
                "register_topic(tenant-1)" => {
                    assert!(subscriber.register_topic("tenant-1").await.unwrap());
                    assert_eq!(hex(&wire.frame().await), hex(said.next().unwrap()));
                }
                "register_topic(ténant)" => {
                    assert!(subscriber.register_topic("ténant").await.unwrap());
                    assert_eq!(wire.frame().await, "\0\u{8}\u{1}ténant".as_bytes());
                    assert_eq!(said.next().unwrap(), b"\0\x06\x01tnant");
                }
                "unregister_topic(tenant-1)" => {
                    subscriber.unregister_topic("tenant-1").await.unwrap();
                    assert_eq!(hex(&wire.frame().await), hex(said.next().unwrap()));
                }
                "unregister_topic of an unknown topic raises" => {
                    let unknown = subscriber.unregister_topic("tenant-1").await;
                    assert!(matches!(unknown, Err(DriverError::UnknownTopic { .. })));
                }
                "state" => {}
                // the publisher sent what was subscribed to
                _ if ["k1", "k8", "k9"].map(Json::from).contains(&step["event"]["key"]) => {}
                _ => wire.write_all(&events.next().unwrap()).await,
            }
        }
        assert_eq!((said.len(), events.len()), (0, 0));
        subscribed.ends([wire]).await;
    }
}

#[tokio::test]
async fn a_hundred_events_in_a_row_arrive_once_and_in_order() {
    let step = &Recording::load("df-1.0.0-burst").steps()[0].clone();
    assert_eq!((&step["count"], &step["in_order"]), (&json!(100), &json!(true)));
    let connection = Recording::load("df-1.0.0-tcp-basic").connection("tcp");
    let (listener, uri) = listener().await;
    let mut subscribed = Subscribed::new(options(), &uri).await;
    let mut wire = meet(&listener, &connection).await;
    let keys: Vec<_> = (0..100).map(|event| event.to_string()).collect();
    wire.write_all(&keys.iter().flat_map(|key| json_message(key)).collect::<Vec<_>>()).await;
    let calls: Vec<_> = keys
        .iter()
        .map(
            |key| json!({ "table": "t", "key": key, "action": "set", "value": null, "topic": "D" }),
        )
        .collect();
    subscribed.is_called_with(&calls).await;
    subscribed.ends([wire]).await;
}

/// The publisher is stopped and started again, then the connection is cut. Upstream says nothing of
/// either; ours does not when that is asked for, and tells one `sync` each as it is.
#[tokio::test]
async fn a_publisher_that_was_away_is_connected_to_and_subscribed_to_again() {
    let recording = Recording::load("df-1.0.0-publisher-restart");
    for sync_on_reconnect in [false, true] {
        let mut connections = recording.connections("tcp").into_iter();
        let [before, after, after_cut] = recording.callbacks() else { panic!() };
        let (listener, uri) = listener().await;
        let mut options = options();
        options.sync_on_reconnect = sync_on_reconnect;
        let mut subscribed = Subscribed::new(options, &uri).await;
        let syncs = if sync_on_reconnect { vec![sync()] } else { Vec::new() };

        let connection = connections.next().unwrap();
        let mut wire = meet(&listener, &connection).await;
        wire.write_all(&connection.server.frames).await;
        subscribed.is_called_with(std::slice::from_ref(before)).await;
        drop(wire);
        // as often as the publisher was not there yet; upstream tried more often
        for _ in 0..2 {
            drop(Wire::accept(&listener).await);
        }

        let connection = connections.next().unwrap();
        let mut wire = meet(&listener, &connection).await;
        subscribed.is_called_with(&syncs).await;
        wire.write_all(&connection.server.frames).await;
        subscribed.is_called_with(std::slice::from_ref(after)).await;
        wire.reset();

        let connection = connections.next().unwrap();
        let mut wire = meet(&listener, &connection).await;
        subscribed.is_called_with(&syncs).await;
        wire.write_all(&connection.server.frames).await;
        subscribed.is_called_with(std::slice::from_ref(after_cut)).await;
        assert!(connections.next().is_none());
        subscribed.ends([wire]).await;
    }
}

/// Where upstream returned nothing ours tells whether the address was new.
#[tokio::test]
async fn a_second_publisher_is_registered_and_the_first_unregistered_while_it_runs() {
    let recording = Recording::load("df-1.0.0-listen-address");
    let (first, second) = (recording.connection("pub1"), recording.connection("pub2"));
    let mut sent = [first.server.messages().into_iter(), second.server.messages().into_iter()];
    let (first_listener, first_uri) = listener().await;
    let (second_listener, second_uri) = listener().await;
    let mut subscribed = Subscribed::new(options(), &first_uri).await;
    let mut first_wire = meet(&first_listener, &first).await;
    let got = |what: &str| with_keys(&recording, &recording.step(what)["got"]);

    first_wire.write_all(&sent[0].next().unwrap()).await;
    subscribed.is_called_with(&got("callbacks one")).await;
    assert!(subscribed.subscriber.register_listen_address(&second_uri).await.unwrap());
    let mut second_wire = meet(&second_listener, &second).await;
    for what in ["callbacks two", "callbacks two-again"] {
        let [from_first, from_second] = got(what).try_into().unwrap();
        first_wire.write_all(&sent[0].next().unwrap()).await;
        subscribed.is_called_with(&[from_first]).await;
        second_wire.write_all(&sent[1].next().unwrap()).await;
        subscribed.is_called_with(&[from_second]).await;
        assert!(!subscribed.subscriber.register_listen_address(&second_uri).await.unwrap());
    }
    subscribed.subscriber.unregister_listen_address(&first_uri).await.unwrap();
    first_wire.ended().await;
    second_wire.write_all(&sent[1].next().unwrap()).await;
    subscribed.is_called_with(&got("callbacks only-second")).await;
    let unknown = subscribed.subscriber.unregister_listen_address(&first_uri).await;
    assert!(matches!(unknown, Err(DriverError::UnknownAddress { .. })), "{unknown:?}");
    assert_eq!(sent.map(|rest| rest.len()), [0, 0]);
    subscribed.ends([second_wire]).await;
}

/// Upstream closes the connection after each message that it cannot use, and connects again. Ours
/// keeps it; the callbacks are the same.
#[tokio::test]
async fn each_bad_message_is_one_sync_and_the_good_ones_between_them_arrive() {
    for release in ["1.0.0", "5.0.0"] {
        let recording = Recording::load(&format!("df-{release}-bad-messages-sync"));
        // the peer was written by hand, and shook hands as libzmq of that release does
        let connection = Recording::load("df-1.0.0-tcp-basic").connection("tcp");
        let (listener, uri) = listener().await;
        let mut subscribed = Subscribed::new(options(), &uri).await;
        let mut wire = meet(&listener, &connection).await;
        let mut calls = Vec::new();
        for step in recording.steps() {
            wire.write(&unhex(step["sent_hex"].as_str().unwrap())).await;
            let told = step["callbacks"].as_array().unwrap();
            subscribed.is_called_with(told).await;
            calls.extend_from_slice(told);
        }
        assert_eq!(calls, recording.callbacks());
        let stats = subscribed.subscriber.stats();
        // `boom` was delivered, and its callback panicked
        assert_eq!((stats.undecodable, stats.callback_panics), (7, 1));
        subscribed.ends([wire]).await;
    }
}

/// Upstream's subscribers went on after `stop` and `close`, the later ones with a `sync`. Ours ends:
/// what came before that is the same, and nothing comes afterwards.
#[tokio::test]
async fn a_subscriber_that_is_closed_ends() {
    for release in ["1.0.0", "5.0.0"] {
        let recording = Recording::load(&format!("df-{release}-close"));
        let connection = recording.connections("tcp").remove(0);
        let (listener, uri) = listener().await;
        let mut subscribed = Subscribed::new(options(), &uri).await;
        let mut wire = meet(&listener, &connection).await;
        wire.write_all(&connection.server.messages()[0]).await;
        subscribed.is_called_with(&recording.callbacks()[..1]).await;
        subscribed.ends([wire]).await;
    }
}

/// The runtime is left alone afterwards: it would wait for a task that does not end.
#[test]
fn a_subscriber_that_is_connected_to_nobody_ends_when_it_is_closed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let closed = runtime.block_on(async {
        let subscriber = network(options()).get_subscriber();
        let mut updates = subscriber.initialize_stream().unwrap();
        subscriber.daemonize().await.unwrap();
        let closed = timeout(DEADLINE, subscriber.close()).await;
        if closed.is_ok() {
            assert_eq!(soon(updates.recv()).await, None);
        }
        closed
    });
    runtime.shutdown_background();
    closed.expect("it closes").unwrap();
}
