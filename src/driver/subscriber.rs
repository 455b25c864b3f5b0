//! Subscribers over this crate's sockets: SUB that connects to publishers (the network driver), and
//! PULL that processes of the host push to (the multi-process driver).

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::codec::{self, Body, CodecError, Position};
use super::delivery::{Callback, Queue, SubscriberEvent, Updates};
use super::error::DriverError;
use super::publisher::NUMBERED;
use super::sync::{Sync, SyncCause};
use super::tracker::{Tracker, Verdict};
use super::update::{Action, Update};
use super::{DriverContext, Subscriber, SubscriberStats};
use crate::endpoint::Endpoint;
use crate::error::{Error, RecvError};
use crate::message::Message;
use crate::monitor::{Event, Monitor};
use crate::peer::{ConnectionId, PeerInfo};
use crate::pull_socket::PullSocket;
use crate::stats::SocketStats;
use crate::sub_socket::{SubHandle, SubSocket};

/// A subscriber over a socket.
#[derive(Debug)]
pub(crate) struct SocketSubscriber {
    source: Source,
    context: Arc<DriverContext>,
    /// Held while it is started or closed.
    changing: AsyncMutex<()>,
    state: Mutex<State>,
    shared: Arc<Shared>,
}

/// Whose events these are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Those of publishers that are connected to.
    Publishers,
    /// Those of the host's processes that connect here.
    Processes(Endpoint),
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// In the order they were registered, as upstream's lists.
    topics: Vec<String>,
    addresses: Vec<(String, Endpoint)>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    New,
    Initialized,
    Running(Running),
    Closed,
}

#[derive(Debug)]
struct Running {
    process: u32,
    handle: SocketHandle,
    ending: CancellationToken,
    task: Option<AbortOnDropHandle<()>>,
}

/// What the task and the methods share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) queue: Arc<Queue>,
    tracking: Mutex<Tracking>,
    /// Told when a publisher has said where its streams are.
    told: Notify,
}

#[derive(Debug, Default)]
pub(super) struct Tracking {
    pub(super) tracker: Tracker,
    pub(super) stats: SubscriberStats,
}

#[derive(Debug, Clone)]
enum SocketHandle {
    Sub(SubHandle),
    Pull,
}

