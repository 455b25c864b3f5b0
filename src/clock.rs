//! The time of day below the line, where it is only looked at to tell a lone message from a busy loop.

use std::time::Instant;

/// Now; on a thread with a simulated network, that network's time.
#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(feature = "__sim")]
    if let Some(now) = simulated::NOW.get() {
        return now();
    }
    Instant::now()
}

#[cfg(feature = "__sim")]
pub(crate) mod simulated {
    use std::cell::Cell;
    use std::time::Instant;

    thread_local! {
        /// What tells the time on this thread, if it is not the system.
        pub(crate) static NOW: Cell<Option<fn() -> Instant>> = const { Cell::new(None) };
    }
}
