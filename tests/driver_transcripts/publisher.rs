//! Our publisher and the recorded subscribers.

use std::sync::Arc;

use dragonwire::driver::{Action, PubSubDriver, Publisher, Update};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::yield_now;

use crate::recording::{Connection, Recording, update_in, update_of};
use crate::side::{network, publisher, soon};
use crate::wire::Wire;

/// Whether somebody follows the topic; if so, the event that found it out is on its way.
async fn is_heard(publisher: &Arc<dyn Publisher>, topic: &str) -> bool {
    let before = publisher.stats().unheard;
    let probe = Update::new("probe", topic, Action::Log);
    soon(publisher.send_event(&probe, Some(topic))).await.unwrap();
    publisher.stats().unheard == before
}

/// Waits until the publisher has taken what the subscriber sent: from then on the topic is followed,
/// or is not. The subscriber takes the events by which that was found out.
async fn settle<S: AsyncRead + AsyncWrite + Unpin>(
    publisher: &Arc<dyn Publisher>,
    wire: &mut Wire<S>,
    topic: &str,
    followed: bool,
) {
    loop {
        let heard = soon(is_heard(publisher, topic)).await;
        if heard {
            let probe = wire.message().await;
            assert_eq!(&probe[0][2..], topic.as_bytes());
        }
        if heard == followed {
            return;
        }
        yield_now().await;
    }
}

/// Connects as the recorded subscriber, with its first subscription, which is that of `D`.
async fn meet(
    publisher: &Arc<dyn Publisher>,
    uri: &str,
    connection: &Connection,
) -> Wire<TcpStream> {
    let mut wire = Wire::connect(uri).await;
    wire.shake(&connection.client, &connection.server).await;
    wire.write(&connection.client.frames[0]).await;
    settle(publisher, &mut wire, "D", true).await;
    wire
}

/// That the next message has the recorded octets.
async fn assert_sent(recording: &Recording, wire: &mut Wire<TcpStream>, message: &[Vec<u8>]) {
    for recorded in message {
        recording.assert_frame(&wire.frame().await, recorded);
    }
}

/// Closes the publisher, and thereby the connection of its subscriber or reader.
pub(crate) async fn close<S>(publisher: &Arc<dyn Publisher>, wire: Wire<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (closed, ()) = tokio::join!(soon(publisher.close()), wire.ended());
    closed.unwrap();
}

#[tokio::test]
async fn a_subscriber_of_each_release_gets_the_octets_of_its_own_publisher() {
    for release in ["1.0.0", "3.0.0", "5.0.0", "6-master-py3"] {
        let recording = Recording::load(&format!("df-{release}-tcp-basic"));
        let connection = recording.connection("tcp");
        let (publisher, uri) = publisher(recording.options()).await;
        let mut wire = meet(&publisher, &uri, &connection).await;
        let mut messages = connection.server.messages().into_iter();
        for step in recording.steps().iter().filter(|step| step["event"].is_object()) {
            let (update, topic) = update_in(&step["event"]);
            publisher.send_event(&update, topic).await.unwrap();
            assert_sent(&recording, &mut wire, &messages.next().unwrap()).await;
        }
        assert_eq!(messages.len(), 0);
        close(&publisher, wire).await;
    }
}

