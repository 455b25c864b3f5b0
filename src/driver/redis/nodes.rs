//! Where Redis servers are: what options and addresses of directories say, and the nodes that a
//! cluster names.

use std::fmt;

use ::redis::{
    ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
};

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// Reads `host:port`; an IPv6 address stands in brackets.
    fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        let bare = text.ends_with(']') || !text.contains(':');
        let (host, port) = match default_port {
            Some(port) if bare => (text, port),
            _ => {
                let (host, port) = text.rsplit_once(':')?;
                (host, port.parse().ok()?)
            }
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']')?,
            None if host.contains(':') => return None,
            None => host,
        };
        let is_name = !host.is_empty() && !host.contains(['/', '@', ' ', '?', '#']);
        (is_name && port != 0).then(|| Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Where a server is to be looked for, and what it is to be told first.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(super) at: Place,
    /// User, password and database. Its `Debug` leaves the password out.
    pub(super) login: RedisConnectionInfo,
}

/// Where a server is to be looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Server(Address),
    /// Wherever the Sentinels say that the master of this name is.
    Sentinels {
        sentinels: Vec<Address>,
        master: String,
    },
}

/// A text that says no such place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoPlace {
    /// The text, without a password.
    pub(crate) text: String,
    /// What is wrong with it.
    pub(crate) reason: String,
}

impl Source {
    /// Reads `HOST:PORT`, `redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]` or
    /// `redis+sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/NAME[/DB]`.
    pub(crate) fn parse(text: &str) -> Result<Self, NoPlace> {
        let fault = |reason: &str| NoPlace { text: redacted(text), reason: reason.to_owned() };
        let Some((scheme, rest)) = text.split_once("://") else {
            let address = Address::parse(text, None).ok_or_else(|| fault(EXPECTED))?;
            return Ok(Self::new(Place::Server(address), RedisConnectionInfo::default()));
        };
        match scheme {
            "redis" | "valkey" => {
                let (addr, login) = read_url(text).map_err(|reason| fault(&reason))?;
                let ConnectionAddr::Tcp(host, port) = addr else { return Err(fault(EXPECTED)) };
                if port == 0 {
                    return Err(fault(EXPECTED));
                }
                Ok(Self::new(Place::Server(Address { host, port }), login))
            }
            "redis+sentinel" => Self::behind_sentinels(rest).map_err(|reason| fault(&reason)),
            "rediss" | "valkeys" => Err(fault("TLS is not built; use redis://")),
            "unix" | "redis+unix" | "valkey+unix" => {
                Err(fault("Unix sockets are not built for Redis; use HOST:PORT"))
            }
            _ => Err(fault(EXPECTED)),
        }
    }

    fn behind_sentinels(rest: &str) -> Result<Self, String> {
        let (authority, path) = rest.split_once('/').ok_or(EXPECTED_SENTINEL)?;
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let sentinels: Option<Vec<_>> =
            hosts.split(',').map(|host| Address::parse(host, Some(SENTINEL_PORT))).collect();
        let sentinels = sentinels.ok_or(EXPECTED_SENTINEL)?;
        let (master, db) = path.split_once('/').unwrap_or((path, ""));
        if master.is_empty() {
            return Err(EXPECTED_SENTINEL.to_owned());
        }
        // who the user is, is written as in a URL of a server
        let (_, login) = read_url(&format!("redis://{user}master/{db}"))?;
        let master = master.to_owned();
        Ok(Self::new(Place::Sentinels { sentinels, master }, login))
    }

    pub(super) fn new(at: Place, login: RedisConnectionInfo) -> Self {
        // the older protocol is the one that every server speaks; the library's name is nobody's
        // business
        let login = login.set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
        Self { at, login }
    }
}

fn read_url(url: &str) -> Result<(ConnectionAddr, RedisConnectionInfo), String> {
    let info = url.into_connection_info().map_err(|error| match error.kind() {
        ErrorKind::InvalidClientConfig => EXPECTED.to_owned(),
        _ => error.to_string(),
    })?;
    Ok((info.addr().clone(), info.redis_settings().clone()))
}

/// The text without what stands before an `@`.
fn redacted(text: &str) -> String {
    let Some((before, after)) = text.rsplit_once('@') else { return text.to_owned() };
    match before.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://...@{after}"),
        None => format!("...@{after}"),
    }
}

/// The masters in what `CLUSTER NODES` says, those that the cluster has not given up. `asked` is who
/// said it: a node that does not know its own address leaves it out.
pub(super) fn masters(nodes: &str, asked: &Address) -> Vec<Address> {
    nodes.lines().filter_map(|line| master(line, asked)).take(MAX_NODES).collect()
}

/// `<id> <ip:port@bus,name> <flags> ...`; the bus's port came with Redis 4, the name with Redis 7, and
/// more after a further comma with 7.2.
fn master(line: &str, asked: &Address) -> Option<Address> {
    let mut words = line.split_ascii_whitespace();
    let (_id, address, flags) = (words.next()?, words.next()?, words.next()?);
    let has = |wanted: &str| flags.split(',').any(|flag| flag == wanted);
    if !has("master") || has("fail") || has("handshake") || has("noaddr") {
        return None;
    }
    let mut parts = address.split(',');
    let (address, name) = (parts.next()?, parts.next().unwrap_or_default());
    let address = address.split_once('@').map_or(address, |(address, _bus)| address);
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let known = |host: &&str| !host.is_empty() && !host.contains(['?', '=']);
    let host = [host, name, &asked.host].into_iter().find(known)?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    Some(Address { host: host.to_owned(), port })
}

