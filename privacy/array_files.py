"""Arrays and a text in one file, with a digest of both: safetensors, which unpickles nothing."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from privacy.files import write_durably

_FAULTS = (OSError, SafetensorError, TypeError, ValueError, LookupError)


@dataclass(frozen=True, eq=False)
class ArrayFile:
    """What a file holds.

    Attributes
    ----------
    format : str
        Its kind and version; "" where the file names none.
    text : str
    arrays : mapping of str to ndarray
    recorded : str
        The digest that the file was read with.
    """

    format: str
    text: str
    arrays: Mapping[str, NDArray[Any]]
    recorded: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the text and, by name, each array's type, shape and bytes."""
        digest = hashlib.sha256(f"{self.text}\n".encode())
        for name in sorted(self.arrays):
            array = np.asarray(self.arrays[name], order="C")
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def is_whole(self) -> bool:
        """Whether text and arrays are those that were written."""
        return self.recorded == self.digest

    def save(self, path: Path) -> None:
        """Write to ``path``, whole and durable, or not at all; its owner alone may read it.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        arrays = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        metadata = {"format": self.format, "state": self.text, "digest": self.digest}
        write_durably(path, save(arrays, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> "ArrayFile":
        """Read a file, whatever its format says, and whether it is whole or not.

        Raises
        ------
        ValueError
            If it is missing, or is no file of arrays.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except _FAULTS as error:
            raise ValueError(str(error)) from error
        written, text, digest = (metadata.get(key, "") for key in ("format", "state", "digest"))
        return cls(written, text, arrays, digest)
