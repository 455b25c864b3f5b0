//! The driver layer through its public API, over real sockets.

#![cfg(feature = "driver")]

mod books;
mod drivers;
mod endings;
mod kills;
mod multiproc;
mod network;
mod roles;
mod service;
mod side;