const EXPECTED: &str =
    "expected HOST:PORT, redis://[[USER]:PASSWORD@]HOST:PORT[/DB] or redis+sentinel://";

const EXPECTED_SENTINEL: &str =
    "expected redis+sentinel://[[USER]:PASSWORD@]HOST:PORT[,HOST:PORT...]/NAME[/DB]";

const SENTINEL_PORT: u16 = 26379;

/// Nodes of a cluster that are kept: what Redis recommends at most.
const MAX_NODES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text, None).unwrap()
    }

    fn server(text: &str) -> (String, RedisConnectionInfo) {
        match Source::parse(text).unwrap() {
            Source { at: Place::Server(address), login } => (address.to_string(), login),
            other => panic!("{other:?}"),
        }
    }

    fn fault(text: &str) -> NoPlace {
        Source::parse(text).expect_err(text)
    }

    #[test]
    fn servers_are_hosts_with_ports_or_urls() {
        for text in ["127.0.0.1:6379", "[::1]:7000", "db.example.org:1", "my_db:65535"] {
            assert_eq!(server(text).0, text);
        }
        assert_eq!(server("redis://db").0, "db:6379");
        assert_eq!(server("redis://[::1]:7").0, "[::1]:7");
        let (at, login) = server("redis://me:se%40cret@10.0.0.1:7000/3?protocol=resp3");
        assert_eq!(at, "10.0.0.1:7000");
        assert_eq!((login.username(), login.password()), (Some("me"), Some("se@cret")));
        assert_eq!(login.db(), 3);
        assert_eq!(login.protocol(), ProtocolVersion::RESP2);
    }

    #[test]
    fn sentinels_are_several_hosts_and_a_name() {
        let source = Source::parse("redis+sentinel://:pw@a:1,b,[::1]/mymaster/2").unwrap();
        let sentinels = vec![address("a:1"), address("b:26379"), address("[::1]:26379")];
        assert_eq!(source.at, Place::Sentinels { sentinels, master: "mymaster".to_owned() });
        assert_eq!((source.login.password(), source.login.db()), (Some("pw"), 2));
        for text in ["redis+sentinel://a:1", "redis+sentinel://a:1/", "redis+sentinel:///m"] {
            assert_eq!(fault(text).reason, EXPECTED_SENTINEL, "{text}");
        }
    }

    #[test]
    fn what_is_no_place_is_named_without_its_password() {
        for text in ["", "db", "db:", ":1", "db:0", "db:65536", "::1:7", "a b:1", "tcp://db:1"] {
            assert_eq!(fault(text).reason, EXPECTED, "{text}");
        }
        assert_eq!(fault("redis://u:secret@h:port").text, "redis://...@h:port");
        assert_eq!(fault("u:secret@h:x").text, "...@h:x");
        assert!(fault("rediss://db").reason.contains("TLS is not built"));
        assert!(fault("unix:///s").reason.contains("Unix sockets are not built"));
        let source = Source::parse("redis://u:secret@h:1").unwrap();
        assert!(!format!("{source:?}").contains("secret"));
    }

    fn named(nodes: &str) -> Vec<String> {
        masters(nodes, &address("10.9.9.9:1")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn masters_are_read_from_the_form_before_redis_4() {
        let nodes = "\
07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:30004 slave e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 0 1426238317239 4 connected
67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 127.0.0.1:30002 master - 0 1426238316232 2 connected 5461-10922
292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f 127.0.0.1:30003 master,fail - 0 1426238318243 3 disconnected 10923-16383
6ec23923021cf3ffec47632106199cb7f496ce01 :0 master,noaddr - 0 1426238316232 5 disconnected
824fe116063bc5fcf9f4ffd895bc17aee7731ac3 127.0.0.1:30006 master,fail? - 0 1426238317741 6 connected
e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 127.0.0.1:30001 myself,master - 0 0 1 connected 0-5460
";
        assert_eq!(named(nodes), ["127.0.0.1:30002", "127.0.0.1:30006", "127.0.0.1:30001"]);
    }

    #[test]
    fn masters_are_read_from_the_forms_of_redis_4_and_7() {
        let nodes = "\
a 10.0.0.1:7000@17000 master - 0 1 1 connected 0-5460
b 10.0.0.2:7000@17000,two.example.org master - 0 1 2 connected 5461-10922
c 10.0.0.3:7000@17000,,shard-id=69bc080733d1355567173199cff4a6a039a2f024 myself,master - 0 1 3 connected
d ::1:7000@17000,tls-port=0 master - 0 1 4 connected
e :7000@17000,five.example.org master - 0 1 4 connected
f :7001@17001 myself,master - 0 1 4 connected
g ?:7002@17002,? master - 0 1 4 connected
h 10.0.0.4:7000@17000 slave a 0 1 1 connected
i 10.0.0.5:7000@17000 master,handshake - 0 1 1 connected
";
        let expected = [
            "10.0.0.1:7000",
            "10.0.0.2:7000",
            "10.0.0.3:7000",
            "[::1]:7000",
            "five.example.org:7000",
            "10.9.9.9:7001",
            "10.9.9.9:7002",
        ];
        assert_eq!(named(nodes), expected);
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        assert_eq!(named(""), [""; 0]);
        let nodes = "\n \na\na b\na b master\na 1.2.3.4 master\na 1.2.3.4:x master\n\
            a 1.2.3.4:0@1 master\na 1.2.3.4:99999 master\na ,@: master\nok 1.2.3.4:5 master";
        assert_eq!(named(nodes), ["1.2.3.4:5"]);
        let many: String = (0..5000).map(|id| format!("{id} 10.0.0.1:7 master\n")).collect();
        assert_eq!(named(&many).len(), MAX_NODES);
    }
}
