//! `dragonwire directory`: serves the directory where publishers and subscribers find each other, and
//! looks into one.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use dragonwire::Message;
use dragonwire::driver::directory::{DirectoryServer, DirectoryServerOptions, connect};
use tracing::Level;

use crate::console::Console;
use crate::ending::{Ending, Failure};
use crate::lines::{Format, encode};
use crate::log;
use crate::signals::Signals;
use crate::systemd::Notifier;

/// What is done about a directory.
#[derive(Debug, Clone, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "REQUEST",
    subcommand_help_heading = "Requests",
    override_usage = "dragonwire directory --bind ENDPOINT [--snapshot FILE]\n       \
        dragonwire directory (list | get | put | delete) --directory URI TABLE [KEY] [VALUE]"
)]
pub(crate) struct DirectoryArgs {
    /// Serve a directory on tcp://HOST:PORT and the next port
    #[arg(long, value_name = "ENDPOINT")]
    bind: Option<String>,
    /// The file that the tables are kept in [default: they are lost at the end]
    #[arg(long, value_name = "FILE", requires = "bind")]
    snapshot: Option<PathBuf>,
    #[command(subcommand)]
    request: Option<Request>,
}

#[derive(Debug, Clone, Subcommand)]
enum Request {
    /// Print the rows of a table: its keys and values
    List {
        table: String,
        #[command(flatten)]
        at: At,
    },
    /// Print a row
    Get {
        table: String,
        key: String,
        #[command(flatten)]
        at: At,
    },
    /// Write a row, new or not
    Put {
        table: String,
        key: String,
        value: String,
        #[command(flatten)]
        at: At,
    },
    /// Remove a row
    Delete {
        table: String,
        key: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Clone, Args)]
struct At {
    /// The directory, tcp://HOST:PORT; repeatable: written to all, read from the first that answers
    #[arg(long, value_name = "URI", required = true)]
    directory: Vec<String>,
}

/// Serves a directory until a signal stops it, or does one thing with one.
pub(crate) async fn run(args: DirectoryArgs, console: &Console) -> Result<Ending, Failure> {
    match (args.bind, args.request) {
        (_, Some(request)) => {
            log::start(Level::WARN, console);
            ask(request, console).await
        }
        (Some(endpoint), None) => serve(endpoint, args.snapshot, console).await,
        (None, None) => Err(Failure {
            status: 2,
            reason:
                "give --bind tcp://HOST:PORT to serve a directory, or a request: list, get, put \
                     or delete"
                    .to_owned(),
        }),
    }
}

async fn serve(
    endpoint: String,
    snapshot: Option<PathBuf>,
    console: &Console,
) -> Result<Ending, Failure> {
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    log::start(Level::INFO, console);
    let notifier = Notifier::from_env(console);
    let mut options = DirectoryServerOptions::new(endpoint);
    if let Some(path) = snapshot {
        options = options.snapshot(path);
    }
    let server = DirectoryServer::start(options).await?;
    console.say(format!("bound {}", server.endpoint()));
    notifier.ready();
    tokio::select! {
        _ = signals.next() => {}
        () = server.closed() => return Err(Failure::new("the directory has ended by itself")),
    }
    notifier.stopping();
    server.close().await;
    Ok(Ending::Done)
}

async fn ask(request: Request, console: &Console) -> Result<Ending, Failure> {
    let mut text = Vec::new();
    match request {
        Request::List { table, at } => {
            let format = if io::stdout().is_terminal() { Format::Text } else { Format::Json };
            for (key, value) in connect(&at.directory)?.list(&table).await? {
                encode(format, &Message::pair(key, value), &mut text);
            }
        }
        Request::Get { table, key, at } => {
            let row = connect(&at.directory)?.get(&table, &key).await?;
            let row = row.ok_or_else(|| Failure::new(no_row(&table, &key)))?;
            text.extend_from_slice(row.as_bytes());
            text.push(b'\n');
        }
        Request::Put { table, key, value, at } => {
            connect(&at.directory)?.put(&table, &key, &value).await?;
        }
        Request::Delete { table, key, at } => {
            if !connect(&at.directory)?.delete(&table, &key).await? {
                console.say(no_row(&table, &key));
            }
        }
    }
    match io::stdout().write_all(&text) {
        Ok(()) => Ok(Ending::Done),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Ending::ReaderGone),
        Err(error) => Err(Failure::new(format!("cannot write the standard output: {error}"))),
    }
}

fn no_row(table: &str, key: &str) -> String {
    format!("table {table:?} has no row {key:?}")
}
