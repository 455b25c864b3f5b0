//! The endpoints of a socket and how each of them is doing, as values and as a stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::Stream;
use tokio_util::sync::CancellationToken;

use crate::endpoint::Endpoint;
use crate::error::DisconnectCause;
use crate::hub::PeerId;
use crate::waiters::Waiters;

/// An endpoint and how it is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// The endpoint; a wildcard is resolved.
    pub endpoint: Endpoint,
    /// How it is doing.
    pub state: EndpointState,
}

/// How an endpoint is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointState {
    /// It is listened on.
    Listening {
        /// Peers that were accepted on it and are still there.
        connections: usize,
    },
    /// A connection is being made.
    Connecting {
        /// Attempts in a row, from 1.
        attempt: u32,
    },
    /// There is a connection, and its handshake runs.
    Handshaking,
    /// There is a connection, and messages flow.
    Ready,
    /// There is no connection; after a while another attempt follows.
    Backoff {
        /// Why there is none.
        cause: DisconnectCause,
        /// The attempt that follows.
        attempt: u32,
        /// The wait before it, from when this state began.
        delay: Duration,
    },
    /// It was unbound or disconnected.
    Removed,
}

/// An endpoint's place in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryId(u64);

#[derive(Debug)]
struct Entry {
    id: EntryId,
    /// As it was asked for, and as it is.
    asked: Endpoint,
    endpoint: Endpoint,
    state: EndpointState,
    /// When the state changed last, in changes of the registry.
    changed: u64,
    stop: Stop,
    peers: Vec<PeerId>,
}

/// What tells an endpoint's task to stop, and by which it tells that it has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    pub(crate) stop: CancellationToken,
    pub(crate) stopped: CancellationToken,
    /// Earlier connections to the same endpoint that are not over yet: the peer is to see the end of
    /// them before there is a new one, or it would send what it sends meanwhile on both.
    pub(crate) after: Vec<CancellationToken>,
}

/// What is left of an endpoint that was removed.
#[derive(Debug)]
pub(crate) struct Removed {
    pub(crate) peers: Vec<PeerId>,
    /// When its own task has ended.
    pub(crate) stopped: CancellationToken,
}

/// All endpoints of a socket.
#[derive(Debug, Default)]
pub(crate) struct Endpoints(Mutex<Registry>);

#[derive(Debug, Default)]
struct Registry {
    entries: Vec<Entry>,
    /// Endpoints that are gone, for streams that have not heard yet.
    removed: VecDeque<(u64, Endpoint)>,
    /// Endpoints that were connected to, until their tasks have ended.
    leaving: Vec<(Endpoint, CancellationToken)>,
    next_id: u64,
    changes: u64,
    watchers: Waiters,
    closed: bool,
}

/// A stream of [`EndpointStatus`]: first how each endpoint is doing, then each change.
///
/// Of an endpoint that changes faster than this is read only the newest state is given. It ends when
/// the socket is closed.
#[derive(Debug)]
pub struct EndpointStates {
    endpoints: Arc<Endpoints>,
    /// What was removed before this change is of no interest.
    since: u64,
    seen: u64,
    ticket: Option<u64>,
}

impl Registry {
    fn change(&mut self, id: EntryId, state: EndpointState) -> Vec<Waker> {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) else {
            return Vec::new();
        };
        if entry.state == state {
            return Vec::new();
        }
        self.changes += 1;
        entry.state = state;
        entry.changed = self.changes;
        self.watchers.drain().collect()
    }
}

impl Endpoints {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new endpoint.
    pub(crate) fn add(
        &self,
        asked: Endpoint,
        endpoint: Endpoint,
        state: EndpointState,
        peer: Option<PeerId>,
    ) -> (EntryId, Stop) {
        let mut stop = Stop::default();
        let mut registry = self.lock();
        registry.leaving.retain(|(_, stopped)| !stopped.is_cancelled());
        if peer.is_some() {
            let same = registry.leaving.iter().filter(|(leaving, _)| *leaving == endpoint);
            stop.after = same.map(|(_, stopped)| stopped.clone()).collect();
        }
        registry.next_id += 1;
        registry.changes += 1;
        let id = EntryId(registry.next_id);
        let changed = registry.changes;
        if registry.closed {
            stop.stop.cancel();
        }
        registry.entries.push(Entry {
            id,
            asked,
            endpoint,
            state,
            changed,
            stop: stop.clone(),
            peers: peer.into_iter().collect(),
        });
        let wakers: Vec<_> = registry.watchers.drain().collect();
        drop(registry);
        wakers.into_iter().for_each(Waker::wake);
        (id, stop)
    }

