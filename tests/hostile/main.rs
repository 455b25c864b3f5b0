//! What hostile peers do, and that it harms nobody but themselves.
//!
//! The victim is a socket in a process of its own (`victim`), within `Budget::process(64 MiB)`. Beside
//! the attackers it has a good peer (`scene`). In every test all of these hold:
//!
//! - each message of the good peer, or for it, arrives in order, during the attack and after it, and
//!   after it another good peer gets in;
//! - the process has at most 64 MiB of resident memory at any time (`VmHWM`);
//! - an attacker that is cut off is named by a monitor event, with its address and the cause.
//!
//! `tests/violations.rs` has what one attacker does to a socket without a budget.
//!
//! | attack | tests here | `tests/violations.rs` |
//! | --- | --- | --- |
//! | headers of 2^40, 2^63, 2^64 - 1 octets | `handshakes::crowds_that_break_the_protocol` | `frames_beyond_any_size_*` |
//! | a command of 2^36 octets before READY | the same | the same |
//! | 5 million empty MORE frames | `messages::millions_of_empty_frames_that_are_allowed`; by default the same as above | `millions_of_empty_frames_in_one_message` |
//! | PLAIN in the greeting, then NULL | `handshakes::crowds_that_break_the_protocol` | `another_mechanism_in_the_greeting` |
//! | saying nothing | `handshakes::connections_that_say_nothing` | `silence_at_any_point_of_the_handshake` |
//! | one octet a second | `handshakes::octets_that_drip` | `a_handshake_that_drips` |
//! | READY without end | `handshakes::crowds_that_break_the_protocol`, `handshakes::handshakes_that_lack_their_last_octet` | `ready_beyond_8_kib` |
//! | millions of subscriptions | `subscriptions::*_million_subscriptions`, `subscriptions::subscribers_that_come_again_and_again` | `bad_subscribers` |
//! | topics of 64 KiB in depth | `subscriptions::topics_in_depth` | |
//! | unknown commands | `commands::unknown_commands` | `commands_without_end_inside_a_message_are_not_kept` |
//! | floods of PINGs | `commands::pings_*` | |
//! | ERROR with a long reason | `handshakes::crowds_that_break_the_protocol` | `an_error_command_is_understood` |
//! | RST at every octet of a session | `connections::resets_at_every_octet` | |
//! | half-open after the cable is cut | `connections::a_cable_that_is_cut` | |
//! | ten thousand connects a second | `connections::connects_by_the_thousand` | `too_many_half_open_connections_cost_the_oldest_its_place` |
//! | file descriptors exhausted | `connections::descriptors_that_run_out` | |
//! | a stalled subscriber of 200 000 messages | `stalled::a_stalled_subscriber` | |
//! | ten thousand stalled subscribers | `stalled::thousands_of_stalled_subscribers` | |
//! | messages that do not end | `messages::thousands_of_messages_that_stop_midway`, `messages::messages_that_do_not_fit_together` | |
//! | more than the application receives | `messages::an_application_that_does_not_receive`, `messages::messages_of_peers_that_are_gone` | |
//! | connections without a purpose | `commands::peers_that_stay_for_nothing` | |
//! | subscribing and cancelling for ever | `subscriptions::subscribing_and_cancelling_without_end` | |
//!
//! `HOSTILE_FULL=1` runs them with the full numbers where fewer show the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[allow(dead_code, reason = "not every test needs all of it")]
#[path = "../peer/mod.rs"]
mod peer;

mod commands;
mod connections;
mod handshakes;
mod messages;
mod scene;
mod stalled;
mod subscriptions;
mod victim;

use std::future::Future;
use std::time::Duration;

/// Far more than anything takes, on a machine that does other things as well.
const DEADLINE: Duration = Duration::from_secs(60);

/// Resolves to what the future does, or fails the test with what was awaited.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let late = |_| panic!("not within {DEADLINE:?}: {what}");
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(late)
}
