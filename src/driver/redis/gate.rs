//! Holds up what a server sends while nobody takes it: the client library puts everything that it has
//! read into a queue without a bound.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The side of who takes messages.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Octets that were read since the gate was opened.
    read: usize,
    /// Waits until it is opened.
    reader: Option<Waker>,
    /// Waits until it is closed.
    taker: Option<Waker>,
}

impl Gate {
    /// A stream that is read through this gate.
    pub(super) fn guard<S>(&self, stream: S) -> Gated<S> {
        Gated { stream, gate: self.clone() }
    }

    /// Lets more in, if it is closed: how many octets have come by since the last time. For who has
    /// taken everything that was read.
    pub(super) fn poll_open(&self, cx: &mut Context<'_>) -> Poll<usize> {
        let mut state = self.lock();
        if state.read < CAPACITY {
            state.taker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let read = std::mem::take(&mut state.read);
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(read)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream.
#[derive(Debug)]
pub(super) struct Gated<S> {
    stream: S,
    gate: Gate,
}

impl<S: AsyncRead + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut state = self.gate.lock();
            if state.read >= CAPACITY {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let mut state = self.gate.lock();
        state.read += buf.filled().len() - before;
        let taker = if state.read >= CAPACITY { state.taker.take() } else { None };
        drop(state);
        taker.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What is read at most without being taken: a batch of events.
const CAPACITY: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use futures::future::poll_immediate;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn no_more_is_read_than_is_taken() {
        let (mut server, stream) = tokio::io::duplex(8 * CAPACITY);
        server.write_all(&vec![7; 4 * CAPACITY]).await.unwrap();
        let gate = Gate::default();
        let mut gated = gate.guard(stream);
        let mut open = std::pin::pin!(std::future::poll_fn(|cx| gate.poll_open(cx)));
        assert!(poll_immediate(&mut open).await.is_none(), "nothing was read so far");
        for _ in 0..3 {
            let mut octets = vec![0; CAPACITY];
            gated.read_exact(&mut octets).await.unwrap();
            assert!(poll_immediate(gated.read(&mut octets)).await.is_none(), "it is closed");
            assert_eq!(std::future::poll_fn(|cx| gate.poll_open(cx)).await, CAPACITY);
        }
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (mut server, stream) = tokio::io::duplex(CAPACITY);
        let gate = Gate::default();
        let mut gated = gate.guard(stream);
        let reading = tokio::spawn(async move {
            let mut octets = vec![0; 3 * CAPACITY];
            gated.read_exact(&mut octets).await.unwrap();
        });
        let writing = tokio::spawn(async move {
            server.write_all(&vec![7; 3 * CAPACITY]).await.unwrap();
        });
        let mut passed = 0;
        while passed < 3 * CAPACITY {
            passed += std::future::poll_fn(|cx| gate.poll_open(cx)).await;
        }
        reading.await.unwrap();
        writing.await.unwrap();
    }
}
