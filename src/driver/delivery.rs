//! From the subscriber's task to its user: a bounded queue, read as a stream or by a callback in a
//! thread of its own.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::{fmt, io};

use futures::Stream;

use super::sync::{Sync, SyncCause};
use super::update::Update;
use crate::governor::Account;

/// What a subscriber is given.
#[derive(Debug, Clone, PartialEq)]
pub enum SubscriberEvent {
    /// A change.
    Update(Update),
    /// Something may have been lost.
    Sync(Sync),
}

impl SubscriberEvent {
    /// What it takes of memory, without what its allocations cost beside themselves.
    fn octets(&self) -> usize {
        let more = match self {
            Self::Update(update) => update.octets(),
            Self::Sync(sync) => sync.missing.as_ref().map_or(0, |missing| missing.topic.len()),
        };
        size_of::<Self>() + more
    }
}

/// What is called for each event, in a thread of its own.
pub type Callback = Box<dyn FnMut(SubscriberEvent) + Send>;

/// The events of a subscriber, as a stream; it ends when the subscriber is closed and everything has
/// been taken.
///
/// While nobody takes from it the subscriber stops reading when 1024 events wait, or 8 MiB of them: the
/// publishers then drop, and what they dropped is told by `sync` afterwards.
pub struct Updates {
    queue: Arc<Queue>,
    taken: VecDeque<SubscriberEvent>,
}

impl Updates {
    /// A stream and what feeds it, for subscribers of a driver of one's own.
    #[must_use]
    pub fn channel() -> (EventSender, Self) {
        let queue = Arc::new(Queue::default());
        (EventSender(queue.clone()), Self::new(queue))
    }

    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        Self { queue, taken: VecDeque::new() }
    }

    /// The next event; `None` when the subscriber is closed.
    ///
    /// # Cancel safety
    /// Safe: an event is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<SubscriberEvent> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next event, if there is one now.
    pub fn try_recv(&mut self) -> Option<SubscriberEvent> {
        if self.taken.is_empty() {
            self.queue.swap(&mut self.taken);
        }
        self.taken.pop_front()
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<SubscriberEvent>> {
        if self.taken.is_empty() && self.queue.poll_take(&mut self.taken, cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.taken.pop_front())
    }

    /// Calls `callback` for each event in a thread of its own, until the subscriber is closed. A panic
    /// of it is logged and followed by a `sync`.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn call(mut self, mut callback: Callback) -> io::Result<()> {
        let run = move || {
            while let Some(event) = block_on(&mut self) {
                let lost = matches!(event, SubscriberEvent::Update(_));
                // the callback owns what it may have left half done; it is called again as upstream
                // calls it again
                let call = catch_unwind(AssertUnwindSafe(|| callback(event)));
                if call.is_err() {
                    self.queue.panics.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(sync = lost, "the subscriber's callback panicked");
                    if lost {
                        self.queue
                            .push_sync(Sync { missing: None, cause: SyncCause::CallbackPanicked });
                    }
                }
            }
        };
        thread::Builder::new().name("dragonwire-callback".to_owned()).spawn(run).map(drop)
    }
}

/// Feeds an [`Updates`] stream, which ends when this is dropped.
#[derive(Debug)]
pub struct EventSender(Arc<Queue>);

impl EventSender {
    /// Hands an event over once there is room for it. Events that nobody will take are dropped.
    ///
    /// # Cancel safety
    /// Safe: when cancelled, the event was not handed over.
    pub async fn send(&mut self, event: SubscriberEvent) {
        std::future::poll_fn(|cx| self.0.poll_room(cx)).await;
        self.0.push_all(&mut VecDeque::from([event]));
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Stream for Updates {
    type Item = SubscriberEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SubscriberEvent>> {
        self.poll_recv(cx)
    }
}

impl fmt::Debug for Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updates").field("taken", &self.taken.len()).finish_non_exhaustive()
    }
}

impl Drop for Updates {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

/// Parks the thread until an event comes.
fn block_on(updates: &mut Updates) -> Option<SubscriberEvent> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match updates.poll_recv(&mut cx) {
            Poll::Ready(event) => return event,
            Poll::Pending => thread::park(),
        }
    }
}

