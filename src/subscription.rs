//! Prefix subscriptions (RFC 29, "Subscriptions"): which peers want a message, which topics we want.
//!
//! [`Subscriptions`] is the publisher's side, topic to peers; [`SubscriptionSet`] the subscriber's,
//! topic to how often it was asked for. Both stand on one radix tree in an arena:
//!
//! ```text
//!            (depth 1) ─ no topic of its own, so it has two children or more
//!         'b' │     │ 'c'
//!     "ab" ◄──┘     └──► "ac"   a topic's node owns the whole topic
//!                     'd' │
//!                         └──► "acde"
//! ```
//!
//! An edge is one octet; what else lies between two nodes is not stored but compared with the whole
//! topic of the next node that has one. Splitting and joining edges therefore copies nothing, no
//! short label keeps a long buffer alive, and a topic is at hand in one piece when its peer leaves.
//! Topics come from peers and may be hostile: nothing recurses, every operation is bounded by the
//! length of its topic, and memory by the topics held.

use std::collections::{BTreeSet, HashMap};
use std::{iter, mem};

use bytes::Bytes;

/// What a subscription is charged beside its topic's octets: about what it takes in memory.
pub(crate) const OVERHEAD: usize = 256;

/// Who subscribed to what, for a publisher. A peer is a small dense number, such as a slab index.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    trie: Trie<Peers>,
    peers: Vec<Peer>,
    /// By peer: the last `round` that reported it.
    seen: Vec<u64>,
    round: u64,
    /// Once somebody wants to know: nodes of topics that were subscribed to since the last time.
    news: Option<Vec<u32>>,
}

/// What [`Subscriptions::subscribe`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subscribed {
    /// The peer did not have this topic.
    pub(crate) new_for_peer: bool,
    /// Nobody had this topic.
    pub(crate) first: bool,
}

/// What [`Subscriptions::cancel`] changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cancelled {
    /// The peer had this topic.
    pub(crate) had: bool,
    /// Nobody has this topic any more.
    pub(crate) last: bool,
}

/// An application is to be told, when its turn comes, that somebody has a topic or that nobody has it
/// any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// Where the topic is; of use until [`Subscriptions::pay`] or [`Subscriptions::renew_due`].
    pub(crate) node: u32,
    /// Somebody who has it.
    pub(crate) holder: Option<u32>,
    /// What the topic costs, if nobody has it.
    pub(crate) cost: usize,
}

/// The peers of one topic; most topics have one.
#[derive(Debug)]
struct Peers {
    /// Or `NONE`: nobody.
    first: u32,
    rest: Vec<u32>,
    /// Where it stands in the news, or `NONE`.
    news: u32,
    /// Whether the application believes that somebody has it, and whether it is to be told.
    told: bool,
    due: bool,
}

impl Peers {
    const fn nobody() -> Self {
        Self { first: NONE, rest: Vec::new(), news: NONE, told: false, due: false }
    }

    const fn any(&self) -> bool {
        self.first != NONE
    }
}

#[derive(Debug, Default)]
struct Peer {
    /// Node to this peer's position among the node's peers.
    nodes: HashMap<u32, u32>,
    bytes: usize,
}

impl Subscriptions {
    /// Adds `topic` to the peer's set; a topic it has already is not counted again.
    pub(crate) fn subscribe(&mut self, peer: u32, topic: &[u8]) -> Subscribed {
        let index = peer as usize;
        if index >= self.peers.len() {
            self.peers.resize_with(index + 1, Peer::default);
            self.seen.resize(index + 1, 0);
        }
        let (id, _) = self.trie.entry(topic, Peers::nobody());
        let mut subscribed = Subscribed { new_for_peer: false, first: false };
        if let Some(peers) = self.trie.value_mut(id)
            && let Some(entry) = self.peers.get_mut(index)
            && !entry.nodes.contains_key(&id)
        {
            subscribed = Subscribed { new_for_peer: true, first: !peers.any() };
            if subscribed.first {
                peers.first = peer;
            } else {
                peers.rest.push(peer);
            }
            entry.nodes.insert(id, peers.rest.len() as u32);
            entry.bytes += topic.len() + OVERHEAD;
        }
        note(&mut self.trie, &mut self.news, id);
        subscribed
    }

