//! What one peer still has to be sent: encoded frames in batches, ready for the kernel.
//!
//! Small frames are copied into one growing buffer, large ones are chained by reference. A message
//! counts against the high-water mark from its acceptance until the kernel has the last octet of
//! its group of segments; groups begin and end with messages, so that after a lost connection it is
//! known to the message what was sent, and nothing half-sent is ever completed on a new one.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::append::append;
use crate::blocks::{BLOCK, Blocks};
use crate::framing::{Framing, header_size, parse_header, put_any_header, put_header};
use crate::governor::Account;
use crate::message::{Encoded, Message};
use crate::stats::DropReason;

/// A message, or the frames of one that the caller holds as slices.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Payload<'a> {
    Message(&'a Message),
    /// The same, whose large frames are charged to a budget already.
    Charged(&'a Message),
    Slices(&'a [&'a [u8]]),
}

impl Payload<'_> {
    /// Octets on the wire in the new framing.
    #[inline]
    pub(crate) fn wire_size(&self) -> usize {
        let frame = |len: usize| header_size(len) + len;
        match self {
            Payload::Message(message) | Payload::Charged(message) => match message.encoded() {
                Encoded::Wire(wire) => wire.len(),
                Encoded::Shared(wire) => wire.len(),
                Encoded::Parts => message.parts().map(|(part, _)| frame(part.len())).sum(),
            },
            Payload::Slices(slices) => slices.iter().map(|slice| frame(slice.len())).sum(),
        }
    }

    fn frames(&self) -> usize {
        match self {
            Payload::Message(message) | Payload::Charged(message) => message.frames().count(),
            Payload::Slices(slices) => slices.len(),
        }
    }

    /// Whether a queue holds all of it, rather than large frames by reference.
    pub(crate) fn is_copied(&self, size: usize) -> bool {
        size < SHARE || matches!(self, Payload::Slices(_))
    }

    pub(crate) fn topic(&self) -> &[u8] {
        match self {
            Payload::Message(message) | Payload::Charged(message) => message.topic(),
            Payload::Slices(slices) => slices.first().copied().unwrap_or_default(),
        }
    }

    /// Whether it is better packed once than for each of several peers.
    #[inline]
    pub(crate) fn is_small(size: usize) -> bool {
        size < SHARE
    }

    /// Appends the frames in the new framing.
    #[inline(always)]
    pub(crate) fn pack(&self, out: &mut Vec<u8>) {
        match self {
            Payload::Message(message) | Payload::Charged(message) => match message.encoded() {
                Encoded::Wire(wire) => append(out, wire),
                Encoded::Shared(wire) => append(out, wire),
                Encoded::Parts => {
                    for (part, more) in message.parts() {
                        put_header(out, part.len(), more);
                        append(out, part);
                    }
                }
            },
            Payload::Slices(slices) => {
                let mut slices = slices.iter();
                while let Some(slice) = slices.next() {
                    put_header(out, slice.len(), !slices.as_slice().is_empty());
                    append(out, slice);
                }
            }
        }
    }
}

/// Retired buffers, shared by all peers of a socket.
#[derive(Debug)]
pub(crate) struct Pool {
    buffers: Vec<Vec<u8>>,
    /// The fewest of them that there were at any time since they were trimmed.
    spare: usize,
    /// What they can hold.
    kept: usize,
    /// Whose budget shared copies are charged to.
    account: Option<Arc<Account>>,
    /// Empty queues.
    queues: Vec<VecDeque<Segment>>,
    /// Scratch space.
    header: Vec<u8>,
    pub(crate) packed: Vec<u8>,
    /// For copies that several peers share.
    block: BytesMut,
    blocks: Blocks,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            buffers: Vec::new(),
            spare: 0,
            kept: 0,
            account: None,
            queues: Vec::new(),
            header: Vec::new(),
            packed: Vec::new(),
            block: BytesMut::new(),
            blocks: Blocks::new(SHARED_BLOCKS),
        }
    }
}

impl Pool {
    fn buffer(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.kept -= buffer.capacity();
        self.spare = self.spare.min(self.buffers.len());
        buffer
    }

    fn put_buffer(&mut self, mut buffer: Vec<u8>) {
        let keeps = self.account.as_ref().map_or(usize::MAX, |account| account.for_later());
        if buffer.capacity() <= 2 * BATCH && self.kept + buffer.capacity() <= keeps {
            buffer.clear();
            self.kept += buffer.capacity();
            self.buffers.push(buffer);
        }
    }

    /// Within a budget.
    pub(crate) fn governed(account: Arc<Account>) -> Self {
        Self { account: Some(account), ..Self::default() }
    }

    /// Gives up all retired buffers.
    pub(crate) fn empty(&mut self) {
        self.buffers = Vec::new();
        self.queues = Vec::new();
        self.kept = 0;
        self.spare = 0;
    }

    /// What retired buffers cost.
    pub(crate) fn cost(&self) -> usize {
        self.kept
    }

    /// What the buffer that would be taken next can hold.
    fn next_capacity(&self) -> usize {
        self.buffers.last().map_or(0, Vec::capacity)
    }

    /// Gives up what has not been needed since the last time; to be called now and then.
    pub(crate) fn trim(&mut self) {
        let needed = self.buffers.len() - self.spare;
        for buffer in self.buffers.drain(needed.max(KEPT).min(self.buffers.len())..) {
            self.kept -= buffer.capacity();
        }
        self.spare = self.buffers.len();
        self.queues.truncate(KEPT);
        self.blocks.trim();
    }

    /// Whether a message is better copied once than for each of several peers, or is to be charged
    /// once for all of them.
    #[inline]
    pub(crate) fn is_worth_sharing(&self, payload: &Payload<'_>) -> bool {
        match payload {
            Payload::Message(message) => {
                self.account.is_some() && message.frames().any(|frame| frame.len() >= SHARE)
            }
            Payload::Charged(_) => false,
            Payload::Slices(slices) => slices.iter().any(|slice| slice.len() >= SHARE),
        }
    }

