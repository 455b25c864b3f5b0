//! The greeting: which version of ZMTP a peer speaks, and the security mechanism it names.
//!
//! Implements RFC 37, "Connection Protocol", with the downgrades of RFC 23, "Backwards
//! Interoperability", to RFC 15 (2.0) and RFC 13 (1.0) peers. The greeting goes out in three pieces,
//! each only when the peer's octets show that it will be understood: a 1.0 peer takes the first ten
//! for the header of an identity frame.

use std::fmt;

use crate::error::ProtocolError;
use crate::socket_type::SocketType;

/// A version of ZMTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Version {
    /// RFC 13: no greeting.
    V1_0,
    /// RFC 15.
    V2_0,
    /// RFC 23.
    V3_0,
    /// RFC 37.
    V3_1,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_0 => "1.0",
            Self::V2_0 => "2.0",
            Self::V3_0 => "3.0",
            Self::V3_1 => "3.1",
        })
    }
}

/// This side of the greeting, and how far it got.
#[derive(Debug)]
pub(crate) struct Greeting {
    mechanism: &'static str,
    sent: Sent,
}

/// What went out so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sent {
    Nothing,
    Signature,
    Version,
    All,
}

/// What the peer's greeting says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Greeted {
    /// Not enough has come.
    NotYet,
    /// A 1.0 peer without any greeting: its first octets are its identity frame.
    Unversioned,
    /// Its greeting has taken this many octets, and an identity frame follows: revision 0 speaks in
    /// frames of 1.0, revision 1 is 2.0.
    Old { octets: usize, version: Version, socket_type: Option<SocketType> },
    /// Its greeting has taken all 64 octets, and names the same mechanism.
    New { version: Version },
}

impl Greeting {
    pub(crate) fn new(mechanism: &'static str) -> Self {
        Self { mechanism, sent: Sent::Nothing }
    }

    /// Reads the greeting in `buf`, all that has come so far, and appends what it calls for to `out`.
    pub(crate) fn advance(
        &mut self,
        buf: &[u8],
        ours: SocketType,
        routing_id: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Greeted, ProtocolError> {
        if self.sent == Sent::Nothing {
            out.push(SIGNATURE_FIRST);
            out.extend_from_slice(&(routing_id.len() as u64 + 1).to_be_bytes());
            out.push(SIGNATURE_LAST);
            self.sent = Sent::Signature;
        }
        match (buf.first(), buf.get(SIGNATURE - 1)) {
            (None, _) => return Ok(Greeted::NotYet),
            (Some(&first), _) if first != SIGNATURE_FIRST => return Ok(Greeted::Unversioned),
            (_, None) => return Ok(Greeted::NotYet),
            // an even last octet is the flags octet of an identity frame in 1.0's long form
            (_, Some(&last)) if last & 1 == 0 => return Ok(Greeted::Unversioned),
            _ => {}
        }
        if self.sent == Sent::Signature {
            out.push(MAJOR);
            self.sent = Sent::Version;
        }
        let Some(&major) = buf.get(SIGNATURE) else { return Ok(Greeted::NotYet) };
        if let 0 | 1 = major {
            if self.sent == Sent::Version {
                out.push(ours.octet());
                self.sent = Sent::All;
            }
            let Some(&octet) = buf.get(SIGNATURE + 1) else { return Ok(Greeted::NotYet) };
            let version = if major == 0 { Version::V1_0 } else { Version::V2_0 };
            let socket_type = SocketType::from_octet(octet);
            return Ok(Greeted::Old { octets: SIGNATURE + 2, version, socket_type });
        }
        if self.sent == Sent::Version {
            out.push(MINOR);
            let mut rest = [0; GREETING - SIGNATURE - 2];
            for (octet, letter) in rest.iter_mut().zip(self.mechanism.bytes()) {
                *octet = letter;
            }
            out.extend_from_slice(&rest);
            self.sent = Sent::All;
        }
        let Some(greeting) = buf.get(..GREETING) else { return Ok(Greeted::NotYet) };
        let theirs = greeting.get(12..32).unwrap_or_default();
        let name = theirs.strip_prefix(self.mechanism.as_bytes());
        if name.is_none_or(|padding| padding.iter().any(|octet| *octet != 0)) {
            let length = theirs.iter().rposition(|octet| *octet != 0).map_or(0, |last| last + 1);
            let theirs = theirs.get(..length).unwrap_or_default().escape_ascii().to_string();
            return Err(ProtocolError::MechanismMismatch { ours: self.mechanism, theirs });
        }
        let minor = greeting.get(SIGNATURE + 1).copied().unwrap_or_default();
        let version = if major == 3 && minor == 0 { Version::V3_0 } else { Version::V3_1 };
        Ok(Greeted::New { version })
    }
}

/// Octets of a greeting of 3.x.
pub(crate) const GREETING: usize = 64;

/// Octets of the signature.
const SIGNATURE: usize = 10;
const SIGNATURE_FIRST: u8 = 0xff;
const SIGNATURE_LAST: u8 = 0x7f;
const MAJOR: u8 = 3;
const MINOR: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn advance(greeting: &mut Greeting, buf: &[u8]) -> (Result<Greeted, ProtocolError>, Vec<u8>) {
        let mut out = Vec::new();
        (greeting.advance(buf, SocketType::Pub, b"", &mut out), out)
    }