    /// Takes `topic` out of the peer's set.
    pub(crate) fn cancel(&mut self, peer: u32, topic: &[u8]) -> Cancelled {
        if let Some(id) = self.trie.find(topic)
            && let Some(entry) = self.peers.get_mut(peer as usize)
            && let Some(position) = entry.nodes.remove(&id)
        {
            entry.bytes -= topic.len() + OVERHEAD;
            if roomy(entry.nodes.capacity(), entry.nodes.len()) {
                entry.nodes.shrink_to(2 * entry.nodes.len());
            }
            return Cancelled { had: true, last: self.unlink(id, position) };
        }
        Cancelled { had: false, last: false }
    }

    /// Forgets a peer. `gone` hears each of its topics, in no particular order, and whether nobody
    /// else has it. The cost is that of the peer's own topics.
    pub(crate) fn remove_peer(&mut self, peer: u32, mut gone: impl FnMut(&[u8], bool)) {
        let Some(entry) = self.peers.get_mut(peer as usize) else { return };
        for (id, position) in mem::take(entry).nodes {
            if let Some((topic, peers)) = self.trie.get(id) {
                gone(topic, peers.rest.is_empty());
            }
            self.unlink(id, position);
        }
        while self.peers.pop_if(|last| last.nodes.is_empty()).is_some() {
            self.seen.pop();
        }
        if roomy(self.peers.capacity(), self.peers.len()) {
            self.peers.shrink_to(2 * self.peers.len());
            self.seen.shrink_to(2 * self.peers.len());
        }
    }

    /// Calls `each` once for every peer that has a prefix of `topic`, in no particular order.
    pub(crate) fn matching(&mut self, topic: &[u8], mut each: impl FnMut(u32)) {
        self.round += 1;
        for peers in self.trie.prefixes(topic) {
            for &peer in iter::once(&peers.first).chain(&peers.rest) {
                if let Some(seen) = self.seen.get_mut(peer as usize)
                    && *seen != self.round
                {
                    *seen = self.round;
                    each(peer);
                }
            }
        }
    }

    /// How many peers have a prefix of `topic`.
    #[cfg(test)]
    pub(crate) fn any_match(&mut self, topic: &[u8]) -> usize {
        let mut count = 0;
        self.matching(topic, |_| count += 1);
        count
    }

