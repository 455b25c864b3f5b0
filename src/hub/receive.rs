//! How the application takes what has come in: whole runs of messages, peer by peer in turn.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::{After, Hub, PeerId, State, at_mut};
use crate::error::RecvError;
use crate::inbox::{Chunk, Kind};
use crate::options::XPubVerbose;
use crate::peer::ConnectionId;
use crate::socket_type::SocketType;
use crate::stats::DropReason;
use crate::subscription::Due;

/// A run of messages in the receiver's hands, charged to its peer until it is handed back.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) chunk: Chunk,
    peer: Option<PeerId>,
    pub(crate) connection: Option<ConnectionId>,
    messages: usize,
    bytes: usize,
}

impl Taken {
    pub(crate) const fn nothing() -> Self {
        Self { chunk: Chunk::empty(), peer: None, connection: None, messages: 0, bytes: 0 }
    }
}

/// What of SUB's filter the receiver checks for itself, as it hands messages out.
#[derive(Debug, Default)]
pub(crate) enum Sieve {
    /// Nothing: everything is wanted, or what is not was sorted out when the run was taken.
    #[default]
    Open,
    /// Whether the topic begins with one of a few prefixes, which is cheaper than to look for runs
    /// of wanted messages beforehand.
    Prefixes(Vec<Box<[u8]>>),
}

impl Sieve {
    /// Prefixes that are looked at one after the other.
    const FEW: usize = 8;

    #[inline]
    pub(crate) fn passes(&self, topic: &[u8]) -> bool {
        match self {
            Self::Open => true,
            Self::Prefixes(prefixes) => prefixes.iter().any(|prefix| topic.starts_with(prefix)),
        }
    }
}

impl State {
    /// Puts received messages, or what stands for them, into a peer's inbox.
    pub(super) fn take_in(&mut self, index: u32, chunk: Chunk, conflate: bool, after: &mut After) {
        let closed = self.closing.is_some();
        let Some(peer) = self.at(index) else { return };
        peer.inc.received += chunk.messages as u64;
        if closed {
            self.drop_incoming(index, DropReason::Closed, chunk.messages);
            return;
        }
        peer.inbox.push(chunk, Kind::Messages);
        if conflate {
            let dropped = peer.inbox.conflate();
            peer.inc.dropped.add(DropReason::Conflated, dropped as u64);
        }
        self.enlist(index, after);
    }

    /// XPUB: the same with what tells of a peer's subscription or cancellation.
    pub(super) fn notify(
        &mut self,
        index: u32,
        on: bool,
        topic: &[u8],
        kind: Kind,
        after: &mut After,
    ) {
        let closed = self.closing.is_some();
        let Some(peer) = self.at(index) else { return };
        peer.inc.received += 1;
        if closed {
            self.drop_incoming(index, DropReason::Closed, 1);
            return;
        }
        peer.inbox.push(Chunk::notice(on, topic), kind);
        self.enlist(index, after);
    }

    /// XPUB: what is due stands in the inbox of a peer that has the topic, or of this one.
    pub(super) fn owe(&mut self, index: u32, due: Due, after: &mut After) {
        let Due { node, holder, cost } = due;
        let index = holder.unwrap_or(index);
        if self.closing.is_none()
            && let Some(peer) = self.at(index)
        {
            peer.inbox.push(Chunk::empty(), Kind::Due { node, on: holder.is_some(), cost });
            self.enlist(index, after);
        }
    }

    /// There is one chunk more in a peer's inbox.
    fn enlist(&mut self, index: u32, after: &mut After) {
        let Some(peer) = self.at(index) else { return };
        let listed = std::mem::replace(&mut peer.listed, true);
        self.weigh(index);
        if self.in_order || !listed {
            self.ring.push_back(index);
        }
        after.wake(self.receiver.take());
    }

    /// Messages that were taken are not received after all.
    fn never_received(&mut self, id: PeerId, unread: usize) {
        let counters = match self.peer(id) {
            Some(peer) => &mut peer.inc,
            None => &mut self.gone_in,
        };
        counters.delivered -= unread as u64;
        counters.dropped.add(DropReason::Closed, unread as u64);
    }

