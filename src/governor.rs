//! The memory governor: what sockets may hold together and each, and who gives way when it is too much.
//!
//! A [`Budget`] keeps the account of all sockets that were made with it. What is charged is what
//! memory costs: a connection with all that belongs to it, the capacity of queues and buffers, a
//! payload that many peers share once. Small amounts are taken without asking as part of a larger one
//! that was; so asking is rare, and a message for a queue with room costs what it costs without a
//! budget.
//!
//! Who may have more:
//!
//! 1. **A peer may hold as much as is free**, of all but an eighth of the budget. One that hoards alone
//!    gets half, and leaves as much; each that comes on top leaves less, but something.
//! 2. **The last eighth is for those who hold next to nothing**: a peer that keeps up finds room for its
//!    next message whatever the others do.
//! 3. **Who is refused while another has four times as much makes the worst hoarders give way**, the
//!    largest first, until an eighth is free again; who keeps up or comes anew, however little they
//!    have; and where several have parts of messages that leave none of them room for the rest, one has
//!    to go. Queues of PUB, XPUB and XSUB are dropped; peers
//!    that hold on to half-sent messages or to subscriptions are disconnected. Queues of PUSH and what the
//!    application has not received are never dropped: there the sender waits.
//!
//! Each decision is counted in [`BudgetUsage`] and told by the socket's monitor.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use bytes::Bytes;

use crate::clock;

/// A limit of the memory that sockets hold, for those of a process or for a part of them.
///
/// Each socket that is to keep within it is made with
/// [`SocketOptions::budget`](crate::SocketOptions::budget). What counts and who gives way when there is
/// not enough is told in `docs/memory.md`.
///
/// ```
/// use dragonwire::{Budget, PubSocket, PullSocket, SocketOptions};
///
/// let budget = Budget::process(64 << 20).per_peer(8 << 20);
/// let publisher = PubSocket::with_options(SocketOptions::new().budget(&budget))?;
/// let puller = PullSocket::with_options(SocketOptions::new().budget(&budget))?;
/// assert!(budget.usage().used < 1 << 20);
/// # Ok::<(), dragonwire::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Budget(Arc<Ledger>);

/// What a [`Budget`] was used for, and what it decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BudgetUsage {
    /// The budget, in octets.
    pub limit: usize,
    /// What of it may be charged; the rest is for blocks that are read into, and for what is not
    /// charged.
    pub chargeable: usize,
    /// What is charged now.
    pub used: usize,
    /// The most that was charged at any time.
    pub peak: usize,
    /// Messages that were not queued for a peer for want of memory
    /// ([`DropReason::Memory`](crate::DropReason::Memory)).
    pub refused: u64,
    /// Messages that were queued and had to go for others' sake, likewise.
    pub reclaimed: u64,
    /// Peers that were disconnected ([`DisconnectCause::Memory`](crate::DisconnectCause::Memory)).
    pub disconnected: u64,
    /// Connections that were refused, likewise.
    pub turned_away: u64,
    /// How often a peer was not read from for want of memory
    /// ([`Event::ReadingPaused`](crate::Event::ReadingPaused)).
    pub paused: u64,
}

/// A decision, as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Refused,
    Reclaimed,
    Disconnected,
    TurnedAway,
    Paused,
}

impl Budget {
    /// At most so many octets of resident memory for a process whose sockets all have this budget.
    ///
    /// Three quarters are charged for what sockets hold; the others are for what is read into, for the
    /// allocator's fragments and for the rest of the program, as long as that is a few MiB. From
    /// 32 MiB on it holds for the whole process (`docs/memory.md` has what was measured, and what glibc's
    /// allocator has to be told for it); less
    /// bounds what sockets hold but not the process. At least 1 MiB.
    #[must_use]
    pub fn process(octets: usize) -> Self {
        let limit = octets.max(1 << 20);
        crate::blocks::READING.set_cap(limit / 16);
        Self(Arc::new(Ledger {
            limit,
            hard: limit - limit / 4,
            per_socket: AtomicUsize::new(usize::MAX),
            per_peer: AtomicUsize::new(usize::MAX),
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            counts: Default::default(),
            worst: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
            wanted: AtomicUsize::new(0),
            resting: AtomicU64::new(0),
            made: clock::now(),
            hungry: AtomicBool::new(false),
            freed: AtomicBool::new(false),
            sockets: Mutex::default(),
            waiters: Mutex::default(),
        }))
    }

