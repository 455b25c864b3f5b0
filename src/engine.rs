//! The protocol of one connection, without IO: octets in, [`Input`]s and octets out.
//!
//! The same engine serves every socket type, both roles and both transports. It is told neither the
//! time nor where the octets come from; what it keeps of a peer before READY is bounded by
//! [`HANDSHAKE_MAX`], afterwards by the limits of the options. Implements RFC 37 from the greeting
//! on, with the older protocols of RFC 23, 15 and 13.
//!
//! ```text
//!  Greeting ──3.x──► Mechanism ──READY──► Open
//!      └─1.0, 2.0──► Identity ────────────►┘
//! ```

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use crate::command::{self, Command};
use crate::error::ProtocolError;
use crate::framing::{self, Framing, Limits, Room, Scan, Scanner, parse_header};
use crate::greeting::{GREETING, Greeted, Greeting, Version};
use crate::inbox::Chunk;
use crate::mechanism::{IDENTITY, Mechanism, MechanismKind, Metadata, SOCKET_TYPE};
use crate::options::SocketOptions;
use crate::peer::SessionInfo;
use crate::socket_type::SocketType;

/// What this side tells every peer and holds it to.
#[derive(Debug, Clone)]
pub(crate) struct EngineConfig {
    socket_type: SocketType,
    mechanism: MechanismKind,
    routing_id: Bytes,
    metadata: Metadata,
    limits: Limits,
}

impl EngineConfig {
    pub(crate) fn new(socket_type: SocketType, options: &SocketOptions) -> Self {
        let mut properties = vec![(
            Bytes::from_static(SOCKET_TYPE),
            Bytes::from_static(socket_type.as_str().as_bytes()),
        )];
        for (name, value) in &options.metadata {
            properties.push((Bytes::copy_from_slice(name.as_bytes()), value.clone()));
        }
        Self {
            socket_type,
            mechanism: MechanismKind::Null,
            routing_id: options.routing_id.clone(),
            metadata: Metadata(properties),
            limits: Limits {
                message: options
                    .max_message_size
                    .unwrap_or(framing::UNLIMITED)
                    .min(framing::UNLIMITED),
                frames: options.max_frames,
            },
        }
    }
}

/// One connection's protocol state.
#[derive(Debug)]
pub(crate) struct Engine {
    config: std::sync::Arc<EngineConfig>,
    state: State,
    /// Octets to send: the handshake, later the answers to PINGs.
    out: Vec<u8>,
    unknown_commands: u64,
}

#[derive(Debug)]
enum State {
    Greeting(Greeting),
    Identity { framing: Framing, version: Version, socket_type: Option<SocketType> },
    Mechanism { mechanism: Mechanism, version: Version },
    Open { scanner: Scanner, version: Version },
    Failed,
}

/// What the octets so far amount to.
#[derive(Debug, PartialEq)]
pub(crate) enum Input {
    /// Nothing yet: the buffer must hold at least so many octets for the next step.
    Need(usize),
    /// The octets to send have piled up: they must go out before more is read.
    Congested,
    /// The handshake is through.
    Ready(SessionInfo),
    /// Whole messages.
    Chunk(Chunk),
    /// There is no room for the next message; the commands that have come behind it are done.
    Full,
    /// The topic of a SUBSCRIBE command, as a range of the buffer, valid until the next step.
    Subscribe(Range<usize>),
    /// The topic of a CANCEL command, likewise.
    Cancel(Range<usize>),
    /// A PING was answered; a TTL of zero is none.
    Ping(std::time::Duration),
    /// A PONG, and its context if it has eight octets.
    Pong(Option<u64>),
}

impl Engine {
    pub(crate) fn new(config: std::sync::Arc<EngineConfig>) -> Self {
        let state = State::Greeting(Greeting::new(config.mechanism.name()));
        let mut engine = Self { config, state, out: Vec::new(), unknown_commands: 0 };
        // the signature goes out before anything has come in
        let nothing = engine.step(&mut BytesMut::new(), Room::NONE);
        debug_assert_eq!(nothing, Ok(Input::Need(GREETING)));
        engine
    }

