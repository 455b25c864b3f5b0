//! Subscriptions: what this side asks publishers for, and what subscribers ask of this side
//! (RFC 29).

use std::collections::{BTreeMap, BTreeSet};
use std::task::{Context, Poll};

use bytes::Bytes;

use super::{After, Hub, PeerId, State, Waiting, at};
use crate::command::{self, Subscription};
use crate::error::{Error, ProtocolError};
use crate::framing::{Framing, put_any_header};
use crate::greeting::Version;
use crate::hub::Refused;
use crate::inbox::{Kind, Withdrawn};
use crate::options::XPubVerbose;
use crate::socket_type::SocketType;
use crate::stats::DropReason;
use crate::subscription::{Cancelled, OVERHEAD, Subscribed};

/// How a subscription goes out to a 3.1 peer; older ones get messages in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Command,
    Message,
}

fn put_subscription(out: &mut Vec<u8>, version: Version, form: Form, what: Subscription<'_>) {
    if version >= Version::V3_1 && form == Form::Command {
        match what {
            Subscription::Subscribe(topic) => command::put_subscribe(out, topic),
            Subscription::Cancel(topic) => command::put_cancel(out, topic),
        }
        return;
    }
    let framing = if version == Version::V1_0 { Framing::Old } else { Framing::New };
    let (first, topic) = match what {
        Subscription::Subscribe(topic) => (1, topic),
        Subscription::Cancel(topic) => (0, topic),
    };
    put_any_header(framing, out, topic.len() + 1, false);
    out.push(first);
    out.extend_from_slice(topic);
}

impl State {
    /// Tells a new connection all that this side is subscribed to.
    pub(super) fn send_whole_filter(&mut self, index: u32) {
        let Self { filter, peers, .. } = self;
        let slot = peers.get_mut(index as usize);
        let Some(peer) = slot.and_then(|slot| slot.peer.as_deref_mut()) else { return };
        let Some(version) = peer.link.as_ref().map(|link| link.version) else { return };
        let out = peer.outbox.control();
        filter.for_each(|topic| {
            put_subscription(out, version, Form::Command, Subscription::Subscribe(topic));
        });
    }

    /// XPUB: whether a peer may not leave behind what the application has not heard of it.
    fn is_behind(&self, index: u32) -> bool {
        let more = at(&self.peers, index).map_or(0, |peer| peer.inbox.notices_cost());
        self.behind || self.left.saturating_add(more) > LEFT
    }

    /// XPUB: takes out of a peer's inbox what tells of subscriptions.
    fn withdraw(&mut self, index: u32, after: &mut After) -> Withdrawn {
        let Some(peer) = self.at(index) else { return Withdrawn::default() };
        let withdrawn = peer.inbox.withdraw();
        peer.inc.dropped.add(DropReason::PeerGone, withdrawn.notices.len() as u64);
        if withdrawn.kept.contains(&false) {
            let mut kept = withdrawn.kept.iter();
            self.ring.retain(|at| *at != index || kept.next() == Some(&true));
            self.weigh(index);
            self.unpause(index, after);
        }
        withdrawn
    }

    /// Tells every connection of a change.
    fn send_change(&mut self, form: Form, what: Subscription<'_>, after: &mut After) {
        for index in self.indices() {
            let Some(peer) = self.at(index).filter(|peer| peer.closing.is_none()) else { continue };
            let Some(link) = &mut peer.link else { continue };
            link.changes += 1;
            let version = link.version;
            if peer.outbox.control().len() >= QUEUED && !self.may_cost(index, QUEUED, after) {
                continue;
            }
            let Some(peer) = self.at(index) else { continue };
            put_subscription(peer.outbox.control(), version, form, what);
            self.weigh(index);
            self.nudge(index, after);
        }
    }
}

impl Hub {
    /// SUB, XSUB: one more wish for what begins with `topic`. Tells whether it is the first.
    pub(crate) fn subscribe(&self, topic: &[u8], form: Form) -> Result<bool, Refused> {
        self.change_filter(|state, after| {
            let first = state.filter.add(topic);
            // a repeated one goes out too, for publishers that want to hear of each
            state.send_change(form, Subscription::Subscribe(topic), after);
            first
        })
    }