    /// At most so many octets of it for each socket. Default: all of it.
    #[must_use]
    pub fn per_socket(self, octets: usize) -> Self {
        self.0.per_socket.store(octets, Ordering::Relaxed);
        self
    }

    /// At most so many octets of it for each peer. Default: as many as are free.
    ///
    /// A message that is larger cannot be received, and is dropped by PUB and XPUB; PUSH sends it when
    /// nothing else is queued.
    #[must_use]
    pub fn per_peer(self, octets: usize) -> Self {
        self.0.per_peer.store(octets, Ordering::Relaxed);
        self
    }

    /// What is charged, and what was decided so far.
    #[must_use]
    pub fn usage(&self) -> BudgetUsage {
        let ledger = &self.0;
        let [refused, reclaimed, disconnected, turned_away, paused] =
            std::array::from_fn(|i| ledger.counts.get(i).map_or(0, |n| n.load(Ordering::Relaxed)));
        BudgetUsage {
            limit: ledger.limit,
            chargeable: ledger.hard,
            used: ledger.used.load(Ordering::Relaxed),
            peak: ledger.peak.load(Ordering::Relaxed),
            refused,
            reclaimed,
            disconnected,
            turned_away,
            paused,
        }
    }
}

/// A socket, as the governor sees it.
pub(crate) trait Holder: Send + Sync {
    /// Gives up what nobody needs, and calls `each` with every peer that holds much which it can be made
    /// to give up: how much, and whether it can be now.
    fn hoarders(&self, each: &mut dyn FnMut(Hoard, bool, u64));

    /// Makes a peer give up what it can and stay; tells what would come free if it went.
    fn give_up(&self, peer: u64) -> usize;

    /// Has a peer disconnected, which is done by its own task.
    fn evict(&self, peer: u64);

    /// There may be memory for a peer that waits for some, or for senders. `false`: nobody waits.
    fn wake(&self, waiter: Waiter) -> bool;
}

/// What a peer can be made to give up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hoard {
    /// The more the longer it has been of no use.
    pub(crate) weight: usize,
    /// What would come free if it went.
    pub(crate) octets: usize,
}

/// Who waits for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A connection that does not read.
    Peer(u64),
    /// A socket's senders.
    Senders,
}

struct Ledger {
    limit: usize,
    hard: usize,
    per_socket: AtomicUsize,
    per_peer: AtomicUsize,
    used: AtomicUsize,
    peak: AtomicUsize,
    counts: [AtomicU64; 5],
    /// The most that a peer was seen to hold of what it can be made to give up.
    worst: AtomicUsize,
    /// Somebody was refused what a hoarder could give up.
    pressed: AtomicBool,
    /// The most that a peer wanted to hold of a message that is not whole, and was refused.
    wanted: AtomicUsize,
    /// Before so many milliseconds since `made` there is no use in looking for hoarders.
    resting: AtomicU64,
    made: Instant,
    /// Somebody waits; something was given back since.
    hungry: AtomicBool,
    freed: AtomicBool,
    sockets: Mutex<Vec<Weak<dyn Holder>>>,
    waiters: Mutex<VecDeque<(Weak<dyn Holder>, Waiter)>>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.used.load(Ordering::Relaxed);
        f.debug_struct("Ledger").field("limit", &self.limit).field("used", &used).finish()
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    /// What the peer holds.
    pub(crate) held: usize,
    /// What it is to hold on top.
    pub(crate) more: usize,
    /// Whether it holds next to nothing, and will not hold that for long.
    pub(crate) modest: bool,
    /// Whether it can be made to give that up again.
    pub(crate) reclaimable: bool,
    /// Whether it waits, and others are to give way however little each of them holds.
    pub(crate) urgent: bool,
}

