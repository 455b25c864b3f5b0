//! PUSH: hands each message to one of its peers in turn (RFC 30).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Sink;

use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointStates, EndpointStatus};
use crate::error::{Error, SendError, TrySendError};
use crate::hub::{Hub, Refused};
use crate::message::Message;
use crate::monitor::Monitor;
use crate::options::SocketOptions;
use crate::outbox::Payload;
use crate::sender::{Held, send_when_room, sink, try_error};
use crate::socket::{CloseReport, Socket, common_methods, constructors};
use crate::socket_type::SocketType;
use crate::stats::SocketStats;

/// Hands each message to one of its peers, in turn among those with room; waits while none has.
///
/// Clones are handles of the same socket; each may be used by a task of its own.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dragonwire::{PullSocket, PushSocket};
///
/// let mut pull = PullSocket::new();
/// let endpoint = pull.bind("tcp://127.0.0.1:*").await?;
/// let push = PushSocket::new();
/// push.connect(&endpoint).await?;
/// push.send("work").await?;
/// assert_eq!(pull.recv().await?, "work".into());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PushSocket {
    socket: Socket,
    held: Held,
}

constructors!(PushSocket, SocketType::Push);
common_methods!(PushSocket);
sink!(PushSocket, push);

impl PushSocket {
    fn from_socket(socket: Socket) -> Self {
        Self { socket, held: Held::default() }
    }

    /// Sends a message to the next peer that has room, and waits until there is one.
    ///
    /// An endpoint that is connected to counts as a peer even before there is a connection, unless
    /// the option `immediate` is set.
    ///
    /// # Errors
    /// [`SendError`], with the message, if the socket is closed.
    ///
    /// # Cancel safety
    /// Safe: when cancelled, the message was not sent.
    pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        let message = message.into();
        let hub = self.socket.hub();
        let payload = Payload::Message(&message);
        match send_when_room(hub, &payload, Hub::push).await {
            Ok(()) => Ok(()),
            Err(_) => Err(SendError(message)),
        }
    }

    /// Sends a message of these frames without making a [`Message`] of them; they are copied.
    ///
    /// # Errors
    /// [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Safe: when cancelled, the message was not sent.
    pub async fn send_frames(&self, frames: &[&[u8]]) -> Result<(), Error> {
        let hub = self.socket.hub();
        let frames = if frames.is_empty() { &[&[][..]] } else { frames };
        let payload = Payload::Slices(frames);
        let sent = send_when_room(hub, &payload, Hub::push).await;
        sent.map_err(|_| Error::Closed)
    }

    /// Sends a message if a peer has room now.
    ///
    /// # Errors
    /// [`TrySendError`], with the message, if none has, or if the socket is closed.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), TrySendError> {
        let message = message.into();
        push(self.socket.hub(), &message).map_err(|refused| try_error(refused, message))
    }

    /// Sends messages from the front of a queue until it is empty.
    ///
    /// # Errors
    /// [`Error::Closed`]; what was not sent is still in the queue.
    ///
    /// # Cancel safety
    /// Safe: when cancelled, what was not sent is still in the queue.
    pub async fn send_many(&self, messages: &mut VecDeque<Message>) -> Result<(), Error> {
        let hub = self.socket.hub();
        while let Some(message) = messages.front() {
            let payload = Payload::Message(message);
            let sent = send_when_room(hub, &payload, Hub::push).await;
            sent.map_err(|_| Error::Closed)?;
            messages.pop_front();
        }
        Ok(())
    }
}

impl Clone for PushSocket {
    fn clone(&self) -> Self {
        Self::from_socket(self.socket.clone())
    }
}

fn push(hub: &Arc<Hub>, message: &Message) -> Result<(), Refused> {
    hub.push(&Payload::Message(message))
}
