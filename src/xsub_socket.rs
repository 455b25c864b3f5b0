//! XSUB: SUB whose application makes its subscriptions by sending messages, and filters itself
//! (RFC 29).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Sink, Stream};

use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointStates, EndpointStatus};
use crate::error::{Error, RecvError, SendError, TrySendError};
use crate::hub::{Form, Hub, Refused, WaitFor};
use crate::message::Message;
use crate::monitor::Monitor;
use crate::options::SocketOptions;
use crate::outbox::Payload;
use crate::peer::ConnectionId;
use crate::receiver::{Receiver, receiving_methods};
use crate::sender::{Held, send_when_room, sink, try_error};
use crate::socket::{CloseReport, Socket, common_methods, constructors};
use crate::socket_type::SocketType;
use crate::stats::SocketStats;

/// Receives whatever its publishers send, and sends them subscriptions: a message of one frame that
/// holds an octet 1 (subscribe) or 0 (no longer) and the topic. Any other message goes to every peer
/// as it is.
#[derive(Debug)]
pub struct XSubSocket {
    socket: Socket,
    receiver: Receiver,
    held: Held,
}

/// The sending side of an [`XSubSocket`]. Clones are handles of the same socket.
#[derive(Debug)]
pub struct XSubSender {
    socket: Socket,
    held: Held,
}

constructors!(XSubSocket, SocketType::XSub);
common_methods!(XSubSocket, receives);
receiving_methods!(XSubSocket);
upstream_methods!(XSubSocket);
sink!(XSubSocket, send_upstream);
common_methods!(XSubSender);
upstream_methods!(XSubSender);
sink!(XSubSender, send_upstream);

impl XSubSocket {
    fn from_socket(socket: Socket) -> Self {
        let receiver = Receiver::new(socket.hub().clone());
        Self { socket, receiver, held: Held::default() }
    }

    /// A handle by which other tasks can do all but receive.
    #[must_use]
    pub fn sender(&self) -> XSubSender {
        XSubSender { socket: self.socket.clone(), held: Held::default() }
    }
}

impl Clone for XSubSender {
    fn clone(&self) -> Self {
        Self { socket: self.socket.clone(), held: Held::default() }
    }
}

fn send_upstream(hub: &Arc<Hub>, message: &Message) -> Result<(), Refused> {
    hub.send_upstream(message)
}

/// The sending methods of XSUB: `socket` is the field that holds a [`Socket`].
macro_rules! upstream_methods {
    ($type:ty) => {
        impl $type {
            /// Sends a message upstream: a subscription if it has one frame that begins with an
            /// octet 1 or 0, else a message for every peer. A peer whose queue is at the high-water
            /// mark loses it, and that is counted.
            ///
            /// # Errors
            /// [`SendError`], with the message, if the socket is closed.
            ///
            /// # Cancel safety
            /// Safe: when cancelled, the message was sent to nobody.
            pub async fn send(&self, message: impl Into<Message>) -> Result<(), SendError> {
                let message = message.into();
                let hub = self.socket.hub();
                let payload = Payload::Message(&message);
                let upstream = |hub: &Hub, _: &Payload<'_>| hub.send_upstream(&message);
                match send_when_room(hub, &payload, upstream).await {
                    Ok(()) => Ok(()),
                    Err(_) => Err(SendError(message)),
                }
            }

            /// The same without giving way to other tasks.
            ///
            /// # Errors
            /// [`TrySendError::Closed`], with the message.
            pub fn try_send(&self, message: impl Into<Message>) -> Result<(), TrySendError> {
                let message = message.into();
                let sent = send_upstream(self.socket.hub(), &message);
                sent.map_err(|refused| try_error(refused, message))
            }

            /// Subscribes to what begins with `prefix`. Returns whether it is the first
            /// subscription to it: they are counted.
            ///
            /// # Errors
            /// [`Error::Closed`].
            pub fn subscribe(&self, prefix: impl AsRef<[u8]>) -> Result<bool, Error> {
                let first = self.socket.hub().subscribe(prefix.as_ref(), Form::Command);
                first.map_err(|_| Error::Closed)
            }

            /// Takes one subscription to `prefix` back. Returns whether it was the last.
            ///
            /// # Errors
            /// [`Error::Closed`].
            pub fn unsubscribe(&self, prefix: impl AsRef<[u8]>) -> Result<bool, Error> {
                let last = self.socket.hub().unsubscribe(prefix.as_ref(), Form::Command);
                last.map_err(|_| Error::Closed)
            }

            /// Waits until every endpoint that is connected to, and every peer that was accepted,
            /// has taken all subscriptions made so far. See
            /// [`SubSocket::ready`](crate::SubSocket::ready).
            ///
            /// # Errors
            /// [`Error::Closed`].
            ///
            /// # Cancel safety
            /// Safe: it changes nothing.
            pub async fn ready(&self) -> Result<(), Error> {
                let hub = self.socket.hub();
                let mut waiting = hub.waiting(WaitFor::Change);
                poll_fn(|cx| hub.poll_ready(&mut waiting, cx)).await
            }
        }
    };
}

use upstream_methods;
