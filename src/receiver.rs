//! The receiving end of a socket: takes runs of messages from the hub and hands them out one by one,
//! without a lock for each.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::consume_budget;

use crate::error::RecvError;
use crate::hub::{Hub, Taken};
use crate::message::Message;
use crate::peer::ConnectionId;
use crate::socket_type::SocketType;

/// What the application has not received of the run in hand.
#[derive(Debug)]
pub(crate) struct Receiver {
    hub: Arc<Hub>,
    taken: Taken,
    /// SUB's filter as it was when the run was taken.
    changes: u64,
    filters: bool,
}

impl Receiver {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let filters = hub.kind() == SocketType::Sub;
        Self { hub, taken: Taken::nothing(), changes: 0, filters }
    }

    #[inline]
    fn in_hand(&mut self) -> Option<Message> {
        loop {
            let message = self.taken.chunk.next_message()?;
            self.hub.note_in_hand(self.taken.chunk.messages);
            if self.filters
                && self.hub.filter_changes() != self.changes
                && !self.hub.still_wanted(&self.taken, message.topic())
            {
                continue;
            }
            return Some(message);
        }
    }

    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, RecvError>> {
        self.poll(Some(cx))
    }

    fn poll(&mut self, mut cx: Option<&mut Context<'_>>) -> Poll<Result<Message, RecvError>> {
        loop {
            if self.hub.is_closing() {
                self.hub.discard(&mut self.taken);
                return Poll::Ready(Err(RecvError::Closed));
            }
            if let Some(message) = self.in_hand() {
                return Poll::Ready(Ok(message));
            }
            self.changes = self.hub.filter_changes();
            match self.hub.poll_take(&mut self.taken, cx.as_deref_mut()) {
                Poll::Ready(Ok(taken)) => self.taken = taken,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    pub(crate) async fn recv(&mut self) -> Result<Message, RecvError> {
        consume_budget().await;
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    pub(crate) fn try_recv(&mut self) -> Result<Message, RecvError> {
        match self.poll(None) {
            Poll::Ready(result) => result,
            // not without a context to wake
            Poll::Pending => Err(RecvError::Empty),
        }
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
        self.hub.last_peer().map(|info| info.id)
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
