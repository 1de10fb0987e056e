#!/bin/sh
# QEMU's guest agent says that a command goes on which has ended, for as long as a child of it lives; and one variable in
# `env` takes all others away.
#
# Guess: "exited" is of the process whose number guest-exec gave, whoever has its output open; and `env` adds variables to
# those that the agent has.
# Seen on 2026-11-29, qemu-ga 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 10.0.13 does the same): of a shell that starts a
# `sleep` and ends, with capture-output, "exited" is false until the sleep has ended: who starts a daemon that way waits for
# ever. Without capture-output it is true at once. With `env` of A=1 the command has A alone, no HOME and no PATH.
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
fetch install --yes --download-only --no-install-recommends qemu-guest-agent=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
cat >ask.py <<"ASK"
import base64, json, os, socket, subprocess, sys, time

# only the agent itself finds its libraries there, not the commands that it starts
loader = ["unpacked/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "--library-path", sys.argv[1]]
places = ["-m", "unix-listen", "-p", os.path.abspath("agent"), "-t", os.getcwd(), "-f", os.path.abspath("pid")]
inherited = {"HOME": os.getcwd(), "PATH": os.environ["PATH"], "KEPT": "yes"}
agent = subprocess.Popen([*loader, "unpacked/usr/sbin/qemu-ga", *places], env=inherited)
deadline = time.monotonic() + 60
while not os.path.exists("agent") and time.monotonic() < deadline:
    time.sleep(0.05)
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(60)
connection.connect("agent")
lines = connection.makefile("rw")


def ask(command, **arguments):
    print(json.dumps({"execute": command, "arguments": arguments}), file=lines, flush=True)
    return json.loads(lines.readline())["return"]


def ends(command, lives, **more):
    """Start a shell's command; whether it is said to have ended while there is the file `lives`, and its output at the end."""
    number = ask("guest-exec", path="/bin/sh", arg=["-c", command], **more)["pid"]
    until = time.monotonic() + 3
    while not (status := ask("guest-exec-status", pid=number))["exited"] and time.monotonic() < until:
        time.sleep(0.05)
    first = status["exited"]
    if os.path.exists(lives):
        os.remove(lives)
    while not status["exited"] and time.monotonic() < deadline:
        time.sleep(0.05)
        status = ask("guest-exec-status", pid=number)
    return first, base64.b64decode(status.get("out-data", "")).decode().split()


daemon = "(while [ -e lives ]; do sleep 0.1; done) & echo started"
for capture in (True, False):
    open("lives", "w").close()
    first, output = ends(f"cd {os.getcwd()}; {daemon}", "lives", **{"capture-output": capture})
    print(f"capture-output {capture}: ended while its child lives: {first}")
for env in ({}, {"env": ["A=1"]}):
    print(env, "->", *ends("echo A=$A HOME=${HOME:+set} KEPT=$KEPT", "no file", **{"capture-output": True}, **env)[1])
agent.terminate()
agent.wait()
ASK
python3 ask.py "$libraries" 2>log | tee seen
cmp seen - <<"SEEN"
capture-output True: ended while its child lives: False
capture-output False: ended while its child lives: True
{} -> A= HOME=set KEPT=yes
{'env': ['A=1']} -> A=1 HOME= KEPT=
SEEN
