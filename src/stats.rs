//! Counters: what happened to every message, per socket and per peer.
//!
//! Two equations hold at any moment, to the unit, for a socket and for each of its peers:
//!
//! ```text
//! outgoing:  accepted = sent     + queued + dropped by reason
//! incoming:  received = delivered + queued + dropped by reason
//! ```
//!
//! The unit of the outgoing one is a message for one peer: PUB counts a message that matches three
//! subscribers as three, and one that matches none as one (dropped as
//! [`NoSubscriber`](DropReason::NoSubscriber)). `sent` means that the kernel has its last octet.

use std::fmt;
use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::peer::PeerInfo;

/// Why a message died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DropReason {
    /// Outgoing: the peer had `send_hwm` messages queued.
    PeerHwmMessages,
    /// Outgoing: the peer had `send_hwm_bytes` octets queued.
    PeerHwmBytes,
    /// Outgoing: the [`Budget`](crate::Budget) had no memory for it, or needed it for others.
    Memory,
    /// Outgoing: no subscription matched.
    NoSubscriber,
    /// Outgoing: the peer went with the message still queued. Incoming (XPUB): what told of a subscription was
    /// taken back when its peer left, as the application was far behind.
    PeerGone,
    /// Outgoing: still queued when `linger` had passed.
    Linger,
    /// Replaced by a newer message (`conflate`).
    Conflated,
    /// Incoming: no subscription matched (SUB filters again what publishers send).
    Filtered,
    /// Incoming: a message this socket type has no use for, such as any that a PULL peer sends.
    Unexpected,
    /// Incoming: not yet received by the application when the socket was closed.
    Closed,
}

impl DropReason {
    /// All reasons, in order.
    pub const ALL: [Self; 10] = [
        Self::PeerHwmMessages,
        Self::PeerHwmBytes,
        Self::Memory,
        Self::NoSubscriber,
        Self::PeerGone,
        Self::Linger,
        Self::Conflated,
        Self::Filtered,
        Self::Unexpected,
        Self::Closed,
    ];

    /// The name for logs and metrics, such as `peer_hwm_messages`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeerHwmMessages => "peer_hwm_messages",
            Self::PeerHwmBytes => "peer_hwm_bytes",
            Self::Memory => "memory",
            Self::NoSubscriber => "no_subscriber",
            Self::PeerGone => "peer_gone",
            Self::Linger => "linger",
            Self::Conflated => "conflated",
            Self::Filtered => "filtered",
            Self::Unexpected => "unexpected",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Messages dropped, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropCounts([u64; DropReason::ALL.len()]);

impl DropCounts {
    /// How many died for this reason.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// How many died in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }

    pub(crate) fn add(&mut self, reason: DropReason, count: u64) {
        if let Some(slot) = self.0.get_mut(reason as usize) {
            *slot += count;
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// Counters of one direction, of a socket or of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Outgoing {
    /// Messages that this side took over for sending.
    pub accepted: u64,
    /// Messages whose last octet the kernel has.
    pub sent: u64,
    /// Messages in the queues, or half-way to the kernel.
    pub queued: u64,
    /// Octets in the queues, frame headers included.
    pub queued_bytes: u64,
    /// Octets that the kernel has, of messages and commands.
    pub bytes: u64,
    /// Messages that died.
    pub dropped: DropCounts,
}

/// Counters of the other direction, of a socket or of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Incoming {
    /// Whole messages that came off the wire.
    pub received: u64,
    /// Messages that the application has.
    pub delivered: u64,
    /// Messages in the queues.
    pub queued: u64,
    /// Octets in the queues, frame headers included.
    pub queued_bytes: u64,
    /// Octets that came off the wire, of messages and commands.
    pub bytes: u64,
    /// Messages that died.
    pub dropped: DropCounts,
    /// Commands that were not understood and ignored.
    pub unknown_commands: u64,
}

impl Outgoing {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.sent += other.sent;
        self.queued += other.queued;
        self.queued_bytes += other.queued_bytes;
        self.bytes += other.bytes;
        self.dropped.merge(&other.dropped);
    }
}

impl Incoming {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.received += other.received;
        self.delivered += other.delivered;
        self.queued += other.queued;
        self.queued_bytes += other.queued_bytes;
        self.bytes += other.bytes;
        self.dropped.merge(&other.dropped);
        self.unknown_commands += other.unknown_commands;
    }
}

/// A snapshot of a socket's counters.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SocketStats {
    /// Sum over all peers, those that are gone included.
    pub outgoing: Outgoing,
    /// Sum over all peers, those that are gone included.
    pub incoming: Incoming,
    /// Connections whose handshake succeeded, since the socket was made.
    pub connections: u64,
    /// Connections that ended before READY, since the socket was made.
    pub failed_handshakes: u64,
    /// Monitor events that no monitor had room for.
    pub missed_events: u64,
    /// The peers that are there, and those that connected endpoints are waiting for.
    pub peers: Vec<PeerStats>,
}

/// A snapshot of one peer's counters.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerStats {
    /// The endpoint it was accepted on or is connected to.
    pub endpoint: Endpoint,
    /// Who it is; `None` while there is no connection.
    pub peer: Option<Arc<PeerInfo>>,
    /// To this peer.
    pub outgoing: Outgoing,
    /// From this peer.
    pub incoming: Incoming,
    /// How many topics it is subscribed to.
    pub subscriptions: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_index_their_counts() {
        let mut counts = DropCounts::default();
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            counts.add(reason, i as u64 + 1);
        }
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(counts.get(reason), i as u64 + 1, "{reason}");
        }
        assert_eq!(counts.total(), 55);
    }
}
