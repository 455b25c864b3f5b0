//! A connection without IO, as a connection task drives it. The replay of the recordings uses it as
//! well.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::time::Instant;

use bytes::BytesMut;

use crate::endpoint::Endpoint;
use crate::engine::EngineConfig;
use crate::error::DisconnectCause;
use crate::hub::{Hub, Leaving, PeerId, Wire, Writing, Written, write_flight};
use crate::peer::{ConnectionId, PeerInfo};
use crate::session::{Handshake, Next, Session};

/// The kernel's part: keeps what it was given.
#[derive(Debug)]
pub(crate) struct Pipe(Mutex<(Vec<u8>, usize)>);

impl Pipe {
    pub(super) fn new(room: usize) -> Arc<Self> {
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
                        session: Some(session),
                        ..PeerInfo::new(ConnectionId(1), endpoint, true)
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
                Writing::Evicted(held) => {
                    self.end(hub, DisconnectCause::Memory { held });
                    return Ok(());
                }
                Writing::Busy | Writing::Broken(_) => unreachable!("one thread and no failure"),
            };
            if closing.is_some() && flushed {
                let _ = hub.note_flushed(peer);
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
