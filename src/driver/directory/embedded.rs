//! The client of the embedded directory: requests with a deadline that are repeated until they are
//! answered, and tables that are followed without a gap.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use prost::Message as _;
use tokio::sync::{OnceCell, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::follow::{News, Place, Step, step};
use super::protocol::wire::{self, reply::Outcome, request::Action};
use super::protocol::{
    CHANGES, MAX_REPLY, MAX_REQUEST, REPLIES, REVISIONS, changes_endpoint, reply_topic,
    requests_endpoint, socket_options, table_topic,
};
use super::queue::{Feed, Intake, Taken, queue};
use super::{Change, Directory, DirectoryError, Rows};
use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointState, EndpointStates};
use crate::error::Error;
use crate::message::Message;
use crate::push_socket::PushSocket;
use crate::sub_socket::{SubHandle, SubSocket};

/// A directory that a [`DirectoryServer`](super::DirectoryServer) serves, in this process or another.
///
/// It connects when it is first used, which needs a tokio runtime, and again whenever the connection
/// is lost. Each request is repeated until it is answered or its deadline has passed; a write is
/// nevertheless made once, unless the server starts anew in between. A request whose deadline has
/// passed may have been done all the same.
///
/// A server that stops without a word is noticed within 3 seconds.
pub struct EmbeddedDirectory {
    inner: Arc<Inner>,
}

/// Shared with the streams of changes; the link ends with the last of them.
struct Inner {
    at: String,
    requests: Endpoint,
    changes: Endpoint,
    deadline: Duration,
    link: OnceCell<Arc<Link>>,
    closed: CancellationToken,
    ended: CancellationToken,
    _close_when_dropped: DropGuard,
}

/// Both sockets, who waits for replies and who follows tables.
struct Link {
    client: Uuid,
    next_id: AtomicU64,
    push: PushSocket,
    sub: SubHandle,
    waiting: Mutex<HashMap<u64, oneshot::Sender<wire::Reply>>>,
    followers: Mutex<Vec<Followed>>,
    state: watch::Sender<LinkState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LinkState {
    /// It has not come about or failed yet.
    Connecting,
    /// The server's changes come in; how many times that has begun.
    Up(u64),
    /// They do not.
    Down(String),
}

impl LinkState {
    fn connection(&self) -> Option<u64> {
        match self {
            Self::Up(connection) => Some(*connection),
            _ => None,
        }
    }

