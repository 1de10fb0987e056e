"""What a server's device is: asked for without changing anything, for people (`render`) and for programs (`asdict`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from userdev.counted import counted
from vfio_user.client.client import Client
from vfio_user.client.config_space import LARGEST_IO, ConfigSpaceDump, FoundCapability
from vfio_user.client.errors import RemoteError
from vfio_user.client.regions import Region
from vfio_user.wire import Command
from vfio_user.wire.constants import (
    MIGRATION_REGION_TYPE,
    MOST_IRQS,
    MOST_REGIONS,
    Feature,
    IrqIndex,
    IrqInfoFlags,
    MigrationSupport,
    RegionFlags,
    RegionIndex,
)
from vfio_user.wire.layouts import VfioDeviceInfo

_LAST_BAR = 5
CONFIG_SIZES = (4096, 256)

_REGION_NAMES = {
    **{index: f"BAR{index}" for index in range(6)},
    RegionIndex.ROM: "ROM",
    RegionIndex.CONFIG: "config",
    RegionIndex.VGA: "VGA",
}
_IRQ_NAMES = ("INTx", "MSI", "MSI-X", "ERR", "REQ")


@dataclass(frozen=True)
class RegionFacts:
    """A region of size 0 is not there."""

    index: int
    name: str
    size: int
    access: str
    """Of "r", "w" and "m" (may be mapped) those that hold."""
    areas: list[tuple[int, int]] = field(default_factory=list)
    """Offset and size of what may be mapped."""
    kind: str = ""
    """For a BAR: 32-bit, 64-bit or I/O, and whether prefetchable."""
    type: tuple[int, int] | None = None


@dataclass(frozen=True)
class IrqFacts:
    """The description of one interrupt index."""

    index: int
    name: str
    vectors: int
    flags: list[str]


@dataclass(frozen=True)
class MigrationFacts:
    """`how`: "none", "messages" (DEVICE_FEATURE) or "region" (v1)."""

    how: str
    support: list[str] = field(default_factory=list)
    state: str = ""
    dirty_logging: bool = False


@dataclass(frozen=True)
class Description:
    """Everything a client can learn without touching the device.

    `problems` is what a VMM would stumble over; `not_survived` those of them that QEMU does not refuse but ends at.
    """

    dialect: str
    minor: int
    capabilities: dict[str, int | bool]
    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    revision: int
    class_code: int
    class_name: str
    interrupt_pin: str | None
    can_reset: bool
    regions: list[RegionFacts]
    irqs: list[IrqFacts]
    pci_capabilities: list[FoundCapability]
    migration: MigrationFacts
    problems: list[str]
    not_survived: list[str]


def describe(client: Client) -> Description:
    """Ask the server everything about its device.

    Raises:
        RemoteError: the server refuses a question that every server has to answer.
        ProtocolError, Disconnected, NoAnswer: as from the client.
    """
    info = client.device_info()
    regions = [client.region_info(index) for index in range(min(info.num_regions, MOST_REGIONS))]
    config = ConfigSpaceDump(_read_config(client, regions))
    capabilities = config.capabilities()
    bars = {bar.index: bar.kind + (" prefetchable" if bar.prefetchable else "") for bar in config.bars()}
    irqs = [irq_facts(client, index) for index in range(min(info.num_irqs, MOST_IRQS))]
    assert client.server is not None
    agreed = client.server.capabilities
    not_survived = list(_not_survived(regions, capabilities))
    return Description(
        dialect=client.dialect.name,
        minor=client.server.minor,
        capabilities={name: value for name, value in vars(agreed).items() if value is not None},
        vendor=config.ids[0],
        device=config.ids[1],
        subsystem_vendor=config.subsystem[0],
        subsystem_device=config.subsystem[1],
        revision=config.revision,
        class_code=config.class_code,
        class_name=config.class_name,
        interrupt_pin=config.interrupt_pin,
        can_reset=bool(info.flags & 1),
        regions=[_region_facts(region, bars) for region in regions],
        irqs=irqs,
        pci_capabilities=capabilities,
        migration=_migration_facts(client, regions),
        problems=[
            *config.problems,
            *_too_many(info),
            *_problems(regions, irqs, capabilities, config.class_code),
            *_header_problems(config, regions, irqs, capabilities),
            *not_survived,
        ],
        not_survived=not_survived,
    )


def _read_config(client: Client, regions: list[Region]) -> bytes:
    size = regions[RegionIndex.CONFIG].size if len(regions) > RegionIndex.CONFIG else 0
    return client.config_read(0, min(size, CONFIG_SIZES[0])) if size else b""


def _region_facts(region: Region, bars: dict[int, str]) -> RegionFacts:
    letters = {RegionFlags.READ: "r", RegionFlags.WRITE: "w", RegionFlags.MMAP: "m"}
    name = _REGION_NAMES.get(region.index, f"region {region.index}")
    if region.type == MIGRATION_REGION_TYPE:
        name = "migration"
    return RegionFacts(
        index=region.index,
        name=name,
        size=region.size,
        access="".join(letter if region.flags & flag else "-" for flag, letter in letters.items()),
        areas=list(region.mappable),
        kind=bars.get(region.index, "") if region.size else "",
        type=region.type,
    )


def irq_facts(client: Client, index: int) -> IrqFacts:
    """Ask what one interrupt index is."""
    info = client.irq_info(index)
    flags = [flag.name.lower() for flag in IrqInfoFlags if info.flags & flag and flag.name]
    name = _IRQ_NAMES[index] if index < len(_IRQ_NAMES) else f"irq {index}"
    return IrqFacts(index, name, info.nr_vectors, flags)


def _migration_facts(client: Client, regions: list[Region]) -> MigrationFacts:
    has_region = any(region.type == MIGRATION_REGION_TYPE and region.size for region in regions)
    by_region = MigrationFacts("region" if has_region else "none", dirty_logging=has_region)
    if Command.DEVICE_FEATURE not in client.dialect:
        return by_region
    try:
        support = client.migration_support()
        state = client.migration_state()
        logging = client.has_feature(Feature.DMA_LOGGING_START)
    except RemoteError:
        return by_region
    flags = [flag.name.lower() for flag in MigrationSupport if support & flag and flag.name]
    return MigrationFacts("messages", flags, state.name, logging)


def _too_many(info: VfioDeviceInfo) -> Iterator[str]:
    for found, what, most in (
        (info.num_regions, "region", MOST_REGIONS),
        (info.num_irqs, "interrupt type", MOST_IRQS),
    ):
        if found > most:
            yield f"{counted(found, what)}: QEMU takes at most {most}, and no more were asked for"


def _problems(
    regions: list[Region], irqs: list[IrqFacts], capabilities: list[FoundCapability], class_code: int
) -> Iterator[str]:
    """What makes QEMU refuse the device, and what a guest makes of it."""
    if not class_code >> 8:
        yield "no class: Linux gives no addresses to such a device when it is plugged in"
    sizes = {region.index: region.size for region in regions}
    if len(regions) < 8:
        yield f"{counted(len(regions), 'region')}: QEMU wants at least 8"
    if len(irqs) < 3:
        yield f"{counted(len(irqs), 'interrupt type')}: QEMU wants at least 3"
    if sizes.get(RegionIndex.CONFIG, 0) not in CONFIG_SIZES:
        yield f"a config space of {sizes.get(RegionIndex.CONFIG, 0)} bytes instead of 256 or 4096"
    vectors = {irq.index: irq.vectors for irq in irqs}
    for capability in capabilities:
        details = capability.details
        if capability.extended or capability.id not in (0x05, 0x11):
            continue
        index = IrqIndex.MSI if capability.id == 0x05 else IrqIndex.MSIX
        if vectors.get(index, 0) < details["vectors"]:
            its, types = counted(details["vectors"], "vector"), vectors.get(index, 0)
            yield f"{capability.name} has {its}, and the interrupt type {types}"
    for region in regions:
        if region.index <= _LAST_BAR and region.size & (region.size - 1):
            yield f"BAR{region.index} has {region.size:#x} bytes, which is no power of two"
        if region.mappable and region.offset % 4096:
            yield f"region {region.index} is to be mapped at {region.offset:#x} of its descriptor, which no kernel can"
        for offset, size in region.mappable:
            if offset % 4096 or size % 4096 or offset + size > region.size:
                yield f"region {region.index} lets {offset:#x}+{size:#x} be mapped, which is not whole pages inside it"


def _header_problems(
    config: ConfigSpaceDump, regions: list[Region], irqs: list[IrqFacts], capabilities: list[FoundCapability]
) -> Iterator[str]:
    """What a guest's drivers stumble over, of BARs and of the interrupt pin."""
    bars = {bar.index: bar for bar in config.bars()}
    there = {region.index: region.size for region in regions if region.index <= _LAST_BAR and region.size}
    kinds = {bars[index].kind for index in there if index in bars}
    for index, size in there.items():
        if index not in bars:
            yield f"region {index} has {size:#x} bytes, and its BAR is the upper half of BAR{index - 1}"
        elif bars[index].kind == "I/O" and size > LARGEST_IO:
            yield f"the I/O BAR{index} has {size} bytes, and PCI allows {LARGEST_IO}"
    if kinds == {"I/O"} and any(found.details.get("type") == "endpoint" for found in capabilities):
        yield (
            "all BARs are I/O: a PCI Express endpoint needs memory BARs, as a guest may have no ports for it"
            " behind a root port (a legacy endpoint is let off)"
        )
    vectors = {irq.index: irq.vectors for irq in irqs}
    if config.interrupt_pin and not vectors.get(IrqIndex.INTX):
        yield f"there is an interrupt pin {config.interrupt_pin}, and the interrupt type INTx has no vector"
    if config.interrupt_status and not config.interrupt_pin:
        yield "the status says that an interrupt is raised, and there is no pin: Linux takes it for who raised its line"


