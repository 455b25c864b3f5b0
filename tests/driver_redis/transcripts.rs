//! The recordings of Dragonflow's Redis driver: our publisher sends what it sent, and our subscriber
//! is given what its callback was given when a scripted server says what the recorded one said.

use std::path::Path;
use std::sync::{Arc, Mutex};

use dragonwire::driver::codec::{Codec, decode};
use dragonwire::driver::{Action, SubscriberEvent, SyncCause, Update};
use serde_json::Value as Json;
use tokio::sync::mpsc;

use crate::scripted::{client, commands, server};
use crate::side::{next, options, publisher, soon, subscriber, until, with_codec};

const NAMES: [&str; 2] = ["df-5.0.0-redis", "df-6-master-py3-redis"];

fn recording(name: &str) -> Json {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap()
}

/// What passed a relay on its connections that came about, in order: whether from the client, and the
/// octets.
fn passed(recording: &Json, relay: &str) -> Vec<Vec<(bool, Vec<u8>)>> {
    let relays = recording["relays"].as_array().unwrap();
    let relay = relays.iter().find(|candidate| candidate["name"] == relay).unwrap();
    let connections = relay["connections"].as_array().unwrap().iter();
    let data = |connection: &Json| {
        let events = connection["events"].as_array().unwrap().iter();
        let data = events.filter(|event| event["ev"] == "data");
        data.map(|event| (event["dir"] == "c2s", unhex(event["hex"].as_str().unwrap()))).collect()
    };
    let passed = connections.map(data);
    passed.filter(|data: &Vec<_>| !data.is_empty()).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let octet = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(octet).collect()
}

#[tokio::test]
async fn our_publisher_sends_what_the_recorded_one_sent() {
    for name in NAMES {
        let recording = recording(name);
        let [recorded] = &passed(&recording, "publisher")[..] else { panic!() };
        let sent: Vec<_> = recorded.iter().filter(|(from_client, _)| *from_client).collect();
        let mut expected: Vec<_> =
            sent.into_iter().flat_map(|(_, octets)| commands(octets.clone())).collect();
        let answers: Vec<_> = recorded
            .iter()
            .filter(|(client, _)| !client)
            .map(|(_, octets)| octets.clone())
            .collect();
        assert_eq!(answers.len(), expected.len());

        let (listener, at) = server().await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let serving = {
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut client = client(&listener).await;
                for answer in answers {
                    let command = soon(client.command()).await.unwrap();
                    heard.lock().unwrap().push(command);
                    client.say(&answer).await;
                }
            })
        };
        let publisher = publisher(with_codec(&[at], Codec::Msgpack)).await;
        for step in recording["steps"].as_array().unwrap() {
            if !step["event"].is_object() || step["what"] == "server gone" {
                continue;
            }
            let event = &step["event"];
            let text = |name: &str| event[name].as_str().unwrap();
            let mut update = Update::new(text("table"), text("key"), Action::from(text("action")));
            update = update.with_value(text("value"));
            if event["topic"].is_string() {
                update = update.with_topic(text("topic"));
            }
            soon(publisher.send_event(&update, None)).await.unwrap();
        }
        soon(serving).await.unwrap();
        let stats = publisher.stats();
        assert_eq!((stats.published, stats.unheard), (5, 2), "as the recorded server answered");

        let mut ours = std::mem::take(&mut *heard.lock().unwrap());
        if name == NAMES[0] {
            // under Python 2 the order of a map was any
            let bodies = |commands: &mut Vec<Vec<Vec<u8>>>| -> Vec<_> {
                let bodies = commands.iter_mut().map(|words| words.remove(2));
                bodies.map(|body| (body.len(), decode(&body).unwrap())).collect()
            };
            assert_eq!(bodies(&mut ours), bodies(&mut expected));
        }
        assert_eq!(ours, expected, "{name}");
    }
}

#[tokio::test]
async fn our_subscriber_is_given_what_the_recorded_callback_was_given() {
    for name in NAMES {
        let recording = recording(name);
        let (listener, at) = server().await;
        let (wanted, mut wants) = mpsc::unbounded_channel();
        let connections = passed(&recording, "subscriber");
        let serving = tokio::spawn(async move {
            let mut said = 0;
            for recorded in connections {
                // the first connection only asks what the server is
                let mut asking = client(&listener).await;
                assert_eq!(soon(asking.command()).await, None);
                let mut client = client(&listener).await;
                for (from_client, octets) in recorded {
                    if !from_client {
                        let marker = b"\r\nmessage\r\n";
                        said += octets.windows(marker.len()).filter(|part| part == marker).count();
                        client.say(&octets).await;
                        continue;
                    }
                    let mut expected = commands(octets);
                    // that driver asked twice after a cut
                    expected.dedup();
                    for words in expected {
                        wanted.send((words.clone(), said as u64)).unwrap();
                        assert_eq!(soon(client.command()).await.unwrap(), words);
                    }
                }
            }
        });
        let (subscriber, mut updates) = subscriber(options(&[at]), &[]).await;
        // what the recorded application asked for, when it did
        let registering = {
            let subscriber = subscriber.clone();
            tokio::spawn(async move {
                while let Some((words, said)) = wants.recv().await {
                    until(|| subscriber.stats().delivered == said).await;
                    let topic = String::from_utf8(words[1].clone()).unwrap();
                    if words[0] == b"SUBSCRIBE" {
                        subscriber.register_topic(&topic).await.unwrap();
                    } else {
                        subscriber.unregister_topic(&topic).await.unwrap();
                    }
                }
            })
        };
        let mut given = Vec::new();
        let recorded: Vec<_> = recording["callbacks"].as_array().unwrap().iter().collect();
        let recorded: Vec<_> =
            recorded.into_iter().filter(|callback| !callback["table"].is_null()).collect();
        let mut syncs = 0;
        while given.len() < recorded.len() {
            match next(&mut updates).await {
                SubscriberEvent::Update(update) => given.push(serde_json::json!({
                    "table": update.table,
                    "key": update.key,
                    "action": update.action.map(|action| action.to_string()),
                    "value": update.value.and_then(|value| value.as_text().map(str::to_owned)),
                    "topic": update.topic,
                })),
                SubscriberEvent::Sync(sync) => {
                    // in the place of `dbrestart`
                    assert_eq!((sync.missing, sync.cause), (None, SyncCause::Reconnected));
                    assert_eq!(given.len(), 2);
                    syncs += 1;
                }
            }
        }
        assert_eq!(given.iter().collect::<Vec<_>>(), recorded, "{name}");
        assert_eq!(syncs, 1);
        soon(serving).await.unwrap();
        registering.abort();
        soon(subscriber.close()).await.unwrap();
    }
}
