"""QEMU's command line follows from the machine's description alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.harness.attachment import Attachment, SocketChardev
from vfio_user.harness.command_line import (
    MachineConfig,
    Start,
    Wiring,
    command_line,
    machine_type,
    slot_address,
)
from vfio_user.harness.device import Device, server_command
from vfio_user.harness.family import VFIO_USER, VHOST_USER

PLAIN = MachineConfig("pc-q35-11.1", "tcg")
WIRING = Wiring(qmp=5, console=6, agent=7, qtest=8)
PORT = "pcie-root-port"
START = Start(Path("/k/vmlinux"), Path("/k/initramfs"))


def line(config: MachineConfig = PLAIN, wiring: Wiring = WIRING, start: Start = START) -> list[str]:
    return command_line(["qemu", "-L", "firmware"], config, wiring, start)


def values(option: str, argv: list[str]) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def devices(argv: list[str], kind: str) -> list[dict[str, str]]:
    """The `-device` options of a kind, as their properties."""
    found = [value.split(",") for value in values("-device", argv)]
    return [dict(item.split("=", 1) for item in words[1:]) for words in found if words[0] == kind]


def test_qemu_is_called_as_it_wants_to_be_called() -> None:
    assert line()[:3] == ["qemu", "-L", "firmware"]


def test_a_kernel_is_booted_unless_the_firmware_is_to_find_one() -> None:
    assert values("-kernel", line()) == ["/k/vmlinux"]
    by_firmware = line(start=replace(START, firmware=True))
    assert not {"-kernel", "-initrd", "-append"} & {*by_firmware}


def test_memory_is_shared_so_that_a_server_can_map_it() -> None:
    argv = line(replace(PLAIN, memory=768))
    assert values("-object", argv) == ["memory-backend-memfd,id=ram,size=768M,share=on"]
    assert values("-machine", argv) == ["pc-q35-11.1,memory-backend=ram"]
    assert values("-m", argv) == ["768M"]


def test_memory_of_ours_is_opened_by_a_name_and_is_the_same_hardware() -> None:
    """QEMU's `x-ignore-shared` is for memory that it has opened by a name alone."""
    argv = line(wiring=replace(WIRING, memory=9))
    assert values("-object", argv) == ["memory-backend-file,mem-path=/dev/fd/9,id=ram,size=512M,share=on"]
    assert [word for word in argv if word not in line()] == values("-object", argv)


def test_there_is_room_for_memory_that_is_plugged_in_where_it_is_wanted() -> None:
    assert values("-m", line(replace(PLAIN, spare_memory=256))) == ["512M,slots=1,maxmem=768M"]


USUALLY = (
    "console=ttyS0 loglevel=4 no_timer_check cryptomgr.notests initcall_blacklist=crypto_kdf108_init,jent_mod_init"
    ",init_encrypted,load_system_certificate_list mitigations=off rodata=off"
)


@for_each_row(
    [
        ({}, "-cpu", "qemu64,phys-bits=39"),
        ({"accelerator": "kvm"}, "-cpu", "host"),
        ({"cpu": "max"}, "-cpu", "max,phys-bits=39"),
        ({"cpu": "max,phys-bits=42"}, "-cpu", "max,phys-bits=42"),
        ({"accelerator": "kvm"}, "-accel", "kvm"),
        ({"cpus": 2}, "-smp", "2"),
        ({"modules": ("uio", "vfio-pci")}, "-append", f"{USUALLY} mods=uio,vfio-pci"),
        ({"kernel_options": ("nosmp",)}, "-append", f"{USUALLY} nosmp"),
    ]
)
def test_what_a_field_changes(change: dict[str, object], option: str, expected: str) -> None:
    assert values(option, line(replace(PLAIN, **change))) == [expected]  # type: ignore[arg-type]


