//! Drivers by their aliases.

use std::sync::Arc;

use dragonwire::driver::{DriverContext, DriverError, Drivers, NetworkDriver};

use crate::side::options;

#[test]
fn a_driver_is_found_by_its_alias_and_gives_the_same_objects_each_time() {
    let drivers = Drivers::new();
    for alias in [
        "zmq_pubsub_driver",
        "zmq_bind_pubsub_driver",
        "zmq_pubsub_multiproc_driver",
        "zmq",
        "zmq-multiproc",
        "dragonflow.db.pubsub_drivers.zmq_pubsub_driver.ZMQPubSub",
    ] {
        let driver = drivers.load(alias, DriverContext::new(options())).unwrap();
        assert!(Arc::ptr_eq(&driver.get_publisher(), &driver.get_publisher()));
        assert!(Arc::ptr_eq(&driver.get_subscriber(), &driver.get_subscriber()));
    }
    let error = drivers.load("nanomsg", DriverContext::new(options())).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("nanomsg") && text.contains("zmq_pubsub_driver"), "{text}");
}

#[test]
fn a_users_own_driver_can_be_registered() {
    let mut drivers = Drivers::new();
    drivers.register("mine", |context| Ok(Arc::new(NetworkDriver::new(context)?)));
    drivers.load("mine", DriverContext::new(options())).unwrap();
}

#[test]
fn only_supported_transports_are_taken() {
    for transport in ["udp", "TCP", "ipc", ""] {
        let mut options = options();
        options.publisher_transport = transport.to_owned();
        let error = NetworkDriver::new(DriverContext::new(options)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, DriverError::UnsupportedTransport { .. }), "{text}");
        let meaning = format!("Transport protocol is not supported: {transport}");
        assert!(text.starts_with(&meaning) && text.contains("tcp"), "{text}");
    }
}
