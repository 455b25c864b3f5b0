//! A victim with a good peer that goes on while others do what they should not.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;

use dragonwire::{Endpoint, PushSocket, SubSocket, Version};
use futures::{StreamExt, stream};
use tokio::sync::{Mutex, MutexGuard};

use crate::peer::Peer;
use crate::victim::{Ear, LIMIT, Place, Told, Victim};
use crate::{DEADLINE, within};

pub(crate) struct Scene {
    pub(crate) victim: Victim,
    good: Good,
    sent: u64,
    newcomers: u32,
    /// The tests of one process share its file descriptors: one at a time.
    _alone: MutexGuard<'static, ()>,
}

enum Good {
    /// Its messages are received by the victim.
    Push(PushSocket),
    /// It receives the victim's.
    Sub(SubSocket, Pace),
}

/// What the victim publishes: messages of `size` octets, so many before it waits until the good peer
/// has them.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) size: usize,
    pub(crate) burst: u64,
}

static ALONE: Mutex<()> = Mutex::const_new(());

/// Messages that the good peer sends or gets each time that it is looked at.
const ROUND: u64 = 20;

impl Scene {
    pub(crate) async fn new(order: &str) -> Self {
        Self::at(order, Place::default()).await
    }

    pub(crate) async fn at(order: &str, place: Place<'_>) -> Self {
        let alone = ALONE.lock().await;
        let victim = Victim::start(order, place).await;
        let good = if order.starts_with("PULL") {
            let push = PushSocket::new();
            push.connect(&victim.endpoint).await.unwrap();
            Good::Push(push)
        } else {
            Good::Sub(subscriber(&victim.endpoint).await, Pace { size: 100, burst: ROUND })
        };
        let mut scene = Self { victim, good, sent: 0, newcomers: 0, _alone: alone };
        scene.good_goes_on().await;
        scene
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.victim.endpoint.clone()
    }

    /// Another pace from now on.
    pub(crate) fn set_pace(&mut self, to: Pace) {
        let Good::Sub(_, pace) = &mut self.good else { panic!("a PULL does not publish") };
        *pace = to;
    }

    /// Some messages more of the good peer, or for it: each arrives, in order.
    pub(crate) async fn good_goes_on(&mut self) {
        let upto = self.sent + ROUND;
        match &mut self.good {
            Good::Push(push) => {
                send(push, "good", self.sent..upto).await;
                let expected = format!("got good {upto}");
                self.victim
                    .hears("the good peer's messages", |line| (line == expected).then_some(()))
                    .await;
            }
            Good::Sub(sub, Pace { size, burst }) => {
                for number in self.sent..upto {
                    if (number - self.sent).is_multiple_of(*burst) {
                        self.victim.tell(&format!("send {burst} {size}"));
                    }
                    receive(sub, number, *size).await;
                }
            }
        }
        self.sent = upto;
    }

    /// An attack, during which and after which the good peer goes on.
    pub(crate) async fn during<T>(&mut self, attack: impl Future<Output = T>) -> T {
        let over = Cell::new(false);
        let attack = async {
            let result = attack.await;
            over.set(true);
            result
        };
        let good = async {
            while !over.get() {
                self.good_goes_on().await;
            }
            self.good_goes_on().await;
        };
        tokio::join!(attack, good).0
    }

    /// The ends of all these connections, until which the good peer goes on.
    pub(crate) async fn during_ends(&mut self, peers: &[SocketAddr]) -> Vec<(bool, String)> {
        let ear = Ear::clone(&self.victim);
        self.during(ear.all_ended(peers)).await
    }