    /// Whether no topic is kept for anybody.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.trie.nodes.is_empty()
    }

    /// How many topics the peer has.
    pub(crate) fn count(&self, peer: u32) -> usize {
        self.peers.get(peer as usize).map_or(0, |entry| entry.nodes.len())
    }

    /// The topics that somebody has and that were subscribed to since the last time, from the first
    /// time on; in octet order.
    pub(crate) fn take_news(&mut self) -> Vec<Bytes> {
        let mut topics = Vec::new();
        for id in mem::take(self.news.get_or_insert_default()) {
            if let Some(peers) = self.trie.value_mut(id) {
                peers.news = NONE;
            }
            topics.extend(self.trie.get(id).map(|(topic, _)| Bytes::copy_from_slice(topic)));
        }
        topics.sort_unstable();
        topics
    }

    /// All that the peer has is news once more.
    pub(crate) fn renew_news(&mut self, peer: u32) {
        let Some(entry) = self.peers.get(peer as usize) else { return };
        for id in entry.nodes.keys() {
            note(&mut self.trie, &mut self.news, *id);
        }
    }

    /// The application is told that somebody has the topic, or nobody. `false`: it knows.
    pub(crate) fn tell(&mut self, topic: &[u8], on: bool) -> bool {
        let id = if on {
            self.trie.entry(topic, Peers::nobody()).0
        } else {
            let Some(id) = self.trie.find(topic) else { return false };
            id
        };
        let Some(peers) = self.trie.value_mut(id) else { return false };
        let knew = mem::replace(&mut peers.told, on);
        self.tidy(id);
        knew != on
    }

    /// What the application is to be told of the topic and nobody has been charged with.
    pub(crate) fn owed(&mut self, topic: &[u8]) -> Option<Due> {
        self.owe(self.trie.find(topic)?)
    }

    fn owe(&mut self, node: u32) -> Option<Due> {
        let len = self.trie.at(node).topic.len();
        let peers = self.trie.value_mut(node)?;
        if peers.due || peers.told == peers.any() {
            return None;
        }
        peers.due = true;
        let holder = peers.any().then_some(peers.first);
        let cost = if holder.is_none() { len + OVERHEAD } else { 0 };
        Some(Due { node, holder, cost })
    }

    /// Whoever was charged with a [`Due`] is gone: somebody else is to be.
    pub(crate) fn renew_due(&mut self, node: u32) -> Option<Due> {
        self.trie.value_mut(node)?.due = false;
        let due = self.owe(node);
        self.tidy(node);
        due
    }

    /// The turn of a [`Due`] has come, which was `on` if somebody had the topic: its topic, if the
    /// application is told so, and what it is due to be told after that.
    pub(crate) fn pay(&mut self, node: u32, on: bool) -> (Option<Vec<u8>>, Option<Due>) {
        let Some(peers) = self.trie.value_mut(node) else { return (None, None) };
        peers.due = false;
        // somebody who has come since then is told of after it
        let told = if on { !peers.told && peers.any() } else { peers.told };
        peers.told ^= told;
        let topic = self.trie.get(node).filter(|_| told).map(|(topic, _)| topic.to_vec());
        let due = self.owe(node);
        self.tidy(node);
        (topic, due)
    }

    /// What the peer's topics are charged: for each its length and [`OVERHEAD`].
    pub(crate) fn bytes(&self, peer: u32) -> usize {
        self.peers.get(peer as usize).map_or(0, |entry| entry.bytes)
    }

    /// Takes a node from the tree if nobody has its topic nor is to be told of it.
    fn tidy(&mut self, id: u32) {
        let Some(peers) = self.trie.value_mut(id).filter(|peers| !peers.any()) else { return };
        let (place, done) = (mem::replace(&mut peers.news, NONE), !peers.told && !peers.due);
        if let Some(news) = self.news.as_mut().filter(|_| place != NONE) {
            news.swap_remove(place as usize);
            let moved = news.get(place as usize);
            if let Some(moved) = moved.and_then(|moved| self.trie.value_mut(*moved)) {
                moved.news = place;
            }
            if roomy(news.capacity(), news.len()) {
                news.shrink_to(2 * news.len());
            }
        }
        if done {
            self.trie.remove(id);
        }
    }

    /// Takes the peer at `position` from the node; whether it was the last.
    fn unlink(&mut self, id: u32, position: u32) -> bool {
        let Some(peers) = self.trie.value_mut(id) else { return false };
        let Some(last) = peers.rest.pop() else {
            peers.first = NONE;
            self.tidy(id);
            return true;
        };
        if roomy(peers.rest.capacity(), peers.rest.len()) {
            peers.rest.shrink_to(2 * peers.rest.len());
        }
        let slot = match position.checked_sub(1) {
            None => Some(&mut peers.first),
            Some(index) => peers.rest.get_mut(index as usize),
        };
        // No slot: the peer stood last itself.
        if let Some(slot) = slot {
            *slot = last;
            if let Some(entry) = self.peers.get_mut(last as usize) {
                entry.nodes.insert(id, position);
            }
        }
        false
    }
}

/// A node's topic is news, if anybody wants to know.
fn note(trie: &mut Trie<Peers>, news: &mut Option<Vec<u32>>, id: u32) {
    if let Some(news) = news
        && let Some(peers) = trie.value_mut(id)
        && peers.news == NONE
    {
        peers.news = news.len() as u32;
        news.push(id);
    }
}

/// What a subscriber wants, and how often each topic was asked for.
#[derive(Debug, Default)]
pub(crate) struct SubscriptionSet {
    trie: Trie<usize>,
}

impl SubscriptionSet {
    /// Asks for `topic` once more; true if it was not asked for before.
    pub(crate) fn add(&mut self, topic: &[u8]) -> bool {
        let (id, first) = self.trie.entry(topic, 0);
        if let Some(count) = self.trie.value_mut(id) {
            *count += 1;
        }
        first
    }

    /// Asks for `topic` once less; whether that was the last time, or `None` if it is unknown.
    pub(crate) fn remove(&mut self, topic: &[u8]) -> Option<bool> {
        let id = self.trie.find(topic)?;
        let count = self.trie.value_mut(id)?;
        *count -= 1;
        let last = *count == 0;
        if last {
            self.trie.remove(id);
        }
        Some(last)
    }

    /// Whether any prefix of `topic` is wanted.
    pub(crate) fn matches(&self, topic: &[u8]) -> bool {
        self.trie.prefixes(topic).next().is_some()
    }

    /// How many distinct topics are wanted.
    pub(crate) fn len(&self) -> usize {
        self.trie.len
    }

