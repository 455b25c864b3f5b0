//! Dragonflow's publish/subscribe API over dragonwire's sockets: publishers, subscribers, the drivers
//! that make them, the directory where they find each other, and the publisher service.
//!
//! A driver is chosen by its alias at run time and gives one [`Publisher`] and one [`Subscriber`].

#[cfg(test)]
mod books;
pub mod codec;
pub mod config;
mod delivery;
pub mod directory;
mod drivers;
mod error;
mod follow;
mod identity;
mod journal;
mod nb_api;
mod publisher;
#[cfg(feature = "redis")]
mod redis;
mod registration;
mod role;
mod service;
mod streams;
mod subscriber;
mod sync;
mod table_monitor;
mod tracker;
mod update;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

pub use futures::future::BoxFuture;
pub use uuid::Uuid;

pub use delivery::{Callback, EventSender, SubscriberEvent, Updates};
pub use drivers::{Drivers, MultiprocDriver, NetworkDriver, SUPPORTED_TRANSPORTS};
pub use error::DriverError;
pub use follow::Following;
pub use nb_api::NbApi;
#[cfg(feature = "redis")]
pub use redis::RedisDriver;
pub use role::{ROLE_DF_LOCAL_CONTROLLER, ROLE_NEUTRON_SERVER, Role, UnknownRole};
pub use service::{PublisherService, ServiceStats};
pub use sync::{Missing, Sync, SyncCause};
pub use table_monitor::{TableMonitor, remove_stale_publishers};
pub use update::{Action, SEND_ALL_TOPIC, Update, Value};

use self::codec::Position;
use self::config::DriverOptions;
use self::directory::Directory;
use crate::endpoint::Endpoint;
use crate::governor::{Account, Budget};
use crate::options::SocketOptions;

/// A driver: one publisher and one subscriber of one kind. Upstream's `PubSubApi`.
///
/// Making a driver opens nothing, so that it may be made before a process forks; what was initialized
/// before a fork cannot be used after it, and says so.
pub trait PubSubDriver: Send + std::marker::Sync + fmt::Debug {
    /// The publisher; the same one each time.
    fn get_publisher(&self) -> Arc<dyn Publisher>;

    /// The subscriber; the same one each time.
    fn get_subscriber(&self) -> Arc<dyn Subscriber>;
}

/// Sends events. Upstream's `PublisherApi`. Every method may be called from any task.
pub trait Publisher: Send + std::marker::Sync + fmt::Debug {
    /// Gets ready to publish. A network publisher listens from now on, and has a row in the directory
    /// if there is one; a multi-process publisher does nothing until its first event.
    ///
    /// # Errors
    /// [`DriverError::Socket`] if the address cannot be bound, [`DriverError::Journal`],
    /// [`DriverError::NoRuntime`].
    ///
    /// # Cancel safety
    /// When cancelled, it may be called again.
    fn initialize(&self) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Publishes an event: on `topic` if one is given, else on the event's own, else on
    /// [`SEND_ALL_TOPIC`]. Initializes the publisher if that was not done, or if it was closed since.
    ///
    /// A subscriber that is too slow does not get it, and is told so by `sync`; with a multi-process
    /// publisher it waits until there is room.
    ///
    /// # Errors
    /// As [`initialize`](Self::initialize), and [`DriverError::Forked`].
    ///
    /// # Cancel safety
    /// Safe: when cancelled, the event was not published; over Redis it may have been.
    fn send_event<'a>(
        &'a self,
        update: &'a Update,
        topic: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Sends what is queued, for at most five seconds, and closes. Closing again does nothing.
    ///
    /// # Errors
    /// [`DriverError::Directory`] if its row could not be removed, [`DriverError::Unsent`] if a
    /// multi-process publisher's events were not taken in that time. It is closed in any case.
    ///
    /// # Cancel safety
    /// Not safe: when cancelled, subscribers may not be told where its events end, and its row may
    /// stay in the directory until it is stale.
    fn close(&self) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Who it is in the numbers of its events.
    fn id(&self) -> Uuid;

    /// Where it listens or connects to, once it does.
    fn endpoint(&self) -> Option<Endpoint>;

    /// What became of its events.
    fn stats(&self) -> PublisherStats;
}

/// Receives events. Upstream's `SubscriberApi`. Every method may be called from any task, while it
/// runs too, and takes effect at once.
pub trait Subscriber: Send + std::marker::Sync + fmt::Debug {
    /// Has `callback` called for each event, in a thread of its own: it may block, which holds up
    /// nothing else, and it may panic, which is logged and followed by a `sync`.
    ///
    /// # Errors
    /// [`DriverError::Already`] if it was initialized, [`DriverError::Thread`].
    fn initialize(&self, callback: Callback) -> Result<(), DriverError>;

    /// The same with the events as a stream.
    ///
    /// # Errors
    /// [`DriverError::Already`] if it was initialized.
    fn initialize_stream(&self) -> Result<Updates, DriverError>;

    /// Follows a topic; tells whether it is new. Over ZeroMQ it is a prefix.
    ///
    /// # Cancel safety
    /// Over ZeroMQ registering is done the first time it is polled; over Redis the server hears of it
    /// in the background.
    ///
    /// # Errors
    /// [`DriverError::NotInitialized`], [`DriverError::Closed`].
    fn register_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<bool, DriverError>>;