/// Events that were received and not yet taken.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    panics: AtomicU64,
    /// Whose budget they are charged to.
    account: Option<Arc<Account>>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<SubscriberEvent>,
    /// What they take of memory, and what those do that were taken over last.
    octets: usize,
    taken: usize,
    closed: bool,
    /// Nobody will take any more.
    abandoned: bool,
    taker: Option<Waker>,
    giver: Option<Waker>,
}

impl Queue {
    pub(crate) fn within(account: Option<Arc<Account>>) -> Arc<Self> {
        Arc::new(Self { account, ..Self::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what is in `events`. That may go beyond the bound: the giver waits for room first.
    pub(crate) fn push_all(&self, events: &mut VecDeque<SubscriberEvent>) {
        if events.is_empty() {
            return;
        }
        let octets: usize = events.iter().map(SubscriberEvent::octets).sum();
        let mut state = self.lock();
        if state.closed || state.abandoned {
            events.clear();
            return;
        }
        state.push_all(events);
        state.octets += octets;
        self.charge(0, octets);
        let taker = state.taker.take();
        drop(state);
        taker.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn push_sync(&self, sync: Sync) {
        self.push_all(&mut VecDeque::from([SubscriberEvent::Sync(sync)]));
    }

    /// Resolves when there is room.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let has_room = state.events.len() < CAPACITY && state.octets < CAPACITY_OCTETS;
        if has_room || state.abandoned {
            return Poll::Ready(());
        }
        state.giver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let wakers = [state.taker.take(), state.giver.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// How often the callback panicked.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// How many events wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().events.len()
    }

    /// Hands all of them over to where none is left.
    fn swap(&self, taken: &mut VecDeque<SubscriberEvent>) {
        self.hand_over(self.lock(), taken);
    }

    fn hand_over(&self, mut state: MutexGuard<'_, State>, taken: &mut VecDeque<SubscriberEvent>) {
        std::mem::swap(&mut state.events, taken);
        // those before them are the user's by now
        let octets = std::mem::take(&mut state.octets);
        let gone = std::mem::replace(&mut state.taken, octets);
        let giver = state.giver.take();
        drop(state);
        self.charge(gone, 0);
        giver.into_iter().for_each(Waker::wake);
    }

    fn charge(&self, from: usize, to: usize) {
        if let Some(account) = &self.account {
            account.charge(from, to);
        }
    }

    fn poll_take(&self, taken: &mut VecDeque<SubscriberEvent>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if !state.events.is_empty() {
            self.hand_over(state, taken);
            return Poll::Ready(());
        }
        if state.closed {
            return Poll::Ready(());
        }
        state.taker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn abandon(&self) {
        let mut state = self.lock();
        state.abandoned = true;
        state.events.clear();
        let gone = std::mem::take(&mut state.octets) + std::mem::take(&mut state.taken);
        let giver = state.giver.take();
        drop(state);
        self.charge(gone, 0);
        giver.into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn push_all(&mut self, events: &mut VecDeque<SubscriberEvent>) {
        let is_vague = |event: &SubscriberEvent| {
            matches!(event, SubscriberEvent::Sync(Sync { missing: None, .. }))
        };
        if !events.iter().any(is_vague) {
            self.events.append(events);
            return;
        }
        for event in events.drain(..) {
            // "something, but it is not known what" is told once, however often it is true before it
            // is heard
            if !is_vague(&event) || self.events.back() != Some(&event) {
                self.events.push_back(event);
            }
        }
    }
}

/// Events that may wait, and the memory that they may take; the last of them may go beyond it.
const CAPACITY: usize = 1024;
const CAPACITY_OCTETS: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::driver::update::{Action, Value};
    use crate::governor::Budget;

    fn update(key: &str) -> SubscriberEvent {
        SubscriberEvent::Update(Update { timestamp: None, ..Update::new("t", key, Action::Set) })
    }

    fn unknown() -> SubscriberEvent {
        SubscriberEvent::Sync(Sync { missing: None, cause: SyncCause::Undecodable })
    }

    #[test]
    fn a_sync_that_says_the_same_is_told_once_until_it_is_taken() {
        let queue = Arc::new(Queue::default());
        let mut updates = Updates::new(queue.clone());
        let events = [update("1"), unknown(), unknown(), update("2"), unknown()];
        queue.push_all(&mut events.into());
        let taken: Vec<_> = std::iter::from_fn(|| updates.try_recv()).collect();
        assert_eq!(taken, [update("1"), unknown(), update("2"), unknown()]);
        queue.push_all(&mut [unknown()].into());
        assert_eq!(updates.try_recv(), Some(unknown()));
    }

    #[tokio::test]
    async fn there_is_room_again_when_events_are_taken_or_nobody_will_take_them() {
        let queue = Arc::new(Queue::default());
        let mut updates = Updates::new(queue.clone());
        queue.push_all(&mut (0..CAPACITY).map(|key| update(&key.to_string())).collect());
        let mut room = std::pin::pin!(std::future::poll_fn(|cx| queue.poll_room(cx)));
        assert!(futures::future::poll_immediate(&mut room).await.is_none());
        assert_eq!(updates.recv().await, Some(update("0")));
        room.await;
        queue.push_all(&mut (0..CAPACITY).map(|key| update(&key.to_string())).collect());
        drop(updates);
        std::future::poll_fn(|cx| queue.poll_room(cx)).await;
    }

    #[tokio::test]
    async fn few_large_events_leave_no_room_and_are_charged_until_they_are_taken() {
        let budget = Budget::process(64 << 20);
        let queue = Queue::within(Some(Account::new(&budget)));
        let mut updates = Updates::new(queue.clone());
        let value = serde_json::json!({"a": [1, 2, "b"], "c": "x".repeat(CAPACITY_OCTETS / 2)});
        let large =
            Update { value: Some(Value::Other(value)), ..Update::new("t", "k", Action::Set) };
        let mut room = std::pin::pin!(std::future::poll_fn(|cx| queue.poll_room(cx)));
        for _ in 0..2 {
            assert!(futures::future::poll_immediate(&mut room).await.is_some());
            queue.push_all(&mut [SubscriberEvent::Update(large.clone())].into());
        }
        assert!(futures::future::poll_immediate(&mut room).await.is_none());
        let charged = CAPACITY_OCTETS..CAPACITY_OCTETS + 2000;
        assert!(charged.contains(&budget.usage().used), "{:?}", budget.usage());
        assert!(updates.recv().await.is_some() && updates.recv().await.is_some());
        room.await;
        assert!(charged.contains(&budget.usage().used), "of the last ones it is not known yet");
        queue.push_all(&mut [update("1")].into());
        assert!(updates.recv().await.is_some());
        assert!(budget.usage().used < 1000, "{:?}", budget.usage());
        drop(updates);
        assert_eq!(budget.usage().used, 0);
    }

    #[tokio::test]
    async fn a_users_own_subscriber_feeds_a_stream() {
        let (mut sender, mut updates) = Updates::channel();
        sender.send(update("1")).await;
        drop(sender);
        assert_eq!(updates.recv().await, Some(update("1")));
        assert_eq!(updates.recv().await, None);
    }

    #[tokio::test]
    async fn what_was_received_before_the_end_is_taken() {
        let queue = Arc::new(Queue::default());
        let mut updates = Updates::new(queue.clone());
        queue.push_all(&mut [update("1")].into());
        queue.close();
        queue.push_all(&mut [update("2")].into());
        assert_eq!(updates.recv().await, Some(update("1")));
        assert_eq!(updates.recv().await, None);
    }

    #[test]
    fn a_callback_that_panics_is_called_again_with_a_sync() {
        let queue = Arc::new(Queue::default());
        let (told, heard) = mpsc::channel();
        let callback = move |event: SubscriberEvent| {
            told.send(event.clone()).unwrap();
            assert_ne!(event, update("bad"), "a fault of the callback");
        };
        Updates::new(queue.clone()).call(Box::new(callback)).unwrap();
        queue.push_all(&mut [update("1"), update("bad")].into());
        let next = || heard.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!((next(), next()), (update("1"), update("bad")));
        let sync = Sync { missing: None, cause: SyncCause::CallbackPanicked };
        assert_eq!(next(), SubscriberEvent::Sync(sync));
        queue.push_all(&mut [update("2")].into());
        assert_eq!(next(), update("2"));
        assert_eq!(queue.panics(), 1);
        queue.close();
        assert!(heard.recv_timeout(Duration::from_secs(20)).is_err(), "the thread ends");
    }
}
