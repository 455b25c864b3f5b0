//! The whole of it as processes: a directory, two publisher services, eight producers of each, four
//! subscribers, and services that are stopped and killed under load. What is published on a
//! subscriber's topics is delivered to it or told to be missing, to the unit.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::net::TcpListener;
use std::thread;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Dragonwire};

const TOPICS: [&str; 3] = ["D", "tenant-1", "tenant-2"];
const PRODUCERS: usize = 8;

/// Events of each producer on each topic.
const EVENTS: usize = 2000;

/// Events of a producer between two looks at whether it may go on.
const STRIDE: usize = 100;

struct Service {
    arguments: String,
    process: Dragonwire,
}

impl Service {
    fn start(socket: &str, directory: &str) -> Self {
        let port = free_port();
        let arguments = format!(
            "publisher-service --socket {socket} --port {port} --bind-address 127.0.0.1 \
             --codec protobuf --directory {directory}"
        );
        let process = up(&arguments);
        Self { arguments, process }
    }

    /// Stops it, and waits until its successor serves.
    fn restart(&mut self) {
        assert_eq!(self.process.end_by(Signal::TERM).status, Some(0));
        self.process = up(&self.arguments);
    }

    /// Kills it, and waits until its successor serves.
    fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait_killed();
        self.process = up(&self.arguments);
    }
}

