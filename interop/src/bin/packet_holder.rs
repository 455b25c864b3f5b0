//! A slow network: holds every packet of a netfilter queue for a while, then lets it go on.
//!
//! `packet_holder QUEUE MILLISECONDS`, in the network namespace that is to be slow. It says `ready`,
//! and ends with its standard input or its parent.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{ErrorKind, Read, stdin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nfq::{Queue, Verdict};
use rustix::process::{Signal, set_parent_process_death_signal};

static FINISHED: AtomicBool = AtomicBool::new(false);

fn main() -> Result<(), Box<dyn Error>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: packet_holder QUEUE MILLISECONDS");
    let number = next()?.parse()?;
    let delay = Duration::from_millis(next()?.parse()?);
    let mut queue = Queue::open()?;
    queue.bind(number)?;
    // who they are is enough, and large segments stay whole
    queue.set_copy_range(number, 0)?;
    queue.set_recv_gso(number, true)?;
    queue.set_nonblocking(true);
    std::thread::spawn(|| {
        // nothing is said to it: this returns at the end
        let _ = stdin().read(&mut [0]);
        FINISHED.store(true, Ordering::Relaxed);
    });
    println!("ready");
    let mut held = VecDeque::new();
    while !FINISHED.load(Ordering::Relaxed) {
        let now = Instant::now();
        loop {
            match queue.recv() {
                Ok(packet) => held.push_back((now + delay, packet)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // the kernel's answer to a verdict on a packet that it has dropped meanwhile
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        while held.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, mut packet)) = held.pop_front() {
                packet.set_verdict(Verdict::Accept);
                queue.verdict(packet)?;
            }
        }
        // the queue cannot be waited for and be answered at once
        std::thread::sleep(GRAIN);
    }
    Ok(())
}

/// How exact a delay is.
const GRAIN: Duration = Duration::from_millis(2);
