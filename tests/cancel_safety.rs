//! Every future of the public interface, dropped after each number of polls: what was cancelled was
//! not sent, what was not returned was not received, and nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod deadline;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use deadline::{until, within};
use dragonwire::{
    Event, Message, OnFull, PubSocket, PullSocket, PushSocket, SocketOptions, SubSocket,
    XPubSocket, XSubSocket,
};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpListener;
use tokio::task::yield_now;

/// Polls a future at most so many times, with everything else having a turn in between, and drops
/// it if it is not done then.
async fn polled<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for i in 0..times {
        if i > 0 {
            yield_now().await;
        }
        let poll = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = poll {
            return Some(output);
        }
    }
    None
}

/// Uses up the task's budget, so that the first await of a method that gives way is pending.
async fn out_of_budget() {
    while std::future::poll_fn(|cx| {
        let mut consume = pin!(tokio::task::consume_budget());
        Poll::Ready(consume.as_mut().poll(cx).is_ready())
    })
    .await
    {}
}

fn number(message: &Message) -> u32 {
    u32::from_be_bytes(message.topic().try_into().unwrap())
}

fn narrow() -> SocketOptions {
    SocketOptions::new().send_hwm(2).recv_hwm(2)
}

/// Sends numbers by `send`, each as often as it takes; the receiver must get each once, in order,
/// although most attempts are cancelled.
async fn cancelled_sends(send: impl AsyncFn(&PushSocket, u32, usize) -> bool) {
    const COUNT: u32 = 600;
    let mut pull = PullSocket::with_options(narrow()).unwrap();
    let endpoint = pull.bind("ipc://*").await.unwrap();
    let push = PushSocket::with_options(narrow()).unwrap();
    push.connect(&endpoint).await.unwrap();
    let receiver = tokio::spawn(async move {
        for wanted in 0..COUNT {
            if wanted % 7 == 0 {
                yield_now().await;
            }
            assert_eq!(number(&within(pull.recv()).await.unwrap()), wanted);
        }
        assert!(pull.try_recv().is_err());
        pull.stats().incoming.received
    });
    let mut cancelled = 0;
    for i in 0..COUNT {
        let mut times = 0;
        loop {
            if times % 2 == 1 {
                out_of_budget().await;
            }
            if send(&push, i, times % 5).await {
                break;
            }
            cancelled += 1;
            times += 1;
            yield_now().await;
        }
    }
    assert!(cancelled > 100, "only {cancelled} were cancelled");
    assert_eq!(within(receiver).await.unwrap(), u64::from(COUNT));
    let stats = push.stats().outgoing;
    assert_eq!((stats.accepted, stats.dropped.total()), (u64::from(COUNT), 0));
}

