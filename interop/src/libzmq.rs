//! libzmq's C API, made safe: as much of it as the tests and the throughput peer need.
//!
//! Written against `zmq.h` of 4.3.5. Every `unsafe` block of this workspace is in this file and in
//! `tests/fork.rs`. What makes these sound:
//!
//! - a [`Context`] is reference counted and every [`Socket`] holds one, so that `zmq_ctx_term` runs
//!   after the last `zmq_close`;
//! - a [`Socket`] is `Send` but not `Sync`: libzmq allows a socket to move between threads with a
//!   full memory barrier, which every safe way of sending a value in Rust is, but not to be used by
//!   two at once;
//! - a [`Frame`] is initialised from its making to its end (`zmq_msg_send` leaves an empty one).

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use dragonwire::SocketType;

use crate::DEADLINE;

/// What libzmq refused to do, as its `errno`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error(c_int);

impl Error {
    /// `EAGAIN`: it would have to wait, or has waited for as long as it may.
    pub const AGAIN: Self = Self(11);
    /// `EADDRINUSE`: somebody else listens there.
    pub const ADDRESS_IN_USE: Self = Self(98);

    fn last() -> Self {
        // SAFETY: takes no arguments, and reads a thread-local
        Self(unsafe { ffi::zmq_errno() })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the result is a static, NUL-terminated text for every number
        f.write_str(&unsafe { CStr::from_ptr(ffi::zmq_strerror(self.0)) }.to_string_lossy())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} (errno {})", self.0)
    }
}

impl std::error::Error for Error {}

/// What most calls of libzmq come back with.
pub type Result<T> = std::result::Result<T, Error>;

fn check(code: c_int) -> Result<c_int> {
    if code == -1 { Err(Error::last()) } else { Ok(code) }
}

/// The version that is linked.
#[must_use]
pub fn version() -> (i32, i32, i32) {
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: three valid pointers, written before it returns
    unsafe { ffi::zmq_version(&raw mut major, &raw mut minor, &raw mut patch) };
    (major, minor, patch)
}

/// Options that are an `int`, by their numbers in `zmq.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "libzmq's own names and documentation")]
pub enum Opt {
    SndBuf = 11,
    RcvBuf = 12,
    Linger = 17,
    ReconnectIvl = 18,
    ReconnectIvlMax = 21,
    SndHwm = 23,
    RcvHwm = 24,
    RcvTimeo = 27,
    SndTimeo = 28,
    Immediate = 39,
    XPubVerbose = 40,
    Conflate = 54,
    HandshakeIvl = 66,
    XPubNoDrop = 69,
    XPubManual = 71,
    InvertMatching = 74,
    HeartbeatIvl = 75,
    HeartbeatTtl = 76,
    HeartbeatTimeout = 77,
    XPubVerboser = 78,
    ConnectTimeout = 79,
}

impl Opt {
    /// The option of that name in `zmq.h`, without `ZMQ_`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "SNDBUF" => Self::SndBuf,
            "RCVBUF" => Self::RcvBuf,
            "LINGER" => Self::Linger,
            "RECONNECT_IVL" => Self::ReconnectIvl,
            "RECONNECT_IVL_MAX" => Self::ReconnectIvlMax,
            "SNDHWM" => Self::SndHwm,
            "RCVHWM" => Self::RcvHwm,
            "IMMEDIATE" => Self::Immediate,
            "HEARTBEAT_IVL" => Self::HeartbeatIvl,
            "HEARTBEAT_TTL" => Self::HeartbeatTtl,
            "HEARTBEAT_TIMEOUT" => Self::HeartbeatTimeout,
            _ => return None,
        })
    }
}

/// A libzmq context with its own thread for input and output.
#[derive(Debug, Clone)]
pub struct Context(Arc<RawContext>);

#[derive(Debug)]
struct RawContext(NonNull<c_void>);

// SAFETY: contexts are documented as thread safe
unsafe impl Send for RawContext {}
// SAFETY: as above
unsafe impl Sync for RawContext {}

