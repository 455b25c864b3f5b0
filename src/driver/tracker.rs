//! The receiving side of numbered events: what is missing, to the unit.
//!
//! For every topic and endpoint there is a moment from which on nothing may be missing: when the
//! publisher (or the service) has answered the subscription by saying how far all its streams have
//! come. From then on a stream is owed in full: its gaps are missing, and what the announcer says it
//! has sent and that did not come. It stays so when the connection breaks; a stream that is not known
//! when the connection is back was born in between, and is owed from its first event.

use std::collections::{BTreeSet, HashMap, VecDeque};

use std::time::{Duration, Instant};

use bytes::Bytes;
use uuid::Uuid;

use super::codec::{End, Origin, Position, Positions};
use super::sync::{Missing, Sync, SyncCause};
use crate::endpoint::Endpoint;
use crate::peer::ConnectionId;

/// What a subscriber knows of the streams it follows.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    topics: BTreeSet<Bytes>,
    /// Only the topics themselves are followed, not those that begin so.
    exact: bool,
    publishers: HashMap<Uuid, Vec<Life>>,
    streams: usize,
    links: HashMap<Endpoint, Link>,
    connections: HashMap<ConnectionId, Endpoint>,
    /// Connections that are gone, oldest first: events that came by them may not have been taken yet.
    gone: VecDeque<ConnectionId>,
    /// Connections to endpoints that are not followed any more.
    left: VecDeque<ConnectionId>,
    /// Counts topics that became owed.
    order: u64,
}

/// One life of a publisher.
#[derive(Debug)]
struct Life {
    epoch: u64,
    /// The endpoint that it was heard of by last.
    by: Option<Endpoint>,
    streams: HashMap<Bytes, Stream>,
    /// A later one has begun: where this one ended may still be told, with the greeting that follows
    /// the first events, until then.
    superseded: bool,
    ends_at: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stream {
    /// The number of the next event.
    next: u64,
    /// Nothing follows.
    is_final: bool,
    /// It was said that its end is not known.
    end_unknown: bool,
    /// Who announced it has closed in good order: nothing of it was lost there.
    left: bool,
    /// Its announcer is another one now, which has not said anything of it.
    unheard: bool,
}

/// What is known of an endpoint, over all its connections.
#[derive(Debug, Default)]
struct Link {
    connection: Option<ConnectionId>,
    /// The peer numbers events and says how far they have come.
    announces: bool,
    /// The topics that are owed, with who had announced it then, and in which order they became so.
    owed: HashMap<Bytes, ((Uuid, u64), u64)>,
    /// Who announced last.
    announcer: Option<(Uuid, u64)>,
    /// If that is another one than before: until when those whose streams it does not know may come to
    /// it.
    successor_until: Option<Instant>,
    /// When the connection broke.
    since: Option<Instant>,
    /// There was a connection that broke, and what it missed is not known yet.
    broken: bool,
    /// Events without numbers came by it: a service sends on what it gets.
    unnumbered: bool,
    /// Such events may have been lost with a connection before this one; not told yet.
    unnumbered_doubt: bool,
}

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is to be delivered.
    Deliver,
    /// It came before, or was told to be missing.
    Late,
}

impl Tracker {
    pub(crate) fn new(exact: bool) -> Self {
        Self { exact, ..Self::default() }
    }

    /// A topic is followed from now on.
    pub(crate) fn register(&mut self, topic: &[u8]) {
        self.topics.insert(Bytes::copy_from_slice(topic));
    }

    /// A topic is not followed any more.
    pub(crate) fn unregister(&mut self, topic: &[u8]) {
        self.topics.remove(topic);
        for link in self.links.values_mut() {
            link.owed.remove(topic);
        }
        let mut publishers = std::mem::take(&mut self.publishers);
        for life in publishers.values_mut().flatten() {
            life.streams.retain(|name, _| self.follows(name));
        }
        self.publishers = publishers;
        self.count();
    }

