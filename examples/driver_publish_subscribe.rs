//! A publisher and two ways to subscribe, over the network driver: events as a stream, and a callback in
//! a thread of its own.
//!
//! `cargo run --example driver_publish_subscribe`

use std::sync::mpsc;

use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{Action, DriverContext, DriverError, Drivers, SubscriberEvent, Update};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = DriverOptions::default();
    options.publisher_bind_address = "127.0.0.1".to_owned();
    options.publisher_port = 0; // the system chooses
    let load = || -> Result<_, DriverError> {
        Drivers::new().load("zmq_pubsub_driver", DriverContext::new(options.clone()))
    };

    let publisher = load()?.get_publisher();
    publisher.initialize().await?;
    let uri = publisher.endpoint().ok_or("not bound")?.to_string();

    // as a stream
    let streaming = load()?.get_subscriber();
    let mut events = streaming.initialize_stream()?;
    assert!(streaming.register_topic("tenant-1").await?, "it is new");
    streaming.register_listen_address(&uri).await?;
    streaming.daemonize().await?;

    // by a callback, which may block
    let (told, calls) = mpsc::channel();
    let calling = load()?.get_subscriber();
    calling.initialize(Box::new(move |event| {
        let _ = told.send(event);
    }))?;
    calling.register_topic("D").await?;
    calling.register_listen_address(&uri).await?;
    calling.daemonize().await?;

    // from here on nothing is missing silently
    streaming.ready().await?;
    calling.ready().await?;

    let update = Update::new("lport", "7e4a", Action::Create).with_value(r#"{"id": "7e4a"}"#);
    publisher.send_event(&update, None).await?;
    publisher.send_event(&update, Some("tenant-1")).await?;

    if let Some(SubscriberEvent::Update(update)) = events.recv().await {
        println!("stream: {:?} of {:?}", update.action, update.key);
    }
    let called = tokio::task::spawn_blocking(move || calls.recv()).await??;
    if let SubscriberEvent::Update(update) = called {
        println!("callback: {:?} of {:?}", update.action, update.key);
    }
    println!("{:?}", publisher.stats());

    streaming.close().await?;
    calling.close().await?;
    publisher.close().await?;
    Ok(())
}
