//! What a connection's octets do to its socket: the protocol ([`Engine`]) and the socket's state
//! ([`Hub`]) brought together, without IO.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use crate::command::{Subscription, put_ping, put_pong};
use crate::engine::{Engine, EngineConfig, Input};
use crate::error::{DisconnectCause, ProtocolError};
use crate::framing::Room;
use crate::heartbeat::{Beat, Heartbeat};
use crate::hub::{Hub, PeerId, Wire};
use crate::peer::{PeerInfo, SessionInfo};

/// What a connection is to do next about reading.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    /// Read: the buffer must come to hold so many octets for anything to happen.
    Read(usize),
    /// Write first: the answers to PINGs have piled up.
    Write,
    /// The receive queue is full: read ahead a little for commands, then wait.
    Wait,
}

/// A connection before READY.
#[derive(Debug)]
pub(crate) struct Handshake {
    engine: Engine,
}

impl Handshake {
    pub(crate) fn new(config: Arc<EngineConfig>) -> Self {
        Self { engine: Engine::new(config) }
    }

    /// Octets to send.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        self.engine.out()
    }

    /// Takes what has come in; `Err` is how many octets it takes to go on.
    pub(crate) fn input(
        &mut self,
        buf: &mut BytesMut,
    ) -> Result<Result<SessionInfo, usize>, ProtocolError> {
        loop {
            match self.engine.step(buf, Room::NONE)? {
                Input::Ready(info) => return Ok(Ok(info)),
                Input::Need(octets) => return Ok(Err(octets)),
                // nothing else comes before READY
                _ => {}
            }
        }
    }
}

/// A connection from READY on.
#[derive(Debug)]
pub(crate) struct Session {
    engine: Engine,
    hub: Arc<Hub>,
    peer: PeerId,
    heartbeat: Heartbeat,
    copies: bool,
}

/// Messages from so many octets on take most of the buffer that they came in.
const LARGE: usize = 16 * 1024;

impl Session {
    /// Makes the peer known to the socket.
    pub(crate) fn open(
        handshake: Handshake,
        hub: Arc<Hub>,
        peer: PeerId,
        info: Arc<PeerInfo>,
        wire: Arc<dyn Wire>,
        now: Instant,
    ) -> Self {
        let version = handshake.engine.version();
        hub.attach(peer, info, version, wire);
        let heartbeat = Heartbeat::new(hub.options(), version, now);
        Self { engine: handshake.engine, hub, peer, heartbeat, copies: false }
    }

    /// Whether messages are copied out of the buffer, so that none of it outlives what is read next.
    pub(crate) fn copy(&mut self, on: bool) {
        self.copies = on;
    }

    /// Octets to send, before or between the socket's own.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        self.engine.out()
    }

    /// So many octets came in, at the end of the buffer.
    pub(crate) fn received(&mut self, octets: usize) {
        self.heartbeat.input();
        self.hub.count_input(self.peer, octets, 0);
    }

    /// Hands on what is whole in `buf`.
    pub(crate) fn input(
        &mut self,
        buf: &mut BytesMut,
        now: Instant,
    ) -> Result<Next, ProtocolError> {
        let before = self.engine.unknown_commands();
        let next = self.hand_on(buf, now);
        let unknown = self.engine.unknown_commands() - before;
        if unknown > 0 {
            self.hub.count_input(self.peer, 0, unknown);
        }
        next
    }

    /// Whether this side reads, or leaves what comes to the kernel for want of room.
    pub(crate) fn set_reading(&mut self, reading: bool, now: Instant) {
        self.heartbeat.reading(reading, now);
    }

    fn hand_on(&mut self, buf: &mut BytesMut, now: Instant) -> Result<Next, ProtocolError> {
        loop {
            let room = self.hub.room(self.peer);
            match self.engine.step(buf, room)? {
                Input::Need(octets) => return Ok(Next::Read(octets)),
                Input::Congested => return Ok(Next::Write),
                Input::Full => return Ok(Next::Wait),
                Input::Chunk(mut chunk) => {
                    if self.copies && chunk.bytes.len() < LARGE {
                        chunk.bytes = Bytes::copy_from_slice(&chunk.bytes);
                    }
                    self.hub.deliver(self.peer, chunk)?;
                }
                Input::Subscribe(topic) => {
                    let topic = buf.get(topic).unwrap_or_default();
                    self.hub.peer_subscription(self.peer, Subscription::Subscribe(topic))?;
                }
                Input::Cancel(topic) => {
                    let topic = buf.get(topic).unwrap_or_default();
                    self.hub.peer_subscription(self.peer, Subscription::Cancel(topic))?;
                }
                Input::Ping(ttl) => self.heartbeat.peer_ping(ttl, now),
                Input::Pong(context) => self.hub.pong(self.peer, context),
                // READY comes once
                Input::Ready(_) => {}
            }
        }
    }

    /// Does what the clock asks for; tells whether a heartbeat's interval has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<bool, DisconnectCause> {
        let mut passed = false;
        loop {
            match self.heartbeat.beat(now) {
                Beat::Nothing => return Ok(passed),
                Beat::SendPing => {
                    passed = true;
                    put_ping(self.engine.out(), self.hub.options().heartbeat_ttl, b"");
                }
                Beat::SendPong => put_pong(self.engine.out(), b""),
                Beat::Expired(silence) => return Err(DisconnectCause::HeartbeatTimeout(silence)),
            }
        }
    }

    /// When the clock will ask for something.
    pub(crate) fn next_tick(&self) -> Option<Instant> {
        self.heartbeat.next()
    }
}
