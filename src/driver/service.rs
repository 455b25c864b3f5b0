//! The publisher service of a host: takes events of its processes from a Unix socket and publishes
//! them on the network, so that the host has one publisher for its subscribers to connect to.

use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::poll_immediate;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use super::drivers::network;
use super::error::DriverError;
use super::publisher::{Relayed, SocketPublisher};
use super::table_monitor::{TableMonitor, remove_stale_publishers};
use super::update::{SEND_ALL_TOPIC, Update};
use super::{DriverContext, Drivers, Publisher};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::message::Message;
use crate::monitor::{Event, Monitor};
use crate::peer::ConnectionId;
use crate::pull_socket::PullSocket;

/// A publisher service that runs.
///
/// Events are sent on as they are, those of each process in their order. What this side cannot keep
/// for a subscriber that is too slow is dropped, counted, and told to that subscriber by `sync`.
#[derive(Debug)]
pub struct PublisherService {
    publisher: Arc<dyn Publisher>,
    local: Option<Endpoint>,
    shared: Arc<Shared>,
    stopping: CancellationToken,
    /// Cancelled when everything was sent on.
    forwarded: CancellationToken,
    monitors: Mutex<Vec<AbortOnDropHandle<()>>>,
    context: DriverContext,
}

#[derive(Debug, Default)]
struct Shared {
    relayed: Mutex<Relayed>,
    incoming: Mutex<Incoming>,
}

#[derive(Debug, Default)]
struct Incoming {
    received: u64,
    connections: usize,
}

/// What a publisher service has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ServiceStats {
    /// The id of its publisher.
    pub id: String,
    /// Where processes push to; `None` if they publish for themselves.
    pub local: Option<String>,
    /// Where subscribers connect to.
    pub network: Option<String>,
    /// Processes that are connected.
    pub processes: usize,
    /// Subscribers that are connected.
    pub subscribers: u64,
    /// Messages that came from processes.
    pub received: u64,
    /// Events that were sent on.
    pub forwarded: u64,
    /// Events that a subscriber had no room for, each counted for each such subscriber.
    pub dropped: u64,
    /// Events whose topic nobody followed.
    pub unheard: u64,
    /// Messages that are none of an event.
    pub malformed: u64,
    /// Events of its own: changes of tables.
    pub published: u64,
}

impl PublisherService {
    /// Starts a service: binds the local socket and the network's, has itself entered in the
    /// directory and starts the monitors, if there is a directory.
    ///
    /// If processes publish for themselves (`pub_sub_use_multiproc` is false), it has no local socket,
    /// and publishes what its monitors find by `pub_sub_driver`.
    ///
    /// # Errors
    /// [`DriverError::Socket`] if another service has the local socket or the port,
    /// [`DriverError::UnsupportedTransport`], [`DriverError::Address`], [`DriverError::NoRuntime`].
    pub async fn start(context: DriverContext) -> Result<Self, DriverError> {
        Self::start_on(context, None).await
    }

