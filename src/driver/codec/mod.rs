//! The bodies of events: Dragonflow's two forms and dragonwire's own, which alone can tell that
//! something is missing. The form is chosen by the sender and recognised by the receiver.

use bytes::Bytes;
use uuid::Uuid;

use super::update::Update;

/// How a publisher writes the bodies of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// `proto/event.proto`, with the publisher's id, its epoch and a sequence number per topic: the
    /// form between dragonwire peers.
    #[default]
    Protobuf,
    /// A MessagePack map of the update's five fields: Dragonflow 2.0.0 and later.
    Msgpack,
    /// JSON text in a MessagePack string: Dragonflow 1.0.0.
    Json,
}

/// Who published an event and which one it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The publisher's id.
    pub publisher: Uuid,
    /// Which life of the publisher: grows with each start.
    pub epoch: u64,
    /// Which event of that life on the topic it was sent on, from 1.
    pub sequence: u64,
}

/// What a body holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// An event; `origin` only in [`Codec::Protobuf`].
    Event {
        /// The change.
        update: Update,
        /// Where it comes from.
        origin: Option<Origin>,
    },
    /// How far streams have come.
    Positions(Positions),
}

/// How far streams of events have come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Who says so.
    pub announcer: Uuid,
    /// In which of its lives.
    pub announcer_epoch: u64,
    /// The prefix of topics whose streams are all listed, if they are.
    pub complete_for: Option<Bytes>,
    /// The streams.
    pub positions: Vec<Position>,
}

/// How far one publisher's stream on one topic has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The publisher's id.
    pub publisher: Uuid,
    /// Which of its lives.
    pub epoch: u64,
    /// The topic its events were sent on.
    pub topic: Bytes,
    /// The first event that came by the announcer.
    pub first: u64,
    /// The last one, or one less than the first if none did.
    pub last: u64,
    /// Nothing follows.
    pub is_final: bool,
}

/// The body is in none of the forms.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Neither MessagePack of a string or a map nor one of dragonwire's own messages.
    #[error("{0}")]
    Malformed(String),
}

impl Codec {
    /// Appends the body of an event. `topic` is what the event is sent on; `origin` is written by
    /// [`Codec::Protobuf`] alone.
    pub fn encode(self, update: &Update, topic: &str, origin: &Origin, out: &mut Vec<u8>) {
        let _ = (update, topic, origin, out);
    }
}

impl Positions {
    /// The body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Vec::new()
    }
}

/// Reads a body in whichever form it is.
///
/// # Errors
/// [`CodecError`] says what is wrong with it.
pub fn decode(body: &[u8]) -> Result<Body, CodecError> {
    Err(CodecError::Malformed(format!("{} octets", body.len())))
}

/// The origin at the front of an event in [`Codec::Protobuf`], without reading the rest.
#[must_use]
pub fn peek_origin(body: &[u8]) -> Option<Origin> {
    let _ = body;
    None
}