def test_every_slot_is_a_root_port_of_its_own_at_a_fixed_place() -> None:
    ports = devices(line(replace(PLAIN, slots=10)), PORT)
    assert [port["id"] for port in ports] == [f"slot{index}" for index in range(10)]
    assert len({port["addr"] for port in ports}) == len({port["chassis"] for port in ports}) == 10
    assert [port["addr"] for port in ports if "multifunction" in port] == ["0x10.0", "0x11.0"]


@for_each([1, 2, 6, 7, 24, 25, 64])
def test_all_slots_together_leave_room_below_4_gib(slots: int) -> None:
    """q35 has 1004 MiB between its PCI express window and the APICs; a window is a power of two."""
    reserved = [int(port["mem-reserve"].removesuffix("M")) for port in devices(line(replace(PLAIN, slots=slots)), PORT)]
    assert len(reserved) == slots
    assert sum(reserved) <= 768
    assert all(size >= 8 and size & (size - 1) == 0 for size in reserved)
    if slots <= 6:
        assert min(reserved) == 128, "enough for a BAR of 64 MiB wherever the window is"


def test_a_slot_has_room_for_a_prefetchable_bar_of_1_gib_wherever_its_window_is() -> None:
    assert {port["pref64-reserve"] for port in devices(line(), PORT)} == {"2048M"}


def test_a_kernel_can_tell_that_it_panics_and_goes_on_to_say_why() -> None:
    assert "pvpanic" in values("-device", line())
    assert values("-action", line()) == ["panic=none"]


def test_the_guest_finds_a_slot_where_the_command_line_puts_it() -> None:
    assert (slot_address(0), slot_address(7), slot_address(8)) == ("0000:00:10.0", "0000:00:10.7", "0000:00:11.0")


def test_devices_keep_their_places_whatever_else_the_machine_has() -> None:
    def places(config: MachineConfig) -> list[str]:
        argv = line(config)
        return [devices(argv, kind)[0]["addr"] for kind in ("virtio-serial-pci", "virtio-net-pci", "virtio-rng-pci")]

    assert places(PLAIN) == places(replace(PLAIN, iommu=True, slots=12, devices=("edu,bus=slot0",)))


def test_the_iommu_comes_before_every_device_that_it_serves() -> None:
    assert values("-device", line(replace(PLAIN, iommu=True)))[0].startswith("intel-iommu")
    assert not devices(line(), "intel-iommu")


def test_channels_are_inherited_sockets() -> None:
    chardevs = values("-chardev", line())
    assert chardevs == [
        "socket,id=qmp,fd=5",
        "socket,id=console,fd=6",
        "socket,id=qtest,fd=8",
        "socket,id=agent,fd=7",
    ]


def test_a_person_gets_paths_and_the_terminal_instead() -> None:
    argv = line(wiring=Wiring(qmp=None, console="stdio", monitor=Path("a,b.sock")))
    assert "socket,id=monitor,path=a,,b.sock,server=on,wait=off" in values("-chardev", argv)
    assert not [word for word in argv if "fd=" in word]


def test_the_hardware_is_the_same_without_an_agents_channel() -> None:
    with_agent, without = line(), line(wiring=replace(WIRING, agent=None))
    assert values("-device", with_agent) == values("-device", without)


def test_a_restored_machine_differs_only_in_that_it_waits() -> None:
    assert line(start=replace(START, restore=True)) == [*line(), "-S", "-incoming", "defer"]


def test_a_vfio_user_device_is_json_with_its_socket_as_an_object() -> None:
    attachment = VFIO_USER.attach("edu", "vu0", Path("/tmp/a.sock"), 3, {"x_msg_timeout": 1000})
    argv = line(start=replace(START, attached=(attachment,)))
    assert json.loads(values("-device", argv)[-1]) == {
        "driver": "vfio-user-pci",
        "id": "vu0",
        "bus": "slot3",
        "socket": {"type": "unix", "path": "/tmp/a.sock"},
        "x-msg-timeout": 1000,
    }


