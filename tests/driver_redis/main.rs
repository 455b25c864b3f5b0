//! The Redis driver and directory through their public API, against real Redis servers that the tests
//! start, and against scripted ones where the recordings of Dragonflow's driver are replayed.

mod cluster;
mod directory;
mod events;
mod loss;
mod relay;
mod scripted;
mod server;
mod side;
mod transcripts;
