//! Who publishes where: tables of rows that publishers keep and subscribers follow. It stands for
//! what Dragonflow keeps in its north-bound database.

mod publisher_row;
#[cfg(feature = "redis")]
mod redis;

use std::collections::BTreeMap;
use std::fmt;

use futures::future::BoxFuture;
use futures::stream::BoxStream;

pub use publisher_row::{PublisherRow, RowError, TABLE, dragonflow_publisher_id, publisher_id};
#[cfg(feature = "redis")]
pub use redis::RedisDirectory;

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
    /// It was closed.
    #[error("the directory was closed")]
    Closed,
}
