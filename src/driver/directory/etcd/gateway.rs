//! What is said to etcd's JSON gateway and what it answers: the keys of rows, the bodies of requests and
//! replies, and the messages of a watch. Without IO.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::driver::directory::{Change, Rows};

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// etcd does not do it.
    Refused(String),
    /// There was no answer, none of etcd's, or that it cannot at the moment. Another member may.
    Away(String),
}

/// A table as it was at a revision.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) revision: u64,
    pub(super) rows: Rows,
}

/// The paths of the gateway.
pub(super) const PUT: &str = "/v3/kv/put";
pub(super) const RANGE: &str = "/v3/kv/range";
pub(super) const DELETE: &str = "/v3/kv/deleterange";
pub(super) const WATCH: &str = "/v3/watch";

/// For [`RANGE`]: a row.
pub(super) fn get_body(table: &str, key: &str) -> String {
    json!({ "key": row_key(table, key) }).to_string()
}

/// For [`RANGE`]: every row of a table.
pub(super) fn list_body(table: &str) -> String {
    let (key, range_end) = table_range(table);
    json!({ "key": key, "range_end": range_end }).to_string()
}

/// For [`RANGE`]: whether there is a quorum that could tell the rows of a table.
pub(super) fn check_body(table: &str) -> String {
    let (key, range_end) = table_range(table);
    json!({ "key": key, "range_end": range_end, "count_only": true }).to_string()
}

/// For [`PUT`].
pub(super) fn put_body(table: &str, key: &str, value: &str) -> String {
    json!({ "key": row_key(table, key), "value": STANDARD.encode(value) }).to_string()
}

/// For [`DELETE`].
pub(super) fn delete_body(table: &str, key: &str) -> String {
    get_body(table, key)
}

/// For [`WATCH`]: what changes in a table after a revision.
pub(super) fn watch_body(table: &str, after: u64) -> String {
    let (key, range_end) = table_range(table);
    let start_revision = after.saturating_add(1).to_string();
    json!({
        "create_request": {
            "key": key,
            "range_end": range_end,
            "start_revision": start_revision,
            "prev_kv": true,
        }
    })
    .to_string()
}

/// The row in the reply to [`get_body`], if there is one.
pub(super) fn row(body: &[u8]) -> Result<Option<String>, Fault> {
    let Some(row) = read::<RangeReply>(body)?.kvs.pop() else { return Ok(None) };
    match row.value()? {
        Some(value) => Ok(Some(value)),
        None => Err(Fault::Refused("the row is not text".to_owned())),
    }
}

/// The rows in the reply to [`list_body`]. What is not text was not written by a directory: it is
/// passed over.
pub(super) fn listing(table: &str, body: &[u8]) -> Result<Listing, Fault> {
    let RangeReply { header, kvs } = read(body)?;
    let mut rows = Rows::new();
    for row in kvs {
        match (row.key(table)?, row.value()?) {
            (Some(key), Some(value)) => drop(rows.insert(key, value)),
            _ => tracing::warn!(table, key = row.key, "a row that is not text"),
        }
    }
    Ok(Listing { revision: header.revision, rows })
}

/// That the reply to [`put_body`] is one.
pub(super) fn written(body: &[u8]) -> Result<(), Fault> {
    read::<WriteReply>(body).map(drop)
}

/// That the reply to [`check_body`] is one.
pub(super) fn answered(body: &[u8]) -> Result<(), Fault> {
    read::<RangeReply>(body).map(drop)
}

/// Whether the reply to [`delete_body`] says that there was such a row.
pub(super) fn deleted(body: &[u8]) -> Result<bool, Fault> {
    Ok(read::<WriteReply>(body)?.deleted > 0)
}

/// What a reply means whose status is not one of success.
pub(super) fn failure(status: u16, body: &[u8]) -> Fault {
    match serde_json::from_slice::<ErrorReply>(body) {
        // 408: it took too long, or was cancelled
        Ok(error) if (400..500).contains(&status) && status != 408 => {
            Fault::Refused(excerpt(&error.message))
        }
        Ok(error) => Fault::Away(excerpt(&error.message)),
        Err(_) => Fault::Away(format!("it answered with HTTP status {status} and {}", start(body))),
    }
}

