//! Who is on the other end of a connection.

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;

use crate::endpoint::Endpoint;
use crate::greeting::Version;
use crate::socket_type::SocketType;

/// A connection's number, unique within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(crate) u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Who is on the other end of a connection, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// The connection's number.
    pub id: ConnectionId,
    /// The endpoint it was accepted on or is connected to.
    pub endpoint: Endpoint,
    /// Whether this side accepted the connection (else it connected).
    pub accepted: bool,
    /// This side's address; `None` on a Unix socket.
    pub local: Option<SocketAddr>,
    /// The peer's address; `None` on a Unix socket.
    pub remote: Option<SocketAddr>,
    /// The peer's process; `None` over TCP.
    pub credentials: Option<Credentials>,
    /// What the handshake told; `None` before its end.
    pub session: Option<SessionInfo>,
}

impl PeerInfo {
    /// A peer of which nothing else is known.
    pub(crate) fn new(id: ConnectionId, endpoint: Endpoint, accepted: bool) -> Self {
        Self { id, endpoint, accepted, local: None, remote: None, credentials: None, session: None }
    }
}

impl fmt::Display for PeerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.id)?;
        if let Some(session) = &self.session
            && let Some(kind) = session.socket_type
        {
            write!(f, "{kind} ")?;
        }
        match (self.remote, self.credentials) {
            (Some(remote), _) => write!(f, "{remote}")?,
            (None, Some(Credentials { pid: Some(pid), .. })) => write!(f, "process {pid}")?,
            _ => f.write_str("unix socket")?,
        }
        let direction = if self.accepted { "accepted on" } else { "connected to" };
        write!(f, " ({direction} {})", self.endpoint)
    }
}

/// The process on the other end of a Unix socket, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id, where the system tells it.
    pub pid: Option<i32>,
}

/// What the handshake told about a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The protocol spoken with it: the lower of both sides' versions.
    pub version: Version,
    /// The security mechanism in use.
    pub mechanism: &'static str,
    /// Its socket type; `None` when it did not say.
    pub socket_type: Option<SocketType>,
    /// Its routing id; empty when it has none.
    pub routing_id: Bytes,
    /// The other properties of its READY command, in order.
    pub metadata: Vec<(String, Bytes)>,
}
