//! The publisher over Redis: an event is a `PUBLISH` on its topic, to the server that the subscribers
//! are at too.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ::redis::cmd;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::nodes::Address;
use super::servers::{Backoff, Connection, REVIEW, Server, Servers, Unreachable};
use crate::driver::codec::{Codec, Origin, Position};
use crate::driver::error::DriverError;
use crate::driver::identity::Identity;
use crate::driver::journal::Journal;
use crate::driver::publisher::{CHANGES, LINGER, open_journal};
use crate::driver::registration::tell_ends;
use crate::driver::streams::Streams;
use crate::driver::update::Update;
use crate::driver::{DriverContext, Publisher, PublisherStats};
use crate::endpoint::Endpoint;

/// A publisher over Redis.
#[derive(Debug)]
pub(super) struct RedisPublisher {
    context: Arc<DriverContext>,
    codec: Codec,
    identity: Identity,
    servers: Servers,
    /// Held while it is opened or closed.
    changing: AsyncMutex<()>,
    state: Mutex<State>,
    published: AtomicU64,
    unheard: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Arc<Open>>,
    /// The last life's.
    epoch: u64,
}

#[derive(Debug)]
struct Open {
    process: u32,
    id: Uuid,
    publishing: Arc<AsyncMutex<Publishing>>,
    /// The server in use.
    at: Arc<Mutex<Option<Address>>>,
    _announcing: AbortOnDropHandle<()>,
}

