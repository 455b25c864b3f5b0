//! What the processes of the chaos test (`tests/chaos/`) send each other and say of themselves.
//!
//! Every message is numbered by its sender's life and can be told from any that was not sent: its
//! octets follow from the run's key, the sender, the life and the number. What a process
//! (`bin/chaos_peer.rs`) says is a [`Line`] of its standard output.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::side::Frames;

/// A small generator of numbers that a seed decides: splitmix64.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from `from` up to and without `to`.
    ///
    /// # Panics
    /// There is none.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.roll() % (to - from)
    }

    /// One of them.
    ///
    /// # Panics
    /// There is none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let index = self.between(0, from.len() as u64);
        &from[index as usize]
    }
}

/// One life of one sender: from its start to its end or its death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// The sender.
    pub sender: u32,
    /// Which of its lives, from 1.
    pub life: u32,
}

/// What all topics begin with.
pub const TOPICS: &str = "chaos.";

/// The octets of a message on the wire, at least: a link is loaded with what is lost in units of these.
#[must_use]
pub fn message_octets(sender: u32) -> u64 {
    [600, 1_000, 1_500, 2_500][sender as usize % 4]
}

impl Source {
    /// Its message of that number, from 1: a topic, then one or two frames.
    #[must_use]
    pub fn message(self, key: u64, number: u64) -> Frames {
        let mut body = Vec::with_capacity(message_octets(self.sender) as usize);
        body.extend_from_slice(&key.to_be_bytes());
        body.extend_from_slice(&self.sender.to_be_bytes());
        body.extend_from_slice(&self.life.to_be_bytes());
        body.extend_from_slice(&number.to_be_bytes());
        let mut dice = Dice::new(key ^ number ^ (u64::from(self.life) << 32));
        while (body.len() as u64) < message_octets(self.sender) {
            body.extend_from_slice(&dice.roll().to_be_bytes());
        }
        let mut frames = vec![format!("{TOPICS}{}", self.sender).into_bytes()];
        if number.is_multiple_of(4) {
            let rest = body.split_off(HEAD + number as usize % 256);
            frames.extend([body, rest]);
        } else {
            frames.push(body);
        }
        frames
    }

    /// Whose message this is, and which, if it is one of this run's to the octet.
    #[must_use]
    pub fn of(key: u64, frames: &[Vec<u8>]) -> Option<(Self, u64)> {
        let (head, _) = frames.get(1)?.split_first_chunk::<HEAD>()?;
        let (_, head) = head.split_first_chunk::<8>()?;
        let (sender, head) = head.split_first_chunk()?;
        let (life, number) = head.split_first_chunk()?;
        let source = Self { sender: u32::from_be_bytes(*sender), life: u32::from_be_bytes(*life) };
        let number = u64::from_be_bytes(number.try_into().ok()?);
        (source.message(key, number) == frames).then_some((source, number))
    }
}

const HEAD: usize = 24;

/// Messages that were received one after the other, with consecutive numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The connection they came by, as its receiver numbers it; 0 where libzmq does not say.
    pub connection: u64,
    /// Whose.
    pub source: Source,
    /// The first number.
    pub first: u64,
    /// The last number.
    pub last: u64,
}

/// Counters of a process, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report(BTreeMap<String, u64>);

impl Report {
    /// Adds a counter.
    pub fn set(&mut self, name: impl Into<String>, value: u64) {
        self.0.insert(name.into(), value);
    }

    /// A counter.
    ///
    /// # Panics
    /// There is none of that name.
    #[must_use]
    #[track_caller]
    pub fn get(&self, name: &str) -> u64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no counter {name} in {self}"))
    }

    /// Whether there is a counter of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The sum of the counters whose names begin so.
    #[must_use]
    pub fn sum(&self, prefix: &str) -> u64 {
        self.0.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{name}={value}")?;
        }
        Ok(())
    }
}

