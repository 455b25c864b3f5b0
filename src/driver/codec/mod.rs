//! The bodies of events: Dragonflow's two forms and dragonwire's own, which alone can tell that
//! something is missing. The form is chosen by the sender and recognised by the receiver, from the
//! first octet:
//!
//! | first octet | form |
//! | --- | --- |
//! | `0x0a` | an event in [`Codec::Protobuf`] |
//! | `0x42` | [`Positions`] |
//! | `0x80..=0x8f`, `0xde`, `0xdf` | a MessagePack map: [`Codec::Msgpack`] |
//! | `0xa0..=0xbf`, `0xd9`, `0xda`, `0xdb` | a MessagePack string: [`Codec::Json`] |

mod json;
mod msgpack;
mod protobuf;

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use uuid::Uuid;

use super::update::{Action, Update, Value};

/// How a publisher writes the bodies of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// `proto/event.proto`, with the publisher's id, its epoch and a sequence number per topic: the
    /// form between dragonwire peers.
    #[default]
    Protobuf,
    /// A MessagePack map of the update's five fields: Dragonflow 2.0.0 and later.
    Msgpack,
    /// JSON text in a MessagePack string: Dragonflow 1.0.0.
    Json,
}

impl Codec {
    /// Its name in options and on the command line: `protobuf`, `msgpack` or `json`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Protobuf => "protobuf",
            Self::Msgpack => "msgpack",
            Self::Json => "json",
        }
    }

    /// Appends the body of an event. `topic` is what the event is sent on: [`Codec::Json`] writes it in
    /// place of the update's own topic, as Dragonflow 1.0.0 did; the others write the update's own.
    /// `origin` and the timestamp, in whole microseconds, are written by [`Codec::Protobuf`] alone.
    ///
    /// Values that are not text are read back by [`decode`] only within its limits.
    pub fn encode(self, update: &Update, topic: &str, origin: &Origin, out: &mut Vec<u8>) {
        match self {
            Self::Protobuf => protobuf::encode(update, origin, out),
            Self::Msgpack => msgpack::encode(update, out),
            Self::Json => json::encode(update, topic, out),
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The word is none of the codecs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no codec: protobuf, msgpack or json")]
pub struct UnknownCodec(pub String);

impl FromStr for Codec {
    type Err = UnknownCodec;

    /// Takes the names, and words that say what Dragonflow's forms look like.
    fn from_str(word: &str) -> Result<Self, UnknownCodec> {
        match word {
            "protobuf" | "pb" => Ok(Self::Protobuf),
            "msgpack" | "map" | "msgpack-map" | "msgpack_map" => Ok(Self::Msgpack),
            "json" | "json_string" | "json-string" | "json-in-msgpack" => Ok(Self::Json),
            _ => Err(UnknownCodec(word.to_owned())),
        }
    }
}

/// Who published an event and which one it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The publisher's id.
    pub publisher: Uuid,
    /// Which life of the publisher: grows with each start.
    pub epoch: u64,
    /// Which event of that life on the topic it was sent on, from 1.
    pub sequence: u64,
}

/// What a body holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// An event; `origin` only in [`Codec::Protobuf`].
    Event {
        /// The change.
        update: Update,
        /// Where it comes from.
        origin: Option<Origin>,
    },
    /// How far streams have come.
    Positions(Positions),
}

/// How far streams of events have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Who says so.
    pub announcer: Uuid,
    /// In which of its lives.
    pub announcer_epoch: u64,
    /// The prefix of topics whose streams are all listed, if they are.
    pub complete_for: Option<Bytes>,
    /// The streams.
    pub positions: Vec<Position>,
}

/// How far one publisher's stream on one topic has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The publisher's id.
    pub publisher: Uuid,
    /// Which of its lives.
    pub epoch: u64,
    /// The topic its events were sent on.
    pub topic: Bytes,
    /// The first event that came by the announcer.
    pub first: u64,
    /// The last one, or one less than the first if none did.
    pub last: u64,
    /// Whether it goes on.
    pub end: End,
}

/// Whether a stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum End {
    /// It may.
    #[default]
    Open,
    /// Nothing follows: the publisher has closed, or is known to have died there.
    Final,
    /// The publisher went without a word: how far it came is not known.
    Abandoned,
    /// The announcer closes: all that it was sent has been sent on, and the stream may go on by
    /// another.
    Left,
}

