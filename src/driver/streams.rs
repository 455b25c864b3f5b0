//! The sending side of numbered events: how far each stream has come, and what is to be said of it.
//!
//! A stream is one publisher's events of one life (epoch) on one topic. A publisher has its own; the
//! publisher service also those that pass through it. Subscribers learn of them
//!
//! - in full for a prefix, when one of them has subscribed to it: from there on nothing is missed
//!   silently;
//! - of what has changed, a while after it did: so the loss of a stream's last events shows too;
//! - of a stream that begins in the middle, before its first event: so what came before the service
//!   did is not taken for lost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::codec::{End, Origin, Position, Positions};

/// Every stream that one announcer knows.
#[derive(Debug)]
pub(crate) struct Streams {
    announcer: Uuid,
    epoch: u64,
    streams: Vec<Stream>,
    index: HashMap<(Uuid, u64), HashMap<Bytes, usize>>,
    /// The stream that the last event was of: as a rule the next one's too.
    last: usize,
    /// Those of which something is to be said.
    changed: Vec<usize>,
    swept: Option<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    publisher: Uuid,
    epoch: u64,
    topic: Bytes,
}

#[derive(Debug)]
struct Stream {
    key: Key,
    first: u64,
    last: u64,
    end: End,
    changed: bool,
    /// When it was said last that this stream has come further, for those that have ended.
    ended: Option<Instant>,
}

/// What an event that passes asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Passing {
    /// Nothing.
    On,
    /// Its stream begins here; if in the middle, these positions go first.
    Begins(Option<Positions>),
}

impl Streams {
    pub(crate) fn new(announcer: Uuid, epoch: u64) -> Self {
        Self {
            announcer,
            epoch,
            streams: Vec::new(),
            index: HashMap::new(),
            last: 0,
            changed: Vec::new(),
            swept: None,
        }
    }

    /// The number of the announcer's own next event on a topic; it is given away by
    /// [`sent`](Self::sent).
    pub(crate) fn next(&mut self, topic: &[u8]) -> Origin {
        let (publisher, epoch) = (self.announcer, self.epoch);
        let at = self.find(publisher, epoch, topic);
        let last = at.and_then(|at| self.streams.get(at)).map_or(0, |stream| stream.last);
        Origin { publisher, epoch, sequence: last.saturating_add(1) }
    }

    /// The event with this origin was sent on the topic.
    pub(crate) fn sent(&mut self, origin: &Origin, topic: &[u8]) {
        self.reach(origin, topic, 1);
    }

    /// An event of somebody else's is about to be sent on.
    pub(crate) fn passes(&mut self, origin: &Origin, topic: &[u8]) -> Passing {
        if self.is_own(origin.publisher, origin.epoch) {
            return Passing::On;
        }
        let begins = self.find(origin.publisher, origin.epoch, topic).is_none();
        let at = self.reach(origin, topic, origin.sequence);
        match at.and_then(|at| self.streams.get(at)) {
            Some(stream) if begins => {
                let mut position = stream.position();
                position.last = position.first - 1;
                let missing_beginning = origin.sequence > 1;
                Passing::Begins(missing_beginning.then(|| self.positions(None, vec![position])))
            }
            _ => Passing::On,
        }
    }

    /// Another announcer says how far its streams have come.
    pub(crate) fn heard(&mut self, positions: &[Position]) {
        for said in positions {
            if self.is_own(said.publisher, said.epoch) {
                continue;
            }
            let at = match self.find(said.publisher, said.epoch, &said.topic) {
                Some(at) => at,
                None => {
                    let key = Key {
                        publisher: said.publisher,
                        epoch: said.epoch,
                        topic: said.topic.clone(),
                    };
                    // none of it came by here
                    match self.insert(key, said.last.saturating_add(1), said.last) {
                        Some(at) => at,
                        None => continue,
                    }
                }
            };
            let Some(stream) = self.streams.get_mut(at) else { continue };
            stream.last = stream.last.max(said.last);
            // what another announcer has left is what this one has
            if stream.end != End::Final && said.end != End::Left {
                stream.end = said.end;
            }
            self.mark(at);
        }
    }

