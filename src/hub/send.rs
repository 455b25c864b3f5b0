//! What senders do to the hub: PUB and XPUB to all that match, PUSH to the next with room, XSUB to
//! all.

use std::sync::{Arc, MutexGuard};
use std::task::Context;
use std::time::Duration;

use super::link::{Launched, write_flight};
use super::{After, Form, Hub, Peer, PeerId, Slot, State, Waiting, Wire, at, at_mut};
use crate::clock;
use crate::command::Subscription;
use crate::governor::Waiter;
use crate::message::Message;
use crate::options::OnFull;
use crate::outbox::{BATCH, Flight, Payload, Pool, Settled};
use crate::stats::DropReason;

/// What happened to a message that PUB or XPUB accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Delivery {
    /// Subscribers that it matches.
    pub matched: u32,
    /// Of these, those whose queue took it.
    pub queued: u32,
    /// Of these, those whose queue was at its high-water mark.
    pub dropped: u32,
}

impl std::ops::AddAssign for Delivery {
    fn add_assign(&mut self, other: Self) {
        self.matched = self.matched.saturating_add(other.matched);
        self.queued = self.queued.saturating_add(other.queued);
        self.dropped = self.dropped.saturating_add(other.dropped);
    }
}

/// Why a message was not accepted.
///
/// It is as wide as the fields of [`Delivery`]: a `Result` with a smaller error has a small
/// discriminant as well and is moved in pieces that lie across words, which a processor does not
/// forward from the store to the load (measured: 30 ns for each `publish`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Refused {
    /// No peer has room, or one that must have it has not.
    Full,
    Closed,
}

/// A flight that a sender writes itself, once it has released the lock.
#[derive(Debug)]
pub(super) struct Launch {
    peer: PeerId,
    session: u32,
    wire: Arc<dyn Wire>,
    flight: Flight,
}

impl Peer {
    /// Whether it has room for a message and is about to be written to anyway, which is the usual
    /// case: the message is queued, and there is nothing else to do.
    #[inline]
    fn takes(&self, size: usize) -> bool {
        let Some(link) = &self.link else { return false };
        self.outbox.room_for(size).is_ok()
            && (link.scheduled && self.outbox.bytes() + size < BATCH
                || self.outbox.is_flying()
                || link.blocked)
    }

    #[inline(always)]
    fn queue(&mut self, payload: &Payload<'_>, size: usize, pool: &mut Pool) {
        self.outbox.push(payload, size, pool);
        self.out.accepted += 1;
    }
}

impl State {
    /// Queues a message if [that is all there is to do](Peer::takes).
    #[inline(always)]
    fn queue(&mut self, index: u32, payload: &Payload<'_>, size: usize) -> bool {
        let Some(peer) = at_mut(&mut self.peers, index).filter(|peer| peer.takes(size)) else {
            return false;
        };
        peer.queue(payload, size, &mut self.pool);
        true
    }

    /// Queues a message for a peer that has room.
    fn accept(&mut self, index: u32, payload: &Payload<'_>, conflate: bool, after: &mut After) {
        let Some(peer) = at_mut(&mut self.peers, index) else { return };
        let replaced = if conflate { peer.outbox.conflate() } else { Settled::default() };
        peer.out.sent += replaced.sent as u64;
        peer.queue(payload, payload.wire_size(), &mut self.pool);
        self.weigh(index);
        if replaced.dropped > 0 {
            self.drop_outgoing(index, DropReason::Conflated, replaced.dropped, after);
        }
    }

    fn lane_after(&self, lane: usize) -> usize {
        if lane + 1 < self.lanes.len() { lane + 1 } else { 0 }
    }

    /// A message that a peer has no room for.
    fn refuse(&mut self, index: u32, reason: DropReason, after: &mut After) {
        if let Some(peer) = self.at(index) {
            peer.out.accepted += 1;
        }
        self.drop_outgoing(index, reason, 1, after);
    }

    /// A message that there is no peer for.
    fn refuse_unrouted(&mut self, reason: DropReason) {
        self.gone_out.accepted += 1;
        self.gone_out.dropped.add(reason, 1);
    }

