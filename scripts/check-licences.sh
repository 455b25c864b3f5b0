#!/usr/bin/env bash
# Holds the dependencies of `dragonwire` and `dragonwire-cli` to licences that allow both of the
# project's own, and to released versions from the package registry (no git, no local copies).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo metadata --format-version 1 --locked --all-features | python3 -c '
import json, re, sys

ROOTS = ("dragonwire", "dragonwire-cli")
ALLOWED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause",
    "BSL-1.0", "ISC",
    "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib",
}

def allowed(expression):
    """Whether an SPDX expression can be fulfilled with ALLOWED; "/" is an old way to write OR."""
    text = expression.replace("/", " OR ").replace("(", " ( ").replace(")", " ) ")
    tokens = re.sub(r"(\S+) WITH (\S+)", r"\1~WITH~\2", text).split()

    def either():
        result = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = both() or result
        return result

    def both():
        result = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = one() and result
        return result

    def one():
        token = tokens.pop(0)
        if token != "(":
            return token.replace("~", " ") in ALLOWED
        result = either()
        tokens.pop(0)
        return result

    return either()

metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
members = metadata["workspace_members"]
todo = [member for member in members if packages[member]["name"] in ROOTS]
seen, faults = set(), []
while todo:
    current = todo.pop()
    if current in seen:
        continue
    seen.add(current)
    package = packages[current]
    name = "{} {}".format(package["name"], package["version"])
    licence = package.get("license")
    if not licence or not allowed(licence):
        faults.append(f"{name}: licence {licence}")
    if current not in members and not (package["source"] or "").startswith("registry+"):
        faults.append("{}: from {}".format(name, package["source"] or "a local folder"))
    for dependency in nodes[current]["deps"]:
        if any(kind["kind"] in (None, "build") for kind in dependency["dep_kinds"]):
            todo.append(dependency["pkg"])

print(f"licences: {len(seen)} packages on all platforms")
for fault in sorted(faults):
    print("  " + fault)
sys.exit(bool(faults))
'
