//! What is in a recording: both sides' octets of each connection, the steps, and what the callback was
//! given.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dragonwire::driver::codec::{Body, Codec, decode};
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{Action, SEND_ALL_TOPIC, SubscriberEvent, Update, Value};
use serde_json::{Value as Json, json};

use crate::side::options;

/// The octets of a greeting.
pub(crate) const GREETING: usize = 64;

pub(crate) struct Recording {
    json: Json,
    pub(crate) name: String,
}

/// A connection that came to a handshake.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The side that connected.
    pub(crate) client: Stream,
    pub(crate) server: Stream,
}

/// What one side of a connection sent.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) greeting: Vec<u8>,
    /// The frame of the command.
    pub(crate) ready: Vec<u8>,
    /// What follows, each with its header.
    pub(crate) frames: Vec<Vec<u8>>,
}

impl Recording {
    pub(crate) fn load(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
        let text = fs::read(folder.join(format!("{name}.json"))).unwrap();
        Self { json: serde_json::from_slice(&text).unwrap(), name: name.to_owned() }
    }

    /// The arguments of each call of the subscriber's callback.
    pub(crate) fn callbacks(&self) -> &[Json] {
        self.json["callbacks"].as_array().unwrap()
    }

    pub(crate) fn steps(&self) -> &[Json] {
        self.json["steps"].as_array().unwrap()
    }

    pub(crate) fn step(&self, what: &str) -> &Json {
        self.steps().iter().find(|step| step["what"] == what).unwrap()
    }

    /// The connections through a relay that came to a handshake, in their order.
    pub(crate) fn connections(&self, relay: &str) -> Vec<Connection> {
        let relays = self.json["relays"].as_array().unwrap();
        let relay = relays.iter().find(|found| found["name"] == relay).unwrap();
        let octets = |connection: &Json, side| unhex(connection[side].as_str().unwrap());
        let connections = relay["connections"].as_array().unwrap().iter();
        connections
            .filter(|connection| connection["c2s_hex"] != "")
            .map(|connection| Connection {
                client: Stream::parse(&octets(connection, "c2s_hex")),
                server: Stream::parse(&octets(connection, "s2c_hex")),
            })
            .collect()
    }

    /// The only one.
    pub(crate) fn connection(&self, relay: &str) -> Connection {
        let [connection] = self.connections(relay).try_into().unwrap();
        connection
    }

    /// The codec of the release: JSON in a string in 1.0.0, a map from 2.0.0 on.
    pub(crate) fn codec(&self) -> Codec {
        if self.name.contains("-1.0.0-") { Codec::Json } else { Codec::Msgpack }
    }

    /// The options with which a publisher of ours writes what the release writes.
    pub(crate) fn options(&self) -> DriverOptions {
        let mut options = options();
        options.codec = Some(self.codec());
        options.trigger_only = self.codec() == Codec::Json;
        options
    }

    /// Whether the publishers ran under Python 2 and wrote maps, whose order was arbitrary there.
    fn is_in_any_order(&self) -> bool {
        self.name.contains("-3.0.0-") || self.name.contains("-5.0.0-")
    }

    /// That these are the recorded octets of a frame, for maps of Python 2 up to their order.
    #[track_caller]
    pub(crate) fn assert_frame(&self, ours: &[u8], recorded: &[u8]) {
        if !self.is_in_any_order() || payload(recorded).first() != Some(&0x85) {
            assert_eq!(hex(ours), hex(recorded), "{}", self.name);
            return;
        }
        let header = recorded.len() - payload(recorded).len();
        assert_eq!(hex(&ours[..header]), hex(&recorded[..header]), "{}", self.name);
        assert_eq!(entries(payload(ours)), entries(payload(recorded)), "{}", self.name);
    }
}