    /// SUB, XSUB: one wish less. Tells whether it was the last.
    pub(crate) fn unsubscribe(&self, topic: &[u8], form: Form) -> Result<bool, Refused> {
        self.change_filter(|state, after| {
            let last = state.filter.remove(topic) == Some(true);
            if last {
                state.send_change(form, Subscription::Cancel(topic), after);
            }
            last
        })
    }

    fn change_filter(
        &self,
        change: impl FnOnce(&mut State, &mut After) -> bool,
    ) -> Result<bool, Refused> {
        let mut after = After::default();
        let mut state = self.lock();
        if state.closing.is_some() {
            return Err(Refused::Closed);
        }
        let changed = change(&mut state, &mut after);
        self.filter_changes.fetch_add(1, std::sync::atomic::Ordering::Release);
        drop(state);
        self.finish(after);
        Ok(changed)
    }

    /// SUB, XSUB: resolves once every connected endpoint, and every peer that is there, has taken
    /// all subscriptions. A 3.1 peer says so by answering a PING that follows them; an older one
    /// counts when it is connected.
    pub(crate) fn poll_ready(
        &self,
        waiting: &mut Waiting,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let mut after = After::default();
        let mut state = self.lock();
        let mut ready = true;
        for index in state.indices() {
            let Some(peer) = state.at(index) else { continue };
            if peer.gone.is_some() || peer.closing.is_some() {
                continue;
            }
            let Some(link) = &mut peer.link else {
                ready &= !peer.persistent;
                continue;
            };
            if link.version < Version::V3_1 || link.sync_done >= link.changes {
                continue;
            }
            ready = false;
            if link.sync_sent < link.changes {
                link.sync_sent = link.changes;
                let context = (link.changes * 2).to_be_bytes();
                command::put_ping(peer.outbox.control(), self.options.heartbeat_ttl, &context);
                state.nudge(index, &mut after);
            }
        }
        let poll = if state.closing.is_some() {
            Poll::Ready(Err(Error::Closed))
        } else if ready {
            Poll::Ready(Ok(()))
        } else {
            waiting.register(&mut state, cx);
            Poll::Pending
        };
        drop(state);
        self.finish(after);
        poll
    }

    /// A PONG came in; eight octets of context answer a sync PING: twice the changes that the peer
    /// was told of before it, and 1 more in the second round. There are two because libzmq answers a
    /// PING before its socket has what came in the same read.
    pub(crate) fn pong(&self, id: PeerId, context: Option<u64>) {
        let Some(context) = context else { return };
        let (changes, second) = (context / 2, context % 2 == 1);
        let mut after = After::default();
        let mut state = self.lock();
        let Some(peer) = state.peer(id) else { return };
        let Some(link) = peer.link.as_mut().filter(|link| changes <= link.sync_sent) else {
            return;
        };
        if second && changes <= link.sync_again {
            link.sync_done = link.sync_done.max(changes);
            after.wake_all(&mut state.watchers);
        } else if changes > link.sync_again {
            link.sync_again = changes;
            let context = (context + 1).to_be_bytes();
            command::put_ping(peer.outbox.control(), self.options.heartbeat_ttl, &context);
            state.nudge(id.index, &mut after);
        }
        drop(state);
        self.finish(after);
    }

    /// PUB, XPUB: resolves once `count` peers get messages that begin with `topic`.
    pub(crate) fn poll_subscribers(
        &self,
        topic: &[u8],
        count: usize,
        waiting: &mut Waiting,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let mut state = self.lock();
        if state.closing.is_some() {
            return Poll::Ready(Err(Error::Closed));
        }
        self.match_peers(&mut state, topic);
        let matched = std::mem::take(&mut state.matched);
        let linked = |index: &&u32| {
            let slot = state.peers.get(**index as usize);
            slot.is_some_and(|slot| slot.peer.as_ref().is_some_and(|peer| peer.link.is_some()))
        };
        let subscribers = matched.iter().filter(linked).count();
        state.matched = matched;
        if subscribers >= count {
            return Poll::Ready(Ok(()));
        }
        waiting.register(&mut state, cx);
        Poll::Pending
    }