    /// A message that was made to be [shared](Self::share).
    pub(crate) fn payload<'a>(&self, message: &'a Message) -> Payload<'a> {
        if self.account.is_some() { Payload::Charged(message) } else { Payload::Message(message) }
    }

    /// Copies a message whose frames several peers will share.
    pub(crate) fn share(&mut self, payload: &Payload<'_>) -> Message {
        if let Some(account) = &self.account {
            let charged =
                |frame: Bytes| if frame.len() < SHARE { frame } else { account.share(frame) };
            return match payload {
                Payload::Message(message) | Payload::Charged(message) => {
                    let frames = Message::clone(message).into_frames().into_iter();
                    Message::from_frames(frames.map(charged))
                }
                Payload::Slices(slices) => {
                    let frames = slices.iter().map(|slice| Bytes::copy_from_slice(slice));
                    Message::from_frames(frames.map(charged))
                }
            };
        }
        match payload {
            Payload::Message(message) | Payload::Charged(message) => Message::clone(message),
            Payload::Slices(slices) => {
                Message::from_frames(slices.iter().map(|slice| self.copy(slice)))
            }
        }
    }

    fn copy(&mut self, octets: &[u8]) -> Bytes {
        if octets.len() > BLOCK {
            return Bytes::copy_from_slice(octets);
        }
        if self.block.capacity() < octets.len() {
            self.blocks.put(std::mem::take(&mut self.block));
            self.block = self.blocks.get(octets.len());
        }
        self.block.extend_from_slice(octets);
        self.block.split().freeze()
    }

    fn put_queue(&mut self, queue: VecDeque<Segment>) {
        debug_assert!(queue.is_empty(), "a queue in use is not for others");
        if self.queues.len() < QUEUES && queue.capacity() > 0 {
            self.queues.push(queue);
        }
    }
}

#[derive(Debug)]
struct Segment {
    data: Data,
    /// Messages whose last octet is in it.
    messages: usize,
    /// Whether it ends with a message's end: the end of a group.
    ends: bool,
    /// Commands: not to be sent again on another connection.
    control: bool,
    /// The kernel has a part of its group: nothing is appended to it.
    sealed: bool,
}

#[derive(Debug)]
enum Data {
    Packed(Vec<u8>),
    /// And whether it is charged to a budget elsewhere.
    Shared(Bytes, bool),
    /// What stands between shared frames: headers, and a topic.
    Few(Few),
}

#[derive(Debug)]
struct Few {
    len: usize,
    octets: [u8; FEW],
}

impl Few {
    fn bytes(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    /// Appends octets, if there is room.
    fn append(&mut self, octets: &[u8]) -> bool {
        let Some(space) = self.octets.get_mut(self.len..self.len + octets.len()) else {
            return false;
        };
        space.copy_from_slice(octets);
        self.len += octets.len();
        true
    }
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Packed(packed) => packed,
            Data::Shared(shared, _) => shared,
            Data::Few(few) => few.bytes(),
        }
    }

    /// What it costs in memory.
    fn cost(&self) -> usize {
        size_of::<Self>()
            + match &self.data {
                Data::Packed(packed) => packed.capacity(),
                Data::Shared(shared, false) => shared.len(),
                Data::Shared(_, true) | Data::Few(_) => 0,
            }
    }
}

/// Groups of segments on their way to the kernel, out of the lock.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    segments: VecDeque<Segment>,
    /// Octets that the kernel has, and had before.
    written: usize,
    start: usize,
    total: usize,
}

impl Flight {
    /// Octets that the kernel took of this flight.
    pub(crate) fn progress(&self) -> usize {
        self.written - self.start
    }

    /// What is still to be written, as far as there are slices for it.
    pub(crate) fn io_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut skip = self.written;
        let mut count = 0;
        for segment in &self.segments {
            let bytes = segment.bytes();
            if skip >= bytes.len() {
                skip -= bytes.len();
                continue;
            }
            let Some(slot) = slices.get_mut(count) else { break };
            *slot = IoSlice::new(bytes.get(skip..).unwrap_or_default());
            skip = 0;
            count += 1;
        }
        count
    }

    pub(crate) fn advance(&mut self, octets: usize) {
        self.written += octets;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.written >= self.total
    }
}

/// What became of messages.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settled {
    /// The kernel has all of them.
    pub(crate) sent: usize,
    /// They will not be sent.
    pub(crate) dropped: usize,
}

/// One peer's queue.
#[derive(Debug)]
pub(crate) struct Outbox {
    framing: Framing,
    segments: VecDeque<Segment>,
    /// Octets of the first group that the kernel has.
    written: usize,
    /// Commands, which go out before the next group.
    control: Vec<u8>,
    /// Messages and their octets, the flight included.
    messages: usize,
    bytes: usize,
    in_flight: bool,
    hwm: usize,
    hwm_bytes: usize,
    /// Octets up to which nobody is to be asked: `hwm_bytes`, or with a budget what fits into the
    /// buffer at the end.
    mark: usize,
    /// Keeps within a budget; the next buffer may have so much room.
    governed: bool,
    granted: usize,
    /// What the segments cost in memory, the flight's included.
    cost: usize,
}

impl Outbox {
    /// Marks of 0 are no marks. `governed`: within a budget.
    pub(crate) fn new(hwm: usize, hwm_bytes: usize, governed: bool) -> Self {
        let mark = |mark| if mark == 0 { usize::MAX } else { mark };
        Self {
            framing: Framing::New,
            segments: VecDeque::new(),
            written: 0,
            control: Vec::new(),
            messages: 0,
            bytes: 0,
            in_flight: false,
            hwm: mark(hwm),
            hwm_bytes: mark(hwm_bytes),
            mark: if governed { 0 } else { mark(hwm_bytes) },
            governed,
            granted: 0,
            cost: 0,
        }
    }

