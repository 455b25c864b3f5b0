//! [`Streams`] and [`Tracker`] together, without sockets and in a time of their own: publishers that close,
//! die and come again, a service that is stopped and killed, and a subscriber whose cable is cut and that
//! has little room. Whatever happens, what was published is delivered or told to be missing, once; and
//! nobody is taken for dead who had no time to be heard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::codec::{Origin, Positions};
use super::streams::{Passing, Streams};
use super::sync::Sync;
use super::tracker::{GRACE, PATIENCE, Tracker, Verdict};
use crate::endpoint::Endpoint;
use crate::peer::ConnectionId;

/// What is published on, and followed.
const TOPICS: [&str; 2] = ["a", "ab"];
const PUBLISHERS: usize = 3;

/// Messages that the service keeps for the subscriber.
const ROOM: usize = 6;

/// How long the service waits for a process that went without a word.
const ABANDONED: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
enum Op {
    Publish(usize, usize, u8),
    /// So many messages go from a publisher's queue to its kernel, and from there to the service.
    Write(usize, usize),
    Read(usize, usize),
    /// A publisher connects to the service that is there.
    Connect(usize),
    Close(usize),
    Kill(usize),
    ComeAgain(usize),
    /// Everybody says what has changed.
    Tick,
    Take(usize),
    /// So many of the messages that are on their way to the subscriber still come.
    Cut(usize),
    Reconnect,
    StopService,
    KillService(usize),
    StartService,
    /// Milliseconds.
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let publisher = || 0..PUBLISHERS;
    prop_oneof![
        8 => (publisher(), 0..TOPICS.len(), 1..4u8).prop_map(|(p, t, n)| Op::Publish(p, t, n)),
        6 => (publisher(), 1..10usize).prop_map(|(p, n)| Op::Write(p, n)),
        6 => (publisher(), 1..10usize).prop_map(|(p, n)| Op::Read(p, n)),
        6 => publisher().prop_map(Op::Connect),
        1 => publisher().prop_map(Op::Close),
        1 => publisher().prop_map(Op::Kill),
        2 => publisher().prop_map(Op::ComeAgain),
        4 => Just(Op::Tick),
        8 => (1..10usize).prop_map(Op::Take),
        1 => (0..ROOM).prop_map(Op::Cut),
        4 => Just(Op::Reconnect),
        1 => Just(Op::StopService),
        1 => (0..ROOM).prop_map(Op::KillService),
        6 => Just(Op::StartService),
        4 => (1..5000u64).prop_map(Op::Pass),
    ]
}

#[derive(Debug, Clone)]
enum Message {
    Event(&'static str, Origin),
    Said(Positions),
}

/// One life of a publisher.
#[derive(Debug)]
struct Publisher {
    id: Uuid,
    epoch: u64,
    streams: Streams,
    published: BTreeMap<&'static str, u64>,
    queue: VecDeque<Message>,
    /// With the kernels.
    wire: VecDeque<Message>,
    connected: bool,
    end: Option<Ended>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Closed,
    Killed(Instant),
}

impl Publisher {
    fn new(number: usize, epoch: u64) -> Self {
        let id = Uuid::from_u128(number as u128 + 1);
        Self {
            id,
            epoch,
            streams: Streams::new(id, epoch),
            published: BTreeMap::new(),
            queue: VecDeque::new(),
            wire: VecDeque::new(),
            connected: false,
            end: None,
        }
    }

