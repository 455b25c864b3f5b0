//! A TCP relay that stands for a network where none can be made: it stops, slows down and breaks the
//! connections that go through it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use dragonwire_interop::chaos::KERNEL_BUFFER;
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

/// The relay of one link; it ends, and its connections with it, when this is dropped.
#[derive(Debug)]
pub(crate) struct Relay(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    slow: AtomicBool,
    /// Connections of an earlier number are broken.
    era: AtomicU64,
    breaking: AtomicBool,
}

impl Relay {
    /// What it holds itself of a connection, each way.
    pub(crate) const OCTETS: u64 = 64 * 1024;

    /// Listens at one address and connects to the other, in threads of its own.
    pub(crate) fn start(listen: &str, connect: &str) -> Self {
        let listener = TcpListener::bind(listen).expect("an address of this run's own");
        set_socket_recv_buffer_size(&listener, KERNEL_BUFFER).expect("a buffer");
        listener.set_nonblocking(true).expect("a socket");
        let state = Arc::new(State::default());
        let (weak, connect) = (Arc::downgrade(&state), connect.to_owned());
        thread::spawn(move || {
            while let Some(state) = weak.upgrade() {
                // while it is cut the kernel accepts, and nobody answers
                let accepted = (!state.cut.load(Ordering::Relaxed)).then(|| listener.accept());
                let era = state.era.load(Ordering::Relaxed);
                drop(state);
                match accepted {
                    Some(Ok((client, _))) => {
                        // refused: the client sees its connection end
                        if let Ok(server) = TcpStream::connect(&connect) {
                            join(&weak, era, client, server);
                        }
                    }
                    _ => thread::sleep(GLANCE),
                }
            }
        });
        Self(state)
    }

    /// Brings faults into force. Connections break when `broken` becomes true.
    pub(crate) fn set(&self, cut: bool, slow: bool, broken: bool) {
        self.0.cut.store(cut, Ordering::Relaxed);
        self.0.slow.store(slow, Ordering::Relaxed);
        let before = self.0.breaking.swap(broken, Ordering::Relaxed);
        if broken && !before {
            self.0.era.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Two threads that carry what comes from either to the other.
fn join(state: &Weak<State>, era: u64, client: TcpStream, server: TcpStream) {
    for stream in [&client, &server] {
        set_socket_recv_buffer_size(stream, KERNEL_BUFFER).expect("a buffer");
        set_socket_send_buffer_size(stream, KERNEL_BUFFER).expect("a buffer");
        stream.set_nonblocking(false).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(GLANCE)).expect("a time");
        stream.set_write_timeout(Some(GLANCE)).expect("a time");
    }
    let (client, server) = (Arc::new(client), Arc::new(server));
    for (from, to) in [(Arc::clone(&client), Arc::clone(&server)), (server, client)] {
        let state = Weak::clone(state);
        thread::spawn(move || {
            let broken = carry(&state, era, &from, &to).is_none();
            // an end is an end for one direction only
            let _ = to.shutdown(if broken { Shutdown::Both } else { Shutdown::Write });
            if broken {
                let _ = from.shutdown(Shutdown::Both);
            }
        });
    }
}

/// Until the end; `None` if it was not a good one.
fn carry(state: &Weak<State>, era: u64, mut from: &TcpStream, mut to: &TcpStream) -> Option<()> {
    let mut block = vec![0; Relay::OCTETS as usize];
    let is_open = || -> Option<Arc<State>> {
        state.upgrade().filter(|state| state.era.load(Ordering::Relaxed) == era)
    };
    loop {
        if is_open()?.cut.load(Ordering::Relaxed) {
            thread::sleep(GLANCE);
            continue;
        }
        let count = match from.read(&mut block) {
            Ok(0) => return Some(()),
            Ok(count) => count,
            Err(error) if is_temporary(error.kind()) => continue,
            Err(_) => return None,
        };
        if is_open()?.slow.load(Ordering::Relaxed) {
            thread::sleep(SLOW);
        }
        let mut rest = &block[..count];
        while !rest.is_empty() {
            if is_open()?.cut.load(Ordering::Relaxed) {
                thread::sleep(GLANCE);
                continue;
            }
            match to.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if is_temporary(error.kind()) => {}
                Err(_) => return None,
            }
        }
    }
}

fn is_temporary(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// How long it takes at most to see that something has changed.
const GLANCE: Duration = Duration::from_millis(10);

const SLOW: Duration = Duration::from_millis(50);
