//! The command as its users run it: real processes, pipes, sockets and signals.

mod arguments;
mod demo;
mod endings;
mod exchange;
mod formats;
mod harness;
mod pipeline;
mod pressure;