    fn say(&mut self, what: Vec<(Bytes, Positions)>) {
        self.queue.extend(what.into_iter().map(|(_, positions)| Message::Said(positions)));
    }
}

#[derive(Debug)]
struct Service {
    streams: Streams,
    /// Prefixes whose subscriber has not been greeted.
    again: BTreeSet<Bytes>,
}

/// What the subscriber was told of a stream.
#[derive(Debug, Default)]
struct Book {
    accounted: BTreeSet<u64>,
    ends_unknown: bool,
    /// With which message it was heard of last.
    heard: Option<u64>,
}

type Name = (Uuid, u64, String);

struct World {
    now: Instant,
    lives: Vec<Publisher>,
    /// The last life of each publisher.
    current: [usize; PUBLISHERS],
    service: Option<Service>,
    epoch: u64,
    tracker: Tracker,
    connections: u64,
    connected: bool,
    /// Since when it is not.
    cut: Option<Instant>,
    incoming: VecDeque<(ConnectionId, Message)>,
    announcer: Option<(Uuid, u64)>,
    /// When it was last another one, and by which message that was known.
    another: Option<(Instant, u64)>,
    /// Messages that the subscriber has taken.
    taken: u64,
    books: BTreeMap<Name, Book>,
}

fn endpoint() -> Endpoint {
    "tcp://127.0.0.1:1".parse().unwrap()
}

impl World {
    /// A service, and a subscriber that knows that it is there.
    fn new() -> Self {
        let mut tracker = Tracker::default();
        TOPICS.iter().for_each(|topic| tracker.register(topic.as_bytes()));
        let mut world = Self {
            now: Instant::now(),
            lives: (0..PUBLISHERS).map(|number| Publisher::new(number, 1)).collect(),
            current: std::array::from_fn(|number| number),
            service: None,
            epoch: 0,
            tracker,
            connections: 0,
            connected: false,
            cut: None,
            incoming: VecDeque::new(),
            announcer: None,
            another: None,
            taken: 0,
            books: BTreeMap::new(),
        };
        world.step(&Op::StartService);
        world.step(&Op::Reconnect);
        world.step(&Op::Tick);
        world.step(&Op::Take(ROOM));
        world
    }

    fn step(&mut self, op: &Op) {
        let current = |number: usize| self.current[number];
        match *op {
            Op::Publish(number, topic, count) => {
                let publisher = &mut self.lives[current(number)];
                for _ in 0..count {
                    if publisher.end.is_none() {
                        let topic = TOPICS[topic];
                        let origin = publisher.streams.next(topic.as_bytes());
                        publisher.streams.sent(&origin, topic.as_bytes());
                        publisher.queue.push_back(Message::Event(topic, origin));
                        *publisher.published.entry(topic).or_default() += 1;
                    }
                }
            }
            Op::Write(number, count) => {
                let Publisher { connected, queue, wire, .. } = &mut self.lives[current(number)];
                if *connected {
                    wire.extend(queue.drain(..count.min(queue.len())));
                }
            }
            Op::Read(number, count) => self.read(current(number), count),
            Op::Connect(number) => {
                let publisher = &mut self.lives[current(number)];
                let wants = match publisher.end {
                    None => true,
                    Some(Ended::Closed) => !publisher.queue.is_empty(),
                    Some(Ended::Killed(_)) => false,
                };
                if wants && !publisher.connected && self.service.is_some() {
                    publisher.connected = true;
                    if publisher.end.is_none() {
                        let all = publisher.streams.all();
                        publisher.say(all);
                    }
                }
            }
            Op::Close(number) => {
                let publisher = &mut self.lives[current(number)];
                if publisher.end.is_none() {
                    publisher.end = Some(Ended::Closed);
                    publisher.streams.finish();
                    let changes = publisher.streams.changes();
                    publisher.say(changes);
                }
            }
            Op::Kill(number) => {
                let publisher = &mut self.lives[current(number)];
                if publisher.end.is_none() {
                    publisher.end = Some(Ended::Killed(self.now));
                    publisher.queue.clear();
                }
            }
            Op::ComeAgain(number) => {
                let at = current(number);
                if matches!(self.lives[at].end, Some(Ended::Killed(_))) {
                    self.current[number] = self.lives.len();
                    self.lives.push(Publisher::new(number, self.lives[at].epoch + 1));
                }
            }
            Op::Tick => self.tick(),
            Op::Take(count) => self.take(count),
            Op::Cut(kept) => self.cut(kept),
            Op::Reconnect => {
                if let Some(service) = self.service.as_mut().filter(|_| !self.connected) {
                    service.again.extend(TOPICS.map(Bytes::from));
                    (self.connected, self.cut) = (true, None);
                    self.connections += 1;
                    let id = ConnectionId(self.connections);
                    assert_eq!(self.tracker.connected(id, &endpoint(), true), None);
                }
            }
            Op::StopService => {
                // what processes have handed to their kernels is sent on, and what is said at the end too
                for at in 0..self.lives.len() {
                    self.read(at, usize::MAX);
                }
                let Some(mut service) = self.service.take() else { return };
                service.streams.finish();
                let changes = service.streams.changes();
                let id = ConnectionId(self.connections);
                if self.connected {
                    let said = changes.into_iter().map(|(_, said)| (id, Message::Said(said)));
                    self.incoming.extend(said);
                }
                self.lives.iter_mut().for_each(|life| life.connected = false);
                self.cut(usize::MAX);
            }
            Op::KillService(kept) => {
                if self.service.take().is_some() {
                    for life in &mut self.lives {
                        life.wire.clear();
                        life.connected = false;
                    }
                    self.cut(kept);
                }
            }
            Op::StartService => {
                if self.service.is_none() {
                    self.epoch += 1;
                    let streams = Streams::new(Uuid::nil(), self.epoch);
                    self.service = Some(Service { streams, again: BTreeSet::new() });
                }
            }
            Op::Pass(millis) => self.pass(Duration::from_millis(millis)),
        }
    }

