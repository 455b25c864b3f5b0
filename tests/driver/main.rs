//! The driver layer through its public API, over real sockets.

mod books;
mod drivers;
mod multiproc;
mod network;
mod service;
mod side;
