//! Sending and receiving in the steady state allocates nothing for a message, on either side.
//!
//! Both sides and their connection tasks run on one thread, whose allocations are counted. What a
//! batch or a wake-up needs would show as a fraction of the messages; that is why the bound is not
//! zero but one for a hundred of them.

use bytes::Bytes;
use dragonwire::{OnFull, PubSocket, PullSocket, PushSocket, SocketOptions, SubSocket};
use tokio::runtime::{Builder, Runtime};

mod deadline;
use deadline::within;

const SIZES: [usize; 7] = [0, 16, 64, 256, 1024, 8192, 65_536];
const TRANSPORTS: [&str; 2] = ["tcp://127.0.0.1:*", "ipc://*"];

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Messages for a size, so that each case moves much the same.
fn count(size: usize) -> u64 {
    (50_000_000 / (size as u64 + 1000)).max(5000)
}

/// Runs `exchange` until buffers are as large and as many as it needs, which is soon.
fn assert_none(what: &str, messages: u64, mut exchange: impl FnMut()) {
    exchange();
    let mut rounds = Vec::new();
    while rounds.len() < 5 {
        let counted = allocation_counter::measure(&mut exchange);
        if counted.count_total <= messages / 100 {
            return;
        }
        rounds.push((counted.count_total, counted.bytes_total));
    }
    panic!("{what}: allocations, and their octets, for {messages} messages: {rounds:?}");
}

#[test]
fn push_and_pull() {
    for transport in TRANSPORTS {
        for size in SIZES {
            for shared in [false, true] {
                let runtime = runtime();
                let (push, mut pull) = runtime.block_on(async {
                    let pull = PullSocket::new();
                    let endpoint = pull.bind(transport).await.unwrap();
                    let push = PushSocket::new();
                    push.connect(endpoint).await.unwrap();
                    (push, pull)
                });
                let payload = Bytes::from(vec![7; size]);
                let count = count(size);
                let what = format!("{size} octets by {transport}, shared: {shared}");
                assert_none(&what, count, || {
                    let send = async {
                        for _ in 0..count {
                            if shared {
                                push.send(payload.clone()).await.unwrap();
                            } else {
                                push.send_frames(&[&payload]).await.unwrap();
                            }
                        }
                    };
                    let receive = async {
                        for _ in 0..count {
                            let message = pull.recv().await.unwrap();
                            assert_eq!(message.size(), size);
                        }
                    };
                    runtime.block_on(within(async { tokio::join!(send, receive) }));
                });
            }
        }
    }
}

#[test]
fn publish_and_subscribe() {
    for transport in TRANSPORTS {
        for size in SIZES {
            let runtime = runtime();
            let (publisher, mut subscribers) = runtime.block_on(async {
                let options = SocketOptions::new().on_full(OnFull::Wait);
                let publisher = PubSocket::with_options(options).unwrap();
                let endpoint = publisher.bind(transport).await.unwrap();
                let mut subscribers = Vec::new();
                for _ in 0..4 {
                    let subscriber = SubSocket::new();
                    subscriber.subscribe("topic").unwrap();
                    subscriber.connect(&endpoint).await.unwrap();
                    subscribers.push(subscriber);
                }
                within(publisher.wait_for_subscribers("topic", 4)).await.unwrap();
                (publisher, subscribers)
            });
            let payload = vec![7; size];
            let count = count(size) / 2;
            assert_none(&format!("{size} octets by {transport}"), 4 * count, || {
                let send = async {
                    for _ in 0..count {
                        let sent = publisher.publish("topic.01", &payload).await.unwrap();
                        assert_eq!(sent.queued, 4);
                    }
                };
                let receive = async |subscriber: &mut SubSocket| {
                    for _ in 0..count {
                        let message = subscriber.recv().await.unwrap();
                        assert_eq!(message.size(), 8 + size);
                    }
                };
                let [a, b, c, d] = &mut subscribers[..] else { unreachable!("there are four") };
                runtime.block_on(within(async {
                    tokio::join!(send, receive(a), receive(b), receive(c), receive(d))
                }));
            });
        }
    }
}
