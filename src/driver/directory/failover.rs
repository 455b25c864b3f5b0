//! Several directories as one that goes on while any of them does.
//!
//! Each has a keeper, a task that makes this process's writes there, one after the other: when they
//! are asked for, and again when the directory comes back without them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::{self, BoxStream, FuturesUnordered, SelectAll, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::views::Views;
use super::{Change, Directory, DirectoryError, Rows};

/// Several directories as one that goes on while any of them does.
///
/// A write goes to all of them and is done when one has taken it. What the others did not take they
/// are given when they are back, and rows that one has lost meanwhile are written again; of rows that
/// processes write to the same key the last one to come wins. A write that no directory took is an
/// error and is still made by the first that comes back, unless a newer one has taken its place.
///
/// Rows are read from the directory that answered last, at first the first one, unless it is known to
/// be away or behind; when it does not answer within a second the next is asked as well. A stream of changes follows one directory until
/// that is lost, and then another that can be reached: [`Change::All`] comes in between.
pub struct FailoverDirectory {
    shared: Arc<Shared>,
    stop_when_dropped: Arc<DropGuard>,
}

struct Shared {
    directories: Vec<Arc<dyn Directory>>,
    state: Mutex<State>,
    /// Is sent to with each write and each outcome of one.
    news: watch::Sender<()>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// The number of the newest write.
    writes: u64,
    /// This process's rows, and what it removed and some directory does not know of.
    own: BTreeMap<Name, Own>,
    /// By directory.
    away: Vec<Option<Away>>,
    /// The one that was read from last: one that comes back may lack what others wrote meanwhile.
    read: usize,
    /// The keepers have been started.
    kept: bool,
}

/// Table and key.
type Name = (String, String);

/// The newest write of a row.
#[derive(Debug)]
struct Own {
    write: u64,
    /// `None`: it was removed.
    value: Option<String>,
    /// Those who wait for its outcome.
    waiters: usize,
    /// By directory, the newest write that it has dealt with.
    outcomes: Vec<Option<(u64, Result<bool, DirectoryError>)>>,
}

/// A directory cannot be reached.
#[derive(Debug)]
struct Away {
    since: Instant,
    /// The newest write when it was last tried.
    writes: u64,
    error: DirectoryError,
}

impl FailoverDirectory {
    /// The directories in the order in which they are preferred. All of them should be written to by
    /// everybody.
    #[must_use]
    pub fn new(directories: Vec<Arc<dyn Directory>>) -> Self {
        let away = directories.iter().map(|_| None).collect();
        let stop = CancellationToken::new();
        let state = State { writes: 0, own: BTreeMap::new(), away, read: 0, kept: false };
        let shared = Shared {
            directories,
            state: Mutex::new(state),
            news: watch::Sender::new(()),
            stop: stop.clone(),
        };
        Self { shared: Arc::new(shared), stop_when_dropped: Arc::new(stop.drop_guard()) }
    }

    fn check_open(&self) -> Result<(), DirectoryError> {
        if self.shared.stop.is_cancelled() {
            return Err(DirectoryError::Closed);
        }
        match Handle::try_current() {
            Ok(_) => Ok(()),
            Err(error) => Err(unreachable(error.to_string())),
        }
    }

    /// Makes a write. With `every`, waits for all that are not away; tells whether any had the row.
    async fn write(
        &self,
        table: &str,
        key: &str,
        value: Option<&str>,
        every: bool,
    ) -> Result<bool, DirectoryError> {
        self.check_open()?;
        let shared = &self.shared;
        let mut news = shared.news.subscribe();
        let name = (table.to_owned(), key.to_owned());
        let waiter = Waiter::begin(shared, name, value.map(str::to_owned));
        loop {
            let outcome = shared.lock().outcome(&waiter, every);
            if let Some(outcome) = outcome {
                return outcome;
            }
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Err(DirectoryError::Closed),
                _ = news.changed() => {}
            }
        }
    }

    /// The first answer of any.
    async fn read<'a, T>(
        &self,
        ask: impl Fn(Arc<dyn Directory>) -> BoxFuture<'a, Result<T, DirectoryError>>,
    ) -> Result<T, DirectoryError> {
        self.check_open()?;
        let shared = &self.shared;
        let mut order = shared.lock().reading_order();
        let mut asked = FuturesUnordered::new();
        let mut failure = unreachable("none is named".to_owned());
        loop {
            if let Some(index) = order.pop_front()
                && let Some(directory) = shared.directories.get(index)
            {
                let answer = ask(directory.clone());
                asked.push(async move { (index, answer.await) });
            }
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => return Err(DirectoryError::Closed),
                answer = asked.next() => match answer {
                    Some((index, Ok(answer))) => {
                        let mut state = shared.lock();
                        state.is_back(index);
                        state.read = index;
                        return Ok(answer);
                    }
                    Some((index, Err(error))) => {
                        shared.lock().is_away(index, 0, &error);
                        failure = error;
                    }
                    None => return Err(failure),
                },
                () = sleep(PATIENCE), if !order.is_empty() => {}
            }
        }
    }
}