/// The changes that a message of a watch tells.
///
/// The first message tells that the watch has begun; a fault is the end of it.
pub(super) fn changes(table: &str, message: &[u8]) -> Result<Vec<Change>, Fault> {
    let watched = match read(message)? {
        StreamMessage::Result(watched) => watched,
        StreamMessage::Error(error) => return Err(Fault::Away(excerpt(&error.message))),
    };
    if watched.compact_revision > 0 {
        return Err(Fault::Away(format!(
            "changes up to revision {} were compacted",
            watched.compact_revision
        )));
    }
    if watched.canceled {
        let reason = excerpt(&watched.cancel_reason);
        return Err(Fault::Away(format!("the watch was cancelled: {reason}")));
    }
    let changes = watched.events.iter().map(|event| event.change(table));
    changes.filter_map(Result::transpose).collect()
}

/// The messages of a stream, each a line of it.
#[derive(Debug, Default)]
pub(super) struct Lines {
    octets: BytesMut,
    /// So many of them have no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, octets: &[u8]) -> Result<(), Fault> {
        if self.octets.len() + octets.len() > MAX_REPLY {
            return Err(too_large());
        }
        self.octets.extend_from_slice(octets);
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<BytesMut> {
        loop {
            let fresh = self.octets.get(self.searched..).unwrap_or_default();
            let Some(end) = fresh.iter().position(|octet| *octet == b'\n') else {
                self.searched = self.octets.len();
                return None;
            };
            let line = self.octets.split_to(self.searched + end + 1);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }
}

/// The fault of a reply that has more than [`MAX_REPLY`] octets.
pub(super) fn too_large() -> Fault {
    Fault::Away(format!("it answered with more than {MAX_REPLY} octets"))
}

#[derive(Deserialize)]
struct Header {
    #[serde(deserialize_with = "number")]
    revision: u64,
}

#[derive(Deserialize)]
struct RangeReply {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct WriteReply {
    #[serde(rename = "header")]
    _header: Header,
    #[serde(default, deserialize_with = "number")]
    deleted: u64,
}

#[derive(Deserialize)]
struct ErrorReply {
    message: String,
}

/// An object with one of these.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum StreamMessage {
    Result(Watched),
    Error(ErrorReply),
}

#[derive(Deserialize)]
struct Watched {
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    cancel_reason: String,
    #[serde(default, deserialize_with = "number")]
    compact_revision: u64,
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default, rename = "type")]
    kind: EventKind,
    kv: KeyValue,
    prev_kv: Option<KeyValue>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "UPPERCASE")]
enum EventKind {
    #[default]
    Put,
    Delete,
}

/// Both in base64. The gateway leaves out what is empty.
#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

impl Event {
    /// The change that it is for those who see only text.
    fn change(&self, table: &str) -> Result<Option<Change>, Fault> {
        let Some(key) = self.kv.key(table)? else {
            tracing::warn!(table, key = self.kv.key, "a row that is not text");
            return Ok(None);
        };
        let value = match self.kind {
            EventKind::Put => self.kv.value()?,
            EventKind::Delete => None,
        };
        // etcd tells of a write of the same too, and does not know what was compacted
        let before = self.prev_kv.as_ref().map(KeyValue::value).transpose()?;
        Ok(match (value, before) {
            (Some(value), Some(Some(before))) if value == before => None,
            (Some(value), _) => Some(Change::Set { key, value }),
            (None, Some(None)) => None,
            (None, _) => Some(Change::Deleted { key }),
        })
    }
}

impl KeyValue {
    /// The row's key; `None` if it is not text.
    fn key(&self, table: &str) -> Result<Option<String>, Fault> {
        let octets = decode(&self.key)?;
        match octets.strip_prefix(prefix(table).as_bytes()) {
            Some(key) => Ok(String::from_utf8(key.to_vec()).ok()),
            None => Err(Fault::Away("it told of a key that was not asked for".to_owned())),
        }
    }