    fn fault(&self) -> Option<String> {
        match self {
            Self::Down(reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

/// A table that somebody follows.
struct Followed {
    table: String,
    feed: Feed<News>,
    /// Where the table was last told to be.
    newest: Option<Place>,
}

impl EmbeddedDirectory {
    /// The directory whose server listens on `tcp://HOST:PORT` and the next port. Requests have 5
    /// seconds.
    ///
    /// # Errors
    /// [`DirectoryError::Address`].
    pub fn new(uri: &str) -> Result<Self, DirectoryError> {
        Self::with_deadline(uri, DEADLINE)
    }

    /// The same with another deadline of requests.
    ///
    /// # Errors
    /// [`DirectoryError::Address`].
    pub fn with_deadline(uri: &str, deadline: Duration) -> Result<Self, DirectoryError> {
        let requests = requests_endpoint(uri, false)?;
        let Some(changes) = changes_endpoint(&requests) else {
            return Err(DirectoryError::Address {
                uri: uri.to_owned(),
                expected: "tcp://HOST:PORT",
            });
        };
        let closed = CancellationToken::new();
        let inner = Inner {
            at: uri.to_owned(),
            requests,
            changes,
            deadline,
            link: OnceCell::new(),
            _close_when_dropped: closed.clone().drop_guard(),
            closed,
            ended: CancellationToken::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl fmt::Debug for EmbeddedDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.link.get().map(|link| link.state.borrow().clone());
        f.debug_struct("EmbeddedDirectory")
            .field("at", &self.inner.at)
            .field("state", &state)
            .finish_non_exhaustive()
    }
}

impl Directory for EmbeddedDirectory {
    fn get<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, DirectoryError>> {
        let request = async move {
            let action = Action::Get(wire::Get { table: table.to_owned(), key: key.to_owned() });
            match self.inner.request(action).await?.1 {
                Outcome::Row(row) => Ok(row.value),
                _ => Err(self.inner.not_an_answer()),
            }
        };
        request.boxed()
    }

    fn list<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Rows, DirectoryError>> {
        async move { Ok(self.inner.list(table).await?.1) }.boxed()
    }

    fn put<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        let request = async move {
            let (table, key, value) = (table.to_owned(), key.to_owned(), value.to_owned());
            match self.inner.request(Action::Put(wire::Put { table, key, value })).await?.1 {
                Outcome::Done(_) => Ok(()),
                _ => Err(self.inner.not_an_answer()),
            }
        };
        request.boxed()
    }

    fn delete<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<bool, DirectoryError>> {
        let request = async move {
            let (table, key) = (table.to_owned(), key.to_owned());
            match self.inner.request(Action::Delete(wire::Delete { table, key })).await?.1 {
                Outcome::Done(done) => Ok(done.existed),
                _ => Err(self.inner.not_an_answer()),
            }
        };
        request.boxed()
    }

    fn watch(&self, table: &str) -> BoxStream<'static, Change> {
        let follower = Follower {
            inner: self.inner.clone(),
            table: table.to_owned(),
            following: None,
            known: None,
            lost: false,
        };
        let changes = stream::unfold(follower, |mut follower| async {
            let change = follower.next().await?;
            Some((change, follower))
        });
        changes.fuse().boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let close = async {
            self.inner.closed.cancel();
            if self.inner.link.initialized() {
                self.inner.ended.cancelled().await;
            }
        };
        close.boxed()
    }
}

impl Inner {
    /// The link, which is begun if there is none.
    async fn link(&self) -> Result<&Arc<Link>, DirectoryError> {
        if self.closed.is_cancelled() {
            return Err(DirectoryError::Closed);
        }
        self.link.get_or_try_init(|| self.begin()).await.map_err(|error| {
            DirectoryError::Unreachable { at: self.at.clone(), reason: error.to_string() }
        })
    }

    async fn begin(&self) -> Result<Arc<Link>, Error> {
        // nothing is queued for a server that is not there: its time may be over when it comes
        let push = PushSocket::with_options(socket_options().immediate(true))?;
        let options = socket_options().max_message_size(Some(MAX_REPLY)).recv_hwm_bytes(0);
        let sub = SubSocket::with_options(options)?;
        let client = Uuid::new_v4();
        sub.subscribe(reply_topic(client))?;
        sub.subscribe(REVISIONS)?;
        let states = sub.endpoint_states();
        push.connect(self.requests.clone()).await?;
        sub.connect(self.changes.clone()).await?;
        let link = Arc::new(Link {
            client,
            next_id: AtomicU64::new(1),
            push,
            sub: sub.handle(),
            waiting: Mutex::default(),
            followers: Mutex::default(),
            state: watch::Sender::new(LinkState::Connecting),
        });
        let (running, stop) = (link.clone(), self.closed.clone());
        let end = self.ended.clone().drop_guard();
        tokio::spawn(async move {
            let _end = end;
            running.run(sub, states, stop).await;
        });
        Ok(link)
    }

    /// Asks and repeats until there is an answer. Returns the server's epoch with it.
    async fn request(&self, action: Action) -> Result<(u64, Outcome), DirectoryError> {
        let link = self.link().await?;
        let id = link.next_id.fetch_add(1, Ordering::Relaxed);
        let client = Bytes::copy_from_slice(link.client.as_bytes());
        let request = wire::Request { client, id, action: Some(action) };
        let size = request.encoded_len();
        if size > MAX_REQUEST {
            let reason = format!("the request has {size} octets; at most {MAX_REQUEST} are sent");
            return Err(DirectoryError::Refused { at: self.at.clone(), reason });
        }
        let octets = Bytes::from(request.encode_to_vec());
        let mut waiting = Waiting::new(link, id);
        let asking = async {
            loop {
                // or the reply would go past
                link.sub.ready().await.map_err(|_| DirectoryError::Closed)?;
                let sent = link.push.send(octets.clone()).await;
                sent.map_err(|_| DirectoryError::Closed)?;
                match timeout(self.deadline.min(REPEAT), &mut waiting.reply).await {
                    Ok(reply) => return reply.map_err(|_| DirectoryError::Closed),
                    Err(_) => continue,
                }
            }
        };
        let asked = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(DirectoryError::Closed),
            asked = timeout(self.deadline, asking) => asked,
        };
        let reply = match asked {
            Ok(reply) => reply?,
            Err(_) => {
                let reason = match &*link.state.borrow() {
                    LinkState::Down(reason) => reason.clone(),
                    _ => format!("no answer within {:?}", self.deadline),
                };
                return Err(DirectoryError::Unreachable { at: self.at.clone(), reason });
            }
        };
        match reply.outcome {
            Some(Outcome::Refusal(wire::Refusal { reason })) => {
                Err(DirectoryError::Refused { at: self.at.clone(), reason })
            }
            Some(outcome) => Ok((reply.epoch, outcome)),
            None => Err(self.not_an_answer()),
        }
    }

    async fn list(&self, table: &str) -> Result<(Place, Rows), DirectoryError> {
        let action = Action::List(wire::List { table: table.to_owned() });
        match self.request(action).await? {
            (epoch, Outcome::Table(wire::Table { revision, rows })) => {
                Ok((Place { epoch, revision }, rows))
            }
            _ => Err(self.not_an_answer()),
        }
    }

    fn not_an_answer(&self) -> DirectoryError {
        let reason = "it answered something else; is it of another version?".to_owned();
        DirectoryError::Refused { at: self.at.clone(), reason }
    }
}

/// Somebody who waits for a reply; cancelled when dropped.
struct Waiting<'a> {
    link: &'a Link,
    id: u64,
    reply: oneshot::Receiver<wire::Reply>,
}

impl<'a> Waiting<'a> {
    fn new(link: &'a Link, id: u64) -> Self {
        let (sender, reply) = oneshot::channel();
        lock(&link.waiting).insert(id, sender);
        Self { link, id, reply }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.link.waiting).remove(&self.id);
    }
}

impl Link {
    /// Hands out what comes in, until it is told to stop.
    async fn run(&self, mut sub: SubSocket, mut states: EndpointStates, stop: CancellationToken) {
        let mut connections = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                status = states.recv() => match status {
                    Some(status) => self.note(&status.state, &mut connections),
                    None => break,
                },
                message = sub.recv() => match message {
                    Ok(message) => self.hand_out(&message),
                    Err(_) => break,
                },
            }
        }
        self.push.close().await;
        sub.close().await;
    }

    /// How the connection by which changes come is doing.
    fn note(&self, now: &EndpointState, connections: &mut u64) {
        let was_up = self.state.borrow().connection().is_some();
        let state = match now {
            EndpointState::Ready => {
                *connections += 1;
                LinkState::Up(*connections)
            }
            EndpointState::Backoff { cause, .. } => LinkState::Down(cause.to_string()),
            _ if was_up => LinkState::Down("the connection was lost".to_owned()),
            _ => return,
        };
        self.state.send_replace(state);
    }

    fn hand_out(&self, message: &Message) {
        let body = message.frame(1).unwrap_or_default();
        let topic = message.topic();
        let understood = if topic.starts_with(REPLIES.as_bytes()) {
            wire::Reply::decode(body).map(|reply| self.hand_out_reply(reply))
        } else if topic.starts_with(CHANGES.as_bytes()) {
            wire::Change::decode(body).map(|change| self.hand_out_change(&change))
        } else {
            wire::Revisions::decode(body).map(|revisions| self.hand_out_revisions(&revisions))
        };
        // nothing is lost by it: a request is repeated, and a change is missed by its revision
        if let Err(error) = understood {
            let topic = String::from_utf8_lossy(topic);
            tracing::warn!(%topic, %error, "a message that no directory sends");
        }
    }

    fn hand_out_reply(&self, reply: wire::Reply) {
        let waiting = lock(&self.waiting).remove(&reply.id);
        // nobody waits for the second reply to a request that was repeated
        if let Some(waiting) = waiting {
            drop(waiting.send(reply));
        }
    }

    fn hand_out_change(&self, change: &wire::Change) {
        let place = Place { epoch: change.epoch, revision: change.revision };
        // a topic is matched by its beginning, which other tables may have too
        let mut followers = lock(&self.followers);
        for followed in followers.iter_mut().filter(|followed| followed.table == change.table) {
            followed.newest = Some(place);
            followed.feed.push(News::Changed(change.clone()));
        }
    }

    fn hand_out_revisions(&self, revisions: &wire::Revisions) {
        for followed in lock(&self.followers).iter_mut() {
            let revision = revisions.tables.get(&followed.table).copied().unwrap_or(0);
            let place = Place { epoch: revisions.epoch, revision };
            if followed.newest != Some(place) {
                followed.newest = Some(place);
                followed.feed.push(News::At(place));
            }
        }
    }
}

