//! `dragonwire publisher-service`: the publisher service of a host as a process that a service manager
//! runs.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Instant;

use clap::Args;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::directory::without_password;
use dragonwire::driver::{DriverContext, PublisherService};
use tokio::signal::unix::{self, SignalKind};
use tracing::Level;

use crate::args::memory_budget;
use crate::console::Console;
use crate::driver_options::{OptionArgs, Side, connect};
use crate::ending::{Ending, Failure};
use crate::log;
use crate::signals::Signals;
use crate::status::{Asked, Status, StatusSocket, socket_of};
use crate::systemd::{self, Notifier};

/// How the service is to be.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServiceArgs {
    #[command(flatten)]
    options: OptionArgs,
    /// The most memory that the process may take, in MiB, whatever its peers do [default: no limit]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    memory: Option<u32>,
}

/// Runs the service until a signal stops it.
pub(crate) async fn run(args: ServiceArgs, console: &Console) -> Result<Ending, Failure> {
    let listener = systemd::handed_over().map_err(Failure::new)?;
    let no_signals = |error| Failure::new(format!("cannot wait for signals: {error}"));
    let mut signals = Signals::listen().map_err(no_signals)?;
    let mut hangups = unix::signal(SignalKind::hangup()).map_err(no_signals)?;
    log::start(Level::INFO, console);
    let notifier = Notifier::from_env(console);

    let options = load(args.options.clone()).await?.say_doubts(console);
    if listener.is_none() && options.pub_sub_use_multiproc {
        check_folder(&options.publisher_multiproc_socket)?;
    }
    let name = process_name(listener.as_ref(), &options);
    let mut context = DriverContext::new(options.clone()).with_process_name(&name);
    if let Some(mebibytes) = args.memory {
        context = context.with_budget(&memory_budget(mebibytes));
    }
    if let Some(directory) = connect(&options)? {
        context = context.with_directory(directory);
    }
    let service = tokio::select! {
        service = PublisherService::start_on(context, listener) => service?,
        _ = signals.next() => return Ok(Ending::Done),
    };
    let mut running = Running { service, options, since: Instant::now(), console };
    let mut status = match running.status_socket().await {
        Ok(status) => status,
        Err(failure) => {
            running.close().await;
            return Err(failure);
        }
    };
    running.say_up();
    notifier.ready();

    loop {
        tokio::select! {
            _ = signals.next() => break,
            () = running.service.stopped() => {
                return Err(Failure::new("the publisher service has ended by itself"));
            }
            asked = next(&mut status, console) => asked.tell(&running.status()),
            Some(()) = hangups.recv() => {
                notifier.reloading();
                running.reload(args.options.clone()).await;
                notifier.ready();
            }
        }
    }
    notifier.stopping();
    let closing = running.close();
    tokio::pin!(closing);
    loop {
        tokio::select! {
            () = &mut closing => return Ok(Ending::Done),
            asked = next(&mut status, console) => asked.tell(&running.status()),
            _ = signals.next() => {
                return Err(Failure::new("stopped once more: what was not sent on yet is lost"));
            }
        }
    }
}

/// Reads the files where that may take its time.
async fn load(args: OptionArgs) -> Result<crate::driver_options::Loaded, Failure> {
    let loading = tokio::task::spawn_blocking(move || args.load(Side::Publisher)).await;
    loading.unwrap_or_else(|error| Err(Failure::new(format!("cannot read the options: {error}"))))
}

fn check_folder(socket: &Path) -> Result<(), Failure> {
    match socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.exists() => {
            Err(Failure::new(format!(
                "the local socket {} has no folder: create {}, with systemd by RuntimeDirectory=, \
                 or choose another path with --socket",
                socket.display(),
                folder.display()
            )))
        }
        _ => Ok(()),
    }
}

/// What tells the services of one host from each other, and stays the same over restarts: the local
/// socket.
fn process_name(listener: Option<&UnixListener>, options: &DriverOptions) -> String {
    let address = listener.and_then(|listener| listener.local_addr().ok());
    let handed_over = address.as_ref().and_then(|address| address.as_pathname());
    if let Some(name) = address.as_ref().and_then(|address| address.as_abstract_name()) {
        return format!("publisher-service @{}", name.escape_ascii());
    }
    let path = handed_over.unwrap_or(&options.publisher_multiproc_socket);
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    format!("publisher-service {}", path.display())
}

async fn next(status: &mut Option<StatusSocket>, console: &Console) -> Asked {
    match status {
        Some(socket) => socket.next(console).await,
        None => std::future::pending().await,
    }
}