    /// `None` if it is not text.
    fn value(&self) -> Result<Option<String>, Fault> {
        Ok(String::from_utf8(decode(&self.value)?).ok())
    }
}

/// What every key of a table begins with. No other table's does: a name has its slashes escaped.
fn prefix(table: &str) -> String {
    format!("/dragonwire/{}/", table.replace('%', "%25").replace('/', "%2F"))
}

pub(super) fn row_key(table: &str, key: &str) -> String {
    STANDARD.encode(prefix(table) + key)
}

/// The first key that a table may have, and the first after it that it may not.
fn table_range(table: &str) -> (String, String) {
    let first = prefix(table);
    // the octet after that of the slash
    let end = format!("{}0", first.trim_end_matches('/'));
    (STANDARD.encode(first), STANDARD.encode(end))
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| {
        let error = excerpt(&error.to_string());
        Fault::Away(format!("it answered {}: {error}", start(body)))
    })
}

fn decode(text: &str) -> Result<Vec<u8>, Fault> {
    let wrong = |error| Fault::Away(format!("it answered {}: {error}", start(text.as_bytes())));
    STANDARD.decode(text).map_err(wrong)
}

/// A 64-bit number, which JSON has in quotes.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// The first of what it says, or of what is wrong with that, which repeats it.
fn excerpt(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The first of what came, for a log.
fn start(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body));
    format!("{:?}", text.trim())
}

