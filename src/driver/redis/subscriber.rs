//! The subscriber over Redis: follows a channel for each topic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::Msg;
use futures::future::{BoxFuture, poll_immediate};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::baseline::Baseline;
use super::channels::{Answer, Change, Channels, Heard};
use super::servers::{Backoff, STEADY, Server, Servers, Unreachable};
use crate::driver::codec::{self, Body, CodecError, Position};
use crate::driver::delivery::{Callback, Queue, SubscriberEvent, Updates};
use crate::driver::error::DriverError;
use crate::driver::subscriber::{BATCH_OCTETS, Shared, Tracking, as_event};
use crate::driver::sync::{Sync, SyncCause};
use crate::driver::tracker::{Tracker, Verdict};
use crate::driver::{DriverContext, Subscriber, SubscriberStats};

/// A subscriber over Redis.
#[derive(Debug)]
pub(super) struct RedisSubscriber {
    context: Arc<DriverContext>,
    servers: Servers,
    /// Held while it is started or closed.
    changing: AsyncMutex<()>,
    phase: Mutex<Phase>,
    /// Publishers' addresses, which have no meaning here.
    addresses: Mutex<Vec<String>>,
    topics: Arc<Topics>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    New,
    Initialized,
    Running {
        process: u32,
        task: AbortOnDropHandle<()>,
    },
    Closed,
}

/// What the task and the methods share beside the events.
#[derive(Debug, Default)]
struct Topics {
    wanted: Mutex<Wanted>,
    /// What is wanted has changed.
    changed: Notify,
    end: CancellationToken,
    readiness: watch::Sender<Readiness>,
    baseline: Mutex<Baseline>,
}

#[derive(Debug, Default, Clone)]
struct Wanted {
    /// In the order they were registered.
    topics: Vec<String>,
    version: u64,
}

/// How far the server has confirmed what is wanted.
#[derive(Debug, Clone, Default)]
enum Readiness {
    /// There is no connection, or not everything was answered.
    #[default]
    Not,
    /// The server does not let this user follow this version of the topics.
    Refused { version: u64, at: String, reason: String },
    /// This version of the topics is followed.
    Confirmed { version: u64 },
}

