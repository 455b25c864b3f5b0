//! The flags that the verbs of the driver layer share, and what they are with the option files.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::{Config, ConfigError, DriverOptions};
use dragonwire::driver::directory::{self, Directory, DirectoryError};
use dragonwire::driver::{DriverContext, DriverError, Drivers, PubSubDriver, Role};

use crate::console::Console;
use crate::ending::Failure;

/// Option files and the flags that win over them.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "What option files hold; flags win")]
pub(crate) struct OptionArgs {
    /// Read an option file of Dragonflow's (INI), or TOML if its name ends in .toml; repeatable, the
    /// last one wins
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Vec<PathBuf>,
    /// Read all *.conf files of a folder, after the files; repeatable
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Vec<PathBuf>,
    /// Who the process is: neutron-server or df-local-controller; decides the section of the files
    #[arg(long, value_name = "ROLE")]
    pub(crate) role: Option<Role>,
    /// The port that a publisher listens at; 0: the system chooses
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// The address that a publisher listens at; *: every one
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind_address: Option<String>,
    /// The Unix socket between the publishers of this host and its publisher service
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// How events are written: protobuf, msgpack (Dragonflow 2.0.0 on) or json (Dragonflow 1.0.0);
    /// what is received is recognised by itself
    #[arg(long, value_name = "CODEC")]
    pub(crate) codec: Option<Codec>,
    /// A directory of publishers, tcp://HOST:PORT; repeatable
    #[arg(long, value_name = "URI")]
    pub(crate) directory: Vec<String>,
}

/// The flags of `publish` and `subscribe`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DriverArgs {
    /// zmq, zmq-multiproc or redis [default: what the option files say; without any zmq, or
    /// zmq-multiproc if --socket is given]
    #[arg(long, value_name = "DRIVER")]
    driver: Option<String>,
    /// The address of a publisher: subscribe follows it, publish listens there; repeatable
    #[arg(long, value_name = "URI")]
    pub(crate) uri: Vec<String>,
    #[command(flatten)]
    pub(crate) options: OptionArgs,
}

/// Which side of the driver a verb is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Publisher,
    Subscriber,
}

impl Side {
    /// Upstream's processes: API servers publish, controllers subscribe.
    fn default_role(self) -> Role {
        match self {
            Self::Publisher => Role::NeutronServer,
            Self::Subscriber => Role::DfLocalController,
        }
    }
}

impl OptionArgs {
    /// Whether there are option files.
    pub(crate) fn has_files(&self) -> bool {
        !self.config.is_empty() || !self.config_dir.is_empty()
    }

    /// Reads the files and lays the flags over them. Blocks while it reads.
    pub(crate) fn load(&self, side: Side) -> Result<Loaded, Failure> {
        self.load_with(side, |_| Ok(()))
    }

    fn load_with(
        &self,
        side: Side,
        add: impl FnOnce(&mut Config) -> Result<(), Failure>,
    ) -> Result<Loaded, Failure> {
        let mut config = Config::new();
        for file in &self.config {
            config.add_file(file)?;
        }
        for folder in &self.config_dir {
            config.add_dir(folder)?;
        }
        let warnings = config.warnings().iter().map(ToString::to_string).collect();
        let role = self.role.unwrap_or_else(|| side.default_role());
        if let Some(port) = self.port {
            // a subscriber has no port of its own: it is the one that it finds its publishers at
            let section = match side {
                Side::Publisher => "df",
                Side::Subscriber => role.counterpart().as_str(),
            };
            config.set(section, "publisher_port", port.to_string());
        }
        if let Some(address) = &self.bind_address {
            config.set("df", "publisher_bind_address", in_file(address));
        }
        if let Some(path) = &self.socket {
            config.set("df", "publisher_multiproc_socket", in_file(&path.to_string_lossy()));
        }
        if let Some(codec) = self.codec {
            config.set("dragonwire", "codec", codec.as_str());
        }
        if !self.directory.is_empty() {
            config.set("dragonwire", "directory", list(&self.directory));
        }
        add(&mut config)?;
        Ok(Loaded { options: config.options(role)?, warnings })
    }
}

/// What files and flags say together.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) options: DriverOptions,
    warnings: Vec<String>,
}

impl Loaded {
    /// The options, after what is doubtful about the files is said.
    pub(crate) fn say_doubts(self, console: &Console) -> DriverOptions {
        for warning in self.warnings {
            console.say(format!("dragonwire: warning: {warning}"));
        }
        self.options
    }
}

