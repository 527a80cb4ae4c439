"""The cache folder, shared by processes without a race."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import platformdirs
from filelock import FileLock
from numpy.typing import NDArray

from privacy.files import replacement


def cache_folder(cache_dir: Path | None = None) -> Path:
    """Return ``cache_dir``, or the user's cache folder for bloomseal, made if it is missing."""
    folder = platformdirs.user_cache_path("bloomseal") if cache_dir is None else Path(cache_dir)
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock that stands beside ``path``; other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def code_version(*modules: ModuleType) -> str:
    """A digest of modules' code, for the names of what they compute into the cache."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:12]


def shared_array(path: Path, make: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
    """Return the array kept at ``path``, memory-mapped; the first process makes it.

    The ``.npy`` file is named by all that determines its content. The others wait for ``make``.
    """
    if not path.exists():
        with only_one(path):
            if not path.exists():
                content = make()
                with replacement(path, mode=0o644) as file:
                    np.save(file, content, allow_pickle=False)
    array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