    /// An empty one with the same marks.
    fn emptied(&self, framing: Framing) -> Self {
        Self { framing, ..Self::new(self.hwm, self.hwm_bytes, self.governed) }
    }

    /// Whether a message of that size may be queued; [`DropReason::Memory`]: if
    /// [memory for it](Self::need) is granted.
    #[inline]
    pub(crate) fn room_for(&self, size: usize) -> Result<(), DropReason> {
        if self.messages >= self.hwm {
            Err(DropReason::PeerHwmMessages)
        } else if self.bytes.saturating_add(size) > self.mark {
            self.room_beyond_mark(size)
        } else {
            Ok(())
        }
    }

    #[cold]
    fn room_beyond_mark(&self, size: usize) -> Result<(), DropReason> {
        if self.messages > 0 && self.bytes.saturating_add(size) > self.hwm_bytes {
            Err(DropReason::PeerHwmBytes)
        } else if self.governed {
            Err(DropReason::Memory)
        } else {
            Ok(())
        }
    }

    /// What memory a message takes on top; `generous`: with room for more of its kind.
    pub(crate) fn need(
        &self,
        payload: &Payload<'_>,
        size: usize,
        pool: &Pool,
        generous: bool,
    ) -> usize {
        if !payload.is_copied(size) {
            let charged = matches!(payload, Payload::Charged(_));
            return if charged { 0 } else { size } + 4 * size_of::<Segment>();
        }
        match self.segments.back().filter(|_| self.is_open()) {
            Some(Segment { data: Data::Packed(tail), .. }) => {
                let spare = tail.capacity() - tail.len();
                let more = if generous { tail.capacity().min(BATCH) } else { 0 };
                if spare >= size { 0 } else { (size - spare).max(more) }
            }
            _ if generous => size.max(pool.next_capacity()).max(BUFFER) + size_of::<Segment>(),
            _ => size + size_of::<Segment>(),
        }
    }

    /// So much memory was granted.
    pub(crate) fn grant(&mut self, copied: bool, need: usize) {
        if copied && self.is_open() {
            if let Some(Segment { data: Data::Packed(tail), .. }) = self.segments.back_mut() {
                let before = tail.capacity();
                tail.reserve_exact(before - tail.len() + need);
                self.cost += tail.capacity() - before;
            }
        } else {
            self.granted = need;
        }
        self.remark();
    }

    /// What it costs in memory, and at least what its messages would alone.
    pub(crate) fn weight(&self) -> usize {
        self.cost.max(self.bytes)
    }

    /// What it costs in memory.
    pub(crate) fn cost(&self) -> usize {
        self.cost + self.control.capacity()
    }

    /// What commands cost that wait to be sent.
    pub(crate) fn control_cost(&self) -> usize {
        self.control.capacity()
    }

    /// Sets the mark anew.
    fn remark(&mut self) {
        if self.governed {
            let spare = match self.segments.back() {
                Some(Segment { data: Data::Packed(tail), .. }) if self.is_open() => {
                    tail.capacity() - tail.len()
                }
                _ => self.granted,
            };
            self.mark = self.bytes.saturating_add(spare).min(self.hwm_bytes);
        }
    }

    /// The peer takes nothing for now: gives back what the last buffer has to spare.
    pub(crate) fn shrink(&mut self) {
        if let Some(segment) = self.segments.back_mut()
            && let Data::Packed(tail) = &mut segment.data
            && tail.capacity() - tail.len() >= BUFFER
        {
            let before = tail.capacity();
            tail.shrink_to_fit();
            self.cost -= before - tail.capacity();
        }
        if self.control.capacity() - self.control.len() >= BUFFER {
            self.control.shrink_to_fit();
        }
        self.remark();
    }

