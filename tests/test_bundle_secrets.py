"""Secrets never go into a bundle: found by their names, their form and their value, in every kind of file."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
import zstandard

from tests.bundle_kit import RECIPE, make_results
from tests.cases import for_each
from vfio_user.bundle import Outcome, Recipe, Secrets, cores, pack
from vfio_user.bundle.cores import TooLarge, pack_core

SECRET = "s3cr3t-hunter2"
BODY = "b3BlbnNzaC1rZXktdjEAAAAA"
KEY = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BODY}\nAAAAB3NzaC1lZDI1NTE5\n-----END OPENSSH PRIVATE KEY-----"

COMMANDS = {
    "an option and its value": ("./server", "--token", SECRET, "{socket}"),
    "an option with its value": ("./server", f"--api-key={SECRET}", "{socket}"),
    "a command line within": ("run", "--server", f"./server --password '{SECRET}' {{socket}}"),
    "an assignment": ("run", "--server", f"env LICENSE_SECRET={SECRET} ./server {{socket}}"),
    "a word that is one": (f"dbPassword={SECRET}", "./server"),
    "a URL": ("migrate", "--hosts", f"local,ssh://root:{SECRET}@host:22"),
    "a header": ("./server", "--header", f"Authorization: Bearer {SECRET}"),
}


def everything(folder: Path) -> bytes:
    """The bytes of all files, compressed ones as they were."""
    found = b""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found += zstandard.ZstdDecompressor().decompressobj().decompress(data) if path.suffix == ".zst" else data
    return found


def packed(
    tmp_path: Path, *, said: str = "", words: tuple[str, ...] = (), environment: dict[str, str] | None = None
) -> Path:
    """A bundle of results in which every file says `said`, of a command of these words."""
    results = make_results(tmp_path / "results", said=said)
    (results / "guest-1.core").write_bytes(b"\x7fELF" + said.encode() + b"\0" * 4096)
    (results / "guest-dev0-edu.trace").write_bytes(b"vfutrc1\n" + said.encode() + b"\xff\xfe\0")
    (results / "faults.yaml").write_text(f"# {said}\nrules: []\n")
    place = tmp_path / "bundle"
    pack(
        results,
        place,
        Recipe(command="run", arguments=words),
        Outcome(verdict="FAIL", cause=said),
        of=" ".join(words),
        inputs={"faults.yaml": results / "faults.yaml"},
        secrets=Secrets([words], environment or {}),
    )
    return place


def test_of_secrets_within_each_other_nothing_is_left(tmp_path: Path) -> None:
    environment = {
        "ONE_TOKEN": "swordfish",
        "OTHER_TOKEN": "swordfish-and-more",
        "THIRD_TOKEN": "the-swordfish-and-more",
    }
    said = " ".join(environment.values())
    secrets = Secrets([], environment)
    assert secrets.text(said).split() == ["{secret}"] * 3
    assert secrets.words([said]) == [" ".join(["{secret}"] * 3)]
    assert secrets.values({"said": said}) == {"said": " ".join(["{secret}"] * 3)}
    assert secrets.data(said.encode()) == b" ".join(b"x" * len(value) for value in environment.values())


@for_each(COMMANDS.values(), ids=COMMANDS)
def test_a_secret_of_the_command_line_is_nowhere(words: tuple[str, ...], tmp_path: Path) -> None:
    place = packed(tmp_path, said=f"connecting with {SECRET}!", words=words)
    assert SECRET.encode() not in everything(place)
    assert b"connecting with" in everything(place), "what else was said is there"


@for_each(
    ["GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "sshPassphrase", "ci_api_key"],
    [SECRET, 'it\'s "quoted" & <so> \\ on'],
)
def test_a_secret_of_the_environment_is_nowhere(name: str, value: str, tmp_path: Path) -> None:
    if name == "PGPASSWORD":
        name = "PG_PASSWORD"
    said = f"{value} {html.escape(value)} {json.dumps(value)}"
    bytes_of_it = everything(packed(tmp_path, said=said, environment={name: value, "HOME": "/home/somebody"}))
    for form in (value, html.escape(value), json.dumps(value)[1:-1]):
        assert form.encode() not in bytes_of_it


@for_each([f"ghp_{'a1' * 18}", f"glpat-{'b2' * 10}", "AKIA" + "Z9" * 8, "eyJhbGciOiJIUzI.eyJzdWIiOiIxMjM.c2ln"])
def test_a_token_of_a_known_form_is_in_no_text(token: str, tmp_path: Path) -> None:
    results = make_results(tmp_path / "results", said=f"using {token}")
    pack(results, tmp_path / "bundle", RECIPE, Outcome(verdict="FAIL"), of="", secrets=Secrets((), {}))
    assert token.encode() not in everything(tmp_path / "bundle")


def test_a_private_key_is_nowhere(tmp_path: Path) -> None:
    found = everything(packed(tmp_path, said=KEY))
    assert BODY.encode() not in found
    assert json.dumps(KEY)[1:-1].encode() not in found


def test_the_files_of_keys_are_not_taken(tmp_path: Path) -> None:
    results = make_results(tmp_path / "results")
    for name in ("client", "id_ed25519", "guest.known_hosts", ".env"):
        (results / name).write_text("nothing that looks like a secret")
    made = pack(results, tmp_path / "bundle", RECIPE, Outcome(verdict="FAIL"), of="", secrets=Secrets((), {}))
    assert {"client", "id_ed25519", "guest.known_hosts", ".env"} <= made.left_out.keys()
    assert b"nothing that looks" not in everything(tmp_path / "bundle")


def test_a_link_to_a_file_elsewhere_is_not_followed(tmp_path: Path) -> None:
    results = make_results(tmp_path / "results")
    (tmp_path / "elsewhere").write_text("of somebody else")
    (results / "extra.server.log").symlink_to(tmp_path / "elsewhere")
    made = pack(results, tmp_path / "bundle", RECIPE, Outcome(verdict="FAIL"), of="", secrets=Secrets((), {}))
    assert "extra.server.log" in made.left_out
    assert b"of somebody else" not in everything(tmp_path / "bundle")


@for_each(
    [
        "the token bucket has 5 tokens",
        "vfio-user serve edu --socket-path /tmp/s --msix 0",
        '{"execute": "send-key", "arguments": {"keys": [{"type": "qcode", "data": "ret"}]}}',
        "author: somebody, monkey=1, keyboard: us",
        "REGION_READ BAR0+0x20 = 0xed",
        "at 12:30:15.250 http://host:8080/path",
    ]
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert Secrets((), {"HOME": "/tmp", "TOKEN": "1", "AUTH": "none"}).text(text) == text


def test_what_was_taken_out_once_is_not_taken_out_again() -> None:
    secrets = Secrets([("--token", SECRET)], {})
    once = secrets.text(f"./server --token {SECRET} TOKEN={SECRET} 'password': '{SECRET}'")
    assert SECRET not in once
    assert secrets.text(once) == once


CHUNK = 1 << 16
"""Bytes of a core that are looked at together, in these tests."""


@for_each([0, 100, CHUNK - 9, CHUNK, CHUNK + 32_760, 2 * CHUNK + 40_000])
def test_a_core_is_without_the_environment_wherever_it_lies(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "CHUNK", CHUNK)
    environment = {"HOME": "/home/somebody", "MY_TOKEN": SECRET, "HARMLESS": "a word of mine", "LONG": "long " * 2000}
    entries = b"".join(f"{name}={value}\0".encode() for name, value in environment.items())
    entries += b"".join(f"\1{value}\2".encode() for value in environment.values())
    core = tmp_path / "guest-1.core"
    core.write_bytes(bytes(at) + entries + b"what is kept" + bytes(100_000))
    pack_core(core, tmp_path / "packed.core.zst", Secrets((), environment), 1 << 20)
    data = zstandard.ZstdDecompressor().decompressobj().decompress((tmp_path / "packed.core.zst").read_bytes())
    assert len(data) == core.stat().st_size, "it is a core still"
    assert b"what is kept" in data
    assert not [value for value in environment.values() if value.encode() in data]


def test_a_core_that_is_compressed_already_is_looked_into(tmp_path: Path) -> None:
    core = tmp_path / "guest-1.core.zst"
    core.write_bytes(zstandard.compress(f"TOKEN={SECRET}\0".encode() + bytes(1000)))
    pack_core(core, tmp_path / "packed.zst", Secrets((), {"TOKEN": SECRET}), 1 << 20)
    assert SECRET.encode() not in zstandard.ZstdDecompressor().decompressobj().decompress(
        (tmp_path / "packed.zst").read_bytes()
    )


def test_a_core_without_room_leaves_nothing(tmp_path: Path) -> None:
    import random

    core = tmp_path / "guest-1.core"
    core.write_bytes(random.Random(1).randbytes(1 << 20))
    with pytest.raises(TooLarge):
        pack_core(core, tmp_path / "packed.zst", Secrets((), {}), 1 << 16)
    assert not (tmp_path / "packed.zst").exists()
