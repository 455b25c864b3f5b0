//! Publishers and subscribers for tests, and waiting with a deadline.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{
    Action, DriverContext, DriverError, PubSubDriver, Publisher, RedisDriver, Role, Subscriber,
    SubscriberEvent, Sync, SyncCause, Update, Updates,
};
use tokio::task::yield_now;
use tokio::time::timeout;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// The result, or a panic when it takes too long.
#[track_caller]
pub(crate) fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match timeout(DEADLINE, future).await {
            Ok(output) => output,
            Err(_) => panic!("it takes too long ({caller})"),
        }
    }
}

/// For what no event tells.
#[track_caller]
pub(crate) fn until(mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    soon(async move {
        while !holds() {
            yield_now().await;
        }
    })
}

pub(crate) const CODECS: [Codec; 3] = [Codec::Protobuf, Codec::Msgpack, Codec::Json];

/// Options for these servers.
pub(crate) fn options(servers: &[String]) -> DriverOptions {
    let mut options = DriverOptions::for_role(Role::NeutronServer);
    options.remote_db_hosts = servers.to_vec();
    options
}

pub(crate) fn with_codec(servers: &[String], codec: Codec) -> DriverOptions {
    let mut options = options(servers);
    options.codec = Some(codec);
    options
}

pub(crate) fn driver(options: DriverOptions) -> RedisDriver {
    RedisDriver::new(DriverContext::new(options)).unwrap()
}

/// A publisher that is connected.
pub(crate) async fn publisher(options: DriverOptions) -> Arc<dyn Publisher> {
    let publisher = driver(options).get_publisher();
    soon(publisher.initialize()).await.unwrap();
    publisher
}

/// Why a publisher cannot be initialized.
pub(crate) async fn refusal(options: DriverOptions) -> String {
    soon(driver(options).get_publisher().initialize()).await.unwrap_err().to_string()
}

/// A subscriber that follows these topics.
pub(crate) async fn subscriber(
    options: DriverOptions,
    topics: &[&str],
) -> (Arc<dyn Subscriber>, Updates) {
    let subscriber = driver(options).get_subscriber();
    let updates = subscriber.initialize_stream().unwrap();
    for topic in topics {
        assert!(subscriber.register_topic(topic).await.unwrap());
    }
    subscriber.daemonize().await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    (subscriber, updates)
}

pub(crate) fn update(key: impl Display) -> Update {
    Update::new("lport", format!("{key}"), Action::Set)
}

pub(crate) async fn publish(publisher: &Arc<dyn Publisher>, key: impl Display) {
    send(publisher, key).await.unwrap();
}

pub(crate) async fn send(
    publisher: &Arc<dyn Publisher>,
    key: impl Display,
) -> Result<(), DriverError> {
    soon(publisher.send_event(&update(key), None)).await
}

/// The next event.
#[track_caller]
pub(crate) fn next(updates: &mut Updates) -> impl Future<Output = SubscriberEvent> {
    let next = soon(updates.recv());
    async { next.await.expect("the subscriber was closed") }
}

/// The next event's key; panics if it is none of a change.
#[track_caller]
pub(crate) fn next_key(updates: &mut Updates) -> impl Future<Output = String> {
    let next = next(updates);
    async {
        match next.await {
            SubscriberEvent::Update(update) => update.key.unwrap(),
            sync => panic!("{sync:?}"),
        }
    }
}

/// The next event has to be this `sync`, without a range.
#[track_caller]
pub(crate) fn next_sync(updates: &mut Updates, cause: SyncCause) -> impl Future<Output = ()> {
    let next = next(updates);
    async move {
        let sync = Sync { missing: None, cause };
        assert_eq!(next.await, SubscriberEvent::Sync(sync));
    }
}