impl SocketSubscriber {
    pub(crate) fn new(source: Source, context: Arc<DriverContext>) -> Self {
        let tracker = Tracker::new(context.options().exact_topics);
        let shared = Arc::new(Shared::new(&context, tracker));
        Self { source, context, changing: AsyncMutex::new(()), state: Mutex::default(), shared }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of a subscriber that can be used, and its socket if it runs.
    fn usable(&self) -> Result<(MutexGuard<'_, State>, Option<SocketHandle>), DriverError> {
        let state = self.state();
        let handle = match &state.phase {
            Phase::New => return Err(DriverError::NotInitialized { what: WHAT }),
            Phase::Closed => return Err(DriverError::Closed { what: WHAT }),
            Phase::Initialized => None,
            Phase::Running(Running { process, handle, .. }) => {
                let here = std::process::id();
                if *process != here {
                    return Err(DriverError::Forked { what: WHAT, made_in: *process, here });
                }
                Some(handle.clone())
            }
        };
        Ok((state, handle))
    }

    fn add_topic(&self, topic: &str) -> Result<bool, DriverError> {
        let (mut state, handle) = self.usable()?;
        if state.topics.iter().any(|known| known == topic) {
            return Ok(false);
        }
        state.topics.push(topic.to_owned());
        self.shared.tracking().tracker.register(topic.as_bytes());
        if let Some(SocketHandle::Sub(socket)) = handle {
            socket.subscribe(topic).map_err(socket_error("subscribing"))?;
        }
        Ok(true)
    }

    fn remove_topic(&self, topic: &str) -> Result<(), DriverError> {
        let (mut state, handle) = self.usable()?;
        let Some(at) = state.topics.iter().position(|known| known == topic) else {
            return Err(DriverError::UnknownTopic { topic: topic.to_owned() });
        };
        state.topics.remove(at);
        if let Some(SocketHandle::Sub(socket)) = handle {
            socket.unsubscribe(topic).map_err(socket_error("unsubscribing"))?;
        }
        self.shared.tracking().tracker.unregister(topic.as_bytes());
        self.shared.told.notify_waiters();
        Ok(())
    }

    async fn add_address(&self, uri: &str) -> Result<bool, DriverError> {
        let endpoint = listen_address(uri)?;
        let socket = {
            let (mut state, handle) = self.usable()?;
            if state.addresses.iter().any(|(_, known)| *known == endpoint) {
                return Ok(false);
            }
            state.addresses.push((uri.to_owned(), endpoint.clone()));
            match handle {
                Some(SocketHandle::Sub(socket)) => socket,
                _ => return Ok(true),
            }
        };
        if let Err(error) = socket.add(endpoint.clone()).await {
            self.state().addresses.retain(|(_, known)| *known != endpoint);
            return Err(socket_error("connecting")(error));
        }
        Ok(true)
    }

    async fn remove_address(&self, uri: &str) -> Result<(), DriverError> {
        let unknown = || DriverError::UnknownAddress { uri: uri.to_owned() };
        let endpoint: Endpoint = uri.parse().map_err(|_| unknown())?;
        let socket = {
            let (mut state, handle) = self.usable()?;
            let at = state.addresses.iter().position(|(_, known)| *known == endpoint);
            state.addresses.remove(at.ok_or_else(unknown)?);
            match handle {
                Some(SocketHandle::Sub(socket)) => socket,
                _ => return Ok(()),
            }
        };
        socket.remove(endpoint.clone()).await.map_err(socket_error("disconnecting"))?;
        let lost = self.shared.tracking().tracker.removed(&endpoint);
        self.shared.told.notify_waiters();
        self.shared.tell(lost.into_iter().map(SubscriberEvent::Sync).collect());
        Ok(())
    }

    fn set_up(&self) -> Result<(), DriverError> {
        let mut state = self.state();
        match state.phase {
            Phase::New => {
                state.phase = Phase::Initialized;
                Ok(())
            }
            Phase::Closed => Err(DriverError::Closed { what: WHAT }),
            _ => Err(DriverError::Already { what: WHAT, state: "is initialized" }),
        }
    }

    async fn start(&self) -> Result<(), DriverError> {
        Handle::try_current().map_err(|_| DriverError::NoRuntime)?;
        let _changing = self.changing.lock().await;
        if self.usable()?.1.is_some() {
            return Err(DriverError::Already { what: WHAT, state: "runs" });
        }
        let options = self.context.socket_options();
        let (handle, socket, monitor) = match &self.source {
            Source::Publishers => {
                let socket =
                    SubSocket::with_options(options).map_err(socket_error("making SUB"))?;
                let monitor = socket.monitor();
                (SocketHandle::Sub(socket.handle()), Socket::Sub(socket), monitor)
            }
            Source::Processes(endpoint) => {
                let socket =
                    PullSocket::with_options(options).map_err(socket_error("making PULL"))?;
                let monitor = socket.monitor();
                socket.bind(endpoint).await.map_err(|source| {
                    let doing = format!("the subscriber binds {endpoint}");
                    DriverError::Socket { doing, source }
                })?;
                (SocketHandle::Pull, Socket::Pull(socket), monitor)
            }
        };
        let receiving = Receiving {
            socket,
            monitor,
            ending: CancellationToken::new(),
            shared: self.shared.clone(),
            context: self.context.clone(),
            told: VecDeque::new(),
            attention: Attention::new(Instant::now()),
            complaints: Complaints::default(),
        };
        let addresses = self.run(receiving, &handle)?;
        if let SocketHandle::Sub(socket) = handle {
            for address in addresses {
                socket.add(address).await.map_err(socket_error("connecting"))?;
            }
        }
        Ok(())
    }

    /// Starts the task; returns what is to be connected to.
    fn run(
        &self,
        receiving: Receiving,
        handle: &SocketHandle,
    ) -> Result<Vec<Endpoint>, DriverError> {
        let mut state = self.state();
        if let SocketHandle::Sub(socket) = handle {
            for topic in &state.topics {
                socket.subscribe(topic).map_err(socket_error("subscribing"))?;
            }
        }
        let ending = receiving.ending.clone();
        let task = Some(AbortOnDropHandle::new(tokio::spawn(receiving.run())));
        let process = std::process::id();
        state.phase = Phase::Running(Running { process, handle: handle.clone(), ending, task });
        Ok(state.addresses.iter().map(|(_, endpoint)| endpoint.clone()).collect())
    }

    async fn wait_ready(&self) -> Result<(), DriverError> {
        let Some(SocketHandle::Sub(socket)) = self.usable()?.1 else { return Ok(()) };
        loop {
            let told = self.shared.told.notified();
            socket.ready().await.map_err(|_| DriverError::Closed { what: WHAT })?;
            let peers = socket.stats().peers;
            {
                let tracker = &self.shared.tracking().tracker;
                let mut there = peers.iter().filter_map(|stats| stats.peer.as_ref());
                if there.all(|peer| tracker.knows(peer.id)) && tracker.is_settled() {
                    return Ok(());
                }
            }
            told.await;
        }
    }

    async fn stop(&self) -> Result<(), DriverError> {
        let _changing = self.changing.lock().await;
        let phase = std::mem::replace(&mut self.state().phase, Phase::Closed);
        if let Phase::Running(Running { process, ending, task, .. }) = phase {
            let here = std::process::id();
            if process != here {
                return Err(DriverError::Forked { what: WHAT, made_in: process, here });
            }
            ending.cancel();
            if let Some(task) = task {
                let _ = task.await;
            }
        }
        self.shared.queue.close();
        self.shared.told.notify_waiters();
        Ok(())
    }
}

/// Without `close` it ends as well: the task is stopped, and its user's stream ends.
impl Drop for SocketSubscriber {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

/// What errors call it.
const WHAT: &str = "subscriber";

fn socket_error(doing: &'static str) -> impl Fn(Error) -> DriverError {
    move |source| match source {
        Error::Closed => DriverError::Closed { what: WHAT },
        source => DriverError::Socket { doing: doing.to_owned(), source },
    }
}

/// The address of a publisher: `tcp://host:port`.
fn listen_address(uri: &str) -> Result<Endpoint, DriverError> {
    let fault = |source| DriverError::Address { uri: uri.to_owned(), source };
    let endpoint: Endpoint = uri.parse().map_err(fault)?;
    endpoint.check_connectable().map_err(fault)?;
    Ok(endpoint)
}

impl Subscriber for SocketSubscriber {
    fn initialize(&self, callback: Callback) -> Result<(), DriverError> {
        self.set_up()?;
        let updates = Updates::new(self.shared.queue.clone());
        updates.call(callback).map_err(DriverError::Thread)
    }

