//! PUSH and PULL through the public API.

use std::time::Duration;

use dragonwire::{PullSocket, PushSocket};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn messages_come_in_order_over_tcp_and_ipc() {
    for wildcard in ["tcp://127.0.0.1:*", "ipc://*"] {
        let mut pull = PullSocket::new();
        let endpoint = pull.bind(wildcard).await.unwrap();
        let push = PushSocket::new();
        push.connect(&endpoint).await.unwrap();
        let sender = tokio::spawn(async move {
            for i in 0..100_000u32 {
                push.send(&i.to_be_bytes()).await.unwrap();
            }
            push.close().await
        });
        for i in 0..100_000u32 {
            let message = timeout(DEADLINE, pull.recv()).await.unwrap().unwrap();
            assert_eq!(message.topic(), i.to_be_bytes());
        }
        let report = timeout(DEADLINE, sender).await.unwrap().unwrap();
        assert_eq!(report.discarded, 0);
    }
}