    /// Another good peer comes, and is served as the first one is.
    pub(crate) async fn newcomer(&mut self) {
        match &mut self.good {
            Good::Push(_) => {
                self.newcomers += 1;
                let topic = format!("good newcomer {}", self.newcomers);
                let push = PushSocket::new();
                push.connect(&self.victim.endpoint).await.unwrap();
                send(&push, &topic, 0..ROUND).await;
                let expected = format!("got {topic} {ROUND}");
                self.victim
                    .hears("a newcomer's messages", |line| (line == expected).then_some(()))
                    .await;
            }
            Good::Sub(..) => {
                let mut sub = subscriber(&self.victim.endpoint).await;
                let from = self.sent;
                self.good_goes_on().await;
                let Good::Sub(_, Pace { size, .. }) = self.good else { unreachable!() };
                for number in from..self.sent {
                    receive(&mut sub, number, size).await;
                }
            }
        }
    }

    /// The victim is well, and has kept within its memory.
    pub(crate) async fn end(mut self, what: &str) {
        self.good_goes_on().await;
        self.newcomer().await;
        let figures = self.victim.figures().await;
        let peak = self.victim.peak();
        println!(
            "peak {:5.1} MiB resident, {:5.1} MiB charged: {what}",
            peak as f64 / f64::from(1 << 20),
            figures["peak"] as f64 / f64::from(1 << 20),
        );
        println!("{figures:?}");
        assert!(peak <= LIMIT, "{} MiB of memory: {what}", peak >> 20);
        self.victim.end().await;
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stats = match &self.good {
                Good::Push(push) => push.stats(),
                Good::Sub(sub, _) => sub.stats(),
            };
            let here: Vec<_> = stats.peers.iter().filter_map(|peer| peer.peer.as_ref()).collect();
            let ours = |told: &Told| here.iter().any(|info| info.local == Some(told.address));
            let told: Vec<_> = self.victim.told().into_iter().filter(ours).collect();
            println!("the good peer is connected as {here:?}; the victim said of it: {told:?}");
        }
    }
}

pub(crate) async fn subscriber(endpoint: &Endpoint) -> SubSocket {
    let sub = SubSocket::new();
    sub.subscribe("").unwrap();
    sub.connect(endpoint).await.unwrap();
    within("the subscription", sub.ready()).await.unwrap();
    sub
}

/// The messages with those numbers, of a good peer called `topic`.
pub(crate) async fn send(push: &PushSocket, topic: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let frames: [&[u8]; 2] = [topic.as_bytes(), &number.to_be_bytes()];
        within("room", push.send_frames(&frames)).await.unwrap();
    }
}

async fn receive(sub: &mut SubSocket, number: u64, size: usize) {
    let message = within("a message", sub.recv()).await.unwrap();
    let body = message.topic();
    assert_eq!(body[..8], number.to_be_bytes(), "the next message");
    assert_eq!(body.len(), size);
}

/// That many attackers, some at a time; what came of each.
pub(crate) async fn crowd<T, F: Future<Output = T>>(
    count: usize,
    attack: impl FnMut(usize) -> F,
) -> Vec<T> {
    stream::iter((0..count).map(attack)).buffered(AT_ONCE).collect().await
}

/// Handshakes at once, so that none takes as long as those of all others.
const AT_ONCE: usize = 64;

/// Writes all of it, however slowly it is taken.
pub(crate) async fn flood(peer: &mut Peer, octets: &[u8]) {
    assert_eq!(peer.write_until_blocked(octets, DEADLINE).await, octets.len(), "it is taken");
}

/// Peers of that type that are through their handshake.
pub(crate) async fn join_all(endpoint: &Endpoint, count: usize, kind: &str) -> Vec<Peer> {
    crowd(count, |_| Peer::join(endpoint, Version::V3_1, kind)).await
}

pub(crate) fn addresses(peers: &[Peer]) -> Vec<SocketAddr> {
    peers.iter().map(Peer::remote).collect()
}

/// How many of something: fewer where only time would grow, all of them with `HOSTILE_FULL=1`.
pub(crate) fn scale(usual: usize, full: usize) -> usize {
    if std::env::var_os("HOSTILE_FULL").is_some() { full } else { usual }
}