impl RedisPublisher {
    pub(super) fn new(servers: Servers, context: Arc<DriverContext>) -> Self {
        Self {
            codec: context.options.codec.unwrap_or_default(),
            context,
            servers,
            identity: Identity::default(),
            changing: AsyncMutex::new(()),
            state: Mutex::default(),
            published: AtomicU64::new(0),
            unheard: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> Result<Arc<Open>, DriverError> {
        let open = self.state().open.clone();
        let open = match open {
            Some(open) => open,
            None => {
                let _changing = self.changing.lock().await;
                let already = self.state().open.clone();
                match already {
                    Some(open) => open,
                    None => self.start().await?,
                }
            }
        };
        let here = std::process::id();
        if open.process != here {
            let made_in = open.process;
            return Err(DriverError::Forked { what: WHAT, made_in, here });
        }
        Ok(open)
    }

    async fn start(&self) -> Result<Arc<Open>, DriverError> {
        Handle::try_current().map_err(|_| DriverError::NoRuntime)?;
        let (id, context) = (self.id(), &self.context);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let mut epoch = now.max(self.state().epoch.saturating_add(1));
        let numbered = self.codec == Codec::Protobuf;
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
        let at = Arc::default();
        let publishing = Publishing {
            codec: self.codec,
            outlet: Outlet::new(self.servers.clone(), Arc::clone(&at)),
            streams,
            journal,
            body: Vec::new(),
            new: true,
            topics: BTreeSet::new(),
            lossy: BTreeSet::new(),
        };
        let publishing = Arc::new(AsyncMutex::new(publishing));
        let announcing = AbortOnDropHandle::new(tokio::spawn(announce(publishing.clone())));
        let process = std::process::id();
        let open = Arc::new(Open { process, id, publishing, at, _announcing: announcing });
        let mut state = self.state();
        state.epoch = epoch;
        state.open = Some(open.clone());
        Ok(open)
    }

    async fn publish(&self, update: &Update, topic: Option<&str>) -> Result<(), DriverError> {
        let open = self.open().await?;
        let topic = update.topic_to_send_on(topic);
        let heard = open.publishing.lock().await.publish(update, topic, PATIENCE).await?;
        self.published.fetch_add(1, Ordering::Relaxed);
        if heard == Some(0) {
            self.unheard.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    async fn stop(&self) -> Result<(), DriverError> {
        let _changing = self.changing.lock().await;
        let Some(open) = self.state().open.take() else { return Ok(()) };
        if open.process != std::process::id() {
            // the connection is the parent's
            return Ok(());
        }
        let mut ends: Vec<Position> = Vec::new();
        let ending = async {
            let mut publishing = open.publishing.lock().await;
            let said = publishing.say_changes().await;
            publishing.streams.finish();
            if self.codec == Codec::Protobuf {
                let all = publishing.streams.all().into_iter();
                ends.extend(all.flat_map(|(_, said)| said.positions));
            }
            said && publishing.say_positions().await
        };
        if timeout(LINGER, ending).await != Ok(true) {
            tracing::warn!("the publisher closed, and Redis could not be told where it ended");
        }
        if let Some(directory) = &self.context.directory {
            tell_ends(directory, open.id, &ends).await?;
        }
        Ok(())
    }
}

impl Publisher for RedisPublisher {
    fn initialize(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async {
            let open = self.open().await?;
            let mut publishing = open.publishing.lock().await;
            publishing.outlet.connected().await?;
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
        let at = open.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        format!("tcp://{}", at?).parse().ok()
    }

    fn stats(&self) -> PublisherStats {
        PublisherStats {
            subscribers: 0,
            published: self.published.load(Ordering::Relaxed),
            // a server drops a subscriber that is too slow, and with it no single event
            dropped: 0,
            unheard: self.unheard.load(Ordering::Relaxed),
        }
    }
}

const WHAT: &str = "publisher";

/// Everything that it takes to publish; held while an event is on its way, so that events leave in the
/// order of their numbers.
#[derive(Debug)]
struct Publishing {
    codec: Codec,
    outlet: Outlet,
    streams: Streams,
    journal: Option<Journal>,
    /// Bodies are written here.
    body: Vec<u8>,
    /// Nothing was published so far.
    new: bool,
    /// Topics of events that went to the server in use.
    topics: BTreeSet<String>,
    /// Those of a former server: their subscribers may have been at this one already.
    lossy: BTreeSet<String>,
}

/// An event's number. Once the event may have left it is used up, even if nobody waits for the rest:
/// another event with the same number would be taken for this one.
struct Number<'a> {
    streams: &'a mut Streams,
    origin: Origin,
    topic: &'a str,
    left: bool,
}

impl Drop for Number<'_> {
    fn drop(&mut self) {
        if self.left {
            self.streams.sent(&self.origin, self.topic.as_bytes());
        }
    }
}

impl Publishing {
    /// Returns how many subscribers the server has passed the event to, if it knows.
    async fn publish(
        &mut self,
        update: &Update,
        topic: &str,
        patience: Duration,
    ) -> Result<Option<u64>, DriverError> {
        if std::mem::take(&mut self.new) {
            // where earlier lives have ended goes before what shows that they have
            self.say_positions().await;
        }
        let Self { codec, outlet, streams, journal, body, topics, .. } = self;
        let origin = streams.next(topic.as_bytes());
        body.clear();
        // with its value, whatever `trigger_only` says: as Dragonflow's Redis publisher did
        codec.encode(update, topic, &origin, body);
        if let Some(journal) = journal {
            journal.note(topic.as_bytes(), origin.sequence).map_err(|source| {
                DriverError::Journal { path: journal.path().to_owned(), source }
            })?;
        }
        if !topics.contains(topic) {
            topics.insert(topic.to_owned());
        }
        let mut number = Number { streams, origin, topic, left: false };
        loop {
            match outlet.publish(topic.as_bytes(), body, &mut number.left).await {
                Ok(heard) => return Ok(heard),
                Err(unreachable) => {
                    let late = outlet.failing.is_some_and(|since| since.elapsed() >= patience);
                    if late || unreachable.is_refusal() {
                        return Err(unreachable.into());
                    }
                    tracing::debug!(reason = unreachable.reason(), "an event is published again");
                }
            }
        }
    }

    /// Says where events may have been lost and how far streams have come; tells whether everything
    /// was said.
    async fn say_changes(&mut self) -> bool {
        if std::mem::take(&mut self.outlet.moved) {
            self.lossy.append(&mut self.topics);
        }
        while let Some(topic) = self.lossy.first().cloned() {
            if self.publish(&Update::sync(&topic), &topic, Duration::ZERO).await.is_err() {
                return false;
            }
            self.lossy.remove(&topic);
        }
        self.say_positions().await
    }

    async fn say_positions(&mut self) -> bool {
        if self.codec != Codec::Protobuf {
            return true;
        }
        let mut all = true;
        for (topic, positions) in self.streams.changes() {
            // after the first that fails the others would only wait
            all = all && self.outlet.publish(&topic, &positions.encode(), &mut false).await.is_ok();
            if !all {
                self.streams.say_again(&positions);
            }
        }
        self.streams.sweep(std::time::Instant::now());
        all
    }
}

/// The task that says how far streams have come and looks for a preferred server.
async fn announce(publishing: Arc<AsyncMutex<Publishing>>) {
    let mut changes = interval(CHANGES);
    let mut review = interval(REVIEW);
    changes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    review.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = changes.tick() => {
                publishing.lock().await.say_changes().await;
            }
            _ = review.tick() => {
                let (mut servers, used) = {
                    let outlet = &publishing.lock().await.outlet;
                    (outlet.servers.clone(), outlet.used.clone())
                };
                let Some(used) = used else { continue };
                // events go on to the server in use meanwhile
                if servers.is_other_preferred(&used).await {
                    publishing.lock().await.outlet.leave(&used);
                }
            }
        }
    }
}

/// The connection that events leave by.
#[derive(Debug)]
struct Outlet {
    servers: Servers,
    connection: Option<Connection>,
    /// The server of the connection, or of the last one.
    used: Option<Server>,
    /// It is another server than before.
    moved: bool,
    /// Since when nothing could be published.
    failing: Option<Instant>,
    backoff: Backoff,
    /// When to connect at the earliest.
    again: Instant,
    at: Arc<Mutex<Option<Address>>>,
}

impl Outlet {
    fn new(servers: Servers, at: Arc<Mutex<Option<Address>>>) -> Self {
        Self {
            servers,
            connection: None,
            used: None,
            moved: false,
            failing: None,
            backoff: Backoff::new(LONGEST_PAUSE),
            again: Instant::now(),
            at,
        }
    }

