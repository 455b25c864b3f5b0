//! Publishers and subscribers for tests, and waiting with a deadline.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{
    DriverContext, MultiprocDriver, NetworkDriver, PubSubDriver, Publisher, Role, Subscriber,
    SubscriberEvent, Updates,
};
use tokio::time::timeout;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The result, or a panic when it takes too long.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("it takes too long")
}

/// Options for any free port of this host.
pub(crate) fn options() -> DriverOptions {
    let mut options = DriverOptions::for_role(Role::NeutronServer);
    options.publisher_bind_address = "127.0.0.1".to_owned();
    options.publisher_port = 0;
    options
}

pub(crate) fn network(options: DriverOptions) -> NetworkDriver {
    NetworkDriver::new(DriverContext::new(options)).unwrap()
}

pub(crate) fn multiproc(options: DriverOptions) -> MultiprocDriver {
    MultiprocDriver::new(DriverContext::new(options)).unwrap()
}

/// A publisher that listens, and its address.
pub(crate) async fn publisher(options: DriverOptions) -> (Arc<dyn Publisher>, String) {
    let publisher = network(options).get_publisher();
    publisher.initialize().await.unwrap();
    let uri = publisher.endpoint().unwrap().to_string();
    (publisher, uri)
}

/// A subscriber that follows these topics of these publishers and is ready.
pub(crate) async fn subscriber(
    options: DriverOptions,
    topics: &[&str],
    uris: &[&str],
) -> (Arc<dyn Subscriber>, Updates) {
    let subscriber = network(options).get_subscriber();
    let updates = subscriber.initialize_stream().unwrap();
    for topic in topics {
        assert!(subscriber.register_topic(topic).await.unwrap());
    }
    for uri in uris {
        assert!(subscriber.register_listen_address(uri).await.unwrap());
    }
    subscriber.daemonize().await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    (subscriber, updates)
}

/// The next event.
pub(crate) async fn next(updates: &mut Updates) -> SubscriberEvent {
    soon(updates.recv()).await.expect("the subscriber was closed")
}

/// The next event's key; panics if it is none of a change.
pub(crate) async fn next_key(updates: &mut Updates) -> String {
    match next(updates).await {
        SubscriberEvent::Update(update) => update.key.unwrap(),
        sync => panic!("{sync:?}"),
    }
}
