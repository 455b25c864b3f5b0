//! The directory in etcd: what becomes of rows and watchers with a real server that restarts, compacts,
//! hangs or loses a member, and with one that is no etcd.

#![cfg(feature = "etcd")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use deadline::within;
use dragonwire::driver::directory::{
    Change, Directory, DirectoryError, EtcdDirectory, Rows, connect,
};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::BoxStream;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Members of an etcd, killed when dropped.
struct Etcd {
    folder: TempDir,
    ports: Vec<u16>,
    members: Vec<Option<Child>>,
}

impl Etcd {
    async fn start(count: usize) -> Self {
        loop {
            let ports = (0..count).map(|_| free_ports()).collect();
            let members = (0..count).map(|_| None).collect();
            let mut etcd = Self { folder: TempDir::new().unwrap(), ports, members };
            (0..count).for_each(|member| etcd.run(member));
            let directory = etcd.directory();
            let started = within(async {
                while directory.get("t", "k").await.is_err() {
                    // somebody else may have one of the ports
                    if etcd.has_ended() {
                        return false;
                    }
                }
                true
            });
            if started.await {
                return etcd;
            }
        }
    }

    /// Begins to run a member, for the first time or again.
    fn run(&mut self, member: usize) {
        let name = |member: usize| format!("m{member}");
        let client = |member: usize| format!("http://127.0.0.1:{}", self.ports[member]);
        let peer = |member: usize| format!("http://127.0.0.1:{}", self.ports[member] + 1);
        let cluster =
            (0..self.ports.len()).map(|member| format!("{}={}", name(member), peer(member)));
        let started = Command::new("etcd")
            .args(["--name", &name(member)])
            .arg("--data-dir")
            .arg(self.folder.path().join(name(member)))
            .args(["--listen-client-urls", &client(member)])
            .args(["--advertise-client-urls", &client(member)])
            .args(["--listen-peer-urls", &peer(member)])
            .args(["--initial-advertise-peer-urls", &peer(member)])
            .args(["--initial-cluster", &cluster.collect::<Vec<_>>().join(",")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = started.unwrap_or_else(|error| {
            panic!("etcd cannot be run ({error}): install Debian's package etcd-server")
        });
        self.members[member] = Some(child);
    }

    /// Whether a member ended by itself.
    fn has_ended(&mut self) -> bool {
        self.members.iter_mut().flatten().any(|member| member.try_wait().unwrap().is_some())
    }

    fn kill(&mut self, member: usize) {
        let mut child = self.members[member].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal to the first member.
    fn signal(&self, signal: &str) {
        let id = self.members[0].as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    fn address(&self, member: usize) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[member]).into()
    }

    fn directory(&self) -> EtcdDirectory {
        let addresses: Vec<_> =
            (0..self.ports.len()).map(|member| self.address(member).to_string()).collect();
        directory(&addresses.join(","))
    }

    /// A request that directories do not make; its reply.
    async fn post(&self, path: &str, body: &str) -> String {
        let mut stream = within(TcpStream::connect(self.address(0))).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        within(stream.write_all(request.as_bytes())).await.unwrap();
        let mut reply = String::new();
        within(stream.read_to_string(&mut reply)).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
        reply
    }

    /// Makes etcd forget all changes up to now.
    async fn compact(&self) {
        let reply = self.post("/v3/kv/range", r#"{"key":"eA=="}"#).await;
        let (_, revision) = reply.split_once(r#""revision":""#).unwrap();
        let (revision, _) = revision.split_once('"').unwrap();
        let body = format!(r#"{{"revision":"{revision}","physical":true}}"#);
        self.post("/v3/kv/compaction", &body).await;
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in self.members.iter_mut().flatten() {
            drop(member.kill());
            drop(member.wait());
        }
    }
}

/// A port that is free and so is the next one. They are below those that the system gives to others
/// while a member is away.
fn free_ports() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let pair = std::process::id() * 20 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + pair % 10_000 * 2).unwrap();
        let bind = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port));
        if bind(port).is_ok() && bind(port + 1).is_ok() {
            return port;
        }
    }
}

