//! A socket of either kind behind one face, so that a scenario is written once.
//!
//! libzmq's sockets block. A test runs on a runtime of several threads, so that dragonwire's tasks go
//! on while the test's own thread waits in libzmq.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dragonwire::{
    CloseReport, ConnectionId, Error, Message, Monitor, PubSocket, PullSocket, PushSocket,
    RecvError, SocketOptions, SocketStats, SocketType, SubSocket, XPubSocket, XSubSocket,
};

use crate::{DEADLINE, GLANCE, libzmq, within};

/// A message's frames.
pub type Frames = Vec<Vec<u8>>;

/// The frames of a message of dragonwire's.
#[must_use]
pub fn frames(message: &Message) -> Frames {
    message.frames().map(<[u8]>::to_vec).collect()
}

/// Texts as frames.
#[must_use]
pub fn texts(frames: &[&str]) -> Frames {
    frames.iter().map(|frame| frame.as_bytes().to_vec()).collect()
}

/// A frame that subscribes, as XPUB receives and XSUB sends it.
#[must_use]
pub fn subscription(topic: impl AsRef<[u8]>) -> Frames {
    vec![[&[1], topic.as_ref()].concat()]
}

/// A frame that unsubscribes, as XPUB receives and XSUB sends it.
#[must_use]
pub fn cancellation(topic: impl AsRef<[u8]>) -> Frames {
    vec![[&[0], topic.as_ref()].concat()]
}

/// Which of the two a socket is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// The one under test.
    Dragonwire,
    /// The one it is to be like.
    Libzmq,
}

impl Maker {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Dragonwire, Self::Libzmq];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Dragonwire => Self::Libzmq,
            Self::Libzmq => Self::Dragonwire,
        }
    }

    /// A socket with the options both call the default.
    #[must_use]
    pub fn socket(self, context: &libzmq::Context, kind: SocketType) -> Side {
        match self {
            Self::Dragonwire => Side::Dragonwire(Dragon::new(kind, SocketOptions::new())),
            Self::Libzmq => Side::Libzmq(context.socket(kind)),
        }
    }
}

/// A socket of either.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a test has a few of them")]
pub enum Side {
    /// One of dragonwire's.
    Dragonwire(Dragon),
    /// One of libzmq's.
    Libzmq(libzmq::Socket),
}

/// A socket of dragonwire's, its type chosen at run time.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Dragon {
    Pub(PubSocket),
    Sub(SubSocket),
    XPub(XPubSocket),
    XSub(XSubSocket),
    Push(PushSocket),
    Pull(PullSocket),
}

macro_rules! each {
    ($self:expr, $socket:ident => $body:expr) => {
        match $self {
            Dragon::Pub($socket) => $body,
            Dragon::Sub($socket) => $body,
            Dragon::XPub($socket) => $body,
            Dragon::XSub($socket) => $body,
            Dragon::Push($socket) => $body,
            Dragon::Pull($socket) => $body,
        }
    };
}

impl Dragon {
    /// A socket of that type.
    ///
    /// # Panics
    /// The options cannot be used, or the type is not one of the six.
    #[must_use]
    pub fn new(kind: SocketType, options: SocketOptions) -> Self {
        let made = match kind {
            SocketType::Pub => PubSocket::with_options(options).map(Self::Pub),
            SocketType::Sub => SubSocket::with_options(options).map(Self::Sub),
            SocketType::XPub => XPubSocket::with_options(options).map(Self::XPub),
            SocketType::XSub => XSubSocket::with_options(options).map(Self::XSub),
            SocketType::Push => PushSocket::with_options(options).map(Self::Push),
            SocketType::Pull => PullSocket::with_options(options).map(Self::Pull),
            other => panic!("{other} is not among dragonwire's types"),
        };
        made.expect("options that can be used")
    }

    /// `bind`.
    ///
    /// # Errors
    /// As the socket's.
    pub async fn bind(&self, endpoint: &str) -> Result<String, Error> {
        each!(self, socket => socket.bind(endpoint).await).map(|real| real.to_string())
    }

    /// `connect`.
    ///
    /// # Errors
    /// As the socket's.
    pub async fn connect(&self, endpoint: &str) -> Result<(), Error> {
        each!(self, socket => socket.connect(endpoint).await).map(drop)
    }

    /// `unbind`.
    ///
    /// # Errors
    /// As the socket's.
    pub async fn unbind(&self, endpoint: &str) -> Result<(), Error> {
        each!(self, socket => socket.unbind(endpoint).await)
    }

