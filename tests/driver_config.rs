//! Options from files: those of Dragonflow's releases, several files and folders, the sections of
//! roles, TOML, and what errors tell.
#![cfg(feature = "driver")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::{
    Config, ConfigError, DriverOptions, InterpolationFault, Place, WarningKind, Written,
};
use dragonwire::driver::{ROLE_DF_LOCAL_CONTROLLER, ROLE_NEUTRON_SERVER, Role};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(name)
}

fn read(name: &str) -> Config {
    let mut config = Config::new();
    config.add_file(path(name)).unwrap();
    config
}

fn options(name: &str, role: Role) -> DriverOptions {
    read(name).options(role).unwrap()
}

#[test]
fn a_file_of_1_0_0_gives_its_options() {
    let options = options("dragonflow-1.0.0.ini", ROLE_NEUTRON_SERVER);
    let mut expected = DriverOptions::for_role(ROLE_NEUTRON_SERVER);
    expected.enable_df_pub_sub = true;
    expected.local_ip = "10.10.0.11".to_owned();
    expected.publishers_ips = vec!["10.10.0.11".to_owned()];
    expected.remote_db_hosts = vec!["10.10.0.11:4001".to_owned()];
    expected.codec = Some(Codec::Json);
    expected.trigger_only = true;
    assert_eq!(options, expected);
}

#[test]
fn a_file_of_2_0_0_with_redis_gives_its_options() {
    let options = options("dragonflow-2.0.0-redis.ini", ROLE_DF_LOCAL_CONTROLLER);
    let mut expected = DriverOptions::for_role(ROLE_DF_LOCAL_CONTROLLER);
    expected.enable_df_pub_sub = true;
    expected.pub_sub_driver = "redis_db_pubsub_driver".to_owned();
    expected.pub_sub_use_multiproc = false;
    expected.local_ip = "10.10.0.31".to_owned();
    expected.publishers_ips = vec!["10.10.0.31".to_owned()];
    expected.remote_db_hosts = [21, 22, 23].map(|host| format!("10.10.0.{host}:6379")).to_vec();
    expected.publisher_rate_limit_timeout = Duration::from_secs(60);
    expected.publisher_rate_limit_count = 2;
    expected.monitor_table_poll_time = Duration::from_millis(500);
    expected.codec = Some(Codec::Msgpack);
    assert_eq!(options, expected);
}

#[test]
fn a_file_of_4_0_0_gives_its_options() {
    let options = options("dragonflow-4.0.0.ini", ROLE_NEUTRON_SERVER);
    let mut expected = DriverOptions::for_role(ROLE_NEUTRON_SERVER);
    expected.enable_df_pub_sub = true;
    expected.local_ip = "10.20.0.31".to_owned();
    expected.management_ip = "192.0.2.31".to_owned();
    expected.publishers_ips = [11, 12, 31].map(|host| format!("192.0.2.{host}")).to_vec();
    expected.publisher_bind_address = "192.0.2.31".to_owned();
    expected.publisher_multiproc_socket = "/run/dragonflow/compute-7.$1".into();
    expected.codec = Some(Codec::Msgpack);
    assert_eq!(options, expected);
}

#[test]
fn a_file_of_the_last_release_gives_its_options() {
    let options = options("dragonflow-master.ini", ROLE_NEUTRON_SERVER);
    let mut expected = DriverOptions::for_role(ROLE_NEUTRON_SERVER);
    expected.enable_df_pub_sub = true;
    expected.pub_sub_driver = "zmq_bind_pubsub_driver".to_owned();
    expected.local_ip = "192.0.2.11".to_owned();
    expected.management_ip = "192.0.2.11".to_owned();
    expected.publishers_ips = vec!["192.0.2.11".to_owned()];
    expected.remote_db_hosts = vec!["192.0.2.11:2379".to_owned()];
    expected.publisher_multiproc_socket = "/var/run/dragonflow/zmq.sock".into();
    expected.codec = Some(Codec::Msgpack);
    assert_eq!(options, expected);
}