fn directory(addresses: &str) -> EtcdDirectory {
    EtcdDirectory::new(&format!("etcd://{addresses}")).unwrap()
}

type Changes = BoxStream<'static, Change>;

async fn next(changes: &mut Changes) -> Change {
    within(changes.next()).await.expect("the stream ended")
}

/// Reads on until the directory is lost.
async fn until_lost(changes: &mut Changes) -> String {
    loop {
        if let Change::Lost { reason } = next(changes).await {
            return reason;
        }
    }
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

#[tokio::test]
async fn rows_are_written_read_followed_and_removed() {
    let etcd = Etcd::start(1).await;
    let uri = format!("etcd://{}", etcd.address(0));
    let directory = connect(&[uri]).unwrap();
    assert_eq!(within(directory.get("t", "a")).await, Ok(None));
    assert_eq!(within(directory.list("t")).await, Ok(Rows::new()));
    within(directory.put("t", "a", "1")).await.unwrap();
    within(directory.put("t", "b", "")).await.unwrap();
    within(directory.put("t", "a", "2")).await.unwrap();
    within(directory.put("t2", "c", "3")).await.unwrap();
    assert_eq!(within(directory.get("t", "a")).await, Ok(Some("2".to_owned())));
    assert_eq!(within(directory.get("t", "b")).await, Ok(Some(String::new())));
    assert_eq!(within(directory.list("t")).await, Ok(rows([("a", "2"), ("b", "")])));
    assert_eq!(within(directory.delete("t", "b")).await, Ok(true));
    assert_eq!(within(directory.delete("t", "b")).await, Ok(false));
    assert_eq!(within(directory.delete("none", "b")).await, Ok(false));

    // changes: only of the table, only what changes something, and the same for everybody
    let mut watchers = [directory.watch("t"), directory.watch("t")];
    for changes in &mut watchers {
        assert_eq!(next(changes).await, Change::All(rows([("a", "2")])));
    }
    within(directory.put("t", "a", "2")).await.unwrap();
    within(directory.put("t2", "c", "4")).await.unwrap();
    within(directory.put("t", "d", "4")).await.unwrap();
    within(directory.delete("t", "nobody")).await.unwrap();
    within(directory.put("t", "a", "5")).await.unwrap();
    within(directory.delete("t", "d")).await.unwrap();
    for changes in &mut watchers {
        assert_eq!(next(changes).await, set("d", "4"));
        assert_eq!(next(changes).await, set("a", "5"));
        assert_eq!(next(changes).await, deleted("d"));
    }

    // many at once
    let keys: Vec<_> = (0..100).map(|i| format!("k{i}")).collect();
    let puts = keys.iter().map(|key| directory.put("many", key, key));
    within(join_all(puts)).await.into_iter().for_each(|put| put.unwrap());
    assert_eq!(within(directory.list("many")).await.unwrap().len(), 100);

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
async fn odd_names_and_rows_stay_what_they_are() {
    let etcd = Etcd::start(1).await;
    let directory = etcd.directory();
    let tables = ["a", "a/", "a/b", "a%2Fb", "a%", "/", "ü", " ", "a0", "\0"];
    let keys = ["k", "/", "b/c", "a//b", "..", "ключ", "\0\n\"\\", " ", "%2F"];
    for table in tables {
        let mut changes = directory.watch(table);
        assert_eq!(next(&mut changes).await, Change::All(Rows::new()), "{table:?}");
        for key in keys {
            let value = format!("{table} {key} \u{1f409} \r\n\0 {{\"a\": \"\\u0000\"}}");
            within(directory.put(table, key, &value)).await.unwrap();
            assert_eq!(next(&mut changes).await, set(key, &value));
            assert_eq!(within(directory.get(table, key)).await, Ok(Some(value)));
        }
        assert_eq!(within(directory.list(table)).await.unwrap().len(), keys.len(), "{table:?}");
    }
    for (table, key) in [("", "k"), ("t", "")] {
        let refused = within(directory.put(table, key, "v")).await.unwrap_err();
        assert!(matches!(refused, DirectoryError::Refused { .. }), "{refused}");
    }
}

#[tokio::test]
async fn what_is_too_large_for_etcd_is_refused_in_its_words() {
    let etcd = Etcd::start(1).await;
    let directory = etcd.directory();
    let mut changes = directory.watch("t");
    assert_eq!(next(&mut changes).await, Change::All(Rows::new()));
    let large = "x".repeat(1_000_000);
    within(directory.put("t", "large", &large)).await.unwrap();
    assert_eq!(next(&mut changes).await, set("large", &large));
    assert_eq!(within(directory.get("t", "large")).await, Ok(Some(large)));
    for (octets, words) in [(1_700_000, "request is too large"), (5_000_000, "larger than max")] {
        let refused = within(directory.put("t", "k", &"x".repeat(octets))).await.unwrap_err();
        let DirectoryError::Refused { at, reason } = refused else { panic!("{refused}") };
        assert_eq!(at, format!("etcd://{}", etcd.address(0)));
        assert!(reason.contains(words), "{reason}");
    }
    within(directory.put("t", "k", "1")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("k", "1"));
}

#[tokio::test]
async fn a_watcher_goes_on_when_etcd_was_restarted() {
    let mut etcd = Etcd::start(1).await;
    let directory = etcd.directory();
    let mut changes = directory.watch("t");
    assert_eq!(next(&mut changes).await, Change::All(Rows::new()));
    for round in ["1", "2"] {
        within(directory.put("t", "a", round)).await.unwrap();
        assert_eq!(next(&mut changes).await, set("a", round));
        etcd.kill(0);
        let Change::Lost { reason } = next(&mut changes).await else { panic!("it is gone") };
        assert!(reason.contains("refused"), "{reason}");
        // what waits for it goes on
        let (put, ()) = tokio::join!(within(directory.put("t", "b", round)), async { etcd.run(0) });
        put.unwrap();
        assert_eq!(within(directory.get("t", "b")).await, Ok(Some(round.to_owned())));
        let mut known = Rows::new();
        while known != rows([("a", round), ("b", round)]) {
            match next(&mut changes).await {
                Change::All(rows) => known = rows,
                Change::Set { key, value } => drop(known.insert(key, value)),
                other => panic!("{other:?}"),
            }
        }
        within(directory.delete("t", "b")).await.unwrap();
        assert_eq!(next(&mut changes).await, deleted("b"));
    }
}

/// What stands between a watcher and etcd, and can be cut.
struct Wire {
    address: SocketAddr,
    running: AbortHandle,
}

impl Wire {
    async fn lay(at: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    drop(copy_bidirectional(&mut near, &mut far).await);
                });
            }
        });
        Self { address, running: running.abort_handle() }
    }
}