    /// The same on a Unix socket that listens already, as systemd hands it over. The socket's file
    /// is then left alone.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_on(
        context: DriverContext,
        listener: Option<UnixListener>,
    ) -> Result<Self, DriverError> {
        let options = context.options();
        let shared = Arc::new(Shared::default());
        let stopping = CancellationToken::new();
        let forwarded = CancellationToken::new();
        let service = |publisher, local| Self {
            publisher,
            local,
            shared: shared.clone(),
            stopping: stopping.clone(),
            forwarded: forwarded.clone(),
            monitors: Mutex::default(),
            context: context.clone(),
        };
        if !options.pub_sub_use_multiproc {
            // processes publish for themselves; what is left to publish is what the monitors find
            let driver = Drivers::new().load(&options.pub_sub_driver, context.clone())?;
            let service = service(driver.get_publisher(), None);
            forwarded.cancel();
            service.publisher.initialize().await?;
            service.start_monitors();
            return Ok(service);
        }
        let pull = PullSocket::with_options(context.socket_options().recv_hwm(RECV_HWM))
            .map_err(|source| socket_error("making PULL", source))?;
        let local = match listener {
            Some(listener) => pull
                .bind_listener(listener)
                .map_err(|source| socket_error("listening on the socket handed over", source))?,
            None => bind_local(&pull, &options.publisher_multiproc_socket).await?,
        };
        let publisher =
            Arc::new(SocketPublisher::new(network(options)?, Arc::new(context.clone())));
        publisher.initialize().await?;
        let service = service(publisher.clone(), Some(local.clone()));
        let forwarder = Forwarder {
            pull,
            publisher,
            shared: shared.clone(),
            stopping: stopping.clone(),
            local,
            processes: Processes::default(),
        };
        let done = forwarded.clone().drop_guard();
        tokio::spawn(async move {
            forwarder.run().await;
            drop(done);
        });
        service.start_monitors();
        Ok(service)
    }

    /// Follows new options where that is possible without a restart: the monitors' tables and
    /// period, and the time after which publishers are stale. Returns the names of options that
    /// differ and need a restart.
    pub fn reload(&mut self, context: &DriverContext) -> Vec<&'static str> {
        let (old, new) = (self.context.options().clone(), context.options());
        let mut kept = Vec::new();
        let mut differs = |name, differs: bool| {
            if differs {
                kept.push(name);
            }
        };
        differs("publisher_port", old.publisher_port != new.publisher_port);
        differs("publisher_transport", old.publisher_transport != new.publisher_transport);
        differs("publisher_bind_address", old.publisher_bind_address != new.publisher_bind_address);
        differs(
            "publisher_multiproc_socket",
            old.publisher_multiproc_socket != new.publisher_multiproc_socket,
        );
        differs("management_ip", old.management_ip != new.management_ip);
        differs("codec", old.codec != new.codec);
        differs("directory", old.directory != new.directory);
        differs("state_path", old.state_path != new.state_path);
        let mut options = old;
        options.monitor_tables.clone_from(&new.monitor_tables);
        options.monitor_table_poll_time = new.monitor_table_poll_time;
        options.publisher_timeout = new.publisher_timeout;
        self.context.set_options(options);
        self.start_monitors();
        kept
    }

    fn start_monitors(&self) {
        let Some(directory) = self.context.directory() else { return };
        let options = self.context.options();
        let period = options.monitor_table_poll_time.max(SHORTEST_PERIOD);
        let mut monitors = Vec::new();
        for table in &options.monitor_tables {
            let monitor = TableMonitor::new(table, directory.clone(), self.publisher.clone());
            monitors.push(AbortOnDropHandle::new(tokio::spawn(monitor.run(period))));
        }
        let (directory, own) = (directory.clone(), self.publisher.id());
        let stale_after = options.publisher_timeout;
        monitors.push(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                sleep(period).await;
                match remove_stale_publishers(&*directory, own, stale_after).await {
                    Ok(removed) => {
                        for id in removed {
                            tracing::info!(id, "a publisher was not active and is removed");
                        }
                    }
                    Err(error) => tracing::warn!(%error, "stale publishers are not looked for"),
                }
            }
        })));
        *self.monitors.lock().unwrap_or_else(PoisonError::into_inner) = monitors;
    }

    /// The publisher, for events of the service's own process.
    #[must_use]
    pub fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    /// Where processes push to; `None` if they publish for themselves (`pub_sub_use_multiproc`).
    #[must_use]
    pub fn local(&self) -> Option<&Endpoint> {
        self.local.as_ref()
    }

    /// Resolves when the service stops: when it is closed, or with the next message after its
    /// publisher was.
    pub async fn stopped(&self) {
        self.stopping.cancelled().await;
    }

    /// What it has done.
    #[must_use]
    pub fn stats(&self) -> ServiceStats {
        let relayed = *self.shared.relayed.lock().unwrap_or_else(PoisonError::into_inner);
        let (received, processes) = {
            let incoming = self.shared.incoming.lock().unwrap_or_else(PoisonError::into_inner);
            (incoming.received, incoming.connections)
        };
        let own = self.publisher.stats();
        ServiceStats {
            id: self.publisher.id().to_string(),
            local: self.local.as_ref().map(Endpoint::to_string),
            network: self.publisher.endpoint().map(|endpoint| endpoint.to_string()),
            processes,
            received,
            forwarded: relayed.forwarded,
            dropped: relayed.dropped,
            unheard: relayed.unheard,
            malformed: relayed.malformed,
            published: own.published,
            subscribers: own.subscribers,
        }
    }

    /// Takes what processes have sent, sends on all of it, and closes; processes keep what they send
    /// from then on for the next service. Removes the row from the directory. Closing again does
    /// nothing.
    ///
    /// # Errors
    /// [`DriverError::Directory`] if the row could not be removed.
    ///
    /// # Cancel safety
    /// When cancelled, the service stops forwarding in the background; the rest is done when it is
    /// called again.
    pub async fn close(&self) -> Result<(), DriverError> {
        self.monitors.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.stopping.cancel();
        self.forwarded.cancelled().await;
        self.publisher.close().await
    }
}

