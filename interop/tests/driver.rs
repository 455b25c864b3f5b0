//! The driver layer with peers of libzmq's, which is what every release of Dragonflow has: in place of
//! its publishers, its subscribers, and the processes and controllers around its publisher service.

use std::sync::Arc;

use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::{
    Action, DriverContext, MultiprocDriver, NetworkDriver, PubSubDriver, Publisher,
    PublisherService, ROLE_NEUTRON_SERVER, SubscriberEvent, Update, Updates,
};
use dragonwire_interop::libzmq::{Context, Socket, SocketType};
use dragonwire_interop::place::{Place, Transport};
use dragonwire_interop::{GLANCE, until, within};
use tempfile::TempDir;

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Ipc];

const CODECS: [Codec; 2] = [Codec::Msgpack, Codec::Json];

/// Options for any free port of this host and for a Unix socket in a folder.
fn options(codec: Codec, folder: &TempDir) -> DriverOptions {
    let mut options = DriverOptions::for_role(ROLE_NEUTRON_SERVER);
    options.publisher_bind_address = "127.0.0.1".to_owned();
    options.publisher_port = 0;
    options.publisher_multiproc_socket = folder.path().join("socket");
    options.codec = Some(codec);
    options
}

fn network(options: DriverOptions) -> NetworkDriver {
    NetworkDriver::new(DriverContext::new(options)).unwrap()
}

fn multiproc(options: DriverOptions) -> MultiprocDriver {
    MultiprocDriver::new(DriverContext::new(options)).unwrap()
}

fn local(options: &DriverOptions) -> String {
    format!("ipc://{}", options.publisher_multiproc_socket.display())
}

fn update(key: impl Into<String>) -> Update {
    Update { timestamp: None, ..Update::new("lport", key, Action::Set).with_value("{}") }
}

/// The frames of that event, as releases with that codec write them.
fn frames(codec: Codec, key: &str) -> [Vec<u8>; 2] {
    let body = match codec {
        Codec::Json => {
            let text = format!(
                r#"{{"action": "set", "table": "lport", "topic": "D", "value": "{{}}", "key": "{key}"}}"#
            );
            let length = u16::try_from(text.len()).unwrap().to_be_bytes();
            [&[0xda], &length[..], text.as_bytes()].concat()
        }
        _ => {
            let length = 0xa0 + u8::try_from(key.len()).unwrap();
            let key = [&[length], key.as_bytes()].concat();
            let parts: [&[u8]; 3] = [
                b"\x85\xa5table\xa5lport\xa3key",
                &key,
                b"\xa6action\xa3set\xa5value\xa2{}\xa5topic\xa1D",
            ];
            parts.concat()
        }
    };
    [b"D".to_vec(), body]
}

async fn next(updates: &mut Updates) -> Update {
    match within("an event", updates.recv()).await {
        Some(SubscriberEvent::Update(update)) => update,
        other => panic!("{other:?}"),
    }
}