    /// There is a connection. `announces`: the peer is one that numbers events. If it is not, and
    /// was away, what it sent meanwhile is lost.
    pub(crate) fn connected(
        &mut self,
        connection: ConnectionId,
        endpoint: &Endpoint,
        announces: bool,
    ) -> Option<Sync> {
        self.connections.insert(connection, endpoint.clone());
        let link = self.links.entry(endpoint.clone()).or_default();
        if link.connection.replace(connection).is_some_and(|earlier| earlier != connection) {
            // its end was not told
            link.broken = true;
        }
        link.announces = announces;
        link.since = None;
        if !link.broken {
            return None;
        }
        if announces {
            // numbered events will be accounted for
            link.unnumbered_doubt = !link.unnumbered;
        } else {
            link.broken = false;
        }
        let unknown = Sync { missing: None, cause: SyncCause::Reconnected };
        (!announces || link.unnumbered).then_some(unknown)
    }

    /// A process has connected to this side. Processes come and go, and one that is new says nothing
    /// of the others.
    pub(crate) fn accepted(&mut self, connection: ConnectionId, endpoint: &Endpoint) {
        self.connections.insert(connection, endpoint.clone());
    }

    /// An event without a number came. Should others have been lost with an earlier connection, that
    /// is told now.
    pub(crate) fn unnumbered(&mut self, by: Option<ConnectionId>) -> Option<Sync> {
        let link = self.links.get_mut(self.connections.get(&by?)?)?;
        link.unnumbered = true;
        let doubt = std::mem::take(&mut link.unnumbered_doubt);
        doubt.then_some(Sync { missing: None, cause: SyncCause::Reconnected })
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self, connection: ConnectionId, now: Instant) {
        let Some(endpoint) = self.connections.get(&connection) else { return };
        if let Some(link) = self.links.get_mut(endpoint)
            && link.connection == Some(connection)
        {
            link.connection = None;
            link.broken = true;
            link.since = Some(now);
        }
        self.gone.push_back(connection);
        if self.gone.len() > KEPT_CONNECTIONS
            && let Some(oldest) = self.gone.pop_front()
        {
            self.connections.remove(&oldest);
        }
    }

    /// Whether the connection is one to an endpoint that is not followed any more.
    pub(crate) fn has_left(&self, connection: ConnectionId) -> bool {
        self.left.contains(&connection)
    }

    /// The endpoint that a connection is to, or was accepted on.
    pub(crate) fn endpoint_of(&self, connection: ConnectionId) -> Option<&Endpoint> {
        self.connections.get(&connection)
    }

    /// Whether the connection was noted.
    pub(crate) fn knows(&self, connection: ConnectionId) -> bool {
        self.connections.contains_key(&connection)
    }

    /// Whether exactly this topic is followed.
    pub(crate) fn is_registered(&self, topic: &[u8]) -> bool {
        self.topics.contains(topic)
    }

    /// Whether every peer that numbers its events has said where its streams are.
    pub(crate) fn is_settled(&self) -> bool {
        let mut there = self.links.values().filter(|link| link.connection.is_some());
        there.all(|link| {
            let told = |topic| link.owed.contains_key(topic);
            !link.announces || !link.broken && self.topics.iter().all(told)
        })
    }

    /// The endpoint is not followed any more. If it was away, nobody will say what it sent then,
    /// unless all of its streams have ended.
    pub(crate) fn removed(&mut self, endpoint: &Endpoint) -> Vec<Sync> {
        let connections = self.connections.iter().filter(|(_, of)| *of == endpoint);
        self.left.extend(connections.map(|(connection, _)| *connection));
        self.connections.retain(|_, of| of != endpoint);
        while self.left.len() > KEPT_CONNECTIONS {
            self.left.pop_front();
        }
        let Some(link) = self.links.get_mut(endpoint) else { return Vec::new() };
        // what it owes is kept: it may be followed again, and is then asked for what it sent meanwhile
        let was_away = link.connection.take().is_none() && link.broken;
        (link.broken, link.since) = (true, None);
        if !was_away {
            return Vec::new();
        }
        if !link.announces {
            return vec![Sync { missing: None, cause: SyncCause::PublisherEnded }];
        }
        let mut ended = Vec::new();
        for (publisher, lives) in &mut self.publishers {
            for life in lives.iter_mut().filter(|life| life.by.as_ref() == Some(endpoint)) {
                life.end(*publisher, &mut ended, |stream| !stream.left);
            }
        }
        ended
    }

