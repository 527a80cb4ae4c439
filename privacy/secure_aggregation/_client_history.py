"""What a client remembers over all rounds."""

import struct
from dataclasses import dataclass, field

from privacy.secure_aggregation.errors import (
    MemoryFullError,
    RepeatedModelError,
    RepeatedRoundError,
)
from privacy.secure_aggregation.terms import RUN_BYTES, RoundTerms

_RUN = struct.Struct(f"<{RUN_BYTES}sQ32s")
_ENDORSED = struct.Struct("<32s32s")
_NONE_OPENED = bytes(32)
# The state is written whole for each message, 8 MiB where both are full.
_MOST_RUNS = 1 << 16  # whose last round is remembered
_MOST_MODELS = 1 << 16  # of which a sum was endorsed


@dataclass
class ClientHistory:
    """The rounds that a client began, opened and endorsed.

    It forgets nothing, for a server could have it pushed out: with a full memory a client takes
    part no more.
    """

    last: dict[bytes, int] = field(default_factory=dict)  # by run: the number of its last round
    opened: dict[bytes, bytes] = field(default_factory=dict)  # by run: the last session opened
    endorsed: dict[bytes, bytes] = field(default_factory=dict)  # by model: whose sum

    def begin(self, terms: RoundTerms) -> None:
        """Remember a round that begins, if it is none that began before and there is room."""
        if self.last.get(terms.run, 0) >= terms.number:
            raise RepeatedRoundError(
                f"round {terms.number} of this run came after round {self.last[terms.run]}"
            )
        full = ""
        if terms.run not in self.last and len(self.last) >= _MOST_RUNS:
            full = f"{len(self.last)} runs"
        elif terms.malicious and len(self.endorsed) >= _MOST_MODELS:
            full = f"{len(self.endorsed)} models of which it endorsed a sum"
        if full:
            raise MemoryFullError(
                f"this client remembers {full}, and to take part in another round it would have "
                "to forget one; only its owner may begin with an empty memory, for a server could "
                "then ask for what was refused before"
            )
        self.last[terms.run] = terms.number

    def check_same_group(self, model: bytes, group: bytes) -> None:
        """Refuse a second sum of a model over other clients: the two differ by few updates."""
        if self.endorsed.get(model, group) != group:
            raise RepeatedModelError(
                "this client has let the sum of other clients than these be opened for this "
                "model; the difference of two such sums would be that of few"
            )

    def to_fields(self) -> list[bytes]:
        """Two fields of a message."""
        runs = [
            _RUN.pack(run, number, self.opened.get(run, _NONE_OPENED))
            for run, number in self.last.items()
        ]
        return [b"".join(runs), b"".join(_ENDORSED.pack(*pair) for pair in self.endorsed.items())]

    @classmethod
    def from_fields(cls, runs: bytes, endorsed: bytes) -> "ClientHistory":
        """Read the fields that ``to_fields`` wrote; ``struct.error`` if they are no such fields."""
        history = cls(endorsed=dict(_ENDORSED.iter_unpack(endorsed)))
        for run, number, opened in _RUN.iter_unpack(runs):
            history.last[run] = number
            if opened != _NONE_OPENED:
                history.opened[run] = opened
        return history
