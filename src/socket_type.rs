//! The socket types of RFC 28 to 31 and which of them talk to each other (RFC 37, "The Socket-Type
//! Property").

use std::fmt;

/// The type of a ZeroMQ socket, this side's or a peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketType {
    /// RFC 31.
    Pair,
    /// RFC 29.
    Pub,
    /// RFC 29.
    Sub,
    /// RFC 28.
    Req,
    /// RFC 28.
    Rep,
    /// RFC 28.
    Dealer,
    /// RFC 28.
    Router,
    /// RFC 30.
    Pull,
    /// RFC 30.
    Push,
    /// RFC 29.
    XPub,
    /// RFC 29.
    XSub,
}

impl SocketType {
    /// The name in the `Socket-Type` property.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pair => "PAIR",
            Self::Pub => "PUB",
            Self::Sub => "SUB",
            Self::Req => "REQ",
            Self::Rep => "REP",
            Self::Dealer => "DEALER",
            Self::Router => "ROUTER",
            Self::Pull => "PULL",
            Self::Push => "PUSH",
            Self::XPub => "XPUB",
            Self::XSub => "XSUB",
        }
    }

    /// The type of that name; names are compared octet by octet.
    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        ALL.into_iter().find(|kind| kind.as_str().as_bytes() == name)
    }

    /// The octet in a ZMTP 2.0 greeting (RFC 15 names 0 to 8; libzmq sends 9 and 10 as well).
    pub(crate) fn octet(self) -> u8 {
        match self {
            Self::Pair => 0,
            Self::Pub => 1,
            Self::Sub => 2,
            Self::Req => 3,
            Self::Rep => 4,
            Self::Dealer => 5,
            Self::Router => 6,
            Self::Pull => 7,
            Self::Push => 8,
            Self::XPub => 9,
            Self::XSub => 10,
        }
    }

    /// The type of that octet in a ZMTP 2.0 greeting.
    pub(crate) fn from_octet(octet: u8) -> Option<Self> {
        ALL.into_iter().find(|kind| kind.octet() == octet)
    }

    /// Whether a socket of this type talks to a peer of that type.
    #[must_use]
    pub fn fits(self, peer: Self) -> bool {
        use SocketType::{Dealer, Pair, Pub, Pull, Push, Rep, Req, Router, Sub, XPub, XSub};
        match self {
            Pair => peer == Pair,
            Pub | XPub => matches!(peer, Sub | XSub),
            Sub | XSub => matches!(peer, Pub | XPub),
            Req => matches!(peer, Rep | Router),
            Rep => matches!(peer, Req | Dealer),
            Dealer => matches!(peer, Rep | Dealer | Router),
            Router => matches!(peer, Req | Dealer | Router),
            Pull => peer == Push,
            Push => peer == Pull,
        }
    }
}

impl fmt::Display for SocketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const ALL: [SocketType; 11] = [
    SocketType::Pair,
    SocketType::Pub,
    SocketType::Sub,
    SocketType::Req,
    SocketType::Rep,
    SocketType::Dealer,
    SocketType::Router,
    SocketType::Pull,
    SocketType::Push,
    SocketType::XPub,
    SocketType::XSub,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_octets_come_back() {
        for kind in ALL {
            assert_eq!(SocketType::from_name(kind.as_str().as_bytes()), Some(kind));
            assert_eq!(SocketType::from_octet(kind.octet()), Some(kind));
        }
        assert_eq!(SocketType::from_name(b"pub"), None);
        assert_eq!(SocketType::from_octet(99), None);
    }

    #[test]
    fn fitting_is_mutual() {
        for a in ALL {
            for b in ALL {
                assert_eq!(a.fits(b), b.fits(a), "{a} and {b}");
            }
        }
    }
}