#[tokio::test]
async fn a_watcher_catches_up_with_what_was_compacted_while_it_was_away() {
    let etcd = Etcd::start(1).await;
    let writer = etcd.directory();
    within(writer.put("t", "a", "1")).await.unwrap();
    within(writer.put("t", "b", "1")).await.unwrap();
    let wire = Wire::lay(([127, 0, 0, 1], free_ports()).into(), etcd.address(0)).await;
    let watcher = directory(&wire.address.to_string());
    let mut changes = watcher.watch("t");
    assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1"), ("b", "1")])));
    wire.running.abort();
    until_lost(&mut changes).await;
    within(writer.put("t", "a", "2")).await.unwrap();
    within(writer.delete("t", "b")).await.unwrap();
    within(writer.put("t", "c", "1")).await.unwrap();
    etcd.compact().await;
    let _wire = Wire::lay(wire.address, etcd.address(0)).await;
    assert_eq!(next(&mut changes).await, Change::All(rows([("a", "2"), ("c", "1")])));
    within(writer.put("t", "c", "2")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("c", "2"));
}

#[tokio::test]
async fn a_member_that_hangs_is_noticed() {
    let etcd = Etcd::start(1).await;
    let directory = etcd.directory();
    within(directory.put("t", "a", "1")).await.unwrap();
    let mut changes = directory.watch("t");
    assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1")])));
    etcd.signal("-STOP");
    let reason = until_lost(&mut changes).await;
    assert!(reason.contains("no answer within 5s"), "{reason}");
    let error = within(directory.get("t", "a")).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unreachable { .. }), "{error}");
    etcd.signal("-CONT");
    assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1")])));
    within(directory.put("t", "a", "2")).await.unwrap();
    assert_eq!(next(&mut changes).await, set("a", "2"));
}

