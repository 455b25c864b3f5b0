//! What can be set on a socket before it is made, with the reason for each default.
//!
//! The words are libzmq's where it has them; `docs/options.md` maps every option of libzmq.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;

use crate::error::Error;
use crate::governor::Budget;
use crate::message::Message;

/// Options of a socket; fixed once the socket is made.
///
/// ```
/// use dragonwire::{PushSocket, SocketOptions};
/// use std::time::Duration;
///
/// let options = SocketOptions::new().send_hwm(10_000).linger(Some(Duration::from_secs(1)));
/// let push = PushSocket::with_options(options)?;
/// # Ok::<(), dragonwire::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SocketOptions {
    pub(crate) send_hwm: usize,
    pub(crate) send_hwm_bytes: usize,
    pub(crate) recv_hwm: usize,
    pub(crate) recv_hwm_bytes: usize,
    pub(crate) on_full: OnFull,
    pub(crate) conflate: bool,
    pub(crate) immediate: bool,
    pub(crate) linger: Option<Duration>,
    pub(crate) reconnect_interval: Duration,
    pub(crate) reconnect_interval_max: Option<Duration>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) handshake_timeout: Option<Duration>,
    pub(crate) max_handshakes: usize,
    pub(crate) heartbeat_interval: Option<Duration>,
    pub(crate) heartbeat_timeout: Option<Duration>,
    pub(crate) heartbeat_ttl: Option<Duration>,
    pub(crate) max_message_size: Option<u64>,
    pub(crate) max_frames: usize,
    pub(crate) max_subscription_bytes: usize,
    pub(crate) budget: Option<Budget>,
    pub(crate) routing_id: Bytes,
    pub(crate) metadata: Vec<(String, Bytes)>,
    pub(crate) xpub_verbose: XPubVerbose,
    pub(crate) xpub_manual: bool,
    pub(crate) xpub_welcome: Option<Message>,
    pub(crate) invert_matching: bool,
    pub(crate) backlog: u32,
    pub(crate) ipv6: bool,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) recv_buffer: Option<usize>,
    pub(crate) type_of_service: Option<u8>,
    pub(crate) bind_to_device: Option<String>,
    pub(crate) tcp_keepalive: Option<bool>,
    pub(crate) tcp_keepalive_idle: Option<Duration>,
    pub(crate) tcp_keepalive_interval: Option<Duration>,
    pub(crate) tcp_keepalive_count: Option<u32>,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) tcp_accept_filters: Vec<IpNet>,
    pub(crate) ipc_filters: IpcFilters,
    pub(crate) ipc_mode: Option<u32>,
}

/// What PUB and XPUB do with a message for a subscriber whose queue is at its high-water mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFull {
    /// Drop the message for that subscriber only, and count it. libzmq's default.
    #[default]
    Drop,
    /// Wait until every matching subscriber has room: libzmq's `ZMQ_XPUB_NODROP`. A subscriber
    /// that does not read then stops the publisher.
    Wait,
}

/// Which subscriptions an XPUB socket hands to its application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum XPubVerbose {
    /// The first subscription to a topic and the last cancellation.
    #[default]
    Unique,
    /// Every subscription, and the last cancellation: `ZMQ_XPUB_VERBOSE`.
    Subscriptions,
    /// Every subscription and every cancellation: `ZMQ_XPUB_VERBOSER`.
    All,
}

/// Credentials of a peer on a Unix socket; a peer that matches any entry is accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IpcFilters {
    pub(crate) uids: Vec<u32>,
    pub(crate) gids: Vec<u32>,
    pub(crate) pids: Vec<i32>,
}

