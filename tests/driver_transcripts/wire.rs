//! A recorded peer: its end of a real connection, in raw octets.

use std::collections::BTreeMap;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::recording::{GREETING, Stream, hex, payload};
use crate::side::soon;

pub(crate) struct Wire<S> {
    stream: S,
}

/// A listener of this host, and its address.
pub(crate) async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("tcp://{}", listener.local_addr().unwrap());
    (listener, uri)
}

impl Wire<TcpStream> {
    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = soon(listener.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    pub(crate) async fn connect(uri: &str) -> Self {
        let address = uri.strip_prefix("tcp://").unwrap();
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Ends the connection with RST.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }
}

impl Wire<UnixStream> {
    pub(crate) async fn accept_local(listener: &UnixListener) -> Self {
        Self { stream: soon(listener.accept()).await.unwrap().0 }
    }

    pub(crate) async fn connect_local(path: &Path) -> Self {
        Self { stream: soon(UnixStream::connect(path)).await.unwrap() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) async fn write(&mut self, octets: &[u8]) {
        soon(self.stream.write_all(octets)).await.unwrap();
    }

    pub(crate) async fn write_all(&mut self, frames: &[Vec<u8>]) {
        self.write(&frames.concat()).await;
    }

    async fn read(&mut self, octets: usize) -> Vec<u8> {
        let mut buf = vec![0; octets];
        soon(self.stream.read_exact(&mut buf)).await.unwrap();
        buf
    }

    /// Plays the recorded side's part of the handshake, and holds ours to that of its recorded peer.
    pub(crate) async fn shake(&mut self, own: &Stream, recorded: &Stream) {
        self.write(&own.greeting).await;
        let mut greeting = self.read(GREETING).await;
        // the minor version is ours, libzmq up to 4.2 speaks 3.0
        assert_eq!(greeting[11], 1);
        greeting[11] = recorded.greeting[11];
        assert_eq!(hex(&greeting), hex(&recorded.greeting));
        self.write(&own.ready).await;
        let ready = self.frame().await;
        // the properties' order is free, and every implementation may have some of its own
        let mut properties = properties(&ready);
        properties.retain(|name, _| !name.starts_with("X-"));
        assert_eq!(properties, self::properties(&recorded.ready));
    }

    /// The octets of the next frame. PINGs, which may come when a test takes long, are passed over.
    pub(crate) async fn frame(&mut self) -> Vec<u8> {
        loop {
            let mut frame = self.read(2).await;
            let mut length = u64::from(frame[1]);
            if frame[0] & 2 != 0 {
                frame.extend(self.read(7).await);
                length = u64::from_be_bytes(frame[1..9].try_into().unwrap());
            }
            frame.extend(self.read(length.try_into().unwrap()).await);
            if frame[0] & 4 == 0 || !payload(&frame).starts_with(b"\x04PING") {
                return frame;
            }
        }
    }

    /// The octets of the next message's frames.
    pub(crate) async fn message(&mut self) -> Vec<Vec<u8>> {
        let mut frames = vec![self.frame().await];
        while frames.last().unwrap()[0] & 1 != 0 {
            frames.push(self.frame().await);
        }
        frames
    }

    /// That nothing more comes but the end of the connection; this side then closes it too, for which
    /// ours waits when it is closed.
    pub(crate) async fn ended(mut self) {
        let mut rest = Vec::new();
        soon(self.stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(hex(&rest), "");
    }
}

/// The properties of READY.
fn properties(frame: &[u8]) -> BTreeMap<String, String> {
    assert_eq!(frame[0] & !2, 4, "a command");
    let mut rest = payload(frame).strip_prefix(b"\x05READY").unwrap();
    let mut properties = BTreeMap::new();
    while !rest.is_empty() {
        let (name, after) = rest[1..].split_at(rest[0].into());
        let (length, after) = after.split_at(4);
        let length = u32::from_be_bytes(length.try_into().unwrap());
        let (value, after) = after.split_at(length.try_into().unwrap());
        let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
        assert_eq!(properties.insert(text(name), text(value)), None, "once each");
        rest = after;
    }
    properties
}
