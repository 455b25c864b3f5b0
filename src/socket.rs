//! What all socket types share: their endpoints, how they are opened and closed, and whose handles
//! keep them alive.

use std::future::poll_fn;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::endpoint::Endpoint;
use crate::endpoints::{EndpointState, EndpointStates, EndpointStatus, Removed};
use crate::engine::EngineConfig;
use crate::error::Error;
use crate::hub::{Hub, PeerId, WaitFor};
use crate::monitor::{Event, Monitor};
use crate::options::SocketOptions;
use crate::socket_type::SocketType;
use crate::stats::{DropReason, SocketStats};
use crate::supervise::Supervisor;
use crate::transport::Listener;

/// What became of the messages of a socket that was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Messages that were sent while closing.
    pub flushed: u64,
    /// Messages that could not be sent in time.
    pub discarded: u64,
    /// Messages that had come in and were not received. When another handle than the receiving one
    /// closes the socket, those that the receiver has at hand are not among them; they are counted
    /// as [`DropReason::Closed`] when it looks for the next.
    pub unread: u64,
}

/// A handle of a socket. When the last one is dropped the socket closes.
#[derive(Debug, Clone)]
pub(crate) struct Socket(Arc<Inner>);

#[derive(Debug)]
struct Inner(Arc<Supervisor>);

impl Drop for Inner {
    fn drop(&mut self) {
        let supervisor = self.0.clone();
        begin_close(&supervisor);
        // the end is told when the tasks have ended, which this does not wait for
        match Handle::try_current() {
            Ok(runtime) if !supervisor.tasks.is_empty() => drop(runtime.spawn(async move {
                supervisor.tasks.wait().await;
                supervisor.hub.emit_closed();
            })),
            _ => supervisor.hub.emit_closed(),
        }
    }
}

fn begin_close(supervisor: &Supervisor) {
    let hub = &supervisor.hub;
    hub.close(hub.linger_from(Instant::now().into_std()));
    supervisor.endpoints.close();
    supervisor.tasks.close();
}

impl Socket {
    pub(crate) fn new(kind: SocketType, options: SocketOptions) -> Result<Self, Error> {
        options.validate()?;
        Ok(Self::with_valid(kind, options))
    }

    /// With the default options, which are valid.
    pub(crate) fn with_defaults(kind: SocketType) -> Self {
        Self::with_valid(kind, SocketOptions::default())
    }

    fn with_valid(kind: SocketType, options: SocketOptions) -> Self {
        let engine = Arc::new(EngineConfig::new(kind, &options));
        let hub = Hub::new(kind, Arc::new(options));
        Self(Arc::new(Inner(Arc::new(Supervisor::new(hub, engine)))))
    }

    fn supervisor(&self) -> &Arc<Supervisor> {
        &self.0.0
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.supervisor().hub
    }

    pub(crate) fn options(&self) -> &SocketOptions {
        self.hub().options()
    }

    pub(crate) async fn bind(&self, endpoint: Endpoint) -> Result<Endpoint, Error> {
        endpoint.check_bindable()?;
        self.check_open()?;
        let (listener, real) = match Listener::bind(&endpoint, self.options()).await {
            Ok(bound) => bound,
            Err(source) => return Err(Error::Bind { endpoint, source: Arc::new(source) }),
        };
        Ok(self.listen(endpoint, listener, real))
    }

    /// Accepts connections on a Unix socket that listens already.
    pub(crate) fn adopt(&self, listener: UnixListener) -> Result<Endpoint, Error> {
        self.check_open()?;
        let (listener, endpoint) = Listener::adopt(listener).map_err(|error| {
            let option = "listener";
            Error::Option { option, reason: format!("it cannot be listened on: {error}") }
        })?;
        Ok(self.listen(endpoint.clone(), listener, endpoint))
    }

    fn listen(&self, endpoint: Endpoint, listener: Listener, real: Endpoint) -> Endpoint {
        let supervisor = self.supervisor();
        let state = EndpointState::Listening { connections: 0 };
        let (entry, stop) = supervisor.endpoints.add(endpoint, real.clone(), state, None);
        self.hub().emit(&Event::Listening { endpoint: real.clone() });
        let accept = supervisor.clone().accept(listener, real.clone(), entry, stop);
        supervisor.tasks.spawn(accept);
        real
    }

