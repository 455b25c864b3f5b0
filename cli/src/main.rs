//! The `dragonwire` command. Its socket verbs are one process, one socket, messages as lines; its other
//! verbs are the driver layer's, each in a file of its name.
//!
//! Without the feature `all-verbs` it is the publisher service alone, and what asks for its status.

#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
// what the verbs share, the other verbs use more of
#![cfg_attr(not(feature = "all-verbs"), allow(dead_code))]

mod args;
mod console;
mod driver_options;
mod ending;
mod log;
mod publisher_service;
mod signals;
mod status;
mod systemd;

#[cfg(feature = "all-verbs")]
mod all_verbs;
#[cfg(feature = "all-verbs")]
mod demo;
#[cfg(feature = "all-verbs")]
mod directory;
#[cfg(feature = "all-verbs")]
mod json_lines;
#[cfg(feature = "all-verbs")]
mod lines;
#[cfg(feature = "all-verbs")]
mod notices;
#[cfg(feature = "all-verbs")]
mod printer;
#[cfg(feature = "all-verbs")]
mod publish;
#[cfg(feature = "all-verbs")]
mod rates;
#[cfg(feature = "all-verbs")]
mod run;
#[cfg(feature = "all-verbs")]
mod socket;
#[cfg(feature = "all-verbs")]
mod stdio;
#[cfg(feature = "all-verbs")]
mod subscribe;
#[cfg(feature = "all-verbs")]
mod text_lines;

use std::io::Write;
use std::process::exit;

use tokio::runtime::Builder;

use crate::args::{Job, NoJob};
use crate::console::{Console, Target};
use crate::ending::{Ending, Failure};
use crate::signals::Signal;

/// musl's own costs the driver layer half of its events a second.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() {
    let job = match args::parse(std::env::args_os()) {
        Ok(job) => job,
        Err(NoJob::Told(text)) => {
            // a reader that has seen enough is no fault
            let _ = std::io::stdout().write_all(text.as_bytes());
            return;
        }
        Err(NoJob::Refused(reason)) => {
            eprintln!("dragonwire: {reason}");
            exit(2);
        }
    };
    let console = Console::start(Target::Error);
    // two cores are busy with one thread for the sockets and the two of the standard streams
    let result = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let result = runtime.block_on(perform(job, &console));
            // does not wait for a name that is being looked up
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::new(format!("cannot start: {error}"))),
    };
    let status = match result {
        Ok(Ending::Done) => 0,
        Ok(Ending::Signal(Signal::Interrupt)) => 130,
        Ok(Ending::Signal(Signal::Terminate)) => 143,
        Ok(Ending::ReaderGone) => 141,
        Err(Failure { status, reason }) => {
            console.say(format!("dragonwire: {reason}"));
            status
        }
    };
    console.flush();
    // the threads of the standard streams may be blocked for ever; nothing is left to be written
    exit(status.into());
}

async fn perform(job: Job, console: &Console) -> Result<Ending, Failure> {
    match job {
        #[cfg(feature = "all-verbs")]
        Job::Other(job) => job.perform(console).await,
        Job::PublisherService(args) => publisher_service::run(*args, console).await,
        Job::Status(args) => status::run(args, console).await,
    }
}
