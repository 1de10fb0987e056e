"""What an author of a virtio device writes; mistakes are refused when the class is made, with class, name and line."""

from __future__ import annotations

import inspect
import textwrap
import warnings
from pathlib import Path
from typing import Annotated, Any

import pytest

from tests.cases import for_each, for_each_row
from userdev.declare.options import device_options
from userdev.errors import DeclarationError, ProtocolError
from vhost_user.device import Chain, Queues, VhostDevice, config_field, model_of, queue, state

HEAD = """\
from typing import Annotated
from vhost_user.device import Chain, Queues, VhostDevice, config_field, queue, state, supply
"""
GOOD = """\
    virtio_id = 4
    queues = Queues(1)
    @queue(0)
    def fill(self, chain: Chain) -> int: return 0
"""


class Echo(VhostDevice):
    """Gives back what it is given."""

    virtio_id = 42
    queues = Queues(2, size=64)
    features = 1 << 5
    count: int = state(0)
    capacity: int = config_field(8, 7)
    mode: int = config_field(1, 1, writable=True)
    tag: bytes = config_field(4, b"abcd", offset=12)

    def __init__(self, *, capacity: Annotated[int, "sectors"] = 100, lanes: Annotated[int, "queues"] = 2) -> None:
        self.capacity = capacity
        self.queues = Queues(lanes)
        self.told: list[str] = []
        super().__init__()

    @queue(0)
    def echo(self, chain: Chain) -> int:
        self.count += 1
        return chain.write(chain.read())

    @queue()
    def rest(self, chain: Chain) -> int:
        return 0

    def on_config(self, name: str) -> None:
        self.told.append(name)


def made(tmp_path: Path, body: str) -> Any:
    path = tmp_path / "author.py"
    path.write_text(HEAD + "class Bad(VhostDevice):\n" + body)
    namespace: dict[str, Any] = {"__name__": "author"}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    return namespace["Bad"]


def test_a_device_has_its_declared_values_before_its_constructor_runs() -> None:
    device = Echo()
    assert (device.count, device.capacity, device.mode, device.tag) == (0, 100, 1, b"abcd")


def test_configuration_space_is_the_fields_as_they_are_now() -> None:
    device = Echo(capacity=0x1234)
    device.mode = 2
    assert model_of(device).config.read() == bytes.fromhex("3412000000000000 02 000000") + b"abcd"


def test_only_writable_fields_are_written_by_a_driver_and_all_by_a_migration() -> None:
    device = Echo()
    space = model_of(device).config
    assert space.write(8, b"\x05") == ["mode"]
    assert device.mode == 5
    before = space.read()
    for offset, size in ((0, 9), (7, 2), (8, 8), (0, 16), (8, 5)):  # whichever of the fields comes first
        with pytest.raises(ValueError, match=r"cannot be written"):
            space.write(offset, bytes(size))
        assert space.read() == before, (offset, size)
    assert space.write(0, (9).to_bytes(8, "little"), read_only_too=True) == ["capacity"]
    assert device.capacity == 9
    with pytest.raises(ValueError, match="of 16"):
        space.write(15, b"ab")


def test_a_reset_brings_back_state_and_what_the_driver_wrote_and_leaves_what_the_device_is() -> None:
    device = Echo(capacity=50)
    device.count, device.mode = 3, 0
    model_of(device).reset()
    assert (device.count, device.mode, device.capacity) == (0, 1, 50)


