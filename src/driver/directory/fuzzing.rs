//! What the fuzz targets `directory` and `directory_answers` do with what comes from outside: requests,
//! answers and rows, and what etcd and Redis say.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::SystemTime;

use prost::Message as Wire;
use serde_json::json;
use uuid::Uuid;

use super::follow::{News, Place, Step, step};
use super::protocol::wire::{self, request::Action};
use super::server::parse;
use super::table::{Changed, Limits, Tables};
use super::{Change, PublisherRow, Rows};
use crate::driver::codec::Position;
use crate::driver::registration::{age_of_end, read_ends};
use crate::framing::split_frame;
use crate::message::Message;

/// What clients are told: what is understood comes back the same.
pub(crate) fn answers(data: &[u8]) {
    fn comes_back<T: Wire + Default + PartialEq + Debug>(data: &[u8]) {
        if let Ok(told) = T::decode(data) {
            assert_eq!(T::decode(&told.encode_to_vec()[..]).as_ref(), Ok(&told));
        }
    }
    comes_back::<wire::Reply>(data);
    comes_back::<wire::Change>(data);
    comes_back::<wire::Revisions>(data);
    comes_back::<wire::Snapshot>(data);
}

/// A row of the table of publishers or of their ends, which anybody may write.
pub(crate) fn row(text: &str) {
    let publisher = Uuid::nil().to_string();
    let ends = read_ends(&publisher, text);
    if let Some(Position { epoch, .. }) = ends.first() {
        let topic = |end: &Position| String::from_utf8(end.topic.to_vec()).expect("it was text");
        let topics: Vec<_> = ends.iter().map(|end| (topic(end), end.last)).collect();
        let written = json!({ "epoch": epoch, "topics": topics, "timestamp": 0 }).to_string();
        assert_eq!(read_ends(&publisher, &written), ends, "{written}");
        assert!(age_of_end(&written, SystemTime::UNIX_EPOCH).is_some_and(|age| age.is_zero()));
    }
    let _ = age_of_end(text, SystemTime::now());
    if let Ok(row) = PublisherRow::from_json("key", text) {
        let written = row.to_json();
        assert_eq!(PublisherRow::from_json("other", &written), Ok(row), "{written}");
    }
}

/// What etcd and Redis say of tables that they keep. `cuts`: also in two pieces, cut at every place.
#[cfg(all(feature = "etcd", feature = "redis"))]
pub(crate) fn stores(data: &[u8], cuts: bool) {
    use super::{etcd, redis};

    etcd::fuzzing::replies(data);
    if cuts {
        etcd::fuzzing::cuts(data);
    }
    redis::fuzzing::notes(data);
}

/// Frames with requests: the tables are those of plain maps, and somebody who follows them sees the same.
/// A write in a frame that says that more frames follow is undone, as when the disk is full.
pub(crate) fn requests(data: &[u8]) {
    let limits = Limits {
        table_octets: 8,
        key_octets: 8,
        value_octets: 32,
        tables: 2,
        rows: 6,
        octets: 100,
    };
    let mut tables = Tables::new(limits);
    let mut model = Model { limits, rows: BTreeMap::new() };
    let mut follower = Follower::default();
    let mut rest = data;
    while let Some(frame) = split_frame(rest) {
        rest = frame.rest;
        let Ok(request) = parse(&Message::from(frame.body)) else { continue };
        let changed = match request.action {
            Action::Get(wire::Get { table, key }) => {
                assert_eq!(tables.get(&table, &key), model.get(&table, &key));
                None
            }
            Action::List(wire::List { table }) => {
                assert_eq!(tables.list(&table).1, model.list(&table));
                None
            }
            Action::Put(wire::Put { table, key, value }) => {
                let put = tables.put(&table, &key, &value);
                assert_eq!(put.is_ok(), model.has_room(&table, &key, &value), "{put:?}");
                put.unwrap_or(None)
            }
            Action::Delete(wire::Delete { table, key }) => {
                let had = model.get(&table, &key).is_some();
                let changed = tables.delete(&table, &key);
                assert_eq!(changed.is_some(), had);
                changed
            }
        };
        if let Some(changed) = changed {
            if frame.header.more {
                tables.undo(changed);
            } else {
                model.set(&changed);
                follower.hear(&tables, changed);
            }
        }
        model.compare(&tables);
        follower.compare(&tables);
    }
}

