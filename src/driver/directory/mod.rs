//! Who publishes where: tables of rows that publishers keep and subscribers follow. It stands for
//! what Dragonflow keeps in its north-bound database.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
mod failover;
mod follow;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod memory;
mod protocol;
mod publisher_row;
mod queue;
#[cfg(feature = "redis")]
mod redis;
mod server;
mod snapshot;
mod table;
mod views;

pub use embedded::EmbeddedDirectory;
#[cfg(feature = "etcd")]
pub use etcd::EtcdDirectory;
pub use failover::FailoverDirectory;
pub use memory::MemoryDirectory;
pub use publisher_row::{PublisherRow, RowError, TABLE, dragonflow_publisher_id, publisher_id};
#[cfg(feature = "redis")]
pub use redis::RedisDirectory;
pub use server::{DirectoryServer, DirectoryServerOptions, DirectoryStats};
pub use table::Limits;

/// The rows of a table, by key; a row is JSON text.
pub type Rows = BTreeMap<String, String>;

/// A store of tables of rows, such as `publisher`.
///
/// Losing one never stops traffic that flows: see [`watch`](Directory::watch).
pub trait Directory: Send + Sync + fmt::Debug {
    /// The row, if there is one.
    fn get<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<Option<String>, DirectoryError>>;

    /// Every row of a table; none if there is no such table.
    fn list<'a>(&'a self, table: &'a str) -> BoxFuture<'a, Result<Rows, DirectoryError>>;

    /// Writes a row, new or not.
    fn put<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
        value: &'a str,
    ) -> BoxFuture<'a, Result<(), DirectoryError>>;

    /// Removes a row; tells whether there was one.
    fn delete<'a>(
        &'a self,
        table: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<bool, DirectoryError>>;

    /// Follows a table: first [`Change::All`], then what changes, then [`Change::All`] again whenever
    /// something may have been missed. It never ends by itself: while the directory cannot be
    /// reached nothing comes but [`Change::Lost`], once.
    fn watch(&self, table: &str) -> BoxStream<'static, Change>;

    /// Gives back what it holds; what is done afterwards fails.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Something that happened to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The whole table as it is now.
    All(Rows),
    /// A row is new or has changed.
    Set {
        /// Its key.
        key: String,
        /// The row.
        value: String,
    },
    /// A row is gone.
    Deleted {
        /// Its key.
        key: String,
    },
    /// The directory cannot be reached; [`Change::All`] follows when it is back.
    Lost {
        /// Why, for a log.
        reason: String,
    },
}

/// Why a directory did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// It does not answer.
    #[error("the directory at {at} cannot be reached: {reason}; is it running there?")]
    Unreachable {
        /// Its address.
        at: String,
        /// Why.
        reason: String,
    },
    /// It answered that it cannot.
    #[error("the directory at {at} refused: {reason}")]
    Refused {
        /// Its address.
        at: String,
        /// Why.
        reason: String,
    },
    /// The address is not one of a directory.
    #[error("{uri:?} is no address of a directory: {expected}")]
    Address {
        /// What was given.
        uri: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A server cannot use the file that it is to keep its tables in.
    #[error("the directory's snapshot {}: {reason}", .path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A server cannot listen.
    #[error("a directory cannot be served at {at}: {reason}")]
    Listen {
        /// The address.
        at: String,
        /// Why.
        reason: String,
    },
    /// It was closed.
    #[error("the directory was closed")]
    Closed,
}

/// The directory at an address, or of several addresses one that goes on while any of them does.
///
/// | address | directory |
/// | --- | --- |
/// | `tcp://HOST:PORT` | served by `dragonwire directory` or a [`DirectoryServer`]: [`EmbeddedDirectory`] |
/// | `etcd://HOST:PORT[,HOST:PORT]...` | in etcd, by its members: `EtcdDirectory`, of the feature `etcd` |
/// | `memory:NAME` | within this process, shared by all who name it: [`MemoryDirectory`] |
///
/// Nothing is connected to yet.
///
/// # Errors
/// [`DirectoryError::Address`] if there is no address or one is none of these.
pub fn connect(uris: &[String]) -> Result<Arc<dyn Directory>, DirectoryError> {
    let mut directories =
        uris.iter().map(|uri| connect_one(uri)).collect::<Result<Vec<_>, DirectoryError>>()?;
    match directories.pop() {
        Some(only) if directories.is_empty() => Ok(only),
        Some(last) => {
            directories.push(last);
            Ok(Arc::new(FailoverDirectory::new(directories)))
        }
        None => Err(DirectoryError::Address { uri: String::new(), expected: ADDRESSES }),
    }
}

/// The address as it may be shown to anybody: without the password, if there is one.
///
/// ```
/// use dragonwire::driver::directory::without_password;
///
/// assert_eq!(without_password("redis://me:secret@host:6379/1"), "redis://***@host:6379/1");
/// ```
#[must_use]
pub fn without_password(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").map_or(("", uri), |(scheme, rest)| (scheme, rest));
    match rest.rsplit_once('@') {
        Some((_, place)) if scheme.is_empty() => format!("***@{place}"),
        Some((_, place)) => format!("{scheme}://***@{place}"),
        None => uri.to_owned(),
    }
}

fn connect_one(uri: &str) -> Result<Arc<dyn Directory>, DirectoryError> {
    let expected = if uri.starts_with("tcp://") {
        return Ok(Arc::new(EmbeddedDirectory::new(uri)?));
    } else if let Some(name) = uri.strip_prefix("memory:") {
        return Ok(Arc::new(MemoryDirectory::named(name)));
    } else if uri.starts_with("etcd://") {
        #[cfg(feature = "etcd")]
        return Ok(Arc::new(EtcdDirectory::new(uri)?));
        #[cfg(not(feature = "etcd"))]
        "directories in etcd are not built in: that needs the feature `etcd`"
    } else if uri.starts_with("redis://") || uri.starts_with("redis+sentinel://") {
        #[cfg(feature = "redis")]
        return Ok(Arc::new(RedisDirectory::new(uri)?));
        #[cfg(not(feature = "redis"))]
        "directories in Redis are not built in: that needs the feature `redis`"
    } else {
        ADDRESSES
    };
    Err(DirectoryError::Address { uri: uri.to_owned(), expected })
}

const ADDRESSES: &str =
    "tcp://HOST:PORT, memory:NAME, redis://HOST:PORT/DATABASE or etcd://HOST:PORT,HOST:PORT";
