//! Futures that are dropped after a few polls.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use dragonwire::sim::Rng;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

/// Polls a future at most so many times, with everything else having a turn in between, and drops it
/// if it is not done then.
pub(crate) async fn polled<F: Future>(times: u64, rng: &mut Rng, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    for i in 0..times {
        if i > 0 {
            pause(rng, 20).await;
        }
        if let Poll::Ready(output) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Some(output);
        }
    }
    None
}

/// Does something that can be done again when it was cancelled, and cancels it most of the time.
pub(crate) async fn insist<T>(rng: &mut Rng, mut attempt: impl AsyncFnMut() -> T) -> T {
    for _ in 0..rng.below(6) {
        if rng.chance(200) {
            out_of_budget().await;
        }
        let times = rng.below(4);
        if let Some(output) = polled(times, rng, attempt()).await {
            return output;
        }
        pause(rng, 10).await;
    }
    attempt().await
}

/// Waits for something for a few polls or for a while, and drops it then.
pub(crate) async fn briefly<F: Future>(rng: &mut Rng, future: F) -> Option<F::Output> {
    if rng.chance(200) {
        let times = rng.below(4);
        polled(times, rng, future).await
    } else {
        timeout(Duration::from_millis(rng.below(1000)), future).await.ok()
    }
}

/// Lets others run, or lets time pass.
pub(crate) async fn pause(rng: &mut Rng, most: u64) {
    match rng.below(most) {
        milliseconds if rng.chance(300) => sleep(Duration::from_millis(milliseconds)).await,
        _ => yield_now().await,
    }
}

/// Uses up the task's budget, so that the first await of a method that gives way is pending.
async fn out_of_budget() {
    while poll_fn(|cx| {
        let mut consume = pin!(tokio::task::consume_budget());
        Poll::Ready(consume.as_mut().poll(cx).is_ready())
    })
    .await
    {}
}