impl Topics {
    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn baseline(&self) -> MutexGuard<'_, Baseline> {
        self.baseline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RedisSubscriber {
    pub(super) fn new(servers: Servers, context: Arc<DriverContext>) -> Self {
        let shared = Arc::new(Shared::new(&context, Tracker::default()));
        Self {
            context,
            servers,
            changing: AsyncMutex::new(()),
            phase: Mutex::default(),
            addresses: Mutex::default(),
            topics: Arc::default(),
            shared,
        }
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it runs; an error if it cannot be used.
    fn usable(&self) -> Result<bool, DriverError> {
        match &*self.phase() {
            Phase::New => Err(DriverError::NotInitialized { what: WHAT }),
            Phase::Closed => Err(DriverError::Closed { what: WHAT }),
            Phase::Initialized => Ok(false),
            Phase::Running { process, .. } => {
                let here = std::process::id();
                if *process != here {
                    return Err(DriverError::Forked { what: WHAT, made_in: *process, here });
                }
                Ok(true)
            }
        }
    }

    fn add_topic(&self, topic: &str) -> Result<bool, DriverError> {
        self.usable()?;
        let mut wanted = self.topics.wanted();
        if wanted.topics.iter().any(|known| known == topic) {
            return Ok(false);
        }
        self.shared.tracking().tracker.register(topic.as_bytes());
        wanted.topics.push(topic.to_owned());
        wanted.version += 1;
        self.topics.changed.notify_one();
        Ok(true)
    }

    fn remove_topic(&self, topic: &str) -> Result<(), DriverError> {
        self.usable()?;
        let mut wanted = self.topics.wanted();
        let Some(at) = wanted.topics.iter().position(|known| known == topic) else {
            return Err(DriverError::UnknownTopic { topic: topic.to_owned() });
        };
        wanted.topics.remove(at);
        wanted.version += 1;
        self.shared.tracking().tracker.unregister(topic.as_bytes());
        self.topics.baseline().forget(topic.as_bytes());
        self.topics.changed.notify_one();
        Ok(())
    }

    fn addresses(&self) -> MutexGuard<'_, Vec<String>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_address(&self, uri: &str) -> Result<bool, DriverError> {
        self.usable()?;
        let mut addresses = self.addresses();
        if addresses.iter().any(|known| known == uri) {
            return Ok(false);
        }
        addresses.push(uri.to_owned());
        Ok(true)
    }

    fn remove_address(&self, uri: &str) -> Result<(), DriverError> {
        self.usable()?;
        let mut addresses = self.addresses();
        let Some(at) = addresses.iter().position(|known| known == uri) else {
            return Err(DriverError::UnknownAddress { uri: uri.to_owned() });
        };
        addresses.remove(at);
        Ok(())
    }

    fn set_up(&self) -> Result<(), DriverError> {
        let mut phase = self.phase();
        match *phase {
            Phase::New => {
                *phase = Phase::Initialized;
                Ok(())
            }
            Phase::Closed => Err(DriverError::Closed { what: WHAT }),
            _ => Err(DriverError::Already { what: WHAT, state: "is initialized" }),
        }
    }

    async fn start(&self) -> Result<(), DriverError> {
        Handle::try_current().map_err(|_| DriverError::NoRuntime)?;
        let _changing = self.changing.lock().await;
        if self.usable()? {
            return Err(DriverError::Already { what: WHAT, state: "runs" });
        }
        let receiving = Receiving {
            servers: self.servers.clone(),
            topics: self.topics.clone(),
            shared: self.shared.clone(),
            tells_reconnections: self.context.options().sync_on_reconnect,
            confirmed: BTreeSet::new(),
            refused: BTreeMap::new(),
            settled: None,
            owed: BTreeSet::new(),
            told: VecDeque::new(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(receiving.run()));
        *self.phase() = Phase::Running { process: std::process::id(), task };
        Ok(())
    }

    async fn wait_ready(&self) -> Result<(), DriverError> {
        if !self.usable()? {
            return Ok(());
        }
        let version = self.topics.wanted().version;
        let mut readiness = self.topics.readiness.subscribe();
        let settled = readiness.wait_for(|now| match now {
            Readiness::Not => false,
            Readiness::Refused { version: asked, .. } | Readiness::Confirmed { version: asked } => {
                *asked >= version
            }
        });
        tokio::select! {
            biased;
            () = self.topics.end.cancelled() => Err(DriverError::Closed { what: WHAT }),
            settled = settled => match settled.as_deref() {
                Ok(Readiness::Refused { at, reason, .. }) => {
                    Err(DriverError::Broker { at: at.clone(), reason: reason.clone() })
                }
                Ok(_) => Ok(()),
                Err(_) => Err(DriverError::Closed { what: WHAT }),
            },
        }
    }

    async fn stop(&self) -> Result<(), DriverError> {
        let _changing = self.changing.lock().await;
        let phase = std::mem::replace(&mut *self.phase(), Phase::Closed);
        if let Phase::Running { process, task } = phase {
            let here = std::process::id();
            if process != here {
                return Err(DriverError::Forked { what: WHAT, made_in: process, here });
            }
            self.topics.end.cancel();
            let _ = task.await;
        }
        self.topics.end.cancel();
        self.shared.queue.close();
        Ok(())
    }
}

const WHAT: &str = "subscriber";

impl Subscriber for RedisSubscriber {
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
        Box::pin(async { self.add_address(uri) })
    }

    fn unregister_listen_address<'a>(
        &'a self,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async { self.remove_address(uri) })
    }

    fn daemonize(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.start())
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.wait_ready())
    }

    fn is_running(&self) -> bool {
        matches!(&*self.phase(), Phase::Running { .. })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.stop())
    }

    fn learn_ends(&self, ends: &[Position]) {
        let mut missing = Vec::new();
        self.shared.tracking().tracker.ends(ends, &mut missing);
        self.topics.baseline().keep_begun(&mut missing);
        self.shared.tell(missing.into_iter().map(SubscriberEvent::Sync).collect());
    }

    fn stats(&self) -> SubscriberStats {
        SubscriberStats {
            callback_panics: self.shared.queue.panics(),
            waiting: self.shared.queue.len() as u64,
            ..self.shared.tracking().stats
        }
    }
}

