//! Publishers over this crate's sockets: PUB that others connect to (the network driver), and PUSH to
//! the publisher service of the host (the multi-process driver).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::future::{BoxFuture, poll_immediate};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::codec::{self, Body, Codec, Origin, Positions};
use super::error::DriverError;
use super::identity::Identity;
use super::journal::Journal;
use super::registration::{Registration, tell_ends};
use super::streams::{Passing, Streams};
use super::update::Update;
use super::{DriverContext, Publisher, PublisherStats};
use crate::endpoint::Endpoint;
use crate::error::{DisconnectCause, Error};
use crate::hub::Delivery;
use crate::message::Message;
use crate::monitor::{Event, Monitor};
use crate::pub_socket::PubSocket;
use crate::push_socket::PushSocket;

/// The READY property by which a peer says that its events are numbered; its value is the version of
/// `proto/event.proto`.
pub(crate) const NUMBERED: &str = "X-Dragonwire-Numbered";

/// A publisher over a socket.
#[derive(Debug)]
pub(crate) struct SocketPublisher {
    kind: Kind,
    context: Arc<DriverContext>,
    codec: Codec,
    identity: Identity,
    /// Held while the socket is opened or closed.
    changing: AsyncMutex<()>,
    state: Mutex<State>,
    counters: Arc<Counters>,
}

/// Which socket it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// PUB, bound; with a row in the directory.
    Network(Endpoint),
    /// PUSH, connected.
    Multiproc(Endpoint),
    /// Nothing: the transport is known, but this build has none.
    NotBuilt { transport: String },
}

#[derive(Debug, Default)]
struct State {
    open: Option<Arc<Open>>,
    /// The last life's epoch.
    epoch: u64,
}

#[derive(Debug)]
struct Open {
    process: u32,
    id: Uuid,
    outlet: Outlet,
    numbering: Arc<AsyncMutex<Numbering>>,
    registration: Option<Registration>,
    trouble: Arc<Mutex<Option<String>>>,
    _announcing: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Counters {
    published: AtomicU64,
    dropped: AtomicU64,
    unheard: AtomicU64,
}

/// Where events go to.
#[derive(Debug, Clone)]
pub(crate) enum Outlet {
    Pub(PubSocket),
    Push(PushSocket),
}

impl Outlet {
    async fn send(&self, topic: &[u8], body: &[u8]) -> Result<Delivery, Error> {
        match self {
            Self::Pub(socket) => socket.send_frames(&[topic, body]).await,
            Self::Push(socket) => {
                socket.send_frames(&[topic, body]).await?;
                Ok(Delivery { matched: 1, queued: 1, dropped: 0 })
            }
        }
    }

    /// Says how far streams have come; tells whether everybody there will hear it.
    pub(crate) fn say(&self, topic: &Bytes, positions: &Positions) -> bool {
        let message = (topic.clone(), Bytes::from(positions.encode()));
        let message = Message::pair(message.0, message.1);
        match self {
            Self::Pub(socket) => {
                socket.try_send(message).is_ok_and(|delivery| delivery.dropped == 0)
            }
            Self::Push(socket) => socket.try_send(message).is_ok(),
        }
    }
}

/// Sends messages of other publishers on as they are, in between this one's own. What they say of
/// their streams goes into what this one says.
#[derive(Debug)]
pub(crate) struct Relay {
    open: Arc<Open>,
    numbering: OwnedMutexGuard<Numbering>,
    relayed: Relayed,
}

impl Relay {
    /// Sends a message on, unless it is one that says how far streams have come. Tells who has sent it,
    /// and in which epoch, when that may be news.
    pub(crate) fn send(&mut self, message: Message) -> Result<Option<(Uuid, u64)>, DriverError> {
        let Numbering { streams, lossy, .. } = &mut *self.numbering;
        let mut frames = message.frames();
        let (Some(topic), Some(body), None) = (frames.next(), frames.next(), frames.next()) else {
            self.relayed.malformed += 1;
            return Ok(None);
        };
        let Outlet::Pub(socket) = &self.open.outlet else { return Ok(None) };
        let mut life = None;
        let unnumbered = match codec::peek_origin(body) {
            Some(origin) => {
                if let Passing::Begins(positions) = streams.passes(&origin, topic) {
                    life = Some((origin.publisher, origin.epoch));
                    if let Some(positions) = positions {
                        self.open.outlet.say(&Bytes::copy_from_slice(topic), &positions);
                    }
                }
                None
            }
            None if codec::is_positions(body) => {
                let Ok(Body::Positions(said)) = codec::decode(body) else {
                    self.relayed.malformed += 1;
                    return Ok(None);
                };
                streams.heard(&said.positions);
                return Ok(Some((said.announcer, said.announcer_epoch)));
            }
            // its topic may be needed when it is gone
            None => Some(message.clone()),
        };
        let Ok(delivery) = socket.try_send(message) else {
            return Err(DriverError::Closed { what: "publisher" });
        };
        if let Some(message) = unnumbered.filter(|_| delivery.dropped > 0) {
            let topic = String::from_utf8_lossy(message.topic()).into_owned();
            lossy.entry(topic).or_insert_with(Lossy::now);
        }
        self.relayed.forwarded += 1;
        self.relayed.dropped += u64::from(delivery.dropped);
        self.relayed.unheard += u64::from(delivery.matched == 0);
        Ok(life)
    }

