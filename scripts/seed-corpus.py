#!/usr/bin/env python3
"""Makes the seeds of the fuzz targets, fuzz/corpus/TARGET/: from the recorded octets in
tests/vectors/ (its README.md tells the format), from the recorded bodies in tests/transcripts/, from
the option files in tests/config/, and for the rest from the lists below.

    scripts/seed-corpus.py            writes the seeds that are missing; never removes a file
    scripts/seed-corpus.py --check    fails when a seed is missing or a file breaks the rules

A file's name is the SHA-1 of its content, as libFuzzer names what it finds itself. What each
target reads is in docs/fuzzing.md.
"""

import base64
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
BUDGET = 0x80

ENDPOINTS = [
    "tcp://127.0.0.1:5555", "tcp://[::1]:5555", "tcp://::1:80", "tcp://*:*", "tcp://*:0",
    "tcp://localhost:80", "tcp://a-b.example_c.org:80", "tcp://[fe80::1%eth0]:80",
    "tcp://10.0.0.1:0;10.0.0.2:5555", "tcp://[::1]:7;[::2]:5555", "ipc:///tmp/x.sock",
    "ipc://relative", "ipc://@name", "ipc://*", "", "127.0.0.1:80", "udp://x:1", "TCP://x:1",
    "tcp://x", "tcp://x:", "tcp://x:65536", "tcp://x:+1", "tcp://:1", "tcp://a b:1",
    "tcp://[1.2.3.4]:1", "tcp://[::1:1", "tcp://x:1;y:2", "ipc://", "ipc://@", "ipc://a\0b",
    "ipc://" + "x" * 107, "ipc://" + "x" * 108,
]

# what is done to the octets between two that shake hands, three octets each; see docs/fuzzing.md
TAMPERING = [
    b"", b"\0\0\0", b"\0\0\x0a\x80\0\x0a\0\0\x01\x80\0\x01\0\0\x35\x80\0\x35",
    b"\x03\x0a\x02", b"\0\0\0\x83\0\x02", b"\0\0\0\x80\0\0\x03\0\x03", b"\0\0\0\x80\0\0\x82\0\x40",
    b"\x80\0\0\0\0\0\x80\0\0\0\0\0\x82\0\x40\x02\0\x1b", b"\x01\0\x01", b"\0\0\x0a\x81\x05\xff",
]

# requests of the directory: field 3 is Get, 4 List, 5 Put, 6 Delete, each with table, key, value
REQUESTS = [
    [(5, "t", "a", "1"), (3, "t", "a"), (4, "t"), (6, "t", "a"), (4, "t")],
    [(5, "t", "a", "1"), (5, "t", "a", "1"), (5, "t", "a", "22"), (6, "t", "b"), (6, "t", "a")],
    [(5, "t", "a", "1"), (5, "u", "b", ""), (5, "v", "c", "3"), (6, "u", "b"), (5, "v", "c", "3")],
    [(5, "", "a", "1"), (5, "t", "", "1"), (5, "t" * 9, "a", "1"), (5, "t", "k" * 9, "1")],
    [(5, "t", str(row), "v" * 30) for row in range(7)] + [(6, "t", "0"), (5, "t", "7", "")],
]

ROWS = [
    "{}", '{"id": null, "uri": null, "role": null}', "[]", '["i"]', '{"last_activity_timestamp": 1e400}',
    '{"id": "1", "uri": "tcp://192.168.0.5:8866", "last_activity_timestamp": 1466584371.25}',
    '{"epoch": 3, "topics": [["D", 9], ["\\u00fc", 18446744073709551615]], "timestamp": 1466584371.25}',
    '{"role": "df-local-controller", "name": "\\u00fc"}', '{"role": 7}', ' {"role": "other", "x": [{}]}',
]