    /// The service reads what a publisher has sent, and sends it on.
    fn read(&mut self, at: usize, count: usize) {
        for _ in 0..count {
            let Some(service) = &mut self.service else { return };
            let Some(message) = self.lives[at].wire.pop_front() else { return };
            match &message {
                Message::Event(topic, origin) => {
                    if let Passing::Begins(Some(said)) =
                        service.streams.passes(origin, topic.as_bytes())
                    {
                        self.offer(Message::Said(said));
                    }
                    self.offer(message);
                }
                Message::Said(said) => service.streams.heard(&said.positions),
            }
        }
    }

    /// Sends something to the subscriber; `false`: it has no room.
    fn offer(&mut self, message: Message) -> bool {
        let has_room = self.incoming.len() < ROOM;
        if self.connected && has_room {
            self.incoming.push_back((ConnectionId(self.connections), message));
        }
        !self.connected || has_room
    }

    fn tick(&mut self) {
        for life in self.lives.iter_mut().filter(|life| life.end.is_none()) {
            let changes = life.streams.changes();
            life.say(changes);
        }
        let Some(mut service) = self.service.take() else { return };
        if self.connected {
            let Service { streams, again } = &mut service;
            again.retain(|prefix| !self.offer(Message::Said(streams.complete(prefix))));
        }
        for (_, said) in service.streams.changes() {
            if !self.offer(Message::Said(said.clone())) {
                service.streams.say_again(&said);
            }
        }
        self.service = Some(service);
    }

    fn cut(&mut self, kept: usize) {
        if std::mem::take(&mut self.connected) {
            let id = ConnectionId(self.connections);
            let older = self.incoming.iter().filter(|(by, _)| *by != id).count();
            self.incoming.truncate(older.saturating_add(kept));
            self.tracker.disconnected(id, self.now);
            self.cut = Some(self.now);
            if let Some(service) = &mut self.service {
                service.again.clear();
            }
        }
    }

    fn take(&mut self, count: usize) {
        for _ in 0..count {
            let Some((by, message)) = self.incoming.pop_front() else { return };
            let mut syncs = Vec::new();
            self.taken += 1;
            match message {
                Message::Event(topic, origin) => {
                    let verdict =
                        self.tracker.event(Some(by), topic.as_bytes(), &origin, &mut syncs);
                    self.note(&syncs);
                    let name = (origin.publisher, origin.epoch, topic.to_owned());
                    let book = self.books.entry(name).or_default();
                    book.heard = Some(self.taken);
                    let is_new = !book.accounted.contains(&origin.sequence);
                    assert_eq!(verdict == Verdict::Deliver, is_new, "{topic} {origin:?}");
                    book.accounted.insert(origin.sequence);
                    book.ends_unknown &= verdict != Verdict::Deliver;
                }
                Message::Said(said) => {
                    let announcer = (said.announcer, said.announcer_epoch);
                    if said.complete_for.is_some()
                        && self.announcer.replace(announcer).is_some_and(|it| it != announcer)
                    {
                        self.another = Some((self.now, self.taken));
                    }
                    self.tracker.positions(Some(by), &said, self.now, &mut syncs);
                    self.note(&syncs);
                    for position in &said.positions {
                        let topic = String::from_utf8_lossy(&position.topic).into_owned();
                        let name = (position.publisher, position.epoch, topic);
                        self.books.entry(name).or_default().heard = Some(self.taken);
                    }
                }
            }
        }
    }