def test_a_reset_brings_back_what_the_constructor_has_made_of_state() -> None:
    class Begun(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.count = 7

    device = Begun()
    device.count = 3
    model_of(device).reset()
    assert device.count == 7


def test_queues_may_be_decided_when_a_device_is_made() -> None:
    device = Echo(lanes=4)
    assert [getattr(taker, "__name__", "") for taker in model_of(device).takers] == ["echo", "rest", "rest", "rest"]


def test_its_options_are_those_of_its_constructor() -> None:
    assert [option.name for option in device_options(Echo)] == ["capacity", "lanes"]


def test_a_device_is_told_once_that_it_is_given_back_even_if_it_fails_at_that() -> None:
    class Failing(Echo):
        closed = 0

        def on_close(self) -> None:
            self.closed += 1
            raise OSError("its file")

    device = Failing()
    with pytest.raises(OSError, match="its file"):
        device.close()
    device.close()
    assert device.closed == 1


def test_work_that_is_posted_without_a_front_end_is_done_when_one_comes() -> None:
    class Link:
        def __init__(self) -> None:
            self.work: list[Any] = []

        def config_changed(self) -> None: ...

        def call_soon(self, work: Any) -> None:
            self.work.append(work)

    device, link = Echo(), Link()
    device.call_soon(lambda: None)
    model_of(device).attach(link)
    device.call_soon(lambda: None)
    assert len(link.work) == 2


MISTAKES = {
    "no virtio_id": (GOOD.replace("    virtio_id = 4\n", ""), "virtio_id"),
    "no queues": (GOOD.replace("    queues = Queues(1)\n", ""), "queues"),
    "queues that are a number": (GOOD.replace("Queues(1)", "71"), "queues is 71, and no Queues"),
    "a queue without a function": (GOOD.replace("Queues(1)", "Queues(2)"), "queue 1"),
    "a queue that is not there": (GOOD.replace("@queue(0)", "@queue(0, 1)"), "fill"),
    "a queue with two functions": (
        GOOD + "    @queue(0)\n    def more(self, chain: Chain) -> int: return 0\n",
        "fill",
    ),
    "two functions for all that is left": (
        GOOD.replace("@queue(0)", "@queue()") + "    @queue()\n    def more(self, chain: Chain) -> int: return 0\n",
        "fill",
    ),
    "a queue without parentheses": (GOOD.replace("@queue(0)", "@queue"), "Bad.fill: @queue is written without"),
    **{
        f"a {kind} above a queue": (
            GOOD.replace("@queue(0)", f"@{kind}\n    @queue(0)"),
            f"Bad.fill is declared, and @{kind}",
        )
        for kind in ("property", "staticmethod", "classmethod")
    },
    "a function without a request": (GOOD.replace("self, chain: Chain", "self"), "Bad.fill"),
    "a function that yields": (GOOD + "    @queue(1)\n    def more(self, chain: Chain): yield 0\n", "Bad.more"),
    "a hook of a coroutine": (GOOD + "    async def on_start(self, queue: int) -> None: ...\n", "Bad.on_start"),
    "a queue with a negative number": (GOOD.replace("@queue(0)", "@queue(-1)"), "Bad.fill"),
    "a feature of the transport": (GOOD + "    features = 1 << 29\n", "Bad.features"),
    "features that are a list": (GOOD + "    features = [3]\n", "Bad.features is [3], and no set of feature bits"),
    "a virtio_id that is a text": (GOOD.replace("= 4", "= 'rng'"), "Bad.virtio_id is 'rng', and no number"),
    "a hook that nobody calls": (GOOD + "    def on_rest(self) -> None: ...\n", "Bad.on_rest"),
    "a hook that takes something else": (GOOD + "    def on_start(self) -> None: ...\n", "Bad.on_start"),
    "a name of the framework's": (GOOD + "    close: int = state(0)\n", "Bad.close"),
    "a field of three bytes": (GOOD + "    odd: int = config_field(3, 0)\n", "Bad.odd"),
    "a field that is not said to be writable": (GOOD + "    odd: int = config_field(1, 0, writable='no')\n", "Bad.odd"),
    "bytes of another size": (GOOD + "    odd: bytes = config_field(3, b'ab')\n", "Bad.odd"),
    "a field without room for its value": (GOOD + "    odd: int = config_field(1, 256)\n", "Bad.odd"),
    "fields that overlap": (
        GOOD + "    one: int = config_field(4, 0)\n    two: int = config_field(2, 0, offset=3)\n",
        "Bad.two",
    ),
    "a field behind the end": (GOOD + "    odd: int = config_field(8, 0, offset=252)\n", "Bad.odd"),
    "state that cannot be saved": (GOOD + "    odd: object = state(object())\n", "Bad.odd"),
}


WAYS_OUT = {
    "supply beside a queue that is not there": (
        GOOD.replace("Queues(1)", "Queues(2)").replace("@queue(0)", "receive = supply(0)\n    @queue(5)"),
        "@queue(1)",
    ),
    "a supply that is not there": (
        GOOD.replace("Queues(1)", "Queues(2)").replace("@queue(0)", "receive = supply(5)\n    @queue(0)"),
        "supply(1)",
    ),
    "a queue with two functions": (
        GOOD.replace("Queues(1)", "Queues(2)") + "    @queue(0)\n    def more(self, chain: Chain) -> int: return 0\n",
        "@queue(1)",
    ),
    "a queue without a function": (GOOD.replace("Queues(1)", "Queues(2)"), "@queue(1)"),
    "a queue beyond those that are taken": (GOOD.replace("@queue(0)", "@queue(0, 1)"), "Queues(1)"),
    "a number that is annotated as a text": (GOOD + "    cols: str = config_field(2, 80)\n", "cols: int"),
    "a dict that is annotated as a number": (GOOD + "    said: int = state({})\n", "said: dict"),
    "the name of what declares functions for queues": (GOOD.replace("    queues =", "    queue ="), "queues = Queues("),
    "queues above a function": (GOOD.replace("@queue(0)", "@queues(0)"), "@queue(0)"),
    "a supply by the name of what declares it": (
        GOOD.replace("Queues(1)", "Queues(3)").replace(
            "    @q", "    supply = supply(1)\n    more = supply(2)\n    @q"
        ),
        "hides supply",
    ),
    "a function by the name of what declares it": (
        GOOD.replace("def fill", "def queue") + "    @queue(1)\n    def fill(self, chain: Chain) -> int: return 0\n",
        "hides queue",
    ),
    "another name for virtio_id": (GOOD.replace("virtio_id", "virtio_di"), "virtio_id by virtio_di"),
    "another name for queues": (GOOD.replace("    queues", "    queue_list"), "queues by queue_list"),
    "a text without Annotated": (
        GOOD + "    def __init__(self, *, prefix: str = '') -> None: super().__init__()\n",
        "prefix: Annotated[str, \"what it is\"] = ''",
    ),
    "an option without type": (
        GOOD + "    def __init__(self, *, rate=2.5) -> None: super().__init__()\n",
        'rate: Annotated[float, "what it is"] = 2.5',
    ),
    "an option without default": (
        GOOD + "    def __init__(self, *, on: 'Annotated[bool, \"is on\"]') -> None: super().__init__()\n",
        'on: Annotated[bool, "is on"] = False',
    ),
    "an option that no text makes": (
        GOOD + "    def __init__(self, *, names: list[str] = ()) -> None: super().__init__()\n",
        "names: Annotated[str, ",
    ),
}


def test_a_mistake_is_told_with_what_would_be_right_there(tmp_path: Path) -> None:
    for mistake, (body, right) in WAYS_OUT.items():
        with pytest.raises(DeclarationError) as refused, warnings.catch_warnings(action="ignore"):
            made(tmp_path, body)
        assert right in "".join(refused.value.__notes__), f"{mistake}: {refused.value.__notes__}"


@for_each(MISTAKES)
def test_a_mistake_in_a_class_is_refused_with_what_and_where_it_is(mistake: str, tmp_path: Path) -> None:
    body, named = MISTAKES[mistake]
    with pytest.raises(DeclarationError) as refused:
        made(tmp_path, body)
    assert named in str(refused.value)
    assert "Bad" in str(refused.value)
    assert f"{tmp_path}/author.py:" in str(refused.value)
    assert refused.value.__notes__


def test_an_annotation_that_says_as_much_as_the_default_or_more_is_taken(tmp_path: Path) -> None:
    said = (
        "float = state(0)",
        "'int | None' = state(0)",
        "int = state(None)",
        "list[int] = state([])",
        "int = state(True)",
    )
    for number, each in enumerate(said):
        made(tmp_path, GOOD + f"    value{number}: {each}\n")


def test_a_value_that_its_field_has_no_room_for_is_refused_where_it_is_assigned(tmp_path: Path) -> None:
    fields = "    cols: int = config_field(2, 80)\n    tag: bytes = config_field(4, b'abcd')\n"
    cases: dict[str, tuple[list[object], str]] = {
        "cols": (["wide", 80000, -1, None, b"ab", 2.0], "holds a number of 2 bytes, 0 to 65535"),
        "tag": ([b"abc", b"abcde", 4, "abcd", None], "holds 4 bytes"),
    }
    device = made(tmp_path, GOOD + fields)()
    for name, (values, words) in cases.items():
        for value in values:
            line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
            with pytest.raises(DeclarationError) as refused:
                setattr(device, name, value)
            assert words in str(refused.value), (name, value)
            assert str(refused.value).endswith(f"({__file__}:{line})"), (name, value)
            assert "author.py:" in refused.value.__notes__[0]
    assert model_of(device).config.read() == b"\x50\x00abcd", "it is as it was"
    device.cols, device.tag = True, bytearray(b"efgh")
    assert model_of(device).config.read() == b"\x01\x00efgh"
    device.tag.append(0)  # nobody sees that
    with pytest.raises(ValueError, match=r"tag .* 4 bytes .*author.py:\d+"):
        model_of(device).config.read()


def test_a_class_without_mistakes_is_made(tmp_path: Path) -> None:
    assert made(tmp_path, GOOD)().queues == Queues(1)


@for_each(
    [{"count": 0}, {"count": 257}, {"count": 1, "size": 3}, {"count": 1, "size": 65536}, {"count": 3, "paired": True}]
)
def test_queues_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="queue"):
        Queues(**wrong)


