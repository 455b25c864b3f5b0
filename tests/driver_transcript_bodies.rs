//! The bodies of events in the recordings of the real Dragonflow drivers (`tests/transcripts/`): what
//! is read from them is what the recorded callbacks were given, and what is written has their octets.

#![cfg(feature = "driver")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dragonwire::driver::codec::{Body, Codec, Origin, decode};
use dragonwire::driver::{Action, SEND_ALL_TOPIC, Update, Value};
use serde_json::Value as Json;
use uuid::Uuid;

/// Dragonflow 1.0.0 has JSON in a string. From 2.0.0 on it is a map, whose order was arbitrary until
/// Python 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Era {
    Json,
    MapInAnyOrder,
    Map,
}

struct Transcript {
    name: String,
    era: Era,
    json: Json,
}

fn transcripts() -> Vec<Transcript> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let recordings = files.filter(|path| path.extension().is_some_and(|ext| ext == "json"));
    let transcripts: Vec<_> = recordings
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let era = match name.split('-').nth(1).unwrap() {
                "1.0.0" => Era::Json,
                "3.0.0" | "5.0.0" => Era::MapInAnyOrder,
                "6" => Era::Map,
                other => panic!("{other}"),
            };
            let json = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            Transcript { name, era, json }
        })
        .collect();
    assert!(transcripts.len() >= 22, "{} recordings", transcripts.len());
    transcripts
}

/// An event as it passed a relay.
#[derive(Debug, Clone)]
struct Recorded {
    time: f64,
    /// On its way to the subscriber whose callbacks are recorded.
    delivered: bool,
    topic: String,
    body: Vec<u8>,
}

impl Transcript {
    /// All events, in the order in which they passed the relays.
    fn events(&self) -> Vec<Recorded> {
        let relays = self.json["relays"].as_array().unwrap();
        let network =
            relays.iter().any(|relay| relay["listen"].as_str().unwrap().starts_with("tcp"));
        let mut events = Vec::new();
        for relay in relays {
            // with a publisher service in between the subscriber is at the network relay
            let local =
                relay["listen"].as_str().unwrap().starts_with("unix") || relay["name"] == "ipc";
            let connections = relay["connections"].as_array().unwrap().iter();
            for event in connections.flat_map(|connection| connection["events"].as_array().unwrap())
            {
                let Some(decoded) = event["decoded"].as_array() else { continue };
                let to_client = event["dir"] == "s2c";
                let mut found = match relay["protocol"].as_str().unwrap() {
                    "zmtp" => messages(decoded),
                    "resp" => {
                        decoded.iter().filter_map(|item| channel_message(&item["value"])).collect()
                    }
                    "http" => decoded
                        .iter()
                        .flat_map(|item| rows(item["text"].as_str().unwrap()))
                        .collect(),
                    other => panic!("{other}"),
                };
                events.extend(found.drain(..).map(|(topic, body)| Recorded {
                    time: event["t"].as_f64().unwrap(),
                    delivered: if local { !network } else { to_client },
                    topic,
                    body,
                }));
            }
        }
        events.sort_by(|a, b| a.time.total_cmp(&b.time));
        events
    }

    /// What the subscriber's callback was given, without what the driver itself had to say.
    fn callbacks(&self) -> Vec<&Json> {
        let callbacks = self.json["callbacks"].as_array().unwrap();
        callbacks.iter().filter(|callback| !callback["table"].is_null()).collect()
    }

    /// The events that publishers were told to send: the update, and the topic it went out on.
    fn sent(&self) -> Vec<(Update, String)> {
        let steps = self.json["steps"].as_array().unwrap().iter();
        let events = steps.map(|step| &step["event"]).filter(|event| event.is_object());
        events.map(|event| self.update(event)).collect()
    }

    fn update(&self, event: &Json) -> (Update, String) {
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        let mut update = Update {
            table: text("table"),
            key: text("key"),
            action: text("action").map(Action::from),
            value: text("value").map(Value::Text),
            topic: match &event["topic"] {
                Json::Null if event.get("topic").is_none() => Some(SEND_ALL_TOPIC.to_owned()),
                topic => topic.as_str().map(str::to_owned),
            },
            timestamp: None,
        };
        if self.era == Era::Json && update.action != Some(Action::Log) {
            // 1.0.0 sends no other values
            update.value = None;
        }
        let topic = update.topic_to_send_on(event["topic_arg"].as_str()).to_owned();
        (update, topic)
    }
}

