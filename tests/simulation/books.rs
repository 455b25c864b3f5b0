//! What must hold of counters and of what was received.

use std::collections::{BTreeSet, HashMap};

use dragonwire::sim::Network;
use dragonwire::{ConnectionId, Incoming, Message, Outgoing, SocketStats};

/// Both equations, for a socket and for each of its peers.
pub(crate) fn balance(whose: &str, stats: &SocketStats) {
    let each = stats.peers.iter().map(|peer| (peer.outgoing, peer.incoming));
    for (outgoing, incoming) in each.chain([(stats.outgoing, stats.incoming)]) {
        let Outgoing { accepted, sent, queued, dropped, .. } = outgoing;
        assert_eq!(accepted, sent + queued + dropped.total(), "{whose}: {outgoing:?}");
        let Incoming { received, delivered, queued, dropped, .. } = incoming;
        assert_eq!(received, delivered + queued + dropped.total(), "{whose}: {incoming:?}");
    }
}

/// The same of a socket that is closed, and that nothing is left in it.
pub(crate) fn settled(whose: &str, stats: &SocketStats) {
    balance(whose, stats);
    assert_eq!((stats.outgoing.queued, stats.incoming.queued), (0, 0), "{whose}");
}

/// Messages that all sides sent and received in sum: what the network did not lose arrived.
pub(crate) fn end_to_end(network: &Network, sent: u64, received: u64, least: u64) {
    assert!(received <= sent, "{received} received, {sent} sent");
    // each lost message lost its last octet, and all octets behind that
    let lost = network.losses().iter().map(|octets| 1 + (octets - 1) / least).sum::<u64>();
    assert!(sent - received <= lost, "{sent} sent, {received} received, at most {lost} were lost");
}

/// A message's sender and number, in a frame of at least five octets.
pub(crate) fn frame(sender: usize, number: u32, size: usize) -> Vec<u8> {
    let mut frame = vec![u8::try_from(sender).unwrap()];
    frame.extend_from_slice(&number.to_be_bytes());
    let filling = (number as u8).wrapping_mul(31).wrapping_add(sender as u8);
    frame.resize(size.max(5), filling);
    frame
}

/// The opposite; every octet must be what it was.
pub(crate) fn read_frame(octets: &[u8]) -> (usize, u32) {
    let sender = usize::from(octets[0]);
    let number = u32::from_be_bytes(octets[1..5].try_into().unwrap());
    assert_eq!(octets, frame(sender, number, octets.len()), "the octets of a message are its own");
    (sender, number)
}

/// What a receiver got: nothing twice, and all that came by one connection in order.
#[derive(Debug, Default)]
pub(crate) struct Received {
    seen: BTreeSet<(usize, u32)>,
    last: HashMap<(usize, ConnectionId), u32>,
    pub(crate) count: u64,
}

impl Received {
    pub(crate) fn note(&mut self, connection: Option<ConnectionId>, message: &Message) {
        let body = message.frames().last().unwrap();
        let (sender, number) = read_frame(body);
        self.count += 1;
        assert!(self.seen.insert((sender, number)), "{number} of {sender} came twice");
        if let Some(connection) = connection
            && let Some(last) = self.last.insert((sender, connection), number)
        {
            assert!(last < number, "{number} of {sender} came after {last}");
        }
    }

    /// Those that came of a sender.
    pub(crate) fn of(&self, sender: usize) -> Vec<u32> {
        self.seen.range((sender, 0)..(sender + 1, 0)).map(|(_, number)| *number).collect()
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        !self.seen.is_disjoint(&other.seen)
    }
}