#[tokio::test]
async fn the_next_member_is_asked_when_one_is_gone() {
    let mut etcd = Etcd::start(3).await;
    // where nobody listens
    let nobody = free_ports();
    let members: Vec<_> = (0..3).map(|member| etcd.address(member).to_string()).collect();
    let directory = directory(&format!("127.0.0.1:{nobody},{}", members.join(",")));
    within(directory.put("t", "a", "1")).await.unwrap();
    let mut changes = directory.watch("t");
    assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1")])));
    // the one that is followed; it may have been the leader
    etcd.kill(0);
    within(async { while directory.put("t", "a", "2").await.is_err() {} }).await;
    let mut known = None;
    while known.as_deref() != Some("2") {
        match next(&mut changes).await {
            Change::All(rows) => known = rows.get("a").cloned(),
            Change::Set { value, .. } => known = Some(value),
            Change::Lost { .. } => {}
            Change::Deleted { key } => panic!("{key} was removed"),
        }
    }
    // two of three are no quorum any more
    etcd.kill(1);
    let error = within(directory.put("t", "a", "3")).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unreachable { .. }), "{error}");
    until_lost(&mut changes).await;
    etcd.run(0);
    assert!(matches!(next(&mut changes).await, Change::All(_)));
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_an_error_after_the_deadline() {
    let port = free_ports();
    let directory = directory(&format!("127.0.0.1:{port}"));
    let error = within(directory.get("t", "a")).await.unwrap_err();
    let DirectoryError::Unreachable { at, reason } = error else { panic!("{error}") };
    assert_eq!(at, format!("etcd://127.0.0.1:{port}"));
    assert!(reason.contains("refused"), "{reason}");
}

/// Answers each request with the next of some replies, and then with none.
async fn scripted(replies: &[String]) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut replies: VecDeque<_> = replies.iter().cloned().collect();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            while let Some(()) = request(&mut stream).await {
                let Some(reply) = replies.pop_front() else { break };
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        }
    });
    address
}

/// Reads a request; `None` if there is no more.
async fn request(stream: &mut TcpStream) -> Option<()> {
    let mut text = String::new();
    loop {
        let octet = stream.read_u8().await.ok()?;
        text.push(char::from(octet));
        if text.ends_with("\r\n\r\n") {
            break;
        }
    }
    let text = text.to_lowercase();
    let (_, length) = text.split_once("content-length: ").unwrap();
    let length = length.split_once('\r').unwrap().0.parse().unwrap();
    stream.read_exact(&mut vec![0; length]).await.ok().map(drop)
}

