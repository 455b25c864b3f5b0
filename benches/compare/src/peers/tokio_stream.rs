//! A bare stream on tokio, without a library on top: the floor for a round trip under this runtime.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::block_on;
use super::raw::{Address, address, message};
use crate::role::{Role, Verb};
use crate::signals;
use crate::tally::{Laps, Tally};

pub const SETTINGS: &str = "TcpStream (with TCP_NODELAY) or UnixStream, write_all and read_exact; \
     one connection for both ways";

pub fn version() -> String {
    super::locked_version("tokio")
}

pub fn declines(role: &Role) -> bool {
    !matches!(role.verb, Verb::Ping | Verb::Pong)
}

pub fn run(role: &Role) -> Tally {
    let role = role.clone();
    block_on(role.runtime, async move {
        match (address(&role.endpoint), role.bind) {
            (Address::Tcp(address), true) => {
                let listener = TcpListener::bind(address).await.expect("the address is free");
                let address = listener.local_addr().expect("bound");
                signals::listening(format_args!("tcp://{address}"));
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket takes it");
                pong(&role, stream).await
            }
            (Address::Tcp(address), false) => {
                let stream = TcpStream::connect(address).await.expect("somebody listens");
                stream.set_nodelay(true).expect("a socket takes it");
                ping(&role, stream).await
            }
            (Address::Ipc(path), true) => {
                let listener = UnixListener::bind(path).expect("the path is free");
                signals::listening(&role.endpoint);
                pong(&role, listener.accept().await.expect("a connection").0).await
            }
            (Address::Ipc(path), false) => {
                ping(&role, UnixStream::connect(path).await.expect("somebody listens")).await
            }
        }
    })
}

async fn ping(role: &Role, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Tally {
    let mut octets = message(role);
    let mut laps = Laps::of(role);
    for _ in 0..role.round_trips() {
        laps.start();
        stream.write_all(&octets).await.expect("the other side is there");
        stream.read_exact(&mut octets).await.expect("the other side is there");
        laps.stop();
    }
    laps.tally()
}

async fn pong(role: &Role, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Tally {
    let mut octets = message(role);
    for _ in 0..role.round_trips() {
        stream.read_exact(&mut octets).await.expect("the other side is there");
        stream.write_all(&octets).await.expect("the other side is there");
    }
    Tally::default()
}
