//! The floor: what a program that knows what it wants could do with the same octets on the wire.
//!
//! Blocking sockets of the standard library and a thread for each; frames with ZMTP's headers,
//! written by hand, in batches; no handshake, no queue, no subscription. A receiver looks at each
//! message's first octet.

use std::fs::File;
use std::hint::black_box;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use crate::receipt::{Counter, Receipt};
use crate::role::{Role, Verb};
use crate::signals::{self, Go};
use crate::tally::{Laps, Tally};

pub const SETTINGS: &str = "blocking sockets, no handshake; ZMTP frames in batches of 128 KiB, one \
     write each (payloads from 64 KiB on are gathered, not copied); reads of up to 256 KiB; fan-out \
     writes the same batch to each subscriber; a thread for each receiving socket";

pub fn version() -> String {
    "std".to_owned()
}

pub fn declines(role: &Role) -> bool {
    let drops = role.verb == Verb::Pub && !role.lossless;
    drops || role.verb == Verb::Idle || role.is_of_pipeline()
}

pub fn run(role: &Role) -> Tally {
    match role.verb {
        Verb::Push => send(role, vec![connect(&role.endpoint)], None),
        Verb::Pub => publish(role),
        Verb::Pull => receive(role, listen(&role.endpoint, 1)),
        Verb::Sub => receive(role, (0..role.peers).map(|_| connect(&role.endpoint)).collect()),
        Verb::Ping => ping(role),
        Verb::Pong => pong(role),
        Verb::Idle | Verb::Produce | Verb::Relay | Verb::Consume => {
            unreachable!("it is declined")
        }
    }
}

fn publish(role: &Role) -> Tally {
    let go = Go::listen();
    let subscribers = listen(&role.endpoint, role.peers);
    signals::subscribed();
    go.wait();
    send(role, subscribers, role.topics().first())
}

fn send(role: &Role, mut peers: Vec<File>, topic: Option<&String>) -> Tally {
    let payload = vec![b'x'; role.size];
    let mut head = Vec::new();
    if let Some(topic) = topic {
        header(&mut head, topic.len(), true);
        head.extend(topic.as_bytes());
    }
    header(&mut head, payload.len(), false);
    let start = Instant::now();
    if payload.len() >= GATHERED {
        for _ in 0..role.count {
            for peer in &mut peers {
                write_both(peer, &head, &payload);
            }
        }
    } else {
        let mut batch = Vec::with_capacity(BATCH + head.len() + payload.len());
        for _ in 0..role.count {
            batch.extend_from_slice(&head);
            batch.extend_from_slice(&payload);
            if batch.len() >= BATCH {
                write_to_all(&mut peers, &batch);
                batch.clear();
            }
        }
        write_to_all(&mut peers, &batch);
    }
    Tally::of(role.count, start.elapsed().as_secs_f64())
}

fn write_to_all(peers: &mut [File], batch: &[u8]) {
    for peer in peers {
        peer.write_all(batch).expect("the receiver is there");
    }
}

fn write_both(peer: &mut File, head: &[u8], payload: &[u8]) {
    let slices = [IoSlice::new(head), IoSlice::new(payload)];
    let written = peer.write_vectored(&slices).expect("the receiver is there");
    let (rest, of_payload) = match written.checked_sub(head.len()) {
        Some(of_payload) => (&[][..], of_payload),
        None => (&head[written..], 0),
    };
    peer.write_all(rest).expect("the receiver is there");
    peer.write_all(&payload[of_payload..]).expect("the receiver is there");
}

/// A frame's header: <https://rfc.zeromq.org/spec/37/#framing>.
fn header(octets: &mut Vec<u8>, length: usize, more: bool) {
    match u8::try_from(length) {
        Ok(length) => octets.extend([u8::from(more), length]),
        Err(_) => {
            octets.push(LONG | u8::from(more));
            octets.extend((length as u64).to_be_bytes());
        }
    }
}

fn receive(role: &Role, sockets: Vec<File>) -> Tally {
    let receipt = Receipt::watch();
    let threads: Vec<_> = sockets
        .into_iter()
        .enumerate()
        .map(|(n, mut socket)| {
            let counter = receipt.counter(role.share(n));
            std::thread::spawn(move || read_all(&mut socket, counter))
        })
        .collect();
    for thread in threads {
        thread.join().expect("no receiver panics");
    }
    receipt.tally()
}

fn read_all(socket: &mut File, mut counter: Counter) {
    let mut buffer = vec![0; READ];
    let mut parser = Parser { rest: 0, more: false, one: || counter.one() };
    let mut kept = 0;
    loop {
        let read = socket.read(&mut buffer[kept..]).expect("the sender does not reset");
        let Some(used) = parser.parse(&buffer[..kept + read]) else { return };
        assert!(read > 0, "the sender has ended too early");
        buffer.copy_within(used..kept + read, 0);
        kept = kept + read - used;
    }
}

