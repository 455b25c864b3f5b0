//! The standard input and output, each on a thread of its own: reading and writing them may block
//! at any time, and the rest of the command must not.
//!
//! Both are handed over in blocks, so that back-pressure is exact to a block: at most two blocks of
//! input are read ahead of the socket, and at most two of output are taken from it that nobody has
//! read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::thread;

use bytes::{Bytes, BytesMut};
use dragonwire::Message;
use tokio::sync::{mpsc, oneshot};

use crate::console::Console;
use crate::lines::{Format, Line, Takes, decode};

/// What the standard input asks for, in order.
#[derive(Debug)]
pub(crate) enum Input {
    Messages(VecDeque<Message>),
    Subscribe(Bytes),
    Unsubscribe(Bytes),
    /// Reading failed; this is the last.
    Failed(io::Error),
}

/// Reads the standard input until its end, which closes the channel.
pub(crate) fn read_input(format: Format, takes: Takes, console: Console) -> mpsc::Receiver<Input> {
    let (inputs, queue) = mpsc::channel(1);
    thread::spawn(move || {
        let mut reader = LineReader { format, takes, console, inputs, lines: 0 };
        if let Err(error) = reader.read_all() {
            let _ = reader.inputs.blocking_send(Input::Failed(error));
        }
    });
    queue
}

struct LineReader {
    format: Format,
    takes: Takes,
    console: Console,
    inputs: mpsc::Sender<Input>,
    lines: u64,
}

impl LineReader {
    fn read_all(&mut self) -> io::Result<()> {
        read_blocks(|block| self.hand_over(&block).is_ok())
    }

    /// Sends what a block of whole lines asks for; an error says that nobody wants any more.
    fn hand_over(&mut self, block: &Bytes) -> Result<(), mpsc::error::SendError<Input>> {
        let mut messages = VecDeque::new();
        let mut rest: &[u8] = block;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            self.lines += 1;
            let control = match decode(self.format, self.takes, line, block) {
                Ok(Line::Message(message)) => {
                    messages.push_back(message);
                    continue;
                }
                Ok(Line::Blank) => continue,
                Ok(Line::Subscribe(topic)) => Input::Subscribe(topic),
                Ok(Line::Unsubscribe(topic)) => Input::Unsubscribe(topic),
                Err(error) => {
                    let number = self.lines;
                    self.console.say_surely(format!(
                        "dragonwire: line {number} of the standard input is ignored: {error}"
                    ));
                    continue;
                }
            };
            if !messages.is_empty() {
                self.inputs.blocking_send(Input::Messages(std::mem::take(&mut messages)))?;
            }
            self.inputs.blocking_send(control)?;
        }
        if !messages.is_empty() {
            self.inputs.blocking_send(Input::Messages(messages))?;
        }
        Ok(())
    }
}

/// Reads the standard input in blocks of whole lines until its end, or until `take` wants no more.
fn read_blocks(mut take: impl FnMut(Bytes) -> bool) -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut buffer = BytesMut::new();
    loop {
        let old = buffer.len();
        buffer.resize(old + INPUT_BLOCK, 0);
        let room = buffer.get_mut(old..).unwrap_or_default();
        let read = loop {
            match input.read(room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        buffer.truncate(old + read);
        if read == 0 {
            // a last line without its end is a line
            if !buffer.is_empty() {
                take(buffer.freeze());
            }
            return Ok(());
        }
        let fresh = buffer.get(old..).unwrap_or_default();
        let Some(end) = memchr::memrchr(b'\n', fresh) else { continue };
        if !take(buffer.split_to(old + end + 1).freeze()) {
            return Ok(());
        }
    }
}

/// Reads the standard input until its end, which closes the channel: what `parse` makes of each line,
/// given with its number, in blocks.
pub(crate) fn read_lines<T: Send + 'static>(
    mut parse: impl FnMut(u64, &[u8]) -> Option<T> + Send + 'static,
) -> mpsc::Receiver<io::Result<Vec<T>>> {
    let (blocks, queue) = mpsc::channel(1);
    thread::spawn(move || {
        let mut number = 0;
        let read = read_blocks(|block| {
            let lines = block.strip_suffix(b"\n").unwrap_or(&block).split(|octet| *octet == b'\n');
            let parsed: Vec<T> = lines
                .filter_map(|line| {
                    number += 1;
                    parse(number, line)
                })
                .collect();
            parsed.is_empty() || blocks.blocking_send(Ok(parsed)).is_ok()
        });
        if let Err(error) = read {
            let _ = blocks.blocking_send(Err(error));
        }
    });
    queue
}

/// The standard output's thread, as seen from the socket's side.
#[derive(Debug)]
pub(crate) struct Output {
    blocks: mpsc::Sender<Vec<u8>>,
    result: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Starts the thread.
    pub(crate) fn start(console: Console) -> Self {
        let (blocks, mut queue) = mpsc::channel::<Vec<u8>>(1);
        let (finish, result) = oneshot::channel();
        thread::spawn(move || {
            // the queue goes last: what it is closed for is in `result` by then
            let written = write_blocks(&mut queue, &console);
            let _ = finish.send(written);
        });
        Self { blocks, result }
    }

    /// Waits until a block can be handed over; an error says that no more can be written.
    pub(crate) async fn ready(
        &self,
    ) -> Result<mpsc::Permit<'_, Vec<u8>>, mpsc::error::SendError<()>> {
        self.blocks.reserve().await
    }

    /// Waits until no more can be written.
    pub(crate) async fn closed(&self) {
        self.blocks.closed().await;
    }

    /// Waits until everything that was handed over is written, or could not be.
    pub(crate) async fn finish(self) -> io::Result<()> {
        drop(self.blocks);
        self.result.await.unwrap_or(Ok(()))
    }
}

fn write_blocks(queue: &mut mpsc::Receiver<Vec<u8>>, console: &Console) -> io::Result<()> {
    let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let terminal = io::stdout().is_terminal();
    while let Some(block) = queue.blocking_recv() {
        if terminal {
            console.clear_live();
        }
        output.write_all(&block)?;
    }
    Ok(())
}

/// A read of the standard input: two of these and what a pipe holds are read ahead.
const INPUT_BLOCK: usize = 32 * 1024;

/// A block of output is handed over when it has grown so large, or nothing more is there.
pub(crate) const OUTPUT_BLOCK: usize = 32 * 1024;