impl Ledger {
    /// All but what is kept for the modest.
    fn soft(&self) -> usize {
        self.hard - self.hard / 8
    }

    fn add(&self, octets: usize) {
        let used = self.used.fetch_add(octets, Ordering::Relaxed) + octets;
        self.peak.fetch_max(used, Ordering::Relaxed);
    }

    fn subtract(&self, octets: usize) {
        self.used.fetch_sub(octets, Ordering::Relaxed);
        if self.hungry.load(Ordering::Relaxed) {
            self.freed.store(true, Ordering::Release);
        }
    }

    /// Makes the worst hoarders give way, until there is some air.
    fn reclaim(&self) {
        let sockets: Vec<_> = lock(&self.sockets).iter().filter_map(Weak::upgrade).collect();
        let (mut hoards, mut left) = (Vec::new(), 0);
        for (socket, holder) in sockets.iter().enumerate() {
            holder.hoarders(&mut |hoard, now, peer| match now {
                true => hoards.push((hoard, socket, peer)),
                false => left = left.max(hoard.weight),
            });
        }
        hoards.sort_unstable_by(|a, b| b.cmp(a));
        let worst = hoards.first().map_or(0, |(hoard, ..)| hoard.weight);
        let target = self.soft() - self.soft() / 8;
        let too_much = || self.used.load(Ordering::Relaxed).saturating_sub(target);
        let mut fruitless = true;
        let mut stubborn = Vec::new();
        for &(Hoard { weight, .. }, socket, peer) in &hoards {
            if weight < worst / WORSE || too_much() == 0 {
                left = left.max(weight);
                break;
            }
            let Some(holder) = sockets.get(socket) else { continue };
            let rest = holder.give_up(peer);
            fruitless = false;
            if rest > 0 {
                stubborn.push((rest, holder, peer));
            }
        }
        // only if all of that was not enough, and no more of them than need be
        let mut leaving = 0;
        for (rest, holder, peer) in stubborn {
            if too_much() <= leaving {
                left = left.max(rest);
                break;
            }
            holder.evict(peer);
            leaving += rest;
        }
        // several that hold parts of messages leave each other nothing, though there is some air
        let wanted = self.wanted.swap(0, Ordering::Relaxed);
        let is_enough = self.used.load(Ordering::Relaxed) <= self.soft().saturating_sub(wanted);
        if fruitless && wanted > 0 && !is_enough {
            let mut alike = hoards.iter().filter(|(hoard, ..)| hoard.octets >= wanted / WORSE);
            if let (Some(&(_, socket, peer)), Some(_)) = (alike.next(), alike.next())
                && let Some(holder) = sockets.get(socket)
            {
                holder.evict(peer);
                fruitless = false;
            }
        }
        self.worst.store(left, Ordering::Relaxed);
        if fruitless {
            self.resting.store(self.age().saturating_add(REST), Ordering::Relaxed);
        }
    }

    fn is_resting(&self) -> bool {
        let until = self.resting.load(Ordering::Relaxed);
        until > 0 && self.age() < until
    }

    /// In milliseconds.
    fn age(&self) -> u64 {
        let age = clock::now().saturating_duration_since(self.made);
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }

    /// Wakes some who wait; those that are refused again go to the end of the queue.
    fn feed(&self) {
        for _ in 0..MEALS {
            let mut waiters = lock(&self.waiters);
            let Some((holder, waiter)) = waiters.pop_front() else {
                self.hungry.store(false, Ordering::Relaxed);
                return;
            };
            drop(waiters);
            // the place of one that is gone goes to the next
            if holder.upgrade().is_some_and(|holder| holder.wake(waiter)) {
                return;
            }
        }
    }
}

/// A socket's part of a budget.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Arc<Ledger>,
    used: AtomicUsize,
}

impl Account {
    pub(crate) fn new(budget: &Budget) -> Arc<Self> {
        Arc::new(Self { ledger: budget.0.clone(), used: AtomicUsize::new(0) })
    }

    /// Makes the socket known to the governor.
    pub(crate) fn enrol(&self, holder: Weak<dyn Holder>) {
        let mut sockets = lock(&self.ledger.sockets);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(holder);
    }

