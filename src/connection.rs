//! The one task of a connection: the handshake, then octets in both directions until the end.
//!
//! The steady state is one hand-written poll over writing, reading and the clock; each turn of it is
//! bounded, so that no connection keeps the others from running.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::blocks::{BLOCK, READING, ROOM};
use crate::engine::{EngineConfig, HANDSHAKE_MAX};
use crate::error::DisconnectCause;
use crate::greeting::GREETING;
use crate::hub::{Closing, Hub, PeerId, Wire, Writing, Written, write_flight};
use crate::peer::{PeerInfo, SessionInfo};
use crate::session::{Handshake, Next, Session};
use crate::socket_type::SocketType;
use crate::transport::{Reader, Writer};
use crate::turns;

/// A connection before READY.
#[derive(Debug)]
pub(crate) struct Greeter {
    reader: Reader,
    writer: Arc<Writer>,
    handshake: Handshake,
    buf: BytesMut,
}

impl Greeter {
    pub(crate) fn new(engine: Arc<EngineConfig>, reader: Reader, writer: Arc<Writer>) -> Self {
        let handshake = Handshake::new(engine);
        Self { reader, writer, handshake, buf: BytesMut::with_capacity(256) }
    }

    /// Runs the handshake, within `handshake_timeout`.
    pub(crate) async fn greet(
        &mut self,
        limit: Option<Duration>,
    ) -> Result<SessionInfo, DisconnectCause> {
        match limit {
            None => self.shake().await,
            Some(limit) => match timeout(limit, self.shake()).await {
                Ok(result) => result,
                Err(_) => Err(DisconnectCause::HandshakeTimeout(limit)),
            },
        }
    }

