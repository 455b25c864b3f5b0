//! What the tests of dragonwire against real libzmq stand on: libzmq itself, built from source, and
//! a common face for a socket of either kind.
//!
//! - [`libzmq`]: its C API, made safe. The only place that may call it.
//! - [`side`]: a socket that is either dragonwire's or libzmq's, so that a scenario is written once
//!   and run with each of them in each role.
//! - [`process`]: a libzmq socket in a process of its own, to be killed, stopped and continued.
//! - [`chaos`]: what the processes of the chaos test send and say.
//! - [`place`]: where sockets meet: ports chosen by the system, paths in temporary folders.
//!
//! Nothing here waits without a [`DEADLINE`].

pub mod chaos;
pub mod libzmq;
pub mod place;
pub mod process;
pub mod side;

use std::time::{Duration, Instant};

/// How long anything may take that should happen at once: generous, since a busy machine is slow,
/// and reached only by a test that fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often a condition is looked at that nothing announces.
pub const GLANCE: Duration = Duration::from_millis(2);

/// The future's output.
///
/// # Panics
/// It takes longer than [`DEADLINE`].
#[track_caller]
pub fn within<F: Future>(what: &str, future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: not within {DEADLINE:?}: {what}"),
        }
    }
}

/// Looks at a condition that nothing announces until it holds.
///
/// # Panics
/// It does not hold within [`DEADLINE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let end = Instant::now() + DEADLINE;
        while !condition() {
            assert!(Instant::now() < end, "{caller}: not within {DEADLINE:?}: {what}");
            tokio::time::sleep(GLANCE).await;
        }
    }
}
