//! A scripted peer: speaks every version of ZMTP in raw octets, well or badly, over TCP and Unix
//! sockets. Nothing of the library's own encoding is used.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dragonwire::{DisconnectCause, Endpoint, Event, Monitor, PeerInfo, Version};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

/// Nothing that is awaited takes longer, however busy the machine is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) const MS: fn(u64) -> Duration = Duration::from_millis;

/// Resolves to what the future does, or fails the test with what was awaited.
#[track_caller]
pub(crate) fn within<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        tokio::select! {
            // first, so that a future whose waker was forgotten is not saved by being looked at
            // once more in the end
            biased;
            () = tokio::time::sleep(DEADLINE) => {
                panic!("not within {DEADLINE:?}: {what} ({caller})")
            }
            done = future => done,
        }
    }
}

/// The first event for which `pick` gives something.
#[track_caller]
pub(crate) fn event<T>(
    what: &str,
    monitor: &mut Monitor,
    mut pick: impl FnMut(Event) -> Option<T>,
) -> impl Future<Output = T> {
    within(what, async move {
        loop {
            let event = monitor.recv().await.expect("the monitor ended");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    })
}

/// How the connection to the peer at that address ended: whether before READY, and why.
pub(crate) fn ended(
    monitor: &mut Monitor,
    address: SocketAddr,
) -> impl Future<Output = (bool, DisconnectCause)> {
    let ours = move |peer: &PeerInfo| peer.remote == Some(address);
    event("the end of a connection", monitor, move |event| match event {
        Event::HandshakeFailed { peer, cause } if ours(&peer) => Some((true, cause)),
        Event::Disconnected { peer, cause, .. } if ours(&peer) => Some((false, cause)),
        _ => None,
    })
}

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A listener in raw octets, for sockets that connect.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    pub(crate) async fn tcp() -> Self {
        Self::Tcp(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(crate) fn ipc() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dragonwire-peer-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        Self::Unix(UnixListener::bind(&path).unwrap(), path)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self {
            Self::Tcp(listener) => format!("tcp://{}", listener.local_addr().unwrap()),
            Self::Unix(_, path) => format!("ipc://{}", path.display()),
        }
        .parse()
        .unwrap()
    }

    /// The next connection, before its first octet.
    pub(crate) async fn accept(&self) -> Peer {
        within("an accepted connection", async {
            match self {
                Self::Tcp(listener) => Peer::tcp(listener.accept().await.unwrap().0),
                Self::Unix(listener, _) => Peer::new(listener.accept().await.unwrap().0),
            }
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            drop(std::fs::remove_file(path));
        }
    }
}

/// A frame as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) more: bool,
    pub(crate) command: bool,
    pub(crate) body: Vec<u8>,
}

/// A connection in raw octets.
pub(crate) struct Peer {
    stream: Box<dyn Duplex>,
    /// How frames are laid out, once the handshake is through.
    pub(crate) version: Version,
    /// This end's address, by which the other end knows it.
    pub(crate) address: Option<SocketAddr>,
}

impl Peer {
    fn new(stream: impl Duplex + 'static) -> Self {
        Self { stream: Box::new(stream), version: Version::V3_1, address: None }
    }

    fn tcp(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        let address = stream.local_addr().unwrap();
        Self { address: Some(address), ..Self::new(stream) }
    }

    /// Connects to a bound endpoint.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Self {
        let endpoint = endpoint.to_string();
        within("a connection", async {
            if let Some(address) = endpoint.strip_prefix("tcp://") {
                Self::tcp(TcpStream::connect(address).await.unwrap())
            } else {
                let path = endpoint.strip_prefix("ipc://").unwrap().replacen('@', "\0", 1);
                Self::new(UnixStream::connect(path).await.unwrap())
            }
        })
        .await
    }

    /// The same with a receive buffer that is soon full when the peer does not read.
    pub(crate) async fn connect_narrow(endpoint: &Endpoint) -> Self {
        let endpoint = endpoint.to_string();
        let address: SocketAddr = endpoint.strip_prefix("tcp://").unwrap().parse().unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        Self::tcp(within("a connection", socket.connect(address)).await.unwrap())
    }

    /// The same as [`connect`](Self::connect), to be reset rather than closed when it is dropped.
    pub(crate) async fn connect_abrupt(endpoint: &Endpoint) -> Self {
        let endpoint = endpoint.to_string();
        let stream = TcpStream::connect(endpoint.strip_prefix("tcp://").unwrap());
        let stream = within("a connection", stream).await.unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        Self::tcp(stream)
    }

    /// Connects and shakes hands.
    pub(crate) async fn join(endpoint: &Endpoint, version: Version, kind: &str) -> Self {
        let mut peer = Self::connect(endpoint).await;
        peer.shake(version, kind).await;
        peer
    }

    pub(crate) fn remote(&self) -> SocketAddr {
        self.address.expect("a TCP connection")
    }

    /// Closes the connection, whatever is still to be read.
    pub(crate) fn hang_up(&mut self) {
        self.stream = Box::new(tokio::io::duplex(1).0);
    }

    /// Writes octets; the other end must take them.
    pub(crate) async fn write(&mut self, octets: &[u8]) {
        within("octets written", self.stream.write_all(octets)).await.unwrap();
    }

    /// Writes octets as far as the other end takes them.
    pub(crate) async fn try_write(&mut self, octets: &[u8]) -> io::Result<()> {
        within("octets written or refused", self.stream.write_all(octets)).await
    }

    /// Writes octets as far as the other end takes them, and stops when it takes none for so long;
    /// tells how many.
    pub(crate) async fn write_until_blocked(&mut self, octets: &[u8], patience: Duration) -> usize {
        let mut written = 0;
        while written < octets.len() {
            match timeout(patience, self.stream.write(&octets[written..])).await {
                Ok(Ok(more)) if more > 0 => written += more,
                _ => break,
            }
        }
        written
    }

    /// Exactly so many octets.
    pub(crate) async fn read(&mut self, octets: usize) -> Vec<u8> {
        let mut buf = vec![0; octets];
        within("octets read", self.stream.read_exact(&mut buf)).await.unwrap();
        buf
    }

    /// The same of a peer that may close before.
    pub(crate) async fn try_read(&mut self, octets: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0; octets];
        within("octets or an end", self.stream.read_exact(&mut buf)).await?;
        Ok(buf)
    }

    /// One octet, or `None` when nothing comes for so long.
    pub(crate) async fn read_within(&mut self, limit: Duration) -> Option<u8> {
        timeout(limit, self.stream.read_u8()).await.ok().map(Result::unwrap)
    }

    /// What is left until the other end closes, cleanly or not.
    pub(crate) async fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        drop(within("the end of the connection", self.stream.read_to_end(&mut rest)).await);
        rest
    }

    /// The whole handshake of a version, as a socket of type `kind`.
    pub(crate) async fn shake(&mut self, version: Version, kind: &str) {
        self.version = version;
        match version {
            Version::V1_0 => {
                self.write(&[1, 0]).await;
                // what a 1.0 peer takes for the header of an identity frame, in the long form
                let header = self.read(10).await;
                assert_eq!((header[0], header[9]), (0xff, 0x7f));
                let length = u64::from_be_bytes(header[1..9].try_into().unwrap());
                self.read(length as usize - 1).await;
            }
            Version::V2_0 => {
                self.write(&SIGNATURE).await;
                self.write(&[1, octet(kind), 0, 0]).await;
                let theirs = self.read(12).await;
                assert_eq!(&theirs[..11], [&SIGNATURE[..], &[3]].concat());
                let identity = self.frame().await;
                assert!(!identity.more && !identity.command);
            }
            _ => {
                let minor = u8::from(version == Version::V3_1);
                self.write(&greeting(minor, "NULL")).await;
                self.write(&ready(kind)).await;
                assert_eq!(self.read(64).await, greeting(1, "NULL"));
                let theirs = self.frame().await;
                assert!(theirs.command && theirs.body.starts_with(b"\x05READY"), "{theirs:?}");
            }
        }
    }

    /// The next frame, in the framing of the version.
    pub(crate) async fn frame(&mut self) -> Frame {
        let (flags, length) = if self.version == Version::V1_0 {
            let first = self.read(1).await[0];
            let length = if first == 0xff {
                u64::from_be_bytes(self.read(8).await.try_into().unwrap())
            } else {
                u64::from(first)
            };
            (self.read(1).await[0] & 1, length - 1)
        } else {
            let flags = self.read(1).await[0];
            assert_eq!(flags & !7, 0, "reserved bits are 0");
            let length = if flags & 2 == 0 {
                u64::from(self.read(1).await[0])
            } else {
                u64::from_be_bytes(self.read(8).await.try_into().unwrap())
            };
            assert_eq!(flags & 2 != 0, length > 255, "the short form is for short bodies");
            (flags, length)
        };
        let body = self.read(length as usize).await;
        Frame { more: flags & 1 != 0, command: flags & 4 != 0, body }
    }

    /// The next message; commands before and inside it are passed over.
    pub(crate) async fn message(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame().await;
            if frame.command {
                continue;
            }
            frames.push(frame.body);
            if !frame.more {
                return frames;
            }
        }
    }

    /// The next command.
    pub(crate) async fn command(&mut self) -> Vec<u8> {
        let frame = self.frame().await;
        assert!(frame.command, "{frame:?}");
        frame.body
    }

    pub(crate) async fn send<F: AsRef<[u8]>>(&mut self, frames: &[F]) {
        let octets = encode(self.version, frames);
        self.write(&octets).await;
    }

    /// Subscribes in the form that the version has.
    pub(crate) async fn subscribe(&mut self, topic: &str) {
        self.write(&subscription(self.version, true, topic)).await;
    }
}

