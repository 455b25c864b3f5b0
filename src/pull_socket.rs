//! PULL: takes messages from its peers in turn (RFC 30).

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;

use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointStates, EndpointStatus};
use crate::error::{Error, RecvError};
use crate::message::Message;
use crate::monitor::Monitor;
use crate::options::SocketOptions;
use crate::peer::ConnectionId;
use crate::receiver::{Receiver, receiving_methods};
use crate::socket::{CloseReport, Socket, common_methods, constructors};
use crate::socket_type::SocketType;
use crate::stats::SocketStats;

/// Takes messages from its peers, fairly: after at most one run of messages it is another's turn.
///
/// See [`PushSocket`](crate::PushSocket) for an example.
#[derive(Debug)]
pub struct PullSocket {
    socket: Socket,
    receiver: Receiver,
}

constructors!(PullSocket, SocketType::Pull);
common_methods!(PullSocket, receives);
receiving_methods!(PullSocket);

impl PullSocket {
    fn from_socket(socket: Socket) -> Self {
        let receiver = Receiver::new(socket.hub().clone());
        Self { socket, receiver }
    }
}