    async fn shake(&mut self) -> Result<SessionInfo, DisconnectCause> {
        loop {
            let step = self.handshake.input(&mut self.buf);
            let sent = self.send().await;
            // what the peer did wrong says more than that it is gone by now
            let step = step?;
            sent?;
            match step {
                Ok(info) => return Ok(info),
                Err(needed) => {
                    let more = needed.saturating_sub(self.buf.len()).min(HANDSHAKE_MAX + GREETING);
                    self.buf.reserve(more);
                }
            }
            if poll_fn(|cx| self.reader.poll_read(cx, &mut self.buf, usize::MAX)).await? == 0 {
                return Err(DisconnectCause::PeerClosed);
            }
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        let out = self.handshake.out();
        while !out.is_empty() {
            poll_fn(|cx| self.writer.poll_write_ready(cx)).await?;
            match self.writer.try_write_vectored(&[io::IoSlice::new(out)]) {
                Ok(octets) => drop(out.drain(..octets)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The connection from here on.
    pub(crate) fn open(self, hub: Arc<Hub>, peer: PeerId, info: Arc<PeerInfo>) -> Box<Connection> {
        let Self { reader, writer, mut handshake, mut buf } = self;
        // most connections say nothing for now
        if buf.is_empty() {
            buf = BytesMut::new();
        }
        handshake.out().shrink_to_fit();
        let now = Instant::now();
        let mut session =
            Session::open(handshake, hub.clone(), peer, info, writer.clone(), now.into_std());
        // what stood behind READY in the same read
        session.received(buf.len());
        Box::new(Connection {
            governed: hub.account().is_some(),
            held: 0,
            hub,
            peer,
            reader,
            writer,
            session,
            buf,
            buffer: Buffer::Rest,
            rest: BytesMut::new(),
            large: Vec::new(),
            needed: 0,
            expected: 0,
            largest: 0,
            unread: true,
            left: 0,
            budget: 0,
            gave_way: 0,
            state: State::Open,
            write_failed: None,
            read_ended: None,
            close_by: None,
            retry_at: None,
            timer: Box::pin(sleep_until(now)),
            timer_at: now,
        })
    }
}

/// A connection from READY to its end.
#[derive(Debug)]
pub(crate) struct Connection {
    hub: Arc<Hub>,
    peer: PeerId,
    reader: Reader,
    writer: Arc<Writer>,
    session: Session,
    /// Keeps within a budget, which knows of so many octets of buffers.
    governed: bool,
    held: usize,
    /// What came in and is not whole yet: in a block while octets are coming, else just that.
    buf: BytesMut,
    buffer: Buffer,
    /// For the next rest of a message, once there was one.
    rest: BytesMut,
    /// Buffers of large messages, to be used again when those are gone.
    large: Vec<BytesMut>,
    /// What the buffer must come to hold for anything to happen, as far as the peer says.
    needed: usize,
    /// Octets of the message that was waited for last; the next ones may be like it.
    expected: usize,
    /// The most octets that were ever whole at once: a peer that sends large messages is read
    /// from in large pieces.
    largest: usize,
    /// Whether `buf` is to be looked at although nothing new has come.
    unread: bool,
    /// Octets of the session's that the socket would not take for now.
    left: usize,
    /// Octets that may still be read before others have their turn.
    budget: usize,
    /// See [`turns::is_ahead`].
    gave_way: u64,
    state: State,
    /// Why nothing can be sent any more, and why nothing more will come.
    write_failed: Option<DisconnectCause>,
    read_ended: Option<DisconnectCause>,
    /// When this side stops waiting for its queue to be flushed, or for the peer to close.
    close_by: Option<Instant>,
    /// When to look again for memory, or for room, within a budget.
    retry_at: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
}

/// What kind of buffer octets are read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Buffer {
    /// Just the rest of a message, while nothing is coming.
    Rest,
    /// A block of the socket's.
    Block,
    /// The connection's own, for a message larger than a block.
    Large,
    /// The connection's own, because there are enough blocks.
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Nothing more is sent; what is on its way here still counts, until the peer has closed too.
    /// `pushed`: it was sent messages that nobody else gets.
    Draining {
        pushed: bool,
    },
}

impl Connection {
    /// Runs until the connection ends; tells why.
    ///
    /// # Cancel safety
    /// Safe, and then this can be called again.
    pub(crate) async fn run(&mut self) -> DisconnectCause {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<DisconnectCause> {
        if turns::is_ahead(&mut self.gave_way) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.budget = READ_MAX;
        for _ in 0..TURNS {
            match self.turn(cx) {
                // who takes what was read is to do so while it is in the processor's cache
                Ok(true) if self.budget == 0 => break,
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(cause) => return Poll::Ready(cause),
            }
        }
        // others are to run before more is done here
        cx.waker().wake_by_ref();
        match self.watch_clock(cx) {
            Ok(_) => Poll::Pending,
            Err(cause) => Poll::Ready(cause),
        }
    }

    /// One round of writing, reading and the clock. `Ok(false)`: nothing more to do until woken.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, DisconnectCause> {
        let wrote = self.write(cx)?;
        let read = self.read(cx)?;
        Ok(wrote || read || self.watch_clock(cx)?)
    }

    /// Writes what there is. `Ok(false)`: nothing more to do until woken.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, DisconnectCause> {
        loop {
            let drained = self.state != State::Open || self.write_failed.is_some();
            let (writing, closing) =
                self.hub.begin_write(self.peer, self.session.out(), cx.waker(), drained);
            self.left = self.session.out().len();
            let idle = match writing {
                Writing::Flight(mut launched) => {
                    let how = write_flight(&*self.writer, &mut launched.flight);
                    self.hub.end_write(launched, how);
                    match how {
                        Written::All => return Ok(true),
                        Written::WouldBlock => {}
                        Written::Failed(kind) => self.fail_writing(io::Error::from(kind)),
                    }
                    continue;
                }
                Writing::Blocked => match self.writer.poll_write_ready(cx) {
                    Poll::Ready(Ok(())) => {
                        self.hub.unblock(self.peer);
                        continue;
                    }
                    Poll::Ready(Err(error)) => {
                        self.fail_writing(error);
                        continue;
                    }
                    Poll::Pending => false,
                },
                Writing::Broken(kind) => {
                    self.fail_writing(io::Error::from(kind));
                    continue;
                }
                Writing::Evicted(held) => return Err(DisconnectCause::Memory { held }),
                Writing::Busy => false,
                Writing::Idle => true,
            };
            return match closing {
                Some(closing) => self.close(closing, idle),
                None => Ok(false),
            };
        }
    }

    /// Nothing can be sent any more. The connection ends when nothing more comes in either: what the
    /// peer sent before it went is still to be received.
    fn fail_writing(&mut self, error: io::Error) {
        self.write_failed.get_or_insert(error.into());
    }

    /// Why the connection ended, when both directions have.
    fn end(&mut self, read: DisconnectCause) -> DisconnectCause {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match self.write_failed.take() {
            // that only says that the peer is gone, which reading tells better
            None | Some(DisconnectCause::Io(BrokenPipe | ConnectionReset, _)) => read,
            Some(write) => write,
        }
    }

    /// This side wants to close: it does when all is sent, or when it is late.
    fn close(&mut self, closing: Closing, flushed: bool) -> Result<bool, DisconnectCause> {
        let now = Instant::now();
        let deadline = closing.deadline.map(Instant::from_std);
        self.close_by = match self.state {
            State::Open => deadline,
            // the socket is closing: what still comes in is only counted, which is not worth a
            // long wait; but what PUSH has sent is lost if the peer has not got it when it sends
            // something to a connection that is gone
            State::Draining { pushed } if self.hub.is_closing() => {
                let patience = now + if pushed { PUSH_DRAIN } else { DRAIN };
                Some(self.close_by.unwrap_or(patience).min(patience))
            }
            // an endpoint is being removed: what the peer has sent is for the application, which
            // may take its time
            State::Draining { .. } => deadline,
        };
        if self.state == State::Open && flushed && self.write_failed.is_none() {
            let sent = self.hub.note_flushed(self.peer);
            self.writer.shut_down()?;
            self.state = State::Draining { pushed: sent && self.hub.kind() == SocketType::Push };
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads what has come and hands it on. `Ok(false)`: nothing more to do until woken.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, DisconnectCause> {
        let mut waiting = false;
        loop {
            if std::mem::take(&mut self.unread) {
                let now = Instant::now().into_std();
                let before = self.buf.len();
                let next = self.session.input(&mut self.buf, now)?;
                let whole = before - self.buf.len();
                self.largest = self.largest.max(whole);
                if whole > 0 && whole < self.expected {
                    // they are smaller now
                    self.expected = 0;
                }
                waiting = next == Next::Wait;
                let ahead = if self.governed { OWN } else { READ_AHEAD };
                let reading = !waiting || self.buf.len() < ahead;
                self.session.set_reading(reading, now);
                match next {
                    Next::Read(needed) => {
                        self.needed = needed;
                        if needed > self.buf.len() + HEADER {
                            self.expected = needed;
                        }
                    }
                    Next::Wait if reading => {}
                    Next::Write | Next::Wait => {
                        if self.governed && next == Next::Wait {
                            self.retry_at = Some(Instant::now() + RETRY);
                        }
                        self.unread = true;
                        self.settle_buffer();
                        return Ok(next == Next::Write && self.left == 0);
                    }
                }
                if self.session.out().len() > self.left {
                    self.unread |= waiting;
                    return Ok(true);
                }
            }
            if let Some(cause) = &self.read_ended {
                if !waiting {
                    return Err(self.end(cause.clone()));
                }
                self.unread = true;
                return Ok(false);
            }
            if self.budget == 0 {
                self.unread |= waiting;
                return Ok(true);
            }
            if !self.make_room() {
                // for want of memory; the task will be woken when there may be some
                let now = Instant::now();
                self.session.set_reading(false, now.into_std());
                self.retry_at = Some(now + RETRY);
                self.unread = true;
                return Ok(false);
            }
            let limit = self.read_limit();
            match self.reader.poll_read(cx, &mut self.buf, limit) {
                Poll::Ready(Ok(0)) => {
                    self.read_ended = Some(match self.state {
                        State::Open => DisconnectCause::PeerClosed,
                        State::Draining { .. } => DisconnectCause::Local,
                    });
                    self.unread |= waiting;
                }
                Poll::Ready(Err(error)) => {
                    self.read_ended = Some(error.into());
                    self.unread |= waiting;
                }
                Poll::Ready(Ok(octets)) => {
                    self.budget = self.budget.saturating_sub(octets);
                    turns::note_read(octets);
                    self.session.received(octets);
                    self.unread = true;
                }
                Poll::Pending => {
                    self.unread |= waiting;
                    self.settle_buffer();
                    return Ok(false);
                }
            }
        }
    }

    /// Room for the next read: in a block, or for a message that is larger in a buffer of its own.
    /// `false`: there is no memory for it.
    fn make_room(&mut self) -> bool {
        let capacity = self.capacity();
        let spare = capacity - self.buf.len();
        let awaited = self.buffer != Buffer::Rest && self.needed <= capacity;
        if spare >= ROOM || (spare > 0 && awaited && self.buf.len() > SMALL_REST) {
            return true;
        }
        if self.governed {
            return self.make_governed_room();
        }
        let kept_word = self.largest >= self.expected;
        if self.needed <= BLOCK && (BLOCK + 1..=LARGE_MAX).contains(&self.expected) && kept_word {
            // a buffer for just that, so that nothing of it is copied from one to the next
            let size = self.expected.max(self.buf.len() + ROOM);
            let used = self.large.iter_mut().position(|large| large.try_reclaim(size));
            let mut large = match used {
                Some(at) => self.large.swap_remove(at),
                None => BytesMut::with_capacity(size),
            };
            large.extend_from_slice(&self.buf);
            self.change_buffer(large, Buffer::Large);
        } else if self.needed > BLOCK {
            // grown by what has come, not by what was announced, but for a peer that has kept its
            // word before
            let trusted = self.buf.len().max(self.largest).max(BLOCK);
            self.buf.reserve(trusted.min(self.needed.saturating_sub(self.buf.len())).max(ROOM));
            self.buffer = Buffer::Large;
        } else {
            let len = self.buf.len();
            let size = if self.needed > len + HEADER { self.needed } else { len + ROOM };
            let mut block = READING.get(size);
            block.extend_from_slice(&self.buf);
            self.change_buffer(block, Buffer::Block);
        }
        debug_assert!(self.buf.capacity() > self.buf.len(), "to read nothing is taken for the end");
        true
    }

    /// The same within a budget: blocks as long as there are some, else no more than has to be.
    fn make_governed_room(&mut self) -> bool {
        let len = self.buf.len();
        let whole = if self.needed > len + HEADER { self.needed } else { len + HEADER };
        if whole <= BLOCK
            && let Some(mut block) = READING.try_get(whole.max(len + 1))
        {
            block.extend_from_slice(&self.buf);
            self.change_buffer(block, Buffer::Block);
            self.session.copy(false);
            return true;
        }
        if self.capacity() > len && self.buffer == Buffer::Own {
            return true;
        }
        if !self.hub.may_receive(self.peer, whole) {
            return false;
        }
        // half as much again, but for what is known to be needed a little at a time
        let size = whole.min(len + (len / 2).clamp(OWN, BLOCK));
        if !self.hub.may_buffer(self.peer, size, true) {
            return false;
        }
        self.held = size.max(len + OWN_MIN);
        if self.buffer == Buffer::Own && len >= BLOCK {
            // one so large grows where it is, so that it is not there twice meanwhile; what it has
            // beyond `held` is not touched
            self.buf.reserve(self.held - len);
        } else {
            let mut own = BytesMut::with_capacity(self.held);
            own.extend_from_slice(&self.buf);
            self.change_buffer(own, Buffer::Own);
        }
        self.session.copy(true);
        true
    }

    /// How many octets the buffer may come to hold.
    fn capacity(&self) -> usize {
        let capacity = self.buf.capacity();
        if self.buffer == Buffer::Own {
            capacity.min(self.held.max(self.buf.len()))
        } else {
            capacity
        }
    }

    /// Within a budget nothing is kept of a block that this connection waits with, if there is memory
    /// of its own for it.
    fn settle_governed(&mut self) {
        let len = self.buf.len();
        let kept = if len <= OWN_MIN { 0 } else { len };
        let fits = match self.buffer {
            Buffer::Rest => true,
            Buffer::Block => false,
            // not what is worth more than it costs to copy it each time that an octet comes
            Buffer::Large | Buffer::Own => self.capacity() <= len + (len / 2).max(OWN) && kept > 0,
        };
        if !fits && self.hub.may_buffer(self.peer, kept, false) {
            self.held = kept;
            let rest = BytesMut::from(&self.buf[..]);
            self.change_buffer(rest, if kept == 0 { Buffer::Rest } else { Buffer::Own });
        } else if fits && kept == 0 && self.held > 0 {
            self.held = 0;
            self.hub.may_buffer(self.peer, 0, false);
        }
    }

    /// How much to read: of large messages only as many as fit, since what would come of the next one
    /// would have to be copied into the next buffer.
    fn read_limit(&self) -> usize {
        let (len, capacity) = (self.buf.len(), self.capacity());
        let spare = capacity - len;
        let begun = if self.needed > len + HEADER { self.needed } else { len };
        if self.expected < LARGE || begun >= capacity {
            return spare;
        }
        let whole = begun + (capacity - begun) / self.expected * self.expected;
        if whole > len { whole - len } else { spare }
    }

    /// Nothing is coming: the block goes back, a small rest is kept without it.
    fn settle_buffer(&mut self) {
        if self.governed {
            self.settle_governed();
        } else if self.buffer != Buffer::Rest && self.buf.len() <= SMALL_REST {
            let mut rest = std::mem::take(&mut self.rest);
            rest.extend_from_slice(&self.buf);
            self.change_buffer(rest, Buffer::Rest);
        }
    }

    fn change_buffer(&mut self, buf: BytesMut, buffer: Buffer) {
        let mut old = std::mem::replace(&mut self.buf, buf);
        old.clear();
        match std::mem::replace(&mut self.buffer, buffer) {
            Buffer::Block => READING.put(old),
            Buffer::Own => {}
            Buffer::Rest if self.governed => {}
            Buffer::Rest => self.rest = old,
            // a peer cannot make this side hold on to much by one large message
            Buffer::Large if self.largest > LARGE_MAX => {}
            Buffer::Large => {
                self.large.truncate(LARGE_KEPT - 1);
                self.large.push(old);
            }
        }
    }

    /// The heartbeat, while there is a peer to hear it; tells whether its interval has passed.
    fn beat(&mut self, now: Instant) -> Result<bool, DisconnectCause> {
        if self.read_ended.is_some() { Ok(false) } else { self.session.tick(now.into_std()) }
    }

    /// Does what the clock asks for, and sees to being woken when it does so next.
    fn watch_clock(&mut self, cx: &mut Context<'_>) -> Result<bool, DisconnectCause> {
        loop {
            let now = Instant::now();
            match self.beat(now) {
                Ok(true) => {
                    self.hub.trim();
                    READING.trim();
                    self.rest = BytesMut::new();
                    self.large = Vec::new();
                }
                Ok(false) => {}
                Err(cause) => {
                    // what came before the silence is still to be received
                    self.write_failed.get_or_insert(cause.clone());
                    self.read_ended = Some(cause);
                    self.unread = true;
                    return Ok(true);
                }
            }
            if self.session.out().len() > self.left {
                return Ok(true);
            }
            if self.close_by.is_some_and(|at| at <= now) {
                return Err(DisconnectCause::Local);
            }
            if self.retry_at.is_some_and(|at| at <= now) {
                self.retry_at = None;
                return Ok(true);
            }
            let tick = self.session.next_tick().filter(|_| self.read_ended.is_none());
            let tick = tick.map(Instant::from_std);
            let due = tick.into_iter().chain(self.close_by).chain(self.retry_at);
            let Some(next) = due.min() else { return Ok(false) };
            if next != self.timer_at {
                self.timer.as_mut().reset(next);
                self.timer_at = next;
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(false);
            }
        }
    }
}

/// Rounds of a connection before others have their turn.
const TURNS: usize = 16;

/// Octets read before others have their turn.
const READ_MAX: usize = 2 * BLOCK;

/// Octets that are read although there is no room for the messages in them, so that PINGs among them
/// are answered.
const READ_AHEAD: usize = 64 * 1024;

/// What is asked for when not even a frame's length is known is at most so much more.
const HEADER: usize = 10;

/// Buffers of large messages that a connection keeps while messages flow: one is being read into, one
/// is the application's.
const LARGE_KEPT: usize = 2;

/// Messages beyond this are read into buffers of their own that are given back at once.
const LARGE_MAX: usize = 2 * 1024 * 1024;

/// Messages from this size on are worth not being cut by the end of a block.
const LARGE: usize = 4 * 1024;

/// How often a connection that waits for memory looks for it unasked: when others have had their time.
const RETRY: Duration = Duration::from_millis(500);

/// What a connection begins with, and asks for at a time, when there are no blocks.
const OWN: usize = 4 * 1024;

/// A rest of so few octets is part of what a connection costs.
const OWN_MIN: usize = 512;

/// A rest of a message that is copied out of a block rather than pinning it.
const SMALL_REST: usize = 4 * 1024;

/// How long a closed socket's connection waits for the peer to close as well. Closing with octets
/// unread would reset the connection, and could take from the peer what it has not read yet.
const DRAIN: Duration = Duration::from_millis(500);

/// The same for PUSH that has sent messages, within `linger`: the peer may take its time to read them.
const PUSH_DRAIN: Duration = Duration::from_secs(30);
