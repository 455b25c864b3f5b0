//! The receiving end of a socket: takes runs of messages from the hub and hands them out one by one,
//! without a lock for each.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::error::RecvError;
use crate::hub::{Hub, Sieve, Taken};
use crate::message::Message;
use crate::peer::ConnectionId;
use crate::socket_type::SocketType;
use crate::turns;

/// What the application has not received of the run in hand.
#[derive(Debug)]
pub(crate) struct Receiver {
    hub: Arc<Hub>,
    taken: Taken,
    /// SUB's filter as it was when the run was taken, and what is still to be filtered.
    changes: u64,
    sieve: Sieve,
    filters: bool,
    /// What the run in hand, or the last one, came by.
    connection: Option<ConnectionId>,
}

impl Receiver {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let filters = hub.kind() == SocketType::Sub;
        Self {
            hub,
            taken: Taken::nothing(),
            changes: u64::MAX,
            sieve: Sieve::default(),
            filters,
            connection: None,
        }
    }

    /// The next message of the run in hand.
    fn in_hand(&mut self) -> Option<Message> {
        if self.hub.is_closing() {
            return None;
        }
        loop {
            let message = self.taken.chunk.next_message()?;
            self.hub.note_in_hand(self.taken.chunk.messages);
            if !self.filters {
                return Some(message);
            }
            // the subscriptions may have changed since the run was taken
            if self.hub.filter_changes() != self.changes {
                if self.hub.still_wanted(&self.taken, message.topic()) {
                    return Some(message);
                }
            } else if self.sieve.passes(message.topic()) {
                return Some(message);
            } else {
                self.hub.count_filtered(&self.taken);
            }
        }
    }

    #[inline]
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, RecvError>> {
        ready!(turns::poll_proceed(cx));
        // received octets are not copied
        turns::spend(0);
        if !self.is_disturbed()
            && let Some(front) = self.taken.chunk.front()
            && self.sieve.passes(self.taken.chunk.octets(front.topic.clone()))
        {
            let message = self.taken.chunk.take(&front);
            self.hub.note_in_hand(self.taken.chunk.messages);
            return Poll::Ready(Ok(message));
        }
        self.poll_next(cx)
    }

    /// Whether the run in hand is not simply to be handed out.
    #[inline]
    fn is_disturbed(&self) -> bool {
        self.hub.is_closing() || self.filters && self.hub.filter_changes() != self.changes
    }

    /// The next message, of whatever kind.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, RecvError>> {
        loop {
            if let Some(message) = self.in_hand() {
                return Poll::Ready(Ok(message));
            }
            ready!(self.poll_take(Some(cx)))?;
        }
    }

    #[inline]
    pub(crate) async fn recv(&mut self) -> Result<Message, RecvError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    pub(crate) fn try_recv(&mut self) -> Result<Message, RecvError> {
        loop {
            if let Some(message) = self.in_hand() {
                return Ok(message);
            }
            match self.poll_take(None) {
                Poll::Ready(taken) => taken?,
                // not without a context to wake
                Poll::Pending => return Err(RecvError::Empty),
            }
        }
    }

    /// Takes the next run of messages, when none is in hand or the socket is closed.
    fn poll_take(&mut self, cx: Option<&mut Context<'_>>) -> Poll<Result<(), RecvError>> {
        if self.hub.is_closing() {
            self.hub.discard(&mut self.taken);
            return Poll::Ready(Err(RecvError::Closed));
        }
        let Self { hub, taken, changes, sieve, .. } = self;
        *taken = ready!(hub.poll_take(taken, sieve, changes, cx))?;
        self.connection = self.taken.connection;
        turns::note_taken();
        Poll::Ready(Ok(()))
    }

    pub(crate) async fn recv_many(
        &mut self,
        buf: &mut Vec<Message>,
        max: usize,
    ) -> Result<usize, RecvError> {
        if max == 0 {
            return Ok(0);
        }
        buf.push(self.recv().await?);
        let mut count = 1;
        while count < max
            && let Ok(message) = self.try_recv()
        {
            buf.push(message);
            count += 1;
        }
        Ok(count)
    }

    pub(crate) fn last_peer(&self) -> Option<ConnectionId> {
        self.connection
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.hub.discard(&mut self.taken);
    }
}

/// The methods of socket types that receive: `receiver` is the field that holds a [`Receiver`].
macro_rules! receiving_methods {
    ($type:ty) => {
        impl $type {
            /// The next message, of whichever peer's turn it is.
            ///
            /// # Errors
            /// [`RecvError::Closed`] if the socket was closed through another handle.
            ///
            /// # Cancel safety
            /// Safe: a message is taken only when it is returned.
            pub async fn recv(&mut self) -> Result<Message, RecvError> {
                self.receiver.recv().await
            }

            /// The next message, if there is one now.
            ///
            /// # Errors
            /// [`RecvError::Empty`] if there is none, [`RecvError::Closed`] if the socket was
            /// closed through another handle.
            pub fn try_recv(&mut self) -> Result<Message, RecvError> {
                self.receiver.try_recv()
            }

            /// Waits for a message and appends it and those that are there behind it to `buf`, at
            /// most `max`. Returns how many there were.
            ///
            /// # Errors
            /// [`RecvError::Closed`] if the socket was closed through another handle.
            ///
            /// # Cancel safety
            /// Safe: messages are taken only when it returns.
            pub async fn recv_many(
                &mut self,
                buf: &mut Vec<Message>,
                max: usize,
            ) -> Result<usize, RecvError> {
                self.receiver.recv_many(buf, max).await
            }

            /// The connection that the message received last came by.
            #[must_use]
            pub fn last_peer(&self) -> Option<ConnectionId> {
                self.receiver.last_peer()
            }
        }

        /// The messages as [`recv`](Self::recv) gives them, until the socket is closed.
        impl Stream for $type {
            type Item = Message;

            fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
                self.receiver.poll_recv(cx).map(Result::ok)
            }
        }
    };
}

pub(crate) use receiving_methods;
