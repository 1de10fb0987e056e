"""What every option of every command comes to, where the command hands over to what does it.

Each command is called with as little as it takes, and then with each of its options beside that, and each choice of
one: what is handed over otherwise then is told of the option. That is told once more beside `TOLD`, where it is not the
same there. A value that a type has is drawn from it, others are in the tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import split

import click
from click.testing import CliRunner

from tests.tellings import PROGRAMS, Told, nights, traces
from tests.tellings.border import Border, Flat, difference
from tests.tellings.stand_ins import Handed, stand_ins
from userdev.errors import UserError, VerdictError
from vfio_user.nightly.matrix import draw_plan, write_lock
from vfio_user.nightly.plan import read_plan
from vfio_user.server.command_line import SERVING
from vhost_user.backend.command_line import SERVING as SERVING_BACK_ENDS

# What a command is called with at least.
LEAST: Mapping[str, str] = {
    "boot": "--device edu",
    "bundle diff": "first second",
    "bundle show": "first",
    "conformance": "a.sock",
    "control": "c.sock mark text=here",
    "exec": "-- uname -r",
    "fuzz": "a.sock --seed 1",
    "image build": "minimal",
    "interpose": "--listen a --connect b",
    "minimize": "one --server-command 'S {socket}'",
    "new": "my-nic",
    "nightly": "--plan plan.yaml",
    "nightly compare": "n-7 n-8",
    "peer": "passt",
    "probe": "a.sock",
    "replay": "one --connect b",
    "repro": "first",
    "serve blk": "--socket-path s --image disk.img",
    "serve nvme": "--socket-path s --image disk.img",
    "show": "one --no-open",
    "soak": "--seed 1",
    "test-e2e": "registers",
    "trace cut": "one --output cut.trace --records 1-",
    "trace diff": "one other",
    "trace export": "one --output out --format json",
    "trace show": "one",
    "trace stats": "one",
}
# What an option is given, by its name and, where it is another thing there, the command's. Others are of their type.
VALUES: Mapping[str, str] = {
    "--address": "elsewhere",
    "--break-at": "dev0:7",
    "--bundle": "kept",
    "--cell": '\'{"qemu": "theirs"}\'',
    "--check": "'a check {trace}'",
    "--command": "REGION_WRITE",
    "--connect": "elsewhere",
    "--control": "a-control",
    "--device": "'edu --msix 0'",
    "vhost-user --device": "rng",
    "--dialect": "region-migration",
    "--faults": "faults.yaml",
    "--for": "1h30m",
    "--from-mark": "begun",
    "--to-mark": "ended",
    "--hosts": "local,local",
    "--ignore": "REGION_READ",
    "fuzz --ignore": "growth",
    "--image": "storage",
    "--interpose": "",
    "--level": "must",
    "--modules": "'one, two'",
    "fuzz --output": "finds",
    "--offset": "0x60-0x63",
    "--only": "7,9",
    "conformance --only": "config",
    "vfio-user conformance --only": "version",
    "nightly --only": "'edu+*'",
    "--only-events": "hop,flr",
    "--option": "job.run.timeout=7",
    "--pending-errno": "ENXIO",
    "--qemu": "theirs",
    "--plan": "another.yaml",
    "--qmp-log": "qmp.log",
    "--console-log": "console.log",
    "--record": "7",
    "--records": "2-3",
    "--region": "BAR0",
    "--register": "up",
    "--registers": "map.yaml",
    "--fd": "7",
    "serve --trace": "a.trace",
    "serve --control": "unix:c",
    "serve --dma-mask": "0xffff",
    "serve --msix": "no",
    "serve edu --msix": "0",
    "--flr": "yes",
    "--pm": "yes",
    "--inputs": "0x3",
    "--io": "yes",
    "serve --image": "other.img",
    "--serial": "ABC",
    "--queues": "2",
    "--block-size": "4096",
    "--shadow-doorbells": "no",
    "--map-doorbells": "no",
    "--doorbell-interval": "25",
    "--subsystem-reset": "no",
    "--migrate-image": "yes",
    "--mac": "52:54:00:12:34:99",
    "--ip": "10.1.2.3",
    "--station": "52:54:00:12:34:98",
    "--mtu": "1400",
    "--source": "map.yaml",
    "--without": "LOG_ALL",
    "--socket-path": "elsewhere",
    "--server": "'S {socket}'",
    "test-e2e --server": "'edu=S {socket}'",
    "--server-command": "'T {socket}'",
    "--against": "'R {socket}'",
    "--tag": "irq",
    "--to-qemu": "another",
    "--since": "0.01",
    "--until": "0.02",
    "soak --until": "90m",
    "repro --until": "PASS",
    "--weight": "hop=7",
    "--weights": "weights.yaml",
    "--workload": "dma",
    "--listen": "elsewhere",
}
# What stands beside an option that would say nothing by itself.
BESIDE: Mapping[str, str] = {
    "--bundle-size": "--bundle kept",
    **dict.fromkeys(
        ("--msg-timeout", "--pending", "--pending-errno", "--no-kick", "--signal-error", "--hang-timeout"),
        "--reconnect",
    ),
    "--give-up-after": "--reconnect",
    "--qmp-log": "--format perfetto",
    "--console-log": "--format perfetto",
    "trace stats --interval": "--watch",
    "repro --until": "--times 2",
}
# How and where it is told what came of it: whatever else is said means the same beside these.
TOLD = ("--json", "--quiet", "--bundle")
# Another beginning than `LEAST`, for what is not an option of that.
BEGUN: Mapping[str, str] = {
    "conformance --device": "",
    "fuzz --device": "--seed 1",
    "probe --device": "",
    "minimize --device": "one",
    "replay --device": "one",
    "interpose --device": "--listen a",
    "interpose --keep-alive": "--listen a --server-command 'T {socket}'",
    "trace show --ring": "back",
    "nightly --locked": "--plan another.yaml",
    "migrate --workload ping": "--device vhost-user-net",
    **{f"migrate --workload {work}": "--device vhost-user-blk" for work in ("files", "blocks", "fio")},
    **dict.fromkeys(("serve --fd", "serve --listen"), ""),
    **dict.fromkeys(("serve nvme --fd", "serve nvme --listen", "serve blk --fd"), "--image disk.img"),
    "conformance --server-command": "",
    "fuzz --server-command": "--seed 1",
    "probe --server-command": "",
    "replay --server-command": "one",
    "interpose --server-command": "--listen a",
}


PLAN = """\
name: ours
groups:
  first:
    servers: [edu]
    tests: ["registers:Registers.test_factorial"]
    vary: {cpus: [1, 2]}
