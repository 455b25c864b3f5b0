//! One socket of any type, and its sending side.

use std::collections::VecDeque;

use bytes::Bytes;
use dragonwire::{
    CloseReport, Endpoint, Error, Message, Monitor, PubSocket, PullSocket, PushSocket, RecvError,
    SocketOptions, SocketStats, SocketType, SubSocket, TrySendError, XPubSender, XPubSocket,
    XSubSender, XSubSocket,
};

use crate::all_verbs::Direction;

/// A socket of one of the types that the command has.
#[derive(Debug)]
pub(crate) enum Socket {
    Pub(PubSocket),
    Sub(SubSocket),
    XPub(XPubSocket),
    XSub(XSubSocket),
    Push(PushSocket),
    Pull(PullSocket),
}

/// Calls the same method, whatever the type.
macro_rules! each {
    ($self:expr, $socket:ident => $call:expr) => {
        match $self {
            Socket::Pub($socket) => $call,
            Socket::Sub($socket) => $call,
            Socket::XPub($socket) => $call,
            Socket::XSub($socket) => $call,
            Socket::Push($socket) => $call,
            Socket::Pull($socket) => $call,
        }
    };
}

impl Socket {
    /// A socket of that type; `None` when the command has no such type.
    pub(crate) fn new(kind: SocketType, options: SocketOptions) -> Option<Result<Self, Error>> {
        Some(match kind {
            SocketType::Pub => PubSocket::with_options(options).map(Self::Pub),
            SocketType::Sub => SubSocket::with_options(options).map(Self::Sub),
            SocketType::XPub => XPubSocket::with_options(options).map(Self::XPub),
            SocketType::XSub => XSubSocket::with_options(options).map(Self::XSub),
            SocketType::Push => PushSocket::with_options(options).map(Self::Push),
            SocketType::Pull => PullSocket::with_options(options).map(Self::Pull),
            _ => return None,
        })
    }

    pub(crate) async fn attach(
        &self,
        direction: Direction,
        endpoint: &Endpoint,
    ) -> Result<Endpoint, Error> {
        match direction {
            Direction::Bind => each!(self, socket => socket.bind(endpoint).await),
            Direction::Connect => each!(self, socket => socket.connect(endpoint).await),
        }
    }

    pub(crate) fn monitor(&self) -> Monitor {
        each!(self, socket => socket.monitor())
    }

    pub(crate) fn stats(&self) -> SocketStats {
        each!(self, socket => socket.stats())
    }

    pub(crate) async fn close(&self) -> CloseReport {
        each!(self, socket => socket.close().await)
    }

    /// Subscribes; nothing on a socket that has no subscriptions.
    pub(crate) fn subscribe(&self, topic: &Bytes) -> Result<(), Error> {
        match self {
            Self::Sub(socket) => socket.subscribe(topic).map(drop),
            Self::XSub(socket) => socket.subscribe(topic).map(drop),
            _ => Ok(()),
        }
    }

    /// Takes a subscription back; nothing on a socket that has no subscriptions.
    pub(crate) fn unsubscribe(&self, topic: &Bytes) -> Result<(), Error> {
        match self {
            Self::Sub(socket) => socket.unsubscribe(topic).map(drop),
            Self::XSub(socket) => socket.unsubscribe(topic).map(drop),
            _ => Ok(()),
        }
    }

    pub(crate) fn receives(&self) -> bool {
        !matches!(self, Self::Pub(_) | Self::Push(_))
    }

    /// Waits for messages and takes those that are there, `max` at most; for ever on a socket that
    /// receives none.
    ///
    /// # Cancel safety
    /// Safe: nothing is taken before it is in `messages`.
    pub(crate) async fn recv_many(
        &mut self,
        messages: &mut Vec<Message>,
        max: usize,
    ) -> Result<usize, RecvError> {
        match self {
            Self::Sub(socket) => socket.recv_many(messages, max).await,
            Self::XPub(socket) => socket.recv_many(messages, max).await,
            Self::XSub(socket) => socket.recv_many(messages, max).await,
            Self::Pull(socket) => socket.recv_many(messages, max).await,
            Self::Pub(_) | Self::Push(_) => std::future::pending().await,
        }
    }

    /// A message that is there now.
    pub(crate) fn try_recv(&mut self) -> Result<Message, RecvError> {
        match self {
            Self::Sub(socket) => socket.try_recv(),
            Self::XPub(socket) => socket.try_recv(),
            Self::XSub(socket) => socket.try_recv(),
            Self::Pull(socket) => socket.try_recv(),
            Self::Pub(_) | Self::Push(_) => Err(RecvError::Empty),
        }
    }

    /// The sending side, when there is one.
    pub(crate) fn outlet(&self) -> Option<Outlet> {
        match self {
            Self::Pub(socket) => Some(Outlet::Pub(socket.clone())),
            Self::XPub(socket) => Some(Outlet::XPub(socket.sender())),
            Self::XSub(socket) => Some(Outlet::XSub(socket.sender())),
            Self::Push(socket) => Some(Outlet::Push(socket.clone())),
            Self::Sub(_) | Self::Pull(_) => None,
        }
    }
}

/// The sending side of a socket.
#[derive(Debug)]
pub(crate) enum Outlet {
    Pub(PubSocket),
    XPub(XPubSender),
    XSub(XSubSender),
    Push(PushSocket),
}

impl Outlet {
    /// Sends messages from the front of the queue, at least one, and takes them out of it.
    ///
    /// PUB and XPUB take `burst` in one go: with no more than a high-water mark of them between two
    /// turns of the connections, a subscriber that keeps up loses none.
    ///
    /// # Errors
    /// The socket is closed.
    ///
    /// # Cancel safety
    /// Safe: what the socket has not taken is still in the queue.
    pub(crate) async fn send(
        &self,
        messages: &mut VecDeque<Message>,
        burst: usize,
    ) -> Result<(), Error> {
        match self {
            Self::Push(socket) => socket.send_many(messages).await,
            Self::Pub(socket) => {
                send_burst(messages, burst, |m| socket.try_send(m).map(drop)).await
            }
            Self::XPub(socket) => {
                send_burst(messages, burst, |m| socket.try_send(m).map(drop)).await
            }
            Self::XSub(socket) => {
                let Some(message) = messages.front() else { return Ok(()) };
                socket.send(message.clone()).await.map_err(|_| Error::Closed)?;
                messages.pop_front();
                Ok(())
            }
        }
    }
}

async fn send_burst(
    messages: &mut VecDeque<Message>,
    burst: usize,
    try_send: impl Fn(Message) -> Result<(), TrySendError>,
) -> Result<(), Error> {
    for _ in 0..burst {
        let Some(message) = messages.pop_front() else { break };
        match try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Closed(_)) => return Err(Error::Closed),
            // these sockets drop where others wait; should one be full all the same, try again
            Err(full) => {
                messages.push_front(full.into_message());
                break;
            }
        }
    }
    tokio::task::yield_now().await;
    Ok(())
}
