//! What one peer has sent and the application has not taken: whole messages, as they came.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Buf, Bytes};

use crate::framing::{Framing, Room, split_any_frame};
use crate::message::{Message, SMALL};

/// Whole messages, one after the other, in the peer's framing; commands may stand in between.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) bytes: Bytes,
    pub(crate) messages: usize,
    pub(crate) framing: Framing,
}

/// Where the first message of a chunk lies.
#[derive(Debug)]
pub(crate) struct Front {
    /// Its first frame's body.
    pub(crate) topic: Range<usize>,
    end: usize,
    /// Whether it is encoded as this crate would.
    canonical: bool,
}

impl Chunk {
    /// A message that tells of a subscription or cancellation.
    pub(crate) fn notice(on: bool, topic: &[u8]) -> Self {
        let mut out = Vec::with_capacity(topic.len() + 10);
        crate::framing::put_header(&mut out, topic.len() + 1, false);
        out.push(on.into());
        out.extend_from_slice(topic);
        Self { bytes: out.into(), messages: 1, framing: Framing::New }
    }

    pub(crate) const fn empty() -> Self {
        Self { bytes: Bytes::new(), messages: 0, framing: Framing::New }
    }

    /// Where the first message lies.
    #[inline]
    pub(crate) fn front(&self) -> Option<Front> {
        if self.messages == 0 {
            return None;
        }
        let mut rest = &self.bytes[..];
        let mut topic = None;
        let mut canonical = true;
        loop {
            let frame = split_any_frame(self.framing, rest)?;
            rest = frame.rest;
            let end = self.bytes.len() - rest.len();
            canonical &= frame.header.canonical;
            if frame.header.command {
                continue;
            }
            let topic = topic.get_or_insert(end - frame.body.len()..end);
            if !frame.header.more {
                return Some(Front { topic: topic.clone(), end, canonical });
            }
        }
    }

    /// The first frame of the first message.
    pub(crate) fn topic(&self) -> Option<&[u8]> {
        let mut rest = &self.bytes[..];
        loop {
            let frame = split_any_frame(self.framing, rest)?;
            if !frame.header.command {
                return Some(frame.body);
            }
            rest = frame.rest;
        }
    }

    /// Whether a notice is of a subscription, and its topic.
    pub(crate) fn subscription(&self) -> (bool, &[u8]) {
        let frame = self.topic().unwrap_or_default();
        frame.split_first().map_or((false, &[]), |(first, topic)| (*first == 1, topic))
    }

    /// What it costs in an inbox.
    pub(crate) const fn cost(&self) -> usize {
        CHUNK + self.bytes.len()
    }

