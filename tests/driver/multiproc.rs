//! The multi-process driver: PUSH and PULL over a Unix socket.

use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{Action, PubSubDriver, Update};

use crate::side::{multiproc, next_key, options, soon};

fn update(key: &str) -> Update {
    Update::new("lport", key, Action::Log)
}

fn at(folder: &tempfile::TempDir, codec: Codec) -> DriverOptions {
    let mut options = options();
    options.publisher_multiproc_socket = folder.path().join("socket");
    options.codec = Some(codec);
    options
}

#[tokio::test]
async fn many_writers_reach_one_reader() {
    let folder = tempfile::tempdir().unwrap();
    for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
        let options = at(&folder, codec);
        let subscriber = multiproc(options.clone()).get_subscriber();
        let mut updates = subscriber.initialize_stream().unwrap();
        subscriber.daemonize().await.unwrap();
        let mut writers = Vec::new();
        for writer in 0..4 {
            let publisher = multiproc(options.clone()).get_publisher();
            publisher.initialize().await.unwrap();
            assert_eq!(publisher.endpoint(), None, "it connects at its first event");
            for event in 0..25 {
                let key = format!("{writer} {event}");
                soon(publisher.send_event(&update(&key), None)).await.unwrap();
            }
            writers.push(publisher);
        }
        let mut counts = [0; 4];
        for _ in 0..100 {
            let key = next_key(&mut updates).await;
            let (writer, event) = key.split_once(' ').unwrap();
            let count = &mut counts[writer.parse::<usize>().unwrap()];
            assert_eq!(event, count.to_string(), "each writer's events are in order");
            *count += 1;
        }
        subscriber.close().await.unwrap();
    }
}

#[tokio::test]
async fn events_from_before_the_reader_was_there_are_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let options = at(&folder, Codec::Msgpack);
    let publisher = multiproc(options.clone()).get_publisher();
    for key in ["1", "2", "3"] {
        soon(publisher.send_event(&update(key), None)).await.unwrap();
    }
    let subscriber = multiproc(options).get_subscriber();
    let mut updates = subscriber.initialize_stream().unwrap();
    subscriber.daemonize().await.unwrap();
    for key in ["1", "2", "3"] {
        assert_eq!(next_key(&mut updates).await, key);
    }
}

#[tokio::test]
async fn a_second_reader_of_one_socket_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = at(&folder, Codec::Msgpack);
    let first = multiproc(options.clone()).get_subscriber();
    let _updates = first.initialize_stream().unwrap();
    first.daemonize().await.unwrap();
    let second = multiproc(options).get_subscriber();
    let _more = second.initialize_stream().unwrap();
    let error = second.daemonize().await.unwrap_err().to_string();
    assert!(error.contains("socket"), "{error}");
    assert!(!second.is_running());
}

#[tokio::test]
async fn a_reader_that_is_restarted_gets_what_its_predecessor_did_not_take() {
    let folder = tempfile::tempdir().unwrap();
    let options = at(&folder, Codec::Protobuf);
    let publisher = multiproc(options.clone()).get_publisher();
    let first = multiproc(options.clone()).get_subscriber();
    let mut updates = first.initialize_stream().unwrap();
    first.daemonize().await.unwrap();
    soon(publisher.send_event(&update("1"), None)).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "1");
    first.close().await.unwrap();
    drop(updates);
    let second = multiproc(options).get_subscriber();
    let mut updates = second.initialize_stream().unwrap();
    second.daemonize().await.unwrap();
    soon(publisher.send_event(&update("2"), None)).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "2");
}
