#!/bin/sh
# asyncssh's run(check=True) takes a command for good that the other side never said the end of, a lost connection
# included.
#
# Guess: ProcessError for all that is not an exit status of 0, or ConnectionLost; check is what one asks for instead of
# looking at the status.
# Seen on 2026-11-29, asyncssh 2.24.1 (Python 3.11), client and server: exit_status and returncode are None, and check
# passes, where the channel is closed without a status, and where the connection breaks off while the command runs. A
# status of 4 and a signal are errors. A guest that dies or reboots under a command of a test has passed it, with the
# half of the output that was there. paramiko 5.1.0 has -1 for both.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check asyncssh==2.24.1 paramiko==5.1.0
cat >ask.py <<"PROGRAM"
import asyncio

import asyncssh
import paramiko

COMMANDS = ("status 4", "signal", "no status", "connection lost")


class Server(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False


async def serve(process):
    process.stdout.write("half\n")
    if process.command == "status 4":
        process.exit(4)
    elif process.command == "signal":
        process.exit_with_signal("KILL")
    elif process.command == "no status":
        process.close()
    else:
        await process.stdout.drain()
        await asyncio.sleep(0.5)
        process.channel.get_connection().abort()


def with_paramiko(port, command):
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect("127.0.0.1", port, "user", "password", allow_agent=False, look_for_keys=False)
    status = client.exec_command(command)[1].channel.recv_exit_status()
    client.close()
    return status


async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")
    serving = asyncssh.listen("127.0.0.1", 0, server_factory=Server, server_host_keys=[key], process_factory=serve)
    async with await serving as server:
        port = server.get_port()
        for command in COMMANDS:
            async with asyncssh.connect(
                "127.0.0.1", port, known_hosts=None, username="user", client_keys=None, config=None
            ) as client:
                try:
                    done = await client.run(command, check=True)
                    print(f"{command}: passes, {done.exit_status}, {done.stdout!r}")
                except (asyncssh.ProcessError, asyncssh.Error) as error:
                    print(f"{command}: {type(error).__name__}")
            print(f"{command}: paramiko {await asyncio.to_thread(with_paramiko, port, command)}")


asyncio.run(main())
PROGRAM
venv/bin/python ask.py | tee seen
cmp seen - <<"SEEN"
status 4: ProcessError
status 4: paramiko 4
signal: ProcessError
signal: paramiko -1
no status: passes, None, 'half\n'
no status: paramiko -1
connection lost: passes, None, 'half\n'
connection lost: paramiko -1
SEEN
