//! The server of the embedded directory: requests in on a PULL socket, replies and changes out on a
//! PUB socket one port further.
//!
//! Writes are committed in groups: whatever requests are there are taken together, one snapshot is
//! brought to the disk, and only then are they answered.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::DirectoryError;
use super::protocol::wire::{self, reply::Outcome, request::Action};
use super::protocol::{
    HEARTBEAT, MAX_REQUEST, REVISIONS, changes_endpoint, reply_topic, requests_endpoint,
    socket_options, table_topic,
};
use super::snapshot::{Snapshot, encode};
use super::table::{Changed, Limits, Tables};
use crate::endpoint::{Address, Endpoint};
use crate::error::Error;
use crate::message::Message;
use crate::pub_socket::PubSocket;
use crate::pull_socket::PullSocket;

/// What a [`DirectoryServer`] is started with.
#[derive(Debug, Clone)]
pub struct DirectoryServerOptions {
    endpoint: String,
    snapshot: Option<PathBuf>,
    limits: Limits,
}

impl DirectoryServerOptions {
    /// Listens on `tcp://HOST:PORT` for requests and on the next port for those who follow changes.
    ///
    /// HOST `*` is every interface; PORT `*` or 0 are two free ports in a row.
    #[must_use]
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), snapshot: None, limits: Limits::default() }
    }

    /// The file that the tables are kept in; there need not be one yet. Default: none, so that the
    /// tables are lost when the server ends.
    ///
    /// Beside it there are `PATH.lock`, by which a second server is refused, and for moments
    /// `PATH.tmp`.
    #[must_use]
    pub fn snapshot(mut self, path: impl Into<PathBuf>) -> Self {
        self.snapshot = Some(path.into());
        self
    }

    /// How large the directory may grow. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

/// What a server has done since its start, and how large its tables are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DirectoryStats {
    /// Requests that were understood, repeated ones included.
    pub requests: u64,
    /// Rows that were written or removed. What changed nothing does not count.
    pub changes: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Messages that are no requests; they were thrown away.
    pub malformed: u64,
    /// Snapshots that were brought to the disk.
    pub snapshots: u64,
    /// Snapshots that could not be; the writes in them were undone and refused.
    pub failed_snapshots: u64,
    /// Tables with rows, now.
    pub tables: u64,
    /// Rows of all tables, now.
    pub rows: u64,
    /// Octets of all keys and rows, now.
    pub octets: u64,
}

/// A running server of the embedded directory. It ends when it is closed or dropped.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dragonwire::driver::directory::{
///     Directory, DirectoryServer, DirectoryServerOptions, EmbeddedDirectory,
/// };
///
/// let options = DirectoryServerOptions::new("tcp://127.0.0.1:*");
/// let server = DirectoryServer::start(options).await?;
/// let directory = EmbeddedDirectory::new(server.endpoint())?;
/// directory.put("publisher", "1", "{}").await?;
/// assert_eq!(directory.get("publisher", "1").await?.as_deref(), Some("{}"));
/// directory.close().await;
/// server.close().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct DirectoryServer {
    endpoint: String,
    tables: Arc<Mutex<Tables>>,
    stats: Arc<Mutex<DirectoryStats>>,
    stop: CancellationToken,
    ended: CancellationToken,
    _stop_when_dropped: DropGuard,
}

