//! The errors of each layer: what an application did wrong ([`Error`]), how an endpoint is malformed
//! ([`EndpointError`]), what a peer did wrong ([`ProtocolError`]) and why a connection ended
//! ([`DisconnectCause`]).
//!
//! A peer's fault never comes out of `send` or `recv`; it is a [`DisconnectCause`] in a monitor
//! event.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::message::Message;
use crate::socket_type::SocketType;

/// What a socket's methods can fail with, apart from sending and receiving.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
// with a discriminant a word wide, as in `hub::Refused`
#[repr(u64)]
pub enum Error {
    /// The endpoint's text is not one.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The endpoint cannot be listened on.
    #[error("cannot bind {endpoint}: {source}{}", bind_advice(.source))]
    #[non_exhaustive]
    Bind {
        /// The endpoint as it was given.
        endpoint: Endpoint,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// `unbind` or `disconnect` named an endpoint that this socket does not have.
    #[error("{endpoint} is not among the endpoints of this socket; `endpoints()` lists them")]
    #[non_exhaustive]
    UnknownEndpoint {
        /// The endpoint as it was given.
        endpoint: Endpoint,
    },
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
    /// Binding and connecting start tasks, which needs a tokio runtime with IO and time enabled.
    #[error("there is no tokio runtime here: call this from within one")]
    NoRuntime,
    /// The operation needs a peer that is no longer there.
    #[error("the peer {peer} is gone")]
    #[non_exhaustive]
    UnknownPeer {
        /// The peer's connection id.
        peer: crate::peer::ConnectionId,
    },
    /// An option has a value that cannot be used.
    #[error("option {option}: {reason}")]
    #[non_exhaustive]
    Option {
        /// The option's name, as the method of [`SocketOptions`](crate::SocketOptions) is called.
        option: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

fn bind_advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => "; another socket listens there: stop it or choose another",
        io::ErrorKind::AddrNotAvailable => "; no interface of this host has that address",
        io::ErrorKind::PermissionDenied => "; choose a port above 1023 or a folder you may write",
        io::ErrorKind::NotFound => "; create the missing folder or check the interface's name",
        _ => "",
    }
}

/// Why a text is not an endpoint, or an endpoint cannot be used in that way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad endpoint {text:?}: {reason}")]
#[non_exhaustive]
pub struct EndpointError {
    /// The text as it was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: EndpointFault,
}

/// What is wrong with an endpoint's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointFault {
    /// There is no `://`.
    #[error("it has no transport; write tcp://HOST:PORT or ipc://PATH")]
    NoTransport,
    /// The transport is not one of those supported.
    #[error("transport {0:?} is not supported; use tcp or ipc")]
    UnknownTransport(String),
    /// A TCP endpoint without `:PORT`.
    #[error("the port is missing; write tcp://HOST:PORT")]
    NoPort,
    /// The port is not a number from 0 to 65535, nor `*`.
    #[error("{0:?} is not a port; use a number from 0 to 65535 or *")]
    BadPort(String),
    /// The host is empty or holds octets that no host name has.
    #[error("{0:?} is not a host; use an address, [IPV6], a name or *")]
    BadHost(String),
    /// The part before `;` is not an address.
    #[error("{0:?} is not a source address; write tcp://ADDRESS:PORT;HOST:PORT")]
    BadSource(String),
    /// An IPC endpoint without a path, or with a NUL octet in it.
    #[error("the path is empty or holds a NUL octet")]
    BadPath,
    /// The kernel's limit for the path of a Unix socket.
    #[error("the path has {length} octets; a Unix socket's path has at most {limit}")]
    PathTooLong {
        /// Length of the path, in octets.
        length: usize,
        /// The most that the kernel takes, in octets.
        limit: usize,
    },
    /// A wildcard (or port 0, or a source address) where it has no meaning.
    #[error("it can be bound, but not connected to: name a host and a port, or a path")]
    NotConnectable,
    /// A source address where it has no meaning.
    #[error("a source address is for connecting, not for binding")]
    NotBindable,
}