impl DriverArgs {
    /// The options and the driver that they and the flags ask for.
    pub(crate) fn load(&self, side: Side, console: &Console) -> Result<Chosen, Failure> {
        let loaded = self.options.load_with(side, |config| {
            if self.driver.as_deref().is_some_and(is_redis) {
                let servers = self.uri.iter().map(|uri| uri.trim_start_matches("redis://"));
                let servers: Vec<_> = servers.collect();
                if !servers.is_empty() {
                    config.set("df", "remote_db_hosts", servers.join(","));
                }
                return Ok(());
            }
            let listens =
                side == Side::Publisher || self.driver.as_deref().is_some_and(is_multiproc);
            match self.uri.as_slice() {
                [uri] if listens => listen_at(uri, config),
                [_, _, ..] if listens => Err(bad_argument("one --uri to listen at, not several")),
                _ => Ok(()),
            }
        })?;
        let options = loaded.say_doubts(console);
        let alias = self.alias(side, &options);
        let directory = connect(&options)?;
        let mut context = DriverContext::new(options.clone());
        if let Some(directory) = &directory {
            context = context.with_directory(directory.clone());
        }
        // whoever publishes there next can say where this one ended
        if side == Side::Publisher && options.state_path.is_some() && !is_multiproc(&alias) {
            let (address, port) = (&options.publisher_bind_address, options.publisher_port);
            context = context.with_process_name(&format!("publish {alias} {address}:{port}"));
        }
        let driver = match Drivers::new().load(&alias, context) {
            Err(DriverError::UnknownDriver { .. }) if is_redis(&alias) => {
                let reason = format!(
                    "driver {alias:?}: this build has no Redis; build it with --features redis"
                );
                return Err(bad_argument(reason));
            }
            driver => driver?,
        };
        Ok(Chosen { options, alias, driver, directory })
    }

    fn alias(&self, side: Side, options: &DriverOptions) -> String {
        if let Some(alias) = &self.driver {
            return alias.clone();
        }
        let OptionArgs { port, bind_address, socket, .. } = &self.options;
        let publishes = side == Side::Publisher;
        let local_uri = publishes && self.uri.iter().any(|uri| uri.starts_with("ipc://"));
        let network = port.is_some() || bind_address.is_some() || !self.uri.is_empty();
        let files_say_local =
            publishes && self.options.has_files() && options.pub_sub_use_multiproc;
        if local_uri || (!network && (socket.is_some() || files_say_local)) {
            options.pub_sub_multiproc_driver.clone()
        } else {
            options.pub_sub_driver.clone()
        }
    }
}

/// The driver and what it was made with.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) options: DriverOptions,
    alias: String,
    pub(crate) driver: Arc<dyn PubSubDriver>,
    pub(crate) directory: Option<Arc<dyn Directory>>,
}

impl Chosen {
    /// The addresses that `--uri` has for a subscriber.
    pub(crate) fn followed<'a>(&self, args: &'a DriverArgs) -> &'a [String] {
        if is_redis(&self.alias) || is_multiproc(&self.alias) { &[] } else { &args.uri }
    }

    /// Whether subscribers connect to publishers over the network.
    pub(crate) fn is_network(&self) -> bool {
        matches!(self.alias.as_str(), "zmq" | "zmq_pubsub_driver" | "zmq_bind_pubsub_driver")
    }
}

/// The directory in the options, if there is one.
pub(crate) fn connect(options: &DriverOptions) -> Result<Option<Arc<dyn Directory>>, DriverError> {
    match options.directory.as_slice() {
        [] => Ok(None),
        uris => Ok(Some(directory::connect(uris)?)),
    }
}

/// Has a publisher listen at its `--uri`.
fn listen_at(uri: &str, config: &mut Config) -> Result<(), Failure> {
    let fault =
        || bad_argument(format!("bad --uri {uri:?}: write tcp://ADDRESS:PORT or ipc://PATH"));
    let (transport, place) = uri.split_once("://").ok_or_else(fault)?;
    if transport == "ipc" {
        config.set("df", "publisher_multiproc_socket", in_file(place));
        return Ok(());
    }
    let (address, port) = place.rsplit_once(':').ok_or_else(fault)?;
    config.set("df", "publisher_transport", in_file(transport));
    config.set("df", "publisher_bind_address", in_file(address));
    config.set("df", "publisher_port", in_file(port));
    Ok(())
}

fn bad_argument(reason: impl Into<String>) -> Failure {
    Failure { status: 2, reason: reason.into() }
}

fn is_redis(alias: &str) -> bool {
    alias.starts_with("redis")
}

fn is_multiproc(alias: &str) -> bool {
    matches!(alias, "zmq-multiproc" | "zmq_pubsub_multiproc_driver")
}

/// A value as a file would have it, where a dollar begins the name of an option.
fn in_file(value: &str) -> String {
    value.replace('$', "$$")
}

fn list(items: &[String]) -> String {
    let quoted: Vec<_> = items.iter().map(|item| format!("\"{}\"", in_file(item))).collect();
    quoted.join(",")
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        // what no other state of the machine would make right is a bad argument
        let bad_argument = match &error {
            DriverError::UnknownDriver { .. }
            | DriverError::UnsupportedTransport { .. }
            | DriverError::TransportNotBuilt { .. }
            | DriverError::Address { .. }
            | DriverError::Config(_) => true,
            DriverError::Directory(error) => return Self::from(error.clone()),
            _ => false,
        };
        Self { status: if bad_argument { 2 } else { 1 }, reason: error.to_string() }
    }
}

impl From<DirectoryError> for Failure {
    fn from(error: DirectoryError) -> Self {
        let status = if matches!(error, DirectoryError::Address { .. }) { 2 } else { 1 };
        Self { status, reason: error.to_string() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::from(DriverError::from(error))
    }
}