    fn initialize_stream(&self) -> Result<Updates, DriverError> {
        self.set_up()?;
        Ok(Updates::new(self.shared.queue.clone()))
    }

    fn register_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<bool, DriverError>> {
        Box::pin(async { self.add_topic(topic) })
    }

    fn unregister_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { self.remove_topic(topic) })
    }

    fn register_listen_address<'a>(
        &'a self,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<bool, DriverError>> {
        Box::pin(self.add_address(uri))
    }

    fn unregister_listen_address<'a>(
        &'a self,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(self.remove_address(uri))
    }

    fn daemonize(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.start())
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.wait_ready())
    }

    fn is_running(&self) -> bool {
        matches!(self.state().phase, Phase::Running(_))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.stop())
    }

    fn learn_ends(&self, ends: &[Position]) {
        let mut syncs = Vec::new();
        self.shared.tracking().tracker.ends(ends, &mut syncs);
        self.shared.tell(syncs.into_iter().map(SubscriberEvent::Sync).collect());
    }

    fn stats(&self) -> SubscriberStats {
        SubscriberStats {
            callback_panics: self.shared.queue.panics(),
            waiting: self.shared.queue.len() as u64,
            ..self.shared.tracking().stats
        }
    }
}

impl Shared {
    pub(super) fn new(context: &DriverContext, tracker: Tracker) -> Self {
        let tracking = Mutex::new(Tracking { tracker, stats: SubscriberStats::default() });
        Self { queue: context.queue(), tracking, told: Notify::new() }
    }

