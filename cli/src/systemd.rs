//! The two things that systemd and a service tell each other: which socket is handed over, and
//! whether the service is ready.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::console::Console;

/// The listening Unix socket that was handed over (`LISTEN_FDS`), if there is one.
///
/// Changes the environment: to be called while there is little that reads it.
pub(crate) fn handed_over() -> Result<Option<UnixListener>, String> {
    let mut sockets = ListenFd::from_env();
    match sockets.len() {
        0 => Ok(None),
        1 => {
            let listener = sockets.take_unix_listener(0);
            listener.map_err(|error| {
                format!("the socket handed over (LISTEN_FDS) cannot be used: {error}")
            })
        }
        several => {
            Err(format!("{several} sockets are handed over (LISTEN_FDS): one ListenStream is used"))
        }
    }
}

/// Tells the service manager how the service is (`NOTIFY_SOCKET`); without one, nobody.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    console: Console,
}

impl Notifier {
    pub(crate) fn from_env(console: &Console) -> Self {
        let socket = open().unwrap_or_else(|error| {
            console.say(format!("dragonwire: NOTIFY_SOCKET cannot be used: {error}"));
            None
        });
        Self { socket, console: console.clone() }
    }

    /// The service is up, or up again.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// It reads its options anew; [`ready`](Self::ready) follows.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&format!("RELOADING=1\n{now}")),
            Err(_) => self.send("RELOADING=1"),
        }
    }

    /// It comes to its end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        let Some((socket, manager)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), manager) {
            self.console.say(format!("dragonwire: {state:?} cannot be told to systemd: {error}"));
        }
    }
}

fn open() -> io::Result<Option<(UnixDatagram, SocketAddr)>> {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
    let manager = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(&name)?,
        _ => return Err(io::Error::other("neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    // a manager that does not listen does not hold up the service
    socket.set_nonblocking(true)?;
    Ok(Some((socket, manager)))
}
