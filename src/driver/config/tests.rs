//! Options from files and code: precedence, defaults, errors, warnings, and that the page names all.

use super::*;
use crate::driver::codec::Codec;
use crate::driver::role::Role;

const ROLES: [Role; 2] = [Role::NeutronServer, Role::DfLocalController];

fn ini(text: &str) -> Config {
    let mut config = Config::new();
    config.add_ini("a.ini", text).unwrap();
    config
}

fn neutron(text: &str) -> DriverOptions {
    ini(text).options(Role::NeutronServer).unwrap()
}

fn error(text: &str) -> String {
    ini(text).options(Role::NeutronServer).unwrap_err().to_string()
}

fn warnings(text: &str) -> Vec<String> {
    ini(text).warnings().iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_set_gives_the_defaults() {
    for role in ROLES {
        assert_eq!(Config::new().options(role).unwrap(), DriverOptions::for_role(role));
    }
}

#[test]
fn the_defaults_as_text_are_the_defaults() {
    for section in ["df", "df_zmq", "dragonwire", "controller"] {
        for (option, default) in names::defaults(section).unwrap() {
            let Some(text) = default else { continue };
            let mut config = Config::new();
            config.set(section, option, *text);
            let mut expected = DriverOptions::for_role(Role::DfLocalController);
            match *option {
                "publishers_ips" => expected.publishers_ips = vec!["127.0.0.1".to_owned()],
                "publisher_port" if section == "df" => expected.publisher_port = 8866,
                _ => {}
            }
            let options = config.options(Role::DfLocalController).unwrap();
            assert_eq!(options, expected, "[{section}] {option} = {text}");
        }
    }
}

#[test]
fn an_ini_file_brings_dragonflows_defaults() {
    let options = neutron("[other]\n");
    assert_eq!((options.publishers_ips, options.codec), (vec!["127.0.0.1".to_owned()], None));
    let options = neutron("[df]\nlocal_ip = 10.0.0.5\n");
    assert_eq!(options.publishers_ips, ["10.0.0.5"]);
    assert_eq!(options.codec, Some(Codec::Msgpack));
    assert_eq!(neutron("[df_zmq]\nipc_socket = /s\n").codec, Some(Codec::Msgpack));
    for (text, codec) in
        [("protobuf", Codec::Protobuf), ("json", Codec::Json), ("msgpack", Codec::Msgpack)]
    {
        let text = format!("[dragonwire]\ncodec = {text}\n[df]\nenable_df_pub_sub = yes\n");
        assert_eq!(neutron(&text).codec, Some(codec));
    }
    let mut config = Config::new();
    config.add_toml("a.toml", "[df]\nlocal_ip = '10.0.0.5'\n").unwrap();
    config.set("df", "publisher_port", "1");
    let options = config.options(Role::NeutronServer).unwrap();
    assert_eq!((options.publishers_ips, options.codec), (vec![], None));
}

#[test]
fn the_last_value_of_an_option_wins() {
    let mut config = ini("[df]\npublisher_port = 1\npublisher_timeout = 7\n");
    config.add_ini("b.ini", "[DF]\npublisher-port = 2\npublisher_port = 3\n").unwrap();
    let options = config.options(Role::NeutronServer).unwrap();
    assert_eq!(options.publisher_port, 3);
    assert_eq!(options.publisher_timeout.as_secs(), 7);
    config.set("df", "publisher_port", "4");
    config.add_ini("c.ini", "[df]\npublisher_port = 5\n[neutron]\npublisher_port = 6\n").unwrap();
    assert_eq!(config.options(Role::NeutronServer).unwrap().publisher_port, 4);
}

#[test]
fn a_roles_section_comes_before_df() {
    let text = "[df]\npublisher_transport = epgm\npub_sub_use_multiproc = no\n\
                publisher_bind_address = 10.0.0.1\npublisher_multiproc_socket = /df\n\
                [neutron]\npublisher_transport = tcp\npub_sub_use_multiproc = yes\n\
                publisher_binding_address = 10.0.0.2\npublisher_multiproc_socket = /neutron\n";
    let own = neutron(text);
    assert_eq!(own.publisher_transport, "tcp");
    assert!(own.pub_sub_use_multiproc);
    assert_eq!(own.publisher_bind_address, "10.0.0.2");
    assert_eq!(own.publisher_multiproc_socket.to_str(), Some("/neutron"));
    let shared = ini(text).options(Role::DfLocalController).unwrap();
    assert_eq!(shared.publisher_transport, "epgm");
    assert!(!shared.pub_sub_use_multiproc);
    assert_eq!(shared.publisher_bind_address, "10.0.0.1");
    assert_eq!(shared.publisher_multiproc_socket.to_str(), Some("/df"));
}

#[test]
fn every_spelling_of_a_roles_section_is_read() {
    for (role, sections) in [
        (Role::NeutronServer, ["neutron", "neutron-server", "neutron_server"]),
        (Role::DfLocalController, ["controller", "df-local-controller", "df_local_controller"]),
    ] {
        for section in sections {
            for option in ["publisher_bind_address", "publisher_binding_address"] {
                let text = format!("[{section}]\n{option} = 10.1.1.1\npublisher_port = 77\n");
                let options = ini(&text).options(role).unwrap();
                assert_eq!(options.publisher_bind_address, "10.1.1.1");
                assert_eq!(options.publisher_port, 77);
                let other = ini(&text).options(role.counterpart()).unwrap();
                assert_eq!(other.publisher_bind_address, "*");
                assert_eq!(other.publishers_port, 77);
            }
        }
    }
}

#[test]
fn a_files_df_port_is_the_api_servers_alone() {
    let ports = |config: &Config, role| {
        let options = config.options(role).unwrap();
        (options.publisher_port, options.publishers_port)
    };
    let config = ini("[df]\npublisher_port = 9000\n");
    assert_eq!(ports(&config, Role::NeutronServer), (9000, 8867));
    assert_eq!(ports(&config, Role::DfLocalController), (8867, 9000));
    let mut config = ini("[controller]\npublisher_port = 9001\n");
    assert_eq!(ports(&config, Role::NeutronServer), (8866, 9001));
    assert_eq!(ports(&config, Role::DfLocalController), (9001, 8866));
    // a flag of this process
    config.set("df", "publisher_port", "5");
    assert_eq!(ports(&config, Role::NeutronServer), (5, 9001));
    assert_eq!(ports(&config, Role::DfLocalController), (5, 8866));
    config.set(Role::DfLocalController.as_str(), "publisher_port", "6");
    assert_eq!(ports(&config, Role::DfLocalController), (6, 8866));
}

#[test]
fn the_later_name_of_the_socket_wins() {
    let text = "[df]\npublisher_multiproc_socket = /old\n[df_zmq]\nipc_socket = /new\n";
    assert_eq!(neutron(text).publisher_multiproc_socket.to_str(), Some("/new"));
}

#[test]
fn the_databases_address_and_port_make_its_hosts() {
    assert_eq!(neutron("[df]\nremote_db_port = 6379\n").remote_db_hosts, ["127.0.0.1:6379"]);
    assert_eq!(neutron("[df]\nremote_db_ip = ::1\n").remote_db_hosts, ["[::1]:4001"]);
    let text = "[df]\nremote_db_ip = 10.0.0.1\nremote_db_hosts = $remote_db_ip:1, db:2\n";
    assert_eq!(neutron(text).remote_db_hosts, ["10.0.0.1:1", "db:2"]);
}

#[test]
fn errors_name_file_line_option_and_what_was_expected() {
    for (text, message) in [
        (
            "[df]\n\npublisher_port = \"88o6\"\n",
            "a.ini:3: [df] publisher_port = \"88o6\": expected a port, 0 to 65535",
        ),
        (
            "[df]\nport = x\npublisher_port = $port\n",
            "a.ini:3: [df] publisher_port = \"$port\", which is \"x\": expected a port, 0 to 65535",
        ),
        (
            "[df]\npublisher_port = 8866 # ours\n",
            "a.ini:2: [df] publisher_port = \"8866 # ours\": expected a port, 0 to 65535; \
             a comment is a line of its own, not indented",
        ),
        (
            "[df]\nlocal_ip = node1\n",
            "a.ini:2: [df] local_ip = \"node1\": expected an IPv4 or IPv6 address",
        ),
        (
            "[neutron-server]\npublisher-bind-address = a b\n",
            "a.ini:2: [neutron_server] publisher_bind_address = \"a b\": \
             expected *, an IP address or a host name",
        ),
        (
            "[df]\nlocal_ip = $management_ip\nmanagement_ip = ${local_ip}\n",
            "a.ini:2: [df] local_ip = \"$management_ip\": the value needs itself: \
             [df] local_ip -> [df] management_ip -> [df] local_ip",
        ),
        (
            "[dragonwire]\ncodec =\n",
            "a.ini:2: [dragonwire] codec = \"\": expected protobuf, msgpack or json",
        ),
    ] {
        assert_eq!(error(text), message);
    }
    let mut config = Config::new();
    config.set("df", "enable_df_pub_sub", "maybe");
    assert_eq!(
        config.options(Role::NeutronServer).unwrap_err().to_string(),
        "set by the program: [df] enable_df_pub_sub = \"maybe\": \
         expected true, false, 1, 0, on, off, yes or no"
    );
}

#[test]
fn what_is_wrong_in_a_file_that_another_overrules_does_not_matter() {
    let mut config = ini("[df]\npublisher_port = x\n");
    config.add_ini("b.ini", "[df]\npublisher_port = 1\n").unwrap();
    assert_eq!(config.options(Role::NeutronServer).unwrap().publisher_port, 1);
}

#[test]
fn a_file_with_a_wrong_line_is_not_kept_at_all() {
    let mut config = Config::new();
    assert!(config.add_ini("a.ini", "[df]\npublisher_port = 1\nword\n").is_err());
    assert!(config.add_toml("a.toml", "[df]\npublisher_port = 1\nword\n").is_err());
    assert_eq!(config.options(Role::default()).unwrap(), DriverOptions::default());
}

#[test]
fn typing_errors_are_told_with_what_may_have_been_meant() {
    assert_eq!(
        warnings(
            "[dragonwire]\nkodec = json\ncolour = red\nlocal_ip = 10.0.0.1\n\
             [df_zmq]\nipc_sockets = /s\n[controller]\npublisher_prot = 1\n\
             [df]\npublisher_binding_address = *\ncodec = json\n"
        ),
        [
            "a.ini:2: [dragonwire] kodec is no option that is read here; did you mean [dragonwire] codec?",
            "a.ini:3: [dragonwire] colour is no option that is read here",
            "a.ini:4: [dragonwire] local_ip is no option that is read here; did you mean [df] local_ip?",
            "a.ini:6: [df_zmq] ipc_sockets is no option that is read here; did you mean [df_zmq] ipc_socket?",
            "a.ini:8: [controller] publisher_prot is no option that is read here; \
             did you mean [controller] publisher_port?",
            "a.ini:10: [df] publisher_binding_address is no option that is read here; \
             did you mean [df] publisher_bind_address?",
            "a.ini:11: [df] codec is no option that is read here; did you mean [dragonwire] codec?",
        ]
    );
}

#[test]
fn old_names_and_overruled_spellings_are_told() {
    assert_eq!(
        warnings(
            "publisher_port = 1\n[df]\nremote_db_ip = 10.0.0.1\nmonitor_tables = chassis\n\
             publisher_multiproc_socket = /old\n[df_zmq]\nipc_socket = /new\n\
             [neutron]\npublisher_port = 1\npublisher_bind_address = *\n\
             [neutron-server]\npublisher_port = 2\npublisher_binding_address = *\n"
        ),
        [
            "a.ini:1: [DEFAULT] publisher_port stands before the first section and counts as one of [DEFAULT]",
            "a.ini:3: [df] remote_db_ip is an old name: set [df] remote_db_hosts",
            "a.ini:4: [df] monitor_tables is not read any more: set [dragonwire] monitor_tables",
            "a.ini:5: [df] publisher_multiproc_socket has no effect: [df_zmq] ipc_socket is set and wins",
            "a.ini:9: [neutron] publisher_port has no effect: [neutron_server] publisher_port is set and wins",
            "a.ini:10: [neutron] publisher_bind_address has no effect: \
             [neutron_server] publisher_binding_address is set and wins",
        ]
    );
}

#[test]
fn options_of_others_are_nobodys_business() {
    let text = "[DEFAULT]\nstate_path = /x\n[df]\napps_list = a, b\nnb_db_class = etcd_nb_db_driver\n\
                db_sync_time = 120\nenable_selective_topology_distribution = yes\n\
                neutron_listener_report_interval = 25\nexternal_network_bridge = br-ex\n\
                [ovs]\nlocal_ip = nonsense\n[dragonwires]\ncodec = 9\n";
    assert!(warnings(text).is_empty(), "{:?}", warnings(text));
    neutron(text);
}

#[test]
fn the_page_names_every_field_and_every_option() {
    let page = include_str!("../../../docs/driver-options.md");
    let fields = include_str!("options.rs").lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("    pub ")?.split_once(':')?;
        (!name.contains(' ')).then_some(name)
    });
    let sections = ["df", "df_zmq", "dragonwire", "neutron", "controller"];
    let mut names: Vec<_> = fields.collect();
    assert!(names.len() > 20, "{names:?}");
    for section in sections {
        names.extend(names::defaults(section).unwrap().iter().map(|(name, _)| *name));
    }
    names.extend(names::REMOVED.iter().map(|(name, _)| *name));
    let sections = ROLES.into_iter().flat_map(names::role_sections).chain(sections);
    let sections: Vec<_> = sections.map(|section| format!("[{section}]")).collect();
    for name in names.into_iter().chain(sections.iter().map(String::as_str)) {
        assert!(page.contains(&format!("`{name}`")), "the page does not name {name}");
    }
}
