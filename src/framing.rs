//! Frames on the wire: headers, commands, and the scan of a read buffer for whole messages.
//!
//! Implements RFC 37, "Framing" (the same octets as RFC 15 and 23) and the frames of RFC 13 for peers
//! of ZMTP 1.0. Bytes only: nothing here allocates, loops or recurses in proportion to a number that
//! a peer sent.

use std::ops::Range;

use crate::error::ProtocolError;

/// How frames are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// RFC 13, ZMTP 1.0: a length that counts the flags octet, then flags.
    Old,
    /// RFC 15, 23 and 37, ZMTP 2.0 and later: flags, then a length.
    New,
}

/// A frame's header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Octets of the header itself.
    pub(crate) size: usize,
    /// Octets of the body, as announced.
    pub(crate) len: u64,
    pub(crate) more: bool,
    pub(crate) command: bool,
    /// Whether this is how this crate would have encoded it.
    pub(crate) canonical: bool,
}

/// The header at the front of `buf`; `None` while it is not all there.
#[inline]
pub(crate) fn parse_header(framing: Framing, buf: &[u8]) -> Result<Option<Header>, ProtocolError> {
    match framing {
        Framing::New => Ok(parse_new(buf)),
        Framing::Old => parse_old(buf),
    }
}

#[inline]
fn parse_new(buf: &[u8]) -> Option<Header> {
    let (&flags, rest) = buf.split_first()?;
    let more = flags & MORE != 0;
    let command = flags & COMMAND != 0;
    if flags & LONG == 0 {
        let len = u64::from(*rest.first()?);
        return Some(Header { size: 2, len, more, command, canonical: flags <= MORE });
    }
    let len = u64::from_be_bytes(*rest.first_chunk()?);
    let canonical = flags <= MORE | LONG && len > SHORT_MAX as u64;
    Some(Header { size: 9, len, more, command, canonical })
}

fn parse_old(buf: &[u8]) -> Result<Option<Header>, ProtocolError> {
    let Some((&first, rest)) = buf.split_first() else { return Ok(None) };
    let (size, counted, flags) = if first == 0xff {
        let Some(length) = rest.first_chunk() else { return Ok(None) };
        (10, u64::from_be_bytes(*length), rest.get(8))
    } else {
        (2, u64::from(first), rest.first())
    };
    let Some(len) = counted.checked_sub(1) else { return Err(ProtocolError::EmptyOldFrame) };
    let Some(&flags) = flags else { return Ok(None) };
    Ok(Some(Header { size, len, more: flags & MORE != 0, command: false, canonical: false }))
}

/// A frame that is all there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) header: Header,
    pub(crate) body: &'a [u8],
    /// What follows it.
    pub(crate) rest: &'a [u8],
}

/// The first frame of octets in the new framing that hold only whole frames.
#[inline]
pub(crate) fn split_frame(buf: &[u8]) -> Option<Frame<'_>> {
    let header = parse_new(buf)?;
    frame_of(header, buf)
}

/// The same for either framing.
#[inline]
pub(crate) fn split_any_frame(framing: Framing, buf: &[u8]) -> Option<Frame<'_>> {
    frame_of(parse_header(framing, buf).ok()??, buf)
}

#[inline]
fn frame_of(header: Header, buf: &[u8]) -> Option<Frame<'_>> {
    let body = buf.get(header.size..)?;
    let (body, rest) = body.split_at_checked(usize::try_from(header.len).ok()?)?;
    Some(Frame { header, body, rest })
}

/// Appends the header of a message frame in the new framing.
#[inline]
pub(crate) fn put_header(out: &mut Vec<u8>, len: usize, more: bool) {
    if len <= SHORT_MAX {
        out.extend_from_slice(&[u8::from(more), len as u8]);
    } else {
        let mut header = [0; 9];
        let (flags, length) = header.split_at_mut(1);
        flags.fill(u8::from(more) | LONG);
        length.copy_from_slice(&(len as u64).to_be_bytes());
        out.extend_from_slice(&header);
    }
}

/// Writes a message frame in the new framing, whose body has the short form, to the front of `out`,
/// which must have room; returns what is behind it.
pub(crate) fn write_small<'a>(out: &'a mut [u8], body: &[u8], more: bool) -> &'a mut [u8] {
    debug_assert!(body.len() <= SHORT_MAX && body.len() + 2 <= out.len(), "as is said above");
    let (frame, rest) = out.split_at_mut(body.len() + 2);
    if let [flags, len, space @ ..] = frame {
        (*flags, *len) = (u8::from(more), body.len() as u8);
        space.copy_from_slice(body);
    }
    rest
}

