//! What can go wrong with drivers, publishers and subscribers.

use std::io;
use std::path::PathBuf;

use super::config::ConfigError;
use super::directory::DirectoryError;
use crate::error::{EndpointError, Error};

/// Why a driver, a publisher or a subscriber did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// No driver is registered under that alias.
    #[error("there is no driver {alias:?}; known are {known}")]
    UnknownDriver {
        /// What was asked for.
        alias: String,
        /// The aliases there are.
        known: String,
    },
    /// The transport is none that a network driver can use: upstream's
    /// `UnsupportedTransportException`.
    #[error(
        "Transport protocol is not supported: {transport} (publisher_transport); use one of {supported}"
    )]
    UnsupportedTransport {
        /// What was asked for.
        transport: String,
        /// Those that there are.
        supported: &'static str,
    },
    /// The transport is known, but this build has none.
    #[error("transport {transport} is known but not built; use tcp (publisher_transport)")]
    TransportNotBuilt {
        /// What was asked for.
        transport: String,
    },
    /// A socket could not be opened or used.
    #[error("{doing}: {source}")]
    Socket {
        /// What was being done, with the address.
        doing: String,
        /// Why it failed.
        source: Error,
    },
    /// The address is none.
    #[error("{uri:?} is no listen address of a publisher: {source}")]
    Address {
        /// What was given.
        uri: String,
        /// What is wrong with it.
        source: EndpointError,
    },
    /// The address is not registered.
    #[error("{uri} is not registered as a listen address")]
    UnknownAddress {
        /// What was given.
        uri: String,
    },
    /// The topic is not registered.
    #[error("{topic:?} is not registered as a topic")]
    UnknownTopic {
        /// What was given.
        topic: String,
    },
    /// It was used before `initialize`.
    #[error("the {what} was not initialized: call initialize first")]
    NotInitialized {
        /// Publisher or subscriber.
        what: &'static str,
    },
    /// `initialize` or `daemonize` was called once more.
    #[error("the {what} {state} already")]
    Already {
        /// Publisher or subscriber.
        what: &'static str,
        /// Is initialized, or runs.
        state: &'static str,
    },
    /// It was closed.
    #[error("the {what} was closed")]
    Closed {
        /// Publisher or subscriber.
        what: &'static str,
    },
    /// A multi-process publisher was closed while the publisher service took nothing.
    #[error(
        "closed with {messages} messages unsent: {reason}; is the publisher service running on that \
         socket (publisher_multiproc_socket)?"
    )]
    Unsent {
        /// Events, and what is said of them.
        messages: u64,
        /// Why there was no connection, or that nobody read.
        reason: String,
    },
    /// The process was forked since: tasks and sockets stayed with the parent.
    #[error(
        "the {what} belongs to process {made_in}, this is process {here}: initialize drivers after \
         forking"
    )]
    Forked {
        /// Publisher or subscriber.
        what: &'static str,
        /// Where it was initialized.
        made_in: u32,
        /// Where it was used.
        here: u32,
    },
    /// There is no tokio runtime to run in.
    #[error("there is no tokio runtime here; call from within one, with IO and time enabled")]
    NoRuntime,
    /// The system has no thread for the callback.
    #[error("no thread for the callback: {0}")]
    Thread(io::Error),
    /// The publisher's journal cannot be used.
    #[error("journal in {path}: {source} (state_path)")]
    Journal {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory did not do its part.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// An option is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The broker did not do its part.
    #[error("Redis at {at}: {reason}")]
    Broker {
        /// Its address.
        at: String,
        /// Why.
        reason: String,
    },
}
