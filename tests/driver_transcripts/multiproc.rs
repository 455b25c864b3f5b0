//! The multi-process driver and its recorded peers: PUSH of several processes, PULL of one.

use std::path::PathBuf;

use dragonwire::driver::{Action, MultiprocDriver, PubSubDriver, Update};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixListener;

use crate::publisher::close;
use crate::recording::{Recording, hex, json_message, update_in};
use crate::side::{multiproc, soon};
use crate::subscriber::Subscribed;
use crate::wire::Wire;

/// A driver at a socket of its own, with the codec of the recording.
fn driver(recording: &Recording) -> (MultiprocDriver, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = recording.options();
    let path = folder.path().join("socket");
    options.publisher_multiproc_socket.clone_from(&path);
    (multiproc(options), path, folder)
}

#[tokio::test]
async fn two_processes_of_each_release_push_to_our_subscriber() {
    for release in ["1.0.0", "5.0.0"] {
        let recording = Recording::load(&format!("df-{release}-ipc-multiproc"));
        let (driver, path, _folder) = driver(&recording);
        let mut subscribed = Subscribed::initialized(driver.get_subscriber());
        subscribed.subscriber.daemonize().await.unwrap();
        let mut calls = recording.callbacks().chunks(2);
        let mut wires = Vec::new();
        for connection in recording.connections("ipc") {
            let mut wire = Wire::connect_local(&path).await;
            wire.shake(&connection.client, &connection.server).await;
            assert!(connection.server.frames.is_empty(), "the reader has nothing to say");
            wire.write_all(&connection.client.frames).await;
            subscribed.is_called_with(calls.next().unwrap()).await;
            wires.push(wire);
        }
        subscribed.ends(wires).await;
    }
}

/// Two publishers each connect with their first event, as in 1.0.0; 5.0.0 connected in `initialize`.
#[tokio::test]
async fn our_publishers_push_to_the_reader_of_each_release() {
    for release in ["1.0.0", "5.0.0"] {
        let recording = Recording::load(&format!("df-{release}-ipc-multiproc"));
        let (first, path, _folder) = driver(&recording);
        let mut options = recording.options();
        options.publisher_multiproc_socket.clone_from(&path);
        let second = multiproc(options);
        let listener = UnixListener::bind(&path).unwrap();
        let publishers = [first.get_publisher(), second.get_publisher()];
        for publisher in &publishers {
            publisher.initialize().await.unwrap();
            assert_eq!(publisher.endpoint(), None);
        }
        for ((who, publisher), connection) in
            ["pub1", "pub2"].iter().zip(&publishers).zip(recording.connections("ipc"))
        {
            let events = recording.steps().iter().filter(|step| step["who"] == *who);
            for event in events.map(|step| &step["event"]).filter(|event| event.is_object()) {
                let (update, topic) = update_in(event);
                soon(publisher.send_event(&update, topic)).await.unwrap();
            }
            let mut wire = Wire::accept_local(&listener).await;
            wire.shake(&connection.server, &connection.client).await;
            for recorded in &connection.client.frames {
                recording.assert_frame(&wire.frame().await, recorded);
            }
            close(publisher, wire).await;
        }
    }
}

/// The reader comes when three events were sent.
#[tokio::test]
async fn events_wait_for_a_late_reader_of_the_release() {
    let recording = Recording::load("df-1.0.0-ipc-late-subscriber");
    let reader = Recording::load("df-1.0.0-ipc-multiproc").connections("ipc").remove(0);
    let (driver, path, _folder) = driver(&recording);
    let publisher = driver.get_publisher();
    publisher.initialize().await.unwrap();
    let keys = ["early-0", "early-1", "early-2"];
    assert_eq!(recording.step("callbacks")["got"], json!(keys));
    for key in keys {
        soon(publisher.send_event(&Update::new("t", key, Action::Set), None)).await.unwrap();
    }
    let listener = UnixListener::bind(&path).unwrap();
    let mut wire = Wire::accept_local(&listener).await;
    wire.shake(&reader.server, &reader.client).await;
    for frame in keys.iter().flat_map(|key| json_message(key)) {
        assert_eq!(hex(&wire.frame().await), hex(&frame));
    }
}

/// What a process of the release kept until then arrives when our subscriber binds.
#[tokio::test]
async fn a_late_subscriber_gets_what_a_process_of_the_release_kept() {
    let recording = Recording::load("df-1.0.0-ipc-late-subscriber");
    let writer = Recording::load("df-1.0.0-ipc-multiproc").connections("ipc").remove(0);
    let (driver, path, _folder) = driver(&recording);
    let mut subscribed = Subscribed::initialized(driver.get_subscriber());
    assert!(!path.exists(), "it binds when it is started");
    subscribed.subscriber.daemonize().await.unwrap();
    let mut wire = Wire::connect_local(&path).await;
    wire.shake(&writer.client, &writer.server).await;
    let kept = ["early-0", "early-1", "early-2"].iter().flat_map(|key| json_message(key));
    wire.write_all(&kept.collect::<Vec<_>>()).await;
    subscribed.is_called_with(recording.callbacks()).await;
    subscribed.ends([wire]).await;
}
