"""Sphinx's settings: pages in Markdown, the reference from docstrings and from the command line."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "reference"), str(HERE.parent)]

project = "vfio-user"
author = "the vfio-user authors"
release = version = version_of("vfio-user")

extensions = [
    "myst_parser",  # pages are Markdown, which is also read in the checkout
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # `Raises:` of docstrings
    "sphinx_click",
    "reference_pages",  # docs/reference/reference_pages.py
]
# The checkout is the source: pages are read in it too, and link to each other in both in the same way.
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "servers/README.md", "servers/**/README.md"]
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "results",
    "avocado_tests",
    "tests",
    "findings",
    "benchmarks",
    "guest_images",
]
suppress_warnings = ["ref.python"]  # annotations name classes by their short names, which several modules have

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
default_role = "code"  # docstrings say `name`

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_class_signature = "separated"

_COMMANDS = "docs/reference/command-line"  # both programs' commands and options
man_pages = [
    (_COMMANDS, "vfio-user", "PCI devices in user space, and real guests that test them", [author], 1),
    (_COMMANDS, "vhost-user", "virtio devices behind vhost-user", [author], 1),
]

html_theme = "furo"  # takes nothing from the network, so that the pages of the wheel are read without one
html_title = f"vfio-user {release}"
html_copy_source = False
html_show_sphinx = False
