//! The security mechanisms: what is said between the greeting and the first message (RFC 37, "The
//! Security Handshake").
//!
//! Each mechanism is a state machine over command bodies in a file of its own; this enum is the seam
//! where they meet the engine.

mod metadata;
mod null;

pub(crate) use metadata::{IDENTITY, Metadata, SOCKET_TYPE};

use crate::error::ProtocolError;
use null::Null;

/// Which mechanism a socket uses; both sides must use the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MechanismKind {
    Null,
}

impl MechanismKind {
    /// The name in the greeting.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null => "NULL",
        }
    }
}

/// The handshake of one connection.
#[derive(Debug)]
pub(crate) enum Mechanism {
    Null(Null),
}

impl Mechanism {
    /// Starts the handshake; `ours` is what READY will say of this side.
    pub(crate) fn start(kind: MechanismKind, ours: &Metadata, out: &mut Vec<u8>) -> Self {
        match kind {
            MechanismKind::Null => Self::Null(Null::start(ours, out)),
        }
    }

    /// Takes the next command (or what stands in its place). The peer's metadata ends the handshake.
    pub(crate) fn command(
        &mut self,
        body: &[u8],
        _out: &mut Vec<u8>,
    ) -> Result<Option<Metadata>, ProtocolError> {
        match self {
            Self::Null(null) => null.command(body).map(Some),
        }
    }
}
