//! A worker process: pushes numbered messages to one publisher over a Unix socket.

use std::collections::VecDeque;
use std::time::Duration;

use dragonwire::{Endpoint, Message, PushSocket, SocketOptions};
use tokio::time::{MissedTickBehavior, interval};

use crate::demo::books::Pushed;
use crate::demo::child::{Said, end_of_input, say};
use crate::demo::{END, LINGER};
use crate::ending::{Ending, Failure};

/// How a worker process is started.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct WorkerArgs {
    /// The worker's number
    #[arg(long)]
    pub(crate) worker: u32,
    /// Where its publisher listens
    #[arg(long)]
    pub(crate) connect: Endpoint,
    /// Messages a second; 0: as fast as it goes
    #[arg(long)]
    pub(crate) rate: u64,
}

/// Pushes until the standard input ends.
pub(crate) async fn work(args: WorkerArgs) -> Result<Ending, Failure> {
    let mut stop = end_of_input();
    let push = PushSocket::with_options(SocketOptions::new().linger(Some(LINGER)))?;
    push.connect(&args.connect).await?;

    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let batch = match args.rate {
        0 => BATCH,
        rate => (rate * TICK.as_millis() as u64 / 1000).max(1),
    };
    let mut made = 0;
    let mut queue = VecDeque::new();
    loop {
        let pushing = async {
            if queue.is_empty() {
                if args.rate > 0 {
                    ticks.tick().await;
                }
                queue.extend((made..made + batch).map(|number| message(args.worker, number)));
                made += batch;
            }
            push.send_many(&mut queue).await
        };
        tokio::select! {
            _ = &mut stop => break,
            pushed = pushing => pushed?,
        }
    }
    // what is still in the queue was not accepted
    let pushed = made - queue.len() as u64;
    push.send(Message::from([END, &args.worker.to_string()]))
        .await
        .map_err(|error| Failure::new(error.to_string()))?;
    let report = push.close().await;
    if report.discarded > 0 {
        return Err(Failure::new(format!("worker {}: {report:?}", args.worker)));
    }
    say(&Said::Finished(Pushed { worker: args.worker, pushed }))?;
    Ok(Ending::Done)
}

/// A reading of one of a few instruments: `temp.oslo`, then the worker, its number and the value.
fn message(worker: u32, number: u64) -> Message {
    const TOPICS: [&str; 5] =
        ["temp.oslo", "wind.oslo", "temp.bergen", "wind.bergen", "debug.worker"];
    let topic = TOPICS.get((number % 5) as usize).copied().unwrap_or_default();
    let value = (number * 37 % 500) as f64 / 10.0 - 20.0;
    Message::pair(topic, format!("{worker} {number} {value:.1}"))
}

/// How often a worker with a rate pushes a batch.
const TICK: Duration = Duration::from_millis(5);

/// Messages in a batch of a worker without a rate.
const BATCH: u64 = 200;
