//! Endpoints: `tcp://HOST:PORT` (RFC 23 over TCP) and `ipc://PATH` (Unix sockets), their text and
//! what can be bound and connected.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{EndpointError, EndpointFault};

/// Where a socket listens or whom it connects to.
///
/// | text | meaning |
/// | --- | --- |
/// | `tcp://192.168.1.5:5555`, `tcp://[::1]:5555` | an address |
/// | `tcp://broker.example:5555` | a name: all its addresses are tried, anew at each reconnect |
/// | `tcp://*:5555` | bind only: all interfaces |
/// | `tcp://127.0.0.1:0`, `tcp://127.0.0.1:*` | bind only: a free port, told by what `bind` returns |
/// | `tcp://192.168.1.17:0;10.0.0.1:5555` | connect only: from that source address (port 0: any) |
/// | `ipc:///run/feed.sock`, `ipc://feed.sock` | a Unix socket at that path |
/// | `ipc://@feed` | a Unix socket in Linux's abstract name space |
/// | `ipc://*` | bind only: a path in a new folder that only this user may enter |
///
/// ```
/// use dragonwire::Endpoint;
/// let endpoint: Endpoint = "tcp://127.0.0.1:5555".parse()?;
/// assert_eq!(endpoint.to_string(), "tcp://127.0.0.1:5555");
/// # Ok::<(), dragonwire::EndpointError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(pub(crate) Address);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    Tcp { host: Host, port: u16, source: Option<SocketAddr> },
    Ipc(IpcName),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Any,
    Ip(IpAddr),
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum IpcName {
    Path(PathBuf),
    Abstract(Vec<u8>),
    Wildcard,
}

impl Endpoint {
    /// The TCP endpoint of an address.
    #[must_use]
    pub fn tcp(address: SocketAddr) -> Self {
        Self(Address::Tcp { host: Host::Ip(address.ip()), port: address.port(), source: None })
    }

    /// The endpoint of a Unix socket at a path.
    ///
    /// # Errors
    /// The path is empty, holds a NUL octet or is longer than the kernel allows.
    pub fn ipc(path: impl AsRef<Path>) -> Result<Self, EndpointError> {
        let path = path.as_ref();
        let octets = path.as_os_str().as_bytes();
        let checked = check_path(octets).and_then(|()| match octets.first() {
            // `@x` as text means the abstract name space; a file of that name is `./@x`
            Some(b'@') => check_path(&[b"./", octets].concat()),
            _ => Ok(()),
        });
        match checked {
            Ok(()) if octets.first() == Some(&b'@') || octets == b"*" => {
                Ok(Self(Address::Ipc(IpcName::Path(Path::new(".").join(path)))))
            }
            Ok(()) => Ok(Self(Address::Ipc(IpcName::Path(path.to_path_buf())))),
            Err(reason) => Err(EndpointError { text: format!("ipc://{}", path.display()), reason }),
        }
    }

