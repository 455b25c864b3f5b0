//! Every future of the public interface, dropped after any number of polls, in any order, over a network
//! that is not kind; what they worked on works as before.

use std::collections::VecDeque;
use std::time::Duration;

use dragonwire::sim::Rng;
use dragonwire::{
    Endpoint, Message, PubSocket, PullSocket, PushSocket, SubSocket, XPubSocket, XSubSocket,
};
use futures::{SinkExt, StreamExt};
use tokio::time::timeout;

use crate::books::{balance, settled};
use crate::patience::{pause, polled};
use crate::world::{World, host, pick};

pub(crate) async fn scenario(mut world: World) {
    let linger = Duration::from_millis(pick(&mut world.rng, &[0, 200, 3000]));
    let hwm = pick(&mut world.rng, &[1, 3, 1000]);
    let options = world.options().linger(Some(linger)).send_hwm(hwm).recv_hwm(hwm);
    let options = || options.clone();
    let mut push = PushSocket::with_options(options()).unwrap();
    let mut pull = PullSocket::with_options(options()).unwrap();
    let mut publisher = PubSocket::with_options(options()).unwrap();
    let mut subscriber = SubSocket::with_options(options()).unwrap();
    let mut xpub = XPubSocket::with_options(options()).unwrap();
    let mut xsub = XSubSocket::with_options(options()).unwrap();
    let mut rng = world.fork();
    let cables = [(host(1), host(2)), (host(1), host(3)), (host(2), host(3))];
    let network = world.network.clone();
    // one that is added again and again, and removed in the middle of it
    let always = any_way(&mut rng);

    /// Polls it, drops it, tells whether it was done; the counters of the socket hold all the while.
    macro_rules! dropped {
        ($socket:ident, $future:expr) => {{
            let times = rng.below(5);
            let output = polled(times, &mut rng, $future).await;
            balance(stringify!($socket), &$socket.stats());
            output
        }};
    }
    /// What every socket can do.
    macro_rules! common {
        ($socket:ident) => {
            match rng.below(7) {
                0 => {
                    let at = any_place(&mut rng);
                    let before = $socket.endpoints().len();
                    let bound = dropped!($socket, $socket.bind(&at));
                    let bound = bound.is_some_and(|bound| bound.is_ok());
                    assert_eq!($socket.endpoints().len(), before + usize::from(bound));
                }
                1 | 2 => {
                    let to = any_way(&mut rng);
                    drop(dropped!($socket, $socket.connect(&to)));
                }
                3 => {
                    let from = any_endpoint(&mut rng, &$socket.endpoints());
                    drop(dropped!($socket, $socket.disconnect(from)));
                }
                4 => {
                    let at = any_endpoint(&mut rng, &$socket.endpoints());
                    drop(dropped!($socket, $socket.unbind(at)));
                }
                5 => {
                    let mut monitor = $socket.monitor();
                    drop(dropped!($socket, monitor.recv()));
                }
                _ => {
                    let mut states = $socket.endpoint_states();
                    drop(dropped!($socket, states.recv()));
                }
            }
        };
    }
    macro_rules! publishing {
        ($socket:ident) => {
            match rng.below(6) {
                0 => drop(dropped!($socket, $socket.send("abc"))),
                1 => drop(dropped!($socket, $socket.publish("a", "bc"))),
                2 => drop(dropped!($socket, $socket.send_frames(&[b"b", b"c"]))),
                3 => {
                    let mut batch: VecDeque<Message> = (0..5).map(|_| "abc".into()).collect();
                    let done = dropped!($socket, $socket.send_many(&mut batch));
                    assert_eq!(done.is_some(), batch.is_empty());
                }
                4 => drop(dropped!($socket, $socket.send_all(&mut some_messages()))),
                _ => drop(dropped!($socket, $socket.wait_for_subscribers("a", 1))),
            }
        };
    }
    macro_rules! receiving {
        ($socket:ident) => {
            match rng.below(3) {
                0 => drop(dropped!($socket, $socket.recv())),
                1 => drop(dropped!($socket, $socket.next())),
                _ => {
                    let mut messages = Vec::new();
                    let count = dropped!($socket, $socket.recv_many(&mut messages, 4));
                    assert_eq!(count.map_or(0, Result::unwrap), messages.len());
                }
            }
        };
    }
    for _ in 0..rng.within(100, 400) {
        match rng.below(15) {
            0 => common!(push),
            1 => common!(pull),
            2 => common!(publisher),
            3 => common!(subscriber),
            4 => common!(xpub),
            5 => common!(xsub),
            6 => match rng.below(4) {
                0 => drop(dropped!(push, push.send("abc"))),
                1 => drop(dropped!(push, push.send_frames(&[b"abc", b"def"]))),
                2 => {
                    let mut batch: VecDeque<Message> = (0..5).map(|_| "abc".into()).collect();
                    let before = push.stats().outgoing.accepted;
                    let done = dropped!(push, push.send_many(&mut batch));
                    assert_eq!(done.is_some(), batch.is_empty());
                    assert_eq!(push.stats().outgoing.accepted - before, 5 - batch.len() as u64);
                }
                _ => drop(dropped!(push, push.send_all(&mut some_messages()))),
            },
            7 => receiving!(pull),
            8 => match rng.below(4) {
                0 => drop(dropped!(publisher, publisher.new_subscriptions())),
                _ => publishing!(publisher),
            },
            9 => publishing!(xpub),
            10 => receiving!(xpub),
            11 => match rng.below(6) {
                0 => drop(dropped!(subscriber, subscriber.ready())),
                1 => drop(dropped!(subscriber, subscriber.add(&always))),
                2 => drop(dropped!(subscriber, subscriber.remove(&always))),
                3 => {
                    let all = [any_way(&mut rng), any_way(&mut rng)];
                    drop(dropped!(subscriber, subscriber.replace_all(all)));
                }
                4 => drop(subscriber.subscribe(pick(&mut rng, &["", "a", "b"]))),
                _ => drop(subscriber.unsubscribe(pick(&mut rng, &["", "a", "b"]))),
            },
            12 => receiving!(subscriber),
            13 => match rng.below(4) {
                0 => drop(dropped!(xsub, xsub.ready())),
                1 => drop(dropped!(xsub, xsub.send(b"\x01a"))),
                2 => drop(dropped!(xsub, xsub.send("upstream"))),
                _ => receiving!(xsub),
            },
            _ => {
                let (a, b) = pick(&mut rng, &cables);
                if rng.chance(300) {
                    network.cut(a, b)
                } else {
                    network.heal(a, b)
                }
                pause(&mut rng, 1000).await;
            }
        }
    }

    // whatever they have been through, they still do what they are for
    world.calm_down();
    cables.iter().for_each(|(a, b)| network.heal(*a, *b));
    let within = world.in_force_within() * 2 + linger;
    let fresh = || PullSocket::with_options(options()).unwrap();
    let mut last = fresh();
    last.bind("tcp://10.0.0.9:9").await.unwrap();
    // alone on its lane, or the others would get it
    for status in push.endpoints() {
        drop(push.disconnect(&status.endpoint).await);
        drop(push.unbind(&status.endpoint).await);
    }
    push.connect("tcp://10.0.0.1:0;10.0.0.9:9").await.unwrap();
    timeout(within, push.send("the end")).await.expect("no room").unwrap();
    loop {
        let message = timeout(within, last.recv()).await.expect("nothing comes").unwrap();
        if message.topic() == b"the end" {
            break;
        }
    }
    last.close().await;
    settled("last", &last.stats());
    macro_rules! close {
        ($($socket:ident)*) => {$({
            let times = rng.below(3);
            polled(times, &mut rng, $socket.close()).await;
            let closed = timeout(linger + Duration::from_secs(1), $socket.close()).await;
            closed.expect(concat!(stringify!($socket), " does not close"));
            settled(stringify!($socket), &$socket.stats());
        })*};
    }
    close!(push pull publisher subscriber xpub xsub);
}

fn some_messages() -> impl futures::Stream<Item = Result<Message, dragonwire::SendError>> + Unpin {
    futures::stream::iter(["abc", "ab", "a"].map(|text| Ok(Message::from(text))))
}

fn any_place(rng: &mut Rng) -> String {
    format!("tcp://{}:{}", host(rng.within(1, 3) as usize), rng.within(1, 4))
}

fn any_way(rng: &mut Rng) -> String {
    format!("tcp://{}:0;{}", host(rng.within(1, 3) as usize), &any_place(rng)[6..])
}

/// One of those that there are, or one that may be.
fn any_endpoint(rng: &mut Rng, of: &[dragonwire::EndpointStatus]) -> Endpoint {
    match of.get(rng.below(of.len() as u64 + 1) as usize) {
        Some(status) => status.endpoint.clone(),
        None => any_way(rng).parse().unwrap(),
    }
}