/// Appends the header of a message frame in the framing of ZMTP 1.0.
pub(crate) fn put_old_header(out: &mut Vec<u8>, len: usize, more: bool) {
    let counted = len as u64 + 1;
    if counted < 0xff {
        out.push(counted as u8);
    } else {
        out.push(0xff);
        out.extend_from_slice(&counted.to_be_bytes());
    }
    out.push(u8::from(more));
}

/// Appends the header of a message frame in either framing.
#[inline]
pub(crate) fn put_any_header(framing: Framing, out: &mut Vec<u8>, len: usize, more: bool) {
    match framing {
        Framing::New => put_header(out, len, more),
        Framing::Old => put_old_header(out, len, more),
    }
}

/// Octets of the header in the new framing.
#[inline]
pub(crate) fn header_size(len: usize) -> usize {
    if len <= SHORT_MAX { 2 } else { 9 }
}

/// Appends a command frame (RFC 37, "Commands"): its name and what follows it.
pub(crate) fn put_command(out: &mut Vec<u8>, name: &str, data: &[&[u8]]) {
    let len = 1 + name.len() + data.iter().map(|part| part.len()).sum::<usize>();
    let start = out.len();
    put_header(out, len, false);
    if let Some(flags) = out.get_mut(start) {
        *flags |= COMMAND;
    }
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
    data.iter().for_each(|part| out.extend_from_slice(part));
}

/// A command's name and what follows it; `None` when the name is longer than the body.
pub(crate) fn split_command(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = body.split_first()?;
    rest.split_at_checked(usize::from(length))
}

/// What a received message may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Octets of all its frames together.
    pub(crate) message: u64,
    pub(crate) frames: usize,
}

/// How much may be taken: so many messages, and none after so many octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Room {
    pub(crate) const NONE: Self = Self { messages: 0, bytes: 0 };
    pub(crate) const ANY: Self = Self { messages: usize::MAX, bytes: usize::MAX };

    /// Whether so much fills it.
    #[inline]
    fn is_full(self, messages: usize, bytes: usize) -> bool {
        messages >= self.messages || (messages > 0 && bytes >= self.bytes)
    }
}

/// Finds whole messages at the front of a growing buffer; each header is looked at once, however
/// the octets come.
///
/// ```text
///   whole messages      a message in progress     not looked at yet
/// |-------------------|-------------------------|------------------
/// 0                 whole                     next
/// ```
#[derive(Debug)]
pub(crate) struct Scanner {
    framing: Framing,
    limits: Limits,
    whole: usize,
    messages: usize,
    next: usize,
    /// Where the command that was found last begins.
    command: usize,
    /// Frames and octets of the message in progress, and octets of commands inside of it.
    frames: usize,
    size: u64,
    commands: usize,
}

/// Why a scan came to a halt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scan {
    /// A command's body; scanning goes on behind it.
    Command(Range<usize>),
    /// The next frame ends at this length of the buffer, as far as is known.
    Need(usize),
    /// As many whole messages as there is room for.
    Full,
}

impl Scanner {
    pub(crate) fn new(framing: Framing, limits: Limits) -> Self {
        Self {
            framing,
            limits,
            whole: 0,
            messages: 0,
            next: 0,
            command: 0,
            frames: 0,
            size: 0,
            commands: 0,
        }
    }

    /// Looks at frames of `buf` until there are `room` whole messages at its front. With no room it
    /// looks ahead for commands.
    #[inline]
    pub(crate) fn scan(&mut self, buf: &[u8], room: Room) -> Result<Scan, ProtocolError> {
        loop {
            if room.messages > 0 && room.is_full(self.messages, self.whole) {
                return Ok(Scan::Full);
            }
            let rest = buf.get(self.next..).unwrap_or_default();
            let Some(header) = parse_header(self.framing, rest)? else {
                return Ok(Scan::Need(self.next + HEADER_MAX));
            };
            let before = if header.command { 0 } else { self.size };
            let size = before.saturating_add(header.len);
            if size > self.limits.message {
                return Err(self.too_large(header));
            }
            if self.frames >= self.limits.frames && !header.command {
                return Err(ProtocolError::TooManyFrames { limit: self.limits.frames });
            }
            // cannot overflow: a length within the limit was checked above, and `None` as a limit
            // is half of what an address can hold
            let end = self.next + header.size + header.len as usize;
            if end > buf.len() {
                return Ok(Scan::Need(end));
            }
            let start = self.next;
            let body = start + header.size..end;
            self.next = end;
            if header.command {
                self.command = start;
                if self.frames == 0 {
                    self.whole = end;
                } else {
                    // it stays in the buffer until the message is whole
                    self.commands += end - start;
                    if self.commands > COMMANDS_MAX {
                        return Err(ProtocolError::TooManyCommands { limit: COMMANDS_MAX });
                    }
                }
                return Ok(Scan::Command(body));
            }
            if header.more {
                self.frames += 1;
                self.size = size;
            } else {
                self.whole = end;
                self.messages += 1;
                self.frames = 0;
                self.size = 0;
                self.commands = 0;
            }
        }
    }

