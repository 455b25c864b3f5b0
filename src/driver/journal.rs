//! Where a publisher writes down how far it has come, so that its successor can say where it ended
//! even if it was killed.
//!
//! One file for a publisher's id: a line that says what it is, then a record for each stream of this
//! life and of a few before it: epoch, length of the topic, topic, number of the last event. A number
//! is overwritten in place before its event is sent. What the kernel was given survives the death of
//! the process, not that of the host.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uuid::Uuid;

use super::codec::{End, Position};

/// The journal of a publisher that runs.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    end: u64,
    epoch: u64,
    /// Where the numbers of this life's streams are.
    offsets: HashMap<Bytes, u64>,
    earlier: Vec<Position>,
    /// Held for as long as the publisher lives.
    _lock: File,
}

impl Journal {
    /// Opens the journal of `publisher` in `folder` for a life that begins now, at `now`
    /// microseconds since 1970. Blocks.
    pub(crate) fn open(folder: &Path, publisher: Uuid, now: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(format!("{publisher}.lock")))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                ErrorKind::ResourceBusy,
                format!("another process publishes as {publisher}; give each its own name"),
            ),
            TryLockError::Error(error) => error,
        })?;
        let path = folder.join(format!("{publisher}.position"));
        let mut earlier = match fs::read(&path) {
            Ok(text) => read(publisher, &text)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut epochs: Vec<u64> = earlier.iter().map(|position| position.epoch).collect();
        epochs.sort_unstable();
        epochs.dedup();
        let epoch = epochs.last().map_or(now, |last| now.max(last.saturating_add(1)));
        let oldest = epochs.iter().rev().nth(KEPT_LIVES - 1).copied().unwrap_or(0);
        earlier.retain(|position| position.epoch >= oldest);

        let mut start = MAGIC.to_vec();
        for position in &earlier {
            put(&mut start, position.epoch, &position.topic, position.last);
        }
        // so that a life without an event counts as well
        put(&mut start, epoch, b"", 0);
        let new = path.with_extension("new");
        let mut file =
            OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&new)?;
        file.write_all(&start)?;
        file.sync_data()?;
        fs::rename(&new, &path)?;
        let end = start.len() as u64;
        earlier.retain(|position| position.last > 0);
        Ok(Self { path, file, end, epoch, offsets: HashMap::new(), earlier, _lock: lock })
    }

    /// Which life this is.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where earlier lives ended.
    pub(crate) fn earlier(&self) -> &[Position] {
        &self.earlier
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The event with this number is about to be sent on the topic.
    pub(crate) fn note(&mut self, topic: &[u8], sequence: u64) -> io::Result<()> {
        if let Some(offset) = self.offsets.get(topic) {
            return self.file.write_all_at(&sequence.to_le_bytes(), *offset);
        }
        let mut record = Vec::new();
        put(&mut record, self.epoch, topic, sequence);
        self.file.write_all_at(&record, self.end)?;
        self.end += record.len() as u64;
        self.offsets.insert(Bytes::copy_from_slice(topic), self.end - NUMBER);
        Ok(())
    }
}

fn put(out: &mut Vec<u8>, epoch: u64, topic: &[u8], last: u64) {
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&(topic.len() as u64).to_le_bytes());
    out.extend_from_slice(topic);
    out.extend_from_slice(&last.to_le_bytes());
}

/// The streams of a journal. A record that was cut short while it was written is not one.
fn read(publisher: Uuid, text: &[u8]) -> io::Result<Vec<Position>> {
    let Some(mut rest) = text.strip_prefix(MAGIC) else {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is no journal of a publisher"));
    };
    let mut positions = Vec::new();
    while let Some((position, after)) = record(publisher, rest) {
        positions.push(position);
        rest = after;
    }
    Ok(positions)
}

fn record(publisher: Uuid, text: &[u8]) -> Option<(Position, &[u8])> {
    let (epoch, rest) = number(text)?;
    let (length, rest) = number(rest)?;
    let (topic, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let (last, rest) = number(rest)?;
    let topic = Bytes::copy_from_slice(topic);
    Some((Position { publisher, epoch, topic, first: 1, last, end: End::Final }, rest))
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (octets, rest) = text.split_first_chunk()?;
    Some((u64::from_le_bytes(*octets), rest))
}

/// What the file begins with.
const MAGIC: &[u8] = b"dragonwire positions 1\n";

/// Octets of a number.
const NUMBER: u64 = 8;

/// How many earlier lives are remembered, for subscribers that have not heard of their ends.
const KEPT_LIVES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(journal: &Journal) -> Vec<(u64, Bytes, u64)> {
        journal.earlier().iter().map(|end| (end.epoch, end.topic.clone(), end.last)).collect()
    }

    #[test]
    fn a_successor_knows_where_each_life_ended() {
        let folder = tempfile::tempdir().unwrap();
        let id = Uuid::from_u128(7);
        let mut journal = Journal::open(folder.path(), id, 100).unwrap();
        assert_eq!((journal.epoch(), journal.earlier()), (100, &[][..]));
        for (topic, sequence) in [("D", 1), ("tenant", 1), ("D", 2), ("D", 3)] {
            journal.note(topic.as_bytes(), sequence).unwrap();
        }
        drop(journal);
        // the clock went backwards
        let mut journal = Journal::open(folder.path(), id, 50).unwrap();
        assert_eq!(journal.epoch(), 101);
        assert_eq!(ends(&journal), [(100, Bytes::from("D"), 3), (100, Bytes::from("tenant"), 1)]);
        journal.note(b"D", 1).unwrap();
        drop(journal);
        let journal = Journal::open(folder.path(), id, 50).unwrap();
        assert_eq!(journal.epoch(), 102);
        assert_eq!(
            ends(&journal),
            [
                (100, Bytes::from("D"), 3),
                (100, Bytes::from("tenant"), 1),
                (101, Bytes::from("D"), 1)
            ]
        );
    }

    #[test]
    fn only_the_latest_lives_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for now in 1..=10 {
            let mut journal = Journal::open(folder.path(), Uuid::nil(), now).unwrap();
            assert_eq!(ends(&journal).len() as u64, (now - 1).min(KEPT_LIVES as u64));
            journal.note(b"D", now).unwrap();
        }
    }

    #[test]
    fn a_second_publisher_with_the_same_id_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), Uuid::nil(), 1).unwrap();
        let error = Journal::open(folder.path(), Uuid::nil(), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        drop(journal);
        Journal::open(folder.path(), Uuid::nil(), 1).unwrap();
    }

    #[test]
    fn a_record_that_was_cut_short_is_passed_over_and_another_file_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), Uuid::nil(), 1).unwrap();
        journal.note(b"D", 5).unwrap();
        journal.note(b"tenant", 5).unwrap();
        let path = journal.path().to_owned();
        drop(journal);
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() - 3]).unwrap();
        let journal = Journal::open(folder.path(), Uuid::nil(), 1).unwrap();
        assert_eq!(ends(&journal), [(1, Bytes::from("D"), 5)]);
        drop(journal);
        fs::write(&path, "something else").unwrap();
        let error = Journal::open(folder.path(), Uuid::nil(), 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
