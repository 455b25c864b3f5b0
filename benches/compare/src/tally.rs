//! What a measured process reports at its end: one line of JSON on the standard output.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::role::Role;

/// Peers fill in `messages`, `seconds`, and where they apply `told`, `latencies` and `note`; the rest
/// is measured in [`print`](Self::print), where what a server beside the process used is added.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Sent, relayed or received; round trips.
    pub messages: u64,
    /// A consumer's: messages that it was told to be missing, if it can be told.
    pub told: Option<u64>,
    /// A receiver's from its first message to its last, a sender's from before the first to the
    /// return of the last call; what the library still has to hand to the kernel is not in it.
    pub seconds: f64,
    /// Of all the process's threads over its whole life.
    pub cpu_seconds: f64,
    /// Octets.
    pub peak_rss: u64,
    /// Ping: of the round trips.
    pub latencies: Option<Latencies>,
    /// What a reader of the row should know.
    pub note: Option<String>,
}

impl Tally {
    pub fn of(messages: u64, seconds: f64) -> Self {
        Self { messages, seconds, ..Self::default() }
    }

    /// The last thing a measured process does.
    pub fn print(mut self) {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        self.cpu_seconds += cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        self.peak_rss = self.peak_rss.max(memory("self", "VmHWM:"));
        println!("{}", serde_json::to_string(&self).expect("nothing in it can fail to be written"));
    }
}

/// A line of a process's `/proc/PID/status` that is in KiB, in octets; 0 if there is none.
pub fn memory(process: &str, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kibibytes = status.lines().find_map(|found| found.strip_prefix(line));
    let number = kibibytes.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    /// (quantile, nanoseconds) at [`Self::POINTS`] quantiles that lie closer towards 1, the same
    /// for all.
    pub points: Vec<(f64, u64)>,
}

impl Latencies {
    pub const POINTS: usize = 160;

    /// # Panics
    /// There are none.
    pub fn of(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let at = |quantile: f64| {
            let index = (quantile * nanoseconds.len() as f64) as usize;
            nanoseconds[index.min(nanoseconds.len() - 1)]
        };
        // evenly on an axis of nines: 40 points for each of 0 to 0.9, 0.9 to 0.99, ..
        let quantiles = (0..Self::POINTS).map(|n| 1.0 - 10f64.powf(-(n as f64) / 40.0));
        Self {
            min: at(0.0),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
            points: quantiles.map(|quantile| (quantile, at(quantile))).collect(),
        }
    }
}

/// Times a ping's round trips, but for those of the warm-up.
#[derive(Debug)]
pub struct Laps {
    warm_up: u64,
    /// When the first began that counts.
    begun: Instant,
    started: Instant,
    nanoseconds: Vec<u64>,
}

impl Laps {
    pub fn of(role: &Role) -> Self {
        let now = Instant::now();
        let nanoseconds = Vec::with_capacity(role.count as usize);
        Self { warm_up: role.warm_up, begun: now, started: now, nanoseconds }
    }

    #[inline]
    pub fn start(&mut self) {
        self.started = Instant::now();
    }

    #[inline]
    pub fn stop(&mut self) {
        let now = Instant::now();
        if self.warm_up > 0 {
            self.warm_up -= 1;
            self.begun = now;
        } else {
            self.nanoseconds.push((now - self.started).as_nanos() as u64);
        }
    }

    pub fn tally(self) -> Tally {
        let tally = Tally::of(self.nanoseconds.len() as u64, self.begun.elapsed().as_secs_f64());
        Tally { latencies: Some(Latencies::of(self.nanoseconds)), ..tally }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_thousand() {
        let latencies = Latencies::of((1..=1000).rev().collect());
        assert_eq!((latencies.min, latencies.p50, latencies.p99), (1, 501, 991));
        assert_eq!((latencies.p999, latencies.max), (1000, 1000));
        assert_eq!(latencies.points.len(), Latencies::POINTS);
        assert!(latencies.points.is_sorted());
    }
}
