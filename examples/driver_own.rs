//! A driver of one's own, chosen by its alias like the others: it writes down each event before the
//! network driver publishes it.
//!
//! `cargo run --example driver_own`

use std::sync::Arc;

use dragonwire::Endpoint;
use dragonwire::driver::config::Config;
use dragonwire::driver::{
    DriverContext, DriverError, Drivers, NbApi, NetworkDriver, PubSubDriver, Publisher,
    PublisherStats, ROLE_NEUTRON_SERVER, Subscriber, Update,
};
use futures::future::BoxFuture;
use uuid::Uuid;

/// The network driver with a publisher that keeps a record.
#[derive(Debug)]
struct AuditedDriver {
    publisher: Arc<Audited>,
    network: NetworkDriver,
}

impl AuditedDriver {
    fn new(context: DriverContext) -> Result<Self, DriverError> {
        let network = NetworkDriver::new(context)?;
        let publisher = Arc::new(Audited { publisher: network.get_publisher() });
        Ok(Self { publisher, network })
    }
}

impl PubSubDriver for AuditedDriver {
    fn get_publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    fn get_subscriber(&self) -> Arc<dyn Subscriber> {
        self.network.get_subscriber()
    }
}

#[derive(Debug)]
struct Audited {
    publisher: Arc<dyn Publisher>,
}

impl Publisher for Audited {
    fn send_event<'a>(
        &'a self,
        update: &'a Update,
        topic: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            let on = update.topic_to_send_on(topic);
            println!("{:?} of {:?} {:?} on {on}", update.action, update.table, update.key);
            self.publisher.send_event(update, topic).await
        })
    }

    fn initialize(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        self.publisher.initialize()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), DriverError>> {
        self.publisher.close()
    }

    fn id(&self) -> Uuid {
        self.publisher.id()
    }

    fn endpoint(&self) -> Option<Endpoint> {
        self.publisher.endpoint()
    }

    fn stats(&self) -> PublisherStats {
        self.publisher.stats()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut drivers = Drivers::new();
    drivers.register("audited_pubsub_driver", |context| Ok(Arc::new(AuditedDriver::new(context)?)));

    // the operator chooses it by the name in the option file
    let mut config = Config::new();
    config.add_ini(
        "dragonflow.ini",
        "[df]\npub_sub_driver = audited_pubsub_driver\npub_sub_use_multiproc = false\n\
         publisher_bind_address = 127.0.0.1\npublisher_port = 0\n",
    )?;
    let context = DriverContext::new(config.options(ROLE_NEUTRON_SERVER)?);
    let api = NbApi::new(&drivers, context)?;
    let update = Update::new("lport", "7e4a", "create".into());
    api.publisher().send_event(&update, None).await?;
    api.close().await?;
    Ok(())
}