    /// Whether so much has drained that those who wait should come back.
    pub(crate) fn is_low(&self) -> bool {
        self.messages <= self.hwm / 2 && self.bytes <= self.hwm_bytes / 2
    }

    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing to take; a flight may still be out.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        self.segments.is_empty() && self.control.is_empty()
    }

    /// Whether a flight is out.
    #[inline]
    pub(crate) fn is_flying(&self) -> bool {
        self.in_flight
    }

    /// Whether nothing is queued and nothing is on its way.
    pub(crate) fn is_flushed(&self) -> bool {
        self.is_idle() && !self.in_flight
    }

    /// Whether a batch is full and might as well be written now.
    #[inline]
    pub(crate) fn has_batch(&self) -> bool {
        self.bytes >= BATCH
    }

    /// Queues a message of so many octets on the wire, whether or not there is room.
    #[inline(always)]
    pub(crate) fn push(&mut self, payload: &Payload<'_>, size: usize, pool: &mut Pool) {
        match self.tail(size) {
            Some(tail) => payload.pack(tail),
            None => self.push_any(payload, pool),
        }
    }

    /// The same for a message that has been [packed](Payload::pack) for several peers.
    #[inline(always)]
    pub(crate) fn push_packed(&mut self, payload: &Payload<'_>, wire: &[u8], pool: &mut Pool) {
        match self.tail(wire.len()) {
            Some(tail) => tail.extend_from_slice(wire),
            None => self.push_any(payload, pool),
        }
    }

    /// Where a small message goes: behind the one before. It is counted already.
    #[inline(always)]
    fn tail(&mut self, size: usize) -> Option<&mut Vec<u8>> {
        if size < SHARE
            && self.framing == Framing::New
            && let Some(segment) = self.segments.back_mut()
            && let Segment { data: Data::Packed(packed), sealed: false, messages, .. } = segment
            && packed.len() < BATCH
        {
            *messages += 1;
            self.messages += 1;
            self.bytes += size;
            if packed.capacity() - packed.len() < size {
                self.cost += grow(packed, size);
            }
            return Some(packed);
        }
        None
    }

    /// The same for whatever message.
    #[inline(never)]
    fn push_any(&mut self, payload: &Payload<'_>, pool: &mut Pool) {
        let before = self.segments.len();
        let tail = self.segments.back().map_or(0, |segment| segment.bytes().len());
        let cost = self.segments.back().map_or(0, Segment::cost);
        let size = self.encode(payload, pool);
        let changed = self.segments.range(before.saturating_sub(1)..);
        self.cost += changed.map(Segment::cost).sum::<usize>() - cost;
        // the segment that holds the message's first octet: the old tail, if it has grown
        let grown =
            before > 0 && self.segments.get(before - 1).is_some_and(|old| old.bytes().len() > tail);
        let first = if grown { before - 1 } else { before };
        let last = self.segments.len() - 1;
        for segment in self.segments.range_mut(first..last) {
            segment.ends = false;
        }
        if let Some(segment) = self.segments.back_mut() {
            segment.messages += 1;
            segment.ends = true;
        }
        self.messages += 1;
        self.bytes += size;
        self.remark();
    }

    /// Appends the frames; returns their octets.
    fn encode(&mut self, payload: &Payload<'_>, pool: &mut Pool) -> usize {
        let framing = self.framing;
        let charged = matches!(payload, Payload::Charged(_));
        if self.governed && framing == Framing::Old {
            let size = payload.wire_size();
            if payload.is_copied(size) {
                // the longer headers were not asked for: what they take is taken, but not twice the
                // buffer with it
                self.open(pool).reserve_exact(size + payload.frames() * LONGER);
            }
        }
        match payload {
            Payload::Slices(slices) => {
                let packed = self.open(pool);
                let start = packed.len();
                for (i, slice) in slices.iter().enumerate() {
                    put_any_header(framing, packed, slice.len(), i + 1 < slices.len());
                    append(packed, slice);
                }
                packed.len() - start
            }
            Payload::Message(message) | Payload::Charged(message) => match message.encoded() {
                Encoded::Wire(wire) if framing == Framing::New => {
                    append(self.open(pool), wire);
                    wire.len()
                }
                Encoded::Shared(wire) if framing == Framing::New => {
                    if wire.len() < SHARE {
                        append(self.open(pool), wire);
                    } else {
                        self.segments.push_back(Segment::new(Data::Shared(wire.clone(), charged)));
                    }
                    wire.len()
                }
                Encoded::Wire(_) | Encoded::Shared(_) => {
                    let plain = Message::from_frames(Message::clone(message).into_frames());
                    self.encode(&Payload::Message(&plain), pool)
                }
                Encoded::Parts => {
                    let chained = message.parts().any(|(part, _)| part.len() >= SHARE);
                    let mut header = std::mem::take(&mut pool.header);
                    let mut size = 0;
                    for (part, more) in message.parts() {
                        header.clear();
                        put_any_header(framing, &mut header, part.len(), more);
                        size += header.len() + part.len();
                        if part.len() < SHARE {
                            // together, as no body is looked for behind its header but a shared one
                            header.extend_from_slice(part);
                        }
                        self.put(&header, chained, pool);
                        if part.len() >= SHARE {
                            let data = Data::Shared(part.clone(), charged);
                            self.segments.push_back(Segment::new(data));
                        }
                    }
                    pool.header = header;
                    size
                }
            },
        }
    }

    /// Appends octets that are copied; `chained`: they stand between shared ones.
    fn put(&mut self, octets: &[u8], chained: bool, pool: &mut Pool) {
        if let Some(Segment { data: Data::Few(few), sealed: false, .. }) = self.segments.back_mut()
            && few.append(octets)
        {
            return;
        }
        if chained && octets.len() <= FEW && !self.is_open() {
            let mut few = Few { len: 0, octets: [0; FEW] };
            few.append(octets);
            self.segments.push_back(Segment::new(Data::Few(few)));
        } else {
            self.open(pool).extend_from_slice(octets);
        }
    }

    /// Whether small frames can go to the last buffer.
    fn is_open(&self) -> bool {
        self.segments.back().is_some_and(|segment| match &segment.data {
            Data::Packed(packed) => packed.len() < BATCH && !segment.sealed,
            Data::Shared(..) | Data::Few(_) => false,
        })
    }

    /// The buffer that small frames go to.
    fn open(&mut self, pool: &mut Pool) -> &mut Vec<u8> {
        if !self.is_open() {
            let next = pool.next_capacity();
            let buffer = if self.governed && (next == 0 || next > self.granted) {
                Vec::with_capacity(self.granted.saturating_sub(size_of::<Segment>()))
            } else {
                pool.buffer()
            };
            self.granted = 0;
            self.segments.push_back(Segment::new(Data::Packed(buffer)));
        }
        match self.segments.back_mut() {
            Some(Segment { data: Data::Packed(packed), .. }) => packed,
            _ => unreachable!("the last segment was found to be packed, or a packed one was added"),
        }
    }

    /// Commands to send before the next message.
    pub(crate) fn control(&mut self) -> &mut Vec<u8> {
        &mut self.control
    }

    /// Takes groups for the kernel, about `limit` octets of them. Nothing more can be taken until
    /// they are [settled](Self::settle).
    pub(crate) fn take(&mut self, limit: usize, pool: &mut Pool) -> Option<Flight> {
        if self.in_flight || self.is_idle() {
            return None;
        }
        let segments = pool.queues.pop().unwrap_or_default();
        let mut flight = Flight { segments, written: self.written, start: self.written, total: 0 };
        if self.written == 0 && !self.control.is_empty() {
            let mut control = Segment::new(Data::Packed(std::mem::take(&mut self.control)));
            control.control = true;
            control.ends = true;
            control.sealed = true;
            flight.total += control.bytes().len();
            flight.segments.push_back(control);
        }
        while let Some(segment) = self.segments.pop_front() {
            flight.total += segment.bytes().len();
            let ends = segment.ends;
            flight.segments.push_back(segment);
            if ends && (flight.total >= limit || flight.segments.len() >= FLIGHT_SEGMENTS) {
                break;
            }
        }
        self.written = 0;
        self.in_flight = true;
        self.remark();
        Some(flight)
    }

    /// Takes a flight back: whole groups that were written are sent, the rest stays queued.
    pub(crate) fn settle(&mut self, mut flight: Flight, pool: &mut Pool) -> usize {
        self.in_flight = false;
        let mut sent = 0;
        // the end of the last group that was written, in segments and octets
        let (mut done, mut end, mut passed) = (0, 0, 0);
        for (index, segment) in flight.segments.iter().enumerate() {
            passed += segment.bytes().len();
            if passed > flight.written {
                break;
            }
            if segment.ends {
                (done, end) = (index + 1, passed);
            }
        }
        for segment in flight.segments.drain(..done) {
            sent += segment.messages;
            if !segment.control {
                self.bytes = self.bytes.saturating_sub(segment.bytes().len());
                self.cost = self.cost.saturating_sub(segment.cost());
            }
            if let Data::Packed(packed) = segment.data {
                pool.put_buffer(packed);
            }
        }
        self.messages = self.messages.saturating_sub(sent);
        self.written = flight.written - end;
        if self.written > 0 {
            for segment in &mut flight.segments {
                segment.sealed = true;
                if segment.ends {
                    break;
                }
            }
        }
        if self.written == 0
            && flight.segments.front().is_some_and(|segment| segment.control)
            && let Some(Segment { data: Data::Packed(mut first), .. }) = flight.segments.pop_front()
        {
            // not to be overtaken by commands that have come since
            first.append(&mut self.control);
            self.control = first;
        }
        if self.segments.is_empty() {
            std::mem::swap(&mut self.segments, &mut flight.segments);
        }
        while let Some(segment) = flight.segments.pop_back() {
            self.segments.push_front(segment);
        }
        pool.put_queue(flight.segments);
        self.remark();
        sent
    }

    /// The connection is gone: commands are forgotten, and of the group that the kernel has in part
    /// the messages that it has in whole are sent. The others are queued anew for a peer of
    /// `framing`. No flight may be out.
    pub(crate) fn rewind(&mut self, framing: Framing, pool: &mut Pool) -> usize {
        let emptied = self.emptied(framing);
        let old = std::mem::replace(self, emptied);
        let mut sent = 0;
        let mut frames = Vec::new();
        let mut offset = 0;
        for_each_frame(old.framing, &old.segments, |control, frame, more, end| {
            offset = end;
            if control {
                return;
            }
            frames.push(frame);
            if !more {
                let frames = std::mem::take(&mut frames);
                if end <= old.written {
                    sent += 1;
                } else {
                    self.push_any(&Payload::Message(&Message::from_frames(frames)), pool);
                }
            }
        });
        debug_assert!(frames.is_empty() && offset >= old.written, "groups hold whole messages");
        sent
    }

    /// The framing of the peer, once it is known. Queued messages are encoded anew if they have to.
    pub(crate) fn set_framing(&mut self, framing: Framing, pool: &mut Pool) {
        if self.framing != framing {
            self.rewind(framing, pool);
        }
    }

    /// Empties the queue for good. No flight may be out.
    pub(crate) fn clear(&mut self, pool: &mut Pool) -> Settled {
        let messages = self.messages;
        let sent = self.rewind(self.framing, pool);
        *self = self.emptied(self.framing);
        Settled { sent, dropped: messages - sent }
    }

    /// Drops the messages of which the kernel has nothing yet. Of a buffer that it has in part only the
    /// message stays that it has in part; those before that are sent.
    pub(crate) fn conflate(&mut self) -> Settled {
        let mut settled = self.cut();
        let half_sent = match self.written {
            0 => 0,
            _ => self.segments.iter().take_while(|segment| !segment.ends).count() + 1,
        };
        for segment in self.segments.drain(half_sent.min(self.segments.len())..) {
            settled.dropped += segment.messages;
            self.bytes = self.bytes.saturating_sub(segment.bytes().len());
            self.cost = self.cost.saturating_sub(segment.cost());
        }
        self.messages = self.messages.saturating_sub(settled.sent + settled.dropped);
        self.remark();
        settled
    }

    /// Leaves nothing but the half-sent message of a group that is one buffer; what of the others is to
    /// be counted is returned.
    fn cut(&mut self) -> Settled {
        let written = self.written;
        let Some(first) = self.segments.front_mut().filter(|_| written > 0) else {
            return Settled::default();
        };
        let before = (first.cost(), first.bytes().len());
        let Segment { data: Data::Packed(packed), messages, ends: true, control: false, .. } =
            first
        else {
            return Settled::default();
        };
        let Some((start, end, sent)) = message_at(self.framing, packed, written) else {
            return Settled::default();
        };
        let left = usize::from(start < end);
        let settled = Settled { sent, dropped: messages.saturating_sub(sent + left) };
        *messages = left;
        packed.truncate(end);
        packed.drain(..start);
        packed.shrink_to_fit();
        self.written = written - start;
        self.cost = self.cost.saturating_sub(before.0 - first.cost());
        self.bytes = self.bytes.saturating_sub(before.1 - first.bytes().len());
        if left == 0 {
            self.cost = self.cost.saturating_sub(first.cost());
            self.segments.pop_front();
        }
        settled
    }

    /// Whether there is a message that [`conflate`](Self::conflate) would drop, as far as can be told
    /// without a look at them.
    pub(crate) fn can_conflate(&self) -> bool {
        self.messages > usize::from(self.written > 0)
    }
}

