//! PUB and SUB through the public API.

use std::time::Duration;

use dragonwire::{PubSocket, SubSocket};
use futures::FutureExt;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn only_what_matches_arrives() {
    let publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscriber = SubSocket::new();
    subscriber.subscribe("a").unwrap();
    subscriber.connect(&endpoint).await.unwrap();
    timeout(DEADLINE, subscriber.ready()).await.unwrap().unwrap();
    let missed = publisher.publish("b", "1").await.unwrap();
    assert_eq!(missed.matched, 0);
    publisher.publish("ab", "2").await.unwrap();
    let message = timeout(DEADLINE, subscriber.recv()).await.unwrap().unwrap();
    assert_eq!(message, ["ab", "2"].into());
    let stats = publisher.stats();
    assert_eq!(stats.outgoing.accepted, 2);
}

#[tokio::test]
async fn a_publisher_hears_what_is_subscribed_to() {
    let publisher = PubSocket::new();
    let asking = publisher.new_subscriptions();
    tokio::pin!(asking);
    // nobody is there; from now on it is noted
    assert!(asking.as_mut().now_or_never().is_none());
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let mut subscribers = Vec::new();
    for topic in ["b", "a", "a"] {
        let subscriber = SubSocket::new();
        subscriber.subscribe(topic).unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        timeout(DEADLINE, subscriber.ready()).await.unwrap().unwrap();
        subscribers.push(subscriber);
    }
    assert_eq!(timeout(DEADLINE, asking).await.unwrap().unwrap(), ["a", "b"]);
    // once more is news as well
    subscribers[0].subscribe("a").unwrap();
    let news = timeout(DEADLINE, publisher.new_subscriptions()).await.unwrap();
    assert_eq!(news.unwrap(), ["a"]);
    publisher.close().await;
    assert!(publisher.new_subscriptions().await.is_err());
}