    /// Every own stream ends where it is; those of others may go on elsewhere.
    pub(crate) fn finish(&mut self) {
        for at in 0..self.streams.len() {
            let Some(stream) = self.streams.get_mut(at) else { continue };
            if stream.key.publisher == self.announcer {
                stream.end = End::Final;
            } else if stream.end == End::Open {
                stream.end = End::Left;
            }
            self.mark(at);
        }
    }

    /// A publisher went without a word; what it sent last may never have come here. Tells whether
    /// that concerns any stream.
    pub(crate) fn abandon(&mut self, publisher: Uuid, epoch: u64) -> bool {
        if self.is_own(publisher, epoch) {
            return false;
        }
        let Some(topics) = self.index.get(&(publisher, epoch)) else { return false };
        let mut concerned = false;
        for at in topics.values().copied().collect::<Vec<_>>() {
            if let Some(stream) = self.streams.get_mut(at)
                && stream.end == End::Open
            {
                stream.end = End::Abandoned;
                concerned = true;
                self.mark(at);
            }
        }
        concerned
    }

    /// Only the announcer itself speaks of its own.
    fn is_own(&self, publisher: Uuid, epoch: u64) -> bool {
        publisher == self.announcer && epoch == self.epoch
    }

    /// Where the announcer's own streams are.
    pub(crate) fn own(&self) -> impl Iterator<Item = (&Bytes, u64)> {
        let own = self
            .streams
            .iter()
            .filter(|stream| self.is_own(stream.key.publisher, stream.key.epoch));
        own.map(|stream| (&stream.key.topic, stream.last))
    }

    /// All streams of topics that begin so.
    pub(crate) fn complete(&self, prefix: &Bytes) -> Positions {
        let matching = self.streams.iter().filter(|stream| stream.key.topic.starts_with(prefix));
        self.positions(Some(prefix.clone()), matching.map(Stream::position).collect())
    }

    /// All streams, by topic; first who says so, so that a service knows whom it is connected to.
    pub(crate) fn all(&self) -> Vec<(Bytes, Positions)> {
        let mut all = vec![(Bytes::new(), self.positions(None, Vec::new()))];
        all.extend(self.by_topic(0..self.streams.len()));
        all
    }

    /// What has changed since the last time, by topic.
    pub(crate) fn changes(&mut self) -> Vec<(Bytes, Positions)> {
        let changed = std::mem::take(&mut self.changed);
        for at in &changed {
            if let Some(stream) = self.streams.get_mut(*at) {
                stream.changed = false;
            }
        }
        self.by_topic(changed)
    }

    /// That change did not reach everybody: it is to be said again.
    pub(crate) fn say_again(&mut self, positions: &Positions) {
        for said in &positions.positions {
            if let Some(at) = self.find(said.publisher, said.epoch, &said.topic) {
                self.mark(at);
            }
        }
    }