    /// Tells what became of the messages.
    pub(crate) fn finish(self) -> Relayed {
        if let Some(registration) = &self.open.registration {
            registration.refresh();
        }
        self.relayed
    }
}

/// What became of messages that were sent on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Relayed {
    pub(crate) forwarded: u64,
    /// For each subscriber that had no room.
    pub(crate) dropped: u64,
    /// Nobody followed their topic.
    pub(crate) unheard: u64,
    /// Not of two frames, or positions that cannot be read.
    pub(crate) malformed: u64,
}

impl std::ops::AddAssign for Relayed {
    fn add_assign(&mut self, other: Self) {
        self.forwarded += other.forwarded;
        self.dropped += other.dropped;
        self.unheard += other.unheard;
        self.malformed += other.malformed;
    }
}

/// What is needed to give an event its number; held while it is sent, so that events leave in the
/// order of their numbers.
#[derive(Debug)]
struct Numbering {
    streams: Streams,
    journal: Option<Journal>,
    /// Bodies are written here.
    body: Vec<u8>,
    /// Topics of events without numbers that a subscriber had no room for.
    lossy: BTreeMap<String, Lossy>,
    /// The end has been said: nothing may follow it.
    closed: bool,
}

/// When subscribers are to be told of a loss, and how long after that again if one had no room.
#[derive(Debug, Clone, Copy)]
struct Lossy {
    at: Instant,
    pause: Duration,
}

impl Lossy {
    fn now() -> Self {
        Self { at: Instant::now(), pause: CHANGES }
    }
}

