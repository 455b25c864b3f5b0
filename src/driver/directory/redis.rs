//! A directory that a Redis server keeps: a table is the hash `dragonwire:<table>`, and its changes
//! are told on the channel of the same name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::poll_fn;
use std::time::Duration;

use ::redis::{FromRedisValue, Pipeline, pipe};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Change, Directory, DirectoryError, Rows};
use crate::driver::redis::{
    ANSWER, Backoff, ChannelChange, Channels, Connection, Fault, Heard, STEADY, Servers,
    Unreachable,
};

#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;

/// A directory in a Redis server, stand-alone or behind Sentinels; the nodes of a cluster refuse
/// tables that are not theirs.
///
/// It connects when it is first used, which needs a tokio runtime, and again whenever the connection
/// is lost. A request fails when there is no answer within some seconds; a write may have been done
/// all the same. What others write to the hashes without telling the channel is seen with the next
/// [`Change::All`].
pub struct RedisDirectory {
    servers: Servers,
    at: String,
    link: AsyncMutex<Link>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Link {
    servers: Servers,
    /// With the number of the database.
    connection: Option<(i64, Connection)>,
}

/// What is told on a table's channel. Channels are those of all databases of a server.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    db: i64,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum What {
    /// Without a value the row is gone.
    Row { key: String, value: Option<String> },
    /// Somebody has read the table at this moment.
    Mark { mark: String },
}

impl RedisDirectory {
    /// The directory at `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]`, or at the master that Sentinels
    /// name: `redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DB]`.
    ///
    /// # Errors
    /// [`DirectoryError::Address`].
    pub fn new(uri: &str) -> Result<Self, DirectoryError> {
        let servers = Servers::new([uri]).map_err(|fault| DirectoryError::Address {
            uri: fault.text,
            expected: "redis://[[USER]:PASSWORD@]HOST:PORT[/DB]",
        })?;
        let at = match uri.rsplit_once('@') {
            Some((_, at)) => format!("redis://{at}"),
            None => uri.to_owned(),
        };
        let link = AsyncMutex::new(Link { servers: servers.clone(), connection: None });
        Ok(Self { servers, at, link, closed: CancellationToken::new() })
    }

    /// Has commands done; what they are may depend on the database's number.
    async fn request<T: FromRedisValue>(
        &self,
        commands: impl Fn(i64) -> Pipeline,
    ) -> Result<T, DirectoryError> {
        let asking = async {
            let mut link = self.link.lock().await;
            let reused = link.connection.is_some();
            match link.ask(&commands).await {
                // a connection that was good once: the server may be another one by now
                Err(unreachable) if reused && !unreachable.is_final() => link.ask(&commands).await,
                answered => answered,
            }
        };
        let answered = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(DirectoryError::Closed),
            answered = asking => answered,
        };
        answered.map_err(|unreachable| {
            let (at, reason) = (self.at.clone(), unreachable.reason());
            if unreachable.is_final() {
                DirectoryError::Refused { at, reason }
            } else {
                DirectoryError::Unreachable { at, reason }
            }
        })
    }
}

impl Link {
    async fn ask<T: FromRedisValue>(
        &mut self,
        commands: impl Fn(i64) -> Pipeline,
    ) -> Result<T, Unreachable> {
        let (db, mut connection) = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let (server, connection) = self.servers.connect().await?;
                (server.database(), connection)
            }
        };
        let answer = connection.ask_all(&commands(db)).await;
        if !answer.as_ref().is_err_and(|fault: &Fault| !fault.is_refusal()) {
            self.connection = Some((db, connection));
        }
        Ok(answer?)
    }
}

impl fmt::Debug for RedisDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = self.closed.is_cancelled();
        f.debug_struct("RedisDirectory").field("at", &self.at).field("closed", &closed).finish()
    }
}

fn hash(table: &str) -> String {
    format!("dragonwire:{table}")
}

/// Tells a table's channel.
fn tell(commands: &mut Pipeline, table: &str, db: i64, what: What) {
    // text and numbers, which is always JSON
    let note = serde_json::to_string(&Note { db, what }).unwrap_or_default();
    commands.cmd("PUBLISH").arg(hash(table)).arg(note).ignore();
}

/// The rows of a hash. Those that are not text are nobody's of ours.
fn rows(table: &str, fields: BTreeMap<Vec<u8>, Vec<u8>>) -> Rows {
    let text = |(key, value)| Some((String::from_utf8(key).ok()?, String::from_utf8(value).ok()?));
    let count = fields.len();
    let rows: Rows = fields.into_iter().filter_map(text).collect();
    if rows.len() < count {
        tracing::warn!(table, rows = count - rows.len(), "rows in Redis are not text");
    }
    rows
}

impl Directory for RedisDirectory {
    fn get<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, DirectoryError>> {
        let getting = async move {
            let (row,) =
                self.request(|_| pipe().cmd("HGET").arg(hash(table)).arg(key).clone()).await?;
            Ok(row)
        };
        getting.boxed()
    }

    fn list<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Rows, DirectoryError>> {
        let listing = async move {
            let (fields,) =
                self.request(|_| pipe().cmd("HGETALL").arg(hash(table)).clone()).await?;
            Ok(rows(table, fields))
        };
        listing.boxed()
    }

