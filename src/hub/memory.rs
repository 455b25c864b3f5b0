//! What each peer holds of memory: charged to the socket's budget, asked for before it grows, and given
//! up when the governor wants it for others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{After, Hub, Peer, PeerId, State, at_mut};
use crate::clock;
use crate::engine::HANDSHAKE_MAX;
use crate::framing::Room;
use crate::governor::{Account, Decision, Hoard, Holder, Request, Waiter};
use crate::monitor::Event;
use crate::outbox::Payload;
use crate::stats::DropReason;

/// What of a peer's memory is not in its queues, and how the governor stands to it.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// What is charged.
    pub(super) charged: usize,
    /// What its subscriptions cost.
    pub(super) subscriptions: usize,
    /// What its connection keeps of messages that are not whole.
    buffers: usize,
    /// When that was last other than it is.
    changed: Option<Instant>,
    /// What it held when it was decided that it has to go.
    pub(super) evicted: Option<usize>,
    /// It is not read from for want of memory, and when that was told.
    paused: Option<Pause>,
    told: Option<Instant>,
    /// It stands in the queue for memory.
    waiting: bool,
}

/// What there is no memory for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// The next message in its receive queue.
    Room,
    /// More of a message that is not whole.
    Buffer,
}

impl Holding {
    /// The connection is gone, with what it held.
    pub(super) fn part(&mut self) {
        *self =
            Self { charged: self.charged, subscriptions: self.subscriptions, ..Self::default() };
    }
}

impl Peer {
    /// What it costs, beside [`CONNECTION`].
    fn cost(&self) -> usize {
        let Holding { subscriptions, buffers, .. } = self.memory;
        self.outbox.cost() + self.inbox.cost() + subscriptions + buffers
    }

    /// The same, with what it holds together with others counted in full.
    pub(super) fn weight(&self) -> usize {
        self.cost() + self.outbox.weight().saturating_sub(self.outbox.cost())
    }

    /// What it can be made to give up, which counts the more the longer it has been of no use, and
    /// whether it can be now.
    fn hoard(&self, droppable: bool, now: Instant) -> (usize, bool) {
        let Holding { subscriptions, buffers, changed, paused, .. } = self.memory;
        let queue = if droppable { self.stale_queue() } else { 0 };
        let hoard = queue + self.outbox.control_cost() + subscriptions;
        // one that is sending is not to blame yet, and one that is not read from still less
        let still = changed.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let grace = if paused.is_some() { 4 * GRACE } else { GRACE };
        let age = (still.as_millis() / grace.as_millis()).min(AGES) as usize;
        let ripe = age > 0 || hoard >= buffers;
        (hoard + buffers * age.max(usize::from(!ripe)), ripe)
    }

    /// What is queued and does not go out. A queue that is being emptied is no hoard, however long it is at
    /// the moment.
    fn stale_queue(&self) -> usize {
        if self.keeps_up() { 0 } else { self.outbox.weight() }
    }

    /// Whether the kernel takes what is sent to it.
    fn keeps_up(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.blocked)
    }
}

impl State {
    /// Charges what a peer costs by now.
    pub(super) fn weigh(&mut self, index: u32) {
        let Self { account: Some(account), peers, pool, pooled, .. } = self else { return };
        if let Some(peer) = at_mut(peers, index) {
            let cost = CONNECTION + peer.cost();
            account.charge(std::mem::replace(&mut peer.memory.charged, cost), cost);
        }
        let cost = pool.cost();
        account.charge(std::mem::replace(pooled, cost), cost);
    }

    /// The same after its subscriptions have changed.
    pub(super) fn weigh_subscriptions(&mut self, index: u32) {
        if self.account.is_some() {
            let octets = self.subscriptions.bytes(index) + self.requests.bytes(index);
            if let Some(peer) = self.at(index) {
                peer.memory.subscriptions = octets;
            }
            self.weigh(index);
        }
    }