    fn theirs(major: u8, minor: u8, mechanism: &[u8]) -> Vec<u8> {
        let mut octets = vec![0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, major, minor];
        octets.extend(mechanism);
        octets.resize(GREETING, 0);
        octets
    }

    #[test]
    fn it_goes_out_piece_by_piece() {
        let peer = theirs(3, 1, b"NULL");
        let mut greeting = Greeting::new("NULL");
        let (read, out) = advance(&mut greeting, b"");
        assert_eq!((read, out.len()), (Ok(Greeted::NotYet), 10));
        let (read, out) = advance(&mut greeting, &peer[..9]);
        assert_eq!((read, out.len()), (Ok(Greeted::NotYet), 0));
        let (read, out) = advance(&mut greeting, &peer[..10]);
        assert_eq!((read, out), (Ok(Greeted::NotYet), vec![3]));
        let (read, out) = advance(&mut greeting, &peer[..11]);
        assert_eq!((read, out.len()), (Ok(Greeted::NotYet), 53));
        let (read, out) = advance(&mut greeting, &peer);
        assert_eq!((read, out.len()), (Ok(Greeted::New { version: Version::V3_1 }), 0));
    }

    #[test]
    fn versions() {
        for (major, minor, version) in [
            (2, 0, Version::V3_1),
            (3, 0, Version::V3_0),
            (3, 2, Version::V3_1),
            (255, 0, Version::V3_1),
        ] {
            let (read, _) = advance(&mut Greeting::new("NULL"), &theirs(major, minor, b"NULL"));
            assert_eq!(read, Ok(Greeted::New { version }), "{major}.{minor}");
        }
        let (read, out) = advance(&mut Greeting::new("NULL"), &theirs(1, 2, b""));
        let socket_type = Some(SocketType::Sub);
        let old = Greeted::Old { octets: 12, version: Version::V2_0, socket_type };
        assert_eq!((read, out.len()), (Ok(old), 12));
    }

    #[test]
    fn peers_of_1_0_are_told_by_their_first_or_tenth_octet() {
        assert_eq!(advance(&mut Greeting::new("NULL"), &[1]).0, Ok(Greeted::Unversioned));
        let long = [0xff, 0, 0, 0, 0, 0, 0, 0, 3, 0x7e];
        assert_eq!(advance(&mut Greeting::new("NULL"), &long).0, Ok(Greeted::Unversioned));
    }

    #[test]
    fn another_mechanism_is_refused() {
        for (mechanism, shown) in [
            (&b"PLAIN"[..], "PLAIN"),
            (b"null", "null"),
            (b"", ""),
            (b"NULL\0\0X", "NULL\\x00\\x00X"),
        ] {
            let (read, _) = advance(&mut Greeting::new("NULL"), &theirs(3, 1, mechanism));
            let theirs = shown.to_owned();
            assert_eq!(read, Err(ProtocolError::MechanismMismatch { ours: "NULL", theirs }));
        }
    }
}