/// What a process says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Its endpoints are bound and being connected to.
    Ready,
    /// No number above this one has been sent yet: said before, so that it is known of one that was
    /// killed too.
    Claim(u64),
    /// It sends slowly from this number on.
    Trickle(u64),
    /// These numbers are sent at once.
    Burst(u64, u64),
    /// Messages received.
    Got(Run),
    /// Its counters, every [`REPORTS`] and at the end.
    Report(Report),
}

/// How often a process reports its counters.
pub const REPORTS: Duration = Duration::from_millis(200);

/// How many messages a receiver takes at most before it says so.
pub const UNSAID: u64 = 64;

/// Both high-water marks of every socket.
pub const HWM: usize = 400;

/// How many messages a sender sends at once in the end. libzmq's queue takes that many for certain:
/// it hears of what has left it only once half of its mark has.
pub const BURST: u64 = 150;

/// Both buffers that sockets ask the kernel for, in octets; Linux makes them twice that.
pub const KERNEL_BUFFER: usize = 32 * 1024;

/// Heartbeats, for the links that have faults.
pub const HEARTBEAT_IVL: Duration = Duration::from_millis(500);

/// The silence that ends a connection.
pub const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// The time for an attempt to connect.
pub const CONNECT: Duration = Duration::from_secs(1);

/// The time for a handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(2);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Claim(number) => write!(f, "claim {number}"),
            Self::Trickle(number) => write!(f, "trickle {number}"),
            Self::Burst(first, last) => write!(f, "burst {first} {last}"),
            Self::Got(Run { connection, source, first, last }) => {
                write!(f, "got {connection} {} {} {first} {last}", source.sender, source.life)
            }
            Self::Report(report) => write!(f, "report {report}"),
        }
    }
}

impl FromStr for Line {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let understood = || {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            if verb == "report" {
                let mut report = Report::default();
                for word in rest.split(' ').filter(|word| !word.is_empty()) {
                    let (name, value) = word.split_once('=')?;
                    report.set(name, value.parse().ok()?);
                }
                return Some(Self::Report(report));
            }
            let numbers: Option<Vec<u64>> = rest
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(|word| word.parse().ok())
                .collect();
            Some(match (verb, numbers?[..].as_ref()) {
                ("ready", []) => Self::Ready,
                ("claim", &[number]) => Self::Claim(number),
                ("trickle", &[number]) => Self::Trickle(number),
                ("burst", &[first, last]) => Self::Burst(first, last),
                ("got", &[connection, sender, life, first, last]) => {
                    let (sender, life) = (sender.try_into().ok()?, life.try_into().ok()?);
                    Self::Got(Run { connection, source: Source { sender, life }, first, last })
                }
                _ => return None,
            })
        };
        understood().ok_or_else(|| format!("not a line of a peer's: {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source { sender: 3, life: 2 };

    #[test]
    fn a_message_says_whose_it_is() {
        for number in [1, 4, 1_000_000] {
            assert_eq!(Source::of(7, &SOURCE.message(7, number)), Some((SOURCE, number)));
        }
    }

    #[test]
    fn a_message_of_another_run_or_with_an_octet_changed_is_nobodys() {
        let message = SOURCE.message(7, 4);
        assert_eq!(Source::of(8, &message), None);
        for frame in 0..message.len() {
            let mut other = message.clone();
            *other[frame].last_mut().unwrap() ^= 1;
            assert_eq!(Source::of(7, &other), None);
        }
        assert_eq!(Source::of(7, &message[..2]), None);
        assert_eq!(Source::of(7, &[]), None);
    }

    #[test]
    fn lines_come_back() {
        let mut report = Report::default();
        report.set("sent", 3);
        report.set("out.dropped.linger", 4);
        let lines = [
            Line::Ready,
            Line::Claim(5),
            Line::Trickle(6),
            Line::Burst(7, 9),
            Line::Got(Run { connection: 1, source: SOURCE, first: 2, last: 3 }),
            Line::Report(report),
        ];
        for line in lines {
            assert_eq!(line.to_string().parse(), Ok(line));
        }
        assert!("got 1 2 x".parse::<Line>().is_err());
    }
}