    /// Forgets streams that ended a while ago. Cheap enough to be called with every tick.
    pub(crate) fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.duration_since(swept) < SWEEP) {
            return;
        }
        self.swept = Some(now);
        let mut old = false;
        for stream in &mut self.streams {
            if stream.end != End::Open {
                let ended = *stream.ended.get_or_insert(now);
                old |= now.duration_since(ended) >= KEEP;
            }
        }
        if !old {
            return;
        }
        let stays = |stream: &Stream| {
            stream.changed || stream.ended.is_none_or(|ended| now.duration_since(ended) < KEEP)
        };
        self.streams.retain(stays);
        self.index.clear();
        self.changed.clear();
        for at in 0..self.streams.len() {
            let Some(stream) = self.streams.get(at) else { continue };
            if stream.changed {
                self.changed.push(at);
            }
            let key = stream.key.clone();
            self.note(&key, at);
        }
    }

    fn note(&mut self, key: &Key, at: usize) {
        let topics = self.index.entry((key.publisher, key.epoch)).or_default();
        topics.insert(key.topic.clone(), at);
    }

    fn by_topic(&self, which: impl IntoIterator<Item = usize>) -> Vec<(Bytes, Positions)> {
        let mut topics: HashMap<&Bytes, Vec<Position>> = HashMap::new();
        for stream in which.into_iter().filter_map(|at| self.streams.get(at)) {
            topics.entry(&stream.key.topic).or_default().push(stream.position());
        }
        topics
            .into_iter()
            .map(|(topic, positions)| (topic.clone(), self.positions(None, positions)))
            .collect()
    }

    fn positions(&self, complete_for: Option<Bytes>, positions: Vec<Position>) -> Positions {
        Positions {
            announcer: self.announcer,
            announcer_epoch: self.epoch,
            complete_for,
            positions,
        }
    }

    fn reach(&mut self, origin: &Origin, topic: &[u8], first: u64) -> Option<usize> {
        let at = match self.find(origin.publisher, origin.epoch, topic) {
            Some(at) => at,
            None => {
                let key = Key {
                    publisher: origin.publisher,
                    epoch: origin.epoch,
                    topic: Bytes::copy_from_slice(topic),
                };
                self.insert(key, first, first.saturating_sub(1))?
            }
        };
        self.last = at;
        let stream = self.streams.get_mut(at)?;
        stream.last = stream.last.max(origin.sequence);
        if stream.end == End::Abandoned {
            stream.end = End::Open;
        }
        if !stream.changed {
            self.mark(at);
        }
        Some(at)
    }

    fn find(&self, publisher: Uuid, epoch: u64, topic: &[u8]) -> Option<usize> {
        let is_it = |stream: &Stream| {
            stream.key.topic == topic
                && stream.key.epoch == epoch
                && stream.key.publisher == publisher
        };
        if self.streams.get(self.last).is_some_and(is_it) {
            return Some(self.last);
        }
        self.index.get(&(publisher, epoch))?.get(topic).copied()
    }

    fn insert(&mut self, key: Key, first: u64, last: u64) -> Option<usize> {
        // the announcer's own have to be numbered, however many they are
        if self.streams.len() >= MAX_STREAMS && key.publisher != self.announcer {
            return None;
        }
        let at = self.streams.len();
        self.note(&key, at);
        self.streams.push(Stream { key, first, last, end: End::Open, changed: false, ended: None });
        Some(at)
    }

    fn mark(&mut self, at: usize) {
        if let Some(stream) = self.streams.get_mut(at)
            && !std::mem::replace(&mut stream.changed, true)
        {
            stream.ended = None;
            self.changed.push(at);
        }
    }
}

impl Stream {
    fn position(&self) -> Position {
        Position {
            publisher: self.key.publisher,
            epoch: self.key.epoch,
            topic: self.key.topic.clone(),
            first: self.first,
            last: self.last,
            end: self.end,
        }
    }
}

/// More streams of others than that are not announced: some 20 MiB.
const MAX_STREAMS: usize = 1 << 17;

