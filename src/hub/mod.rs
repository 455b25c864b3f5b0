//! A socket's state behind one lock: its peers with their queues, the subscriptions, who waits for
//! what, and every counter.
//!
//! Senders encode straight into the peers' outboxes ([`send`]), connection tasks move batches between
//! those and the kernel ([`link`]), the receiver takes whole chunks out of the inboxes ([`receive`]).
//! [`subscribe`] keeps both sides' subscriptions. Nothing here waits: wakers are collected under the
//! lock and fired after it. Implements the message patterns of RFC 29 (PUB, SUB, XPUB, XSUB) and
//! RFC 30 (PUSH, PULL).
//!
//! **Who writes.** At most one at a time has a [`Flight`](crate::outbox::Flight) of a peer: its connection task, or a sender
//! that finds a full batch, a full queue, or a peer that has been quiet for a while (so that a lone
//! message goes out without a change of task). A flight goes back to the outbox when the kernel has
//! taken it or will take no more.
//!
//! **Whose counters.** Each peer has its own; those of a peer that is gone are added to the socket's.

mod link;
mod memory;
mod receive;
mod send;
mod subscribe;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Waker};
use std::time::Instant;

pub(crate) use link::{Closing, Leaving, Writing, Written, write_flight};
pub(crate) use memory::Admission;
pub(crate) use receive::{Sieve, Taken};
pub use send::Delivery;
pub(crate) use send::Refused;
pub(crate) use subscribe::Form;

use crate::endpoint::Endpoint;
use crate::governor::{Account, Decision};
use crate::greeting::Version;
use crate::inbox::Inbox;
use crate::monitor::{Event, Monitors};
use crate::options::SocketOptions;
use crate::outbox::{Outbox, Pool, Settled};
use crate::peer::PeerInfo;
use crate::socket_type::SocketType;
use crate::stats::{DropReason, Incoming, Outgoing, PeerStats, SocketStats};
use crate::subscription::{SubscriptionSet, Subscriptions};
use crate::waiters::Waiters;