    /// The port of a TCP endpoint; 0 stands for one that the system is to choose.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match &self.0 {
            Address::Tcp { port, .. } => Some(*port),
            Address::Ipc(_) => None,
        }
    }

    /// The path of an IPC endpoint that has one in the file system.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Address::Ipc(IpcName::Path(path)) => Some(path),
            _ => None,
        }
    }

    pub(crate) fn check_connectable(&self) -> Result<(), EndpointError> {
        match &self.0 {
            Address::Tcp { host: Host::Any, .. }
            | Address::Tcp { port: 0, .. }
            | Address::Ipc(IpcName::Wildcard) => Err(self.fault(EndpointFault::NotConnectable)),
            _ => Ok(()),
        }
    }

    pub(crate) fn check_bindable(&self) -> Result<(), EndpointError> {
        match &self.0 {
            Address::Tcp { source: Some(_), .. } => Err(self.fault(EndpointFault::NotBindable)),
            _ => Ok(()),
        }
    }

    fn fault(&self, reason: EndpointFault) -> EndpointError {
        EndpointError { text: self.to_string(), reason }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Address::Tcp { host, port, source } => {
                f.write_str("tcp://")?;
                if let Some(source) = source {
                    write!(f, "{source};")?;
                }
                match host {
                    Host::Any => write!(f, "*:{port}"),
                    Host::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, *port)),
                    Host::Name(name) if name.contains(':') => write!(f, "[{name}]:{port}"),
                    Host::Name(name) => write!(f, "{name}:{port}"),
                }
            }
            Address::Ipc(IpcName::Path(path)) => write!(f, "ipc://{}", path.display()),
            Address::Ipc(IpcName::Abstract(name)) => {
                write!(f, "ipc://@{}", String::from_utf8_lossy(name))
            }
            Address::Ipc(IpcName::Wildcard) => f.write_str("ipc://*"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let address = match text.split_once("://") {
            None => Err(EndpointFault::NoTransport),
            Some(("tcp", rest)) => parse_tcp(rest),
            Some(("ipc", rest)) => parse_ipc(rest.as_bytes()),
            Some((other, _)) => Err(EndpointFault::UnknownTransport(other.to_owned())),
        };
        match address {
            Ok(address) => Ok(Self(address)),
            Err(reason) => Err(EndpointError { text: text.to_owned(), reason }),
        }
    }
}

impl TryFrom<&str> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: &str) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl TryFrom<&String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: &String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;

    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<&Self> for Endpoint {
    fn from(endpoint: &Self) -> Self {
        endpoint.clone()
    }
}

fn parse_tcp(rest: &str) -> Result<Address, EndpointFault> {
    let (source, target) = match rest.split_once(';') {
        Some((source, target)) => (Some(parse_source(source)?), target),
        None => (None, rest),
    };
    let (host, port) = target.rsplit_once(':').ok_or(EndpointFault::NoPort)?;
    let port = parse_port(port)?;
    Ok(Address::Tcp { host: parse_host(host)?, port, source })
}

fn parse_port(text: &str) -> Result<u16, EndpointFault> {
    match text {
        "*" => Ok(0),
        _ if text.bytes().all(|octet| octet.is_ascii_digit()) => {
            text.parse().map_err(|_| EndpointFault::BadPort(text.to_owned()))
        }
        _ => Err(EndpointFault::BadPort(text.to_owned())),
    }
}

fn parse_host(text: &str) -> Result<Host, EndpointFault> {
    let bad = || EndpointFault::BadHost(text.to_owned());
    if text == "*" {
        return Ok(Host::Any);
    }
    let (bare, bracketed) = match text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        Some(inner) => (inner, true),
        None => (text, false),
    };
    if let Ok(ip) = bare.parse::<IpAddr>() {
        // libzmq takes an IPv6 address without brackets as well
        return if bracketed && ip.is_ipv4() { Err(bad()) } else { Ok(Host::Ip(ip)) };
    }
    // what remains is a host name, or an IPv6 address with a zone (`fe80::1%eth0`)
    let zoned = bare.split_once('%').is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok());
    let named = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
    if zoned || (!bracketed && !bare.is_empty() && bare.chars().all(named)) {
        Ok(Host::Name(bare.to_owned()))
    } else {
        Err(bad())
    }
}

