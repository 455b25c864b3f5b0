//! Builds the libzmq that `zeromq-src` carries, as its own build system would configure it on Linux.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=CXXFLAGS");
    let given = env::var("CXXFLAGS").unwrap_or_default();
    let defines: Vec<String> = FOUND_ON_LINUX.iter().map(|name| format!("-D{name}=1")).collect();
    let flags = format!("-O2 -g0 -DZMQ_CACHELINE_SIZE=64 {} {given}", defines.join(" "));
    // SAFETY: a build script has one thread until it starts others.
    #[allow(unsafe_code)]
    unsafe {
        env::set_var("CXXFLAGS", flags);
    }
    zeromq_src::Build::new().build();
}

/// What libzmq's `configure` finds on Linux and `zeromq-src` leaves out. Without them libzmq works,
/// but wakes its threads through socket pairs, which would make it look slower than it is.
const FOUND_ON_LINUX: [&str; 16] = [
    "HAVE_ACCEPT4",
    "HAVE_CLOCK_GETTIME",
    "HAVE_FORK",
    "HAVE_MKDTEMP",
    "ZMQ_HAVE_EVENTFD",
    "ZMQ_HAVE_EVENTFD_CLOEXEC",
    "ZMQ_HAVE_IFADDRS",
    "ZMQ_HAVE_O_CLOEXEC",
    "ZMQ_HAVE_SOCK_CLOEXEC",
    "ZMQ_HAVE_SO_BINDTODEVICE",
    "ZMQ_HAVE_SO_KEEPALIVE",
    "ZMQ_HAVE_SO_PEERCRED",
    "ZMQ_HAVE_TCP_KEEPALIVE",
    "ZMQ_HAVE_TCP_KEEPCNT",
    "ZMQ_HAVE_TCP_KEEPIDLE",
    "ZMQ_HAVE_TCP_KEEPINTVL",
];