    /// PUB: resolves with the topics that peers have subscribed to since the last time.
    pub(crate) fn poll_new_subscriptions(
        &self,
        waiting: &mut Waiting,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Vec<Bytes>, Error>> {
        let mut state = self.lock();
        if state.closing.is_some() {
            return Poll::Ready(Err(Error::Closed));
        }
        let news = state.subscriptions.take_news();
        if !news.is_empty() {
            return Poll::Ready(Ok(news));
        }
        waiting.register(&mut state, cx);
        Poll::Pending
    }

    /// PUB, XPUB: a subscriber's SUBSCRIBE or CANCEL command.
    pub(crate) fn peer_subscription(
        &self,
        id: PeerId,
        what: Subscription<'_>,
    ) -> Result<(), ProtocolError> {
        if !matches!(self.kind, SocketType::Pub | SocketType::XPub) {
            return Ok(());
        }
        let mut after = After::default();
        let mut state = self.lock();
        let taken = match state.peer(id) {
            Some(_) => self.take_change(&mut state, id.index, what, &mut after),
            None => Ok(()),
        };
        drop(state);
        self.finish(after);
        taken
    }

    /// The same in the form of a message's frame; other frames are passed over.
    pub(super) fn take_subscription(
        &self,
        state: &mut State,
        index: u32,
        frame: &[u8],
        after: &mut After,
    ) -> Result<(), ProtocolError> {
        match Subscription::parse(frame) {
            Some(what) => self.take_change(state, index, what, after),
            None => Ok(()),
        }
    }

    pub(super) fn take_change(
        &self,
        state: &mut State,
        index: u32,
        what: Subscription<'_>,
        after: &mut After,
    ) -> Result<(), ProtocolError> {
        let manual = self.options.xpub_manual && self.kind == SocketType::XPub;
        let shared = self.tells_of_topics();
        let State { subscriptions, requests, .. } = state;
        let set = if manual { requests } else { subscriptions };
        let verbose = self.options.xpub_verbose;
        let (notify, on, topic, changed) = match what {
            Subscription::Subscribe(topic) => {
                let limit = self.options.max_subscription_bytes;
                if set.bytes(index).saturating_add(topic.len() + OVERHEAD) > limit {
                    return Err(ProtocolError::TooManySubscriptions { limit });
                }
                if !state.may_cost(index, topic.len() + OVERHEAD, after) {
                    return Ok(());
                }
                let State { subscriptions, requests, .. } = state;
                let set = if manual { requests } else { subscriptions };
                let Subscribed { new_for_peer, first } = set.subscribe(index, topic);
                let told = first || manual || verbose != XPubVerbose::Unique;
                (told, true, topic, if shared { first } else { new_for_peer })
            }
            Subscription::Cancel(topic) => {
                let Cancelled { had, last } = set.cancel(index, topic);
                // what was had cost more than the notice of its end does
                let cost = topic.len() + OVERHEAD;
                if !had && self.kind == SocketType::XPub && !state.may_cost(index, cost, after) {
                    return Ok(());
                }
                // as in libzmq a cancellation of what was not subscribed to is told as well
                let told = !had || last || manual || verbose == XPubVerbose::All;
                (told, false, topic, if shared { last } else { had })
            }
        };
        state.weigh_subscriptions(index);
        if notify && self.kind == SocketType::XPub {
            let kind = match (changed, on) {
                (true, true) => Kind::Opening,
                (true, false) => Kind::Closing,
                (false, _) => Kind::Repeat,
            };
            state.notify(index, on, topic, kind, after);
        }
        if matches!(what, Subscription::Cancel(_)) {
            // a publisher that waits for this peer need not any more
            after.wake_all(&mut state.senders);
        }
        after.wake_all(&mut state.watchers);
        Ok(())
    }

    /// XPUB: whether its application is told what topics somebody has, not who has them.
    pub(super) fn tells_of_topics(&self) -> bool {
        let Self { kind, options, .. } = self;
        let each = options.xpub_manual || options.xpub_verbose == XPubVerbose::All;
        *kind == SocketType::XPub && !each
    }

    /// A subscriber is gone: so are its subscriptions.
    pub(super) fn forget_subscriptions(&self, state: &mut State, index: u32, after: &mut After) {
        match self.kind {
            SocketType::Pub => state.subscriptions.remove_peer(index, |_, _| {}),
            SocketType::XPub => {
                let ended = if state.is_behind(index) {
                    state.behind = true;
                    self.take_back(state, index, after)
                } else {
                    self.end_all(state, index, |last| last || !self.tells_of_topics())
                };
                // in octet order, as libzmq walks its tree
                for topic in ended {
                    state.notify(index, false, &topic, Kind::Closing, after);
                }
                let peer = state.at(index).filter(|peer| peer.gone.is_some());
                state.left += peer.map_or(0, |peer| peer.inbox.notices_cost());
            }
            _ => return,
        }
        state.weigh_subscriptions(index);
    }

    /// XPUB: removes a peer's subscriptions. Returns those topics of which `told` says so, by whether
    /// nobody else has them.
    fn end_all(
        &self,
        state: &mut State,
        index: u32,
        told: impl Fn(bool) -> bool,
    ) -> BTreeSet<Bytes> {
        let mut ended = BTreeSet::new();
        let mut gone = |topic: &[u8], last| {
            if told(last) {
                ended.insert(Bytes::copy_from_slice(topic));
            }
        };
        let State { subscriptions, requests, .. } = state;
        if self.options.xpub_manual {
            subscriptions.remove_peer(index, |_, _| {});
            requests.remove_peer(index, &mut gone);
        } else {
            subscriptions.remove_peer(index, &mut gone);
        }
        ended
    }

    /// XPUB whose application is behind: what it has not heard of a peer that leaves it need not hear,
    /// nor of the end of that. So what is kept for it is no more than what it has heard, and what comes
    /// from those who are there. Returns the topics whose end it is told of because the peer had them;
    /// where it is told what somebody has, that is due.
    fn take_back(&self, state: &mut State, index: u32, after: &mut After) -> BTreeSet<Bytes> {
        let Withdrawn { notices, dues, .. } = state.withdraw(index, after);
        if self.tells_of_topics() {
            let mut changed = self.end_all(state, index, |last| last);
            changed.extend(notices.into_iter().map(|(_, topic)| topic));
            let State { subscriptions, .. } = state;
            let mut due: Vec<_> =
                dues.into_iter().filter_map(|node| subscriptions.renew_due(node)).collect();
            due.extend(changed.iter().filter_map(|topic| subscriptions.owed(topic)));
            for due in due {
                state.owe(index, due, after);
            }
            return BTreeSet::new();
        }
        // what it has heard of each topic, before what it has not
        let mut heard = BTreeMap::new();
        for (kind, topic) in notices.into_iter().filter(|(kind, _)| *kind != Kind::Repeat) {
            heard.entry(topic).or_insert(kind == Kind::Closing);
        }
        let mut ended = self.end_all(state, index, |_| true);
        ended.retain(|topic| !heard.contains_key(topic));
        ended.extend(heard.into_iter().filter_map(|(topic, heard)| heard.then_some(topic)));
        ended
    }

    /// XPUB in manual mode: subscribes the peer whose message was received last.
    pub(crate) fn subscribe_last_peer(&self, topic: &[u8], on: bool) -> Result<bool, Error> {
        let mut after = After::default();
        let mut state = self.lock();
        let Some((id, info)) = state.last_peer.clone() else {
            return Err(Error::Option {
                option: "xpub_manual",
                reason: "no subscription was received yet".to_owned(),
            });
        };
        let changed = match (state.peer(id).is_some_and(|peer| peer.gone.is_none()), info) {
            (true, _) if on => Ok(state.subscriptions.subscribe(id.index, topic).new_for_peer),
            (true, _) => Ok(state.subscriptions.cancel(id.index, topic).had),
            (false, Some(info)) => Err(Error::UnknownPeer { peer: info.id }),
            (false, None) => Ok(false),
        };
        after.wake_all(&mut state.senders);
        after.wake_all(&mut state.watchers);
        drop(state);
        self.finish(after);
        changed
    }
}

/// What the notices may cost that peers leave behind before they are taken back.
const LEFT: usize = 256 * 1024;

/// Octets of subscriptions that wait to be sent to a publisher, from which on they are asked for.
const QUEUED: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::framing::put_header;
    use crate::hub::{Leaving, Sieve, Taken};
    use crate::inbox::Chunk;
    use crate::options::SocketOptions;