    /// Octets to send, in order with what was sent before.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What is spoken with the peer, once that is known.
    pub(crate) fn version(&self) -> Version {
        match self.state {
            State::Identity { version, .. }
            | State::Mechanism { version, .. }
            | State::Open { version, .. } => version,
            State::Greeting(_) | State::Failed => Version::V3_1,
        }
    }

    pub(crate) fn unknown_commands(&self) -> u64 {
        self.unknown_commands
    }

    /// Takes the next thing off the front of `buf`, of messages as far as there is `room`. After an error
    /// nothing more is taken; what `out` holds then may still go to the peer.
    pub(crate) fn step(&mut self, buf: &mut BytesMut, room: Room) -> Result<Input, ProtocolError> {
        loop {
            let step = match &mut self.state {
                State::Open { scanner, version } => {
                    let unknown = &mut self.unknown_commands;
                    return open(scanner, *version, buf, room, &mut self.out, unknown)
                        .inspect_err(|_| self.state = State::Failed);
                }
                State::Greeting(_) => self.greeting(buf),
                State::Identity { .. } => self.identity(buf),
                State::Mechanism { .. } => self.mechanism(buf),
                State::Failed => return Ok(Input::Need(usize::MAX)),
            };
            match step {
                Ok(Some(input)) => return Ok(input),
                Ok(None) => {}
                Err(error) => {
                    if matches!(self.state, State::Mechanism { .. })
                        && !matches!(error, ProtocolError::PeerError { .. })
                    {
                        command::put_error(&mut self.out, &error.to_string());
                    }
                    self.state = State::Failed;
                    return Err(error);
                }
            }
        }
    }

    fn greeting(&mut self, buf: &mut BytesMut) -> Result<Option<Input>, ProtocolError> {
        let State::Greeting(greeting) = &mut self.state else { return Ok(None) };
        let EngineConfig { socket_type: ours, routing_id, metadata, mechanism, .. } = &*self.config;
        match greeting.advance(buf, *ours, routing_id, &mut self.out)? {
            Greeted::NotYet => return Ok(Some(Input::Need(GREETING))),
            Greeted::Unversioned => {
                // the signature was the header of this side's identity frame
                self.out.extend_from_slice(routing_id);
                self.state = State::Identity {
                    framing: Framing::Old,
                    version: Version::V1_0,
                    socket_type: None,
                };
            }
            Greeted::Old { octets, version, socket_type } => {
                buf.advance(octets);
                let framing = framing_of(version);
                framing::put_any_header(framing, &mut self.out, routing_id.len(), false);
                self.out.extend_from_slice(routing_id);
                self.state = State::Identity { framing, version, socket_type };
            }
            Greeted::New { version } => {
                buf.advance(GREETING);
                let mechanism = Mechanism::start(*mechanism, metadata, &mut self.out);
                self.state = State::Mechanism { mechanism, version };
            }
        }
        Ok(None)
    }

    fn identity(&mut self, buf: &mut BytesMut) -> Result<Option<Input>, ProtocolError> {
        let State::Identity { framing, version, socket_type } = self.state else {
            return Ok(None);
        };
        let frame = match self.handshake_frame(framing, buf)? {
            Ok(frame) => frame,
            Err(need) => return Ok(Some(Input::Need(need))),
        };
        let info = SessionInfo {
            version,
            mechanism: self.config.mechanism.name(),
            socket_type,
            routing_id: buf.get(frame.clone()).map(Bytes::copy_from_slice).unwrap_or_default(),
            metadata: Vec::new(),
        };
        buf.advance(frame.end);
        self.open(version);
        Ok(Some(Input::Ready(info)))
    }

    fn mechanism(&mut self, buf: &mut BytesMut) -> Result<Option<Input>, ProtocolError> {
        let frame = match self.handshake_frame(Framing::New, buf)? {
            Ok(frame) => frame,
            Err(need) => return Ok(Some(Input::Need(need))),
        };
        let State::Mechanism { mechanism, version } = &mut self.state else { return Ok(None) };
        // libzmq takes READY in a message frame as well
        let body = buf.get(frame.clone()).unwrap_or_default();
        let Some(theirs) = mechanism.command(body, &mut self.out)? else {
            buf.advance(frame.end);
            return Ok(None);
        };
        let version = *version;
        let info = self.session(version, &theirs)?;
        buf.advance(frame.end);
        self.open(version);
        Ok(Some(Input::Ready(info)))
    }

