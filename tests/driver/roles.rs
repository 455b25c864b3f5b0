//! Roles, the directory's rows, and who follows whom.

use std::sync::Arc;
use std::time::Duration;

use dragonwire::driver::config::{Config, DriverOptions};
use dragonwire::driver::directory::{Change, Directory, MemoryDirectory, PublisherRow, TABLE};
use dragonwire::driver::{
    Action, DriverContext, Drivers, Following, NbApi, PubSubDriver, Publisher, PublisherService,
    ROLE_DF_LOCAL_CONTROLLER, ROLE_NEUTRON_SERVER, Role, Subscriber, SubscriberEvent, TableMonitor,
    Update, Updates,
};
use futures::StreamExt;
use futures::stream::BoxStream;

use crate::side::{DEADLINE, network, next, next_key, options, soon};

fn directory() -> Arc<dyn Directory> {
    Arc::new(MemoryDirectory::new())
}

/// Resolves when the table's rows are as wanted.
async fn rows(watch: &mut BoxStream<'static, Change>, wanted: impl Fn(&[PublisherRow]) -> bool) {
    let mut table = std::collections::BTreeMap::new();
    loop {
        match soon(watch.next()).await.unwrap() {
            Change::All(rows) => table = rows,
            Change::Set { key, value } => drop(table.insert(key, value)),
            Change::Deleted { key } => drop(table.remove(&key)),
            Change::Lost { reason } => panic!("{reason}"),
        }
        let rows: Vec<_> =
            table.iter().map(|(key, value)| PublisherRow::from_json(key, value).unwrap()).collect();
        if wanted(&rows) {
            return;
        }
    }
}

fn any_port(role: Role) -> DriverOptions {
    let mut options = options();
    options.role = role;
    options
}

fn port_of(publisher: &Arc<dyn Publisher>) -> u16 {
    publisher.endpoint().unwrap().port().unwrap()
}

async fn registered(role: Role, name: &str, directory: &Arc<dyn Directory>) -> Arc<dyn Publisher> {
    let context = DriverContext::new(any_port(role))
        .with_directory(directory.clone())
        .with_process_name(name);
    let driver = dragonwire::driver::NetworkDriver::new(context).unwrap();
    let publisher = driver.get_publisher();
    publisher.initialize().await.unwrap();
    publisher
}

async fn follower(
    role: Role,
    directory: &Arc<dyn Directory>,
) -> (Arc<dyn Subscriber>, Updates, Following) {
    let subscriber = network(any_port(role)).get_subscriber();
    let updates = subscriber.initialize_stream().unwrap();
    subscriber.register_topic("D").await.unwrap();
    subscriber.daemonize().await.unwrap();
    let roles = [role.counterpart()];
    let following = Following::start(subscriber.clone(), directory, &roles, DEADLINE).await;
    soon(subscriber.ready()).await.unwrap();
    (subscriber, updates, following)
}

fn update(key: &str) -> Update {
    Update::new("lport", key, Action::Set)
}

#[tokio::test]
async fn a_publishers_row_is_there_from_initialize_to_close() {
    let directory = directory();
    let publisher = registered(ROLE_NEUTRON_SERVER, "one", &directory).await;
    let rows = directory.list(TABLE).await.unwrap();
    let row = PublisherRow::from_json("", rows.values().next().unwrap()).unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(row.id, publisher.id().to_string());
    assert_eq!(row.uri, format!("tcp://127.0.0.1:{}", port_of(&publisher)));
    assert_eq!(row.role, Some(ROLE_NEUTRON_SERVER));
    assert!(row.last_activity_timestamp > 0.0);
    publisher.close().await.unwrap();
    assert!(directory.list(TABLE).await.unwrap().is_empty());
    // the same process started again is the same publisher
    let again = registered(ROLE_NEUTRON_SERVER, "one", &directory).await;
    assert_eq!(again.id(), publisher.id());
    let other = registered(ROLE_DF_LOCAL_CONTROLLER, "one", &directory).await;
    assert_ne!(other.id(), publisher.id());
}

#[tokio::test]
async fn a_row_that_somebody_removed_is_written_again() {
    let directory = directory();
    let publisher = registered(ROLE_NEUTRON_SERVER, "one", &directory).await;
    let mut watch = directory.watch(TABLE);
    directory.delete(TABLE, &publisher.id().to_string()).await.unwrap();
    rows(&mut watch, |rows| rows.is_empty()).await;
    publisher.send_event(&update("1"), None).await.unwrap();
    rows(&mut watch, |rows| rows.len() == 1).await;
}