def test_pairs_are_said_by_true_or_false() -> None:
    with pytest.raises(TypeError, match="paired is 'no'"):
        Queues(2, paired="no")  # type: ignore[arg-type]


@for_each_row([(2, True, 1), (6, True, 3), (3, False, 3)])
def test_paired_queues_are_counted_by_pairs(count: int, paired: bool, counted: int) -> None:
    assert Queues(count, paired=paired).counted == counted


def test_what_a_constructor_sets_is_looked_at_too(tmp_path: Path) -> None:
    body = GOOD + textwrap.indent("def __init__(self) -> None:\n    self.queues = Queues(2)\n", "    ")
    with pytest.raises(DeclarationError, match="queue 1"):
        made(tmp_path, body)()
    body = GOOD + "    size: int = config_field(1, 0)\n    def __init__(self) -> None:\n        self.size = 256\n"
    with pytest.raises(DeclarationError, match="size"):
        made(tmp_path, body)()


def test_a_constructor_may_call_that_of_the_base_before_it_has_set_all() -> None:
    class Sized(VhostDevice):
        virtio_id = 42
        queues = Queues(1)

        def __init__(self) -> None:
            super().__init__()
            self.bits = 1 << 5

        @property
        def features(self) -> int:  # type: ignore[override]
            return self.bits

        @queue(0)
        def reset(self, chain: Chain) -> int:
            return 0

    assert Sized().features == 1 << 5


