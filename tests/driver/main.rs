//! The driver layer through its public API, over real sockets.

mod books;
mod drivers;
mod multiproc;
mod network;
mod roles;
mod service;
mod side;
