//! A socket between the standard streams.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IsTerminal};
use std::pin::pin;
use std::time::{Duration, Instant};

use dragonwire::{DropReason, Error, Event, Message, Monitor, SocketType};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::all_verbs::{Direction, SocketJob};
use crate::console::{Console, counted};
use crate::ending::{Ending, Failure};
use crate::lines::{Format, Takes};
use crate::notices::Notices;
use crate::printer::Printer;
use crate::rates::{Rates, reasons, summary};
use crate::signals::{Signal, Signals};
use crate::socket::{Outlet, Socket};
use crate::stdio::{Input, read_input};

/// Runs the job to its end.
pub(crate) async fn run(job: SocketJob, console: &Console) -> Result<Ending, Failure> {
    let began = Instant::now();
    let kind = job.kind;
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    let Some(socket) = Socket::new(kind, job.options.clone()) else {
        return Err(Failure::new(format!("this version has no {kind}")));
    };
    let mut exchange = Exchange::start(socket?, &job, console).await?;
    let ended = exchange.until_end(&mut signals).await;
    // what was taken before something failed is sent and printed all the same
    let ending = ended.as_ref().map_or(Ending::Done, |ending| *ending);
    let ending = exchange.finish(ending, &mut signals).await?;
    ended?;
    match ending {
        Ending::Signal(Signal::Interrupt) => {
            console.say(summary(kind, &exchange.socket.stats(), began.elapsed()));
        }
        Ending::Done => tell_losses(kind, &exchange.socket, console),
        Ending::ReaderGone | Ending::Signal(Signal::Terminate) => {}
    }
    Ok(ending)
}

/// Everything between the start and the end.
struct Exchange<'a> {
    console: &'a Console,
    socket: Socket,
    monitor: Option<Monitor>,
    notices: Notices,
    rates: Option<Rates>,

    inputs: Option<mpsc::Receiver<Input>>,
    ends_with_input: bool,
    /// Read, but not yet taken by the socket.
    unsent: VecDeque<Message>,
    outlet: Option<Outlet>,
    burst: usize,

    printer: Option<Printer>,
}

impl<'a> Exchange<'a> {
    async fn start(socket: Socket, job: &SocketJob, console: &'a Console) -> Result<Self, Failure> {
        let monitor = socket.monitor();
        for topic in &job.subscriptions {
            socket.subscribe(topic)?;
        }
        for (direction, endpoint) in &job.endpoints {
            let real = socket.attach(*direction, endpoint).await?;
            if *direction == Direction::Bind {
                console.say(format!("bound {real}"));
            }
        }
        if job.kind == SocketType::Sub && job.subscriptions.is_empty() {
            console.say(
                "no subscription yet: give --subscribe TEXT (\"\" for everything), or write \
                 {\"subscribe\": TEXT} lines",
            );
        }
        let format_at =
            |terminal| job.format.unwrap_or(if terminal { Format::Text } else { Format::Json });
        let takes = match job.kind {
            SocketType::Pull => None,
            SocketType::Sub => Some(Takes::Subscriptions),
            SocketType::XSub => Some(Takes::Both),
            _ => Some(Takes::Messages),
        };
        let format = format_at(io::stdin().is_terminal());
        let inputs = takes.map(|takes| read_input(format, takes, console.clone()));
        let format = format_at(io::stdout().is_terminal());
        let printer = socket.receives().then(|| Printer::start(format, job.count, console.clone()));
        Ok(Self {
            console,
            monitor: Some(monitor),
            notices: Notices::default(),
            rates: job.stats.then(Rates::start),
            inputs,
            ends_with_input: match job.kind {
                SocketType::Pub | SocketType::Push => true,
                SocketType::XPub | SocketType::XSub => job.count.is_none(),
                _ => false,
            },
            unsent: VecDeque::new(),
            outlet: socket.outlet(),
            burst: job.burst,
            printer,
            socket,
        })
    }

    async fn until_end(&mut self, signals: &mut Signals) -> Result<Ending, Failure> {
        loop {
            if self.printer.as_ref().is_some_and(Printer::is_done) {
                return Ok(Ending::Done);
            }
            tokio::select! {
                signal = signals.next() => return Ok(Ending::Signal(signal)),
                event = next_event(&mut self.monitor) => {
                    if let Some(line) = self.notices.line(&event, Instant::now()) {
                        self.console.say(line);
                    }
                }
                rates = Rates::next(&mut self.rates) => {
                    self.console.show(rates.line(&self.socket.stats()));
                }
                input = next_input(&mut self.inputs), if self.unsent.is_empty() => {
                    match input {
                        Some(input) => self.take_input(input)?,
                        None if !self.ends_with_input => {}
                        None if self.printer.is_none() => return Ok(Ending::Done),
                        None => self.take_last(),
                    }
                }
                sent = send(&self.outlet, &mut self.unsent, self.burst),
                    if !self.unsent.is_empty() => sent?,
                wanted = print_next(&mut self.socket, &mut self.printer) => {
                    if !wanted? {
                        return Ok(Ending::ReaderGone);
                    }
                }
            }
        }
    }

