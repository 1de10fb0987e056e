#!/bin/sh
# paramiko's reader of ssh_config goes no way of an Include, and takes the comment behind a port for a part of it.
#
# Guess: what it does not know in a file that ssh reads is an error; and `ssh -G` and lookup() agree on host, port and
# user.
# Seen on 2026-11-29, paramiko 5.1.0 (Python 3.11): of an included file nothing is in what lookup() gives, but for a key
# "include" with the path, so that a guest is sought under its alias on port 22; "Port 2222 # forwarded" is the port
# "2222 # forwarded". asyncssh 2.24.1 reads the included file, and refuses the comment. OpenSSH 9.2 reads both.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check paramiko==5.1.0 asyncssh==2.24.1
printf '%s\n' "Host guest" "    HostName 192.0.2.7" "    Port 2222" "    User tester" >included
printf '%s\n' "Include $work/included" "Host other" "    User tester" >including
printf '%s\n' "Host guest" "    Port 2222 # forwarded" >comment
cat >look.py <<"PROGRAM"
import asyncssh
import paramiko

for name in ("including", "comment"):
    found = paramiko.SSHConfig.from_path(name).lookup("guest")
    print(f"{name}: paramiko {[found.get(key) for key in ('hostname', 'port', 'user')]}")
    try:
        options = asyncssh.SSHClientConnectionOptions(config=[name], host="guest", username=())
        print(f"{name}: asyncssh {[options.host, options.port, options.username]}")
    except asyncssh.ConfigParseError as error:
        print(f"{name}: asyncssh {str(error).partition(': ')[2]}")
PROGRAM
venv/bin/python look.py | tee seen
cmp seen - <<"SEEN"
including: paramiko ['guest', None, None]
including: asyncssh ['192.0.2.7', 2222, 'tester']
comment: paramiko ['guest', '2222 # forwarded', None]
comment: asyncssh Extra data at end: # forwarded
SEEN