impl SocketPublisher {
    pub(crate) fn new(kind: Kind, context: Arc<DriverContext>) -> Self {
        let codec = context.options.codec.unwrap_or_default();
        Self {
            kind,
            context,
            codec,
            identity: Identity::default(),
            changing: AsyncMutex::new(()),
            state: Mutex::default(),
            counters: Arc::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open socket, opened if it is not.
    async fn open(&self) -> Result<Arc<Open>, DriverError> {
        let open = self.state().open.clone();
        let open = match open {
            Some(open) => open,
            None => {
                let _changing = self.changing.lock().await;
                let already = self.state().open.clone();
                match already {
                    Some(open) => open,
                    // on the heap, as few wait for it and all would carry it
                    None => Box::pin(self.start()).await?,
                }
            }
        };
        let here = std::process::id();
        if open.process != here {
            let made_in = open.process;
            return Err(DriverError::Forked { what: "publisher", made_in, here });
        }
        Ok(open)
    }

    async fn start(&self) -> Result<Arc<Open>, DriverError> {
        Handle::try_current().map_err(|_| DriverError::NoRuntime)?;
        let context = &self.context;
        let (id, codec) = (self.id(), self.codec);
        let numbered = codec == Codec::Protobuf;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let mut epoch = now.max(self.state().epoch.saturating_add(1));
        let journal = match &context.options.state_path {
            Some(folder) if numbered && context.id().is_some() => {
                let journal = open_journal(folder, id, epoch).await?;
                epoch = journal.epoch();
                Some(journal)
            }
            _ => None,
        };
        let mut streams = Streams::new(id, epoch);
        if let Some(journal) = &journal {
            streams.heard(journal.earlier());
        }
        let numbering =
            Numbering { streams, journal, body: Vec::new(), lossy: BTreeMap::new(), closed: false };
        let numbering = Arc::new(AsyncMutex::new(numbering));

        let mut options = context.socket_options().linger(Some(LINGER)).send_hwm(SEND_HWM);
        if numbered {
            options = options.metadata(NUMBERED, "1");
        }
        let trouble = Arc::default();
        let announcer = |outlet| Announcer {
            outlet,
            numbering: numbering.clone(),
            codec,
            again: BTreeSet::new(),
            trouble: Arc::clone(&trouble),
        };
        let (outlet, announcing, port) = match &self.kind {
            Kind::NotBuilt { transport } => {
                return Err(DriverError::TransportNotBuilt { transport: transport.clone() });
            }
            Kind::Network(endpoint) => {
                let socket = PubSocket::with_options(options).map_err(|source| {
                    DriverError::Socket { doing: "making a PUB socket".to_owned(), source }
                })?;
                // from here on subscriptions are noted, before the first can come
                let _ = poll_immediate(socket.new_subscriptions()).await;
                let bound = socket.bind(endpoint).await.map_err(|source| {
                    let doing = format!("the publisher binds {endpoint}");
                    DriverError::Socket { doing, source }
                })?;
                let news = announcer(Outlet::Pub(socket.clone()));
                let announcing = tokio::spawn(news.run_pub(socket.clone()));
                (Outlet::Pub(socket), announcing, bound.port())
            }
            Kind::Multiproc(endpoint) => {
                let socket = PushSocket::with_options(options).map_err(|source| {
                    DriverError::Socket { doing: "making a PUSH socket".to_owned(), source }
                })?;
                let monitor = socket.monitor();
                socket.connect(endpoint).await.map_err(|source| {
                    let doing = format!("the publisher connects to {endpoint}");
                    DriverError::Socket { doing, source }
                })?;
                let news = announcer(Outlet::Push(socket.clone()));
                let announcing = tokio::spawn(news.run_push(monitor));
                (Outlet::Push(socket), announcing, None)
            }
        };
        let announcing = AbortOnDropHandle::new(announcing);
        let registration = match (port, &context.directory) {
            (Some(port), Some(directory)) => {
                Some(Registration::start(directory.clone(), context.options(), id, port).await)
            }
            _ => None,
        };
        let open = Arc::new(Open {
            process: std::process::id(),
            id,
            outlet,
            numbering: numbering.clone(),
            registration,
            trouble,
            _announcing: announcing,
        });
        let mut state = self.state();
        state.epoch = epoch;
        state.open = Some(open.clone());
        Ok(open)
    }

    async fn publish(&self, update: &Update, topic: Option<&str>) -> Result<(), DriverError> {
        let open = self.open().await?;
        let topic = update.topic_to_send_on(topic);
        let mut numbering = open.numbering.lock().await;
        let Numbering { streams, journal, body, lossy, closed } = &mut *numbering;
        if *closed {
            return Err(DriverError::Closed { what: "publisher" });
        }
        let origin = streams.next(topic.as_bytes());
        body.clear();
        let update = self.context.triggering(update);
        self.codec.encode(&update, topic, &origin, body);
        if let Some(journal) = journal {
            journal.note(topic.as_bytes(), origin.sequence).map_err(|source| {
                DriverError::Journal { path: journal.path().to_owned(), source }
            })?;
        }
        let delivery = match open.outlet.send(topic.as_bytes(), body).await {
            Ok(delivery) => delivery,
            Err(Error::Closed) => return Err(DriverError::Closed { what: "publisher" }),
            Err(source) => {
                let doing = format!("publishing on {topic:?}");
                return Err(DriverError::Socket { doing, source });
            }
        };
        streams.sent(&origin, topic.as_bytes());
        if delivery.dropped > 0 && self.codec != Codec::Protobuf {
            lossy.entry(topic.to_owned()).or_insert_with(Lossy::now);
        }
        drop(numbering);
        let Counters { published, dropped, unheard } = &*self.counters;
        published.fetch_add(1, Ordering::Relaxed);
        if delivery.dropped > 0 {
            dropped.fetch_add(delivery.dropped.into(), Ordering::Relaxed);
        }
        if delivery.matched == 0 {
            unheard.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(registration) = &open.registration {
            registration.refresh();
        }
        Ok(())
    }

    /// Begins to send messages of other publishers on.
    pub(crate) async fn relay(&self) -> Result<Relay, DriverError> {
        let open = self.state().open.clone();
        let open = open.ok_or(DriverError::Closed { what: "publisher" })?;
        let numbering = open.numbering.clone().lock_owned().await;
        Ok(Relay { open, numbering, relayed: Relayed::default() })
    }

    /// Another publisher went without a word.
    pub(crate) async fn abandon(&self, publisher: Uuid, epoch: u64) {
        let Some(open) = self.state().open.clone() else { return };
        if open.numbering.lock().await.streams.abandon(publisher, epoch) {
            tracing::warn!(%publisher, epoch, "a process is gone without saying where its events end");
        }
    }

    async fn stop(&self) -> Result<(), DriverError> {
        let _changing = self.changing.lock().await;
        let Some(open) = self.state().open.take() else { return Ok(()) };
        if open.process != std::process::id() {
            // the sockets are the parent's
            return Ok(());
        }
        let (said, pending) = {
            let mut numbering = open.numbering.lock().await;
            let Numbering { streams, journal, closed, .. } = &mut *numbering;
            *closed = true;
            if let Some(journal) = journal {
                // the last number may be one of an event that was cancelled
                for (topic, last) in streams.own() {
                    let _ = journal.note(topic, last);
                }
            }
            streams.finish();
            let pending = match &open.outlet {
                Outlet::Pub(_) => 0,
                Outlet::Push(socket) => socket.stats().outgoing.queued,
            };
            (streams.changes(), pending)
        };
        if self.codec == Codec::Protobuf {
            let saying = async {
                for (topic, positions) in &said {
                    while !open.outlet.say(topic, positions) {
                        sleep(TOGETHER).await;
                    }
                }
            };
            // there may be no room for it, and nobody who makes any
            let _ = timeout(LINGER, saying).await;
        }
        let mut ends: Vec<_> = said.into_iter().flat_map(|(_, said)| said.positions).collect();
        if self.codec != Codec::Protobuf {
            ends.clear();
        }
        let (report, waiting) = match &open.outlet {
            Outlet::Pub(socket) => (socket.close().await, false),
            Outlet::Push(socket) => (socket.close().await, true),
        };
        // what is said of streams is no event
        let unsent = report.discarded.min(pending);
        if unsent > 0 {
            tracing::warn!(messages = unsent, "the publisher closed with messages unsent");
        }
        let (registration, directory) = (&open.registration, &self.context.directory);
        let removing = async {
            match registration {
                Some(registration) => registration.remove().await,
                None => Ok(()),
            }
        };
        let telling = async {
            match directory {
                Some(directory) => tell_ends(directory, open.id, &ends).await,
                None => Ok(()),
            }
        };
        let (removed, told) = tokio::join!(removing, telling);
        removed.and(told)?;
        if waiting && unsent > 0 {
            let trouble = open.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
            let reason = trouble.unwrap_or_else(|| "nobody took them in time".to_owned());
            return Err(DriverError::Unsent { messages: unsent, reason });
        }
        Ok(())
    }
}

pub(super) async fn open_journal(
    folder: &Path,
    id: Uuid,
    epoch: u64,
) -> Result<Journal, DriverError> {
    let path = folder.to_owned();
    let opening = tokio::task::spawn_blocking(move || Journal::open(&path, id, epoch)).await;
    let journal = opening.map_err(std::io::Error::other).and_then(|journal| journal);
    journal.map_err(|source| DriverError::Journal { path: folder.to_owned(), source })
}

impl Publisher for SocketPublisher {
    fn initialize(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async {
            // a multi-process publisher connects when it has something to say
            if !matches!(self.kind, Kind::Multiproc(_)) {
                self.open().await?;
            }
            Ok(())
        })
    }

    fn send_event<'a>(
        &'a self,
        update: &'a Update,
        topic: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(self.publish(update, topic))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.stop())
    }

