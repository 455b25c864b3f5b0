//! The directory: what every kind of it does, and what becomes of rows and watchers when a server
//! ends, is killed, or is away for a while.

#![cfg(feature = "driver")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use deadline::{event, until, within};
use dragonwire::driver::directory::{
    Change, Directory, DirectoryError, DirectoryServer, DirectoryServerOptions, EmbeddedDirectory,
    FailoverDirectory, Limits, MemoryDirectory, Rows, connect,
};
use dragonwire::{Event, PushSocket};
use futures::future::join_all;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

type Changes = BoxStream<'static, Change>;

async fn next(changes: &mut Changes) -> Change {
    within(changes.next()).await.expect("the stream ended")
}

/// Reads on until the table is as expected; what is told on the way has to lead there.
async fn until_rows(changes: &mut Changes, known: &mut Rows, expected: &Rows) {
    while known != expected {
        match next(changes).await {
            Change::All(rows) => *known = rows,
            Change::Set { key, value } => drop(known.insert(key, value)),
            Change::Deleted { key } => drop(known.remove(&key)),
            Change::Lost { .. } => {}
        }
    }
}

/// Reads on until the directory is lost.
async fn until_lost(changes: &mut Changes) {
    while !matches!(next(changes).await, Change::Lost { .. }) {}
}

fn rows<const N: usize>(rows: [(&str, &str); N]) -> Rows {
    rows.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn set(key: &str, value: &str) -> Change {
    Change::Set { key: key.to_owned(), value: value.to_owned() }
}

fn deleted(key: &str) -> Change {
    Change::Deleted { key: key.to_owned() }
}

/// A folder that is removed with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("directory-{name}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn snapshot(&self) -> PathBuf {
        self.0.join("tables")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

async fn serve(endpoint: &str) -> DirectoryServer {
    within(DirectoryServer::start(DirectoryServerOptions::new(endpoint))).await.unwrap()
}

async fn serve_from(endpoint: &str, snapshot: &Path) -> Result<DirectoryServer, DirectoryError> {
    let options = DirectoryServerOptions::new(endpoint).snapshot(snapshot);
    within(DirectoryServer::start(options)).await
}

/// A server that is to come back on its ports. They are below those that the system gives to others
/// while it is away.
async fn serve_on_kept_ports(snapshot: Option<&Path>) -> DirectoryServer {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let pair = std::process::id() * 20 + NEXT.fetch_add(1, Ordering::Relaxed);
        let endpoint = format!("tcp://127.0.0.1:{}", 10_000 + pair % 10_000 * 2);
        let mut options = DirectoryServerOptions::new(endpoint);
        if let Some(snapshot) = snapshot {
            options = options.snapshot(snapshot);
        }
        match within(DirectoryServer::start(options)).await {
            Err(DirectoryError::Listen { .. }) => {}
            started => return started.unwrap(),
        }
    }
}

fn client(endpoint: &str) -> Arc<dyn Directory> {
    Arc::new(EmbeddedDirectory::new(endpoint).unwrap())
}

const ANY: &str = "tcp://127.0.0.1:*";

