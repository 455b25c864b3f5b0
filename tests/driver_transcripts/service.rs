//! Our publisher service between the recorded processes and a recorded subscriber.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dragonwire::driver::codec::{Body, decode};
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::directory::{Change, Directory, DirectoryError, MemoryDirectory, Rows};
use dragonwire::driver::{DriverContext, PublisherService, ServiceStats, SubscriberEvent};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::yield_now;

use crate::recording::{Connection, Recording, arguments, hex, payload};
use crate::side::soon;
use crate::wire::Wire;

/// A write to the directory: what, the table, the key and, of a row that is put, the row.
type Write = (&'static str, String, String, String);

/// A directory that tells what is written to it.
#[derive(Debug)]
struct Recorded {
    rows: MemoryDirectory,
    writes: watch::Sender<Vec<Write>>,
}

impl Recorded {
    fn new() -> Arc<Self> {
        Arc::new(Self { rows: MemoryDirectory::new(), writes: watch::Sender::default() })
    }

    fn note(&self, what: &'static str, table: &str, key: &str, value: &str) {
        let write = (what, table.to_owned(), key.to_owned(), value.to_owned());
        self.writes.send_modify(|writes| writes.push(write));
    }

    /// The writes of a row.
    fn writes_of(&self, table: &str, key: &str) -> Vec<&'static str> {
        let writes = self.writes.borrow();
        let own = writes.iter().filter(|write| (&*write.1, &*write.2) == (table, key));
        own.map(|write| write.0).collect()
    }

    /// Waits until this was done to a row.
    async fn wrote(&self, what: &str, table: &str, key: &str) {
        let mut writes = self.writes.subscribe();
        let wanted = |write: &Write| (write.0, &*write.1, &*write.2) == (what, table, key);
        soon(writes.wait_for(|writes| writes.iter().any(wanted))).await.unwrap();
    }
}

impl Directory for Recorded {
    fn get<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, DirectoryError>> {
        self.rows.get(table, key)
    }

    fn list<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Rows, DirectoryError>> {
        self.rows.list(table)
    }

    fn put<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        self.note("put", table, key, value);
        self.rows.put(table, key, value)
    }

    fn delete<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<bool, DirectoryError>> {
        self.note("delete", table, key, "");
        self.rows.delete(table, key)
    }

    fn watch(&self, table: &str) -> BoxStream<'static, Change> {
        self.rows.watch(table)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.rows.close()
    }
}

/// A service that runs, and what it stands between.
struct Between {
    service: PublisherService,
    directory: Arc<Recorded>,
    subscriber: Wire<TcpStream>,
    processes: Vec<Wire<UnixStream>>,
    connections: Vec<Connection>,
    _folder: TempDir,
}

/// The options of a recording, at a socket of its own.
fn options(recording: &Recording) -> (DriverOptions, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let mut options = recording.options();
    options.publisher_multiproc_socket.clone_from(&path);
    (options, path, folder)
}

impl Between {
    /// With the recorded subscriber and the recorded processes, which have not sent an event yet.
    async fn new(recording: &Recording, set: impl FnOnce(&mut DriverOptions)) -> Self {
        let (mut options, path, folder) = options(recording);
        set(&mut options);
        let directory = Recorded::new();
        let context = DriverContext::new(options).with_directory(directory.clone());
        let service =
            PublisherService::start(context.with_process_name("MainProcess")).await.unwrap();
        let connections = recording.connections("ipc");
        let mut processes = Vec::new();
        for connection in &connections {
            processes.push(process(&path, connection).await);
        }
        let connection = recording.connection("tcp");
        let mut subscriber = Wire::connect(&service.stats().network.unwrap()).await;
        subscriber.shake(&connection.client, &connection.server).await;
        subscriber.write_all(&connection.client.frames).await;
        let mut between =
            Self { service, directory, subscriber, processes, connections, _folder: folder };
        between.settle().await;
        between
    }