/// In 1.0.0 the body has the topic that the event is sent on, in 5.0.0 the update's own.
#[tokio::test]
async fn events_go_out_on_the_topics_of_each_release() {
    for release in ["1.0.0", "5.0.0"] {
        let recording = Recording::load(&format!("df-{release}-tcp-topics"));
        let connection = recording.connection("tcp");
        let (publisher, uri) = publisher(recording.options()).await;
        let mut wire = meet(&publisher, &uri, &connection).await;
        let mut saying = connection.client.frames[1..].iter();
        let mut messages = connection.server.messages().into_iter();
        for step in recording.steps() {
            let settled = match step["what"].as_str().unwrap() {
                "register_topic(tenant-1)" => ("tenant-1", true),
                "register_topic(ténant)" => ("tnant", true),
                "unregister_topic(tenant-1)" => ("tenant-1", false),
                _ if !step["event"].is_object() => continue,
                _ => {
                    let (update, topic) = update_in(&step["event"]);
                    let before = publisher.stats().unheard;
                    publisher.send_event(&update, topic).await.unwrap();
                    if publisher.stats().unheard == before {
                        assert_sent(&recording, &mut wire, &messages.next().unwrap()).await;
                    } else {
                        let key = update.key.as_deref().unwrap();
                        assert!(["k1", "k8", "k9"].contains(&key), "{key}");
                    }
                    continue;
                }
            };
            wire.write(saying.next().unwrap()).await;
            settle(&publisher, &mut wire, settled.0, settled.1).await;
        }
        assert_eq!((saying.len(), messages.len()), (0, 0));
        close(&publisher, wire).await;
    }
}

/// A publisher is stopped and another started in its place; then the connection is cut.
#[tokio::test]
async fn a_subscriber_that_comes_again_gets_what_is_sent_from_then_on() {
    let recording = Recording::load("df-1.0.0-publisher-restart");
    let mut connections = recording.connections("tcp").into_iter();
    let mut options = recording.options();
    let (first, uri) = publisher(options.clone()).await;
    let connection = connections.next().unwrap();
    let mut wire = meet(&first, &uri, &connection).await;
    first.send_event(&update_of(&connection.server.frames), None).await.unwrap();
    assert_sent(&recording, &mut wire, &connection.server.frames).await;
    close(&first, wire).await;

    options.publisher_port = uri.rsplit(':').next().unwrap().parse().unwrap();
    let (second, uri) = publisher(options).await;
    for connection in connections {
        let mut wire = meet(&second, &uri, &connection).await;
        second.send_event(&update_of(&connection.server.frames), None).await.unwrap();
        assert_sent(&recording, &mut wire, &connection.server.frames).await;
        wire.reset();
    }
}

#[tokio::test]
async fn a_subscriber_gets_each_event_of_a_publisher_that_it_registered_or_never_closed() {
    for (name, relay) in [
        ("df-1.0.0-listen-address", "pub1"),
        ("df-1.0.0-listen-address", "pub2"),
        ("df-1.0.0-close", "tcp"),
    ] {
        let recording = Recording::load(name);
        let connection = recording.connection(relay);
        let (publisher, uri) = publisher(recording.options()).await;
        let mut wire = meet(&publisher, &uri, &connection).await;
        for message in connection.server.messages() {
            publisher.send_event(&update_of(&message), None).await.unwrap();
            assert_sent(&recording, &mut wire, &message).await;
        }
        close(&publisher, wire).await;
    }
}

/// Closing unbinds; the next event binds again, and is lost for those who are not back yet.
#[tokio::test]
async fn a_publisher_that_was_closed_binds_again_with_its_next_event() {
    let recording = Recording::load("df-5.0.0-close");
    let connections = recording.connections("tcp");
    let driver = network(recording.options());
    let publisher = driver.get_publisher();
    let send = async |key: &str| {
        let update = Update::new("t", key, Action::Set);
        publisher.send_event(&update, None).await.unwrap();
        publisher.endpoint().unwrap().to_string()
    };
    publisher.initialize().await.unwrap();
    let uri = publisher.endpoint().unwrap().to_string();
    // the first two connections are of a subscriber that was closed in between, and went on
    for (connection, key) in connections[..2].iter().zip(["a", "b"]) {
        let mut wire = meet(&publisher, &uri, connection).await;
        send(key).await;
        assert_sent(&recording, &mut wire, &connection.server.frames).await;
        if key == "b" {
            close(&publisher, wire).await;
        }
    }
    assert_eq!(publisher.endpoint(), None);
    let uri = send("c").await;
    let mut wire = meet(&publisher, &uri, &connections[2]).await;
    send("d").await;
    assert_sent(&recording, &mut wire, &connections[2].server.frames).await;
    close(&publisher, wire).await;
}
