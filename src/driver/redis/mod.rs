//! The Redis driver: events as messages of Redis channels, a channel for each topic, with the octets
//! of Dragonflow's Redis driver.

mod baseline;
mod channels;
mod gate;
mod nodes;
mod publisher;
mod servers;
mod subscriber;

use std::sync::Arc;

pub(crate) use channels::{Change as ChannelChange, Channels, Heard};
pub(crate) use servers::{ANSWER, Backoff, Connection, Fault, STEADY, Servers, Unreachable};

use self::publisher::RedisPublisher;
use self::subscriber::RedisSubscriber;
use super::error::DriverError;
use super::{DriverContext, PubSubDriver, Publisher, Subscriber};

/// The Redis driver: a publisher that sends `PUBLISH` and a subscriber that follows a channel for
/// each topic, on the first of the servers in `remote_db_hosts` that answers. Upstream's
/// `RedisPubSubAgent`. `docs/redis.md` is for operators.
///
/// Where it differs from what the traits say:
///
/// - A topic is followed exactly as it is; it is no prefix.
/// - Addresses of publishers have no meaning: they are kept in a list, unchecked.
/// - [`Publisher::initialize`] connects, and fails with [`DriverError::Broker`] if no server can be
///   used now; the publisher can be used nevertheless.
/// - [`Publisher::send_event`] returns when the server has taken the event. It tries for ten seconds,
///   on each server, and then fails with [`DriverError::Broker`]; from then on with a single attempt,
///   until one succeeds. An event that failed may have been published when the connection broke before
///   the answer, as may one whose future was dropped; numbered ones do not come twice, and if they did
///   not come they are told to be missing.
/// - Values are sent whatever the option `trigger_only` says, as upstream did over Redis.
/// - [`Subscriber::ready`] waits until the server has confirmed every topic; it fails with
///   [`DriverError::Broker`] if the server does not let the user follow one.
/// - When the connection was lost, one `sync` without a range follows as soon as it is there again and
///   the topics are followed again; what was lost by that is not told once more. With the option
///   `sync_on_reconnect` off, what numbered streams lack is told instead.
/// - A stream of numbered events begins for a subscriber with the first that it hears of it: nobody
///   greets it.
#[derive(Debug)]
pub struct RedisDriver {
    publisher: Arc<RedisPublisher>,
    subscriber: Arc<RedisSubscriber>,
}

impl RedisDriver {
    /// Checks the addresses; nothing is opened yet.
    ///
    /// # Errors
    /// [`DriverError::Broker`] if `remote_db_hosts` is empty or has something that is no address.
    pub fn new(context: DriverContext) -> Result<Self, DriverError> {
        let hosts = context.options().remote_db_hosts.iter();
        let servers = Servers::new(hosts.map(String::as_str)).map_err(|error| {
            let reason = format!("{} (remote_db_hosts)", error.reason);
            DriverError::Broker { at: error.text, reason }
        })?;
        let context = Arc::new(context);
        Ok(Self {
            publisher: Arc::new(RedisPublisher::new(servers.clone(), context.clone())),
            subscriber: Arc::new(RedisSubscriber::new(servers, context)),
        })
    }
}

impl PubSubDriver for RedisDriver {
    fn get_publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    fn get_subscriber(&self) -> Arc<dyn Subscriber> {
        self.subscriber.clone()
    }
}