"""


def inputs(folder: Path) -> None:
    """What the commands read."""
    traces.made(folder)
    for number in (2, 3):
        (folder / nights.NAMES[number]).mkdir()
        nights.night(number).write(folder / nights.NAMES[number])
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "weights.yaml").write_text("hop: 5\n")
    (folder / "another.yaml").write_text(PLAN)
    another = read_plan(folder / "another.yaml")
    write_lock(another, draw_plan(another))
    for log in ("qmp.log", "console.log"):
        (folder / log).touch()
    for disk in ("disk.img", "other.img"):
        (folder / disk).write_bytes(bytes(1 << 16))
    (folder / "faults.yaml").write_text("rules: []\n")


def commands() -> Iterator[tuple[str, str, click.Command]]:
    """Every command of both programs, with what it is called by."""
    for program, root in PROGRAMS.items():
        yield from _below(program, "", root)


def _below(program: str, name: str, command: click.Command) -> Iterator[tuple[str, str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None, each
            yield from _below(program, f"{name} {each}".strip(), below)
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield program, name, command


def handed(program: str, name: str, command: click.Command, words: Sequence[str], folder: Path) -> Flat:
    """All that a command hands over, which is called with these words."""
    _forget(folder)
    root = click.Context(PROGRAMS[program], info_name=program)
    with CliRunner().isolation(input=b"typed"):
        border, says, ended = Border(folder), Flat(), "done"
        try:
            with command.make_context(name, [*words], parent=root) as context:
                says = {f"says {key}": str(value) for key, value in context.params.items()}
                assert command.callback is not None
                with border:
                    context.invoke(command.callback, **context.params)
        except Handed:
            ended = "handed over"
        except click.exceptions.Exit as end:
            ended = str(end.exit_code)
        except VerdictError:
            ended = "1"
        except (UserError, click.UsageError):
            return {"ended": "refused"}
    if name.startswith("serve "):
        plainly = handed_plainly(program, [*name.split()[1:], *words], folder)
        says |= {f"plainly {key}": value for key, value in difference(border.told, plainly).items()}
    return {"ended": ended, **says, **border.told}


def _forget(folder: Path) -> None:
    """Have nothing of what was tried before."""
    shutil.rmtree(folder / "results", ignore_errors=True)
    (folder / "plan.lock.json").unlink(missing_ok=True)


def handed_plainly(program: str, words: Sequence[str], folder: Path) -> Flat:
    """What `serve` hands over that is called without click."""
    border = Border(folder)
    with suppress(Handed), border:
        (SERVING if program == "vfio-user" else SERVING_BACK_ENDS).run_plain(words)
    return border.told


def choices(program: str, name: str, option: click.Option) -> Sequence[Sequence[str]]:
    """The same of each choice that an option has, but for its default."""
    words = values(program, name, option)
    if not isinstance(option.type, click.Choice):
        return [words]
    return [[words[0], str(each)] for each in reversed(option.type.choices) if each != option.default]


def values(program: str, name: str, option: click.Option) -> Sequence[str]:
    """What is written on a command line for a value of an option that is none by default."""
    flag = max(option.opts, key=len)
    of_group = f"{name.partition(' ')[0]} {flag}"
    for key in (f"{program} {name} {flag}", f"{name} {flag}", of_group, f"{program} {flag}", flag):
        if key in VALUES and not option.is_flag:
            return [flag, *split(VALUES[key])]
    if option.is_flag:
        return [option.secondary_opts[0] if option.default and option.secondary_opts else flag]
    match option.type:
        case click.Choice(choices=choices):
            return [flag, next(str(each) for each in reversed(choices) if each != option.default)]
        case click.IntRange(min=least, max=most):
            return [flag, str(most - 1 if most is not None else 7 * max(least or 1, 20))]
        case click.types.IntParamType():
            return [flag, "7"]
        case click.types.FloatParamType():
            return [flag, "2.5"]
        case click.Path():
            return [flag, f"the{flag[1:]}"]
    raise AssertionError(f"{program} {name}: what may {flag} be?")


def told(folder: Path) -> Told:
    """Of each command what it hands over, and of each of its options what is otherwise with it."""
    inputs(folder)
    with stand_ins(folder):
        found: Told = {}
        for program, name, command in commands():
            of_command = _of_command(program, name, command, folder)
            other = next((each for each in found if each.partition(" ")[2] == name and found[each] == of_command), "")
            found[f"{program} {name}"] = f"as {other}" if other else of_command
        return found


def _takes(parameter: click.Parameter) -> str:
    """What it may be, with its bounds, and whether a shell completes it."""
    match parameter.type:
        case click.Path() as path:
            kind = f"path, exists={path.exists}, file={path.file_okay}, folder={path.dir_okay}, dash={path.allow_dash}"
        case click.IntRange() | click.FloatRange() | click.Choice():
            kind = repr(parameter.type)
        case other:
            kind = other.name
    return kind + ", completed" * (parameter._custom_shell_complete is not None)


def _begun(name: str, words: Sequence[str]) -> str | None:
    """What stands in `BEGUN` for an option with its value, or whatever its value; None: nothing."""
    keys = (f"{name} {' '.join(words)}", f"{name} {words[0]}", f"{name.partition(' ')[0]} {words[0]}")
    return next((BEGUN[key] for key in keys if key in BEGUN), None)


def _of_command(program: str, name: str, command: click.Command, folder: Path) -> Told:
    def tried(begun: str, *words: str) -> Flat:
        """What is handed over with these words, which stand before those of another command."""
        own = split(begun)
        at = own.index("--") if "--" in own else len(own)
        return handed(program, name, command, [*own[:at], *words, *own[at:]], folder)

    least = LEAST.get(name, "--socket-path s" if name.startswith("serve ") else "")
    options = [each for each in command.params if isinstance(each, click.Option) and each.name != "version"]
    how = [word for each in options if max(each.opts, key=len) in TOLD for word in values(program, name, each)]
    base, base_so = tried(least), tried(least, *how)
    takes = {max(each.opts, key=len): _takes(each) for each in command.params}
    found: Told = {"takes": takes, "least": base}
    otherwise: Told = {}
    for option in options:
        for words in choices(program, name, option):
            beside = BESIDE.get(f"{name} {words[0]}", BESIDE.get(words[0], ""))
            without, without_so = base, base_so
            if beside:
                without, without_so = tried(least, *split(beside)), tried(least, *split(beside), *how)
                found[beside] = difference(base, without)
            begun = _begun(name, words)
            begun = least if begun is None else begun
            said = found[" ".join(words)] = difference(without, tried(begun, *split(beside), *words))
            if how and words[0] not in (*TOLD, "--bundle-size"):
                so = difference(without_so, tried(begun, *split(beside), *words, *how))
                if changed := difference(said, so):
                    otherwise[" ".join(words)] = changed
    return {**found, f"beside {' '.join(how)}": otherwise} if otherwise else found
