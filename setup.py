"""The distribution as pyproject.toml has it: Python alone. With VFIO_USER_COMPILED=1, what a virtqueue's request takes
is compiled by mypyc:

    VFIO_USER_COMPILED=1 pip install .

The modules are the same ones, in C; docs/hot-paths.md has what that gives and what it takes away. `scripts/compiled`
tries it without an installation.
"""

import os
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup

COMPILER = "mypy>=2.4"


def compiled() -> list[Extension]:
    """The modules, translated to C."""
    from mypyc.build import mypycify

    modules = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["vfio-user"]["compiled"]
    os.environ["MYPYPATH"] = "servers"
    # without the settings of `scripts/test types`, which is strict; and what is imported need not be installed
    mypy = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
    return mypycify([*mypy, *modules], opt_level="2", debug_level="0")


is_wanted = os.environ.get("VFIO_USER_COMPILED") == "1"
asks_for_needs = "egg_info" in sys.argv  # so pip asks, before it has made an environment of them
builds = not {"bdist_wheel", "build_ext"}.isdisjoint(sys.argv)
setup(
    setup_requires=[COMPILER] if is_wanted and asks_for_needs else [],
    ext_modules=compiled() if is_wanted and builds else [],
)