/// Where the message begins and ends that has an octet before and one behind `offset`, or both are
/// `offset` if one ends there; and how many come before it.
fn message_at(framing: Framing, packed: &[u8], offset: usize) -> Option<(usize, usize, usize)> {
    let (mut start, mut end, mut before) = (0, 0, 0);
    while end < offset {
        start = end;
        let mut more = true;
        while more {
            let header = parse_header(framing, packed.get(end..)?).ok()??;
            if header.command {
                return None;
            }
            more = header.more;
            end = end.checked_add(header.size)?.checked_add(usize::try_from(header.len).ok()?)?;
        }
        if end > packed.len() {
            return None;
        }
        if end <= offset {
            start = end;
            before += 1;
        }
    }
    Some((start, end, before))
}

impl Segment {
    fn new(data: Data) -> Self {
        Self { data, messages: 0, ends: false, control: false, sealed: false }
    }
}

/// Calls `each` with every frame, whether its segment is one of commands, whether another frame of
/// its message follows, and where it ends.
fn for_each_frame(
    framing: Framing,
    segments: &VecDeque<Segment>,
    mut each: impl FnMut(bool, Bytes, bool, usize),
) {
    let mut end = 0;
    let mut awaited = None;
    for segment in segments {
        let mut rest = segment.bytes();
        let own = |body: &[u8]| match &segment.data {
            Data::Packed(_) | Data::Few(_) => Bytes::copy_from_slice(body),
            Data::Shared(shared, _) => shared.slice_ref(body),
        };
        if let Some(more) = awaited.take() {
            // the body of a header that stands at the end of the segment before
            end += rest.len();
            each(segment.control, own(rest), more, end);
            continue;
        }
        while let Ok(Some(header)) = parse_header(framing, rest) {
            let body = rest.get(header.size..).unwrap_or_default();
            end += header.size;
            if body.is_empty() && header.len > 0 {
                awaited = Some(header.more);
                break;
            }
            let (body, others) = body.split_at(body.len().min(header.len as usize));
            end += body.len();
            each(segment.control || header.command, own(body), header.more, end);
            rest = others;
        }
    }
}