    /// An event came.
    pub(crate) fn event(
        &mut self,
        by: Option<ConnectionId>,
        topic: &[u8],
        origin: &Origin,
        missing: &mut Vec<Sync>,
    ) -> Verdict {
        self.take(by, topic, origin, true, missing)
    }

    /// An event came that cannot be read: it is missing.
    pub(crate) fn unreadable(
        &mut self,
        by: Option<ConnectionId>,
        topic: &[u8],
        origin: &Origin,
        missing: &mut Vec<Sync>,
    ) {
        self.take(by, topic, origin, false, missing);
    }

    fn take(
        &mut self,
        by: Option<ConnectionId>,
        topic: &[u8],
        origin: &Origin,
        readable: bool,
        missing: &mut Vec<Sync>,
    ) -> Verdict {
        let Origin { publisher, epoch, sequence } = *origin;
        // as a rule it is known, and looked for once
        if let Some(stream) = self.stream(publisher, epoch, topic) {
            return stream.take(topic, origin, readable, missing);
        }
        self.end_earlier_lives(by, publisher, epoch, missing);
        let first = if self.owed(by, topic).is_some() { 1 } else { sequence };
        if !self.begin(by, publisher, epoch, topic, first) {
            return Verdict::Deliver;
        }
        match self.stream(publisher, epoch, topic) {
            Some(stream) => stream.take(topic, origin, readable, missing),
            None => Verdict::Deliver,
        }
    }

    /// An announcer says how far streams have come.
    pub(crate) fn positions(
        &mut self,
        by: Option<ConnectionId>,
        said: &Positions,
        now: Instant,
        missing: &mut Vec<Sync>,
    ) {
        let announcer = (said.announcer, said.announcer_epoch);
        // ends first: an earlier life that says where it ended does not end unknown
        let (ends, others): (Vec<_>, Vec<_>) =
            said.positions.iter().partition(|position| position.end == End::Final);
        for position in ends.into_iter().chain(others) {
            if self.follows(&position.topic) {
                self.position(by, announcer, position, missing);
            }
        }
        self.end_earlier_lives(by, said.announcer, said.announcer_epoch, missing);
        let Some(prefix) = &said.complete_for else { return };
        let Some(endpoint) = by.and_then(|by| self.connections.get(&by)).cloned() else { return };
        let Some(link) = self.links.get_mut(&endpoint) else { return };
        link.broken = false;
        link.announces = true;
        for topic in &self.topics {
            // of a longer topic all is known as well
            if topic.starts_with(prefix) && !link.owed.contains_key(topic) {
                self.order += 1;
                link.owed.insert(topic.clone(), (announcer, self.order));
            }
        }
        let is_another =
            link.announcer.replace(announcer).is_some_and(|before| before != announcer);
        if is_another {
            // if it is not the first to come after others, those have as long once more
            link.successor_until = Some(now + GRACE);
            // those who published by the one before may be on their way to this one, or dead
            for life in self.publishers.values_mut().flatten() {
                if life.by.as_ref() == Some(&endpoint) {
                    life.streams.values_mut().for_each(|stream| stream.unheard = true);
                }
            }
            for position in &said.positions {
                self.hear(position);
            }
        }
    }

    fn hear(&mut self, said: &Position) {
        if let Some(stream) = self.stream(said.publisher, said.epoch, &said.topic) {
            stream.unheard = false;
        }
    }

    /// For so long nobody was listened to: who is waited for has as much longer.
    pub(crate) fn delay(&mut self, by: Duration) {
        for link in self.links.values_mut() {
            link.successor_until.iter_mut().chain(&mut link.since).for_each(|at| *at += by);
        }
        let lives = self.publishers.values_mut().flatten();
        lives.filter_map(|life| life.ends_at.as_mut()).for_each(|at| *at += by);
    }

