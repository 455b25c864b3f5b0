//! Where sockets meet.

use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

/// A transport and name space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP over the loopback interface.
    Tcp,
    /// A Unix socket at a path.
    Ipc,
    /// A Unix socket in Linux's abstract name space.
    Abstract,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Ipc, Self::Abstract];
}

/// An endpoint to bind that nobody else uses; its folder, if it has one, goes with this value.
#[derive(Debug)]
pub struct Place {
    endpoint: String,
    _folder: Option<TempDir>,
}

impl Place {
    /// A new one. A TCP port is left to the system: `bind` tells the real endpoint.
    ///
    /// # Panics
    /// There is no room for a temporary folder.
    #[must_use]
    pub fn new(transport: Transport) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        match transport {
            Transport::Tcp => Self { endpoint: "tcp://127.0.0.1:*".to_owned(), _folder: None },
            Transport::Ipc => {
                let folder = tempfile::tempdir().expect("a temporary folder");
                let endpoint = format!("ipc://{}", folder.path().join("socket").display());
                Self { endpoint, _folder: Some(folder) }
            }
            Transport::Abstract => {
                let (process, next) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
                let endpoint = format!("ipc://@dragonwire-interop-{process}-{next}");
                Self { endpoint, _folder: None }
            }
        }
    }

    /// One whose endpoint is known before anybody binds it; a TCP port that was free just now.
    ///
    /// # Panics
    /// The process is out of file descriptors.
    #[must_use]
    pub fn fixed(transport: Transport) -> Self {
        let mut place = Self::new(transport);
        if transport == Transport::Tcp {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("a bound socket has an address");
            place.endpoint = format!("tcp://{address}");
        }
        place
    }

    /// Its text.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}