impl DirectoryServer {
    /// Reads the snapshot, if there is to be one, and listens.
    ///
    /// # Errors
    /// [`DirectoryError::Address`]; [`DirectoryError::Snapshot`] if the snapshot is damaged, used by
    /// another server or out of reach; [`DirectoryError::Listen`] if the ports cannot be bound.
    ///
    /// # Cancel safety
    /// Safe: when cancelled there is no server.
    pub async fn start(options: DirectoryServerOptions) -> Result<Self, DirectoryError> {
        let DirectoryServerOptions { endpoint, snapshot, limits } = options;
        let requests = requests_endpoint(&endpoint, true)?;
        let (snapshot, tables) = match snapshot {
            None => (None, Tables::new(limits)),
            Some(path) => {
                let opening = path.clone();
                let opened = spawn_blocking(move || Snapshot::open(&opening)).await;
                let (snapshot, rows) = opened.map_err(|error| DirectoryError::Snapshot {
                    path,
                    reason: error.to_string(),
                })??;
                (Some(Arc::new(snapshot)), Tables::with_rows(limits, rows))
            }
        };
        let (pull, publisher, real) = listen(&requests).await?;
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let tables = Arc::new(Mutex::new(tables));
        let stats = Arc::new(Mutex::new(DirectoryStats::default()));
        let server = Server {
            publisher,
            tables: tables.clone(),
            snapshot,
            answered: Answered::default(),
            epoch: Uuid::new_v4().as_u64_pair().0,
            stats: stats.clone(),
        };
        let (stopping, end) = (stop.clone(), ended.clone().drop_guard());
        tokio::spawn(async move {
            let _end = end;
            server.run(pull, stopping).await;
        });
        let _stop_when_dropped = stop.clone().drop_guard();
        Ok(Self { endpoint: real.to_string(), tables, stats, stop, ended, _stop_when_dropped })
    }

    /// The address for clients, with the real port; with HOST `*` they put this host's name there.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> DirectoryStats {
        let mut stats = *lock(&self.stats);
        let tables = lock(&self.tables);
        let (rows, octets) = tables.size();
        stats.tables = tables.iter().count() as u64;
        stats.rows = rows as u64;
        stats.octets = octets as u64;
        stats
    }

    /// Resolves when the server has ended: nothing of it is left.
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    pub async fn closed(&self) {
        self.ended.cancelled().await;
    }

    /// Answers what it has begun with, and ends. What was acknowledged is on the disk already.
    ///
    /// # Cancel safety
    /// Safe: when cancelled, closing goes on in the background.
    pub async fn close(&self) {
        self.stop.cancel();
        self.closed().await;
    }
}

/// Binds both sockets; returns the real endpoint of requests.
async fn listen(requests: &Endpoint) -> Result<(PullSocket, PubSocket, Endpoint), DirectoryError> {
    let failed = |error: Error| DirectoryError::Listen {
        at: requests.to_string(),
        reason: error.to_string(),
    };
    let incoming =
        socket_options().max_message_size(Some(MAX_REQUEST as u64)).max_frames(MAX_FRAMES);
    let outgoing = socket_options()
        .send_hwm_bytes(MAX_QUEUED)
        .max_message_size(Some(MAX_REQUEST as u64))
        .max_subscription_bytes(MAX_SUBSCRIPTIONS);
    let mut attempts = if requests.port() == Some(0) { PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        let pull = PullSocket::with_options(incoming.clone()).map_err(failed)?;
        let publisher = PubSocket::with_options(outgoing.clone()).map_err(failed)?;
        let bound = match two_ports(requests) {
            Some((requests, changes)) => match pull.bind(requests).await {
                Ok(real) => publisher.bind(changes).await.map(|_| real).map_err(failed),
                Err(error) => Err(failed(error)),
            },
            None => Err(DirectoryError::Listen {
                at: requests.to_string(),
                reason: "there is no port behind it".to_owned(),
            }),
        };
        match bound {
            Ok(real) => return Ok((pull, publisher, real)),
            Err(error) if attempts == 0 => return Err(error),
            // one of the two is in use: another pair
            Err(_) => {
                pull.close().await;
            }
        }
    }
}

/// The endpoints of requests and of changes; for any port two in a row, at random, from below those
/// that the system gives to connections, where many ports are in use for a while.
fn two_ports(requests: &Endpoint) -> Option<(Endpoint, Endpoint)> {
    let mut requests = requests.clone();
    if let Address::Tcp { port, .. } = &mut requests.0
        && *port == 0
    {
        let [high, low, ..] = *Uuid::new_v4().as_bytes();
        *port = LOWEST_PORT + u16::from_be_bytes([high, low]) % PORTS;
    }
    let changes = changes_endpoint(&requests)?;
    Some((requests, changes))
}