    /// What has not been heard of for too long is told to end unknown. To be called now and then.
    pub(crate) fn expire(&mut self, now: Instant, missing: &mut Vec<Sync>) {
        let (mut expired, mut ended) = (Vec::new(), Vec::new());
        for (endpoint, link) in &mut self.links {
            if link.successor_until.take_if(|until| now >= *until).is_some() {
                expired.push(endpoint.clone());
            }
            if link.announces && link.since.is_some_and(|since| now >= since + PATIENCE) {
                link.since = None;
                ended.push(endpoint.clone());
            }
        }
        for (publisher, lives) in &mut self.publishers {
            for life in lives {
                if life.superseded && now >= *life.ends_at.get_or_insert(now + GRACE) {
                    life.end(*publisher, missing, |_| true);
                    (life.superseded, life.ends_at) = (false, None);
                }
                let Some(by) = &life.by else { continue };
                if ended.contains(by) {
                    life.end(*publisher, missing, |stream| !stream.left);
                } else if expired.contains(by) {
                    life.end(*publisher, missing, |stream| stream.unheard);
                }
            }
        }
    }

    fn position(
        &mut self,
        by: Option<ConnectionId>,
        announcer: (Uuid, u64),
        said: &Position,
        missing: &mut Vec<Sync>,
    ) {
        let Position { publisher, epoch, topic, first, last, end } = said;
        if self.stream(*publisher, *epoch, topic).is_none() {
            let next = match self.owed(by, topic) {
                // it begins with this announcer, which was there before
                Some(then) if then == announcer => *first,
                // the announcer is another one: what went by the one before it was lost with it
                Some(_) => 1,
                // all of it came before this subscriber did
                None => last.saturating_add(1),
            };
            if *end != End::Final {
                self.end_earlier_lives(by, *publisher, *epoch, missing);
            }
            if !self.begin(by, *publisher, *epoch, topic, next) {
                return;
            }
        }
        let Some(stream) = self.stream(*publisher, *epoch, topic) else { return };
        stream.unheard = false;
        stream.is_final |= *end == End::Final;
        if *last >= stream.next {
            let from = std::mem::replace(&mut stream.next, last.saturating_add(1));
            missing.push(gap(*publisher, *epoch, topic, from, *last, SyncCause::Gap));
        }
        match end {
            End::Abandoned => missing.extend(stream.end_unknown(*publisher, *epoch, topic)),
            End::Left => stream.left = true,
            End::Open | End::Final => {}
        }
    }

    /// Somebody else than an announcer says where streams have ended.
    pub(crate) fn ends(&mut self, ends: &[Position], missing: &mut Vec<Sync>) {
        for said in ends {
            let Some(stream) = self.stream(said.publisher, said.epoch, &said.topic) else {
                continue;
            };
            stream.is_final = true;
            if said.last >= stream.next {
                let from = std::mem::replace(&mut stream.next, said.last.saturating_add(1));
                let Position { publisher, epoch, topic, last, .. } = said;
                missing.push(gap(*publisher, *epoch, topic, from, *last, SyncCause::Gap));
            }
        }
    }

    /// A publisher is in another life: what it sent last in those before it is not known, unless it
    /// was said.
    fn end_earlier_lives(
        &mut self,
        by: Option<ConnectionId>,
        publisher: Uuid,
        epoch: u64,
        missing: &mut Vec<Sync>,
    ) {
        let Some(lives) = self.publishers.get_mut(&publisher) else { return };
        for life in lives.iter_mut().filter(|life| life.epoch < epoch) {
            if by.is_some() {
                life.superseded = true;
            } else {
                // by way of a broker nobody greets
                life.end(publisher, missing, |_| true);
            }
        }
        // of the earlier ones only the latest are kept, for what may still be said of them
        while lives.len() > KEPT_LIVES {
            let oldest = lives.iter().enumerate().min_by_key(|(_, life)| life.epoch);
            let Some((at, _)) = oldest else { break };
            let life = lives.swap_remove(at);
            self.streams = self.streams.saturating_sub(life.streams.len());
        }
    }

    fn follows(&self, topic: &[u8]) -> bool {
        if self.exact {
            return self.topics.contains(topic);
        }
        self.topics.iter().any(|prefix| topic.starts_with(prefix))
    }

    /// Whether the stream of a topic that begins now is owed in full, and by whom it was first.
    fn owed(&self, by: Option<ConnectionId>, topic: &[u8]) -> Option<(Uuid, u64)> {
        let link = self.links.get(self.connections.get(&by?)?)?;
        // of several prefixes that which was owed first
        let owed = link.owed.iter().filter(|(prefix, _)| topic.starts_with(prefix));
        owed.map(|(_, owed)| owed).min_by_key(|(_, order)| *order).map(|(announcer, _)| *announcer)
    }