/// The task that receives.
struct Receiving {
    servers: Servers,
    topics: Arc<Topics>,
    shared: Arc<Shared>,
    tells_reconnections: bool,
    /// The topics that the server has confirmed.
    confirmed: BTreeSet<String>,
    /// Those that it does not let this user follow.
    refused: BTreeMap<String, String>,
    /// The version of the topics that everything was asked for.
    settled: Option<u64>,
    /// Topics that were followed when the connection broke.
    owed: BTreeSet<String>,
    /// Events to be handed over.
    told: VecDeque<SubscriberEvent>,
}

/// Why a connection is not used any more.
enum End {
    Lost(String),
    /// There is a better one.
    Left,
    Closed,
}

impl Receiving {
    async fn run(mut self) {
        let mut backoff = Backoff::new(LONGEST_PAUSE);
        let end = self.topics.end.clone();
        while !end.is_cancelled() {
            let connected = tokio::select! {
                biased;
                () = end.cancelled() => break,
                connected = self.connect() => connected,
            };
            match connected {
                Ok((server, channels)) => {
                    let at = server.address.to_string();
                    tracing::info!(server = at, "the subscriber uses a Redis server");
                    let begun = Instant::now();
                    let ended = self.receive(&at, channels, server).await;
                    self.disconnected();
                    if begun.elapsed() >= STEADY {
                        backoff.reset();
                    }
                    match ended {
                        End::Closed => break,
                        End::Left => {
                            backoff.reset();
                            tracing::info!(server = at, "another server is preferred to this one");
                        }
                        End::Lost(reason) => {
                            tracing::warn!(server = at, reason, "the Redis server is lost");
                        }
                    }
                }
                Err(unreachable) => self.unreachable(&unreachable),
            }
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                () = sleep(backoff.pause()) => {}
            }
        }
        self.shared.queue.close();
    }

    async fn connect(&mut self) -> Result<(Server, Channels), Unreachable> {
        // its connection is for commands
        let (server, _) = self.servers.connect().await?;
        let channels = Channels::open(&server).await?;
        Ok((server, channels))
    }

    fn unreachable(&self, unreachable: &Unreachable) {
        let (at, reason) = (unreachable.at(), unreachable.reason());
        tracing::warn!(servers = at, reason, "no Redis server can be used");
        self.topics.readiness.send_replace(match unreachable.is_refusal() {
            // whatever is wanted
            true => Readiness::Refused { version: u64::MAX, at, reason },
            false => Readiness::Not,
        });
    }

    fn disconnected(&mut self) {
        self.topics.readiness.send_replace(Readiness::Not);
        self.owed.append(&mut self.confirmed);
        self.refused.clear();
        self.settled = None;
        if self.tells_reconnections {
            self.topics.baseline().forget_all();
        }
    }

    async fn receive(&mut self, at: &str, mut channels: Channels, server: Server) -> End {
        let topics = self.topics.clone();
        let queue = self.shared.queue.clone();
        let mut preferred = std::pin::pin!(self.servers.clone().preferred(server));
        self.reconcile(at, &mut channels);
        loop {
            let mut heard = tokio::select! {
                biased;
                () = topics.end.cancelled() => return End::Closed,
                () = topics.changed.notified() => {
                    self.reconcile(at, &mut channels);
                    self.hand_over();
                    continue;
                }
                () = &mut preferred => return End::Left,
                heard = next(&queue, &mut channels) => Some(heard),
            };
            let mut octets = 0;
            for _ in 0..BATCH {
                match heard {
                    Some(Ok(Heard::Message(message))) => {
                        octets += message.get_payload_bytes().len();
                        self.take(at, &message);
                    }
                    Some(Ok(Heard::Answers(answers))) => {
                        self.answered(at, answers);
                        self.reconcile(at, &mut channels);
                    }
                    Some(Err(reason)) => {
                        self.hand_over();
                        return End::Lost(reason);
                    }
                    None => break,
                }
                heard = match octets < BATCH_OCTETS {
                    true => poll_immediate(next(&queue, &mut channels)).await,
                    false => None,
                };
            }
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if !self.told.is_empty() {
            self.shared.tell(std::mem::take(&mut self.told));
        }
    }

    /// Asks the server for what is wanted and not followed, and the other way round; says so when
    /// nothing is left.
    fn reconcile(&mut self, at: &str, channels: &mut Channels) {
        let wanted = {
            let wanted = self.topics.wanted();
            if channels.is_asking() || self.settled == Some(wanted.version) {
                return;
            }
            wanted.clone()
        };
        let is_wanted = |topic: &String| wanted.topics.contains(topic);
        self.refused.retain(|topic, _| is_wanted(topic));
        let is_asked =
            |topic: &&String| self.confirmed.contains(*topic) || self.refused.contains_key(*topic);
        let new = wanted.topics.iter().filter(|topic| !is_asked(topic));
        let old = self.confirmed.iter().filter(|topic| !is_wanted(topic));
        let mut changes: Vec<_> = new.cloned().map(Change::Subscribe).collect();
        changes.extend(old.cloned().map(Change::Unsubscribe));
        if !changes.is_empty() {
            channels.ask(changes);
            return;
        }
        self.settled = Some(wanted.version);
        self.topics.readiness.send_replace(match self.refused.iter().next() {
            Some((topic, reason)) => {
                let reason = format!("topic {topic:?} cannot be followed: {reason}");
                Readiness::Refused { version: wanted.version, at: at.to_owned(), reason }
            }
            None => Readiness::Confirmed { version: wanted.version },
        });
        // only now: who looks for what it missed has to get what changes from then on
        self.owed.retain(is_wanted);
        if !std::mem::take(&mut self.owed).is_empty() && self.tells_reconnections {
            let sync = Sync { missing: None, cause: SyncCause::Reconnected };
            self.told.push_back(SubscriberEvent::Sync(sync));
        }
    }

    fn answered(&mut self, at: &str, answers: Vec<Answer>) {
        for Answer { change, result } in answers {
            match (change, result) {
                (Some(Change::Subscribe(topic)), Ok(())) => {
                    self.confirmed.insert(topic);
                }
                (Some(Change::Subscribe(topic)), Err(fault)) => {
                    let reason = fault.reason;
                    tracing::warn!(server = at, topic, reason, "a topic cannot be followed");
                    self.refused.insert(topic, reason);
                }
                (Some(Change::Unsubscribe(topic)), _) => {
                    self.confirmed.remove(&topic);
                }
                (None, _) => {}
            }
        }
    }

    fn take(&mut self, at: &str, message: &Msg) {
        let topic = message.get_channel::<Vec<u8>>().unwrap_or_default();
        let shared = self.shared.clone();
        let mut tracking = shared.tracking();
        let Tracking { tracker, stats } = &mut *tracking;
        if !tracker.is_registered(&topic) {
            // it came before the server had heard that it is not followed any more
            return;
        }
        let mut baseline = self.topics.baseline();
        let mut missing = Vec::new();
        let mut event = None;
        match codec::decode(message.get_payload_bytes()) {
            Ok(Body::Event { update, origin: None }) => event = Some(as_event(update)),
            Ok(Body::Event { update, origin: Some(origin) }) => {
                match tracker.event(None, &topic, &origin, &mut missing) {
                    Verdict::Deliver => event = Some(as_event(update)),
                    Verdict::Late => stats.late += 1,
                }
                baseline.keep_begun(&mut missing);
                baseline.begin(origin.publisher, origin.epoch, &topic);
            }
            Ok(Body::Positions(said)) => {
                tracker.positions(None, &said, std::time::Instant::now(), &mut missing);
                baseline.keep_begun(&mut missing);
                for position in said.positions.iter().filter(|said| said.topic == topic) {
                    baseline.begin(position.publisher, position.epoch, &topic);
                }
            }
            Err(error) => {
                stats.undecodable += 1;
                match &error {
                    CodecError::Event { origin, .. } => {
                        tracker.unreadable(None, &topic, origin, &mut missing);
                        baseline.begin(origin.publisher, origin.epoch, &topic);
                    }
                    _ => missing.push(Sync { missing: None, cause: SyncCause::Undecodable }),
                }
                let topic = String::from_utf8_lossy(&topic);
                tracing::warn!(server = at, %topic, %error, "an event cannot be read");
            }
        }
        self.told.extend(missing.into_iter().map(SubscriberEvent::Sync));
        self.told.extend(event);
    }
}

/// The next that comes; messages once there is room for what they hold. Cancel safe.
async fn next(queue: &Queue, channels: &mut Channels) -> Result<Heard, String> {
    poll_fn(|cx| {
        let room = queue.poll_room(cx).is_ready();
        channels.poll_heard(room, cx)
    })
    .await
}

/// Messages that are taken in one go.
const BATCH: usize = 256;

const LONGEST_PAUSE: Duration = Duration::from_secs(5);