    /// Gives up buffers that nobody uses.
    fn empty_pool(&mut self) {
        self.pool.empty();
        if let Some(account) = &self.account {
            account.charge(std::mem::take(&mut self.pooled), 0);
        }
    }

    /// Whether a message may be queued for a peer; if it takes memory, that is granted.
    pub(super) fn room(
        &mut self,
        index: u32,
        payload: &Payload<'_>,
        size: usize,
    ) -> Result<(), DropReason> {
        let Self { account, peers, pool, pooled, droppable, .. } = self;
        let Some(peer) = at_mut(peers, index) else { return Err(DropReason::PeerGone) };
        let account = match (peer.outbox.room_for(size), account) {
            (Err(DropReason::Memory), Some(account)) => account,
            (room, _) => return room,
        };
        let empty = peer.outbox.messages() == 0;
        // what is on its way may be with the peer already
        let waits = peer.outbox.messages() > 0 && !peer.outbox.is_idle();
        let held = peer.weight();
        let within = !waits || peer.outbox.weight() < account.for_a_burst();
        let keeps_up = within && peer.keeps_up();
        for generous in [true, false, false] {
            let more = peer.outbox.need(payload, size, pool, generous);
            // what could never be granted is not to wait for ever
            let giant = empty && !*droppable && more > account.most();
            let modest = keeps_up && !generous;
            let request = Request { held, more, modest, reclaimable: *droppable, urgent: false };
            if giant || account.ask(request) {
                peer.outbox.grant(payload.is_copied(size), more);
                return Ok(());
            }
            if !generous {
                if pool.cost() == 0 {
                    break;
                }
                pool.empty();
                account.charge(std::mem::take(pooled), 0);
            }
        }
        Err(DropReason::Memory)
    }

    /// Whether a peer may cost so much more by what it makes this side keep; if not it has to go.
    pub(super) fn may_cost(&mut self, index: u32, more: usize, after: &mut After) -> bool {
        let Self { account: Some(account), peers, .. } = self else { return true };
        let Some(peer) = at_mut(peers, index) else { return true };
        if peer.memory.evicted.is_some() {
            return false;
        }
        let held = peer.weight();
        let modest = held < MODEST;
        if account.ask(Request { held, more, modest, reclaimable: true, urgent: false }) {
            return true;
        }
        self.evict(index, after);
        false
    }

    /// A peer has to go, for what it holds.
    fn evict(&mut self, index: u32, after: &mut After) {
        let Some(peer) = self.at(index).filter(|peer| peer.link.is_some()) else { return };
        if peer.memory.evicted.is_none() {
            peer.memory.evicted = Some(peer.weight());
            if let Some(account) = &self.account {
                account.count(Decision::Disconnected, 1);
            }
        }
        self.nudge(index, after);
    }
}