/// A table's news, while they are asked for.
struct Following {
    link: Arc<Link>,
    topic: String,
    news: Intake<News>,
    state: watch::Receiver<LinkState>,
}

impl Following {
    fn begin(link: &Arc<Link>, table: &str) -> Result<Self, DirectoryError> {
        let topic = table_topic(table);
        link.sub.subscribe(&topic).map_err(|_| DirectoryError::Closed)?;
        let (feed, news) = queue();
        let mut followers = lock(&link.followers);
        followers.push(Followed { table: table.to_owned(), feed, newest: None });
        drop(followers);
        Ok(Self { link: link.clone(), topic, news, state: link.state.subscribe() })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        lock(&self.link.followers).retain(|followed| followed.feed.is_open());
        // a closed socket has no subscriptions
        drop(self.link.sub.unsubscribe(&self.topic));
    }
}

/// A stream of changes.
struct Follower {
    inner: Arc<Inner>,
    table: String,
    following: Option<Following>,
    /// What the stream has told so far, and by which connection; `None`: the table has to be listed.
    known: Option<(Place, u64)>,
    /// [`Change::Lost`] was told and nothing since.
    lost: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<Change> {
        loop {
            let closed = self.inner.closed.clone();
            let change = tokio::select! {
                biased;
                () = closed.cancelled() => return None,
                change = self.advance() => change,
            };
            match change {
                Ok(Some(change)) => return Some(change),
                Ok(None) => {}
                Err(DirectoryError::Closed) => return None,
                Err(error) => {
                    self.known = None;
                    if !std::mem::replace(&mut self.lost, true) {
                        return Some(Change::Lost { reason: error.to_string() });
                    }
                    // a refusal comes at once
                    tokio::select! {
                        () = closed.cancelled() => return None,
                        () = sleep(REPEAT) => {}
                    }
                }
            }
        }
    }