    fn id(&self) -> Uuid {
        self.identity.of(&self.context)
    }

    fn endpoint(&self) -> Option<Endpoint> {
        let open = self.state().open.clone()?;
        let endpoints = match &open.outlet {
            Outlet::Pub(socket) => socket.endpoints(),
            Outlet::Push(socket) => socket.endpoints(),
        };
        endpoints.into_iter().next().map(|status| status.endpoint)
    }

    fn stats(&self) -> PublisherStats {
        let open = self.state().open.clone();
        let subscribers = match open.as_ref().map(|open| &open.outlet) {
            Some(Outlet::Pub(socket)) => socket.stats().peers.len() as u64,
            _ => 0,
        };
        PublisherStats {
            subscribers,
            published: self.counters.published.load(Ordering::Relaxed),
            dropped: self.counters.dropped.load(Ordering::Relaxed),
            unheard: self.counters.unheard.load(Ordering::Relaxed),
        }
    }
}

/// The task that says how far the streams have come.
struct Announcer {
    outlet: Outlet,
    numbering: Arc<AsyncMutex<Numbering>>,
    codec: Codec,
    /// Prefixes whose subscribers have not all been told.
    again: BTreeSet<Bytes>,
    /// Why there is no connection to the service.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Announcer {
    /// Greets subscribers.
    async fn run_pub(mut self, socket: PubSocket) {
        let mut tick = ticks();
        loop {
            tokio::select! {
                news = socket.new_subscriptions() => {
                    let Ok(news) = news else { return };
                    if self.is_numbered() {
                        self.again.extend(news);
                        self.greet().await;
                        // subscribers that come together are greeted together
                        sleep(TOGETHER).await;
                    }
                }
                _ = tick.tick() => {
                    self.greet().await;
                    self.say_changes().await;
                    self.say_sync(&socket).await;
                }
            }
        }
    }