/// A service that is up.
struct Running<'a> {
    service: PublisherService,
    /// Those in force.
    options: DriverOptions,
    since: Instant,
    console: &'a Console,
}

impl Running<'_> {
    async fn status_socket(&self) -> Result<Option<StatusSocket>, Failure> {
        let local = match self.service.local() {
            Some(endpoint) => endpoint.path(),
            // the place where its processes would push to is known to who asks for its status
            None => Some(self.options.publisher_multiproc_socket.as_path()),
        };
        let Some(path) = socket_of(&self.options, local) else {
            return Ok(None);
        };
        match StatusSocket::bind(&path).await {
            Ok(socket) => Ok(Some(socket)),
            // beside a socket that was handed over there may be no place for a file of ours
            Err(error)
                if self.options.status_socket.is_none()
                    && !matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AlreadyExists) =>
            {
                let path = path.display();
                self.console.say(format!(
                    "dragonwire: no status socket {path}: {error}; [dragonwire] status_socket \
                     chooses another"
                ));
                Ok(None)
            }
            Err(error) => {
                Err(Failure::new(format!("cannot listen on {}: {error}", path.display())))
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.since.elapsed().as_secs(),
            role: self.options.role.as_str(),
            codec: self.options.codec.unwrap_or_default().as_str(),
            directory: self.directories(),
            stats: self.service.stats(),
        }
    }

    fn directories(&self) -> Vec<String> {
        self.options.directory.iter().map(|uri| without_password(uri)).collect()
    }

    fn say_up(&self) {
        let stats = self.service.stats();
        let network = stats.network.as_deref().unwrap_or("none");
        let local = stats.local.as_deref().unwrap_or("none");
        let directories = self.directories();
        let directory =
            if directories.is_empty() { "none".to_owned() } else { directories.join(" ") };
        self.console.say(format!(
            "publisher service up: local {local}, network {network}, id {}, directory {directory}",
            stats.id
        ));
    }

    /// Reads the files anew; those that are wrong change nothing.
    async fn reload(&mut self, args: OptionArgs) {
        let new = match load(args).await {
            Ok(loaded) => loaded.say_doubts(self.console),
            Err(failure) => {
                let reason = failure.reason;
                self.console.say(format!("not reloaded, the options stay as they are: {reason}"));
                return;
            }
        };
        let mut kept = self.service.reload(&DriverContext::new(new.clone()));
        let old = &mut self.options;
        kept.extend(fixed(old, &new));
        let mut applied = Vec::new();
        apply(&mut old.monitor_tables, new.monitor_tables, "monitor_tables", &mut applied);
        let (period, name) = (new.monitor_table_poll_time, "monitor_table_poll_time");
        apply(&mut old.monitor_table_poll_time, period, name, &mut applied);
        let timeout = new.publisher_timeout;
        apply(&mut old.publisher_timeout, timeout, "publisher_timeout", &mut applied);
        let mut parts = Vec::new();
        if !applied.is_empty() {
            parts.push(format!("applied {}", applied.join(", ")));
        }
        if !kept.is_empty() {
            parts.push(format!("needs a restart: {}", kept.join(", ")));
        }
        if parts.is_empty() {
            parts.push("nothing has changed".to_owned());
        }
        self.console.say(format!("reloaded: {}", parts.join("; ")));
    }

    /// Sends on what processes have sent, and ends.
    async fn close(&self) {
        // its row is stale before long, and others remove it then
        if let Err(error) = self.service.close().await {
            self.console.say(format!("dragonwire: its row stays in the directory: {error}"));
        }
        let stats = self.service.stats();
        self.console.say(format!(
            "publisher service ended: received {}, forwarded {}, dropped {}, unheard {}",
            stats.received, stats.forwarded, stats.dropped, stats.unheard
        ));
    }
}

fn apply<T: PartialEq>(old: &mut T, new: T, name: &'static str, applied: &mut Vec<&'static str>) {
    if *old != new {
        *old = new;
        applied.push(name);
    }
}

/// Options of this command, and of its row, that differ and are read at the start only.
fn fixed(old: &DriverOptions, new: &DriverOptions) -> Vec<&'static str> {
    let (limit, window) = (new.publisher_rate_limit_count, new.publisher_rate_limit_timeout);
    let differing = [
        (old.publisher_rate_limit_count != limit, "publisher_rate_limit_count"),
        (old.publisher_rate_limit_timeout != window, "publisher_rate_limit_timeout"),
        (old.trigger_only != new.trigger_only, "trigger_only"),
        (old.status_socket != new.status_socket, "status_socket"),
    ];
    differing.into_iter().filter_map(|(differs, name)| differs.then_some(name)).collect()
}