    pub(super) fn tracking(&self) -> MutexGuard<'_, Tracking> {
        self.tracking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands events over, counted.
    pub(super) fn tell(&self, mut events: VecDeque<SubscriberEvent>) {
        self.tracking().stats.count(&events);
        self.queue.push_all(&mut events);
    }
}

impl SubscriberStats {
    fn count(&mut self, events: &VecDeque<SubscriberEvent>) {
        for event in events {
            match event {
                SubscriberEvent::Update(_) => self.delivered += 1,
                SubscriberEvent::Sync(sync) => {
                    self.syncs += 1;
                    let missing = sync.missing.as_ref().and_then(super::Missing::count);
                    self.missing = self.missing.saturating_add(missing.unwrap_or(0));
                }
            }
        }
    }
}

#[derive(Debug)]
enum Socket {
    Sub(SubSocket),
    Pull(PullSocket),
}

impl Socket {
    async fn recv(&mut self) -> Result<Message, RecvError> {
        match self {
            Self::Sub(socket) => socket.recv().await,
            Self::Pull(socket) => socket.recv().await,
        }
    }

    fn try_recv(&mut self) -> Result<Message, RecvError> {
        match self {
            Self::Sub(socket) => socket.try_recv(),
            Self::Pull(socket) => socket.try_recv(),
        }
    }

    fn last_peer(&self) -> Option<ConnectionId> {
        match self {
            Self::Sub(socket) => socket.last_peer(),
            Self::Pull(socket) => socket.last_peer(),
        }
    }

    fn stats(&self) -> SocketStats {
        match self {
            Self::Sub(socket) => socket.stats(),
            Self::Pull(socket) => socket.stats(),
        }
    }
}

/// The task that receives.
struct Receiving {
    socket: Socket,
    monitor: Monitor,
    ending: CancellationToken,
    shared: Arc<Shared>,
    context: Arc<DriverContext>,
    /// Events to be handed over.
    told: VecDeque<SubscriberEvent>,
    attention: Attention,
    complaints: Complaints,
}

/// How long peers were not listened to: what they say meanwhile waits, and that is not their silence.
#[derive(Debug)]
struct Attention {
    looked: Instant,
    /// Since when there is no room for what comes.
    full_since: Option<Instant>,
    /// The time without room since it was looked at.
    deaf: Duration,
}

impl Attention {
    fn new(now: Instant) -> Self {
        Self { looked: now, full_since: None, deaf: Duration::ZERO }
    }

    /// Takes note of whether there is room.
    fn note(&mut self, room: Poll<()>, now: impl FnOnce() -> Instant) -> Poll<()> {
        if room.is_pending() {
            self.full_since.get_or_insert_with(now);
        } else if let Some(since) = self.full_since.take() {
            self.deaf += now().saturating_duration_since(since);
        }
        room
    }

    /// How long it was since this was asked last.
    fn look(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.looked, now));
        let mut deaf = std::mem::take(&mut self.deaf);
        if let Some(since) = &mut self.full_since {
            deaf += now.saturating_duration_since(std::mem::replace(since, now));
        }
        // so late: the process did not run
        if passed > 2 * TICK { passed } else { deaf.min(passed) }
    }
}

/// Whose message it is, for the log.
#[derive(Debug)]
struct Peer<'a> {
    connection: Option<ConnectionId>,
    endpoint: Option<&'a Endpoint>,
}

impl fmt::Display for Peer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.connection, self.endpoint) {
            (Some(connection), Some(endpoint)) => write!(f, "{endpoint} ({connection})"),
            (Some(connection), None) => write!(f, "{connection}"),
            (None, _) => f.write_str("unknown"),
        }
    }
}

/// Lines for the log about messages that cannot be read: not one for each, should a peer send nothing
/// else.
#[derive(Debug, Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn say(&mut self, peer: &Peer<'_>, topic: &[u8], reason: &str) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < BETWEEN_COMPLAINTS) {
            self.unsaid += 1;
            return;
        }
        self.last = Some(now);
        let before = std::mem::take(&mut self.unsaid);
        let topic = String::from_utf8_lossy(topic);
        tracing::warn!(%peer, %topic, reason, "an event cannot be read");
        if before > 0 {
            tracing::warn!(events = before, "and others before it, not told one by one");
        }
    }
}