impl IpcFilters {
    /// Whether a peer with these credentials may stay.
    pub(crate) fn accept(&self, uid: u32, gid: u32, pid: Option<i32>) -> bool {
        let open = self.uids.is_empty() && self.gids.is_empty() && self.pids.is_empty();
        open || self.uids.contains(&uid)
            || self.gids.contains(&gid)
            || pid.is_some_and(|pid| self.pids.contains(&pid))
    }
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            send_hwm: 1000,
            send_hwm_bytes: 0,
            recv_hwm: 1000,
            recv_hwm_bytes: 8 << 20,
            on_full: OnFull::Drop,
            conflate: false,
            immediate: false,
            linger: Some(Duration::from_secs(30)),
            reconnect_interval: Duration::from_millis(100),
            reconnect_interval_max: None,
            connect_timeout: Some(Duration::from_secs(30)),
            handshake_timeout: Some(Duration::from_secs(10)),
            max_handshakes: 1024,
            heartbeat_interval: Some(Duration::from_secs(5)),
            heartbeat_timeout: Some(Duration::from_secs(15)),
            heartbeat_ttl: None,
            max_message_size: Some(64 << 20),
            max_frames: 65_536,
            max_subscription_bytes: 64 << 20,
            budget: None,
            routing_id: Bytes::new(),
            metadata: Vec::new(),
            xpub_verbose: XPubVerbose::Unique,
            xpub_manual: false,
            xpub_welcome: None,
            invert_matching: false,
            backlog: 1024,
            ipv6: false,
            send_buffer: None,
            recv_buffer: None,
            type_of_service: None,
            bind_to_device: None,
            tcp_keepalive: None,
            tcp_keepalive_idle: None,
            tcp_keepalive_interval: None,
            tcp_keepalive_count: None,
            tcp_user_timeout: None,
            tcp_accept_filters: Vec::new(),
            ipc_filters: IpcFilters::default(),
            ipc_mode: None,
        }
    }
}

