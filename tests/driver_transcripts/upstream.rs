//! What Dragonflow's own tests of publishing and subscribing assert, unit tests and those of a whole
//! cloud, as far as other tests of the drivers do not: those on topics, on addresses registered while
//! it runs, and on a publisher that opens with its first event are among them.

use std::sync::Arc;

use dragonwire::SubSocket;
use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::directory::{Directory, MemoryDirectory};
use dragonwire::driver::{
    Action, DriverContext, Drivers, NbApi, PubSubDriver, SubscriberEvent, TableMonitor, Update,
};
use serde_json::{Value as Json, json};

use crate::recording::arguments;
use crate::side::{multiproc, network, options, publisher, soon};
use crate::subscriber::Subscribed;

const CODECS: [Codec; 3] = [Codec::Protobuf, Codec::Msgpack, Codec::Json];

fn with(codec: Codec) -> DriverOptions {
    let mut options = options();
    options.codec = Some(codec);
    options
}

/// A subscriber of these topics of a publisher, which has taken them.
async fn follow(uri: &str, topics: &[&str]) -> Subscribed {
    let subscribed = Subscribed::initialized(network(options()).get_subscriber());
    for topic in topics {
        assert!(subscribed.subscriber.register_topic(topic).await.unwrap());
    }
    assert!(subscribed.subscriber.register_listen_address(uri).await.unwrap());
    subscribed.subscriber.daemonize().await.unwrap();
    soon(subscribed.subscriber.ready()).await.unwrap();
    subscribed
}

fn call(update: &Update) -> Json {
    arguments(&SubscriberEvent::Update(update.clone()))
}

#[tokio::test]
async fn an_event_is_one_message_of_its_topic_and_its_body() {
    for codec in [Codec::Msgpack, Codec::Json] {
        let (publisher, uri) = publisher(with(codec)).await;
        let mut socket = SubSocket::new();
        socket.subscribe("").unwrap();
        socket.connect(uri.as_str()).await.unwrap();
        soon(socket.ready()).await.unwrap();
        // the event's own topic, none at all, and one that is given
        let own = Update::new("lport", "1", Action::Create).with_topic("tenant-1");
        let none = Update { topic: None, ..own.clone() };
        let sent = [(&own, None), (&none, None), (&none, Some("tenant-2"))];
        for (update, topic) in sent {
            publisher.send_event(update, topic).await.unwrap();
        }
        for topic in ["tenant-1", "D", "tenant-2"] {
            let message = soon(socket.recv()).await.unwrap();
            assert_eq!(message.topic(), topic.as_bytes());
            assert_eq!(message.frames().count(), 2);
        }
        assert_eq!(publisher.stats().published, 3);
    }
}

/// Through the one publisher of a process: of an object that is new, changed or gone, exactly one event
/// with that action and the object's text, if it is not gone. Objects without a topic are everybody's.
#[tokio::test]
async fn each_change_of_an_object_is_exactly_one_event() {
    for codec in CODECS {
        let mut options = with(codec);
        options.pub_sub_use_multiproc = false;
        let api = NbApi::new(&Drivers::new(), DriverContext::new(options)).unwrap();
        api.publisher().initialize().await.unwrap();
        let uri = api.publisher().endpoint().unwrap().to_string();
        let mut subscribed = follow(&uri, &["D", "tenant-1"]).await;
        let text = r#"{"id": "7e4a", "topic": "tenant-1"}"#;
        let changes = |topic: &str| {
            [
                Update::new("lport", "7e4a", Action::Create).with_value(text).with_topic(topic),
                Update::new("lport", "7e4a", Action::Set).with_value(text).with_topic(topic),
                Update::new("lport", "7e4a", Action::Delete).with_topic(topic),
            ]
        };
        for change in changes("D").iter().chain(&changes("tenant-1")) {
            api.publisher().send_event(change, None).await.unwrap();
            subscribed.is_called_with(&[call(change)]).await;
        }
        soon(api.close()).await.unwrap();
        subscribed.ends_without_more().await;
    }
}

