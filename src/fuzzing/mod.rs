//! What the fuzz targets in `fuzz/` call: one function for each, which panics when something does not
//! hold (`docs/fuzzing.md` tells what). Exists for fuzzing and for the tests only; the tests run all
//! saved corpora through it.
//!
//! A [`Connection`] drives the core without IO, as a connection task would; the replay of the
//! recordings uses it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
#[cfg(feature = "driver")]
use uuid::Uuid;

use crate::command::{self, Command, Subscription};
#[cfg(feature = "driver")]
use crate::driver::codec::{Body, Codec, CodecError, Origin, decode, peek_origin};
use crate::endpoint::Endpoint;
use crate::engine::{Engine, EngineConfig, Input};
use crate::error::{DisconnectCause, ProtocolError};
use crate::framing::{Framing, Limits, Room, Scan, Scanner, UNLIMITED, split_frame};
use crate::hub::{Form, Hub, Leaving, PeerId, Wire, Writing, Written, write_flight};
use crate::inbox::Chunk;
use crate::mechanism::{Mechanism, MechanismKind, Metadata};
use crate::message::Message;
use crate::options::SocketOptions;
use crate::outbox::Payload;
use crate::peer::{ConnectionId, PeerInfo};
use crate::receiver::Receiver;
use crate::session::{Handshake, Next, Session};
use crate::socket_type::SocketType;
use crate::subscription::{SubscriptionSet, Subscriptions};

/// A peer's first octets: the same answer however they are split.
pub fn greeting(data: &[u8]) {
    for (kind, routing_id) in [(SocketType::Pub, &b""[..]), (SocketType::XSub, b"me")] {
        let options = SocketOptions::new().routing_id(routing_id);
        let config = Arc::new(EngineConfig::new(kind, &options));
        let whole = greet(&config, data, usize::MAX);
        for size in [1, 7] {
            assert_eq!(greet(&config, data, size), whole, "in pieces of {size}");
        }
        assert!(whole.out.len() <= 1024, "{} octets for a greeting", whole.out.len());
    }
}

/// What a handshake comes to.
#[derive(Debug, PartialEq)]
struct Greeted {
    end: Result<Input, ProtocolError>,
    out: Vec<u8>,
    taken: usize,
}

fn greet(config: &Arc<EngineConfig>, data: &[u8], size: usize) -> Greeted {
    let mut engine = Engine::new(config.clone());
    let mut buf = BytesMut::new();
    let mut fed = 0;
    let mut end = engine.step(&mut buf, Room::NONE);
    for piece in data.chunks(size.min(data.len()).max(1)) {
        let Ok(Input::Need(need)) = end else { break };
        assert!(need > buf.len(), "{need} octets are there");
        fed += piece.len();
        buf.extend_from_slice(piece);
        end = engine.step(&mut buf, Room::NONE);
    }
    let taken = if end.is_ok() { fed - buf.len() } else { 0 };
    Greeted { end, out: std::mem::take(engine.out()), taken }
}

/// Frames of either framing: the same however they are split; consumes what it claims.
pub fn frames(data: &[u8]) {
    let narrow = Limits { message: 300, frames: 3 };
    let wide = Limits { message: UNLIMITED, frames: usize::MAX };
    for framing in [Framing::New, Framing::Old] {
        for limits in [narrow, wide] {
            let whole = read_frames(framing, limits, data, usize::MAX, usize::MAX);
            for (size, room) in [(1, usize::MAX), (1, 1), (7, 2), (usize::MAX, 1)] {
                let split = read_frames(framing, limits, data, size, room);
                assert_eq!(split, whole, "{framing:?}, pieces of {size}, room for {room}");
            }
        }
    }
}

/// What octets come to: messages, commands, and what is left, or the error.
#[derive(Debug, PartialEq)]
struct Read {
    messages: Vec<Vec<Bytes>>,
    commands: Vec<Vec<u8>>,
    end: Result<usize, ProtocolError>,
}