    /// Sees to it that somebody writes what was queued: the caller, if it gets a launch. A `lone`
    /// message is worth a system call of its own when the peer has been quiet.
    fn kick(&mut self, index: u32, lone: bool, after: &mut After) -> Option<Launch> {
        let Self { peers, sends, .. } = self;
        let peer = at_mut(peers, index)?;
        let batch = peer.outbox.has_batch();
        if peer.outbox.is_flying() {
            return None;
        }
        let link = peer.link.as_mut()?;
        if link.blocked || link.broken.is_some() {
            return None;
        }
        if batch {
            return self.launch(index);
        }
        if link.scheduled {
            return None;
        }
        // not when the socket was busy with others: so much for a message is for who waits for one
        let sends = *sends;
        let alone = sends.wrapping_sub(std::mem::replace(&mut link.last_send, sends)) <= BUSY;
        if lone && alone {
            let now = clock::now();
            let last = link.last_write.replace(now);
            if last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET) {
                return self.launch(index);
            }
        }
        link.scheduled = true;
        after.wake(link.waker.clone());
        None
    }

    /// A flight of a peer that nobody is writing to.
    fn launch(&mut self, index: u32) -> Option<Launch> {
        let id = self.id(index);
        let peer = at_mut(&mut self.peers, index)?;
        let link = peer.link.as_ref()?;
        if link.blocked || link.broken.is_some() {
            return None;
        }
        let wire = link.wire.clone();
        let flight = peer.outbox.take(FLIGHT, &mut self.pool)?;
        Some(Launch { peer: id, session: peer.session, wire, flight })
    }
}

impl Hub {
    /// PUB, XPUB: a message for everyone whose subscriptions match it. With [`OnFull::Wait`] it is
    /// accepted by all or by none.
    #[inline]
    pub(crate) fn publish(&self, payload: &Payload<'_>) -> Result<Delivery, Refused> {
        let size = payload.wire_size();
        let mut guard = self.lock();
        guard.sends = guard.sends.wrapping_add(1);
        if guard.closing.is_none() {
            self.match_peers(&mut guard, payload.topic());
            if guard.matched.is_empty() {
                guard.refuse_unrouted(DropReason::NoSubscriber);
                return Ok(Delivery::default());
            }
            let State { matched, peers, pool, .. } = &mut *guard;
            let quiet = |&index: &u32| at(peers, index).is_some_and(|peer| peer.takes(size));
            if !self.options.conflate && matched.iter().all(quiet) {
                queue_for_all(peers, matched, payload, size, pool);
                let all = matched.len() as u32;
                return Ok(Delivery { matched: all, queued: all, dropped: 0 });
            }
        }
        self.publish_any(guard, payload, size)
    }

