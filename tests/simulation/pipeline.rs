//! Pushers and pullers, each on a host of its own; either side may be the one that connects.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dragonwire::sim::Rng;
use dragonwire::{DropReason, Message, PullSocket, PushSocket, RecvError};
use futures::{SinkExt, StreamExt};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::books::{Received, end_to_end, frame, settled};
use crate::patience::{insist, pause, polled};
use crate::world::{Faults, World, host, pick, place, way};

pub(crate) async fn scenario(mut world: World) {
    let pushers = world.rng.within(1, 3) as usize;
    let pullers = world.rng.within(1, 3) as usize;
    let pushers_connect = world.rng.chance(600);
    let count = world.rng.within(10, 120) as u32;
    let hwm = pick(&mut world.rng, &[2, 10, 1000]);
    let options = world.options().send_hwm(hwm).recv_hwm(hwm).linger(None);
    let push_hosts: Vec<_> = (1..=pushers).map(host).collect();
    let pull_hosts: Vec<_> = (101..=100 + pullers).map(host).collect();
    let over = Arc::new(AtomicBool::new(false));
    let arrived = Arc::<AtomicU64>::default();
    let mut receivers = Vec::new();
    let mut pulls = Vec::new();
    for at in &pull_hosts {
        let pull = PullSocket::with_options(options.clone()).unwrap();
        if pushers_connect {
            insist(&mut world.rng, async || pull.bind(place(*at)).await).await.unwrap();
        }
        pulls.push(pull);
    }
    let mut senders = Vec::new();
    for (sender, at) in push_hosts.iter().enumerate() {
        let push = PushSocket::with_options(options.clone()).unwrap();
        if pushers_connect {
            for to in &pull_hosts {
                push.connect(way(*at, *to)).await.unwrap();
            }
        } else {
            insist(&mut world.rng, async || push.bind(place(*at)).await).await.unwrap();
        }
        senders.push(spawn_local(send(push, sender, count, world.fork())));
    }
    for (pull, at) in pulls.into_iter().zip(&pull_hosts) {
        if !pushers_connect {
            for to in &push_hosts {
                pull.connect(way(*at, *to)).await.unwrap();
            }
        }
        receivers.push(spawn_local(receive(pull, over.clone(), arrived.clone(), world.fork())));
    }
    let cables: Vec<_> =
        push_hosts.iter().flat_map(|a| pull_hosts.iter().map(|b| (*a, *b))).collect();
    let lasting = Duration::from_secs(world.rng.within(5, 40));
    world.storm(&cables, lasting).await;

    let mut pushes = Vec::new();
    for sender in senders {
        pushes.push(sender.await.unwrap());
    }
    // where no cable is cut nothing is lost, at times by sockets that close before all has arrived
    let complete = world.faults == Faults::Delays;
    let waits = world.rng.chance(500);
    while complete && waits && arrived.load(Ordering::Relaxed) < pushers as u64 * u64::from(count) {
        sleep(Duration::from_millis(50)).await;
    }
    // a socket that connects flushes its queue; one that is bound, what its peers of now are to get
    let mut sent = 0;
    let mut dropped = 0;
    for push in pushes {
        let report = push.close().await;
        let stats = push.stats();
        settled("push", &stats);
        assert_eq!(stats.outgoing.accepted, u64::from(count));
        if pushers_connect {
            assert_eq!((stats.outgoing.sent, report.discarded), (u64::from(count), 0));
        }
        sent += stats.outgoing.sent;
        dropped += stats.outgoing.dropped.total();
    }
    over.store(true, Ordering::Relaxed);
    let mut received = 0;
    let mut all: Vec<Received> = Vec::new();
    for receiver in receivers {
        let (pull, got) = receiver.await.unwrap();
        pull.close().await;
        let stats = pull.stats();
        settled("pull", &stats);
        assert_eq!(stats.incoming.dropped.get(DropReason::Closed), 0);
        assert_eq!(stats.incoming.delivered, got.count);
        received += stats.incoming.received;
        assert!(all.iter().all(|other| !got.overlaps(other)), "pullers share a message");
        all.push(got);
    }
    end_to_end(&world.network, sent, received, 7);
    if complete {
        assert_eq!((received, dropped), (pushers as u64 * u64::from(count), 0));
    }
}

fn size(rng: &mut Rng) -> usize {
    let most = pick(rng, &[5, 5, 60, 300, 300, 3000, 20_000]);
    rng.within(5, most) as usize
}

/// Sends so many messages, in every way there is.
async fn send(mut push: PushSocket, sender: usize, count: u32, mut rng: Rng) -> PushSocket {
    let mut number = 0;
    while number < count {
        let octets = frame(sender, number, size(&mut rng));
        match rng.below(6) {
            0 => {
                let rng = &mut rng;
                insist(rng, async || push.send(octets.as_slice()).await).await.unwrap();
            }
            1 => insist(&mut rng, async || push.send_frames(&[b"more", &octets]).await)
                .await
                .unwrap(),
            2 => {
                let end = count.min(number + 1 + rng.below(10) as u32);
                let mut batch: VecDeque<Message> = VecDeque::new();
                for number in number..end {
                    batch.push_back(frame(sender, number, size(&mut rng)).as_slice().into());
                }
                insist(&mut rng, async || push.send_many(&mut batch).await).await.unwrap();
                number = end;
                continue;
            }
            3 => {
                // what was fed is in the sink, however often its flush is cancelled
                push.feed(octets.as_slice().into()).await.unwrap();
                insist(&mut rng, async || push.flush().await).await.unwrap();
            }
            _ => {
                if push.try_send(octets.as_slice()).is_err() {
                    sleep(Duration::from_millis(rng.below(100))).await;
                    continue;
                }
            }
        }
        number += 1;
        if rng.chance(300) {
            pause(&mut rng, 300).await;
        }
    }
    push
}

/// Receives, in every way there is, until all pushers are closed and nothing more is on its way.
async fn receive(
    mut pull: PullSocket,
    over: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    mut rng: Rng,
) -> (PullSocket, Received) {
    let mut got = Received::default();
    let mut last = Instant::now();
    loop {
        let mut messages = Vec::new();
        let times = rng.below(4);
        match rng.below(4) {
            0 => {
                let future = pull.recv();
                messages.extend(polled(times, &mut rng, future).await.map(Result::unwrap));
            }
            1 => {
                let future = pull.next();
                messages.extend(polled(times, &mut rng, future).await.map(Option::unwrap));
            }
            2 => {
                let future = pull.recv_many(&mut messages, 3);
                polled(times, &mut rng, future).await;
            }
            _ => match pull.try_recv() {
                Ok(message) => messages.push(message),
                Err(error) => assert_eq!(error, RecvError::Empty),
            },
        }
        let connection = pull.last_peer().filter(|_| messages.len() < 2);
        for message in &messages {
            got.note(connection, message);
            arrived.fetch_add(1, Ordering::Relaxed);
            last = Instant::now();
        }
        if messages.is_empty() {
            if !over.load(Ordering::Relaxed) {
                last = Instant::now();
            } else if last.elapsed() > QUIET {
                return (pull, got);
            }
            sleep(Duration::from_millis(rng.within(1, 200))).await;
        } else if rng.chance(100) {
            // busy for a moment, or for longer than any heartbeat
            let most = if rng.chance(50) { 15_000 } else { 500 };
            sleep(Duration::from_millis(rng.below(most))).await;
        }
    }
}

/// Longer than a storm: so long a kernel may take to send again.
const QUIET: Duration = Duration::from_secs(60);
