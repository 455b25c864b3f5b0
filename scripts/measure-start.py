#!/usr/bin/env python3
"""Measures how long the command takes from its start to its first message, in processes of its own.

push: a PULL listens; from the start of a `dragonwire push` that connects until the message is a line there.
pull: a PUSH listens and has messages; from the start of a `dragonwire pull` that connects until it has
      written the first as a line.

Usage: scripts/measure-start.py COMMAND [RUNS]        RUNS: 50
"""

import subprocess
import sys
import tempfile
import time

PIPE = subprocess.PIPE


def listening(arguments):
    """A process that listens, once it does, and where."""
    process = subprocess.Popen(arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    while not (line := process.stderr.readline()).startswith(b"bound "):
        assert line, f"{arguments}: it ended"
    return process, line.split()[1].decode()


def pushes(command, endpoint, runs):
    receiver, endpoint = listening([command, "pull", "--bind", endpoint])
    for _ in range(runs):
        start = time.monotonic()
        sender = subprocess.Popen([command, "push", "--connect", endpoint], stdin=PIPE, stderr=PIPE)
        sender.stdin.write(b'["hello"]\n')
        sender.stdin.flush()
        assert receiver.stdout.readline() == b'["hello"]\n'
        yield time.monotonic() - start
        sender.communicate()
    receiver.kill()
    receiver.wait()


def pulls(command, endpoint, runs):
    sender, endpoint = listening([command, "push", "--bind", endpoint])
    for _ in range(runs):
        sender.stdin.write(b'["hello"]\n')
        sender.stdin.flush()
        start = time.monotonic()
        receiver = subprocess.Popen(
            [command, "pull", "--connect", endpoint, "--count", "1"], stdout=PIPE, stderr=PIPE
        )
        assert receiver.stdout.readline() == b'["hello"]\n'
        yield time.monotonic() - start
        receiver.communicate()
    sender.kill()
    sender.wait()


def main():
    command = sys.argv[1]
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    for transport in ("ipc", "tcp"):
        for name, measure in (("push", pushes), ("pull", pulls)):
            with tempfile.TemporaryDirectory() as folder:
                endpoint = f"ipc://{folder}/socket" if transport == "ipc" else "tcp://127.0.0.1:*"
                times = sorted(1000 * seconds for seconds in measure(command, endpoint, runs))
            print(
                f"{name} {transport}: median {times[len(times) // 2]:.1f} ms, "
                f"worst {times[-1]:.1f} ms, {runs} runs"
            )


main()
