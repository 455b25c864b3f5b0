//! Publishers and subscribers of both kinds; subscriptions change while cables are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dragonwire::sim::Rng;
use dragonwire::{
    Message, PubSocket, SocketOptions, SocketStats, SubHandle, SubSocket, XPubSender, XPubSocket,
    XSubSender, XSubSocket,
};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use crate::books::{Received, balance, end_to_end, frame, read_frame, settled};
use crate::patience::{briefly, insist, polled};
use crate::world::{Faults, World, host, pick, place, way};

/// What is published on, and subscribed to.
const TOPICS: [&str; 6] = ["a", "ab", "abc", "b", "ba", "c"];

pub(crate) async fn scenario(mut world: World) {
    let publisher_hosts: Vec<_> = (1..=world.rng.within(1, 3) as usize).map(host).collect();
    let last = 100 + world.rng.within(1, 3) as usize;
    let subscriber_hosts: Vec<_> = (101..=last).map(host).collect();
    let subscribers_connect = world.rng.chance(700);
    let options = world.options().linger(Some(Duration::from_secs(60)));

    let mut publishers: Vec<_> = (0..publisher_hosts.len())
        .map(|number| Publisher::new(number, &options, &mut world.rng))
        .collect();
    let mut subscribers: Vec<_> =
        subscriber_hosts.iter().map(|_| Subscriber::new(&options, &mut world)).collect();
    for (publisher, at) in publishers.iter().zip(&publisher_hosts) {
        if subscribers_connect {
            publisher.bind(&mut world.rng, *at).await;
        }
    }
    for (subscriber, at) in subscribers.iter().zip(&subscriber_hosts) {
        if !subscribers_connect {
            subscriber.bind(&mut world.rng, *at).await;
        }
        for (publisher, to) in publishers.iter().zip(&publisher_hosts) {
            if subscribers_connect {
                subscriber.connect(&way(*at, *to)).await;
            } else {
                publisher.connect(&way(*to, *at)).await;
            }
        }
    }

    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for publisher in &publishers {
        tasks.push(spawn_local(publisher.clone().babble(over.clone(), world.fork())));
    }
    for subscriber in &subscribers {
        tasks.push(spawn_local(subscriber.handle().change(over.clone(), world.fork())));
    }
    let cables: Vec<_> =
        publisher_hosts.iter().flat_map(|a| subscriber_hosts.iter().map(|b| (*a, *b))).collect();
    let lasting = Duration::from_secs(world.rng.within(5, 30));
    world.storm(&cables, lasting).await;
    let healed = Instant::now();
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    all_in_force(&world, &publishers, &subscribers, healed).await;
    exactly_those(&publishers, &subscribers).await;

    let mut sent = 0;
    for publisher in publishers.drain(..) {
        let stats = publisher.close().await;
        settled("publisher", &stats);
        sent += stats.outgoing.sent;
    }
    // what they flushed arrives
    sleep(Duration::from_secs(10)).await;
    let mut received = 0;
    for subscriber in subscribers.drain(..) {
        let stats = subscriber.close().await;
        settled("subscriber", &stats);
        received += stats.incoming.received;
    }
    end_to_end(&world.network, sent, received, 10);
    if world.faults == Faults::Delays {
        assert_eq!(sent, received);
    }
}

/// A publisher's host crashes and comes back, with another publisher, which nobody tells of.
pub(crate) async fn crash(mut world: World) {
    let at = host(1);
    let hosts: Vec<_> = (101..=100 + world.rng.within(1, 4) as usize).map(host).collect();
    let options = world.options().linger(Some(Duration::ZERO));
    let publisher = Publisher::new(0, &options, &mut world.rng);
    publisher.bind(&mut world.rng, at).await;
    let subscribers: Vec<_> = hosts.iter().map(|_| Subscriber::new(&options, &mut world)).collect();
    for (subscriber, from) in subscribers.iter().zip(&hosts) {
        subscriber.connect(&way(*from, at)).await;
    }
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for subscriber in &subscribers {
        tasks.push(spawn_local(subscriber.handle().change(over.clone(), world.fork())));
    }
    let babbling = spawn_local(publisher.clone().babble(over.clone(), world.fork()));
    sleep(Duration::from_millis(world.rng.below(5000))).await;
    world.network.crash(at);
    babbling.abort();
    assert!(babbling.await.is_err_and(|error| error.is_cancelled()));
    let stats = publisher.close().await;
    settled("crashed publisher", &stats);
    sleep(Duration::from_millis(world.rng.below(12_000))).await;

    world.calm_down();
    world.network.boot(at);
    let publisher = Publisher::new(1, &options, &mut world.rng);
    publisher.bind(&mut world.rng, at).await;
    let back = Instant::now();
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let publishers = [publisher];
    all_in_force(&world, &publishers, &subscribers, back).await;
    exactly_those(&publishers, &subscribers).await;
    let [publisher] = publishers;
    settled("publisher", &publisher.close().await);
    for subscriber in subscribers {
        settled("subscriber", &subscriber.close().await);
    }
}