# what etcd 3.4 answered through its gateway when such rows were written, listed, watched and compacted, in
# the order of the requests; how later releases put errors; what else may listen at that port
ETCD_HEADER = '"header":{"cluster_id":"324952591200643719","member_id":"3319814642761637952"'
ETCD_ERRORS = [
    '{"error":"etcdserver: key is not provided","message":"etcdserver: key is not provided","code":3}',
    '{"error":"etcdserver: request is too large","message":"etcdserver: request is too large","code":3}',
    '{"code":5, "message":"Not Found", "details":[]}', "Not Found\n",
    '{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"Service '
    'Unavailable"}}', '{"error":{"code":1,"message":"context canceled","details":[]}}',
    "<html><body>502 Bad Gateway</body></html>", '{"message":"' + "etcdserver: " * 200 + '"}',
]

# notes on a channel of the directory in Redis, each a line
REDIS_NOTES = [
    [{"db": 0, "key": "1", "value": "{}"}, {"db": 0, "key": "1", "value": None},
     {"db": 0, "key": "1", "value": None}],
    [{"db": 0, "mark": "0b7c1c2e-3c1e-4b4e-9d6a-5a0c8a1d2f3b"}, {"db": 1, "key": "1", "value": "{}"},
     {"db": 0, "key": "\u00fc", "value": '{"id": "1", "uri": "tcp://192.0.2.7:8866"}'},
     {"db": 0, "key": "\u00fc"}],
    [{"db": "0", "key": "1", "value": ""}, {"key": "1", "value": ""}, {"db": 0}, [0, "1", ""], "del", 0,
     {"db": 0, "key": "1", "value": 5, "mark": "m"}],
]


def main():
    recorded = ("greeting", "frames", "commands", "subscriptions", "session", "differential")
    seeds = {target: {} for target in recorded}
    paths = sorted((ROOT / "tests" / "vectors").glob("*.json"))
    vectors = [json.loads(path.read_text()) for path in paths]
    # where there are too many seeds, those of the last groups go: their files are much alike
    for vector in sorted(vectors, key=lambda vector: PRIORITY.get(vector["group"], 1)):
        add_seeds(seeds, vector)
    seeds["endpoint"] = named(map(str.encode, ENDPOINTS))
    seeds["handshake"] = named(
        bytes([left | right << 4]) + deeds
        for left, right in ((0, 1), (1, 10), (2, 3), (4, 5), (0, 4))
        for deeds in TAMPERING
    )
    seeds["directory"] = named([*map(str.encode, ROWS), *requests(), *answers()])
    notes = ("\n".join(map(json.dumps, note)).encode() for note in REDIS_NOTES)
    seeds["directory_answers"] = named([*etcd_answers(), *notes])
    seeds["event_body"] = named(bodies())
    options = sorted((ROOT / "tests" / "config").iterdir())
    seeds["option_file"] = named(path.read_bytes() for path in options if path.is_file())
    if sys.argv[1:] == ["--check"]:
        return check(seeds)
    for target, contents in seeds.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, octets in contents.items():
            (folder / name).write_bytes(octets)
        print(f"{target:17} {len(contents):4} seeds, {len(list(folder.iterdir())):4} files")
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
                version = version_of(octets)
                # pieces of 1 and of 7 octets and the rest
                for setting in (b"\0\0\0", b"\x01\x07\0") if len(frames) < 1024 else ():
                    head = bytes([version | len(seeds["differential"]) % 8 << 4])
                    add(seeds["differential"], head + setting + after_handshake(version, frames))
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


def version_of(octets):
    """As the target `differential` numbers it: 0 for 1.0, 1 for 2.0, 2 for 3.0, 3 for 3.1."""
    start = greeting_length(octets)
    if start < 64:
        return min(start, 1)
    return 2 if octets[10:12] == b"\3\0" else 3


def after_handshake(version, frames):
    """What follows the identity frame, or READY."""
    first = [frame for _, _, frame in split_frames(frames)][:1]
    return frames[2:] if version == 0 else frames[len(b"".join(first)):]


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


def bodies():
    """The second frames of Dragonflow's events, as they were on the wire."""
    for path in sorted((ROOT / "tests" / "transcripts").glob("*.json")):
        connections = [c for relay in json.loads(path.read_text())["relays"] for c in relay["connections"]]
        for event in (event for connection in connections for event in connection["events"]):
            for item in event.get("decoded") or []:
                if isinstance(item, dict) and item.get("part") == 1 and item.get("body_hex"):
                    yield bytes.fromhex(item["body_hex"])[:MOST_OCTETS]


