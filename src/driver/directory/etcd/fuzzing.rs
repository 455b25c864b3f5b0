//! What the fuzz target `directory_answers` does with what a member of an etcd may answer.

use std::fmt::Debug;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::gateway::{self, Fault, Lines};
use crate::driver::directory::Change;

/// A reply, and the octets of a watch: what is understood comes back the same when etcd says it again,
/// and what is not is a fault that fits into a log.
pub(crate) fn replies(data: &[u8]) {
    fits(&gateway::row(data));
    fits(&gateway::written(data));
    fits(&gateway::answered(data));
    fits(&gateway::deleted(data));
    for status in [301, 400, 408, 503] {
        fits::<()>(&Err(gateway::failure(status, data)));
    }
    let listing = gateway::listing(TABLE, data);
    fits(&listing);
    if let Ok(listing) = listing {
        let kvs: Vec<_> = listing.rows.iter().map(|(key, value)| kv(key, value)).collect();
        let said = json!({ "header": { "revision": listing.revision.to_string() }, "kvs": kvs });
        assert_eq!(gateway::listing(TABLE, said.to_string().as_bytes()), Ok(listing), "{said}");
    }
    message(data);
    for line in lines([data]) {
        message(&line);
    }
}

/// The messages of a watch are the same wherever its octets were cut.
pub(crate) fn cuts(data: &[u8]) {
    let whole = lines([data]);
    for cut in 1..data.len() {
        let (front, rest) = data.split_at(cut);
        assert_eq!(lines([front, rest]), whole, "cut at {cut}");
    }
    assert_eq!(lines(data.chunks(1)), whole);
}

fn lines<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut lines = Lines::default();
    let mut found = Vec::new();
    for piece in pieces {
        lines.push(piece).expect("it is far from too much");
        found.extend(std::iter::from_fn(|| lines.next()).map(|line| line.to_vec()));
    }
    found
}

fn message(data: &[u8]) {
    let changes = gateway::changes(TABLE, data);
    fits(&changes);
    if let Ok(changes) = changes {
        let events: Vec<_> = changes.iter().map(event).collect();
        let said = json!({ "result": { "events": events } });
        assert_eq!(gateway::changes(TABLE, said.to_string().as_bytes()), Ok(changes), "{said}");
    }
}

fn event(change: &Change) -> Value {
    match change {
        Change::Set { key, value } => json!({ "kv": kv(key, value) }),
        Change::Deleted { key } => json!({ "type": "DELETE", "kv": kv(key, "") }),
        Change::All(_) | Change::Lost { .. } => panic!("a watch tells of single rows: {change:?}"),
    }
}

fn kv(key: &str, value: &str) -> Value {
    json!({ "key": gateway::row_key(TABLE, key), "value": STANDARD.encode(value) })
}

fn fits<T: Debug>(result: &Result<T, Fault>) {
    if let Err(Fault::Refused(reason) | Fault::Away(reason)) = result {
        assert!(reason.len() <= LONGEST_REASON, "{} octets: {reason:.200}...", reason.len());
    }
}

const TABLE: &str = "publisher";

/// In octets: several lines, whatever was answered.
const LONGEST_REASON: usize = 2000;
