//! A message: one or more frames that travel together (RFC 37, "Framing").
//!
//! A received message is one slice of the read buffer however many frames it has; it is cut up only
//! when its frames are asked for. A message made by an application keeps up to two frames inline.

use std::fmt;

use bytes::Bytes;

use crate::framing::{self, Frame};

/// One or more frames of octets.
///
/// Cloning is cheap: the octets are shared.
///
/// A received message keeps the read buffer it came in alive (up to 256 KiB): an application that
/// stores small messages for long should store [`detached`](Self::detached) copies.
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

#[derive(Clone)]
enum Repr {
    One(Bytes),
    Two(Bytes, Bytes),
    Many(Vec<Bytes>),
    /// Whole message frames in the canonical encoding of ZMTP 2.0 and later, no commands.
    Wire(Bytes),
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
    pub(crate) fn from_wire(wire: Bytes) -> Self {
        Self(Repr::Wire(wire))
    }

    /// The frames' encoding, when this message carries it.
    pub(crate) fn as_wire(&self) -> Option<&Bytes> {
        match &self.0 {
            Repr::Wire(wire) => Some(wire),
            _ => None,
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
        })
    }

    /// The frames in order, each owned; they are not copied.
    #[must_use]
    pub fn into_frames(self) -> Vec<Bytes> {
        match self.0 {
            Repr::One(one) => vec![one],
            Repr::Two(one, two) => vec![one, two],
            Repr::Many(many) => many,
            Repr::Wire(wire) => {
                Frames(FramesRepr::Wire(&wire)).map(|f| wire.slice_ref(f)).collect()
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
            _ => Self::from_frames(self.frames().map(Bytes::copy_from_slice)),
        }
    }

    /// For the encoder: each frame with whether another one follows.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&Bytes, bool)> {
        let (first, rest): (Option<&Bytes>, &[Bytes]) = match &self.0 {
            Repr::One(one) => (Some(one), &[]),
            Repr::Two(one, two) => (Some(one), std::slice::from_ref(two)),
            Repr::Many(many) => (None, many),
            Repr::Wire(_) => (None, &[]),
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
        Self(Repr::One(Bytes::copy_from_slice(frame)))
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
        Self::from_frames(frames.map(|frame| Bytes::copy_from_slice(frame.as_bytes())))
    }
}

impl<const N: usize> From<[&[u8]; N]> for Message {
    fn from(frames: [&[u8]; N]) -> Self {
        Self::from_frames(frames.map(Bytes::copy_from_slice))
    }
}

impl<const N: usize> From<[Bytes; N]> for Message {
    fn from(frames: [Bytes; N]) -> Self {
        Self::from_frames(frames)
    }
}

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
    fn no_frames_are_one_empty_frame() {
        assert_eq!(Message::from_frames(Vec::<Bytes>::new()), Message::from(""));
    }
}