/// Every publisher's messages come to those who are subscribed, within the bound.
async fn all_in_force(
    world: &World,
    publishers: &[Publisher],
    subscribers: &[Subscriber],
    healed: Instant,
) {
    let bound = world.in_force_within();
    let from: Vec<u32> = publishers.iter().map(|publisher| publisher.next()).collect();
    let told: Vec<_> = publishers
        .iter()
        .flat_map(|publisher| TOPICS.map(|topic| (publisher.clone(), topic)))
        .map(|(publisher, topic)| {
            let count = subscribers.iter().filter(|subscriber| subscriber.wants(topic)).count();
            spawn_local(async move { publisher.wait_for_subscribers(topic, count).await })
        })
        .collect();
    let ready: Vec<_> = subscribers
        .iter()
        .map(|subscriber| spawn_local(subscriber.handle().ready(healed + bound)))
        .collect();
    loop {
        for publisher in publishers {
            for topic in TOPICS {
                publisher.publish(topic, 5).await;
            }
        }
        sleep(Duration::from_millis(100)).await;
        let mut missing = Vec::new();
        for (number, subscriber) in subscribers.iter().enumerate() {
            for (publisher, from) in publishers.iter().zip(&from) {
                for topic in TOPICS.iter().filter(|topic| subscriber.wants(topic)) {
                    if !subscriber.has(publisher.number, topic, *from) {
                        missing.push((number, publisher.number, *topic));
                    }
                }
            }
        }
        if missing.is_empty() {
            break;
        }
        assert!(
            healed.elapsed() <= bound,
            "{missing:?} (subscriber, publisher, topic) are not in force after {bound:?}: {:?}",
            subscribers.iter().map(Subscriber::endpoints).collect::<Vec<_>>(),
        );
    }
    for task in ready.into_iter().chain(told) {
        timeout(bound, task).await.expect("what there is was not told").unwrap();
    }
}

/// What is published now comes to those who are subscribed, once, and to nobody else.
async fn exactly_those(publishers: &[Publisher], subscribers: &[Subscriber]) {
    // a cancelled subscription too is in force everywhere
    sleep(Duration::from_secs(6)).await;
    for publisher in publishers {
        let from = publisher.next();
        for topic in TOPICS {
            publisher.publish(topic, 50).await;
        }
        // it comes, or would have
        sleep(Duration::from_secs(6)).await;
        for subscriber in subscribers {
            for (topic, number) in TOPICS.iter().zip(from..) {
                let got = subscriber.log.lock().unwrap().by_topic.contains(&(
                    publisher.number,
                    (*topic).to_owned(),
                    number,
                ));
                assert_eq!(got, subscriber.wants(topic), "{topic}, {:?}", subscriber.wanted());
            }
        }
    }
}

/// A publisher of either kind.
#[derive(Debug, Clone)]
struct Publisher {
    number: usize,
    next: Arc<AtomicU32>,
    socket: PublisherSocket,
    hearing: Arc<Mutex<Option<JoinHandle<()>>>>,
}

#[derive(Debug)]
enum PublisherSocket {
    Pub(PubSocket),
    XPub(XPubSender),
}

impl Clone for PublisherSocket {
    fn clone(&self) -> Self {
        match self {
            Self::Pub(socket) => Self::Pub(socket.clone()),
            Self::XPub(socket) => Self::XPub(socket.clone()),
        }
    }
}

/// Does the same with either kind of socket.
macro_rules! either {
    ($socket:expr, PublisherSocket, $name:ident => $what:expr) => {
        match $socket {
            PublisherSocket::Pub($name) => $what,
            PublisherSocket::XPub($name) => $what,
        }
    };
    ($socket:expr, SubscriberSocket, $name:ident => $what:expr) => {
        match $socket {
            SubscriberSocket::Sub($name) => $what,
            SubscriberSocket::XSub($name) => $what,
        }
    };
}