#[test]
fn files_of_dragonflow_raise_no_warnings_but_for_old_names() {
    for name in [
        "dragonflow-2.0.0-redis.ini",
        "dragonflow-4.0.0.ini",
        "dragonflow-master.ini",
        "two-roles.ini",
        "every-option.ini",
        "every-option.toml",
    ] {
        assert_eq!(read(name).warnings(), [], "{name}");
    }
    let old = read("dragonflow-1.0.0.ini").warnings();
    let old: Vec<_> = old.iter().map(|warning| (warning.option.as_str(), &warning.kind)).collect();
    let deprecated = WarningKind::Deprecated { instead: "[df] remote_db_hosts".to_owned() };
    assert_eq!(old, [("remote_db_ip", &deprecated), ("remote_db_port", &deprecated)]);
}

#[test]
fn two_roles_on_one_host_do_not_share_a_port_or_a_socket() {
    let server = options("two-roles.ini", ROLE_NEUTRON_SERVER);
    let controller = options("two-roles.ini", ROLE_DF_LOCAL_CONTROLLER);
    assert_eq!((server.publisher_port, controller.publisher_port), (8866, 8867));
    // and each follows the other
    assert_eq!((server.publishers_port, controller.publishers_port), (8867, 8866));
    assert_eq!(server.publisher_bind_address, controller.publisher_bind_address);
    assert!(server.pub_sub_use_multiproc && !controller.pub_sub_use_multiproc);
    assert_ne!(server.publisher_multiproc_socket, controller.publisher_multiproc_socket);
}

#[test]
fn later_files_win_option_by_option_and_code_over_all() {
    let mut config = read("dragonflow-master.ini");
    config.add_file(path("two-roles.ini")).unwrap();
    let both = config.options(ROLE_NEUTRON_SERVER).unwrap();
    assert_eq!(both.local_ip, "192.0.2.1");
    assert_eq!(both.pub_sub_driver, "zmq_bind_pubsub_driver");
    assert_eq!(both.publisher_multiproc_socket, Path::new("/run/dragonflow/neutron.sock"));
    config.set("df", "publisher_multiproc_socket", "/run/flag");
    config.set("df", "local_ip", "192.0.2.99");
    config.set("df", "publisher_bind_address", "$local_ip");
    let flags = config.options(ROLE_NEUTRON_SERVER).unwrap();
    assert_eq!(flags.publisher_multiproc_socket, Path::new("/run/flag"));
    assert_eq!(flags.publisher_bind_address, "192.0.2.99");
    assert_eq!(flags.publishers_ips, ["192.0.2.99"]);
}

#[test]
fn a_folder_gives_its_conf_files_in_the_order_of_their_names() {
    let mut config = Config::new();
    config.add_dir(path("conf.d")).unwrap();
    let options = config.options(ROLE_NEUTRON_SERVER).unwrap();
    assert!(options.enable_df_pub_sub);
    assert_eq!(options.publisher_port, 9100);
    assert_eq!(options.publisher_timeout, Duration::from_secs(600));
    assert_eq!(options.local_ip, "192.0.2.31");
    assert_eq!(options.publishers_ips, ["192.0.2.11"]);
}

#[test]
fn toml_says_the_same_as_ini() {
    let mut expected = DriverOptions::for_role(ROLE_DF_LOCAL_CONTROLLER);
    expected.enable_df_pub_sub = true;
    expected.pub_sub_driver = "redis_db_pubsub_driver".to_owned();
    expected.pub_sub_multiproc_driver = "mine".to_owned();
    expected.pub_sub_use_multiproc = false;
    expected.publishers_ips = vec!["192.0.2.1".to_owned(), "192.0.2.2".to_owned()];
    expected.publisher_port = 9002;
    expected.publishers_port = 9001;
    expected.publisher_transport = "epgm".to_owned();
    expected.publisher_bind_address = "::1".to_owned();
    expected.publisher_multiproc_socket = "/run/a".into();
    expected.local_ip = "192.0.2.3".to_owned();
    expected.management_ip = "192.0.2.4".to_owned();
    expected.publisher_timeout = Duration::from_secs(10);
    expected.publisher_rate_limit_timeout = Duration::from_secs(20);
    expected.publisher_rate_limit_count = 3;
    expected.monitor_table_poll_time = Duration::from_millis(1500);
    expected.remote_db_hosts = vec!["192.0.2.3:6379".to_owned()];
    expected.codec = Some(Codec::Protobuf);
    expected.trigger_only = true;
    expected.exact_topics = true;
    expected.sync_on_reconnect = false;
    expected.directory = [1, 2].map(|host| format!("tcp://192.0.2.{host}:8870")).to_vec();
    expected.state_path = Some("/var/lib/dragonwire".into());
    expected.status_socket = Some("/run/dragonwire/status".into());
    expected.monitor_tables = vec!["chassis".to_owned()];
    for name in ["every-option.ini", "every-option.toml"] {
        assert_eq!(options(name, ROLE_DF_LOCAL_CONTROLLER), expected, "{name}");
    }
}