fn read_frames(framing: Framing, limits: Limits, data: &[u8], size: usize, room: usize) -> Read {
    let mut scanner = Scanner::new(framing, limits);
    let mut buf = BytesMut::new();
    let mut read = Read { messages: Vec::new(), commands: Vec::new(), end: Ok(0) };
    for piece in data.chunks(size.min(data.len()).max(1)) {
        buf.extend_from_slice(piece);
        loop {
            let scan = scanner.scan(&buf, Room { messages: room, ..Room::ANY });
            if let Ok(Scan::Command(body)) = scan {
                read.commands.push(buf[body].to_vec());
                continue;
            }
            let (octets, messages) = scanner.take(&buf, Room { messages: room, ..Room::ANY });
            assert!(messages <= room && octets <= buf.len());
            let mut chunk = Chunk { bytes: buf.split_to(octets).freeze(), messages, framing };
            while let Some(message) = chunk.next_message() {
                read.messages.push(message.into_frames());
            }
            assert_eq!(chunk.messages, 0, "fewer messages than claimed");
            match scan {
                Err(error) => {
                    read.end = Err(error);
                    return read;
                }
                Ok(Scan::Need(end)) => {
                    assert!(end > buf.len() + octets, "what is there is needed");
                    break;
                }
                Ok(_) => assert!(messages > 0, "no headway"),
            }
        }
    }
    read.end = Ok(buf.len());
    read
}

/// The body of a command, after the handshake and during it: what is understood comes back the same.
pub fn commands(data: &[u8]) {
    if let Ok(command) = Command::parse(data) {
        let mut out = Vec::new();
        match command {
            Command::Ping { ttl, context } => command::put_ping(&mut out, Some(ttl), context),
            Command::Pong(context) => command::put_pong(&mut out, context),
            Command::Subscribe(topic) => command::put_subscribe(&mut out, topic),
            Command::Cancel(topic) => command::put_cancel(&mut out, topic),
            Command::Error { .. } | Command::Unknown => {}
        }
        if let Some(frame) = split_frame(&out) {
            assert!(frame.header.command && frame.rest.is_empty());
            match (command, Command::parse(frame.body)) {
                (Command::Pong(context), Ok(Command::Pong(echo))) => {
                    assert_eq!(echo, &context[..context.len().min(16)]);
                }
                (command, back) => assert_eq!(back, Ok(command)),
            }
        }
    }
    let ours = Metadata(Vec::new());
    let mut mechanism = Mechanism::start(MechanismKind::Null, &ours, &mut Vec::new());
    if let Ok(Some(theirs)) = mechanism.command(data, &mut Vec::new()) {
        assert_eq!(Metadata::decode(&theirs.encode()), Ok(theirs));
    }
}