impl Context {
    /// A new one.
    ///
    /// # Panics
    /// The process is out of file descriptors or memory.
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: takes no arguments
        let raw = unsafe { ffi::zmq_ctx_new() };
        Self(Arc::new(RawContext(NonNull::new(raw).expect("a libzmq context"))))
    }

    /// `ZMQ_IO_THREADS`; before the first socket is made.
    ///
    /// # Errors
    /// The number is negative.
    pub fn set_io_threads(&self, threads: i32) -> Result<()> {
        // SAFETY: the context lives as long as `self`
        check(unsafe { ffi::zmq_ctx_set(self.0.0.as_ptr(), IO_THREADS, threads) }).map(drop)
    }

    /// A socket. It waits for [`DEADLINE`] at most when it receives or sends, and for none when it
    /// is closed (`ZMQ_LINGER` 0); all else is libzmq's default.
    ///
    /// # Panics
    /// The process is out of file descriptors or memory.
    #[must_use]
    pub fn socket(&self, kind: SocketType) -> Socket {
        let socket = self.raw_socket(match kind {
            SocketType::Pair => 0,
            SocketType::Pub => 1,
            SocketType::Sub => 2,
            SocketType::Req => 3,
            SocketType::Rep => 4,
            SocketType::Dealer => 5,
            SocketType::Router => 6,
            SocketType::Pull => 7,
            SocketType::Push => 8,
            SocketType::XPub => 9,
            SocketType::XSub => 10,
            other => panic!("{other} is not among libzmq's types here"),
        });
        for opt in [Opt::RcvTimeo, Opt::SndTimeo] {
            socket.set(opt, millis(DEADLINE)).expect("a timeout may always be set");
        }
        socket.set(Opt::Linger, 0).expect("linger may always be set");
        socket
    }

    fn raw_socket(&self, kind: c_int) -> Socket {
        // SAFETY: the context lives as long as `self`
        let raw = unsafe { ffi::zmq_socket(self.0.0.as_ptr(), kind) };
        let raw = NonNull::new(raw).unwrap_or_else(|| panic!("no socket: {}", Error::last()));
        Socket { raw, context: self.clone(), watchers: RefCell::default() }
    }
}

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for RawContext {
    fn drop(&mut self) {
        // SAFETY: the last handle is going, and each socket held one
        while unsafe { ffi::zmq_ctx_term(self.0.as_ptr()) } == -1 && Error::last() == INTERRUPTED {}
    }
}

/// A libzmq socket; closed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    raw: NonNull<c_void>,
    context: Context,
    /// The other ends of its monitors, which outlive it: libzmq's thread waits for ever when it has
    /// an event to tell and nobody is there.
    watchers: RefCell<Vec<Arc<Mutex<Self>>>>,
}

// SAFETY: see the head of this file
unsafe impl Send for Socket {}

