//! Read buffers, shared by the connections of a socket.
//!
//! A connection has one only while octets are coming in. What was read is handed on as slices; the
//! rest of a block serves the next read, of whichever connection, and a block whose slices are all
//! gone is used again instead of going back to the allocator (which would cost page faults, as it is
//! freed on another thread than it is filled).

use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;

/// Blocks that nobody is reading into.
#[derive(Debug, Default)]
pub(crate) struct Blocks(Mutex<Vec<BytesMut>>);

impl Blocks {
    /// An empty buffer with room for a good read.
    pub(crate) fn get(&self) -> BytesMut {
        let mut retired = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for at in (0..retired.len()).rev() {
            let usable = retired
                .get_mut(at)
                .is_some_and(|block| block.capacity() >= ROOM || block.try_reclaim(BLOCK));
            if usable {
                return retired.swap_remove(at);
            }
        }
        drop(retired);
        BytesMut::with_capacity(BLOCK)
    }

    /// Takes a buffer back. It must be empty; slices of it may live on.
    pub(crate) fn put(&self, block: BytesMut) {
        debug_assert!(block.is_empty(), "a block still in use is not for others");
        let mut retired = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if retired.len() >= RETIRED {
            retired.remove(0);
        }
        retired.push(block);
    }
}

/// Octets in a block: as many as one read is likely to find waiting.
pub(crate) const BLOCK: usize = 256 * 1024;

/// What must be left of a block for it to be worth reading into.
pub(crate) const ROOM: usize = 64 * 1024;

/// Blocks kept for later: 2 MiB.
const RETIRED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_serves_until_it_is_full_and_again_when_its_slices_are_gone() {
        let blocks = Blocks::default();
        let mut block = blocks.get();
        let start = block.as_ptr();
        block.resize(100, 0);
        let slice = block.split().freeze();
        blocks.put(block);
        let mut block = blocks.get();
        assert_eq!(block.as_ptr() as usize, start as usize + 100, "the rest of it");
        block.resize(block.capacity() - 10, 0);
        drop(block.split());
        blocks.put(block);
        let other = blocks.get();
        assert_ne!(other.as_ptr(), start, "a slice is alive");
        blocks.put(other);
        drop(slice);
        let mut seen = [blocks.get(), blocks.get()];
        seen.sort_by_key(|block| block.as_ptr());
        assert!(seen.iter().any(|block| block.as_ptr() == start));
    }
}