impl Positions {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        protobuf::encode_positions(self)
    }
}

/// A body that says nothing, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Neither MessagePack of a string or a map with the five fields nor one of dragonwire's own
    /// messages.
    #[error("{0}")]
    Malformed(String),
    /// An event of which only the origin can be read: this one event is lost, and no other.
    #[error("event {} of {} (epoch {}): {reason}", origin.sequence, origin.publisher, origin.epoch)]
    Event {
        /// Which event it was.
        origin: Origin,
        /// What is wrong with the rest.
        reason: String,
    },
}

/// Reads a body in whichever form it is.
///
/// In Dragonflow's forms all five fields have to be there, in any order, and all but the value have to
/// be text or nothing; of a field that comes twice the last counts, and other fields are ignored. In a
/// value that is not text up to 64 arrays and maps may be within each other, and it may have up to
/// 262144 parts; an integer in JSON that needs more than 64 bits is read as a floating-point number.
///
/// # Errors
/// [`CodecError`] says what is wrong with it.
pub fn decode(body: &[u8]) -> Result<Body, CodecError> {
    let read = match body.first() {
        Some(&protobuf::EVENT) => return protobuf::decode_event(body),
        Some(&protobuf::POSITIONS) => protobuf::decode_positions(body).map(Body::Positions),
        Some(0x80..=0x8f | 0xde | 0xdf) => msgpack::decode(body).and_then(Fields::into_body),
        Some(0xa0..=0xbf | 0xd9..=0xdb) => {
            msgpack::decode_text(body).and_then(json::decode).and_then(Fields::into_body)
        }
        Some(octet) => Err(format!("0x{octet:02x} begins none of the forms of a body")),
        None => Err("the body is empty".to_owned()),
    };
    read.map_err(CodecError::Malformed)
}

/// Whether a body holds positions, by its first octet.
pub(crate) fn is_positions(body: &[u8]) -> bool {
    body.first() == Some(&protobuf::POSITIONS)
}

/// The origin of an event in [`Codec::Protobuf`], read from the body's first octets without decoding
/// it; `None` for all other bodies.
#[must_use]
pub fn peek_origin(body: &[u8]) -> Option<Origin> {
    protobuf::peek_origin(body)
}

/// The five fields of Dragonflow's forms, as they are met; of one that comes twice the last counts.
#[derive(Debug, Default)]
struct Fields {
    table: Option<Text>,
    key: Option<Text>,
    action: Option<Text>,
    value: Option<Option<Value>>,
    topic: Option<Text>,
}

/// A field that has to be text or nothing; or what it is instead.
type Text = Result<Option<String>, &'static str>;

impl Fields {
    /// The place of a field that has to be text.
    fn text(&mut self, name: &str) -> Option<&mut Option<Text>> {
        match name {
            "table" => Some(&mut self.table),
            "key" => Some(&mut self.key),
            "action" => Some(&mut self.action),
            "topic" => Some(&mut self.topic),
            _ => None,
        }
    }

    fn into_body(self) -> Result<Body, String> {
        let text = |name: &str, field: Option<Text>| match field {
            Some(Ok(text)) => Ok(text),
            Some(Err(kind)) => Err(format!("the field \"{name}\" is {kind}, not text")),
            None => Err(format!("the field \"{name}\" is missing")),
        };
        let update = Update {
            table: text("table", self.table)?,
            key: text("key", self.key)?,
            action: text("action", self.action)?.map(Action::from),
            value: self.value.ok_or("the field \"value\" is missing")?,
            topic: text("topic", self.topic)?,
            timestamp: None,
        };
        Ok(Body::Event { update, origin: None })
    }
}

/// What a value is that was read as one of any kind.
fn value_from(value: serde_json::Value) -> Option<Value> {
    match value {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(Value::Text(text)),
        other => Some(Value::Other(other)),
    }
}

/// Puts what was written last, from `end` on, before what was written from `start` on: the length of
/// a text is known when it has been written.
fn move_to_front(out: &mut [u8], start: usize, end: usize) {
    let len = out.len().saturating_sub(end);
    if let Some(written) = out.get_mut(start..) {
        written.rotate_right(len);
    }
}

/// How many parts of a value may be within each other: enough for any object, and little for the stack.
const MAX_DEPTH: usize = 64;