/// Tables without revisions.
struct Model {
    limits: Limits,
    rows: BTreeMap<(String, String), String>,
}

impl Model {
    fn get(&self, table: &str, key: &str) -> Option<&str> {
        self.rows.get(&(table.to_owned(), key.to_owned())).map(String::as_str)
    }

    fn list(&self, table: &str) -> Rows {
        let rows = self.rows.iter().filter(|((name, _), _)| name == table);
        rows.map(|((_, key), value)| (key.clone(), value.clone())).collect()
    }

    fn has_room(&self, table: &str, key: &str, value: &str) -> bool {
        let mut after = self.rows.clone();
        after.insert((table.to_owned(), key.to_owned()), value.to_owned());
        let Limits { table_octets, key_octets, value_octets, tables, rows, octets } = self.limits;
        let names: Vec<_> = after.keys().map(|(name, _)| name).collect();
        let mut different = names.clone();
        different.dedup();
        (1..=table_octets).contains(&table.len())
            && (1..=key_octets).contains(&key.len())
            && value.len() <= value_octets
            && different.len() <= tables
            && names.len() <= rows
            && size(&after) <= octets
    }

    fn set(&mut self, changed: &Changed) {
        let at = (changed.table.clone(), changed.key.clone());
        let before = match &changed.value {
            Some(value) => self.rows.insert(at, value.clone()),
            None => self.rows.remove(&at),
        };
        assert_eq!(before, changed.before);
    }

    fn compare(&self, tables: &Tables) {
        assert_eq!(tables.size(), (self.rows.len(), size(&self.rows)));
        for (name, rows) in tables.iter() {
            assert_eq!(*rows, self.list(name));
        }
    }
}

fn size(rows: &BTreeMap<(String, String), String>) -> usize {
    rows.iter().map(|((_, key), value)| key.len() + value.len()).sum()
}

/// Somebody who follows each table from its first change on.
#[derive(Default)]
struct Follower(BTreeMap<String, (Place, Rows)>);

impl Follower {
    /// Hears of a change, as it comes over the wire.
    fn hear(&mut self, tables: &Tables, changed: Changed) {
        let Changed { table, key, previous, revision, value, .. } = changed;
        let sent = wire::Change { epoch: EPOCH, table, previous, revision, key, value };
        let change = wire::Change::decode(&sent.encode_to_vec()[..]).expect("it was just written");
        assert_eq!(change, sent);
        let list = || {
            let (revision, rows) = tables.list(&sent.table);
            (Place { epoch: EPOCH, revision }, rows)
        };
        let (place, rows) = self.0.entry(sent.table.clone()).or_insert_with(list);
        match step(*place, News::Changed(change)) {
            Step::Next(next, Change::Set { key, value }) => {
                rows.insert(key, value);
                *place = next;
            }
            Step::Next(next, Change::Deleted { key }) => {
                assert!(rows.remove(&key).is_some(), "it was there");
                *place = next;
            }
            Step::Known => assert_eq!(place.revision, revision, "it was listed a moment ago"),
            Step::Gap => {
                assert_eq!(previous, 0, "the table was forgotten");
                (*place, *rows) = list();
            }
            Step::Next(..) => panic!("a change of something else"),
        }
    }

    fn compare(&self, tables: &Tables) {
        for (name, (_, rows)) in &self.0 {
            assert_eq!(*rows, tables.list(name).1, "{name}");
        }
    }
}

const EPOCH: u64 = 1;