def test_a_vhost_user_device_has_a_character_device_and_is_of_the_type_that_its_name_says() -> None:
    attachment = VHOST_USER.attach("vhost-user-rng", "vu0", Path("/tmp/a.sock"), 3, {"max_bytes": 64})
    assert attachment.needs == (SocketChardev("vu0-socket", Path("/tmp/a.sock")),)
    assert attachment.device == {
        "driver": "vhost-user-rng-pci",
        "id": "vu0",
        "bus": "slot3",
        "chardev": "vu0-socket",
        "iommu_platform": True,
        "max-bytes": 64,
    }


@for_each_row(
    [
        ("vhost-user-rng", {}, True),
        ("vhost-user-rng", {"driver": "vhost-user-test-device-pci"}, True),
        ("vhost-user-rng", {"iommu_platform": False}, False),
        ("vhost-user-blk", {}, None),
        ("vhost-user-net", {}, None),
        ("", {"driver": "vhost-user-rng-pci"}, None),
    ]
)
def test_qemu_is_told_to_translate_for_ours_where_it_offers_what_the_server_does(
    device: str, properties: dict[str, object], told: bool | None
) -> None:
    attachment = VHOST_USER.attach(device, "vu0", Path("/tmp/a.sock"), 3, properties)
    assert attachment.device.get("iommu_platform") is told


def test_only_a_device_that_goes_on_with_another_server_connects_again() -> None:
    disk = VHOST_USER.attach("vhost-user-blk", "vu0", Path("/tmp/a.sock"), 3, {}).needs[0]
    assert disk.options[1].endswith(",reconnect-ms=100")
    assert "'reconnect-ms': 100" in str(disk.adding)
    rng = VHOST_USER.attach("vhost-user-rng", "vu0", Path("/tmp/a.sock"), 3, {}).needs[0]
    assert "reconnect" not in f"{rng.options}{rng.adding}"


def test_a_network_card_has_a_network_that_has_the_character_device() -> None:
    attachment = VHOST_USER.attach("vhost-user-net", "vu0", Path("/tmp/a.sock"), 3, {"mac": "52:54:00:00:00:01"})
    assert [word for needed in attachment.needs for word in needed.options] == [
        "-chardev",
        "socket,id=vu0-socket,path=/tmp/a.sock,reconnect-ms=100",
        "-netdev",
        "vhost-user,id=vu0-net,chardev=vu0-socket",
    ]
    assert [needed.adding[0] for needed in attachment.needs] == ["chardev-add", "netdev_add"]
    assert [needed.removing for needed in attachment.needs] == [None, ("netdev_del", {"id": "vu0-net"})]
    assert attachment.device == {
        "driver": "virtio-net-pci",
        "id": "vu0",
        "bus": "slot3",
        "netdev": "vu0-net",
        "mac": "52:54:00:00:00:01",
        "romfile": "",
    }


ANY = """
from vhost_user.device import Chain, Queues, VhostDevice, config_field, queue

class Mine(VhostDevice):
    virtio_id = 4
    queues = Queues(2, size=32)
    level: int = config_field(4, 7)

    @queue()
    def take(self, chain: Chain) -> int:
        return 0
"""


