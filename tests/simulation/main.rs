//! Sockets over a simulated network, in simulated time, hundreds of times: each seed is another network,
//! other cables that are cut and healed, other moments at which futures are dropped, and the same for ever
//! after. What must hold is in docs/simulation.md.
//!
//! To sleep costs nothing here. Where a scenario sleeps for seconds it waits until nothing is on its way any
//! more: what must *not* come, or what is lost, can be told by nothing else.
//!
//! `SIM_SEED=17` runs that seed alone, `SIM_SEEDS=0..5000` runs more than usual. A seed that found
//! something is kept in the list of its test, with a word on what that was; it runs first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod books;
mod closing;
mod dropping;
mod following;
mod patience;
mod pipeline;
mod publishing;
mod world;

use world::{run, run_all};

#[test]
fn pipelines_lose_nothing_that_the_network_does_not() {
    run_all(
        "pipelines",
        0..80,
        &[
            (28, "what was read ahead of a full queue died with a heartbeat that failed"),
            (14, "the same when the peer had closed in good order and the receiver was slow"),
            (26, "a queue with half a PING in front was taken for one with half a message"),
        ],
        pipeline::scenario,
    );
}

#[test]
fn subscriptions_are_in_force_again_when_the_cables_are() {
    run_all("cables", 0..80, &[], publishing::scenario);
}

#[test]
fn subscriptions_are_in_force_again_when_a_crashed_host_is_back() {
    run_all("crashed_host", 0..40, &[], publishing::crash);
}

#[test]
fn endpoints_come_and_go_without_loss_from_the_others() {
    run_all("endpoints", 0..60, &[], following::scenario);
}

#[test]
fn sockets_close_within_their_linger_and_say_what_became_of_the_rest() {
    run_all("close_within", 0..200, &[], closing::scenario);
}

#[test]
fn every_future_may_be_dropped_at_every_await() {
    run_all("dropped", 0..200, &[], dropping::scenario);
}

#[test]
fn a_seed_is_the_same_every_time() {
    let traces: Vec<_> = (0..6).map(|seed| run(seed, publishing::scenario)).collect();
    for (seed, trace) in (0..).zip(&traces) {
        assert_eq!(run(seed, publishing::scenario), *trace, "seed {seed}");
        assert_eq!(traces.iter().filter(|other| *other == trace).count(), 1, "seed {seed}");
    }
    for seed in 0..6 {
        assert_eq!(run(seed, pipeline::scenario), run(seed, pipeline::scenario), "seed {seed}");
    }
}