#[test]
fn errors_name_the_file_and_the_line() {
    let error = read("broken/port.ini").options(ROLE_NEUTRON_SERVER).unwrap_err();
    let file = path("broken/port.ini").display().to_string();
    let written = Written {
        place: Place::File { name: file.as_str().into(), line: 6 },
        section: "df".to_owned(),
        option: "publisher_port".to_owned(),
        value: "$base".to_owned(),
    };
    let expected = ConfigError::Value {
        written: written.into(),
        value: "88o6".to_owned(),
        expected: "a port, 0 to 65535".to_owned(),
    };
    assert_eq!(error, expected);
    let message = "[df] publisher_port = \"$base\", which is \"88o6\": expected a port, 0 to 65535";
    assert_eq!(error.to_string(), format!("{file}:6: {message}"));
    // nor does the controller know where to connect to
    read("broken/port.ini").options(ROLE_DF_LOCAL_CONTROLLER).unwrap_err();

    let error = Config::new().add_file(path("broken/section.ini")).unwrap_err().to_string();
    assert!(error.ends_with("section.ini:3: expected ] at the end of \"[controller\""), "{error}");
    let error = Config::new().add_file(path("broken/table.toml")).unwrap_err().to_string();
    assert!(error.contains("table.toml:3: [df] publisher_port: expected text"), "{error}");
    let error = read("broken/loop.ini").options(ROLE_NEUTRON_SERVER).unwrap_err().to_string();
    assert!(error.contains("loop.ini:2: [df] local_ip"), "{error}");
    assert!(error.ends_with("[df] local_ip -> [df] management_ip -> [df] local_ip"), "{error}");
    let error = read("broken/doubling.ini").options(ROLE_NEUTRON_SERVER).unwrap_err();
    let fault = InterpolationFault::TooMuch;
    assert!(
        matches!(&error, ConfigError::Interpolation { fault: f, .. } if *f == fault),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let mut config = Config::new();
    let missing = path("missing.ini");
    let error = config.add_file(&missing).unwrap_err();
    assert!(matches!(&error, ConfigError::Unreadable { path, .. } if *path == missing), "{error}");
    assert!(matches!(config.add_dir(&missing), Err(ConfigError::Unreadable { .. })));

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver_config");
    fs::create_dir_all(&folder).unwrap();
    let latin = folder.join("latin.ini");
    fs::write(&latin, b"[df]\n# gr\xfc\xdfe\n").unwrap();
    let error = config.add_file(&latin).unwrap_err().to_string();
    assert!(error.ends_with("latin.ini:2: the file is not UTF-8 from here on"), "{error}");
    let marked = folder.join("marked.TOML");
    fs::write(&marked, "\u{feff}[df]\npublisher_port = 7\n").unwrap();
    config.add_file(&marked).unwrap();
    assert_eq!(config.options(ROLE_NEUTRON_SERVER).unwrap().publisher_port, 7);
}

#[test]
fn the_sample_files_are_among_the_seeds_of_the_fuzzer() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/option_file");
    let contents = |folder: &Path| -> Vec<Vec<u8>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_file()).map(|path| fs::read(path).unwrap()).collect()
    };
    let seeds = contents(&corpus);
    assert!(seeds.iter().all(|seed| seed.len() <= 4096));
    for folder in [path(""), path("broken")] {
        for sample in contents(&folder) {
            assert!(seeds.contains(&sample), "{}", String::from_utf8_lossy(&sample));
        }
    }
}
