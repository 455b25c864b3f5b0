//! ZeroMQ's wire protocol, ZMTP 3.1, in pure Rust on tokio: PUB/SUB, XPUB/XSUB and PUSH/PULL over TCP
//! and Unix sockets, wire-compatible with libzmq in both roles and back to ZMTP 1.0.
//!
//! It is a library of sockets, not a broker and not a wrapper: no C is linked, no thread is started
//! beside the runtime's, and nothing a peer sends comes out of `send` or `recv` as an error.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use dragonwire::{PubSocket, SubSocket};
//!
//! let publisher = PubSocket::new();
//! let endpoint = publisher.bind("tcp://127.0.0.1:*").await?;
//!
//! let mut subscriber = SubSocket::new();
//! subscriber.subscribe("weather.")?;
//! subscriber.connect(&endpoint).await?;
//! subscriber.ready().await?; // no sleep against the slow-joiner problem
//!
//! publisher.publish("weather.oslo", "4 degrees").await?;
//! println!("{:?}", subscriber.recv().await?);
//! # Ok(()) }
//! ```
//!
//! # How a message travels
//!
//! ```text
//!  your task                    connection task           connection task            your task
//! ┌─────────────┐  one lock   ┌─────────────────┐  wire ┌──────────────────┐  lock ┌────────────┐
//! │ send:       │────────────►│ writes batches, │══════►│ reads 256 KiB    │──────►│ recv:      │
//! │ encode into │   queue of  │ or your task    │       │ blocks, cuts at  │ queue │ slices the │
//! │ each peer's │   the peer  │ does so itself  │       │ whole messages   │ of    │ run, no    │
//! │ batch       │             │                 │       │                  │ runs  │ lock, no   │
//! └─────────────┘             └─────────────────┘       └──────────────────┘       │ copy       │
//!                                                                                  └────────────┘
//! ```
//!
//! The sender encodes straight into the octets that the kernel will be given; the receiver gets
//! slices of the octets that the kernel gave, or copies of up to 80 of them. In between there is no channel, no task and no
//! allocation per message.
//!
//! # What counts against a high-water mark
//!
//! Whole messages, however many frames they have, per peer and direction. Outgoing: from acceptance
//! until the kernel has the last octet of its batch. Incoming: from the moment a message is whole
//! until the application has taken the run it is in; at the mark the peer is not read from. Both
//! marks are there in octets as well. What dies is counted by reason: see [`SocketStats`].
//!
//! # Cancel safety
//!
//! Every `async` method may be cancelled at any of its awaits, as `tokio::select!` does, and says
//! what then holds. In short: what was cancelled was not sent, and what was not returned was not
//! received.
//!
//! # Runtime
//!
//! Sockets are made anywhere; binding and connecting need a tokio runtime with IO and time enabled
//! (`enable_all`), of either flavour. A loop that sends or receives at full speed belongs in a
//! spawned task: the body of `#[tokio::main]` is not run by a worker, so that each change between it
//! and a connection task costs a thread switch.

// what a peer sends must not be able to panic; tests may
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

/// The code on the first page is built with the documentation's tests.
#[cfg(all(doctest, feature = "driver"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(not(target_os = "linux"))]
compile_error!("dragonwire is for Linux");

mod append;
#[cfg(feature = "__bench")]
#[doc(hidden)]
pub mod bench;
mod blocks;
mod clock;
mod command;
mod connection;
#[cfg(feature = "driver")]
pub mod driver;
mod endpoint;
mod endpoints;
mod engine;
mod error;
mod framing;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod governor;
mod greeting;
mod heartbeat;
mod hub;
mod inbox;
mod mechanism;
mod message;
mod monitor;
mod options;
mod outbox;
mod peer;
mod pub_socket;
mod pull_socket;
mod push_socket;
mod receiver;
mod sender;
mod session;
#[cfg(feature = "__sim")]
#[doc(hidden)]
pub mod sim;
mod socket;
mod socket_type;
mod stats;
mod sub_socket;
mod subscription;
mod supervise;
mod tcp;
mod transport;
mod turns;
mod unix_ipc;
#[cfg(test)]
mod vectors;
mod waiters;
mod xpub_socket;
mod xsub_socket;

pub use endpoint::Endpoint;
pub use endpoints::{EndpointState, EndpointStates, EndpointStatus};
pub use error::{
    DisconnectCause, EndpointError, EndpointFault, Error, ProtocolError, RecvError, SendError,
    TrySendError,
};
pub use governor::{Budget, BudgetUsage};
pub use greeting::Version;
pub use hub::Delivery;
pub use message::{Frames, Message};
pub use monitor::{Event, Monitor};
pub use options::{OnFull, SocketOptions, XPubVerbose};
pub use peer::{ConnectionId, Credentials, PeerInfo, SessionInfo};
pub use pub_socket::PubSocket;
pub use pull_socket::PullSocket;
pub use push_socket::PushSocket;
pub use socket::CloseReport;
pub use socket_type::SocketType;
pub use stats::{DropCounts, DropReason, Incoming, Outgoing, PeerStats, SocketStats};
pub use sub_socket::{Replaced, SubHandle, SubSocket};
pub use xpub_socket::{XPubSender, XPubSocket};
pub use xsub_socket::{XSubSender, XSubSocket};
