//! A directory within the process: for tests, and for publishers and subscribers that share one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use tokio_util::sync::CancellationToken;

use super::queue::{Feed, Intake, Taken, queue};
use super::table::{Changed, Exceeded, Limits, Tables};
use super::{Change, Directory, DirectoryError, Rows};

/// A directory within the process. Nothing is stored on disk.
///
/// Clones are handles of the same tables; closing one leaves the others open. Streams of a handle
/// that is closed end.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dragonwire::driver::directory::{Change, Directory, MemoryDirectory};
/// use futures::StreamExt;
///
/// let directory = MemoryDirectory::new();
/// let mut changes = directory.watch("publisher");
/// assert_eq!(changes.next().await, Some(Change::All([].into())));
/// directory.put("publisher", "1", "{}").await?;
/// assert!(matches!(changes.next().await, Some(Change::Set { .. })));
/// # Ok(()) }
/// ```
pub struct MemoryDirectory {
    store: Arc<Mutex<Store>>,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Store {
    tables: Tables,
    watchers: Vec<(String, Feed<Change>)>,
}

impl MemoryDirectory {
    /// Empty tables.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Arc::new(Mutex::new(Store::new())))
    }

    /// The tables of that name in this process; they live as long as a handle or stream of them.
    pub(super) fn named(name: &str) -> Self {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        named.retain(|_, store| store.strong_count() > 0);
        let store = named.get(name).and_then(Weak::upgrade);
        let store = store.unwrap_or_else(|| Arc::new(Mutex::new(Store::new())));
        named.insert(name.to_owned(), Arc::downgrade(&store));
        Self::of(store)
    }

    fn of(store: Arc<Mutex<Store>>) -> Self {
        Self { store, closed: CancellationToken::new() }
    }

    /// Does something to the tables, if this handle is open.
    fn with<'a, T>(
        &'a self,
        act: impl FnOnce(&mut Store) -> Result<T, Exceeded> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, DirectoryError>> {
        let done = async {
            if self.closed.is_cancelled() {
                return Err(DirectoryError::Closed);
            }
            act(&mut lock(&self.store)).map_err(|exceeded| DirectoryError::Refused {
                at: "memory:".to_owned(),
                reason: exceeded.to_string(),
            })
        };
        done.boxed()
    }
}

impl Default for MemoryDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryDirectory {
    fn clone(&self) -> Self {
        Self::of(self.store.clone())
    }
}

impl fmt::Debug for MemoryDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, _) = lock(&self.store).tables.size();
        let closed = self.closed.is_cancelled();
        f.debug_struct("MemoryDirectory").field("rows", &rows).field("closed", &closed).finish()
    }
}

impl Directory for MemoryDirectory {
    fn get<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, DirectoryError>> {
        self.with(move |store| Ok(store.tables.get(table, key).map(str::to_owned)))
    }

    fn list<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Rows, DirectoryError>> {
        self.with(move |store| Ok(store.tables.list(table).1))
    }

    fn put<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), DirectoryError>> {
        self.with(move |store| {
            let changed = store.tables.put(table, key, value)?;
            changed.into_iter().for_each(|changed| store.tell(changed));
            Ok(())
        })
    }

    fn delete<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<bool, DirectoryError>> {
        self.with(move |store| {
            let changed = store.tables.delete(table, key);
            let existed = changed.is_some();
            changed.into_iter().for_each(|changed| store.tell(changed));
            Ok(existed)
        })
    }

    fn watch(&self, table: &str) -> BoxStream<'static, Change> {
        let follower = Follower {
            store: self.store.clone(),
            closed: self.closed.clone(),
            table: table.to_owned(),
            intake: None,
        };
        let changes = stream::unfold(follower, |mut follower| async {
            let change = follower.next().await?;
            Some((change, follower))
        });
        changes.fuse().boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async { self.closed.cancel() }.boxed()
    }
}

impl Store {
    fn new() -> Self {
        Self { tables: Tables::new(Limits::default()), watchers: Vec::new() }
    }

    fn tell(&mut self, changed: Changed) {
        let Changed { table, key, value, .. } = changed;
        let change = match value {
            Some(value) => Change::Set { key, value },
            None => Change::Deleted { key },
        };
        self.watchers.retain(|(_, feed)| feed.is_open());
        let watchers = self.watchers.iter().filter(|(followed, _)| *followed == table);
        watchers.for_each(|(_, feed)| feed.push(change.clone()));
    }
}

/// Somebody who watches a table.
struct Follower {
    store: Arc<Mutex<Store>>,
    closed: CancellationToken,
    table: String,
    intake: Option<Intake<Change>>,
}

impl Follower {
    async fn next(&mut self) -> Option<Change> {
        let Self { store, closed, table, intake } = self;
        if closed.is_cancelled() {
            return None;
        }
        if let Some(intake) = intake {
            let taken = tokio::select! {
                biased;
                () = closed.cancelled() => return None,
                taken = intake.next() => taken,
            };
            if let Taken::Item(change) = taken {
                return Some(change);
            }
        }
        // under one lock, so that nothing falls between the rows and the changes after them
        let mut store = lock(store);
        match intake {
            Some(intake) => intake.clear(),
            None => {
                let (feed, fresh) = queue();
                store.watchers.push((table.clone(), feed));
                *intake = Some(fresh);
            }
        }
        Some(Change::All(store.tables.list(table).1))
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The tables that have a name, for those who connect to them by it.
static NAMED: Mutex<BTreeMap<String, Weak<Mutex<Store>>>> = Mutex::new(BTreeMap::new());