    fn note(&mut self, syncs: &[Sync]) {
        for sync in syncs {
            let missing = sync.missing.as_ref().expect("all peers number their events");
            let name = (missing.publisher, missing.epoch, missing.topic.clone());
            let book = self.books.entry(name).or_default();
            let Some(to) = missing.to else {
                book.ends_unknown = true;
                let life = self
                    .lives
                    .iter()
                    .find(|life| (life.id, life.epoch) == (missing.publisher, missing.epoch))
                    .expect("it has published");
                let is_dead = matches!(life.end, Some(Ended::Killed(_)));
                let had_time = self.another.is_some_and(|(at, message)| {
                    self.now >= at + GRACE && book.heard.is_none_or(|heard| heard < message)
                });
                let is_away = self.cut.is_some_and(|at| self.now >= at + PATIENCE);
                assert!(is_dead || had_time || is_away, "{missing:?}");
                continue;
            };
            for number in missing.from..=to {
                assert!(book.accounted.insert(number), "twice: {number} of {missing:?}");
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if let Some(service) = &mut self.service {
            for life in &self.lives {
                if let Some(Ended::Killed(at)) = life.end
                    && life.connected
                    && life.wire.is_empty()
                    && self.now >= at + ABANDONED
                {
                    service.streams.abandon(life.id, life.epoch);
                }
            }
        }
        let mut syncs = Vec::new();
        self.tracker.expire(self.now, &mut syncs);
        self.note(&syncs);
    }

    /// Everybody comes to an end, and the books are balanced.
    fn end(mut self) {
        let settle = |world: &mut Self| {
            for _ in 0..40 {
                for number in 0..PUBLISHERS {
                    world.step(&Op::Connect(number));
                    world.step(&Op::Write(number, 5));
                    world.step(&Op::Read(number, 5));
                    world.step(&Op::Take(usize::MAX));
                }
                for at in 0..world.lives.len() {
                    world.read(at, 2);
                    world.step(&Op::Take(usize::MAX));
                }
                world.step(&Op::Tick);
                world.step(&Op::Take(usize::MAX));
            }
        };
        self.step(&Op::StartService);
        self.step(&Op::Reconnect);
        settle(&mut self);
        (0..PUBLISHERS).for_each(|number| self.step(&Op::Close(number)));
        settle(&mut self);
        self.pass(2 * PATIENCE);
        settle(&mut self);
        // the directory says where those ended that have closed
        let closed = self.lives.iter().filter(|life| life.end == Some(Ended::Closed));
        let ends: Vec<_> =
            closed.flat_map(|life| life.streams.complete(&Bytes::new()).positions).collect();
        let mut syncs = Vec::new();
        self.tracker.ends(&ends, &mut syncs);
        self.note(&syncs);
        for life in &self.lives {
            for (topic, published) in &life.published {
                // of a stream of which nothing ever came nobody knows
                let name = (life.id, life.epoch, (*topic).to_owned());
                let Some(book) = self.books.get(&name) else { continue };
                let count = book.accounted.len() as u64;
                assert!(book.accounted.iter().copied().eq(1..=count), "{name:?}: {book:?}");
                assert!(count <= *published, "{name:?}: {published}, {book:?}");
                let is_dead = matches!(life.end, Some(Ended::Killed(_)));
                let is_told = count == *published || is_dead && book.ends_unknown;
                assert!(is_told, "{name:?}: {published}, {book:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_on_the_way_the_books_balance(ops in prop::collection::vec(op(), 0..120)) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.step(op));
        world.end();
    }
}
