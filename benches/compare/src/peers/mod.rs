//! The libraries that are compared, one file each: the raw floor, a bare tokio stream, libzmq,
//! dragonwire, and the Rust libraries from the registry; and the pipelines (`pipeline.rs`): the
//! driver layer's, those over bare sockets and over Redis. libzmq has one too.
//!
//! Such a file has three functions: `run` does what a [`Role`] says in this process, `declines`
//! tells beforehand which rows are not about it, and `version` which one is built in;
//! and a constant `SETTINGS`, in which options that are not the library's defaults are stated.

pub mod bare;
pub mod dragonwire;
pub mod driver;
#[cfg(feature = "others")]
pub mod libzmq;
#[cfg(feature = "others")]
pub mod omq;
pub mod pipeline;
pub mod raw;
pub mod redis;
#[cfg(feature = "others")]
pub mod rzmq;
pub mod tokio_stream;
#[cfg(feature = "others")]
pub mod zeromq;

use std::io;
use std::path::PathBuf;

use crate::role::{Role, Runtime};
use crate::tally::Tally;

#[derive(Debug)]
pub struct Library {
    pub name: &'static str,
    /// For people who know the library, so that they can object.
    pub settings: &'static str,
    pub version: fn() -> String,
    /// Whether the row of such a sender is not about the library.
    pub declines: fn(&Role) -> bool,
    /// Does it, and returns when it is done.
    pub run: fn(&Role) -> Tally,
}

/// In the order of the tables.
pub const LIBRARIES: &[Library] = &[
    Library {
        name: "raw",
        settings: raw::SETTINGS,
        version: raw::version,
        declines: raw::declines,
        run: raw::run,
    },
    Library {
        name: "tokio-stream",
        settings: tokio_stream::SETTINGS,
        version: tokio_stream::version,
        declines: tokio_stream::declines,
        run: tokio_stream::run,
    },
    #[cfg(feature = "others")]
    Library {
        name: "libzmq",
        settings: libzmq::SETTINGS,
        version: libzmq::version,
        declines: libzmq::declines,
        run: libzmq::run,
    },
    Library {
        name: "dragonwire",
        settings: dragonwire::SETTINGS,
        version: dragonwire::version,
        declines: dragonwire::declines,
        run: dragonwire::run,
    },
    Library {
        name: "dragonwire-other",
        settings: dragonwire::SETTINGS_OTHER,
        version: dragonwire::version,
        declines: dragonwire::declines_other,
        run: dragonwire::run_other,
    },
    Library {
        name: "dragonwire-static",
        settings: SETTINGS_STATIC,
        version: dragonwire::version,
        declines: |role| static_program().is_none() || dragonwire::declines(role),
        run: dragonwire::run,
    },
    #[cfg(feature = "others")]
    Library {
        name: "zeromq",
        settings: zeromq::SETTINGS,
        version: zeromq::version,
        declines: zeromq::declines,
        run: zeromq::run,
    },
    #[cfg(feature = "others")]
    Library {
        name: "omq",
        settings: omq::SETTINGS,
        version: omq::version,
        declines: omq::declines,
        run: omq::run,
    },
    #[cfg(feature = "others")]
    Library {
        name: "rzmq",
        settings: rzmq::SETTINGS,
        version: rzmq::version,
        declines: rzmq::declines,
        run: rzmq::run,
    },
    Library {
        name: "driver",
        settings: driver::SETTINGS,
        version: driver::version,
        declines: driver::declines,
        run: driver::run,
    },
    Library {
        name: "driver-static",
        settings: SETTINGS_STATIC,
        version: driver::version,
        declines: |role| static_program().is_none() || driver::declines(role),
        run: driver::run,
    },
    Library {
        name: "driver-msgpack",
        settings: driver::SETTINGS_MSGPACK,
        version: driver::version,
        declines: driver::declines,
        run: driver::run_msgpack,
    },
    Library {
        name: "service-raw",
        settings: bare::SETTINGS_SERVICE,
        version: bare::version,
        declines: bare::declines,
        run: bare::run_service,
    },
    Library {
        name: "bare",
        settings: bare::SETTINGS,
        version: bare::version,
        declines: bare::declines,
        run: bare::run,
    },
    Library {
        name: "redis-driver",
        settings: driver::SETTINGS_REDIS,
        version: driver::version,
        declines: driver::declines,
        run: driver::run_redis,
    },
    Library {
        name: "redis",
        settings: redis::SETTINGS,
        version: redis::version,
        declines: redis::declines,
        run: redis::run,
    },
];

impl Library {
    /// What its measured processes are: this program, or the same one built for musl.
    pub fn program(&self) -> io::Result<PathBuf> {
        match static_program() {
            Some(program) if self.name.ends_with("-static") => Ok(program),
            _ => std::env::current_exe(),
        }
    }
}

fn static_program() -> Option<PathBuf> {
    std::env::var_os("COMPARE_STATIC").map(PathBuf::from)
}

const SETTINGS_STATIC: &str = "the same, built for musl: the program that COMPARE_STATIC names";

pub fn library(name: &str) -> Option<&'static Library> {
    LIBRARIES.iter().find(|library| library.name == name)
}

/// Runs what an asynchronous library does to its end.
pub fn block_on<F>(runtime: Runtime, work: F) -> F::Output
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    use tokio::runtime::Builder;
    let mut builder = match runtime {
        Runtime::CurrentThread => Builder::new_current_thread(),
        Runtime::MainTask | Runtime::Threads(_) => Builder::new_multi_thread(),
    };
    if let Runtime::Threads(threads) = runtime {
        builder.worker_threads(threads);
    }
    let tokio = builder.enable_all().build().expect("a runtime");
    match runtime {
        Runtime::MainTask => tokio.block_on(work),
        _ => tokio.block_on(async { tokio::spawn(work).await.expect("the work does not panic") }),
    }
}

/// The version of a package that this program was built with.
pub fn locked_version(package: &str) -> String {
    let name = format!("name = \"{package}\"\nversion = \"");
    let rest = LOCK.split_once(&name).map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split('"').next()).unwrap_or("unknown").to_owned()
}

const LOCK: &str = include_str!("../../Cargo.lock");