/// Frames that subscribe and cancel, as commands and as messages. The two highest bits of the flags
/// octet, which mean nothing, tell the peer; with the next one the peer leaves.
pub fn subscriptions(data: &[u8]) {
    let mut tree = Subscriptions::default();
    let mut set = SubscriptionSet::default();
    let mut model: BTreeMap<Vec<u8>, BTreeSet<u32>> = BTreeMap::new();
    let mut wanted: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut rest = data;
    while let Some(frame) = split_frame(rest) {
        let flags = u32::from(rest[0]);
        rest = frame.rest;
        let peer = flags >> 6;
        if flags & 0x20 != 0 {
            let mut told = BTreeSet::new();
            tree.remove_peer(peer, |topic, last| {
                assert_eq!(model[topic].len() == 1, last);
                assert!(told.insert(topic.to_vec()), "told twice");
            });
            for topic in told {
                assert!(remove(&mut model, &topic, peer));
            }
            assert!(model.values().all(|peers| !peers.contains(&peer)));
        }
        let change = if frame.header.command {
            match Command::parse(frame.body) {
                Ok(Command::Subscribe(topic)) => Subscription::Subscribe(topic),
                Ok(Command::Cancel(topic)) => Subscription::Cancel(topic),
                _ => continue,
            }
        } else {
            match Subscription::parse(frame.body) {
                Some(change) => change,
                None => continue,
            }
        };
        let (Subscription::Subscribe(topic) | Subscription::Cancel(topic)) = change;
        match change {
            Subscription::Subscribe(topic) => {
                let peers = model.entry(topic.to_vec()).or_default();
                let did = tree.subscribe(peer, topic);
                assert_eq!(did.first, peers.is_empty());
                assert_eq!(did.new_for_peer, peers.insert(peer));
                let count = wanted.entry(topic.to_vec()).or_default();
                assert_eq!(set.add(topic), *count == 0);
                *count += 1;
            }
            Subscription::Cancel(topic) => {
                let did = tree.cancel(peer, topic);
                assert_eq!(did.had, remove(&mut model, topic, peer));
                assert_eq!(did.last, did.had && !model.contains_key(topic));
                let left = wanted.get_mut(topic).map(|count| {
                    *count -= 1;
                    *count
                });
                assert_eq!(set.remove(topic), left.map(|count| count == 0));
                if left == Some(0) {
                    wanted.remove(topic);
                }
            }
        }
        let longer = [topic, b"x"].concat();
        for probe in [&topic[..topic.len() / 2], topic, &longer] {
            let holders = model
                .iter()
                .filter(|(held, _)| probe.starts_with(held))
                .flat_map(|(_, peers)| peers);
            let expected: BTreeSet<u32> = holders.copied().collect();
            let mut matched = Vec::new();
            tree.matching(probe, |peer| matched.push(peer));
            assert_eq!(matched.len(), expected.len(), "each once");
            assert_eq!(matched.into_iter().collect::<BTreeSet<_>>(), expected);
            let want = wanted.keys().any(|topic| probe.starts_with(topic));
            assert_eq!(set.matches(probe), want);
        }
        for peer in 0..4 {
            let count = model.values().filter(|peers| peers.contains(&peer)).count();
            assert_eq!(tree.count(peer), count);
            assert_eq!(tree.bytes(peer) == 0, count == 0);
        }
    }
    let mut listed = Vec::new();
    set.for_each(|topic| listed.push(topic.to_vec()));
    assert!(listed.iter().eq(wanted.keys()), "in order, each once");
    assert_eq!(set.has_all(), wanted.contains_key(&b""[..]));
}

fn remove(model: &mut BTreeMap<Vec<u8>, BTreeSet<u32>>, topic: &[u8], peer: u32) -> bool {
    let Some(peers) = model.get_mut(topic) else { return false };
    let had = peers.remove(&peer);
    if peers.is_empty() {
        model.remove(topic);
    }
    had
}

/// The text of an endpoint: what is accepted comes back the same from its own text.
pub fn endpoint(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        let shown = endpoint.to_string();
        assert_eq!(shown.parse::<Endpoint>().as_ref(), Ok(&endpoint), "{shown:?}");
    }
}

/// The body of an event: what is understood is the same when it is written in each form and read again.
#[cfg(feature = "driver")]
pub fn event_body(data: &[u8]) {
    let (update, origin) = match decode(data) {
        Ok(Body::Event { update, origin }) => (update, origin),
        Ok(Body::Positions(positions)) => {
            assert_eq!(peek_origin(data), None);
            assert_eq!(decode(&positions.encode()), Ok(Body::Positions(positions)));
            return;
        }
        Err(CodecError::Event { origin, .. }) => {
            assert_eq!(peek_origin(data), Some(origin), "what is missing is named");
            return;
        }
        Err(CodecError::Malformed(_)) => return,
    };
    assert_eq!(peek_origin(data), origin);
    let origin = origin.unwrap_or(Origin { publisher: Uuid::nil(), epoch: 0, sequence: 1 });
    for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
        let topic = "weather";
        let mut body = Vec::new();
        codec.encode(&update, topic, &origin, &mut body);
        let (mut update, mut origin) = (update.clone(), Some(origin));
        if codec != Codec::Protobuf {
            (update.timestamp, origin) = (None, None);
        }
        if codec == Codec::Json {
            update.topic = Some(topic.to_owned());
        }
        assert_eq!(decode(&body), Ok(Body::Event { update, origin }), "{codec}");
    }
}

