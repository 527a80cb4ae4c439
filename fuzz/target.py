"""What is fuzzed: a reader of bytes, its own errors, and inputs to begin with."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """A reader of bytes.

    Attributes
    ----------
    read : callable
        Takes any bytes.
    refusals : tuple of exception types
        With which it may refuse them.
    seeds : tuple of bytes
        Inputs from which others are made: good ones, and some that are refused late.
    """

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def run(self, content: bytes) -> bool:
        """Whether an input is taken; an exception that is no refusal is let through."""
        try:
            self.read(content)
        except self.refusals:
            return False
        return True


def corpus(name: str) -> list[Path]:
    """The inputs of earlier runs that are kept."""
    return sorted((CORPUS / name).glob("*"))


def name_of(content: bytes) -> str:
    """The name of an input's file."""
    return hashlib.sha256(content).hexdigest()[:16]


def read_all(readers: Iterable[Callable[[], object]], refusal: type[Exception]) -> None:
    """Call every reader, whatever those before it refuse; then raise the first refusal."""
    refusals = []
    for reader in readers:
        try:
            reader()
        except refusal as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
