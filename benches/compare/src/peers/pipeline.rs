//! What all pipelines have in common: a producer that hands events to a relay, which publishes them
//! for a consumer. Their events, and the answers by which a consumer holds a producer back.

use std::time::Instant;

use dragonwire::driver::codec::{Codec, Origin};
use dragonwire::driver::{Action, SEND_ALL_TOPIC, Update};
use dragonwire::{PullSocket, PushSocket};
use uuid::Uuid;

use crate::role::Role;
use crate::tally::{Laps, Tally};

pub type Done<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What all events are sent on.
pub const TOPIC: &str = SEND_ALL_TOPIC;

/// The event that is sent again and again, with a value of the role's size.
pub fn update(role: &Role) -> Update {
    Update::new("lport", "0123456789abcdef", Action::Set).with_value("x".repeat(role.size))
}

/// Its body as the driver writes it in MessagePack.
pub fn msgpack(role: &Role) -> Vec<u8> {
    encoded(Codec::Msgpack, role)
}

fn encoded(codec: Codec, role: &Role) -> Vec<u8> {
    let publisher = Uuid::from_u128(u128::from(std::process::id()));
    let origin = Origin { publisher, epoch: 1, sequence: 1 };
    let mut body = Vec::new();
    codec.encode(&update(role), TOPIC, &origin, &mut body);
    body
}

/// Its body as the driver writes it in Protocol Buffers, into which each event's number is put.
#[derive(Debug)]
pub struct Numbered(Vec<u8>);

impl Numbered {
    pub fn of(role: &Role) -> Self {
        Self(encoded(Codec::Protobuf, role))
    }

    /// Events count from 1.
    #[inline]
    pub fn body(&mut self, number: u64) -> &[u8] {
        self.0[NUMBER].copy_from_slice(&number.to_le_bytes());
        &self.0
    }
}

/// Where the number is, little-endian.
const NUMBER: std::ops::Range<usize> = 28..36;

/// Whether a body says where streams are, and is no event.
pub fn is_positions(body: &[u8]) -> bool {
    body.first() == Some(&POSITIONS)
}

const POSITIONS: u8 = 0x42;

/// A producer's side of the answers: lets as many events pass as the role's window allows.
#[derive(Debug)]
pub struct Gate {
    answers: Option<PullSocket>,
    window: u64,
    answered: u64,
    begun: Instant,
    laps: Option<Laps>,
}

impl Gate {
    pub async fn of(role: &Role) -> Done<Self> {
        let answers = match (role.window, &role.back) {
            (Some(_), Some(back)) => {
                let pull = PullSocket::new();
                pull.connect(back).await?;
                Some(pull)
            }
            _ => None,
        };
        let mut laps = (role.window == Some(1)).then(|| Laps::of(role));
        laps.iter_mut().for_each(Laps::start);
        let window = role.window.unwrap_or(u64::MAX);
        Ok(Self { answers, window, answered: 0, begun: Instant::now(), laps })
    }

    /// Whether an event may be sent behind so many.
    #[inline]
    pub fn is_open(&self, sent: u64) -> bool {
        sent - self.answered < self.window
    }

    /// Waits until it may.
    #[inline]
    pub async fn pass(&mut self, sent: u64) -> Done<()> {
        while !self.is_open(sent) {
            self.hear().await?;
        }
        Ok(())
    }

    async fn hear(&mut self) -> Done<()> {
        let Some(answers) = &mut self.answers else { return Ok(()) };
        let answer = answers.recv().await?;
        let count = answer.frame(0).and_then(|frame| frame.try_into().ok());
        self.answered = u64::from_le_bytes(count.ok_or("an answer has eight octets")?);
        if let Some(laps) = &mut self.laps {
            laps.stop();
            laps.start();
        }
        Ok(())
    }

    /// After the last event: waits for its answer.
    pub async fn tally(mut self, sent: u64) -> Done<Tally> {
        let seconds = self.begun.elapsed().as_secs_f64();
        while self.answers.is_some() && self.answered < sent {
            self.hear().await?;
        }
        Ok(match self.laps {
            Some(laps) => laps.tally(),
            None => Tally::of(sent, seconds),
        })
    }
}

/// A consumer's side of the answers.
#[derive(Debug)]
pub struct Answers {
    push: Option<PushSocket>,
    /// Events between answers.
    every: u64,
    seen: u64,
    said: u64,
    expected: u64,
}

impl Answers {
    pub async fn of(role: &Role) -> Done<Self> {
        let push = match (role.window, &role.back) {
            (Some(_), Some(back)) => {
                let push = PushSocket::new();
                push.bind(back).await?;
                Some(push)
            }
            _ => None,
        };
        let every = role.window.map_or(u64::MAX, |window| (window / 4).max(1));
        Ok(Self { push, every, seen: 0, said: 0, expected: role.round_trips() })
    }

    /// So many events have come, or do not come. Is that to be [said](Self::say)?
    #[inline]
    pub fn are_due(&mut self, events: u64) -> bool {
        self.seen += events;
        self.seen - self.said >= self.every || (self.seen >= self.expected && self.push.is_some())
    }

    pub async fn say(&mut self) -> Done<()> {
        self.said = self.seen;
        if let Some(push) = &self.push {
            push.send_frames(&[&self.seen.to_le_bytes()]).await?;
        }
        Ok(())
    }

    pub async fn close(self) {
        if let Some(push) = self.push {
            push.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use dragonwire::driver::codec::{Body, decode};

    use super::*;

    #[test]
    fn a_number_is_where_the_driver_looks_for_it() {
        let mut numbered = Numbered::of(&Role { size: 32, ..Role::default() });
        for number in [1, 258, u64::MAX] {
            let body = numbered.body(number);
            assert!(!is_positions(body));
            let Ok(Body::Event { origin: Some(origin), .. }) = decode(body) else {
                panic!("{body:?}")
            };
            assert_eq!(origin.sequence, number);
        }
    }

    #[tokio::test]
    async fn a_gate_opens_with_each_quarter_of_its_window() {
        let folder = tempfile::tempdir().unwrap();
        let back = format!("ipc://{}", folder.path().join("back").display());
        let role = Role { count: 20, window: Some(8), back: Some(back), ..Role::default() };
        let mut answers = Answers::of(&role).await.unwrap();
        let mut gate = Gate::of(&role).await.unwrap();
        assert!(gate.is_open(7) && !gate.is_open(8));
        assert!(!answers.are_due(1) && answers.are_due(1));
        answers.say().await.unwrap();
        gate.pass(8).await.unwrap();
        assert!(gate.is_open(9) && !gate.is_open(10));
        assert!(answers.are_due(18));
        answers.say().await.unwrap();
        assert_eq!(gate.tally(20).await.unwrap().messages, 20);
    }
}