/// Nothing reads bodies.
#[cfg(not(feature = "driver"))]
pub fn event_body(_: &[u8]) {}

/// A whole session: an octet of configuration, then all that a peer sends.
pub fn session(data: &[u8]) {
    let Some((&config, octets)) = data.split_first() else { return };
    let kind = match config & 0x0f {
        1 => SocketType::Pub,
        2 => SocketType::Sub,
        7 => SocketType::Pull,
        8 => SocketType::Push,
        9 => SocketType::XPub,
        10 => SocketType::XSub,
        _ => return,
    };
    let config = Config {
        kind,
        dials: config & ACCEPTED == 0,
        late: config & LATE != 0,
        blocked: config & BLOCKED != 0,
    };
    let whole = converse(&config, octets, usize::MAX);
    for size in [1, 13] {
        let mut split = converse(&config, octets, size);
        let len = split.sent.len().min(whole.sent.len());
        if split.over.is_some() && split.sent[..len] == whole.sent[..len] {
            // answers that were on their way when the peer broke the protocol may be sent or not
            split.sent.clone_from(&whole.sent);
        }
        assert_eq!(split, whole, "{config:?}, in pieces of {size}");
    }
}

/// The text of an option file, as INI and as TOML: an error names a line of it, and read twice it
/// gives the same options as read once.
#[cfg(feature = "driver")]
pub fn option_file(data: &[u8]) {
    use crate::driver::config::{Config, ConfigError, Place};
    use crate::driver::{ROLE_DF_LOCAL_CONTROLLER, ROLE_NEUTRON_SERVER};

    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = 1 + text.matches('\n').count();
    for add in [Config::add_ini, Config::add_toml] {
        let mut once = Config::new();
        if let Err(error) = add(&mut once, "file", text) {
            let ConfigError::Syntax { line, .. } = error else { panic!("{error}") };
            assert!((1..=lines).contains(&line), "{error}");
            continue;
        }
        let mut twice = once.clone();
        add(&mut twice, "file", text).expect("it was taken before");
        for role in [ROLE_NEUTRON_SERVER, ROLE_DF_LOCAL_CONTROLLER] {
            let options = once.options(role);
            assert_eq!(twice.options(role), options);
            if let Err(error) = options {
                let written = match error {
                    ConfigError::Value { written, .. }
                    | ConfigError::Interpolation { written, .. } => written,
                    error => panic!("{error}"),
                };
                let Place::File { line, .. } = written.place else { panic!("{written}") };
                assert!((1..=lines).contains(&line), "{written}");
            }
        }
        for warning in once.warnings() {
            assert!(warning.to_string().starts_with("file:"), "{warning}");
        }
    }
}

/// The bits of `session`'s first octet above the socket type.
const ACCEPTED: u8 = 0x10;
const LATE: u8 = 0x20;
const BLOCKED: u8 = 0x40;

#[derive(Debug)]
struct Config {
    kind: SocketType,
    dials: bool,
    /// The application receives at the end only, and its queue has room for few messages.
    late: bool,
    /// The kernel takes nothing but the handshake before the end.
    blocked: bool,
}

/// What a session comes to.
#[derive(Debug, PartialEq)]
struct Conversation {
    delivered: Vec<Message>,
    sent: Vec<u8>,
    /// Topics that the peer is subscribed to.
    subscribed: usize,
    over: Option<String>,
    received: u64,
    unknown_commands: u64,
}