    /// One step; `None` if there is nothing to tell about it.
    async fn advance(&mut self) -> Result<Option<Change>, DirectoryError> {
        if self.following.is_none() {
            self.following = Some(Following::begin(self.inner.link().await?, &self.table)?);
        }
        let Self { inner, table, following: Some(following), known, lost } = self else {
            return Ok(None);
        };
        let Following { news, state, .. } = following;
        let Some((place, connection)) = *known else {
            let listing = async {
                let connection = when(state, LinkState::connection).await;
                // what is in it was there before the list will be made
                news.clear();
                let (place, rows) = inner.list(table).await?;
                Ok((place, connection, rows))
            };
            let (place, connection, rows) = tokio::select! {
                biased;
                reason = when(state, LinkState::fault), if !*lost => {
                    return Err(DirectoryError::Unreachable { at: inner.at.clone(), reason });
                }
                listed = listing => listed?,
            };
            (*known, *lost) = (Some((place, connection)), false);
            return Ok(Some(Change::All(rows)));
        };
        let another = |now: &LinkState| (now.connection() != Some(connection)).then_some(());
        let taken = tokio::select! {
            biased;
            taken = news.next() => taken,
            () = when(state, another) => Taken::Missed,
        };
        let step = match taken {
            Taken::Item(news) => step(place, news),
            Taken::Missed => Step::Gap,
        };
        match step {
            Step::Known => Ok(None),
            Step::Next(place, change) => {
                *known = Some((place, connection));
                Ok(Some(change))
            }
            Step::Gap => {
                *known = None;
                Ok(None)
            }
        }
    }
}

/// Resolves with what a state of the link gives, once it gives something.
async fn when<T>(
    state: &watch::Receiver<LinkState>,
    wanted: impl Fn(&LinkState) -> Option<T>,
) -> T {
    let mut state = state.clone();
    loop {
        let found = wanted(&state.borrow_and_update());
        if let Some(found) = found {
            return found;
        }
        if state.changed().await.is_err() {
            pending::<()>().await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a request is tried.
const DEADLINE: Duration = Duration::from_secs(5);
/// After this a request is sent again.
const REPEAT: Duration = Duration::from_secs(1);
