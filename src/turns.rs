//! How tasks give way to others: those that only send or receive, and connections that have read much.
//!
//! Like everything of tokio's they spend the running task's budget, but a unit of it is for some
//! messages together: tokio's unit is meant for an operation that takes about a microsecond, and a
//! small message takes far less. A task that yielded every 128 messages would also have its
//! connections write every 128 messages.
//!
//! Connections of one thread do not all read before those who receive have their turn: what was read
//! would have left the processor's cache by then.

use std::cell::Cell;
use std::task::{Context, Poll, ready};

use tokio::task::coop;

thread_local! {
    /// Spent and not yet charged; by thread, as whoever does not yield is all that runs on it.
    static SPENT: Cell<usize> = const { Cell::new(0) };
}

/// What connections read on this thread that nobody has taken, and how often somebody has.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    octets: usize,
    taken: u64,
}

thread_local! {
    static AHEAD: Cell<Ahead> = const { Cell::new(Ahead { octets: 0, taken: 1 }) };
}

/// Notes that a connection read so many octets.
pub(crate) fn note_read(octets: usize) {
    let ahead = AHEAD.get();
    AHEAD.set(Ahead { octets: ahead.octets + octets, ..ahead });
}

/// Notes that somebody took what was read.
pub(crate) fn note_taken() {
    AHEAD.set(Ahead { octets: 0, taken: AHEAD.get().taken.wrapping_add(1) });
}

/// Whether a connection is to let others run before it reads. Not again before somebody has taken
/// something: on this thread perhaps nobody does. `last`: when it did so last.
pub(crate) fn is_ahead(last: &mut u64) -> bool {
    let ahead = AHEAD.get();
    ahead.octets > AHEAD_MAX && std::mem::replace(last, ahead.taken) != ahead.taken
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

/// Octets that may be read ahead: they fit into a cache.
const AHEAD_MAX: usize = 256 * 1024;

/// What a message costs on top of its octets.
const MESSAGE: usize = 1024;
