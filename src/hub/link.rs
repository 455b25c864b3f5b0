//! What connections do to the hub: come and go, fetch what there is to write, bring what came in.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::memory::Holding;
use super::{After, Hub, Inbox, Link, Outbox, Peer, PeerId, Slot, State, Waiting, Wire, find};
use crate::clock;
use crate::command::Subscription;
use crate::endpoint::Endpoint;
use crate::engine::framing_of;
use crate::error::ProtocolError;
use crate::framing::{Framing, Room, split_any_frame};
use crate::greeting::Version;
use crate::inbox::Chunk;
use crate::monitor::Event;
use crate::outbox::{BATCH, Flight, Payload};
use crate::peer::PeerInfo;
use crate::socket_type::SocketType;
use crate::stats::{DropReason, Incoming, Outgoing};

/// What a connection task finds when it asks for something to write.
#[derive(Debug)]
pub(crate) enum Writing {
    /// These octets.
    Flight(Launched),
    /// Nothing; the task will be woken when there is.
    Idle,
    /// A sender is writing; the task will be woken if something remains.
    Busy,
    /// The kernel takes no more for now.
    Blocked,
    /// A sender's write failed.
    Broken(io::ErrorKind),
    /// The peer has to go, for so much that it holds.
    Evicted(usize),
}

/// A flight on its way, and whose it is.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(super) peer: PeerId,
    pub(super) session: u32,
    pub(crate) flight: Flight,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    All,
    WouldBlock,
    Failed(io::ErrorKind),
}

/// This side wants a connection gone, once its queue is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closing {
    /// When flushing must end; `None`: never.
    pub(crate) deadline: Option<Instant>,
}

impl Closing {
    /// Within `linger` from `now`.
    pub(crate) fn within(linger: Option<Duration>, now: Instant) -> Self {
        // a linger that ends beyond the clock's end is one without end
        Self { deadline: linger.and_then(|linger| now.checked_add(linger)) }
    }
}

/// Why a connection leaves the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It was lost; a connected endpoint keeps its queue for the next connection.
    Lost,
    /// This side wants it gone for good.
    Closed,
}

/// Writes as much as the kernel takes.
pub(crate) fn write_flight(wire: &dyn Wire, flight: &mut Flight) -> Written {
    while !flight.is_done() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = flight.io_slices(&mut slices);
        match wire.try_write_vectored(slices.get(..count).unwrap_or_default()) {
            Ok(0) => return Written::Failed(io::ErrorKind::WriteZero),
            Ok(octets) => flight.advance(octets),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Written::WouldBlock,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Written::Failed(error.kind()),
        }
    }
    Written::All
}

impl State {
    /// Takes a flight back, with what became of it; nobody writes to that peer then.
    fn settle(&mut self, launched: Launched, how: Written, after: &mut After) {
        let Launched { peer: id, session, flight } = launched;
        let progress = flight.progress() as u64;
        // a peer is not retired while it has a flight out, so that the slot is still its own
        let Some(slot) = self.peers.get_mut(id.index as usize) else { return };
        let Some(peer) = slot.peer.as_deref_mut() else { return };
        let mut sent = peer.outbox.settle(flight, &mut self.pool);
        if how != Written::All && self.account.is_some() {
            peer.outbox.shrink();
        }
        let late = peer.session != session || peer.link.is_none();
        if late {
            // the connection that it was written to is gone
            let framing = peer.link.as_ref().map_or(Framing::New, |link| framing_of(link.version));
            sent += peer.outbox.rewind(framing, &mut self.pool);
        }
        peer.out.sent += sent as u64;
        peer.out.bytes += progress;
        if peer.outbox.is_idle() {
            peer.dropping = false;
        }
        let low = sent > 0 && peer.outbox.is_low();
        let rest = !peer.outbox.is_idle();
        let closing = peer.closing.is_some() || self.closing.is_some();
        if let Some(link) = peer.link.as_mut().filter(|_| !late) {
            match how {
                Written::All => {}
                Written::WouldBlock => link.blocked = true,
                Written::Failed(kind) => link.broken = Some(kind),
            }
        }
        if low {
            after.wake_all(&mut self.senders);
        }
        // what is left, and what follows when nothing is, is for the connection task
        if rest || how != Written::All || closing {
            self.nudge(id.index, after);
        }
        self.weigh(id.index);
        self.retire(id.index);
    }

    /// Takes a peer off the lanes that PUSH and XSUB send on.
    fn leave_lanes(&mut self, index: u32) {
        if let Some(lane) = self.lanes.iter().position(|at| *at == index) {
            self.lanes.remove(lane);
            if lane < self.next_lane {
                self.next_lane -= 1;
            }
            if self.next_lane >= self.lanes.len() {
                self.next_lane = 0;
            }
        }
    }
}