/// Without `close` it stops as well, but its row stays in the directory until it is stale.
impl Drop for PublisherService {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

async fn bind_local(pull: &PullSocket, path: &Path) -> Result<Endpoint, DriverError> {
    let endpoint = Endpoint::ipc(path).map_err(|source| DriverError::Address {
        uri: format!("ipc://{}", path.display()),
        source,
    })?;
    pull.bind(endpoint).await.map_err(|source| {
        let doing = format!("the publisher service binds its local socket {}", path.display());
        DriverError::Socket { doing, source }
    })
}

fn socket_error(doing: &str, source: Error) -> DriverError {
    DriverError::Socket { doing: doing.to_owned(), source }
}

/// The task that sends on.
struct Forwarder {
    pull: PullSocket,
    publisher: Arc<SocketPublisher>,
    shared: Arc<Shared>,
    stopping: CancellationToken,
    local: Endpoint,
    processes: Processes,
}

impl Forwarder {
    async fn run(mut self) {
        let mut monitor = self.pull.monitor();
        // the subscribers of the service before this one are on their way back: what is sent on
        // before they are here is lost to them
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = sleep(SETTLING) => {}
        }
        loop {
            let abandoned = self.processes.next_abandoned();
            let expired = async {
                match abandoned {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stopping.cancelled() => break,
                Some(event) = monitor.recv() => self.note(event),
                () = expired => {
                    for (publisher, epoch) in self.processes.abandoned(Instant::now()) {
                        self.publisher.abandon(publisher, epoch).await;
                    }
                }
                received = self.pull.recv() => {
                    let Ok(message) = received else { break };
                    if !self.relay(message).await {
                        break;
                    }
                }
            }
        }
        self.stopping.cancel();
        self.drain(&mut monitor).await;
    }

    /// What processes have handed to their kernels comes in while their connections are closed.
    async fn drain(&mut self, monitor: &mut Monitor) {
        // goes on in the background
        let _ = poll_immediate(self.pull.unbind(self.local.clone())).await;
        let given_up = sleep(PATIENCE);
        tokio::pin!(given_up);
        'all: loop {
            while let Ok(message) = self.pull.try_recv() {
                if !self.relay(message).await {
                    break 'all;
                }
            }
            if self.pull.stats().peers.is_empty() {
                break;
            }
            tokio::select! {
                () = &mut given_up => {
                    tracing::warn!("a process does not close its connection to the service");
                    break;
                }
                Some(event) = monitor.recv() => self.note(event),
                received = self.pull.recv() => {
                    let Ok(message) = received else { break };
                    if !self.relay(message).await {
                        break;
                    }
                }
            }
        }
        self.pull.close().await;
    }