    /// `Ok(false)`: it is connected to already, and this socket type does so only once.
    pub(crate) fn connect(&self, endpoint: &Endpoint) -> Result<bool, Error> {
        endpoint.check_connectable()?;
        self.check_open()?;
        let supervisor = self.supervisor();
        // as in libzmq, where a second connection would only bring everything twice
        let once = matches!(self.hub().kind(), SocketType::Pub | SocketType::Sub);
        if once && supervisor.endpoints.contains(endpoint, false) {
            return Ok(false);
        }
        let peer = self.hub().add_peer(endpoint.clone(), true);
        let state = EndpointState::Connecting { attempt: 1 };
        let (entry, stop) =
            supervisor.endpoints.add(endpoint.clone(), endpoint.clone(), state, Some(peer));
        let dial = supervisor.clone().dial(endpoint.clone(), entry, peer, stop);
        supervisor.tasks.spawn(dial);
        Ok(true)
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.hub().is_closing() {
            return Err(Error::Closed);
        }
        Handle::try_current().map(drop).map_err(|_| Error::NoRuntime)
    }

    /// Removes an endpoint; resolves when what was queued for its peers is sent or discarded, and
    /// it is no longer listened on.
    pub(crate) async fn remove(&self, endpoint: Endpoint, bound: bool) -> Result<(), Error> {
        let Some(Removed { peers, stopped }) = self.begin_remove(&endpoint, bound) else {
            return Err(Error::UnknownEndpoint { endpoint });
        };
        self.flushed(&peers).await;
        if bound {
            stopped.cancelled().await;
        }
        Ok(())
    }

    /// The same without waiting; tells what to wait for.
    pub(crate) fn begin_remove(&self, endpoint: &Endpoint, bound: bool) -> Option<Removed> {
        let removed = self.supervisor().endpoints.remove(endpoint, bound)?;
        let closing = self.hub().linger_from(Instant::now().into_std());
        removed.peers.iter().for_each(|peer| self.hub().close_peer(*peer, closing));
        Some(removed)
    }

    pub(crate) async fn flushed(&self, peers: &[PeerId]) {
        let mut waiting = self.hub().waiting(WaitFor::Change);
        poll_fn(|cx| self.hub().poll_flushed(peers, &mut waiting, cx)).await;
    }

    /// The endpoints that are connected to, as they were asked for.
    pub(crate) fn connected(&self) -> Vec<Endpoint> {
        self.supervisor().endpoints.connected()
    }

    pub(crate) fn endpoints(&self) -> Vec<EndpointStatus> {
        self.supervisor().endpoints.list()
    }

    pub(crate) fn endpoint_states(&self) -> EndpointStates {
        self.supervisor().endpoints.watch()
    }

    pub(crate) fn monitor(&self) -> Monitor {
        self.hub().monitors().subscribe()
    }

    pub(crate) fn stats(&self) -> SocketStats {
        self.hub().stats()
    }

    /// `receiving`: by the handle that receives.
    pub(crate) async fn close(&self, receiving: bool) -> CloseReport {
        let supervisor = self.supervisor();
        let before = self.stats();
        begin_close(supervisor);
        if receiving {
            self.hub().discard_in_hand();
        }
        supervisor.tasks.wait().await;
        let after = self.stats();
        self.hub().emit_closed();
        let dropped =
            |reason| after.outgoing.dropped.get(reason) - before.outgoing.dropped.get(reason);
        let closed = |stats: &SocketStats| stats.incoming.dropped.get(DropReason::Closed);
        CloseReport {
            flushed: after.outgoing.sent - before.outgoing.sent,
            discarded: dropped(DropReason::Linger) + dropped(DropReason::PeerGone),
            unread: closed(&after) - closed(&before),
        }
    }
}