impl Socket {
    /// Sets an option.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn set(&self, opt: Opt, value: i32) -> Result<()> {
        self.set_raw(opt as c_int, &value.to_ne_bytes())
    }

    /// `ZMQ_MAXMSGSIZE`, in octets per frame; -1: no limit.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn set_max_message_size(&self, octets: i64) -> Result<()> {
        self.set_raw(MAXMSGSIZE, &octets.to_ne_bytes())
    }

    /// `ZMQ_ROUTING_ID`.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn set_routing_id(&self, id: &[u8]) -> Result<()> {
        self.set_raw(ROUTING_ID, id)
    }

    /// `ZMQ_XPUB_WELCOME_MSG`.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn set_welcome_message(&self, message: &[u8]) -> Result<()> {
        self.set_raw(XPUB_WELCOME_MSG, message)
    }

    /// `ZMQ_SUBSCRIBE`: SUB, and XPUB in manual mode.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn subscribe(&self, topic: impl AsRef<[u8]>) -> Result<()> {
        self.set_raw(SUBSCRIBE, topic.as_ref())
    }

    /// `ZMQ_UNSUBSCRIBE`: SUB, and XPUB in manual mode.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn unsubscribe(&self, topic: impl AsRef<[u8]>) -> Result<()> {
        self.set_raw(UNSUBSCRIBE, topic.as_ref())
    }

    fn set_raw(&self, option: c_int, value: &[u8]) -> Result<()> {
        let (data, length) = (value.as_ptr().cast(), value.len());
        // SAFETY: the socket is open; `length` octets are readable at `data`, and are copied
        check(unsafe { ffi::zmq_setsockopt(self.raw.as_ptr(), option, data, length) }).map(drop)
    }

    /// `ZMQ_EVENTS`. Asking makes the socket look after what has happened to it, such as new peers
    /// and subscriptions, which otherwise waits for the next send or receive.
    ///
    /// # Panics
    /// The context is being terminated.
    pub fn events(&self) -> i32 {
        let mut value: c_int = 0;
        let mut length = size_of::<c_int>();
        let data = (&raw mut value).cast();
        // SAFETY: the socket is open; an `int` and its size are writable where they are said to be
        let code = unsafe { ffi::zmq_getsockopt(self.raw.as_ptr(), EVENTS, data, &raw mut length) };
        check(code).expect("ZMQ_EVENTS can be read");
        value
    }

    /// Listens, and says where, wildcards resolved.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn bind(&self, endpoint: &str) -> Result<String> {
        let text = c_text(endpoint);
        // SAFETY: the socket is open, the text NUL-terminated
        check(unsafe { ffi::zmq_bind(self.raw.as_ptr(), text.as_ptr()) })?;
        let mut real = [0u8; 512];
        let mut length = real.len();
        let data = real.as_mut_ptr().cast();
        // SAFETY: the socket is open; `length` octets are writable at `data`
        let code =
            unsafe { ffi::zmq_getsockopt(self.raw.as_ptr(), LAST_ENDPOINT, data, &raw mut length) };
        check(code)?;
        let real = CStr::from_bytes_until_nul(&real).expect("libzmq terminates the endpoint");
        Ok(real.to_string_lossy().into_owned())
    }

    /// Connects, in the background.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn connect(&self, endpoint: &str) -> Result<()> {
        let text = c_text(endpoint);
        // SAFETY: the socket is open, the text NUL-terminated
        check(unsafe { ffi::zmq_connect(self.raw.as_ptr(), text.as_ptr()) }).map(drop)
    }

    /// Stops listening.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn unbind(&self, endpoint: &str) -> Result<()> {
        let text = c_text(endpoint);
        // SAFETY: the socket is open, the text NUL-terminated
        check(unsafe { ffi::zmq_unbind(self.raw.as_ptr(), text.as_ptr()) }).map(drop)
    }

    /// Ends a connection for good.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn disconnect(&self, endpoint: &str) -> Result<()> {
        let text = c_text(endpoint);
        // SAFETY: the socket is open, the text NUL-terminated
        check(unsafe { ffi::zmq_disconnect(self.raw.as_ptr(), text.as_ptr()) }).map(drop)
    }

    /// Sends a message; waits for [`DEADLINE`] at most.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn send<F: AsRef<[u8]>>(&self, frames: impl IntoIterator<Item = F>) -> Result<()> {
        self.send_frames(frames, 0)
    }

    /// Sends a message, if that is possible without waiting.
    ///
    /// # Errors
    /// As libzmq's; [`Error::AGAIN`] when it would have to wait.
    pub fn try_send<F: AsRef<[u8]>>(&self, frames: impl IntoIterator<Item = F>) -> Result<()> {
        self.send_frames(frames, DONTWAIT)
    }

    fn send_frames<F: AsRef<[u8]>>(
        &self,
        frames: impl IntoIterator<Item = F>,
        flags: c_int,
    ) -> Result<()> {
        let mut frames = frames.into_iter().peekable();
        while let Some(frame) = frames.next() {
            let more = if frames.peek().is_some() { SNDMORE } else { 0 };
            self.send_frame_flags(&mut Frame::copied(frame.as_ref()), flags | more)?;
        }
        Ok(())
    }

    /// Sends one frame and leaves it empty: `zmq_msg_send`.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn send_frame(&self, frame: &mut Frame, more: bool) -> Result<()> {
        self.send_frame_flags(frame, if more { SNDMORE } else { 0 })
    }

    fn send_frame_flags(&self, frame: &mut Frame, flags: c_int) -> Result<()> {
        retry(|| {
            // SAFETY: the socket is open, the frame initialised
            check(unsafe { ffi::zmq_msg_send(&raw mut frame.0, self.raw.as_ptr(), flags) })
        })
        .map(drop)
    }

    /// Receives one frame into `frame`: `zmq_msg_recv`.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn recv_frame(&self, frame: &mut Frame) -> Result<()> {
        self.recv_frame_flags(frame, 0)
    }

    fn recv_frame_flags(&self, frame: &mut Frame, flags: c_int) -> Result<()> {
        retry(|| {
            // SAFETY: the socket is open, the frame initialised
            check(unsafe { ffi::zmq_msg_recv(&raw mut frame.0, self.raw.as_ptr(), flags) })
        })
        .map(drop)
    }

    /// Receives a message; waits for [`DEADLINE`] at most.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn recv(&self) -> Result<Vec<Vec<u8>>> {
        self.recv_frames(0)
    }

    /// Receives a message, if one is there.
    ///
    /// # Errors
    /// As libzmq's; [`Error::AGAIN`] when there is none.
    pub fn try_recv(&self) -> Result<Vec<Vec<u8>>> {
        self.recv_frames(DONTWAIT)
    }

    /// Receives a message, if one comes in that time.
    ///
    /// # Errors
    /// As libzmq's; [`Error::AGAIN`] when none came.
    pub fn recv_within(&self, time: Duration) -> Result<Vec<Vec<u8>>> {
        self.set(Opt::RcvTimeo, millis(time))?;
        let received = self.recv();
        self.set(Opt::RcvTimeo, millis(DEADLINE))?;
        received
    }

    fn recv_frames(&self, flags: c_int) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut frame = Frame::new();
        loop {
            self.recv_frame_flags(&mut frame, flags)?;
            frames.push(frame.octets().to_vec());
            if !frame.more() {
                return Ok(frames);
            }
        }
    }

    /// Waits until a message can be received, or the file read: which of the two.
    ///
    /// # Errors
    /// As libzmq's.
    pub fn poll_with(&self, file: BorrowedFd<'_>, time: Duration) -> Result<(bool, bool)> {
        let item = |socket, fd| ffi::PollItem { socket, fd, events: POLLIN, revents: 0 };
        let mut items = [item(self.raw.as_ptr(), 0), item(std::ptr::null_mut(), file.as_raw_fd())];
        retry(|| {
            // SAFETY: two items are readable and writable; the socket and the file are open
            check(unsafe { ffi::zmq_poll(items.as_mut_ptr(), 2, millis(time).into()) })
        })?;
        Ok((items[0].revents & POLLIN != 0, items[1].revents != 0))
    }

    /// Begins to tell what happens to this socket; a socket has one monitor at a time.
    ///
    /// # Panics
    /// The process is out of file descriptors or memory.
    pub fn monitor(&self) -> Monitor {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("inproc://monitor-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let text = c_text(&name);
        // SAFETY: the socket is open, the text NUL-terminated
        let code = unsafe { ffi::zmq_socket_monitor(self.raw.as_ptr(), text.as_ptr(), ALL_EVENTS) };
        check(code).expect("a monitor");
        let events = self.context.socket(SocketType::Pair);
        events.set(Opt::RcvHwm, 0).expect("a mark may always be set");
        events.connect(&name).expect("the monitor's end");
        let events = Arc::new(Mutex::new(events));
        self.watchers.borrow_mut().push(Arc::clone(&events));
        Monitor { events }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.watchers.borrow().is_empty() {
            // SAFETY: the socket is open; no endpoint means to stop
            unsafe { ffi::zmq_socket_monitor(self.raw.as_ptr(), std::ptr::null(), 0) };
        }
        // SAFETY: open until now, and not used again
        unsafe { ffi::zmq_close(self.raw.as_ptr()) };
    }
}

