//! A bounded queue to one watcher. One that does not keep up loses what is queued and is told so, in
//! order to look at the whole table anew.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

/// What a watcher takes from its queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<T> {
    Item(T),
    /// The queue overflowed; what was in it is gone.
    Missed,
}

/// The end that is filled.
#[derive(Debug)]
pub(super) struct Feed<T>(Weak<Mutex<Queue<T>>>);

/// The end that is emptied.
#[derive(Debug)]
pub(super) struct Intake<T>(Arc<Mutex<Queue<T>>>);

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    missed: bool,
    waker: Option<Waker>,
}

pub(super) fn queue<T>() -> (Feed<T>, Intake<T>) {
    let queue = Queue { items: VecDeque::new(), missed: false, waker: None };
    let queue = Arc::new(Mutex::new(queue));
    (Feed(Arc::downgrade(&queue)), Intake(queue))
}

impl<T> Feed<T> {
    /// Whether somebody still takes from it.
    pub(super) fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Never waits.
    pub(super) fn push(&self, item: T) {
        let Some(queue) = self.0.upgrade() else { return };
        let mut queue = lock(&queue);
        if queue.items.len() >= CAPACITY {
            queue.items = VecDeque::new();
            queue.missed = true;
        }
        if !queue.missed {
            queue.items.push_back(item);
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Intake<T> {
    /// The next item.
    ///
    /// Cancel safe: an item is taken only when it is returned.
    pub(super) async fn next(&mut self) -> Taken<T> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Taken<T>> {
        let mut queue = lock(&self.0);
        if std::mem::take(&mut queue.missed) {
            return Poll::Ready(Taken::Missed);
        }
        if let Some(item) = queue.items.pop_front() {
            return Poll::Ready(Taken::Item(item));
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Forgets what is queued: the whole table is looked at after this.
    pub(super) fn clear(&mut self) {
        let mut queue = lock(&self.0);
        queue.items.clear();
        queue.missed = false;
    }
}

fn lock<T>(queue: &Mutex<Queue<T>>) -> MutexGuard<'_, Queue<T>> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// More changes than a table sees while its watcher is busy for a moment.
const CAPACITY: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watcher_that_does_not_keep_up_is_told_so_and_goes_on() {
        let (feed, mut intake) = queue();
        (0..CAPACITY).for_each(|item| feed.push(item));
        assert_eq!(intake.next().await, Taken::Item(0));
        feed.push(CAPACITY);
        assert_eq!(intake.next().await, Taken::Item(1));
        (0..5).for_each(|item| feed.push(item));
        assert_eq!(intake.next().await, Taken::Missed);
        feed.push(7);
        assert_eq!(intake.next().await, Taken::Item(7));
        feed.push(8);
        intake.clear();
        feed.push(9);
        assert_eq!(intake.next().await, Taken::Item(9));
        assert!(feed.is_open());
        drop(intake);
        assert!(!feed.is_open());
        feed.push(10);
    }
}