impl SocketOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Send high-water mark, in messages per peer; 0: no limit. Default 1000. `ZMQ_SNDHWM`.
    ///
    /// A message counts from its acceptance until the kernel has its last octet.
    #[must_use]
    pub fn send_hwm(mut self, messages: usize) -> Self {
        self.send_hwm = messages;
        self
    }

    /// Send high-water mark, in octets per peer, frame headers included; 0: no limit. Default 0.
    ///
    /// A message that is larger than the mark is taken when the queue is empty. Not in libzmq.
    #[must_use]
    pub fn send_hwm_bytes(mut self, octets: usize) -> Self {
        self.send_hwm_bytes = octets;
        self
    }

    /// Receive high-water mark, in messages per peer; 0: no limit. Default 1000. `ZMQ_RCVHWM`.
    ///
    /// At the mark the peer is not read from, so that TCP stops the sender; nothing is dropped.
    #[must_use]
    pub fn recv_hwm(mut self, messages: usize) -> Self {
        self.recv_hwm = messages;
        self
    }

    /// Receive high-water mark, in octets per peer; 0: no limit. Default 8 MiB.
    ///
    /// One message of any size is always taken. Not in libzmq.
    #[must_use]
    pub fn recv_hwm_bytes(mut self, octets: usize) -> Self {
        self.recv_hwm_bytes = octets;
        self
    }

    /// PUB, XPUB: what to do at a subscriber's high-water mark. Default [`OnFull::Drop`].
    /// `ZMQ_XPUB_NODROP`.
    #[must_use]
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.on_full = on_full;
        self
    }

    /// Keep only the newest message per peer, in both directions. Default off. `ZMQ_CONFLATE`.
    ///
    /// What it replaces is counted as [`DropReason::Conflated`](crate::DropReason::Conflated).
    /// Unlike libzmq's, messages of several frames stay whole.
    #[must_use]
    pub fn conflate(mut self, conflate: bool) -> Self {
        self.conflate = conflate;
        self
    }

    /// Queue messages only for peers that are there, not for endpoints still being connected to.
    /// Default off. `ZMQ_IMMEDIATE`.
    #[must_use]
    pub fn immediate(mut self, immediate: bool) -> Self {
        self.immediate = immediate;
        self
    }

    /// How long `close`, `disconnect`, `unbind` and the end of the last handle go on sending what is
    /// queued; `None`: until it is sent. Default 30 s. `ZMQ_LINGER`, whose default is for ever.
    #[must_use]
    pub fn linger(mut self, linger: Option<Duration>) -> Self {
        self.linger = linger;
        self
    }

    /// The shortest wait before connecting again; up to as much again is added by chance, so that
    /// many peers do not come back at once. Default 100 ms. `ZMQ_RECONNECT_IVL`.
    #[must_use]
    pub fn reconnect_interval(mut self, interval: Duration) -> Self {
        self.reconnect_interval = interval;
        self
    }

    /// Double the wait after each failure up to this; `None`: do not grow. Default `None`.
    /// `ZMQ_RECONNECT_IVL_MAX`.
    ///
    /// After a protocol violation the wait always grows, to 10 s when this is `None`.
    #[must_use]
    pub fn reconnect_interval_max(mut self, interval: Option<Duration>) -> Self {
        self.reconnect_interval_max = interval;
        self
    }

    /// How long an attempt to connect may take; `None`: as long as the system tries. Default 30 s.
    /// `ZMQ_CONNECT_TIMEOUT`.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a new connection may take until READY; `None`: for ever. Default 10 s.
    /// `ZMQ_HANDSHAKE_IVL`, whose default is 30 s.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How many accepted connections may be in their handshake at once. When there are more, the
    /// oldest is closed if its handshake has taken half a second; else the next waits to be
    /// accepted. Default 1024. Not in libzmq.
    #[must_use]
    pub fn max_handshakes(mut self, connections: usize) -> Self {
        self.max_handshakes = connections;
        self
    }

    /// How often a 3.1 peer is sent a PING; `None`: never. Default 5 s. `ZMQ_HEARTBEAT_IVL`, which
    /// is off by default.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Option<Duration>) -> Self {
        self.heartbeat_interval = interval;
        self
    }

    /// How long a peer that was sent a PING may be silent before its connection is closed; `None`:
    /// for ever. Default 15 s. `ZMQ_HEARTBEAT_TIMEOUT`.
    ///
    /// Time in which this side does not read (see [`recv_hwm`](Self::recv_hwm)) does not count.
    #[must_use]
    pub fn heartbeat_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.heartbeat_timeout = timeout;
        self
    }

    /// The TTL that PINGs carry: for how long the peer should wait for the next sign of life, in
    /// steps of 100 ms up to 6553.5 s; `None`: none. Default `None`. `ZMQ_HEARTBEAT_TTL`.
    #[must_use]
    pub fn heartbeat_ttl(mut self, ttl: Option<Duration>) -> Self {
        self.heartbeat_ttl = ttl;
        self
    }

    /// The most octets a received message may have, all its frames together; `None`: no limit.
    /// Default 64 MiB. `ZMQ_MAXMSGSIZE`, which has no limit by default and counts each frame.
    ///
    /// A peer that announces more is disconnected before it can send it. As in libzmq the limit is
    /// for commands as well: with less than some 30 octets no peer's READY fits.
    #[must_use]
    pub fn max_message_size(mut self, octets: Option<u64>) -> Self {
        self.max_message_size = octets;
        self
    }

    /// The most frames a received message may have. Default 65 536. Not in libzmq.
    #[must_use]
    pub fn max_frames(mut self, frames: usize) -> Self {
        self.max_frames = frames;
        self
    }

    /// PUB, XPUB: what the subscriptions of one peer may cost, in octets: each counts its topic and
    /// 256 octets more. Default 64 MiB. Not in libzmq.
    #[must_use]
    pub fn max_subscription_bytes(mut self, octets: usize) -> Self {
        self.max_subscription_bytes = octets;
        self
    }

    /// The memory that this socket shares with others of the process, and keeps within. Default: none,
    /// each peer has its marks only. Not in libzmq.
    #[must_use]
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// The identity sent to peers, at most 255 octets. Default none. `ZMQ_ROUTING_ID`.
    ///
    /// The socket types of this crate send it to peers of ZMTP 1.0 and 2.0 only, like libzmq's.
    #[must_use]
    pub fn routing_id(mut self, id: impl Into<Bytes>) -> Self {
        self.routing_id = id.into();
        self
    }

    /// Adds a property to the READY command (RFC 37, "Connection Metadata"); names of applications
    /// begin with `X-`. Default none. `ZMQ_METADATA`.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// XPUB: which subscriptions the application hears of. Default [`XPubVerbose::Unique`].
    /// `ZMQ_XPUB_VERBOSE`, `ZMQ_XPUB_VERBOSER`.
    #[must_use]
    pub fn xpub_verbose(mut self, verbose: XPubVerbose) -> Self {
        self.xpub_verbose = verbose;
        self
    }

    /// XPUB: peers' subscriptions have no effect by themselves; the application decides with
    /// [`XPubSocket::subscribe`](crate::XPubSocket::subscribe). Default off. `ZMQ_XPUB_MANUAL`.
    #[must_use]
    pub fn xpub_manual(mut self, manual: bool) -> Self {
        self.xpub_manual = manual;
        self
    }

    /// PUB, XPUB: a message that each new subscriber gets first. Default none.
    /// `ZMQ_XPUB_WELCOME_MSG`.
    #[must_use]
    pub fn xpub_welcome_message(mut self, message: impl Into<Message>) -> Self {
        self.xpub_welcome = Some(message.into());
        self
    }

    /// PUB, XPUB: send what does not match; SUB: take what does not match. Default off.
    /// `ZMQ_INVERT_MATCHING`.
    #[must_use]
    pub fn invert_matching(mut self, invert: bool) -> Self {
        self.invert_matching = invert;
        self
    }

    /// How many connections the kernel keeps until they are accepted. Default 1024 (the kernel may
    /// cap it). `ZMQ_BACKLOG`, whose default is 100.
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Whether `tcp://*` listens on IPv6 as well and names are looked up for IPv6 as well. Default
    /// off. `ZMQ_IPV6`. Addresses written out as IPv6 work either way.
    #[must_use]
    pub fn ipv6(mut self, ipv6: bool) -> Self {
        self.ipv6 = ipv6;
        self
    }

    /// The kernel's send buffer of each connection, in octets. Default: the system's over TCP, 1 MiB
    /// over Unix sockets as far as `net.core.wmem_max` allows. `ZMQ_SNDBUF`.
    #[must_use]
    pub fn send_buffer(mut self, octets: usize) -> Self {
        self.send_buffer = Some(octets);
        self
    }

    /// The kernel's receive buffer of each connection, in octets. Default: the system's.
    /// `ZMQ_RCVBUF`.
    #[must_use]
    pub fn recv_buffer(mut self, octets: usize) -> Self {
        self.recv_buffer = Some(octets);
        self
    }

    /// The type of service (IPv4) or traffic class (IPv6) of outgoing packets. Default: the
    /// system's. `ZMQ_TOS`.
    #[must_use]
    pub fn type_of_service(mut self, value: u8) -> Self {
        self.type_of_service = Some(value);
        self
    }

    /// TCP only: use this network interface, as `SO_BINDTODEVICE`; needs privileges on some kernels.
    /// Default: any. `ZMQ_BINDTODEVICE`.
    #[must_use]
    pub fn bind_to_device(mut self, interface: impl Into<String>) -> Self {
        self.bind_to_device = Some(interface.into());
        self
    }

    /// TCP keep-alive on or off. Default: the system's. `ZMQ_TCP_KEEPALIVE`.
    #[must_use]
    pub fn tcp_keepalive(mut self, on: bool) -> Self {
        self.tcp_keepalive = Some(on);
        self
    }

    /// TCP keep-alive: silence before the first probe, in whole seconds. Default: the system's.
    /// `ZMQ_TCP_KEEPALIVE_IDLE`.
    #[must_use]
    pub fn tcp_keepalive_idle(mut self, idle: Duration) -> Self {
        self.tcp_keepalive_idle = Some(idle);
        self
    }

    /// TCP keep-alive: time between probes, in whole seconds. Default: the system's.
    /// `ZMQ_TCP_KEEPALIVE_INTVL`.
    #[must_use]
    pub fn tcp_keepalive_interval(mut self, interval: Duration) -> Self {
        self.tcp_keepalive_interval = Some(interval);
        self
    }

    /// TCP keep-alive: probes without answer until the connection is given up. Default: the
    /// system's. `ZMQ_TCP_KEEPALIVE_CNT`.
    #[must_use]
    pub fn tcp_keepalive_count(mut self, probes: u32) -> Self {
        self.tcp_keepalive_count = Some(probes);
        self
    }

    /// How long sent data may stay unacknowledged until the connection is given up
    /// (`TCP_USER_TIMEOUT`). Default: the system's. `ZMQ_TCP_MAXRT`.
    #[must_use]
    pub fn tcp_user_timeout(mut self, timeout: Duration) -> Self {
        self.tcp_user_timeout = Some(timeout);
        self
    }

    /// Adds a network whose peers a bound TCP endpoint accepts, as `ADDRESS` or `ADDRESS/BITS`;
    /// without any, all are. `ZMQ_TCP_ACCEPT_FILTER`.
    ///
    /// # Errors
    /// The text is not a network.
    pub fn tcp_accept_filter(mut self, network: &str) -> Result<Self, Error> {
        let parsed = match network.parse::<IpAddr>() {
            Ok(address) => Ok(IpNet::from(address)),
            Err(_) => network.parse::<IpNet>(),
        };
        let Ok(parsed) = parsed else {
            return Err(Error::Option {
                option: "tcp_accept_filter",
                reason: format!("{network:?} is not a network; write 10.1.0.0/16 or ::1"),
            });
        };
        self.tcp_accept_filters.push(parsed);
        Ok(self)
    }

    /// Adds a user id whose processes a bound IPC endpoint accepts; a peer that fits any of the
    /// three ipc filters is accepted, without any all are. `ZMQ_IPC_FILTER_UID`.
    #[must_use]
    pub fn ipc_filter_uid(mut self, uid: u32) -> Self {
        self.ipc_filters.uids.push(uid);
        self
    }

    /// Adds a group id whose processes a bound IPC endpoint accepts. `ZMQ_IPC_FILTER_GID`.
    #[must_use]
    pub fn ipc_filter_gid(mut self, gid: u32) -> Self {
        self.ipc_filters.gids.push(gid);
        self
    }

    /// Adds a process id that a bound IPC endpoint accepts. `ZMQ_IPC_FILTER_PID`.
    #[must_use]
    pub fn ipc_filter_pid(mut self, pid: i32) -> Self {
        self.ipc_filters.pids.push(pid);
        self
    }

    /// The mode of the socket file of a bound IPC endpoint, such as `0o660`. Default: what the
    /// umask leaves. Not in libzmq.
    #[must_use]
    pub fn ipc_mode(mut self, mode: u32) -> Self {
        self.ipc_mode = Some(mode);
        self
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let fault = |option, reason: &str| Err(Error::Option { option, reason: reason.to_owned() });
        if self.routing_id.len() > 255 {
            return fault("routing_id", "at most 255 octets");
        }
        if self.max_frames == 0 {
            return fault("max_frames", "at least 1");
        }
        if self.reconnect_interval.is_zero() {
            return fault("reconnect_interval", "more than 0");
        }
        let zero = Some(Duration::ZERO);
        if self.heartbeat_interval == zero || self.heartbeat_timeout == zero {
            return fault("heartbeat_interval, heartbeat_timeout", "more than 0; None is off");
        }
        for (name, value) in &self.metadata {
            let letter = |octet: u8| octet.is_ascii_alphanumeric() || b"-_.+".contains(&octet);
            if name.is_empty() || name.len() > 255 || !name.bytes().all(letter) {
                return fault("metadata", "a name has 1 to 255 letters, digits or any of -_.+");
            }
            if value.len() > 4096 {
                return fault("metadata", "a value has at most 4096 octets");
            }
        }
        if self.ipc_mode.is_some_and(|mode| mode > 0o7777) {
            return fault("ipc_mode", "a file mode such as 0o660");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_values_are_refused_by_name() {
        let bad = [
            SocketOptions::new().routing_id(vec![0; 256]),
            SocketOptions::new().max_frames(0),
            SocketOptions::new().reconnect_interval(Duration::ZERO),
            SocketOptions::new().heartbeat_interval(Some(Duration::ZERO)),
            SocketOptions::new().metadata("", ""),
            SocketOptions::new().metadata("X-a b", ""),
            SocketOptions::new().metadata("X-a", vec![0; 4097]),
            SocketOptions::new().ipc_mode(0o10000),
        ];
        for options in bad {
            assert!(matches!(options.validate(), Err(Error::Option { .. })), "{options:?}");
        }
        assert!(SocketOptions::new().validate().is_ok());
        assert!(SocketOptions::new().tcp_accept_filter("10.0.0.0/33").is_err());
        assert!(SocketOptions::new().tcp_accept_filter("10.0.0.0/8").is_ok());
    }

    #[test]
    fn any_ipc_filter_that_fits_is_enough() {
        let none = IpcFilters::default();
        assert!(none.accept(1, 2, None));
        let some = IpcFilters { uids: vec![7], gids: vec![], pids: vec![9] };
        assert!(some.accept(7, 0, None));
        assert!(some.accept(0, 0, Some(9)));
        assert!(!some.accept(0, 7, Some(8)));
    }
}
