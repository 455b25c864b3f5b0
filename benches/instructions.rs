//! The guard against going backwards: instructions per round of the hot paths, held against the
//! committed baseline, `benches/instructions.json`.
//!
//! ```text
//! cargo bench --features __bench --bench instructions              # fails when a count has grown
//! cargo bench --features __bench --bench instructions -- --accept  # makes the counts the baseline
//! ```
//!
//! Each case runs twice under valgrind, with few rounds and with many; the difference is that of the
//! rounds alone, without start-up and set-up. `docs/instruction-counts.md` says what the figures
//! depend on. Own code, because gungraun needs a runner program of its very version installed and
//! keeps what it compares with under `target/`, not in git.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use dragonwire::Budget;
use dragonwire::bench::{Matching, Sending, block, decode};
use dragonwire::driver::codec::{Codec, Origin};
use dragonwire::driver::{Action, Update, Uuid};
use serde::{Deserialize, Serialize};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    // cargo adds --bench
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        [] => guard(),
        ["--accept"] => accept(),
        [RUN, case, rounds] => run(case, rounds),
        _ => Err("takes no argument or --accept".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Case {
    name: &'static str,
    /// Enough that a difference in set-up, where hash maps have random seeds, is nothing beside them.
    rounds: u64,
    /// Sets up and does so many rounds.
    run: fn(u64),
}

const CASES: [Case; 9] = [
    Case { name: "push 64 B to 1", rounds: 100_000, run: push },
    Case { name: "publish 8 + 64 B to 8", rounds: 40_000, run: publish },
    Case { name: "push within a budget", rounds: 100_000, run: push_within_budget },
    Case { name: "publish within a budget", rounds: 40_000, run: publish_within_budget },
    Case { name: "decode 64 KiB of 64 B", rounds: 1_000, run: decode_block },
    Case { name: "match a hit among 10 000", rounds: 100_000, run: match_hit },
    Case { name: "match a miss among 10 000", rounds: 100_000, run: match_miss },
    Case { name: "encode an event", rounds: 100_000, run: encode_event },
    Case { name: "decode an event", rounds: 100_000, run: decode_event },
];

fn push(rounds: u64) {
    push_by(&Sending::new(false, 1), rounds);
}

fn push_within_budget(rounds: u64) {
    push_by(&Sending::within(&Budget::process(64 << 20), false, 1), rounds);
}

fn push_by(push: &Sending, rounds: u64) {
    let payload = [7; 64];
    for _ in 0..rounds {
        push.send(&[black_box(&payload)]);
    }
}

fn publish(rounds: u64) {
    publish_by(&Sending::new(true, 8), rounds);
}

fn publish_within_budget(rounds: u64) {
    publish_by(&Sending::within(&Budget::process(64 << 20), true, 8), rounds);
}

fn publish_by(publisher: &Sending, rounds: u64) {
    let payload = [7; 64];
    for _ in 0..rounds {
        publisher.send(&[b"topic.01", black_box(&payload)]);
    }
}

fn decode_block(rounds: u64) {
    let block = block(64 * 1024 / (64 + 2), 64);
    for _ in 0..rounds {
        black_box(decode(black_box(&block)));
    }
}

fn match_hit(rounds: u64) {
    match_topic(rounds, b"topic.0005000.x");
}

fn match_miss(rounds: u64) {
    match_topic(rounds, b"topic.other");
}

/// A numbered event of some 100 octets.
fn event() -> (Update, Origin) {
    let update = Update::new("lport", "0123456789abcdef", Action::Set)
        .with_value(r#"{"id": "0123456789abcdef"}"#);
    (update, Origin { publisher: Uuid::from_u128(7), epoch: 1, sequence: 1 })
}

fn encode_event(rounds: u64) {
    let (update, origin) = event();
    let mut body = Vec::with_capacity(256);
    for _ in 0..rounds {
        body.clear();
        Codec::Protobuf.encode(black_box(&update), "D", &origin, &mut body);
        black_box(&body);
    }
}

fn decode_event(rounds: u64) {
    let (update, origin) = event();
    let mut body = Vec::new();
    Codec::Protobuf.encode(&update, "D", &origin, &mut body);
    for _ in 0..rounds {
        black_box(dragonwire::driver::codec::decode(black_box(&body))).unwrap();
    }
}

fn match_topic(rounds: u64, topic: &[u8]) {
    let mut publisher = Matching::new(10_000, 8);
    for _ in 0..rounds {
        black_box(publisher.peers(black_box(topic)));
    }
}

/// What is committed.
#[derive(Debug, Serialize, Deserialize)]
struct Baseline {
    toolchain: String,
    /// By case, for one round.
    instructions: BTreeMap<String, f64>,
}

/// Counts every case and compares it with the baseline.
fn guard() -> Result<()> {
    let baseline: Baseline = serde_json::from_str(&fs::read_to_string(baseline_path())?)?;
    let mut grown = String::new();
    let mut shrunk = false;
    println!("{:<WIDTH$} {:>10} {:>10} {:>8}", "instructions", "baseline", "now", "change");
    for case in &CASES {
        let name = case.name;
        let now = count(case)?;
        let Some(&before) = baseline.instructions.get(name) else {
            println!("{name:<WIDTH$} {:>10} {now:>10.1}", "none");
            grown += &format!("  {name}: {now:.1}, not in the baseline\n");
            continue;
        };
        let change = 100.0 * (now / before - 1.0);
        println!("{name:<WIDTH$} {before:>10.1} {now:>10.1} {change:>+7.1}%");
        shrunk |= change < -TOLERANCE;
        if change > TOLERANCE {
            grown += &format!("  {name}: {before:.1} before, {now:.1} now, {change:+.1} %\n");
        }
    }
    let toolchain = toolchain()?;
    if toolchain != baseline.toolchain {
        println!("no verdict: this is {toolchain}, the baseline {}", baseline.toolchain);
        return Ok(());
    }
    if !grown.is_empty() {
        return Err(format!(
            "more than {TOLERANCE} % above the baseline\n{grown}\
             If what it buys is worth it, {ACCEPT}\n\
             rewrites benches/instructions.json, to be committed with the reason."
        )
        .into());
    }
    if shrunk {
        println!("fewer than before: {ACCEPT} keeps it so");
    }
    Ok(())
}

/// Makes what is counted now the baseline.
fn accept() -> Result<()> {
    let mut instructions = BTreeMap::new();
    for case in &CASES {
        let now = (10.0 * count(case)?).round() / 10.0;
        println!("{:<WIDTH$} {now:>10.1}", case.name);
        instructions.insert(case.name.to_owned(), now);
    }
    let baseline = Baseline { toolchain: toolchain()?, instructions };
    fs::write(baseline_path(), serde_json::to_string_pretty(&baseline)? + "\n")?;
    Ok(())
}

/// Instructions of one round.
fn count(case: &Case) -> Result<f64> {
    let few = count_process(case, FEW)?;
    let many = count_process(case, FEW + case.rounds)?;
    Ok((many as f64 - few as f64) / case.rounds as f64)
}

/// Instructions of this program when it does one case.
fn count_process(case: &Case, rounds: u64) -> Result<u64> {
    let output = Command::new("valgrind")
        // of valgrind's tools the fastest that counts instructions
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args([RUN, case.name, &rounds.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let log = String::from_utf8_lossy(&output.stderr);
    // ==1234== I   refs:      129,911
    let total = log.lines().find_map(|line| Some(line.split_once(" refs:")?.1.replace(',', "")));
    match total.map(|total| total.trim().parse()) {
        Some(Ok(total)) if output.status.success() => Ok(total),
        _ => Err(format!("valgrind ended with {}:\n{log}", output.status).into()),
    }
}

/// Does one case's rounds, to be counted.
fn run(name: &str, rounds: &str) -> Result<()> {
    let case = CASES.iter().find(|case| case.name == name).ok_or("no such case")?;
    (case.run)(rounds.parse()?);
    Ok(())
}

/// The compiler, which decides about the counts as much as the source does.
fn toolchain() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let text = String::from_utf8(output.stdout)?;
    let version = text.lines().next().unwrap_or_default();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    Ok(format!("{version}, {host}"))
}

fn baseline_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.json")
}

/// The first argument of the process that is counted.
const RUN: &str = "--run";

/// Rounds that bring buffers and pools to their steady state.
const FEW: u64 = 1_000;

/// Per cent. The same source gives the same counts to 0.1 %; another memcpy, which is the C library's
/// choice for the processor, moves them by 1.2 %.
const TOLERANCE: f64 = 3.0;

const ACCEPT: &str = "`cargo bench --features __bench --bench instructions -- --accept`";

/// Of the column with the cases' names.
const WIDTH: usize = 26;
