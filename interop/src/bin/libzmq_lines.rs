//! A libzmq socket that is driven by lines, for tests that kill and stop processes.
//!
//! `libzmq_lines TYPE [--set OPTION=NUMBER]... [--subscribe HEX]... [--bind ENDPOINT]... [--connect
//! ENDPOINT]...`; arguments are carried out in order. The lines are described at
//! `dragonwire_interop::process::Process`.

use std::error::Error;
use std::io::{Read, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use dragonwire_interop::libzmq::{self, Context, Opt, Socket, SocketType};
use dragonwire_interop::process::{from_hex, to_hex};
use dragonwire_interop::{DEADLINE, GLANCE};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let kind = match arguments.next().as_deref() {
        Some("pub") => SocketType::Pub,
        Some("sub") => SocketType::Sub,
        Some("xpub") => SocketType::XPub,
        Some("xsub") => SocketType::XSub,
        Some("push") => SocketType::Push,
        Some("pull") => SocketType::Pull,
        other => return Err(format!("{other:?} is not a socket type").into()),
    };
    let context = Context::new();
    let socket = context.socket(kind);
    socket.set(Opt::Linger, 5_000)?;
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or("an option without a value")?;
        match argument.as_str() {
            "--bind" => say(&format!("bound {}", bind(&socket, &value)?)),
            "--connect" => socket.connect(&value)?,
            "--subscribe" => socket.subscribe(from_hex(&value).ok_or("not hexadecimal")?)?,
            "--set" => {
                let (name, number) = value.split_once('=').ok_or("write OPTION=NUMBER")?;
                socket.set(Opt::from_name(name).ok_or("unknown option")?, number.parse()?)?;
            }
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    say("ready");
    serve(&socket, !matches!(kind, SocketType::Pub | SocketType::Push))
}

/// Listens. The port may be in use for a moment longer by one that was killed, or as the other end of
/// somebody's connection.
fn bind(socket: &Socket, endpoint: &str) -> libzmq::Result<String> {
    let end = Instant::now() + DEADLINE / 2;
    loop {
        match socket.bind(endpoint) {
            Err(libzmq::Error::ADDRESS_IN_USE) if Instant::now() < end => {
                std::thread::sleep(GLANCE);
            }
            bound => return bound,
        }
    }
}

/// Until the standard input ends.
fn serve(socket: &Socket, receives: bool) -> Result<(), Box<dyn Error>> {
    let mut input = stdin().lock();
    let mut pending = Vec::new();
    let mut block = [0; 4096];
    loop {
        let (_, told) = socket.poll_with(stdin().as_fd(), Duration::from_secs(3600))?;
        if receives {
            // the poll's answer may be that of a moment before
            while let Ok(message) = socket.try_recv() {
                let words: Vec<String> = message.iter().map(|frame| to_hex(frame)).collect();
                say(&format!("recv {}", words.join(" ")));
            }
        }
        if told {
            match input.read(&mut block)? {
                0 => return Ok(()),
                count => pending.extend_from_slice(&block[..count]),
            }
            while let Some(end) = pending.iter().position(|octet| *octet == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                obey(socket, std::str::from_utf8(&line)?.trim_end())?;
            }
        }
    }
}

fn obey(socket: &Socket, line: &str) -> Result<(), Box<dyn Error>> {
    let mut words = line.split(' ');
    let verb = words.next().unwrap_or_default();
    let frames: Option<Vec<Vec<u8>>> = words.map(from_hex).collect();
    let frames = frames.ok_or("not hexadecimal")?;
    match (verb, &frames[..]) {
        ("send", frames) => match socket.try_send(frames) {
            Ok(()) => say("sent"),
            Err(libzmq::Error::AGAIN) => say("full"),
            Err(error) => return Err(error.into()),
        },
        ("subscribe", [topic]) => socket.subscribe(topic)?,
        ("unsubscribe", [topic]) => socket.unsubscribe(topic)?,
        _ => return Err(format!("unknown line {line:?}").into()),
    }
    Ok(())
}

fn say(line: &str) {
    let mut out = stdout().lock();
    // nobody reads any more: the end of the standard input is about to come
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