    /// Whether nothing is wanted.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.trie.len == 0
    }

    /// Whether everything is wanted: the empty topic is in the set.
    pub(crate) fn has_all(&self) -> bool {
        self.trie.find(b"").is_some()
    }

    /// Every distinct topic once, in octet order.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8])) {
        let mut ahead: Vec<u32> = self.trie.root().into_iter().collect();
        while let Some(id) = ahead.pop() {
            if let Some((topic, _)) = self.trie.get(id) {
                each(topic);
            }
            ahead.extend(self.trie.at(id).children.iter().rev());
        }
    }
}

/// Whether a collection has so much more room than it needs that it should give some back.
fn roomy(capacity: usize, len: usize) -> bool {
    capacity > 4 * len.max(8)
}

/// "No node" where an id stands.
const NONE: u32 = u32::MAX;

/// A radix tree from octet strings to `V`. An id stays with its topic until the topic is removed.
#[derive(Debug)]
struct Trie<V> {
    nodes: Vec<Node<V>>,
    /// Unused nodes; the lowest is used first so that the end of `nodes` can be given back.
    free: BTreeSet<u32>,
    root: u32,
    /// Nodes with a value.
    len: usize,
}

#[derive(Debug)]
struct Node<V> {
    /// How many octets lead here; all topics at and below this node agree on them.
    depth: usize,
    children: Children,
    value: Option<V>,
    /// The whole topic (`depth` octets) of a node with a value; else empty.
    topic: Box<[u8]>,
    parent: u32,
    /// A node with a value at or below this one, for the octets that lead here: this node, or the
    /// `sample` of a child. So the nodes that name one sample are a chain that starts at it.
    sample: u32,
}

impl<V> Default for Trie<V> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: BTreeSet::new(), root: NONE, len: 0 }
    }
}

impl<V> Trie<V> {
    #[expect(clippy::indexing_slicing, reason = "only nodes in use are linked or handed out")]
    fn at(&self, id: u32) -> &Node<V> {
        &self.nodes[id as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "only nodes in use are linked or handed out")]
    fn at_mut(&mut self, id: u32) -> &mut Node<V> {
        &mut self.nodes[id as usize]
    }

    fn root(&self) -> Option<u32> {
        (self.root != NONE).then_some(self.root)
    }

    fn get(&self, id: u32) -> Option<(&[u8], &V)> {
        let node = self.at(id);
        node.value.as_ref().map(|value| (&*node.topic, value))
    }

    fn value_mut(&mut self, id: u32) -> Option<&mut V> {
        self.at_mut(id).value.as_mut()
    }

    /// The values of all prefixes of `topic`, shortest first.
    fn prefixes<'a>(&'a self, topic: &'a [u8]) -> impl Iterator<Item = &'a V> {
        let mut next = self.root;
        let mut checked = 0;
        iter::from_fn(move || {
            loop {
                let node = self.nodes.get(next as usize)?;
                next = topic.get(node.depth).map_or(NONE, |&octet| node.children.get(octet));
                if let Some(value) = &node.value {
                    // comparing nothing is not free: with an empty topic's pointer it is slow
                    if checked < node.depth
                        && node.topic.get(checked..) != topic.get(checked..node.depth)
                    {
                        next = NONE;
                        return None;
                    }
                    checked = node.depth;
                    return Some(value);
                }
            }
        })
    }

    fn find(&self, topic: &[u8]) -> Option<u32> {
        let mut id = self.root;
        loop {
            let node = self.nodes.get(id as usize)?;
            match topic.get(node.depth) {
                Some(&octet) => id = node.children.get(octet),
                None => return (node.value.is_some() && *node.topic == *topic).then_some(id),
            }
        }
    }

    /// The node of `topic` and whether it is new; if so it has `value`.
    fn entry(&mut self, topic: &[u8], value: V) -> (u32, bool) {
        let Some(mut id) = self.root() else {
            self.root = self.leaf(topic, value, NONE);
            return (self.root, true);
        };
        // Down, blindly, to a node whose topics share at least as much with `topic` as any ...
        while let Some(&octet) = topic.get(self.at(id).depth) {
            match self.at(id).children.get(octet) {
                NONE => break,
                child => id = child,
            }
        }
        // ... and back up to the edge or node where they part.
        let common = common_prefix(topic, self.sample(id));
        loop {
            let parent = self.at(id).parent;
            if parent == NONE || self.at(parent).depth < common {
                break;
            }
            id = parent;
        }
        if self.at(id).depth > common {
            id = self.split(id, common);
        }
        if let Some(&octet) = topic.get(common) {
            let leaf = self.leaf(topic, value, id);
            self.at_mut(id).children.set(octet, leaf);
            return (leaf, true);
        }
        let node = self.at_mut(id);
        let new = node.value.is_none();
        if new {
            node.topic = topic.into();
            node.value = Some(value);
            self.len += 1;
        }
        (id, new)
    }

