//! Measures dragonwire against libzmq and the other Rust libraries, in two processes for each run.

mod peers;
mod receipt;
mod report;
mod role;
mod signals;
mod tally;

use role::Role;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, library, role] = &arguments[..]
        && first == "peer"
    {
        let role = Role::from_argument(role).expect("a role in JSON");
        let library = peers::library(library).expect("a known library");
        (library.run)(&role).print();
    }
}
