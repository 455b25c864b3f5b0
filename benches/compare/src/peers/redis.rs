//! The pipeline through a Redis server: PUBLISH and SUBSCRIBE by the redis crate, in batches, with
//! bodies that were made before. The server's process is the relay.

use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::block_on;
use super::pipeline::{Answers, Done, Gate, TOPIC, msgpack};
use crate::receipt::Receipt;
use crate::role::{Role, Verb};
use crate::signals;
use crate::tally::{Tally, memory};

pub const SETTINGS: &str = "the redis crate on tokio: pipelines of up to 250 PUBLISH, whose answers \
     are awaited before the next; redis-server without persistence; SUBSCRIBE as a stream; bodies in \
     MessagePack, made before, that are not decoded";

pub fn version() -> String {
    let server = Command::new(SERVER).arg("--version").output();
    let said = server.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let version = said.as_deref().ok().and_then(|said| said.split("v=").nth(1)?.split(' ').next());
    let crate_version = super::locked_version("redis");
    format!("{}, crate {crate_version}", version.unwrap_or("missing"))
}

pub fn declines(role: &Role) -> bool {
    !role.is_of_pipeline()
}

pub fn run(role: &Role) -> Tally {
    if role.verb == Verb::Relay {
        return serve(role);
    }
    let role = role.clone();
    block_on(role.runtime, async move {
        let done = match role.verb {
            Verb::Produce => produce(&role).await,
            _ => consume(&role).await,
        };
        done.unwrap_or_else(|error| panic!("{:?}: {error}", role.verb))
    })
}

/// The server. With `bind` a process beside it, which counts what it uses; that one starts this
/// program again without, to become the server: so it does not outlive the other.
pub fn serve(role: &Role) -> Tally {
    if !role.bind {
        let (address, port) = role.endpoint.rsplit_once(':').expect("an address and a port");
        let options = ["--bind", address, "--port", port, "--save", "", "--appendonly", "no"];
        panic!(
            "{SERVER} (Debian: apt-get install {SERVER}): {}",
            Command::new(SERVER).args(options).exec()
        );
    }
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let address = free.expect("a free port");
    let server = Role { endpoint: address.to_string(), bind: false, ..role.clone() };
    let program = std::env::current_exe().expect("this program has a path");
    let mut server = Command::new(program)
        .args(["peer", "redis", &server.to_argument()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("this program can be started again");
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        let status = server.try_wait().expect("the server is this process's child");
        assert!(status.is_none() && begun.elapsed() < PATIENCE, "{SERVER} does not answer");
        std::thread::sleep(GLANCE);
    }
    signals::listening(address);
    signals::wait_for_go();
    let process = server.id().to_string();
    let tally = Tally {
        cpu_seconds: cpu_seconds(&process),
        peak_rss: memory(&process, "VmHWM:"),
        ..Tally::default()
    };
    server.kill().and_then(|()| server.wait()).expect("the server is this process's child");
    tally
}

/// Of all threads of a process.
fn cpu_seconds(process: &str) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}

async fn produce(role: &Role) -> Done<Tally> {
    let mut connection = client(role)?.get_multiplexed_async_connection().await?;
    let body = msgpack(role);
    let mut gate = Gate::of(role).await?;
    let events = role.round_trips();
    let mut sent = 0;
    while sent < events {
        gate.pass(sent).await?;
        let mut batch = redis::pipe();
        while batch.len() < BATCH && sent < events && gate.is_open(sent) {
            batch.publish(TOPIC, &body).ignore();
            sent += 1;
        }
        batch.exec_async(&mut connection).await?;
    }
    gate.tally(events).await
}

async fn consume(role: &Role) -> Done<Tally> {
    let mut subscriber = client(role)?.get_async_pubsub().await?;
    subscriber.subscribe(TOPIC).await?;
    let mut answers = Answers::of(role).await?;
    signals::subscribed();
    let receipt = Receipt::watch();
    let mut counter = receipt.counter(role.round_trips());
    let mut messages = subscriber.on_message();
    loop {
        if messages.next().await.is_none() {
            let note = Some("the server closed a connection that was too slow".to_owned());
            return Ok(Tally { note, ..receipt.tally() });
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

fn client(role: &Role) -> redis::RedisResult<redis::Client> {
    redis::Client::open(format!("redis://{}/", role.endpoint))
}

const SERVER: &str = "redis-server";
const BATCH: usize = 250;
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(5);