    /// `disconnect`.
    ///
    /// # Errors
    /// As the socket's.
    pub async fn disconnect(&self, endpoint: &str) -> Result<(), Error> {
        each!(self, socket => socket.disconnect(endpoint).await)
    }

    /// `monitor`.
    #[must_use]
    pub fn monitor(&self) -> Monitor {
        each!(self, socket => socket.monitor())
    }

    /// `stats`.
    #[must_use]
    pub fn stats(&self) -> SocketStats {
        each!(self, socket => socket.stats())
    }

    /// `recv`.
    ///
    /// # Errors
    /// As the socket's.
    ///
    /// # Panics
    /// The type has none.
    pub async fn recv(&mut self) -> Result<Message, RecvError> {
        match self {
            Self::Sub(socket) => socket.recv().await,
            Self::XPub(socket) => socket.recv().await,
            Self::XSub(socket) => socket.recv().await,
            Self::Pull(socket) => socket.recv().await,
            Self::Pub(_) | Self::Push(_) => panic!("PUB and PUSH do not receive"),
        }
    }

    /// `last_peer`; `None` for a type that has none.
    #[must_use]
    pub fn last_peer(&self) -> Option<ConnectionId> {
        match self {
            Self::Sub(socket) => socket.last_peer(),
            Self::XPub(socket) => socket.last_peer(),
            Self::XSub(socket) => socket.last_peer(),
            Self::Pull(socket) => socket.last_peer(),
            Self::Pub(_) | Self::Push(_) => None,
        }
    }

    /// `close`.
    pub async fn close(&self) -> CloseReport {
        each!(self, socket => socket.close().await)
    }
}

impl Side {
    /// Listens, and says where.
    ///
    /// # Panics
    /// It cannot.
    pub async fn bind(&self, endpoint: &str) -> String {
        match self {
            Self::Dragonwire(socket) => socket.bind(endpoint).await.expect("a bound endpoint"),
            Self::Libzmq(socket) => socket.bind(endpoint).expect("a bound endpoint"),
        }
    }

    /// Connects.
    ///
    /// # Panics
    /// It cannot be tried.
    pub async fn connect(&self, endpoint: &str) {
        match self {
            Self::Dragonwire(socket) => socket.connect(endpoint).await.expect("an endpoint"),
            Self::Libzmq(socket) => socket.connect(endpoint).expect("an endpoint"),
        }
    }

    /// Sends; waits while it has to.
    ///
    /// # Panics
    /// The socket is closed, has no such method, or does not take it within [`DEADLINE`].
    pub async fn send(&self, message: &[Vec<u8>]) {
        let made = || Message::from_frames(message.iter().cloned());
        let sent = "the message is taken";
        match self {
            Self::Libzmq(socket) => socket.send(message).expect("an open socket"),
            Self::Dragonwire(Dragon::Pub(socket)) => {
                within(sent, socket.send(made())).await.expect("an open socket");
            }
            Self::Dragonwire(Dragon::XPub(socket)) => {
                within(sent, socket.send(made())).await.expect("an open socket");
            }
            Self::Dragonwire(Dragon::XSub(socket)) => {
                within(sent, socket.send(made())).await.expect("an open socket");
            }
            Self::Dragonwire(Dragon::Push(socket)) => {
                within(sent, socket.send(made())).await.expect("an open socket");
            }
            Self::Dragonwire(Dragon::Sub(_) | Dragon::Pull(_)) => panic!("it does not send"),
        }
    }

    /// Receives.
    ///
    /// # Panics
    /// The socket is closed, has no such method, or nothing comes within [`DEADLINE`].
    #[track_caller]
    pub fn recv(&mut self) -> impl Future<Output = Frames> {
        let caller = std::panic::Location::caller();
        async move {
            match self {
                Self::Libzmq(socket) => socket
                    .recv()
                    .unwrap_or_else(|error| panic!("{caller}: receiving from libzmq: {error}")),
                Self::Dragonwire(socket) => {
                    match tokio::time::timeout(DEADLINE, socket.recv()).await {
                        Ok(received) => frames(&received.expect("an open socket")),
                        Err(_) => panic!("{caller}: dragonwire received nothing in {DEADLINE:?}"),
                    }
                }
            }
        }
    }