impl fmt::Debug for FailoverDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailoverDirectory")
            .field("directories", &self.shared.directories)
            .finish_non_exhaustive()
    }
}

impl Directory for FailoverDirectory {
    fn get<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, DirectoryError>> {
        self.read(move |directory| async move { directory.get(table, key).await }.boxed()).boxed()
    }

    fn list<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Rows, DirectoryError>> {
        self.read(move |directory| async move { directory.list(table).await }.boxed()).boxed()
    }

    fn put<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        async move { self.write(table, key, Some(value), false).await.map(drop) }.boxed()
    }

    fn delete<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<bool, DirectoryError>> {
        self.write(table, key, None, true).boxed()
    }

    fn watch(&self, table: &str) -> BoxStream<'static, Change> {
        let streams = self.shared.directories.iter().enumerate().map(|(index, directory)| {
            // a directory that was closed by somebody else is lost
            let end = Change::Lost { reason: DirectoryError::Closed.to_string() };
            let changes = directory.watch(table).chain(stream::once(async { end }));
            changes.map(move |change| (index, change)).boxed()
        });
        let follower = Follower {
            changes: stream::select_all(streams),
            views: Views::new(self.shared.directories.len()),
            stop: self.shared.stop.clone(),
            _stop_when_dropped: self.stop_when_dropped.clone(),
        };
        let changes = stream::unfold(follower, |mut follower| async {
            let change = follower.next().await?;
            Some((change, follower))
        });
        changes.fuse().boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        let close = async {
            self.shared.stop.cancel();
            join_all(self.shared.directories.iter().map(|directory| directory.close())).await;
        };
        close.boxed()
    }
}

/// Somebody who waits for the outcome of a write. When dropped the write is still made.
struct Waiter<'a> {
    shared: &'a Arc<Shared>,
    name: Name,
    write: u64,
}