#[tokio::test]
async fn a_cancelled_push_was_not_sent() {
    cancelled_sends(async |push, i, times| {
        polled(times, push.send(&i.to_be_bytes())).await.map(Result::unwrap).is_some()
    })
    .await;
    cancelled_sends(async |push, i, times| {
        polled(times, push.send_frames(&[&i.to_be_bytes()])).await.map(Result::unwrap).is_some()
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_batch_has_what_was_not_sent() {
    const COUNT: u32 = 20_000;
    let mut pull = PullSocket::with_options(narrow()).unwrap();
    let endpoint = pull.bind("ipc://*").await.unwrap();
    let push = PushSocket::with_options(narrow()).unwrap();
    push.connect(&endpoint).await.unwrap();
    let mut batch: VecDeque<Message> = (0..COUNT).map(|i| (&i.to_be_bytes()).into()).collect();
    let receiver = tokio::spawn(async move {
        for wanted in 0..COUNT {
            assert_eq!(number(&within(pull.recv()).await.unwrap()), wanted);
        }
    });
    let mut times = 0;
    let mut cancelled = 0;
    while !batch.is_empty() {
        let accepted = push.stats().outgoing.accepted;
        assert_eq!(accepted + batch.len() as u64, u64::from(COUNT));
        match polled(times % 4, push.send_many(&mut batch)).await {
            Some(done) => done.unwrap(),
            None => cancelled += 1,
        }
        times += 1;
        yield_now().await;
    }
    assert!(cancelled > 10, "only {cancelled} were cancelled");
    within(receiver).await.unwrap();
    assert_eq!(push.stats().outgoing.accepted, u64::from(COUNT));
}

/// The same for publishers, which wait for room with `OnFull::Wait`.
async fn cancelled_publishing(publish: impl AsyncFn(&PubSocket, u32, usize) -> bool) {
    const COUNT: u32 = 400;
    let publisher = PubSocket::with_options(narrow().on_full(OnFull::Wait)).unwrap();
    let endpoint = publisher.bind("ipc://*").await.unwrap();
    let mut receivers = Vec::new();
    for _ in 0..2 {
        let mut subscriber = SubSocket::with_options(narrow()).unwrap();
        subscriber.subscribe("").unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        within(subscriber.ready()).await.unwrap();
        receivers.push(tokio::spawn(async move {
            for wanted in 0..COUNT {
                assert_eq!(number(&within(subscriber.recv()).await.unwrap()), wanted);
            }
            assert!(subscriber.try_recv().is_err());
        }));
    }
    let mut cancelled = 0;
    for i in 0..COUNT {
        let mut times = 0;
        loop {
            if times % 2 == 1 {
                out_of_budget().await;
            }
            if publish(&publisher, i, times % 5).await {
                break;
            }
            cancelled += 1;
            times += 1;
            yield_now().await;
        }
    }
    assert!(cancelled > 100, "only {cancelled} were cancelled");
    for receiver in receivers {
        within(receiver).await.unwrap();
    }
    let stats = publisher.stats().outgoing;
    assert_eq!((stats.accepted, stats.dropped.total()), (2 * u64::from(COUNT), 0));
}

#[tokio::test]
async fn what_was_cancelled_while_publishing_reached_nobody() {
    cancelled_publishing(async |publisher, i, times| {
        polled(times, publisher.send(&i.to_be_bytes())).await.map(Result::unwrap).is_some()
    })
    .await;
    cancelled_publishing(async |publisher, i, times| {
        polled(times, publisher.publish(i.to_be_bytes(), "")).await.map(Result::unwrap).is_some()
    })
    .await;
    cancelled_publishing(async |publisher, i, times| {
        let frames: &[&[u8]] = &[&i.to_be_bytes()];
        polled(times, publisher.send_frames(frames)).await.map(Result::unwrap).is_some()
    })
    .await;
    cancelled_publishing(async |publisher, i, times| {
        let mut batch = VecDeque::from([Message::from(&i.to_be_bytes())]);
        let done = polled(times, publisher.send_many(&mut batch)).await;
        assert_eq!(batch.is_empty(), done.is_some());
        done.map(Result::unwrap).is_some()
    })
    .await;
}

#[tokio::test]
async fn a_sink_keeps_what_it_was_given() {
    const COUNT: u32 = 300;
    let mut pull = PullSocket::with_options(narrow()).unwrap();
    let endpoint = pull.bind("ipc://*").await.unwrap();
    let mut push = PushSocket::with_options(narrow()).unwrap();
    push.connect(&endpoint).await.unwrap();
    let receiver = tokio::spawn(async move {
        for wanted in 0..COUNT {
            assert_eq!(number(&within(pull.recv()).await.unwrap()), wanted);
        }
        assert!(pull.try_recv().is_err());
    });
    for i in 0..COUNT {
        // what was fed is in the sink, however often its flush is cancelled
        within(push.feed((&i.to_be_bytes()).into())).await.unwrap();
        for times in 0..3 {
            if let Some(flushed) = polled(times, push.flush()).await {
                flushed.unwrap();
            }
        }
    }
    within(push.flush()).await.unwrap();
    within(receiver).await.unwrap();
}

/// Receives by `recv`, cancelled most of the time: each message comes once, in order.
async fn cancelled_receiving(recv: impl AsyncFn(&mut PullSocket, usize) -> Vec<Message>) {
    const COUNT: u32 = 600;
    let mut pull = PullSocket::with_options(narrow()).unwrap();
    let endpoint = pull.bind("ipc://*").await.unwrap();
    let push = PushSocket::with_options(narrow()).unwrap();
    push.connect(&endpoint).await.unwrap();
    let sender = tokio::spawn(async move {
        for i in 0..COUNT {
            if i % 3 == 0 {
                yield_now().await;
            }
            within(push.send(&i.to_be_bytes())).await.unwrap();
        }
        push.close().await
    });
    let mut wanted = 0;
    let mut times = 0;
    let mut cancelled = 0;
    within(async {
        while wanted < COUNT {
            if times % 2 == 1 {
                out_of_budget().await;
            }
            let messages = recv(&mut pull, times % 4).await;
            cancelled += usize::from(messages.is_empty());
            for message in messages {
                assert_eq!(number(&message), wanted);
                wanted += 1;
            }
            times += 1;
            yield_now().await;
        }
    })
    .await;
    assert!(cancelled > 100, "only {cancelled} were cancelled");
    within(sender).await.unwrap();
    let stats = pull.stats().incoming;
    assert_eq!((stats.received, stats.delivered), (u64::from(COUNT), u64::from(COUNT)));
}

#[tokio::test]
async fn a_cancelled_receive_lost_nothing() {
    cancelled_receiving(async |pull, times| {
        polled(times, pull.recv()).await.map(Result::unwrap).into_iter().collect()
    })
    .await;
    cancelled_receiving(async |pull, times| {
        polled(times, pull.next()).await.map(Option::unwrap).into_iter().collect()
    })
    .await;
    cancelled_receiving(async |pull, times| {
        let mut messages = Vec::new();
        let count = polled(times, pull.recv_many(&mut messages, 3)).await.map(Result::unwrap);
        assert_eq!(count.unwrap_or_default(), messages.len());
        messages
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_bind_is_not_bound() {
    for text in ["tcp://127.0.0.1:*", "tcp://localhost:*", "ipc://*"] {
        for times in 0..6 {
            let pull = PullSocket::new();
            let bound = polled(times, pull.bind(text)).await;
            let endpoints = pull.endpoints();
            assert_eq!(endpoints.len(), usize::from(bound.is_some()), "{text}, {times} polls");
            if let Some(bound) = bound {
                assert_eq!(endpoints[0].endpoint, bound.unwrap());
            }
        }
    }
    // and leaves the port free
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let text = format!("tcp://localhost:{port}");
    let pull = PullSocket::new();
    for times in 0..3 {
        if polled(times, pull.bind(&text)).await.is_some() {
            within(pull.unbind(&text)).await.unwrap();
        }
    }
    within(pull.bind(&text)).await.unwrap();
}

#[tokio::test]
async fn connecting_is_done_at_the_first_poll() {
    let pull = PullSocket::new();
    let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
    let push = PushSocket::new();
    assert!(polled(0, push.connect(&endpoint)).await.is_none());
    assert_eq!(push.endpoints(), []);
    polled(1, push.connect(&endpoint)).await.unwrap().unwrap();
    assert_eq!(push.endpoints().len(), 1);
    let subscriber = SubSocket::new();
    assert!(polled(0, subscriber.add(&endpoint)).await.is_none());
    assert_eq!(subscriber.endpoints(), []);
    assert!(polled(1, subscriber.add(&endpoint)).await.unwrap().unwrap());
    assert_eq!(subscriber.endpoints().len(), 1);
}

#[tokio::test]
async fn a_cancelled_disconnect_or_unbind_goes_on() {
    for times in 1..5 {
        let mut pull = PullSocket::new();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let push = PushSocket::new();
        let mut monitor = push.monitor();
        push.connect(&endpoint).await.unwrap();
        // queued, and to be sent before it is disconnected
        for i in 0..100u32 {
            push.send(&i.to_be_bytes()).await.unwrap();
        }
        polled(times, push.disconnect(&endpoint)).await;
        assert_eq!(push.endpoints(), []);
        for i in 0..100 {
            assert_eq!(number(&within(pull.recv()).await.unwrap()), i);
        }
        while !matches!(within(monitor.recv()).await, Some(Event::EndpointRemoved { .. })) {}

        let publisher = PubSocket::new();
        let mut monitor = publisher.monitor();
        let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
        let mut subscriber = SubSocket::new();
        subscriber.subscribe("").unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        within(subscriber.ready()).await.unwrap();
        for i in 0..100u32 {
            publisher.send(&i.to_be_bytes()).await.unwrap();
        }
        polled(times, publisher.unbind(&endpoint)).await;
        for i in 0..100 {
            assert_eq!(number(&within(subscriber.recv()).await.unwrap()), i);
        }
        let (mut unbound, mut disconnected) = (false, false);
        while !(unbound && disconnected) {
            let event = within(monitor.recv()).await.unwrap();
            unbound |= matches!(event, Event::Unbound { .. });
            disconnected |= matches!(event, Event::Disconnected { .. });
        }
        within(TcpListener::bind(("127.0.0.1", endpoint.port().unwrap()))).await.unwrap();

        // removing and replacing, the same way
        let other = PubSocket::new();
        let new = other.bind("ipc://*").await.unwrap();
        polled(times, subscriber.replace_all([&new])).await;
        within(subscriber.ready()).await.unwrap();
        assert_eq!(subscriber.endpoints().len(), 1);
        assert_eq!(subscriber.endpoints()[0].endpoint, new);
        polled(times, subscriber.remove(&new)).await;
        assert_eq!(subscriber.endpoints(), []);
    }
}

#[tokio::test]
async fn a_cancelled_close_goes_on() {
    for times in 0..5 {
        let mut pull = PullSocket::new();
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        let push = PushSocket::new();
        let mut monitor = push.monitor();
        push.connect(&endpoint).await.unwrap();
        for i in 0..100u32 {
            push.send(&i.to_be_bytes()).await.unwrap();
        }
        polled(times, push.close()).await;
        let refused = push.try_send("x").is_err();
        assert_eq!(refused, times > 0, "closed after {times} polls");
        for i in 0..100 {
            assert_eq!(number(&within(pull.recv()).await.unwrap()), i);
        }
        if times > 0 {
            // without anybody who waits for it
            until(|| push.stats().peers.is_empty()).await;
            let stats = push.stats().outgoing;
            assert_eq!((stats.sent, stats.queued, stats.dropped.total()), (100, 0, 0));
        }
        within(push.close()).await;
        while within(monitor.recv()).await.is_some() {}
    }
}

#[tokio::test]
async fn waiting_for_peers_changes_nothing() {
    for times in 0..20 {
        let publisher = PubSocket::new();
        let endpoint = publisher.bind("tcp://127.0.0.1:*").await.unwrap();
        let subscriber = SubSocket::new();
        subscriber.subscribe("a").unwrap();
        subscriber.connect(&endpoint).await.unwrap();
        for _ in 0..3 {
            polled(times, subscriber.ready()).await;
            polled(times, publisher.wait_for_subscribers("a", 1)).await;
        }
        within(subscriber.ready()).await.unwrap();
        within(publisher.wait_for_subscribers("a", 1)).await.unwrap();
        let sent = publisher.publish("a", "").await.unwrap();
        assert_eq!((sent.matched, sent.queued), (1, 1));
        assert_eq!(publisher.stats().peers[0].subscriptions, 1);
    }
}

#[tokio::test]
async fn a_cancelled_look_at_events_or_states_loses_none() {
    let pull = PullSocket::new();
    let mut events = pull.monitor();
    let mut states = pull.endpoint_states();
    for round in 0..20 {
        for times in 0..4 {
            assert!(polled(times, events.recv()).await.is_none());
            assert!(polled(times, states.recv()).await.is_none());
            assert!(polled(times, events.next()).await.is_none());
            assert!(polled(times, states.next()).await.is_none());
        }
        let endpoint = pull.bind("tcp://127.0.0.1:*").await.unwrap();
        assert!(polled(0, events.recv()).await.is_none());
        assert!(polled(0, states.recv()).await.is_none());
        let listening = Event::Listening { endpoint: endpoint.clone() };
        assert_eq!(polled(1, events.recv()).await, Some(Some(listening)), "round {round}");
        assert_eq!(polled(1, states.recv()).await.unwrap().unwrap().endpoint, endpoint);
    }
}

#[tokio::test]
async fn xpub_and_xsub_are_no_different() {
    let mut xpub = XPubSocket::new();
    let endpoint = xpub.bind("ipc://*").await.unwrap();
    let mut xsub = XSubSocket::new();
    xsub.connect(&endpoint).await.unwrap();
    within(xsub.ready()).await.unwrap();
    let mut sent = 0;
    let mut got = Vec::new();
    let mut down = Vec::new();
    let mut published = 0;
    for i in 0..200u32 {
        let times = i as usize % 3;
        if i % 2 == 0 {
            out_of_budget().await;
        }
        if polled(times, xsub.send(["up", &i.to_string()])).await.is_some() {
            sent += 1;
        }
        if i == 50 {
            xsub.subscribe("").unwrap();
        }
        if polled(times, xpub.publish("down", i.to_string()))
            .await
            .is_some_and(|d| d.unwrap().queued == 1)
        {
            published += 1;
        }
        got.extend(polled(times, xpub.recv()).await.map(Result::unwrap));
        down.extend(polled(times, xsub.recv()).await.map(Result::unwrap));
        yield_now().await;
    }
    while got.len() < sent + 1 {
        got.push(within(xpub.recv()).await.unwrap());
    }
    while down.len() < published {
        down.push(within(xsub.recv()).await.unwrap());
    }
    assert!(xpub.try_recv().is_err() && xsub.try_recv().is_err());
    assert!(published > 0 && sent > 0 && sent < 200);
    for messages in [got, down] {
        let numbers: Vec<u32> = messages
            .iter()
            .filter_map(|message| message.frame(1))
            .map(|text| std::str::from_utf8(text).unwrap().parse().unwrap())
            .collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }
}

/// A waker that knows whether anybody still has it.
#[derive(Default)]
struct Counted(AtomicUsize);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Polls once with a waker of its own and drops the future; tells how many references to the waker
/// are left then.
fn left_behind<F: Future>(future: F) -> usize {
    let counted = Arc::new(Counted::default());
    let waker = Waker::from(counted.clone());
    let poll = pin!(future).poll(&mut Context::from_waker(&waker));
    assert!(poll.is_pending());
    drop(waker);
    Arc::strong_count(&counted) - 1
}

#[tokio::test]
async fn cancelled_futures_leave_no_waker() {
    let push = PushSocket::new();
    let subscriber = SubSocket::new();
    subscriber.connect("ipc:///nobody/there").await.unwrap();
    let publisher = PubSocket::new();
    for _ in 0..100 {
        // with the budget of a new turn, so that it is room or a peer that is waited for
        yield_now().await;
        assert_eq!(left_behind(push.send("x")), 0, "send");
        assert_eq!(left_behind(push.send_frames(&[b"x"])), 0, "send_frames");
        let mut batch = VecDeque::from(["x".into()]);
        assert_eq!(left_behind(push.send_many(&mut batch)), 0, "send_many");
        assert_eq!(left_behind(subscriber.ready()), 0, "ready");
        let waiting = publisher.wait_for_subscribers("x", 1);
        assert_eq!(left_behind(waiting), 0, "wait_for_subscribers");
    }
    // these are polled by one task at a time, whose last waker they may keep, and only that
    let mut pull = PullSocket::new();
    let mut monitor = push.monitor();
    let mut states = publisher.endpoint_states();
    let wakers: Vec<_> = (0..100).map(|_| Arc::new(Counted::default())).collect();
    for counted in &wakers {
        yield_now().await;
        let waker = Waker::from(counted.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(pin!(pull.recv()).poll(&mut cx).is_pending());
        assert!(pin!(monitor.recv()).poll(&mut cx).is_pending());
        assert!(pin!(states.recv()).poll(&mut cx).is_pending());
    }
    let kept: usize = wakers.iter().map(|counted| Arc::strong_count(counted) - 1).sum();
    assert!(kept <= 3, "{kept}");
    drop((pull, monitor, states));
    within(push.close()).await;
    within(publisher.close()).await;
    let kept: usize = wakers.iter().map(|counted| Arc::strong_count(counted) - 1).sum();
    assert_eq!(kept, 0, "after the end of all sockets");
}

#[tokio::test]
async fn a_cancelled_sender_does_not_take_another_ones_room() {
    // two wait for room, the first gives up when room comes: the second must be woken
    let push = PushSocket::new();
    let (one, two) = (push.clone(), push.clone());
    let counted = Arc::new(Counted::default());
    let waker = Waker::from(counted.clone());
    let mut second = pin!(two.send("second"));
    {
        let mut first = pin!(one.send("first"));
        assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(second.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        push.connect("ipc:///nobody/there").await.unwrap();
    }
    assert!(counted.0.load(Ordering::Relaxed) > 0);
    assert!(second.poll(&mut Context::from_waker(&waker)).is_ready());
}