struct Server {
    publisher: PubSocket,
    tables: Arc<Mutex<Tables>>,
    snapshot: Option<Arc<Snapshot>>,
    answered: Answered,
    epoch: u64,
    stats: Arc<Mutex<DirectoryStats>>,
}

/// A request that was understood.
pub(super) struct Request {
    client: Uuid,
    id: u64,
    pub(super) action: Action,
}

impl Server {
    async fn run(mut self, mut pull: PullSocket, stop: CancellationToken) {
        let mut announce = interval(HEARTBEAT);
        announce.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = announce.tick() => {
                    self.announce().await;
                    continue;
                }
                message = pull.recv() => message,
            };
            let Ok(first) = first else { break };
            let mut group = Vec::new();
            self.understand(&first, &mut group);
            for _ in 1..MAX_GROUP {
                let Ok(message) = pull.try_recv() else { break };
                self.understand(&message, &mut group);
            }
            self.commit(group).await;
        }
        pull.close().await;
        self.publisher.close().await;
    }

    /// Adds a message to those that are dealt with together, if it is a request.
    fn understand(&self, message: &Message, group: &mut Vec<Request>) {
        match parse(message) {
            Ok(request) => {
                self.count(|stats| stats.requests += 1);
                group.push(request);
            }
            Err(reason) => {
                self.count(|stats| stats.malformed += 1);
                tracing::warn!(octets = message.size(), %reason, "a message that is no request");
            }
        }
    }

    /// Makes the writes of a group, brings them to the disk, and answers all of it.
    async fn commit(&mut self, group: Vec<Request>) {
        let (mut changes, mut outcomes) = (Vec::new(), Vec::with_capacity(group.len()));
        for request in &group {
            outcomes.push(self.write(request, &mut changes));
        }
        if let Err(reason) = self.save(&changes).await {
            tracing::error!(%reason, "the directory's snapshot cannot be written");
            let mut tables = lock(&self.tables);
            changes.drain(..).rev().for_each(|change| tables.undo(change));
            drop(tables);
            for (request, outcome) in group.iter().zip(&mut outcomes) {
                // not those that were made and answered before
                if self.answered.forget(request) {
                    *outcome = Some(refusal(format!("the snapshot cannot be written: {reason}")));
                }
            }
        }
        self.answered.settle();
        self.count(|stats| stats.changes += changes.len() as u64);
        for change in changes {
            self.publish_change(change).await;
        }
        // reads see the whole group, which is by now what there is
        for (request, outcome) in group.iter().zip(outcomes) {
            let outcome = outcome.unwrap_or_else(|| self.read(&request.action));
            self.answer(request, outcome).await;
        }
    }

    /// Makes a write in memory; `None` for what is no write.
    fn write(&mut self, request: &Request, changes: &mut Vec<Changed>) -> Option<Outcome> {
        if let Some(existed) = self.answered.get(request) {
            return Some(Outcome::Done(wire::Done { existed }));
        }
        let mut tables = lock(&self.tables);
        let (existed, changed) = match &request.action {
            Action::Get(_) | Action::List(_) => return None,
            Action::Put(wire::Put { table, key, value }) => {
                let existed = tables.get(table, key).is_some();
                match tables.put(table, key, value) {
                    Ok(changed) => (existed, changed),
                    Err(exceeded) => return Some(refusal(exceeded.to_string())),
                }
            }
            Action::Delete(wire::Delete { table, key }) => {
                let changed = tables.delete(table, key);
                (changed.is_some(), changed)
            }
        };
        changes.extend(changed);
        self.answered.add(request, existed);
        Some(Outcome::Done(wire::Done { existed }))
    }

    fn read(&self, action: &Action) -> Outcome {
        let tables = lock(&self.tables);
        match action {
            Action::Get(wire::Get { table, key }) => {
                Outcome::Row(wire::Row { value: tables.get(table, key).map(str::to_owned) })
            }
            Action::List(wire::List { table }) => {
                let (revision, rows) = tables.list(table);
                Outcome::Table(wire::Table { revision, rows })
            }
            // each write has its outcome
            Action::Put(_) | Action::Delete(_) => refusal("the write was not made".to_owned()),
        }
    }

    /// Brings the tables to the disk.
    async fn save(&self, changes: &[Changed]) -> Result<(), String> {
        let Some(snapshot) = self.snapshot.clone().filter(|_| !changes.is_empty()) else {
            return Ok(());
        };
        let tables = self.tables.clone();
        let saved = spawn_blocking(move || {
            let octets = encode(&lock(&tables));
            snapshot.replace(&octets)
        });
        let saved = saved.await;
        let saved = saved.map_err(|error| error.to_string());
        let saved = saved.and_then(|saved| saved.map_err(|error| error.to_string()));
        self.count(|stats| match saved {
            Ok(()) => stats.snapshots += 1,
            Err(_) => stats.failed_snapshots += 1,
        });
        saved
    }

    async fn publish_change(&self, changed: Changed) {
        let Changed { table, key, previous, revision, value, .. } = changed;
        let topic = table_topic(&table);
        let change = wire::Change { epoch: self.epoch, table, previous, revision, key, value };
        self.publish(topic, change.encode_to_vec()).await;
    }

    async fn answer(&self, request: &Request, outcome: Outcome) {
        if matches!(outcome, Outcome::Refusal(_)) {
            self.count(|stats| stats.refused += 1);
        }
        let reply = wire::Reply { id: request.id, epoch: self.epoch, outcome: Some(outcome) };
        self.publish(reply_topic(request.client), reply.encode_to_vec()).await;
    }

    async fn announce(&self) {
        let tables = lock(&self.tables).revisions();
        let revisions = wire::Revisions { epoch: self.epoch, tables };
        self.publish(REVISIONS.to_owned(), revisions.encode_to_vec()).await;
    }

    async fn publish(&self, topic: String, body: Vec<u8>) {
        // only a closed socket refuses, and then nobody is there to be told
        drop(self.publisher.send(Message::pair(topic, body)).await);
    }

    fn count(&self, change: impl FnOnce(&mut DirectoryStats)) {
        change(&mut lock(&self.stats));
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

pub(super) fn parse(message: &Message) -> Result<Request, String> {
    let mut frames = message.frames();
    let (Some(body), None) = (frames.next(), frames.next()) else {
        return Err(format!("{} frames where there should be one", message.frames().count()));
    };
    let request = wire::Request::decode(body).map_err(|error| error.to_string())?;
    let client = Uuid::from_slice(&request.client);
    let client = client.map_err(|_| "the client's id has not 16 octets".to_owned())?;
    let action = request.action.ok_or_else(|| "no action that is known here".to_owned())?;
    Ok(Request { client, id: request.id, action })
}

fn refusal(reason: String) -> Outcome {
    Outcome::Refusal(wire::Refusal { reason })
}

/// The newest writes that were made, so that one that comes again is answered and not made again.
/// Else a late copy would undo what was written after it.
#[derive(Debug, Default)]
struct Answered {
    /// Whether there was a row before.
    writes: HashMap<(Uuid, u64), bool>,
    order: VecDeque<(Uuid, u64)>,
    /// How many at the end of `order` are not on the disk yet.
    unsettled: usize,
}

impl Answered {
    fn get(&self, request: &Request) -> Option<bool> {
        self.writes.get(&(request.client, request.id)).copied()
    }

    fn add(&mut self, request: &Request, existed: bool) {
        let name = (request.client, request.id);
        self.writes.insert(name, existed);
        self.order.push_back(name);
        self.unsettled += 1;
    }

    /// `false`: it was settled before, or was never made.
    fn forget(&mut self, request: &Request) -> bool {
        let name = (request.client, request.id);
        let settled = self.order.len() - self.unsettled;
        self.order.range(settled..).any(|other| *other == name) && {
            self.writes.remove(&name);
            true
        }
    }

    fn settle(&mut self) {
        self.unsettled = 0;
        while self.order.len() > MAX_ANSWERED {
            let Some(oldest) = self.order.pop_front() else { break };
            self.writes.remove(&oldest);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests that one snapshot is written for at most, so that the first does not wait for ever.
const MAX_GROUP: usize = 1024;
/// Writes that are remembered: more than all clients repeat in the seconds in which they do.
const MAX_ANSWERED: usize = 16_384;
/// A request has one frame; more than this many are not even read.
const MAX_FRAMES: usize = 8;
/// What may wait for one client that does not read. One reply is taken whatever its size.
const MAX_QUEUED: usize = 64 << 20;
/// Topics of one client: some thousand tables.
const MAX_SUBSCRIPTIONS: usize = 1 << 20;
/// Pairs of ports that are tried, and whence they are taken.
const PORT_ATTEMPTS: usize = 64;
const LOWEST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        Server {
            publisher: PubSocket::new(),
            tables: Arc::new(Mutex::new(Tables::new(Limits::default()))),
            snapshot: None,
            answered: Answered::default(),
            epoch: 1,
            stats: Arc::default(),
        }
    }

    fn put(id: u64, value: &str) -> Request {
        let put = wire::Put { table: "t".into(), key: "k".into(), value: value.into() };
        Request { client: Uuid::nil(), id, action: Action::Put(put) }
    }

    fn delete(id: u64) -> Request {
        let delete = wire::Delete { table: "t".into(), key: "k".into() };
        Request { client: Uuid::nil(), id, action: Action::Delete(delete) }
    }

    fn done(existed: bool) -> Option<Outcome> {
        Some(Outcome::Done(wire::Done { existed }))
    }

    #[test]
    fn a_late_copy_of_a_write_is_answered_and_not_made_again() {
        let (mut server, mut changes) = (server(), Vec::new());
        assert_eq!(server.write(&put(1, "old"), &mut changes), done(false));
        assert_eq!(server.write(&put(2, "new"), &mut changes), done(true));
        assert_eq!(server.write(&put(1, "old"), &mut changes), done(false));
        assert_eq!(lock(&server.tables).get("t", "k"), Some("new"));
        assert_eq!(server.write(&delete(3), &mut changes), done(true));
        assert_eq!(server.write(&delete(3), &mut changes), done(true));
        assert_eq!(server.write(&delete(4), &mut changes), done(false));
        assert_eq!(changes.len(), 3);
    }

    #[test]
    fn only_what_is_not_on_the_disk_is_forgotten() {
        let (mut server, mut changes) = (server(), Vec::new());
        server.write(&put(1, "old"), &mut changes);
        server.answered.settle();
        server.write(&put(2, "new"), &mut changes);
        assert!(!server.answered.forget(&put(1, "old")));
        assert!(server.answered.forget(&put(2, "new")));
        assert_eq!(server.answered.get(&put(1, "old")), Some(false));
        assert_eq!(server.answered.get(&put(2, "new")), None);
        // and not more than a number of the newest
        for id in 10..10 + MAX_ANSWERED as u64 {
            server.write(&put(id, "x"), &mut changes);
            server.answered.settle();
        }
        assert_eq!(server.answered.get(&put(1, "old")), None);
        assert_eq!(server.answered.order.len(), MAX_ANSWERED);
        assert_eq!(server.answered.writes.len(), MAX_ANSWERED);
    }

    #[test]
    fn requests_of_other_versions_are_told_apart_from_garbage() {
        let request = wire::Request { client: vec![0; 16].into(), id: 1, action: None };
        let refused = |message: Message| parse(&message).map(|_| ()).unwrap_err();
        assert_eq!(refused(request.encode_to_vec().into()), "no action that is known here");
        let request = wire::Request { client: vec![0; 15].into(), ..request };
        assert_eq!(refused(request.encode_to_vec().into()), "the client's id has not 16 octets");
        assert_eq!(refused(["a", "b"].into()), "2 frames where there should be one");
        assert!(!refused("\u{1}garbage".into()).is_empty());
    }
}
