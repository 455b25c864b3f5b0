//! How tasks that only send or receive give way to others.
//!
//! Like everything of tokio's they spend the running task's budget, but a unit of it is for some
//! messages together: tokio's unit is meant for an operation that takes about a microsecond, and a
//! small message takes far less. A task that yielded every 128 messages would also have its
//! connections write every 128 messages.

use std::cell::Cell;
use std::task::{Context, Poll, ready};

use tokio::task::coop;

thread_local! {
    /// Spent and not yet charged; by thread, as whoever does not yield is all that runs on it.
    static SPENT: Cell<usize> = const { Cell::new(0) };
}

/// Notes that a message of so many octets was sent or received.
#[inline]
pub(crate) fn spend(octets: usize) {
    SPENT.set(SPENT.get().wrapping_add(MESSAGE + octets));
}

/// Ready when the task may go on; charges what was spent.
#[inline]
pub(crate) fn poll_proceed(cx: &mut Context<'_>) -> Poll<()> {
    if SPENT.get() < UNIT { Poll::Ready(()) } else { charge(cx) }
}

#[cold]
fn charge(cx: &mut Context<'_>) -> Poll<()> {
    ready!(coop::poll_proceed(cx)).made_progress();
    SPENT.set(0);
    Poll::Ready(())
}

/// What a unit of the budget buys: sixteen messages of a kilooctet, or as many more as they are
/// smaller, up to 32.
const UNIT: usize = 32 * 1024;

/// What a message costs on top of its octets.
const MESSAGE: usize = 1024;
