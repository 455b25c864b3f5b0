//! What is between senders and receivers, and the faults it has.
//!
//! As root, with `ip` and `iptables`: two network namespaces, one for each, joined by a veth pair.
//! Packets are dropped where they arrive, as a real network drops them (a sender whose own kernel
//! drops them is told so), and delayed by a netfilter queue. Otherwise: loopback, and a
//! [`Relay`] in each link.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use dragonwire_interop::chaos::KERNEL_BUFFER;

use crate::plan::FAULTY;
use crate::relay::Relay;

/// The faults in force, each with the links that have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    pub(crate) cut: Vec<usize>,
    pub(crate) delay: Vec<usize>,
    pub(crate) loss: Vec<usize>,
}

#[derive(Debug)]
pub(crate) enum Network {
    Namespaces(Namespaces),
    Loopback { relays: Vec<Relay>, address: String },
}

impl Network {
    /// The best that can be had here; says which.
    pub(crate) fn new(sender_binds: &[bool]) -> Self {
        let wanted = std::env::var("CHAOS_NETWORK").unwrap_or_default();
        if wanted != "loopback" {
            match Namespaces::new() {
                Ok(namespaces) => {
                    println!("network: the namespaces {:?}", namespaces.names);
                    return Self::Namespaces(namespaces);
                }
                Err(reason) => println!("network: no namespaces here: {reason}"),
            }
        }
        println!("network: loopback with relays; instead of losing packets connections break");
        // a network of its own, so that nobody takes a port while its process is dead
        let process = std::process::id();
        let address = format!("127.{}.{}", 100 + process / 250 % 100, process % 250);
        let relays = (0..sender_binds.len())
            .take(FAULTY)
            .map(|link| {
                Relay::start(
                    &format!("{address}.2:{}", port(link)),
                    &format!("{address}.1:{}", port(link)),
                )
            })
            .collect();
        Self::Loopback { relays, address }
    }

    /// Where a link is listened on, by its sender or its receiver.
    pub(crate) fn bind(&self, link: usize, sender: bool) -> String {
        let address = match self {
            Self::Namespaces(_) => ADDRESSES[usize::from(!sender && link < FAULTY)].to_owned(),
            Self::Loopback { address, .. } => format!("{address}.1"),
        };
        format!("tcp://{address}:{}", port(link))
    }

    /// Where the other one connects to.
    pub(crate) fn connect(&self, link: usize, sender: bool) -> String {
        match self {
            Self::Loopback { address, .. } if link < FAULTY => {
                format!("tcp://{address}.2:{}", port(link))
            }
            _ => self.bind(link, !sender),
        }
    }

    /// A program that runs on the side of the senders or on that of the receivers.
    pub(crate) fn command(&self, receivers: bool, program: &str) -> Command {
        match self {
            Self::Namespaces(namespaces) => namespaces.command(receivers, program),
            Self::Loopback { .. } => Command::new(program),
        }
    }

    /// Brings these faults into force, and ends all others.
    pub(crate) fn set(&mut self, weather: &Weather) {
        match self {
            Self::Namespaces(namespaces) => namespaces.set(weather),
            Self::Loopback { relays, .. } => {
                for (link, relay) in relays.iter().enumerate() {
                    let has = |links: &[usize]| links.contains(&link);
                    relay.set(has(&weather.cut), has(&weather.delay), has(&weather.loss));
                }
            }
        }
    }

    /// Says what has been done to packets: something, or the run has proved nothing.
    pub(crate) fn print(&self) {
        if let Self::Namespaces(namespaces) = self {
            let packets = |target| namespaces.packets.get(target).copied().unwrap_or_default();
            let [cut, lost, delayed] = [CUT, LOST, DELAYED].map(packets);
            println!("packets: {cut} cut off, {lost} lost, {delayed} delayed");
            assert!(cut > 0 && delayed > 0, "the network had no faults");
        }
    }

    /// How many octets can be on a connection, at most, that its sender's kernel has and its
    /// receiver's process does not: the kernel doubles the buffers it is asked for.
    pub(crate) fn octets_under_way(&self) -> u64 {
        let ends = 4 * KERNEL_BUFFER as u64;
        match self {
            Self::Namespaces(_) => ends,
            Self::Loopback { .. } => 2 * ends + Relay::OCTETS,
        }
    }
}

fn port(link: usize) -> usize {
    7_101 + link
}

const ADDRESSES: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

/// Two network namespaces; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Namespaces {
    names: [String; 2],
    holders: Vec<Child>,
    /// Packets that each target has had so far, by its name in iptables.
    packets: BTreeMap<String, u64>,
}

