"""Options of a device: read from its constructor, given as text."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import pytest

from tests.cases import for_each, for_each_row
from userdev.declare.options import FALSE, TRUE
from userdev.errors import DeclarationError
from userdev.serving.command_line import Serving
from userdev_servers.blk import Blk
from userdev_servers.edu import Edu
from userdev_servers.gpio import Gpio
from userdev_servers.net import Net
from userdev_servers.nvme import Nvme
from userdev_servers.rng import Rng
from vfio_user import PciDevice, PciIds, UserError
from vfio_user.device import Option, device_options, parse_options
from vfio_user.server import command_line as pci
from vhost_user.backend import command_line as vhost
from vhost_user.device import VhostDevice, model_of


class Optioned(PciDevice):
    ids = PciIds(vendor=1, device=2)

    def __init__(
        self,
        internal: int = 3,
        *,
        queue_size: Annotated[int, "entries of each queue"] = 16,
        fast: Annotated[bool, "skip the delays"] = False,
        label: Annotated[str, "what it is called"] = "",
        image: Annotated[Path | None, "the file behind it"] = None,
        ratio: Annotated[Fraction, "of time that it is busy"] = Fraction(1),
        key: Annotated[bytes, "a type that no text makes"] = b"",
    ) -> None:
        super().__init__()
        self.given = (queue_size, fast, label, image, internal)


def test_options_are_the_annotated_arguments() -> None:
    assert device_options(Optioned) == [
        Option("queue_size", int, 16, "entries of each queue"),
        Option("fast", bool, False, "skip the delays"),
        Option("label", str, "", "what it is called"),
        Option("image", Path, None, "the file behind it"),
        Option("ratio", Fraction, Fraction(1), "of time that it is busy"),
        Option("key", bytes, b"", "a type that no text makes"),
    ]
    assert [option.name for option in device_options(Edu)] == ["dma_mask", "msix", "flr", "pm"]


@for_each_row(
    [
        (lambda _: Edu(), lambda _: Edu(dma_mask=1), "dma_mask"),
        (lambda at: Nvme(image=f"{at}/a:1M"), lambda at: Nvme(image=f"{at}/b:1M", queues=9), "queues"),
        (lambda at: Nvme(image=f"{at}/a:1M"), lambda at: Nvme(image=f"{at}/b:1M,{at}/c:1M"), "namespaces"),
    ]
)
def test_a_device_that_was_made_otherwise_is_told_apart_by_what_that_is_called(
    one: Callable[[Path], PciDevice], other: Callable[[Path], PciDevice], named: str, tmp_path: Path
) -> None:
    with closing(one(tmp_path)) as source, closing(other(tmp_path)) as destination:
        assert destination.identity()[named] != source.identity()[named]


def test_a_device_without_options_has_none() -> None:
    class Plain(PciDevice):
        ids = PciIds(vendor=1, device=2)

    assert device_options(Plain) == []


class Passing(Optioned):
    """Has an option more, and hands on the others."""

    def __init__(self, *, depth: Annotated[int, "how deep"] = 1, **options: Any) -> None:
        super().__init__(**options)
        self.depth = depth


def test_a_constructor_that_hands_options_on_has_those_of_its_base() -> None:
    of_its_base = [option.name for option in device_options(Optioned)]
    assert [option.name for option in device_options(Passing)] == ["depth", *of_its_base]
    device = Passing(**parse_options(Passing, {"depth": "2", "fast": "yes"}))
    assert (device.depth, device.given[1]) == (2, True)


def test_texts_become_arguments() -> None:
    texts = {"queue-size": "0x20", "fast": "yes", "label": "8", "image": "disk.img"}
    device = Optioned(**parse_options(Optioned, texts))
    assert device.given == (32, True, "8", Path("disk.img"), 3)
    for meant, words in {True: TRUE, False: FALSE}.items():
        for text in {each for word in words for each in (word, word.upper(), word.capitalize())}:
            assert Optioned(**parse_options(Optioned, {"fast": text})).given[1] is meant, text


def test_each_dash_in_a_name_is_an_underscore() -> None:
    class Named(PciDevice):
        ids = PciIds(vendor=1, device=2)

        def __init__(self, *, one_two_three: Annotated[int, "a name of three words"] = 0) -> None:
            super().__init__()
            self.given = one_two_three

    for number, name in enumerate(("one-two-three", "one_two_three", "one-two_three", "one_two-three"), 1):
        assert Named(**parse_options(Named, {name: str(number)})).given == number, name


@for_each(
    [
        *({"queue_size": "many"}, {"fast": "2"}, {"slow": "1"}, {"internal": "1"}),
        *({"ratio": "1/0"}, {"key": "5"}),  # not ValueError, what these types raise
    ]
)
def test_wrong_options_are_the_users_error(texts: dict[str, str]) -> None:
    with pytest.raises(UserError) as refused:
        parse_options(Optioned, texts)
    assert f"--{next(iter(texts)).replace('_', '-')}" in str(refused.value), "as it is written"


TRIED: dict[type, list[Any]] = {
    int: [-(1 << 70), -1, 0, 1, 257, 2049, 1 << 20, 1 << 70],
    bool: [False, True],
    str: ["", "é", ":", "x" * 5000, "/dev/null", "/", "/nowhere/at/all"],
    Path: [Path(), Path("x" * 5000), Path("/dev/null"), Path("/"), Path("/nowhere/at/all")],
}
"""Of each type of an option what a person may have given by mistake."""


@for_each([Edu, Gpio, Nvme, Blk, Net, Rng], ids=lambda device: device.__name__)
def test_an_option_that_a_device_of_ours_cannot_have_is_told_to_who_gave_it(
    device_class: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needed = {"image": "memory:1M"} if device_class in (Nvme, Blk) else {}
    for option in device_options(device_class):
        for value in TRIED[option.type]:
            refusal: Exception | None = None
            try:
                device = device_class(**{**needed, option.name: value})
            except Exception as failure:
                refusal = failure
            else:
                (model_of(device) if isinstance(device, VhostDevice) else device).close()
            told = isinstance(refusal, UserError | OSError | None) and not isinstance(refusal, DeclarationError)
            assert told, f"--{option.name} {value!r}: {refusal!r}"


def test_random_bytes_that_cannot_be_given_again_are_refused(tmp_path: Path) -> None:
    once = tmp_path / "pipe"
    os.mkfifo(once)
    writer = os.open(once, os.O_RDWR)
    os.write(writer, b"some")
    with pytest.raises(UserError):
        Rng(source=once)
    assert os.read(writer, 4) == b"some", "nothing of it was taken"
    os.close(writer)


TAKEN = {
    f"{base.__name__}-{name}": (serving, base, words, name)
    for serving, base, words in ((pci.SERVING, Optioned, {}), (vhost.SERVING, VhostDevice, {"abstract": True}))
    for name in ("help", *(setting.name for setting in serving.settings))
}


@for_each_row(TAKEN)
def test_an_option_of_serve_itself_is_no_devices(
    serving: Serving[Any], base: type, words: dict[str, bool], name: str
) -> None:
    made: dict[str, Any] = {"Annotated": Annotated}
    exec(f"def __init__(self, *, {name}: Annotated[int, 'a'] = 1, my_{name}: Annotated[int, 'b'] = 2): ...", made)
    device_class = types.new_class("Own", (base,), words, lambda body: body.update(__init__=made["__init__"]))
    with pytest.raises(UserError, match=f"Own .*: {name}$"):
        serving.own_options(device_class)