pub(crate) const SIGNATURE: [u8; 10] = [0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f];

/// A greeting of 3.x.
pub(crate) fn greeting(minor: u8, mechanism: &str) -> Vec<u8> {
    let mut octets = [&SIGNATURE[..], &[3, minor], mechanism.as_bytes()].concat();
    octets.resize(64, 0);
    octets
}

/// A command frame.
pub(crate) fn command(name: &str, data: &[u8]) -> Vec<u8> {
    let body = [&[name.len() as u8], name.as_bytes(), data].concat();
    let mut frame = encode(Version::V3_1, &[body]);
    frame[0] |= 4;
    frame
}

pub(crate) fn property(name: &str, value: &[u8]) -> Vec<u8> {
    let length = (value.len() as u32).to_be_bytes();
    [&[name.len() as u8], name.as_bytes(), &length, value].concat()
}

pub(crate) fn ready(kind: &str) -> Vec<u8> {
    command("READY", &property("Socket-Type", kind.as_bytes()))
}

pub(crate) fn ping(ttl_tenths: u16, context: &[u8]) -> Vec<u8> {
    command("PING", &[&ttl_tenths.to_be_bytes(), context].concat())
}

/// A subscription, or its end, in the form that the version has.
pub(crate) fn subscription(version: Version, on: bool, topic: &str) -> Vec<u8> {
    match version {
        Version::V3_1 => command(if on { "SUBSCRIBE" } else { "CANCEL" }, topic.as_bytes()),
        _ => encode(version, &[[&[u8::from(on)], topic.as_bytes()].concat()]),
    }
}

/// A message in the framing of the version.
pub(crate) fn encode<F: AsRef<[u8]>>(version: Version, frames: &[F]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, frame) in frames.iter().enumerate() {
        let (frame, more) = (frame.as_ref(), u8::from(i + 1 < frames.len()));
        if version == Version::V1_0 {
            match frame.len() + 1 {
                counted @ ..255 => out.push(counted as u8),
                counted => {
                    out.push(0xff);
                    out.extend((counted as u64).to_be_bytes());
                }
            }
            out.push(more);
        } else if frame.len() <= 255 {
            out.extend([more, frame.len() as u8]);
        } else {
            out.push(more | 2);
            out.extend((frame.len() as u64).to_be_bytes());
        }
        out.extend(frame);
    }
    out
}

/// A socket type in the greeting of 2.0.
fn octet(kind: &str) -> u8 {
    match kind {
        "PUB" => 1,
        "SUB" => 2,
        "PULL" => 7,
        "PUSH" => 8,
        _ => panic!("{kind}"),
    }
}
