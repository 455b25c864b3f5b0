//! PUB: hands each message to every peer that is subscribed to it (RFC 29).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Sink;

use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointStates, EndpointStatus};
use crate::error::{Error, SendError, TrySendError};
use crate::hub::{Delivery, Hub, Refused, WaitFor};
use crate::message::Message;
use crate::monitor::Monitor;
use crate::options::SocketOptions;
use crate::outbox::Payload;
use crate::sender::{Held, send_when_room, sink, try_error};
use crate::socket::{CloseReport, Socket, common_methods, constructors};
use crate::socket_type::SocketType;
use crate::stats::SocketStats;

/// Hands each message to every peer that is subscribed to a beginning of its first frame.
///
/// A subscriber that is too slow loses messages once its queue is at the high-water mark, and nobody
/// else does; with [`OnFull::Wait`](crate::OnFull::Wait) the publisher waits instead. Clones are
/// handles of the same socket; each may be used by a task of its own.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dragonwire::{PubSocket, SubSocket};
///
/// let publisher = PubSocket::new();
/// let endpoint = publisher.bind("tcp://127.0.0.1:*").await?;
/// let mut subscriber = SubSocket::new();
/// subscriber.subscribe("weather.")?;
/// subscriber.connect(&endpoint).await?;
/// subscriber.ready().await?;
///
/// let delivery = publisher.publish("weather.oslo", "4 degrees").await?;
/// assert_eq!(delivery.queued, 1);
/// assert_eq!(subscriber.recv().await?.frame(1), Some(&b"4 degrees"[..]));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct PubSocket {
    socket: Socket,
    held: Held,
}

constructors!(PubSocket, SocketType::Pub);
common_methods!(PubSocket);
publishing_methods!(PubSocket);
sink!(PubSocket, publish);

impl PubSocket {
    fn from_socket(socket: Socket) -> Self {
        Self { socket, held: Held::default() }
    }

    /// Waits until peers subscribe to something, and returns the prefixes, each once and in octet
    /// order: those of all subscriptions, repeated ones too, that came since the last call, from the first
    /// call on, and that a peer still has. Those of a peer whose queue was dropped for want of memory
    /// ([`Event::Reclaimed`](crate::Event::Reclaimed)) are among them again.
    /// A publisher that greets its subscribers asks before it binds or connects.
    ///
    /// Until they are asked for they are marks on subscriptions, which take no memory of their own and
    /// go with them: to ask late or never again costs nobody anything.
    ///
    /// What is asked for by several tasks at once goes to one of them.
    ///
    /// # Errors
    /// [`Error::Closed`].
    ///
    /// # Cancel safety
    /// Safe: prefixes are taken only when they are returned.
    pub async fn new_subscriptions(&self) -> Result<Vec<Bytes>, Error> {
        let hub = self.socket.hub();
        let mut waiting = hub.waiting(WaitFor::Change);
        poll_fn(|cx| hub.poll_new_subscriptions(&mut waiting, cx)).await
    }
}

impl Clone for PubSocket {
    fn clone(&self) -> Self {
        Self::from_socket(self.socket.clone())
    }
}

/// For the sink, which does not tell what happened to each message.
pub(crate) fn publish(hub: &Arc<Hub>, message: &Message) -> Result<(), Refused> {
    hub.publish(&Payload::Message(message)).map(drop)
}

/// The methods of PUB and XPUB: `socket` is the field that holds a [`Socket`].
macro_rules! publishing_methods {
    ($type:ty) => {
        impl $type {
            /// Sends a message to every peer whose subscriptions match it; tells what happened.
            ///
            /// Waits for room only with [`OnFull::Wait`](crate::OnFull::Wait); it is then accepted
            /// for all matching peers or for none.
            ///
            /// # Errors
            /// [`SendError`], with the message, if the socket is closed.
            ///
            /// # Cancel safety
            /// Safe: when cancelled, the message was sent to nobody.
            pub async fn send(&self, message: impl Into<Message>) -> Result<Delivery, SendError> {
                let message = message.into();
                let hub = self.socket.hub();
                let payload = Payload::Message(&message);
                match send_when_room(hub, &payload, Hub::publish).await {
                    Ok(delivery) => Ok(delivery),
                    Err(_) => Err(SendError(message)),
                }
            }

            /// Sends a message of two frames without making a [`Message`] of them; they are copied.
            ///
            /// # Errors
            /// [`Error::Closed`].
            ///
            /// # Cancel safety
            /// Safe: when cancelled, the message was sent to nobody.
            pub async fn publish(
                &self,
                topic: impl AsRef<[u8]>,
                payload: impl AsRef<[u8]>,
            ) -> Result<Delivery, Error> {
                self.send_frames(&[topic.as_ref(), payload.as_ref()]).await
            }

            /// Sends a message of these frames without making a [`Message`] of them; they are
            /// copied.
            ///
            /// # Errors
            /// [`Error::Closed`].
            ///
            /// # Cancel safety
            /// Safe: when cancelled, the message was sent to nobody.
            pub async fn send_frames(&self, frames: &[&[u8]]) -> Result<Delivery, Error> {
                let hub = self.socket.hub();
                let frames = if frames.is_empty() { &[&[][..]] } else { frames };
                let payload = Payload::Slices(frames);
                let sent = send_when_room(hub, &payload, Hub::publish).await;
                sent.map_err(|_| Error::Closed)
            }

            /// Sends a message without waiting; tells what happened.
            ///
            /// # Errors
            /// [`TrySendError`], with the message, if the socket is closed, or if it is to wait
            /// ([`OnFull::Wait`](crate::OnFull::Wait)) and a matching peer has no room.
            pub fn try_send(&self, message: impl Into<Message>) -> Result<Delivery, TrySendError> {
                let message = message.into();
                let sent = self.socket.hub().publish(&Payload::Message(&message));
                sent.map_err(|refused| try_error(refused, message))
            }

            /// Sends messages from the front of a queue until it is empty; tells what happened to
            /// them in sum.
            ///
            /// # Errors
            /// [`Error::Closed`]; what was not sent is still in the queue.
            ///
            /// # Cancel safety
            /// Safe: when cancelled, what was not sent is still in the queue.
            pub async fn send_many(
                &self,
                messages: &mut VecDeque<Message>,
            ) -> Result<Delivery, Error> {
                let hub = self.socket.hub();
                let mut sum = Delivery::default();
                while let Some(message) = messages.front() {
                    let payload = Payload::Message(message);
                    let sent = send_when_room(hub, &payload, Hub::publish).await;
                    sum += sent.map_err(|_| Error::Closed)?;
                    messages.pop_front();
                }
                Ok(sum)
            }

            /// Waits until `count` connected peers get messages that begin with `topic`, so that
            /// what is sent then is not lost on those that were about to subscribe.
            ///
            /// # Errors
            /// [`Error::Closed`].
            ///
            /// # Cancel safety
            /// Safe: it changes nothing.
            pub async fn wait_for_subscribers(
                &self,
                topic: impl AsRef<[u8]>,
                count: usize,
            ) -> Result<(), Error> {
                let hub = self.socket.hub();
                let mut waiting = hub.waiting(WaitFor::Change);
                let topic = topic.as_ref();
                poll_fn(|cx| hub.poll_subscribers(topic, count, &mut waiting, cx)).await
            }
        }
    };
}

pub(crate) use publishing_methods;