/// Several times what a table should have, in base64.
pub(super) const MAX_REPLY: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = r#""header":{"cluster_id":"3","member_id":"4","revision":"7"}"#;

    fn kv(key: &str, value: &str) -> String {
        let value = STANDARD.encode(value);
        format!(r#"{{"key":"{}","mod_revision":"7","value":"{value}"}}"#, row_key("t", key))
    }

    fn watched(fields: &str) -> String {
        format!("{{\"result\":{{{HEADER}{fields}}}}}")
    }

    fn told(fields: &str) -> Result<Vec<Change>, Fault> {
        changes("t", watched(fields).as_bytes())
    }

    fn set(key: &str, value: &str) -> Change {
        Change::Set { key: key.to_owned(), value: value.to_owned() }
    }

    fn deleted_row(key: &str) -> Change {
        Change::Deleted { key: key.to_owned() }
    }

    fn is_away<T>(result: &Result<T, Fault>) -> bool {
        matches!(result, Err(Fault::Away(_)))
    }

    #[test]
    fn no_two_rows_have_the_same_key() {
        assert_eq!(prefix("publisher"), "/dragonwire/publisher/");
        assert_eq!(prefix("a/b%"), "/dragonwire/a%2Fb%25/");
        assert_ne!(row_key("a", "b/c"), row_key("a/b", "c"));
        assert_ne!(prefix("a/b"), prefix("a%2Fb"));
        let (first, end) = table_range("t");
        assert_eq!(decode(&first).unwrap(), b"/dragonwire/t/");
        assert_eq!(decode(&end).unwrap(), b"/dragonwire/t0");
    }

    #[test]
    fn requests_are_what_the_gateway_reads() {
        assert_eq!(put_body("t", "k", "1"), r#"{"key":"L2RyYWdvbndpcmUvdC9r","value":"MQ=="}"#);
        assert_eq!(get_body("t", "k"), r#"{"key":"L2RyYWdvbndpcmUvdC9r"}"#);
        assert_eq!(delete_body("t", "k"), get_body("t", "k"));
        let range = r#""key":"L2RyYWdvbndpcmUvdC8=","range_end":"L2RyYWdvbndpcmUvdDA=""#;
        let fields = |body: &str| serde_json::from_str::<serde_json::Value>(body).unwrap();
        assert_eq!(fields(&list_body("t")), fields(&format!("{{{range}}}")));
        let check = format!(r#"{{{range},"count_only":true}}"#);
        assert_eq!(fields(&check_body("t")), fields(&check));
        let watch =
            format!(r#"{{"create_request":{{{range},"start_revision":"8","prev_kv":true}}}}"#);
        assert_eq!(fields(&watch_body("t", 7)), fields(&watch));
    }

    #[test]
    fn replies_are_read() {
        let of = |fields: &str| format!("{{{HEADER}{fields}}}").into_bytes();
        assert_eq!(row(&of("")), Ok(None));
        let ranged = format!(r#","kvs":[{}],"count":"1""#, kv("k", "ü"));
        assert_eq!(row(&of(&ranged)), Ok(Some("ü".to_owned())));
        let empty = format!(r#","kvs":[{{"key":"{}"}}]"#, row_key("t", "k"));
        assert_eq!(row(&of(&empty)), Ok(Some(String::new())));
        let ranged = format!(r#","kvs":[{},{}],"count":"2""#, kv("a/b", "1"), kv("c", ""));
        let rows = [("a/b".to_owned(), "1".to_owned()), ("c".to_owned(), String::new())].into();
        assert_eq!(listing("t", &of(&ranged)), Ok(Listing { revision: 7, rows }));
        assert_eq!(deleted(&of("")), Ok(false));
        assert_eq!(deleted(&of(r#","deleted":"1""#)), Ok(true));
    }

    #[test]
    fn rows_that_are_not_text_are_passed_over() {
        let foreign = format!(r#"{{"key":"{}","value":"/w=="}}"#, row_key("t", "k"));
        let body = format!(r#"{{{HEADER},"kvs":[{foreign},{}]}}"#, kv("l", "1"));
        let rows = [("l".to_owned(), "1".to_owned())].into();
        assert_eq!(listing("t", body.as_bytes()), Ok(Listing { revision: 7, rows }));
        let body = format!(r#"{{{HEADER},"kvs":[{foreign}]}}"#);
        assert!(matches!(row(body.as_bytes()), Err(Fault::Refused(_))));

        let text = kv("k", "1");
        let event = |now: &str, before: &str| {
            told(&format!(r#","events":[{{"kv":{now},"prev_kv":{before}}}]"#)).unwrap()
        };
        assert_eq!(event(&foreign, &text), [deleted_row("k")]);
        assert_eq!(event(&text, &foreign), [set("k", "1")]);
        assert_eq!(event(&foreign, &foreign), []);
        let key = STANDARD.encode(b"/dragonwire/t/\xff");
        assert_eq!(told(&format!(r#","events":[{{"kv":{{"key":"{key}"}}}}]"#)), Ok(vec![]));
    }

    #[test]
    fn a_watch_tells_what_changes() {
        assert_eq!(told(r#","created":true"#), Ok(vec![]));
        assert_eq!(told(""), Ok(vec![]));
        let events = format!(
            r#","events":[{{"kv":{}}},{{"type":"PUT","kv":{},"prev_kv":{}}},{{"type":"DELETE","kv":{}}}]"#,
            kv("a", "1"),
            kv("a", "2"),
            kv("a", "1"),
            kv("a", ""),
        );
        assert_eq!(told(&events), Ok(vec![set("a", "1"), set("a", "2"), deleted_row("a")]));
        let same = format!(r#","events":[{{"kv":{0},"prev_kv":{0}}}]"#, kv("a", "1"));
        assert_eq!(told(&same), Ok(vec![]));
    }

    #[test]
    fn a_watch_that_is_over_says_why() {
        let over = |fields: &str| match told(fields) {
            Err(Fault::Away(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let compacted = over(r#","canceled":true,"compact_revision":"44""#);
        assert_eq!(compacted, "changes up to revision 44 were compacted");
        let denied = over(r#","created":true,"canceled":true,"cancel_reason":"denied""#);
        assert_eq!(denied, "the watch was cancelled: denied");
        let error = br#"{"error":{"grpc_code":14,"message":"no leader","http_status":"x"}}"#;
        assert_eq!(changes("t", error), Err(Fault::Away("no leader".to_owned())));
    }

    #[test]
    fn errors_of_the_gateway_are_told_apart() {
        let error = br#"{"error":"too large","message":"too large","code":3}"#;
        assert_eq!(failure(400, error), Fault::Refused("too large".to_owned()));
        assert_eq!(failure(429, error), Fault::Refused("too large".to_owned()));
        assert_eq!(failure(408, error), Fault::Away("too large".to_owned()));
        assert_eq!(failure(503, error), Fault::Away("too large".to_owned()));
        let html = failure(404, b"Not Found\n");
        let expected = r#"it answered with HTTP status 404 and "Not Found""#;
        assert_eq!(html, Fault::Away(expected.to_owned()));
        assert!(matches!(failure(301, b""), Fault::Away(_)));
    }

    #[test]
    fn garbage_is_no_answer() {
        let bodies: [&[u8]; 8] = [
            b"",
            b"{}",
            b"[]",
            b"\xff\xfe",
            br#"{"header":{}}"#,
            br#"{"header":{"revision":"-1"}}"#,
            br#"{"header":{"revision":"7"},"kvs":[{"key":"!"}],"deleted":"x"}"#,
            br#"{"header":{"revision":"7"},"kvs":7,"deleted":1}"#,
        ];
        for body in bodies {
            assert!(is_away(&listing("t", body)), "{}", start(body));
            assert!(is_away(&deleted(body)), "{}", start(body));
            assert!(is_away(&changes("t", body)), "{}", start(body));
        }
        let long = [b'x'; 1000];
        assert!(matches!(failure(500, &long), Fault::Away(reason) if reason.len() < 300));
        let long = "x".repeat(1000);
        let reason = |result: Result<Vec<Change>, Fault>| match result {
            Err(Fault::Away(reason)) => reason,
            other => panic!("{other:?}"),
        };
        for wrong in [
            format!(r#"{{"error":{{"message":"{long}"}}}}"#),
            format!(r#"{{"{long}":{{}}}}"#),
            watched(&format!(r#","canceled":true,"cancel_reason":"{long}""#)),
            watched(&format!(r#","events":[{{"kv":{{"key":"!{long}"}}}}]"#)),
        ] {
            let reason = reason(changes("t", wrong.as_bytes()));
            assert!(reason.len() < 500, "{reason}");
        }
        let refused = format!(r#"{{"message":"{long}"}}"#);
        assert_eq!(failure(400, refused.as_bytes()), Fault::Refused("x".repeat(200)));
        let other = format!(r#"{{{HEADER},"kvs":[{}]}}"#, kv("k", "1"));
        assert!(is_away(&listing("t2", other.as_bytes())));
        for events in [r#"[{}]"#, r#"[{"kv":{}}]"#, r#"[{"kv":{"key":"/"}}]"#, r#""x""#] {
            assert!(is_away(&told(&format!(r#","events":{events}"#))), "{events}");
        }
        let kind = format!(r#","events":[{{"type":"NEW","kv":{}}}]"#, kv("k", "1"));
        assert!(is_away(&told(&kind)));
    }

    #[test]
    fn lines_are_put_together_wherever_they_were_cut() {
        let stream = b"{\"a\":1}\n\n{\"b\":\"\\n\"}\r\n{}\n{\"c\"";
        let whole: [&[u8]; 3] = [b"{\"a\":1}\n", b"{\"b\":\"\\n\"}\r\n", b"{}\n"];
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut lines = Lines::default();
                let mut found = Vec::new();
                for part in [&stream[..first], &stream[first..second], &stream[second..]] {
                    lines.push(part).unwrap();
                    found.extend(std::iter::from_fn(|| lines.next()));
                }
                assert_eq!(found, whole, "{first} {second}");
            }
        }
        let mut lines = Lines::default();
        for octet in stream {
            lines.push(&[*octet]).unwrap();
        }
        assert_eq!(std::iter::from_fn(|| lines.next()).collect::<Vec<_>>(), whole);
    }

    #[test]
    fn a_line_without_an_end_is_not_kept_for_ever() {
        let mut lines = Lines::default();
        lines.push(b"{").unwrap();
        assert!(is_away(&lines.push(&vec![0; MAX_REPLY])));
    }
}
