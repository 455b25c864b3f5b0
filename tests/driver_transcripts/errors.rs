//! The errors of the recorded drivers and ours.

use dragonwire::driver::{DriverContext, DriverError, NetworkDriver, PubSubDriver};
use serde_json::Value as Json;

use crate::recording::Recording;
use crate::side::{network, options, publisher};

/// The transport that a step chose, with the error's text and where it was raised.
fn transports(recording: &Recording) -> Vec<(&str, &Json)> {
    let steps = recording.steps().iter();
    let transports = steps.filter_map(|step| {
        let transport = step["what"].as_str().unwrap().strip_prefix("transport ")?;
        Some((transport, &step["lines"][0]))
    });
    transports.collect()
}

#[tokio::test]
async fn a_transport_that_is_not_supported_is_refused_when_the_driver_is_made() {
    let recording = Recording::load("df-1.0.0-errors");
    let transports = transports(&recording);
    assert_eq!(transports.len(), 4);
    for (transport, error) in transports {
        let mut options = options();
        options.publisher_transport = transport.to_owned();
        let made = NetworkDriver::new(DriverContext::new(options));
        if error["op"] == "load" {
            let ours = made.unwrap_err();
            let text = ours.to_string();
            assert_eq!(error["type"], "UnsupportedTransportException");
            assert!(matches!(ours, DriverError::UnsupportedTransport { .. }), "{text}");
            assert!(text.starts_with(error["message"].as_str().unwrap()), "{text}");
        } else {
            // upstream knows its name, and its libzmq then cannot bind it
            assert_eq!((transport, error["op"].as_str()), ("epgm", Some("initialize")));
            let ours = made.unwrap().get_publisher().initialize().await.unwrap_err();
            assert!(matches!(ours, DriverError::TransportNotBuilt { .. }), "{ours}");
        }
    }
}

#[tokio::test]
async fn a_busy_port_is_an_error_of_initialize() {
    let recording = Recording::load("df-1.0.0-errors");
    let error = &recording.step("bind on a busy port")["lines"][0];
    assert_eq!(error["op"], "initialize");
    let (_publisher, uri) = publisher(options()).await;
    let mut same = options();
    same.publisher_port = uri.rsplit(':').next().unwrap().parse().unwrap();
    let second = network(same).get_publisher();
    let text = second.initialize().await.unwrap_err().to_string();
    // the words were recorded with glibc, and are the C library's
    let glibcs = error["message"].as_str().unwrap();
    let words = if cfg!(target_env = "musl") { "Address in use" } else { glibcs };
    assert!(text.contains(words), "{text}");
    assert_eq!(second.endpoint(), None);
}
