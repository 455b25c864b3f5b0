//! The directory in Redis.

use std::collections::BTreeMap;

use dragonwire::driver::directory::{Change, Directory, DirectoryError, RedisDirectory, Rows};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::relay::Relay;
use crate::server::{Server, free_port};
use crate::side::{soon, until};

fn directory(at: &str) -> RedisDirectory {
    RedisDirectory::new(&format!("redis://{at}")).unwrap()
}

fn rows(rows: &[(&str, &str)]) -> Rows {
    rows.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn set(key: &str, value: &str) -> Change {
    Change::Set { key: key.to_owned(), value: value.to_owned() }
}

fn deleted(key: &str) -> Change {
    Change::Deleted { key: key.to_owned() }
}

#[track_caller]
fn next(changes: &mut BoxStream<'static, Change>) -> impl Future<Output = Change> {
    let next = soon(changes.next());
    async { next.await.expect("the stream ended") }
}

#[tokio::test]
async fn rows_are_written_read_and_removed() {
    let server = Server::start();
    let directory = directory(&server.at());
    assert_eq!(soon(directory.list("publisher")).await.unwrap(), rows(&[]));
    assert_eq!(soon(directory.get("publisher", "1")).await.unwrap(), None);
    for (key, value) in [("1", "a"), ("ключ", "{\"a\": \"ü\"}"), ("1", "b"), ("", "")] {
        soon(directory.put("publisher", key, value)).await.unwrap();
    }
    soon(directory.put("other", "1", "c")).await.unwrap();
    assert_eq!(soon(directory.get("publisher", "1")).await.unwrap().as_deref(), Some("b"));
    let expected = rows(&[("", ""), ("1", "b"), ("ключ", "{\"a\": \"ü\"}")]);
    assert_eq!(soon(directory.list("publisher")).await.unwrap(), expected);
    assert!(soon(directory.delete("publisher", "1")).await.unwrap());
    assert!(!soon(directory.delete("publisher", "1")).await.unwrap());
    assert!(!soon(directory.delete("no-such-table", "1")).await.unwrap());
    assert_eq!(soon(directory.get("publisher", "1")).await.unwrap(), None);
    // anybody can read them
    let there: BTreeMap<String, String> = server.ask("HGETALL dragonwire:other");
    assert_eq!(there, rows(&[("1", "c")]));
}

#[tokio::test]
async fn changes_come_as_they_are_made() {
    let server = Server::start();
    let (one, other) = (directory(&server.at()), directory(&server.at()));
    soon(one.put("publisher", "1", "a")).await.unwrap();
    let mut changes = other.watch("publisher");
    assert_eq!(next(&mut changes).await, Change::All(rows(&[("1", "a")])));
    soon(one.put("publisher", "2", "b")).await.unwrap();
    soon(one.put("others", "2", "c")).await.unwrap();
    soon(one.delete("publisher", "none")).await.unwrap();
    soon(other.delete("publisher", "1")).await.unwrap();
    soon(other.put("publisher", "2", "c")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("2", "b"));
    assert_eq!(next(&mut changes).await, deleted("1"));
    assert_eq!(next(&mut changes).await, set("2", "c"));
    // what is none of a directory's is passed over
    let _: usize = server.ask("PUBLISH dragonwire:publisher nonsense");
    soon(one.delete("publisher", "2")).await.unwrap();
    assert_eq!(next(&mut changes).await, deleted("2"));
}

#[tokio::test]
async fn databases_are_directories_of_their_own() {
    let server = Server::start();
    let (zero, one) = (directory(&server.at()), directory(&format!("{}/1", server.at())));
    let mut changes = one.watch("publisher");
    assert_eq!(next(&mut changes).await, Change::All(rows(&[])));
    soon(zero.put("publisher", "1", "zero")).await.unwrap();
    soon(one.put("publisher", "1", "one")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("1", "one"));
    assert_eq!(soon(zero.list("publisher")).await.unwrap(), rows(&[("1", "zero")]));
}

/// Rows count upward while watching begins: none is ever seen to go back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_never_older_than_it_was() {
    let server = Server::start();
    let writer = directory(&server.at());
    let writing = tokio::spawn(async move {
        for count in 0..3000_u32 {
            let key = (count % 3).to_string();
            writer.put("publisher", &key, &count.to_string()).await.unwrap();
        }
    });
    let reader = directory(&server.at());
    while !writing.is_finished() {
        let mut changes = reader.watch("publisher");
        let Change::All(rows) = next(&mut changes).await else { panic!() };
        let mut newest = rows.values().map(|value| value.parse::<u32>().unwrap()).max();
        for _ in 0..20 {
            if newest == Some(2999) {
                break;
            }
            let Change::Set { value, .. } = next(&mut changes).await else { panic!() };
            let count = value.parse().unwrap();
            assert_eq!(count, newest.map_or(0, |newest| newest + 1));
            newest = Some(count);
        }
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn after_a_cut_the_table_comes_as_a_whole() {
    let server = Server::start();
    let relay = Relay::start(server.at()).await;
    let writer = directory(&server.at());
    let reader = directory(&relay.at());
    let mut changes = reader.watch("publisher");
    assert_eq!(next(&mut changes).await, Change::All(rows(&[])));
    for round in ["1", "2"] {
        relay.close();
        soon(writer.put("publisher", "key", round)).await.unwrap();
        relay.open();
        let change = next(&mut changes).await;
        // it may have been tried before the relay was open again
        let change = match change {
            Change::Lost { .. } => next(&mut changes).await,
            change => change,
        };
        assert_eq!(change, Change::All(rows(&[("key", round)])));
        soon(writer.put("publisher", "key", "live")).await.unwrap();
        assert_eq!(next(&mut changes).await, set("key", "live"));
    }
    // requests are made anew
    assert_eq!(soon(reader.get("publisher", "key")).await.unwrap().as_deref(), Some("live"));
    relay.cut();
    assert_eq!(soon(reader.get("publisher", "key")).await.unwrap().as_deref(), Some("live"));
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_once() {
    let mut server = Server::start();
    let directory = directory(&server.at());
    let mut changes = directory.watch("publisher");
    assert_eq!(next(&mut changes).await, Change::All(rows(&[])));
    soon(directory.put("publisher", "1", "a")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("1", "a"));
    server.stop();
    let Change::Lost { reason } = next(&mut changes).await else { panic!() };
    assert!(reason.contains("refused"), "{reason}");
    let error = soon(directory.put("publisher", "1", "a")).await.unwrap_err();
    let DirectoryError::Unreachable { at, .. } = error else { panic!("{error}") };
    assert_eq!(at, format!("redis://{}", server.at()));
    let mut waiting = changes.next();
    let back = async {
        server.start_again();
        directory.put("publisher", "2", "b").await.unwrap();
    };
    let (change, ()) = soon(async { tokio::join!(&mut waiting, back) }).await;
    // it has forgotten everything
    let Some(Change::All(all)) = change else { panic!("{change:?}") };
    assert!(all == rows(&[]) || all == rows(&[("2", "b")]), "{all:?}");
    if all.is_empty() {
        assert_eq!(next(&mut changes).await, set("2", "b"));
    }
}

#[tokio::test]
async fn a_directory_that_was_never_there_is_told_and_comes() {
    let relay = Relay::start(format!("127.0.0.1:{}", free_port())).await;
    let directory = directory(&relay.at());
    let mut changes = directory.watch("publisher");
    assert!(matches!(next(&mut changes).await, Change::Lost { .. }));
    let before = relay.accepted();
    // it goes on trying, and says nothing more
    let (further, ()) =
        tokio::join!(futures::future::poll_immediate(changes.next()), std::future::ready(()));
    assert_eq!(further, None);
    let trying = tokio::spawn(async move { changes.next().await });
    until(|| relay.accepted() > before + 2).await;
    assert!(!trying.is_finished());
    trying.abort();
}

#[tokio::test]
async fn what_is_done_after_closing_fails_and_streams_end() {
    let server = Server::start();
    let directory = directory(&server.at());
    let mut changes = directory.watch("publisher");
    assert_eq!(next(&mut changes).await, Change::All(rows(&[])));
    soon(directory.put("publisher", "1", "a")).await.unwrap();
    soon(directory.close()).await;
    assert_eq!(soon(directory.get("publisher", "1")).await, Err(DirectoryError::Closed));
    assert_eq!(soon(directory.put("publisher", "1", "a")).await, Err(DirectoryError::Closed));
    assert_eq!(soon(changes.next()).await, None);
    assert_eq!(soon(changes.next()).await, None);
    assert_eq!(soon(directory.watch("publisher").next()).await, None);
    soon(directory.close()).await;
}

#[tokio::test]
async fn what_the_server_refuses_is_told_as_that() {
    let server = Server::start_with(&["--requirepass", "secret"]);
    let error = soon(directory(&server.at()).list("publisher")).await.unwrap_err();
    assert!(matches!(&error, DirectoryError::Refused { .. }), "{error}");
    let server = Server::start();
    let directory = directory(&server.at());
    let _: String = server.ask("SET dragonwire:publisher text");
    for error in [
        soon(directory.list("publisher")).await.unwrap_err(),
        soon(directory.put("publisher", "1", "a")).await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, DirectoryError::Refused { .. }), "{text}");
        assert!(text.contains("wrong kind of value"), "{text}");
    }
    for uri in ["redis://u:secret@db:x", "rediss://db:1", "db"] {
        let error = RedisDirectory::new(uri).unwrap_err();
        assert!(matches!(&error, DirectoryError::Address { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