/// What a socket's monitor tells; the numbers are those of `zmq.h`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorEvent {
    /// One of this type's constants, or another.
    pub event: u16,
    /// A file descriptor, an error or an interval, depending on the event.
    pub value: u32,
    /// The endpoint concerned.
    pub endpoint: String,
}

#[expect(missing_docs, reason = "libzmq's own names and documentation")]
impl MonitorEvent {
    pub const CONNECTED: u16 = 0x0001;
    pub const CONNECT_RETRIED: u16 = 0x0004;
    pub const LISTENING: u16 = 0x0008;
    pub const ACCEPTED: u16 = 0x0020;
    pub const CLOSED: u16 = 0x0080;
    pub const DISCONNECTED: u16 = 0x0200;
    pub const HANDSHAKE_FAILED_NO_DETAIL: u16 = 0x0800;
    pub const HANDSHAKE_SUCCEEDED: u16 = 0x1000;
    pub const HANDSHAKE_FAILED_PROTOCOL: u16 = 0x2000;
}

/// Events of one socket, from the moment it was asked for.
#[derive(Debug)]
pub struct Monitor {
    events: Arc<Mutex<Socket>>,
}

impl Monitor {
    /// The next event, if there is one in that time.
    ///
    /// # Panics
    /// libzmq sent something that is not an event.
    pub fn next_within(&self, time: Duration) -> Option<MonitorEvent> {
        let events = self.events.lock().expect("nobody panics with it");
        let frames = match events.recv_within(time) {
            Ok(frames) => frames,
            Err(Error::AGAIN) => return None,
            Err(error) => panic!("monitor: {error}"),
        };
        let [head, endpoint] = &frames[..] else { panic!("not a monitor's message: {frames:?}") };
        let (event, value) = head.split_first_chunk().expect("two octets of event");
        Some(MonitorEvent {
            event: u16::from_ne_bytes(*event),
            value: u32::from_ne_bytes(value.try_into().expect("four octets of value")),
            endpoint: String::from_utf8_lossy(endpoint).into_owned(),
        })
    }