impl Hub {
    /// Room for a connection that has not said READY; `None`: there is none.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Admission> {
        if let Some(account) = &self.account {
            let request = Request {
                held: 0,
                more: HANDSHAKE,
                modest: false,
                reclaimable: false,
                urgent: true,
            };
            let granted = account.ask(request) || {
                // others may give way, and it comes but once
                account.act();
                account.ask(request)
            };
            if !granted {
                account.count(Decision::TurnedAway, 1);
                return None;
            }
            account.charge(0, HANDSHAKE);
        }
        Some(Admission(self.account.clone()))
    }

    /// How many connections may be in their handshake at once.
    pub(crate) fn max_handshakes(&self) -> usize {
        let most = self.account.as_ref().map_or(usize::MAX, |account| account.for_handshakes());
        self.options.max_handshakes.min(most / HANDSHAKE)
    }

    /// Whether this socket keeps within a budget.
    pub(crate) fn account(&self) -> Option<&Arc<Account>> {
        self.account.as_ref()
    }

    /// What of a peer's receive queue may be filled, if the queue has `room`.
    pub(super) fn room_in_memory(
        &self,
        state: &mut State,
        id: PeerId,
        room: Room,
        after: &mut After,
    ) -> Room {
        let Some(account) = &self.account else { return room };
        for look in 0..2 {
            let Some(peer) = state.peer(id) else { return room };
            let held = peer.weight();
            let free = account.free_for(held);
            let empty = peer.inbox.is_done();
            let one =
                Request { held, more: MODEST, modest: true, reclaimable: false, urgent: true };
            if free > 0 || empty && account.ask(one) {
                // there may still be none for what is behind it
                if peer.memory.paused.take_if(|pause| *pause == Pause::Room).is_some() {
                    account.pass_on();
                }
                return match free {
                    0 => Room { messages: 1, bytes: 1 },
                    _ => Room { bytes: room.bytes.min(free), ..room },
                };
            }
            if look == 0 && !std::mem::replace(&mut peer.memory.waiting, true) {
                account.wait(self.itself.clone(), Waiter::Peer(id.number()));
            }
        }
        after.events.extend(self.pause(state, id, Pause::Room, account));
        Room::NONE
    }

    /// A peer has announced a message of so many octets. `false`: there will never be memory for it, and
    /// the peer has to go.
    pub(crate) fn may_receive(&self, id: PeerId, octets: usize) -> bool {
        let Some(account) = self.account.as_ref().filter(|account| account.is_beyond(octets))
        else {
            return true;
        };
        let mut state = self.lock();
        if let Some(peer) = state.peer(id)
            && peer.memory.evicted.is_none()
        {
            peer.memory.evicted = Some(octets);
            account.count(Decision::Disconnected, 1);
        }
        false
    }

    /// Whether a connection may hold so much of messages that are not whole. If not, and it is to
    /// `wait` for it, its task will be woken.
    pub(crate) fn may_buffer(&self, id: PeerId, octets: usize, wait: bool) -> bool {
        let Some(account) = &self.account else { return true };
        let mut after = After::default();
        let mut state = self.lock();
        let mut granted = false;
        for look in 0..2 {
            let Some(peer) = state.peer(id) else { return true };
            let held = peer.weight();
            let more = octets.saturating_sub(peer.memory.buffers);
            let modest = peer.memory.buffers < MODEST && peer.inbox.is_done();
            granted = more == 0
                || account.ask(Request { held, more, modest, reclaimable: true, urgent: wait });
            if granted {
                if peer.memory.paused.take().is_some() {
                    account.pass_on();
                }
                if std::mem::replace(&mut peer.memory.buffers, octets) != octets {
                    peer.memory.changed = Some(clock::now());
                }
                break;
            }
            if !wait {
                break;
            }
            if look == 0 && !std::mem::replace(&mut peer.memory.waiting, true) {
                account.wait(self.itself.clone(), Waiter::Peer(id.number()));
            }
        }
        if granted {
            state.weigh(id.index);
        } else if wait {
            after.events.extend(self.pause(&mut state, id, Pause::Buffer, account));
        }
        drop(state);
        self.finish(after);
        granted
    }

    /// A peer is not read from for want of memory.
    fn pause(
        &self,
        state: &mut State,
        id: PeerId,
        pause: Pause,
        account: &Account,
    ) -> Option<Event> {
        let peer = state.peer(id)?;
        if peer.memory.paused.is_some() {
            return None;
        }
        peer.memory.paused = Some(pause);
        account.count(Decision::Paused, 1);
        let now = clock::now();
        if peer.memory.told.is_some_and(|at| now.saturating_duration_since(at) < TOLD) {
            return None;
        }
        peer.memory.told = Some(now);
        Some(Event::ReadingPaused { peer: peer.info.clone()?, held: peer.weight() })
    }
}

/// A connection before READY, as it is charged; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Admission(Option<Arc<Account>>);

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(account) = &self.0 {
            account.charge(HANDSHAKE, 0);
            account.act();
        }
    }
}