    /// Follows a topic no longer.
    ///
    /// # Errors
    /// [`DriverError::UnknownTopic`] if it was not followed, and as
    /// [`register_topic`](Self::register_topic).
    fn unregister_topic<'a>(&'a self, topic: &'a str) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Follows the publisher at an address; tells whether it is new. Whether anybody listens there
    /// does not matter.
    ///
    /// # Errors
    /// [`DriverError::Address`] if it is no address; [`DriverError::NotInitialized`],
    /// [`DriverError::Closed`].
    fn register_listen_address<'a>(
        &'a self,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<bool, DriverError>>;

    /// Follows the publisher at an address no longer.
    ///
    /// # Errors
    /// [`DriverError::UnknownAddress`] if it was not followed, and as
    /// [`register_listen_address`](Self::register_listen_address).
    fn unregister_listen_address<'a>(
        &'a self,
        uri: &'a str,
    ) -> BoxFuture<'a, Result<(), DriverError>>;

    /// Begins to receive.
    ///
    /// # Errors
    /// [`DriverError::Already`] if it runs, [`DriverError::Socket`] if an address cannot be used,
    /// [`DriverError::NotInitialized`], [`DriverError::Closed`], [`DriverError::NoRuntime`].
    fn daemonize(&self) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Waits until every publisher at a registered address has taken the topics: what is published
    /// from then on is received or told to be missing. Events have to be taken meanwhile: what a
    /// publisher answers stands behind them.
    ///
    /// # Errors
    /// [`DriverError::NotInitialized`], [`DriverError::Closed`].
    ///
    /// # Cancel safety
    /// Safe: it changes nothing.
    fn ready(&self) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Whether it receives: from [`daemonize`](Self::daemonize) to [`close`](Self::close).
    fn is_running(&self) -> bool;

    /// Ends it: no event comes after those that were received. Closing again does nothing. It does
    /// not wait for a callback that does not return.
    ///
    /// # Errors
    /// [`DriverError::Forked`].
    ///
    /// # Cancel safety
    /// When cancelled, it ends all the same; the stream ends when the subscriber is dropped.
    fn close(&self) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Takes note of where streams have ended, from somewhere else than the publishers: those that
    /// are followed and did not come so far are told to be missing.
    fn learn_ends(&self, ends: &[Position]);

    /// What came and what did not.
    fn stats(&self) -> SubscriberStats;
}

/// What became of a publisher's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PublisherStats {
    /// Events that [`Publisher::send_event`] took.
    pub published: u64,
    /// Events that a subscriber had no room for, each counted for each such subscriber.
    pub dropped: u64,
    /// Events whose topic nobody followed.
    pub unheard: u64,
    /// Subscribers that are connected now; 0 where that is not known.
    pub subscribers: u64,
}

/// What came to a subscriber and what did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SubscriberStats {
    /// Events that were handed to the callback or the stream, or wait to be.
    pub delivered: u64,
    /// Events that are known to be missing, and were told so.
    pub missing: u64,
    /// `sync` events.
    pub syncs: u64,
    /// Messages that could not be read.
    pub undecodable: u64,
    /// Events that were not delivered because they came again, after they were told to be missing, or
    /// from an address that is not registered any more.
    pub late: u64,
    /// How often the callback panicked.
    pub callback_panics: u64,
    /// Events that wait to be taken.
    pub waiting: u64,
}

/// What drivers are made with.
#[derive(Debug, Clone)]
pub struct DriverContext {
    options: DriverOptions,
    directory: Option<Arc<dyn Directory>>,
    id: Option<Uuid>,
    budget: Option<Budget>,
}

impl DriverContext {
    /// For a process without a directory; its publisher's id is a random one, another one in each
    /// process that is forked from this.
    #[must_use]
    pub fn new(options: DriverOptions) -> Self {
        Self { options, directory: None, id: None, budget: None }
    }

    /// With the directory that publishers keep their rows in and subscribers follow.
    #[must_use]
    pub fn with_directory(mut self, directory: Arc<dyn Directory>) -> Self {
        self.directory = Some(directory);
        self
    }

    /// With the memory that the sockets of publishers, subscribers and the publisher service keep
    /// within, and the events that subscribers have not been asked for.
    #[must_use]
    pub fn with_budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// What the sockets of a driver are made with.
    pub(crate) fn socket_options(&self) -> SocketOptions {
        match &self.budget {
            Some(budget) => SocketOptions::new().budget(budget),
            None => SocketOptions::new(),
        }
    }

    /// A queue for events of a subscriber.
    pub(crate) fn queue(&self) -> Arc<delivery::Queue> {
        delivery::Queue::within(self.budget.as_ref().map(Account::new))
    }

    /// With a name, unique on this host, by which the publisher's id stays the same over restarts: it
    /// is made of the role, the name and the host's.
    #[must_use]
    pub fn with_process_name(mut self, name: &str) -> Self {
        let host = registration::host_name();
        self.id = Some(directory::publisher_id(self.options.role, name, &host));
        self
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &DriverOptions {
        &self.options
    }

    pub(crate) fn set_options(&mut self, options: DriverOptions) {
        self.options = options;
    }

    /// The directory, if there is one.
    #[must_use]
    pub fn directory(&self) -> Option<&Arc<dyn Directory>> {
        self.directory.as_ref()
    }

    /// The id of the publisher, if it has one that its successor will have as well.
    #[must_use]
    pub fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// The update as it is sent: with `trigger_only` without its value.
    fn triggering<'a>(&self, update: &'a Update) -> Cow<'a, Update> {
        if !self.options.trigger_only
            || update.value.is_none()
            || update.action == Some(Action::Log)
        {
            return Cow::Borrowed(update);
        }
        Cow::Owned(Update { value: None, ..update.clone() })
    }
}