fn converse(config: &Config, octets: &[u8], size: usize) -> Conversation {
    let mut options = SocketOptions::new().heartbeat_interval(None).routing_id("fuzz");
    if config.late {
        options = options.recv_hwm(4);
    }
    let options = Arc::new(options.max_message_size(Some(2048)).max_frames(20));
    let hub = Hub::new(config.kind, options.clone());
    let engine = Arc::new(EngineConfig::new(config.kind, &options));
    let mut receiver = Receiver::new(hub.clone());
    let here = Endpoint::tcp(([127, 0, 0, 1], 1).into());
    let dialled = config.dials.then(|| hub.add_peer(here, true));
    let mut talk = Talk { hub: &hub, kind: config.kind };
    talk.subscribe();
    let queued = talk.send();
    let mut connection = Connection::new(engine, dialled, usize::MAX);
    let now = Instant::now();
    connection.pump(&hub, now, false).unwrap();
    let mut delivered = Vec::new();
    let mut held = false;
    for piece in octets.chunks(size.min(octets.len()).max(1)) {
        if config.blocked && matches!(connection.phase, Phase::Open(_)) && !held {
            held = true;
            connection.pipe.allow(0);
        }
        connection.feed(&hub, now, piece).unwrap();
        if !config.late {
            receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
        }
        balance(&hub);
        let most = 4 * octets.len() + 4096;
        assert!(hub.stats().incoming.queued_bytes as usize <= most, "the queue outgrows the input");
        assert!(connection.pipe.sent().len() <= most, "the output outgrows the input");
    }
    connection.pipe.allow(usize::MAX);
    connection.pump(&hub, now, false).unwrap();
    receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
    talk.send();
    connection.pump(&hub, now, true).unwrap();
    receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
    let subscribed = hub.stats().peers.iter().map(|peer| peer.subscriptions).sum();
    let over = match &connection.phase {
        Phase::Over(cause) => Some(cause.to_string()),
        Phase::Handshake(_) | Phase::Open(_) => None,
    };
    connection.end(&hub, DisconnectCause::PeerClosed);
    receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
    // XPUB tells what a lost peer was subscribed to in no particular order
    let cancels = delivered.iter().rev().take_while(|message| message.topic().first() == Some(&0));
    let last = delivered.len() - cancels.count();
    delivered[last..].sort_by_key(|message| message.clone().into_frames());
    balance(&hub);
    let stats = hub.stats();
    assert_eq!(stats.incoming.queued, 0, "all was received");
    assert_eq!(stats.incoming.delivered, delivered.len() as u64);
    let left = if config.dials { queued } else { 0 };
    assert!(stats.outgoing.queued <= 2 * left, "only a dialled endpoint keeps its queue");
    Conversation {
        delivered,
        sent: connection.pipe.sent(),
        subscribed,
        over,
        received: stats.incoming.received,
        unknown_commands: stats.incoming.unknown_commands,
    }
}

/// What the application does.
struct Talk<'a> {
    hub: &'a Hub,
    kind: SocketType,
}

impl Talk<'_> {
    fn subscribe(&mut self) {
        if matches!(self.kind, SocketType::Sub | SocketType::XSub) {
            for topic in [&b"A"[..], b"m", b"A"] {
                assert!(self.hub.subscribe(topic, Form::Command).is_ok());
            }
        }
    }

    /// Sends a message of two frames; how many were accepted.
    fn send(&mut self) -> u64 {
        let payload = Payload::Slices(&[b"A1", b"x"]);
        let accepted = match self.kind {
            SocketType::Pub | SocketType::XPub => self.hub.publish(&payload).is_ok(),
            SocketType::Push => self.hub.push(&payload).is_ok(),
            SocketType::XSub => self.hub.send_upstream(&["A1", "x"].into()).is_ok(),
            _ => false,
        };
        u64::from(accepted)
    }
}

/// The application receives all there is.
fn receive(
    connection: &mut Connection,
    hub: &Arc<Hub>,
    now: Instant,
    receiver: &mut Receiver,
    delivered: &mut Vec<Message>,
) {
    while let Ok(message) = receiver.try_recv() {
        delivered.push(message);
        connection.pump(hub, now, true).unwrap();
    }
}