def _not_survived(regions: list[Region], capabilities: list[FoundCapability]) -> Iterator[str]:
    """What has to be caught before QEMU sees it (known issues realize-crash and region-info-crash)."""
    sizes = {region.index: region.size for region in regions}
    for details in (found.details for found in capabilities if found.id == 0x11 and not found.extended):
        for part, length in (("table", 16 * details["vectors"]), ("pba", -(-details["vectors"] // 64) * 8)):
            bar, offset = details[f"{part}_bar"], details[f"{part}_offset"]
            if offset + length > sizes.get(bar, 0):
                yield f"MSI-X {part} at {offset:#x} is not within BAR{bar} of {sizes.get(bar, 0):#x} bytes"
    for region in regions:
        if region.descriptors > 1:
            yield f"region {region.index} comes with {counted(region.descriptors, 'descriptor')}, and QEMU takes one"


def render(description: Description) -> str:
    """The description as `lspci -v` would have it."""
    return "\n".join(_lines(description)) + "\n"


def _lines(d: Description) -> Iterator[str]:
    yield f"{d.vendor:04x}:{d.device:04x} {d.class_name} [{d.class_code:06x}] (rev {d.revision:02x})"
    yield f"    Subsystem: {d.subsystem_vendor:04x}:{d.subsystem_device:04x}"
    pin = f"interrupt pin {d.interrupt_pin}" if d.interrupt_pin else "no interrupt pin"
    yield f"    Device: {pin}, {'can' if d.can_reset else 'cannot'} be reset"
    said = ", ".join(f"{name} {value}" for name, value in d.capabilities.items())
    yield f"    Protocol: {d.dialect} 0.{d.minor}, {said or 'no capabilities'}"
    for region in d.regions:
        if region.size:
            kind = f" {region.kind}" if region.kind else ""
            yield f"    Region {region.index}: {region.name} {_size(region.size)} {region.access}{kind}"
            for offset, size in region.areas:
                yield f"        may be mapped: {offset:#x} to {offset + size:#x} ({_size(size)})"
    for capability in d.pci_capabilities:
        number = f"{capability.offset:03x}" if capability.extended else f"{capability.offset:02x}"
        details = ", ".join(_detail(name, value) for name, value in capability.details.items())
        yield f"    Capabilities: [{number}] {capability.name}" + (f": {details}" if details else "")
    for irq in d.irqs:
        if irq.vectors:
            yield f"    Interrupts: {irq.name}, {counted(irq.vectors, 'vector')} ({' '.join(irq.flags)})"
    yield f"    Migration: {_migration(d.migration)}"
    for problem in d.problems:
        yield f"    Problem: {problem}"


def _detail(name: str, value: object) -> str:
    match value:
        case bool():
            return f"{name.replace('_', ' ')}{'+' if value else '-'}"
        case int() if name.endswith("offset") or name in ("id", "vendor", "device"):
            return f"{name.replace('_', ' ')} {value:#x}"
    return f"{name.replace('_', ' ')} {value}"


def _migration(facts: MigrationFacts) -> str:
    match facts.how:
        case "none":
            return "not supported"
        case "region":
            return "by the migration region, with dirty pages"
    logging = "with" if facts.dirty_logging else "without"
    return f"by messages ({', '.join(facts.support)}), {logging} dirty logging; the state is {facts.state}"


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