fn up(arguments: &str) -> Dragonwire {
    let mut service = Dragonwire::start(arguments);
    service.told("publisher service up");
    service
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A producer that publishes in turn on each topic.
fn feed(name: &str, process: &mut Dragonwire, begin: usize, end: usize) {
    let mut lines = Vec::new();
    for number in begin..end {
        for topic in TOPICS {
            let key = format!("{name} {number}");
            let line = json!({"table": "t", "key": key, "action": "set", "topic": topic});
            writeln!(lines, "{line}").unwrap();
        }
    }
    process.write_octets(&lines);
}

/// What a subscriber has of a topic.
#[derive(Debug, Default)]
struct Book {
    delivered: usize,
    missing: u64,
    keys: HashSet<String>,
    /// The last number of each producer.
    last: BTreeMap<String, usize>,
}

struct Subscriber {
    topics: Vec<&'static str>,
    process: Dragonwire,
    books: BTreeMap<String, Book>,
    syncs: usize,
}

impl Subscriber {
    fn start(topics: &[&'static str], directory: &str) -> Self {
        let topics = topics.to_vec();
        let mut arguments = format!("subscribe --directory {directory}");
        for topic in &topics {
            arguments += &format!(" --topic {topic}");
        }
        let mut process = Dragonwire::start(&arguments);
        assert_eq!(process.line(), r#"{"ready":true}"#);
        let books = topics.iter().map(|topic| ((*topic).to_owned(), Book::default())).collect();
        Self { topics, process, books, syncs: 0 }
    }

    fn take(&mut self, line: &str) {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["action"] == "sync" {
            self.syncs += 1;
            let missing = &event["missing"];
            let topic = missing["topic"].as_str().unwrap_or_else(|| panic!("{line}"));
            let (from, to) = (missing["from"].as_u64().unwrap(), missing["to"].as_u64());
            let to = to.unwrap_or_else(|| panic!("{line}"));
            self.book(topic, line).missing += to - from + 1;
            return;
        }
        let (topic, key) = (event["topic"].as_str().unwrap(), event["key"].as_str().unwrap());
        let book = self.book(topic, line);
        book.delivered += 1;
        assert!(book.keys.insert(key.to_owned()), "twice: {line}");
        let (producer, number) = key.split_once(' ').unwrap();
        let number = number.parse().unwrap();
        let last = book.last.insert(producer.to_owned(), number);
        assert!(last.is_none_or(|last| last < number), "out of order: {line}");
    }

    fn book(&mut self, topic: &str, line: &str) -> &mut Book {
        self.books.get_mut(topic).unwrap_or_else(|| panic!("not subscribed to: {line}"))
    }

    /// Takes what comes until so many events have.
    fn take_until(&mut self, events: usize) {
        while self.books.values().map(|book| book.delivered).sum::<usize>() < events {
            let line = self.process.line();
            self.take(&line);
        }
    }

    fn balance(mut self) -> (usize, u64, usize) {
        let due = 2 * PRODUCERS * EVENTS;
        let settled = |book: &Book| book.delivered as u64 + book.missing == due as u64;
        let began = Instant::now();
        while !self.books.values().all(settled) {
            assert!(began.elapsed() < DEADLINE, "{:?}", self.state());
            let line = self.process.line();
            self.take(&line);
        }
        // nothing more comes: what it says of itself is what was counted
        let ended = self.process.end_by(Signal::TERM);
        for line in &ended.output {
            self.take(line);
        }
        assert!(self.books.values().all(settled), "{:?}", self.state());
        let delivered = self.books.values().map(|book| book.delivered).sum();
        let missing = self.books.values().map(|book| book.missing).sum();
        (delivered, missing, self.syncs)
    }

    fn state(&self) -> Vec<(&String, usize, u64)> {
        self.books.iter().map(|(topic, book)| (topic, book.delivered, book.missing)).collect()
    }
}

#[test]
fn the_books_of_every_subscriber_balance_over_stops_and_kills() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("directory").display().to_string();
    let mut directory =
        Dragonwire::start(&format!("directory --bind tcp://127.0.0.1:* --snapshot {snapshot}"));
    let uri = directory.bound();
    let sockets: Vec<String> = (0..2)
        .map(|at| folder.path().join(format!("service-{at}")).display().to_string())
        .collect();
    let mut services: Vec<_> = sockets.iter().map(|socket| Service::start(socket, &uri)).collect();
    let mut subscribers = [
        Subscriber::start(&TOPICS, &uri),
        Subscriber::start(&["D"], &uri),
        Subscriber::start(&["tenant-1"], &uri),
        Subscriber::start(&["D", "tenant-2"], &uri),
    ];

    let mut producers = Vec::new();
    for (at, socket) in sockets.iter().enumerate() {
        for number in 0..PRODUCERS {
            let name = format!("{at}-{number}");
            let arguments = format!(
                "publish --stdin --driver zmq-multiproc --socket {socket} --codec protobuf \
                 --directory {uri}"
            );
            producers.push((name, Dragonwire::start(&arguments)));
        }
    }
    // they publish at full speed, in strides that leave the services time to be stopped under load
    let (go, gate) = std::sync::mpsc::sync_channel::<usize>(0);
    let feeding = thread::spawn(move || {
        let mut fed = 0;
        for until in gate {
            while fed < until {
                let end = (fed + STRIDE).min(until);
                for (name, process) in &mut producers {
                    feed(name, process, fed, end);
                }
                fed = end;
            }
        }
        producers
    });
    let all = TOPICS.len() * 2 * PRODUCERS;
    for (round, share) in
        [EVENTS / 5, 2 * EVENTS / 5, 3 * EVENTS / 5, 4 * EVENTS / 5].into_iter().enumerate()
    {
        let before: usize = subscribers[0].books.values().map(|book| book.delivered).sum();
        go.send(share).unwrap();
        // some of it has arrived, most is under way
        subscribers[0].take_until(before + all * EVENTS / 5 / 10);
        match round {
            0 => services[0].restart(),
            1 => services[1].kill(),
            2 => services[0].kill(),
            _ => services[1].restart(),
        }
    }
    go.send(EVENTS).unwrap();
    drop(go);
    for (_, mut process) in feeding.join().unwrap() {
        let ended = process.finish();
        assert!(ended.output.iter().all(|line| line == r#"{"ready":true}"#), "{ended:?}");
    }
    for subscriber in subscribers {
        let topics = subscriber.topics.clone();
        let (delivered, missing, syncs) = subscriber.balance();
        println!("{topics:?}: {delivered} delivered, {missing} missing in {syncs} syncs");
    }
    for service in &mut services {
        assert_eq!(service.process.end_by(Signal::TERM).status, Some(0));
    }
    let rows = Dragonwire::start(&format!("directory list publisher --directory {uri}")).finish();
    assert!(rows.output.is_empty(), "both have removed their rows: {rows:?}");
    directory.end_by(Signal::TERM);
}
