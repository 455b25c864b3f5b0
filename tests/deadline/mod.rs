//! Waiting for what must happen, and not for ever.

#![allow(dead_code, reason = "not every test file waits for everything")]

use std::future::Future;
use std::time::Duration;

use dragonwire::{Event, Monitor};
use tokio::task::yield_now;
use tokio::time::timeout;

/// Far more than anything takes, on a machine that does other things as well.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("nothing within the deadline")
}

/// The next such event; others are passed over.
pub(crate) async fn event(monitor: &mut Monitor, wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        let event = within(monitor.recv()).await.expect("the monitor ended");
        if wanted(&event) {
            return event;
        }
    }
}

/// For what no event tells.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    within(async {
        while !holds() {
            yield_now().await;
        }
    })
    .await;
}
