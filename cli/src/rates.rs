//! Totals and rates for people.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use dragonwire::{DropCounts, SocketStats, SocketType};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::console::grouped;

/// The live line: what has flowed, and how fast.
#[derive(Debug)]
pub(crate) struct Rates {
    ticks: Interval,
    last: Instant,
    sent: u64,
    received: u64,
}

impl Rates {
    /// Four lines a second at a terminal, one elsewhere.
    pub(crate) fn start() -> Self {
        let period = if std::io::stderr().is_terminal() { 250 } else { 1000 };
        let mut ticks = interval(Duration::from_millis(period));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, last: Instant::now(), sent: 0, received: 0 }
    }

    /// Waits until a line is due; for ever when none is wanted.
    pub(crate) async fn next(rates: &mut Option<Self>) -> &mut Self {
        let Some(rates) = rates else { return std::future::pending().await };
        rates.ticks.tick().await;
        rates
    }

    /// The line for now.
    pub(crate) fn line(&mut self, stats: &SocketStats) -> String {
        let elapsed = self.last.elapsed();
        let (sent, received) = (stats.outgoing.sent, stats.incoming.delivered);
        let mut parts = Vec::new();
        if sent > 0 || received == 0 {
            let rate = per_second(sent - self.sent, elapsed);
            parts.push(format!("sent {} ({}/s)", grouped(sent), grouped(rate)));
        }
        if received > 0 {
            let rate = per_second(received - self.received, elapsed);
            parts.push(format!("received {} ({}/s)", grouped(received), grouped(rate)));
        }
        let dropped = stats.outgoing.dropped.total() + stats.incoming.dropped.total();
        if dropped > 0 {
            parts.push(format!("dropped {}", grouped(dropped)));
        }
        let peers = stats.peers.iter().filter(|peer| peer.peer.is_some()).count();
        parts.push(format!("peers {peers}"));
        (self.last, self.sent, self.received) = (Instant::now(), sent, received);
        parts.join("  ")
    }
}

/// What a socket did in all, in one line.
pub(crate) fn summary(kind: SocketType, stats: &SocketStats, elapsed: Duration) -> String {
    let (outgoing, incoming) = (&stats.outgoing, &stats.incoming);
    let mut parts = Vec::new();
    if outgoing.accepted > 0 || incoming.received == 0 {
        let rate = per_second(outgoing.sent, elapsed);
        parts.push(format!("sent {} ({}/s)", grouped(outgoing.sent), grouped(rate)));
    }
    if incoming.received > 0 {
        let rate = per_second(incoming.delivered, elapsed);
        parts.push(format!("received {} ({}/s)", grouped(incoming.delivered), grouped(rate)));
    }
    for (drops, side) in [(&outgoing.dropped, ""), (&incoming.dropped, "incoming ")] {
        if drops.total() > 0 {
            parts.push(format!("{side}dropped {} ({})", grouped(drops.total()), reasons(drops)));
        }
    }
    format!("{kind}: {} in {:.1} s", parts.join(", "), elapsed.as_secs_f64())
}

/// `no_subscriber 3, linger 2`.
pub(crate) fn reasons(drops: &DropCounts) -> String {
    let texts: Vec<String> =
        drops.iter().map(|(reason, count)| format!("{reason} {}", grouped(count))).collect();
    texts.join(", ")
}

/// A rate, rounded down.
pub(crate) fn per_second(count: u64, elapsed: Duration) -> u64 {
    let millis = elapsed.as_millis().max(1);
    u64::try_from(u128::from(count) * 1000 / millis).unwrap_or(u64::MAX)
}