/// The messages of two frames among what passed a ZMTP relay at once.
fn messages(decoded: &[Json]) -> Vec<(String, Vec<u8>)> {
    let frames: Vec<_> = decoded.iter().filter(|item| item["kind"] == "frame").collect();
    let pairs = frames.windows(2).filter(|pair| pair[0]["part"] == 0 && pair[1]["part"] == 1);
    pairs
        .map(|pair| {
            let octets = |frame: &Json| unhex(frame["body_hex"].as_str().unwrap());
            (String::from_utf8(octets(pair[0])).unwrap(), octets(pair[1]))
        })
        .collect()
}

/// A `PUBLISH` or `message` of Redis.
fn channel_message(value: &Json) -> Option<(String, Vec<u8>)> {
    let [kind, channel, body] = value.as_array()?.as_slice() else { return None };
    if kind != "PUBLISH" && kind != "message" {
        return None;
    }
    Some((channel.as_str()?.to_owned(), unhex(body["hex"].as_str()?)))
}

/// The rows of etcd in the JSON of an HTTP message.
fn rows(text: &str) -> Vec<(String, Vec<u8>)> {
    let Some((_, after)) = text.split_once('{') else { return Vec::new() };
    let json = format!("{{{after}");
    let Some(Ok(json)) = serde_json::Deserializer::from_str(&json).into_iter::<Json>().next()
    else {
        panic!("{text}")
    };
    let row = if json.get("value").is_some() { &json } else { &json["result"]["events"][0]["kv"] };
    let (Some(key), Some(value)) = (row["key"].as_str(), row["value"].as_str()) else {
        return Vec::new();
    };
    let key = String::from_utf8(unbase64(key)).unwrap();
    vec![(key.strip_prefix("/pubsub/").unwrap().to_owned(), unbase64(value))]
}

fn unhex(text: &str) -> Vec<u8> {
    let octet = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(octet).collect()
}