impl Namespaces {
    fn new() -> Result<Self, String> {
        remove_stale();
        let process = std::process::id();
        let names = ["a", "b"].map(|side| format!("{PREFIX}{process}-{side}"));
        // from here on they are removed whatever happens
        let mut made = Self { names, holders: Vec::new(), packets: BTreeMap::new() };
        for name in &made.names {
            ip(&format!("netns add {name}"))?;
        }
        let [a, b] = &made.names;
        ip(&format!("link add veth0 netns {a} type veth peer name veth0 netns {b}"))?;
        for (name, address) in made.names.iter().zip(ADDRESSES) {
            ip(&format!("-n {name} addr add {address}/24 dev veth0"))?;
            for device in ["lo", "veth0"] {
                ip(&format!("-n {name} link set {device} up"))?;
            }
        }
        for side in [false, true] {
            made.try_set(side, &Weather { delay: vec![0], ..Weather::default() })?;
            made.try_set(side, &Weather::default())?;
            let holder = made.hold(side)?;
            made.holders.push(holder);
        }
        Ok(made)
    }

    fn hold(&self, side: bool) -> Result<Child, String> {
        let mut holder = self
            .command(side, env!("CARGO_BIN_EXE_packet_holder"))
            .args(["0", DELAY_MS])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut said = String::new();
        let out = holder.stdout.take().expect("it is piped");
        let read = BufReader::new(out).read_line(&mut said);
        if read.is_err() || said != "ready\n" {
            let _ = holder.kill();
            let _ = holder.wait();
            return Err("packets cannot be held".to_owned());
        }
        Ok(holder)
    }

    fn command(&self, side: bool, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[usize::from(side)], program]);
        command
    }

    fn set(&mut self, weather: &Weather) {
        for holder in &mut self.holders {
            assert!(matches!(holder.try_wait(), Ok(None)), "packets are held no more");
        }
        for side in [false, true] {
            self.count(side);
            self.try_set(side, weather).expect("rules that could be set before");
        }
    }

    /// Replaces the rules of one side, all at once. The chain stays: with it the packets would go
    /// that wait in the queue.
    fn try_set(&self, side: bool, weather: &Weather) -> Result<(), String> {
        let mut rules = "*filter\n-F INPUT\n".to_owned();
        let loss = format!("-m statistic --mode random --probability {LOSS} -j {LOST}");
        rules.push_str(&format!(":{LOST} -\n-F {LOST}\n-A {LOST} -j DROP\n"));
        for (links, what) in [
            (&weather.cut, format!("-j {CUT}")),
            (&weather.loss, loss),
            (&weather.delay, format!("-j {DELAYED} --queue-num 0 --queue-bypass")),
        ] {
            if !links.is_empty() {
                let ports: Vec<String> = links.iter().map(|link| port(*link).to_string()).collect();
                let ports = ports.join(",");
                rules.push_str(&format!(
                    "-A INPUT -i veth0 -p tcp -m multiport --ports {ports} {what}\n"
                ));
            }
        }
        rules.push_str("COMMIT\n");
        let mut child = self
            .command(side, "iptables-restore")
            .arg("--noflush")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut stdin = child.stdin.take().expect("it is piped");
        let written = stdin.write_all(rules.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        succeeded("iptables-restore", &output)?;
        written.map_err(|error| error.to_string())
    }

    /// Counts what the rules of one side have done, before they go.
    fn count(&mut self, side: bool) {
        let listed = self.command(side, "iptables").args(["-nvxL", "INPUT"]).output();
        let listed = listed.expect("rules that were set before").stdout;
        for line in String::from_utf8_lossy(&listed).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [packets, _, target, ..] = &words[..]
                && let Ok(packets) = packets.parse::<u64>()
            {
                *self.packets.entry((*target).to_owned()).or_default() += packets;
            }
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for mut holder in self.holders.drain(..) {
            let _ = holder.kill();
            let _ = holder.wait();
        }
        for name in &self.names {
            // there may be nothing to remove
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Removes what a run left behind that was killed itself.
fn remove_stale() {
    for name in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    succeeded(&format!("ip {arguments}"), &output.map_err(|error| format!("ip: {error}"))?)
}

fn succeeded(what: &str, output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

const PREFIX: &str = "dragonwire-chaos-";

/// Each way.
const DELAY_MS: &str = "50";

const CUT: &str = "DROP";
/// A chain of its own, so that what it drops is counted apart.
const LOST: &str = "LOST";
const DELAYED: &str = "NFQUEUE";

/// Each way.
const LOSS: &str = "0.05";
