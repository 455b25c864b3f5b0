//! The NULL mechanism: each side says READY (RFC 37, "The NULL Mechanism").

use super::metadata::Metadata;
use crate::command::parse_error;
use crate::error::ProtocolError;
use crate::framing::{put_command, split_command};

/// READY is out; the peer's is awaited.
#[derive(Debug)]
pub(crate) struct Null;

impl Null {
    pub(super) fn start(ours: &Metadata, out: &mut Vec<u8>) -> Self {
        put_command(out, "READY", &[&ours.encode()]);
        Self
    }

    pub(super) fn command(&mut self, body: &[u8]) -> Result<Metadata, ProtocolError> {
        match split_command(body) {
            Some((b"READY", properties)) => Metadata::decode(properties),
            Some((b"ERROR", data)) => {
                let reason = parse_error(data)?.escape_ascii().to_string();
                Err(ProtocolError::PeerError { reason })
            }
            other => {
                let name = other.map_or(body, |(name, _)| name);
                let name = name.get(..name.len().min(32)).unwrap_or_default();
                Err(ProtocolError::UnexpectedCommand {
                    expected: "READY",
                    got: format!("\"{}\"", name.escape_ascii()),
                })
            }
        }
    }
}