impl Receiving {
    async fn run(mut self) {
        let queue = self.shared.queue.clone();
        let ending = self.ending.clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = ending.cancelled() => break,
                _ = ticks.tick() => {
                    let (shared, now) = (self.shared.clone(), Instant::now());
                    let mut lost = Vec::new();
                    let mut tracking = shared.tracking();
                    tracking.tracker.delay(self.attention.look(now));
                    tracking.tracker.expire(now, &mut lost);
                    self.told.extend(lost.into_iter().map(SubscriberEvent::Sync));
                    self.hand_over(tracking);
                }
                Some(event) = self.monitor.recv() => {
                    let shared = self.shared.clone();
                    self.note(&mut shared.tracking(), event);
                    self.hand_over(shared.tracking());
                }
                received = receive(&mut self.socket, &queue, &mut self.attention) => {
                    let Ok(message) = received else { break };
                    self.take_batch(message);
                }
            }
        }
        queue.close();
        // processes see it go, and keep what they send from then on
        match self.socket {
            Socket::Sub(socket) => socket.close().await,
            Socket::Pull(socket) => socket.close().await,
        };
    }

    /// Counts what was told and hands it over.
    fn hand_over(&mut self, mut tracking: MutexGuard<'_, Tracking>) {
        if !self.told.is_empty() {
            tracking.stats.count(&self.told);
            drop(tracking);
            self.shared.queue.push_all(&mut self.told);
        }
    }

    fn note(&mut self, tracking: &mut Tracking, event: Event) {
        match event {
            Event::HandshakeSucceeded { peer } => self.connected(tracking, &peer),
            Event::Disconnected { peer, .. } => {
                tracking.tracker.disconnected(peer.id, Instant::now());
                self.shared.told.notify_waiters();
            }
            Event::Missed { .. } => {
                let peers = self.socket.stats().peers;
                for peer in peers.iter().filter_map(|stats| stats.peer.as_ref()) {
                    self.connected(tracking, peer);
                }
            }
            _ => {}
        }
    }

    fn connected(&mut self, tracking: &mut Tracking, peer: &PeerInfo) {
        let metadata = peer.session.iter().flat_map(|session| &session.metadata);
        let numbered = metadata.into_iter().any(|(name, _)| name == NUMBERED);
        let sync = match self.socket {
            Socket::Sub(_) => tracking.tracker.connected(peer.id, &peer.endpoint, numbered),
            Socket::Pull(_) => {
                tracking.tracker.accepted(peer.id, &peer.endpoint);
                None
            }
        };
        self.shared.told.notify_waiters();
        let wanted = self.context.options().sync_on_reconnect;
        self.told.extend(sync.filter(|_| wanted).map(SubscriberEvent::Sync));
    }

    /// Takes a message and those that are there behind it.
    fn take_batch(&mut self, first: Message) {
        let shared = self.shared.clone();
        let mut tracking = shared.tracking();
        let (mut next, mut before, mut octets) = (Some(first), None, 0);
        for taken in 1.. {
            let Some(message) = next else { break };
            let by = self.socket.last_peer();
            if by != before {
                let knows = |tracking: &Tracking| by.is_some_and(|by| tracking.tracker.knows(by));
                while !knows(&tracking)
                    && let Some(event) = self.monitor.try_recv()
                {
                    self.note(&mut tracking, event);
                }
                before = by.filter(|_| knows(&tracking));
            }
            self.take(&mut tracking, by, &message);
            octets += message.size();
            let goes_on = taken < BATCH && octets < BATCH_OCTETS;
            next = if goes_on { self.socket.try_recv().ok() } else { None };
        }
        self.hand_over(tracking);
    }

    fn take(&mut self, tracking: &mut Tracking, by: Option<ConnectionId>, message: &Message) {
        let Tracking { tracker, stats } = tracking;
        if by.is_some_and(|by| tracker.has_left(by)) {
            stats.late += 1;
            return;
        }
        let mut frames = message.frames();
        let (Some(topic), Some(body), None) = (frames.next(), frames.next(), frames.next()) else {
            stats.undecodable += 1;
            let peer = Peer { connection: by, endpoint: by.and_then(|by| tracker.endpoint_of(by)) };
            self.complaints.say(&peer, message.topic(), "it is not of two frames");
            return self.told.push_back(unreadable());
        };
        let exact = self.context.options().exact_topics && matches!(self.socket, Socket::Sub(_));
        if exact && !tracker.is_registered(topic) {
            return;
        }
        let mut missing = Vec::new();
        match codec::decode(body) {
            Ok(Body::Event { update, origin: None }) => {
                let wanted = self.context.options().sync_on_reconnect;
                let doubt = tracker.unnumbered(by).filter(|_| wanted);
                self.told.extend(doubt.map(SubscriberEvent::Sync));
                self.told.push_back(as_event(update));
            }
            Ok(Body::Event { update, origin: Some(origin) }) => {
                let verdict = tracker.event(by, topic, &origin, &mut missing);
                self.told.extend(missing.into_iter().map(SubscriberEvent::Sync));
                match verdict {
                    Verdict::Deliver => self.told.push_back(as_event(update)),
                    Verdict::Late => stats.late += 1,
                }
            }
            Ok(Body::Positions(positions)) => {
                tracker.positions(by, &positions, Instant::now(), &mut missing);
                self.told.extend(missing.into_iter().map(SubscriberEvent::Sync));
                self.shared.told.notify_waiters();
            }
            Err(CodecError::Event { origin, reason }) => {
                stats.undecodable += 1;
                tracker.unreadable(by, topic, &origin, &mut missing);
                self.told.extend(missing.into_iter().map(SubscriberEvent::Sync));
                let endpoint = by.and_then(|by| tracker.endpoint_of(by));
                self.complaints.say(&Peer { connection: by, endpoint }, topic, &reason);
            }
            Err(error) => {
                stats.undecodable += 1;
                let endpoint = by.and_then(|by| tracker.endpoint_of(by));
                self.complaints.say(&Peer { connection: by, endpoint }, topic, &error.to_string());
                self.told.push_back(unreadable());
            }
        }
    }
}

