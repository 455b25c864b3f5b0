//! A connection that channels are followed by: what comes, and whether the server is still there.

use std::fmt;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::redis::aio::{PubSub, PubSubSink, PubSubStream};
use ::redis::{Msg, Value};
use futures::future::{BoxFuture, FutureExt, join_all};
use futures::stream::StreamExt;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::gate::Gate;
use super::servers::{ANSWER, CONNECT, Fault, Server, dial, within};

/// The connection.
pub(crate) struct Channels {
    at: String,
    sink: PubSubSink,
    stream: PubSubStream,
    gate: Gate,
    /// What the server is to answer. There is one at a time.
    asked: Option<BoxFuture<'static, Vec<Answer>>>,
    /// When something came from the server last, or when nobody was ready to take it.
    alive: Instant,
    tick: Interval,
    /// Octets since the last message.
    pending: usize,
    /// A message that came after answers.
    held: Option<Msg>,
}

/// What is to be followed, or no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Subscribe(String),
    Unsubscribe(String),
}

/// What the server said to a change; a ping's answer has none.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) change: Option<Change>,
    pub(crate) result: Result<(), Fault>,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Heard {
    Message(Msg),
    /// To everything that was asked for at once.
    Answers(Vec<Answer>),
}

impl Channels {
    pub(crate) async fn open(server: &Server) -> Result<Self, Fault> {
        let at = server.address.to_string();
        let gate = Gate::default();
        let opening = async {
            let stream = gate.guard(dial(&server.address).await?);
            PubSub::new(&server.login, stream).await
        };
        let opened = within(CONNECT, opening).await.map_err(|error| Fault::new(&at, &error))?;
        let (sink, stream) = opened.split();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            at,
            sink,
            stream,
            gate,
            asked: None,
            alive: Instant::now(),
            tick,
            pending: 0,
            held: None,
        })
    }

    /// Whether the server has not answered the last question yet.
    pub(crate) fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// Asks for changes, all of which are sent before the first is answered. Only when it is not
    /// asking already.
    pub(crate) fn ask(&mut self, changes: Vec<Change>) {
        let asking = changes.into_iter().map(|change| {
            let (mut sink, at) = (self.sink.clone(), self.at.clone());
            async move {
                let answered = match &change {
                    Change::Subscribe(channel) => sink.subscribe(channel).await,
                    Change::Unsubscribe(channel) => sink.unsubscribe(channel).await,
                };
                let result = answered.map_err(|error| Fault::new(&at, &error));
                Answer { change: Some(change), result }
            }
        });
        self.expect(join_all(asking).boxed());
    }

    fn ping(&mut self) {
        let (mut sink, at) = (self.sink.clone(), self.at.clone());
        let asking = async move {
            let answered = sink.ping::<Value>().await;
            let result = answered.map(drop).map_err(|error| Fault::new(&at, &error));
            vec![Answer { change: None, result }]
        };
        self.expect(asking.boxed());
    }

    fn expect(&mut self, asking: BoxFuture<'static, Vec<Answer>>) {
        self.asked = Some(asking);
        // what was quiet before does not count
        self.alive = Instant::now();
    }

    fn poll_answers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Heard, String>> {
        let Some(asked) = &mut self.asked else { return Poll::Pending };
        let answers = ready!(asked.as_mut().poll(cx));
        self.asked = None;
        self.alive = Instant::now();
        let gone = answers.iter().find_map(|answer| match &answer.result {
            Err(fault) if !fault.is_answer() => Some(fault.reason.clone()),
            _ => None,
        });
        if let Some(reason) = gone {
            return Poll::Ready(Err(reason));
        }
        if answers.iter().all(|answer| answer.change.is_none()) {
            // a ping's
            return Poll::Pending;
        }
        Poll::Ready(Ok(Heard::Answers(answers)))
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Msg>> {
        match self.held.take() {
            Some(message) => Poll::Ready(Some(message)),
            None => self.stream.poll_next_unpin(cx),
        }
    }

    /// The next that comes. Messages are taken only if there is `room` for them.
    ///
    /// # Errors
    /// Why the connection is lost; it is not to be used any more.
    pub(crate) fn poll_heard(
        &mut self,
        room: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Heard, String>> {
        loop {
            if let Poll::Ready(answers) = self.poll_answers(cx) {
                return Poll::Ready(answers);
            }
            if room {
                match self.poll_message(cx) {
                    Poll::Ready(Some(message)) => {
                        self.alive = Instant::now();
                        self.pending = 0;
                        // answers that came before it go before it
                        if let Poll::Ready(answers) = self.poll_answers(cx) {
                            self.held = Some(message);
                            return Poll::Ready(answers);
                        }
                        return Poll::Ready(Ok(Heard::Message(message)));
                    }
                    Poll::Ready(None) => {
                        return Poll::Ready(Err("the server has closed the connection".to_owned()));
                    }
                    Poll::Pending => {}
                }
                if let Poll::Ready(read) = self.gate.poll_open(cx) {
                    self.alive = Instant::now();
                    self.pending += read;
                    if self.pending > MAX_MESSAGE {
                        let reason = format!("a message has over {MAX_MESSAGE} octets");
                        return Poll::Ready(Err(reason));
                    }
                    continue;
                }
            }
            if self.tick.poll_tick(cx).is_pending() {
                return Poll::Pending;
            }
            if !room {
                self.alive = Instant::now();
            } else if self.asked.is_some() {
                if self.alive.elapsed() > ANSWER {
                    return Poll::Ready(Err(format!("no answer within {ANSWER:?}")));
                }
            } else if self.alive.elapsed() > QUIET {
                self.ping();
            }
        }
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asking = self.is_asking();
        f.debug_struct("Channels").field("at", &self.at).field("asking", &asking).finish()
    }
}

const TICK: Duration = Duration::from_secs(1);

/// After so long without a message the server is asked whether it is there.
const QUIET: Duration = Duration::from_secs(5);

/// The largest message that is read, as over this crate's sockets.
const MAX_MESSAGE: usize = 64 << 20;
