//! The engine after the handshake against [a second decoder](super::plain_decoder): the same octets
//! must mean the same to both, although one has them in pieces and the other at once.

use std::sync::{Arc, LazyLock};

use bytes::BytesMut;

use super::chosen;
use super::plain_decoder::{self, Rules};
use crate::engine::{Engine, EngineConfig, Input};
use crate::error::ProtocolError;
use crate::framing::Room;
use crate::options::SocketOptions;
use crate::socket_type::SocketType;

/// What octets mean. Commands that overtake messages have lists of their own.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Meaning {
    pub(super) items: Vec<Item>,
    /// TTLs in tenths of a second, and the contexts of the answers.
    pub(super) pings: Vec<u64>,
    pub(super) answers: Vec<Vec<u8>>,
    pub(super) pongs: Vec<Option<u64>>,
    /// Commands that mean nothing.
    pub(super) unknown: u64,
    pub(super) end: End,
}

/// What the application gets, in order.
#[derive(Debug, PartialEq)]
pub(super) enum Item {
    Message(Vec<Vec<u8>>),
    Subscribe(Vec<u8>),
    Cancel(Vec<u8>),
}

#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// So many octets are no whole message yet.
    Left(usize),
    Fault(Fault),
}

impl Default for End {
    fn default() -> Self {
        Self::Left(0)
    }
}

/// How the peer broke the protocol.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// A frame of no octets, not even flags.
    Empty,
    /// A frame that is announced with so many octets.
    Frame(u64),
    /// A message that gets too large with this frame of it.
    Message(usize),
    /// Too many frames.
    Frames,
    /// Too many commands between the frames of a message.
    Commands,
    /// A command that is cut off.
    Malformed,
    /// ERROR, with its reason, escaped.
    Refusal(String),
}

/// Four octets of configuration (`docs/fuzzing.md`), then what a peer sends after the handshake.
pub fn differential(data: &[u8]) {
    let Some((&[config, sizes @ ..], octets)) = data.split_first_chunk::<4>() else { return };
    let limits = LIMITS[usize::from(config >> 2 & 3)];
    let (version, (message, frames)) = (config & 3, limits);
    let rules = Rules { old: version == 0, commands: version >= 2, octets: message, frames };
    let expected = plain_decoder::decode(octets, rules);
    let rooms = ROOMS[usize::from(config >> 4 & 7)];
    let sizes = sizes.map(|size| if size == 0 { usize::MAX } else { usize::from(size) });
    let read = read(config, rooms, octets, &sizes);
    assert_eq!(read, expected, "{rules:?}, {rooms:?}, in pieces of {sizes:?}");
    if octets.len() <= 64 && chosen(data, 64) {
        for cut in 1..octets.len() {
            let read = self::read(config, rooms, octets, &[cut, usize::MAX]);
            assert_eq!(read, expected, "{rules:?}, {rooms:?}, cut at {cut}");
        }
    }
}

/// Octets and frames of a message. READY has 25 octets and must be within them.
const LIMITS: [(u64, usize); 4] = [(isize::MAX as u64 / 2, usize::MAX), (300, 3), (25, 1), (40, 2)];

/// What there is room for, in turn.
const ROOMS: [&[Room]; 8] = {
    const fn room(messages: usize, bytes: usize) -> Room {
        Room { messages, bytes }
    }
    [
        &[Room::ANY],
        &[room(1, usize::MAX)],
        &[room(2, usize::MAX), Room::NONE],
        &[room(usize::MAX, 1)],
        &[room(usize::MAX, 20)],
        &[Room::NONE, room(1, 1)],
        &[Room::NONE, Room::ANY, Room::NONE],
        &[room(3, 9), room(1, usize::MAX), Room::ANY],
    ]
};

static CONFIGS: LazyLock<[Arc<EngineConfig>; 4]> = LazyLock::new(|| {
    LIMITS.map(|(octets, frames)| {
        let options = SocketOptions::new().max_message_size(Some(octets)).max_frames(frames);
        Arc::new(EngineConfig::new(SocketType::XPub, &options))
    })
});