/// What holds of every directory.
async fn behaves(directory: Arc<dyn Directory>) {
    // rows
    assert_eq!(within(directory.get("t", "a")).await, Ok(None));
    assert_eq!(within(directory.list("t")).await, Ok(Rows::new()));
    within(directory.put("t", "a", "1")).await.unwrap();
    within(directory.put("t", "b", "ü \n\0")).await.unwrap();
    within(directory.put("t", "a", "2")).await.unwrap();
    within(directory.put("t2", "c", "")).await.unwrap();
    assert_eq!(within(directory.get("t", "a")).await, Ok(Some("2".to_owned())));
    assert_eq!(within(directory.list("t")).await, Ok(rows([("a", "2"), ("b", "ü \n\0")])));
    assert_eq!(within(directory.delete("t", "b")).await, Ok(true));
    assert_eq!(within(directory.delete("t", "b")).await, Ok(false));
    assert_eq!(within(directory.delete("none", "b")).await, Ok(false));
    assert_eq!(within(directory.list("t")).await, Ok(rows([("a", "2")])));

    // changes: only of the table, only what changes something, and the same for everybody
    let mut watchers = [directory.watch("t"), directory.watch("t")];
    for changes in &mut watchers {
        assert_eq!(next(changes).await, Change::All(rows([("a", "2")])));
    }
    within(directory.put("t", "a", "2")).await.unwrap();
    within(directory.put("t2", "c", "3")).await.unwrap();
    within(directory.put("t", "d", "4")).await.unwrap();
    within(directory.delete("t", "nobody")).await.unwrap();
    within(directory.put("t", "a", "5")).await.unwrap();
    within(directory.delete("t", "d")).await.unwrap();
    for changes in &mut watchers {
        assert_eq!(next(changes).await, set("d", "4"));
        assert_eq!(next(changes).await, set("a", "5"));
        assert_eq!(next(changes).await, deleted("d"));
    }

    // what is too large is refused, and nothing else is disturbed by it
    let (long, longest) = ("x".repeat(70_000), "x".repeat(5_000_000));
    let long_key = "x".repeat(2000);
    for (table, key, value) in [
        ("t", "a", long.as_str()),
        ("t", "a", longest.as_str()),
        ("t", long_key.as_str(), "v"),
        (long_key.as_str(), "a", "v"),
        ("", "a", "v"),
        ("t", "", "v"),
    ] {
        let refused = within(directory.put(table, key, value)).await.unwrap_err();
        assert!(matches!(refused, DirectoryError::Refused { .. }), "{refused}");
    }
    assert_eq!(within(directory.list("t")).await, Ok(rows([("a", "5")])));

    // many at once
    let keys: Vec<_> = (0..200).map(|i| format!("k{i}")).collect();
    let puts = keys.iter().map(|key| directory.put("many", key, key));
    within(join_all(puts)).await.into_iter().for_each(|put| put.unwrap());
    assert_eq!(within(directory.list("many")).await.unwrap().len(), 200);

    // the end
    within(directory.close()).await;
    within(directory.close()).await;
    assert_eq!(within(directory.get("t", "a")).await, Err(DirectoryError::Closed));
    assert_eq!(within(directory.list("t")).await, Err(DirectoryError::Closed));
    assert_eq!(within(directory.put("t", "a", "6")).await, Err(DirectoryError::Closed));
    assert_eq!(within(directory.delete("t", "a")).await, Err(DirectoryError::Closed));
    for mut changes in watchers {
        assert_eq!(within(changes.next()).await, None);
        assert_eq!(within(changes.next()).await, None);
    }
    assert_eq!(within(directory.watch("t").next()).await, None);
}

#[tokio::test]
async fn a_directory_in_memory_behaves() {
    behaves(Arc::new(MemoryDirectory::new())).await;
}

#[tokio::test]
async fn an_embedded_directory_behaves() {
    let server = serve(ANY).await;
    behaves(client(server.endpoint())).await;
    let stats = server.stats();
    assert_eq!((stats.malformed, stats.snapshots, stats.tables), (0, 0, 3));
    assert_eq!(stats.rows, 202);
    assert!(stats.requests > stats.changes && stats.refused >= 5, "{stats:?}");
    within(server.close()).await;
    within(server.closed()).await;
}

#[tokio::test]
async fn an_embedded_directory_with_a_snapshot_behaves() {
    let folder = Folder::new("behaves");
    let server = serve_from(ANY, &folder.snapshot()).await.unwrap();
    behaves(client(server.endpoint())).await;
    let stats = server.stats();
    assert!(stats.snapshots > 0 && stats.snapshots <= stats.changes, "{stats:?}");
    within(server.close()).await;
}