    /// Takes the value from a node that has one, and whatever the tree no longer needs.
    fn remove(&mut self, id: u32) {
        self.len -= 1;
        let node = self.at(id);
        let parent = node.parent;
        // The lowest node that stays for now.
        let low = if node.children.len() > 0 {
            let node = self.at_mut(id);
            node.value = None;
            node.topic = Box::default();
            id
        } else {
            if parent == NONE {
                self.root = NONE;
            } else {
                let octet = self.octet(id, self.at(parent).depth);
                self.at_mut(parent).children.remove(octet);
            }
            self.release(id);
            parent
        };
        if low == NONE {
            return;
        }
        let mut up = low;
        while up != NONE && self.at(up).sample == id {
            let node = self.at(up);
            let sample =
                if node.value.is_some() { up } else { self.at(node.children.first()).sample };
            let node = self.at_mut(up);
            node.sample = sample;
            up = node.parent;
        }
        let node = self.at(low);
        if node.value.is_none() && node.children.len() == 1 {
            let (above, child) = (node.parent, node.children.first());
            self.hang(child, above);
            self.release(low);
        }
    }

    /// Puts a node without a value between `id` and its parent.
    fn split(&mut self, id: u32, depth: usize) -> u32 {
        let Node { parent, sample, .. } = *self.at(id);
        let mut children = Children::default();
        children.set(self.octet(id, depth), id);
        let topic = Box::default();
        let middle = self.allocate(Node { depth, children, value: None, topic, parent, sample });
        self.hang(middle, parent);
        self.at_mut(id).parent = middle;
        middle
    }

    /// Makes `id` the child of `parent`, in place of the one that has its octet; or the root.
    fn hang(&mut self, id: u32, parent: u32) {
        self.at_mut(id).parent = parent;
        if parent == NONE {
            self.root = id;
        } else {
            let octet = self.octet(id, self.at(parent).depth);
            self.at_mut(parent).children.set(octet, id);
        }
    }

    fn leaf(&mut self, topic: &[u8], value: V, parent: u32) -> u32 {
        self.len += 1;
        let id = self.allocate(Node {
            depth: topic.len(),
            children: Children::default(),
            value: Some(value),
            topic: topic.into(),
            parent,
            sample: NONE,
        });
        self.at_mut(id).sample = id;
        id
    }

    fn sample(&self, id: u32) -> &[u8] {
        &self.at(self.at(id).sample).topic
    }

    /// The octet at `index` of the topics at and below `id`.
    #[expect(clippy::indexing_slicing, reason = "asked only for octets above the node's depth")]
    fn octet(&self, id: u32, index: usize) -> u8 {
        self.sample(id)[index]
    }

    fn allocate(&mut self, node: Node<V>) -> u32 {
        if let Some(id) = self.free.pop_first() {
            *self.at_mut(id) = node;
            return id;
        }
        let id = self.nodes.len();
        assert!(id < NONE as usize, "a trie holds less than 2^32 nodes");
        self.nodes.push(node);
        id as u32
    }

    fn release(&mut self, id: u32) {
        let node = self.at_mut(id);
        node.value = None;
        node.topic = Box::default();
        node.children = Children::default();
        self.free.insert(id);
        while let Some(&last) = self.free.last()
            && last as usize + 1 == self.nodes.len()
        {
            self.free.pop_last();
            self.nodes.pop();
        }
        if roomy(self.nodes.capacity(), self.nodes.len()) {
            self.nodes.shrink_to(2 * self.nodes.len());
        }
    }
}

/// How many octets two topics share at their start.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    const BLOCK: usize = 64;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let same = BLOCK * blocks.take_while(|(a, b)| a == b).count();
    let (a, b) = (a.get(same..).unwrap_or_default(), b.get(same..).unwrap_or_default());
    same + a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// A node with more children than this has a table of them: 1 KiB, but no search.