    #[derive(Debug, Clone)]
    enum Op {
        Subscribe(usize, &'static str),
        Cancel(usize, &'static str),
        /// A message that is no subscription.
        Send(usize),
        Leave(usize),
        Receive,
    }

    fn op() -> impl Strategy<Value = Op> {
        let topic = || prop::sample::select(vec!["", "a", "ab", "b"]);
        prop_oneof![
            6 => (0..3usize, topic()).prop_map(|(peer, topic)| Op::Subscribe(peer, topic)),
            4 => (0..3usize, topic()).prop_map(|(peer, topic)| Op::Cancel(peer, topic)),
            1 => (0..3usize).prop_map(Op::Send),
            2 => (0..3usize).prop_map(Op::Leave),
            4 => Just(Op::Receive),
        ]
    }

    /// A peer by index and generation.
    type Name = Option<(u32, u32)>;

    /// A hub with subscribers that come and go, and what its application believes of them.
    struct World {
        hub: Arc<Hub>,
        peers: Vec<(PeerId, BTreeSet<&'static str>)>,
        /// By peer only where the application is told who has a topic.
        believed: BTreeSet<(Name, Vec<u8>)>,
        /// What it is told unless it is behind.
        expected: VecDeque<Vec<u8>>,
        behind: bool,
        verbose: bool,
        /// Subscriptions that it was told of.
        told: usize,
        done: Taken,
        sent: usize,
        received: usize,
    }

    impl World {
        fn new(options: SocketOptions, behind: bool) -> Self {
            let verbose = options.xpub_verbose != XPubVerbose::Unique || options.xpub_manual;
            let hub = Hub::new(SocketType::XPub, Arc::new(options));
            hub.lock().left = if behind { 1 << 40 } else { 0 };
            let peers = (0..3).map(|_| (join(&hub), BTreeSet::new())).collect();
            let (believed, done) = (BTreeSet::new(), Taken::nothing());
            Self {
                hub,
                peers,
                believed,
                expected: VecDeque::new(),
                behind,
                verbose,
                told: 0,
                done,
                sent: 0,
                received: 0,
            }
        }

        fn step(&mut self, op: &Op) {
            let Self { hub, peers, expected, .. } = self;
            let each = !hub.tells_of_topics();
            let had = |peers: &[(PeerId, BTreeSet<_>)], topic| {
                peers.iter().any(|(_, topics)| topics.contains(topic))
            };
            match *op {
                Op::Subscribe(peer, topic) => {
                    if self.verbose || !had(peers, topic) {
                        expected.push_back([b"\x01", topic.as_bytes()].concat());
                    }
                    let (id, topics) = &mut peers[peer];
                    topics.insert(topic);
                    hub.peer_subscription(*id, Subscription::Subscribe(topic.as_bytes())).unwrap();
                }
                Op::Cancel(peer, topic) => {
                    let (id, topics) = &mut peers[peer];
                    if topics.remove(topic) {
                        let cancel = Subscription::Cancel(topic.as_bytes());
                        hub.peer_subscription(*id, cancel).unwrap();
                        if each || !had(peers, topic) {
                            expected.push_back([b"\0", topic.as_bytes()].concat());
                        }
                    }
                }
                Op::Send(peer) => {
                    let mut bytes = Vec::new();
                    put_header(&mut bytes, 1, false);
                    bytes.push(b'm');
                    let chunk = Chunk { bytes: bytes.into(), messages: 1, framing: Framing::New };
                    hub.deliver(peers[peer].0, chunk).unwrap();
                    expected.push_back(b"m".to_vec());
                    self.sent += 1;
                }
                Op::Leave(peer) => {
                    hub.detach(peers[peer].0, Leaving::Lost);
                    let (_, topics) =
                        std::mem::replace(&mut peers[peer], (join(hub), BTreeSet::new()));
                    let ended = topics.into_iter().filter(|topic| each || !had(peers, topic));
                    expected.extend(ended.map(|topic| [b"\0", topic.as_bytes()].concat()));
                }
                Op::Receive => drop(self.receive()),
            }
            self.check();
        }

        /// Whether there was something.
        fn receive(&mut self) -> bool {
            let (mut sieve, mut changes) = (Sieve::default(), 0);
            let Poll::Ready(taken) =
                self.hub.poll_take(&mut self.done, &mut sieve, &mut changes, None)
            else {
                unreachable!("nobody waits")
            };
            let Ok(taken) = taken else { return false };
            let message = taken.chunk.clone().next_message().unwrap();
            if !self.behind {
                assert_eq!(Some(message.topic()), self.expected.pop_front().as_deref());
            }
            self.done = taken;
            let (id, _) = self.hub.lock().last_peer.clone().unwrap();
            let id = self.name(id);
            let (first, topic) = message.topic().split_first().unwrap();
            match first {
                1 => {
                    let new = self.believed.insert((id, topic.to_vec()));
                    assert!(new || self.verbose, "once more");
                    self.told += 1;
                }
                0 => assert!(self.believed.remove(&(id, topic.to_vec())), "not believed"),
                _ => self.received += 1,
            }
            true
        }

        fn name(&self, id: PeerId) -> Name {
            (!self.hub.tells_of_topics()).then_some((id.index, id.generation))
        }

        fn check(&self) {
            let state = self.hub.lock();
            let mut unread = 0;
            for (index, slot) in state.peers.iter().enumerate() {
                let Some(peer) = &slot.peer else { continue };
                let mut places = state.ring.iter().filter(|at| **at == index as u32);
                let notices = peer.inbox.notices(|_| places.next().expect("a place in the ring"));
                assert_eq!(places.next(), None);
                unread += if peer.gone.is_some() { notices } else { 0 };
            }
            assert!(!self.behind || unread <= self.told, "{unread} notices of peers that are gone");
            drop(state);
            let stats = self.hub.stats().incoming;
            let known = stats.delivered + stats.queued + stats.dropped.total();
            assert_eq!(stats.received, known);
        }

        fn end(mut self) {
            while self.receive() {}
            let all = self.peers.iter().flat_map(|(id, topics)| {
                let id = self.name(*id);
                topics.iter().map(move |topic| (id, topic.as_bytes().to_vec()))
            });
            assert_eq!(self.believed, all.collect());
            for peer in 0..3 {
                self.step(&Op::Leave(peer));
            }
            while self.receive() {}
            assert!(self.believed.is_empty());
            assert_eq!(self.received, self.sent);
            assert!(self.behind || self.expected.is_empty(), "{:?}", self.expected);
            assert!(self.behind || self.hub.lock().left == 0, "all was taken");
            assert!(self.hub.lock().subscriptions.is_empty(), "nothing is left");
        }
    }

    fn join(hub: &Arc<Hub>) -> PeerId {
        hub.add_peer("tcp://127.0.0.1:1".parse().unwrap(), false)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Whatever it hears of, and however late: in the end it knows what is so.
        #[test]
        fn xpub_is_told_what_is_so(
            mode in 0..4,
            behind in any::<bool>(),
            deaf in any::<bool>(),
            mut ops in prop::collection::vec(op(), 0..60),
        ) {
            ops.retain(|op| !deaf || !matches!(op, Op::Receive));
            let options = SocketOptions::new();
            let options = match mode {
                0 => options,
                1 => options.xpub_verbose(XPubVerbose::Subscriptions),
                2 => options.xpub_verbose(XPubVerbose::All),
                _ => options.xpub_manual(true),
            };
            let mut world = World::new(options, behind);
            ops.iter().for_each(|op| world.step(op));
            world.end();
        }
    }
}