    fn put<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        let putting = self.request(move |db| {
            let mut commands = pipe();
            commands.atomic().cmd("HSET").arg(hash(table)).arg(key).arg(value).ignore();
            let (key, value) = (key.to_owned(), Some(value.to_owned()));
            tell(&mut commands, table, db, What::Row { key, value });
            commands
        });
        putting.boxed()
    }

    fn delete<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<bool, DirectoryError>> {
        let deleting = async move {
            let (existed,) = self
                .request(move |db| {
                    let mut commands = pipe();
                    commands.atomic().cmd("HDEL").arg(hash(table)).arg(key);
                    let what = What::Row { key: key.to_owned(), value: None };
                    tell(&mut commands, table, db, what);
                    commands
                })
                .await?;
            Ok(existed)
        };
        deleting.boxed()
    }

    fn watch(&self, table: &str) -> BoxStream<'static, Change> {
        let watching = Watching {
            servers: self.servers.clone(),
            table: table.to_owned(),
            closed: self.closed.clone(),
            live: None,
            lost: false,
            backoff: Backoff::new(LONGEST_PAUSE),
        };
        let changes = stream::unfold(watching, |mut watching| async {
            let closed = watching.closed.clone();
            let change = tokio::select! {
                biased;
                () = closed.cancelled() => return None,
                change = watching.next() => change,
            };
            Some((change, watching))
        });
        changes.fuse().boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let closing = async {
            self.closed.cancel();
            self.link.lock().await.connection = None;
        };
        closing.boxed()
    }
}

/// A table that is followed.
struct Watching {
    servers: Servers,
    table: String,
    closed: CancellationToken,
    live: Option<Live>,
    /// It was said that the server cannot be reached.
    lost: bool,
    backoff: Backoff,
}

/// The table as it comes.
struct Live {
    channels: Channels,
    heard: Notes,
    begun: Instant,
    /// Resolves when there is a better server.
    preferred: BoxFuture<'static, ()>,
}

/// What a channel tells of a table, in one of the server's databases.
#[derive(Debug)]
struct Notes {
    db: i64,
    /// The rows that there are.
    keys: BTreeSet<String>,
}

impl Watching {
    async fn next(&mut self) -> Change {
        loop {
            let Some(live) = &mut self.live else {
                sleep(self.backoff.pause()).await;
                match self.begin().await {
                    Ok((live, rows)) => {
                        self.live = Some(live);
                        self.lost = false;
                        return Change::All(rows);
                    }
                    Err(unreachable) => {
                        let reason = unreachable.reason();
                        if !std::mem::replace(&mut self.lost, true) {
                            return Change::Lost { reason };
                        }
                        tracing::debug!(table = self.table, reason, "still no directory in Redis");
                        continue;
                    }
                }
            };
            let heard = tokio::select! {
                biased;
                () = &mut live.preferred => Err("another server is preferred to it".to_owned()),
                heard = heard(&mut live.channels) => heard,
            };
            match heard {
                Ok(Heard::Message(message)) => {
                    if let Some(change) = live.heard.change(message.get_payload_bytes()) {
                        return change;
                    }
                }
                Ok(Heard::Answers(_)) => {}
                Err(reason) => {
                    tracing::warn!(table = self.table, reason, "the directory in Redis is lost");
                    if live.begun.elapsed() >= STEADY {
                        self.backoff.reset();
                    }
                    self.live = None;
                }
            }
        }
    }

    /// Follows the channel and reads the table. What the channel tells up to the moment of reading is
    /// in the table already, so that moment is marked on the channel.
    async fn begin(&mut self) -> Result<(Live, Rows), Unreachable> {
        let (server, mut connection) = self.servers.connect().await?;
        let mut channels = Channels::open(&server).await?;
        let fault = |reason| Fault::gone(&server.address, reason);
        channels.ask(vec![ChannelChange::Subscribe(hash(&self.table))]);
        loop {
            match heard(&mut channels).await.map_err(fault)? {
                Heard::Message(_) => {}
                Heard::Answers(answers) => {
                    for answer in answers {
                        answer.result?;
                    }
                    break;
                }
            }
        }
        let (db, mark) = (server.database(), Uuid::new_v4().to_string());
        let mut commands = pipe();
        commands.atomic().cmd("HGETALL").arg(hash(&self.table));
        tell(&mut commands, &self.table, db, What::Mark { mark: mark.clone() });
        let (fields,) = connection.ask_all(&commands).await?;
        let marked = async {
            loop {
                let Heard::Message(message) = heard(&mut channels).await? else { continue };
                let note = serde_json::from_slice(message.get_payload_bytes());
                if let Ok(Note { what: What::Mark { mark: seen }, .. }) = note
                    && seen == mark
                {
                    return Ok(());
                }
            }
        };
        let marked = timeout(ANSWER, marked).await;
        marked.unwrap_or_else(|_| Err("its channels tell nothing".to_owned())).map_err(fault)?;
        let rows = rows(&self.table, fields);
        let live = Live {
            channels,
            heard: Notes { db, keys: rows.keys().cloned().collect() },
            begun: Instant::now(),
            preferred: self.servers.clone().preferred(server).boxed(),
        };
        Ok((live, rows))
    }
}

impl Notes {
    /// The change that a note tells, if it is one of this table.
    fn change(&mut self, note: &[u8]) -> Option<Change> {
        match serde_json::from_slice(note) {
            Ok(Note { db, .. }) if db != self.db => None,
            Ok(Note { what: What::Mark { .. }, .. }) => None,
            Ok(Note { what: What::Row { key, value: Some(value) }, .. }) => {
                self.keys.insert(key.clone());
                Some(Change::Set { key, value })
            }
            Ok(Note { what: What::Row { key, value: None }, .. }) => {
                self.keys.remove(&key).then_some(Change::Deleted { key })
            }
            Err(error) => {
                tracing::warn!(%error, "a channel of the directory in Redis tells something else");
                None
            }
        }
    }
}

async fn heard(channels: &mut Channels) -> Result<Heard, String> {
    poll_fn(|cx| channels.poll_heard(true, cx)).await
}

const LONGEST_PAUSE: Duration = Duration::from_secs(5);