    /// Takes what is whole off the front of `buf`, as far as there is room: its octets (commands
    /// between messages included) and how many messages they hold.
    #[inline]
    pub(crate) fn take(&mut self, buf: &[u8], room: Room) -> (usize, usize) {
        let (octets, messages) = if self.messages <= room.messages && self.whole <= room.bytes {
            (self.whole, self.messages)
        } else {
            self.front(buf, room)
        };
        self.next -= octets;
        self.whole -= octets;
        self.messages -= messages;
        (octets, messages)
    }

    /// The command that was found last is to be found again, by the next scan.
    pub(crate) fn put_back(&mut self) {
        if self.frames > 0 {
            self.commands -= self.next - self.command;
        }
        self.next = self.command;
        self.whole = self.whole.min(self.command);
    }

    /// Whether a whole message waits at the front.
    pub(crate) fn has_message(&self) -> bool {
        self.messages > 0
    }

    /// The octets and the number of those whole messages in front that there is room for.
    fn front(&self, buf: &[u8], room: Room) -> (usize, usize) {
        if self.messages == 0 {
            // commands alone, which are done, need no room
            return (self.whole, 0);
        }
        let (mut octets, mut messages, mut next) = (0, 0, 0);
        while messages < self.messages
            && !room.is_full(messages, octets)
            && let Ok(Some(header)) =
                parse_header(self.framing, buf.get(next..).unwrap_or_default())
        {
            next += header.size + header.len as usize;
            if !header.more && !header.command {
                octets = next;
                messages += 1;
            }
        }
        (octets, messages)
    }

    #[cold]
    fn too_large(&self, header: Header) -> ProtocolError {
        let limit = self.limits.message;
        if header.len > limit {
            ProtocolError::FrameTooLarge { announced: header.len, limit }
        } else {
            ProtocolError::MessageTooLarge { frames: self.frames + 1, limit }
        }
    }
}

/// What commands inside of one message may take. There is hardly ever one, a PING.
const COMMANDS_MAX: usize = 64 * 1024;

/// "No limit": half of the address space, so that offsets cannot overflow.
pub(crate) const UNLIMITED: u64 = isize::MAX as u64 / 2;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The longest body whose length fits the short form.
const SHORT_MAX: usize = 255;

