"""Archives that are put on hosts: what is in them decides their digest, and nothing else does."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from vfio_user.harness.hosts.archives import Member, make_archive


def content(folder: Path) -> Path:
    (folder / "package/__pycache__").mkdir(parents=True)
    (folder / "package/module.py").write_text("a = 1\n")
    (folder / "package/__pycache__/module.pyc").write_bytes(os.urandom(8))
    (folder / "base").mkdir()
    (folder / "base/large").write_text("not needed there")
    (folder / "link").symlink_to("base")
    return folder


def members(folder: Path) -> list[Member]:
    package = Member(folder / "package", "package")
    return [package, package, Member(folder / "base", "base", whole=False), Member(folder / "link", "link")]


def test_the_same_content_has_the_same_digest_whenever_it_was_written(tmp_path: Path) -> None:
    first, second = content(tmp_path / "first"), content(tmp_path / "second")
    os.utime(second / "package/module.py", (1, 1))
    one, other = (make_archive(folder / "a.tar", members(folder)) for folder in (first, second))
    assert one.digest == other.digest


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    first, second = content(tmp_path / "first"), content(tmp_path / "second")
    (second / "package/module.py").write_text("a = 2\n")
    one, other = (make_archive(folder / "a.tar", members(folder)) for folder in (first, second))
    assert one.digest != other.digest


def test_each_member_is_there_once_and_a_folder_may_be_there_without_its_files(tmp_path: Path) -> None:
    folder = content(tmp_path)
    with tarfile.open(make_archive(folder / "a.tar", members(folder)).path) as archive:
        assert archive.getnames() == ["package", "package/module.py", "base", "link"]
        assert archive.getmember("link").issym()


def test_a_link_may_be_sent_as_what_it_leads_to(tmp_path: Path) -> None:
    folder = content(tmp_path)
    with tarfile.open(make_archive(folder / "a.tar", members(folder), follow=True).path) as archive:
        assert "link/large" in archive.getnames()
