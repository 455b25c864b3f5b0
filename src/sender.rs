//! What sending sockets share: trying, waiting for room, and sending as a `Sink`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::error::{SendError, TrySendError};
use crate::hub::{Hub, Refused, WaitFor, Waiting};
use crate::message::Message;
use crate::outbox::Payload;
use crate::turns;

/// Tries until a message is accepted or the socket is closed. Nothing is awaited after acceptance.
#[inline]
pub(crate) fn send_when_room<'a, F>(
    hub: &'a Arc<Hub>,
    payload: &'a Payload<'a>,
    attempt: F,
) -> SendWhenRoom<'a, F> {
    SendWhenRoom { hub, payload, attempt, waiting: None }
}

/// See [`send_when_room`]. It is not an `async fn` because that would copy what it is given once
/// more, which takes longer than the rest of the common case.
#[derive(Debug)]
pub(crate) struct SendWhenRoom<'a, F> {
    hub: &'a Arc<Hub>,
    payload: &'a Payload<'a>,
    attempt: F,
    waiting: Option<Waiting>,
}

impl<T, F> Future for SendWhenRoom<'_, F>
where
    F: Fn(&Hub, &Payload<'_>) -> Result<T, Refused> + Unpin,
{
    type Output = Result<T, Refused>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(turns::poll_proceed(cx));
        if self.waiting.is_none() {
            turns::spend(self.payload.wire_size());
            match (self.attempt)(self.hub, self.payload) {
                Err(Refused::Full) => {}
                done => return Poll::Ready(done),
            }
        }
        self.poll_room(cx)
    }
}

impl<T, F> SendWhenRoom<'_, F>
where
    F: Fn(&Hub, &Payload<'_>) -> Result<T, Refused>,
{
    #[cold]
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, Refused>> {
        let waiting = self.waiting.get_or_insert_with(|| self.hub.waiting(WaitFor::Room));
        // first into the list, then another look: room that comes in between is not missed
        self.hub.wait_for_room(waiting, cx);
        match (self.attempt)(self.hub, self.payload) {
            Err(Refused::Full) => Poll::Pending,
            done => Poll::Ready(done),
        }
    }
}

/// What a `Sink` was given and could not send yet.
#[derive(Debug, Default)]
pub(crate) struct Held {
    message: Option<Message>,
    waiting: Option<Waiting>,
}

impl Held {
    pub(crate) fn hold(&mut self, message: Message) {
        self.message = Some(message);
    }

    /// Resolves when nothing is held any more.
    pub(crate) fn poll_sent(
        &mut self,
        hub: &Arc<Hub>,
        cx: &mut Context<'_>,
        attempt: impl Fn(&Message) -> Result<(), Refused>,
    ) -> Poll<Result<(), SendError>> {
        let Some(message) = self.message.take() else { return Poll::Ready(Ok(())) };
        let waiting = self.waiting.get_or_insert_with(|| hub.waiting(WaitFor::Room));
        hub.wait_for_room(waiting, cx);
        match attempt(&message) {
            Err(Refused::Full) => {
                self.message = Some(message);
                Poll::Pending
            }
            Ok(()) => {
                self.waiting = None;
                Poll::Ready(Ok(()))
            }
            Err(Refused::Closed) => Poll::Ready(Err(SendError(message))),
        }
    }
}

/// `Refused` as the error that gives the message back.
pub(crate) fn try_error(refused: Refused, message: Message) -> TrySendError {
    match refused {
        Refused::Full => TrySendError::Full(message),
        Refused::Closed => TrySendError::Closed(message),
    }
}

/// `Sink` for a socket type with fields `socket` and `held`, by its function `attempt`.
macro_rules! sink {
    ($type:ty, $attempt:path) => {
        /// A message given to the sink is accepted by the socket as soon as there is room;
        /// flushing waits for that. Closing the sink flushes it and leaves the socket open.
        impl Sink<Message> for $type {
            type Error = SendError;

            fn poll_ready(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Result<(), SendError>> {
                self.poll_flush(cx)
            }

            fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
                match $attempt(self.socket.hub(), &message) {
                    Ok(()) => Ok(()),
                    Err(Refused::Closed) => Err(SendError(message)),
                    Err(Refused::Full) => {
                        self.held.hold(message);
                        Ok(())
                    }
                }
            }

            fn poll_flush(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Result<(), SendError>> {
                let this = &mut *self;
                let hub = this.socket.hub();
                this.held.poll_sent(hub, cx, |message| $attempt(hub, message))
            }

            fn poll_close(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<Result<(), SendError>> {
                self.poll_flush(cx)
            }
        }
    };
}

pub(crate) use sink;
