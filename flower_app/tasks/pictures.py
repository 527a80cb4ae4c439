"""The form of a task's pictures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pictures:
    """Pictures as a model sees them: scaled to ``side`` by ``side``, grey or in three colours."""

    side: int
    colours: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return (3 if self.colours else 1, self.side, self.side)
