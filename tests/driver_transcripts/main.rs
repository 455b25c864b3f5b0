//! The recordings of the real Dragonflow drivers (`tests/transcripts/`) replayed against this crate's
//! drivers over real sockets, each side in its turn: raw octets of the recorded publishers for our
//! subscribers, and of the recorded subscribers for our publishers.
#![cfg(feature = "driver")]

mod errors;
mod multiproc;
mod publisher;
mod recording;
mod service;
#[allow(dead_code, reason = "it serves other tests as well")]
#[path = "../driver/side.rs"]
mod side;
mod subscriber;
mod upstream;
mod wire;
