//! PUB and SUB through the public API.

use std::time::Duration;

use dragonwire::{PubSocket, SubSocket};
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