/// A controller tells one API server of many, on that one's topic and with an action of its own.
#[tokio::test]
async fn an_update_for_one_listener_reaches_that_one_alone() {
    let (publisher, uri) = publisher(options()).await;
    let mut first = follow(&uri, &["listener_host-1"]).await;
    let mut second = follow(&uri, &["listener_host-2"]).await;
    let update = |host: &str| {
        Update::new("lport", "7e4a", "update".into())
            .with_value(r#"{"status": "ACTIVE"}"#)
            .with_topic(format!("listener_{host}"))
    };
    for host in ["host-1", "host-2"] {
        publisher.send_event(&update(host), None).await.unwrap();
    }
    first.is_called_with(&[call(&update("host-1"))]).await;
    second.is_called_with(&[call(&update("host-2"))]).await;
    first.ends_without_more().await;
    second.ends_without_more().await;
}

/// A network, a port in it, a hundred changes of the port, and their ends.
#[tokio::test]
async fn every_step_is_one_call_of_the_callback() {
    for codec in CODECS {
        let (publisher, uri) = publisher(with(codec)).await;
        let mut subscribed = follow(&uri, &["D"]).await;
        let change = |table: &str, action: Action| Update::new(table, "7e4a", action);
        for update in [change("lswitch", Action::Create), change("lport", Action::Create)] {
            publisher.send_event(&update, None).await.unwrap();
            subscribed.is_called_with(&[call(&update)]).await;
        }
        let name = |version| format!(r#"{{"name": "port_{version}"}}"#);
        let changes: Vec<_> =
            (0..100).map(|at| change("lport", Action::Set).with_value(name(at))).collect();
        for update in &changes {
            publisher.send_event(update, None).await.unwrap();
        }
        subscribed.is_called_with(&changes.iter().map(call).collect::<Vec<_>>()).await;
        for update in [change("lport", Action::Delete), change("lswitch", Action::Delete)] {
            publisher.send_event(&update, None).await.unwrap();
            subscribed.is_called_with(&[call(&update)]).await;
        }
        subscribed.ends_without_more().await;
    }
}

#[tokio::test]
async fn an_event_on_a_topic_is_one_call_while_the_topic_is_registered() {
    for codec in CODECS {
        let (publisher, uri) = publisher(with(codec)).await;
        let mut subscribed = follow(&uri, &["D", "topic"]).await;
        let update = Update::new("log", "1", Action::Log).with_value("test");
        let call = |topic: &str| {
            // the text form has the topic that it was sent on
            let topic = if codec == Codec::Json { topic } else { "D" };
            json!({ "table": "log", "key": "1", "action": "log", "value": "test", "topic": topic })
        };
        publisher.send_event(&update, Some("topic")).await.unwrap();
        publisher.send_event(&update, Some("Other-topic")).await.unwrap();
        publisher.send_event(&update, None).await.unwrap();
        subscribed.is_called_with(&[call("topic"), call("D")]).await;
        subscribed.subscriber.unregister_topic("topic").await.unwrap();
        soon(subscribed.subscriber.ready()).await.unwrap();
        publisher.send_event(&update, Some("topic")).await.unwrap();
        publisher.send_event(&update, None).await.unwrap();
        subscribed.is_called_with(&[call("D")]).await;
        subscribed.ends_without_more().await;
    }
}

#[tokio::test]
async fn an_event_between_processes_arrives_with_its_fields() {
    for codec in CODECS {
        let folder = tempfile::tempdir().unwrap();
        let mut options = with(codec);
        options.publisher_multiproc_socket = folder.path().join("socket");
        let driver = multiproc(options);
        let mut subscribed = Subscribed::initialized(driver.get_subscriber());
        subscribed.subscriber.daemonize().await.unwrap();
        let publisher = driver.get_publisher();
        publisher.initialize().await.unwrap();
        let update = Update::new("info", "log", Action::Log).with_value("multiproc");
        soon(publisher.send_event(&update, None)).await.unwrap();
        subscribed.is_called_with(&[call(&update)]).await;
        soon(publisher.close()).await.unwrap();
        subscribed.ends_without_more().await;
    }
}

/// A row that is written, changed and removed; its text comes with the event, unless values are left
/// out.
#[tokio::test]
async fn changes_of_a_monitored_table_are_events_with_the_rows_text() {
    for trigger_only in [false, true] {
        let mut options = with(Codec::Msgpack);
        options.trigger_only = trigger_only;
        let (publisher, uri) = publisher(options).await;
        let mut subscribed = follow(&uri, &["D"]).await;
        let directory = Arc::new(MemoryDirectory::new());
        let mut monitor = TableMonitor::new("chassis", directory.clone(), publisher);
        assert_eq!(monitor.poll().await.unwrap(), 0);
        let (new, changed) = (r#"{"id": "c", "ip": "10.0.0.1"}"#, r#"{"id": "c"}"#);
        for (action, text) in [("create", Some(new)), ("set", Some(changed)), ("delete", None)] {
            match text {
                Some(text) => directory.put("chassis", "c", text).await.unwrap(),
                None => assert!(directory.delete("chassis", "c").await.unwrap()),
            }
            assert_eq!(monitor.poll().await.unwrap(), 1);
            assert_eq!(monitor.poll().await.unwrap(), 0);
            let value = text.filter(|_| !trigger_only);
            let call = json!({
                "table": "chassis", "key": "c", "action": action, "value": value, "topic": "D",
            });
            subscribed.is_called_with(&[call]).await;
        }
        subscribed.ends_without_more().await;
    }
}