    /// The same in whatever state the matching peers are.
    fn publish_any<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        payload: &Payload<'_>,
        size: usize,
    ) -> Result<Delivery, Refused> {
        let conflate = self.options.conflate;
        let wait = self.options.on_full == OnFull::Wait && !conflate;
        let mut after = After::default();
        let mut launches = std::mem::take(&mut state.launches);
        loop {
            if state.closing.is_some() {
                return Err(Refused::Closed);
            }
            if !wait || !make_room(&mut state, payload, size, &mut launches) {
                break;
            }
            if launches.is_empty() {
                state.launches = launches;
                return Err(Refused::Full);
            }
            state = self.fly(state, &mut launches, &mut after);
            // somebody else had the lock
            self.match_peers(&mut state, payload.topic());
        }
        let matched = std::mem::take(&mut state.matched);
        let mut delivery = Delivery { matched: matched.len() as u32, ..Delivery::default() };
        if matched.is_empty() {
            state.refuse_unrouted(DropReason::NoSubscriber);
        }
        let lone = matched.len() <= LONE;
        let shared = share(payload, &matched, &mut state.pool);
        let payload = &shared.as_ref().map_or(*payload, |message| state.pool.payload(message));
        let mut full = std::mem::take(&mut state.full);
        for &index in &matched {
            if !conflate && state.queue(index, payload, size) {
                delivery.queued += 1;
                continue;
            }
            if state.at(index).is_none() {
                continue;
            }
            let room = if conflate { Ok(()) } else { state.room(index, payload, size) };
            match room.map_err(|reason| (reason, state.launch(index))) {
                Ok(()) => {
                    state.accept(index, payload, conflate, &mut after);
                    delivery.queued += 1;
                    launches.extend(state.kick(index, lone, &mut after));
                }
                // there may be room once the sender itself has written the queue
                Err((_, Some(launch))) => {
                    full.push(launch.peer);
                    launches.push(launch);
                }
                Err((reason, None)) => {
                    state.refuse(index, reason, &mut after);
                    delivery.dropped += 1;
                }
            }
        }
        state.matched = matched;
        state = self.fly(state, &mut launches, &mut after);
        if !full.is_empty() {
            // the second try for peers whose queue was full and has been written since
            for id in full.drain(..) {
                if state.peer(id).is_none_or(|peer| peer.gone.is_some()) {
                    state.refuse_unrouted(DropReason::PeerGone);
                    delivery.dropped += 1;
                    continue;
                }
                match state.room(id.index, payload, size) {
                    Ok(()) => {
                        state.accept(id.index, payload, false, &mut after);
                        delivery.queued += 1;
                        launches.extend(state.kick(id.index, false, &mut after));
                    }
                    Err(reason) => {
                        state.refuse(id.index, reason, &mut after);
                        delivery.dropped += 1;
                    }
                }
            }
            state = self.fly(state, &mut launches, &mut after);
        }
        state.launches = launches;
        state.full = full;
        drop(state);
        self.finish(after);
        Ok(delivery)
    }

    /// Fills `state.matched`.
    #[inline]
    pub(super) fn match_peers(&self, state: &mut State, topic: &[u8]) {
        let State { subscriptions, matched, peers, .. } = state;
        matched.clear();
        subscriptions.matching(topic, |index| matched.push(index));
        if self.options.invert_matching {
            let excluded = std::mem::take(matched);
            let there = peers.iter().enumerate().filter(|(_, slot)| {
                slot.peer.as_ref().is_some_and(|peer| peer.gone.is_none() && peer.link.is_some())
            });
            matched.extend(there.map(|(i, _)| i as u32).filter(|index| !excluded.contains(index)));
        }
    }

    /// PUSH: a message for the next peer that has room.
    #[inline]
    pub(crate) fn push(&self, payload: &Payload<'_>) -> Result<(), Refused> {
        let size = payload.wire_size();
        let mut guard = self.lock();
        let state = &mut *guard;
        state.sends = state.sends.wrapping_add(1);
        if state.closing.is_none()
            && !self.options.conflate
            && let Some(&index) = state.lanes.get(state.next_lane)
            && state.queue(index, payload, size)
        {
            state.next_lane = state.lane_after(state.next_lane);
            return Ok(());
        }
        self.push_any(guard, payload, size)
    }

    /// The same in whatever state the peers are.
    fn push_any<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        payload: &Payload<'_>,
        size: usize,
    ) -> Result<(), Refused> {
        let conflate = self.options.conflate;
        let mut after = After::default();
        let mut launches = std::mem::take(&mut state.launches);
        let pushed = loop {
            if state.closing.is_some() {
                break Err(Refused::Closed);
            }
            let lanes = state.lanes.len();
            let mut chosen = None;
            for step in 0..lanes {
                let mut lane = state.next_lane + step;
                if lane >= lanes {
                    lane -= lanes;
                }
                let Some(&index) = state.lanes.get(lane) else { continue };
                let Some(peer) = state.at(index) else { continue };
                if peer.link.is_none() && self.options.immediate {
                    continue;
                }
                if conflate || state.room(index, payload, size).is_ok() {
                    chosen = Some((lane, index));
                    break;
                }
                // a sender makes room itself where it can
                launches.extend(state.launch(index));
            }
            if let Some((lane, index)) = chosen {
                state.accept(index, payload, conflate, &mut after);
                state.next_lane = state.lane_after(lane);
                launches.extend(state.kick(index, true, &mut after));
                break Ok(());
            }
            if launches.is_empty() {
                break Err(Refused::Full);
            }
            state = self.fly(state, &mut launches, &mut after);
        };
        state = self.fly(state, &mut launches, &mut after);
        state.launches = launches;
        drop(state);
        self.finish(after);
        pushed
    }

    /// XSUB: a message of the application's for every peer, or a subscription.
    pub(crate) fn send_upstream(&self, message: &Message) -> Result<(), Refused> {
        let mut frames = message.frames();
        if let (Some(only), None) = (frames.next(), frames.next())
            && let Some(subscription) = Subscription::parse(only)
        {
            // as in libzmq the application's frame goes out as it is, not as a command
            return match subscription {
                Subscription::Subscribe(topic) => self.subscribe(topic, Form::Message),
                Subscription::Cancel(topic) => self.unsubscribe(topic, Form::Message),
            }
            .map(drop);
        }
        let payload = Payload::Message(message);
        let size = payload.wire_size();
        let mut after = After::default();
        let mut state = self.lock();
        state.sends = state.sends.wrapping_add(1);
        if state.closing.is_some() {
            return Err(Refused::Closed);
        }
        let mut launches = std::mem::take(&mut state.launches);
        let lanes = state.lanes.clone();
        if lanes.is_empty() {
            state.refuse_unrouted(DropReason::NoSubscriber);
        }
        for &index in &lanes {
            if state.at(index).is_none() {
                continue;
            }
            match state.room(index, &payload, size) {
                Ok(()) => {
                    state.accept(index, &payload, false, &mut after);
                    launches.extend(state.kick(index, lanes.len() <= LONE, &mut after));
                }
                Err(reason) => state.refuse(index, reason, &mut after),
            }
        }
        state = self.fly(state, &mut launches, &mut after);
        state.launches = launches;
        drop(state);
        self.finish(after);
        Ok(())
    }

    /// Registers a sender that was refused; it must try once more before it sleeps, for room may
    /// have come in between.
    pub(crate) fn wait_for_room(&self, waiting: &mut Waiting, cx: &mut Context<'_>) {
        let mut state = self.lock();
        waiting.register(&mut state, cx);
        if let Some(account) = &self.account
            && !std::mem::replace(&mut state.senders_hungry, true)
        {
            account.wait(self.itself.clone(), Waiter::Senders);
        }
    }

    /// Writes what a sender took upon itself to write, without the lock.
    fn fly<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        launches: &mut Vec<Launch>,
        after: &mut After,
    ) -> MutexGuard<'a, State> {
        if launches.is_empty() {
            return state;
        }
        drop(state);
        for Launch { peer, session, wire, mut flight } in launches.drain(..) {
            let how = write_flight(&*wire, &mut flight);
            self.settle(Launched { peer, session, flight }, how, after);
        }
        self.lock()
    }
}