    /// Sends a message on, and those that are there behind it. Tells whether it can go on.
    async fn relay(&mut self, first: Message) -> bool {
        let Ok(mut relay) = self.publisher.relay().await else { return false };
        let (mut next, mut received) = (Some(first), 0);
        let mut goes_on = true;
        while let Some(message) = next {
            received += 1;
            match relay.send(message) {
                Ok(None) => {}
                Ok(Some(life)) => {
                    if let Some(connection) = self.pull.last_peer() {
                        self.processes.said(connection, life, Instant::now());
                    }
                }
                Err(_) => {
                    goes_on = false;
                    break;
                }
            }
            next = if received < BATCH { self.pull.try_recv().ok() } else { None };
        }
        let relayed = relay.finish();
        self.shared.incoming.lock().unwrap_or_else(PoisonError::into_inner).received += received;
        *self.shared.relayed.lock().unwrap_or_else(PoisonError::into_inner) += relayed;
        if relayed.malformed > 0 {
            tracing::warn!(messages = relayed.malformed, "a process sent what is no event");
            // it may have been one for anybody
            let _ = self.publisher.send_event(&Update::sync(SEND_ALL_TOPIC), None).await;
        }
        goes_on
    }

    fn note(&mut self, event: Event) {
        let mut incoming = self.shared.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::HandshakeSucceeded { .. } => incoming.connections += 1,
            Event::Disconnected { peer, cause, .. } => {
                incoming.connections = incoming.connections.saturating_sub(1);
                tracing::debug!(%peer, %cause, "a process is gone");
                self.processes.gone(peer.id, Instant::now());
            }
            _ => {}
        }
    }
}

/// Which publishers are at the other ends.
#[derive(Debug, Default)]
struct Processes {
    connected: HashMap<ConnectionId, Life>,
    /// Those whose connection ended, until when they may be back.
    gone: Vec<(Life, Instant)>,
    /// Connections that ended lately; messages of them may still be read.
    ended: VecDeque<ConnectionId>,
}

/// A publisher and its epoch.
type Life = (Uuid, u64);

impl Processes {
    fn said(&mut self, connection: ConnectionId, life: Life, now: Instant) {
        if self.ended.contains(&connection) {
            // its last words, read after its end
            if !self.connected.values().any(|other| *other == life)
                && !self.gone.iter().any(|(gone, _)| *gone == life)
            {
                self.gone.push((life, now + GRACE));
            }
            return;
        }
        self.connected.insert(connection, life);
        self.gone.retain(|(gone, _)| *gone != life);
    }

    fn gone(&mut self, connection: ConnectionId, now: Instant) {
        self.ended.push_back(connection);
        if self.ended.len() > KEPT_ENDED {
            self.ended.pop_front();
        }
        if let Some(life) = self.connected.remove(&connection)
            && !self.connected.values().any(|other| *other == life)
        {
            self.gone.push((life, now + GRACE));
        }
    }

    fn next_abandoned(&self) -> Option<Instant> {
        self.gone.iter().map(|(_, until)| *until).min()
    }

    fn abandoned(&mut self, now: Instant) -> Vec<Life> {
        let (gone, waiting) = self.gone.drain(..).partition(|(_, until)| *until <= now);
        self.gone = waiting;
        let gone: Vec<_> = gone;
        gone.into_iter().map(|(life, _)| life).collect()
    }
}

/// Connections that are known to have ended.
const KEPT_ENDED: usize = 1024;

/// A process whose connection ended without its saying so may come back for that long.
const GRACE: Duration = Duration::from_secs(2);

/// Messages that are sent on in one go.
const BATCH: u64 = 1000;

/// Messages that may wait for the forwarder, of each process.
const RECV_HWM: usize = 4000;

/// How long processes are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a service waits before it sends on: twice the time after which subscribers connect
/// again. Processes keep their events meanwhile.
const SETTLING: Duration = Duration::from_millis(200);

/// Tables are not looked at more often than that.
const SHORTEST_PERIOD: Duration = Duration::from_millis(50);