/// The two equations of the counters.
fn balance(hub: &Hub) {
    let stats = hub.stats();
    let (out, inc) = (stats.outgoing, stats.incoming);
    assert_eq!(out.accepted, out.sent + out.queued + out.dropped.total(), "{stats:?}");
    assert_eq!(inc.received, inc.delivered + inc.queued + inc.dropped.total(), "{stats:?}");
}

/// The kernel's part: keeps what it was given.
#[derive(Debug)]
pub(crate) struct Pipe(Mutex<(Vec<u8>, usize)>);

impl Pipe {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new((Vec::new(), room))))
    }

    /// Takes so many octets more.
    pub(crate) fn allow(&self, room: usize) {
        self.0.lock().unwrap().1 = room;
    }

    /// Whether it takes any.
    fn is_open(&self) -> bool {
        self.0.lock().unwrap().1 > 0
    }

    /// All it has taken.
    pub(crate) fn sent(&self) -> Vec<u8> {
        self.0.lock().unwrap().0.clone()
    }
}

impl Wire for Pipe {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.0.lock().unwrap();
        let (sent, room) = &mut *pipe;
        if *room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let before = sent.len();
        for slice in slices {
            let taken = slice.len().min(*room);
            sent.extend_from_slice(&slice[..taken]);
            *room -= taken;
        }
        Ok(sent.len() - before)
    }
}

/// A connection task's waker: remembers that it was woken.
#[derive(Debug, Default)]
struct Alarm(AtomicBool);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) enum Phase {
    Handshake(Handshake),
    Open(Session),
    /// Over, and why.
    Over(DisconnectCause),
}

/// One connection, driven as a connection task drives it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) phase: Phase,
    pub(crate) peer: Option<PeerId>,
    pub(crate) pipe: Arc<Pipe>,
    alarm: Arc<Alarm>,
    buf: BytesMut,
}

impl Connection {
    /// `dialled`: the place of a connected endpoint. The kernel takes `room` octets.
    pub(crate) fn new(engine: Arc<EngineConfig>, dialled: Option<PeerId>, room: usize) -> Self {
        Self {
            phase: Phase::Handshake(Handshake::new(engine)),
            peer: dialled,
            pipe: Pipe::new(room),
            alarm: Arc::default(),
            buf: BytesMut::new(),
        }
    }

    /// Octets come in.
    pub(crate) fn feed(
        &mut self,
        hub: &Arc<Hub>,
        now: Instant,
        octets: &[u8],
    ) -> Result<(), String> {
        if self.is_over() {
            return Ok(());
        }
        self.buf.extend_from_slice(octets);
        if let Phase::Open(session) = &mut self.phase {
            session.received(octets.len());
        }
        self.pump(hub, now, false)
    }