def requests():
    client = b"\x0a\x10" + bytes(range(16))
    for request in REQUESTS:
        frames = b""
        for number, (action, *texts) in enumerate(request, 1):
            fields = [protobuf(field, text.encode()) for field, text in enumerate(texts, 1)]
            body = client + bytes([0x10, number]) + protobuf(action, b"".join(fields))
            frames += bytes([0, len(body)]) + body
        yield frames
        # every second write is undone
        yield frames[:1].replace(b"\0", b"\1") + frames[1:]


def answers():
    epoch = bytes([2 << 3 | 1]) + bytes(8)
    row, table = protobuf(1, b"value"), b"\x08\x05" + protobuf(2, protobuf(1, b"k") + protobuf(2, b"v"))
    for field, outcome in ((3, row), (3, b""), (4, table), (5, b"\x08\x01"), (6, protobuf(1, b"no"))):
        yield b"\x08\x07" + epoch + protobuf(field, outcome)
    epoch = bytes([1 << 3 | 1]) + bytes(8)
    yield epoch + protobuf(2, b"t") + b"\x18\x01\x20\x02" + protobuf(5, b"k") + protobuf(6, b"v")
    yield epoch + protobuf(2, protobuf(1, b"t") + b"\x10\x05")


def etcd_answers():
    """As the gateway writes them: what is empty is left out, and so are blanks."""
    prefix = b"/dragonwire/publisher/"
    text = '{"id":"1","uri":"tcp://192.0.2.7:8866","role":"df-local-controller"}'.encode()

    def header(revision):
        return ETCD_HEADER + (f',"revision":"{revision}"' if revision else "") + ',"raft_term":"2"}'

    def row(key, value, created, changed):
        version = changed - created + 1 if created else 0
        numbers = [("create_revision", created), ("mod_revision", changed), ("version", version)]
        fields = {"key": base64.b64encode(prefix + key).decode()}
        fields.update((name, str(number)) for name, number in numbers if number)
        if value:
            fields["value"] = base64.b64encode(value).decode()
        return json.dumps(fields, separators=(",", ":"))

    before, first = row(b"1", text, 2, 2), row(b"1", text, 2, 3)
    empty, binary = row(b"3", b"", 5, 5), row(b"\xff", b"\xff", 6, 6)
    deleted, gone = row(b"2", b"", 0, 7), row(b"2", b"{}", 4, 4)
    for fields in (
        "", f',"kvs":[{first}],"count":"1"', f',"kvs":[{first},{empty},{binary}],"count":"3"', ',"count":"4"',
        ',"deleted":"1"',
    ):
        yield ("{" + header(6) + fields + "}").encode()
    results = [
        header(1) + ',"created":true',
        header(2) + f',"events":[{{"kv":{before}}}]',
        header(3) + f',"events":[{{"kv":{first},"prev_kv":{before}}}]',
        header(6) + f',"events":[{{"kv":{empty}}},{{"kv":{binary}}}]',
        header(7) + f',"events":[{{"type":"DELETE","kv":{deleted},"prev_kv":{gone}}}]',
        header(0) + ',"canceled":true,"compact_revision":"5"',
        header(0) + ',"created":true,"canceled":true,"cancel_reason":"etcdserver: permission denied"',
    ]
    lines = [f'{{"result":{{{result}}}}}\n'.encode() for result in results]
    # one by one, and as they follow each other in a stream
    yield from lines
    yield b"".join(lines[:4])
    yield b"".join(lines[:1] + lines[4:6])
    yield from map(str.encode, ETCD_ERRORS)


def protobuf(field, octets):
    """A field of text, octets or another message, each short."""
    return bytes([field << 3 | 2, len(octets)]) + octets


def named(contents):
    return {name_of(octets): octets for octets in contents}


def add(contents, octets):
    octets = octets[:MOST_OCTETS]
    if octets and len(contents) < MOST_FILES:
        contents[name_of(octets)] = octets


def name_of(octets):
    return hashlib.sha1(octets).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
