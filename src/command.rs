//! The commands that flow after the handshake: PING, PONG, SUBSCRIBE, CANCEL and ERROR (RFC 37,
//! "Commands"), and the subscriptions of older peers, which are messages (RFC 23).

use std::time::Duration;

use crate::error::ProtocolError;
use crate::framing::{put_command, split_command};

/// A command after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    Ping {
        ttl: Duration,
        context: &'a [u8],
    },
    Pong(&'a [u8]),
    Subscribe(&'a [u8]),
    Cancel(&'a [u8]),
    Error {
        reason: &'a [u8],
    },
    /// To be ignored, whatever it is.
    Unknown,
}

impl<'a> Command<'a> {
    /// Names are compared octet by octet; what is not understood is not a violation.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ProtocolError> {
        let Some((name, data)) = split_command(body) else { return Ok(Self::Unknown) };
        Ok(match name {
            b"PING" => {
                let Some((ttl, context)) = data.split_first_chunk() else {
                    return Err(malformed("PING", "its TTL is cut off"));
                };
                let tenths = u64::from(u16::from_be_bytes(*ttl));
                Self::Ping { ttl: Duration::from_millis(tenths * 100), context }
            }
            b"PONG" => Self::Pong(data),
            b"SUBSCRIBE" => Self::Subscribe(data),
            b"CANCEL" => Self::Cancel(data),
            b"ERROR" => Self::Error { reason: parse_error(data)? },
            _ => Self::Unknown,
        })
    }
}

/// The reason that an ERROR command carries.
pub(crate) fn parse_error(data: &[u8]) -> Result<&[u8], ProtocolError> {
    let (&length, rest) = data.split_first().ok_or(malformed("ERROR", "it has no reason"))?;
    rest.get(..usize::from(length)).ok_or(malformed("ERROR", "its reason is cut off"))
}

pub(crate) fn put_ping(out: &mut Vec<u8>, ttl: Option<Duration>, context: &[u8]) {
    let tenths = ttl.map_or(0, |ttl| u16::try_from(ttl.as_millis() / 100).unwrap_or(u16::MAX));
    put_command(out, "PING", &[&tenths.to_be_bytes(), context]);
}

/// Appends the answer to a PING; of its context at most 16 octets go back.
pub(crate) fn put_pong(out: &mut Vec<u8>, context: &[u8]) {
    put_command(out, "PONG", &[context.get(..16).unwrap_or(context)]);
}

pub(crate) fn put_error(out: &mut Vec<u8>, reason: &str) {
    let reason = reason.as_bytes();
    let reason = reason.get(..255).unwrap_or(reason);
    put_command(out, "ERROR", &[&[reason.len() as u8], reason]);
}

pub(crate) fn put_subscribe(out: &mut Vec<u8>, topic: &[u8]) {
    put_command(out, "SUBSCRIBE", &[topic]);
}

pub(crate) fn put_cancel(out: &mut Vec<u8>, topic: &[u8]) {
    put_command(out, "CANCEL", &[topic]);
}

/// A frame of a message as a subscription: its first octet is 1 to subscribe, 0 to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subscription<'a> {
    Subscribe(&'a [u8]),
    Cancel(&'a [u8]),
}

impl<'a> Subscription<'a> {
    pub(crate) fn parse(frame: &'a [u8]) -> Option<Self> {
        match frame.split_first() {
            Some((1, topic)) => Some(Self::Subscribe(topic)),
            Some((0, topic)) => Some(Self::Cancel(topic)),
            _ => None,
        }
    }
}

fn malformed(command: &'static str, reason: &'static str) -> ProtocolError {
    ProtocolError::MalformedCommand { command, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(put: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out);
        crate::framing::split_frame(&out).unwrap().body.to_vec()
    }

    #[test]
    fn commands_come_back() {
        let ping = body(|out| put_ping(out, Some(Duration::from_millis(5990)), b""));
        let ttl = Duration::from_millis(5900);
        assert_eq!(Command::parse(&ping).unwrap(), Command::Ping { ttl, context: b"" });
        let topic = [7; 300];
        let subscribe = body(|out| put_subscribe(out, &topic));
        assert_eq!(Command::parse(&subscribe).unwrap(), Command::Subscribe(&topic));
        let cancel = body(|out| put_cancel(out, b""));
        assert_eq!(Command::parse(&cancel).unwrap(), Command::Cancel(b""));
        let error = body(|out| put_error(out, &"x".repeat(300)));
        assert_eq!(Command::parse(&error).unwrap(), Command::Error { reason: &[b'x'; 255] });
        let pong = body(|out| put_pong(out, &[9; 300]));
        assert_eq!(pong.len(), 5 + 16);
        assert_eq!(Command::parse(&pong).unwrap(), Command::Pong(&[9; 16]));
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for body in [&b""[..], b"\0", b"\x04ping\0\0", b"\x04JOINx", b"\xffSUBSCRIBE"] {
            assert_eq!(Command::parse(body).unwrap(), Command::Unknown, "{body:?}");
        }
    }

    #[test]
    fn short_commands_are_violations() {
        for body in [&b"\x04PING"[..], b"\x04PING\0", b"\x05ERROR", b"\x05ERROR\x02x"] {
            assert!(Command::parse(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn long_ttls_are_capped() {
        let ping = body(|out| put_ping(out, Some(Duration::from_secs(100_000)), b""));
        assert_eq!(ping[5..], [0xff, 0xff]);
    }
}
