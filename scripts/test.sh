#!/usr/bin/env bash
# The one gate: sets up what it needs, then runs every check and every test of the workspace.
# It stops at the first step that fails, names it, and exits with a non-zero status.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

main() {
    trap finish EXIT
    if [[ -n ${CI:-} ]]; then
        # built once and thrown away: no incremental state, and no debug information
        export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0
    fi
    # see .config/nextest.toml
    export NEXTEST_TEST_THREADS=$((2 * $(nproc)))
    step "tools" set_up
    step "format" format
    step "clippy" cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    step "documentation" documentation
    step "no C in the library and the command" scripts/check-no-c.sh
    step "licences of dependencies" scripts/check-licences.sh
    step "fuzz targets and corpora" fuzz
    step "documentation tests" counted cargo test --workspace --all-features --doc --locked
    step "tests" counted test_all
    step "static build and its tests" counted scripts/build-static.sh --test
    step "64-bit ARM" aarch64
    step "instruction counts" instruction_counts
}

set_up() {
    command -v cargo >/dev/null || {
        echo "cargo is missing: install Rust $(rust_version) or later, see https://rustup.rs"
        return 1
    }
    component rustfmt cargo fmt --version
    component clippy cargo clippy --version
    package cc gcc
    package python3 python3
    package etcd etcd-server
    # scripts/build-static.sh asks it
    package file file
    # interop/ builds libzmq for its tests
    package g++ g++
    package valgrind valgrind
    # the tests of the Redis driver start servers of their own
    package redis-server redis-server
    # the chaos test makes networks with these where it runs as root, and does without elsewhere
    if [[ $EUID -eq 0 ]]; then package ip iproute2 && package iptables iptables; fi
    cargo --version
    rustc --version
    cargo nextest --version 2>/dev/null | head -n 1 \
        || echo "cargo-nextest is missing: cargo test runs the tests"
}

rust_version() {
    sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml
}

# component NAME COMMAND...: the part of the toolchain that COMMAND needs
component() {
    local name=$1
    shift
    "$@" >/dev/null 2>&1 && return
    echo "$name is missing: rustup component add $name"
    rustup component add "$name"
}

# package COMMAND NAME: the Debian package of a command
package() {
    command -v "$1" >/dev/null && return
    local as_root=()
    if [[ $EUID -ne 0 ]]; then
        as_root=(sudo -n)
    fi
    echo "$1 is missing: apt-get install $2"
    if ! command -v apt-get >/dev/null; then
        echo "there is no apt-get here: install $1 by hand"
        return 1
    fi
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" \
        apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

format() {
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo fmt --manifest-path benches/compare/Cargo.toml --check
}

documentation() {
    export RUSTDOCFLAGS="-D warnings"
    # the command's page and the library's have the same name: the library's comes last and stays
    cargo doc --no-deps --locked --bins --package dragonwire-cli
    # with both packages named what they depend on is looked at once
    local library=(--lib --package dragonwire --package dragonwire-cli --features redis,etcd)
    cargo doc --no-deps --locked "${library[@]}" --document-private-items
    cargo doc --no-deps --locked "${library[@]}"
    local option
    for option in $(sed -nE 's/^    pub fn (\w+)\(mut self.*/\1/p' src/options.rs); do
        grep -q "\`$option" docs/options.md || {
            echo "docs/options.md does not name $option"
            return 1
        }
    done
}

# That the fuzz targets build needs nightly and is not asked for here; the saved corpora run with
# the library's unit tests.
fuzz() {
    cargo metadata --manifest-path fuzz/Cargo.toml --no-deps --format-version 1 >/dev/null
    local target
    for target in fuzz/fuzz_targets/*.rs; do
        target=$(basename "$target" .rs)
        grep -q "^path = \"fuzz_targets/$target.rs\"" fuzz/Cargo.toml || {
            echo "fuzz/Cargo.toml does not name $target"
            return 1
        }
        local files=("fuzz/corpus/$target"/*)
        [[ -f ${files[0]} ]] || {
            echo "fuzz/corpus/$target has no file"
            return 1
        }
        printf '%-17s %4d files\n' "$target" "${#files[@]}"
    done
    python3 scripts/seed-corpus.py --check
}

test_all() {
    if cargo nextest --version >/dev/null 2>&1; then
        # hostile peers are for the static build's tests: what they cost is bounded there
        cargo nextest run --workspace --all-features --locked --no-fail-fast \
            --filterset 'not binary(hostile)'
    else
        # a test that hangs must not hang the gate; nextest has limits of its own, .config/nextest.toml
        timeout --verbose 40m \
            cargo test --workspace --all-features --locked --no-fail-fast \
            --lib --bins --tests --examples
    fi
}

# That it compiles. docs/static-builds.md tells how it is linked and run; where the target cannot be
# fetched, there is nothing to compile with.
aarch64() {
    local target=aarch64-unknown-linux-musl
    if ! rustup target add "$target"; then
        echo "the target $target cannot be fetched: not checked"
        return
    fi
    cargo check --workspace --exclude dragonwire-interop --all-features --locked --target "$target"
}

# The counts do not depend on debug information, the time to build does.
instruction_counts() {
    CARGO_PROFILE_BENCH_DEBUG=0 cargo bench --locked --features __bench --bench instructions
}

# counted COMMAND...: adds the tests that COMMAND reports to the sums of the last lines
counted() {
    local log line status=0
    log=$(mktemp)
    "$@" 2>&1 | tee "$log" || status=$?
    while read -r line; do
        [[ $line =~ ([0-9]+)\ passed ]] && passed=$((passed + BASH_REMATCH[1]))
        [[ $line =~ ([0-9]+)\ failed ]] && failed=$((failed + BASH_REMATCH[1]))
        [[ $line =~ ([0-9]+)\ timed\ out ]] && failed=$((failed + BASH_REMATCH[1]))
        [[ $line =~ ([0-9]+)\ (ignored|skipped) ]] && skipped=$((skipped + BASH_REMATCH[1]))
    done < <(grep -E '^test result: |^ *Summary \[' "$log")
    rm -f "$log"
    return "$status"
}

# step NAME COMMAND...
step() {
    current=$1
    shift
    local started=$SECONDS
    printf '\n==> %s\n' "$current"
    "$@"
    printf '    %s: %d s\n' "$current" $((SECONDS - started))
    steps=$((steps + 1)) current=
}

finish() {
    local status=$?
    echo
    if [[ $((passed + failed)) -gt 0 ]]; then
        printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    fi
    if [[ $status -eq 0 ]]; then
        printf 'gate: ok, %d steps in %d min %d s\n' "$steps" $((SECONDS / 60)) $((SECONDS % 60))
    else
        printf 'gate: FAILED at "%s" after %d min %d s\n' \
            "$current" $((SECONDS / 60)) $((SECONDS % 60))
    fi
    exit "$status"
}

steps=0 passed=0 failed=0 skipped=0 current=
main "$@"