impl Hub {
    /// A peer without a connection yet. `persistent`: a connected endpoint's place, whose queue
    /// fills before there is a connection and outlives it.
    pub(crate) fn add_peer(&self, endpoint: Endpoint, persistent: bool) -> PeerId {
        let options = &self.options;
        let peer = Box::new(Peer {
            endpoint,
            persistent,
            info: None,
            link: None,
            session: 0,
            outbox: Outbox::new(options.send_hwm, options.send_hwm_bytes, self.account.is_some()),
            inbox: Inbox::new(options.recv_hwm, options.recv_hwm_bytes),
            listed: false,
            gone: None,
            closing: None,
            flushed: false,
            dropping: false,
            memory: Holding::default(),
            out: Outgoing::default(),
            inc: Incoming::default(),
        });
        let mut after = After::default();
        let mut state = self.lock();
        let index = match state.free.pop() {
            Some(index) => index,
            None => {
                state.peers.push(Slot { generation: 0, peer: None });
                // a process has far fewer connections than that
                state.peers.len() as u32 - 1
            }
        };
        let mut generation = 0;
        if let Some(slot) = state.peers.get_mut(index as usize) {
            slot.peer = Some(peer);
            generation = slot.generation;
        }
        state.weigh(index);
        if matches!(self.kind, SocketType::Push | SocketType::XSub) {
            state.lanes.push(index);
            after.wake_all(&mut state.senders);
        }
        drop(state);
        self.finish(after);
        PeerId { index, generation }
    }

    /// A connection is through its handshake: messages flow.
    pub(crate) fn attach(
        &self,
        id: PeerId,
        info: Arc<PeerInfo>,
        version: Version,
        wire: Arc<dyn Wire>,
    ) {
        let mut after = After::default();
        let mut state = self.lock();
        state.connections += 1;
        let State { peers, pool, sends, .. } = &mut *state;
        let slot = peers.get_mut(id.index as usize);
        let Some(peer) = slot.and_then(|slot| slot.peer.as_deref_mut()) else { return };
        peer.info = Some(info.clone());
        peer.session = peer.session.wrapping_add(1);
        if !peer.outbox.is_flying() {
            peer.outbox.set_framing(framing_of(version), pool);
        }
        peer.link = Some(Link {
            version,
            wire,
            waker: None,
            scheduled: true,
            blocked: false,
            broken: None,
            paused: false,
            last_write: None,
            last_send: *sends,
            changes: 1,
            sync_sent: 0,
            sync_again: 0,
            sync_done: 0,
        });
        let closing = peer.closing.is_some();
        match self.kind {
            SocketType::Sub | SocketType::XSub if closing => {}
            SocketType::Sub | SocketType::XSub => state.send_whole_filter(id.index),
            SocketType::Pub | SocketType::XPub => {
                // what an earlier connection was subscribed to is not what this one wants
                self.forget_subscriptions(&mut state, id.index, &mut after);
                if version == Version::V1_0 {
                    // such a peer may have no way to subscribe: it gets everything, as from libzmq
                    let all = Subscription::Subscribe(b"");
                    let taken = self.take_change(&mut state, id.index, all, &mut after);
                    debug_assert!(taken.is_ok(), "the first subscription is within any limit");
                }
                if let Some(welcome) = &self.options.xpub_welcome {
                    let State { peers, pool, .. } = &mut *state;
                    let slot = peers.get_mut(id.index as usize);
                    if let Some(peer) = slot.and_then(|slot| slot.peer.as_deref_mut()) {
                        let welcome = Payload::Message(welcome);
                        peer.outbox.push(&welcome, welcome.wire_size(), pool);
                        peer.out.accepted += 1;
                    }
                }
            }
            _ => {}
        }
        after.wake_all(&mut state.senders);
        after.wake_all(&mut state.watchers);
        drop(state);
        after.events.push(Event::HandshakeSucceeded { peer: info });
        self.finish(after);
    }

    /// A connection ended, or an endpoint that never had one is given up. Returns how many messages
    /// died with it.
    pub(crate) fn detach(&self, id: PeerId, leaving: Leaving) -> u64 {
        let mut after = After::default();
        let mut state = self.lock();
        let closing = state.closing.is_some();
        let State { peers, pool, .. } = &mut *state;
        let Some(peer) = find(peers, id) else { return 0 };
        peer.link = None;
        *peer.outbox.control() = Vec::new();
        peer.memory.part();
        let stays = leaving == Leaving::Lost && peer.persistent;
        if !stays {
            peer.gone = Some(match leaving {
                Leaving::Lost => DropReason::PeerGone,
                Leaving::Closed => DropReason::Linger,
            });
        } else if !peer.outbox.is_flying() {
            peer.out.sent += peer.outbox.rewind(Framing::New, pool) as u64;
        }
        let unread = if closing { peer.inbox.clear() } else { 0 };
        state.drop_incoming(id.index, DropReason::Closed, unread);
        let discarded = state.bury(id.index) as u64;
        state.weigh(id.index);
        if !stays {
            state.leave_lanes(id.index);
            self.forget_subscriptions(&mut state, id.index, &mut after);
            state.retire(id.index);
        }
        // who waits for this peer need not any more
        after.wake_all(&mut state.senders);
        after.wake_all(&mut state.watchers);
        drop(state);
        self.finish(after);
        discarded
    }

