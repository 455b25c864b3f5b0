//! The crate `zeromq`.

use super::Declined;
use crate::role::Role;
use crate::tally::Tally;

pub const SETTINGS: &str = "";

pub fn version() -> String {
    super::locked_version("zeromq")
}

pub fn declines(_role: &Role) -> Option<Declined> {
    Some(Declined::OutOfPlace)
}

pub fn run(_role: &Role) -> Tally {
    panic!("not built yet")
}
