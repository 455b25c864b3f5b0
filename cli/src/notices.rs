//! What a socket's events are worth to a person: one line when a connection is made, one when it
//! is lost or cannot be made.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use dragonwire::{DisconnectCause, Endpoint, Event, PeerInfo};

/// Turns events into lines and keeps quiet about what it has said already.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    endpoints: HashMap<Endpoint, Told>,
}

/// What was said of an endpoint.
#[derive(Debug)]
struct Told {
    /// The last fault, until the endpoint works again.
    fault: Option<String>,
    /// Lines since then.
    lines: u32,
    since: Instant,
}

impl Notices {
    /// The line for what happened `now`, if it deserves one.
    pub(crate) fn line(&mut self, event: &Event, now: Instant) -> Option<String> {
        match event {
            Event::HandshakeSucceeded { peer } if !peer.accepted => {
                let told = self.told(&peer.endpoint, now);
                told.fault = None;
                told.allow().then(|| format!("connected {}", peer.endpoint))
            }
            Event::Disconnected { cause: DisconnectCause::Local, .. }
            | Event::HandshakeFailed { cause: DisconnectCause::Local, .. } => None,
            Event::Disconnected { peer, cause, .. } if !peer.accepted => {
                let what = format!("disconnected {}: ", peer.endpoint);
                self.fault(&peer.endpoint, &what, cause.to_string(), now)
            }
            Event::HandshakeFailed { peer, cause } => {
                let what = format!("refused {}: ", place(peer));
                self.fault(&peer.endpoint, &what, cause.to_string(), now)
            }
            Event::Disconnected { peer, cause: cause @ DisconnectCause::Protocol(_), .. } => {
                let what = format!("closed {}: ", place(peer));
                self.fault(&peer.endpoint, &what, cause.to_string(), now)
            }
            Event::Retry { endpoint, cause, .. } => {
                self.fault(endpoint, &format!("waiting for {endpoint}: "), cause.to_string(), now)
            }
            Event::AcceptFailed { endpoint, error, .. } => {
                self.fault(endpoint, &format!("cannot accept on {endpoint}: "), error.clone(), now)
            }
            _ => None,
        }
    }

    fn fault(&mut self, at: &Endpoint, what: &str, why: String, now: Instant) -> Option<String> {
        let told = self.told(at, now);
        if told.fault.as_ref() == Some(&why) || !told.allow() {
            return None;
        }
        let line = format!("{what}{why}");
        told.fault = Some(why);
        Some(line)
    }

    fn told(&mut self, endpoint: &Endpoint, now: Instant) -> &mut Told {
        let fresh = || Told { fault: None, lines: 0, since: now };
        let told = self.endpoints.entry(endpoint.clone()).or_insert_with(fresh);
        if now.duration_since(told.since) >= WINDOW {
            (told.lines, told.since) = (0, now);
        }
        told
    }
}

impl Told {
    fn allow(&mut self) -> bool {
        self.lines += 1;
        self.lines <= LINES
    }
}

/// The peer's address where that is not in the endpoint already.
fn place(peer: &PeerInfo) -> String {
    match (peer.accepted, peer.remote) {
        (true, Some(remote)) => format!("{remote} on {}", peer.endpoint),
        _ => peer.endpoint.to_string(),
    }
}

/// So many lines about one endpoint in such a time: a connection that comes and goes ten times a
/// second, or a stranger who knocks, shall not fill the terminal.
const LINES: u32 = 8;
const WINDOW: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use dragonwire::PushSocket;

    use super::*;

    fn retry(endpoint: &str, cause: DisconnectCause) -> Event {
        let endpoint = endpoint.parse().unwrap();
        Event::Retry { endpoint, cause, attempt: 1, delay: Duration::ZERO }
    }

    #[test]
    fn the_same_fault_is_told_once() {
        let mut notices = Notices::default();
        let now = Instant::now();
        let refused = |at| retry(at, DisconnectCause::PeerClosed);
        let line = "waiting for tcp://x:1: closed by the peer";
        assert_eq!(notices.line(&refused("tcp://x:1"), now).as_deref(), Some(line));
        assert_eq!(notices.line(&refused("tcp://x:1"), now), None);
        assert!(notices.line(&refused("tcp://x:2"), now).is_some());
        let timeout = DisconnectCause::ConnectTimeout(Duration::from_secs(1));
        assert!(notices.line(&retry("tcp://x:1", timeout), now).is_some());
    }

    #[test]
    fn an_endpoint_that_flaps_does_not_fill_the_terminal() {
        let mut notices = Notices::default();
        let now = Instant::now();
        let flap = |notices: &mut Notices, now| {
            (0..100)
                .filter(|i| {
                    let cause = DisconnectCause::Filtered(i.to_string());
                    notices.line(&retry("tcp://x:1", cause), now).is_some()
                })
                .count()
        };
        assert_eq!(flap(&mut notices, now), 8);
        assert_eq!(flap(&mut notices, now + WINDOW), 8);
    }

    #[tokio::test]
    async fn a_connection_is_told_and_its_loss() {
        let pull = dragonwire::PullSocket::new();
        let endpoint = pull.bind("tcp://127.0.0.1:0").await.unwrap();
        let push = PushSocket::new();
        let mut monitor = push.monitor();
        push.connect(&endpoint).await.unwrap();
        let mut notices = Notices::default();
        let mut next = async || loop {
            let event = monitor.recv().await.unwrap();
            if let Some(line) = notices.line(&event, Instant::now()) {
                return line;
            }
        };
        assert_eq!(next().await, format!("connected {endpoint}"));
        pull.close().await;
        assert_eq!(next().await, format!("disconnected {endpoint}: closed by the peer"));
    }
}