/// Where a connection's octets go, as far as the kernel takes them at once.
pub(crate) trait Wire: Send + Sync + fmt::Debug {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// A peer's place in the hub; of no use once that peer is gone, whoever sits there then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerId {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
pub(crate) struct Hub {
    kind: SocketType,
    options: Arc<SocketOptions>,
    monitors: Monitors,
    /// Counts changes of the SUB side's filter, so that what is in the receiver's hands is
    /// filtered again.
    filter_changes: AtomicU64,
    /// Messages in the receiver's hands.
    in_hand: AtomicUsize,
    closed: AtomicBool,
    /// Whether `Closed` was said.
    end_told: AtomicBool,
    /// The part of a budget that it keeps within.
    account: Option<Arc<Account>>,
    itself: Weak<Self>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The same as the hub's.
    account: Option<Arc<Account>>,
    /// Whether what is queued may be dropped when others need the memory.
    droppable: bool,
    peers: Vec<Slot>,
    free: Vec<u32>,
    pool: Pool,
    /// PUB, XPUB: who is subscribed to what.
    subscriptions: Subscriptions,
    /// XPUB in manual mode: what peers asked for.
    requests: Subscriptions,
    /// SUB, XSUB: what this side is subscribed to.
    filter: SubscriptionSet,
    /// Peers that PUSH and XSUB send to, in order of their arrival, and whose turn it is.
    lanes: Vec<u32>,
    next_lane: usize,
    /// Peers with chunks to receive: each once, to be taken from in turn, or, where the application
    /// must hear everything in the order it happened (XPUB), once for each chunk.
    ring: VecDeque<u32>,
    in_order: bool,
    /// XPUB: what the notices cost that peers have left behind, and whether some were taken back
    /// since the application last had everything.
    left: usize,
    behind: bool,
    /// Messages that were to be sent, to whomever.
    sends: u64,
    /// Scratch space: the peers that the message at hand matches.
    matched: Vec<u32>,
    /// Scratch space: what a sender is about to write, and whose queues it found full.
    launches: Vec<send::Launch>,
    full: Vec<PeerId>,
    receiver: Option<Waker>,
    senders: Waiters,
    /// Whether senders are in the queue for memory.
    senders_hungry: bool,
    /// What is charged of the pool.
    pooled: usize,
    /// Those who wait for subscriptions or for connections.
    watchers: Waiters,
    closing: Option<Closing>,
    /// Whose messages the receiver has, and had last.
    in_hand: Option<PeerId>,
    last_peer: Option<(PeerId, Option<Arc<PeerInfo>>)>,
    /// Counters of peers that are gone, and of what belongs to no peer.
    gone_out: Outgoing,
    gone_in: Incoming,
    connections: u64,
    failed_handshakes: u64,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    peer: Option<Box<Peer>>,
}

#[derive(Debug)]
struct Peer {
    endpoint: Endpoint,
    /// A connected endpoint keeps its place and its queue while there is no connection.
    persistent: bool,
    /// Who it is, or was last.
    info: Option<Arc<PeerInfo>>,
    link: Option<Link>,
    /// Counts connections, so that a flight of an earlier one is known.
    session: u32,
    outbox: Outbox,
    inbox: Inbox,
    /// Whether it stands in the ring.
    listed: bool,
    /// It will not come back; what was left to send died for this reason.
    gone: Option<DropReason>,
    closing: Option<Closing>,
    /// While closing: nothing is left to send.
    flushed: bool,
    /// Whether the `Dropping` event of this full queue was said.
    dropping: bool,
    memory: memory::Holding,
    out: Outgoing,
    inc: Incoming,
}

/// A connection, from READY to its end.
#[derive(Debug)]
struct Link {
    version: Version,
    wire: Arc<dyn Wire>,
    /// The connection task's.
    waker: Option<Waker>,
    /// The task was woken and has not asked for octets since.
    scheduled: bool,
    /// The kernel takes no more; the task waits until it does.
    blocked: bool,
    broken: Option<io::ErrorKind>,
    /// The task stopped reading for want of room.
    paused: bool,
    last_write: Option<Instant>,
    /// What `sends` was when a message of an application's was last queued with nobody writing.
    last_send: u64,
    /// Changes of this side's subscriptions that the peer was told of; how many of them a sync PING
    /// went out for, and a second one, and how many are confirmed.
    changes: u64,
    sync_sent: u64,
    sync_again: u64,
    sync_done: u64,
}

/// What is to be done once the lock is released.
#[derive(Debug, Default)]
struct After {
    waker: Option<Waker>,
    wakers: Vec<Waker>,
    events: Vec<Event>,
}

impl After {
    fn wake(&mut self, waker: Option<Waker>) {
        match waker {
            Some(waker) if self.waker.is_none() => self.waker = Some(waker),
            Some(waker) => self.wakers.push(waker),
            None => {}
        }
    }

    fn wake_all(&mut self, waiters: &mut Waiters) {
        waiters.drain().for_each(|waker| self.wake(Some(waker)));
    }
}

/// Which of the waiting lists a [`Waiting`] stands in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WaitFor {
    /// Room to send.
    Room,
    /// A change of connections or subscriptions.
    Change,
}

/// A future's place in a waiting list, given up when the future is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    hub: Arc<Hub>,
    queue: WaitFor,
    ticket: Option<u64>,
}

impl Waiting {
    fn register(&mut self, state: &mut State, cx: &mut Context<'_>) {
        let list = match self.queue {
            WaitFor::Room => &mut state.senders,
            WaitFor::Change => &mut state.watchers,
        };
        list.register(&mut self.ticket, cx.waker());
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.hub.lock();
        let list = match self.queue {
            WaitFor::Room => &mut state.senders,
            WaitFor::Change => &mut state.watchers,
        };
        list.leave(ticket);
    }
}

impl State {
    fn peer(&mut self, id: PeerId) -> Option<&mut Peer> {
        find(&mut self.peers, id)
    }

