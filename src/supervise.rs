//! The tasks that keep a socket's endpoints alive: one that accepts on each bound endpoint, one that
//! connects (again and again) to each connected one.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::connection::{Connection, Greeter};
use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointState, Endpoints, EntryId, Stop};
use crate::engine::EngineConfig;
use crate::error::DisconnectCause;
use crate::hub::{Admission, Hub, Leaving, PeerId};
use crate::monitor::Event;
use crate::options::SocketOptions;
use crate::peer::{ConnectionId, PeerInfo};
use crate::transport::{self, Listener, Stream};

/// What the tasks of a socket share.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) hub: Arc<Hub>,
    engine: Arc<EngineConfig>,
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) tasks: TaskTracker,
    waiting_room: Arc<WaitingRoom>,
}

impl Supervisor {
    pub(crate) fn new(hub: Arc<Hub>, engine: Arc<EngineConfig>) -> Self {
        let waiting_room = Arc::new(WaitingRoom::new(hub.max_handshakes()));
        let (endpoints, tasks) = (Arc::default(), TaskTracker::new());
        Self { hub, engine, endpoints, tasks, waiting_room }
    }

    fn options(&self) -> &SocketOptions {
        self.hub.options()
    }

    /// Accepts until told to stop.
    pub(crate) async fn accept(
        self: Arc<Self>,
        listener: Listener,
        endpoint: Endpoint,
        entry: EntryId,
        Stop { stop, stopped, .. }: Stop,
    ) {
        let mut delay = ACCEPT_DELAY;
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = async {
                    self.waiting_room.vacancy().await;
                    listener.accept().await
                } => accepted,
            };
            match accepted {
                Ok(stream) => {
                    delay = ACCEPT_DELAY;
                    let info = describe(&stream, &endpoint, true);
                    let span = span(&info);
                    let place = self.waiting_room.enter();
                    // boxed, so that a connection does not drag its handshake's state along
                    let welcome = Box::pin(self.clone().welcome(stream, info, place, stop.clone()));
                    let serve = self.clone().serve(welcome, entry);
                    self.tasks.spawn(serve.instrument(span));
                }
                // that peer is gone again, which says nothing about the next one
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.hub.emit(&Event::AcceptFailed {
                        endpoint: endpoint.clone(),
                        error: error.to_string(),
                        retry_in: delay,
                    });
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        () = sleep(delay) => {}
                    }
                    delay = (delay * 2).min(ACCEPT_DELAY_MAX);
                }
            }
        }
        drop(listener);
        stopped.cancel();
        self.hub.emit(&Event::Unbound { endpoint });
    }

    /// One accepted connection, from its first octet to its last.
    async fn serve(self: Arc<Self>, welcome: BoxFuture<'static, Welcomed>, entry: EntryId) {
        let Some((id, info, mut connection)) = welcome.await else { return };
        if !self.endpoints.enter(entry, id) {
            self.hub.close_peer(id, self.hub.linger_from(Instant::now().into_std()));
        }
        let cause = connection.run().await;
        self.endpoints.leave(entry, id);
        self.part(id, info, cause);
    }

    /// The handshake of an accepted connection.
    async fn welcome(
        self: Arc<Self>,
        stream: Stream,
        mut info: PeerInfo,
        place: Place,
        stop: CancellationToken,
    ) -> Welcomed {
        let peer = Arc::new(info.clone());
        self.hub.emit(&Event::Accepted { peer: peer.clone() });
        let greeted = match self.admit(&stream, &info) {
            Ok(admission) => {
                let (reader, writer) = stream.split();
                let mut greeter = Greeter::new(self.engine.clone(), reader, writer);
                let greeted = tokio::select! {
                    biased;
                    () = stop.cancelled() => Err(DisconnectCause::Local),
                    () = place.evicted.cancelled() => Err(DisconnectCause::TooManyHandshakes),
                    greeted = greeter.greet(self.options().handshake_timeout) => greeted,
                };
                drop(admission);
                greeted.map(|session| (greeter, session))
            }
            Err(cause) => Err(cause),
        };
        drop(place);
        let (greeter, session) = match greeted {
            Ok(greeted) => greeted,
            Err(cause) => {
                self.fail_handshake(peer, &cause);
                return None;
            }
        };
        info.session = Some(session);
        let info = Arc::new(info);
        let id = self.hub.add_peer(info.endpoint.clone(), false);
        let connection = greeter.open(self.hub.clone(), id, info.clone());
        Some((id, info, connection))
    }

    /// Whether a peer may connect at all.
    fn admit(&self, stream: &Stream, info: &PeerInfo) -> Result<Admission, DisconnectCause> {
        let options = self.options();
        stream.set_up(options)?;
        if let Some(remote) = info.remote {
            let address = remote.ip().to_canonical();
            let filters = &options.tcp_accept_filters;
            if !filters.is_empty() && !filters.iter().any(|network| network.contains(&address)) {
                return Err(DisconnectCause::Filtered(format!("address {address}")));
            }
        }
        if let Some(who) = info.credentials
            && !options.ipc_filters.accept(who.uid, who.gid, who.pid)
        {
            let pid = who.pid.unwrap_or_default();
            let text = format!("user {}, group {}, process {pid}", who.uid, who.gid);
            return Err(DisconnectCause::Filtered(text));
        }
        self.hub.admit().ok_or(DisconnectCause::Memory { held: 0 })
    }

    /// A connection is over.
    fn part(&self, id: PeerId, peer: Arc<PeerInfo>, cause: DisconnectCause) {
        let leaving = match cause {
            DisconnectCause::Local => Leaving::Closed,
            _ => Leaving::Lost,
        };
        let discarded = self.hub.detach(id, leaving);
        if discarded > 0 {
            tracing::warn!(%peer, %cause, discarded, "messages died with a connection");
        }
        self.hub.emit(&Event::Disconnected { peer, cause, discarded });
    }

    /// Keeps an endpoint connected until told to stop, and then until its queue is flushed or
    /// `linger` has passed.
    pub(crate) async fn dial(
        self: Arc<Self>,
        endpoint: Endpoint,
        entry: EntryId,
        peer: PeerId,
        Stop { stop, stopped, after }: Stop,
    ) {
        let given_up = self.given_up(peer, &stop);
        tokio::pin!(given_up);
        let mut backoff = Backoff::new(self.options());
        for earlier in after {
            tokio::select! {
                () = stop.cancelled() => break,
                () = earlier.cancelled() => {}
            }
        }
        loop {
            let attempt = backoff.attempt;
            self.endpoints.set(entry, EndpointState::Connecting { attempt });
            self.hub.emit(&Event::Connecting { endpoint: endpoint.clone(), attempt });
            let connected = tokio::select! {
                biased;
                () = &mut given_up => break,
                connected = self.connect(&endpoint) => connected,
            };
            let cause = match connected {
                Err(cause) => cause,
                Ok(stream) => {
                    let info = describe(&stream, &endpoint, false);
                    let span = span(&info);
                    let peer_info = Arc::new(info.clone());
                    let greeted = tokio::select! {
                        biased;
                        () = &mut given_up => {
                            self.fail_handshake(peer_info, &DisconnectCause::Local);
                            Err(DisconnectCause::Local)
                        }
                        greeted = self.greet(stream, info, entry).instrument(span.clone()) => greeted,
                    };
                    match greeted {
                        Err(cause) => cause,
                        Ok((greeter, info)) => {
                            let mut connection = greeter.open(self.hub.clone(), peer, info.clone());
                            self.endpoints.set(entry, EndpointState::Ready);
                            let cause = connection.run().instrument(span).await;
                            let over = cause == DisconnectCause::Local;
                            self.part(peer, info, cause.clone());
                            if over {
                                break;
                            }
                            // a peer may refuse this side only after READY
                            if !matches!(cause, DisconnectCause::Protocol(_)) {
                                backoff.reset();
                            }
                            cause
                        }
                    }
                }
            };
            if cause == DisconnectCause::Local {
                break;
            }
            let delay = backoff.next(&cause);
            let attempt = backoff.attempt;
            self.endpoints
                .set(entry, EndpointState::Backoff { cause: cause.clone(), attempt, delay });
            self.hub.emit(&Event::Retry { endpoint: endpoint.clone(), cause, attempt, delay });
            tokio::select! {
                biased;
                () = &mut given_up => break,
                () = sleep(delay) => {}
            }
        }
        let discarded = self.hub.detach(peer, Leaving::Closed);
        if discarded > 0 {
            tracing::warn!(%endpoint, discarded, "messages died with an endpoint");
        }
        stopped.cancel();
        self.hub.emit(&Event::EndpointRemoved { endpoint });
    }

    /// Resolves when an endpoint is to be removed, and nothing is left to send or it is too late.
    async fn given_up(&self, peer: PeerId, stop: &CancellationToken) {
        stop.cancelled().await;
        if self.hub.is_flushed(peer) {
            return;
        }
        match self.hub.closing(peer).and_then(|closing| closing.deadline) {
            Some(deadline) => sleep_until(Instant::from_std(deadline)).await,
            None => std::future::pending().await,
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Stream, DisconnectCause> {
        let connecting = transport::connect(endpoint, self.options());
        let stream = match self.options().connect_timeout {
            None => connecting.await?,
            Some(limit) => match timeout(limit, connecting).await {
                Ok(connected) => connected?,
                Err(_) => return Err(DisconnectCause::ConnectTimeout(limit)),
            },
        };
        stream.set_up(self.options())?;
        Ok(stream)
    }

    async fn greet(
        &self,
        stream: Stream,
        mut info: PeerInfo,
        entry: EntryId,
    ) -> Result<(Greeter, Arc<PeerInfo>), DisconnectCause> {
        let peer = Arc::new(info.clone());
        self.endpoints.set(entry, EndpointState::Handshaking);
        self.hub.emit(&Event::Connected { peer: peer.clone() });
        let (reader, writer) = stream.split();
        let mut greeter = Greeter::new(self.engine.clone(), reader, writer);
        match greeter.greet(self.options().handshake_timeout).await {
            Ok(session) => {
                info.session = Some(session);
                Ok((greeter, Arc::new(info)))
            }
            Err(cause) => {
                self.fail_handshake(peer, &cause);
                Err(cause)
            }
        }
    }

    fn fail_handshake(&self, peer: Arc<PeerInfo>, cause: &DisconnectCause) {
        self.hub.count_failed_handshake();
        self.hub.emit(&Event::HandshakeFailed { peer, cause: cause.clone() });
    }
}

/// A connection that is through its handshake, and whose it is.
type Welcomed = Option<(PeerId, Arc<PeerInfo>, Box<Connection>)>;

/// What is logged about a connection stands in this span.
fn span(info: &PeerInfo) -> Span {
    tracing::debug_span!("connection", id = %info.id, endpoint = %info.endpoint)
}

fn describe(stream: &Stream, endpoint: &Endpoint, accepted: bool) -> PeerInfo {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let (local, remote) = stream.addresses();
    let id = ConnectionId(COUNT.fetch_add(1, Ordering::Relaxed));
    let credentials = stream.credentials();
    PeerInfo { local, remote, credentials, ..PeerInfo::new(id, endpoint.clone(), accepted) }
}

/// Accepted connections in their handshake. When there are too many the oldest has to go, once it has
/// had time enough: a flood of them keeps nobody out who is in earnest, and peers who all come at once,
/// and would all come again if they were turned away, wait with the kernel instead.
#[derive(Debug)]
struct WaitingRoom {
    guests: Mutex<VecDeque<Guest>>,
    next: AtomicU64,
    max: usize,
    left: Notify,
}

#[derive(Debug)]
struct Guest {
    number: u64,
    since: Instant,
    evicted: CancellationToken,
}

/// A place in the waiting room, free again when this is dropped.
#[derive(Debug)]
struct Place {
    room: Arc<WaitingRoom>,
    number: u64,
    evicted: CancellationToken,
}

impl WaitingRoom {
    fn new(max: usize) -> Self {
        let (guests, next, left) = Default::default();
        Self { guests, next, max: max.max(1), left }
    }

    /// Waits until there is a place, or somebody who can be asked to leave his.
    async fn vacancy(&self) {
        loop {
            let oldest = {
                let guests = self.guests();
                guests.front().filter(|_| guests.len() >= self.max).map(|oldest| oldest.since)
            };
            let Some(until) = oldest.map(|since| since + HANDSHAKE_GRACE) else { return };
            if until <= Instant::now() {
                return;
            }
            tokio::select! {
                () = self.left.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    fn enter(self: &Arc<Self>) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let evicted = CancellationToken::new();
        let mut guests = self.guests();
        guests.push_back(Guest { number, since: Instant::now(), evicted: evicted.clone() });
        let oldest = if guests.len() > self.max { guests.pop_front() } else { None };
        drop(guests);
        if let Some(oldest) = oldest {
            oldest.evicted.cancel();
        }
        Place { room: self.clone(), number, evicted }
    }

    fn guests(&self) -> MutexGuard<'_, VecDeque<Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = self.room.guests();
        // numbers rise from front to back, as far as tasks entered in the order they were made
        if let Some(at) = guests.iter().position(|guest| guest.number == self.number) {
            guests.remove(at);
        }
        drop(guests);
        self.room.left.notify_one();
    }
}

/// What a handshake has before another connection may take its place.
const HANDSHAKE_GRACE: Duration = Duration::from_millis(500);

/// The waits between attempts to connect.
#[derive(Debug)]
struct Backoff {
    interval: Duration,
    max: Option<Duration>,
    wait: Duration,
    /// Attempts in a row, from 1.
    attempt: u32,
}

impl Backoff {
    fn new(options: &SocketOptions) -> Self {
        let interval = options.reconnect_interval;
        Self { interval, max: options.reconnect_interval_max, wait: interval, attempt: 1 }
    }

    fn reset(&mut self) {
        self.wait = self.interval;
        self.attempt = 0;
    }

    /// The wait after a failure.
    fn next(&mut self, cause: &DisconnectCause) -> Duration {
        self.attempt = self.attempt.saturating_add(1);
        let wait = self.wait;
        let max = match cause {
            // a peer that does not speak the protocol will hardly have learnt it soon
            DisconnectCause::Protocol(_) => self.max.unwrap_or(PROTOCOL_WAIT_MAX),
            _ => self.max.unwrap_or(self.interval),
        };
        self.wait = (wait * 2).min(max).max(self.interval);
        let random = any_number() % 1024;
        let jitter = self.interval.mul_f64(random as f64 / 1024.0);
        // with a maximum the waits grow by themselves, and exactly
        if self.max.is_some() { wait } else { wait + jitter }
    }
}

/// A number by chance; in a simulated network by that one's.
fn any_number() -> u64 {
    #[cfg(feature = "__sim")]
    if let Some(number) = crate::sim::number() {
        return number;
    }
    RandomState::new().hash_one(())
}

/// How long to wait after a failed accept, at first and at most.
const ACCEPT_DELAY: Duration = Duration::from_millis(10);
const ACCEPT_DELAY_MAX: Duration = Duration::from_secs(1);

/// The longest wait after a protocol violation, unless an option says otherwise.
const PROTOCOL_WAIT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ProtocolError;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn waits_are_constant_but_for_chance() {
        let mut backoff = Backoff::new(&SocketOptions::new());
        for attempt in 2..10 {
            let wait = backoff.next(&DisconnectCause::PeerClosed);
            assert!((MS(100)..MS(200)).contains(&wait), "{wait:?}");
            assert_eq!(backoff.attempt, attempt);
        }
    }

    #[test]
    fn waits_double_up_to_their_maximum() {
        let options = SocketOptions::new().reconnect_interval_max(Some(MS(350)));
        let mut backoff = Backoff::new(&options);
        let waits = [(); 4].map(|()| backoff.next(&DisconnectCause::PeerClosed));
        assert_eq!(waits, [MS(100), MS(200), MS(350), MS(350)]);
        backoff.reset();
        assert_eq!(backoff.next(&DisconnectCause::PeerClosed), MS(100));
        assert_eq!(backoff.attempt, 1);
    }

    #[test]
    fn violations_are_retried_ever_more_slowly() {
        let mut backoff = Backoff::new(&SocketOptions::new());
        let violation = DisconnectCause::Protocol(ProtocolError::EmptyOldFrame);
        let waits: Vec<_> = (0..10).map(|_| backoff.next(&violation)).collect();
        assert!(waits[3] >= MS(800), "{waits:?}");
        assert!(waits[9] >= MS(10_000) && waits[9] < MS(10_100), "{waits:?}");
    }

    #[test]
    fn the_oldest_leaves_a_full_waiting_room() {
        let room = Arc::new(WaitingRoom::new(2));
        let (first, second) = (room.enter(), room.enter());
        drop(second);
        let third = room.enter();
        assert!(!first.evicted.is_cancelled());
        let fourth = room.enter();
        assert!(first.evicted.is_cancelled());
        assert!(!third.evicted.is_cancelled() && !fourth.evicted.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_to_leave_before_his_time() {
        let room = Arc::new(WaitingRoom::new(2));
        let start = Instant::now();
        room.vacancy().await;
        let (first, _second) = (room.enter(), room.enter());
        room.vacancy().await;
        assert_eq!(start.elapsed(), HANDSHAKE_GRACE);
        let third = room.enter();
        assert!(first.evicted.is_cancelled());
        drop((first, third));
        room.vacancy().await;
        assert_eq!(start.elapsed(), HANDSHAKE_GRACE, "a place is free");
    }
}