fn parse_source(text: &str) -> Result<SocketAddr, EndpointFault> {
    let bad = || EndpointFault::BadSource(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    match (parse_host(host), parse_port(port)) {
        (Ok(Host::Ip(ip)), Ok(port)) => Ok(SocketAddr::new(ip, port)),
        _ => Err(bad()),
    }
}

fn parse_ipc(octets: &[u8]) -> Result<Address, EndpointFault> {
    if octets == b"*" {
        return Ok(Address::Ipc(IpcName::Wildcard));
    }
    check_path(octets)?;
    Ok(Address::Ipc(match octets.split_first() {
        Some((b'@', [])) => return Err(EndpointFault::BadPath),
        Some((b'@', name)) => IpcName::Abstract(name.to_vec()),
        _ => IpcName::Path(Path::new(OsStr::from_bytes(octets)).to_path_buf()),
    }))
}

fn check_path(octets: &[u8]) -> Result<(), EndpointFault> {
    if octets.is_empty() || octets.contains(&0) {
        return Err(EndpointFault::BadPath);
    }
    if octets.len() > MAX_PATH {
        return Err(EndpointFault::PathTooLong { length: octets.len(), limit: MAX_PATH });
    }
    Ok(())
}

/// `sun_path` has 108 octets on Linux, one of them for the NUL that ends a path or begins an
/// abstract name.
const MAX_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        for text in [
            "tcp://127.0.0.1:5555",
            "tcp://[::1]:5555",
            "tcp://*:0",
            "tcp://localhost:80",
            "tcp://a-b.example_c.org:80",
            "tcp://[fe80::1%eth0]:80",
            "tcp://10.0.0.1:0;10.0.0.2:5555",
            "tcp://[::1]:7;[::2]:5555",
            "ipc:///tmp/x.sock",
            "ipc://relative",
            "ipc://@name",
            "ipc://*",
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        assert_eq!("tcp://::1:80".parse::<Endpoint>().unwrap().to_string(), "tcp://[::1]:80");
        assert_eq!("tcp://*:*".parse::<Endpoint>().unwrap().to_string(), "tcp://*:0");
    }

    #[test]
    fn faults_are_named() {
        use EndpointFault as F;
        let long = format!("ipc://{}", "x".repeat(108));
        for (text, reason) in [
            ("", F::NoTransport),
            ("127.0.0.1:80", F::NoTransport),
            ("udp://x:1", F::UnknownTransport("udp".into())),
            ("TCP://x:1", F::UnknownTransport("TCP".into())),
            ("tcp://x", F::NoPort),
            ("tcp://x:", F::BadPort(String::new())),
            ("tcp://x:65536", F::BadPort("65536".into())),
            ("tcp://x:+1", F::BadPort("+1".into())),
            ("tcp://x:http", F::BadPort("http".into())),
            ("tcp://:1", F::BadHost(String::new())),
            ("tcp://a b:1", F::BadHost("a b".into())),
            ("tcp://[1.2.3.4]:1", F::BadHost("[1.2.3.4]".into())),
            ("tcp://[::1:1", F::BadHost("[::1".into())),
            ("tcp://x:1;y:2", F::BadSource("x:1".into())),
            ("tcp://1.2.3.4;y:2", F::BadSource("1.2.3.4".into())),
            ("ipc://", F::BadPath),
            ("ipc://@", F::BadPath),
            ("ipc://a\0b", F::BadPath),
            (&long, F::PathTooLong { length: 108, limit: 107 }),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(error, EndpointError { text: text.to_owned(), reason });
        }
    }

    #[test]
    fn what_can_be_bound_is_not_always_connectable() {
        for text in ["tcp://*:5", "tcp://1.2.3.4:0", "ipc://*"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert!(endpoint.check_bindable().is_ok());
            assert!(endpoint.check_connectable().is_err());
        }
        let sourced: Endpoint = "tcp://1.2.3.4:0;x:5".parse().unwrap();
        assert!(sourced.check_connectable().is_ok());
        assert!(sourced.check_bindable().is_err());
    }

    #[test]
    fn a_path_that_looks_like_an_abstract_name_stays_a_path() {
        assert_eq!(Endpoint::ipc("@x").unwrap().to_string(), "ipc://./@x");
        assert_eq!(Endpoint::ipc("*").unwrap().to_string(), "ipc://./*");
        assert!(Endpoint::ipc("").is_err());
        assert!(Endpoint::ipc("x".repeat(108)).is_err());
    }
}