#[tokio::test]
async fn a_subscriber_follows_the_other_role_as_its_publishers_come_and_go() {
    let directory = directory();
    let server = registered(ROLE_NEUTRON_SERVER, "server", &directory).await;
    let controller = registered(ROLE_DF_LOCAL_CONTROLLER, "controller", &directory).await;
    let (of_controller, mut events, _following) =
        follower(ROLE_DF_LOCAL_CONTROLLER, &directory).await;
    let (_of_server, mut other_events, _also) = follower(ROLE_NEUTRON_SERVER, &directory).await;
    controller.send_event(&update("from the controller"), None).await.unwrap();
    server.send_event(&update("from the server"), None).await.unwrap();
    assert_eq!(next_key(&mut events).await, "from the server");
    assert_eq!(next_key(&mut other_events).await, "from the controller");

    // a row with a role that nobody knows is followed by nobody; one without a role is a server's
    let old = network(any_port(ROLE_NEUTRON_SERVER)).get_publisher();
    old.initialize().await.unwrap();
    let uri = old.endpoint().unwrap().to_string();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let row = |id: &str, more: &str| {
        format!(r#"{{"id": "{id}", "uri": "{uri}", "last_activity_timestamp": {now}{more}}}"#)
    };
    directory.put(TABLE, "unknown", &row("unknown", r#", "role": "x""#)).await.unwrap();
    directory.put(TABLE, "old", &row("old", "")).await.unwrap();
    // it is known to be followed when its event comes
    let mut key = String::new();
    for number in 0.. {
        old.send_event(&update(&number.to_string()), None).await.unwrap();
        if let Some(SubscriberEvent::Update(update)) =
            futures::future::poll_immediate(Box::pin(events.recv())).await.flatten()
        {
            key = update.key.unwrap();
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(!key.is_empty());
    directory.delete(TABLE, "old").await.unwrap();
    // and not any more once its address can be registered anew
    soon(async {
        while !of_controller.register_listen_address(&uri).await.unwrap() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_controller_and_the_publisher_service_of_one_host_have_their_own_ports() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new();
    let text = format!(
        "[df]\nenable_df_pub_sub = true\npublisher_bind_address = 127.0.0.1\n\
         publisher_multiproc_socket = {}\n[controller]\npub_sub_use_multiproc = false\n",
        folder.path().join("socket").display()
    );
    config.add_ini("dragonflow.ini", &text).unwrap();
    let server = config.options(ROLE_NEUTRON_SERVER).unwrap();
    let controller = config.options(ROLE_DF_LOCAL_CONTROLLER).unwrap();
    assert_eq!((server.publisher_port, controller.publisher_port), (8866, 8867));
    let directory = directory();
    let context =
        |options: DriverOptions| DriverContext::new(options).with_directory(directory.clone());
    // the ports are fixed ones: somebody else on this machine may have them
    let service = match PublisherService::start(context(server.clone())).await {
        Ok(service) => service,
        Err(error) => return assert!(error.to_string().contains("8866"), "{error}"),
    };
    let api = NbApi::new(&Drivers::new(), context(controller)).unwrap();
    let mut events = api.subscribe().await.unwrap();
    let publisher = api.publisher();
    if let Err(error) = publisher.initialize().await {
        return assert!(error.to_string().contains("8867"), "{error}");
    }
    assert_eq!(port_of(&publisher), 8867);
    assert!(Arc::ptr_eq(&publisher, &api.publisher()), "one for all components");
    soon(api.subscriber().ready()).await.unwrap();
    // server to controller by way of the service
    let process = NbApi::new(&Drivers::new(), context(server)).unwrap();
    soon(process.publisher().send_event(&update("down"), None)).await.unwrap();
    assert_eq!(next_key(&mut events).await, "down");
    // controller to server
    let mut up = process.subscribe().await.unwrap();
    soon(process.subscriber().ready()).await.unwrap();
    soon(publisher.send_event(&update("up"), None)).await.unwrap();
    loop {
        if let SubscriberEvent::Update(update) = next(&mut up).await
            && update.key.as_deref() == Some("up")
        {
            break;
        }
    }
    api.close().await.unwrap();
    process.close().await.unwrap();
    service.close().await.unwrap();
    assert!(directory.list(TABLE).await.unwrap().is_empty());
}

/// Without a directory, publishers are followed that events on their table tell of.
#[tokio::test]
async fn publishers_that_events_tell_of_are_followed() {
    let first = network(any_port(ROLE_NEUTRON_SERVER)).get_publisher();
    first.initialize().await.unwrap();
    let second = network(any_port(ROLE_NEUTRON_SERVER)).get_publisher();
    second.initialize().await.unwrap();
    let mut options = any_port(ROLE_DF_LOCAL_CONTROLLER);
    options.publishers_ips = vec!["127.0.0.1".to_owned()];
    options.publishers_port = port_of(&first);
    let api = NbApi::new(&Drivers::new(), DriverContext::new(options)).unwrap();
    let mut events = api.subscribe().await.unwrap();
    soon(api.subscriber().ready()).await.unwrap();
    let uri = second.endpoint().unwrap().to_string();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let row = format!(r#"{{"id": "2", "uri": "{uri}", "last_activity_timestamp": {now}}}"#);
    let created = Update::new(TABLE, "2", Action::Create).with_value(row);
    first.send_event(&created, None).await.unwrap();
    assert_eq!(next_key(&mut events).await, "2");
    soon(async {
        // it is registered once it cannot be registered as new
        while api.subscriber().register_listen_address(&uri).await.unwrap() {
            api.subscriber().unregister_listen_address(&uri).await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon(api.subscriber().ready()).await.unwrap();
    second.send_event(&update("from the second"), None).await.unwrap();
    assert_eq!(next_key(&mut events).await, "from the second");
}

#[tokio::test]
async fn a_tables_changes_are_events_and_a_stale_publisher_is_removed() {
    let directory = directory();
    let publisher = network(any_port(ROLE_NEUTRON_SERVER)).get_publisher();
    publisher.initialize().await.unwrap();
    let subscriber = network(any_port(ROLE_DF_LOCAL_CONTROLLER)).get_subscriber();
    let mut updates = subscriber.initialize_stream().unwrap();
    subscriber.register_topic("D").await.unwrap();
    let uri = publisher.endpoint().unwrap().to_string();
    subscriber.register_listen_address(&uri).await.unwrap();
    subscriber.daemonize().await.unwrap();
    soon(subscriber.ready()).await.unwrap();
    let mut monitor = TableMonitor::new("chassis", directory.clone(), publisher.clone());
    let mut seen = async |events: usize, key: &str, action: Action, value: Option<&str>| {
        assert_eq!(monitor.poll().await.unwrap(), events);
        if events > 0 {
            let SubscriberEvent::Update(update) = next(&mut updates).await else { panic!() };
            assert_eq!(update.table.as_deref(), Some("chassis"));
            assert_eq!(update.key.as_deref(), Some(key));
            assert_eq!(update.action, Some(action));
            assert_eq!(update.value.as_ref().and_then(|value| value.as_text()), value);
        }
    };
    seen(0, "", Action::Create, None).await;
    directory.put("chassis", "host-9", r#"{"ip": "1"}"#).await.unwrap();
    seen(1, "host-9", Action::Create, Some(r#"{"ip": "1"}"#)).await;
    directory.put("chassis", "host-9", r#"{"ip": "2"}"#).await.unwrap();
    seen(1, "host-9", Action::Set, Some(r#"{"ip": "2"}"#)).await;
    seen(0, "", Action::Create, None).await;
    directory.delete("chassis", "host-9").await.unwrap();
    seen(1, "host-9", Action::Delete, None).await;

    let row = |age: f64| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        format!(r#"{{"id": "x", "uri": "tcp://h:1", "last_activity_timestamp": {}}}"#, now - age)
    };
    directory.put(TABLE, "fresh", &row(1.0)).await.unwrap();
    directory.put(TABLE, "dead", &row(1000.0)).await.unwrap();
    directory.put(TABLE, &publisher.id().to_string(), &row(1000.0)).await.unwrap();
    let timeout = Duration::from_secs(300);
    let removed =
        dragonwire::driver::remove_stale_publishers(&*directory, publisher.id(), timeout).await;
    assert_eq!(removed.unwrap(), ["dead"]);
    assert_eq!(directory.list(TABLE).await.unwrap().len(), 2);
}
