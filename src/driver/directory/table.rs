//! The tables themselves, without IO: what a write changes, what is too large, and the revisions by
//! which a follower notices that a change is missing.

use std::collections::BTreeMap;

use super::Rows;

/// How large a directory may grow; what would exceed it is refused. Text is counted in octets of
/// UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Octets of a table's name. Default 255.
    pub table_octets: usize,
    /// Octets of a key. Default 1024.
    pub key_octets: usize,
    /// Octets of a row. Default 64 KiB; more than 1 MiB counts as that.
    pub value_octets: usize,
    /// Tables that have rows. Default 256.
    pub tables: usize,
    /// Rows of all tables. Default 100 000; more than a million counts as that.
    pub rows: usize,
    /// Octets of all keys and rows. Default 64 MiB; more than 128 MiB counts as that.
    pub octets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            table_octets: 255,
            key_octets: 1024,
            value_octets: 64 << 10,
            tables: 256,
            rows: 100_000,
            octets: 64 << 20,
        }
    }
}

/// Why a write is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Exceeded {
    #[error("the table's name is empty")]
    NoTable,
    #[error("the key is empty")]
    NoKey,
    #[error("the table's name has {octets} octets; at most {limit} are taken")]
    Table { octets: usize, limit: usize },
    #[error("the key has {octets} octets; at most {limit} are taken")]
    Key { octets: usize, limit: usize },
    #[error("the row has {octets} octets; at most {limit} are taken")]
    Value { octets: usize, limit: usize },
    #[error("there are {limit} tables already; no more are taken")]
    Tables { limit: usize },
    #[error("there are {limit} rows already; no more are taken")]
    Rows { limit: usize },
    #[error("all keys and rows would have more than {limit} octets")]
    Octets { limit: usize },
}

/// A row that was written or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) table: String,
    pub(super) key: String,
    /// The table's revision before; 0: it had no rows.
    pub(super) previous: u64,
    /// The table's revision now.
    pub(super) revision: u64,
    pub(super) before: Option<String>,
    pub(super) value: Option<String>,
}

#[derive(Debug, Default)]
struct Table {
    revision: u64,
    rows: Rows,
}

/// All tables.
#[derive(Debug)]
pub(super) struct Tables {
    limits: Limits,
    /// A table that is empty keeps its revision until its place is needed.
    tables: BTreeMap<String, Table>,
    /// The newest change's; never used twice, so that a table that was forgotten in between is not
    /// taken for the one it was.
    revision: u64,
    rows: usize,
    octets: usize,
}

impl Tables {
    pub(super) fn new(mut limits: Limits) -> Self {
        limits.value_octets = limits.value_octets.min(MAX_VALUE);
        limits.key_octets = limits.key_octets.min(MAX_NAME);
        limits.table_octets = limits.table_octets.min(MAX_NAME);
        limits.rows = limits.rows.min(MAX_ROWS);
        limits.octets = limits.octets.min(MAX_OCTETS);
        Self { limits, tables: BTreeMap::new(), revision: 0, rows: 0, octets: 0 }
    }

    /// With rows that were accepted before and stay, even if they exceed the limits of now.
    pub(super) fn with_rows(limits: Limits, stored: BTreeMap<String, Rows>) -> Self {
        let mut tables = Self::new(limits);
        for (name, rows) in stored {
            tables.revision += 1;
            tables.rows += rows.len();
            tables.octets += rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
            tables.tables.insert(name, Table { revision: tables.revision, rows });
        }
        tables
    }

    pub(super) fn get(&self, table: &str, key: &str) -> Option<&str> {
        self.tables.get(table)?.rows.get(key).map(String::as_str)
    }

    /// A table's revision and rows.
    pub(super) fn list(&self, table: &str) -> (u64, Rows) {
        let table = self.tables.get(table);
        table.map(|table| (table.revision, table.rows.clone())).unwrap_or_default()
    }

