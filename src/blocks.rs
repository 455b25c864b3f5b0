//! Buffers that are handed on as slices and used again once those are gone.
//!
//! A connection has a block only while octets are coming in. What was read is handed on as slices;
//! the rest of the block serves the next read, of whichever connection of the process, and a block
//! whose slices are all gone is used again instead of going back to the allocator (which would cost
//! page faults, as it is freed on another thread than it is filled).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

/// Blocks that nobody is filling.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// How many are kept at most.
    limit: usize,
    /// How many there may be for who keeps within a budget, those that slices hold on to included.
    cap: AtomicUsize,
    retired: Mutex<Retired>,
}

#[derive(Debug)]
struct Retired {
    /// With room for more.
    begun: Vec<BytesMut>,
    /// Full, in the order they were, more or less.
    full: VecDeque<BytesMut>,
    /// How many are being filled.
    lent: usize,
}

impl Blocks {
    pub(crate) const fn new(limit: usize) -> Self {
        let retired = Retired { begun: Vec::new(), full: VecDeque::new(), lent: 0 };
        Self { limit, cap: AtomicUsize::new(usize::MAX), retired: Mutex::new(retired) }
    }

    /// From now on there may be blocks of so many octets in all, for those who
    /// [ask for one](Self::try_get). What was set before stays if it is less.
    pub(crate) fn set_cap(&self, octets: usize) {
        self.cap.fetch_min((octets / BLOCK).clamp(2, self.limit), Ordering::Relaxed);
    }

    /// The same as [`get`](Self::get) for up to [`BLOCK`] octets, as long as there are not too many.
    pub(crate) fn try_get(&self, size: usize) -> Option<BytesMut> {
        let cap = self.cap.load(Ordering::Relaxed);
        let mut retired = self.lock();
        if retired.begun.iter().any(|block| block.capacity() >= size)
            || retired.begun.len() + retired.full.len() + retired.lent < cap
            // what little one of them has left is not what `get` would give
            || retired.full.iter_mut().any(|block| block.try_reclaim(size.max(BLOCK)))
        {
            drop(retired);
            return Some(self.get(size));
        }
        None
    }

    /// An empty buffer with room for a good read, and for `size` octets at least.
    pub(crate) fn get(&self, size: usize) -> BytesMut {
        let mut retired = self.lock();
        retired.lent += 1;
        if let Some(at) = retired.begun.iter().rposition(|block| block.capacity() >= size) {
            return retired.begun.remove(at);
        }
        let size = size.max(BLOCK);
        // one that was full lately may still be in the processor's cache, the oldest ones are the
        // likeliest to be free
        let len = retired.full.len();
        let latest = (len.saturating_sub(TRIES)..len).rev();
        for at in latest.chain(0..len.saturating_sub(TRIES).min(TRIES)) {
            let free = retired.full.get_mut(at).is_some_and(|block| block.try_reclaim(size));
            if free && let Some(block) = retired.full.remove(at) {
                return block;
            }
        }
        retired.full.rotate_left(TRIES.min(len));
        drop(retired);
        BytesMut::with_capacity(size)
    }

    /// Takes a buffer back. It must be empty; slices of it may live on.
    pub(crate) fn put(&self, block: BytesMut) {
        debug_assert!(block.is_empty(), "a block still in use is not for others");
        let mut retired = self.lock();
        retired.lent = retired.lent.saturating_sub(1);
        if block.capacity() >= ROOM && retired.begun.len() < KEPT {
            retired.begun.push(block);
            return;
        }
        if retired.full.len() >= self.limit {
            retired.full.pop_front();
        }
        retired.full.push_back(block);
    }

    /// Gives up what only a flow of messages needs; to be called now and then.
    pub(crate) fn trim(&self) {
        let mut retired = self.lock();
        if self.cap.load(Ordering::Relaxed) == usize::MAX {
            retired.full.truncate(KEPT);
            return;
        }
        // those that slices hold on to are there all the same, and count
        let mut spare = retired.full.len().saturating_sub(KEPT);
        retired.full.retain_mut(|block| {
            let goes = spare > 0 && block.try_reclaim(BLOCK);
            spare -= usize::from(goes);
            !goes
        });
    }

    fn lock(&self) -> MutexGuard<'_, Retired> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Octets in a block: as many as one read is likely to find waiting.
pub(crate) const BLOCK: usize = 256 * 1024;

/// What must be left of a block for it to be worth reading into.
pub(crate) const ROOM: usize = 64 * 1024;

/// What all connections of the process read into. Were they to have blocks of their own, each would
/// read into memory that has left the processor's cache since its last turn. At most 64 MiB, what the
/// default marks of some receive queues pin.
pub(crate) static READING: Blocks = Blocks::new(256);

/// How many of them outlive a pause.
const KEPT: usize = 4;

/// Blocks at either end that are looked at for one without slices.
const TRIES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_serves_until_it_is_full_and_again_when_its_slices_are_gone() {
        let blocks = Blocks::new(8);
        let mut block = blocks.get(0);
        let start = block.as_ptr();
        block.resize(100, 0);
        let slice = block.split().freeze();
        blocks.put(block);
        let mut block = blocks.get(0);
        assert_eq!(block.as_ptr() as usize, start as usize + 100, "the rest of it");
        block.resize(block.capacity() - 10, 0);
        drop(block.split());
        blocks.put(block);
        let other = blocks.get(0);
        assert_ne!(other.as_ptr(), start, "a slice is alive");
        blocks.put(other);
        drop(slice);
        let mut seen = [blocks.get(0), blocks.get(0)];
        seen.sort_by_key(|block| block.as_ptr());
        assert!(seen.iter().any(|block| block.as_ptr() == start));
    }

    #[test]
    fn what_is_left_of_a_block_is_given_to_who_needs_no_more() {
        let blocks = Blocks::new(8);
        let mut block = blocks.get(0);
        block.resize(100_000, 0);
        let start = block.as_ptr() as usize;
        let _slice = block.split().freeze();
        blocks.put(block);
        let larger = blocks.get(200_000);
        assert!(larger.capacity() >= 200_000 && larger.as_ptr() as usize != start + 100_000);
        assert!(blocks.get(2 * BLOCK).capacity() >= 2 * BLOCK);
        assert_eq!(blocks.get(100_000).as_ptr() as usize, start + 100_000);
    }

    #[test]
    fn no_more_blocks_than_the_cap_are_given_to_those_who_ask() {
        let blocks = Blocks::new(8);
        blocks.set_cap(3 * BLOCK);
        blocks.set_cap(5 * BLOCK);
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut block = blocks.try_get(1).unwrap();
            block.resize(block.capacity(), 0);
            held.push(block.split().freeze());
            blocks.put(block);
        }
        assert!(blocks.try_get(1).is_none(), "all of them are held on to");
        blocks.trim();
        assert!(blocks.try_get(1).is_none(), "and still known");
        held.pop();
        let block = blocks.try_get(1).unwrap();
        assert!(blocks.try_get(1).is_none());
        assert!(blocks.get(1).capacity() >= BLOCK, "who does not keep within a budget gets one");
        blocks.put(block);
        assert!(blocks.try_get(1).is_some());
    }
}
