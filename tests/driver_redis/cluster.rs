//! Clusters and Sentinels.

use dragonwire::driver::SyncCause;
use redis::Value;

use crate::server::{Server, free_port};
use crate::side::{
    next_key, next_sync, options, publish, publisher, refusal, send, soon, subscriber, until,
};

fn node() -> Server {
    let bus = free_port().to_string();
    Server::start_with(&["--cluster-enabled", "yes", "--cluster-port", &bus])
}

fn bus(node: &Server) -> String {
    let nodes: String = node.ask("CLUSTER NODES");
    let bus = nodes.split_once('@').unwrap().1;
    bus.split([',', ' ']).next().unwrap().to_owned()
}

/// One of the nodes is listed; the others are learnt from it.
#[tokio::test]
async fn the_next_master_of_a_cluster_takes_over() {
    let (mut one, other) = (node(), node());
    let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", other.port(), bus(&other));
    let _: String = one.ask(&meet);
    let knows = |node: &Server, other: &Server| {
        let nodes: String = node.ask("CLUSTER NODES");
        let mut lines = nodes.lines().filter(|line| !line.contains("handshake"));
        lines.any(|line| line.contains(&other.at()) && line.contains("connected"))
    };
    until(|| knows(&one, &other) && knows(&other, &one)).await;
    let listed = options(&[one.at()]);
    let (subscriber, mut updates) = subscriber(listed.clone(), &["D"]).await;
    // events pass from node to node
    let elsewhere = publisher(options(&[other.at()])).await;
    publish(&elsewhere, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");
    assert_eq!(elsewhere.stats().unheard, 0, "who follows at other nodes is not known");
    let publisher = publisher(listed).await;
    publish(&publisher, 2).await;
    assert_eq!(next_key(&mut updates).await, "2");
    one.stop();
    next_sync(&mut updates, SyncCause::Reconnected).await;
    soon(subscriber.ready()).await.unwrap();
    publish(&elsewhere, 3).await;
    assert_eq!(next_key(&mut updates).await, "3");
    send(&publisher, 4).await.unwrap();
    assert_eq!(publisher.endpoint().unwrap().to_string(), format!("tcp://{}", other.at()));
}

#[tokio::test]
async fn the_master_that_sentinels_name_is_used_and_followed() {
    let master = Server::start();
    let port = master.port().to_string();
    let replica = Server::start_with(&["--replicaof", &format!("127.0.0.1 {port}")]);
    let sentinel = Server::start_sentinel(master.port());
    let nobody = format!("127.0.0.1:{}", free_port());
    let url = format!("redis+sentinel://{nobody},{}/mymaster", sentinel.at());
    let behind = options(&[url]);
    let (subscriber, mut updates) = subscriber(behind.clone(), &["D"]).await;
    let publisher = publisher(behind).await;
    assert_eq!(publisher.endpoint().unwrap().to_string(), format!("tcp://{}", master.at()));
    publish(&publisher, 1).await;
    assert_eq!(next_key(&mut updates).await, "1");

    let failover = || {
        let client = redis::Client::open(format!("redis://{}", sentinel.at())).unwrap();
        let mut connection = client.get_connection().unwrap();
        let command = redis::cmd("SENTINEL").arg("FAILOVER").arg("mymaster").to_owned();
        command.query::<Value>(&mut connection).is_ok()
    };
    // it has to have heard of the replica
    until(failover).await;
    next_sync(&mut updates, SyncCause::Reconnected).await;
    until(|| replica.ask::<Vec<String>>("PUBSUB CHANNELS").contains(&"D".to_owned())).await;
    soon(subscriber.ready()).await.unwrap();
    let at = || publisher.endpoint().unwrap().to_string();
    while at() != format!("tcp://{}", replica.at()) {
        send(&publisher, 2).await.unwrap();
    }

    let unknown = options(&[format!("redis+sentinel://{}/other", sentinel.at())]);
    let error = refusal(unknown).await;
    assert!(error.contains("knows no master \"other\""), "{error}");
}

#[tokio::test]
async fn a_sentinel_that_is_listed_as_a_server_is_told_from_one() {
    let master = Server::start();
    let sentinel = Server::start_sentinel(master.port());
    let error = refusal(options(&[sentinel.at()])).await;
    assert!(error.contains("it is a Sentinel: write redis+sentinel://"), "{error}");
}