    /// Waits until the subscriber is heard: it subscribed to `D` and then to `tenant-1`.
    async fn settle(&mut self) {
        let probe = [b"\x01\x08tenant-1".to_vec(), b"\0\x05probe".to_vec()];
        for sent in 1.. {
            let unheard = self.service.stats().unheard;
            self.processes[0].write_all(&probe).await;
            self.says(|stats| stats.forwarded == sent).await;
            if self.service.stats().unheard == unheard {
                break;
            }
        }
        loop {
            let message = self.subscriber.message().await;
            if message == probe {
                break;
            }
            // what monitors say of rows that were there before is for everybody
            assert_eq!(message[0], b"\x01\x01D");
        }
    }

    /// Waits until the service says so of itself.
    async fn says(&self, holds: impl Fn(&ServiceStats) -> bool) {
        soon(async {
            while !holds(&self.service.stats()) {
                yield_now().await;
            }
        })
        .await;
    }

    /// The subscriber's next event, as its callback is given it.
    async fn next(&mut self) -> Json {
        let message = self.subscriber.message().await;
        assert_eq!(message[0], b"\x01\x01D");
        match decode(payload(&message[1])) {
            Ok(Body::Event { update, .. }) => arguments(&SubscriberEvent::Update(update)),
            other => panic!("{other:?}"),
        }
    }

    /// Closes the service, and with it every connection.
    async fn close(self) {
        let (closed, ..) = tokio::join!(
            soon(self.service.close()),
            self.subscriber.ended(),
            futures::future::join_all(self.processes.into_iter().map(Wire::ended)),
        );
        closed.unwrap();
    }
}

/// Connects as a recorded process.
async fn process(path: &Path, connection: &Connection) -> Wire<UnixStream> {
    let mut wire = Wire::connect_local(path).await;
    wire.shake(&connection.client, &connection.server).await;
    wire
}

const RELEASES: [&str; 2] = ["1.0.0", "5.0.0"];

fn recording(release: &str) -> Recording {
    Recording::load(&format!("df-{release}-publisher-service"))
}

/// In the recordings the service wrote each event anew, which came to the same octets.
#[tokio::test]
async fn what_processes_push_goes_out_as_it_came_in_the_order_of_each() {
    for release in RELEASES {
        let recording = recording(release);
        let mut between = Between::new(&recording, |_| {}).await;
        let mut recorded = recording.connection("tcp").server.messages().into_iter();
        for at in 0..2 {
            let pushed = between.connections[at].client.frames.clone();
            between.processes[at].write_all(&pushed).await;
            for message in recorded.by_ref().take(3) {
                for frame in message {
                    assert_eq!(hex(&between.subscriber.frame().await), hex(&frame), "{release}");
                }
            }
        }
        between.says(|stats| stats.processes == 2).await;
        let stats = between.service.stats();
        assert_eq!((stats.dropped, stats.malformed), (0, 0), "{stats:?}");
        between.close().await;
    }
}

/// Six quick events are one refresh of the row, whose fields are the recorded ones and the role.
#[tokio::test]
async fn the_services_row_is_there_is_refreshed_within_the_limit_and_goes() {
    for release in RELEASES {
        let recording = recording(release);
        let mut between = Between::new(&recording, |options| {
            options.publisher_rate_limit_count = 1;
            options.monitor_tables.clear();
        })
        .await;
        let directory = between.directory.clone();
        let id = between.service.stats().id;
        let sent = between.service.stats().forwarded;
        for at in 0..2 {
            let pushed = between.connections[at].client.frames.clone();
            between.processes[at].write_all(&pushed).await;
        }
        between.says(|stats| stats.forwarded == sent + 6).await;
        for _ in 0..6 {
            between.subscriber.message().await;
        }
        let mut writes = directory.writes.subscribe();
        soon(writes.wait_for(|writes| writes.len() >= 2)).await.unwrap();
        between.close().await;
        assert_eq!(directory.writes_of("publisher", &id), ["put", "put", "delete"]);

        let at_start = &recording.step("NB DB writes at start")["ops"];
        let at_start = at_start.as_array().unwrap().last().unwrap();
        let row = |text: &str| serde_json::from_str::<Json>(text).unwrap();
        let mut fields: Vec<_> =
            row(at_start["value"].as_str().unwrap()).as_object().unwrap().keys().cloned().collect();
        fields.push("role".to_owned());
        fields.sort();
        for write in directory.writes.borrow().iter().filter(|write| write.0 == "put") {
            let row = row(&write.3);
            assert!(row.as_object().unwrap().keys().eq(&fields), "{row} and {fields:?}");
            assert_eq!(row["id"], id.as_str());
            assert_eq!(row["role"], "neutron-server");
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let age = now.as_secs_f64() - row["last_activity_timestamp"].as_f64().unwrap();
            assert!((0.0..60.0).contains(&age), "{row}");
        }
    }
}

