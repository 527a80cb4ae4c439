"""What a silo's program gives: a model, a loss, and functions that load its persons' records."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # they bring PyTorch, which most messages do without
    from torch import Tensor, nn

    from privacy.training import Persons

Right = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True, kw_only=True)
class SiloTable:
    """A silo's table, for statistics.

    Parameters
    ----------
    features : array, shape (rows, columns)
        Numbers, in the order of the query's bounds.
    labels : array, shape (rows,), optional
        Classes from 0 on.
    person_ids : sequence, optional
        Whose each row is. Default: every row is another person's.
    """

    features: Any
    labels: Any = None
    person_ids: Any = None


@dataclass(frozen=True, kw_only=True)
class SiloTask:
    """What a silo trains, and on whom.

    Parameters
    ----------
    model : nn.Module
        Its trained parameters are set to those that the server sends, by name.
    loss : callable
        As ``privacy.training.train`` takes it.
    persons : callable
        Gives the silo's ``Persons``. If it fails at the silo's first step of a run the silo
        declines, and its own log says why; at a later one it sends noise alone. So whether it fails
        must not depend on one person's record. ``test_persons`` and ``table`` likewise.
    test_persons : callable, optional
        Gives the persons, with test rows, on whom the model is evaluated. Default: none, and the
        silo's part of an evaluation is noise alone.
    right : callable, optional
        ``right(outputs, targets)``: which of the rows are answered rightly, shape (rows,). Default:
        the largest output is the target's class; of a single output, its sign.
    table : callable, optional
        Gives the silo's ``SiloTable``, where statistics are asked for. Default: none, and its part
        is noise alone.
    """

    model: "nn.Module"
    loss: Any
    persons: Callable[[], "Persons"]
    test_persons: Callable[[], "Persons"] | None = None
    right: Right | None = None
    table: Callable[[], SiloTable] | None = None