    /// Lets a connection task read again, if there is room.
    pub(super) fn unpause(&mut self, index: u32, after: &mut After) {
        let Some(peer) = self.at(index) else { return };
        let room = peer.inbox.room().messages > 0;
        if let Some(link) = &mut peer.link
            && room
            && std::mem::replace(&mut link.paused, false)
        {
            self.nudge(index, after);
        }
    }
}

impl Hub {
    /// The next run of messages, in exchange for the one before, and what is to be sieved out of it;
    /// `changes` is [`filter_changes`](Self::filter_changes) as of the sieve.
    pub(crate) fn poll_take(
        &self,
        done: &mut Taken,
        sieve: &mut Sieve,
        changes: &mut u64,
        cx: Option<&mut Context<'_>>,
    ) -> Poll<Result<Taken, RecvError>> {
        let mut after = After::default();
        let mut state = self.lock();
        self.hand_back(&mut state, done, &mut after);
        let taken = match state.closing {
            Some(_) => Err(RecvError::Closed),
            None => {
                let sorted = self.set_sieve(&state, sieve, changes);
                self.take(&mut state, sorted, &mut after)
            }
        };
        let poll = match (taken, cx) {
            (Err(RecvError::Empty), Some(cx)) => {
                state.receiver = Some(cx.waker().clone());
                Poll::Pending
            }
            (taken, _) => Poll::Ready(taken),
        };
        drop(state);
        self.finish(after);
        poll
    }

    /// Brings the sieve up to date; whether runs are to be sorted out instead.
    fn set_sieve(&self, state: &State, sieve: &mut Sieve, changes: &mut u64) -> bool {
        if self.kind != SocketType::Sub {
            return false;
        }
        let all = state.filter.has_all();
        let sorted = self.options.invert_matching || !all && state.filter.len() > Sieve::FEW;
        if std::mem::replace(changes, self.filter_changes()) != *changes {
            *sieve = Sieve::Open;
            if !sorted && !all {
                let mut prefixes = Vec::new();
                state.filter.for_each(|prefix| prefixes.push(prefix.into()));
                *sieve = Sieve::Prefixes(prefixes);
            }
        }
        sorted
    }

    /// `sorted`: only messages that are wanted.
    fn take(&self, state: &mut State, sorted: bool, after: &mut After) -> Result<Taken, RecvError> {
        let invert = self.options.invert_matching;
        while let Some(index) = state.ring.pop_front() {
            let told = !state.in_order || self.tell(state, index, after);
            let State { peers, filter, .. } = state;
            let Some(peer) = at_mut(peers, index) else { continue };
            let mut taken = Taken::nothing();
            while told
                && taken.messages == 0
                && let Some(chunk) = peer.inbox.front()
            {
                let before = (chunk.messages, chunk.bytes.len());
                if !sorted {
                    taken.chunk = peer.inbox.pop().unwrap_or(Chunk::empty());
                    (taken.messages, taken.bytes) = before;
                    continue;
                }
                let (octets, messages, dropped) =
                    chunk.first_run(|topic| filter.matches(topic) != invert);
                let skipped = before.1 - chunk.bytes.len();
                taken.chunk = chunk.split(octets, messages);
                (taken.messages, taken.bytes) = (messages, octets);
                if chunk.messages == 0 {
                    // commands that stood behind the last message
                    let rest = peer.inbox.pop().map_or(0, |rest| rest.bytes.len());
                    peer.inbox.release(0, rest);
                }
                peer.inbox.release(dropped, skipped);
                peer.inc.dropped.add(DropReason::Filtered, dropped as u64);
            }
            peer.inc.delivered += taken.messages as u64;
            peer.listed = !peer.inbox.is_empty();
            let (listed, info) = (peer.listed, peer.info.clone());
            if listed && !state.in_order {
                state.ring.push_back(index);
            }
            let id = state.id(index);
            if taken.messages > 0 {
                taken.peer = Some(id);
                taken.connection = info.as_ref().map(|info| info.id);
                state.in_hand = Some(id);
                state.last_peer = Some((id, info));
                self.in_hand.store(taken.messages, Ordering::Relaxed);
                state.retire(index);
                return Ok(taken);
            }
            // all of it was filtered
            state.weigh(index);
            state.unpause(index, after);
            state.retire(index);
        }
        state.behind = false;
        Err(RecvError::Empty)
    }