    /// Tells each new connection where everything is.
    async fn run_push(self, mut monitor: Monitor) {
        let mut tick = ticks();
        loop {
            tokio::select! {
                event = monitor.recv() => match event {
                    None | Some(Event::Closed) => return,
                    Some(Event::HandshakeSucceeded { .. }) => {
                        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        self.say_all().await;
                    }
                    Some(Event::Disconnected { cause: DisconnectCause::Local, .. }) => {}
                    Some(Event::Disconnected { peer, cause, discarded }) => tracing::warn!(
                        %peer, %cause, discarded,
                        "the publisher service is away; what it had not read may be lost"
                    ),
                    Some(Event::Retry { cause, attempt, .. }) => {
                        let reason = cause.to_string();
                        if attempt == 2 {
                            tracing::warn!(reason, "the publisher service cannot be reached");
                        }
                        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                    }
                    Some(_) => {}
                },
                _ = tick.tick() => self.say_changes().await,
            }
        }
    }

    async fn greet(&mut self) {
        if self.again.is_empty() {
            return;
        }
        let numbering = self.numbering.lock().await;
        let Self { outlet, again, .. } = self;
        again.retain(|prefix| !outlet.say(prefix, &numbering.streams.complete(prefix)));
    }

    async fn say_all(&self) {
        if !self.is_numbered() {
            return;
        }
        let mut numbering = self.numbering.lock().await;
        for (topic, positions) in numbering.streams.all() {
            if !self.outlet.say(&topic, &positions) {
                numbering.streams.say_again(&positions);
            }
        }
    }

    async fn say_changes(&self) {
        if !self.is_numbered() {
            return;
        }
        let mut numbering = self.numbering.lock().await;
        for (topic, positions) in numbering.streams.changes() {
            if !self.outlet.say(&topic, &positions) {
                numbering.streams.say_again(&positions);
            }
        }
        numbering.streams.sweep(Instant::now());
    }

    /// Subscribers of events without numbers learn of a loss by an event with the action `sync`,
    /// once everybody has room for it.
    async fn say_sync(&self, socket: &PubSocket) {
        let mut numbering = self.numbering.lock().await;
        let now = Instant::now();
        let due = numbering.lossy.iter().filter(|(_, lossy)| lossy.at <= now);
        let due: Vec<_> = due.map(|(topic, lossy)| (topic.clone(), *lossy)).collect();
        // who numbers its own events has sent these on for others
        let codec = if self.is_numbered() { Codec::Msgpack } else { self.codec };
        for (topic, Lossy { pause, .. }) in due {
            let nobody = Origin { publisher: Uuid::nil(), epoch: 0, sequence: 0 };
            let mut body = Vec::new();
            codec.encode(&Update::sync(&topic), &topic, &nobody, &mut body);
            let message = Message::pair(topic.clone().into_bytes(), body);
            if socket.try_send(message).is_ok_and(|delivery| delivery.dropped == 0) {
                numbering.lossy.remove(&topic);
            } else {
                // the others hear it each time
                let again = Lossy { at: now + pause, pause: (pause * 2).min(LONGEST_PAUSE) };
                numbering.lossy.insert(topic, again);
            }
        }
    }

    fn is_numbered(&self) -> bool {
        self.codec == Codec::Protobuf
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(CHANGES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Events that may wait for each subscriber: libzmq's default.
const SEND_HWM: usize = 1000;

/// The longest time between two words on a loss to a subscriber that never has room.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a publisher goes on sending when it is closed.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// How long it takes at most until the loss of a stream's last events can be known.
pub(super) const CHANGES: Duration = Duration::from_millis(500);

/// Subscribers that come within this time are greeted together.
const TOGETHER: Duration = Duration::from_millis(20);
