//! Ends that are awkward: nobody reads, nobody closes, or too much is under way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dragonwire::driver::codec::{Codec, End, Origin, Position, Positions};
use dragonwire::driver::directory::{Change, Directory, MemoryDirectory, TABLE};
use dragonwire::driver::{
    Action, DriverContext, Drivers, NbApi, NetworkDriver, PubSubDriver, Publisher, SubscriberEvent,
    Update, Updates,
};
use dragonwire::{Message, PubSocket, SocketOptions};
use futures::StreamExt;
use tokio::time::sleep;
use uuid::Uuid;

use crate::side::{network, next, next_key, options, publisher, soon, subscriber};

fn update(key: u64) -> Update {
    Update::new("lport", key.to_string(), Action::Set)
}

async fn publish(publisher: &Arc<dyn Publisher>, count: u64) {
    for key in 0..count {
        soon(publisher.send_event(&update(key), None)).await.unwrap();
    }
}

/// Delivered and missing until that many are accounted for.
async fn account(updates: &mut Updates, due: u64) {
    let mut sum = 0;
    while sum < due {
        sum += match next(updates).await {
            SubscriberEvent::Update(_) => 1,
            SubscriberEvent::Sync(sync) => sync.missing.unwrap().count().unwrap(),
        };
    }
    assert_eq!(sum, due);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_nobody_reads_can_be_closed() {
    let (publisher, uri) = publisher(options()).await;
    let (subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    publish(&publisher, 5000).await;
    soon(async {
        while subscriber.stats().waiting < 1024 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(subscriber.close()).await.unwrap();
    while soon(updates.recv()).await.is_some() {}
}

#[tokio::test]
async fn a_subscriber_that_is_dropped_ends_its_stream() {
    let (_publisher, uri) = publisher(options()).await;
    let (subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    drop(subscriber);
    assert_eq!(soon(updates.recv()).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_dropped_just_before_the_end_is_told() {
    let (publisher, uri) = publisher(options()).await;
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    // nobody reads: the last events are sure to be dropped
    let mut published = 0;
    while publisher.stats().dropped < 100 {
        publish(&publisher, 100).await;
        published += 100;
    }
    let (closed, ()) = tokio::join!(soon(publisher.close()), account(&mut updates, published));
    closed.unwrap();
}

/// What waits while the application takes nothing is no silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_takes_nothing_does_not_take_publishers_for_dead() {
    let socket_options = SocketOptions::new().metadata("X-Dragonwire-Numbered", "1").send_hwm(0);
    let service = PubSocket::with_options(socket_options).unwrap();
    let uri = service.bind("tcp://127.0.0.1:*").await.unwrap().to_string();
    let subscriber = network(options()).get_subscriber();
    let mut updates = subscriber.initialize_stream().unwrap();
    subscriber.register_topic("D").await.unwrap();
    subscriber.register_listen_address(&uri).await.unwrap();
    subscriber.daemonize().await.unwrap();
    soon(service.wait_for_subscribers("D", 1)).await.unwrap();

    let [waiting, flooding] = [1, 2].map(Uuid::from_u128);
    let send = |body: Vec<u8>| {
        assert_eq!(service.try_send(Message::pair("D", body)).unwrap().queued, 1);
    };
    let event = |publisher, sequence| {
        let mut body = Vec::new();
        let origin = Origin { publisher, epoch: 1, sequence };
        Codec::Protobuf.encode(&update(sequence), "D", &origin, &mut body);
        send(body);
    };
    let says = |announcer_epoch, complete_for, positions| {
        let announcer = Uuid::from_u128(3);
        send(Positions { announcer, announcer_epoch, complete_for, positions }.encode());
    };
    says(1, Some(Bytes::new()), Vec::new());
    event(waiting, 1);
    // another service, to which one comes late
    says(2, Some(Bytes::new()), Vec::new());
    for sequence in 1..=4000 {
        event(flooding, sequence);
    }
    let (publisher, topic) = (waiting, Bytes::from("D"));
    let position = Position { publisher, epoch: 1, topic, first: 2, last: 1, end: End::Open };
    says(2, None, vec![position]);
    event(waiting, 2);

    // longer than those have who come to another service
    sleep(Duration::from_secs(5)).await;
    for _ in 0..4002 {
        next_key(&mut updates).await;
    }
    assert_eq!(subscriber.stats().syncs, 0);
}

#[tokio::test]
async fn a_publisher_whose_port_was_busy_can_try_again() {
    let folder = tempfile::tempdir().unwrap();
    let (first, uri) = publisher(options()).await;
    let mut same = options();
    same.publisher_port = uri.rsplit(':').next().unwrap().parse().unwrap();
    same.state_path = Some(folder.path().to_owned());
    let context = DriverContext::new(same).with_process_name("second");
    let second = NetworkDriver::new(context).unwrap().get_publisher();
    second.initialize().await.unwrap_err();
    soon(first.close()).await.unwrap();
    second.initialize().await.unwrap();
}

#[tokio::test]
async fn with_exact_topics_nothing_is_missing_on_longer_ones() {
    let (publisher, uri) = publisher(options()).await;
    let longer = update(0).with_topic("tenant-10");
    publisher.send_event(&longer, None).await.unwrap();
    let mut exact = options();
    exact.exact_topics = true;
    let (subscriber, mut updates) = subscriber(exact, &["tenant-1"], &[&uri]).await;
    for _ in 0..8 {
        publisher.send_event(&longer, None).await.unwrap();
    }
    // it is greeted anew, and told of the longer topic too
    subscriber.register_topic("tenant").await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    publisher.send_event(&update(1).with_topic("tenant-1"), None).await.unwrap();
    assert_eq!(next_key(&mut updates).await, "1");
    assert_eq!(subscriber.stats().syncs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_both_ends_hands_over_what_was_received() {
    let (publisher, uri) = publisher(options()).await;
    let mut followed = options();
    followed.publishers_ips = vec!["127.0.0.1".to_owned()];
    followed.publishers_port = uri.rsplit(':').next().unwrap().parse().unwrap();
    let api = NbApi::new(&Drivers::new(), DriverContext::new(followed)).unwrap();
    let mut updates = api.subscribe().await.unwrap();
    soon(api.subscriber().ready()).await.unwrap();
    publish(&publisher, 1500).await;
    soon(async {
        while api.subscriber().stats().delivered < 1500 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(api.close()).await.unwrap();
    let mut taken = 0;
    while soon(updates.recv()).await.is_some() {
        taken += 1;
    }
    assert_eq!(taken, 1500);
}

/// Events that the rate limit does not let through do not put off the refresh that is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_busy_publishers_row_stays_fresh() {
    let directory: Arc<dyn Directory> = Arc::new(MemoryDirectory::new());
    let mut options = options();
    options.publisher_timeout = Duration::from_millis(600);
    let context = DriverContext::new(options).with_directory(directory.clone());
    let publisher = NetworkDriver::new(context).unwrap().get_publisher();
    publisher.initialize().await.unwrap();
    let mut watch = directory.watch(TABLE);
    let busy = tokio::spawn({
        let publisher = publisher.clone();
        async move {
            loop {
                publisher.send_event(&update(1), None).await.unwrap();
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let mut refreshed = 0;
    while refreshed < 3 {
        if let Change::Set { .. } = soon(watch.next()).await.unwrap() {
            refreshed += 1;
        }
    }
    busy.abort();
}
