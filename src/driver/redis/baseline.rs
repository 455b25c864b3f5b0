//! From where on gaps in numbered events count. Redis has nobody who tells a new subscriber how far
//! the streams are: the first that comes of one, an event or a position, is where it begins; and what
//! a broken connection has cost is told at once and for all streams, so that it must not be told once
//! more for each of them.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use uuid::Uuid;

use crate::driver::sync::{Missing, Sync};

/// The streams of which something came since their topic was subscribed to.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    heard: HashMap<(Uuid, u64), HashSet<Bytes>>,
    count: usize,
}

impl Baseline {
    /// Of what is said to be missing, keeps what streams lack that have begun.
    pub(super) fn keep_begun(&self, missing: &mut Vec<Sync>) {
        missing.retain(|sync| match &sync.missing {
            Some(Missing { publisher, epoch, topic, .. }) => {
                self.has_begun(*publisher, *epoch, topic.as_bytes())
            }
            None => true,
        });
    }

    fn has_begun(&self, publisher: Uuid, epoch: u64, topic: &[u8]) -> bool {
        let topics = self.heard.get(&(publisher, epoch));
        self.count >= MAX_STREAMS || topics.is_some_and(|topics| topics.contains(topic))
    }

    /// Something came of a stream.
    pub(super) fn begin(&mut self, publisher: Uuid, epoch: u64, topic: &[u8]) {
        if self.has_begun(publisher, epoch, topic) {
            return;
        }
        let topics = self.heard.entry((publisher, epoch)).or_default();
        topics.insert(Bytes::copy_from_slice(topic));
        self.count += 1;
    }

    /// A topic is not subscribed to any more.
    pub(super) fn forget(&mut self, topic: &[u8]) {
        self.heard.retain(|_, topics| {
            self.count -= usize::from(topics.remove(topic));
            !topics.is_empty()
        });
    }

    /// Nothing is: the connection is lost.
    pub(super) fn forget_all(&mut self) {
        *self = Self::default();
    }
}

/// As many as are followed. Of more a gap may be told twice, which costs a look more.
const MAX_STREAMS: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::sync::SyncCause;

    fn gap(publisher: u128, topic: &str) -> Sync {
        let publisher = Uuid::from_u128(publisher);
        let missing = Missing { publisher, epoch: 1, topic: topic.to_owned(), from: 1, to: None };
        Sync { missing: Some(missing), cause: SyncCause::Gap }
    }

    fn kept(baseline: &Baseline) -> usize {
        let mut missing = vec![gap(1, "a"), gap(1, "b"), gap(2, "a")];
        baseline.keep_begun(&mut missing);
        missing.len()
    }

    #[test]
    fn only_streams_that_have_begun_can_lack_something() {
        let mut baseline = Baseline::default();
        assert_eq!(kept(&baseline), 0);
        for topic in [b"a", b"b", b"a"] {
            baseline.begin(Uuid::from_u128(1), 1, topic);
        }
        assert_eq!((kept(&baseline), baseline.count), (2, 2));
        baseline.forget(b"a");
        assert_eq!((kept(&baseline), baseline.count), (1, 1));
        baseline.forget_all();
        assert_eq!((kept(&baseline), baseline.count), (0, 0));
        let unknown = Sync { missing: None, cause: SyncCause::Announced };
        let mut missing = vec![unknown.clone()];
        baseline.keep_begun(&mut missing);
        assert_eq!(missing, [unknown]);
    }
}
