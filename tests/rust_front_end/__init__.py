"""A vhost-user front-end in Rust, on rust-vmm's `vhost` as Debian has it.

Compiler, package manager and crates are Debian's of `SUITE`, unpacked and called through their own loader; what they
compile is linked for this machine's C library by the compiler that libvfio-user is built with.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, quiet
from vfio_user.harness.toolchain import Compiler, c_compiler

SUITE = "trixie"
PACKAGES = ("cargo", "rustc", "librust-vhost-dev")
PROGRAM = "rust-front-end"

_SOURCE = Path(__file__).parent
_SECONDS = 300.0  # for a build that takes fourteen

_CONFIGURATION = """\
[source.crates-io]
replace-with = "debian"
[source.debian]
directory = "{root}/usr/share/cargo/registry"
[net]
offline = true
[build]
rustc = "{rustc}"
target-dir = "{target}"
[target.x86_64-unknown-linux-gnu]
linker = "{linker}"
"""


def rust_front_end(*, progress: Progress = quiet) -> Path:
    """The path of the program, built when the cache has none of this source.

    Raises:
        UserError: it cannot be fetched or does not compile.
    """
    home = cache_dir() / PROGRAM / _digest()
    with locked(PROGRAM):
        if not home.exists():
            compiler = c_compiler(progress=progress)
            with publish(home) as making, TemporaryDirectory(prefix="rust-", dir=making.parent) as folder:
                _build(Path(folder), making, compiler, progress)
    return home / PROGRAM


def _digest() -> str:
    files = (path.read_text() for path in sorted(_SOURCE.glob("**/*")) if path.suffix in (".py", ".rs", ".toml"))
    return hashlib.sha256("\0".join(files).encode()).hexdigest()[:16]


def _build(folder: Path, into: Path, compiler: Compiler, progress: Progress) -> None:
    archive = DebianArchive((SUITE,))
    root = folder / "root"
    archive.unpack(archive.fetch(PACKAGES, progress=progress), root)
    environment = compiler.environment()
    own = [f"{name}={environment[name]}" for name in ("PATH", "LD_LIBRARY_PATH")]
    gcc = ["env", *own, str(compiler.root / "usr/bin/gcc"), f"--sysroot={compiler.root}"]
    paths = {
        "root": root,
        "rustc": _script(folder / "rustc", [*_run(root, "rustc"), "--sysroot", str(root / "usr")]),
        "linker": _script(folder / "linker", gcc),
        "target": folder / "target",
    }
    source = folder / "source"
    shutil.copytree(_SOURCE, source, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (source / ".cargo").mkdir()
    (source / ".cargo/config.toml").write_text(_CONFIGURATION.format(**paths))
    progress(f"compiling {PROGRAM}")
    try:
        ran = subprocess.run(
            [*_run(root, "cargo"), "build", "--offline"],
            cwd=source,
            env={"PATH": os.environ["PATH"], "CARGO_HOME": str(folder / "cargo")},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{PROGRAM} is not compiled after {_SECONDS:.0f} s") from None
    if ran.returncode != 0:
        raise UserError(f"{PROGRAM} does not compile:\n{ran.stderr}")
    shutil.copy(folder / "target/debug" / PROGRAM, into)


def _run(root: Path, name: str) -> list[str]:
    """A program of `root`, through its loader."""
    loader = [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--argv0", name]
    return [*loader, "--library-path", str(root / "usr/lib/x86_64-linux-gnu"), str(root / "usr/bin" / name)]


def _script(path: Path, command: list[str]) -> Path:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    return path