/// The row tells where subscribers connect to: with the management address in place of a wildcard.
#[tokio::test]
async fn the_services_row_tells_where_it_listens() {
    let recording = recording("5.0.0");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let between = Between::new(&recording, |options| {
        options.publisher_bind_address = "*".to_owned();
        options.management_ip = "127.0.0.1".to_owned();
        options.publisher_port = free;
    })
    .await;
    let id = between.service.stats().id;
    let row = between.directory.get("publisher", &id).await.unwrap().unwrap();
    let row: Json = serde_json::from_str(&row).unwrap();
    assert_eq!(row["uri"], format!("tcp://127.0.0.1:{free}"));
    between.close().await;
}

/// With port 0 the system chooses one, and the row has to name that.
#[tokio::test]
async fn the_services_row_tells_the_port_that_the_system_chose() {
    let recording = recording("5.0.0");
    let between = Between::new(&recording, |_| {}).await;
    let stats = between.service.stats();
    let row = between.directory.get("publisher", &stats.id).await.unwrap().unwrap();
    let row: Json = serde_json::from_str(&row).unwrap();
    assert_eq!(row["uri"].as_str(), stats.network.as_deref());
    between.close().await;
}

/// A row of `chassis` that is written, changed and removed behind everybody's back. 1.0.0 looked at
/// `publisher` alone, and sent no values.
#[tokio::test]
async fn changes_of_a_table_are_events_as_recorded() {
    let recording = recording("5.0.0");
    let mut between = Between::new(&recording, |options| {
        options.monitor_table_poll_time = Duration::from_millis(50);
        options.monitor_tables = vec!["chassis".to_owned()];
    })
    .await;
    let is_chassis = |call: &&Json| call["table"] == "chassis";
    let calls: Vec<_> = recording.callbacks().iter().filter(is_chassis).collect();
    assert_eq!(calls.len(), 3);
    let messages = recording.connection("tcp").server.messages();
    for call in calls {
        let key = call["key"].as_str().unwrap();
        match call["value"].as_str() {
            Some(row) => between.directory.put("chassis", key, row).await.unwrap(),
            None => assert!(between.directory.delete("chassis", key).await.unwrap()),
        }
        let recorded = messages.iter().find(|message| {
            let event = decode(payload(&message[1]));
            let Ok(Body::Event { update, .. }) = event else { panic!("{event:?}") };
            arguments(&SubscriberEvent::Update(update)) == *call
        });
        for recorded in recorded.unwrap() {
            recording.assert_frame(&between.subscriber.frame().await, recorded);
        }
    }
    between.close().await;
}

