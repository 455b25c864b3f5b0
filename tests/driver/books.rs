//! What is published is delivered or told to be missing, to the unit.

use std::collections::BTreeMap;
use std::sync::Arc;

use dragonwire::driver::{Action, Publisher, SubscriberEvent, SyncCause, Update, Updates};

use crate::side::{next, options, publisher, soon, subscriber};

fn update(key: u64, topic: &str) -> Update {
    Update::new("lport", key.to_string(), Action::Set).with_topic(topic)
}

async fn publish(publisher: &Arc<dyn Publisher>, topic: &str, count: u64) {
    for key in 0..count {
        soon(publisher.send_event(&update(key, topic), None)).await.unwrap();
    }
}

/// Reads until as many events as were published on each topic are delivered or missing.
async fn balance(updates: &mut Updates, published: &[(&str, u64)]) -> BTreeMap<String, (u64, u64)> {
    let mut books: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let settled = |books: &BTreeMap<String, (u64, u64)>| {
        published.iter().all(|(topic, count)| {
            let (delivered, missing) = books.get(*topic).copied().unwrap_or_default();
            assert!(delivered + missing <= *count, "{books:?}");
            delivered + missing == *count
        })
    };
    while !settled(&books) {
        match next(updates).await {
            SubscriberEvent::Update(update) => {
                books.entry(update.topic.unwrap()).or_default().0 += 1
            }
            SubscriberEvent::Sync(sync) => {
                let missing = sync.missing.clone().unwrap_or_else(|| panic!("{sync:?}"));
                let count = missing.count().unwrap_or_else(|| panic!("{sync:?}"));
                books.entry(missing.topic).or_default().1 += count;
            }
        }
    }
    books
}

/// The subscriber does not read for a while; the publisher drops, the last events too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_slow_subscriber_had_no_room_for_is_missing() {
    let (publisher, uri) = publisher(options()).await;
    let (subscriber, mut updates) = subscriber(options(), &["D", "tenant"], &[&uri]).await;
    let count = 60_000;
    for _ in 0..4 {
        publish(&publisher, "D", count / 4).await;
        publish(&publisher, "tenant", count / 4).await;
    }
    assert!(publisher.stats().dropped > 0, "{:?}", publisher.stats());
    let books = balance(&mut updates, &[("D", count), ("tenant", count)]).await;
    let stats = subscriber.stats();
    assert_eq!(stats.missing, books.values().map(|(_, missing)| missing).sum::<u64>());
    assert_eq!(stats.missing, publisher.stats().dropped);
}

#[tokio::test]
async fn a_publisher_that_closed_and_opened_again_has_told_where_it_ended() {
    let mut fixed = options();
    let (publisher_, uri) = publisher(fixed.clone()).await;
    fixed.publisher_port = uri.rsplit(':').next().unwrap().parse().unwrap();
    publisher_.close().await.unwrap();
    let (publisher, uri) = publisher(fixed).await;
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    publish(&publisher, "D", 10).await;
    balance(&mut updates, &[("D", 10)]).await;
    publisher.close().await.unwrap();
    // what is published before the subscriber is back is lost to it
    publish(&publisher, "D", 10).await;
    balance(&mut updates, &[("D", 10)]).await;
}

#[tokio::test]
async fn an_announced_sync_is_a_sync() {
    let (publisher, uri) = publisher(options()).await;
    let (_subscriber, mut updates) = subscriber(options(), &["D"], &[&uri]).await;
    publisher.send_event(&Update::sync("D"), None).await.unwrap();
    let SubscriberEvent::Sync(sync) = next(&mut updates).await else { panic!() };
    assert_eq!((sync.missing, sync.cause), (None, SyncCause::Announced));
}