fn reply(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The beginning of a stream; it does not end.
fn watch_reply(messages: &[&str]) -> String {
    let mut reply = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    for message in messages {
        reply += &format!("{:x}\r\n{message}\n\r\n", message.len() + 1);
    }
    reply
}

/// The table `t` with a row `a` that is `1`, or without rows.
fn table(rows: bool) -> String {
    let kvs = r#","kvs":[{"key":"L2RyYWdvbndpcmUvdC9h","value":"MQ=="}]"#;
    reply(200, &format!(r#"{{"header":{{"revision":"5"}}{}}}"#, if rows { kvs } else { "" }))
}

const CREATED: &str = r#"{"result":{"header":{"revision":"5"},"created":true}}"#;

#[tokio::test]
async fn a_watch_that_is_cancelled_is_made_anew() {
    let deletion = concat!(
        r#"{"result":{"header":{"revision":"6"},"events":[{"type":"DELETE","#,
        r#""kv":{"key":"L2RyYWdvbndpcmUvdC9h"}}]}}"#
    );
    let endings = [
        r#"{"result":{"header":{},"canceled":true,"compact_revision":"44"}}"#,
        r#"{"result":{"header":{},"created":true,"canceled":true,"cancel_reason":"no"}}"#,
        r#"{"error":{"grpc_code":14,"http_code":503,"message":"no leader"}}"#,
        r#"{"result":"#,
        "garbage",
    ];
    for ending in endings {
        let address = scripted(&[
            table(true),
            watch_reply(&[CREATED, ending]),
            table(false),
            watch_reply(&[ending]),
            table(true),
            watch_reply(&[CREATED, deletion]),
        ])
        .await;
        let mut changes = directory(&address.to_string()).watch("t");
        assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1")])), "{ending}");
        let Change::Lost { .. } = next(&mut changes).await else { panic!("{ending}") };
        assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1")])), "{ending}");
        assert_eq!(next(&mut changes).await, deleted("a"), "{ending}");
    }
}

#[tokio::test]
async fn who_is_no_etcd_is_passed_over() {
    let hello = reply(200, "<html>hello</html>");
    let answers = [
        (hello.clone(), "hello"),
        (reply(404, "Not Found"), "404"),
        (reply(400, "Client sent an HTTP request to an HTTPS server."), "HTTPS server"),
        (reply(503, r#"{"message":"etcdserver: no leader","code":14}"#), "no leader"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{".to_owned(), ""),
        ("SSH-2.0-OpenSSH_9\r\n".to_owned(), ""),
        (String::new(), ""),
    ];
    let passed_over = answers.map(async |(answer, words)| {
        let mut script = vec![answer; 100];
        let strange = scripted(&script).await;
        let error = within(directory(&strange.to_string()).get("t", "a")).await.unwrap_err();
        let DirectoryError::Unreachable { reason, .. } = error else { panic!("{error}") };
        assert!(reason.contains(words), "{reason}");

        script.truncate(2);
        let strange = scripted(&script).await;
        let etcd = scripted(&[table(true), table(true), watch_reply(&[CREATED])]).await;
        let directory = directory(&format!("{strange},{etcd}"));
        assert_eq!(within(directory.get("t", "a")).await, Ok(Some("1".to_owned())));
        let mut changes = directory.watch("t");
        assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1")])));
    });
    join_all(passed_over).await;
}

#[tokio::test]
async fn what_etcd_refuses_is_an_error_at_once() {
    let refusal = reply(401, r#"{"error":"no","message":"etcdserver: user name is empty"}"#);
    let address = scripted(&[refusal.clone(), refusal, table(true), watch_reply(&[CREATED])]).await;
    let directory = directory(&address.to_string());
    let error = within(directory.put("t", "a", "1")).await.unwrap_err();
    let DirectoryError::Refused { reason, .. } = &error else { panic!("{error}") };
    assert_eq!(reason, "etcdserver: user name is empty");
    let mut changes = directory.watch("t");
    assert_eq!(next(&mut changes).await, Change::Lost { reason: error.to_string() });
    assert_eq!(next(&mut changes).await, Change::All(rows([("a", "1")])));
}