    /// XPUB: makes of what stands in front of an inbox what the application is told, and notes that
    /// it is. `false`: that is nothing; it is dropped.
    fn tell(&self, state: &mut State, index: u32, after: &mut After) -> bool {
        let shared = self.tells_of_topics();
        let State { peers, subscriptions, left, behind, .. } = state;
        let Some(peer) = at_mut(peers, index) else { return false };
        let Some((kind, chunk)) = peer.inbox.next() else { return false };
        if peer.gone.is_some() && kind.is_notice() {
            *left = left.saturating_sub(chunk.cost());
        }
        let (told, due) = match kind {
            Kind::Due { node, on, .. } => {
                let (topic, due) = subscriptions.pay(node, on);
                match &topic {
                    Some(topic) => {
                        peer.inbox.redeem(Chunk::notice(on, topic));
                        peer.inc.received += 1;
                    }
                    None => peer.inbox.skip(),
                }
                (topic.is_some(), due)
            }
            _ if shared && kind.is_notice() => {
                let (on, topic) = chunk.subscription();
                // it knows if what came before was taken back, or told when that was
                let told = (on || kind == Kind::Closing) && subscriptions.tell(topic, on)
                    || kind == Kind::Repeat
                    || on && self.options.xpub_verbose != XPubVerbose::Unique;
                let due = if *behind { subscriptions.owed(topic) } else { None };
                if !told {
                    peer.inbox.skip();
                    peer.inc.dropped.add(DropReason::PeerGone, 1);
                }
                (told, due)
            }
            _ => return true,
        };
        if let Some(due) = due {
            state.owe(index, due, after);
        }
        told
    }

    fn hand_back(&self, state: &mut State, done: &mut Taken, after: &mut After) {
        let Taken { peer, messages, bytes, chunk, .. } = std::mem::replace(done, Taken::nothing());
        let Some(id) = peer else { return };
        // unless it was counted when the socket was closed
        let counted = state.in_hand.is_none();
        let unread = if counted { 0 } else { chunk.messages };
        state.in_hand = None;
        self.in_hand.store(0, Ordering::Relaxed);
        if let Some(peer) = state.peer(id) {
            peer.inbox.release(messages, bytes);
            state.weigh(id.index);
            state.unpause(id.index, after);
        }
        state.never_received(id, unread);
    }

    /// The socket is closed by the handle that receives, which therefore does not do so now: what it
    /// has in its hands dies at once. Otherwise that happens when it looks again.
    pub(crate) fn discard_in_hand(&self) {
        let mut state = self.lock();
        if let Some(id) = state.in_hand.take() {
            let unread = self.in_hand.swap(0, Ordering::Relaxed);
            state.never_received(id, unread);
        }
    }

    /// The receiver is no more: what it had in its hands dies.
    pub(crate) fn discard(&self, done: &mut Taken) {
        let mut after = After::default();
        self.hand_back(&mut self.lock(), done, &mut after);
        self.finish(after);
    }

    /// Tells how many of the messages taken are still in the receiver's hands.
    #[inline]
    pub(crate) fn note_in_hand(&self, left: usize) {
        self.in_hand.store(left, Ordering::Relaxed);
    }

    /// Changes whenever this side's subscriptions do.
    #[inline]
    pub(crate) fn filter_changes(&self) -> u64 {
        self.filter_changes.load(Ordering::Acquire)
    }

    /// Whether SUB still wants a message that was taken before its subscriptions changed; if not it
    /// counts as filtered.
    pub(crate) fn still_wanted(&self, taken: &Taken, topic: &[u8]) -> bool {
        let mut state = self.lock();
        if self.kind != SocketType::Sub
            || state.filter.matches(topic) != self.options.invert_matching
        {
            return true;
        }
        self.count_filtered_in(&mut state, taken);
        false
    }

    /// A message that was taken was not wanted.
    pub(crate) fn count_filtered(&self, taken: &Taken) {
        self.count_filtered_in(&mut self.lock(), taken);
    }

    fn count_filtered_in(&self, state: &mut State, taken: &Taken) {
        let counters = match taken.peer.and_then(|id| state.peer(id)) {
            Some(peer) => &mut peer.inc,
            None => &mut state.gone_in,
        };
        counters.delivered -= 1;
        counters.dropped.add(DropReason::Filtered, 1);
    }
}
