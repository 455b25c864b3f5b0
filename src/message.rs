//! A message: one or more frames that travel together (RFC 37, "Framing").
//!
//! A received message is one slice of the read buffer however many frames it has, or, when it is
//! small, a copy of that slice; it is cut up only when its frames are asked for. A message made by an
//! application holds up to two frames without an allocation of its own.

use std::fmt;

use bytes::Bytes;

use crate::framing::{self, Frame};

/// One or more frames of octets.
///
/// Cloning is cheap: the octets are shared, or there are few.
///
/// A received message of more than 80 octets, headers included, keeps the read buffer it came in
/// alive (up to 256 KiB): an application that stores such messages for long should store
/// [`detached`](Self::detached) copies.
///
/// ```
/// use dragonwire::Message;
///
/// let message = Message::from(["weather.oslo", "4 degrees"]);
/// assert_eq!(message.frame(0), Some(&b"weather.oslo"[..]));
/// assert_eq!(message.frames().count(), 2);
/// ```
#[derive(Clone)]
pub struct Message(Repr);

/// The discriminant has a whole word so that moves, into an `Option` for one, are moves of aligned
/// words; with a smaller one they are of odd octets, which a processor cannot forward from one to the
/// next (measured: 25 ns a message received).
#[derive(Clone)]
#[repr(u64)]
enum Repr {
    One(Bytes),
    Two(Bytes, Bytes),
    Many(Vec<Bytes>),
    /// Whole message frames in the canonical encoding of ZMTP 2.0 and later, no commands.
    Wire(Bytes),
    /// The same for few octets: to copy them costs less than to count who shares them.
    Small(Small),
}

/// Up to [`SMALL`] octets; what is behind `len` of them means nothing.
#[derive(Clone)]
struct Small {
    len: usize,
    octets: [u8; SMALL],
}

impl Small {
    #[inline]
    fn octets(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }
}