    #[inline]
    fn at(&mut self, index: u32) -> Option<&mut Peer> {
        at_mut(&mut self.peers, index)
    }

    fn id(&self, index: u32) -> PeerId {
        let generation = self.peers.get(index as usize).map_or(0, |slot| slot.generation);
        PeerId { index, generation }
    }

    fn indices(&self) -> std::ops::Range<u32> {
        0..self.peers.len() as u32
    }

    /// Wakes the task of a peer, unless it is on its way.
    fn nudge(&mut self, index: u32, after: &mut After) {
        if let Some(link) = self.at(index).and_then(|peer| peer.link.as_mut())
            && !std::mem::replace(&mut link.scheduled, true)
        {
            after.wake(link.waker.clone());
        }
    }

    /// Every outgoing message that dies on its way to a peer.
    fn drop_outgoing(&mut self, index: u32, reason: DropReason, count: usize, after: &mut After) {
        let Self { account, peers, .. } = self;
        let Some(peer) = at_mut(peers, index) else { return };
        peer.out.dropped.add(reason, count as u64);
        use DropReason::{Memory, PeerHwmBytes, PeerHwmMessages};
        if let (Memory, Some(account)) = (reason, &account) {
            account.count(Decision::Refused, count as u64);
        }
        if matches!(reason, PeerHwmMessages | PeerHwmBytes | Memory)
            && !std::mem::replace(&mut peer.dropping, true)
        {
            let info = peer.link.as_ref().and(peer.info.clone());
            let endpoint = peer.endpoint.clone();
            after.events.push(Event::Dropping { peer: info, endpoint, reason });
        }
    }

    /// Every incoming message that dies on its way to the application.
    fn drop_incoming(&mut self, index: u32, reason: DropReason, count: usize) {
        match self.at(index) {
            Some(peer) => peer.inc.dropped.add(reason, count as u64),
            None => self.gone_in.dropped.add(reason, count as u64),
        }
    }

    /// What was left to send to a peer that is gone dies, unless a flight is still out. Returns how
    /// many messages that were.
    fn bury(&mut self, index: u32) -> usize {
        let Some(slot) = self.peers.get_mut(index as usize) else { return 0 };
        let Some(peer) = slot.peer.as_deref_mut() else { return 0 };
        let Some(reason) = peer.gone.filter(|_| !peer.outbox.is_flying()) else { return 0 };
        let Settled { sent, dropped } = peer.outbox.clear(&mut self.pool);
        peer.out.sent += sent as u64;
        peer.out.dropped.add(reason, dropped as u64);
        dropped
    }

    /// Removes a peer that is gone, once nobody holds anything of it.
    fn retire(&mut self, index: u32) {
        self.bury(index);
        let Some(slot) = self.peers.get_mut(index as usize) else { return };
        let done = |peer: &Peer| peer.gone.is_some() && !peer.outbox.is_flying();
        if let Some(peer) = slot.peer.take_if(|peer| done(peer) && peer.inbox.is_empty()) {
            slot.generation = slot.generation.wrapping_add(1);
            if let Some(account) = &self.account {
                account.charge(peer.memory.charged, 0);
            }
            self.gone_out.merge(&peer.out);
            self.gone_in.merge(&peer.inc);
            self.free.push(index);
        }
    }
}

/// A peer, beside other parts of the state.
fn find(peers: &mut [Slot], id: PeerId) -> Option<&mut Peer> {
    let slot = peers.get_mut(id.index as usize)?;
    if slot.generation == id.generation { slot.peer.as_deref_mut() } else { None }
}

/// The peer in a slot, whoever it is.
#[inline]
fn at(peers: &[Slot], index: u32) -> Option<&Peer> {
    peers.get(index as usize)?.peer.as_deref()
}

/// The same to be changed, beside other parts of the state.
#[inline]
fn at_mut(peers: &mut [Slot], index: u32) -> Option<&mut Peer> {
    peers.get_mut(index as usize)?.peer.as_deref_mut()
}