    /// Passes over events until there is one of these.
    ///
    /// # Panics
    /// There is none within [`DEADLINE`].
    #[track_caller]
    pub fn wait_for(&self, wanted: &[u16]) -> MonitorEvent {
        let end = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        while let Some(event) = self.next_within(end.saturating_duration_since(Instant::now())) {
            if wanted.contains(&event.event) {
                return event;
            }
            seen.push(event);
        }
        panic!("none of the events {wanted:#06x?} within {DEADLINE:?}, but {seen:?}");
    }
}

/// One frame of a message: a `zmq_msg_t`.
pub struct Frame(ffi::Msg);

impl Frame {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let mut frame = Self(ffi::Msg([0; 64]));
        // SAFETY: 64 writable octets of the right alignment; cannot fail
        unsafe { ffi::zmq_msg_init(&raw mut frame.0) };
        frame
    }

    /// One that holds a copy of these octets.
    ///
    /// # Panics
    /// There is no memory for it.
    #[must_use]
    pub fn copied(octets: &[u8]) -> Self {
        let mut msg = ffi::Msg([0; 64]);
        // SAFETY: 64 writable octets of the right alignment
        check(unsafe { ffi::zmq_msg_init_size(&raw mut msg, octets.len()) }).expect("memory");
        // SAFETY: the message has just been made with that many octets
        unsafe {
            let data = ffi::zmq_msg_data(&raw mut msg).cast::<u8>();
            data.copy_from_nonoverlapping(octets.as_ptr(), octets.len());
        }
        Self(msg)
    }

    /// What it holds.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        // SAFETY: the message is initialised, and neither call changes it; the octets stay where
        // they are until it is sent, received into or dropped, each of which needs `&mut`
        unsafe {
            let msg = (&raw const self.0).cast_mut();
            let length = ffi::zmq_msg_size(msg);
            std::slice::from_raw_parts(ffi::zmq_msg_data(msg).cast::<u8>(), length)
        }
    }

    /// Whether another frame of the same message follows.
    #[must_use]
    pub fn more(&self) -> bool {
        // SAFETY: the message is initialised
        unsafe { ffi::zmq_msg_more(&raw const self.0) == 1 }
    }

    /// A property of the peer it came from: `zmq_msg_gets`.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        let name = c_text(name);
        // SAFETY: the message is initialised, the name NUL-terminated; the result, if there is one,
        // is NUL-terminated and belongs to the message
        let value = unsafe {
            let value = ffi::zmq_msg_gets(&raw const self.0, name.as_ptr());
            if value.is_null() { None } else { Some(CStr::from_ptr(value)) }
        };
        value.and_then(|value| value.to_str().ok())
    }
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} octets", self.octets().len())
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // SAFETY: initialised until now, and not used again
        unsafe { ffi::zmq_msg_close(&raw mut self.0) };
    }
}

fn retry(mut call: impl FnMut() -> Result<c_int>) -> Result<c_int> {
    loop {
        match call() {
            Err(INTERRUPTED) => {}
            result => return result,
        }
    }
}

fn c_text(text: &str) -> CString {
    CString::new(text).expect("no NUL octet in an endpoint or name")
}

fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

const INTERRUPTED: Error = Error(4);

const IO_THREADS: c_int = 1;
const DONTWAIT: c_int = 1;
const SNDMORE: c_int = 2;
const POLLIN: i16 = 1;
const ROUTING_ID: c_int = 5;
const SUBSCRIBE: c_int = 6;
const UNSUBSCRIBE: c_int = 7;
const EVENTS: c_int = 15;
const MAXMSGSIZE: c_int = 22;
const LAST_ENDPOINT: c_int = 32;
const XPUB_WELCOME_MSG: c_int = 72;
const ALL_EVENTS: c_int = 0xffff;

/// The functions' declarations, as in `zmq.h`.
mod ffi {
    use std::ffi::{c_char, c_int, c_long, c_short, c_void};

