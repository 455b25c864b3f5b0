//! The command as its users run it: real processes, pipes, sockets and signals.

mod arguments;
mod demo;
mod directory;
mod endings;
mod events;
mod exchange;
mod formats;
mod harness;
mod pipeline;
mod pressure;
mod publisher_service;