impl Holder for Hub {
    fn hoarders(&self, each: &mut dyn FnMut(Hoard, bool, u64)) {
        let now = clock::now();
        let mut state = self.lock();
        state.empty_pool();
        for (index, slot) in state.peers.iter().enumerate() {
            let Some(peer) = slot.peer.as_deref() else { continue };
            let (weight, ripe) = peer.hoard(state.droppable, now);
            let queued =
                state.droppable && peer.stale_queue() >= CRUMB && peer.outbox.can_conflate();
            if (queued || weight >= MODEST) && peer.memory.evicted.is_none() {
                let hoard = Hoard { weight, octets: peer.cost() };
                each(hoard, ripe, state.id(index as u32).number());
            }
        }
    }

    fn give_up(&self, peer: u64) -> usize {
        let Some(account) = &self.account else { return 0 };
        let id = PeerId::from_number(peer);
        let mut after = After::default();
        let mut state = self.lock();
        let (droppable, now) = (state.droppable, clock::now());
        let Some(peer) = state.peer(id) else { return 0 };
        let (held, mut dropped) = (peer.weight(), false);
        if droppable && peer.stale_queue() > 0 {
            let settled = peer.outbox.conflate();
            peer.out.sent += settled.sent as u64;
            let messages = settled.dropped as u64;
            dropped = messages > 0;
            peer.out.dropped.add(DropReason::Memory, messages);
            account.count(Decision::Reclaimed, messages);
            after.events.extend(dropped.then(|| Event::Reclaimed {
                peer: peer.link.as_ref().and(peer.info.clone()),
                endpoint: peer.endpoint.clone(),
                messages,
                held,
            }));
        }
        // half-sent messages and what does not stand in the queue go with the peer only
        let (hoard, ripe) = peer.hoard(droppable, now);
        let rest = if hoard >= MODEST && ripe { CONNECTION + peer.cost() } else { 0 };
        if dropped {
            // who greets subscribers is to tell this one where everything is
            state.subscriptions.renew_news(id.index);
            after.wake_all(&mut state.watchers);
        }
        state.weigh(id.index);
        after.wake_all(&mut state.senders);
        drop(state);
        // not `finish`: the governor is at work
        self.fire(after);
        rest
    }

    fn evict(&self, peer: u64) {
        let mut after = After::default();
        let id = PeerId::from_number(peer);
        let mut state = self.lock();
        // its place may be another's by now
        if state.peer(id).is_some() {
            state.evict(id.index, &mut after);
        }
        drop(state);
        self.fire(after);
    }

    fn wake(&self, waiter: Waiter) -> bool {
        let mut after = After::default();
        let mut state = self.lock();
        match waiter {
            Waiter::Peer(number) => {
                let id = PeerId::from_number(number);
                if let Some(peer) = state.peer(id) {
                    peer.memory.waiting = false;
                    if peer.memory.paused.is_some() {
                        state.nudge(id.index, &mut after);
                    }
                }
            }
            Waiter::Senders => {
                state.senders_hungry = false;
                after.wake_all(&mut state.senders);
            }
        }
        drop(state);
        let woken = after.waker.is_some();
        self.fire(after);
        woken
    }
}