    /// Octets of the chunk, such as those of a [`Front`].
    #[inline]
    pub(crate) fn octets(&self, range: Range<usize>) -> &[u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// The first message, which is as `front` says.
    #[inline(always)]
    pub(crate) fn take(&mut self, front: &Front) -> Message {
        self.messages -= 1;
        // a message is returned where it is made, so that it is not moved once more
        if !front.canonical {
            let wire = self.cut(front.end);
            return self.plain_message(&wire);
        }
        if front.end <= SMALL
            && self.messages > 0
            && let Some(&few) = self.bytes.first_chunk()
        {
            self.bytes.advance(front.end);
            return Message::from_few(few, front.end);
        }
        Message::from_wire(self.cut(front.end))
    }

    #[inline]
    fn cut(&mut self, end: usize) -> Bytes {
        if self.messages > 0 {
            return self.bytes.split_to(end);
        }
        let mut wire = std::mem::take(&mut self.bytes);
        wire.truncate(end);
        wire
    }

    /// Takes the first message.
    pub(crate) fn next_message(&mut self) -> Option<Message> {
        let front = self.front()?;
        Some(self.take(&front))
    }

    /// A message in another framing or form: its frames, cut up.
    fn plain_message(&self, wire: &Bytes) -> Message {
        let mut rest = &wire[..];
        let mut frames = Vec::new();
        while let Some(frame) = split_any_frame(self.framing, rest) {
            if !frame.header.command {
                frames.push(wire.slice_ref(frame.body));
            }
            rest = frame.rest;
        }
        Message::from_frames(frames)
    }

    /// Drops the first message unread.
    pub(crate) fn skip_message(&mut self) {
        if let Some(front) = self.front() {
            self.bytes.advance(front.end);
            self.messages = self.messages.saturating_sub(1);
        } else {
            *self = Self::empty();
        }
    }

    /// Takes the first `octets`, which hold `messages`.
    pub(crate) fn split(&mut self, octets: usize, messages: usize) -> Self {
        self.messages -= messages;
        Self { bytes: self.bytes.split_to(octets), messages, framing: self.framing }
    }

    /// Octets up to the end of the first run of messages that `keep` takes, how many they are, and
    /// how many before it were not taken; those are dropped.
    pub(crate) fn first_run(
        &mut self,
        mut keep: impl FnMut(&[u8]) -> bool,
    ) -> (usize, usize, usize) {
        let mut dropped = 0;
        while self.messages > 0 && !self.topic().is_some_and(&mut keep) {
            self.skip_message();
            dropped += 1;
        }
        let (mut octets, mut messages) = (0, 0);
        let mut rest = self.clone();
        while rest.messages > 0 && rest.topic().is_some_and(&mut keep) {
            rest.skip_message();
            messages += 1;
            octets = self.bytes.len() - rest.bytes.len();
        }
        (octets, messages, dropped)
    }
}

/// What a chunk is to XPUB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What the peer has sent as it is.
    Messages,
    /// Its topic, which was not subscribed to, is now.
    Opening,
    /// Its topic is not any more.
    Closing,
    /// A subscription or cancellation that changes nothing.
    Repeat,
    /// An empty one: the application is to be told of the topic at this node.
    Due { node: u32, on: bool, cost: usize },
}

impl Kind {
    pub(crate) const fn is_notice(self) -> bool {
        matches!(self, Self::Opening | Self::Closing | Self::Repeat)
    }
}

#[derive(Debug)]
struct Entry {
    chunk: Chunk,
    kind: Kind,
}

/// Notices that the application need not receive.
#[derive(Debug, Default)]
pub(crate) struct Withdrawn {
    /// Their topics, in order.
    pub(crate) notices: Vec<(Kind, Bytes)>,
    pub(crate) dues: Vec<u32>,
    /// For every chunk there was, whether it is still there.
    pub(crate) kept: Vec<bool>,
}

/// What a chunk costs beside its octets: its place in the queue and the owner of its octets.
const CHUNK: usize = size_of::<Entry>() + size_of::<Chunk>();

/// One peer's queue of chunks, with what there is room for.
#[derive(Debug)]
pub(crate) struct Inbox {
    chunks: VecDeque<Entry>,
    /// Messages and octets that the application has not finished with.
    messages: usize,
    bytes: usize,
    /// What the topics cost that it is due to be told of.
    due: usize,
    hwm: usize,
    hwm_bytes: usize,
}

impl Inbox {
    /// Marks of 0 are no marks.
    pub(crate) fn new(hwm: usize, hwm_bytes: usize) -> Self {
        let mark = |mark| if mark == 0 { usize::MAX } else { mark };
        Self {
            chunks: VecDeque::new(),
            messages: 0,
            bytes: 0,
            due: 0,
            hwm: mark(hwm),
            hwm_bytes: mark(hwm_bytes),
        }
    }

    /// What may be read now. Never more than half of a mark at once, so that the peer is read from
    /// again while the application still has the other half.
    pub(crate) fn room(&self) -> Room {
        if self.bytes >= self.hwm_bytes && self.messages > 0 {
            return Room::NONE;
        }
        Room {
            messages: self.hwm.saturating_sub(self.messages).min(self.hwm.div_ceil(2)),
            bytes: self.hwm_bytes.saturating_sub(self.bytes).min(self.hwm_bytes.div_ceil(2)),
        }
    }