def test_a_device_of_anybodys_class_is_driven_by_the_one_that_takes_any(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(ANY)
    device = Device.parse(f"vhost-user:{module}:Mine [vq_size=16]")
    assert (device.family, device.name) == (VHOST_USER, "Mine")
    assert server_command(device, Path("/tmp/a.sock"))[5] == f"{module}:Mine"
    attachment = VHOST_USER.attach(device.served, "vu0", Path("/tmp/a.sock"), 3, device.properties)
    assert attachment.device == {
        "driver": "vhost-user-test-device-pci",
        "id": "vu0",
        "bus": "slot3",
        "chardev": "vu0-socket",
        "iommu_platform": True,
        "virtio-id": 4,
        "num_vqs": 2,
        "vq_size": 16,
        "config_size": 4,
    }


def test_a_class_that_cannot_be_served_is_told_in_the_words_of_its_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        VHOST_USER.attach(f"vhost-user:{tmp_path}/none.py:Mine", "vu0", Path("/tmp/a.sock"), 3, {})


def test_anybodys_server_behind_vhost_user_is_of_the_type_that_a_property_says() -> None:
    attachment = VHOST_USER.attach("", "vu0", Path("/tmp/a.sock"), 3, {"driver": "vhost-user-test-device-pci"})
    assert attachment.device["driver"] == "vhost-user-test-device-pci"
    with pytest.raises(UserError, match=r"a\.sock"):
        VHOST_USER.attach("", "vu0", Path("/tmp/a.sock"), 3, {})


def test_a_device_is_of_the_family_that_has_its_name_and_is_served_by_that_ones_command() -> None:
    device = Device.parse("vhost-user-rng --source /dev/zero")
    assert device.family is VHOST_USER
    command = server_command(device, Path("/tmp/a.sock"))
    assert command[2:] == ["-m", "vhost_user", "serve", "rng", "--socket-path", "/tmp/a.sock", "--source", "/dev/zero"]
    assert Device.parse("edu").family is VFIO_USER
    assert device.is_ours


@for_each_row(
    [
        ("./my-server", "nowhere what to listen on"),
        ("python3 server.py --verbose", "nowhere what to listen on"),
        ("./my-server {socket} [x-pci-class-code=0x088000", r"no end: \[x-pci"),
        ("edu [x-msg-timeout=500", r"no end: \[x-msg"),
        ("gpoi", "no device called 'gpoi'"),
        ("./my-server '{socket}", "cannot be read"),
        ("edu '", "cannot be read"),
    ]
)
def test_a_device_that_cannot_be_meant_says_what_it_lacks(device: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        Device.parse(device)


def test_a_name_that_is_nearly_a_devices_is_no_program_though_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, what in {"ed": "no device called 'ed'", "my-server": "nowhere what to listen on"}.items():
        (tmp_path / name).touch(0o755)
        with pytest.raises(UserError, match=what) as refused:
            Device.parse(name)
        assert "edu" in str(refused.value.hint), name


def test_a_character_device_comes_before_the_device_that_needs_it() -> None:
    chardev = SocketChardev("vu0-socket", Path("/tmp/a,b.sock"))
    attachment = Attachment({"driver": "pci-serial", "id": "vu0", "bus": "slot3", "chardev": "vu0-socket"}, (chardev,))
    argv = line(start=replace(START, attached=(attachment,)))
    added = argv.index("socket,id=vu0-socket,path=/tmp/a,,b.sock")
    assert argv[added - 1] == "-chardev"
    assert json.loads(argv[added + 2])["chardev"] == "vu0-socket"


def test_what_qemu_traces_are_the_events_of_every_family() -> None:
    argv = line(wiring=replace(WIRING, trace=Path("/t/trace.log"), traced=("vfio_user_*", "vhost_user_*")))
    assert values("-trace", argv) == ["vfio_user_*", "vhost_user_*"]
    assert values("-D", argv) == ["/t/trace.log"]


def test_the_machine_type_is_versioned() -> None:
    assert machine_type(Version("10.1.3")) == "pc-q35-10.1"


@for_each([{"slots": 0}, {"slots": 65}, {"memory": 64}, {"cpus": 0}])
def test_an_impossible_machine_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(UserError):
        replace(PLAIN, **change)  # type: ignore[arg-type]


def test_a_device_of_any_type_has_one_that_qemu_knows() -> None:
    path, generic = Path("/tmp/a.sock"), {"driver": "vhost-user-test-device-pci"}
    for known in (1, "0x1e", 45):
        assert VHOST_USER.attach("", "vu0", path, 3, {**generic, "virtio_id": known}).device["virtio-id"] == known
    with pytest.raises(UserError, match="virtio_id 0 is no device type"):
        VHOST_USER.attach("", "vu0", path, 3, {**generic, "virtio_id": 0})