impl PeerId {
    fn number(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_number(number: u64) -> Self {
        Self { index: number as u32, generation: (number >> 32) as u32 }
    }
}

/// What a connection costs with nothing queued: its task, its place here and its timers; measured
/// with ten thousand of them.
const CONNECTION: usize = 3584;

/// What a connection costs before READY at most: as much, and the largest command.
const HANDSHAKE: usize = CONNECTION + HANDSHAKE_MAX;

/// Who holds less is not held to what the others leave.
const MODEST: usize = 4 * 1024;

/// A queue that is not worth dropping.
const CRUMB: usize = 256;

/// How long a message may be on its way before its sender is one who hoards.
const GRACE: Duration = Duration::from_millis(500);

/// How many times as much that counts at most when it goes on.
const AGES: u128 = 64;

/// How often a monitor is told of the same peer that it is not read from.
const TOLD: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};

    use super::*;
    use crate::command::Subscription;
    use crate::governor::Budget;
    use crate::greeting::Version;
    use crate::hub::{Leaving, Wire};
    use crate::options::SocketOptions;
    use crate::peer::{ConnectionId, PeerInfo};
    use crate::socket_type::SocketType;

    #[derive(Debug)]
    struct Full;

    impl Wire for Full {
        fn try_write_vectored(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// A peer with so many subscriptions, and whether the kernel takes what is sent to it.
    fn subscriber(hub: &Hub, subscriptions: usize, takes: bool) -> PeerId {
        let endpoint: crate::Endpoint = "tcp://127.0.0.1:1".parse().unwrap();
        let id = hub.add_peer(endpoint.clone(), false);
        let info = PeerInfo::new(ConnectionId(u64::from(id.index)), endpoint, true);
        hub.attach(id, Arc::new(info), Version::V3_1, Arc::new(Full));
        for n in 1..subscriptions {
            let topic = format!("topic {n}");
            hub.peer_subscription(id, Subscription::Subscribe(topic.as_bytes())).unwrap();
        }
        hub.peer_subscription(id, Subscription::Subscribe(b"")).unwrap();
        hub.lock().peer(id).unwrap().link.as_mut().unwrap().blocked = !takes;
        id
    }

    #[test]
    fn who_keeps_up_keeps_its_queue_whatever_its_subscriptions_cost() {
        let budget = Budget::process(64 << 20);
        let hub = Hub::new(SocketType::Pub, Arc::new(SocketOptions::new().budget(&budget)));
        let (good, slow) = (subscriber(&hub, 50, true), subscriber(&hub, 50, false));
        for _ in 0..5 {
            let delivery = hub.publish(&Payload::Slices(&[&[7; 1000]])).unwrap();
            assert_eq!(delivery.queued, 2);
        }
        let mut hoarders = Vec::new();
        hub.hoarders(&mut |hoard, _, peer| {
            hoarders.push((hoard.weight, PeerId::from_number(peer)));
        });
        hoarders.sort_by_key(|(weight, _)| *weight);
        let [(less, first), (more, second)] = hoarders[..] else { panic!("{hoarders:?}") };
        assert_eq!((first, second), (good, slow));
        assert!(less >= MODEST && more >= less + 5000, "{less}, {more}");
        for id in [good, slow] {
            hub.give_up(id.number());
        }
        let queued = |id| hub.lock().peer(id).unwrap().outbox.messages();
        assert_eq!((queued(good), queued(slow)), (5, 0));
        assert_eq!(budget.usage().reclaimed, 5);
    }

    #[test]
    fn who_took_the_place_of_one_that_has_to_go_stays() {
        let budget = Budget::process(1 << 20);
        let hub = Hub::new(SocketType::Pub, Arc::new(SocketOptions::new().budget(&budget)));
        let hoarder = subscriber(&hub, 1, false);
        hub.detach(hoarder, Leaving::Lost);
        let next = subscriber(&hub, 1, true);
        assert_eq!(next.index, hoarder.index);
        hub.evict(hoarder.number());
        assert_eq!(budget.usage().disconnected, 0);
        hub.evict(next.number());
        assert_eq!(budget.usage().disconnected, 1);
    }

    #[test]
    fn many_small_queues_give_way_to_a_newcomer() {
        let budget = Budget::process(1 << 20);
        let hub = Hub::new(SocketType::Pub, Arc::new(SocketOptions::new().budget(&budget)));
        for _ in 0..80 {
            subscriber(&hub, 1, false);
        }
        let is_full = || budget.usage().used + HANDSHAKE > budget.usage().chargeable / 8 * 7;
        while !is_full() {
            hub.publish(&Payload::Slices(&[&[7; 500]])).unwrap();
        }
        assert_eq!(budget.usage().reclaimed, 0);
        assert!(hub.admit().is_some());
        assert!(budget.usage().reclaimed > 0 && budget.usage().disconnected == 0);
        // where there is nothing to give up, there is no room
        for _ in 0..200 {
            subscriber(&hub, 1, true);
        }
        assert!(hub.admit().is_none());
        assert_eq!(budget.usage().turned_away, 1);
    }
}