impl Publisher {
    fn new(number: usize, options: &SocketOptions, rng: &mut Rng) -> Self {
        let options = options.clone();
        let mut hearing = None;
        let socket = if rng.chance(500) {
            PublisherSocket::Pub(PubSocket::with_options(options).unwrap())
        } else {
            let socket = XPubSocket::with_options(options).unwrap();
            let sender = socket.sender();
            hearing = Some(spawn_local(hear(socket, Rng::new(rng.number()))));
            PublisherSocket::XPub(sender)
        };
        Self { number, next: Arc::default(), socket, hearing: Arc::new(Mutex::new(hearing)) }
    }

    async fn bind(&self, rng: &mut Rng, at: IpAddr) {
        insist(
            rng,
            async || either!(&self.socket, PublisherSocket, socket => socket.bind(place(at)).await),
        )
        .await
        .unwrap();
    }

    async fn connect(&self, to: &str) {
        either!(&self.socket, PublisherSocket, socket => socket.connect(to).await).unwrap();
    }

    /// The number of the message that is published next.
    fn next(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    async fn publish(&self, topic: &str, size: usize) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let octets = frame(self.number, number, size);
        either!(&self.socket, PublisherSocket, socket => socket.publish(topic, octets).await)
            .unwrap();
    }

    /// Publishes all the time, by futures that are dropped most of the time.
    async fn babble(self, over: Arc<AtomicBool>, mut rng: Rng) {
        while !over.load(Ordering::Relaxed) {
            let topic = pick(&mut rng, &TOPICS);
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let octets = frame(self.number, number, rng.within(5, 60) as usize);
            let frames: &[&[u8]] = &[topic.as_bytes(), &octets];
            insist(&mut rng, async || {
                either!(&self.socket, PublisherSocket, socket => socket.send_frames(frames).await)
            })
            .await
            .unwrap();
            sleep(Duration::from_millis(rng.below(100))).await;
        }
    }

    async fn wait_for_subscribers(&self, topic: &str, count: usize) {
        either!(&self.socket, PublisherSocket, socket => {
            socket.wait_for_subscribers(topic, count).await
        })
        .unwrap();
    }

    async fn close(self) -> SocketStats {
        either!(&self.socket, PublisherSocket, socket => socket.close().await);
        let hearing = self.hearing.lock().unwrap().take();
        if let Some(hearing) = hearing {
            hearing.await.unwrap();
        }
        either!(&self.socket, PublisherSocket, socket => socket.stats())
    }
}

/// What XPUB hears: of each topic in turn that somebody wants it and that nobody does.
async fn hear(mut socket: XPubSocket, mut rng: Rng) {
    let mut wanted = BTreeSet::new();
    loop {
        match briefly(&mut rng, socket.recv()).await {
            None => {}
            Some(Ok(message)) => {
                let (first, topic) = message.topic().split_first().unwrap();
                match first {
                    1 => assert!(wanted.insert(topic.to_vec()), "{topic:?} is wanted already"),
                    _ => assert!(wanted.remove(topic), "{topic:?} is wanted by nobody"),
                }
            }
            Some(Err(_)) => return,
        }
        balance("xpub", &socket.stats());
    }
}

/// What a subscriber received.
#[derive(Debug, Default)]
struct Log {
    received: Received,
    by_topic: BTreeSet<(usize, String, u32)>,
}

impl Log {
    fn note(&mut self, connection: Option<dragonwire::ConnectionId>, message: &Message) {
        self.received.note(connection, message);
        let (sender, number) = read_frame(message.frame(1).unwrap());
        let topic = String::from_utf8(message.topic().to_vec()).unwrap();
        self.by_topic.insert((sender, topic, number));
    }
}

/// A subscriber of either kind.
#[derive(Debug)]
struct Subscriber {
    handle: Handle,
    log: Arc<Mutex<Log>>,
    receiving: JoinHandle<()>,
}

/// All of a subscriber but receiving.
#[derive(Debug, Clone)]
struct Handle {
    socket: SubscriberSocket,
    /// How many subscriptions there are to each prefix.
    wanted: Arc<Mutex<BTreeMap<&'static str, u32>>>,
}

#[derive(Debug)]
enum SubscriberSocket {
    Sub(SubHandle),
    XSub(XSubSender),
}

