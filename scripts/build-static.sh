#!/usr/bin/env bash
# Builds the command as one static file that runs on any Linux, x86-64: all of it, and the publisher
# service alone. Proves that they are static, and fails if one is larger than it may be.
#
# Usage: scripts/build-static.sh [--test] [--from-packages]
#   --test           also runs the tests of the library and the command, those with sockets, Redis and
#                    etcd among them, built for the same target, and the demo and the publisher service
#                    from the two files
#   --from-packages  uses the compiler of Debian's packages, as is done by itself where rustup cannot
#                    fetch the target: see scripts/install-musl-std.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=x86_64-unknown-linux-musl
# in octets
limit_command=$((4 << 20)) limit_service=$((2 << 20))

main() {
    local test=no packages=no option
    for option in "$@"; do
        case $option in
        --test) test=yes ;;
        --from-packages) packages=yes ;;
        *)
            echo "unknown option $option, see the top of $0"
            return 2
            ;;
        esac
    done
    folder=${CARGO_TARGET_DIR:-target}
    if [[ $packages == yes ]] || ! add_target; then
        scripts/install-musl-std.sh
        # what two compilers built does not go together
        folder=$folder/from-packages
        export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc CARGO_TARGET_DIR=$folder
    fi
    mkdir -p "$folder/static"
    "${RUSTC:-rustc}" --version

    # at the same time: each ends with a long step that takes one core
    local builds=() pid
    build dragonwire dist "$limit_command" &
    builds+=($!)
    build dragonwire-publisher-service dist-service "$limit_service" --no-default-features &
    builds+=($!)
    if [[ $test == yes ]]; then
        test_all --no-run &
        builds+=($!)
    fi
    for pid in "${builds[@]}"; do wait "$pid"; done
    if [[ $test == yes ]]; then
        test_all
        echo "the demo:"
        timeout 120 "$folder/static/dragonwire" demo
        try_service "$folder/static/dragonwire-publisher-service"
    fi
}

add_target() {
    [[ -d $(rustc --print sysroot)/lib/rustlib/$target/lib ]] || rustup target add "$target"
}

# build NAME PROFILE LIMIT ARGUMENT...: the command by that name, no larger than the limit
build() {
    local file=$folder/static/$1 profile=$2 limit=$3 size
    shift 3
    cargo build --profile "$profile" --locked --package dragonwire-cli --target "$target" "$@"
    cp "$folder/$target/$profile/dragonwire" "$file"
    prove_static "$file"
    "$file" --version
    size=$(stat --format %s "$file")
    echo "$file: $size octets of $limit"
    [[ $size -le $limit ]]
}

# prove_static FILE: neither a loader nor a library is asked for, and two other tools agree
prove_static() {
    if readelf --wide --program-headers --dynamic "$1" | grep -E 'INTERP|NEEDED' \
        || ! ldd_says "$1" | grep -iE 'statically linked|not a (valid )?dynamic' \
        || ! file --brief "$1" | grep -E 'statically linked|static-pie linked'; then
        echo "$1 is not static"
        return 1
    fi
}

# of a file without a loader it fails, and says so
ldd_says() { ldd "$1" 2>&1 || true; }

# test_all OPTION...: all tests but the simulation's, which has no kernel under it
test_all() {
    export CARGO_PROFILE_DEV_DEBUG=0 NEXTEST_TEST_THREADS=$((2 * $(nproc)))
    local tests=(
        --package dragonwire --package dragonwire-cli --features redis,etcd --locked
        --target "$target" --lib --bins --tests "$@"
    )
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run "${tests[@]}"
    else
        timeout --verbose 20m cargo test "${tests[@]}"
    fi
}

# try_service COMMAND: it comes up, says how it is, and ends well when it is told to
try_service() {
    local place said line service
    place=$(mktemp -d)
    exec {said}< <(
        exec timeout 60 "$1" publisher-service --port 0 --bind-address 127.0.0.1 \
            --socket "$place/events" 2>&1
    )
    service=$!
    read -r line <&"$said"
    echo "$line"
    [[ $line == "publisher service up: "* ]]
    "$1" status --socket "$place/events"
    kill -TERM "$service"
    cat <&"$said"
    exec {said}<&-
    wait "$service"
    rm -rf "$place"
}

main "$@"
