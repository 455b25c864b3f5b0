//! A relay in front of a server, that counts connections, cuts them and lets none pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Debug)]
pub(crate) struct Relay {
    at: String,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    accepted: AtomicUsize,
    closed: AtomicBool,
    cuts: watch::Sender<usize>,
}

impl Relay {
    pub(crate) async fn start(to: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            accepted: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            cuts: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, to, state.clone()));
        Self { at, state, accepting }
    }

    pub(crate) fn at(&self) -> String {
        self.at.clone()
    }

    /// How many connections have come so far.
    pub(crate) fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Ends every connection, and each new one as soon as it has come.
    pub(crate) fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub(crate) fn open(&self) {
        self.state.closed.store(false, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, to: String, state: Arc<State>) {
    while let Ok((mut client, _)) = listener.accept().await {
        state.accepted.fetch_add(1, Ordering::SeqCst);
        let mut cuts = state.cuts.subscribe();
        if state.closed.load(Ordering::SeqCst) {
            continue;
        }
        let to = to.clone();
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(to).await else { return };
            tokio::select! {
                _ = cuts.changed() => {}
                _ = copy_bidirectional(&mut client, &mut server) => {}
            }
        });
    }
}