    /// `zmq_msg_t`.
    #[repr(C, align(8))]
    pub(super) struct Msg(pub(super) [u8; 64]);

    /// `zmq_pollitem_t`.
    #[repr(C)]
    pub(super) struct PollItem {
        pub(super) socket: *mut c_void,
        pub(super) fd: c_int,
        pub(super) events: c_short,
        pub(super) revents: c_short,
    }

    unsafe extern "C" {
        pub(super) fn zmq_errno() -> c_int;
        pub(super) fn zmq_strerror(error: c_int) -> *const c_char;
        pub(super) fn zmq_version(major: *mut c_int, minor: *mut c_int, patch: *mut c_int);

        pub(super) fn zmq_ctx_new() -> *mut c_void;
        pub(super) fn zmq_ctx_set(context: *mut c_void, option: c_int, value: c_int) -> c_int;
        pub(super) fn zmq_ctx_term(context: *mut c_void) -> c_int;

        pub(super) fn zmq_socket(context: *mut c_void, kind: c_int) -> *mut c_void;
        pub(super) fn zmq_close(socket: *mut c_void) -> c_int;
        pub(super) fn zmq_bind(socket: *mut c_void, endpoint: *const c_char) -> c_int;
        pub(super) fn zmq_connect(socket: *mut c_void, endpoint: *const c_char) -> c_int;
        pub(super) fn zmq_unbind(socket: *mut c_void, endpoint: *const c_char) -> c_int;
        pub(super) fn zmq_disconnect(socket: *mut c_void, endpoint: *const c_char) -> c_int;
        pub(super) fn zmq_setsockopt(
            socket: *mut c_void,
            option: c_int,
            value: *const c_void,
            length: usize,
        ) -> c_int;
        pub(super) fn zmq_getsockopt(
            socket: *mut c_void,
            option: c_int,
            value: *mut c_void,
            length: *mut usize,
        ) -> c_int;
        pub(super) fn zmq_socket_monitor(
            socket: *mut c_void,
            endpoint: *const c_char,
            events: c_int,
        ) -> c_int;
        pub(super) fn zmq_poll(items: *mut PollItem, count: c_int, timeout: c_long) -> c_int;

        pub(super) fn zmq_msg_init(msg: *mut Msg) -> c_int;
        pub(super) fn zmq_msg_init_size(msg: *mut Msg, size: usize) -> c_int;
        pub(super) fn zmq_msg_close(msg: *mut Msg) -> c_int;
        pub(super) fn zmq_msg_data(msg: *mut Msg) -> *mut c_void;
        pub(super) fn zmq_msg_size(msg: *const Msg) -> usize;
        pub(super) fn zmq_msg_more(msg: *const Msg) -> c_int;
        pub(super) fn zmq_msg_gets(msg: *const Msg, property: *const c_char) -> *const c_char;
        pub(super) fn zmq_msg_send(msg: *mut Msg, socket: *mut c_void, flags: c_int) -> c_int;
        pub(super) fn zmq_msg_recv(msg: *mut Msg, socket: *mut c_void, flags: c_int) -> c_int;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_new_enough() {
        assert!(version() >= (4, 3, 4), "{:?}", version());
    }

    #[test]
    fn a_message_comes_back_whole() {
        let context = Context::new();
        let (push, pull) = (context.socket(SocketType::Push), context.socket(SocketType::Pull));
        let endpoint = pull.bind("tcp://127.0.0.1:*").unwrap();
        assert_eq!(pull.try_recv(), Err(Error::AGAIN));
        push.connect(&endpoint).unwrap();
        push.send(["a", "", "bc"]).unwrap();
        assert_eq!(pull.recv().unwrap(), [&b"a"[..], b"", b"bc"]);
        assert_eq!(pull.bind("tcp://nonsense").unwrap_err().to_string(), "Invalid argument");
    }

    #[test]
    fn the_monitor_tells_of_a_handshake() {
        let context = Context::new();
        let (push, pull) = (context.socket(SocketType::Push), context.socket(SocketType::Pull));
        let monitor = pull.monitor();
        push.connect(&pull.bind("tcp://127.0.0.1:*").unwrap()).unwrap();
        let event = monitor.wait_for(&[MonitorEvent::HANDSHAKE_SUCCEEDED]);
        assert!(event.endpoint.starts_with("tcp://127.0.0.1:"), "{event:?}");
        drop(push);
        monitor.wait_for(&[MonitorEvent::DISCONNECTED]);
    }
}