def test_an_author_may_call_attributes_as_he_likes() -> None:
    class Plain(VhostDevice):
        virtio_id = 1
        queues = Queues(1)

        def __init__(self) -> None:
            self._model = self._source = self._link = self._constructed = self.config = self.takers = 1

        @queue(0)
        def reset(self, chain: Chain) -> int:
            return 0

    assert getattr(model_of(Plain()).takers[0], "__name__", "") == "reset"


def test_the_base_of_several_devices_says_that_it_is_one() -> None:
    class Base(VhostDevice, abstract=True):
        total: int = state(0)

    class Whole(Base):
        virtio_id = 1
        queues = Queues(1)

        @queue(0)
        def add(self, chain: Chain) -> int:
            self.total += 1
            return 0

    assert Whole().total == 0


def test_a_field_of_bytes_is_saved_and_loaded() -> None:
    source, target = Echo(), Echo()
    source.tag = b"efgh"
    model_of(target).load(model_of(source).save())
    assert target.tag == b"efgh"


@for_each([b"efg", b"efghi", b""])
def test_a_field_of_bytes_that_are_too_few_or_too_many_is_not_saved(tag: bytes) -> None:
    device = Echo()
    vars(device)["tag"] = tag  # as one that was changed in its place
    with pytest.raises(ProtocolError, match="tag"):
        model_of(device).save()


def test_a_number_that_its_field_has_no_room_for_is_not_saved() -> None:
    device = Echo()
    vars(device)["mode"] = 256
    with pytest.raises(ProtocolError, match="mode"):
        model_of(device).save()
