//! What the fuzz targets in `fuzz/` call: one function for each, which panics when something does not
//! hold (`docs/fuzzing.md` tells what). Exists for fuzzing and for the tests only; the tests run all
//! saved corpora through it.
//!
//! A [connection](self::connection) drives the core without IO, as a connection task would; the replay of
//! the recordings uses it as well.

mod connection;
mod differential;
#[cfg(feature = "driver")]
mod driver;
mod handshake;
mod plain_decoder;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use bytes::{Bytes, BytesMut};

use crate::command::{self, Command, Subscription};
use crate::endpoint::Endpoint;
use crate::engine::{Engine, EngineConfig, Input};
use crate::error::ProtocolError;
use crate::framing::{Framing, Limits, Room, Scan, Scanner, UNLIMITED, split_frame};
use crate::inbox::Chunk;
use crate::mechanism::{Mechanism, MechanismKind, Metadata};
use crate::options::SocketOptions;
use crate::socket_type::SocketType;
use crate::subscription::{SubscriptionSet, Subscriptions};

#[cfg(test)]
pub(crate) use self::connection::{Connection, Phase};
pub use self::differential::differential;
#[cfg(all(feature = "etcd", feature = "redis"))]
pub use self::driver::directory_answers;
#[cfg(feature = "driver")]
pub use self::driver::{directory, event_body, option_file};
pub use self::handshake::handshake;
pub use self::session::session;

/// Whether an input is among those that get the long treatment: for the fuzzers one in so many, so that
/// they have time for more others; for the tests all.
fn chosen(data: &[u8], one_in: u32) -> bool {
    let hash = |hash: u32, octet: &u8| (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193);
    cfg!(test) || (data.iter().fold(0x811c_9dc5, hash) >> 16).is_multiple_of(one_in)
}

/// A peer's first octets: the same answer however they are split.
pub fn greeting(data: &[u8]) {
    let sizes: &[usize] = if chosen(data, 8) { &[1, 7] } else { &[7] };
    for config in &*GREETERS {
        let whole = greet(config, data, usize::MAX);
        for &size in sizes {
            assert_eq!(greet(config, data, size), whole, "in pieces of {size}");
        }
        assert!(whole.out.len() <= 1024, "{} octets for a greeting", whole.out.len());
    }
}

static GREETERS: LazyLock<[Arc<EngineConfig>; 2]> = LazyLock::new(|| {
    [(SocketType::Pub, ""), (SocketType::XSub, "me")].map(|(kind, routing_id)| {
        Arc::new(EngineConfig::new(kind, &SocketOptions::new().routing_id(routing_id)))
    })
});

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
    let splits: &[(usize, usize)] = match chosen(data, 8) {
        true => &[(1, usize::MAX), (1, 1), (7, 2), (usize::MAX, 1)],
        false => &[(7, 2)],
    };
    let cuts = if chosen(data, 64) { data.len().min(64) } else { 0 };
    let narrow = Limits { message: 300, frames: 3 };
    let wide = Limits { message: UNLIMITED, frames: usize::MAX };
    for framing in [Framing::New, Framing::Old] {
        for limits in [narrow, wide] {
            let whole = read_frames(framing, limits, [data], usize::MAX);
            for &(size, room) in splits {
                let split = read_frames(framing, limits, data.chunks(size), room);
                assert_eq!(split, whole, "{framing:?}, pieces of {size}, room for {room}");
            }
            for cut in 1..cuts {
                let (front, rest) = data.split_at(cut);
                let split = read_frames(framing, limits, [front, rest], usize::MAX);
                assert_eq!(split, whole, "{framing:?}, cut at {cut}");
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

fn read_frames<'a>(
    framing: Framing,
    limits: Limits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    room: usize,
) -> Read {
    let mut scanner = Scanner::new(framing, limits);
    let mut buf = BytesMut::new();
    let mut read = Read { messages: Vec::new(), commands: Vec::new(), end: Ok(0) };
    for piece in pieces {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::session::{BLOCKED, BUDGET, LATE};
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
        handshake,
        session,
        differential,
        #[cfg(feature = "driver")]
        event_body,
        #[cfg(feature = "driver")]
        directory,
        #[cfg(all(feature = "etcd", feature = "redis"))]
        directory_answers,
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
                super::session(&[&[(config | pressure) & !BUDGET], octets].concat());
            }
        });
    }

    /// And within budgets of all kinds.
    #[test]
    fn sessions_within_a_budget() {
        run("session", |data| {
            let Some((config, octets)) = data.split_first() else { return };
            for limits in 0..16 {
                let pressure = [0, LATE, BLOCKED, LATE | BLOCKED][usize::from(limits) % 4];
                let pieces = limits << 4;
                let start = [config | pressure | BUDGET, limits | pieces];
                super::session(&[&start, octets].concat());
            }
        });
    }
}
