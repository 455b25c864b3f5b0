//! Replay of the recordings in `tests/vectors/`: what libzmq put on the wire and how it took what it
//! was sent, step by step, against the core without IO. Every octet of this side must come as
//! recorded, every message the application got there it must get here.
//!
//! There are no sockets, threads or timers: a [`Connection`] moves octets between the recording and a
//! [`Session`] as a connection task would, and the clock is a number that the recording moves. Each
//! recording is played twice for each side it holds: with the peer's writes as they were, and octet
//! by octet. Where this crate does otherwise than libzmq on purpose, [`DEVIATIONS`] says why, and
//! what it does instead, which is asserted as well.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use crate::endpoint::Endpoint;
use crate::engine::EngineConfig;
use crate::error::{DisconnectCause, RecvError};
use crate::framing::{split_command, split_frame};
use crate::fuzzing::{self, Phase};
use crate::hub::{Closing, Form, Hub, PeerId};
use crate::message::Message;
use crate::options::{SocketOptions, XPubVerbose};
use crate::outbox::Payload;
use crate::receiver::Receiver;
use crate::socket_type::SocketType;

/// What happens in place of a step.
#[derive(Debug, Clone, Copy)]
enum Instead {
    /// The step is left out.
    Skip,
    /// This side sends these octets (hex).
    Octets(&'static str),
    /// This side does not close the connection in that time.
    StaysOpen,
    /// This side has closed the connection by the end of that time.
    Closes,
    /// This side sends these octets (hex) before it closes.
    Finishes(&'static str),
}

/// What of a recording is played.
#[derive(Debug, Clone, Copy)]
enum Play {
    /// Nothing: it has a test of its own, or no part for this crate.
    Nothing,
    /// Everything but for these steps.
    ButFor(&'static [(usize, Instead)]),
}

/// Recordings that this crate departs from, each with the reason.
const DEVIATIONS: &[(&str, &str, Play)] = &[
    (
        "command-subscribe-to-pull",
        "a SUBSCRIBE command is nothing to PULL; libzmq hands it to the application as a message",
        Play::ButFor(&[(9, Instead::Skip)]),
    ),
    (
        "greeting-http-request",
        "messages flow to a 1.0 peer when its identity frame is whole, not at its first octet",
        Play::ButFor(&[(2, Instead::Closes), (3, Instead::Skip), (4, Instead::Skip)]),
    ),
    (
        "greeting-ready-message-in-one-write",
        "a message right behind READY is taken: RFC 23 allows a peer to send it",
        Play::Nothing,
    ),
    (
        "maxmsgsize-per-frame",
        "`max_message_size` counts all frames of a message together",
        Play::Nothing,
    ),
    (
        "multipart-lost-midway-is-not-resumed",
        "a message that went out in part is queued again and sent anew, whole; libzmq loses it",
        Play::Nothing,
    ),
    (
        "ping-from-libzmq-3.0-peer",
        "a 3.0 peer is sent no PING: RFC 23 has none",
        Play::ButFor(&[
            (8, Instead::StaysOpen),
            (9, Instead::Skip),
            (10, Instead::StaysOpen),
            (11, Instead::Skip),
            (12, Instead::StaysOpen),
            (13, Instead::Skip),
        ]),
    ),
    (
        "ping-inside-message-from-libzmq",
        "commands go out between messages only, as the grammar of RFC 37 has it",
        Play::Nothing,
    ),
    (
        "ping-ttl-overflow",
        "a TTL of 65.6 s is one of 65.6 s; libzmq takes it modulo 65.536 s",
        Play::ButFor(&[(10, Instead::StaysOpen)]),
    ),
    (
        "reconnect-intervals",
        "holds attempts to connect, no octets; `supervise` has the tests of the waits",
        Play::Nothing,
    ),
    (
        "reconnect-intervals-growing",
        "holds attempts to connect, no octets; `supervise` has the tests of the waits",
        Play::Nothing,
    ),
    (
        "socket-type-mismatch-one-write",
        "the greeting and READY go out in whole before the close; what libzmq sends is by chance",
        Play::ButFor(&[(2, Instead::Finishes(REST_OF_GREETING_AND_READY_OF_PULL))]),
    ),
    (
        "subscribe-255-octets-3.0-peer",
        "the frame is encoded as it should be; libzmq's cannot be decoded",
        Play::ButFor(&[(9, Instead::Octets(SUBSCRIPTION_OF_255_OCTETS))]),
    ),
    (
        "timeout-own-queue-full",
        "a peer is not given up while this side does not read; libzmq closes it",
        Play::ButFor(&[(11, Instead::StaysOpen)]),
    ),
    ("xpub-manual-last-value", "XPUB_MANUAL_LAST_VALUE is not offered", Play::Nothing),
    (
        "xpub-subscription-in-multipart",
        "the first frame decides whether a message holds subscriptions; libzmq subscribes by the \
         second one as well",
        Play::ButFor(&[(14, Instead::Skip)]),
    ),
    (
        "xsub-application-3.1-peer",
        "only a message of one frame is an application's subscription; libzmq remembers the second \
         frame of a message as one",
        Play::ButFor(&[(39, Instead::Skip)]),
    ),
    ("old-1.0-refused-curve", "has CURVE, which this crate has not", Play::Nothing),
    ("old-1.0-refused-plain", "has PLAIN, which this crate has not", Play::Nothing),
    ("old-1.0-refused-zap-domain", "has ZAP, which this crate has not", Play::Nothing),
    ("old-2.0-refused-curve", "has CURVE, which this crate has not", Play::Nothing),
    ("old-2.0-refused-plain", "has PLAIN, which this crate has not", Play::Nothing),
    ("old-2.0-refused-zap-domain", "has ZAP, which this crate has not", Play::Nothing),
];

/// Recordings of mechanisms that this crate has not, and of libzmq's draft options.
const OTHER_GROUPS: &[&str] = &["curve", "draft", "plain", "zap"];

#[derive(Debug, Deserialize)]
struct Recording {
    name: String,
    group: String,
    client: Side,
    server: Side,
    outcome: Option<Outcome>,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    connection: String,
}

#[derive(Debug, Deserialize)]
struct Side {
    kind: String,
    socket: Option<String>,
    role: Option<String>,
    #[serde(default)]
    options: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Step {
    from: String,
    bytes: String,
    meaning: String,
    unit: Option<String>,
    payload: Option<Frame>,
    api: Option<Api>,
    event: Option<String>,
    after_ms: Option<u64>,
    ms: Option<u64>,
    peer: Option<usize>,
    write: Option<String>,
    interval_ms: Option<u64>,
    #[serde(default)]
    optional: bool,
}

#[derive(Debug, Deserialize)]
struct Api {
    op: String,
    #[serde(default)]
    frames: Vec<Frame>,
    topic: Option<String>,
    #[serde(default)]
    topics: Vec<String>,
    ms: Option<u64>,
    linger: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Frame {
    Hex(String),
    Ramp {
        rule: String,
        length: usize,
    },
    /// Octets that differ from run to run; none of this crate's types has any.
    Variable {
        #[serde(rename = "var")]
        name: String,
    },
}

impl Side {
    /// The socket type, if this is a side that this crate can take the part of.
    fn kind(&self) -> Option<SocketType> {
        if self.kind != "libzmq" {
            return None;
        }
        Some(match self.socket.as_deref()? {
            "PUB" => SocketType::Pub,
            "SUB" => SocketType::Sub,
            "XPUB" => SocketType::XPub,
            "XSUB" => SocketType::XSub,
            "PUSH" => SocketType::Push,
            "PULL" => SocketType::Pull,
            _ => return None,
        })
    }

    /// libzmq's options in this crate's words, beginning with libzmq's defaults.
    fn options(&self) -> SocketOptions {
        let ms = |value: &Value| Duration::from_millis(number(value) as u64);
        let mut options = SocketOptions::new()
            .heartbeat_interval(None)
            .handshake_timeout(None)
            .max_message_size(None);
        let mut timeout = None;
        for (name, value) in &self.options {
            options = match &name[..] {
                "ROUTING_ID" => options.routing_id(text(value)),
                "HANDSHAKE_IVL" => options.handshake_timeout(Some(ms(value))),
                "HEARTBEAT_IVL" => {
                    timeout.get_or_insert(ms(value));
                    options.heartbeat_interval(Some(ms(value)))
                }
                "HEARTBEAT_TIMEOUT" => {
                    timeout = Some(ms(value));
                    options
                }
                "HEARTBEAT_TTL" => options.heartbeat_ttl(Some(ms(value))),
                "INVERT_MATCHING" => options.invert_matching(number(value) == 1),
                "MAXMSGSIZE" => options.max_message_size(Some(number(value) as u64)),
                "RCVHWM" => options.recv_hwm(number(value) as usize),
                "XPUB_MANUAL" => options.xpub_manual(number(value) == 1),
                "XPUB_VERBOSE" => options.xpub_verbose(XPubVerbose::Subscriptions),
                "XPUB_VERBOSER" => options.xpub_verbose(XPubVerbose::All),
                "XPUB_WELCOME_MSG" => options.xpub_welcome_message(text(value)),
                // this crate's XPUB does as with this option on
                "ONLY_FIRST_SUBSCRIBE" => options,
                // of the socket's: done when it is made, or without effect on octets
                "SUBSCRIBE" | "RECONNECT_IVL" | "SNDBUF" => options,
                other => panic!("an option that the replay does not know: {other}"),
            };
        }
        options.heartbeat_timeout(timeout)
    }
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("not a number: {value}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

impl Step {
    fn octets(&self) -> Vec<u8> {
        let mut octets = from_hex(&self.bytes);
        octets.extend(self.payload.iter().flat_map(Frame::octets));
        octets
    }

    /// Whether it is octets, not something an application or a connection did.
    fn is_octets(&self) -> bool {
        self.api.is_none() && self.event.is_none()
    }
}

impl Frame {
    fn octets(&self) -> Vec<u8> {
        match self {
            Self::Hex(hex) => from_hex(hex),
            Self::Ramp { rule, length } => {
                assert_eq!(rule, "ramp251");
                (0..*length).map(|i| (i % 251) as u8).collect()
            }
            Self::Variable { name } => panic!("a variable of another socket type: {name}"),
        }
    }
}

impl Api {
    fn message(&self) -> Message {
        Message::from_frames(self.frames.iter().map(Frame::octets))
    }

    fn topic(&self) -> Vec<u8> {
        from_hex(self.topic.as_deref().expect("a topic"))
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digit = |octet: &u8| char::from(*octet).to_digit(16).expect("a digit") as u8;
    hex.as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
}

fn shown(octets: &[u8]) -> String {
    let hex: String = octets.iter().take(80).map(|octet| format!("{octet:02x}")).collect();
    format!("{hex}{} ({} octets)", if octets.len() > 80 { ".." } else { "" }, octets.len())
}

/// How the peer's writes are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    AsRecorded,
    OctetByOctet,
}

/// This side of a recording.
#[derive(Debug)]
struct Player {
    hub: Arc<Hub>,
    engine: Arc<EngineConfig>,
    receiver: Option<Receiver>,
    /// The connected endpoint's place; none on a side that listens.
    dialled: Option<PeerId>,
    connections: Vec<Connection>,
    current: usize,
    now: Instant,
    cut: Cut,
    room: usize,
}

/// A connection, and how far the recording has told of it.
#[derive(Debug)]
struct Connection {
    link: fuzzing::Connection,
    /// The peer's octets so far.
    received: Vec<u8>,
    /// This side's octets that the recording has told of.
    told: usize,
    handshake_deadline: Option<Instant>,
}

type Outcomes<T = ()> = Result<T, String>;

impl Connection {
    fn new(player: &Player) -> Self {
        let timeout = player.hub.options().handshake_timeout;
        Self {
            link: fuzzing::Connection::new(player.engine.clone(), player.dialled, player.room),
            received: Vec::new(),
            told: 0,
            handshake_deadline: timeout.map(|timeout| player.now + timeout),
        }
    }

    fn is_over(&self) -> bool {
        self.link.is_over()
    }

    /// What this side has sent and the recording has not told of.
    fn untold(&self) -> Vec<u8> {
        self.link.pipe.sent().split_off(self.told)
    }

    /// Nothing more may have been sent, but for what this side says more than libzmq does: an ERROR
    /// command before it closes.
    fn all_told(&mut self) -> Outcomes {
        let untold = self.untold();
        let refused = matches!(self.link.phase, Phase::Over(DisconnectCause::Protocol(_)));
        let is_error = split_frame(&untold).is_some_and(|frame| {
            let name = split_command(frame.body).map(|(name, _)| name);
            frame.header.command && frame.rest.is_empty() && name == Some(b"ERROR")
        });
        if untold.is_empty() || (refused && is_error) {
            self.told += untold.len();
            return Ok(());
        }
        Err(format!("sent beyond the recording: {}", shown(&untold)))
    }

    /// The greeting goes out piece by piece, each as soon as the peer's octets call for it.
    fn check_pieces(&self) -> Outcomes {
        let received = &self.received[..];
        let modern = received.first().is_none_or(|first| *first == 0xff)
            && received.get(9).is_none_or(|tenth| tenth & 1 == 1)
            && received.get(10).is_none_or(|major| *major > 1);
        let pieces = match received.len() {
            0..=9 => 10,
            10 => 11,
            11..=63 => 64,
            _ => return Ok(()),
        };
        let sent = self.link.pipe.sent().len();
        if modern && sent != pieces {
            return Err(format!(
                "after {} octets of the greeting {sent} octets were sent, not {pieces}",
                received.len()
            ));
        }
        Ok(())
    }
}

impl Player {
    fn new(side: &Side, cut: Cut) -> Self {
        Self::with_room(side, cut, usize::MAX)
    }

    fn with_room(side: &Side, cut: Cut, room: usize) -> Self {
        let kind = side.kind().expect("one of this crate's types");
        let options = Arc::new(side.options());
        let engine = Arc::new(EngineConfig::new(kind, &options));
        let hub = Hub::new(kind, options);
        if let Some(topic) = side.options.get("SUBSCRIBE") {
            hub.subscribe(text(topic).as_bytes(), Form::Command).unwrap();
        }
        let receives = !matches!(kind, SocketType::Pub | SocketType::Push);
        let dials = side.role.as_deref() == Some("connect");
        let endpoint = Endpoint::tcp(([127, 0, 0, 1], 1).into());
        Self {
            receiver: receives.then(|| Receiver::new(hub.clone())),
            dialled: dials.then(|| hub.add_peer(endpoint, true)),
            hub,
            engine,
            connections: Vec::new(),
            current: 0,
            now: Instant::now(),
            cut,
            room,
        }
    }

    fn connect(&mut self) -> Outcomes {
        self.connections.push(Connection::new(self));
        self.current = self.connections.len() - 1;
        self.pump(true)
    }

    fn connection(&mut self, step: &Step) -> &mut Connection {
        let at = step.peer.map_or(self.current, |peer| peer - 1);
        &mut self.connections[at]
    }

    fn pump(&mut self, idle: bool) -> Outcomes {
        for connection in &mut self.connections {
            connection.link.pump(&self.hub, self.now, idle)?;
        }
        Ok(())
    }

    /// The peer's octets come in.
    fn feed(&mut self, at: usize, octets: &[u8], pace: Option<u64>) -> Outcomes {
        let whole = match self.cut {
            Cut::AsRecorded if pace.is_none() => octets.len(),
            _ => 1,
        };
        let mut rest = octets;
        while !rest.is_empty() {
            let sent = octets.len() - rest.len();
            // the rest of a long payload is of no interest octet by octet
            let piece = if sent > 2048 { rest.len() } else { whole.min(rest.len()) };
            let (piece, others) = rest.split_at(piece);
            rest = others;
            let connection = &mut self.connections[at];
            if connection.is_over() {
                return Ok(());
            }
            connection.received.extend_from_slice(piece);
            connection.link.feed(&self.hub, self.now, piece)?;
            if matches!(connection.link.phase, Phase::Handshake(_)) {
                connection.check_pieces()?;
            }
            if let Some(pace) = pace {
                self.advance(pace)?;
            }
        }
        self.pump(true)
    }

    /// Moves the clock, doing what falls due on the way.
    fn advance(&mut self, ms: u64) -> Outcomes {
        let end = self.now + Duration::from_millis(ms);
        loop {
            let due = |connection: &Connection| match &connection.link.phase {
                Phase::Handshake(_) => connection.handshake_deadline,
                Phase::Open(session) => session.next_tick(),
                Phase::Over(_) => None,
            };
            let next = self.connections.iter().filter_map(due).min().filter(|at| *at <= end);
            self.now = next.unwrap_or(end).max(self.now);
            for connection in &mut self.connections {
                let ticked = match &mut connection.link.phase {
                    Phase::Handshake(_) if connection.handshake_deadline <= Some(self.now) => {
                        // the connection task's part, which has it from tokio
                        match connection.handshake_deadline {
                            Some(_) => Err(DisconnectCause::HandshakeTimeout(Duration::ZERO)),
                            None => Ok(()),
                        }
                    }
                    Phase::Open(session) => session.tick(self.now).map(drop),
                    _ => Ok(()),
                };
                if let Err(cause) = ticked {
                    connection.link.end(&self.hub, cause);
                }
                connection.link.pump(&self.hub, self.now, false)?;
            }
            if next.is_none() {
                return Ok(());
            }
        }
    }

    /// Waits for what comes `after_ms`, and sees that nothing is sent or closed earlier.
    fn wait(&mut self, step: &Step) -> Outcomes {
        let Some(ms) = step.after_ms else { return Ok(()) };
        let at = step.peer.map_or(self.current, |peer| peer - 1);
        let connection = &self.connections[at];
        let ms = match connection.handshake_deadline {
            // such a time is told from the connection's beginning
            Some(deadline) if matches!(connection.link.phase, Phase::Handshake(_)) => {
                (deadline - self.now).as_millis() as u64
            }
            _ => ms,
        };
        let over = connection.is_over();
        self.advance(ms.saturating_sub(1))?;
        if self.connections[at].is_over() && !over {
            return Err(format!("closed before {ms} ms were over"));
        }
        self.connections[at].all_told().map_err(|error| format!("too early: {error}"))?;
        self.advance(1)
    }

    fn own_octets(&mut self, step: &Step, octets: &[u8]) -> Outcomes {
        self.wait(step)?;
        self.pump(true)?;
        let connection = self.connection(step);
        let untold = connection.untold();
        if untold.starts_with(octets) {
            connection.told += octets.len();
            return Ok(());
        }
        if step.optional {
            return Ok(());
        }
        Err(format!("expected {}, sent {}", shown(octets), shown(&untold)))
    }

    /// Must be closed by now.
    fn own_close(&mut self, step: &Step) -> Outcomes {
        self.wait(step)?;
        self.pump(true)?;
        let connection = self.connection(step);
        match &connection.link.phase {
            Phase::Over(_) => connection.all_told(),
            _ if step.optional => Ok(()),
            _ => Err("the connection is open".to_owned()),
        }
    }

    /// Must be open after the time that the step names, and have sent nothing but PINGs.
    fn stays_open(&mut self, step: &Step) -> Outcomes {
        self.advance(step.after_ms.or(step.ms).unwrap_or(0))?;
        let beats = self.hub.options().heartbeat_interval.is_some();
        let connection = self.connection(step);
        if let Phase::Over(cause) = &connection.link.phase {
            return Err(format!("closed: {cause}"));
        }
        let modern = connection.received.get(11) == Some(&1);
        if beats && modern {
            count_pings(connection);
        }
        connection.all_told()
    }

    fn own_event(&mut self, step: &Step, event: &str) -> Outcomes {
        match event {
            "close" => self.own_close(step),
            "silence" => {
                self.advance(step.ms.unwrap_or(0))?;
                let connection = self.connection(step);
                if let Phase::Over(cause) = &connection.link.phase {
                    return Err(format!("closed: {cause}"));
                }
                connection.all_told()
            }
            "reconnect" => {
                self.advance(step.after_ms.unwrap_or(0))?;
                self.connect()
            }
            // whether the dial loop tries again is not the core's
            "no-reconnect" => Ok(()),
            "count" => {
                let pings = count_pings(self.connection(step));
                if pings != 5 && pings != 6 { Err(format!("{pings} PINGs")) } else { Ok(()) }
            }
            other => Err(format!("an event that the replay does not know: {other}")),
        }
    }

    fn peers_event(&mut self, steps: &[Step], at: usize, event: &str) -> Outcomes {
        let step = &steps[at];
        match event {
            "close" | "reset" | "shutdown-write" => {
                let hub = self.hub.clone();
                let connection = self.connection(step);
                connection.all_told()?;
                connection.link.end(&hub, DisconnectCause::PeerClosed);
                self.pump(true)
            }
            "connect" => {
                let main = self.current;
                self.connect()?;
                if step.peer.is_some() {
                    // the same handshake, which is not shown
                    for earlier in steps[..at].iter().filter(|step| step.is_octets()) {
                        let octets = earlier.octets();
                        if earlier.from == step.from {
                            self.feed(self.current, &octets, None)?;
                        } else {
                            self.own_octets(earlier, &octets)?;
                        }
                    }
                    self.current = main;
                }
                Ok(())
            }
            "traffic" => {
                for _ in 0..step.ms.unwrap_or(0) / 150 {
                    self.advance(150)?;
                    self.feed(self.current, b"\0\x01x", None)?;
                }
                Ok(())
            }
            "no-reconnect" => Ok(()),
            other => Err(format!("an event that the replay does not know: {other}")),
        }
    }

    fn api(&mut self, api: &Api) -> Outcomes {
        let refused = |refused| format!("refused: {refused:?}");
        match &api.op[..] {
            "send" => self.send(&api.message()),
            "recv" => {
                let got = self.try_recv();
                if got == Ok(api.message()) {
                    Ok(())
                } else {
                    Err(format!("expected {:?}, received {got:?}", api.message()))
                }
            }
            "recv-none" => {
                self.advance(api.ms.unwrap_or(0))?;
                match self.try_recv() {
                    Err(RecvError::Empty) => Ok(()),
                    got => Err(format!("received {got:?}")),
                }
            }
            "subscribe" if self.hub.kind() == SocketType::XPub => self
                .hub
                .subscribe_last_peer(&api.topic(), true)
                .map(drop)
                .map_err(|e| e.to_string()),
            "unsubscribe" if self.hub.kind() == SocketType::XPub => self
                .hub
                .subscribe_last_peer(&api.topic(), false)
                .map(drop)
                .map_err(|e| e.to_string()),
            "subscribe" => {
                self.hub.subscribe(&api.topic(), Form::Command).map(drop).map_err(refused)
            }
            "unsubscribe" => {
                self.hub.unsubscribe(&api.topic(), Form::Command).map(drop).map_err(refused)
            }
            "subscribe-many" => api.topics.iter().try_for_each(|topic| {
                self.hub.subscribe(&from_hex(topic), Form::Command).map(drop).map_err(refused)
            }),
            "close" => {
                self.hub.close(self.linger(api));
                Ok(())
            }
            "unbind" => {
                self.close_peers(self.linger(api));
                Ok(())
            }
            "send-and-disconnect" => {
                self.send(&api.message())?;
                self.close_peers(self.linger(api));
                Ok(())
            }
            other => Err(format!("an operation that the replay does not know: {other}")),
        }
    }

    fn linger(&self, api: &Api) -> Closing {
        let linger = api.linger.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        Closing::within(linger, self.now)
    }

    fn close_peers(&self, closing: Closing) {
        for peer in self.connections.iter().filter_map(|connection| connection.link.peer) {
            self.hub.close_peer(peer, closing);
        }
    }

    fn send(&mut self, message: &Message) -> Outcomes {
        // both ways in which applications hand over frames
        let slices: Vec<_> = message.frames().collect();
        let payload = match self.cut {
            Cut::AsRecorded => Payload::Message(message),
            Cut::OctetByOctet => Payload::Slices(&slices),
        };
        match self.hub.kind() {
            SocketType::Pub | SocketType::XPub => self.hub.publish(&payload).map(drop),
            SocketType::Push => self.hub.push(&payload),
            SocketType::XSub => self.hub.send_upstream(message),
            other => return Err(format!("{other} does not send")),
        }
        .map_err(|refused| format!("refused: {refused:?}"))
    }

    fn try_recv(&mut self) -> Result<Message, RecvError> {
        match &mut self.receiver {
            Some(receiver) => receiver.try_recv(),
            None => Err(RecvError::Empty),
        }
    }

    fn step(&mut self, recording: &Recording, at: usize, own: &str, play: Play) -> Outcomes {
        let step = &recording.steps[at];
        let instead = match play {
            Play::ButFor(steps) => steps.iter().find(|(step, _)| *step == at),
            Play::Nothing => None,
        };
        if let Some((_, instead)) = instead {
            return match instead {
                Instead::Skip => Ok(()),
                Instead::Octets(hex) => self.own_octets(step, &from_hex(hex)),
                Instead::StaysOpen => self.stays_open(step),
                Instead::Closes => {
                    self.advance(step.ms.unwrap_or(0))?;
                    self.own_close(step)
                }
                Instead::Finishes(hex) => {
                    self.own_octets(step, &from_hex(hex))?;
                    self.own_close(step)
                }
            };
        }
        let is_own = step.from == own;
        if let Some(api) = &step.api {
            return if is_own { self.api(api).and_then(|()| self.pump(true)) } else { Ok(()) };
        }
        match &step.event {
            Some(event) if is_own => self.own_event(step, event),
            Some(event) => self.peers_event(&recording.steps, at, event),
            None if is_own => self.own_octets(step, &step.octets()),
            None => {
                let pace = step.write.as_ref().map(|_| step.interval_ms.unwrap_or(0));
                let at = step.peer.map_or(self.current, |peer| peer - 1);
                self.feed(at, &step.octets(), pace)
            }
        }
    }

    /// What must hold when all is played.
    fn conclude(&mut self, recording: &Recording, play: Play) -> Outcomes {
        for connection in &mut self.connections {
            connection.all_told()?;
        }
        let as_recorded = match play {
            Play::ButFor(steps) => steps
                .iter()
                .all(|(_, instead)| !matches!(instead, Instead::StaysOpen | Instead::Closes)),
            Play::Nothing => false,
        };
        if let Some(outcome) = recording.outcome.as_ref().filter(|_| as_recorded) {
            // a second connection may have been made after the first was closed, and the peer's own
            // end counts as nobody's
            let last = &self.connections[self.current].link.phase;
            match &outcome.connection[..] {
                "closed" if !self.connections[0].is_over() => {
                    return Err("the connection is open at the end".to_owned());
                }
                "open" => match last {
                    Phase::Over(DisconnectCause::PeerClosed) => {}
                    Phase::Over(cause) => return Err(format!("closed at the end: {cause}")),
                    _ => {}
                },
                _ => {}
            }
        }
        self.balance()
    }

    /// The two equations of the counters.
    fn balance(&self) -> Outcomes {
        let stats = self.hub.stats();
        let (out, inc) = (stats.outgoing, stats.incoming);
        if out.accepted != out.sent + out.queued + out.dropped.total()
            || inc.received != inc.delivered + inc.queued + inc.dropped.total()
        {
            return Err(format!("the counters do not balance: {stats:?}"));
        }
        Ok(())
    }
}

/// Takes PING commands off what was not told of; how many there were.
fn count_pings(connection: &mut Connection) -> usize {
    let untold = connection.untold();
    let mut rest = &untold[..];
    let mut count = 0;
    while let Some(frame) = split_frame(rest)
        && frame.header.command
        && split_command(frame.body).is_some_and(|(name, _)| name == b"PING")
    {
        count += 1;
        rest = frame.rest;
    }
    connection.told += untold.len() - rest.len();
    count
}

/// Plays one side; tells at which step it went wrong, or how many there were.
fn play(recording: &Recording, own: &str, cut: Cut, play: Play) -> Outcomes<usize> {
    let side = if own == "client" { &recording.client } else { &recording.server };
    let mut player = Player::new(side, cut);
    player.connect()?;
    for at in 0..recording.steps.len() {
        player.step(recording, at, own, play).map_err(|error| {
            let Step { from, meaning, unit, .. } = &recording.steps[at];
            let unit = unit.as_deref().unwrap_or_default();
            format!(
                "{}.json, as {own}, {cut:?}, step {at} ({from} {unit}: {meaning}): {error}",
                recording.name
            )
        })?;
    }
    player.conclude(recording, play).map_err(|error| {
        format!("{}.json, as {own}, {cut:?}, after all steps: {error}", recording.name)
    })?;
    Ok(recording.steps.len())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn recording(name: &str) -> Recording {
    let path = folder().join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn names() -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder())
        .unwrap_or_else(|e| panic!("{}: {e}", folder().display()))
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".json").map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

/// The sides that this crate can take the part of.
fn sides(recording: &Recording) -> Vec<&'static str> {
    let sides = [("client", &recording.client), ("server", &recording.server)];
    sides.into_iter().filter(|(_, side)| side.kind().is_some()).map(|(name, _)| name).collect()
}

fn deviation(name: &str) -> Option<Play> {
    DEVIATIONS.iter().find(|(file, ..)| *file == name).map(|(_, _, play)| *play)
}

/// Plays all of a group; there must be so many, and so many of them not played at all.
fn play_group(group: &str, files: usize, not_played: usize) {
    let mut failures = Vec::new();
    let (mut found, mut skipped, mut plays, mut steps) = (0, 0, 0, 0);
    for name in names() {
        let recording = recording(&name);
        assert_eq!(recording.name, name);
        let sides = sides(&recording);
        if recording.group != group || sides.is_empty() {
            continue;
        }
        found += 1;
        let how = deviation(&name).unwrap_or(Play::ButFor(&[]));
        if let Play::Nothing = how {
            skipped += 1;
            continue;
        }
        for own in sides {
            for cut in [Cut::AsRecorded, Cut::OctetByOctet] {
                plays += 1;
                match play(&recording, own, cut, how) {
                    Ok(played) => steps += played,
                    Err(error) => failures.push(error),
                }
            }
        }
    }
    println!(
        "{group}: {found} recordings, {skipped} of them not played; {plays} plays, {steps} steps"
    );
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert_eq!((found, skipped), (files, not_played), "recordings of {group}");
}

/// `test name, group, its recordings with one of this crate's socket types, those not played`
macro_rules! groups {
    ($($test:ident, $group:literal, $files:literal, $not_played:literal;)*) => {
        $(
            #[test]
            fn $test() {
                play_group($group, $files, $not_played);
            }
        )*

        const GROUPS: &[(&str, usize)] = &[$(($group, $files)),*];
    };
}

groups! {
    greetings, "greeting", 30, 1;
    handshakes, "handshake", 20, 0;
    socket_types, "socket-types", 6, 0;
    metadata, "metadata", 40, 0;
    framing, "framing", 16, 0;
    messages, "messages", 9, 0;
    limits, "limits", 9, 1;
    heartbeats, "heartbeat", 15, 1;
    publish_and_subscribe, "pubsub", 34, 1;
    old_peers, "old-peers", 35, 6;
    lifecycles, "lifecycle", 9, 3;
}

#[test]
fn every_recording_is_played_or_has_a_reason() {
    let names = names();
    assert_eq!(names.len(), 378, "files in {}", folder().display());
    let mut ours = 0;
    for name in &names {
        let recording = recording(name);
        if OTHER_GROUPS.contains(&&recording.group[..]) || sides(&recording).is_empty() {
            assert!(deviation(name).is_none(), "{name} is not of this crate's");
            continue;
        }
        assert!(GROUPS.iter().any(|(group, _)| *group == recording.group), "{name}: its group");
        ours += 1;
    }
    assert_eq!(ours, GROUPS.iter().map(|(_, files)| files).sum::<usize>());
    for (name, ..) in DEVIATIONS {
        assert!(names.iter().any(|file| file == name), "{name} is not there");
    }
}

/// A deviation that is no longer one must go.
#[test]
fn every_deviation_is_one() {
    for (name, _, how) in DEVIATIONS {
        let Play::ButFor(_) = how else { continue };
        let recording = recording(name);
        for own in sides(&recording) {
            let played = play(&recording, own, Cut::AsRecorded, Play::ButFor(&[]));
            assert!(played.is_err(), "{name} can be played as it is");
        }
    }
}

/// Plays the steps before `end`.
fn play_before(recording: &Recording, own: &str, end: usize, room: usize) -> Player {
    let side = if own == "client" { &recording.client } else { &recording.server };
    let mut player = Player::with_room(side, Cut::AsRecorded, room);
    player.connect().unwrap();
    for at in 0..end {
        player.step(recording, at, own, Play::ButFor(&[])).unwrap();
    }
    player
}

/// In place of greeting-ready-message-in-one-write.
#[test]
fn a_message_right_behind_ready_is_taken() {
    let recording = recording("greeting-ready-message-in-one-write");
    for cut in [Cut::AsRecorded, Cut::OctetByOctet] {
        let mut player = Player::new(&recording.server, cut);
        player.connect().unwrap();
        player.feed(0, &recording.steps[0].octets(), None).unwrap();
        assert!(!player.connections[0].is_over());
        assert_eq!(player.try_recv().map(|message| message.frames().count()), Ok(1));
        player.balance().unwrap();
    }
}

/// In place of maxmsgsize-per-frame.
#[test]
fn the_size_limit_counts_all_frames_of_a_message() {
    let recording = recording("maxmsgsize-per-frame");
    let mut player = play_before(&recording, "server", 8, usize::MAX);
    // one frame within the limit passes, and so do two that are so together
    player.feed(0, &[&[0, 100][..], &[7; 100]].concat(), None).unwrap();
    player.feed(0, &[&[1, 50][..], &[7; 50], &[0, 50], &[7; 50]].concat(), None).unwrap();
    assert_eq!(player.try_recv().map(|message| message.size()), Ok(100));
    assert_eq!(player.try_recv().map(|message| message.frames().count()), Ok(2));
    assert!(!player.connections[0].is_over());
    player.feed(0, &recording.steps[8].octets(), None).unwrap();
    assert!(player.connections[0].is_over());
    assert_eq!(player.try_recv(), Err(RecvError::Empty));
}

/// In place of multipart-lost-midway-is-not-resumed.
#[test]
fn a_message_lost_midway_is_sent_anew() {
    let recording = recording("multipart-lost-midway-is-not-resumed");
    let mut player = play_before(&recording, "client", 8, 5000);
    let send = |player: &mut Player, at: usize| {
        player.send(&recording.steps[at].api.as_ref().unwrap().message()).unwrap();
        player.pump(false).unwrap();
    };
    send(&mut player, 8);
    send(&mut player, 9);
    let partial = player.connections[0].untold();
    assert!(partial.starts_with(&from_hex(&recording.steps[10].bytes)), "{}", shown(&partial));
    player.room = usize::MAX;
    let hub = player.hub.clone();
    player.connections[0].link.end(&hub, DisconnectCause::PeerClosed);
    for at in 12..21 {
        player.step(&recording, at, "client", Play::ButFor(&[])).unwrap();
    }
    let sent = player.connections[1].untold();
    let frames = recording.steps[8].api.as_ref().unwrap().message();
    let mut rest = &sent[..];
    for (i, expected) in frames.frames().enumerate() {
        let frame = split_frame(rest).unwrap();
        assert_eq!((frame.header.more, frame.body == expected), (i < 2, true), "frame {i}");
        rest = frame.rest;
    }
    assert_eq!(rest, from_hex(&recording.steps[21].bytes));
    player.balance().unwrap();
}

/// In place of ping-inside-message-from-libzmq: this crate sends no such thing, but takes it.
#[test]
fn pings_between_the_frames_of_a_message_are_answered() {
    let recording = recording("ping-inside-message-from-libzmq");
    let ours = Side {
        kind: "libzmq".to_owned(),
        socket: Some("PULL".to_owned()),
        role: Some("bind".to_owned()),
        options: BTreeMap::new(),
    };
    for cut in [Cut::AsRecorded, Cut::OctetByOctet] {
        let mut player = Player::new(&ours, cut);
        player.connect().unwrap();
        let (mut frames, mut pings) = (0, 0);
        for step in recording.steps.iter().filter(|step| step.from == "client") {
            let octets = step.octets();
            frames += usize::from(step.unit.as_deref() == Some("message"));
            pings += usize::from(step.meaning.starts_with("PING"));
            player.feed(0, &octets, None).unwrap();
        }
        assert!(pings > 10 && frames > 10);
        let message = player.try_recv().unwrap();
        assert_eq!((message.frames().count(), message.size()), (frames, frames * 20_000));
        let sent = player.connections[0].untold();
        let pongs = sent.windows(7).filter(|octets| octets == b"\x04\x05\x04PONG").count();
        assert_eq!(pongs, pings);
        player.balance().unwrap();
    }
}

/// A long frame of 256 octets: an octet 1, then 255 that count up modulo 251.
const SUBSCRIPTION_OF_255_OCTETS: &str = "02000000000000010001000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebfc0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3f4f5f6f7f8f9fa00010203";

/// Version octet, minor version, mechanism and filler, then READY.
const REST_OF_GREETING_AND_READY_OF_PULL: &str = concat!(
    "03014e554c4c",
    "000000000000000000000000000000000000000000000000",
    "000000000000000000000000000000000000000000000000",
    "041a0552454144590b536f636b65742d547970650000000450554c4c",
);