/// The longest header of either framing.
const HEADER_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { message: 1000, frames: 4 };

    fn room(messages: usize) -> Room {
        Room { messages, ..Room::ANY }
    }

    fn scanner(framing: Framing) -> Scanner {
        Scanner::new(framing, LIMITS)
    }

    #[test]
    fn headers_of_the_new_framing() {
        let header = |buf: &[u8]| parse_header(Framing::New, buf).unwrap();
        assert_eq!(header(b""), None);
        assert_eq!(header(&[0]), None);
        assert_eq!(header(&[2, 0, 0, 0, 0, 0, 0, 1]), None);
        let short = header(&[1, 5]).unwrap();
        assert_eq!((short.size, short.len, short.more, short.command), (2, 5, true, false));
        let long = header(&[6, 0, 0, 0, 0, 0, 0, 1, 0]).unwrap();
        assert_eq!((long.size, long.len, long.more, long.command), (9, 256, false, true));
        assert!(header(&[0, 0]).unwrap().canonical);
        assert!(!header(&[0xf8, 0]).unwrap().canonical, "reserved bits");
        assert!(!header(&[2, 0, 0, 0, 0, 0, 0, 0, 255]).unwrap().canonical, "long form");
    }

    #[test]
    fn headers_of_the_old_framing() {
        let header = |buf: &[u8]| parse_header(Framing::Old, buf).unwrap();
        assert_eq!(header(&[3]), None);
        let short = header(&[3, 1]).unwrap();
        assert_eq!((short.size, short.len, short.more), (2, 2, true));
        let long = header(&[0xff, 0, 0, 0, 0, 0, 0, 0, 2, 0]).unwrap();
        assert_eq!((long.size, long.len, long.more), (10, 1, false));
        assert_eq!(parse_header(Framing::Old, &[0]), Err(ProtocolError::EmptyOldFrame));
        let zero = [0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_header(Framing::Old, &zero), Err(ProtocolError::EmptyOldFrame));
    }

    #[test]
    fn lengths_beyond_the_limit_are_refused_at_the_header() {
        for announced in [1001, 1 << 40, 1 << 63, u64::MAX] {
            let mut buf = vec![2];
            buf.extend(announced.to_be_bytes());
            let error = scanner(Framing::New).scan(&buf, room(9)).unwrap_err();
            assert_eq!(error, ProtocolError::FrameTooLarge { announced, limit: 1000 });
        }
        let buf = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];
        assert!(scanner(Framing::Old).scan(&buf, room(9)).is_err());
        let mut unlimited =
            Scanner::new(Framing::New, Limits { message: UNLIMITED, frames: usize::MAX });
        let buf = [2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert!(unlimited.scan(&buf, room(9)).is_err());
    }

    #[test]
    fn frames_of_a_message_are_counted_and_added_up() {
        let five = [1, 0, 1, 0, 1, 0, 1, 0, 0, 0];
        let error = scanner(Framing::New).scan(&five, room(9)).unwrap_err();
        assert_eq!(error, ProtocolError::TooManyFrames { limit: 4 });
        let mut buf = Vec::new();
        put_header(&mut buf, 600, true);
        buf.resize(buf.len() + 600, 0);
        put_header(&mut buf, 401, false);
        let error = scanner(Framing::New).scan(&buf, room(9)).unwrap_err();
        assert_eq!(error, ProtocolError::MessageTooLarge { frames: 2, limit: 1000 });
    }

    #[test]
    fn commands_are_found_between_and_inside_messages() {
        let mut buf = Vec::new();
        put_command(&mut buf, "PING", &[&[0, 0]]);
        buf.extend([1, 1, b'a']);
        put_command(&mut buf, "PONG", &[]);
        buf.extend([0, 1, b'b']);
        let mut scanner = scanner(Framing::New);
        assert_eq!(scanner.scan(&buf, room(9)).unwrap(), Scan::Command(2..9));
        assert_eq!(scanner.take(&buf, room(9)), (9, 0));
        let buf = &buf[9..];
        let Scan::Command(body) = scanner.scan(buf, room(9)).unwrap() else { panic!("a command") };
        assert_eq!(split_command(&buf[body]), Some((&b"PONG"[..], &b""[..])));
        assert_eq!(scanner.take(buf, room(9)), (0, 0));
        assert_eq!(scanner.scan(buf, room(9)).unwrap(), Scan::Need(buf.len() + HEADER_MAX));
        assert_eq!(scanner.take(buf, room(9)), (buf.len(), 1));
    }

    #[test]
    fn a_scan_stops_at_the_room_there_is() {
        let buf = [0, 0, 0, 0, 0, 0];
        let mut scanner = scanner(Framing::New);
        assert_eq!(scanner.scan(&buf, room(2)).unwrap(), Scan::Full);
        assert_eq!(scanner.take(&buf, room(2)), (4, 2));
        assert_eq!(scanner.scan(&buf[4..], room(0)).unwrap(), Scan::Need(2 + HEADER_MAX));
        assert_eq!(scanner.take(&buf[4..], room(0)), (0, 0));
    }

    #[test]
    fn room_in_octets_ends_with_the_message_that_fills_it() {
        let buf = [0, 1, b'a', 0, 1, b'b', 0, 1, b'c'];
        let room = Room { messages: 9, bytes: 4 };
        let mut scanner = scanner(Framing::New);
        assert_eq!(scanner.scan(&buf, room).unwrap(), Scan::Full);
        assert_eq!(scanner.take(&buf, room), (6, 2));
        assert!(matches!(scanner.scan(&buf[6..], Room::NONE).unwrap(), Scan::Need(_)));
        assert_eq!(scanner.take(&buf[6..], Room { messages: 9, bytes: 0 }), (3, 1), "one always");
    }

    #[test]
    fn room_in_octets_does_not_end_inside_of_a_message() {
        let buf = [0, 1, b'a', 1, 3, b'b', b'c', b'd', 0, 1, b'e'];
        let room = Room { messages: 9, bytes: 7 };
        let mut scanner = scanner(Framing::New);
        assert_eq!(scanner.scan(&buf, room).unwrap(), Scan::Full);
        assert_eq!(scanner.take(&buf, room), (11, 2), "of the second message all frames");
        let mut scanner = self::scanner(Framing::New);
        scanner.scan(&buf, Room::ANY).unwrap();
        assert_eq!(scanner.take(&buf, Room { messages: 1, bytes: 7 }), (3, 1));
    }

    #[test]
    fn commands_in_a_message_are_no_part_of_its_size_but_limited() {
        let mut command = Vec::new();
        put_command(&mut command, "NOBODY", &[&[0; 900]]);
        let mut buf = vec![1, 1, b'a'];
        let mut scanner = scanner(Framing::New);
        for _ in 0..COMMANDS_MAX / command.len() {
            buf.extend_from_slice(&command);
            assert!(matches!(scanner.scan(&buf, room(9)), Ok(Scan::Command(_))));
        }
        buf.extend_from_slice(&command);
        let limit = COMMANDS_MAX;
        assert_eq!(scanner.scan(&buf, room(9)), Err(ProtocolError::TooManyCommands { limit }));
    }

    #[test]
    fn without_room_commands_are_found_behind_messages() {
        let mut buf = vec![0, 1, b'a', 1, 0, 0, 1, b'b'];
        put_command(&mut buf, "PING", &[&[0, 0]]);
        buf.extend([0, 1, b'c']);
        let mut scanner = scanner(Framing::New);
        assert_eq!(scanner.scan(&buf, room(0)).unwrap(), Scan::Command(10..17));
        assert_eq!(scanner.scan(&buf, room(0)).unwrap(), Scan::Need(20 + HEADER_MAX));
        assert_eq!(scanner.take(&buf, room(0)), (0, 0));
        assert_eq!(scanner.scan(&buf, room(1)).unwrap(), Scan::Full);
        assert_eq!(scanner.take(&buf, room(1)), (3, 1));
        assert_eq!(scanner.scan(&buf[3..], room(2)).unwrap(), Scan::Full);
        assert_eq!(scanner.take(&buf[3..], room(2)), (17, 2), "the command with what follows it");
    }

    #[test]
    fn without_room_commands_do_not_pile_up() {
        let mut command = Vec::new();
        put_command(&mut command, "PING", &[&[0, 0]]);
        let mut scanner = scanner(Framing::New);
        assert_eq!(scanner.scan(&command, room(0)).unwrap(), Scan::Command(2..9));
        assert_eq!(scanner.take(&command, Room::NONE), (9, 0), "no message is before it");
        let buf = [&[0, 1, b'a'][..], &command].concat();
        assert_eq!(scanner.scan(&buf, room(0)).unwrap(), Scan::Command(5..12));
        assert_eq!(scanner.take(&buf, Room::NONE), (0, 0), "one is");
    }

    fn encode(framing: Framing, messages: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            for (i, frame) in message.iter().enumerate() {
                put_any_header(framing, &mut out, frame.len(), i + 1 < message.len());
                out.extend(frame);
            }
        }
        out
    }

    proptest! {
        /// However the octets are cut, the same messages come out.
        #[test]
        fn cutting_changes_nothing(
            messages in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4), 0..6),
            cuts in prop::collection::vec(1usize..40, 1..50),
            room in 1usize..4,
            old in any::<bool>(),
        ) {
            let framing = if old { Framing::Old } else { Framing::New };
            let stream = encode(framing, &messages);
            let mut scanner = scanner(framing);
            let (mut buf, mut seen) = (Vec::new(), Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let (piece, others) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                rest = others;
                buf.extend_from_slice(piece);
                loop {
                    let scan = scanner.scan(&buf, Room { messages: room, ..Room::ANY }).unwrap();
                    let (octets, count) = scanner.take(&buf, Room { messages: room, ..Room::ANY });
                    let mut taken: Vec<u8> = buf.drain(..octets).collect();
                    for _ in 0..count {
                        let mut message = Vec::new();
                        loop {
                            let frame = split_any_frame(framing, &taken).unwrap();
                            message.push(frame.body.to_vec());
                            let more = frame.header.more;
                            taken = frame.rest.to_vec();
                            if !more { break }
                        }
                        seen.push(message);
                    }
                    prop_assert!(taken.is_empty());
                    if scan != Scan::Full { break }
                }
            }
            prop_assert!(buf.is_empty());
            prop_assert_eq!(seen, messages);
        }

        #[test]
        fn arbitrary_octets_never_panic(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            for framing in [Framing::Old, Framing::New] {
                let mut scanner = scanner(framing);
                let mut buf = octets.clone();
                for _ in 0..200 {
                    match scanner.scan(&buf, room(3)) {
                        Ok(Scan::Need(need)) => {
                            prop_assert!(need > buf.len());
                            break;
                        }
                        Ok(_) => { let (n, _) = scanner.take(&buf, room(9)); buf.drain(..n); }
                        Err(_) => break,
                    }
                }
            }
        }
    }
}