    /// The body of the frame at the front of `buf`, or how many octets it takes to know.
    fn handshake_frame(
        &self,
        framing: Framing,
        buf: &[u8],
    ) -> Result<Result<Range<usize>, usize>, ProtocolError> {
        let Some(header) = parse_header(framing, buf)? else { return Ok(Err(buf.len() + 1)) };
        let limit = self.config.limits.message.min(HANDSHAKE_MAX as u64);
        if header.len > limit {
            return Err(if limit < HANDSHAKE_MAX as u64 {
                ProtocolError::FrameTooLarge { announced: header.len, limit }
            } else {
                ProtocolError::HandshakeTooLarge { limit: HANDSHAKE_MAX }
            });
        }
        let end = header.size + header.len as usize;
        Ok(if end > buf.len() { Err(end) } else { Ok(header.size..end) })
    }

    fn session(&self, version: Version, theirs: &Metadata) -> Result<SessionInfo, ProtocolError> {
        let mut info = SessionInfo {
            version,
            mechanism: self.config.mechanism.name(),
            socket_type: None,
            routing_id: Bytes::new(),
            metadata: Vec::new(),
        };
        for (name, value) in &theirs.0 {
            match &name[..] {
                SOCKET_TYPE => {
                    let ours = self.config.socket_type;
                    let kind = SocketType::from_name(value).filter(|kind| ours.fits(*kind));
                    let Some(kind) = kind else {
                        let shown = value.get(..value.len().min(32)).unwrap_or_default();
                        let theirs = shown.escape_ascii().to_string();
                        return Err(ProtocolError::SocketTypeMismatch { ours, theirs });
                    };
                    info.socket_type = Some(kind);
                }
                IDENTITY => info.routing_id = value.clone(),
                _ => {
                    info.metadata.push((String::from_utf8_lossy(name).into_owned(), value.clone()));
                }
            }
        }
        Ok(info)
    }

    fn open(&mut self, version: Version) {
        let scanner = Scanner::new(framing_of(version), self.config.limits);
        self.state = State::Open { scanner, version };
    }
}

fn open(
    scanner: &mut Scanner,
    version: Version,
    buf: &mut BytesMut,
    room: Room,
    out: &mut Vec<u8>,
    unknown: &mut u64,
) -> Result<Input, ProtocolError> {
    loop {
        if out.len() >= OUT_MAX {
            return Ok(Input::Congested);
        }
        let scan = scanner.scan(buf, room);
        if let Ok(Scan::Command(body)) = &scan {
            let octets = buf.get(body.clone()).unwrap_or_default();
            // what 2.0 would call a command is to be ignored
            let command = match version {
                Version::V1_0 | Version::V2_0 => Ok(Command::Unknown),
                Version::V3_0 | Version::V3_1 => Command::parse(octets),
            };
            let input = match command {
                Ok(Command::Unknown) => {
                    *unknown += 1;
                    continue;
                }
                Ok(Command::Ping { ttl, context }) => {
                    command::put_pong(out, context);
                    Some(Input::Ping(ttl))
                }
                Ok(Command::Pong(context)) => {
                    Some(Input::Pong(context.try_into().ok().map(u64::from_be_bytes)))
                }
                // the others have their place behind the messages that came before them
                _ if scanner.has_message() => {
                    scanner.put_back();
                    None
                }
                // nor are there more of them than the application is to be told of
                Ok(Command::Subscribe(_) | Command::Cancel(_)) if room.messages == 0 => {
                    scanner.put_back();
                    return Ok(Input::Full);
                }
                Ok(Command::Subscribe(topic)) => {
                    Some(Input::Subscribe(body.end - topic.len()..body.end))
                }
                Ok(Command::Cancel(topic)) => Some(Input::Cancel(body.end - topic.len()..body.end)),
                Ok(Command::Error { reason }) => {
                    let reason = reason.escape_ascii().to_string();
                    return Err(ProtocolError::PeerError { reason });
                }
                Err(error) => return Err(error),
            };
            if let Some(input) = input {
                return Ok(input);
            }
        }
        let (octets, messages) = scanner.take(buf, room);
        if messages > 0 {
            let bytes = buf.split_to(octets).freeze();
            let framing = framing_of(version);
            return Ok(Input::Chunk(Chunk { bytes, messages, framing }));
        }
        buf.advance(octets);
        // without room messages may stand whole in the buffer
        if scanner.has_message() {
            return Ok(Input::Full);
        }
        return match scan? {
            Scan::Need(need) => Ok(Input::Need(need - octets)),
            _ => Ok(Input::Full),
        };
    }
}

