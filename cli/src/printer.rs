//! Received messages on their way to the standard output.

use dragonwire::Message;

use crate::console::Console;
use crate::lines::{Format, encode};
use crate::stdio::{OUTPUT_BLOCK, Output};

/// Takes messages in batches and hands them over in blocks of lines.
///
/// A batch is only taken when the one before is handed over, which is what stops the socket while
/// nobody reads the standard output.
#[derive(Debug)]
pub(crate) struct Printer {
    pub(crate) output: Output,
    /// The batch; empty when all of it is in the block.
    pub(crate) taken: Vec<Message>,
    /// Lines to be handed over next.
    pub(crate) block: Vec<u8>,
    format: Format,
    /// How many of `taken` are in the block.
    encoded: usize,
    /// How many messages may still be taken.
    room: u64,
}

impl Printer {
    /// Prints `count` messages at most.
    pub(crate) fn start(format: Format, count: Option<u64>, console: Console) -> Self {
        Self {
            output: Output::start(console),
            taken: Vec::new(),
            block: Vec::new(),
            format,
            encoded: 0,
            room: count.unwrap_or(u64::MAX),
        }
    }

    /// How many messages may be taken now.
    pub(crate) fn room(&self) -> usize {
        if self.is_idle() { usize::try_from(self.room).unwrap_or(BATCH).min(BATCH) } else { 0 }
    }

    /// Whether everything taken has been handed over.
    pub(crate) fn is_idle(&self) -> bool {
        self.block.is_empty() && self.taken.is_empty()
    }

    /// Whether everything that was to be printed has been handed over.
    pub(crate) fn is_done(&self) -> bool {
        self.room == 0 && self.is_idle()
    }

    /// A batch has been put into `taken`.
    pub(crate) fn took_batch(&mut self) {
        self.room = self.room.saturating_sub(self.taken.len() as u64);
        self.fill_block();
    }

    /// These are the last messages that are printed, as far as the count allows.
    pub(crate) fn take_last(&mut self, messages: impl Iterator<Item = Message>) {
        let room = usize::try_from(self.room).unwrap_or(usize::MAX);
        self.taken.extend(messages.take(room));
        self.room = 0;
        self.fill_block();
    }

    /// Moves lines into the block while it has room.
    pub(crate) fn fill_block(&mut self) {
        while self.block.len() < OUTPUT_BLOCK {
            let Some(message) = self.taken.get(self.encoded) else {
                self.taken.clear();
                self.encoded = 0;
                break;
            };
            encode(self.format, message, &mut self.block);
            self.encoded += 1;
        }
    }
}

/// Messages taken from the socket in one go.
const BATCH: usize = 512;
