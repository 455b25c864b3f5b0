//! PUB and SUB through the public API.

use std::time::Duration;

use dragonwire::{PubSocket, SocketOptions, SubSocket};
use futures::FutureExt;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

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

#[tokio::test]
async fn nobody_pays_for_news_that_is_not_asked_for() {
    let options = SocketOptions::new().max_subscription_bytes(4096);
    let publisher = PubSocket::with_options(options).unwrap();
    assert!(publisher.new_subscriptions().now_or_never().is_none());
    let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
    let subscriber = async |topic: &str| {
        let subscriber = SubSocket::new();
        subscriber.subscribe(topic).unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        timeout(DEADLINE, subscriber.ready()).await.unwrap().unwrap();
        subscriber
    };
    // far more topics than the limit is for, but one at a time
    let restless = subscriber("restless").await;
    for i in 0..1000 {
        restless.subscribe(format!("topic {i}")).unwrap();
        restless.unsubscribe(format!("topic {i}")).unwrap();
    }
    timeout(DEADLINE, restless.ready()).await.unwrap().unwrap();
    let mut modest = subscriber("modest").await;
    assert_eq!(publisher.publish("modest", "1").await.unwrap().queued, 1);
    let message = timeout(DEADLINE, modest.recv()).await.unwrap().unwrap();
    assert_eq!(message, ["modest", "1"].into());
    assert_eq!(publisher.stats().connections, 2, "none was lost");
    let news = timeout(DEADLINE, publisher.new_subscriptions()).await.unwrap().unwrap();
    assert_eq!(news, ["modest", "restless"]);
}
