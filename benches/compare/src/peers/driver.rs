//! The pipelines through the driver layer: a multi-process publisher, the publisher service, and a
//! network subscriber; and the same API over Redis.

use std::sync::Arc;
use std::time::Duration;

use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{
    DriverContext, Missing, MultiprocDriver, NetworkDriver, PubSubDriver, PublisherService,
    RedisDriver, SubscriberEvent,
};

use super::pipeline::{Answers, Done, Gate, TOPIC, update};
use super::{block_on, redis};
use crate::receipt::Receipt;
use crate::role::{Role, Verb};
use crate::signals;
use crate::tally::Tally;

pub const SETTINGS: &str = "MultiprocDriver's publisher, which gets send_event in a loop; \
     PublisherService; NetworkDriver's subscriber as a stream; numbered events in Protocol Buffers, \
     encoded and decoded each time; default options, no directory";

pub const SETTINGS_MSGPACK: &str = "the same in Dragonflow's MessagePack, which has no numbers";

pub const SETTINGS_REDIS: &str = "RedisDriver's publisher, which gets send_event in a loop and waits \
     for the server's answer each time; redis-server without persistence; RedisDriver's subscriber \
     as a stream; MessagePack, encoded and decoded each time";

pub fn version() -> String {
    super::locked_version("dragonwire")
}

pub fn declines(role: &Role) -> bool {
    !role.is_of_pipeline()
}

pub fn run(role: &Role) -> Tally {
    run_with(role, Over::Sockets(Codec::Protobuf))
}

pub fn run_msgpack(role: &Role) -> Tally {
    run_with(role, Over::Sockets(Codec::Msgpack))
}

pub fn run_redis(role: &Role) -> Tally {
    match role.verb {
        Verb::Relay => redis::serve(role),
        _ => run_with(role, Over::Redis),
    }
}

#[derive(Debug, Clone, Copy)]
enum Over {
    Sockets(Codec),
    Redis,
}

fn run_with(role: &Role, over: Over) -> Tally {
    let role = role.clone();
    block_on(role.runtime, async move {
        let done = match (role.verb, over) {
            (Verb::Produce, _) => produce(&role, over).await,
            (Verb::Relay, Over::Sockets(codec)) => serve(&role, Some(codec)).await,
            _ => consume(&role, over).await,
        };
        done.unwrap_or_else(|error| panic!("{:?}: {error}", role.verb))
    })
}

fn driver(role: &Role, over: Over) -> Done<Arc<dyn PubSubDriver>> {
    Ok(match (over, role.verb) {
        (Over::Sockets(codec), Verb::Produce) => {
            Arc::new(MultiprocDriver::new(context(role, Some(codec)))?)
        }
        (Over::Sockets(codec), _) => Arc::new(NetworkDriver::new(context(role, Some(codec)))?),
        (Over::Redis, _) => Arc::new(RedisDriver::new(context(role, Some(Codec::Msgpack)))?),
    })
}

fn context(role: &Role, codec: Option<Codec>) -> DriverContext {
    let mut options = DriverOptions::default();
    options.publisher_multiproc_socket = role.local.trim_start_matches("ipc://").into();
    options.publisher_bind_address = "127.0.0.1".to_owned();
    options.publisher_port = 0;
    options.remote_db_hosts = vec![role.endpoint.clone()];
    options.codec = codec;
    DriverContext::new(options)
}

async fn produce(role: &Role, over: Over) -> Done<Tally> {
    let publisher = driver(role, over)?.get_publisher();
    publisher.initialize().await?;
    let update = update(role);
    let mut gate = Gate::of(role).await?;
    let events = role.round_trips();
    for sent in 0..events {
        gate.pass(sent).await?;
        publisher.send_event(&update, None).await?;
    }
    let tally = gate.tally(events).await?;
    publisher.close().await?;
    Ok(tally)
}

/// The publisher service.
pub async fn serve(role: &Role, codec: Option<Codec>) -> Done<Tally> {
    let service = PublisherService::start(context(role, codec)).await?;
    tokio::time::sleep(HOLDS_BACK).await;
    signals::listening(service.stats().network.ok_or("a service that has started listens")?);
    signals::go().await;
    Ok(Tally::of(service.stats().forwarded, 0.0))
}

async fn consume(role: &Role, over: Over) -> Done<Tally> {
    let subscriber = driver(role, over)?.get_subscriber();
    let mut updates = subscriber.initialize_stream()?;
    subscriber.register_topic(TOPIC).await?;
    if let Over::Sockets(_) = over {
        subscriber.register_listen_address(&role.endpoint).await?;
    }
    subscriber.daemonize().await?;
    let mut answers = Answers::of(role).await?;
    subscriber.ready().await?;
    signals::subscribed();
    let receipt = match over {
        Over::Sockets(Codec::Protobuf) => Receipt::watch_telling(),
        _ => Receipt::watch(),
    };
    let mut counter = receipt.counter(role.round_trips());
    loop {
        let event = match updates.try_recv() {
            Some(event) => event,
            None => {
                counter.pause();
                updates.recv().await.ok_or("the subscriber is closed")?
            }
        };
        let (events, more) = match event {
            SubscriberEvent::Update(_) => (1, counter.one()),
            SubscriberEvent::Sync(sync) => {
                let missing = sync.missing.as_ref().and_then(Missing::count).unwrap_or(0);
                (missing, counter.missing(missing))
            }
        };
        if answers.are_due(events) {
            answers.say().await?;
        }
        if !more {
            answers.close().await;
            return Ok(receipt.tally());
        }
    }
}

/// A service that has just started does not send on at once; a little more than that.
const HOLDS_BACK: Duration = Duration::from_millis(250);
