//! What one measured process is to do.
//!
//! The driver hands a [`Role`] over as one argument, in JSON; what is left out has its default:
//!
//! ```text
//! compare peer dragonwire '{"verb":"pull","endpoint":"tcp://127.0.0.1:*","bind":true,"count":1000}'
//! ```
//!
//! Sender and receiver of a run have the same role but for the verb and who binds, so that both
//! can work out from it which topics there are, who subscribes to what, and how much will come.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    #[default]
    Push,
    Pull,
    Pub,
    Sub,
    /// Sends a message and waits for it to come back.
    Ping,
    /// Sends back what it gets.
    Pong,
    /// Subscribers that connect, subscribe, and stay.
    Idle,
    /// Of a pipeline: makes events and hands them to the relay.
    Produce,
    /// Of a pipeline: takes events from a producer and publishes them.
    Relay,
    /// Of a pipeline: subscribes to the relay.
    Consume,
}

/// What an asynchronous library runs on. Libraries that bring their own threads take no notice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// One thread, and the work in a spawned task.
    #[default]
    CurrentThread,
    /// As `#[tokio::main]` has it: a thread per core, and the work in the main task.
    MainTask,
    /// So many threads, and the work in a spawned task.
    Threads(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Role {
    pub verb: Verb,
    /// Where to bind or connect: `tcp://127.0.0.1:*` for a binder is any port, or `ipc://PATH`.
    /// Relay and consume: where events are published.
    pub endpoint: String,
    /// Produce and relay: where events are handed over, `ipc://PATH`.
    pub local: String,
    pub bind: bool,
    /// Ping: where to bind the PULL of the way back, said to the other side in the first message.
    /// Streams, which go both ways, take no notice. Consume: where to bind the PUSH of its answers.
    pub back: Option<String>,
    /// Messages to send, or that are sent in all, a multiple of `topics`; round trips.
    pub count: u64,
    /// Ping and pong, produce and consume: round trips before those that count.
    pub warm_up: u64,
    /// Octets of payload.
    pub size: usize,
    /// Subscriber sockets, all of them in the process with the verb sub or idle.
    pub peers: usize,
    /// Different topics of the publisher, which it takes in turn.
    pub topics: usize,
    /// Prefixes each subscriber subscribes to beside [`PROBE`].
    pub prefixes: usize,
    /// Both high-water marks; `None`: the library's default.
    pub hwm: Option<usize>,
    /// Pub: wait for a full subscriber instead of dropping.
    pub lossless: bool,
    /// So many of the subscriber sockets, the last ones, never receive.
    pub stalled: usize,
    /// Produce: events that may be on their way, until the consumer has answered that they are
    /// there; `None`: any number. With one the round trips are timed.
    pub window: Option<u64>,
    pub runtime: Runtime,
}

impl Default for Role {
    fn default() -> Self {
        Self {
            verb: Verb::default(),
            endpoint: String::new(),
            local: String::new(),
            bind: false,
            back: None,
            count: 0,
            warm_up: 0,
            size: 64,
            peers: 1,
            topics: 1,
            prefixes: 1,
            hwm: None,
            lossless: false,
            stalled: 0,
            window: None,
            runtime: Runtime::default(),
        }
    }
}

/// The topic that every subscriber subscribes to last of all: who gets a message with it, or has
/// been seen to subscribe to it, is there with all its subscriptions. It sorts behind the others,
/// because a library may send the subscriptions in that order.
pub const PROBE: &str = "~probe";

impl Role {
    /// From the argument of a measured process.
    pub fn from_argument(argument: &str) -> serde_json::Result<Self> {
        serde_json::from_str(argument)
    }

    /// To the argument of a measured process.
    pub fn to_argument(&self) -> String {
        serde_json::to_string(self).expect("nothing in a role can fail to be written")
    }

    /// The publisher's topics, of eight octets, in the order in which it takes them: not sorted, so
    /// that what a subscriber gets is spread over all, and it does not leave long before the end.
    pub fn topics(&self) -> Vec<String> {
        (0..self.topics).map(|n| topic(n * STRIDE % self.topics)).collect()
    }

    /// What a subscriber subscribes to, [`PROBE`] at the end.
    ///
    /// The first matches everything if there is one topic, else a hundred topics of its own. The
    /// others begin with a whole topic and go on, so that they match none, and no shortcut shows
    /// that before the topic's end.
    pub fn subscriptions(&self, subscriber: usize) -> Vec<String> {
        let matching = match self.topics {
            1 => "t".to_owned(),
            _ => topic(subscriber * BLOCK)[..6].to_owned(),
        };
        let others = (1..self.prefixes)
            .map(|n| format!("{}.{subscriber}.{}", topic(n % self.topics), n / self.topics));
        std::iter::once(matching).chain(others).chain([PROBE.to_owned()]).collect()
    }

    /// How many messages a subscriber receives if none is dropped.
    pub fn share(&self, subscriber: usize) -> u64 {
        match self.topics {
            _ if subscriber >= self.receiving() => 0,
            1 => self.count,
            topics => self.count / topics as u64 * BLOCK as u64,
        }
    }

    /// Ping and pong, produce and consume: all of them.
    pub fn round_trips(&self) -> u64 {
        self.warm_up + self.count
    }

    /// Whether it is one of a pipeline's three.
    pub fn is_of_pipeline(&self) -> bool {
        matches!(self.verb, Verb::Produce | Verb::Relay | Verb::Consume)
    }

    /// The subscriber sockets that receive.
    pub fn receiving(&self) -> usize {
        self.peers - self.stalled
    }
}

fn topic(number: usize) -> String {
    format!("t{number:07}")
}

/// Topics that a subscriber's first prefix matches: those that differ in the last two digits.
const BLOCK: usize = 100;
/// A prime, which does not divide the number of topics.
const STRIDE: usize = 7919;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_role_comes_back_from_its_argument() {
        let role = Role { verb: Verb::Sub, runtime: Runtime::Threads(2), ..Role::default() };
        assert_eq!(Role::from_argument(&role.to_argument()).unwrap(), role);
    }

    #[test]
    fn a_share_is_what_the_prefixes_match() {
        let role =
            Role { peers: 8, topics: 10_000, prefixes: 300, count: 20_000, ..Role::default() };
        let topics = role.topics();
        assert_eq!(topics.iter().collect::<BTreeSet<_>>().len(), topics.len());
        for subscriber in 0..role.peers {
            let prefixes = role.subscriptions(subscriber);
            let sent = topics.iter().cycle().take(role.count as usize);
            let matched = sent.filter(|topic| prefixes.iter().any(|p| topic.starts_with(p)));
            assert_eq!(matched.count() as u64, role.share(subscriber), "{subscriber}");
        }
    }
}