    pub(crate) fn push(&mut self, chunk: Chunk, kind: Kind) {
        self.messages += chunk.messages;
        self.bytes += chunk.bytes.len();
        if let Kind::Due { cost, .. } = kind {
            self.due += cost;
        }
        self.chunks.push_back(Entry { chunk, kind });
    }

    /// The chunk in front, to be taken apart; what is taken stays charged until [`release`](Self::release).
    pub(crate) fn front(&mut self) -> Option<&mut Chunk> {
        self.chunks.front_mut().map(|entry| &mut entry.chunk)
    }

    /// The chunk in front and what it is.
    pub(crate) fn next(&self) -> Option<(Kind, &Chunk)> {
        self.chunks.front().map(|entry| (entry.kind, &entry.chunk))
    }

    pub(crate) fn pop(&mut self) -> Option<Chunk> {
        self.chunks.pop_front().map(|entry| entry.chunk)
    }

    /// Puts a notice where one that was due stands in front.
    pub(crate) fn redeem(&mut self, chunk: Chunk) {
        if let Some(entry) = self.chunks.front_mut()
            && let Kind::Due { cost, .. } = std::mem::replace(&mut entry.kind, Kind::Repeat)
        {
            self.due -= cost;
            self.messages += chunk.messages;
            self.bytes += chunk.bytes.len();
            entry.chunk = chunk;
        }
    }

    /// Drops the chunk in front unread.
    pub(crate) fn skip(&mut self) {
        if let Some(Entry { chunk, kind }) = self.chunks.pop_front() {
            self.release(chunk.messages, chunk.bytes.len());
            if let Kind::Due { cost, .. } = kind {
                self.due -= cost;
            }
        }
    }

    /// What the notices in it cost.
    pub(crate) fn notices_cost(&self) -> usize {
        let notices = self.chunks.iter().filter(|entry| entry.kind.is_notice());
        notices.map(|entry| entry.chunk.cost()).sum()
    }

    /// Takes out every notice, and what is due.
    pub(crate) fn withdraw(&mut self) -> Withdrawn {
        let mut withdrawn = Withdrawn::default();
        let (mut messages, mut bytes) = (0, 0);
        self.chunks.retain(|Entry { chunk, kind }| {
            match *kind {
                Kind::Messages => {}
                Kind::Due { node, .. } => withdrawn.dues.push(node),
                kind => {
                    let (_, topic) = chunk.subscription();
                    withdrawn.notices.push((kind, chunk.bytes.slice_ref(topic)));
                    messages += chunk.messages;
                    bytes += chunk.bytes.len();
                }
            }
            withdrawn.kept.push(*kind == Kind::Messages);
            *kind == Kind::Messages
        });
        self.chunks.shrink_to_fit();
        self.due = 0;
        self.release(messages, bytes);
        withdrawn
    }

    /// How many chunks tell of subscriptions; `each` sees all.
    #[cfg(test)]
    pub(crate) fn notices<T>(&self, mut each: impl FnMut(Kind) -> T) -> usize {
        let kinds = self.chunks.iter().inspect(|entry| drop(each(entry.kind)));
        kinds.filter(|entry| entry.kind != Kind::Messages).count()
    }

    /// The application is through with so much.
    pub(crate) fn release(&mut self, messages: usize, bytes: usize) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether the application is through with everything.
    pub(crate) fn is_done(&self) -> bool {
        self.messages == 0
    }

    /// What it costs in memory.
    pub(crate) fn cost(&self) -> usize {
        self.bytes + self.due + self.chunks.len() * CHUNK
    }

    /// Messages and octets in the queue itself, not in the application's hands.
    pub(crate) fn queued(&self) -> (usize, usize) {
        let chunks = self.chunks.iter().map(|entry| &entry.chunk);
        chunks.fold((0, 0), |(m, b), chunk| (m + chunk.messages, b + chunk.bytes.len()))
    }