    fn stream(&mut self, publisher: Uuid, epoch: u64, topic: &[u8]) -> Option<&mut Stream> {
        let lives = self.publishers.get_mut(&publisher)?;
        lives.iter_mut().find(|life| life.epoch == epoch)?.streams.get_mut(topic)
    }

    /// A stream that was not known. Tells whether it is followed: beyond a bound it is not.
    fn begin(
        &mut self,
        by: Option<ConnectionId>,
        publisher: Uuid,
        epoch: u64,
        topic: &[u8],
        next: u64,
    ) -> bool {
        if self.streams >= MAX_STREAMS {
            self.forget_ended();
        }
        if self.streams >= MAX_STREAMS {
            return false;
        }
        let by = by.and_then(|by| self.connections.get(&by)).cloned();
        let lives = self.publishers.entry(publisher).or_default();
        let at = match lives.iter().position(|life| life.epoch == epoch) {
            Some(at) => at,
            None => {
                lives.push(Life {
                    epoch,
                    by: None,
                    streams: HashMap::new(),
                    superseded: false,
                    ends_at: None,
                });
                lives.len() - 1
            }
        };
        let Some(life) = lives.get_mut(at) else { return false };
        life.by = by;
        let stream = Stream { next: next.max(1), ..Stream::default() };
        life.streams.insert(Bytes::copy_from_slice(topic), stream);
        self.streams += 1;
        true
    }

    /// Makes room: of what has ended nothing more is to come.
    fn forget_ended(&mut self) {
        for life in self.publishers.values_mut().flatten() {
            life.streams.retain(|_, stream| !stream.is_final && !stream.end_unknown);
        }
        self.count();
    }

    fn count(&mut self) {
        self.publishers.retain(|_, lives| {
            lives.retain(|life| !life.streams.is_empty());
            !lives.is_empty()
        });
        let lives = self.publishers.values().flatten();
        self.streams = lives.map(|life| life.streams.len()).sum();
    }
}

impl Life {
    fn end(
        &mut self,
        publisher: Uuid,
        missing: &mut Vec<Sync>,
        concerned: impl Fn(&Stream) -> bool,
    ) {
        for (topic, stream) in self.streams.iter_mut().filter(|(_, stream)| concerned(stream)) {
            missing.extend(stream.end_unknown(publisher, self.epoch, topic));
        }
    }
}

impl Stream {
    /// An event of it came.
    fn take(
        &mut self,
        topic: &[u8],
        origin: &Origin,
        readable: bool,
        missing: &mut Vec<Sync>,
    ) -> Verdict {
        let Origin { publisher, epoch, sequence } = *origin;
        if sequence < self.next {
            return Verdict::Late;
        }
        let last_missing = if readable { sequence - 1 } else { sequence };
        (self.end_unknown, self.left, self.unheard) = (false, false, false);
        let from = std::mem::replace(&mut self.next, sequence.saturating_add(1));
        if last_missing >= from {
            let cause = if readable { SyncCause::Gap } else { SyncCause::Undecodable };
            missing.push(gap(publisher, epoch, topic, from, last_missing, cause));
        }
        Verdict::Deliver
    }

    /// It ends here, and nobody said that it does: told once.
    fn end_unknown(&mut self, publisher: Uuid, epoch: u64, topic: &[u8]) -> Option<Sync> {
        if self.is_final || std::mem::replace(&mut self.end_unknown, true) {
            return None;
        }
        let topic = String::from_utf8_lossy(topic).into_owned();
        let missing = Missing { publisher, epoch, topic, from: self.next, to: None };
        Some(Sync { missing: Some(missing), cause: SyncCause::PublisherEnded })
    }
}

fn gap(publisher: Uuid, epoch: u64, topic: &[u8], from: u64, to: u64, cause: SyncCause) -> Sync {
    let topic = String::from_utf8_lossy(topic).into_owned();
    Sync { missing: Some(Missing { publisher, epoch, topic, from, to: Some(to) }), cause }
}

