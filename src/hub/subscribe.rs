//! Subscriptions: what this side asks publishers for, and what subscribers ask of this side
//! (RFC 29).

use std::task::{Context, Poll};

use bytes::Bytes;

use super::{After, Hub, PeerId, State, Waiting};
use crate::command::{self, Subscription};
use crate::error::{Error, ProtocolError};
use crate::framing::{Framing, put_any_header};
use crate::greeting::Version;
use crate::hub::Refused;
use crate::inbox::Chunk;
use crate::options::XPubVerbose;
use crate::socket_type::SocketType;
use crate::subscription::OVERHEAD;

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

    /// A peer wants to know about a topic, in the publisher's application too. `false`: it has not asked
    /// what there is for so long that there are too many.
    fn note_news(&mut self, topic: &[u8], limit: usize) -> bool {
        let Some(news) = self.news.as_mut().filter(|news| !news.contains(topic)) else {
            return true;
        };
        let cost = self.news_cost + topic.len() + OVERHEAD;
        if cost > limit {
            return false;
        }
        self.news_cost = cost;
        news.insert(Bytes::copy_from_slice(topic))
    }

    /// What a peer was sent is lost: what it is subscribed to is news once more.
    pub(super) fn renew_news(&mut self, index: u32, limit: usize) {
        if self.news.is_some() {
            let mut topics = Vec::new();
            self.subscriptions.for_each(index, |topic| topics.push(topic.to_vec()));
            for topic in topics {
                self.note_news(&topic, limit);
            }
        }
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
        let news = std::mem::take(state.news.get_or_insert_default());
        state.news_cost = 0;
        if !news.is_empty() {
            return Poll::Ready(Ok(news.into_iter().collect()));
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
        let State { subscriptions, requests, .. } = state;
        let set = if manual { requests } else { subscriptions };
        let verbose = self.options.xpub_verbose;
        let (notify, first_octet, topic) = match what {
            Subscription::Subscribe(topic) => {
                let limit = self.options.max_subscription_bytes;
                if set.bytes(index).saturating_add(topic.len() + OVERHEAD) > limit {
                    return Err(ProtocolError::TooManySubscriptions { limit });
                }
                // and once more where it is news
                let more = (topic.len() + OVERHEAD) * (1 + usize::from(state.news.is_some()));
                if !state.may_cost(index, more, after) {
                    return Ok(());
                }
                if !state.note_news(topic, limit) {
                    return Err(ProtocolError::TooManySubscriptions { limit });
                }
                let State { subscriptions, requests, .. } = state;
                let set = if manual { requests } else { subscriptions };
                let first = set.subscribe(index, topic).first;
                (first || manual || verbose != XPubVerbose::Unique, 1, topic)
            }
            Subscription::Cancel(topic) => {
                let cancelled = set.cancel(index, topic);
                // as in libzmq a cancellation of what was not subscribed to is told as well
                let told = !cancelled.had || cancelled.last;
                (told || manual || verbose == XPubVerbose::All, 0, topic)
            }
        };
        state.weigh_subscriptions(index);
        if notify && self.kind == SocketType::XPub {
            let frame = [&[first_octet], topic].concat();
            state.take_in(index, Chunk::single(&frame), false, after);
        }
        if matches!(what, Subscription::Cancel(_)) {
            // a publisher that waits for this peer need not any more
            after.wake_all(&mut state.senders);
        }
        after.wake_all(&mut state.watchers);
        Ok(())
    }

    /// A subscriber is gone: so are its subscriptions, and XPUB hears of those that nobody else has.
    pub(super) fn forget_subscriptions(&self, state: &mut State, index: u32, after: &mut After) {
        if !matches!(self.kind, SocketType::Pub | SocketType::XPub) {
            return;
        }
        let manual = self.options.xpub_manual && self.kind == SocketType::XPub;
        let all = self.options.xpub_verbose == XPubVerbose::All;
        let State { subscriptions, requests, .. } = state;
        let mut told = Vec::new();
        let mut tell = |topic: &[u8], last: bool| {
            if self.kind == SocketType::XPub && (last || all || manual) {
                told.push([&[0], topic].concat());
            }
        };
        if manual {
            subscriptions.remove_peer(index, |_, _| {});
            requests.remove_peer(index, &mut tell);
        } else {
            subscriptions.remove_peer(index, &mut tell);
        }
        state.weigh_subscriptions(index);
        // in octet order, as libzmq walks its tree
        told.sort();
        for frame in told {
            state.take_in(index, Chunk::single(&frame), false, after);
        }
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

/// Octets of subscriptions that wait to be sent to a publisher, from which on they are asked for.
const QUEUED: usize = 4 * 1024;
