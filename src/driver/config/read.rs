//! From what files and code say to a role's [`DriverOptions`].

use crate::driver::codec::Codec;
use crate::driver::role::Role;

use super::names::{DF, DF_ZMQ, DRAGONWIRE, role_sections};
use super::value::{self, Parsed};
use super::{Config, ConfigError, DriverOptions, Place, Setting, Written};

/// Section and option.
type Name = (&'static str, &'static str);

impl Config {
    /// The options of a role: its own section, then what all share, then the defaults.
    ///
    /// # Errors
    /// A value is not of its option's type, or a `$name` in it cannot be replaced. The error names the
    /// file, the line, the option and what was expected.
    pub fn options(&self, role: Role) -> Result<DriverOptions, ConfigError> {
        let mut o = DriverOptions::for_role(role);
        let df = |option| [(DF, option)];
        self.read(&mut o.enable_df_pub_sub, &df("enable_df_pub_sub"), value::boolean)?;
        self.read(&mut o.pub_sub_driver, &df("pub_sub_driver"), value::word)?;
        self.read(&mut o.pub_sub_multiproc_driver, &df("pub_sub_multiproc_driver"), value::word)?;
        self.read(&mut o.local_ip, &df("local_ip"), value::ip)?;
        self.read(&mut o.management_ip, &df("management_ip"), value::ip)?;
        if self.has_ini {
            o.publishers_ips = vec![o.local_ip.clone()];
        }
        self.read(&mut o.publishers_ips, &df("publishers_ips"), value::hosts)?;
        self.read(&mut o.publisher_timeout, &df("publisher_timeout"), value::whole_seconds)?;
        let window = df("publisher_rate_limit_timeout");
        self.read(&mut o.publisher_rate_limit_timeout, &window, value::whole_seconds)?;
        let count = df("publisher_rate_limit_count");
        self.read(&mut o.publisher_rate_limit_count, &count, value::count)?;
        self.read(&mut o.monitor_table_poll_time, &df("monitor_table_poll_time"), value::seconds)?;
        self.read_servers(&mut o.remote_db_hosts)?;

        let transport = of_role(role, &["publisher_transport"], &df("publisher_transport"));
        self.read(&mut o.publisher_transport, &transport, value::word)?;
        let shared = df("publisher_bind_address");
        let address = of_role(role, ADDRESS, &shared);
        self.read(&mut o.publisher_bind_address, &address, value::bind_address)?;
        let shared = df("pub_sub_use_multiproc");
        let multiproc = of_role(role, &["pub_sub_use_multiproc"], &shared);
        self.read(&mut o.pub_sub_use_multiproc, &multiproc, value::boolean)?;
        let socket = of_role(role, &["publisher_multiproc_socket"], SOCKET);
        self.read(&mut o.publisher_multiproc_socket, &socket, value::path)?;
        self.read_port(&mut o.publisher_port, role, &df("publisher_port"))?;
        // what code sets for `df` is meant for this process
        self.read_port(&mut o.publishers_port, role.counterpart(), &[])?;

        let own = |option| [(DRAGONWIRE, option)];
        if self.is_dragonflow {
            o.codec = Some(Codec::Msgpack);
        }
        self.read(&mut o.codec, &own("codec"), |text| value::codec(text).map(Some))?;
        self.read(&mut o.trigger_only, &own("trigger_only"), value::boolean)?;
        self.read(&mut o.exact_topics, &own("exact_topics"), value::boolean)?;
        self.read(&mut o.sync_on_reconnect, &own("sync_on_reconnect"), value::boolean)?;
        self.read(&mut o.directory, &own("directory"), value::list)?;
        self.read(&mut o.state_path, &own("state_path"), value::optional_path)?;
        self.read(&mut o.status_socket, &own("status_socket"), value::optional_path)?;
        self.read(&mut o.monitor_tables, &own("monitor_tables"), value::list)?;
        Ok(o)
    }

    /// The first of the names that is set, by code before by files, if any is.
    fn read<T>(
        &self,
        into: &mut T,
        names: &[Name],
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<(), ConfigError> {
        match self.find(names, true).or_else(|| self.find(names, false)) {
            Some((name, setting)) => self.convert(into, name, setting, parse),
            None => Ok(()),
        }
    }

    /// The port of a role. A file's `[df]` speaks for the API server alone: both roles of one host
    /// would have the same port otherwise.
    fn read_port(&self, port: &mut u16, role: Role, code: &[Name]) -> Result<(), ConfigError> {
        let shared: &[Name] = match role {
            Role::NeutronServer => &[(DF, PORT)],
            Role::DfLocalController => &[],
        };
        let in_code = self.find(&of_role(role, &[PORT], code), true);
        match in_code.or_else(|| self.find(&of_role(role, &[PORT], shared), false)) {
            Some((name, setting)) => self.convert(port, name, setting, value::port),
            None => Ok(()),
        }
    }

    /// `remote_db_hosts`, or one of its two earlier parts.
    fn read_servers(&self, servers: &mut Vec<String>) -> Result<(), ConfigError> {
        let (mut ip, mut port) = ("127.0.0.1".to_owned(), 4001);
        self.read(&mut ip, &[(DF, "remote_db_ip")], value::ip)?;
        self.read(&mut port, &[(DF, "remote_db_port")], value::remote_port)?;
        *servers = vec![value::server(&ip, port)];
        self.read(servers, &[(DF, "remote_db_hosts")], value::servers)
    }

    fn find<'a>(&'a self, names: &[Name], code: bool) -> Option<(Name, &'a Setting)> {
        names.iter().find_map(|&name| Some((name, self.setting_of(name.0, name.1, code)?)))
    }

    fn convert<T>(
        &self,
        into: &mut T,
        (section, option): Name,
        setting: &Setting,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<(), ConfigError> {
        let written = || {
            Box::new(Written {
                place: setting.place.clone(),
                section: section.to_owned(),
                option: option.to_owned(),
                value: setting.text.clone(),
            })
        };
        let value = self
            .interpolate(section, option, &setting.text)
            .map_err(|fault| ConfigError::Interpolation { written: written(), fault })?;
        *into = parse(&value).map_err(|expected| {
            let commented = [" #", " ;", "\n#", "\n;"].iter().any(|mark| value.contains(mark));
            let hint = match setting.place {
                Place::File { .. } if commented => "; a comment is a line of its own, not indented",
                _ => "",
            };
            let expected = format!("{expected}{hint}");
            ConfigError::Value { written: written(), value: value.clone(), expected }
        })?;
        Ok(())
    }
}

/// The role's sections, each with all spellings, and then what all roles share.
pub(super) fn of_role(role: Role, spellings: &[&'static str], shared: &[Name]) -> Vec<Name> {
    let own = role_sections(role)
        .into_iter()
        .flat_map(|section| spellings.iter().map(move |&option| (section, option)));
    own.chain(shared.iter().copied()).collect()
}

const PORT: &str = "publisher_port";

/// The refactor's spelling and that of `[df]`.
pub(super) const ADDRESS: &[&str] = &["publisher_binding_address", "publisher_bind_address"];

/// The last releases' name and that of those before.
pub(super) const SOCKET: &[Name] = &[(DF_ZMQ, "ipc_socket"), (DF, "publisher_multiproc_socket")];