#[tokio::test]
async fn directories_with_fail_over_behave() {
    let server = serve(ANY).await;
    let directories: Vec<Arc<dyn Directory>> =
        vec![client(server.endpoint()), Arc::new(MemoryDirectory::new())];
    behaves(Arc::new(FailoverDirectory::new(directories))).await;
    within(server.close()).await;
}

#[tokio::test]
async fn directories_with_fail_over_behave_with_one_that_is_never_there() {
    let gone = serve_on_kept_ports(None).await;
    let away = client(gone.endpoint());
    within(gone.close()).await;
    let directories: Vec<Arc<dyn Directory>> = vec![away, Arc::new(MemoryDirectory::new())];
    behaves(Arc::new(FailoverDirectory::new(directories))).await;
}

#[tokio::test]
async fn handles_of_a_directory_in_memory_share_the_tables_and_not_the_end() {
    let (one, other) = (MemoryDirectory::new(), MemoryDirectory::new());
    let same = one.clone();
    one.put("t", "a", "1").await.unwrap();
    one.close().await;
    assert_eq!(same.get("t", "a").await, Ok(Some("1".to_owned())));
    assert_eq!(other.get("t", "a").await, Ok(None));
}

#[tokio::test]
async fn addresses_name_directories() {
    let uri = |uri: &str| vec![uri.to_owned()];
    let (one, same) = (connect(&uri("memory:a")).unwrap(), connect(&uri("memory:a")).unwrap());
    let other = connect(&uri("memory:b")).unwrap();
    one.put("t", "k", "v").await.unwrap();
    assert_eq!(same.get("t", "k").await, Ok(Some("v".to_owned())));
    assert_eq!(other.get("t", "k").await, Ok(None));
    let several = ["memory:a".to_owned(), "memory:b".to_owned()];
    let several = connect(&several).unwrap();
    within(several.put("t", "l", "v")).await.unwrap();
    assert_eq!(within(several.get("t", "k")).await, Ok(Some("v".to_owned())));

    let server = serve(ANY).await;
    let embedded = connect(&uri(server.endpoint())).unwrap();
    within(embedded.put("t", "k", "v")).await.unwrap();
    assert_eq!(server.stats().rows, 1);

    for wrong in ["", "host:80", "tcp://host", "tcp://*:80", "ipc:///a", "redis://", "x://y"] {
        let refused = connect(&uri(wrong)).unwrap_err();
        assert!(matches!(&refused, DirectoryError::Address { uri, .. } if uri == wrong));
    }
    assert!(connect(&[]).is_err());
    for wrong in ["ipc:///a", "tcp://127.0.0.1:65535", "nonsense"] {
        let refused = DirectoryServer::start(DirectoryServerOptions::new(wrong)).await;
        assert!(matches!(refused, Err(DirectoryError::Address { .. })));
    }
    let refused = DirectoryServer::start(DirectoryServerOptions::new(server.endpoint())).await;
    assert!(matches!(refused, Err(DirectoryError::Listen { .. })));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_after_the_deadline() {
    let server = serve_on_kept_ports(None).await;
    let endpoint = server.endpoint().to_owned();
    within(server.close()).await;
    let deadline = Duration::from_millis(200);
    let directory = EmbeddedDirectory::with_deadline(&endpoint, deadline).unwrap();
    let error = within(directory.get("t", "a")).await.unwrap_err();
    let DirectoryError::Unreachable { at, .. } = error else { panic!("{error}") };
    assert_eq!(at, endpoint);
    let mut changes = directory.watch("t");
    assert!(matches!(next(&mut changes).await, Change::Lost { .. }));
    // it comes: what waits for it goes on
    let patient = client(&endpoint);
    let put = patient.put("t", "a", "1");
    let (put, server) = tokio::join!(within(put), serve(&endpoint));
    put.unwrap();
    let mut known = Rows::new();
    until_rows(&mut changes, &mut known, &rows([("a", "1")])).await;
    within(directory.close()).await;
    within(server.close()).await;
}

#[tokio::test]
async fn rows_survive_a_restart_of_the_server() {
    let folder = Folder::new("restart");
    let server = serve_on_kept_ports(Some(&folder.snapshot())).await;
    let endpoint = server.endpoint().to_owned();
    let directory = client(&endpoint);
    within(directory.put("t", "a", "1")).await.unwrap();
    within(directory.put("t", "b", "2")).await.unwrap();
    within(directory.put("u", "c", "3")).await.unwrap();
    within(directory.delete("t", "b")).await.unwrap();
    within(server.close()).await;
    // what a server left that died while it wrote
    let leftover = folder.0.join("tables.tmp");
    fs::write(&leftover, "half").unwrap();
    let server = serve_from(&endpoint, &folder.snapshot()).await.unwrap();
    assert!(!leftover.exists());
    assert_eq!(within(directory.list("t")).await, Ok(rows([("a", "1")])));
    assert_eq!(within(directory.list("u")).await, Ok(rows([("c", "3")])));
    within(directory.close()).await;
    within(server.close()).await;
}

#[tokio::test]
async fn a_watcher_misses_no_change_through_restarts_of_the_server() {
    let folder = Folder::new("watcher");
    let mut server = serve_on_kept_ports(Some(&folder.snapshot())).await;
    let endpoint = server.endpoint().to_owned();
    let (directory, writer) = (client(&endpoint), client(&endpoint));
    let mut changes = directory.watch("t");
    let (mut known, mut expected) = (Rows::new(), Rows::new());
    for round in 0..3 {
        for i in 0..20 {
            let (key, value) = (format!("k{i}"), format!("{round}.{i}"));
            within(writer.put("t", &key, &value)).await.unwrap();
            expected.insert(key, value);
        }
        // the watcher is behind when the server ends
        within(server.close()).await;
        server = serve_from(&endpoint, &folder.snapshot()).await.unwrap();
        within(writer.delete("t", "k7")).await.unwrap();
        expected.remove("k7");
        until_rows(&mut changes, &mut known, &expected).await;
    }
    within(server.close()).await;
    until_lost(&mut changes).await;
    // nothing more until it is back
    let mut again = changes.next();
    assert!((&mut again).now_or_never().is_none());
    let server = serve_from(&endpoint, &folder.snapshot()).await.unwrap();
    assert_eq!(within(again).await, Some(Change::All(expected)));
    within(server.close()).await;
}

#[tokio::test]
async fn rows_that_a_server_without_a_snapshot_lost_are_gone_for_the_watcher_too() {
    let server = serve_on_kept_ports(None).await;
    let endpoint = server.endpoint().to_owned();
    let directory = client(&endpoint);
    let mut changes = directory.watch("t");
    within(directory.put("t", "a", "1")).await.unwrap();
    let mut known = Rows::new();
    until_rows(&mut changes, &mut known, &rows([("a", "1")])).await;
    within(server.close()).await;
    let server = serve(&endpoint).await;
    until_rows(&mut changes, &mut known, &Rows::new()).await;
    within(server.close()).await;
}

/// A server in a process of its own.
struct Process {
    child: Child,
    endpoint: String,
}

impl Process {
    fn start(snapshot: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "inside_server", "--nocapture"])
            .env("DIRECTORY_SNAPSHOT", snapshot)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut endpoints = lines.map_while(|line| {
            Some(line.unwrap().split_once("ENDPOINT ").map(|(_, endpoint)| endpoint.to_owned()))
        });
        let endpoint = endpoints.find_map(|endpoint| endpoint).expect("the server did not start");
        Self { child, endpoint }
    }

    fn signal(&self, signal: &str) {
        let kill = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
#[ignore = "run as a process of its own by other tests"]
async fn inside_server() {
    let snapshot = std::env::var_os("DIRECTORY_SNAPSHOT").expect("run by other tests");
    let server = serve_from(ANY, Path::new(&snapshot)).await.unwrap();
    println!("\nENDPOINT {}", server.endpoint());
    server.closed().await;
}

#[tokio::test]
async fn an_acknowledged_write_survives_the_kill_of_the_server() {
    let folder = Folder::new("kill");
    let mut expected = Rows::new();
    for round in 0..5 {
        let process = Process::start(&folder.snapshot());
        let directory = client(&process.endpoint);
        assert_eq!(within(directory.list("t")).await, Ok(expected.clone()));
        for i in 0..10 {
            let (key, value) = (format!("{round}.{i}"), "x".repeat(i * 1000));
            within(directory.put("t", &key, &value)).await.unwrap();
            expected.insert(key, value);
        }
        // with others on their way, which may be there or not
        let mut late = directory.put("late", "a", "1");
        assert!((&mut late).now_or_never().is_none());
        process.signal("-KILL");
        drop(late);
        drop(process);
        within(directory.close()).await;
    }
    let server = serve_from(ANY, &folder.snapshot()).await.unwrap();
    let directory = client(server.endpoint());
    assert_eq!(within(directory.list("t")).await, Ok(expected));
    within(server.close()).await;
}

#[tokio::test]
async fn a_server_that_hangs_is_lost_and_comes_back() {
    let folder = Folder::new("hang");
    let process = Process::start(&folder.snapshot());
    let directory = client(&process.endpoint);
    let mut changes = directory.watch("t");
    assert_eq!(next(&mut changes).await, Change::All(Rows::new()));
    process.signal("-STOP");
    until_lost(&mut changes).await;
    process.signal("-CONT");
    assert_eq!(next(&mut changes).await, Change::All(Rows::new()));
    within(directory.put("t", "a", "1")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("a", "1"));
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_left_as_it_is() {
    let folder = Folder::new("damaged");
    let path = folder.snapshot();
    let server = serve_from(ANY, &path).await.unwrap();
    let directory = client(server.endpoint());
    within(directory.put("t", "a", "1")).await.unwrap();
    within(server.close()).await;
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cut = whole[..whole.len() - 1].to_vec();
    for damaged in [flipped, cut, b"garbage".to_vec(), Vec::new()] {
        fs::write(&path, &damaged).unwrap();
        let refused = serve_from(ANY, &path).await.unwrap_err();
        let text = refused.to_string();
        assert!(matches!(&refused, DirectoryError::Snapshot { path: told, .. } if *told == path));
        assert!(text.contains("damaged") && text.contains(path.to_str().unwrap()), "{text}");
        assert_eq!(fs::read(&path).unwrap(), damaged);
    }
    fs::write(&path, whole).unwrap();
    let server = serve_from(ANY, &path).await.unwrap();
    assert_eq!(server.stats().rows, 1);
    within(server.close()).await;
    // out of reach
    let refused = serve_from(ANY, &folder.0.join("none").join("tables")).await.unwrap_err();
    assert!(matches!(refused, DirectoryError::Snapshot { .. }), "{refused}");
    let refused = serve_from(ANY, &folder.0).await.unwrap_err();
    assert!(matches!(refused, DirectoryError::Snapshot { .. }), "{refused}");
    assert!(!folder.0.with_extension("lock").exists());
}

#[tokio::test]
async fn two_servers_on_one_snapshot_are_refused() {
    let folder = Folder::new("two");
    let server = serve_from(ANY, &folder.snapshot()).await.unwrap();
    let directory = client(server.endpoint());
    within(directory.put("t", "a", "1")).await.unwrap();
    // by another name, too
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(folder.snapshot(), &link).unwrap();
    for path in [folder.snapshot(), link.clone()] {
        let refused = serve_from(ANY, &path).await.unwrap_err().to_string();
        assert!(refused.contains("another directory server uses it"), "{refused}");
    }
    assert_eq!(within(directory.get("t", "a")).await, Ok(Some("1".to_owned())));
    within(server.close()).await;
    let server = serve_from(ANY, &link).await.unwrap();
    assert_eq!(server.stats().rows, 1);
    within(server.close()).await;
}

#[tokio::test]
async fn a_write_that_the_disk_does_not_take_is_refused_and_undone() {
    let folder = Folder::new("disk");
    let server = serve_from(ANY, &folder.snapshot()).await.unwrap();
    let directory = client(server.endpoint());
    let mut changes = directory.watch("t");
    within(directory.put("t", "a", "1")).await.unwrap();
    let mut known = Rows::new();
    until_rows(&mut changes, &mut known, &rows([("a", "1")])).await;
    let in_the_way = folder.0.join("tables.tmp");
    fs::create_dir(&in_the_way).unwrap();
    for write in [directory.put("t", "a", "2"), directory.put("t", "b", "3")] {
        let refused = within(write).await.unwrap_err();
        assert!(matches!(refused, DirectoryError::Refused { .. }), "{refused}");
    }
    let refused = within(directory.delete("t", "a")).await.unwrap_err();
    assert!(matches!(refused, DirectoryError::Refused { .. }), "{refused}");
    assert_eq!(within(directory.list("t")).await, Ok(rows([("a", "1")])));
    let stats = server.stats();
    assert_eq!((stats.snapshots, stats.failed_snapshots, stats.refused), (1, 3, 3));
    fs::remove_dir(&in_the_way).unwrap();
    within(directory.put("t", "b", "4")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("b", "4"));
    within(server.close()).await;
}

async fn a_slow_watcher_is_told_all(directory: Arc<dyn Directory>) {
    let mut changes = directory.watch("t");
    assert_eq!(next(&mut changes).await, Change::All(Rows::new()));
    let mut expected = Rows::new();
    for round in 0..30 {
        let writes: Vec<_> = (0..100).map(|i| (format!("k{i}"), format!("{round}"))).collect();
        let puts = writes.iter().map(|(key, value)| directory.put("t", key, value));
        within(join_all(puts)).await.into_iter().for_each(|put| put.unwrap());
        expected.extend(writes);
    }
    assert_eq!(next(&mut changes).await, Change::All(expected));
    within(directory.put("t", "end", "")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("end", ""));
}

#[tokio::test]
async fn a_watcher_that_does_not_keep_up_is_told_the_whole_table() {
    a_slow_watcher_is_told_all(Arc::new(MemoryDirectory::new())).await;
}

#[tokio::test]
async fn a_watcher_of_a_server_that_does_not_keep_up_is_told_the_whole_table() {
    let server = serve(ANY).await;
    a_slow_watcher_is_told_all(client(server.endpoint())).await;
    within(server.close()).await;
}

#[tokio::test]
async fn garbage_is_counted_and_harms_nobody() {
    let server = serve(ANY).await;
    let directory = client(server.endpoint());
    within(directory.put("t", "a", "1")).await.unwrap();
    let hostile = PushSocket::new();
    hostile.connect(server.endpoint()).await.unwrap();
    let bodies: [&[u8]; 7] = [
        b"",
        b"garbage",
        // a client of 3 octets; one of 16 without an action; one with an action of the future
        b"\x0a\x03abc\x10\x01",
        b"\x0a\x10aaaaaaaaaaaaaaaa\x10\x01",
        b"\x0a\x10aaaaaaaaaaaaaaaa\x10\x01\x7a\x00",
        // a length beyond the end, and text that is none
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a\x10aaaaaaaaaaaaaaaa\x10\x01\x1a\x03\x0a\x01\xff",
    ];
    for body in bodies {
        within(hostile.send(body.to_vec())).await.unwrap();
    }
    within(hostile.send_frames(&[b"two", b"frames"])).await.unwrap();
    until(|| server.stats().malformed == 8).await;
    // what is too large ends the connection of who sends it
    let mut monitor = hostile.monitor();
    within(hostile.send(vec![0; 3 << 20])).await.unwrap();
    event(&mut monitor, |event| matches!(event, Event::Disconnected { .. })).await;
    assert_eq!(within(directory.get("t", "a")).await, Ok(Some("1".to_owned())));
    within(directory.put("t", "a", "2")).await.unwrap();
    assert_eq!(server.stats().malformed, 8);
    drop(hostile);
    within(server.close()).await;
}

#[tokio::test]
async fn a_full_server_refuses_and_serves_on() {
    let mut limits = Limits::default();
    limits.rows = 2;
    limits.tables = 1;
    let options = DirectoryServerOptions::new(ANY).limits(limits);
    let server = within(DirectoryServer::start(options)).await.unwrap();
    let directory = client(server.endpoint());
    within(directory.put("t", "a", "1")).await.unwrap();
    within(directory.put("t", "b", "1")).await.unwrap();
    for (table, key) in [("t", "c"), ("u", "a")] {
        let refused = within(directory.put(table, key, "1")).await.unwrap_err();
        assert!(matches!(refused, DirectoryError::Refused { .. }), "{refused}");
    }
    within(directory.put("t", "a", "2")).await.unwrap();
    within(directory.delete("t", "b")).await.unwrap();
    within(directory.put("t", "c", "1")).await.unwrap();
    assert_eq!(within(directory.list("t")).await, Ok(rows([("a", "2"), ("c", "1")])));
    within(server.close()).await;
}

#[tokio::test]
async fn with_fail_over_a_directory_may_go_and_come_back() {
    let (first, second) = (serve_on_kept_ports(None).await, serve_on_kept_ports(None).await);
    let at = [first.endpoint().to_owned(), second.endpoint().to_owned()];
    let both = connect(&at).unwrap();
    let mut changes = both.watch("t");
    let mut known = Rows::new();
    within(both.put("t", "a", "1")).await.unwrap();
    until_rows(&mut changes, &mut known, &rows([("a", "1")])).await;

    // one goes: all goes on, without a word of loss
    within(first.close()).await;
    within(both.put("t", "b", "2")).await.unwrap();
    within(both.put("t", "c", "3")).await.unwrap();
    assert_eq!(within(both.delete("t", "a")).await, Ok(true));
    assert_eq!(within(both.get("t", "b")).await, Ok(Some("2".to_owned())));
    let expected = rows([("b", "2"), ("c", "3")]);
    while known != expected {
        match next(&mut changes).await {
            Change::All(rows) => known = rows,
            Change::Set { key, value } => drop(known.insert(key, value)),
            Change::Deleted { key } => drop(known.remove(&key)),
            Change::Lost { reason } => panic!("{reason}"),
        }
    }

    // it comes back empty and is given what it does not have
    let first = serve(&at[0]).await;
    let direct = client(&at[0]);
    until_rows(&mut direct.watch("t"), &mut Rows::new(), &expected).await;

    // the other goes: still all is there
    within(second.close()).await;
    within(both.put("t", "d", "4")).await.unwrap();
    let expected = rows([("b", "2"), ("c", "3"), ("d", "4")]);
    until_rows(&mut changes, &mut known, &expected).await;
    assert_eq!(within(both.list("t")).await, Ok(expected.clone()));

    // both are away: that is said once, and what was to be written is written when one is back
    within(first.close()).await;
    until_lost(&mut changes).await;
    let failed = within(both.put("t", "e", "5")).await.unwrap_err();
    assert!(matches!(failed, DirectoryError::Unreachable { .. }), "{failed}");
    let second = serve(&at[1]).await;
    let expected = rows([("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")]);
    known.clear();
    loop {
        let change = next(&mut changes).await;
        assert!(!matches!(change, Change::Lost { .. }));
        match change {
            Change::All(rows) => known = rows,
            Change::Set { key, value } => drop(known.insert(key, value)),
            other => panic!("{other:?}"),
        }
        if known == expected {
            break;
        }
    }
    within(both.close()).await;
    within(second.close()).await;
}