/// Publishes until somebody hears it, and has libzmq's subscriber take that.
async fn settle(publisher: &Arc<dyn Publisher>, subscriber: &Socket) {
    loop {
        let unheard = publisher.stats().unheard;
        publisher.send_event(&update("first"), None).await.unwrap();
        if publisher.stats().unheard == unheard {
            break;
        }
        tokio::time::sleep(GLANCE).await;
    }
    subscriber.recv().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_of_libzmqs_reaches_our_subscriber() {
    let context = Context::new();
    let folder = tempfile::tempdir().unwrap();
    for transport in TRANSPORTS {
        for codec in CODECS {
            let publisher = context.socket(SocketType::Pub);
            let place = Place::new(transport);
            let uri = publisher.bind(place.endpoint()).unwrap();
            let subscriber = network(options(codec, &folder)).get_subscriber();
            let mut updates = subscriber.initialize_stream().unwrap();
            subscriber.register_topic("D").await.unwrap();
            assert!(subscriber.register_listen_address(&uri).await.unwrap());
            subscriber.daemonize().await.unwrap();
            // libzmq's PUB does not say when somebody has subscribed
            let mut first = None;
            until("the first event", || {
                publisher.send(frames(codec, "first")).unwrap();
                first = updates.try_recv();
                first.is_some()
            })
            .await;
            publisher.send(frames(codec, "last")).unwrap();
            while next(&mut updates).await != update("last") {}
            for key in 0..100 {
                publisher.send(frames(codec, &key.to_string())).unwrap();
            }
            for key in 0..100 {
                assert_eq!(next(&mut updates).await, update(key.to_string()));
            }
            assert!(!subscriber.register_listen_address(&uri).await.unwrap());
            within("closing", subscriber.close()).await.unwrap();
            assert_eq!(updates.recv().await, None);
        }
    }
}

/// Topics are those that libzmq's subscriber has, as prefixes, while it has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_publisher_reaches_a_subscriber_of_libzmqs() {
    let context = Context::new();
    let folder = tempfile::tempdir().unwrap();
    for codec in CODECS {
        let publisher = network(options(codec, &folder)).get_publisher();
        publisher.initialize().await.unwrap();
        let subscriber = context.socket(SocketType::Sub);
        subscriber.connect(&publisher.endpoint().unwrap().to_string()).unwrap();
        subscriber.subscribe("D").unwrap();
        settle(&publisher, &subscriber).await;
        publisher.send_event(&update("unheard"), Some("tenant-1")).await.unwrap();
        publisher.send_event(&update("prefix"), Some("Dxyz")).await.unwrap();
        let frames_of_prefix = subscriber.recv().unwrap();
        assert_eq!((frames_of_prefix.len(), &*frames_of_prefix[0]), (2, &b"Dxyz"[..]));
        for key in 0..100 {
            publisher.send_event(&update(key.to_string()), None).await.unwrap();
        }
        for key in 0..100 {
            assert_eq!(subscriber.recv().unwrap(), frames(codec, &key.to_string()));
        }
        drop(subscriber);
        within("closing", publisher.close()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_publisher_and_a_reader_of_libzmqs_meet_over_ipc_and_the_reverse() {
    let context = Context::new();
    for codec in CODECS {
        let folder = tempfile::tempdir().unwrap();
        let options = options(codec, &folder);
        // events from before the reader is there are kept
        let publisher = multiproc(options.clone()).get_publisher();
        for key in ["1", "2"] {
            publisher.send_event(&update(key), None).await.unwrap();
        }
        let reader = context.socket(SocketType::Pull);
        reader.bind(&local(&options)).unwrap();
        publisher.send_event(&update("3"), None).await.unwrap();
        for key in ["1", "2", "3"] {
            assert_eq!(reader.recv().unwrap(), frames(codec, key));
        }
        within("closing", publisher.close()).await.unwrap();

        let folder = tempfile::tempdir().unwrap();
        let options = self::options(codec, &folder);
        let writers = [context.socket(SocketType::Push), context.socket(SocketType::Push)];
        for (writer, key) in writers.iter().zip(["1", "2"]) {
            writer.connect(&local(&options)).unwrap();
            writer.send(frames(codec, key)).unwrap();
        }
        let subscriber = multiproc(options).get_subscriber();
        let mut updates = subscriber.initialize_stream().unwrap();
        subscriber.daemonize().await.unwrap();
        let mut keys = [next(&mut updates).await, next(&mut updates).await].map(|it| it.key);
        keys.sort();
        assert_eq!(keys, ["1", "2"].map(|key| Some(key.to_owned())));
        within("closing", subscriber.close()).await.unwrap();
    }
}

/// Processes and a controller of libzmq's, with our service between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_service_stands_between_processes_and_subscribers_of_libzmqs() {
    let context = Context::new();
    for codec in CODECS {
        let folder = tempfile::tempdir().unwrap();
        let options = options(codec, &folder);
        let service = PublisherService::start(DriverContext::new(options.clone())).await.unwrap();
        let subscriber = context.socket(SocketType::Sub);
        subscriber.connect(&service.stats().network.unwrap()).unwrap();
        subscriber.subscribe("D").unwrap();
        settle(&service.publisher(), &subscriber).await;
        let processes = [context.socket(SocketType::Push), context.socket(SocketType::Push)];
        for (number, process) in processes.iter().enumerate() {
            process.connect(&local(&options)).unwrap();
            for event in 0..50 {
                process.send(frames(codec, &format!("{number} {event}"))).unwrap();
            }
        }
        let mut expected = [0, 1].map(|number| {
            (0..50)
                .map(move |event| frames(codec, &format!("{number} {event}")).to_vec())
                .peekable()
        });
        for _ in 0..100 {
            let message = subscriber.recv().unwrap();
            let [first, second] = &mut expected;
            // each process's events in their order
            assert!(
                first.next_if(|next| *next == message).is_some()
                    || second.next_if(|next| *next == message).is_some(),
                "{message:02x?}"
            );
        }
        until("what the service says of itself", || {
            let stats = service.stats();
            (stats.forwarded, stats.processes, stats.dropped) == (100, 2, 0)
        })
        .await;
        drop((processes, subscriber));
        within("closing", service.close()).await.unwrap();
    }
}