    /// Gives up memory that only a flow of messages needs; to be called now and then.
    pub(crate) fn trim(&self) {
        self.lock().pool.trim();
    }

    pub(crate) fn count_failed_handshake(&self) {
        self.lock().failed_handshakes += 1;
    }

    /// What there is to write, `out` included, and whether this side wants the connection gone. If
    /// there is nothing the task will be woken when there is. `drained`: nothing can be written any
    /// more.
    pub(crate) fn begin_write(
        &self,
        id: PeerId,
        out: &mut Vec<u8>,
        waker: &Waker,
        drained: bool,
    ) -> (Writing, Option<Closing>) {
        let mut state = self.lock();
        let socket_closing = state.closing;
        let State { peers, pool, .. } = &mut *state;
        let Some(peer) = find(peers, id) else { return (Writing::Idle, None) };
        let closing = peer.closing.or(socket_closing);
        if let Some(held) = peer.memory.evicted {
            return (Writing::Evicted(held), closing);
        }
        // answers that the peer does not fetch stay with the engine, which then stops reading
        if drained {
            out.clear();
        } else if peer.outbox.control().len() < CONTROL_MAX {
            peer.outbox.control().append(out);
        }
        let Some(link) = &mut peer.link else { return (Writing::Idle, closing) };
        link.scheduled = false;
        match &mut link.waker {
            Some(old) => old.clone_from(waker),
            None => link.waker = Some(waker.clone()),
        }
        let writing = if drained {
            Writing::Idle
        } else if let Some(kind) = link.broken {
            Writing::Broken(kind)
        } else if peer.outbox.is_flying() {
            Writing::Busy
        } else if link.blocked {
            Writing::Blocked
        } else {
            link.last_write = Some(clock::now());
            match peer.outbox.take(FLIGHT, pool) {
                Some(flight) => {
                    // the task will be back without being woken
                    link.scheduled = true;
                    Writing::Flight(Launched { peer: id, session: peer.session, flight })
                }
                None => Writing::Idle,
            }
        };
        (writing, closing)
    }

    /// Takes a flight back.
    pub(super) fn settle(&self, launched: Launched, how: Written, after: &mut After) {
        self.lock().settle(launched, how, after);
    }

    /// The same, for the connection task.
    pub(crate) fn end_write(&self, launched: Launched, how: Written) {
        let mut after = After::default();
        self.settle(launched, how, &mut after);
        self.finish(after);
    }

    /// The kernel takes octets again.
    pub(crate) fn unblock(&self, id: PeerId) {
        if let Some(link) = self.lock().peer(id).and_then(|peer| peer.link.as_mut()) {
            link.blocked = false;
        }
    }

    /// What there is room for; if there is none, the task will be woken when there is.
    pub(crate) fn room(&self, id: PeerId) -> Room {
        let mut state = self.lock();
        // what nobody will receive needs no room
        let closed = state.closing.is_some();
        let Some(peer) = state.peer(id) else { return Room::ANY };
        let mut room = if closed { Room::ANY } else { peer.inbox.room() };
        let mut after = After::default();
        if room.messages > 0 && !closed {
            room = self.room_in_memory(&mut state, id, room, &mut after);
        }
        if room.messages == 0
            && let Some(link) = state.peer(id).and_then(|peer| peer.link.as_mut())
        {
            link.paused = true;
        }
        drop(state);
        self.finish(after);
        room
    }

    /// Octets came in, some of them commands that nobody understood.
    pub(crate) fn count_input(&self, id: PeerId, octets: usize, unknown_commands: u64) {
        if let Some(peer) = self.lock().peer(id) {
            peer.inc.bytes += octets as u64;
            peer.inc.unknown_commands += unknown_commands;
        }
    }

    /// Messages came in.
    pub(crate) fn deliver(&self, id: PeerId, chunk: Chunk) -> Result<(), ProtocolError> {
        let mut after = After::default();
        let mut state = self.lock();
        if state.peer(id).is_none() {
            return Ok(());
        }
        let delivered = match self.kind {
            SocketType::Pub | SocketType::XPub => {
                self.deliver_upstream(&mut state, id.index, chunk, &mut after)
            }
            SocketType::Push => {
                if let Some(peer) = state.at(id.index) {
                    peer.inc.received += chunk.messages as u64;
                }
                state.drop_incoming(id.index, DropReason::Unexpected, chunk.messages);
                Ok(())
            }
            _ => {
                state.take_in(id.index, chunk, self.options.conflate, &mut after);
                Ok(())
            }
        };
        drop(state);
        self.finish(after);
        delivered
    }

