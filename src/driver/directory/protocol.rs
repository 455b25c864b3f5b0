//! What the embedded directory's client and server agree on: the two ports of an address, topics,
//! sizes and the messages of `proto/directory.proto`.

use std::time::Duration;

use uuid::Uuid;

use super::DirectoryError;
use crate::endpoint::{Address, Endpoint};
use crate::options::SocketOptions;

/// The generated code of `proto/directory.proto`.
#[allow(clippy::all, unreachable_pub, unused_qualifications, missing_docs)]
pub(super) mod wire {
    include!("directory.v1.rs");
}

/// The endpoint of requests that an address names, of a server if `bound`, else of a client.
pub(super) fn requests_endpoint(uri: &str, bound: bool) -> Result<Endpoint, DirectoryError> {
    let wrong = || DirectoryError::Address {
        uri: uri.to_owned(),
        expected: "tcp://HOST:PORT, where PORT is below 65535 because the next port is used too",
    };
    let endpoint: Endpoint = uri.parse().map_err(|_| wrong())?;
    let usable = if bound { endpoint.check_bindable() } else { endpoint.check_connectable() };
    match &endpoint.0 {
        Address::Tcp { port, .. } if *port < u16::MAX && usable.is_ok() => Ok(endpoint),
        _ => Err(wrong()),
    }
}

/// The endpoint of replies and changes: one port further.
pub(super) fn changes_endpoint(requests: &Endpoint) -> Option<Endpoint> {
    match &requests.0 {
        Address::Tcp { host, port, source } => {
            let (host, port, source) = (host.clone(), port.checked_add(1)?, *source);
            Some(Endpoint(Address::Tcp { host, port, source }))
        }
        Address::Ipc(_) => None,
    }
}

/// What the sockets of both sides have in common.
pub(super) fn socket_options() -> SocketOptions {
    SocketOptions::new()
        .heartbeat_interval(Some(HEARTBEAT))
        .heartbeat_timeout(Some(SILENCE))
        .handshake_timeout(Some(SILENCE))
        .connect_timeout(Some(SILENCE))
        .reconnect_interval_max(Some(RECONNECT))
        .linger(Some(LINGER))
}

/// The topic of replies to a client.
pub(super) fn reply_topic(client: Uuid) -> String {
    format!("{REPLIES}{}", client.simple())
}

/// The topic of a table's changes.
pub(super) fn table_topic(table: &str) -> String {
    format!("{CHANGES}{table}")
}

/// What topics of replies begin with.
pub(super) const REPLIES: &str = "r.";
/// What topics of changes begin with.
pub(super) const CHANGES: &str = "t.";
/// The topic of the tables' revisions.
pub(super) const REVISIONS: &str = "revisions";

/// The largest request in octets. A client refuses to send a larger one, because the server would
/// close the connection.
pub(super) const MAX_REQUEST: usize = 2 << 20;
/// The largest reply in octets: all of [`MAX_OCTETS`](super::table::MAX_OCTETS) in one table.
pub(super) const MAX_REPLY: u64 = 256 << 20;

/// How often the server says where its tables are, and clients and server show that they live.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// After this much silence the other side is taken for dead.
const SILENCE: Duration = Duration::from_secs(3);
/// The longest wait before connecting again.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long closing waits for what is queued to be sent.
const LINGER: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_stands_for_two_ports() {
        let requests = requests_endpoint("tcp://[::1]:8868", false).unwrap();
        assert_eq!(changes_endpoint(&requests).unwrap().to_string(), "tcp://[::1]:8869");
        let requests = requests_endpoint("tcp://*:8868", true).unwrap();
        assert_eq!(changes_endpoint(&requests).unwrap().to_string(), "tcp://*:8869");
        for uri in ["tcp://*:8868", "tcp://a:0", "tcp://a:65535", "ipc:///a", "a", "tcp://a", ""] {
            let refused = requests_endpoint(uri, false).unwrap_err();
            assert!(matches!(refused, DirectoryError::Address { .. }), "{uri}");
        }
        assert!(requests_endpoint("tcp://127.0.0.1:*", true).is_ok());
        assert!(requests_endpoint("tcp://1.2.3.4:0;127.0.0.1:7", true).is_err());
    }
}