/// Queues a message for peers of which each [takes](Peer::takes) it.
#[inline]
fn queue_for_all(
    peers: &mut [Slot],
    matched: &[u32],
    payload: &Payload<'_>,
    size: usize,
    pool: &mut Pool,
) {
    if let &[index] = matched {
        if let Some(peer) = at_mut(peers, index) {
            peer.queue(payload, size, pool);
        }
    } else if Payload::is_small(size) {
        let mut packed = std::mem::take(&mut pool.packed);
        packed.clear();
        payload.pack(&mut packed);
        for &index in matched {
            if let Some(peer) = at_mut(peers, index) {
                peer.outbox.push_packed(payload, &packed, pool);
                peer.out.accepted += 1;
            }
        }
        pool.packed = packed;
    } else {
        let shared = share(payload, matched, pool);
        let payload = shared.as_ref().map_or(*payload, |message| pool.payload(message));
        for &index in matched {
            if let Some(peer) = at_mut(peers, index) {
                peer.queue(&payload, size, pool);
            }
        }
    }
}

/// A copy that several peers share, where that costs less than a copy for each.
#[inline]
fn share(payload: &Payload<'_>, matched: &[u32], pool: &mut Pool) -> Option<Message> {
    (matched.len() > 1 && pool.is_worth_sharing(payload)).then(|| pool.share(payload))
}

/// Whether a matched peer has no room; launches what may make some.
fn make_room(
    state: &mut State,
    payload: &Payload<'_>,
    size: usize,
    launches: &mut Vec<Launch>,
) -> bool {
    let mut full = false;
    for i in 0..state.matched.len() {
        let Some(&index) = state.matched.get(i) else { continue };
        if state.at(index).is_some() && state.room(index, payload, size).is_err() {
            full = true;
            launches.extend(state.launch(index));
        }
    }
    full
}

/// Octets that a sender writes at once: two batches, so that it is soon back.
const FLIGHT: usize = 2 * BATCH;

/// A message to so few peers may be written by its sender right away.
const LONE: usize = 4;

/// Nor when the socket has sent more than so many since it last wrote to that peer so.
const BUSY: u64 = 16;

/// How long a peer must have been quiet for that. A tight loop, in which messages are nearer to
/// each other than a system call is long, is written in batches instead.
const QUIET: Duration = Duration::from_micros(20);