/// What a message holds for the encoder.
pub(crate) enum Encoded<'a> {
    /// Canonical encoding.
    Wire(&'a [u8]),
    /// The same in a buffer that can be shared.
    Shared(&'a Bytes),
    /// Frames.
    Parts,
}

impl Message {
    /// A message of a topic and a payload.
    #[must_use]
    pub fn pair(topic: impl Into<Bytes>, payload: impl Into<Bytes>) -> Self {
        Self(Repr::Two(topic.into(), payload.into()))
    }

    /// A message of one frame that is not copied.
    #[must_use]
    pub fn from_static(frame: &'static [u8]) -> Self {
        Self(Repr::One(Bytes::from_static(frame)))
    }

    /// A message of these frames; of one empty frame when there are none.
    pub fn from_frames<F: Into<Bytes>>(frames: impl IntoIterator<Item = F>) -> Self {
        let mut frames = frames.into_iter().map(Into::into);
        let first = frames.next().unwrap_or_default();
        let Some(second) = frames.next() else { return Self(Repr::One(first)) };
        let Some(third) = frames.next() else { return Self(Repr::Two(first, second)) };
        Self(Repr::Many([first, second, third].into_iter().chain(frames).collect()))
    }

    /// A message as it was received; `wire` holds whole, canonically encoded frames.
    #[inline]
    pub(crate) fn from_wire(wire: Bytes) -> Self {
        Self(Repr::Wire(wire))
    }

    /// The same for a few octets that are copied: the first `len` of `wire`.
    #[inline(always)]
    pub(crate) fn from_few(wire: [u8; SMALL], len: usize) -> Self {
        debug_assert!(len <= SMALL, "that is what few are");
        Self(Repr::Small(Small { len, octets: wire }))
    }

    /// A message of copies of these frames.
    fn copied(frames: &[&[u8]]) -> Self {
        let len: usize =
            frames.iter().map(|frame| framing::header_size(frame.len()) + frame.len()).sum();
        if frames.is_empty() || len > SMALL {
            return Self::from_frames(frames.iter().map(|frame| Bytes::copy_from_slice(frame)));
        }
        let mut wire = [0; SMALL];
        let mut rest = &mut wire[..];
        for (i, frame) in frames.iter().enumerate() {
            rest = framing::write_small(rest, frame, i + 1 < frames.len());
        }
        Self(Repr::Small(Small { len, octets: wire }))
    }

    /// What there is of the frames' encoding.
    #[inline]
    pub(crate) fn encoded(&self) -> Encoded<'_> {
        match &self.0 {
            Repr::Wire(wire) => Encoded::Shared(wire),
            Repr::Small(small) => Encoded::Wire(small.octets()),
            _ => Encoded::Parts,
        }
    }

    /// The first frame: what subscriptions are matched against.
    #[must_use]
    pub fn topic(&self) -> &[u8] {
        self.frame(0).unwrap_or_default()
    }

    /// The frame at `index`, from 0.
    #[must_use]
    pub fn frame(&self, index: usize) -> Option<&[u8]> {
        self.frames().nth(index)
    }

    /// The frames in order; there is at least one.
    #[must_use]
    pub fn frames(&self) -> Frames<'_> {
        Frames(match &self.0 {
            Repr::One(one) => FramesRepr::Parts(Some(one), &[]),
            Repr::Two(one, two) => FramesRepr::Parts(Some(one), std::slice::from_ref(two)),
            Repr::Many(many) => FramesRepr::Parts(None, many),
            Repr::Wire(wire) => FramesRepr::Wire(wire),
            Repr::Small(small) => FramesRepr::Wire(small.octets()),
        })
    }

    /// The frames in order, each owned; those of a small message are copied.
    #[must_use]
    pub fn into_frames(self) -> Vec<Bytes> {
        match self.0 {
            Repr::One(one) => vec![one],
            Repr::Two(one, two) => vec![one, two],
            Repr::Many(many) => many,
            Repr::Wire(wire) => {
                Frames(FramesRepr::Wire(&wire)).map(|f| wire.slice_ref(f)).collect()
            }
            Repr::Small(small) => {
                Frames(FramesRepr::Wire(small.octets())).map(Bytes::copy_from_slice).collect()
            }
        }
    }

    /// The sum of the frames' lengths, in octets.
    #[must_use]
    pub fn size(&self) -> usize {
        self.frames().map(<[u8]>::len).sum()
    }

    /// A copy that holds its own octets and nothing of the read buffer it came in.
    #[must_use]
    pub fn detached(&self) -> Self {
        match &self.0 {
            Repr::Wire(wire) => Self(Repr::Wire(Bytes::copy_from_slice(wire))),
            Repr::Small(_) => self.clone(),
            _ => Self::from_frames(self.frames().map(Bytes::copy_from_slice)),
        }
    }

    /// For the encoder: each frame with whether another one follows.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&Bytes, bool)> {
        let (first, rest): (Option<&Bytes>, &[Bytes]) = match &self.0 {
            Repr::One(one) => (Some(one), &[]),
            Repr::Two(one, two) => (Some(one), std::slice::from_ref(two)),
            Repr::Many(many) => (None, many),
            Repr::Wire(_) | Repr::Small(_) => (None, &[]),
        };
        let count = usize::from(first.is_some()) + rest.len();
        first.into_iter().chain(rest).enumerate().map(move |(i, f)| (f, i + 1 < count))
    }
}

/// The frames of a [`Message`], in order.
#[derive(Debug, Clone)]
pub struct Frames<'a>(FramesRepr<'a>);

#[derive(Debug, Clone)]
enum FramesRepr<'a> {
    Parts(Option<&'a Bytes>, &'a [Bytes]),
    Wire(&'a [u8]),
}

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        match &mut self.0 {
            FramesRepr::Parts(first, rest) => match first.take() {
                Some(first) => Some(first),
                None => {
                    let (next, others) = rest.split_first()?;
                    *rest = others;
                    Some(next)
                }
            },
            FramesRepr::Wire(wire) => {
                let Frame { body, rest, .. } = framing::split_frame(wire)?;
                *wire = rest;
                Some(body)
            }
        }
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.frames().eq(other.frames())
    }
}