/// What a peer did that ends its connection. Sans-IO: values compare equal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A frame's header announces more than `max_message_size` allows.
    #[error("a frame of {announced} octets was announced; the limit is {limit} (max_message_size)")]
    FrameTooLarge {
        /// The length in the header.
        announced: u64,
        /// What is allowed.
        limit: u64,
    },
    /// All frames of a message together hold more than `max_message_size` allows.
    #[error("a message of more than {limit} octets in {frames} frames (max_message_size)")]
    MessageTooLarge {
        /// Frames so far.
        frames: usize,
        /// What is allowed.
        limit: u64,
    },
    /// A message of more frames than `max_frames` allows.
    #[error("a message of more than {limit} frames (max_frames)")]
    TooManyFrames {
        /// What is allowed.
        limit: usize,
    },
    /// Commands of that many octets inside of one message.
    #[error("more than {limit} octets of commands inside of a message")]
    TooManyCommands {
        /// What is allowed.
        limit: usize,
    },
    /// ZMTP 1.0 counts the flags octet, so that a length of 0 cannot be.
    #[error("a ZMTP 1.0 frame of length 0")]
    EmptyOldFrame,
    /// The peer is of a version in which the mechanism of this socket does not exist.
    #[error("the peer speaks ZMTP {version}, which has no security mechanism; {ours} is required")]
    NoMechanism {
        /// What the peer speaks.
        version: crate::greeting::Version,
        /// What this socket requires.
        ours: &'static str,
    },
    /// The greeting names another mechanism than this socket's.
    #[error("the peer's mechanism is {theirs:?}; this socket's is {ours}")]
    MechanismMismatch {
        /// This socket's.
        ours: &'static str,
        /// The peer's, with octets that are not ASCII escaped.
        theirs: String,
    },
    /// During the handshake: another command, or a message, where `expected` should be.
    #[error("{got} where {expected} was expected")]
    UnexpectedCommand {
        /// The command that should have come.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// A command whose body breaks the rules of RFC 37.
    #[error("malformed {command} command: {reason}")]
    MalformedCommand {
        /// The command's name.
        command: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The two socket types do not talk to each other (RFC 37, "The Socket-Type Property").
    #[error("the peer is {theirs}, which does not fit {ours}")]
    SocketTypeMismatch {
        /// This socket's type.
        ours: SocketType,
        /// What the peer said, with octets that are not ASCII escaped.
        theirs: String,
    },
    /// The peer sent an ERROR command.
    #[error("the peer refused: {reason:?}")]
    PeerError {
        /// The reason it gave, with octets that are not ASCII escaped.
        reason: String,
    },
    /// More octets before READY than a handshake can need.
    #[error("more than {limit} octets before READY")]
    HandshakeTooLarge {
        /// What is allowed.
        limit: usize,
    },
    /// More subscriptions than `max_subscription_bytes` allows.
    #[error("subscriptions of more than {limit} octets in all (max_subscription_bytes)")]
    TooManySubscriptions {
        /// What is allowed.
        limit: usize,
    },
}

/// Why a connection ended, or was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectCause {
    /// The peer closed the connection.
    #[error("closed by the peer")]
    PeerClosed,
    /// The operating system reported an error.
    #[error("{1}")]
    Io(io::ErrorKind, String),
    /// The peer broke the protocol.
    #[error("protocol violation: {0}")]
    Protocol(#[from] ProtocolError),
    /// No READY within `handshake_timeout`.
    #[error("no handshake within {0:?} (handshake_timeout)")]
    HandshakeTimeout(Duration),
    /// No sign of life within `heartbeat_timeout`, or within the TTL that the peer asked for.
    #[error("no sign of life for {0:?} (heartbeat)")]
    HeartbeatTimeout(Duration),
    /// No connection within `connect_timeout`.
    #[error("no connection within {0:?} (connect_timeout)")]
    ConnectTimeout(Duration),
    /// This side asked for it: `disconnect`, `unbind`, `close` or the end of the last handle.
    #[error("closed by this side")]
    Local,
    /// Too many connections were in their handshake (`max_handshakes`); the oldest had to go.
    #[error("too many connections without a handshake (max_handshakes)")]
    TooManyHandshakes,
    /// The [`Budget`](crate::Budget) had no memory for what the peer held, for a message that it
    /// announced, or for a new connection.
    #[error("no memory for this peer, which held or announced {held} octets (budget)")]
    Memory {
        /// What it held or announced, in octets; 0 for a new connection.
        held: usize,
    },
    /// The peer's address or credentials are not among those accepted.
    #[error("refused by filter: {0}")]
    Filtered(String),
}

impl From<io::Error> for DisconnectCause {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::PeerClosed,
            kind => Self::Io(kind, error.to_string()),
        }
    }
}

/// `send` failed: the socket is closed. The message comes back.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the socket is closed")]
#[non_exhaustive]
pub struct SendError(
    /// The message that was not sent.
    pub Message,
);

/// Why `try_send` did not take a message. The message comes back.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// PUSH: no peer has room. PUB and XPUB with [`OnFull::Wait`](crate::OnFull::Wait): a matching
    /// peer has no room.
    #[error("no room at the high-water mark, or no peer")]
    Full(Message),
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed(Message),
}

impl TrySendError {
    /// The message that was not sent.
    #[must_use]
    pub fn into_message(self) -> Message {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

/// Why `recv` and `try_recv` gave no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
// a word wide, as in `hub::Refused`
#[repr(u64)]
pub enum RecvError {
    /// Only from `try_recv`: nothing is there now.
    #[error("no message is there")]
    Empty,
    /// The socket is closed.
    #[error("the socket is closed")]
    Closed,
}
