//! The publisher service between processes' publishers and subscribers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dragonwire::driver::codec::Codec;
use dragonwire::driver::config::DriverOptions;
use dragonwire::driver::directory::{Directory, MemoryDirectory, TABLE};
use dragonwire::driver::{
    Action, DriverContext, PubSubDriver, Publisher, PublisherService, SubscriberEvent, Update,
    Updates,
};

use crate::side::{multiproc, next, next_key, options, soon, subscriber};

fn at(folder: &tempfile::TempDir) -> DriverOptions {
    let mut options = options();
    options.publisher_multiproc_socket = folder.path().join("socket");
    options
}

async fn service(options: &DriverOptions) -> (PublisherService, String) {
    let service = PublisherService::start(DriverContext::new(options.clone())).await.unwrap();
    let uri = service.stats().network.unwrap();
    (service, uri)
}

fn update(key: impl Into<String>, topic: &str) -> Update {
    Update::new("lport", key, Action::Create).with_topic(topic)
}

#[tokio::test]
async fn events_go_through_as_they_are_each_process_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
        let mut options = at(&folder);
        options.codec = Some(codec);
        let (service, uri) = service(&options).await;
        let (_subscriber, mut updates) = subscriber(options.clone(), &["D"], &[&uri]).await;
        let mut producers = Vec::new();
        for producer in 0..3 {
            let publisher = multiproc(options.clone()).get_publisher();
            for event in 0..20 {
                let update = update(format!("{producer} {event}"), "D");
                soon(publisher.send_event(&update, None)).await.unwrap();
            }
            producers.push(publisher);
        }
        let mut counts = [0; 3];
        for _ in 0..60 {
            let key = next_key(&mut updates).await;
            let (producer, event) = key.split_once(' ').unwrap();
            let count = &mut counts[producer.parse::<usize>().unwrap()];
            assert_eq!(event, count.to_string());
            *count += 1;
        }
        let stats = service.stats();
        assert_eq!((stats.forwarded, stats.processes), (60, 3), "{stats:?}");
        service.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_second_service_on_one_socket_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = at(&folder);
    let (_service, _) = service(&options).await;
    let again = PublisherService::start(DriverContext::new(options.clone())).await;
    let error = again.unwrap_err().to_string();
    let path = options.publisher_multiproc_socket.display().to_string();
    assert!(error.contains(&path), "{error}");
}

#[tokio::test]
async fn where_processes_publish_for_themselves_it_only_watches_tables() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = at(&folder);
    options.pub_sub_use_multiproc = false;
    options.monitor_table_poll_time = Duration::from_millis(50);
    let directory: Arc<dyn Directory> = Arc::new(MemoryDirectory::new());
    let context = DriverContext::new(options.clone()).with_directory(directory.clone());
    let service = PublisherService::start(context).await.unwrap();
    assert_eq!(service.local(), None);
    assert!(!options.publisher_multiproc_socket.exists());
    let uri = service.stats().network.unwrap();
    let (_subscriber, mut updates) = subscriber(options, &["D"], &[&uri]).await;
    directory.put("chassis", "host-9", "{}").await.unwrap();
    while next_key(&mut updates).await != "host-9" {}
    soon(service.close()).await.unwrap();
    assert!(directory.list(TABLE).await.unwrap().is_empty());
}

/// Delivered and missing events of each publisher.
async fn balance(updates: &mut Updates, published: &[(Arc<dyn Publisher>, u64)]) -> (u64, u64) {
    let mut books: BTreeMap<String, u64> = BTreeMap::new();
    let (mut delivered, mut lost) = (0, 0);
    let due: u64 = published.iter().map(|(_, count)| count).sum();
    while delivered + lost < due {
        match next(updates).await {
            SubscriberEvent::Update(_) => delivered += 1,
            SubscriberEvent::Sync(sync) => {
                let missing = sync.missing.clone().unwrap_or_else(|| panic!("{sync:?}"));
                let count = missing.count().unwrap_or_else(|| panic!("{sync:?}"));
                *books.entry(missing.publisher.to_string()).or_default() += count;
                lost += count;
            }
        }
    }
    assert_eq!(delivered + lost, due, "{books:?}");
    (delivered, lost)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_restarted_loses_nothing_silently() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = at(&folder);
    let (first, uri) = service(&options).await;
    options.publisher_port = uri.rsplit(':').next().unwrap().parse().unwrap();
    let (_subscriber, mut updates) = subscriber(options.clone(), &["D"], &[&uri]).await;
    let mut producers = Vec::new();
    let mut sending = Vec::new();
    for _ in 0..4 {
        let publisher = multiproc(options.clone()).get_publisher();
        producers.push((publisher.clone(), 5000));
        sending.push(tokio::spawn(async move {
            for key in 0..5000 {
                publisher.send_event(&update(key.to_string(), "D"), None).await.unwrap();
            }
        }));
    }
    for _ in 0..100 {
        next(&mut updates).await;
    }
    soon(first.close()).await.unwrap();
    drop(first);
    let (_second, _) = service(&options).await;
    for task in sending {
        soon(task).await.unwrap();
    }
    producers[0].1 -= 100;
    balance(&mut updates, &producers).await;
}