    /// Publishes, with one attempt. `left` is set if it may have left.
    async fn publish(
        &mut self,
        topic: &[u8],
        body: &[u8],
        left: &mut bool,
    ) -> Result<Option<u64>, Unreachable> {
        let connection = self.connected().await?;
        let before = std::mem::replace(left, true);
        let answer = connection.ask(cmd("PUBLISH").arg(topic).arg(body)).await;
        match answer {
            Ok(heard) => {
                self.failing = None;
                self.backoff.reset();
                let is_cluster = self.used.as_ref().is_some_and(|used| used.is_cluster);
                // a cluster's node knows of its own subscribers only
                Ok((!is_cluster).then_some(heard))
            }
            Err(fault) => {
                if fault.is_answer() {
                    *left = before;
                }
                self.connection = None;
                self.failed();
                Err(fault.into())
            }
        }
    }

    async fn connected(&mut self) -> Result<&mut Connection, Unreachable> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(self.connection.insert(connection))
    }

    async fn connect(&mut self) -> Result<Connection, Unreachable> {
        sleep_until(self.again).await;
        match self.servers.connect().await {
            Ok((server, connection)) => {
                let before = self.used.as_ref().map(|used| &used.address);
                self.moved |= before.is_some_and(|before| *before != server.address);
                tracing::info!(server = %server.address, "the publisher uses a Redis server");
                let at = Some(server.address.clone());
                *self.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
                self.used = Some(server);
                Ok(connection)
            }
            Err(unreachable) => {
                self.failed();
                Err(unreachable)
            }
        }
    }

    fn failed(&mut self) {
        let now = Instant::now();
        self.failing.get_or_insert(now);
        self.again = now + self.backoff.pause();
    }

    /// Another server is preferred to this one.
    fn leave(&mut self, used: &Server) {
        if self.used.as_ref().is_some_and(|now| now.address == used.address) {
            self.connection = None;
        }
    }
}

/// How long an event is tried to be published.
const PATIENCE: Duration = Duration::from_secs(10);

const LONGEST_PAUSE: Duration = Duration::from_secs(1);