const SEARCHED: usize = 16;

/// A node's children by octet.
#[derive(Debug, Default)]
struct Children {
    /// In octet order.
    list: Vec<(u8, u32)>,
    table: Option<Box<[u32; 256]>>,
}

impl Children {
    /// The child at `octet`, or `NONE`.
    fn get(&self, octet: u8) -> u32 {
        match &self.table {
            Some(table) => table.get(octet as usize).copied(),
            None => self.list.iter().find(|(at, _)| *at == octet).map(|(_, id)| *id),
        }
        .unwrap_or(NONE)
    }

    fn len(&self) -> usize {
        self.list.len()
    }

    /// The ids in octet order.
    fn iter(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.list.iter().map(|(_, id)| *id)
    }

    /// The first id in octet order, or `NONE`.
    fn first(&self) -> u32 {
        self.iter().next().unwrap_or(NONE)
    }

    fn set(&mut self, octet: u8, id: u32) {
        let place = self.list.binary_search_by_key(&octet, |(at, _)| *at);
        match place.map(|index| self.list.get_mut(index)) {
            Ok(child) => child.into_iter().for_each(|child| child.1 = id),
            Err(index) => self.list.insert(index, (octet, id)),
        }
        self.tabulate(octet, id);
    }

    fn remove(&mut self, octet: u8) {
        self.list.retain(|(at, _)| *at != octet);
        self.tabulate(octet, NONE);
    }