    fn take_input(&mut self, input: Input) -> Result<(), Failure> {
        match input {
            Input::Messages(messages) => self.unsent = messages,
            Input::Subscribe(topic) => self.socket.subscribe(&topic)?,
            Input::Unsubscribe(topic) => self.socket.unsubscribe(&topic)?,
            Input::Failed(error) => {
                return Err(Failure::new(format!("cannot read the standard input: {error}")));
            }
        }
        Ok(())
    }

    /// The input has ended: what has been received until now is printed, nothing more.
    fn take_last(&mut self) {
        let queued = self.socket.stats().incoming.queued;
        if let Some(printer) = &mut self.printer {
            let received = (0..queued).map_while(|_| self.socket.try_recv().ok());
            printer.take_last(received);
        }
    }

    /// Writes and sends what is left: as long as that takes when all is well, or for a moment.
    async fn finish(
        &mut self,
        mut ending: Ending,
        signals: &mut Signals,
    ) -> Result<Ending, Failure> {
        let output = self.printer.take().map(|printer| printer.output);
        let written = async {
            match output {
                Some(output) => output.finish().await,
                None => Ok(()),
            }
        };
        let mut closing = pin!(async { tokio::join!(written, self.socket.close()) });
        let mut patience = pin!(sleep(PATIENCE));
        let mut patient = true;
        let mut written = None;
        while ending == Ending::Done && written.is_none() {
            tokio::select! {
                (result, _) = &mut closing => written = Some(result),
                signal = signals.next() => ending = Ending::Signal(signal),
                event = next_event(&mut self.monitor) => {
                    if let Some(line) = self.notices.line(&event, Instant::now()) {
                        self.console.say(line);
                    }
                }
                () = &mut patience, if patient => {
                    patient = false;
                    let queued = self.socket.stats().outgoing.queued;
                    if queued > 0 {
                        let queued = counted(queued, "message");
                        self.console.say(format!("{queued} not sent yet: waiting; Ctrl-C gives up"));
                    }
                }
            }
        }
        if written.is_none() {
            tokio::select! {
                result = timeout(GRACE, &mut closing) => {
                    written = result.ok().map(|(result, _)| result);
                }
                _ = signals.next() => {}
            }
        }
        match written {
            Some(Err(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(match ending {
                Ending::Done => Ending::ReaderGone,
                other => other,
            }),
            Some(Err(error)) => {
                Err(Failure::new(format!("cannot write the standard output: {error}")))
            }
            Some(Ok(())) | None => Ok(ending),
        }
    }
}

async fn next_event(monitor: &mut Option<Monitor>) -> Event {
    if let Some(some) = monitor {
        if let Some(event) = some.recv().await {
            return event;
        }
        *monitor = None;
    }
    std::future::pending().await
}

/// The next of the input, `None` at its end, and then for ever nothing.
async fn next_input(inputs: &mut Option<mpsc::Receiver<Input>>) -> Option<Input> {
    let Some(some) = inputs else { return std::future::pending().await };
    let input = some.recv().await;
    if input.is_none() {
        *inputs = None;
    }
    input
}

async fn send(
    outlet: &Option<Outlet>,
    unsent: &mut VecDeque<Message>,
    burst: usize,
) -> Result<(), Error> {
    match outlet {
        Some(outlet) => outlet.send(unsent, burst).await,
        None => std::future::pending().await,
    }
}

/// Hands the block over or, when there is none, takes a batch; `false`: nobody reads any more.
async fn print_next(socket: &mut Socket, printer: &mut Option<Printer>) -> Result<bool, Failure> {
    let Some(printer) = printer else { return std::future::pending().await };
    if !printer.block.is_empty() {
        let Ok(permit) = printer.output.ready().await else { return Ok(false) };
        permit.send(std::mem::take(&mut printer.block));
        printer.fill_block();
        return Ok(true);
    }
    let room = printer.room();
    tokio::select! {
        () = printer.output.closed() => Ok(false),
        received = socket.recv_many(&mut printer.taken, room) => {
            received.map_err(|error| Failure::new(error.to_string()))?;
            printer.took_batch();
            Ok(true)
        }
    }
}

/// Says what went into the socket and did not come out.
fn tell_losses(kind: SocketType, socket: &Socket, console: &Console) {
    let stats = socket.stats();
    let dropped = stats.outgoing.dropped;
    if dropped.total() > 0 {
        let count = counted(dropped.total(), "message");
        console.say(format!("{count} dropped: {}", reasons(&dropped)));
    }
    // what is queued by a SUB would have been dropped by its publisher a little later; what a PULL
    // has taken, no other one gets
    let unread = stats.incoming.dropped.get(DropReason::Closed);
    if kind == SocketType::Pull && unread > 0 {
        console.say(format!("{} received but not printed", counted(unread, "message")));
    }
}

/// How long a signal leaves for sending and printing what is on its way.
pub(crate) const GRACE: Duration = Duration::from_millis(200);

/// How long sending goes on at the end until a person is told.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
