//! Sockets that close while they have messages to send, and while cables are cut.

use std::time::Duration;

use dragonwire::sim::Rng;
use dragonwire::{Event, Monitor, PubSocket, PullSocket, PushSocket, SubSocket};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use crate::books::{Received, balance, end_to_end, frame, settled};
use crate::patience::{briefly, polled};
use crate::world::{World, host, pick, place, way};

pub(crate) async fn scenario(mut world: World) {
    if world.rng.chance(700) { pushers(world).await } else { publisher(world).await }
}

async fn pushers(mut world: World) {
    let receiver = host(101);
    let hosts: Vec<_> = (1..=world.rng.within(1, 4) as usize).map(host).collect();
    let hwm = pick(&mut world.rng, &[5, 100, 1000]);
    let options = world.options().recv_hwm(hwm);
    let pull = PullSocket::with_options(options.clone().linger(Some(Duration::ZERO))).unwrap();
    pull.bind(place(receiver)).await.unwrap();
    let mut closing = Vec::new();
    for (number, at) in hosts.iter().enumerate() {
        let linger = Duration::from_millis(pick(&mut world.rng, &LINGERS));
        let push = PushSocket::with_options(options.clone().linger(Some(linger))).unwrap();
        push.connect(way(*at, receiver)).await.unwrap();
        closing.push(spawn_local(push_and_close(push, number, linger, world.fork())));
    }
    // it closes as well, with messages that nobody has taken
    let open = Duration::from_millis(world.rng.within(1000, 40_000));
    let receiving = spawn_local(receive(pull, open, world.fork()));
    let cables: Vec<_> = hosts.iter().map(|at| (*at, receiver)).collect();
    let lasting = Duration::from_secs(world.rng.within(5, 15));
    world.storm(&cables, lasting).await;
    let mut sent = Some(0);
    for task in closing {
        let count = task.await.unwrap();
        sent = sent.and_then(|sent| Some(sent + count?));
    }
    let received = receiving.await.unwrap();
    if let Some(sent) = sent {
        end_to_end(&world.network, sent, received, 7);
    }
}

/// Queues messages and closes at some moment; returns how many were sent, if anybody can tell.
async fn push_and_close(
    push: PushSocket,
    number: usize,
    linger: Duration,
    mut rng: Rng,
) -> Option<u64> {
    let count = rng.within(1, 300) as u32;
    let mut accepted = 0;
    for message in 0..count {
        let octets = frame(number, message, rng.within(5, 500) as usize);
        accepted += u64::from(push.try_send(octets.as_slice()).is_ok());
        if rng.chance(50) {
            sleep(Duration::from_millis(rng.below(1000))).await;
        }
    }
    balance("push", &push.stats());
    let before = push.stats().outgoing;
    let mut monitor = push.monitor();
    let start = Instant::now();
    match rng.below(3) {
        0 => {
            let report = push.close().await;
            let after = push.stats().outgoing;
            assert_eq!(report.flushed, after.sent - before.sent);
            assert_eq!(report.flushed + report.discarded, before.queued);
        }
        1 => {
            // what was begun goes on
            let times = rng.within(1, 3);
            polled(times, &mut rng, push.close()).await;
            assert!(push.try_send("late").is_err());
            sleep(Duration::from_millis(rng.below(1000))).await;
            push.close().await;
        }
        _ => {
            drop(push);
            end(&mut monitor).await;
            in_time(start, linger.max(Duration::from_secs(1)));
            return None;
        }
    }
    in_time(start, linger.max(Duration::from_secs(1)));
    let stats = push.stats();
    settled("push", &stats);
    assert_eq!(stats.outgoing.accepted, accepted);
    end(&mut monitor).await;
    Some(stats.outgoing.sent)
}