fn unreadable() -> SubscriberEvent {
    SubscriberEvent::Sync(Sync { missing: None, cause: SyncCause::Undecodable })
}

/// The next message, once there is room for what it holds.
async fn receive(
    socket: &mut Socket,
    queue: &Queue,
    attention: &mut Attention,
) -> Result<Message, RecvError> {
    poll_fn(|cx| attention.note(queue.poll_room(cx), Instant::now)).await;
    socket.recv().await
}

pub(super) fn as_event(update: Update) -> SubscriberEvent {
    if update.action == Some(Action::Sync) {
        return SubscriberEvent::Sync(Sync { missing: None, cause: SyncCause::Announced });
    }
    SubscriberEvent::Update(update)
}

/// How often it is looked for what is not heard of any more.
const TICK: Duration = Duration::from_secs(1);

/// The time between two lines about messages that cannot be read.
const BETWEEN_COMPLAINTS: Duration = Duration::from_secs(1);

/// Messages that are taken in one go, and their octets; the last of them may go beyond that.
const BATCH: usize = 256;
pub(super) const BATCH_OCTETS: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_without_room_and_without_being_run_is_not_listened() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut attention = Attention::new(start);
        let mut note = |room, millis| {
            let room = if room { Poll::Ready(()) } else { Poll::Pending };
            assert_eq!(attention.note(room, || at(millis)), room);
        };
        note(true, 100);
        note(false, 200);
        note(false, 300);
        note(true, 400);
        note(false, 900);
        assert_eq!(attention.look(at(1000)).as_millis(), 200 + 100);
        assert_eq!(attention.look(at(2000)).as_millis(), 1000);
        assert!(attention.note(Poll::Ready(()), || at(2100)).is_ready());
        assert_eq!(attention.look(at(3000)).as_millis(), 100);
        assert_eq!(attention.look(at(5500)).as_millis(), 2500, "it was not run");
        assert_eq!(attention.look(at(6500)).as_millis(), 0);
    }
}
