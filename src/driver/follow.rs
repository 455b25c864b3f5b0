//! Keeps a subscriber connected to the publishers that the directory names: to those of the roles it
//! wants, as they come and go.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::Subscriber;
use super::codec::Position;
use super::directory::{Change, Directory, PublisherRow, Rows, TABLE};
use super::registration::{ENDS, read_ends};
use super::role::Role;
use super::table_monitor::seconds;

/// Follows the publishers in a directory until it is dropped.
///
/// Traffic does not depend on the directory: while it is away, and when it comes back with fewer
/// rows, publishers are followed on until their rows are known to be removed, or for the time after
/// which rows are stale.
#[derive(Debug)]
pub struct Following {
    _task: AbortOnDropHandle<()>,
}

impl Following {
    /// Has `subscriber` follow the publishers whose role is one of `roles`; a row without a role is
    /// one of [`Role::NeutronServer`]. Rows that were not refreshed for `timeout` are stale.
    ///
    /// Returns when the rows that the directory has now are registered, or at once if it cannot be
    /// reached.
    pub async fn start(
        subscriber: Arc<dyn Subscriber>,
        directory: &Arc<dyn Directory>,
        roles: &[Role],
        timeout: Duration,
    ) -> Self {
        let events = futures::stream::pending().boxed();
        Self::start_with(subscriber, Some(directory), roles, timeout, events).await
    }

    /// The same, with rows that are told of by `events` as well, or alone.
    pub(crate) async fn start_with(
        subscriber: Arc<dyn Subscriber>,
        directory: Option<&Arc<dyn Directory>>,
        roles: &[Role],
        timeout: Duration,
        events: BoxStream<'static, Change>,
    ) -> Self {
        let mut follower = Follower {
            subscriber,
            roles: roles.to_vec(),
            timeout,
            followed: HashMap::new(),
            ends: VecDeque::new(),
        };
        let watch = |table| match directory {
            Some(directory) => directory.watch(table),
            None => futures::stream::pending().boxed(),
        };
        let (mut publishers, ends) = (watch(TABLE), watch(ENDS));
        if directory.is_some()
            && let Some(first) = publishers.next().await
        {
            follower.take(first).await;
        }
        let publishers = futures::stream::select(publishers, events).boxed();
        Self { _task: AbortOnDropHandle::new(tokio::spawn(follower.run(publishers, ends))) }
    }
}

struct Follower {
    subscriber: Arc<dyn Subscriber>,
    roles: Vec<Role>,
    timeout: Duration,
    /// By the key of the row.
    followed: HashMap<String, Followed>,
    /// Ends of streams that are to be told, and when.
    ends: VecDeque<(Instant, Vec<Position>)>,
}

#[derive(Debug)]
struct Followed {
    uri: String,
    /// The row is not there: it may be written again by its publisher until then.
    missing_until: Option<Instant>,
    /// Nobody else had registered the address.
    is_ours: bool,
}

impl Follower {
    async fn run(
        mut self,
        mut publishers: BoxStream<'static, Change>,
        mut ends: BoxStream<'static, Change>,
    ) {
        loop {
            let missing = self.followed.values().filter_map(|row| row.missing_until).min();
            let deadline = missing.into_iter().chain(self.ends.front().map(|(due, _)| *due)).min();
            let expired = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = publishers.next() => match change {
                    Some(change) => self.take(change).await,
                    None => return,
                },
                Some(change) = ends.next() => self.take_ends(change),
                () = expired => {
                    self.give_up().await;
                    self.tell_ends();
                }
            }
        }
    }

    async fn take(&mut self, change: Change) {
        match change {
            Change::All(rows) => self.take_all(rows).await,
            Change::Set { key, value } => self.set(key, &value).await,
            Change::Deleted { key } => {
                // what it sent before may still be read, and it may be only restarting
                let until = Instant::now() + SETTLING.min(self.timeout);
                if let Some(followed) = self.followed.get_mut(&key) {
                    followed.missing_until = Some(until);
                }
            }
            Change::Lost { reason } => {
                tracing::warn!(reason, "the directory is away; known publishers are followed on");
            }
        }
    }

    async fn take_all(&mut self, rows: Rows) {
        let until = Instant::now() + self.timeout;
        for (key, followed) in &mut self.followed {
            if !rows.contains_key(key) {
                followed.missing_until.get_or_insert(until);
            }
        }
        for (key, value) in rows {
            self.set(key, &value).await;
        }
    }

    async fn set(&mut self, key: String, value: &str) {
        let row = match PublisherRow::from_json(&key, value) {
            Ok(row) => row,
            Err(error) => {
                tracing::warn!(key, %error, "a publisher's row cannot be read");
                return;
            }
        };
        let wanted = row.followed_as().is_some_and(|role| self.roles.contains(&role));
        if !wanted || row.uri.is_empty() {
            return self.remove(&key).await;
        }
        let known = self.followed.contains_key(&key);
        let uri = row.uri.clone();
        // one that is followed may be late, but it lives until it is removed
        if !known && row.is_stale(seconds(SystemTime::now()), self.timeout) {
            return;
        }
        if self.followed.get(&key).is_some_and(|followed| followed.uri != uri) {
            self.remove(&key).await;
        }
        if let Some(followed) = self.followed.get_mut(&key) {
            followed.missing_until = None;
            return;
        }
        match self.subscriber.register_listen_address(&uri).await {
            Ok(is_ours) => {
                tracing::info!(key, uri, "a publisher is followed");
                self.followed.insert(key, Followed { uri, missing_until: None, is_ours });
            }
            Err(error) => tracing::warn!(key, %error, "a publisher's address cannot be used"),
        }
    }

    async fn remove(&mut self, key: &str) {
        let Some(Followed { uri, is_ours, .. }) = self.followed.remove(key) else { return };
        // two rows may name one address
        if let Some(other) = self.followed.values_mut().find(|other| other.uri == uri) {
            other.is_ours |= is_ours;
            return;
        }
        if !is_ours {
            return;
        }
        tracing::info!(key, uri, "a publisher is followed no longer");
        let _ = self.subscriber.unregister_listen_address(&uri).await;
    }

    async fn give_up(&mut self) {
        let now = Instant::now();
        let expired = |row: &Followed| row.missing_until.is_some_and(|until| until <= now);
        let keys: Vec<String> = self
            .followed
            .iter()
            .filter(|(_, row)| expired(row))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.remove(&key).await;
        }
    }

    fn take_ends(&mut self, change: Change) {
        let rows = match change {
            Change::All(rows) => rows,
            Change::Set { key, value } => Rows::from([(key, value)]),
            Change::Deleted { .. } | Change::Lost { .. } => return,
        };
        // what came before the end is to be read first
        let due = Instant::now() + SETTLING;
        self.ends.extend(rows.into_iter().map(|(key, value)| (due, read_ends(&key, &value))));
    }

    fn tell_ends(&mut self) {
        let now = Instant::now();
        while self.ends.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, ends)) = self.ends.pop_front() else { return };
            self.subscriber.learn_ends(&ends);
        }
    }
}

/// How long a publisher whose row is gone is followed, and how soon the end of its streams is told: what
/// it sent before has been read by then.
const SETTLING: Duration = Duration::from_secs(3);
