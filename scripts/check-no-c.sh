#!/usr/bin/env bash
# Holds what `dragonwire` and `dragonwire-cli` build from, with all features, to pure Rust: none of
# their normal and build dependencies links a native library, builds C or is a `-sys` crate, and only
# the build scripts listed here run. Exempt are development dependencies, the package `interop`, whose tests
# link libzmq, and the workspaces of their own `benches/compare`, which has libzmq as a peer, and `fuzz`.
#
# Usage: scripts/check-no-c.sh [TARGET]     default x86_64-unknown-linux-musl; it need not be installed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo metadata --format-version 1 --locked --all-features \
    --filter-platform "${1:-x86_64-unknown-linux-musl}" | python3 -c '
import json, sys

ROOTS = ("dragonwire", "dragonwire-cli")
# tools that compile or find native code
TOOLS = {"autotools", "bindgen", "cc", "cmake", "cxx-build", "nasm-rs", "pkg-config", "system-deps", "vcpkg"}
# `-sys` by name, but pure Rust
PURE = {"linux-raw-sys", "windows-sys"}
# build scripts that were read: they ask the compiler for its version and what it supports, and those
# of icu whether a variable names other tables of Unicode
SCRIPTS = {
    "anyhow", "getrandom", "httparse", "icu_normalizer_data", "icu_properties_data", "libc", "parking_lot_core",
    "proc-macro2", "quote", "serde", "serde_core", "serde_json", "thiserror", "zmij",
}

metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
members = {packages[member]["name"]: member for member in metadata["workspace_members"]}

todo, seen, faults = [], set(), []
for root in ROOTS:
    if root in members:
        todo.append((members[root], root))
    else:
        faults.append(f"{root} is not in the workspace")
scripts = []
while todo:
    current, path = todo.pop()
    if current in seen:
        continue
    seen.add(current)
    package = packages[current]
    name = package["name"]
    if package.get("links"):
        faults.append("{} links {}: {}".format(name, package["links"], path))
    if name.endswith("-sys") and name not in PURE:
        faults.append(f"{name} is a -sys crate: {path}")
    if name in TOOLS:
        faults.append(f"{name} builds or finds native code: {path}")
    if any("custom-build" in target["kind"] for target in package["targets"]):
        scripts.append(name)
        if name not in SCRIPTS:
            faults.append(f"{name} has a build script that is not in the list: {path}")
    for dependency in nodes[current]["deps"]:
        if any(kind["kind"] in (None, "build") for kind in dependency["dep_kinds"]):
            todo.append((dependency["pkg"], path + " -> " + packages[dependency["pkg"]]["name"]))

print("no C: {} packages; build scripts: {}".format(len(seen), ", ".join(sorted(scripts)) or "none"))
for fault in sorted(faults):
    print("  " + fault)
sys.exit(bool(faults))
'
