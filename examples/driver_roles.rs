//! An API server and a controller of a compute node, each with its `NbApi`, from the options of one file:
//! events in both directions, addresses from the directory.
//!
//! `cargo run --example driver_roles`

use dragonwire::driver::config::{Config, DriverOptions};
use dragonwire::driver::directory::connect;
use dragonwire::driver::{
    Action, DriverContext, DriverError, Drivers, NbApi, PublisherService, ROLE_DF_LOCAL_CONTROLLER,
    ROLE_NEUTRON_SERVER, SubscriberEvent, Update, Updates,
};

/// What an operator would have in `/etc/neutron/dragonflow.ini`.
const FILE: &str = "
[df]
enable_df_pub_sub = true
publisher_bind_address = 127.0.0.1
publishers_ips =

[neutron]
publisher_port = 28866
publisher_multiproc_socket = /tmp/dragonwire-example.socket

[controller]
publisher_port = 28867
pub_sub_use_multiproc = false

[dragonwire]
codec = protobuf
directory = memory:example
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::new();
    config.add_ini("dragonflow.ini", FILE)?;
    for warning in config.warnings() {
        eprintln!("{warning}");
    }
    let server = config.options(ROLE_NEUTRON_SERVER)?;
    let controller = config.options(ROLE_DF_LOCAL_CONTROLLER)?;

    // on the API server's host: the service, and a process that hands its events to it
    let service = PublisherService::start(context(&server, "service")?).await?;
    let api_server = NbApi::new(&Drivers::new(), context(&server, "worker 1")?)?;
    // on the compute node: it publishes on its own port
    let agent = NbApi::new(&Drivers::new(), context(&controller, "agent")?)?;
    agent.publisher().initialize().await?;

    let mut down = agent.subscribe().await?;
    let mut up = api_server.subscribe().await?;
    agent.subscriber().ready().await?;
    api_server.subscriber().ready().await?;

    let port = Update::new("lport", "7e4a", Action::Create).with_value("{}");
    api_server.publisher().send_event(&port, None).await?;
    println!("the agent is told {}", next(&mut down).await);
    let status = Update::new("lport", "7e4a", "update".into()).with_value(r#"{"status": "up"}"#);
    agent.publisher().send_event(&status, None).await?;
    println!("the API server is told {}", next(&mut up).await);

    agent.close().await?;
    api_server.close().await?;
    service.close().await?;
    Ok(())
}

/// With a process name the publisher's id is the same after a restart.
fn context(options: &DriverOptions, name: &str) -> Result<DriverContext, DriverError> {
    let context = DriverContext::new(options.clone()).with_process_name(name);
    Ok(context.with_directory(connect(&options.directory)?))
}

/// The next change; more about `sync` is in the example `driver_sync`.
async fn next(events: &mut Updates) -> String {
    while let Some(event) = events.recv().await {
        match event {
            SubscriberEvent::Update(Update { table, key, action, .. }) => {
                return format!("{action:?} of {table:?} {key:?}");
            }
            SubscriberEvent::Sync(sync) => println!("{sync:?}"),
        }
    }
    "that it is over".to_owned()
}