impl Clone for SubscriberSocket {
    fn clone(&self) -> Self {
        match self {
            Self::Sub(socket) => Self::Sub(socket.clone()),
            Self::XSub(socket) => Self::XSub(socket.clone()),
        }
    }
}

impl Handle {
    /// Subscribes and cancels all the time.
    async fn change(self, over: Arc<AtomicBool>, mut rng: Rng) {
        while !over.load(Ordering::Relaxed) {
            let topic = pick(&mut rng, &TOPICS);
            let on = rng.chance(550);
            let count = {
                let mut wanted = self.wanted.lock().unwrap();
                let count = wanted.entry(topic).or_default();
                *count = if on { *count + 1 } else { count.saturating_sub(1) };
                *count
            };
            let socket = &self.socket;
            let first_or_last = either!(socket, SubscriberSocket, socket => {
                if on { socket.subscribe(topic) } else { socket.unsubscribe(topic) }
            });
            if on {
                assert_eq!(first_or_last.unwrap(), count == 1, "{topic}");
            }
            if rng.chance(200) {
                let times = rng.below(5);
                either!(socket, SubscriberSocket, socket => {
                    polled(times, &mut rng, socket.ready()).await
                });
            }
            sleep(Duration::from_millis(rng.below(1000))).await;
        }
    }

    async fn ready(self, by: Instant) {
        let ready = async {
            either!(&self.socket, SubscriberSocket, socket => socket.ready().await).unwrap();
        };
        tokio::time::timeout_at(by, ready).await.expect("it is not ready in time");
    }
}

impl Subscriber {
    fn new(options: &SocketOptions, world: &mut World) -> Self {
        let options = options.clone();
        let log = Arc::<Mutex<Log>>::default();
        let network = world.network.clone();
        let mut rng = world.fork();
        let noted = log.clone();
        let note = move |connection, message: &Message| {
            network.note(message.topic());
            noted.lock().unwrap().note(connection, message);
        };
        macro_rules! receive {
            ($socket:ident) => {
                spawn_local(async move {
                    loop {
                        match briefly(&mut rng, $socket.recv()).await {
                            None => {}
                            Some(Ok(message)) => note($socket.last_peer(), &message),
                            Some(Err(_)) => return,
                        }
                        while let Ok(message) = $socket.try_recv() {
                            note($socket.last_peer(), &message);
                        }
                        balance("subscriber", &$socket.stats());
                    }
                })
            };
        }
        let (socket, receiving) = if world.rng.chance(500) {
            let mut socket = SubSocket::with_options(options).unwrap();
            (SubscriberSocket::Sub(socket.handle()), receive!(socket))
        } else {
            let mut socket = XSubSocket::with_options(options).unwrap();
            (SubscriberSocket::XSub(socket.sender()), receive!(socket))
        };
        Self { handle: Handle { socket, wanted: Arc::default() }, log, receiving }
    }

    fn handle(&self) -> Handle {
        self.handle.clone()
    }

    async fn bind(&self, rng: &mut Rng, at: IpAddr) {
        insist(rng, async || {
            either!(&self.handle.socket, SubscriberSocket, socket => socket.bind(place(at)).await)
        })
        .await
        .unwrap();
    }

    async fn connect(&self, to: &str) {
        either!(&self.handle.socket, SubscriberSocket, socket => socket.connect(to).await).unwrap();
    }

    fn wanted(&self) -> Vec<&'static str> {
        let wanted = self.handle.wanted.lock().unwrap();
        wanted.iter().filter(|(_, count)| **count > 0).map(|(topic, _)| *topic).collect()
    }

    fn wants(&self, topic: &str) -> bool {
        self.wanted().iter().any(|prefix| topic.starts_with(prefix))
    }

    /// Whether it received a message of that publisher and topic, from that number on.
    fn has(&self, publisher: usize, topic: &str, from: u32) -> bool {
        let topic = topic.to_owned();
        let range = (publisher, topic.clone(), from)..=(publisher, topic, u32::MAX);
        self.log.lock().unwrap().by_topic.range(range).next().is_some()
    }

    fn endpoints(&self) -> Vec<dragonwire::EndpointStatus> {
        either!(&self.handle.socket, SubscriberSocket, socket => socket.endpoints())
    }

    async fn close(self) -> SocketStats {
        either!(&self.handle.socket, SubscriberSocket, socket => socket.close().await);
        // what it had in hand is counted when it looks for more
        self.receiving.await.unwrap();
        either!(&self.handle.socket, SubscriberSocket, socket => socket.stats())
    }
}
