//! A whole session against one peer, whose octets are the input.

use std::sync::Arc;
use std::time::Instant;

use super::chosen;
use super::connection::{Connection, Phase, Pipe};
use crate::command::Subscription;
use crate::endpoint::Endpoint;
use crate::engine::EngineConfig;
use crate::error::DisconnectCause;
use crate::governor::Budget;
use crate::greeting::Version;
use crate::hub::{Form, Hub, Leaving, PeerId};
use crate::message::Message;
use crate::options::SocketOptions;
use crate::outbox::Payload;
use crate::peer::{ConnectionId, PeerInfo};
use crate::receiver::Receiver;
use crate::socket_type::SocketType;
use crate::stats::DropReason;

/// A whole session: an octet of configuration, with a budget one more (`docs/fuzzing.md`), then all
/// that a peer sends.
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
    let budgeted = config & BUDGET != 0;
    let config = Config {
        kind,
        dials: config & ACCEPTED == 0,
        late: config & LATE != 0,
        blocked: config & BLOCKED != 0,
    };
    if budgeted {
        if let Some((&limits, octets)) = octets.split_first() {
            let heavy = limits & HEAVY != 0 && chosen(data, 8);
            squeeze(&config, limits, heavy, octets);
        }
        return;
    }
    let whole = converse(&config, octets, usize::MAX);
    // octet by octet takes the longest by far
    let sizes: &[usize] = if chosen(data, 8) { &[13, 1] } else { &[13] };
    for &size in sizes {
        let mut split = converse(&config, octets, size);
        let len = split.sent.len().min(whole.sent.len());
        if split.over.is_some() && split.sent[..len] == whole.sent[..len] {
            // answers that were on their way when the peer broke the protocol may be sent or not
            split.sent.clone_from(&whole.sent);
        }
        assert_eq!(split, whole, "{config:?}, in pieces of {size}");
    }
}

/// The bits of `session`'s first octet above the socket type.
const ACCEPTED: u8 = 0x10;
pub(super) const LATE: u8 = 0x20;
pub(super) const BLOCKED: u8 = 0x40;
pub(super) const BUDGET: u8 = 0x80;

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
        options = options.recv_hwm(4).recv_hwm_bytes(48);
    }
    let options = Arc::new(options.max_message_size(Some(2048)).max_frames(20));
    let hub = Hub::new(config.kind, options.clone());
    let engine = Arc::new(EngineConfig::new(config.kind, &options));
    let mut receiver = Receiver::new(hub.clone());
    let here = Endpoint::tcp(([127, 0, 0, 1], 1).into());
    let dialled = config.dials.then(|| hub.add_peer(here, true));
    let talk = Talk { hub: &hub, kind: config.kind };
    talk.subscribe();
    let queued = talk.send(b"A1");
    let mut connection = Connection::new(engine, dialled, usize::MAX);
    let now = Instant::now();
    connection.pump(&hub, now, false).unwrap();
    let mut delivered = Vec::new();
    let mut held = false;
    for (count, piece) in octets.chunks(size.min(octets.len()).max(1)).enumerate() {
        if config.blocked && matches!(connection.phase, Phase::Open(_)) && !held {
            held = true;
            connection.pipe.allow(0);
        }
        connection.feed(&hub, now, piece).unwrap();
        if !config.late {
            receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
        }
        // the counters are put together anew each time
        if !cfg!(test) && count % 8 > 0 {
            continue;
        }
        balance(&hub);
        let most = 4 * octets.len() + 4096;
        assert!(hub.stats().incoming.queued_bytes as usize <= most, "the queue outgrows the input");
        assert!(connection.pipe.sent().len() <= most, "the output outgrows the input");
    }
    connection.pipe.allow(usize::MAX);
    connection.pump(&hub, now, false).unwrap();
    receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
    talk.send(b"A1");
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