    /// What subscribers send: subscriptions in the form of messages, and for XPUB messages proper.
    fn deliver_upstream(
        &self,
        state: &mut State,
        index: u32,
        mut chunk: Chunk,
        after: &mut After,
    ) -> Result<(), ProtocolError> {
        while chunk.messages > 0 {
            if chunk.topic().is_some_and(|first| matches!(first.first(), Some(0 | 1))) {
                let mut frames = chunk.bytes.clone();
                while let Some(frame) = split_any_frame(chunk.framing, &frames) {
                    if !frame.header.command {
                        self.take_subscription(state, index, frame.body, after)?;
                    }
                    let (more, rest) = (frame.header.more, frames.slice_ref(frame.rest));
                    if !more && !frame.header.command {
                        break;
                    }
                    frames = rest;
                }
                chunk.skip_message();
                continue;
            }
            let before = chunk.clone();
            chunk.skip_message();
            let octets = before.bytes.len() - chunk.bytes.len();
            if self.kind == SocketType::XPub {
                let message = before.clone().split(octets, 1);
                state.take_in(index, message, false, after);
            } else if let Some(peer) = state.at(index) {
                peer.inc.received += 1;
                peer.inc.dropped.add(DropReason::Unexpected, 1);
            }
        }
        Ok(())
    }

    /// This side wants a peer gone, once its queue is flushed.
    pub(crate) fn close_peer(&self, id: PeerId, closing: Closing) {
        let mut after = After::default();
        let mut state = self.lock();
        if let Some(peer) = state.peer(id) {
            peer.closing = Some(closing);
            state.leave_lanes(id.index);
            self.forget_subscriptions(&mut state, id.index, &mut after);
            state.nudge(id.index, &mut after);
            after.wake_all(&mut state.senders);
        }
        drop(state);
        self.finish(after);
    }

    /// This side wants every peer gone. Whoever waits learns that the socket is closed.
    pub(crate) fn close(&self, closing: Closing) {
        let mut after = After::default();
        let mut state = self.lock();
        if state.closing.is_none() {
            state.closing = Some(closing);
            self.closed.store(true, std::sync::atomic::Ordering::Release);
            for index in state.indices() {
                if let Some(peer) = state.at(index) {
                    let unread = peer.inbox.clear();
                    peer.listed = false;
                    state.drop_incoming(index, DropReason::Closed, unread);
                    state.weigh(index);
                    state.nudge(index, &mut after);
                    state.retire(index);
                }
            }
            state.ring.clear();
            after.wake(state.receiver.take());
            after.wake_all(&mut state.senders);
            after.wake_all(&mut state.watchers);
        }
        drop(state);
        self.finish(after);
    }

    /// By when a peer must be flushed, if this side wants it gone.
    pub(crate) fn closing(&self, id: PeerId) -> Option<Closing> {
        let mut state = self.lock();
        let socket = state.closing;
        state.peer(id).and_then(|peer| peer.closing).or(socket)
    }

    /// Whether nothing is left to send to a peer.
    pub(crate) fn is_flushed(&self, id: PeerId) -> bool {
        self.lock().peer(id).is_none_or(|peer| peer.outbox.is_flushed())
    }

    /// A connection that this side wants gone has nothing left to send. Tells whether it ever sent a
    /// message.
    pub(crate) fn note_flushed(&self, id: PeerId) -> bool {
        let mut after = After::default();
        let mut state = self.lock();
        let mut sent = false;
        if let Some(peer) = state.peer(id) {
            peer.flushed = true;
            sent = peer.out.sent > 0;
        }
        after.wake_all(&mut state.watchers);
        drop(state);
        self.finish(after);
        sent
    }

    /// Resolves when what this side wanted gone has nothing left to send, or is gone.
    pub(crate) fn poll_flushed(
        &self,
        ids: &[PeerId],
        waiting: &mut Waiting,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut state = self.lock();
        let pending =
            |id: &PeerId| state.peer(*id).is_some_and(|peer| !peer.flushed && peer.gone.is_none());
        if !ids.iter().any(pending) {
            return Poll::Ready(());
        }
        waiting.register(&mut state, cx);
        Poll::Pending
    }
}

/// Commands on their way to a peer that does not read.
const CONTROL_MAX: usize = 4 * 1024;

/// Octets that a connection task writes before it looks around again.
const FLIGHT: usize = 2 * BATCH;

/// Slices per system call.
const SLICES: usize = 64;
