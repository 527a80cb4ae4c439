"""Files are replaced whole or not at all, and are private unless their writer says otherwise."""

import os
import stat
from pathlib import Path

import pytest

from privacy.files import remove_leftovers, replacement, write_durably


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def fail() -> None:
        with replacement(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_only_the_owner_reads_a_file_unless_its_writer_says_otherwise(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_durably(tmp_path / "private", b"")
        write_durably(tmp_path / "public", b"", mode=0o666)
    finally:
        os.umask(umask)
    assert mode(tmp_path / "private") == 0o600
    assert mode(tmp_path / "public") == 0o644


def test_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacement(path) as file:
        (written,) = tmp_path.iterdir()
        file.write(b"x")
    written.touch()  # as a killed writer leaves it
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file2", "file.ahead", "file.ahead.0123abcd", "another.file"])
def test_what_another_file_is_replaced_with_stays(tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    with replacement(other) as file:
        file.write(b"x")
        remove_leftovers(tmp_path / "file")
    assert other.read_bytes() == b"x"