    /// Brings the table, or its absence, in line with what the list now has at `octet`.
    fn tabulate(&mut self, octet: u8, id: u32) {
        let (changed, table) = match &mut self.table {
            _ if self.list.len() <= SEARCHED => return self.table = None,
            Some(table) => (&[(octet, id)][..], table),
            none => (&*self.list, none.insert(Box::new([NONE; 256]))),
        };
        for &(octet, id) in changed {
            if let Some(slot) = table.get_mut(octet as usize) {
                *slot = id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    impl<V> Trie<V> {
        /// Checks every link, the depths, the samples, and that no node is there without need.
        fn check(&self) {
            let used = self.nodes.len() - self.free.len();
            assert!(used <= 2 * self.len, "{used} nodes for {} topics", self.len);
            let (mut nodes, mut values) = (0, 0);
            let mut ahead: Vec<_> = self.root().map(|root| (root, NONE)).into_iter().collect();
            while let Some((id, parent)) = ahead.pop() {
                let node = self.at(id);
                nodes += 1;
                values += usize::from(node.value.is_some());
                assert!(!self.free.contains(&id));
                assert_eq!(node.parent, parent);
                let Children { list, table } = &node.children;
                assert!(list.is_sorted());
                assert!(list.iter().all(|&(octet, child)| node.children.get(octet) == child));
                let tabled = table.iter().flat_map(|table| table.iter());
                let tabled = tabled.filter(|child| **child != NONE).count();
                assert_eq!(tabled, if list.len() > SEARCHED { list.len() } else { 0 });
                assert!(node.value.is_some() || node.children.len() > 1);
                let topic_len = if node.value.is_some() { node.depth } else { 0 };
                assert_eq!(node.topic.len(), topic_len);
                let mut samples = node.children.iter().map(|child| self.at(child).sample);
                assert!(samples.any(|sample| sample == node.sample) || node.sample == id);
                assert!(self.at(node.sample).value.is_some());
                if parent != NONE {
                    let above = self.at(parent);
                    assert!(above.depth < node.depth);
                    assert!(self.sample(id).starts_with(&self.sample(parent)[..above.depth]));
                    assert_eq!(above.children.get(self.octet(id, above.depth)), id);
                }
                ahead.extend(node.children.iter().map(|child| (child, id)));
            }
            assert_eq!((nodes, values), (used, self.len));
            assert!(self.len > 0 || self.nodes.is_empty() && self.nodes.capacity() <= 32);
        }
    }

    /// Short topics over few octets, so that edges split and join; some spread to fill tables.
    fn topic() -> impl Strategy<Value = Vec<u8>> {
        let octet = prop_oneof![Just(0), Just(b'a'), Just(255)];
        prop_oneof![
            4 => vec(octet.clone(), 0..7),
            1 => (vec(octet, 0..2), any::<u8>()).prop_map(|(mut topic, last)| {
                topic.push(last);
                topic
            }),
        ]
    }

    #[derive(Debug, Clone)]
    enum Op {
        Add(u32, Vec<u8>),
        Cancel(u32, Vec<u8>),
        RemovePeer(u32),
        Match(Vec<u8>),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            12 => (0..5u32, topic()).prop_map(|(peer, topic)| Op::Add(peer, topic)),
            8 => (0..5u32, topic()).prop_map(|(peer, topic)| Op::Cancel(peer, topic)),
            1 => (0..6u32).prop_map(Op::RemovePeer),
            4 => topic().prop_map(Op::Match),
        ]
    }

    type Model = BTreeSet<(u32, Vec<u8>)>;

    fn others(model: &Model, topic: &[u8]) -> bool {
        model.iter().any(|(_, other)| other == topic)
    }

    fn remove_peer(subscriptions: &mut Subscriptions, model: &mut Model, peer: u32) {
        let mut gone = BTreeMap::new();
        subscriptions.remove_peer(peer, |topic, last| {
            assert_eq!(gone.insert(topic.to_vec(), last), None, "told twice");
        });
        let (had, left) = mem::take(model).into_iter().partition::<Model, _>(|(o, _)| *o == peer);
        *model = left;
        let expected = had.into_iter().map(|(_, topic)| (others(model, &topic), topic));
        assert_eq!(gone, expected.map(|(others, topic)| (topic, !others)).collect());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn subscriptions_are_a_set_of_pairs(ops in vec(op(), 0..300)) {
            let (mut subscriptions, mut model) = (Subscriptions::default(), Model::new());
            for op in ops {
                match op {
                    Op::Add(peer, topic) => {
                        let first = !others(&model, &topic);
                        let result = subscriptions.subscribe(peer, &topic);
                        let new_for_peer = model.insert((peer, topic));
                        prop_assert_eq!(result, Subscribed { new_for_peer, first });
                    }
                    Op::Cancel(peer, topic) => {
                        let had = model.remove(&(peer, topic.clone()));
                        let last = had && !others(&model, &topic);
                        let result = subscriptions.cancel(peer, &topic);
                        prop_assert_eq!(result, Cancelled { had, last });
                    }
                    Op::RemovePeer(peer) => remove_peer(&mut subscriptions, &mut model, peer),
                    Op::Match(topic) => {
                        let mut found = Vec::new();
                        subscriptions.matching(&topic, |peer| found.push(peer));
                        found.sort_unstable();
                        let matching = model.iter().filter(|(_, prefix)| topic.starts_with(prefix));
                        let expected: BTreeSet<u32> = matching.map(|(peer, _)| *peer).collect();
                        prop_assert_eq!(subscriptions.any_match(&topic), expected.len());
                        prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
                    }
                }
                subscriptions.trie.check();
            }
            for peer in 0..6 {
                let lengths = model.iter().filter(|(owner, _)| *owner == peer);
                let lengths: Vec<_> = lengths.map(|(_, topic)| topic.len() + OVERHEAD).collect();
                prop_assert_eq!(subscriptions.count(peer), lengths.len());
                prop_assert_eq!(subscriptions.bytes(peer), lengths.iter().sum::<usize>());
                remove_peer(&mut subscriptions, &mut model, peer);
                prop_assert_eq!(subscriptions.bytes(peer), 0);
                subscriptions.trie.check();
            }
            prop_assert!(subscriptions.trie.nodes.is_empty() && subscriptions.peers.is_empty());
        }

        #[test]
        fn subscription_set_counts(ops in vec((0..3u8, topic(), topic()), 0..300)) {
            let (mut set, mut model) = (SubscriptionSet::default(), BTreeMap::new());
            for (kind, topic, other) in ops {
                if kind == 0 {
                    let last = model.get_mut(&topic).map(|count: &mut usize| {
                        *count -= 1;
                        *count == 0
                    });
                    if last == Some(true) {
                        model.remove(&topic);
                    }
                    prop_assert_eq!(set.remove(&topic), last);
                } else {
                    prop_assert_eq!(set.add(&topic), !model.contains_key(&topic));
                    *model.entry(topic).or_default() += 1;
                }
                prop_assert_eq!(set.len(), model.len());
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert_eq!(set.has_all(), model.contains_key(&b""[..]));
                let wanted = model.keys().any(|prefix| other.starts_with(prefix));
                prop_assert_eq!(set.matches(&other), wanted);
                set.trie.check();
            }
            let mut topics = Vec::new();
            set.for_each(|topic| topics.push(topic.to_vec()));
            prop_assert_eq!(topics, model.keys().cloned().collect::<Vec<_>>());
            for (topic, count) in model {
                for left in (0..count).rev() {
                    prop_assert_eq!(set.remove(&topic), Some(left == 0));
                }
            }
            set.trie.check();
        }
    }

    #[test]
    fn two_subscribes_and_one_cancel_leave_nothing() {
        let mut subscriptions = Subscriptions::default();
        assert!(subscriptions.subscribe(3, b"a").new_for_peer);
        assert!(!subscriptions.subscribe(3, b"a").new_for_peer);
        assert_eq!(subscriptions.cancel(3, b"a"), Cancelled { had: true, last: true });
        assert_eq!(subscriptions.any_match(b"abc"), 0);
    }

    #[test]
    fn the_empty_topic_and_zero_octets_are_topics() {
        let mut set = SubscriptionSet::default();
        assert!(!set.matches(b"") && !set.has_all());
        assert!(set.add(b"\0\0"));
        assert!(set.matches(b"\0\0\0") && !set.matches(b"\0") && !set.matches(b""));
        assert!(set.add(b""));
        assert!(set.matches(b"") && set.matches(b"x") && set.has_all());
        assert_eq!(set.remove(b""), Some(true));
        assert_eq!(set.remove(b"\0"), None);
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn a_thousand_nested_long_topics() {
        let longest = vec![7; 65_536];
        let mut subscriptions = Subscriptions::default();
        // The longest first: every other one splits the same edge.
        for cut in 0..1000 {
            assert!(subscriptions.subscribe(0, &longest[cut..]).first);
        }
        subscriptions.subscribe(1, &longest);
        subscriptions.trie.check();
        assert_eq!(subscriptions.any_match(&longest), 2);
        assert_eq!(subscriptions.any_match(&longest[999..]), 1);
        assert_eq!(subscriptions.any_match(&longest[1000..]), 0);
        let mut last = 0;
        subscriptions.remove_peer(0, |_, gone| last += usize::from(gone));
        assert_eq!((last, subscriptions.trie.len), (999, 1));
        subscriptions.trie.check();
    }

    #[test]
    fn an_edge_of_64_mib_splits_and_joins_at_once() {
        let mut set = SubscriptionSet::default();
        set.add(&vec![b'a'; 64 << 20]);
        let start = std::time::Instant::now();
        for _ in 0..10_000 {
            set.add(b"ab");
            set.remove(b"ab");
        }
        // Copying the edge even once per turn would take minutes.
        assert!(start.elapsed().as_secs() < 10);
        set.trie.check();
    }

    #[test]
    fn a_chain_as_deep_as_it_is_long_is_dropped_without_recursion() {
        let topic = vec![b'x'; 12_000];
        let mut set = SubscriptionSet::default();
        for length in (0..topic.len()).rev() {
            set.add(&topic[..length]);
        }
        set.trie.check();
        let mut length = 0;
        set.for_each(|topic| {
            assert_eq!(topic.len(), length);
            length += 1;
        });
        drop(set);
    }

    #[test]
    fn every_octet_can_follow() {
        let mut set = SubscriptionSet::default();
        for octet in (0..=255).rev() {
            set.add(&[b'p', octet]);
        }
        set.trie.check();
        let mut next = 0;
        set.for_each(|topic| {
            assert_eq!(topic, [b'p', next as u8]);
            next += 1;
        });
        for octet in 0..=255 {
            assert!(set.matches(&[b'p', octet, 1]));
            set.remove(&[b'p', octet]);
            assert!(!set.matches(&[b'p', octet, 1]));
            set.trie.check();
        }
    }

    #[test]
    fn nodes_are_reused_and_given_back() {
        let mut set = SubscriptionSet::default();
        let name = |index: u32| index.to_be_bytes();
        for index in 0..50_000 {
            set.add(&name(index));
        }
        let full = set.trie.nodes.len();
        for index in 0..50_000 {
            set.remove(&name(index));
            set.add(&name(index + 50_000));
            assert!(set.trie.nodes.len() <= full + 16);
        }
        for index in (50_002..100_000).rev() {
            set.remove(&name(index));
        }
        set.trie.check();
        for index in 50_000..50_002 {
            set.remove(&name(index));
        }
        set.trie.check();
    }
}