impl Stream {
    fn parse(octets: &[u8]) -> Self {
        let (greeting, mut rest) = octets.split_at(GREETING);
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let header = if rest[0] & 2 == 0 { 2 } else { 9 };
            let (frame, after) = rest.split_at(header + body_length(rest));
            frames.push(frame.to_vec());
            rest = after;
        }
        let ready = frames.remove(0);
        Self { greeting: greeting.to_vec(), ready, frames }
    }

    /// Each message's frames, each with its header.
    pub(crate) fn messages(&self) -> Vec<Vec<Vec<u8>>> {
        let messages = self.frames.split_inclusive(|frame| frame[0] & 1 == 0);
        messages.map(<[Vec<u8>]>::to_vec).collect()
    }
}

/// The length of a frame's body, by its header.
fn body_length(frame: &[u8]) -> usize {
    if frame[0] & 2 == 0 {
        frame[1].into()
    } else {
        u64::from_be_bytes(frame[1..9].try_into().unwrap()).try_into().unwrap()
    }
}

/// A frame without its header.
pub(crate) fn payload(frame: &[u8]) -> &[u8] {
    &frame[if frame[0] & 2 == 0 { 2 } else { 9 }..]
}

/// The update in a recorded message of two frames.
pub(crate) fn update_of(message: &[Vec<u8>]) -> Update {
    let [_topic, body] = message else { panic!("{message:02x?}") };
    match decode(payload(body)) {
        Ok(Body::Event { update, origin: None }) => update,
        other => panic!("{body:02x?}: {other:?}"),
    }
}

/// The update that a step tells a publisher to send, and the explicit topic.
pub(crate) fn update_in(event: &Json) -> (Update, Option<&str>) {
    let text = |name: &str| event[name].as_str().map(str::to_owned);
    let update = Update {
        table: text("table"),
        key: text("key"),
        action: text("action").map(Action::from),
        value: text("value").map(Value::Text),
        topic: match event.get("topic") {
            None => Some(SEND_ALL_TOPIC.to_owned()),
            Some(topic) => topic.as_str().map(str::to_owned),
        },
        timestamp: None,
    };
    (update, event["topic_arg"].as_str())
}

/// The message of a release whose encoder wrote in the order of Python 2.7's 1.0.0, for events that
/// passed no relay.
pub(crate) fn json_message(key: &str) -> Vec<Vec<u8>> {
    let text = format!(
        r#"{{"action": "set", "table": "t", "topic": "D", "value": null, "key": "{key}"}}"#
    );
    let length = u16::try_from(text.len()).unwrap().to_be_bytes();
    let body = [&[0xda], &length[..], text.as_bytes()].concat();
    let header = [0, u8::try_from(body.len()).unwrap()];
    vec![vec![1, 1, b'D'], [&header[..], &body].concat()]
}

/// What upstream's callback is given for an event.
pub(crate) fn arguments(event: &SubscriberEvent) -> Json {
    let SubscriberEvent::Update(update) = event else {
        return json!({
            "table": null, "key": null, "action": "sync", "value": null, "topic": null,
        });
    };
    let value = match &update.value {
        None => Json::Null,
        Some(Value::Text(text)) => text.as_str().into(),
        Some(Value::Other(other)) => other.clone(),
    };
    json!({
        "table": update.table,
        "key": update.key,
        "action": update.action.as_ref().map(Action::as_str),
        "value": value,
        "topic": update.topic,
    })
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let octet = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(octet).collect()
}

/// Octets as text, which a failed comparison shows in one line.
pub(crate) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The keys of a map of text and nothing, each with its value's octets.
fn entries(body: &[u8]) -> BTreeMap<String, String> {
    fn text(octets: &[u8]) -> (&[u8], &[u8]) {
        let length = match octets[0] {
            0xc0 => 1,
            short @ 0xa0..=0xbf => 1 + usize::from(short - 0xa0),
            0xda => 3 + usize::from(u16::from_be_bytes([octets[1], octets[2]])),
            other => panic!("0x{other:02x}"),
        };
        octets.split_at(length)
    }

    assert_eq!(body[0], 0x85);
    let mut entries = BTreeMap::new();
    let mut rest = &body[1..];
    while !rest.is_empty() {
        let (key, after) = text(rest);
        let (value, after) = text(after);
        rest = after;
        entries.insert(hex(key), hex(value));
    }
    assert_eq!(entries.len(), 5);
    entries
}
