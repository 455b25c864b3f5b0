//! The streams that connections run on: TCP and Unix sockets under one roof.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, tcp, unix};
use tokio_util::io::poll_read_buf;

use crate::endpoint::{Address, Endpoint};
use crate::hub::Wire;
use crate::options::SocketOptions;
use crate::peer::Credentials;
#[cfg(feature = "__sim")]
use crate::sim;
use crate::unix_ipc::SocketFile;

/// A connected stream.
#[derive(Debug)]
pub(crate) enum Stream {
    /// With the peer's address: of one that is gone already the kernel does not tell it again.
    Tcp(TcpStream, std::net::SocketAddr),
    Unix(UnixStream),
    #[cfg(feature = "__sim")]
    Sim(sim::Stream),
}

/// The reading side: of the connection task alone.
#[derive(Debug)]
pub(crate) enum Reader {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
    #[cfg(feature = "__sim")]
    Sim(sim::Reader),
}

/// The writing side: of whoever has a flight.
#[derive(Debug)]
pub(crate) enum Writer {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
    #[cfg(feature = "__sim")]
    Sim(sim::Writer),
}

impl Stream {
    /// This side's and the peer's address.
    pub(crate) fn addresses(&self) -> (Option<std::net::SocketAddr>, Option<std::net::SocketAddr>) {
        match self {
            Self::Tcp(stream, peer) => (stream.local_addr().ok(), Some(*peer)),
            Self::Unix(_) => (None, None),
            #[cfg(feature = "__sim")]
            Self::Sim(stream) => stream.addresses(),
        }
    }

    /// Sets what the options ask for.
    pub(crate) fn set_up(&self, options: &SocketOptions) -> io::Result<()> {
        match self {
            Self::Tcp(stream, _) => crate::tcp::set_up(stream, options),
            Self::Unix(stream) => crate::unix_ipc::set_up(stream, options),
            #[cfg(feature = "__sim")]
            Self::Sim(_) => Ok(()),
        }
    }

    pub(crate) fn credentials(&self) -> Option<Credentials> {
        match self {
            Self::Tcp(..) => None,
            #[cfg(feature = "__sim")]
            Self::Sim(_) => None,
            Self::Unix(stream) => stream.peer_cred().ok().map(|credentials| Credentials {
                uid: credentials.uid(),
                gid: credentials.gid(),
                pid: credentials.pid(),
            }),
        }
    }

    pub(crate) fn split(self) -> (Reader, Arc<Writer>) {
        match self {
            Self::Tcp(stream, _) => {
                let (read, write) = stream.into_split();
                (Reader::Tcp(read), Arc::new(Writer::Tcp(write)))
            }
            Self::Unix(stream) => {
                let (read, write) = stream.into_split();
                (Reader::Unix(read), Arc::new(Writer::Unix(write)))
            }
            #[cfg(feature = "__sim")]
            Self::Sim(stream) => {
                let (read, write) = stream.split();
                (Reader::Sim(read), Arc::new(Writer::Sim(write)))
            }
        }
    }
}

impl Reader {
    /// Reads what fits into the buffer's spare room, up to a limit; 0 is the end.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut BytesMut,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        poll_read_buf(Pin::new(self), cx, &mut buf.limit(limit))
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(read) => Pin::new(read).poll_read(cx, buf),
            Self::Unix(read) => Pin::new(read).poll_read(cx, buf),
            #[cfg(feature = "__sim")]
            Self::Sim(read) => Pin::new(read).poll_read(cx, buf),
        }
    }
}

impl Writer {
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(write) => write.as_ref().poll_write_ready(cx),
            Self::Unix(write) => write.as_ref().poll_write_ready(cx),
            #[cfg(feature = "__sim")]
            Self::Sim(write) => write.poll_write_ready(cx),
        }
    }

    /// Tells the peer that nothing more will come.
    pub(crate) fn shut_down(&self) -> io::Result<()> {
        match self {
            Self::Tcp(write) => SockRef::from(write.as_ref()).shutdown(Shutdown::Write),
            Self::Unix(write) => SockRef::from(write.as_ref()).shutdown(Shutdown::Write),
            #[cfg(feature = "__sim")]
            Self::Sim(write) => write.shut_down(),
        }
    }
}

impl Wire for Writer {
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(write) => write.try_write_vectored(slices),
            Self::Unix(write) => write.try_write_vectored(slices),
            #[cfg(feature = "__sim")]
            Self::Sim(write) => write.try_write_vectored(slices),
        }
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// With the file that goes when this does, if there is one.
    Unix(UnixListener, #[expect(dead_code, reason = "held for its Drop")] Option<SocketFile>),
    #[cfg(feature = "__sim")]
    Sim(sim::Listener),
}

impl Listener {
    /// Listens on an endpoint; also tells the real one.
    pub(crate) async fn bind(
        endpoint: &Endpoint,
        options: &SocketOptions,
    ) -> io::Result<(Self, Endpoint)> {
        match &endpoint.0 {
            #[cfg(feature = "__sim")]
            Address::Tcp { host, port, .. } if sim::is_installed() => {
                let listener = sim::bind(host, *port)?;
                let endpoint = Endpoint::tcp(listener.address());
                Ok((Self::Sim(listener), endpoint))
            }
            Address::Tcp { host, port, .. } => {
                let (listener, endpoint) = crate::tcp::bind(host, *port, options).await?;
                Ok((Self::Tcp(listener), endpoint))
            }
            Address::Ipc(name) => {
                let (listener, file, endpoint) = crate::unix_ipc::bind(name, options)?;
                Ok((Self::Unix(listener, file), endpoint))
            }
        }
    }

    /// Takes a Unix socket over that listens already; also tells its endpoint.
    pub(crate) fn adopt(listener: StdUnixListener) -> io::Result<(Self, Endpoint)> {
        let (listener, endpoint) = crate::unix_ipc::adopt(listener)?;
        Ok((Self::Unix(listener, None), endpoint))
    }

    /// The next connection.
    ///
    /// # Cancel safety
    /// Safe: a connection that is not returned stays with the kernel.
    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Stream::Tcp(stream, peer))
            }
            Self::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
            #[cfg(feature = "__sim")]
            Self::Sim(listener) => listener.accept().await.map(Stream::Sim),
        }
    }
}

/// Connects to an endpoint.
pub(crate) async fn connect(endpoint: &Endpoint, options: &SocketOptions) -> io::Result<Stream> {
    match &endpoint.0 {
        #[cfg(feature = "__sim")]
        Address::Tcp { host, port, source } if sim::is_installed() => {
            sim::connect(host, *port, *source).await.map(Stream::Sim)
        }
        Address::Tcp { host, port, source } => {
            let stream = crate::tcp::connect(host, *port, *source, options).await?;
            let peer = stream.peer_addr()?;
            Ok(Stream::Tcp(stream, peer))
        }
        Address::Ipc(name) => crate::unix_ipc::connect(name).map(Stream::Unix),
    }
}
