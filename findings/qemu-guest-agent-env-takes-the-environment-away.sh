#!/bin/sh
# A program that QEMU's guest agent starts with one variable in "env" has that variable alone: no PATH, no HOME, no
# LANG.
#
# Guess: the variables are added to those of the agent, as "environment variables to pass to executable" (the text of
# guest-exec in the QAPI schema) and a `docker exec --env` have it.
# Seen on 2026-11-30, QEMU's guest agent 7.2 (Debian 1:7.2+dfsg-7+deb12u18+b3): without env a program has all that the
# agent has; with env of ["A=1"] its whole environment is A=1. The program itself is still found by the PATH of the
# agent, so that the call succeeds and only what that program starts or looks up differs. The schema and qemu-ga(8) do
# not say so; no issue found in a search.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
# Debian 12's packages and what they need, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial
: >status
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends \
    qemu-guest-agent=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
cat >ask.py <<"PROGRAM"
import base64
import json
import os
import socket
import subprocess
import time

agent = subprocess.Popen(
    ["unpacked/usr/sbin/qemu-ga", "--method", "unix-listen", "--path", "agent", "--statedir", ".", "--pidfile", "pid"],
    env={"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C", "LD_LIBRARY_PATH": os.environ["libraries"]},
)
try:
    deadline = time.monotonic() + 30
    while not os.path.exists("agent") and time.monotonic() < deadline:
        time.sleep(0.05)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(30)
    connection.connect("agent")
    wire = connection.makefile("rw")

    def ask(command, **arguments):
        wire.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        wire.flush()
        return json.loads(wire.readline())["return"]

    for given in {}, {"env": ["A=1"]}:
        begun = ask("guest-exec", path="env", **given, **{"capture-output": True})
        while not (end := ask("guest-exec-status", pid=begun["pid"]))["exited"] and time.monotonic() < deadline:
            time.sleep(0.05)
        lines = base64.b64decode(end["out-data"]).decode().splitlines()
        names = {line.partition("=")[0] for line in lines}
        print(given.get("env"), "status", end["exitcode"], sorted(names & {"A", "HOME", "LANG", "PATH"}), len(names) > 1)
finally:
    agent.terminate()
    agent.wait()
PROGRAM
libraries=$libraries python3 ask.py | tee seen
cmp seen - <<"SEEN"
None status 0 ['HOME', 'LANG', 'PATH'] True
['A=1'] status 0 ['A'] False
SEEN
