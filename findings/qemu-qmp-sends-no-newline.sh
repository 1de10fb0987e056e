#!/bin/sh
# The qemu.qmp library ends no command with a newline, though it reads what comes back by lines.
#
# Guess: QMP is lines of JSON both ways, so that a proxy or a recorder can read lines from either side.
# Seen on 2026-11-28, qemu.qmp 0.0.6, Python 3.11: the last byte that arrives of `qmp_capabilities` is `}` and nothing
# follows it. QEMU takes that (its parser knows where an object ends); whoever stands between and waits for a line waits
# for ever.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check qemu.qmp==0.0.6
cat >"$work/listen.py" <<'PROGRAM'
import asyncio
import sys

from qemu.qmp import QMPClient

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 10}, "package": ""}, "capabilities": []}}\r\n'


async def main(path):
    arrived = asyncio.get_running_loop().create_future()

    async def answer(reader, writer):
        writer.write(GREETING)
        command = await reader.read(65536)
        rest = asyncio.create_task(reader.read(65536))
        done, _ = await asyncio.wait([rest], timeout=2)
        arrived.set_result((command, bool(done)))
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    client = asyncio.create_task(QMPClient("listen").connect(path))
    command, more = await arrived
    await asyncio.wait([client])
    client.exception()
    server.close()
    print(command, "and more" if more else "and no more within 2 s")
    return 0 if command.endswith(b"}") and not more else 1


sys.exit(asyncio.run(main(sys.argv[1])))
PROGRAM
"$work/venv/bin/python" "$work/listen.py" "$work/socket"