/// Makes room in a buffer; returns what it costs on top.
#[cold]
fn grow(buffer: &mut Vec<u8>, size: usize) -> usize {
    let before = buffer.capacity();
    buffer.reserve(size);
    buffer.capacity() - before
}

/// Octets in a batch: a few of them fill the kernel's buffer, and many small messages share the
/// cost of one system call.
pub(crate) const BATCH: usize = 128 * 1024;

/// Frames from this size on are chained instead of copied: about where copying costs more than a
/// reference count and one more slice to write.
const SHARE: usize = 8 * 1024;

/// How much longer a frame's header is at most in the framing of ZMTP 1.0.
const LONGER: usize = 8;

/// A buffer to begin with, where there is a budget to keep within.
const BUFFER: usize = 1024;

/// Octets that are kept between shared frames: the header of a frame, or two and a topic.
const FEW: usize = 48;

/// Slices are given to the kernel by the dozen; more segments in a flight would only wait.
const FLIGHT_SEGMENTS: usize = 64;

/// Retired buffers, and queues, that outlive a pause.
const KEPT: usize = 8;

/// Retired blocks of shared copies: as many as a queue of large messages can hold, 128 MiB.
const SHARED_BLOCKS: usize = 512;

/// Retired queues: one for each peer that is written to at a time.
const QUEUES: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue(outbox: &mut Outbox, payload: Payload<'_>, pool: &mut Pool) {
        outbox.push(&payload, payload.wire_size(), pool);
    }

    fn octets(flight: &Flight) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = flight.io_slices(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn marks_are_exact() {
        let pool = &mut Pool::default();
        let mut outbox = Outbox::new(2, 0, false);
        let message = Message::from("x");
        for _ in 0..2 {
            assert_eq!(outbox.room_for(3), Ok(()));
            queue(&mut outbox, Payload::Message(&message), pool);
        }
        assert_eq!(outbox.room_for(3), Err(DropReason::PeerHwmMessages));
        let mut flight = outbox.take(1, pool).unwrap();
        assert!(outbox.take(1, pool).is_none(), "one flight at a time");
        flight.advance(3);
        assert_eq!(outbox.settle(flight, pool), 0, "a group is one credit");
        let mut flight = outbox.take(1, pool).unwrap();
        assert_eq!(octets(&flight), b"\0\x01x");
        flight.advance(3);
        assert!(flight.is_done());
        assert_eq!(outbox.settle(flight, pool), 2);
        assert!(outbox.is_flushed() && outbox.messages() == 0 && outbox.bytes() == 0);

        let mut outbox = Outbox::new(0, 10, false);
        assert_eq!(outbox.room_for(100), Ok(()), "an empty queue takes any size");
        queue(&mut outbox, Payload::Message(&message), pool);
        assert_eq!(outbox.room_for(7), Ok(()));
        assert_eq!(outbox.room_for(8), Err(DropReason::PeerHwmBytes));
    }

    #[test]
    fn within_a_budget_every_message_that_takes_memory_is_asked_for() {
        let pool = &mut Pool::default();
        let mut outbox = Outbox::new(0, 0, true);
        let (mut asked, mut granted) = (0, 0);
        let message = Message::from(vec![b'x'; 98]);
        let payload = Payload::Message(&message);
        for _ in 0..1000 {
            if outbox.room_for(100) == Err(DropReason::Memory) {
                let need = outbox.need(&payload, 100, pool, true);
                outbox.grant(true, need);
                (asked, granted) = (asked + 1, granted + need);
            }
            assert_eq!(outbox.room_for(100), Ok(()));
            queue(&mut outbox, payload, pool);
            assert!(outbox.cost <= granted, "{} of {granted}", outbox.cost);
        }
        assert!(asked < 16, "the larger the queue the more at a time: {asked}");
        outbox.shrink();
        assert!(outbox.cost < 101_000, "{}", outbox.cost);

        // what is held by reference is asked for one by one, and in full unless it is charged already
        let large = Message::from_frames([Bytes::from(vec![0; 20_000])]);
        let need = |payload| outbox.need(&payload, 20_009, pool, true);
        assert!(need(Payload::Message(&large)) > 20_000);
        assert!(need(Payload::Charged(&large)) < 1000);
        outbox.clear(pool);
        assert_eq!((outbox.cost, outbox.room_for(1)), (0, Err(DropReason::Memory)));
    }

    #[test]
    fn within_a_budget_no_more_is_taken_than_was_asked_for() {
        let pool = &mut Pool::default();
        for (framing, frames) in [(Framing::New, 0), (Framing::Old, 2)] {
            let mut outbox = Outbox::new(0, 0, true);
            outbox.set_framing(framing, pool);
            let payload = Payload::Slices(&[&[b'x'; 8000], b"y"]);
            let (size, mut granted) = (payload.wire_size(), 0);
            for _ in 0..12 {
                if outbox.room_for(size) == Err(DropReason::Memory) {
                    let need = outbox.need(&payload, size, pool, false);
                    outbox.grant(true, need);
                    granted += need;
                }
                queue(&mut outbox, payload, pool);
                granted += frames * LONGER;
                assert!(outbox.cost <= granted, "{framing:?}: {} of {granted}", outbox.cost);
            }
        }
    }

    #[test]
    fn commands_go_first_but_not_into_a_message() {
        let pool = &mut Pool::default();
        let mut outbox = Outbox::new(0, 0, false);
        queue(&mut outbox, Payload::Slices(&[b"a"]), pool);
        outbox.control().extend_from_slice(b"\x04\x01\0");
        let mut flight = outbox.take(1000, pool).unwrap();
        assert_eq!(octets(&flight), b"\x04\x01\0\0\x01a");
        flight.advance(4);
        assert_eq!(outbox.settle(flight, pool), 0);
        outbox.control().extend_from_slice(b"\x04\x01\0");
        let mut flight = outbox.take(1000, pool).unwrap();
        assert_eq!(octets(&flight), b"\x01a", "the message first");
        flight.advance(2);
        assert_eq!(outbox.settle(flight, pool), 1);
        assert_eq!(octets(&outbox.take(1000, pool).unwrap()), b"\x04\x01\0");
    }

    #[test]
    fn commands_that_the_kernel_did_not_take_go_before_later_ones() {
        let pool = &mut Pool::default();
        let mut outbox = Outbox::new(0, 0, false);
        queue(&mut outbox, Payload::Slices(&[b"a"]), pool);
        outbox.control().extend_from_slice(b"\x04\x02\x01S");
        let flight = outbox.take(1000, pool).unwrap();
        outbox.control().extend_from_slice(b"\x04\x02\x01C");
        assert_eq!(outbox.settle(flight, pool), 0, "nothing was written");
        let mut flight = outbox.take(1000, pool).unwrap();
        assert_eq!(octets(&flight), b"\x04\x02\x01S\x04\x02\x01C\0\x01a");
        flight.advance(3);
        outbox.control().extend_from_slice(b"\x04\x02\x01D");
        assert_eq!(outbox.settle(flight, pool), 0);
        assert_eq!(octets(&outbox.take(1000, pool).unwrap()), b"S\x04\x02\x01C\0\x01a");
        assert_eq!(outbox.control(), b"\x04\x02\x01D");
    }

    #[test]
    fn conflating_keeps_what_the_kernel_has_in_part() {
        let pool = &mut Pool::default();
        let mut outbox = Outbox::new(0, 0, false);
        queue(&mut outbox, Payload::Slices(&[b"a"]), pool);
        let dropped = |dropped| Settled { sent: 0, dropped };
        assert_eq!(outbox.conflate(), dropped(1));
        queue(&mut outbox, Payload::Slices(&[b"b"]), pool);
        let mut flight = outbox.take(1000, pool).unwrap();
        flight.advance(1);
        assert_eq!(outbox.conflate(), dropped(0), "in flight");
        outbox.settle(flight, pool);
        assert!(!outbox.can_conflate());
        assert_eq!(outbox.conflate(), dropped(0), "half-sent");
        assert_eq!(outbox.messages(), 1);
        queue(&mut outbox, Payload::Slices(&[b"c"]), pool);
        assert!(outbox.can_conflate());
        assert_eq!(outbox.conflate(), dropped(1), "behind the half-sent one");
        queue(&mut outbox, Payload::Slices(&[b"d"]), pool);
        assert_eq!(octets(&outbox.take(1000, pool).unwrap()), b"\x01b\0\x01d");
    }

    #[test]
    fn conflating_leaves_only_the_half_sent_message_of_a_buffer() {
        for framing in [Framing::New, Framing::Old] {
            // three messages of 6 octets, the second of two frames
            for written in 0..18 {
                let pool = &mut Pool::default();
                let mut outbox = Outbox::new(0, 0, false);
                outbox.set_framing(framing, pool);
                queue(&mut outbox, Payload::Slices(&[b"aaaa"]), pool);
                queue(&mut outbox, Payload::Slices(&[b"b", b"b"]), pool);
                queue(&mut outbox, Payload::Slices(&[b"cccc"]), pool);
                let mut flight = outbox.take(1000, pool).unwrap();
                let wire = octets(&flight);
                assert_eq!(wire.len(), 18);
                flight.advance(written);
                assert_eq!(outbox.settle(flight, pool), 0);
                let (sent, half) = (written / 6, usize::from(written % 6 > 0));
                assert_eq!(outbox.conflate(), Settled { sent, dropped: 3 - sent - half });
                assert_eq!((outbox.messages(), outbox.bytes()), (half, 6 * half));
                assert_eq!(outbox.is_idle(), half == 0);
                assert_eq!(outbox.cost(), outbox.segments.iter().map(Segment::cost).sum::<usize>());
                queue(&mut outbox, Payload::Slices(&[b"d"]), pool);
                let rest = octets(&outbox.take(1000, pool).unwrap());
                let (rest, new) = rest.split_at(rest.len() - 3);
                assert_eq!(rest, &wire[written..(sent + half) * 6], "{written}");
                assert_eq!(new.last(), Some(&b'd'));
            }
        }
    }

    #[test]
    fn conflating_cuts_no_group_of_several_buffers_and_no_commands() {
        let pool = &mut Pool::default();
        let mut outbox = Outbox::new(0, 0, false);
        queue(&mut outbox, Payload::Slices(&[b"a"]), pool);
        let large = Message::from_frames([Bytes::from(vec![7; SHARE])]);
        queue(&mut outbox, Payload::Message(&large), pool);
        let mut flight = outbox.take(usize::MAX, pool).unwrap();
        flight.advance(1);
        outbox.settle(flight, pool);
        queue(&mut outbox, Payload::Slices(&[b"b"]), pool);
        assert_eq!(outbox.conflate(), Settled { sent: 0, dropped: 1 });
        assert_eq!(outbox.messages(), 2);
        let mut outbox = Outbox::new(0, 0, false);
        outbox.control().extend_from_slice(b"\x04\x02\x01S");
        queue(&mut outbox, Payload::Slices(&[b"a"]), pool);
        let mut flight = outbox.take(1000, pool).unwrap();
        flight.advance(1);
        outbox.settle(flight, pool);
        assert_eq!(outbox.conflate(), Settled { sent: 0, dropped: 1 });
        assert_eq!(octets(&outbox.take(1000, pool).unwrap()), b"\x02\x01S");
    }

    #[derive(Debug, Clone)]
    enum Op {
        Push(Vec<usize>, bool),
        Control,
        Write(usize),
        Conflate,
        Rewind,
    }

    fn op() -> impl Strategy<Value = Op> {
        let len = prop_oneof![0usize..5, 250usize..260, Just(SHARE), Just(SHARE + 1), Just(BATCH)];
        prop_oneof![
            (prop::collection::vec(len, 1..4), any::<bool>()).prop_map(|(l, s)| Op::Push(l, s)),
            Just(Op::Control),
            (0usize..3 * SHARE).prop_map(Op::Write),
            Just(Op::Conflate),
            Just(Op::Rewind),
        ]
    }

    proptest! {
        /// Whatever is pushed, written in part, dropped and cut off: each connection carries whole
        /// messages (but for the last one) in order, every message counts as sent exactly when all of
        /// its octets went out, and none that was not goes missing but the newest that are dropped.
        #[test]
        fn books_balance(ops in prop::collection::vec(op(), 1..60)) {
            let pool = &mut Pool::default();
            let mut outbox = Outbox::new(0, 0, false);
            let (mut pushed, mut sent, mut dropped) = (0usize, 0usize, 0usize);
            let mut wire = Vec::new();
            let mut expected: VecDeque<Vec<Vec<u8>>> = VecDeque::new();
            for op in ops.into_iter().chain([Op::Rewind, Op::Write(usize::MAX), Op::Rewind]) {
                match op {
                    Op::Push(lens, slices) => {
                        pushed += 1;
                        let frames: Vec<_> =
                            lens.iter().map(|len| vec![pushed as u8; *len]).collect();
                        if slices {
                            let slices: Vec<_> = frames.iter().map(|f| &f[..]).collect();
                            queue(&mut outbox, Payload::Slices(&slices), pool);
                        } else {
                            queue(&mut outbox, Payload::Message(&Message::from_frames(frames.clone())), pool);
                        }
                        expected.push_back(frames);
                    }
                    Op::Control => outbox.control().extend_from_slice(b"\x04\x02\x01P"),
                    Op::Write(mut octets) => {
                        while octets > 0 && let Some(mut flight) = outbox.take(BATCH, pool) {
                            while octets > 0 && !flight.is_done() {
                                let mut slices = [IoSlice::new(&[]); 3];
                                let count = flight.io_slices(&mut slices);
                                let mut n = 0;
                                for slice in &slices[..count] {
                                    let part = slice.len().min(octets - n);
                                    wire.extend_from_slice(&slice[..part]);
                                    n += part;
                                }
                                octets -= n;
                                flight.advance(n);
                            }
                            sent += outbox.settle(flight, pool);
                        }
                    }
                    Op::Conflate => {
                        let settled = outbox.conflate();
                        sent += settled.sent;
                        dropped += settled.dropped;
                        expected.truncate(expected.len() - settled.dropped);
                        // what is left the kernel has in part
                        prop_assert!(outbox.segments.is_empty() || outbox.written > 0);
                    }
                    Op::Rewind => {
                        sent += outbox.rewind(Framing::New, pool);
                        // what this connection carried
                        let mut message = Vec::new();
                        let mut rest = &wire[..];
                        while let Some(frame) = crate::framing::split_frame(rest) {
                            rest = frame.rest;
                            if frame.header.command { continue }
                            message.push(frame.body.to_vec());
                            if !frame.header.more {
                                let next = expected.pop_front();
                                prop_assert!(next == Some(std::mem::take(&mut message)));
                            }
                        }
                        wire.clear();
                        prop_assert_eq!(sent + dropped + expected.len(), pushed);
                    }
                }
                prop_assert_eq!(outbox.messages() + sent + dropped, pushed);
                // commands that were sent in part are no part of it
                let queued = outbox.segments.iter().filter(|segment| !segment.control);
                let cost = queued.map(Segment::cost).sum::<usize>();
                prop_assert_eq!(outbox.cost, cost, "nothing is in flight");
            }
            prop_assert!(expected.is_empty());
            prop_assert_eq!(outbox.bytes(), 0);
        }
    }
}
