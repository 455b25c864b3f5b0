//! The sections and options that are read here, with their defaults as a file would have them.

use crate::driver::role::Role;

/// Dragonflow's section.
pub(super) const DF: &str = "df";
/// The section of Dragonflow's last ZMQ drivers.
pub(super) const DF_ZMQ: &str = "df_zmq";
/// This project's own section.
pub(super) const DRAGONWIRE: &str = "dragonwire";
/// Whose options in an INI file tell that the peers are Dragonflow's.
pub(super) const DRAGONFLOW: &[&str] = &[DF, DF_ZMQ];

/// A role's sections; the first that has an option decides.
pub(super) fn role_sections(role: Role) -> [&'static str; 2] {
    match role {
        Role::NeutronServer => ["neutron_server", "neutron"],
        Role::DfLocalController => ["df_local_controller", "controller"],
    }
}

/// Whether the section is one of those that are read here.
pub(super) fn is_read(section: &str) -> bool {
    defaults(section).is_some()
}

/// The options of a section that is read here, each with its default. Those of roles' sections
/// default to `[df]`, and have none of their own.
pub(super) fn defaults(section: &str) -> Option<&'static [(&'static str, Option<&'static str>)]> {
    match section {
        DF => Some(DF_OPTIONS),
        DF_ZMQ => Some(DF_ZMQ_OPTIONS),
        DRAGONWIRE => Some(DRAGONWIRE_OPTIONS),
        "neutron_server" | "neutron" => Some(NEUTRON_OPTIONS),
        "df_local_controller" | "controller" => Some(CONTROLLER_OPTIONS),
        _ => None,
    }
}

/// An option's default as a file would have it.
pub(super) fn default_text(section: &str, option: &str) -> Option<&'static str> {
    defaults(section)?.iter().find(|(name, _)| *name == option)?.1
}

/// Options of `[df]` that have another name now, and which.
pub(super) const DEPRECATED: &[(&str, &str)] =
    &[("remote_db_ip", "[df] remote_db_hosts"), ("remote_db_port", "[df] remote_db_hosts")];

/// Options of `[df]` that are not read any more, and what took their place.
pub(super) const REMOVED: &[(&str, &str)] = &[
    ("is_monitor_tables", "[dragonwire] monitor_tables"),
    ("monitor_tables", "[dragonwire] monitor_tables"),
];

type Options = &'static [(&'static str, Option<&'static str>)];

const DF_OPTIONS: Options = &[
    ("enable_df_pub_sub", Some("false")),
    ("pub_sub_driver", Some("zmq_pubsub_driver")),
    ("pub_sub_multiproc_driver", Some("zmq_pubsub_multiproc_driver")),
    ("pub_sub_use_multiproc", Some("true")),
    ("publishers_ips", Some("$local_ip")),
    ("publisher_port", Some("8866")),
    ("publisher_transport", Some("tcp")),
    ("publisher_bind_address", Some("*")),
    ("publisher_multiproc_socket", Some("/var/run/zmq_pubsub/zmq-publisher-socket")),
    ("local_ip", Some("127.0.0.1")),
    ("management_ip", Some("127.0.0.1")),
    ("publisher_timeout", Some("300")),
    ("publisher_rate_limit_timeout", Some("180")),
    ("publisher_rate_limit_count", Some("1")),
    ("monitor_table_poll_time", Some("30")),
    ("remote_db_ip", Some("127.0.0.1")),
    ("remote_db_port", Some("4001")),
    ("remote_db_hosts", Some("$remote_db_ip:$remote_db_port")),
];

const DF_ZMQ_OPTIONS: Options = &[("ipc_socket", Some("/var/run/zmq_pubsub/zmq-publisher-socket"))];

const DRAGONWIRE_OPTIONS: Options = &[
    ("codec", None),
    ("trigger_only", Some("false")),
    ("exact_topics", Some("false")),
    ("sync_on_reconnect", Some("true")),
    ("directory", Some("")),
    ("state_path", Some("")),
    ("status_socket", Some("")),
    ("monitor_tables", Some("chassis, publisher")),
];

const NEUTRON_OPTIONS: Options = &[
    ("publisher_port", None),
    ("publisher_binding_address", None),
    ("publisher_bind_address", None),
    ("pub_sub_use_multiproc", None),
    ("publisher_multiproc_socket", None),
    ("publisher_transport", None),
];

const CONTROLLER_OPTIONS: Options = &[
    ("publisher_port", Some("8867")),
    ("publisher_binding_address", None),
    ("publisher_bind_address", None),
    ("pub_sub_use_multiproc", None),
    ("publisher_multiproc_socket", None),
    ("publisher_transport", None),
];