    /// Writes a row. One that is there already as it is given changes nothing.
    pub(super) fn put(
        &mut self,
        table: &str,
        key: &str,
        value: &str,
    ) -> Result<Option<Changed>, Exceeded> {
        self.check_sizes(table, key, value)?;
        let before = self.get(table, key).map(str::to_owned);
        if before.as_deref() == Some(value) {
            return Ok(None);
        }
        let replaced = before.as_ref().map_or(0, |before| key.len() + before.len());
        if self.octets - replaced + key.len() + value.len() > self.limits.octets {
            return Err(Exceeded::Octets { limit: self.limits.octets });
        }
        if before.is_none() && self.rows >= self.limits.rows {
            return Err(Exceeded::Rows { limit: self.limits.rows });
        }
        if !self.tables.contains_key(table) {
            self.make_room_for_a_table()?;
        }
        Ok(Some(self.change(table, key, Some(value.to_owned()))))
    }

    /// Removes a row, if there is one.
    pub(super) fn delete(&mut self, table: &str, key: &str) -> Option<Changed> {
        self.get(table, key)?;
        Some(self.change(table, key, None))
    }

    /// Undoes the newest change that is not undone yet. Its revision is not used again.
    pub(super) fn undo(&mut self, changed: Changed) {
        let Changed { table, key, previous, before, .. } = changed;
        self.set(&table, &key, before);
        if let Some(entry) = self.tables.get_mut(&table) {
            entry.revision = previous;
        }
    }

    /// Each table's name and revision.
    pub(super) fn revisions(&self) -> BTreeMap<String, u64> {
        self.tables.iter().map(|(name, table)| (name.clone(), table.revision)).collect()
    }

    /// Each table that has rows, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Rows)> {
        let tables = self.tables.iter().map(|(name, table)| (name.as_str(), &table.rows));
        tables.filter(|(_, rows)| !rows.is_empty())
    }

    /// Rows of all tables, and the octets of their keys and values.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.rows, self.octets)
    }

    fn check_sizes(&self, table: &str, key: &str, value: &str) -> Result<(), Exceeded> {
        let Limits { table_octets, key_octets, value_octets, .. } = self.limits;
        if table.is_empty() {
            return Err(Exceeded::NoTable);
        }
        if key.is_empty() {
            return Err(Exceeded::NoKey);
        }
        if table.len() > table_octets {
            return Err(Exceeded::Table { octets: table.len(), limit: table_octets });
        }
        if key.len() > key_octets {
            return Err(Exceeded::Key { octets: key.len(), limit: key_octets });
        }
        if value.len() > value_octets {
            return Err(Exceeded::Value { octets: value.len(), limit: value_octets });
        }
        Ok(())
    }

    fn make_room_for_a_table(&mut self) -> Result<(), Exceeded> {
        if self.tables.len() >= self.limits.tables {
            self.tables.retain(|_, table| !table.rows.is_empty());
        }
        if self.tables.len() >= self.limits.tables {
            return Err(Exceeded::Tables { limit: self.limits.tables });
        }
        Ok(())
    }

    fn change(&mut self, table: &str, key: &str, value: Option<String>) -> Changed {
        self.revision += 1;
        let revision = self.revision;
        let before = self.set(table, key, value.clone());
        let entry = self.tables.entry(table.to_owned()).or_default();
        let previous = std::mem::replace(&mut entry.revision, revision);
        Changed { table: table.to_owned(), key: key.to_owned(), previous, revision, before, value }
    }

    /// Puts a row in its place or removes it; returns what was there.
    fn set(&mut self, table: &str, key: &str, value: Option<String>) -> Option<String> {
        let rows = &mut self.tables.entry(table.to_owned()).or_default().rows;
        if let Some(value) = &value {
            self.rows += 1;
            self.octets += key.len() + value.len();
        }
        let before = match value {
            Some(value) => rows.insert(key.to_owned(), value),
            None => rows.remove(key),
        };
        if let Some(before) = &before {
            self.rows -= 1;
            self.octets -= key.len() + before.len();
        }
        before
    }
}