/// A publisher that closes while its subscribers are slow.
async fn publisher(mut world: World) {
    let at = host(1);
    let hosts: Vec<_> = (101..=100 + world.rng.within(1, 4) as usize).map(host).collect();
    let linger = Duration::from_millis(pick(&mut world.rng, &LINGERS));
    let options = world.options().linger(Some(linger));
    let publisher = PubSocket::with_options(options.clone()).unwrap();
    publisher.bind(place(at)).await.unwrap();
    let mut subscribers = Vec::new();
    for from in &hosts {
        let mut subscriber = SubSocket::with_options(options.clone().recv_hwm(10)).unwrap();
        subscriber.subscribe("").unwrap();
        subscriber.connect(way(*from, at)).await.unwrap();
        let handle = subscriber.handle();
        let mut rng = world.fork();
        let receiving = spawn_local(async move {
            let mut received = Received::default();
            loop {
                match briefly(&mut rng, subscriber.recv()).await {
                    Some(Ok(message)) => received.note(subscriber.last_peer(), &message),
                    Some(Err(_)) => return received.count,
                    None => sleep(Duration::from_millis(rng.below(100))).await,
                }
            }
        });
        subscribers.push((handle, receiving));
    }
    let closing = {
        let (publisher, mut rng) = (publisher.clone(), world.fork());
        spawn_local(async move {
            drop(timeout(Duration::from_secs(3), publisher.wait_for_subscribers("", 1)).await);
            for number in 0..rng.within(1, 500) as u32 {
                let octets = frame(1, number, rng.within(5, 300) as usize);
                publisher.try_send(octets.as_slice()).unwrap();
                if rng.chance(30) {
                    sleep(Duration::from_millis(rng.below(1000))).await;
                }
            }
            let before = publisher.stats().outgoing;
            let start = Instant::now();
            let report = publisher.close().await;
            in_time(start, linger);
            assert_eq!(report.flushed + report.discarded, before.queued);
        })
    };
    let cables: Vec<_> = hosts.iter().map(|to| (at, *to)).collect();
    let lasting = Duration::from_secs(world.rng.within(5, 15));
    world.storm(&cables, lasting).await;
    closing.await.unwrap();
    settled("publisher", &publisher.stats());
    // what it flushed arrives, however long the cables were cut
    sleep(Duration::from_secs(60)).await;
    let mut received = 0;
    for (handle, receiving) in subscribers {
        let start = Instant::now();
        handle.close().await;
        in_time(start, linger);
        let delivered = receiving.await.unwrap();
        let stats = handle.stats();
        settled("subscriber", &stats);
        assert_eq!(stats.incoming.delivered, delivered);
        received += stats.incoming.received;
    }
    end_to_end(&world.network, publisher.stats().outgoing.sent, received, 7);
}

/// Receives for a while, slowly at times, then closes; returns how many messages came.
async fn receive(mut pull: PullSocket, open: Duration, mut rng: Rng) -> u64 {
    let end = Instant::now() + open;
    let mut received = Received::default();
    while Instant::now() < end {
        match briefly(&mut rng, pull.recv()).await {
            Some(message) => received.note(pull.last_peer(), &message.unwrap()),
            None => sleep(Duration::from_millis(rng.below(200))).await,
        }
        balance("pull", &pull.stats());
    }
    let before = pull.stats().incoming;
    let start = Instant::now();
    let report = pull.close().await;
    in_time(start, Duration::ZERO);
    assert!(report.unread >= before.queued, "{report:?}");
    settled("pull", &pull.stats());
    let stats = pull.stats().incoming;
    assert_eq!(stats.delivered, received.count);
    stats.received
}

/// Nothing closes later than that: it sends for as long as it lingers, then waits for the peer.
fn in_time(start: Instant, linger: Duration) {
    let (took, most) = (start.elapsed(), linger + DRAIN);
    assert!(took <= most, "closed after {took:?}, at most {most:?}");
}

async fn end(monitor: &mut Monitor) {
    let closed = async {
        while let Some(event) = monitor.recv().await {
            if event == Event::Closed {
                return;
            }
        }
        panic!("no end was told");
    };
    timeout(Duration::from_secs(60), closed).await.expect("no end was told");
}

/// In milliseconds.
const LINGERS: [u64; 4] = [0, 100, 1000, 5000];

/// What a socket that closes waits for its peers to do so too, with two ticks of the clock.
const DRAIN: Duration = Duration::from_millis(502);