    /// What a socket may keep for later, used by nobody.
    pub(crate) fn for_later(&self) -> usize {
        self.ledger.hard / 32
    }

    /// What may wait for one that keeps up.
    pub(crate) fn for_a_burst(&self) -> usize {
        self.ledger.hard / 64
    }

    /// What of the budget may be held by connections that have not said READY.
    pub(crate) fn for_handshakes(&self) -> usize {
        self.ledger.hard / 8
    }

    /// Whether a peer may have more. If so it is to be [charged](Self::charge) next.
    pub(crate) fn ask(&self, request: Request) -> bool {
        let Request { held, more, modest, reclaimable, urgent } = request;
        let ledger = &*self.ledger;
        let used = ledger.used.load(Ordering::Relaxed);
        let (after, soft) = (used.saturating_add(more), ledger.soft());
        let will_hold = held.saturating_add(more);
        let own = self.used.load(Ordering::Relaxed).saturating_add(more);
        let within = will_hold <= ledger.per_peer.load(Ordering::Relaxed)
            && own <= ledger.per_socket.load(Ordering::Relaxed);
        let granted =
            within && (will_hold <= soft.saturating_sub(used) || modest && after <= ledger.hard);
        if reclaimable {
            ledger.worst.fetch_max(held, Ordering::Relaxed);
        }
        if within && (!granted || after > soft) {
            let worst = ledger.worst.load(Ordering::Relaxed);
            // one that keeps up need not put up with others that have as little but do not
            let enough = if modest || urgent { 1 } else { will_hold.saturating_mul(WORSE) };
            if worst >= enough && !ledger.is_resting() {
                if urgent && !granted && !modest && held > 0 {
                    ledger.wanted.fetch_max(will_hold, Ordering::Relaxed);
                }
                ledger.pressed.store(true, Ordering::Release);
            }
        }
        granted
    }

    /// How much more a peer that holds so much may have; reading from it stops at that.
    pub(crate) fn free_for(&self, held: usize) -> usize {
        let ledger = &*self.ledger;
        let free = ledger.soft().saturating_sub(ledger.used.load(Ordering::Relaxed));
        let socket = ledger.per_socket.load(Ordering::Relaxed);
        free.min(ledger.per_peer.load(Ordering::Relaxed))
            .saturating_sub(held)
            .min(socket.saturating_sub(self.used.load(Ordering::Relaxed)))
    }

    /// The largest amount that anybody could be granted with nothing else held.
    pub(crate) fn most(&self) -> usize {
        let ledger = &*self.ledger;
        let limits =
            [&ledger.per_peer, &ledger.per_socket].map(|limit| limit.load(Ordering::Relaxed));
        limits.into_iter().fold(ledger.soft() / 4, usize::min)
    }

    /// More than anybody can ever have, however much is free.
    pub(crate) fn is_beyond(&self, octets: usize) -> bool {
        let ledger = &*self.ledger;
        let limits =
            [&ledger.per_peer, &ledger.per_socket].map(|limit| limit.load(Ordering::Relaxed));
        limits.into_iter().fold(ledger.soft() / 2, usize::min) < octets
    }

    /// Charges `to` where `from` was charged before.
    pub(crate) fn charge(&self, from: usize, to: usize) {
        if to > from {
            self.used.fetch_add(to - from, Ordering::Relaxed);
            self.ledger.add(to - from);
        } else if from > to {
            self.used.fetch_sub(from - to, Ordering::Relaxed);
            self.ledger.subtract(from - to);
        }
    }

    pub(crate) fn count(&self, decision: Decision, times: u64) {
        if let Some(count) = self.ledger.counts.get(decision as usize) {
            count.fetch_add(times, Ordering::Relaxed);
        }
    }

    /// Puts somebody into the queue of those who wait for memory. It must ask once more before it
    /// sleeps.
    pub(crate) fn wait(&self, holder: Weak<dyn Holder>, waiter: Waiter) {
        lock(&self.ledger.waiters).push_back((holder, waiter));
        self.ledger.hungry.store(true, Ordering::Relaxed);
    }

