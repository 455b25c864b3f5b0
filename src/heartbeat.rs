//! When to send a PING and when to give a peer up (RFC 37, "Connection Heartbeating").
//!
//! Sans-IO: the time comes as an argument. As in libzmq a PING goes out at every interval whatever
//! else is said, and any octet from the peer is a sign of life. Unlike libzmq, time in which this
//! side does not read (its receive queue is full) never counts against the peer, and the peer is
//! kept from timing this side out by unasked PONGs at the pace of its own PINGs.

use std::time::{Duration, Instant};

use crate::greeting::Version;
use crate::options::SocketOptions;

/// The timers of one connection.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    /// Whether the peer knows heartbeats at all.
    speaks: bool,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    next_ping: Option<Instant>,
    /// The peer is given up at that time, after so much silence.
    ping_deadline: Option<(Instant, Duration)>,
    ttl_deadline: Option<(Instant, Duration)>,
    /// When the peer's last PING came, and the shortest time between two of them.
    peer_ping: Option<Instant>,
    peer_pace: Option<Duration>,
    /// While this side does not read: when the next unasked PONG is due.
    next_pong: Option<Instant>,
    reading: bool,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    Nothing,
    SendPing,
    SendPong,
    /// The peer was silent for so long.
    Expired(Duration),
}

impl Heartbeat {
    pub(crate) fn new(options: &SocketOptions, version: Version, now: Instant) -> Self {
        let speaks = version >= Version::V3_1;
        let interval = options.heartbeat_interval.filter(|_| speaks);
        Self {
            speaks,
            interval,
            timeout: options.heartbeat_timeout,
            next_ping: interval.map(|interval| now + interval),
            ping_deadline: None,
            ttl_deadline: None,
            peer_ping: None,
            peer_pace: None,
            next_pong: None,
            reading: true,
        }
    }

    /// Octets came in.
    pub(crate) fn input(&mut self) {
        self.ping_deadline = None;
        self.ttl_deadline = None;
    }

    /// A PING came in, after [`input`](Self::input) for its octets.
    pub(crate) fn peer_ping(&mut self, ttl: Duration, now: Instant) {
        if !ttl.is_zero() {
            self.ttl_deadline = Some((now + ttl, ttl));
        }
        if let Some(last) = self.peer_ping.replace(now) {
            let gap = (now - last).max(PONG_PACE_MIN);
            self.peer_pace = Some(self.peer_pace.map_or(gap, |pace| pace.min(gap)));
        }
    }

    /// This side reads, or does not.
    pub(crate) fn reading(&mut self, reading: bool, now: Instant) {
        if self.reading == reading {
            return;
        }
        self.reading = reading;
        self.ping_deadline = None;
        self.ttl_deadline = None;
        self.next_pong = if self.speaks && !reading { Some(now + self.pong_pace()) } else { None };
    }

    /// What is due now; to be asked until it is nothing.
    pub(crate) fn beat(&mut self, now: Instant) -> Beat {
        for deadline in [self.ping_deadline, self.ttl_deadline] {
            if let Some((at, silence)) = deadline
                && at <= now
            {
                return Beat::Expired(silence);
            }
        }
        if let (Some(at), Some(interval)) = (self.next_ping, self.interval)
            && at <= now
        {
            self.next_ping = Some(now + interval);
            if let (true, None, Some(timeout)) = (self.reading, self.ping_deadline, self.timeout) {
                self.ping_deadline = Some((now + timeout, timeout));
            }
            return Beat::SendPing;
        }
        if self.next_pong.is_some_and(|at| at <= now) {
            self.next_pong = Some(now + self.pong_pace());
            return Beat::SendPong;
        }
        Beat::Nothing
    }

    fn pong_pace(&self) -> Duration {
        self.peer_pace.unwrap_or(PONG_PACE)
    }

    /// When to ask again.
    pub(crate) fn next(&self) -> Option<Instant> {
        let deadlines = [self.ping_deadline, self.ttl_deadline].map(|d| d.map(|(at, _)| at));
        [self.next_ping, self.next_pong].into_iter().chain(deadlines).flatten().min()
    }
}

/// The pace of unasked PONGs to a peer whose own is not known: it may expect a sign of life each
/// second.
const PONG_PACE: Duration = Duration::from_millis(500);

/// However fast a peer sends PINGs, unasked PONGs go out no faster.
const PONG_PACE_MIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn heartbeat(now: Instant) -> Heartbeat {
        let options =
            SocketOptions::new().heartbeat_interval(Some(MS(300))).heartbeat_timeout(Some(MS(500)));
        Heartbeat::new(&options, Version::V3_1, now)
    }

    #[test]
    fn a_silent_peer_expires_after_the_first_ping() {
        let start = Instant::now();
        let mut beat = heartbeat(start);
        assert_eq!(beat.next(), Some(start + MS(300)));
        assert_eq!(beat.beat(start + MS(299)), Beat::Nothing);
        assert_eq!(beat.beat(start + MS(300)), Beat::SendPing);
        assert_eq!(beat.beat(start + MS(600)), Beat::SendPing);
        assert_eq!(beat.beat(start + MS(799)), Beat::Nothing);
        assert_eq!(beat.next(), Some(start + MS(800)));
        assert_eq!(beat.beat(start + MS(800)), Beat::Expired(MS(500)));
    }

    #[test]
    fn any_input_is_life() {
        let start = Instant::now();
        let mut beat = heartbeat(start);
        assert_eq!(beat.beat(start + MS(300)), Beat::SendPing);
        beat.input();
        assert_eq!(beat.beat(start + MS(900)), Beat::SendPing);
        assert_eq!(beat.beat(start + MS(901)), Beat::Nothing);
    }

    #[test]
    fn the_peers_ttl_counts_until_the_next_input() {
        let start = Instant::now();
        let options = SocketOptions::new().heartbeat_interval(None);
        let mut beat = Heartbeat::new(&options, Version::V3_1, start);
        beat.input();
        beat.peer_ping(MS(300), start);
        assert_eq!(beat.next(), Some(start + MS(300)));
        beat.input();
        assert_eq!(beat.next(), None);
        beat.peer_ping(MS(300), start);
        assert_eq!(beat.beat(start + MS(300)), Beat::Expired(MS(300)));
    }

    #[test]
    fn older_peers_are_not_pinged() {
        let start = Instant::now();
        let beat = Heartbeat::new(&SocketOptions::new(), Version::V3_0, start);
        assert_eq!(beat.next(), None);
    }

    #[test]
    fn while_this_side_does_not_read_the_peer_is_not_given_up_and_hears_pongs() {
        let start = Instant::now();
        let mut beat = heartbeat(start);
        beat.peer_ping(MS(0), start);
        beat.peer_ping(MS(200), start + MS(100));
        beat.reading(false, start + MS(100));
        assert_eq!(beat.beat(start + MS(200)), Beat::SendPong);
        assert_eq!(beat.beat(start + MS(300)), Beat::SendPing);
        assert_eq!(beat.beat(start + MS(300)), Beat::SendPong);
        for _ in 0..100 {
            assert!(!matches!(beat.beat(start + MS(9000)), Beat::Expired(_)));
        }
        beat.reading(true, start + MS(9000));
        assert_eq!(beat.beat(start + MS(9001)), Beat::Nothing);
    }
}
