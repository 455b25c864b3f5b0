//! The options of drivers, from the files that operators of Dragonflow have, from TOML and from code.

mod options;

pub use options::DriverOptions;
