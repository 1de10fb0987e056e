#!/bin/sh
# Whoever waits for an event of a qemu.qmp client is not told that the connection has ended, and gets the next one's event.
#
# Guess: `events.get()` raises when the connection that it waits on ends, as `execute()` does.
# Seen on 2026-11-28, qemu.qmp 0.0.6, Python 3.11: after `quit` and `disconnect()` the waiting call is still pending; the
# client connects to another machine, and the call returns with that machine's event. An event without its connection
# says nothing of which machine it befell.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check qemu.qmp==0.0.6
cat >"$work/events.py" <<'PROGRAM'
import asyncio
import json
import sys

from qemu.qmp import QMPClient

VERSION = {"qemu": {"micro": 0, "minor": 1, "major": 10}, "package": ""}


async def machine(path, name):
    """A machine that tells of STOP when it is asked to stop, and ends at quit."""

    async def answer(reader, writer):
        def send(message):
            writer.write(json.dumps(message).encode() + b"\r\n")

        send({"QMP": {"version": VERSION, "capabilities": []}})
        while text := await reader.read(65536):
            command = json.loads(text)
            send({"return": {}, "id": command["id"]} if "id" in command else {"return": {}})
            if command["execute"] == "stop":
                send({"event": "STOP", "data": {"of": name}, "timestamp": {"seconds": 1, "microseconds": 0}})
            if command["execute"] == "quit":
                break
        writer.close()

    return await asyncio.start_unix_server(answer, path)


async def main(folder):
    servers = [await machine(f"{folder}/{name}", name) for name in ("first", "second")]
    client = QMPClient("events")
    await client.connect(f"{folder}/first")
    waiting = asyncio.create_task(client.events.get())
    await client.execute("quit")
    try:
        await client.disconnect()
    except EOFError:
        print("disconnect() says how the connection ended")
    await asyncio.wait([waiting], timeout=1)
    pending = not waiting.done()
    print("after the end the wait for an event is", "pending" if pending else "over")
    await client.connect(f"{folder}/second")
    await client.execute("stop")
    await asyncio.wait([waiting], timeout=5)
    event = waiting.result() if waiting.done() else {}
    print("it returns an event of the", event["data"]["of"] if event else "nobody")
    await client.disconnect()
    for server in servers:
        server.close()
    return 0 if pending and event["data"]["of"] == "second" else 1


sys.exit(asyncio.run(main(sys.argv[1])))
PROGRAM
"$work/venv/bin/python" "$work/events.py" "$work"