    pub(crate) fn set(&self, id: EntryId, state: EndpointState) {
        let wakers = self.lock().change(id, state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A peer was accepted on an endpoint. `false`: that is no longer listened on.
    pub(crate) fn enter(&self, id: EntryId, peer: PeerId) -> bool {
        let mut registry = self.lock();
        let Some(entry) = registry.entries.iter_mut().find(|entry| entry.id == id) else {
            return false;
        };
        entry.peers.push(peer);
        let connections = entry.peers.len();
        let wakers = registry.change(id, EndpointState::Listening { connections });
        drop(registry);
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    /// A peer that was accepted is gone.
    pub(crate) fn leave(&self, id: EntryId, peer: PeerId) {
        let mut registry = self.lock();
        let Some(entry) = registry.entries.iter_mut().find(|entry| entry.id == id) else { return };
        entry.peers.retain(|other| *other != peer);
        let connections = entry.peers.len();
        let wakers = registry.change(id, EndpointState::Listening { connections });
        drop(registry);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the endpoint is there, as it was asked for or as it is; `bound` or connected.
    pub(crate) fn contains(&self, endpoint: &Endpoint, bound: bool) -> bool {
        self.lock().entries.iter().any(|entry| entry.is(endpoint, bound))
    }

    /// Removes an endpoint; its tasks are told to stop, and what is left of it is returned.
    pub(crate) fn remove(&self, endpoint: &Endpoint, bound: bool) -> Option<Removed> {
        let mut registry = self.lock();
        let at = registry.entries.iter().position(|entry| entry.is(endpoint, bound))?;
        let entry = registry.entries.remove(at);
        registry.changes += 1;
        let change = registry.changes;
        registry.leaving.retain(|(_, stopped)| !stopped.is_cancelled());
        if !bound {
            registry.leaving.push((entry.endpoint.clone(), entry.stop.stopped.clone()));
        }
        registry.removed.push_back((change, entry.endpoint));
        if registry.removed.len() > REMOVED {
            registry.removed.pop_front();
        }
        let wakers: Vec<_> = registry.watchers.drain().collect();
        drop(registry);
        entry.stop.stop.cancel();
        wakers.into_iter().for_each(Waker::wake);
        Some(Removed { peers: entry.peers, stopped: entry.stop.stopped })
    }

    /// The socket is closing: every endpoint's tasks are told to stop.
    pub(crate) fn close(&self) {
        let mut registry = self.lock();
        registry.closed = true;
        let stops: Vec<_> = registry.entries.iter().map(|entry| entry.stop.stop.clone()).collect();
        let wakers: Vec<_> = registry.watchers.drain().collect();
        drop(registry);
        stops.iter().for_each(CancellationToken::cancel);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn list(&self) -> Vec<EndpointStatus> {
        self.lock().entries.iter().map(Entry::status).collect()
    }

    /// The endpoints that are connected to, as they were asked for.
    pub(crate) fn connected(&self) -> Vec<Endpoint> {
        let registry = self.lock();
        let connected = registry.entries.iter().filter(|entry| !entry.is_bound());
        connected.map(|entry| entry.asked.clone()).collect()
    }

    pub(crate) fn watch(self: &Arc<Self>) -> EndpointStates {
        let since = self.lock().changes;
        EndpointStates { endpoints: self.clone(), since, seen: 0, ticket: None }
    }
}

impl Entry {
    fn is_bound(&self) -> bool {
        matches!(self.state, EndpointState::Listening { .. })
    }

    fn is(&self, endpoint: &Endpoint, bound: bool) -> bool {
        self.is_bound() == bound && (self.endpoint == *endpoint || self.asked == *endpoint)
    }

    fn status(&self) -> EndpointStatus {
        EndpointStatus { endpoint: self.endpoint.clone(), state: self.state.clone() }
    }
}

impl EndpointStates {
    /// The next change; `None` once the socket is closed.
    ///
    /// # Cancel safety
    /// Safe: a change is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<EndpointStatus> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<EndpointStatus>> {
        let mut registry = self.endpoints.lock();
        let seen = self.seen;
        let changed = registry.entries.iter().filter(|entry| entry.changed > seen);
        let changed = changed.min_by_key(|entry| entry.changed);
        let news = seen.max(self.since);
        let removed = registry.removed.iter().find(|(change, _)| *change > news);
        let next = match (changed, removed) {
            (Some(entry), Some((change, _))) if entry.changed < *change => {
                Some((entry.changed, entry.status()))
            }
            (_, Some((change, endpoint))) => {
                let state = EndpointState::Removed;
                Some((*change, EndpointStatus { endpoint: endpoint.clone(), state }))
            }
            (Some(entry), None) => Some((entry.changed, entry.status())),
            (None, None) => None,
        };
        if let Some((change, status)) = next {
            self.seen = change;
            return Poll::Ready(Some(status));
        }
        if registry.closed {
            return Poll::Ready(None);
        }
        registry.watchers.register(&mut self.ticket, cx.waker());
        Poll::Pending
    }
}

impl Stream for EndpointStates {
    type Item = EndpointStatus;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<EndpointStatus>> {
        self.poll_recv(cx)
    }
}

impl Drop for EndpointStates {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.endpoints.lock().watchers.leave(ticket);
        }
    }
}

/// Endpoints that are gone and still told of: more than anybody removes between two reads.
const REMOVED: usize = 1024;