/// Streams beyond that are delivered without being followed: some 20 MiB.
const MAX_STREAMS: usize = 1 << 17;

/// How long publishers have to show themselves to a service that took the place of another.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// A connection that was away for longer is no hiccup.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Connections that are gone and still known.
const KEPT_CONNECTIONS: usize = 1024;

/// How many lives of a publisher are kept.
const KEPT_LIVES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// A tracker that follows "a" by one endpoint.
    struct Run {
        tracker: Tracker,
        connections: u64,
        syncs: Vec<Sync>,
        now: Instant,
    }

    fn endpoint() -> Endpoint {
        "tcp://127.0.0.1:1".parse().unwrap()
    }

    fn uuid(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn at(publisher: u128, epoch: u64, first: u64, last: u64, is_final: bool) -> Position {
        Position {
            publisher: uuid(publisher),
            epoch,
            topic: Bytes::from("a"),
            first,
            last,
            end: if is_final { End::Final } else { End::Open },
        }
    }

    impl Run {
        fn new() -> Self {
            let mut tracker = Tracker::default();
            tracker.register(b"a");
            Self { tracker, connections: 0, syncs: Vec::new(), now: Instant::now() }
        }

        fn by(&self) -> Option<ConnectionId> {
            Some(ConnectionId(self.connections))
        }

        fn connect(&mut self, announces: bool) -> Option<Sync> {
            self.connections += 1;
            self.tracker.connected(ConnectionId(self.connections), &endpoint(), announces)
        }

        fn disconnect(&mut self) {
            self.tracker.disconnected(ConnectionId(self.connections), self.now);
        }

        fn event(&mut self, publisher: u128, epoch: u64, sequence: u64) -> Verdict {
            let origin = Origin { publisher: uuid(publisher), epoch, sequence };
            let by = self.by();
            self.tracker.event(by, b"a", &origin, &mut self.syncs)
        }

        fn said(&mut self, announcer: u128, complete: bool, positions: Vec<Position>) {
            let said = Positions {
                announcer: uuid(announcer),
                announcer_epoch: 1,
                complete_for: complete.then(|| Bytes::from("a")),
                positions,
            };
            let by = self.by();
            self.tracker.positions(by, &said, self.now, &mut self.syncs);
        }

        /// Publisher, epoch, from and to of what is missing.
        fn missing(&mut self) -> Vec<(u128, u64, u64, Option<u64>)> {
            let missing = self.syncs.drain(..).map(|sync| sync.missing.unwrap());
            missing.map(|gap| (gap.publisher.as_u128(), gap.epoch, gap.from, gap.to)).collect()
        }
    }

    #[test]
    fn gaps_are_missing_and_what_comes_late_is_not_delivered() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        for (sequence, verdict) in
            [(1, Verdict::Deliver), (2, Verdict::Deliver), (2, Verdict::Late)]
        {
            assert_eq!(run.event(7, 1, sequence), verdict);
        }
        assert_eq!(run.missing(), []);
        assert_eq!(run.event(7, 1, 6), Verdict::Deliver);
        assert_eq!(run.missing(), [(7, 1, 3, Some(5))]);
        assert_eq!(run.event(7, 1, 4), Verdict::Late);
        assert_eq!(run.missing(), []);
    }

    #[test]
    fn what_was_published_before_the_subscriber_came_is_not_missing() {
        let mut run = Run::new();
        run.connect(true);
        // before it is told how far streams are, the first event is where one begins
        run.event(7, 1, 30);
        run.said(1, true, vec![at(7, 1, 1, 30, false), at(8, 1, 1, 12, false)]);
        run.event(8, 1, 13);
        assert_eq!(run.missing(), []);
        // a stream that is born from then on is owed from its beginning
        run.event(9, 1, 3);
        assert_eq!(run.missing(), [(9, 1, 1, Some(2))]);
    }

    #[test]
    fn the_end_of_a_stream_shows_by_its_position() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.said(1, false, vec![at(7, 1, 1, 1, false)]);
        assert_eq!(run.missing(), []);
        run.said(1, false, vec![at(7, 1, 1, 4, true)]);
        assert_eq!(run.missing(), [(7, 1, 2, Some(4))]);
    }

    #[test]
    fn what_was_sent_while_the_connection_was_away_is_missing() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.disconnect();
        run.connect(true);
        run.said(1, true, vec![at(7, 1, 1, 5, false), at(8, 1, 1, 2, false)]);
        let mut missing = run.missing();
        missing.sort_unstable();
        assert_eq!(missing, [(7, 1, 2, Some(5)), (8, 1, 1, Some(2))]);
        run.disconnect();
        run.connect(true);
        run.said(1, true, vec![at(7, 1, 1, 5, false)]);
        assert_eq!(run.missing(), [], "nothing was sent meanwhile");
    }

    #[test]
    fn a_stream_that_another_service_saw_the_beginning_of_is_owed_only_if_that_one_was_followed() {
        // the service was the same all the time: what it did not see went by before
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.said(1, false, vec![at(7, 1, 40, 39, false)]);
        run.event(7, 1, 40);
        assert_eq!(run.missing(), []);
        // it is another one now: what the one before it saw was lost with it
        run.disconnect();
        run.connect(true);
        run.said(2, true, vec![at(8, 1, 40, 39, false)]);
        assert_eq!(run.missing(), [(8, 1, 1, Some(39))]);
    }

    #[test]
    fn a_life_that_ends_without_a_word_ends_unknown_until_its_end_is_learnt() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.event(7, 2, 1);
        run.tracker.expire(run.now, &mut run.syncs);
        assert_eq!(run.missing(), [], "it may be told in a moment");
        run.tracker.delay(GRACE);
        run.tracker.expire(run.now + GRACE, &mut run.syncs);
        assert_eq!(run.missing(), []);
        run.tracker.expire(run.now + 2 * GRACE, &mut run.syncs);
        assert_eq!(run.missing(), [(7, 1, 2, None)]);
        run.event(7, 2, 2);
        assert_eq!(run.missing(), []);
        run.said(1, false, vec![at(7, 1, 1, 9, true)]);
        assert_eq!(run.missing(), [(7, 1, 2, Some(9))]);
    }

    #[test]
    fn a_stream_that_was_abandoned_ends_unknown_and_may_go_on() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        let abandoned = Position { end: End::Abandoned, ..at(7, 1, 1, 3, false) };
        for _ in 0..2 {
            run.said(1, false, vec![abandoned.clone()]);
        }
        assert_eq!(run.missing(), [(7, 1, 2, Some(3)), (7, 1, 4, None)]);
        assert_eq!(run.event(7, 1, 4), Verdict::Deliver);
        assert_eq!(run.missing(), []);
    }

    #[test]
    fn a_successor_that_knows_where_it_ended_says_so() {
        let mut run = Run::new();
        run.connect(true);
        run.said(7, true, vec![]);
        run.event(7, 1, 1);
        run.said(7, false, vec![at(7, 2, 1, 1, false), at(7, 1, 1, 9, true)]);
        assert_eq!(run.missing(), [(7, 1, 2, Some(9)), (7, 2, 1, Some(1))]);
        run.event(7, 2, 2);
        assert_eq!(run.missing(), []);
    }

    #[test]
    fn of_a_peer_that_numbers_nothing_only_the_reconnection_is_known() {
        let mut run = Run::new();
        assert_eq!(run.connect(false), None);
        run.disconnect();
        let sync = run.connect(false).unwrap();
        assert_eq!(sync, Sync { missing: None, cause: SyncCause::Reconnected });
    }

    #[test]
    fn who_does_not_come_to_a_services_successor_has_ended() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.event(8, 1, 1);
        run.disconnect();
        run.connect(true);
        run.said(2, true, vec![]);
        run.said(2, false, vec![at(8, 1, 2, 1, false)]);
        run.now += GRACE;
        run.tracker.delay(GRACE / 2);
        run.tracker.expire(run.now, &mut run.syncs);
        assert_eq!(run.missing(), [], "it may have come and not been heard");
        run.now += GRACE / 2;
        run.tracker.expire(run.now, &mut run.syncs);
        assert_eq!(run.missing(), [(7, 1, 2, None)]);
        run.tracker.expire(run.now + GRACE, &mut run.syncs);
        assert_eq!(run.missing(), []);
    }

    #[test]
    fn who_comes_to_a_services_second_successor_has_the_time_that_this_gives() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        for announcer in [2, 3] {
            run.said(announcer, true, vec![]);
            run.now += GRACE - Duration::from_secs(1);
        }
        run.tracker.expire(run.now, &mut run.syncs);
        assert_eq!(run.missing(), []);
        run.now += Duration::from_secs(1);
        run.tracker.expire(run.now, &mut run.syncs);
        assert_eq!(run.missing(), [(7, 1, 2, None)]);
    }

    #[test]
    fn what_came_by_a_connection_that_stays_away_has_ended_unknown() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.disconnect();
        run.tracker.expire(run.now + GRACE, &mut run.syncs);
        assert_eq!(run.missing(), [], "a hiccup");
        run.tracker.delay(GRACE);
        run.tracker.expire(run.now + PATIENCE, &mut run.syncs);
        assert_eq!(run.missing(), []);
        run.tracker.expire(run.now + PATIENCE + GRACE, &mut run.syncs);
        assert_eq!(run.missing(), [(7, 1, 2, None)]);
        run.tracker.expire(run.now + 2 * PATIENCE, &mut run.syncs);
        assert_eq!(run.missing(), []);
        run.connect(true);
        run.said(1, true, vec![at(7, 1, 1, 3, false)]);
        assert_eq!(run.missing(), [(7, 1, 2, Some(3))]);
    }

    #[test]
    fn events_without_numbers_may_come_by_a_peer_that_numbers_others() {
        let unknown = Some(Sync { missing: None, cause: SyncCause::Reconnected });
        let mut run = Run::new();
        run.connect(true);
        assert_eq!(run.tracker.unnumbered(run.by()), None);
        run.disconnect();
        assert_eq!(run.connect(true), unknown);
        assert_eq!(run.tracker.unnumbered(run.by()), None, "told already");
        // the first of them were lost: it shows when others come
        let mut run = Run::new();
        run.connect(true);
        run.disconnect();
        assert_eq!(run.connect(true), None);
        assert_eq!(run.tracker.unnumbered(run.by()), unknown);
        assert_eq!(run.tracker.unnumbered(run.by()), None);
    }

    #[test]
    fn an_endpoint_that_is_given_up_while_it_was_away_ends_unknown() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        assert_eq!(run.tracker.removed(&endpoint()), []);
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.event(8, 1, 1);
        run.said(1, false, vec![at(8, 1, 1, 1, true)]);
        run.disconnect();
        run.syncs = run.tracker.removed(&endpoint());
        assert_eq!(run.missing(), [(7, 1, 2, None)]);
    }

    #[test]
    fn an_endpoint_that_closed_in_good_order_and_is_followed_again_owes_what_it_sent_meanwhile() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.said(1, false, vec![Position { end: End::Left, ..at(7, 1, 1, 2, false) }]);
        assert_eq!(run.missing(), [(7, 1, 2, Some(2))]);
        run.disconnect();
        assert_eq!(run.tracker.removed(&endpoint()), []);
        run.connect(true);
        run.said(2, true, vec![at(7, 1, 3, 5, false), at(8, 1, 1, 2, false)]);
        let mut missing = run.missing();
        missing.sort_unstable();
        assert_eq!(missing, [(7, 1, 3, Some(5)), (8, 1, 1, Some(2))]);
    }

    #[test]
    fn an_event_that_cannot_be_read_is_missing() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        let origin = Origin { publisher: uuid(7), epoch: 1, sequence: 3 };
        let by = run.by();
        run.tracker.unreadable(by, b"a", &origin, &mut run.syncs);
        assert_eq!(run.missing(), [(7, 1, 2, Some(3))]);
        assert_eq!(run.event(7, 1, 4), Verdict::Deliver);
        assert_eq!(run.missing(), []);
    }

    #[test]
    fn a_topic_that_is_registered_anew_begins_anew() {
        let mut run = Run::new();
        run.connect(true);
        run.said(1, true, vec![]);
        run.event(7, 1, 1);
        run.tracker.unregister(b"a");
        run.tracker.register(b"a");
        run.said(1, true, vec![at(7, 1, 1, 50, false)]);
        run.event(7, 1, 51);
        assert_eq!(run.missing(), []);
    }
}