impl<'a> Waiter<'a> {
    fn begin(shared: &'a Arc<Shared>, name: Name, value: Option<String>) -> Self {
        let mut state = shared.lock();
        state.writes += 1;
        let write = state.writes;
        let count = shared.directories.len();
        let own = state.own.entry(name.clone()).or_insert_with(|| Own {
            write,
            value: None,
            waiters: 0,
            outcomes: vec![None; count],
        });
        own.write = write;
        own.value = value;
        own.waiters += 1;
        let kept = std::mem::replace(&mut state.kept, true);
        drop(state);
        if !kept {
            for directory in shared.directories.iter().cloned().enumerate() {
                tokio::spawn(Keeper::new(shared.clone(), directory).run());
            }
        }
        shared.news.send_replace(());
        Self { shared, name, write }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(own) = state.own.get_mut(&self.name) {
            own.waiters -= 1;
        }
        state.forget_if_done(&self.name);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Own {
    fn is_pending(&self, index: usize) -> bool {
        let outcome = self.outcomes.get(index).and_then(Option::as_ref);
        outcome.is_none_or(|(write, _)| *write < self.write)
    }
}

impl State {
    /// What came of a write, if that is known.
    fn outcome(&self, waiter: &Waiter<'_>, every: bool) -> Option<Result<bool, DirectoryError>> {
        let own = self.own.get(&waiter.name)?;
        let (mut existed, mut refused, mut fault) = (None, None, None);
        let (mut open, mut to_be_tried) = (false, false);
        for (outcome, away) in own.outcomes.iter().zip(&self.away) {
            match (outcome, away) {
                (Some((write, Ok(had))), _) if *write >= waiter.write => {
                    existed = Some(existed.unwrap_or(false) || *had);
                }
                (Some((write, Err(error))), _) if *write >= waiter.write => {
                    refused = Some(error.clone());
                }
                (_, None) => open = true,
                (_, Some(away)) if away.writes >= waiter.write => fault = Some(away.error.clone()),
                (_, Some(_)) => to_be_tried = true,
            }
        }
        match (existed, refused) {
            (Some(existed), _) if existed || !every || !open => Some(Ok(existed)),
            // those that are away are waited for only if nobody else can say anything
            (None, Some(refused)) if !open => Some(Err(refused)),
            (None, None) if !open && !to_be_tried => {
                Some(Err(fault.unwrap_or_else(|| unreachable("none is named".to_owned()))))
            }
            _ => None,
        }
    }

    /// The next write that a directory has to be given, if it is to be tried now.
    fn next_write(&self, index: usize) -> Option<(Name, u64, Option<String>)> {
        if let Some(Some(away)) = self.away.get(index)
            && away.writes >= self.writes
            && away.since.elapsed() < RETRY
        {
            return None;
        }
        let (name, own) = self.own.iter().find(|(_, own)| own.is_pending(index))?;
        Some((name.clone(), own.write, own.value.clone()))
    }

    /// When a directory that is away is to be tried again.
    fn retry_at(&self, index: usize) -> Option<Instant> {
        let away = self.away.get(index)?.as_ref()?;
        let pending = self.own.values().any(|own| own.is_pending(index));
        pending.then(|| away.since + RETRY)
    }

    /// A directory has dealt with a write, or could not be reached; `writes` is the newest one when
    /// it was tried.
    fn settle(
        &mut self,
        index: usize,
        name: &Name,
        write: u64,
        writes: u64,
        outcome: Result<bool, DirectoryError>,
    ) {
        if let Err(error @ DirectoryError::Unreachable { .. }) = &outcome {
            return self.is_away(index, writes, error);
        }
        self.is_back(index);
        if let Err(error) = &outcome {
            tracing::warn!(table = %name.0, key = %name.1, %error, "a row is refused");
        }
        let own = self.own.get_mut(name);
        if let Some(place) = own.and_then(|own| own.outcomes.get_mut(index)) {
            *place = Some((write, outcome));
        }
        self.forget_if_done(name);
    }

    /// What is removed everywhere, or refused everywhere, need not be remembered.
    fn forget_if_done(&mut self, name: &Name) {
        let Some(own) = self.own.get(name) else { return };
        let done = !(0..own.outcomes.len()).any(|index| own.is_pending(index));
        let refused = own.outcomes.iter().flatten().all(|(_, outcome)| outcome.is_err());
        if own.waiters == 0 && done && (own.value.is_none() || refused) {
            self.own.remove(name);
        }
    }

    fn is_back(&mut self, index: usize) {
        if let Some(away) = self.away.get_mut(index) {
            *away = None;
        }
    }

    fn is_away(&mut self, index: usize, writes: u64, error: &DirectoryError) {
        if !matches!(error, DirectoryError::Unreachable { .. }) {
            return;
        }
        if let Some(away) = self.away.get_mut(index) {
            let writes = away.as_ref().map_or(writes, |away| away.writes.max(writes));
            *away = Some(Away { since: Instant::now(), writes, error: error.clone() });
        }
    }

    /// A directory may have lost rows, and has these: what is missing is to be written again.
    fn reconcile(&mut self, index: usize, table: &str, rows: &Rows) {
        for ((_, key), own) in self.own.iter_mut().filter(|((own, _), _)| own == table) {
            let kept = own.value.is_none() || rows.get(key) == own.value.as_ref();
            if let Some(outcome) = own.outcomes.get_mut(index).filter(|_| !kept) {
                *outcome = None;
            }
        }
    }

    /// Those that have this process's writes and are not away first, of these the one read from last,
    /// then in the order given.
    fn reading_order(&self) -> VecDeque<usize> {
        let mut order: Vec<_> = (0..self.away.len()).collect();
        order.sort_by_key(|index| {
            let away = self.away.get(*index).and_then(Option::as_ref);
            let away = away.is_some_and(|away| away.since.elapsed() < AWAY);
            (away, self.own.values().any(|own| own.is_pending(*index)), *index != self.read)
        });
        order.into()
    }
}

/// Makes this process's writes in one directory.
struct Keeper {
    shared: Arc<Shared>,
    index: usize,
    directory: Arc<dyn Directory>,
    /// The tables with rows of this process; `true` once the table's rows have come.
    tables: BTreeMap<String, bool>,
    changes: SelectAll<BoxStream<'static, (String, Change)>>,
}

impl Keeper {
    fn new(shared: Arc<Shared>, (index, directory): (usize, Arc<dyn Directory>)) -> Self {
        Self { shared, index, directory, tables: BTreeMap::new(), changes: SelectAll::new() }
    }

    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        let kept = async {
            let mut news = self.shared.news.subscribe();
            loop {
                self.follow_tables();
                while let Some(Some((table, change))) = self.changes.next().now_or_never() {
                    self.hear(table, &change);
                }
                news.mark_unchanged();
                let (write, writes, retry_at) = {
                    let state = self.shared.lock();
                    (state.next_write(self.index), state.writes, state.retry_at(self.index))
                };
                if let Some((name, write, value)) = write {
                    let outcome = make(&*self.directory, &name, value.as_deref()).await;
                    self.shared.lock().settle(self.index, &name, write, writes, outcome);
                    self.shared.news.send_replace(());
                    continue;
                }
                tokio::select! {
                    _ = news.changed() => {}
                    Some((table, change)) = self.changes.next() => self.hear(table, &change),
                    () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = kept => {}
        }
    }

    /// Follows each table that has rows of this process, in order to notice when they are lost.
    fn follow_tables(&mut self) {
        let state = self.shared.lock();
        let tables: BTreeSet<_> = state.own.keys().map(|(table, _)| table).collect();
        for table in tables {
            if !self.tables.contains_key(table) {
                let name = table.clone();
                let changes = self.directory.watch(table).map(move |change| (name.clone(), change));
                self.changes.push(changes.boxed());
                self.tables.insert(table.clone(), false);
            }
        }
    }

    fn hear(&mut self, table: String, change: &Change) {
        let mut state = self.shared.lock();
        match change {
            Change::All(rows) => {
                state.is_back(self.index);
                // at first there is nothing that it could have lost
                if self.tables.insert(table.clone(), true) == Some(true) {
                    state.reconcile(self.index, &table, rows);
                }
            }
            Change::Lost { reason } => {
                self.tables.insert(table, true);
                state.is_away(self.index, 0, &unreachable(reason.clone()));
            }
            Change::Set { .. } | Change::Deleted { .. } => return,
        }
        drop(state);
        self.shared.news.send_replace(());
    }
}

async fn make(
    directory: &dyn Directory,
    (table, key): &Name,
    value: Option<&str>,
) -> Result<bool, DirectoryError> {
    match value {
        Some(value) => directory.put(table, key, value).await.map(|()| false),
        None => directory.delete(table, key).await,
    }
}

/// A stream of changes.
struct Follower {
    changes: SelectAll<BoxStream<'static, (usize, Change)>>,
    views: Views,
    stop: CancellationToken,
    _stop_when_dropped: Arc<DropGuard>,
}

impl Follower {
    async fn next(&mut self) -> Option<Change> {
        loop {
            let change = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                change = self.changes.next() => change,
            };
            let Some((index, change)) = change else {
                // of no directories nothing comes
                return self.views.move_on("none is named".to_owned());
            };
            if let Some(change) = self.views.take(index, change) {
                return Some(change);
            }
        }
    }
}

fn unreachable(reason: String) -> DirectoryError {
    DirectoryError::Unreachable { at: "one of several addresses".to_owned(), reason }
}

/// How long the first directory may take to answer before the next is asked as well.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a directory that is away is tried while it has to be given something.
const RETRY: Duration = Duration::from_secs(1);
/// How long a directory that could not be reached is not the first to be asked.
const AWAY: Duration = Duration::from_secs(5);
