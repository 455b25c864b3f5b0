//! What the fuzz target `directory_answers` does with what a channel in Redis may tell of a table.

use std::collections::BTreeSet;

use super::{Note, Notes, What};
use crate::driver::directory::Change;

/// Each line is a note: rows are gone only once and if they were there, nothing is told to those in
/// another database, and what is understood comes back the same when it is told as we do.
pub(crate) fn notes(data: &[u8]) {
    let mut here = Notes { db: HERE, keys: BTreeSet::new() };
    let mut elsewhere = Notes { db: ELSEWHERE, keys: BTreeSet::new() };
    let mut model = BTreeSet::new();
    for line in data.split(|octet| *octet == b'\n') {
        let before = here.keys.clone();
        let change = here.change(line);
        let (key, value) = match change.clone() {
            Some(Change::Set { key, value }) => {
                model.insert(key.clone());
                (key, Some(value))
            }
            Some(Change::Deleted { key }) => {
                assert!(model.remove(&key), "{key:?} is gone, and was not there");
                (key, None)
            }
            Some(change) => panic!("a note tells of one row: {change:?}"),
            None => {
                assert_eq!(here.keys, model);
                elsewhere.change(line);
                continue;
            }
        };
        assert_eq!(here.keys, model);
        assert_eq!(elsewhere.change(line), None, "it is not about this database");
        let note = Note { db: HERE, what: What::Row { key, value } };
        let told = serde_json::to_vec(&note).expect("text and numbers");
        let mut again = Notes { db: HERE, keys: before };
        assert_eq!(again.change(&told), change, "{note:?}");
    }
}

const HERE: i64 = 0;
const ELSEWHERE: i64 = 1;
