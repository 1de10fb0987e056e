"""Kernel modules and what modprobe must know about them.

Debian ships modules compressed and without an index, which its maintainer script would make. The index is two small
files, so it is written here, for the modules of the image alone: modules.dep(5) of kmod.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

from userdev.errors import UserError
from vfio_user.harness.image.kernel import content_of, decompress

_SIGNED = b"~Module signature appended~\n"


def module_name(text: str) -> str:
    """The kernel's name for a module: of `vfio-pci`, `vfio_pci` and `kernel/drivers/vfio/pci/vfio-pci.ko.xz` alike."""
    return text.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


@dataclass(frozen=True)
class Module:
    """One module, decompressed. `path` is relative to the folder of its kernel: "kernel/drivers/nvme/host/nvme.ko"."""

    path: str
    data: bytes

    @property
    def name(self) -> str:
        """The module's name as the kernel has it: without suffix, with underscores for dashes."""
        return module_name(self.path)

    @cached_property
    def info(self) -> tuple[tuple[str, str], ...]:
        """The pairs of its .modinfo section, in order."""
        section = ELFFile(BytesIO(self.data)).get_section_by_name(".modinfo")
        if section is None:
            raise UserError(f"{self.path} is not a kernel module: it has no .modinfo")
        pairs = (item.partition(b"=") for item in section.data().split(b"\0") if item)
        return tuple((key.decode(), value.decode(errors="replace")) for key, _, value in pairs)

    def values(self, key: str) -> Iterator[str]:
        """The values of one key of its .modinfo section (`depends`, `softdep`, `alias`, ...), in their order."""
        return (value for found, value in self.info if found == key)

    @property
    def needs(self) -> list[str]:
        """Names of the modules that must be there, in the order of .modinfo."""
        return [module_name(name) for value in self.values("depends") for name in value.split(",") if name]

    @property
    def wants(self) -> list[str]:
        """Names of the modules that it would like loaded before: the `pre:` part of its soft dependencies."""
        wanted = []
        for value in self.values("softdep"):
            before = value.partition("post:")[0].partition("pre:")[2]
            wanted += [module_name(name) for name in before.split()]
        return wanted


class KernelModules:
    """The modules of one unpacked kernel package: `folder` is its `usr/lib/modules/RELEASE`."""

    def __init__(self, folder: Path) -> None:
        """Look what there is.

        Raises:
            UserError: the folder has no list of what is built in.
        """
        self.folder = folder
        self.release = folder.resolve().name  # whatever leads there
        self._paths = {module_name(path.name): path for path in sorted(folder.glob("kernel/**/*.ko*"))}
        self._builtin = {module_name(line) for line in _lines(folder / "modules.builtin")}
        self._loaded: dict[str, Module] = {}

    def closure(self, names: Iterable[str]) -> list[Module]:
        """The modules called `names` with all that they depend on, dependencies first; built-in ones are left out.

        Raises:
            UserError: a name that the kernel does not have.
        """
        found: dict[str, Module] = {}
        for name in names:
            self._visit(module_name(name), found)
        return list(found.values())

    def dependencies(self, module: Module) -> list[Module]:
        """All that `module` depends on, in the order in which they can be loaded."""
        found: dict[str, Module] = {}
        self._visit(module.name, found)
        return [other for other in found.values() if other is not module]

    def _visit(self, name: str, found: dict[str, Module]) -> None:
        if name in found or name in self._builtin:
            return
        module = self._read(name)
        # a soft dependency may be an alias or a module of another architecture: taken where it is one of ours
        for other in (*(want for want in module.wants if want in self._paths), *module.needs):
            self._visit(other, found)
        found[name] = module

    def _read(self, name: str) -> Module:
        if name not in self._loaded:
            path = self._paths.get(name)
            if path is None:
                raise UserError(f"the kernel {self.release} has no module {name}")
            relative = path.relative_to(self.folder).as_posix()
            data = without_signature(decompress(content_of(path), path.name))
            self._loaded[name] = Module(relative.partition(".ko")[0] + ".ko", data)
        return self._loaded[name]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as error:
        what = f"{path.parent} is no kernel's folder of modules: {path.name}: {error.strerror}"
        raise UserError(what, hint="it is lib/modules/RELEASE, as `make modules_install` writes it") from error


def without_signature(data: bytes) -> bytes:
    """A module as it was before it was signed: to check a signature is half of what loading takes without KVM.

    Behind a signature are 12 bytes, of which the last 4 are its length, and a mark: include/linux/module_signature.h.
    """
    body = data.removesuffix(_SIGNED)
    if body == data:
        return data
    (length,) = struct.unpack(">8xI", body[-12:])
    return body[: -12 - length]


def modules_dep(kernel: KernelModules, modules: Iterable[Module]) -> str:
    """modules.dep(5): each module and, after a colon, all that it needs; modprobe loads them from the right."""
    lines = []
    for module in modules:
        needed = [other.path for other in reversed(kernel.dependencies(module))]
        lines.append(" ".join([f"{module.path}:", *needed]))
    return "".join(f"{line}\n" for line in sorted(lines))


def modules_alias(modules: Iterable[Module]) -> str:
    """modules.alias: by which device ids and other names each module is found."""
    lines = {f"alias {alias} {module.name}\n" for module in modules for alias in module.values("alias")}
    return "".join(sorted(lines))