impl Hub {
    pub(crate) fn new(kind: SocketType, options: Arc<SocketOptions>) -> Arc<Self> {
        let account = options.budget.as_ref().map(Account::new);
        let hub = Arc::new_cyclic(|itself: &Weak<Self>| Self {
            kind,
            options,
            monitors: Monitors::default(),
            filter_changes: AtomicU64::new(0),
            in_hand: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            end_told: AtomicBool::new(false),
            itself: itself.clone(),
            state: Mutex::new(State {
                in_order: kind == SocketType::XPub,
                pool: account.clone().map_or_else(Pool::default, Pool::governed),
                account: account.clone(),
                droppable: kind != SocketType::Push,
                ..State::default()
            }),
            account,
        });
        if let Some(account) = &hub.account {
            account.enrol(hub.itself.clone());
        }
        hub
    }

    pub(crate) fn kind(&self) -> SocketType {
        self.kind
    }

    pub(crate) fn options(&self) -> &Arc<SocketOptions> {
        &self.options
    }

    pub(crate) fn monitors(&self) -> &Monitors {
        &self.monitors
    }

    /// Tells every monitor, and the log.
    pub(crate) fn emit(&self, event: &Event) {
        tracing::debug!(socket = %self.kind, ?event);
        self.monitors.emit(event);
    }

    /// Tells that the socket is closed, once.
    pub(crate) fn emit_closed(&self) {
        if !self.end_told.swap(true, Ordering::AcqRel) {
            self.emit(&Event::Closed);
        }
    }

    pub(crate) fn waiting(self: &Arc<Self>, queue: WaitFor) -> Waiting {
        Waiting { hub: self.clone(), queue, ticket: None }
    }

    /// What closing from `now` on means by the options.
    pub(crate) fn linger_from(&self, now: Instant) -> Closing {
        Closing::within(self.options.linger, now)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // no code under the lock panics but by a bug in it; the others' messages are worth more
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called without the lock.
    #[inline]
    fn finish(&self, after: After) {
        if after.waker.is_some() || !after.wakers.is_empty() || !after.events.is_empty() {
            self.fire(after);
        }
        if let Some(account) = &self.account {
            account.act();
        }
    }

    fn fire(&self, after: After) {
        after.waker.into_iter().chain(after.wakers).for_each(Waker::wake);
        after.events.iter().for_each(|event| self.emit(event));
    }

    /// A snapshot of every counter.
    pub(crate) fn stats(&self) -> SocketStats {
        let state = self.lock();
        let in_hand = self.in_hand.load(Ordering::Relaxed) as u64;
        let mut stats = SocketStats {
            outgoing: state.gone_out,
            incoming: state.gone_in,
            connections: state.connections,
            failed_handshakes: state.failed_handshakes,
            missed_events: self.monitors.missed(),
            peers: Vec::new(),
        };
        // what the receiver has but has not handed out is still queued
        let mut held = in_hand;
        for (index, slot) in state.peers.iter().enumerate() {
            let Some(peer) = slot.peer.as_deref() else { continue };
            let mut outgoing = peer.out;
            outgoing.queued = peer.outbox.messages() as u64;
            outgoing.queued_bytes = peer.outbox.bytes() as u64;
            let mut incoming = peer.inc;
            let (messages, bytes) = peer.inbox.queued();
            incoming.queued = messages as u64;
            incoming.queued_bytes = bytes as u64;
            if state.in_hand == Some(state.id(index as u32)) {
                incoming.queued += held;
                incoming.delivered -= held;
                held = 0;
            }
            stats.outgoing.merge(&outgoing);
            stats.incoming.merge(&incoming);
            if peer.gone.is_none() {
                stats.peers.push(PeerStats {
                    endpoint: peer.endpoint.clone(),
                    peer: peer.link.as_ref().and(peer.info.clone()),
                    outgoing,
                    incoming,
                    subscriptions: state.subscriptions.count(index as u32),
                });
            }
        }
        stats.incoming.queued += held;
        stats.incoming.delivered -= held;
        stats
    }
}
