//! dragonwire, as its documentation says to use it.

use std::time::Instant;

use bytes::Bytes;
use dragonwire::{Message, OnFull, PubSocket, PullSocket, PushSocket, SocketOptions, SubSocket};

use super::block_on;
use crate::receipt::{Counter, Receipt};
use crate::role::{PROBE, Role, Verb};
use crate::signals::{self, Go};
use crate::tally::{Laps, Tally};

pub const SETTINGS: &str = "default options, but OnFull::Wait for PUB where lossless; payloads \
     below 8 KiB are slices, sent with send_frames and publish, which copy, larger ones clones of a \
     Bytes; recv receives; several subscribers are sockets with a task each";

/// For those who have their payload in a `Bytes`, or in a slice, whatever its size.
pub const SETTINGS_OTHER: &str =
    "the same, but payloads below 8 KiB are a Bytes, larger ones slices";

pub fn version() -> String {
    super::locked_version("dragonwire")
}

pub fn declines(role: &Role) -> bool {
    role.is_of_pipeline()
}

pub fn declines_other(role: &Role) -> bool {
    !matches!(role.verb, Verb::Push | Verb::Pull)
}

pub fn run(role: &Role) -> Tally {
    run_with(role, false)
}

pub fn run_other(role: &Role) -> Tally {
    run_with(role, true)
}

type Done<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn run_with(role: &Role, other: bool) -> Tally {
    let role = role.clone();
    block_on(role.runtime, async move {
        let done = match role.verb {
            Verb::Push => push(&role, other).await,
            Verb::Pull => pull(&role).await,
            Verb::Pub => publish(&role).await,
            Verb::Sub => subscribe(&role).await,
            Verb::Ping => ping(&role).await,
            Verb::Pong => pong(&role).await,
            Verb::Idle => idle(&role).await,
            Verb::Produce | Verb::Relay | Verb::Consume => unreachable!("it is declined"),
        };
        done.unwrap_or_else(|error| panic!("{}: {error}", role.endpoint))
    })
}

async fn push(role: &Role, other: bool) -> Done<Tally> {
    let push = PushSocket::with_options(options(role))?;
    push.connect(&role.endpoint).await?;
    let payload = vec![b'x'; role.size];
    let start = Instant::now();
    if shares(role) != other {
        let payload = Bytes::from(payload);
        for _ in 0..role.count {
            push.send(payload.clone()).await?;
        }
    } else {
        for _ in 0..role.count {
            push.send_frames(&[&payload]).await?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    push.close().await;
    Ok(Tally::of(role.count, seconds))
}

async fn pull(role: &Role) -> Done<Tally> {
    let mut pull = PullSocket::with_options(options(role))?;
    signals::listening(pull.bind(&role.endpoint).await?);
    let receipt = Receipt::watch();
    let mut counter = receipt.counter(role.count);
    loop {
        pull.recv().await?;
        if !counter.one() {
            return Ok(receipt.tally());
        }
    }
}

async fn publish(role: &Role) -> Done<Tally> {
    let go = Go::listen();
    let on_full = if role.lossless { OnFull::Wait } else { OnFull::Drop };
    let publisher = PubSocket::with_options(options(role).on_full(on_full))?;
    signals::listening(publisher.bind(&role.endpoint).await?);
    publisher.wait_for_subscribers(PROBE, role.peers).await?;
    signals::subscribed();
    go.wait_async().await;
    let payload = vec![b'x'; role.size];
    let topics = role.topics();
    let start = Instant::now();
    if shares(role) {
        let payload = Bytes::from(payload);
        let topics: Vec<Bytes> = topics.into_iter().map(Bytes::from).collect();
        for topic in topics.iter().cycle().take(role.count as usize) {
            publisher.send(Message::pair(topic.clone(), payload.clone())).await?;
        }
    } else {
        for topic in topics.iter().cycle().take(role.count as usize) {
            publisher.publish(topic, &payload).await?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    publisher.close().await;
    Ok(Tally::of(role.count, seconds))
}

async fn subscribe(role: &Role) -> Done<Tally> {
    let mut subscribers = Vec::new();
    for n in 0..role.peers {
        subscribers.push(subscriber(role, n).await?);
    }
    let receipt = Receipt::watch();
    // never received from
    let _stalled = subscribers.split_off(role.receiving());
    let mut tasks = Vec::new();
    for (n, subscriber) in subscribers.into_iter().enumerate() {
        let receiving = receive(subscriber, receipt.counter(role.share(n)));
        if role.peers == 1 {
            receiving.await?;
        } else {
            tasks.push(tokio::spawn(receiving));
        }
    }
    for task in tasks {
        task.await.expect("no receiver panics")?;
    }
    Ok(receipt.tally())
}

async fn receive(mut subscriber: SubSocket, mut counter: Counter) -> Done<()> {
    loop {
        subscriber.recv().await?;
        if !counter.one() {
            return Ok(());
        }
    }
}

async fn subscriber(role: &Role, number: usize) -> Done<SubSocket> {
    let subscriber = SubSocket::with_options(options(role))?;
    for prefix in role.subscriptions(number) {
        subscriber.subscribe(prefix)?;
    }
    subscriber.connect(&role.endpoint).await?;
    Ok(subscriber)
}

async fn idle(role: &Role) -> Done<Tally> {
    let go = Go::listen();
    signals::connecting();
    let start = Instant::now();
    let mut subscribers = Vec::new();
    for n in 0..role.peers {
        subscribers.push(subscriber(role, n).await?);
    }
    let seconds = start.elapsed().as_secs_f64();
    go.wait_async().await;
    Ok(Tally::of(role.peers as u64, seconds))
}

async fn ping(role: &Role) -> Done<Tally> {
    let mut pull = PullSocket::with_options(options(role))?;
    let back = pull.bind(role.back.as_deref().expect("a ping has a way back")).await?;
    let push = PushSocket::with_options(options(role))?;
    push.connect(&role.endpoint).await?;
    push.send_frames(&[back.to_string().as_bytes()]).await?;
    let payload = vec![b'x'; role.size];
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        push.send_frames(&[&payload]).await?;
        pull.recv().await?;
        laps.stop();
    }
    Ok(laps.tally())
}

async fn pong(role: &Role) -> Done<Tally> {
    let mut pull = PullSocket::with_options(options(role))?;
    signals::listening(pull.bind(&role.endpoint).await?);
    let back = pull.recv().await?;
    let push = PushSocket::with_options(options(role))?;
    push.connect(String::from_utf8_lossy(back.topic()).into_owned()).await?;
    for _ in 0..role.round_trips() {
        push.send(pull.recv().await?).await?;
    }
    push.close().await;
    Ok(Tally::default())
}

/// Whether the payload is one that dragonwire sends by reference.
fn shares(role: &Role) -> bool {
    role.size >= 8192
}

fn options(role: &Role) -> SocketOptions {
    let options = SocketOptions::new();
    match role.hwm {
        Some(hwm) => options.send_hwm(hwm).recv_hwm(hwm),
        None => options,
    }
}
