//! One process's publisher and subscriber together, as the options say: what Dragonflow's `NbApi` does
//! for publishing and subscribing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::delivery::{Callback, Queue, SubscriberEvent, Updates};
use super::directory::{Change, TABLE};
use super::follow::Following;
use super::update::{Action, SEND_ALL_TOPIC, Update, Value};
use super::{DriverContext, DriverError, Drivers, Publisher, Subscriber};

/// A process's one publisher and one subscriber, for all of its components.
///
/// - The publisher is that of `pub_sub_multiproc_driver` if `pub_sub_use_multiproc` says so, else that
///   of `pub_sub_driver`.
/// - The subscriber is that of `pub_sub_driver`. It follows [`SEND_ALL_TOPIC`], the addresses in
///   `publishers_ips`, the publishers of the other role in the directory, and those that events on the
///   table `publisher` tell of.
///
/// ```no_run
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dragonwire::driver::config::Config;
/// use dragonwire::driver::{DriverContext, Drivers, NbApi, ROLE_DF_LOCAL_CONTROLLER};
///
/// let mut config = Config::new();
/// config.add_file("/etc/neutron/dragonflow.ini")?;
/// let context = DriverContext::new(config.options(ROLE_DF_LOCAL_CONTROLLER)?);
/// let api = NbApi::new(&Drivers::new(), context)?;
/// let mut events = api.subscribe().await?;
/// while let Some(event) = events.recv().await {
///     println!("{event:?}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct NbApi {
    context: DriverContext,
    publisher: Arc<dyn Publisher>,
    subscriber: Arc<dyn Subscriber>,
    following: Mutex<Option<(Following, AbortOnDropHandle<()>)>>,
    closing: CancellationToken,
}

impl NbApi {
    /// Makes the drivers that the options name; nothing is opened yet.
    ///
    /// # Errors
    /// [`DriverError::UnknownDriver`], and what the drivers' constructors say.
    pub fn new(drivers: &Drivers, context: DriverContext) -> Result<Self, DriverError> {
        let options = context.options();
        let network = drivers.load(&options.pub_sub_driver, context.clone())?;
        let publisher = if options.pub_sub_use_multiproc {
            drivers.load(&options.pub_sub_multiproc_driver, context.clone())?.get_publisher()
        } else {
            network.get_publisher()
        };
        let subscriber = network.get_subscriber();
        let (following, closing) = (Mutex::default(), CancellationToken::new());
        Ok(Self { context, publisher, subscriber, following, closing })
    }

    /// The publisher, for any component of the process. It opens with its first event.
    #[must_use]
    pub fn publisher(&self) -> Arc<dyn Publisher> {
        self.publisher.clone()
    }

    /// The subscriber, to register more topics and addresses.
    #[must_use]
    pub fn subscriber(&self) -> Arc<dyn Subscriber> {
        self.subscriber.clone()
    }

    /// Subscribes; the events come as a stream.
    ///
    /// # Errors
    /// As [`Subscriber::initialize`], [`Subscriber::register_listen_address`] and
    /// [`Subscriber::daemonize`].
    pub async fn subscribe(&self) -> Result<Updates, DriverError> {
        let received = self.subscriber.initialize_stream()?;
        self.subscriber.register_topic(SEND_ALL_TOPIC).await?;
        let options = self.context.options();
        for ip in &options.publishers_ips {
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
            let uri =
                format!("{}://{host}:{}", options.publisher_transport, options.publishers_port);
            self.subscriber.register_listen_address(&uri).await?;
        }
        let (rows, told) = mpsc::unbounded_channel();
        let following = Following::start_with(
            self.subscriber.clone(),
            self.context.directory(),
            &[options.role.counterpart()],
            options.publisher_timeout,
            as_stream(told),
        )
        .await;
        let queue = self.context.queue();
        let pump = Pump {
            received,
            queue: queue.clone(),
            rows,
            context: self.context.clone(),
            closing: self.closing.clone(),
        };
        let pumping = AbortOnDropHandle::new(tokio::spawn(pump.run()));
        *self.following.lock().unwrap_or_else(PoisonError::into_inner) = Some((following, pumping));
        self.subscriber.daemonize().await?;
        Ok(Updates::new(queue))
    }

    /// Subscribes; `callback` is called for each event, in a thread of its own.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe), and [`DriverError::Thread`].
    pub async fn subscribe_with(&self, callback: Callback) -> Result<(), DriverError> {
        self.subscribe().await?.call(callback).map_err(DriverError::Thread)
    }

    /// Closes both.
    ///
    /// # Errors
    /// As [`Publisher::close`] and [`Subscriber::close`]; both are closed in any case.
    pub async fn close(&self) -> Result<(), DriverError> {
        let subscriber = self.subscriber.close().await;
        // what was received is handed over, whether or not there is room
        self.closing.cancel();
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, pumping)) = following {
            let _ = pumping.await;
        }
        let publisher = self.publisher.close().await;
        subscriber.and(publisher)
    }
}

fn as_stream(
    mut rows: mpsc::UnboundedReceiver<Change>,
) -> futures::stream::BoxStream<'static, Change> {
    futures::stream::poll_fn(move |cx| rows.poll_recv(cx)).boxed()
}

/// Hands events on, and takes note of those on publishers.
struct Pump {
    received: Updates,
    queue: Arc<Queue>,
    rows: mpsc::UnboundedSender<Change>,
    context: DriverContext,
    closing: CancellationToken,
}

/// However it ends, the user's stream ends with it.
impl Drop for Pump {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Pump {
    async fn run(mut self) {
        let mut events = VecDeque::new();
        while let Some(event) = self.received.recv().await {
            events.push_back(event);
            while let Some(event) = self.received.try_recv() {
                events.push_back(event);
            }
            for event in &events {
                if let SubscriberEvent::Update(update) = event
                    && update.table.as_deref() == Some(TABLE)
                {
                    self.note(update).await;
                }
            }
            tokio::select! {
                () = std::future::poll_fn(|cx| self.queue.poll_room(cx)) => {}
                () = self.closing.cancelled() => {}
            }
            self.queue.push_all(&mut events);
        }
    }

    async fn note(&self, update: &Update) {
        let Some(key) = update.key.clone() else { return };
        let change = match &update.action {
            Some(Action::Delete) => Change::Deleted { key },
            Some(Action::Create | Action::Set) => {
                let value = match (
                    update.value.as_ref().and_then(Value::as_text),
                    self.context.directory(),
                ) {
                    (Some(text), _) => Some(text.to_owned()),
                    // publishers of some releases leave the value out: it is to be looked up
                    (None, Some(directory)) => directory.get(TABLE, &key).await.ok().flatten(),
                    (None, None) => None,
                };
                let Some(value) = value else { return };
                Change::Set { key, value }
            }
            _ => return,
        };
        // nobody listens only while it is closed
        let _ = self.rows.send(change);
    }
}
