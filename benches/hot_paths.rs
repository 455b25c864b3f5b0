//! The hot paths without sockets: encoding into peers' queues, scanning and slicing a read buffer,
//! matching topics.
//!
//! ```text
//! cargo bench --features __bench --bench hot_paths
//! ```

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dragonwire::bench::{Matching, Sending, block, decode};

fn send(c: &mut Criterion) {
    let mut group = c.benchmark_group("send");
    group.throughput(Throughput::Elements(1));
    let payload = [7; 64];
    let push = Sending::new(false, 1);
    group.bench_function("push 64 B", |b| b.iter(|| push.send(&[black_box(&payload)])));
    for peers in [1, 8, 64] {
        let publisher = Sending::new(true, peers);
        group.bench_function(format!("pub 8 + 64 B to {peers}"), |b| {
            b.iter(|| publisher.send(&[b"topic.01", black_box(&payload)]));
        });
    }
    group.finish();
}

fn receive(c: &mut Criterion) {
    let mut group = c.benchmark_group("receive");
    for size in [16, 64, 1024] {
        let messages = 65_536 / (size + 2);
        let block = block(messages, size);
        group.throughput(Throughput::Elements(messages as u64));
        group.bench_function(format!("64 KiB of {size} B"), |b| {
            b.iter(|| black_box(decode(&block)));
        });
    }
    group.finish();
}

fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("match");
    group.throughput(Throughput::Elements(1));
    for topics in [1, 100, 10_000, 100_000] {
        let mut publisher = Matching::new(topics, 8);
        let hit = format!("topic.{:07}.x", topics / 2);
        group.bench_function(format!("hit among {topics}"), |b| {
            b.iter(|| publisher.peers(black_box(hit.as_bytes())));
        });
        group.bench_function(format!("miss among {topics}"), |b| {
            b.iter(|| publisher.peers(black_box(b"topic.other")));
        });
        group.bench_function(format!("subscriber's filter of {topics}"), |b| {
            b.iter(|| publisher.wanted(black_box(hit.as_bytes())));
        });
    }
    group.finish();
}

criterion_group!(benches, send, receive, matching);
criterion_main!(benches);
