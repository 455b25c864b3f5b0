//! SUB: receives what it is subscribed to, from any number of publishers (RFC 29).

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;

use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointStates, EndpointStatus};
use crate::error::{Error, RecvError};
use crate::hub::{Form, WaitFor};
use crate::message::Message;
use crate::monitor::Monitor;
use crate::options::SocketOptions;
use crate::peer::ConnectionId;
use crate::receiver::{Receiver, receiving_methods};
use crate::socket::{CloseReport, Socket, common_methods, constructors};
use crate::socket_type::SocketType;
use crate::stats::SocketStats;

/// Receives messages whose first frame begins with a topic it is subscribed to, from any number of
/// publishers, fairly.
///
/// Publishers may come and go while it runs: [`add`](Self::add), [`remove`](Self::remove) and
/// [`replace_all`](Self::replace_all) change the set of endpoints without loss from the others, and
/// each publisher is told the whole set of subscriptions whenever it is connected to anew. All of
/// that can be done from other tasks through a [`SubHandle`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dragonwire::{PubSocket, SubSocket};
///
/// let (oslo, bergen) = (PubSocket::new(), PubSocket::new());
/// let mut subscriber = SubSocket::new();
/// subscriber.subscribe("weather.")?;
/// subscriber.add(oslo.bind("tcp://127.0.0.1:*").await?).await?;
/// subscriber.add(bergen.bind("ipc://*").await?).await?;
/// subscriber.ready().await?;
///
/// oslo.publish("weather.oslo", "4 degrees").await?;
/// bergen.publish("weather.bergen", "rain").await?;
/// for _ in 0..2 {
///     println!("{:?}", subscriber.recv().await?);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct SubSocket {
    socket: Socket,
    receiver: Receiver,
}

/// What [`SubSocket::replace_all`] changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Replaced {
    /// Endpoints that are connected to now and were not before.
    pub added: Vec<Endpoint>,
    /// Endpoints that were connected to before and are not now.
    pub removed: Vec<Endpoint>,
}

/// A handle of a [`SubSocket`]: all but receiving. Clones are handles of the same socket.
#[derive(Debug, Clone)]
pub struct SubHandle {
    socket: Socket,
}

constructors!(SubSocket, SocketType::Sub);
common_methods!(SubSocket, receives);
receiving_methods!(SubSocket);
subscribing_methods!(SubSocket);
common_methods!(SubHandle);
subscribing_methods!(SubHandle);

impl SubSocket {
    fn from_socket(socket: Socket) -> Self {
        let receiver = Receiver::new(socket.hub().clone());
        Self { socket, receiver }
    }

    /// A handle by which other tasks can do all but receive.
    #[must_use]
    pub fn handle(&self) -> SubHandle {
        SubHandle { socket: self.socket.clone() }
    }
}

/// Connects to exactly these endpoints.
async fn replace_all(socket: &Socket, wanted: Vec<Endpoint>) -> Result<Replaced, Error> {
    for endpoint in &wanted {
        endpoint.check_connectable()?;
    }
    let kept: HashSet<&Endpoint> = wanted.iter().collect();
    let mut replaced = Replaced::default();
    let mut leaving = Vec::new();
    for endpoint in socket.connected() {
        if !kept.contains(&endpoint)
            && let Some(removed) = socket.begin_remove(&endpoint, false)
        {
            leaving.extend(removed.peers);
            replaced.removed.push(endpoint);
        }
    }
    for endpoint in &wanted {
        if socket.connect(endpoint)? {
            replaced.added.push(endpoint.clone());
        }
    }
    socket.flushed(&leaving).await;
    Ok(replaced)
}

/// The methods of SUB and its handle: `socket` is the field that holds a [`Socket`].
macro_rules! subscribing_methods {
    ($type:ty) => {
        impl $type {
            /// Subscribes to what begins with `prefix`; the empty one is everything. Returns
            /// whether it is the first subscription to it: they are counted, and each needs its
            /// own [`unsubscribe`](Self::unsubscribe).
            ///
            /// # Errors
            /// [`Error::Closed`].
            pub fn subscribe(&self, prefix: impl AsRef<[u8]>) -> Result<bool, Error> {
                let first = self.socket.hub().subscribe(prefix.as_ref(), Form::Command);
                first.map_err(|_| Error::Closed)
            }

            /// Takes one subscription to `prefix` back. Returns whether it was the last, so that
            /// messages no longer come; what had come and was not received is filtered out.
            ///
            /// # Errors
            /// [`Error::Closed`].
            pub fn unsubscribe(&self, prefix: impl AsRef<[u8]>) -> Result<bool, Error> {
                let last = self.socket.hub().unsubscribe(prefix.as_ref(), Form::Command);
                last.map_err(|_| Error::Closed)
            }

            /// Follows one more publisher; returns whether it is new. The same as `connect`.
            ///
            /// # Errors
            /// As `connect`.
            ///
            /// # Cancel safety
            /// Safe: all is done the first time it is polled.
            pub async fn add<E>(&self, endpoint: E) -> Result<bool, Error>
            where
                E: TryInto<Endpoint>,
                Error: From<E::Error>,
            {
                self.socket.connect(&endpoint.try_into()?)
            }

            /// Follows a publisher no longer; returns whether it was followed. What it sent before
            /// can still be received.
            ///
            /// # Errors
            /// [`Error::Endpoint`] if it is none.
            ///
            /// # Cancel safety
            /// Safe: when cancelled it goes on in the background.
            pub async fn remove<E>(&self, endpoint: E) -> Result<bool, Error>
            where
                E: TryInto<Endpoint>,
                Error: From<E::Error>,
            {
                match self.socket.remove(endpoint.try_into()?, false).await {
                    Ok(()) => Ok(true),
                    Err(Error::UnknownEndpoint { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            }

            /// Follows exactly these publishers: connects to those that are new, disconnects from
            /// those that are not named, and leaves the others alone. When one of them is no
            /// endpoint, nothing is changed.
            ///
            /// # Errors
            /// [`Error::Endpoint`], [`Error::Closed`], [`Error::NoRuntime`].
            ///
            /// # Cancel safety
            /// Safe: when cancelled it goes on in the background.
            pub async fn replace_all<E>(
                &self,
                endpoints: impl IntoIterator<Item = E>,
            ) -> Result<Replaced, Error>
            where
                E: TryInto<Endpoint>,
                Error: From<E::Error>,
            {
                let wanted: Result<Vec<_>, _> =
                    endpoints.into_iter().map(TryInto::try_into).collect();
                replace_all(&self.socket, wanted?).await
            }

            /// Waits until every endpoint that is connected to, and every peer that was accepted,
            /// has taken all subscriptions made so far: what is published then is not missed.
            ///
            /// A peer of ZMTP 3.1 confirms it, libzmq's in two round trips. Older peers cannot
            /// confirm, and count as soon as they are connected.
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

use subscribing_methods;
