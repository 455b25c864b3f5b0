//! The `dragonwire` command. Its socket verbs are one process, one socket, messages as lines; its other
//! verbs are the driver layer's, each in a file of its name.

#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod args;
mod console;
mod demo;
mod directory;
mod driver_options;
mod json_lines;
mod lines;
mod log;
mod notices;
mod printer;
mod publish;
mod publisher_service;
mod rates;
mod run;
mod signals;
mod socket;
mod status;
mod stdio;
mod subscribe;
mod systemd;
mod text_lines;

use std::io::Write;
use std::process::exit;

use tokio::runtime::Builder;

use crate::args::{Job, NoJob};
use crate::console::{Console, Target};
use crate::run::{Ending, Failure};
use crate::signals::Signal;

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
        Job::Socket(job) => run::run(*job, console).await,
        Job::Demo(args) => demo::run(args).await,
        Job::DemoPublisher(args) => demo::publish(args).await,
        Job::DemoWorker(args) => demo::work(args).await,
        Job::Publish(args) => publish::run(*args, console).await,
        Job::Subscribe(args) => subscribe::run(*args, console).await,
        Job::PublisherService(args) => publisher_service::run(*args, console).await,
        Job::Status(args) => status::run(args, console).await,
        Job::Directory(args) => directory::run(args, console).await,
    }
}
