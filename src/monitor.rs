//! What happens to a socket's endpoints and peers, as a bounded stream of typed events.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::Stream;

use crate::endpoint::Endpoint;
use crate::error::DisconnectCause;
use crate::peer::PeerInfo;
use crate::stats::DropReason;

/// Something that happened to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The endpoint is listened on; a wildcard is resolved.
    Listening {
        /// The real endpoint.
        endpoint: Endpoint,
    },
    /// The endpoint is no longer listened on.
    Unbound {
        /// The real endpoint.
        endpoint: Endpoint,
    },
    /// A connection was accepted; its handshake begins.
    Accepted {
        /// Who it is.
        peer: Arc<PeerInfo>,
    },
    /// Accepting failed, for example with all file descriptors in use; it is tried again.
    AcceptFailed {
        /// The endpoint that is listened on.
        endpoint: Endpoint,
        /// What the system said.
        error: String,
        /// When accepting goes on.
        retry_in: Duration,
    },
    /// An attempt to connect begins.
    Connecting {
        /// The endpoint.
        endpoint: Endpoint,
        /// Attempts in a row, from 1.
        attempt: u32,
    },
    /// A connection was made; its handshake begins.
    Connected {
        /// Who it is.
        peer: Arc<PeerInfo>,
    },
    /// There is no connection to the endpoint; another attempt follows.
    Retry {
        /// The endpoint.
        endpoint: Endpoint,
        /// Why there is none.
        cause: DisconnectCause,
        /// The attempt that follows, from 1.
        attempt: u32,
        /// The wait before it.
        delay: Duration,
    },
    /// The endpoint is no longer connected to, because this side asked for it.
    EndpointRemoved {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// The handshake is through; messages flow.
    HandshakeSucceeded {
        /// Who it is.
        peer: Arc<PeerInfo>,
    },
    /// The connection ended before the handshake did.
    HandshakeFailed {
        /// Who it is.
        peer: Arc<PeerInfo>,
        /// Why.
        cause: DisconnectCause,
    },
    /// The connection ended.
    Disconnected {
        /// Who it was.
        peer: Arc<PeerInfo>,
        /// Why.
        cause: DisconnectCause,
        /// Messages that died with it; see also [`SocketStats`](crate::SocketStats).
        discarded: u64,
    },
    /// Messages for a peer begin to be dropped; said once until its queue has been empty again.
    Dropping {
        /// Who it is; `None` while an endpoint has no connection.
        peer: Option<Arc<PeerInfo>>,
        /// Its endpoint.
        endpoint: Endpoint,
        /// Why.
        reason: DropReason,
    },
    /// Messages queued for a peer were dropped because the [`Budget`](crate::Budget) needed the memory
    /// for others.
    Reclaimed {
        /// Who it is; `None` while an endpoint has no connection.
        peer: Option<Arc<PeerInfo>>,
        /// Its endpoint.
        endpoint: Endpoint,
        /// How many messages.
        messages: u64,
        /// What the peer held, in octets.
        held: usize,
    },
    /// The peer is not read from because the [`Budget`](crate::Budget) has no memory for what it sends;
    /// said of a peer at most every five seconds.
    ReadingPaused {
        /// Who it is.
        peer: Arc<PeerInfo>,
        /// What the peer holds, in octets.
        held: usize,
    },
    /// Every endpoint and connection of the socket is closed.
    Closed,
    /// This monitor was not read fast enough: that many events are missing here.
    Missed {
        /// How many.
        events: u64,
    },
}

/// A stream of [`Event`]s, from the moment it was asked for to [`Event::Closed`].
///
/// It holds up to 1024 events; when it is full the newest is lost, and [`Event::Missed`] stands in
/// its place.
#[derive(Debug)]
pub struct Monitor {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    missed: u64,
    waker: Option<Waker>,
    ended: bool,
}

impl Monitor {
    /// The next event; `None` after [`Event::Closed`].
    ///
    /// # Cancel safety
    /// Safe: an event is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next event, if there is one now.
    pub fn try_recv(&mut self) -> Option<Event> {
        lock(&self.queue).take()
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut queue = lock(&self.queue);
        match queue.take() {
            Some(event) => Poll::Ready(Some(event)),
            None if queue.ended => Poll::Ready(None),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Stream for Monitor {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_recv(cx)
    }
}

impl Queue {
    fn take(&mut self) -> Option<Event> {
        match self.events.pop_front() {
            Some(event) => Some(event),
            None if self.missed > 0 => {
                Some(Event::Missed { events: std::mem::take(&mut self.missed) })
            }
            None => None,
        }
    }
}

/// The sending side: every monitor of one socket.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    queues: Mutex<(Vec<Weak<Mutex<Queue>>>, u64)>,
}

impl Monitors {
    pub(crate) fn subscribe(&self) -> Monitor {
        let queue = Arc::new(Mutex::new(Queue::default()));
        lock(&self.queues).0.push(Arc::downgrade(&queue));
        Monitor { queue }
    }

    /// Hands the event to every monitor. Never waits.
    pub(crate) fn emit(&self, event: &Event) {
        let mut wakers = Vec::new();
        {
            let mut guard = lock(&self.queues);
            let (queues, missed) = &mut *guard;
            queues.retain(|queue| {
                let Some(queue) = queue.upgrade() else { return false };
                let mut queue = lock(&queue);
                if queue.missed > 0 || queue.events.len() >= CAPACITY {
                    queue.missed += 1;
                    *missed += 1;
                } else {
                    queue.events.push_back(event.clone());
                }
                queue.ended |= *event == Event::Closed;
                wakers.extend(queue.waker.take());
                true
            });
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn missed(&self) -> u64 {
        lock(&self.queues).1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Enough for the ups and downs of hundreds of peers between two reads.
const CAPACITY: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn event(attempt: u32) -> Event {
        Event::Connecting { endpoint: "tcp://x:1".parse().unwrap(), attempt }
    }

    #[test]
    fn a_slow_monitor_is_told_what_it_missed() {
        let monitors = Monitors::default();
        let mut monitor = monitors.subscribe();
        for attempt in 0..CAPACITY as u32 + 5 {
            monitors.emit(&event(attempt));
        }
        for attempt in 0..CAPACITY as u32 {
            assert_eq!(monitor.try_recv(), Some(event(attempt)));
        }
        assert_eq!(monitor.try_recv(), Some(Event::Missed { events: 5 }));
        assert_eq!(monitor.try_recv(), None);
        assert_eq!(monitors.missed(), 5);
        monitors.emit(&event(1));
        assert_eq!(monitor.try_recv(), Some(event(1)));
    }

    #[tokio::test]
    async fn the_stream_ends_after_closed() {
        let monitors = Monitors::default();
        let mut monitor = monitors.subscribe();
        monitors.emit(&Event::Closed);
        assert_eq!(monitor.recv().await, Some(Event::Closed));
        assert_eq!(monitor.recv().await, None);
    }
}