/// The row of another publisher, two seconds old, is announced, becomes stale, is removed, and that is announced. Every
/// row that is there at the first look is announced, the service's own among them: the recorded
/// subscriber came later than that.
#[tokio::test]
async fn a_stale_publisher_is_removed_and_that_is_an_event() {
    let recording = recording("5.0.0");
    let mut between = Between::new(&recording, |options| {
        options.publisher_timeout = Duration::from_secs(4);
        options.monitor_table_poll_time = Duration::from_millis(50);
    })
    .await;
    let own = between.service.stats().id;
    let about = "callbacks about the publisher table";
    let told = recording.step(about)["got"].as_array().unwrap();
    assert_eq!(told.len(), 2);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let row = json!({
        "id": "dead", "uri": "tcp://10.9.9.9:8866", "last_activity_timestamp": now - 2.0,
    })
    .to_string();
    between.directory.put("publisher", "dead", &row).await.unwrap();
    for told in told {
        let event = loop {
            let event = between.next().await;
            assert_eq!(event["table"], "publisher");
            if event["key"] != own.as_str() {
                break event;
            }
        };
        let value = if told["value"].is_null() { Json::Null } else { row.as_str().into() };
        let mut expected = told.clone();
        expected["value"] = value;
        assert_eq!(event, expected);
    }
    assert_eq!(between.directory.writes_of("publisher", "dead"), ["put", "delete"]);
    between.close().await;
}

/// As recorded of 1.0.0, where nobody had seen the row before it was removed.
#[tokio::test]
async fn a_publisher_that_was_stale_before_anybody_looked_goes_without_an_event() {
    let recording = recording("1.0.0");
    let about = "callbacks about the publisher table";
    assert_eq!(recording.step(about)["got"], json!([]));
    let mut between = Between::new(&recording, |options| {
        // the rows are looked for, and no table is looked at
        options.monitor_table_poll_time = Duration::from_millis(50);
        options.monitor_tables.clear();
    })
    .await;
    let row = r#"{"id": "dead", "uri": "tcp://10.9.9.9:8866", "last_activity_timestamp": 1.0}"#;
    between.directory.put("publisher", "dead", row).await.unwrap();
    between.directory.wrote("delete", "publisher", "dead").await;
    let last = between.connections[0].client.messages().remove(0);
    between.processes[0].write_all(&last).await;
    assert_eq!(between.subscriber.message().await, last);
    between.close().await;
}

/// From 4.0.0 on upstream's service published on the body's topic, and the explicit topic of a
/// process's event was lost. Ours keeps it.
#[tokio::test]
async fn an_event_goes_out_on_the_topic_that_it_came_on() {
    let recording = recording("5.0.0");
    let mut between = Between::new(&recording, |_| {}).await;
    let topics = Recording::load("df-5.0.0-tcp-topics").connection("tcp").server.messages();
    let explicit = topics.iter().find(|message| {
        let event = decode(payload(&message[1]));
        let Ok(Body::Event { update, .. }) = event else { panic!("{event:?}") };
        payload(&message[0]) == b"tenant-1" && update.topic.as_deref() == Some("D")
    });
    let explicit = explicit.unwrap();
    between.processes[1].write_all(explicit).await;
    assert_eq!(between.subscriber.message().await, *explicit);
    between.close().await;
}

/// Upstream's service answered what it could not read with an event `sync` for everybody. Ours reads
/// no bodies: they go through, and each subscriber finds for itself that it cannot read them. What has
/// no topic and body cannot go through, and is a `sync` for everybody as there.
#[tokio::test]
async fn bad_bodies_go_through_and_what_is_no_event_is_a_sync_for_everybody() {
    for release in RELEASES {
        let mut between = Between::new(&recording(release), |_| {}).await;
        let bad = [b"\x01\x01D".to_vec(), b"\0\x01\xc1".to_vec()];
        between.processes[0].write_all(&bad).await;
        assert_eq!(between.subscriber.message().await, bad);
        for malformed in [&b"\0\x01D"[..], b"\x01\x01D\x01\x01\xc0\0\x01x"] {
            between.processes[0].write(malformed).await;
            let sync = json!({
                "table": null, "key": null, "action": "sync", "value": null, "topic": "D",
            });
            assert_eq!(between.next().await, sync);
        }
        between.says(|stats| stats.malformed == 2).await;
        between.close().await;
    }
}