struct Parser<F> {
    /// Of the frame that has begun: octets still to come.
    rest: usize,
    more: bool,
    /// A message is whole. Are there more to come?
    one: F,
}

impl<F: FnMut() -> bool> Parser<F> {
    /// How much was used: what is left is the beginning of a header. `None`: that was all.
    #[inline]
    fn parse(&mut self, octets: &[u8]) -> Option<usize> {
        let mut at = 0;
        loop {
            if self.rest > 0 {
                let Some(&first) = octets.get(at) else { return Some(at) };
                black_box(first);
                let here = self.rest.min(octets.len() - at);
                at += here;
                self.rest -= here;
                if self.rest > 0 {
                    return Some(at);
                }
                if !self.more && !(self.one)() {
                    return None;
                }
            }
            match octets[at..] {
                [flags, length, ..] if flags & LONG == 0 => {
                    (self.rest, self.more) = (length.into(), flags & 1 == 1);
                    at += 2;
                }
                [flags, a, b, c, d, e, f, g, h, ..] => {
                    let length = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                    (self.rest, self.more) = (length as usize, flags & 1 == 1);
                    at += 9;
                }
                _ => return Some(at),
            }
        }
    }
}

fn ping(role: &Role) -> Tally {
    let mut stream = connect(&role.endpoint);
    let mut octets = message(role);
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        stream.write_all(&octets).expect("the other side is there");
        stream.read_exact(&mut octets).expect("the other side is there");
        laps.stop();
    }
    laps.tally()
}

fn pong(role: &Role) -> Tally {
    let mut stream = listen(&role.endpoint, 1).remove(0);
    let mut octets = message(role);
    for _ in 0..role.round_trips() {
        stream.read_exact(&mut octets).expect("the other side is there");
        stream.write_all(&octets).expect("the other side is there");
    }
    Tally::default()
}

/// One message of one frame, header and payload.
pub fn message(role: &Role) -> Vec<u8> {
    let mut octets = Vec::new();
    header(&mut octets, role.size, false);
    octets.extend(vec![b'x'; role.size]);
    octets
}

/// Sockets as files, for which reading and writing is the same whatever their family.
fn connect(endpoint: &str) -> File {
    File::from(match address(endpoint) {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).expect("somebody listens");
            stream.set_nodelay(true).expect("a socket takes it");
            OwnedFd::from(stream)
        }
        Address::Ipc(path) => UnixStream::connect(path).expect("somebody listens").into(),
    })
}

fn listen(endpoint: &str, connections: usize) -> Vec<File> {
    match address(endpoint) {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address).expect("the address is free");
            signals::listening(format_args!("tcp://{}", listener.local_addr().expect("bound")));
            let accept = |_| {
                let (stream, _) = listener.accept().expect("a connection");
                stream.set_nodelay(true).expect("a socket takes it");
                File::from(OwnedFd::from(stream))
            };
            (0..connections).map(accept).collect()
        }
        Address::Ipc(path) => {
            let listener = UnixListener::bind(path).expect("the path is free");
            signals::listening(endpoint);
            let accept = |_| OwnedFd::from(listener.accept().expect("a connection").0).into();
            (0..connections).map(accept).collect()
        }
    }
}

pub enum Address {
    /// Host and port, which is 0 for any.
    Tcp(String),
    /// A path.
    Ipc(String),
}

pub fn address(endpoint: &str) -> Address {
    match endpoint.split_once("://") {
        Some(("tcp", address)) => Address::Tcp(address.replace('*', "0")),
        Some(("ipc", path)) => Address::Ipc(path.to_owned()),
        _ => panic!("{endpoint}: neither tcp:// nor ipc://"),
    }
}

const LONG: u8 = 2;
/// More does not make it faster, and half of it makes it slower.
const BATCH: usize = 128 << 10;
const READ: usize = 256 << 10;
/// From here on a copy costs more than a second slice.
const GATHERED: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let mut octets = Vec::new();
        for size in [16, 300, 255] {
            header(&mut octets, 8, true);
            octets.extend([b't'; 8]);
            header(&mut octets, size, false);
            octets.extend(vec![b'x'; size]);
        }
        for step in 1..octets.len() {
            let mut messages = 0;
            let one = || {
                messages += 1;
                messages < 3
            };
            let mut parser = Parser { rest: 0, more: false, one };
            let (mut from, mut to) = (0, 0);
            while let Some(used) = parser.parse(&octets[from..to]) {
                from += used;
                assert!(to < octets.len(), "with steps of {step}");
                to = (to + step).min(octets.len());
            }
            assert_eq!(messages, 3);
        }
    }
}