    /// Drops everything but the newest message; returns how many were dropped.
    pub(crate) fn conflate(&mut self) -> usize {
        let mut dropped = 0;
        while self.chunks.len() > 1 {
            if let Some(chunk) = self.pop() {
                dropped += chunk.messages;
                self.release(chunk.messages, chunk.bytes.len());
            }
        }
        if let Some(Entry { chunk, .. }) = self.chunks.front_mut() {
            let before = chunk.bytes.len();
            while chunk.messages > 1 {
                chunk.skip_message();
                dropped += 1;
                self.messages -= 1;
            }
            self.bytes -= before - chunk.bytes.len();
        }
        dropped
    }

    /// Drops everything; returns how many messages that were.
    pub(crate) fn clear(&mut self) -> usize {
        let (messages, bytes) = self.queued();
        self.chunks.clear();
        self.due = 0;
        self.release(messages, bytes);
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(frames: &[&str]) -> Chunk {
        let mut out = Vec::new();
        for frame in frames {
            crate::framing::put_header(&mut out, frame.len(), false);
            out.extend_from_slice(frame.as_bytes());
        }
        Chunk { bytes: out.into(), messages: frames.len(), framing: Framing::New }
    }

    #[test]
    fn messages_come_out_in_order() {
        let mut chunk = chunk(&["a", "b", "c"]);
        chunk.skip_message();
        assert_eq!(chunk.next_message(), Some("b".into()));
        assert_eq!(chunk.next_message(), Some("c".into()));
        assert_eq!(chunk.next_message(), None);
    }

    #[test]
    fn commands_and_odd_encodings_are_cut_out() {
        let mut out = vec![0xf9, 1, b'a']; // reserved bits
        crate::command::put_pong(&mut out, b"x");
        out.extend([2, 0, 0, 0, 0, 0, 0, 0, 1, b'b']); // long form
        let mut chunk = Chunk { bytes: out.into(), messages: 1, framing: Framing::New };
        assert_eq!(chunk.next_message(), Some(["a", "b"].into()));
        let mut old = Chunk {
            bytes: vec![2, 1, b'a', 2, 0, b'b'].into(),
            messages: 1,
            framing: Framing::Old,
        };
        assert_eq!(old.next_message(), Some(["a", "b"].into()));
    }

    #[test]
    fn runs_of_what_is_kept() {
        let mut chunk = chunk(&["x", "a", "a", "x", "a"]);
        let keep = |topic: &[u8]| topic == b"a";
        let (octets, messages, dropped) = chunk.first_run(keep);
        assert_eq!((messages, dropped), (2, 1));
        assert_eq!(chunk.split(octets, messages).messages, 2);
        let (octets, messages, dropped) = chunk.first_run(keep);
        assert_eq!((messages, dropped), (1, 1));
        chunk.split(octets, messages);
        assert_eq!(chunk.first_run(keep), (0, 0, 0));
    }

    #[test]
    fn room_is_counted_in_messages_and_octets() {
        let mut inbox = Inbox::new(4, 100);
        assert_eq!(inbox.room().messages, 2);
        inbox.push(chunk(&["a", "b", "c"]), Kind::Messages);
        assert_eq!(inbox.room().messages, 1);
        let taken = inbox.pop().unwrap();
        assert_eq!(inbox.room().messages, 1, "taken is not done");
        inbox.release(taken.messages, taken.bytes.len());
        assert_eq!(inbox.room().messages, 2);
        inbox.push(chunk(&[&"x".repeat(200)]), Kind::Messages);
        assert_eq!(inbox.room(), Room::NONE);
    }

    #[test]
    fn conflating_keeps_the_newest() {
        let mut inbox = Inbox::new(0, 0);
        inbox.push(chunk(&["a", "b"]), Kind::Messages);
        inbox.push(chunk(&["c", "d"]), Kind::Messages);
        assert_eq!(inbox.conflate(), 3);
        assert_eq!(inbox.queued(), (1, 3));
        assert_eq!(inbox.pop().unwrap().next_message(), Some("d".into()));
    }
}