/// A row fits into one request, with its key and table.
const MAX_VALUE: usize = 1 << 20;
/// A name likewise.
const MAX_NAME: usize = 64 << 10;
/// All rows in one table fit into one reply, with what the encoding adds to each.
const MAX_ROWS: usize = 1_000_000;
/// See [`MAX_ROWS`].
pub(super) const MAX_OCTETS: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(change: impl FnOnce(&mut Limits)) -> Tables {
        let mut limits = Limits::default();
        change(&mut limits);
        Tables::new(limits)
    }

    #[test]
    fn each_change_of_a_table_names_the_one_before() {
        let mut tables = tables(|_| ());
        let first = tables.put("a", "k", "1").unwrap().unwrap();
        let other = tables.put("b", "k", "1").unwrap().unwrap();
        let second = tables.delete("a", "k").unwrap();
        assert_eq!((first.previous, first.revision), (0, 1));
        assert_eq!((other.previous, other.revision), (0, 2));
        assert_eq!((second.previous, second.revision), (1, 3));
        assert_eq!((second.before.as_deref(), second.value), (Some("1"), None));
        assert_eq!(tables.list("a"), (3, Rows::new()));
        assert_eq!(tables.list("none"), (0, Rows::new()));
        assert_eq!(tables.revisions(), [("a".to_owned(), 3), ("b".to_owned(), 2)].into());
    }

    #[test]
    fn what_changes_nothing_is_no_change() {
        let mut tables = tables(|_| ());
        assert!(tables.put("a", "k", "1").unwrap().is_some());
        assert_eq!(tables.put("a", "k", "1"), Ok(None));
        assert_eq!(tables.delete("a", "other"), None);
        assert_eq!(tables.delete("other", "k"), None);
        assert_eq!(tables.list("a").0, 1);
    }

    #[test]
    fn changes_are_undone_newest_first() {
        let mut tables = tables(|_| ());
        tables.put("a", "k", "1").unwrap();
        let changes = [
            tables.put("a", "k", "22").unwrap().unwrap(),
            tables.put("a", "l", "3").unwrap().unwrap(),
            tables.delete("a", "k").unwrap(),
            tables.put("b", "k", "4").unwrap().unwrap(),
        ];
        changes.into_iter().rev().for_each(|change| tables.undo(change));
        assert_eq!(tables.list("a"), (1, [("k".to_owned(), "1".to_owned())].into()));
        assert_eq!(tables.list("b"), (0, Rows::new()));
        assert_eq!(tables.size(), (1, 2));
        assert_eq!(tables.put("b", "k", "4").unwrap().unwrap().revision, 6);
    }

    #[test]
    fn what_is_too_large_is_refused_and_leaves_all_as_it_was() {
        let mut tables = tables(|limits| {
            limits.table_octets = 2;
            limits.key_octets = 3;
            limits.value_octets = 4;
            limits.tables = 2;
            limits.rows = 3;
            limits.octets = 12;
        });
        let mut refused = |table, key, value| tables.put(table, key, value).unwrap_err();
        assert_eq!(refused("", "k", "v"), Exceeded::NoTable);
        assert_eq!(refused("t", "", "v"), Exceeded::NoKey);
        assert_eq!(refused("ttt", "k", "v"), Exceeded::Table { octets: 3, limit: 2 });
        assert_eq!(refused("t", "kkkk", "v"), Exceeded::Key { octets: 4, limit: 3 });
        assert_eq!(refused("t", "k", "vvvvv"), Exceeded::Value { octets: 5, limit: 4 });
        tables.put("t", "1", "v").unwrap();
        tables.put("u", "2", "v").unwrap();
        assert_eq!(tables.put("w", "3", "v"), Err(Exceeded::Tables { limit: 2 }));
        tables.put("u", "3", "v").unwrap();
        assert_eq!(tables.put("u", "4", "v"), Err(Exceeded::Rows { limit: 3 }));
        tables.put("u", "2", "vvvv").unwrap();
        tables.put("u", "3", "vvvv").unwrap();
        assert_eq!(tables.size(), (3, 12));
        assert_eq!(tables.put("t", "1", "vv"), Err(Exceeded::Octets { limit: 12 }));
        assert_eq!(tables.get("t", "1"), Some("v"));
        // the place of a table without rows is free
        tables.delete("t", "1").unwrap();
        assert_eq!(tables.put("w", "1", "v").unwrap().unwrap().previous, 0);
        assert_eq!(tables.list("t").0, 0);
    }

    #[test]
    fn stored_rows_count() {
        let rows: Rows = [("k".to_owned(), "v".to_owned())].into();
        let tables = Tables::with_rows(Limits::default(), [("t".to_owned(), rows.clone())].into());
        assert_eq!(tables.size(), (1, 2));
        assert_eq!(tables.list("t"), (1, rows.clone()));
        assert_eq!(tables.iter().collect::<Vec<_>>(), [("t", &rows)]);
    }
}