    /// Does all there is to do. `idle`: nothing has happened to this connection itself, so that what
    /// there is to write must have come with a wake.
    pub(crate) fn pump(&mut self, hub: &Arc<Hub>, now: Instant, idle: bool) -> Result<(), String> {
        if let Phase::Handshake(handshake) = &mut self.phase {
            let step = handshake.input(&mut self.buf);
            self.pipe.0.lock().unwrap().0.append(handshake.out());
            match step {
                Ok(Err(_)) => return Ok(()),
                Err(error) => {
                    self.phase = Phase::Over(error.into());
                    hub.count_failed_handshake();
                    return Ok(());
                }
                Ok(Ok(session)) => {
                    let endpoint = Endpoint::tcp(([127, 0, 0, 1], 1).into());
                    let added = || hub.add_peer(endpoint.clone(), false);
                    let peer = *self.peer.get_or_insert_with(added);
                    let info = Arc::new(PeerInfo {
                        id: ConnectionId(1),
                        endpoint,
                        accepted: true,
                        local: None,
                        remote: None,
                        credentials: None,
                        session: Some(session),
                    });
                    let between = Phase::Over(DisconnectCause::Local);
                    let Phase::Handshake(handshake) = std::mem::replace(&mut self.phase, between)
                    else {
                        unreachable!("it was one a moment ago")
                    };
                    let wire: Arc<dyn Wire> = self.pipe.clone();
                    self.phase =
                        Phase::Open(Session::open(handshake, hub.clone(), peer, info, wire, now));
                }
            }
        }
        let mut awake = self.alarm.0.swap(false, Ordering::Relaxed) || !idle;
        loop {
            let Phase::Open(session) = &mut self.phase else { return Ok(()) };
            let peer = self.peer.expect("an open connection has a place");
            let waker = Waker::from(self.alarm.clone());
            let (writing, closing) = hub.begin_write(peer, session.out(), &waker, false);
            let flushed = match writing {
                Writing::Flight(mut launched) => {
                    if !awake {
                        return Err("there was something to write, and nobody was told".to_owned());
                    }
                    let how = write_flight(&*self.pipe, &mut launched.flight);
                    hub.end_write(launched, how);
                    assert!(!matches!(how, Written::Failed(_)));
                    continue;
                }
                Writing::Blocked if self.pipe.is_open() => {
                    hub.unblock(peer);
                    awake = true;
                    continue;
                }
                Writing::Idle => true,
                Writing::Blocked => false,
                Writing::Busy | Writing::Broken(_) | Writing::Evicted(_) => {
                    unreachable!("one thread, no failure and no budget")
                }
            };
            if closing.is_some() && flushed {
                hub.note_flushed(peer);
                hub.detach(peer, Leaving::Closed);
                self.phase = Phase::Over(DisconnectCause::Local);
                return Ok(());
            }
            let before = (self.buf.len(), session.out().len());
            let next = session.input(&mut self.buf, now);
            awake = true;
            let waiting = next == Ok(Next::Wait);
            session.set_reading(!waiting || self.buf.len() < READ_AHEAD, now);
            match next {
                Ok(_) if (self.buf.len(), session.out().len()) == before => return Ok(()),
                Ok(_) => {}
                Err(error) => self.end(hub, error.into()),
            }
        }
    }

    /// The connection is lost.
    pub(crate) fn end(&mut self, hub: &Hub, cause: DisconnectCause) {
        if let (Phase::Open(_), Some(peer)) = (&self.phase, self.peer) {
            hub.detach(peer, Leaving::Lost);
        }
        if !self.is_over() {
            self.phase = Phase::Over(cause);
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }
}

/// What a connection reads although there is no room, in octets.
const READ_AHEAD: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Runs all saved inputs of a target.
    fn run(target: &str, function: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            let octets = std::fs::read(&path).unwrap();
            // a panic's output begins with the last of these lines
            println!("{}", path.display());
            function(&octets);
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }

    macro_rules! corpora {
        ($($(#[$gate:meta])? $target:ident),*) => {
            $(
                $(#[$gate])?
                #[test]
                fn $target() {
                    run(stringify!($target), super::$target);
                }
            )*

            #[test]
            fn every_target_has_its_function() {
                let known = [$(stringify!($target)),*];
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
                let names = |folder: &str| -> BTreeSet<String> {
                    let entries = std::fs::read_dir(root.join(folder)).unwrap();
                    entries
                        .map(|entry| {
                            let path = entry.unwrap().path();
                            path.file_stem().unwrap().to_str().unwrap().to_owned()
                        })
                        .collect()
                };
                let known: BTreeSet<_> = known.into_iter().map(str::to_owned).collect();
                assert_eq!(names("fuzz_targets"), known);
                assert_eq!(names("corpus"), known);
            }
        };
    }

    corpora!(
        greeting,
        frames,
        commands,
        subscriptions,
        endpoint,
        session,
        #[cfg(feature = "driver")]
        event_body,
        #[cfg(feature = "driver")]
        option_file
    );

    /// The saved sessions once more, with an application that receives late and a kernel that takes
    /// nothing.
    #[test]
    fn sessions_under_pressure() {
        run("session", |data| {
            let Some((config, octets)) = data.split_first() else { return };
            for pressure in [LATE, BLOCKED, LATE | BLOCKED] {
                super::session(&[&[config | pressure], octets].concat());
            }
        });
    }
}
