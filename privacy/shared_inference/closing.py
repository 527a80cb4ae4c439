"""What is closed with the block of a ``with`` statement."""

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """A context manager that calls :meth:`close`, whatever ends the block."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
