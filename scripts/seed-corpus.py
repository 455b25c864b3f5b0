#!/usr/bin/env python3
"""Makes the seeds of the fuzz targets, fuzz/corpus/TARGET/, from the recorded octets in
tests/vectors/ (its README.md tells the format).

    scripts/seed-corpus.py            writes the seeds that are missing; never removes a file
    scripts/seed-corpus.py --check    fails when a seed is missing or a file breaks the rules

A file's name is the SHA-1 of its content, as libFuzzer names what it finds itself. What each
target reads is in docs/fuzzing.md.
"""

import hashlib
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
MOST_FILES = 150
MOST_OCTETS = 4096

# the octet of each socket type in ZMTP 2.0 (RFC 15), for those that exist here
SOCKET_TYPES = {"PUB": 1, "SUB": 2, "PULL": 7, "PUSH": 8, "XPUB": 9, "XSUB": 10}
# what a session is given to read where the recording has another type: the groups below are about
# octets that are read the same by all of them
STAND_INS = {"ROUTER": "PULL", "REP": "PULL", "PAIR": "PULL", "DEALER": "PUSH", "REQ": "PUSH"}
GROUPS_OF_ANY_TYPE = {"greeting", "framing", "limits", "heartbeat"}
SECURE_GROUPS = {"plain", "curve", "zap"}
PRIORITY = {"pubsub": 0, "metadata": 2, "handshake": 3, "messages": 3}
ACCEPTED = 0x10

ENDPOINTS = [
    "tcp://127.0.0.1:5555", "tcp://[::1]:5555", "tcp://::1:80", "tcp://*:*", "tcp://*:0",
    "tcp://localhost:80", "tcp://a-b.example_c.org:80", "tcp://[fe80::1%eth0]:80",
    "tcp://10.0.0.1:0;10.0.0.2:5555", "tcp://[::1]:7;[::2]:5555", "ipc:///tmp/x.sock",
    "ipc://relative", "ipc://@name", "ipc://*", "", "127.0.0.1:80", "udp://x:1", "TCP://x:1",
    "tcp://x", "tcp://x:", "tcp://x:65536", "tcp://x:+1", "tcp://:1", "tcp://a b:1",
    "tcp://[1.2.3.4]:1", "tcp://[::1:1", "tcp://x:1;y:2", "ipc://", "ipc://@", "ipc://a\0b",
    "ipc://" + "x" * 107, "ipc://" + "x" * 108,
]


def main():
    seeds = {target: {} for target in ("greeting", "frames", "commands", "subscriptions", "session")}
    paths = sorted((ROOT / "tests" / "vectors").glob("*.json"))
    vectors = [json.loads(path.read_text()) for path in paths]
    # where there are too many seeds, those of the last groups go: their files are much alike
    for vector in sorted(vectors, key=lambda vector: PRIORITY.get(vector["group"], 1)):
        add_seeds(seeds, vector)
    seeds["endpoint"] = {name_of(octets): octets for octets in map(str.encode, ENDPOINTS)}
    if sys.argv[1:] == ["--check"]:
        return check(seeds)
    for target, contents in seeds.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, octets in contents.items():
            (folder / name).write_bytes(octets)
        print(f"{target:14} {len(contents):4} seeds, {len(list(folder.iterdir())):4} files")
    return 0


def check(seeds):
    faults = []
    for target, contents in seeds.items():
        files = {path.name: path.read_bytes() for path in (CORPUS / target).iterdir()}
        missing = contents.keys() - files.keys()
        if missing:
            faults.append(f"{target}: {len(missing)} seeds are missing: run scripts/seed-corpus.py")
        if len(files) > 2 * MOST_FILES:
            faults.append(f"{target}: {len(files)} files: minimise it, see docs/fuzzing.md")
        for name, octets in files.items():
            if name != name_of(octets):
                faults.append(f"{target}/{name}: the name is not its SHA-1, {name_of(octets)}")
            if len(octets) > MOST_OCTETS:
                faults.append(f"{target}/{name}: {len(octets)} octets, at most {MOST_OCTETS}")
    print("\n".join(faults) or "the seeds are complete")
    return 1 if faults else 0


def add_seeds(seeds, vector):
    group = vector["group"]
    for side, other in (("client", "server"), ("server", "client")):
        if vector[side]["kind"] != "scripted" and vector[other]["kind"] != "libzmq":
            continue
        reader = vector[other].get("socket", "")
        if group in GROUPS_OF_ANY_TYPE:
            reader = STAND_INS.get(reader, reader)
        for octets in connections(vector["steps"], side):
            start = greeting_length(octets)
            frames = octets[start:]
            add(seeds["greeting"], octets[: max(start, 64)])
            if group == "curve":
                continue
            # a plain peer's frames are read by the mechanism; of the others, any parser has use
            for body in command_bodies(frames):
                add(seeds["commands"], body)
            if group in SECURE_GROUPS:
                continue
            if group in ("framing", "limits", "messages", "pubsub", "heartbeat", "old-peers"):
                add(seeds["frames"], frames)
            subscriptions = subscription_frames(frames)
            add(seeds["subscriptions"], b"".join(subscriptions))
            if reader in SOCKET_TYPES:
                role = ACCEPTED if other == "server" else 0
                add(seeds["session"], bytes([SOCKET_TYPES[reader] | role]) + octets)


def connections(steps, side):
    """What `side` sent, one piece per connection; long payloads only as far as a seed may go."""
    pieces = {}
    current, last = 1, 1
    for step in steps:
        event = step.get("event")
        if event in ("connect", "reconnect"):
            last += 1
            current = last
        elif event == "use":
            current = step.get("peer", current)
        if step["from"] == side and "api" not in step:
            peer = step.get("peer", current)
            piece = pieces.setdefault(peer, bytearray())
            piece += bytes.fromhex(step["bytes"])
            payload = step.get("payload", "")
            if isinstance(payload, str):
                piece += bytes.fromhex(payload)
            else:
                piece += bytes(i % 251 for i in range(min(payload["length"], MOST_OCTETS)))
    return [bytes(piece) for piece in pieces.values() if piece]


def greeting_length(octets):
    if octets[0] != 0xFF or (len(octets) > 9 and octets[9] & 1 == 0):
        return 0
    if len(octets) > 10 and octets[10] <= 1:
        return 12
    return 64


def split_frames(octets):
    """Flags, body and the whole frame, in the framing of ZMTP 2.0 and later."""
    while len(octets) >= 2:
        flags = octets[0]
        header = 9 if flags & 2 else 2
        if len(octets) < header:
            return
        end = header + int.from_bytes(octets[1:header], "big")
        if len(octets) < end:
            return
        yield flags, octets[header:end], octets[:end]
        octets = octets[end:]


def command_bodies(octets):
    return [body for flags, body, _ in split_frames(octets) if flags & 4]


def subscription_frames(octets):
    names = (b"\x09SUBSCRIBE", b"\x06CANCEL")
    return [
        frame
        for flags, body, frame in split_frames(octets)
        if (body.startswith(names) if flags & 4 else body[:1] in (b"\0", b"\1"))
    ]


def add(contents, octets):
    octets = octets[:MOST_OCTETS]
    if octets and len(contents) < MOST_FILES:
        contents[name_of(octets)] = octets


def name_of(octets):
    return hashlib.sha1(octets).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