fn unbase64(text: &str) -> Vec<u8> {
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut octets, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for c in text.trim_end_matches('=').chars() {
        bits = bits << 6 | u32::try_from(alphabet.find(c).unwrap()).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            octets.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    octets
}

fn read(body: &[u8]) -> Update {
    match decode(body) {
        Ok(Body::Event { update, origin: None }) => update,
        other => panic!("{body:02x?}: {other:?}"),
    }
}

fn written(codec: Codec, update: &Update, topic: &str) -> Vec<u8> {
    let origin = Origin { publisher: Uuid::nil(), epoch: 1, sequence: 1 };
    let mut body = Vec::new();
    codec.encode(update, topic, &origin, &mut body);
    body
}

/// What a callback is given.
fn arguments(update: &Update) -> Json {
    let value = match &update.value {
        None => Json::Null,
        Some(Value::Text(text)) => text.as_str().into(),
        Some(Value::Other(other)) => other.clone(),
    };
    serde_json::json!({
        "table": update.table,
        "key": update.key,
        "action": update.action.as_ref().map(Action::as_str),
        "value": value,
        "topic": update.topic,
    })
}

/// The keys of a map whose keys and values are text of the old string family or nothing, each with its
/// value's octets.
fn entries(body: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    fn text(octets: &[u8]) -> (&[u8], &[u8]) {
        let len = match octets[0] {
            0xc0 => 1,
            short @ 0xa0..=0xbf => 1 + usize::from(short - 0xa0),
            0xda => 3 + usize::from(u16::from_be_bytes([octets[1], octets[2]])),
            other => panic!("0x{other:02x}"),
        };
        octets.split_at(len)
    }

    assert_eq!(body[0], 0x85);
    let mut entries = BTreeMap::new();
    let mut rest = &body[1..];
    while !rest.is_empty() {
        let (key, after) = text(rest);
        let (value, after) = text(after);
        rest = after;
        entries.insert(key.to_vec(), value.to_vec());
    }
    assert_eq!(entries.len(), 5);
    entries
}

#[test]
fn callbacks_are_given_what_is_in_the_bodies() {
    let mut count = 0;
    for transcript in transcripts() {
        let events = transcript.events();
        if events.is_empty() {
            // none passed a relay: see the two recordings of bad messages below
            continue;
        }
        let delivered = events.iter().filter(|event| event.delivered);
        let given: Vec<_> = delivered.map(|event| arguments(&read(&event.body))).collect();
        assert_eq!(given.iter().collect::<Vec<_>>(), transcript.callbacks(), "{}", transcript.name);
        count += given.len();
    }
    assert_eq!(count, 83);
}

#[test]
fn bodies_have_the_octets_of_upstream() {
    let mut counts = BTreeMap::new();
    for transcript in transcripts() {
        let era = transcript.era;
        for Recorded { topic, body, .. } in transcript.events() {
            let update = read(&body);
            let context = format!("{}: {update:?}", transcript.name);
            match era {
                Era::Json => assert_eq!(written(Codec::Json, &update, &topic), body, "{context}"),
                Era::Map => assert_eq!(written(Codec::Msgpack, &update, &topic), body, "{context}"),
                Era::MapInAnyOrder => {
                    let ours = written(Codec::Msgpack, &update, &topic);
                    assert_eq!(entries(&ours), entries(&body), "{context}");
                }
            }
            *counts.entry(era).or_insert(0) += 1;
        }
    }
    let expected = [(Era::Json, 41), (Era::MapInAnyOrder, 54), (Era::Map, 13)];
    assert_eq!(counts, expected.into());
}

/// From what was handed to `send_event`, with the topic that a publisher of that release chose.
#[test]
fn events_have_the_octets_that_the_publisher_sent() {
    let mut count = 0;
    for transcript in transcripts() {
        let bodies: Vec<_> = transcript.events().into_iter().map(|event| event.body).collect();
        // topics that nobody is subscribed to do not leave a PUB socket
        let unsent = ["k1", "k8", "k9"];
        let filtered = transcript.name.ends_with("tcp-topics");
        let refused = transcript.name.ends_with("-redis");
        for (update, topic) in transcript.sent() {
            let key = update.key.as_deref().unwrap();
            if filtered && unsent.contains(&key) || refused && key == "k6" {
                continue;
            }
            let found = match transcript.era {
                Era::Json => bodies.contains(&written(Codec::Json, &update, &topic)),
                Era::Map => bodies.contains(&written(Codec::Msgpack, &update, &topic)),
                Era::MapInAnyOrder => {
                    let body = entries(&written(Codec::Msgpack, &update, &topic));
                    bodies.iter().any(|recorded| entries(recorded) == body)
                }
            };
            assert!(found, "{}: {update:?} on {topic}", transcript.name);
            count += 1;
        }
    }
    assert_eq!(count, 65);
}

/// Upstream answers each message that it cannot use with `sync`, here the body is an error.
#[test]
fn bad_bodies_are_told_from_good_ones_as_upstream_does() {
    let mut counts = [0; 2];
    for transcript in transcripts() {
        if !transcript.name.ends_with("bad-messages-sync") {
            continue;
        }
        for step in transcript.json["steps"].as_array().unwrap() {
            let octets = unhex(step["sent_hex"].as_str().unwrap());
            let [_, body] = &frames(&octets)[..] else { continue };
            let callback = &step["callbacks"][0];
            if callback["action"] == "sync" {
                let error = decode(body).expect_err(step["what"].as_str().unwrap());
                assert!(!error.to_string().is_empty());
                counts[0] += 1;
            } else {
                assert_eq!(&arguments(&read(body)), callback, "{}", step["what"]);
                counts[1] += 1;
            }
        }
    }
    assert_eq!(counts, [10, 10], "bad and good ones");
}

/// The frames of a peer's one message.
fn frames(octets: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    let mut rest = octets;
    while let [flags, len, after @ ..] = rest {
        assert!(*flags < 2, "short frames only");
        let (frame, after) = after.split_at((*len).into());
        frames.push(frame);
        rest = after;
    }
    frames
}
