//! A SUB socket over many publishers that are added and removed while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragonwire::sim::Rng;
use dragonwire::{Endpoint, PubSocket, SubHandle, SubSocket};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use crate::books::{Received, balance, end_to_end, frame, settled};
use crate::patience::{briefly, insist, polled};
use crate::world::{Faults, World, host, place, way};

pub(crate) async fn scenario(mut world: World) {
    let here = host(101);
    let hosts: Vec<_> = (1..=world.rng.within(4, 10) as usize).map(host).collect();
    let options = world.options().linger(Some(Duration::from_secs(5)));
    let over = Arc::new(AtomicBool::new(false));
    let mut publishers = Vec::new();
    let mut babbling = Vec::new();
    for (number, at) in hosts.iter().enumerate() {
        let publisher = PubSocket::with_options(options.clone()).unwrap();
        insist(&mut world.rng, async || publisher.bind(place(*at)).await).await.unwrap();
        let next = Arc::<AtomicU32>::default();
        let task = babble(publisher.clone(), number, next.clone(), over.clone(), world.fork());
        babbling.push(spawn_local(task));
        publishers.push((publisher, next));
    }
    let mut subscriber = SubSocket::with_options(options).unwrap();
    subscriber.subscribe("").unwrap();
    let handle = subscriber.handle();
    let ways: Vec<Endpoint> = hosts.iter().map(|to| way(here, *to).parse().unwrap()).collect();
    // these are never removed
    let (steady, others) = ways.split_at(2);
    for endpoint in steady {
        handle.add(endpoint).await.unwrap();
    }
    let received = Arc::<Mutex<Received>>::default();
    let receiving = {
        let (received, mut rng, network) = (received.clone(), world.fork(), world.network.clone());
        spawn_local(async move {
            let mut last = BTreeMap::new();
            loop {
                let Some(message) = briefly(&mut rng, subscriber.recv()).await else { continue };
                let Ok(message) = message else { return subscriber };
                network.note(message.topic());
                received.lock().unwrap().note(subscriber.last_peer(), &message);
                let (sender, number) = crate::books::read_frame(message.topic());
                if let Some(last) = last.insert(sender, number) {
                    assert!(last < number, "{number} of {sender} came after {last}");
                }
                balance("subscriber", &subscriber.stats());
            }
        })
    };
    timeout(world.in_force_within() * 10, handle.ready()).await.unwrap().unwrap();
    // from these numbers on nothing of the steady ones may be missing
    let since = [0, 1].map(|steady: usize| publishers[steady].1.load(Ordering::Relaxed));

    let wanted = Arc::new(Mutex::new(BTreeSet::from([0, 1])));
    let changing = spawn_local(change(
        handle.clone(),
        ways.clone(),
        others.len(),
        wanted.clone(),
        over.clone(),
        world.fork(),
    ));
    let cables: Vec<_> = hosts.iter().map(|at| (*at, here)).collect();
    let lasting = Duration::from_secs(world.rng.within(5, 25));
    world.storm(&cables, lasting).await;
    let healed = Instant::now();
    over.store(true, Ordering::Relaxed);
    changing.await.unwrap();
    for task in babbling {
        task.await.unwrap();
    }
    // an endpoint that was removed and added again waits for its predecessor's end
    let bound = world.in_force_within() + LINGER;
    let ready = tokio::time::timeout_at(healed + bound, handle.ready()).await;
    ready
        .unwrap_or_else(|_| panic!("not ready after {bound:?}: {:?}", handle.endpoints()))
        .unwrap();
    let wanted = wanted.lock().unwrap().clone();
    assert_eq!(handle.endpoints().len(), wanted.len());
    // those that were removed have ended
    sleep(LINGER).await;
    for (number, (publisher, next)) in publishers.iter().enumerate() {
        let last = next.fetch_add(1, Ordering::Relaxed);
        publisher.send(frame(number, last, 30).as_slice()).await.unwrap();
    }
    // it comes, or would have
    sleep(Duration::from_secs(6)).await;
    for (number, (_, next)) in publishers.iter().enumerate() {
        let last = next.load(Ordering::Relaxed) - 1;
        let came = received.lock().unwrap().of(number).contains(&last);
        assert_eq!(came, wanted.contains(&number), "{number}, wanted: {wanted:?}");
    }
    if world.faults == Faults::Delays {
        for (number, since) in since.into_iter().enumerate() {
            let end = publishers[number].1.load(Ordering::Relaxed);
            let got = received.lock().unwrap().of(number);
            let got: Vec<_> = got.into_iter().filter(|number| *number >= since).collect();
            assert_eq!(got, (since..end).collect::<Vec<_>>(), "of publisher {number}");
        }
    }

    let mut sent = 0;
    for (publisher, _) in publishers {
        publisher.close().await;
        settled("publisher", &publisher.stats());
        sent += publisher.stats().outgoing.sent;
    }
    // what they flushed arrives
    sleep(Duration::from_secs(30)).await;
    handle.close().await;
    receiving.await.unwrap();
    let stats = handle.stats();
    settled("subscriber", &stats);
    assert_eq!(stats.incoming.delivered, received.lock().unwrap().count);
    end_to_end(&world.network, sent, stats.incoming.received, 9);
}

/// Publishes numbered messages all the time.
async fn babble(
    publisher: PubSocket,
    sender: usize,
    next: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    mut rng: Rng,
) {
    while !over.load(Ordering::Relaxed) {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let octets = frame(sender, number, rng.within(5, 60) as usize);
        insist(&mut rng, async || publisher.send_frames(&[&octets]).await).await.unwrap();
        sleep(Duration::from_millis(rng.below(200))).await;
    }
}

/// Adds and removes endpoints all the time, all but the first two.
async fn change(
    handle: SubHandle,
    ways: Vec<Endpoint>,
    others: usize,
    wanted: Arc<Mutex<BTreeSet<usize>>>,
    over: Arc<AtomicBool>,
    mut rng: Rng,
) {
    while !over.load(Ordering::Relaxed) {
        let number = 2 + rng.below(others as u64) as usize;
        let endpoint = &ways[number];
        // all is done at the first poll, what follows is only waiting
        let times = rng.within(1, 4);
        match rng.below(5) {
            0 | 1 => {
                let added = polled(1, &mut rng, handle.add(endpoint)).await.unwrap().unwrap();
                assert_eq!(added, wanted.lock().unwrap().insert(number));
            }
            2 | 3 => {
                let removed = polled(times, &mut rng, handle.remove(endpoint)).await;
                let had = wanted.lock().unwrap().remove(&number);
                assert!(removed.is_none_or(|removed| removed.unwrap() == had));
            }
            _ => {
                let mut all: BTreeSet<_> = (2..ways.len()).filter(|_| rng.chance(500)).collect();
                all.extend([0, 1]);
                let endpoints: Vec<_> = all.iter().map(|number| &ways[*number]).collect();
                let future = handle.replace_all(endpoints);
                drop(polled(times, &mut rng, future).await);
                *wanted.lock().unwrap() = all;
            }
        }
        sleep(Duration::from_millis(rng.below(1500))).await;
    }
}

/// What removed endpoints have for their end.
const LINGER: Duration = Duration::from_secs(6);
