//! Dragonflow's publish/subscribe API over dragonwire's sockets: publishers, subscribers, the drivers
//! that make them, the directory where they find each other, and the publisher service.

pub mod codec;
pub mod config;
pub mod directory;
mod role;
mod streams;
mod sync;
mod tracker;
mod update;

pub use role::{ROLE_DF_LOCAL_CONTROLLER, ROLE_NEUTRON_SERVER, Role, UnknownRole};
pub use sync::{Missing, Sync, SyncCause};
pub use update::{Action, SEND_ALL_TOPIC, Update, Value};