    /// One that had to wait got what it wanted: there may be something for the next as well.
    pub(crate) fn pass_on(&self) {
        if self.ledger.hungry.load(Ordering::Relaxed) {
            self.ledger.freed.store(true, Ordering::Release);
        }
    }

    /// Does what was found to be due; no lock of a socket's may be held.
    pub(crate) fn act(&self) {
        let ledger = &*self.ledger;
        if ledger.pressed.load(Ordering::Relaxed) && ledger.pressed.swap(false, Ordering::AcqRel) {
            ledger.reclaim();
        }
        if ledger.freed.load(Ordering::Relaxed) && ledger.freed.swap(false, Ordering::AcqRel) {
            ledger.feed();
        }
    }

    /// The same octets, charged once however many hold on to them, until the last lets go.
    pub(crate) fn share(self: &Arc<Self>, octets: Bytes) -> Bytes {
        let cost = octets.len() + SHARED;
        self.charge(0, cost);
        Bytes::from_owner(Shared { octets, cost, account: self.clone() })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // its peers are gone with the socket, charged or not
        self.ledger.subtract(*self.used.get_mut());
    }
}

/// Octets that several queues hold.
struct Shared {
    octets: Bytes,
    cost: usize,
    account: Arc<Account>,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.octets
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.account.charge(self.cost, 0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many times as much as somebody who is refused is hoarding.
const WORSE: usize = 4;

/// How long to wait before hoarders are looked for again when there were none, in milliseconds.
const REST: u64 = 50;

/// Places of waiters who are gone that are passed over at a time.
const MEALS: usize = 64;

/// What shared octets cost beside themselves.
const SHARED: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn request(held: usize, more: usize) -> Request {
        Request { held, more, modest: false, reclaimable: true, urgent: false }
    }

    #[test]
    fn each_gets_as_much_as_it_leaves() {
        // 48 MiB can be charged, 42 of them without need
        let account = Account::new(&Budget::process(64 * MIB));
        let mut held = [0; 4];
        for held in &mut held {
            while account.ask(request(*held, 1000)) {
                account.charge(*held, *held + 1000);
                *held += 1000;
            }
        }
        let [a, b, c, d] = held.map(|held| held / MIB);
        assert_eq!((a, b, c, d), (20, 10, 5, 2));
        assert!(!account.ask(request(0, 3 * MIB)));
        assert!(account.ask(Request { modest: true, ..request(0, 3 * MIB) }), "of the last eighth");
        assert!(!account.ask(Request { modest: true, ..request(0, 10 * MIB) }));
    }

    #[test]
    fn limits_of_a_peer_and_of_a_socket_are_kept() {
        let budget = Budget::process(64 * MIB).per_peer(1000).per_socket(2500);
        let account = Account::new(&budget);
        assert!(account.ask(request(0, 1000)) && !account.ask(request(0, 1001)));
        assert!(!account.ask(Request { modest: true, ..request(500, 501) }));
        assert_eq!(account.free_for(400), 600);
        account.charge(0, 2000);
        assert!(account.ask(request(0, 500)) && !account.ask(request(0, 501)));
        assert_eq!(account.free_for(400), 500);
        assert!(Account::new(&budget).ask(request(0, 1000)), "another socket");
    }

    #[test]
    fn shared_octets_are_charged_until_the_last_lets_go() {
        let budget = Budget::process(MIB);
        let account = Account::new(&budget);
        let shared = account.share(Bytes::from(vec![7; 1000]));
        let slice = shared.slice(500..);
        drop(shared);
        assert_eq!(budget.usage().used, 1000 + SHARED);
        assert!(slice.iter().all(|octet| *octet == 7));
        drop(slice);
        assert_eq!(budget.usage().used, 0);
        assert_eq!(budget.usage().peak, 1000 + SHARED);
    }

    #[test]
    fn what_a_socket_leaves_behind_is_given_back() {
        let budget = Budget::process(MIB);
        let account = Account::new(&budget);
        account.charge(0, 5000);
        account.charge(5000, 3000);
        assert_eq!(budget.usage().used, 3000);
        drop(account);
        assert_eq!(budget.usage().used, 0);
    }
}