pub(crate) fn framing_of(version: Version) -> Framing {
    match version {
        Version::V1_0 => Framing::Old,
        Version::V2_0 | Version::V3_0 | Version::V3_1 => Framing::New,
    }
}

/// What a handshake may need: READY with some kilooctets of metadata.
pub(crate) const HANDSHAKE_MAX: usize = 8192;

/// Answers to PINGs that pile up while the peer does not read.
const OUT_MAX: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// An XPUB's engine through its handshake with a 3.1 subscriber, and its read buffer.
    fn opened() -> (Engine, BytesMut) {
        let config = EngineConfig::new(SocketType::XPub, &SocketOptions::new());
        let mut engine = Engine::new(std::sync::Arc::new(config));
        let mut theirs = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1];
        theirs.extend(b"NULL");
        theirs.resize(GREETING, 0);
        framing::put_command(&mut theirs, "READY", &[b"\x0bSocket-Type\0\0\0\x03SUB"]);
        let mut buf = BytesMut::from(&theirs[..]);
        assert!(matches!(engine.step(&mut buf, Room::NONE), Ok(Input::Ready(_))));
        (engine, buf)
    }

    #[test]
    fn a_cancel_does_not_overtake_the_subscription_before_it() {
        let (mut engine, mut buf) = opened();
        let mut read = b"\0\x02\x01A".to_vec();
        command::put_ping(&mut read, None, b"");
        command::put_cancel(&mut read, b"A");
        command::put_subscribe(&mut read, b"B");
        buf.extend_from_slice(&read);
        assert_eq!(
            engine.step(&mut buf, Room { messages: 9, ..Room::ANY }),
            Ok(Input::Ping(std::time::Duration::ZERO))
        );
        assert_eq!(
            engine.step(&mut buf, Room::NONE),
            Ok(Input::Full),
            "no room: the CANCEL waits as well"
        );
        let Ok(Input::Chunk(chunk)) = engine.step(&mut buf, Room { messages: 9, ..Room::ANY })
        else {
            panic!("a message")
        };
        assert_eq!((chunk.messages, chunk.topic()), (1, Some(&b"\x01A"[..])));
        let Ok(Input::Cancel(topic)) = engine.step(&mut buf, Room { messages: 9, ..Room::ANY })
        else {
            panic!("a CANCEL")
        };
        assert_eq!(buf[topic], b"A"[..]);
        let Ok(Input::Subscribe(topic)) = engine.step(&mut buf, Room { messages: 9, ..Room::ANY })
        else {
            panic!("a SUBSCRIBE")
        };
        assert_eq!(buf[topic], b"B"[..]);
        assert!(matches!(
            engine.step(&mut buf, Room { messages: 9, ..Room::ANY }),
            Ok(Input::Need(_))
        ));
    }

    #[test]
    fn messages_read_together_with_a_violation_are_handed_on() {
        for violation in [&b"\x02\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x04\x05\x04PING"] {
            let (mut engine, mut buf) = opened();
            buf.extend_from_slice(b"\0\x01a\0\x01b");
            buf.extend_from_slice(violation);
            let Ok(Input::Chunk(chunk)) = engine.step(&mut buf, Room { messages: 1, ..Room::ANY })
            else {
                panic!("a message")
            };
            assert_eq!((chunk.messages, chunk.topic()), (1, Some(&b"a"[..])));
            assert_eq!(engine.step(&mut buf, Room::NONE), Ok(Input::Full));
            let Ok(Input::Chunk(chunk)) = engine.step(&mut buf, Room { messages: 9, ..Room::ANY })
            else {
                panic!("a message")
            };
            assert_eq!((chunk.messages, chunk.topic()), (1, Some(&b"b"[..])));
            assert!(engine.step(&mut buf, Room { messages: 9, ..Room::ANY }).is_err());
        }
    }
}