/// The methods that every socket type, and every handle of one, has: `socket` is the field that holds
/// a [`Socket`]; with `receives` it is the handle that receives.
macro_rules! common_methods {
    ($type:ty) => {
        common_methods!($type, false);
    };
    ($type:ty, receives) => {
        common_methods!($type, true);
    };
    ($type:ty, $receives:literal) => {
        impl $type {
            /// Listens on an endpoint and accepts any number of peers there. Returns the real
            /// endpoint: of a wildcard the one that was chosen.
            ///
            /// # Errors
            /// [`Error::Endpoint`] if it is none or cannot be bound, [`Error::Bind`] if the system
            /// refuses, [`Error::Closed`], [`Error::NoRuntime`].
            ///
            /// # Cancel safety
            /// Safe: when cancelled, the endpoint is not bound.
            pub async fn bind<E>(&self, endpoint: E) -> Result<Endpoint, Error>
            where
                E: TryInto<Endpoint>,
                Error: From<E::Error>,
            {
                self.socket.bind(endpoint.try_into()?).await
            }

            /// Accepts peers on a Unix socket that somebody else has made to listen, as systemd
            /// does. Returns its endpoint. The socket's file is left where it is at the end.
            ///
            /// # Errors
            /// [`Error::Option`] if it has no name or cannot be listened on, [`Error::Closed`],
            /// [`Error::NoRuntime`].
            pub fn bind_listener(
                &self,
                listener: std::os::unix::net::UnixListener,
            ) -> Result<Endpoint, Error> {
                self.socket.adopt(listener)
            }

            /// Connects to an endpoint, whether or not anybody listens there yet, and again
            /// whenever the connection is lost. Returns at once; [`monitor`](Self::monitor) and
            /// [`endpoint_states`](Self::endpoint_states) tell how it goes on.
            ///
            /// PUB and SUB connect to an endpoint once, however often this is called; the others
            /// make a connection of each call, as in libzmq.
            ///
            /// # Errors
            /// [`Error::Endpoint`] if it is none or cannot be connected to, [`Error::Closed`],
            /// [`Error::NoRuntime`].
            ///
            /// # Cancel safety
            /// Safe: all is done the first time it is polled.
            pub async fn connect<E>(&self, endpoint: E) -> Result<Endpoint, Error>
            where
                E: TryInto<Endpoint>,
                Error: From<E::Error>,
            {
                let endpoint = endpoint.try_into()?;
                self.socket.connect(&endpoint)?;
                Ok(endpoint)
            }

            /// Listens on an endpoint no longer and closes the connections that were accepted on
            /// it, when what is queued for them is sent or `linger` has passed. Takes what was
            /// given to [`bind`](Self::bind) or what it returned.
            ///
            /// # Errors
            /// [`Error::UnknownEndpoint`] if it is not bound here.
            ///
            /// # Cancel safety
            /// Safe: when cancelled it goes on in the background.
            pub async fn unbind<E>(&self, endpoint: E) -> Result<(), Error>
            where
                E: TryInto<Endpoint>,
                Error: From<E::Error>,
            {
                self.socket.remove(endpoint.try_into()?, true).await
            }

            /// Connects to an endpoint no longer and closes its connection, when what is queued for
            /// it is sent or `linger` has passed. What the peer sent before can still be received.
            ///
            /// # Errors
            /// [`Error::UnknownEndpoint`] if it is not connected to.
            ///
            /// # Cancel safety
            /// Safe: when cancelled it goes on in the background.
            pub async fn disconnect<E>(&self, endpoint: E) -> Result<(), Error>
            where
                E: TryInto<Endpoint>,
                Error: From<E::Error>,
            {
                self.socket.remove(endpoint.try_into()?, false).await
            }

            /// The endpoints of this socket and how each is doing.
            #[must_use]
            pub fn endpoints(&self) -> Vec<EndpointStatus> {
                self.socket.endpoints()
            }

            /// A stream of how the endpoints are doing: first each as it is, then each change.
            #[must_use]
            pub fn endpoint_states(&self) -> EndpointStates {
                self.socket.endpoint_states()
            }

            /// A stream of what happens to this socket's endpoints and peers from now on.
            #[must_use]
            pub fn monitor(&self) -> Monitor {
                self.socket.monitor()
            }

            /// A snapshot of this socket's counters.
            #[must_use]
            pub fn stats(&self) -> SocketStats {
                self.socket.stats()
            }

            /// The options that this socket was made with.
            #[must_use]
            pub fn options(&self) -> &SocketOptions {
                self.socket.options()
            }

            /// Closes the socket: sends what is queued within `linger`, ends every connection, and
            /// returns when nothing of it is left. Other handles find it closed from the beginning.
            ///
            /// A peer is waited for until it has closed as well, for half a second at most. PUSH gives
            /// peers that it has sent messages to `linger` for that, and 30 s at most.
            ///
            /// Without this the socket closes when its last handle is dropped, which does not wait:
            /// what is queued is then sent within `linger` in the background, as long as the
            /// runtime lives, and what is discarded is logged.
            ///
            /// # Cancel safety
            /// Safe: when cancelled, closing goes on in the background.
            pub async fn close(&self) -> CloseReport {
                self.socket.close($receives).await
            }
        }
    };
}

/// The constructors of a socket type: `from_socket` makes it of a [`Socket`].
macro_rules! constructors {
    ($type:ty, $kind:expr) => {
        impl $type {
            /// A socket with the default options, without endpoints.
            #[must_use]
            pub fn new() -> Self {
                Self::from_socket(Socket::with_defaults($kind))
            }

            /// A socket with these options, without endpoints.
            ///
            /// # Errors
            /// [`Error::Option`] if an option has a value that cannot be used.
            pub fn with_options(options: SocketOptions) -> Result<Self, Error> {
                Socket::new($kind, options).map(Self::from_socket)
            }
        }

        impl Default for $type {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

pub(crate) use {common_methods, constructors};