/// The same within a budget. It decides by what the pieces cost, so that only its accounts are looked
/// at: what is held stays within the limits, each decision is counted, and nothing is left at the end.
fn squeeze(config: &Config, limits: u8, heavy: bool, octets: &[u8]) {
    let per_peer = PER_PEER[usize::from(limits & 7)];
    let load = if heavy { 90 } else { 4 };
    let size = if limits < 0x10 { usize::MAX } else { usize::from(limits >> 4) };
    let budget = Budget::process(0).per_peer(per_peer);
    let options = SocketOptions::new().heartbeat_interval(None).budget(&budget);
    let options = Arc::new(options.max_message_size(Some(2048)).max_frames(20));
    let hub = Hub::new(config.kind, options.clone());
    let engine = Arc::new(EngineConfig::new(config.kind, &options));
    let mut receiver = Receiver::new(hub.clone());
    let here = Endpoint::tcp(([127, 0, 0, 1], 1).into());
    let dialled = config.dials.then(|| hub.add_peer(here.clone(), true));
    let stalled = stall(&hub, here);
    let talk = Talk { hub: &hub, kind: config.kind };
    let send = || {
        for count in 0..load {
            talk.send(&[b'A'; LARGE]);
            if count % 4 == 0 {
                check(&hub, &budget, per_peer);
            }
        }
    };
    talk.subscribe();
    send();
    let now = Instant::now();
    let mut connection = Connection::new(engine, dialled, usize::MAX);
    connection.pump(&hub, now, false).unwrap();
    let mut delivered = Vec::new();
    for piece in octets.chunks(size.min(octets.len()).max(1)) {
        if config.blocked && matches!(connection.phase, Phase::Open(_)) {
            connection.pipe.allow(0);
        }
        connection.feed(&hub, now, piece).unwrap();
        if !config.late {
            receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
        }
        check(&hub, &budget, per_peer);
    }
    send();
    connection.pipe.allow(usize::MAX);
    connection.pump(&hub, now, false).unwrap();
    receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
    connection.end(&hub, DisconnectCause::PeerClosed);
    hub.detach(stalled, Leaving::Lost);
    receive(&mut connection, &hub, now, &mut receiver, &mut delivered);
    check(&hub, &budget, per_peer);
    assert_eq!(hub.stats().incoming.queued, 0, "all was received");
    if !config.dials {
        let pooled = budget.usage().chargeable / 32;
        assert!(budget.usage().used <= pooled, "{:?}, and nobody is there", budget.usage());
    }
    drop((connection, receiver, hub));
    assert_eq!(budget.usage().used, 0, "the socket is gone");
}

/// A peer that has subscribed to everything and reads nothing.
fn stall(hub: &Arc<Hub>, endpoint: Endpoint) -> PeerId {
    let peer = hub.add_peer(endpoint.clone(), false);
    let info = PeerInfo::new(ConnectionId(2), endpoint, true);
    hub.attach(peer, Arc::new(info), Version::V3_1, Pipe::new(0));
    assert_eq!(hub.peer_subscription(peer, Subscription::Subscribe(b"")), Ok(()));
    peer
}

/// That the books balance, and the budget holds but for what is taken without asking.
fn check(hub: &Hub, budget: &Budget, per_peer: usize) {
    balance(hub);
    let (usage, stats) = (budget.usage(), hub.stats());
    let each = per_peer.min(usage.chargeable) + CONNECTION;
    let all = usage.chargeable.min(2 * each + usage.chargeable / 32);
    assert!(
        usage.used <= all + LARGE + 2 * CONNECTION,
        "{usage:?}, {per_peer} for each {stats:#?}"
    );
    let dropped = stats.outgoing.dropped.get(DropReason::Memory);
    assert_eq!(usage.refused + usage.reclaimed, dropped, "{usage:?}, {stats:?}");
}

/// What a peer may hold, by the low bits of the octet of limits; with the next bit the application
/// sends more than the whole budget.
const PER_PEER: [usize; 8] = [usize::MAX, 0, 2048, 4096, 6144, 12_288, 32_768, 131_072];
const HEAVY: u8 = 0x08;

/// Octets of the messages that are sent within a budget.
const LARGE: usize = 8000;

/// What a connection costs without asking.
const CONNECTION: usize = 4096;

/// What the application does.
struct Talk<'a> {
    hub: &'a Hub,
    kind: SocketType,
}

impl Talk<'_> {
    fn subscribe(&self) {
        if matches!(self.kind, SocketType::Sub | SocketType::XSub) {
            for topic in [&b"A"[..], b"m", b"A"] {
                assert!(self.hub.subscribe(topic, Form::Command).is_ok());
            }
        }
    }

    /// Sends a message of two frames; how many were accepted.
    fn send(&self, topic: &[u8]) -> u64 {
        let payload = Payload::Slices(&[topic, b"x"]);
        let accepted = match self.kind {
            SocketType::Pub | SocketType::XPub => self.hub.publish(&payload).is_ok(),
            SocketType::Push => self.hub.push(&payload).is_ok(),
            SocketType::XSub => self.hub.send_upstream(&[topic, b"x"].into()).is_ok(),
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
    loop {
        let message = receiver.try_recv();
        connection.pump(hub, now, true).unwrap();
        // there was no room for more until the first was asked for
        match message.or_else(|_| receiver.try_recv()) {
            Ok(message) => delivered.push(message),
            Err(_) => return,
        }
    }
}

/// The two equations of the counters.
fn balance(hub: &Hub) {
    let stats = hub.stats();
    let (out, inc) = (stats.outgoing, stats.incoming);
    assert_eq!(out.accepted, out.sent + out.queued + out.dropped.total(), "{stats:?}");
    assert_eq!(inc.received, inc.delivered + inc.queued + inc.dropped.total(), "{stats:?}");
}