/// A subscriber's part of the handshake, in each version.
static HANDSHAKES: LazyLock<[Vec<u8>; 4]> = LazyLock::new(|| {
    let greeting = |minor| {
        let mut octets = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03".to_vec();
        octets.push(minor);
        octets.extend(b"NULL");
        octets.resize(64, 0);
        octets.extend(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB");
        octets
    };
    let old = b"\x01\0".to_vec();
    let second = b"\xff\0\0\0\0\0\0\0\x01\x7f\x01\x02\0\0".to_vec();
    [old, second, greeting(0), greeting(1)]
});

/// An engine that is through with its handshake.
fn opened(config: u8) -> Engine {
    let mut engine = Engine::new(CONFIGS[usize::from(config >> 2 & 3)].clone());
    let mut buf = BytesMut::from(&HANDSHAKES[usize::from(config & 3)][..]);
    let ready = engine.step(&mut buf, Room::NONE);
    assert!(matches!(ready, Ok(Input::Ready(_))) && buf.is_empty(), "{ready:?}");
    engine.out().clear();
    engine
}

/// What the engine makes of it.
fn read(config: u8, rooms: &[Room], octets: &[u8], sizes: &[usize]) -> Meaning {
    let mut engine = opened(config);
    let mut meaning = Meaning::default();
    let mut buf = BytesMut::with_capacity(octets.len());
    let (mut rooms, mut sizes) = (rooms.iter().cycle(), sizes.iter().cycle());
    let mut rest = octets;
    let end = loop {
        let full = match step(&mut engine, &mut buf, *rooms.next().unwrap(), &mut meaning) {
            Ok(Step::Again) => continue,
            Ok(Step::Full) => true,
            Ok(Step::Empty) => false,
            Err(fault) => break End::Fault(fault),
        };
        if rest.is_empty() && !full {
            break End::Left(buf.len());
        }
        let size = sizes.next().map_or(0, |size| *size).min(rest.len());
        let (piece, others) = rest.split_at(size);
        rest = others;
        buf.extend_from_slice(piece);
    };
    take_answers(&mut engine, &mut meaning);
    meaning.unknown = engine.unknown_commands();
    meaning.end = end;
    meaning
}

enum Step {
    Again,
    /// There was no room.
    Full,
    /// More octets are needed.
    Empty,
}

fn step(
    engine: &mut Engine,
    buf: &mut BytesMut,
    room: Room,
    meaning: &mut Meaning,
) -> Result<Step, Fault> {
    match engine.step(buf, room).map_err(Fault::from)? {
        Input::Need(need) => {
            assert!(need > buf.len(), "{need} octets are there");
            return Ok(Step::Empty);
        }
        Input::Full => return Ok(Step::Full),
        Input::Congested => take_answers(engine, meaning),
        Input::Chunk(mut chunk) => {
            assert!(chunk.messages > 0 && chunk.messages <= room.messages);
            while let Some(message) = chunk.next_message() {
                let frames = message.frames().map(<[u8]>::to_vec).collect();
                meaning.items.push(Item::Message(frames));
            }
            assert_eq!(chunk.messages, 0, "fewer messages than claimed");
        }
        Input::Subscribe(topic) => meaning.items.push(Item::Subscribe(buf[topic].to_vec())),
        Input::Cancel(topic) => meaning.items.push(Item::Cancel(buf[topic].to_vec())),
        Input::Ping(ttl) => meaning.pings.push(ttl.as_millis() as u64 / 100),
        Input::Pong(context) => meaning.pongs.push(context),
        Input::Ready(_) => panic!("READY comes once"),
    }
    Ok(Step::Again)
}

/// The engine's answers, which are short frames of PONG.
fn take_answers(engine: &mut Engine, meaning: &mut Meaning) {
    let out = std::mem::take(engine.out());
    let mut rest = &out[..];
    while let [0b100, len, others @ ..] = rest {
        let (body, others) = others.split_at(usize::from(*len));
        meaning.answers.push(body.strip_prefix(b"\x04PONG").expect("a PONG").to_vec());
        rest = others;
    }
    assert!(rest.is_empty(), "{rest:?} is no answer");
}

impl From<ProtocolError> for Fault {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::EmptyOldFrame => Self::Empty,
            ProtocolError::FrameTooLarge { announced, .. } => Self::Frame(announced),
            ProtocolError::MessageTooLarge { frames, .. } => Self::Message(frames),
            ProtocolError::TooManyFrames { .. } => Self::Frames,
            ProtocolError::TooManyCommands { .. } => Self::Commands,
            ProtocolError::MalformedCommand { .. } => Self::Malformed,
            ProtocolError::PeerError { reason } => Self::Refusal(reason),
            other => panic!("{other} after the handshake"),
        }
    }
}
