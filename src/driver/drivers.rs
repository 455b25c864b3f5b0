//! The drivers and their aliases.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::config::DriverOptions;
use super::error::DriverError;
use super::publisher::{Kind, SocketPublisher};
use super::subscriber::{SocketSubscriber, Source};
use super::{DriverContext, PubSubDriver, Publisher, Subscriber};
use crate::endpoint::Endpoint;

/// The transports that option files may name: upstream's set. Of these `epgm` is not built.
pub const SUPPORTED_TRANSPORTS: &str = "tcp, epgm";

/// The network driver: a PUB socket that subscribers of other hosts connect to, and a SUB socket that
/// connects to any number of publishers. Upstream's `ZMQPubSub`.
#[derive(Debug)]
pub struct NetworkDriver {
    publisher: Arc<SocketPublisher>,
    subscriber: Arc<SocketSubscriber>,
}

impl NetworkDriver {
    /// Checks the options; nothing is opened yet.
    ///
    /// # Errors
    /// [`DriverError::UnsupportedTransport`] for `publisher_transport`, [`DriverError::Address`] for
    /// `publisher_bind_address`.
    pub fn new(context: DriverContext) -> Result<Self, DriverError> {
        let options = context.options();
        let kind = network(options)?;
        let context = Arc::new(context);
        Ok(Self {
            publisher: Arc::new(SocketPublisher::new(kind, context.clone())),
            subscriber: Arc::new(SocketSubscriber::new(Source::Publishers, context)),
        })
    }
}

impl PubSubDriver for NetworkDriver {
    fn get_publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    fn get_subscriber(&self) -> Arc<dyn Subscriber> {
        self.subscriber.clone()
    }
}

/// What a network publisher binds. A transport that is known but not built is an error only then.
pub(crate) fn network(options: &DriverOptions) -> Result<Kind, DriverError> {
    let transport = options.publisher_transport.clone();
    match transport.as_str() {
        "tcp" => {}
        "epgm" => return Ok(Kind::NotBuilt { transport }),
        _ => {
            let supported = SUPPORTED_TRANSPORTS;
            return Err(DriverError::UnsupportedTransport { transport, supported });
        }
    }
    let (address, port) = (&options.publisher_bind_address, options.publisher_port);
    // an IPv6 address stands in brackets before a port
    let uri = if address.contains(':') && !address.starts_with('[') {
        format!("tcp://[{address}]:{port}")
    } else {
        format!("tcp://{address}:{port}")
    };
    match uri.parse() {
        Ok(endpoint) => Ok(Kind::Network(endpoint)),
        Err(source) => Err(DriverError::Address { uri, source }),
    }
}

/// The multi-process driver: PUSH sockets of any number of processes, and the PULL socket of the
/// publisher service of their host. Upstream's `ZMQPubSubMultiproc`.
#[derive(Debug)]
pub struct MultiprocDriver {
    publisher: Arc<SocketPublisher>,
    subscriber: Arc<SocketSubscriber>,
}

impl MultiprocDriver {
    /// Checks the options; nothing is opened yet.
    ///
    /// # Errors
    /// [`DriverError::Address`] if `publisher_multiproc_socket` cannot be a socket's path.
    pub fn new(context: DriverContext) -> Result<Self, DriverError> {
        let path = &context.options().publisher_multiproc_socket;
        let endpoint = Endpoint::ipc(path).map_err(|source| DriverError::Address {
            uri: format!("ipc://{}", path.display()),
            source,
        })?;
        let context = Arc::new(context);
        let subscriber =
            SocketSubscriber::new(Source::Processes(endpoint.clone()), context.clone());
        Ok(Self {
            publisher: Arc::new(SocketPublisher::new(Kind::Multiproc(endpoint), context)),
            subscriber: Arc::new(subscriber),
        })
    }
}

impl PubSubDriver for MultiprocDriver {
    fn get_publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    fn get_subscriber(&self) -> Arc<dyn Subscriber> {
        self.subscriber.clone()
    }
}

/// What makes a driver.
type Factory =
    Box<dyn Fn(DriverContext) -> Result<Arc<dyn PubSubDriver>, DriverError> + Send + Sync>;

/// The drivers that can be chosen by an alias.
///
/// ```
/// use dragonwire::driver::config::DriverOptions;
/// use dragonwire::driver::{DriverContext, Drivers};
///
/// let drivers = Drivers::new();
/// let context = DriverContext::new(DriverOptions::default());
/// let driver = drivers.load("zmq_pubsub_driver", context)?;
/// let publisher = driver.get_publisher();
/// # Ok::<_, dragonwire::driver::DriverError>(())
/// ```
pub struct Drivers {
    factories: BTreeMap<String, Factory>,
}

impl Drivers {
    /// Those of this crate, by upstream's aliases and by the command's short names:
    ///
    /// | alias | driver |
    /// | --- | --- |
    /// | `zmq_pubsub_driver`, `zmq` | [`NetworkDriver`] |
    /// | `zmq_bind_pubsub_driver` | [`NetworkDriver`]: it has both sides' sockets anyway |
    /// | `zmq_pubsub_multiproc_driver`, `zmq-multiproc` | [`MultiprocDriver`] |
    /// | `redis_db_pubsub_driver`, `redis` | `RedisDriver`, with the feature `redis` |
    #[must_use]
    pub fn new() -> Self {
        let mut drivers = Self { factories: BTreeMap::new() };
        for alias in ["zmq_pubsub_driver", "zmq_bind_pubsub_driver", "zmq"] {
            drivers.register(alias, |context| Ok(Arc::new(NetworkDriver::new(context)?)));
        }
        for alias in ["zmq_pubsub_multiproc_driver", "zmq-multiproc"] {
            drivers.register(alias, |context| Ok(Arc::new(MultiprocDriver::new(context)?)));
        }
        #[cfg(feature = "redis")]
        for alias in ["redis_db_pubsub_driver", "redis"] {
            drivers.register(alias, |context| Ok(Arc::new(super::RedisDriver::new(context)?)));
        }
        drivers
    }

    /// Adds a driver of one's own, or puts it in the place of another.
    pub fn register<F>(&mut self, alias: impl Into<String>, make: F)
    where
        F: Fn(DriverContext) -> Result<Arc<dyn PubSubDriver>, DriverError> + Send + Sync + 'static,
    {
        self.factories.insert(alias.into(), Box::new(make));
    }

    /// Makes the driver with this alias, or with the import path of upstream's class.
    ///
    /// # Errors
    /// [`DriverError::UnknownDriver`], and what the driver's own constructor says.
    pub fn load(
        &self,
        alias: &str,
        context: DriverContext,
    ) -> Result<Arc<dyn PubSubDriver>, DriverError> {
        // upstream takes the import path of a class as well
        let class = alias.rsplit_once('.').map(|(_, class)| class);
        let alias_of_class = match class {
            Some("ZMQPubSub" | "ZMQPubSubConnect" | "ZMQPubSubBind") => "zmq_pubsub_driver",
            Some("ZMQPubSubMultiproc") => "zmq_pubsub_multiproc_driver",
            Some("RedisPubSub") => "redis_db_pubsub_driver",
            _ => alias,
        };
        match self.factories.get(alias).or_else(|| self.factories.get(alias_of_class)) {
            Some(make) => make(context),
            None => Err(DriverError::UnknownDriver {
                alias: alias.to_owned(),
                known: self.factories.keys().cloned().collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

impl Default for Drivers {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.factories.keys()).finish()
    }
}
