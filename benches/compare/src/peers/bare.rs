//! The pipelines of bodies that were made before, over dragonwire's own sockets: with a relay as one
//! would write it by hand, and with the publisher service in its place.

use dragonwire::{PubSocket, PullSocket, PushSocket, SubSocket};

use super::block_on;
use super::pipeline::{Answers, Done, Gate, Numbered, TOPIC, is_positions};
use crate::receipt::Receipt;
use crate::role::{Role, Verb};
use crate::signals;
use crate::tally::Tally;

pub const SETTINGS: &str = "PUSH, a relay that takes up to 1000 messages by recv_many and publishes \
     each with try_send, SUB; numbered bodies in Protocol Buffers, made before, sent with \
     send_frames; default options";

pub const SETTINGS_SERVICE: &str = "the same, with PublisherService as the relay";

pub fn version() -> String {
    super::locked_version("dragonwire")
}

pub fn declines(role: &Role) -> bool {
    !role.is_of_pipeline()
}

pub fn run(role: &Role) -> Tally {
    run_with(role, false)
}

pub fn run_service(role: &Role) -> Tally {
    run_with(role, true)
}

fn run_with(role: &Role, service: bool) -> Tally {
    let role = role.clone();
    block_on(role.runtime, async move {
        let done = match role.verb {
            Verb::Produce => produce(&role).await,
            Verb::Relay if service => super::driver::serve(&role, None).await,
            Verb::Relay => relay(&role).await,
            _ => consume(&role).await,
        };
        done.unwrap_or_else(|error| panic!("{:?}: {error}", role.verb))
    })
}

async fn produce(role: &Role) -> Done<Tally> {
    let push = PushSocket::new();
    push.connect(&role.local).await?;
    let mut numbered = Numbered::of(role);
    let mut gate = Gate::of(role).await?;
    let events = role.round_trips();
    for sent in 0..events {
        gate.pass(sent).await?;
        push.send_frames(&[TOPIC.as_bytes(), numbered.body(sent + 1)]).await?;
    }
    let tally = gate.tally(events).await?;
    push.close().await;
    Ok(tally)
}

async fn relay(role: &Role) -> Done<Tally> {
    let mut pull = PullSocket::new();
    pull.bind(&role.local).await?;
    let publisher = PubSocket::new();
    signals::listening(publisher.bind(&role.endpoint).await?);
    let go = signals::go();
    tokio::pin!(go);
    let (mut batch, mut relayed) = (Vec::new(), 0);
    loop {
        tokio::select! {
            () = &mut go => return Ok(Tally::of(relayed, 0.0)),
            taken = pull.recv_many(&mut batch, BATCH) => relayed += taken? as u64,
        }
        for message in batch.drain(..) {
            publisher.try_send(message)?;
        }
    }
}

async fn consume(role: &Role) -> Done<Tally> {
    let mut subscriber = SubSocket::new();
    subscriber.subscribe(TOPIC)?;
    subscriber.connect(&role.endpoint).await?;
    let mut answers = Answers::of(role).await?;
    subscriber.ready().await?;
    signals::subscribed();
    let receipt = Receipt::watch();
    let mut counter = receipt.counter(role.round_trips());
    loop {
        let message = subscriber.recv().await?;
        if message.frame(1).is_some_and(is_positions) {
            continue;
        }
        let more = counter.one();
        if answers.are_due(1) {
            answers.say().await?;
        }
        if !more {
            answers.close().await;
            return Ok(receipt.tally());
        }
    }
}

/// As the publisher service takes at a time.
const BATCH: usize = 1000;
