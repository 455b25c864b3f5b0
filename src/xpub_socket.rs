//! XPUB: PUB whose application hears of the subscriptions (RFC 29).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{Sink, Stream};

use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointStates, EndpointStatus};
use crate::error::{Error, RecvError, SendError, TrySendError};
use crate::hub::{Delivery, Hub, Refused, WaitFor};
use crate::message::Message;
use crate::monitor::Monitor;
use crate::options::SocketOptions;
use crate::outbox::Payload;
use crate::peer::ConnectionId;
use crate::pub_socket::{publish, publishing_methods};
use crate::receiver::{Receiver, receiving_methods};
use crate::sender::{Held, send_when_room, sink, try_error};
use crate::socket::{CloseReport, Socket, common_methods, constructors};
use crate::socket_type::SocketType;
use crate::stats::SocketStats;

/// Publishes as [`PubSocket`](crate::PubSocket) does, and receives the subscriptions of its peers: a
/// message of one frame that holds an octet 1 (subscribed) or 0 (no longer) and the topic. Other
/// messages that XSUB peers send are received as they are.
///
/// What the application hears of is set by
/// [`SocketOptions::xpub_verbose`](crate::SocketOptions::xpub_verbose). Subscriptions that are not
/// received stop their peer's when there are `recv_hwm` of them.
///
/// When peers that are gone have left more than 256 KiB of them, what was not received of a peer that
/// goes is taken back ([`DropReason::PeerGone`](crate::DropReason::PeerGone)), until all is received:
/// of topics that came and went the application then hears nothing, and of the others what holds.
#[derive(Debug)]
pub struct XPubSocket {
    socket: Socket,
    receiver: Receiver,
    held: Held,
}

/// The sending side of an [`XPubSocket`]. Clones are handles of the same socket.
#[derive(Debug)]
pub struct XPubSender {
    socket: Socket,
    held: Held,
}

constructors!(XPubSocket, SocketType::XPub);
common_methods!(XPubSocket, receives);
publishing_methods!(XPubSocket);
receiving_methods!(XPubSocket);
sink!(XPubSocket, publish);
common_methods!(XPubSender);
publishing_methods!(XPubSender);
sink!(XPubSender, publish);

impl XPubSocket {
    fn from_socket(socket: Socket) -> Self {
        let receiver = Receiver::new(socket.hub().clone());
        Self { socket, receiver, held: Held::default() }
    }

    /// A handle by which other tasks can do all but receive.
    #[must_use]
    pub fn sender(&self) -> XPubSender {
        XPubSender { socket: self.socket.clone(), held: Held::default() }
    }

    /// With [`SocketOptions::xpub_manual`](crate::SocketOptions::xpub_manual): subscribes the peer
    /// of the message received last. Returns whether that is new to it. `ZMQ_SUBSCRIBE`.
    ///
    /// # Errors
    /// [`Error::UnknownPeer`] if the peer is gone, [`Error::Option`] if nothing was received yet.
    pub fn subscribe(&self, topic: impl AsRef<[u8]>) -> Result<bool, Error> {
        self.socket.hub().subscribe_last_peer(topic.as_ref(), true)
    }

    /// The opposite of [`subscribe`](Self::subscribe). Returns whether the peer was subscribed.
    /// `ZMQ_UNSUBSCRIBE`.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub fn unsubscribe(&self, topic: impl AsRef<[u8]>) -> Result<bool, Error> {
        self.socket.hub().subscribe_last_peer(topic.as_ref(), false)
    }
}

impl Clone for XPubSender {
    fn clone(&self) -> Self {
        Self { socket: self.socket.clone(), held: Held::default() }
    }
}