/// How often ended streams are looked for, and how long they are kept for subscribers that were
/// away.
const SWEEP: Duration = Duration::from_secs(60);
const KEEP: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(publisher: u128, sequence: u64) -> Origin {
        Origin { publisher: Uuid::from_u128(publisher), epoch: 1, sequence }
    }

    fn said(positions: &Positions) -> Vec<(u128, u64, u64, bool)> {
        let of = |position: &Position| {
            (
                position.publisher.as_u128(),
                position.first,
                position.last,
                position.end == End::Final,
            )
        };
        let mut said: Vec<_> = positions.positions.iter().map(of).collect();
        said.sort_unstable();
        said
    }

    #[test]
    fn a_publishers_events_are_numbered_per_topic() {
        let mut streams = Streams::new(Uuid::from_u128(7), 1);
        for (topic, sequence) in [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)] {
            let next = streams.next(topic.as_bytes());
            assert_eq!(next, origin(7, sequence));
            // asked for again before it was sent: cancelled in between
            assert_eq!(streams.next(topic.as_bytes()), next);
            streams.sent(&next, topic.as_bytes());
        }
        assert_eq!(said(&streams.complete(&Bytes::from("a"))), [(7, 1, 3, false)]);
        assert_eq!(said(&streams.complete(&Bytes::from(""))), [(7, 1, 2, false), (7, 1, 3, false)]);
    }

    #[test]
    fn what_changed_is_said_once_and_again_if_it_was_not_heard() {
        let mut streams = Streams::new(Uuid::from_u128(7), 1);
        streams.sent(&origin(7, 1), b"a");
        let changes = streams.changes();
        assert_eq!(changes.len(), 1);
        assert!(streams.changes().is_empty());
        streams.say_again(&changes[0].1);
        assert_eq!(streams.changes(), changes);
        streams.passes(&origin(8, 1), b"a");
        streams.changes();
        streams.finish();
        let ends = streams.changes().remove(0).1.positions;
        let ends: Vec<_> = ends.iter().map(|end| (end.publisher.as_u128(), end.end)).collect();
        assert_eq!(ends, [(7, End::Final), (8, End::Left)]);
    }

    #[test]
    fn a_stream_that_begins_in_the_middle_is_announced_first() {
        let mut streams = Streams::new(Uuid::from_u128(1), 1);
        assert_eq!(streams.passes(&origin(7, 1), b"a"), Passing::Begins(None));
        assert_eq!(streams.passes(&origin(7, 2), b"a"), Passing::On);
        let Passing::Begins(Some(positions)) = streams.passes(&origin(8, 5), b"a") else {
            panic!()
        };
        assert_eq!(said(&positions), [(8, 5, 4, false)]);
        assert_eq!(streams.passes(&origin(8, 6), b"a"), Passing::On);
        assert_eq!(said(&streams.complete(&Bytes::new())), [(7, 1, 2, false), (8, 5, 6, false)]);
    }

    #[test]
    fn what_producers_say_is_passed_on() {
        let mut streams = Streams::new(Uuid::from_u128(1), 1);
        streams.passes(&origin(7, 1), b"a");
        streams.changes();
        let position = |publisher: u128, last, end| Position {
            publisher: Uuid::from_u128(publisher),
            epoch: 1,
            topic: Bytes::from("a"),
            first: 1,
            last,
            end,
        };
        streams.heard(&[position(7, 3, End::Final), position(9, 20, End::Open)]);
        assert_eq!(said(&streams.changes()[0].1), [(7, 1, 3, true), (9, 21, 20, false)]);
    }

    #[test]
    fn a_publisher_that_went_without_a_word_is_abandoned_until_it_is_back() {
        let mut streams = Streams::new(Uuid::from_u128(1), 1);
        streams.passes(&origin(7, 1), b"a");
        streams.passes(&origin(8, 1), b"a");
        streams.changes();
        assert!(streams.abandon(Uuid::from_u128(7), 1));
        assert!(!streams.abandon(Uuid::from_u128(9), 1));
        let changes = streams.changes();
        assert_eq!(changes[0].1.positions.len(), 1);
        assert_eq!(changes[0].1.positions[0].end, End::Abandoned);
        streams.passes(&origin(7, 2), b"a");
        assert_eq!(streams.changes()[0].1.positions[0].end, End::Open);
    }

    #[test]
    fn streams_that_ended_are_forgotten_after_a_while() {
        let mut streams = Streams::new(Uuid::from_u128(1), 1);
        let mut now = Instant::now();
        streams.passes(&origin(7, 1), b"a");
        streams.passes(&origin(8, 1), b"a");
        let ended = streams.complete(&Bytes::new()).positions.into_iter();
        let mut ended: Vec<_> = ended.filter(|said| said.publisher.as_u128() == 7).collect();
        ended[0].end = End::Final;
        streams.heard(&ended);
        streams.changes();
        streams.sweep(now);
        assert_eq!(streams.complete(&Bytes::new()).positions.len(), 2);
        now += KEEP;
        streams.sweep(now);
        assert_eq!(said(&streams.complete(&Bytes::new())), [(8, 1, 1, false)]);
        assert_eq!(streams.passes(&origin(8, 2), b"a"), Passing::On);
        assert_eq!(said(&streams.changes()[0].1), [(8, 1, 2, false)]);
    }
}
