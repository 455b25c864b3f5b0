//! Servers that a test plays itself, octet by octet.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::side::soon;

/// Takes a command off the front: its words.
fn command(octets: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    fn line(octets: &[u8], kind: u8) -> Option<(usize, &[u8])> {
        let end = octets.windows(2).position(|pair| pair == b"\r\n")?;
        assert_eq!(octets[0], kind);
        Some((str::from_utf8(&octets[1..end]).unwrap().parse().unwrap(), &octets[end + 2..]))
    }
    let (count, mut rest) = line(octets, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, after) = line(rest, b'$')?;
        words.push(after.get(..length)?.to_vec());
        rest = after.get(length + 2..)?;
    }
    *octets = rest.to_vec();
    Some(words)
}

/// All of them.
pub(crate) fn commands(mut octets: Vec<u8>) -> Vec<Vec<Vec<u8>>> {
    std::iter::from_fn(|| command(&mut octets)).collect()
}

/// A connection to a scripted server.
pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    /// The next command, once those are answered that an old stand-alone server does not know.
    pub(crate) async fn command(&mut self) -> Option<Vec<Vec<u8>>> {
        loop {
            while let Some(words) = command(&mut self.read) {
                if words[0] != b"ROLE" && words[0] != b"CLUSTER" {
                    return Some(words);
                }
                self.say(b"-ERR unknown command\r\n").await;
            }
            let mut octets = [0; 4096];
            match self.stream.read(&mut octets).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.read.extend_from_slice(&octets[..read]),
            }
        }
    }

    pub(crate) async fn say(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).await.unwrap();
    }
}

/// A server, and where it is.
pub(crate) async fn server() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    (listener, at)
}

/// Whoever connects next.
pub(crate) async fn client(listener: &TcpListener) -> Client {
    Client { stream: soon(listener.accept()).await.unwrap().0, read: Vec::new() }
}