    /// Receives, if something comes in that time.
    ///
    /// # Panics
    /// The socket is closed or has no such method.
    pub async fn recv_within(&mut self, time: Duration) -> Option<Frames> {
        match self {
            Self::Libzmq(socket) => match socket.recv_within(time) {
                Ok(received) => Some(received),
                Err(libzmq::Error::AGAIN) => None,
                Err(error) => panic!("receiving from libzmq: {error}"),
            },
            Self::Dragonwire(socket) => {
                let received = tokio::time::timeout(time, socket.recv()).await.ok()?;
                Some(frames(&received.expect("an open socket")))
            }
        }
    }

    /// Receives while the peer is in nobody's hands: a socket of libzmq's that binds sends its
    /// subscriptions only when its application next uses it.
    ///
    /// # Panics
    /// As [`recv`](Self::recv).
    #[track_caller]
    pub fn recv_from(&mut self, peer: &Self) -> impl Future<Output = Frames> {
        let caller = std::panic::Location::caller();
        async move {
            let end = Instant::now() + DEADLINE;
            loop {
                peer.touch();
                if let Some(received) = self.recv_within(GLANCE).await {
                    return received;
                }
                assert!(Instant::now() < end, "{caller}: nothing received within {DEADLINE:?}");
            }
        }
    }

    /// Lets a socket of libzmq's look after what has happened to it.
    pub fn touch(&self) {
        if let Self::Libzmq(socket) = self {
            socket.events();
        }
    }

    /// SUB, XSUB: subscribes.
    ///
    /// # Panics
    /// The socket is closed or of another type.
    pub async fn subscribe(&self, topic: &[u8]) {
        match self {
            Self::Dragonwire(Dragon::Sub(socket)) => {
                socket.subscribe(topic).expect("an open socket");
            }
            Self::Libzmq(socket) if socket.subscribe(topic).is_ok() => {}
            xsub => xsub.send(&subscription(topic)).await,
        }
    }

    /// SUB, XSUB: takes a subscription back.
    ///
    /// # Panics
    /// The socket is closed or of another type.
    pub async fn unsubscribe(&self, topic: &[u8]) {
        match self {
            Self::Dragonwire(Dragon::Sub(socket)) => {
                socket.unsubscribe(topic).expect("an open socket");
            }
            Self::Libzmq(socket) if socket.unsubscribe(topic).is_ok() => {}
            xsub => xsub.send(&cancellation(topic)).await,
        }
    }

    /// PUB: waits until everything the subscriber has said so far has come here.
    ///
    /// For this the subscriber subscribes to a topic of its own, and to another one when messages of
    /// the first arrive. What it subscribed to before it had a connection comes in no order, but
    /// before the second one.
    ///
    /// # Panics
    /// It does not happen within [`DEADLINE`].
    #[track_caller]
    pub fn settle(&self, subscriber: &mut Self) -> impl Future<Output = ()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let caller = std::panic::Location::caller();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        async move {
            for round in ["first", "second"] {
                let topic = format!("\u{1}settle-{number}-{round}.").into_bytes();
                subscriber.subscribe(&topic).await;
                let end = Instant::now() + DEADLINE;
                loop {
                    self.touch();
                    subscriber.touch();
                    if self.has_subscriber(&topic).await {
                        self.send(&[topic.clone(), b"ping".to_vec()]).await;
                        if subscriber.recv_within(GLANCE).await.is_some() {
                            break;
                        }
                    }
                    assert!(Instant::now() < end, "{caller}: no subscription within {DEADLINE:?}");
                }
                self.send(&[topic.clone(), b"end".to_vec()]).await;
                loop {
                    let got = subscriber.recv().await;
                    assert_eq!(got[0], topic, "{caller}: {got:?}");
                    if got[1] == b"end" {
                        break;
                    }
                }
                subscriber.unsubscribe(&topic).await;
            }
        }
    }

    /// Whether somebody may be subscribed to it: libzmq's PUB does not say.
    async fn has_subscriber(&self, topic: &[u8]) -> bool {
        match self {
            Self::Dragonwire(Dragon::Pub(socket)) => {
                let subscribed = socket.wait_for_subscribers(topic, 1);
                tokio::time::timeout(GLANCE, subscribed).await.is_ok()
            }
            _ => true,
        }
    }

    /// The dragonwire socket.
    ///
    /// # Panics
    /// It is one of libzmq's.
    #[track_caller]
    pub fn dragon(&mut self) -> &mut Dragon {
        match self {
            Self::Dragonwire(socket) => socket,
            Self::Libzmq(_) => panic!("this is a socket of libzmq's"),
        }
    }
}
