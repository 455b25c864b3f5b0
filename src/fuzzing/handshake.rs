//! Two engines that shake hands over a wire that somebody tampers with.

use std::sync::{Arc, LazyLock};

use bytes::BytesMut;

use crate::engine::{Engine, EngineConfig, Input};
use crate::error::ProtocolError;
use crate::framing::Room;
use crate::options::SocketOptions;
use crate::peer::SessionInfo;
use crate::socket_type::SocketType;

/// An octet for the socket types of both sides, then what is done to the octets between them, three
/// octets for each deed (`docs/fuzzing.md`).
pub fn handshake(data: &[u8]) {
    let Some((&types, script)) = data.split_first() else { return };
    let kinds = [types & 15, types >> 4].map(|at| usize::from(at) % CONFIGS.len());
    let mut sides = kinds.map(Side::new);
    let mut tampered = false;
    for deed in script.as_chunks::<3>().0 {
        let [what, place, value] = *deed;
        let from = usize::from(what >> 7);
        let wire = &mut sides[from].wire;
        let place = usize::from(place).min(wire.len());
        let end = (place + usize::from(value)).min(wire.len());
        match what & 3 {
            0 => {
                let end = if value == 0 { wire.len() } else { end - place };
                let octets: Vec<u8> = wire.drain(..end).collect();
                sides[1 - from].read(&octets);
                continue;
            }
            1 => drop(wire.drain(place..end)),
            2 if wire.len() < MOST => {
                let again = wire[place..end].to_vec();
                wire.splice(end..end, again);
            }
            3 if place < wire.len() => wire[place] ^= value,
            _ => {}
        }
        tampered = true;
    }
    // what is still on its way arrives; each side answers a few times at most
    for from in [0, 1].into_iter().cycle().take(ROUNDS) {
        let octets = std::mem::take(&mut sides[from].wire);
        sides[1 - from].read(&octets);
    }
    if tampered {
        return;
    }
    assert!(sides.iter().all(|side| side.wire.is_empty()), "it goes on for ever");
    let [left, right] = kinds.map(|at| at % KINDS.len());
    for (side, ours, theirs) in [(0, left, right), (1, right, left)] {
        sides[side].check(FITS[ours][theirs] == 1, kinds[1 - side]);
    }
    if sides.iter().all(|side| side.over.is_none()) {
        for (from, to) in [(0, 1), (1, 0)] {
            sides[to].read(b"\0\x01x\x04\x07\x04PING\0\0");
            let Side { wire, messages, .. } = &sides[to];
            assert_eq!((&wire[..], *messages), (&b"\x04\x05\x04PONG"[..], 1), "from {from}");
        }
    }
}

const KINDS: [SocketType; 6] = [
    SocketType::Pub,
    SocketType::Sub,
    SocketType::Pull,
    SocketType::Push,
    SocketType::XPub,
    SocketType::XSub,
];

/// Who talks to whom, in the same order (RFC 37, "The Socket-Type Property").
const FITS: [[u8; 6]; 6] = [
    [0, 1, 0, 0, 0, 1],
    [1, 0, 0, 0, 1, 0],
    [0, 0, 0, 1, 0, 0],
    [0, 0, 1, 0, 0, 0],
    [0, 1, 0, 0, 0, 1],
    [1, 0, 0, 0, 1, 0],
];

/// Each socket type with and without a routing id and metadata.
static CONFIGS: LazyLock<Vec<Arc<EngineConfig>>> = LazyLock::new(|| {
    let plain = SocketOptions::new();
    let named = SocketOptions::new().routing_id("me").metadata("X-Zone", "b");
    let all = [plain, named].into_iter();
    all.flat_map(|options| KINDS.map(|kind| Arc::new(EngineConfig::new(kind, &options)))).collect()
});

/// One side: what it has received and not understood, and what it has sent that did not arrive.
#[derive(Debug)]
struct Side {
    engine: Engine,
    buf: BytesMut,
    wire: Vec<u8>,
    sent: usize,
    ready: Option<SessionInfo>,
    messages: usize,
    over: Option<ProtocolError>,
}

impl Side {
    fn new(config: usize) -> Self {
        let mut side = Self {
            engine: Engine::new(CONFIGS[config].clone()),
            buf: BytesMut::new(),
            wire: Vec::new(),
            sent: 0,
            ready: None,
            messages: 0,
            over: None,
        };
        side.read(b"");
        side
    }

    fn read(&mut self, octets: &[u8]) {
        self.buf.extend_from_slice(octets);
        loop {
            match self.engine.step(&mut self.buf, Room::ANY) {
                Ok(Input::Need(need)) => {
                    assert!(need > self.buf.len(), "{need} octets are there");
                    break;
                }
                Ok(Input::Ready(info)) => {
                    assert!(self.ready.replace(info).is_none(), "READY comes once");
                }
                Ok(Input::Congested) => self.send(),
                Ok(input) => {
                    assert!(self.ready.is_some(), "{input:?} before READY");
                    if let Input::Chunk(chunk) = input {
                        self.messages += chunk.messages;
                    }
                }
                Err(error) => {
                    assert!(self.over.replace(error).is_none(), "it was over before");
                    // what comes after it is not read
                    self.buf.clear();
                }
            }
        }
        let before = self.sent;
        self.send();
        let answers = self.sent - before;
        assert!(answers <= 512 + 4 * octets.len(), "{answers} octets for {}", octets.len());
    }

    fn send(&mut self) {
        self.sent += self.engine.out().len();
        self.wire.append(self.engine.out());
    }

    /// Whether it has come out as it must when nobody tampered with it.
    fn check(&self, fits: bool, theirs: usize) {
        if !fits {
            let refused = matches!(self.over, Some(ProtocolError::SocketTypeMismatch { .. }));
            return assert!(refused && self.ready.is_none(), "{self:?}");
        }
        let info = self.ready.as_ref().expect("the handshake is through");
        assert_eq!(info.socket_type, Some(KINDS[theirs % KINDS.len()]));
        assert_eq!(info.metadata.len(), theirs / KINDS.len(), "{info:?}");
        assert!(self.over.is_none() && self.buf.is_empty(), "{self:?}");
    }
}

/// What the wire holds at most when something on it is doubled.
const MOST: usize = 4096;

/// How often what was sent is read: the greeting in three parts, READY, answers.
const ROUNDS: usize = 16;