/// How many parts a value may have. A part is a single octet on the wire and dozens in memory, so that
/// without this a message of the greatest size would take gigabytes.
const MAX_PARTS: usize = 1 << 18;

/// Counts a part of a value.
fn take_part(left: &mut usize) -> Result<(), String> {
    let less = left.checked_sub(1).ok_or_else(|| format!("a value of over {MAX_PARTS} parts"))?;
    *left = less;
    Ok(())
}

/// Enters an array or a map: how deep may be what is in it.
fn enter(depth: usize) -> Result<usize, String> {
    depth.checked_sub(1).ok_or_else(|| format!("a value with over {MAX_DEPTH} levels"))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;
    use serde_json::Value as Json;

    use super::*;

    pub(super) const ORIGIN: Origin =
        Origin { publisher: Uuid::from_bytes([7; 16]), epoch: 3, sequence: 5 };

    /// Any JSON but for text and null, which are values of their own.
    fn others() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Json::from),
            any::<String>().prop_map(Json::from),
        ];
        let tree = leaf.prop_recursive(4, 40, 18, |part| {
            prop_oneof![
                vec(part.clone(), 0..18).prop_map(Json::from),
                btree_map(any::<String>(), part, 0..18)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        });
        tree.prop_filter("no text", |json| !matches!(json, Json::Null | Json::String(_)))
    }

    pub(super) fn updates() -> impl Strategy<Value = Update> {
        let text = || option::of(prop_oneof![any::<String>(), "[a-z]{30,34}", "[é-🦀]{80,90}"]);
        let value = prop_oneof![
            text().prop_map(|text| text.map(Value::Text)),
            others().prop_map(|other| Some(Value::Other(other))),
        ];
        let timestamp = option::of(any::<i64>().prop_map(|micros| {
            let distance = Duration::from_micros(micros.unsigned_abs());
            let from = SystemTime::UNIX_EPOCH;
            if micros < 0 { from - distance } else { from + distance }
        }));
        (text(), text(), text(), value, text(), timestamp).prop_map(
            |(table, key, action, value, topic, timestamp)| Update {
                table,
                key,
                action: action.map(Action::from),
                value,
                topic,
                timestamp,
            },
        )
    }

    pub(super) fn origins() -> impl Strategy<Value = Origin> {
        (any::<u128>(), any::<u64>(), 1..=u64::MAX).prop_map(|(publisher, epoch, sequence)| {
            Origin { publisher: Uuid::from_u128(publisher), epoch, sequence }
        })
    }

    fn positions() -> impl Strategy<Value = Positions> {
        let octets = || vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let position = (origins(), octets(), any::<u64>(), 0..4_usize).prop_map(
            |(Origin { publisher, epoch, sequence }, topic, more, end)| Position {
                publisher: publisher.to_owned(),
                epoch,
                topic,
                first: sequence,
                last: (sequence - 1).saturating_add(more),
                end: [End::Open, End::Final, End::Abandoned, End::Left][end],
            },
        );
        (any::<u128>(), any::<u64>(), option::of(octets()), vec(position, 0..5)).prop_map(
            |(announcer, announcer_epoch, complete_for, positions)| Positions {
                announcer: Uuid::from_u128(announcer),
                announcer_epoch,
                complete_for,
                positions,
            },
        )
    }

    fn encoded(codec: Codec, update: &Update, topic: &str, origin: &Origin) -> Vec<u8> {
        let mut body = b"what is there stays".to_vec();
        codec.encode(update, topic, origin, &mut body);
        body.split_off(b"what is there stays".len())
    }

    /// What is wrong with a body that says nothing at all.
    pub(super) fn fault(body: &[u8]) -> String {
        match decode(body) {
            Err(CodecError::Malformed(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn events_come_back_as_they_were(
            update in updates(), topic in any::<String>(), origin in origins()
        ) {
            let body = encoded(Codec::Protobuf, &update, &topic, &origin);
            prop_assert_eq!(peek_origin(&body), Some(origin));
            let event = Body::Event { update: update.clone(), origin: Some(origin) };
            prop_assert_eq!(decode(&body), Ok(event));

            let update = Update { timestamp: None, ..update };
            let body = encoded(Codec::Msgpack, &update, &topic, &origin);
            prop_assert_eq!(peek_origin(&body), None);
            prop_assert_eq!(decode(&body), Ok(Body::Event { update: update.clone(), origin: None }));

            let body = encoded(Codec::Json, &update, &topic, &origin);
            prop_assert_eq!(peek_origin(&body), None);
            let update = Update { topic: Some(topic), ..update };
            prop_assert_eq!(decode(&body), Ok(Body::Event { update, origin: None }));
        }

        #[test]
        fn positions_come_back_as_they_were(positions in positions()) {
            let body = positions.encode();
            prop_assert_eq!(peek_origin(&body), None);
            prop_assert_eq!(decode(&body), Ok(Body::Positions(positions)));
        }

        #[test]
        fn an_event_that_is_cut_short_is_an_error(
            update in updates(), origin in origins(), end in any::<prop::sample::Index>()
        ) {
            // of the others a shorter one may be whole: fields may be absent
            for codec in [Codec::Msgpack, Codec::Json] {
                let body = encoded(codec, &update, "D", &origin);
                let end = end.index(body.len());
                prop_assert!(decode(&body[..end]).is_err());
            }
            let body = encoded(Codec::Protobuf, &update, "D", &origin);
            let _ = decode(&body[..end.index(body.len())]);
        }

        #[test]
        fn no_octets_panic(
            front in prop::sample::select(vec![
                &b""[..], b"\x0a\x10", b"\x42\x10", b"\x85\xa5value", b"\xda\0\x40{",
            ]),
            rest in vec(any::<u8>(), 0..100),
        ) {
            let body = [front, &rest].concat();
            let _ = (decode(&body), peek_origin(&body));
        }
    }

    #[test]
    fn codecs_have_names() {
        for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
            assert_eq!(codec.to_string().parse(), Ok(codec));
        }
        for word in ["map", "msgpack-map", "msgpack_map"] {
            assert_eq!(word.parse(), Ok(Codec::Msgpack));
        }
        for word in ["json_string", "json-string", "json-in-msgpack"] {
            assert_eq!(word.parse(), Ok(Codec::Json));
        }
        assert_eq!("pb".parse(), Ok(Codec::Protobuf));
        let error = "JSON".parse::<Codec>().unwrap_err().to_string();
        assert_eq!(error, "\"JSON\" is no codec: protobuf, msgpack or json");
    }

    #[test]
    fn what_begins_no_form_is_named() {
        assert_eq!(fault(b""), "the body is empty");
        for octet in [0x00, 0x09, 0x0b, 0x41, 0x43, 0x7b, 0x90, 0xc0, 0xc1, 0xc4, 0xd4, 0xdc, 0xff]
        {
            let reason = fault(&[octet, 0, 0]);
            assert_eq!(reason, format!("0x{octet:02x} begins none of the forms of a body"));
        }
    }

    #[test]
    fn a_text_that_is_a_value_of_any_kind_is_text() {
        let update = Update::new("t", "k", Action::Set);
        for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
            for (value, expected) in [
                (Json::from("text"), Some(Value::Text("text".to_owned()))),
                (Json::Null, None),
                (Json::from(7), Some(Value::Other(7.into()))),
            ] {
                let update = Update { value: Some(Value::Other(value)), ..update.clone() };
                let Ok(Body::Event { update, .. }) = decode(&encoded(codec, &update, "D", &ORIGIN))
                else {
                    panic!("{codec}");
                };
                assert_eq!(update.value, expected, "{codec}");
            }
        }
    }

    /// So that a value which one form carries comes through each of the others.
    #[test]
    fn the_limits_of_values_are_the_same_in_all_forms() {
        let nested = |levels: usize| (0..levels).fold(Json::from(1), |json, _| vec![json].into());
        let wide = |parts: usize| Json::from(vec![0; parts - 1]);
        for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
            let read = |value: Json| {
                let value = Some(Value::Other(value));
                let update = Update { value, ..Update::new("t", "k", Action::Set) };
                decode(&encoded(codec, &update, "D", &ORIGIN)).map_err(|error| error.to_string())
            };
            assert!(read(nested(MAX_DEPTH)).is_ok(), "{codec}");
            let error = read(nested(MAX_DEPTH + 1)).unwrap_err();
            assert!(error.contains("a value with over 64 levels"), "{codec}: {error}");
            assert!(read(wide(MAX_PARTS)).is_ok(), "{codec}");
            let error = read(wide(MAX_PARTS + 1)).unwrap_err();
            assert!(error.contains("a value of over 262144 parts"), "{codec}: {error}");
        }
    }
}