impl Eq for Message {}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for frame in self.frames().take(8) {
            let shown = frame.get(..64).unwrap_or(frame);
            list.entry(&format_args!("{} octets \"{}\"", frame.len(), shown.escape_ascii()));
        }
        list.finish_non_exhaustive()
    }
}

macro_rules! one_frame {
    ($($from:ty),*) => {$(
        impl From<$from> for Message {
            fn from(frame: $from) -> Self {
                Self(Repr::One(frame.into()))
            }
        }
    )*};
}

one_frame!(Bytes, bytes::BytesMut, Vec<u8>, String);

impl From<&[u8]> for Message {
    fn from(frame: &[u8]) -> Self {
        Self::copied(&[frame])
    }
}

impl<const N: usize> From<&[u8; N]> for Message {
    fn from(frame: &[u8; N]) -> Self {
        Self::from(&frame[..])
    }
}

impl From<&str> for Message {
    fn from(frame: &str) -> Self {
        Self::from(frame.as_bytes())
    }
}

impl From<Vec<Bytes>> for Message {
    fn from(frames: Vec<Bytes>) -> Self {
        Self::from_frames(frames)
    }
}

impl<const N: usize> From<[&str; N]> for Message {
    fn from(frames: [&str; N]) -> Self {
        Self::copied(&frames.map(str::as_bytes))
    }
}

impl<const N: usize> From<[&[u8]; N]> for Message {
    fn from(frames: [&[u8]; N]) -> Self {
        Self::copied(&frames)
    }
}

impl<const N: usize> From<[Bytes; N]> for Message {
    fn from(frames: [Bytes; N]) -> Self {
        Self::from_frames(frames)
    }
}

/// Octets that a message is copied up to: a topic of a few octets and a payload of 64. A [`Message`]
/// has 96, 64 of which two [`Bytes`] would need as well.
pub(crate) const SMALL: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(frames: &[&[u8]]) -> Message {
        let mut out = Vec::new();
        for (i, frame) in frames.iter().enumerate() {
            framing::put_header(&mut out, frame.len(), i + 1 < frames.len());
            out.extend_from_slice(frame);
        }
        Message::from_wire(out.into())
    }

    #[test]
    fn a_received_message_is_the_same_as_one_made() {
        let long = vec![7; 300];
        for frames in [&[&b""[..]][..], &[b"a", b"bc"], &[b"", &long, b"", b"x"]] {
            let made = Message::from_frames(frames.iter().map(|f| Bytes::copy_from_slice(f)));
            let received = wire(frames);
            assert_eq!(made, received);
            assert_eq!(received.detached(), made);
            assert_eq!(received.size(), made.size());
            assert_eq!(received.clone().into_frames(), made.clone().into_frames());
            assert_eq!(received.frame(frames.len()), None);
            assert_eq!(made.frame(frames.len() - 1), frames.last().copied());
        }
        assert_ne!(wire(&[b"a", b"b"]), wire(&[b"ab"]));
        assert_ne!(Message::from("a"), Message::from("b"));
    }

    #[test]
    fn small_messages_are_copies() {
        let all = [5; 300];
        for len in 0..100 {
            let frame = &all[..len];
            let made = Message::from(frame);
            assert_eq!(made.frames().collect::<Vec<_>>(), [frame]);
            assert_eq!(made.clone().into_frames(), [frame]);
            let Message(Repr::Wire(wire)) = wire(&[frame]) else { panic!("it was made so") };
            if wire.len() <= SMALL {
                let mut octets = [9; SMALL];
                octets[..wire.len()].copy_from_slice(&wire);
                assert_eq!(Message::from_few(octets, wire.len()), made);
            }
        }
        assert_eq!(Message::from(["a", "b"]).frames().collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(Message::from(<[&str; 0]>::default()), Message::from(""));
        assert_eq!(size_of::<Option<Message>>(), 96);
    }

    #[test]
    fn no_frames_are_one_empty_frame() {
        assert_eq!(Message::from_frames(Vec::<Bytes>::new()), Message::from(""));
    }
}
