//! The options of one process, typed, with Dragonflow's names and defaults.

use std::path::PathBuf;
use std::time::Duration;

use crate::driver::codec::Codec;
use crate::driver::role::Role;

/// Everything that drivers, the registration, the monitors and the publisher service are told.
///
/// Made by [`Config::options`](super::Config::options) from files and code, or from
/// [`for_role`](Self::for_role) by hand. The fields have Dragonflow's names for its options, all of
/// section `[df]` unless said otherwise; those of the section `[dragonwire]` are this project's own.
/// `docs/driver-options.md` has all of them with their releases and what a role's section may hold.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DriverOptions {
    /// Who the process is; decides the section.
    pub role: Role,
    /// Whether Dragonflow publishes and subscribes at all. It decides nothing here: what is started
    /// runs. Default false.
    pub enable_df_pub_sub: bool,
    /// Alias of the network driver. Default `zmq_pubsub_driver`.
    pub pub_sub_driver: String,
    /// Alias of the driver between processes of a host. Default `zmq_pubsub_multiproc_driver`.
    pub pub_sub_multiproc_driver: String,
    /// Whether publishers hand their events to the publisher service. Default true.
    pub pub_sub_use_multiproc: bool,
    /// IP addresses or host names of publishers that are followed besides those of the directory.
    /// Default none; `local_ip` where an INI file is read.
    pub publishers_ips: Vec<String>,
    /// The port that this process's publisher listens at; 0: the system chooses. Default 8866, for
    /// [`Role::DfLocalController`] 8867, which a file's `[df]` does not change.
    pub publisher_port: u16,
    /// Where the publishers at `publishers_ips` listen: the `publisher_port` of
    /// [`Role::counterpart`], which a file's `[df] publisher_port` is for [`Role::NeutronServer`].
    /// Default: the other role's.
    pub publishers_port: u16,
    /// `tcp`; `epgm` is known but not built. Checked when a driver is made. Default `tcp`.
    pub publisher_transport: String,
    /// The address that the publisher listens at: `*`, which is every one, an IP address or a host
    /// name. `publisher_binding_address` in a role's section. Default `*`.
    pub publisher_bind_address: String,
    /// The Unix socket between publishers and the publisher service; `[df_zmq] ipc_socket` is its
    /// later name. Default `/var/run/zmq_pubsub/zmq-publisher-socket`.
    pub publisher_multiproc_socket: PathBuf,
    /// This host's address. Default 127.0.0.1.
    pub local_ip: String,
    /// The address that others reach this host at. Default 127.0.0.1.
    pub management_ip: String,
    /// After so long without activity a publisher's row is stale. Default 300 s.
    pub publisher_timeout: Duration,
    /// The window of the rate limit on refreshing the row. Default 180 s.
    pub publisher_rate_limit_timeout: Duration,
    /// How often the row may be refreshed in that window. Default 1.
    pub publisher_rate_limit_count: usize,
    /// How often tables are looked at. Default 30 s.
    pub monitor_table_poll_time: Duration,
    /// Addresses of the database, `host:port`; the Redis driver's servers. Default `127.0.0.1:4001`.
    pub remote_db_hosts: Vec<String>,

    /// `[dragonwire] codec`: how events are written. `None`: what the driver's peers need. Default
    /// `None`; [`Codec::Msgpack`] where an INI file has options of Dragonflow.
    pub codec: Option<Codec>,
    /// `[dragonwire] trigger_only`: send values only with the action `log`, as releases before 3.0.0
    /// did. Default false.
    pub trigger_only: bool,
    /// `[dragonwire] exact_topics`: deliver only topics that were registered, not those that begin
    /// so. Default false.
    pub exact_topics: bool,
    /// `[dragonwire] sync_on_reconnect`: tell `sync` when a publisher that numbers nothing was away.
    /// Default true.
    pub sync_on_reconnect: bool,
    /// `[dragonwire] directory`: addresses of directories, all written to, the first that answers
    /// read. Default none.
    pub directory: Vec<String>,
    /// `[dragonwire] state_path`: the folder where a publisher keeps its position, so that its
    /// successor knows where it ended. Default none: not kept.
    pub state_path: Option<PathBuf>,
    /// `[dragonwire] status_socket`: where the publisher service tells how it is. Default: the
    /// multi-process socket's path and `.status`.
    pub status_socket: Option<PathBuf>,
    /// `[dragonwire] monitor_tables`: the tables whose changes the publisher service publishes.
    /// Default `chassis` and `publisher`.
    pub monitor_tables: Vec<String>,
}

impl DriverOptions {
    /// The defaults of a role.
    #[must_use]
    pub fn for_role(role: Role) -> Self {
        Self {
            role,
            enable_df_pub_sub: false,
            pub_sub_driver: "zmq_pubsub_driver".to_owned(),
            pub_sub_multiproc_driver: "zmq_pubsub_multiproc_driver".to_owned(),
            pub_sub_use_multiproc: true,
            publishers_ips: Vec::new(),
            publisher_port: default_port(role),
            publishers_port: default_port(role.counterpart()),
            publisher_transport: "tcp".to_owned(),
            publisher_bind_address: "*".to_owned(),
            publisher_multiproc_socket: "/var/run/zmq_pubsub/zmq-publisher-socket".into(),
            local_ip: "127.0.0.1".to_owned(),
            management_ip: "127.0.0.1".to_owned(),
            publisher_timeout: Duration::from_secs(300),
            publisher_rate_limit_timeout: Duration::from_secs(180),
            publisher_rate_limit_count: 1,
            monitor_table_poll_time: Duration::from_secs(30),
            remote_db_hosts: vec!["127.0.0.1:4001".to_owned()],
            codec: None,
            trigger_only: false,
            exact_topics: false,
            sync_on_reconnect: true,
            directory: Vec::new(),
            state_path: None,
            status_socket: None,
            monitor_tables: vec!["chassis".to_owned(), "publisher".to_owned()],
        }
    }
}

fn default_port(role: Role) -> u16 {
    match role {
        Role::NeutronServer => 8866,
        Role::DfLocalController => 8867,
    }
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self::for_role(Role::default())
    }
}
