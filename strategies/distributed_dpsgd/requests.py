"""What silos are asked to add up, a step's gradients or right answers: public, the same for all."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord

from privacy import arguments
from privacy.accounting import Full, Poisson, SiloSum
from privacy.mechanisms import Randomness, SiloGaussian
from privacy.secure_aggregation import RoundTerms
from privacy.secure_aggregation.errors import MalformedMessageError, UnacceptableTermsError
from privacy.statistics import TableQuery
from privacy.untrusted_text import error_quoted
from strategies.distributed_dpsgd.accuracy import ACCURACY_NORM, ACCURACY_SIZE

Vector = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
UNITS = ("person", "row")

INVITED_FOR = "parameters"
"""In a step's first message, beside the request: how many parameters the model has."""

_KIND = "sum-of"
_NUMBERS = ("clipping-norm", "sampling-rate")
_WHOLES = ("persons", "min-silos", "colluders", "radius")
_COUNTED = 4  # N that sums with a number of persons have room for; above two the operator is warned


@dataclass(frozen=True, kw_only=True)
class SumRequest:
    """A sum over the persons of all silos, each of whom moves it by at most S.

    Attributes
    ----------
    unit : "person" or "row"
        Whom it protects: a person with all rows, or a row.
    persons : int
        N, a public number of these over all silos.
    clipping_norm : float
        S.
    sampling_rate : float
        p, with which each silo draws each of its persons; 1: all of them.
    noise_multiplier : float
        z.
    mechanism : SiloGaussian
        Of how many silos at least, how many of them may collude, and the lattice.
    """

    kind: ClassVar[str]
    """Its name in messages."""
    unit: str
    persons: int
    clipping_norm: float
    sampling_rate: float
    noise_multiplier: float
    mechanism: SiloGaussian

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit is {arguments.shown(self.unit)}; give 'person' or 'row'")
        arguments.convert(self, "persons", arguments.whole, least=1)
        arguments.convert(self, "clipping_norm", arguments.number, least=1e-12, most=1e12)
        arguments.convert(self, "sampling_rate", arguments.number, above=0, most=1)
        arguments.convert(self, "noise_multiplier", arguments.number, above=0)

    @property
    def sampling(self) -> Poisson | Full:
        """As :mod:`privacy.accounting` takes it."""
        return Full() if self.sampling_rate == 1 else Poisson(self.sampling_rate)

    def entries(self, parameters: int) -> int:
        """How many integers a silo masks, for a model of so many parameters."""
        raise NotImplementedError

    def event(self, parameters: int) -> SiloSum:
        """What the sum costs a person, for a model of so many parameters."""
        return self.mechanism.account(
            parameters=self.entries(parameters),
            noise_multiplier=self.noise_multiplier,
            sampling=self.sampling,
        )

    def bound(self, parameters: int) -> int:
        """``RoundTerms.bound`` for a model of so many parameters."""
        return self.mechanism.bound(
            parameters=self.entries(parameters),
            noise_multiplier=self.noise_multiplier,
            persons=self.room,
            sampling=self.sampling,
        )

    @property
    def room(self) -> int:
        """For so many persons over all silos sums fit the ring; silos cut those of more."""
        return self.persons

    def decode(
        self,
        opened: Integers,
        reference: list[Vector],
        *,
        survivors: int,
        randomness: Randomness,
    ) -> list[Vector]:
        """The opened sum, with its noise, in the units of the clipping norm."""
        return [self.mechanism.decode(opened, clipping_norm=self.clipping_norm)]

    def check(self, terms: RoundTerms, parameters: int) -> None:
        """Refuse (``UnacceptableTermsError``) terms that do not fit the request."""
        if terms.min_clients < self.mechanism.min_silos:
            raise UnacceptableTermsError(
                f"the noise is sized for {self.mechanism.min_silos} silos, but the sum of "
                f"{terms.min_clients} may be opened"
            )
        if terms.size != self.entries(parameters):
            raise UnacceptableTermsError(
                f"the sum has {self.entries(parameters)} numbers, the terms {terms.size}"
            )
        if terms.bound < self.bound(parameters):
            raise UnacceptableTermsError(
                f"the terms bound an entry by {terms.bound}; {self.bound(parameters)} is needed"
            )

    def write_into(self, record: ConfigRecord) -> None:
        """Put it beside a message of the protocol."""
        mechanism = self.mechanism
        record[_KIND], record["unit"] = self.kind, self.unit
        record["noise-multiplier"] = self.noise_multiplier
        numbers = (self.clipping_norm, self.sampling_rate)
        wholes = (self.persons, mechanism.min_silos, mechanism.colluders, mechanism.radius)
        record.update(zip(_NUMBERS, numbers, strict=True))
        record.update(zip(_WHOLES, wholes, strict=True))

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        """Read what ``write_into`` wrote."""
        norm, rate = (_of(record, name, float) for name in _NUMBERS)
        return cls(clipping_norm=norm, sampling_rate=rate, **_common(record))


@dataclass(frozen=True, kw_only=True)
class GradientSum(SumRequest):
    """A step: the drawn persons' clipped gradients of the loss.

    Attributes
    ----------
    planned : int
        How many such steps the run plans, this one included.
    """

    kind: ClassVar[str] = "gradients"
    planned: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments.convert(self, "planned", arguments.whole, least=1)

    def write_into(self, record: ConfigRecord) -> None:
        """Put it beside a message of the protocol."""
        super().write_into(record)
        record["planned"] = self.planned

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        """Read what ``write_into`` wrote."""
        return replace(super().read(record), planned=_of(record, "planned", int))

    def entries(self, parameters: int) -> int:
        """One for each parameter."""
        return parameters

    def decode(
        self,
        opened: Integers,
        reference: list[Vector],
        *,
        survivors: int,
        randomness: Randomness,
    ) -> list[Vector]:
        """The step downhill: minus the sum of gradients, shaped as the model.

        ``survivors`` and ``randomness`` are of no effect: all noise is the silos'.
        """
        downhill = -self.mechanism.decode(opened, clipping_norm=self.clipping_norm)
        ends = np.cumsum([array.size for array in reference])[:-1]
        parts = np.split(downhill, ends)
        return [part.reshape(a.shape) for part, a in zip(parts, reference, strict=True)]


@dataclass(frozen=True, kw_only=True)
class AccuracySum(SumRequest):
    """An evaluation: each person's share of right answers, and how many persons there are."""

    kind: ClassVar[str] = "right-answers"
    clipping_norm: float = ACCURACY_NORM
    sampling_rate: float = 1.0

    @property
    def room(self) -> int:
        """See ``TableSum.room``."""
        return _COUNTED * self.persons

    def entries(self, parameters: int) -> int:
        """Two, whatever the model."""
        return ACCURACY_SIZE

    def check(self, terms: RoundTerms, parameters: int) -> None:
        """See :meth:`SumRequest.check`."""
        if (self.clipping_norm, self.sampling_rate) != (ACCURACY_NORM, 1.0):
            raise UnacceptableTermsError("a person's part of an accuracy has another length")
        super().check(terms, parameters)


@dataclass(frozen=True, kw_only=True)
class TableSum(SumRequest):
    """Statistics of the silos' tables: each person's part of a query.

    Attributes
    ----------
    query : TableQuery
    """

    kind: ClassVar[str] = "table"
    clipping_norm: float = field(init=False)
    sampling_rate: float = field(init=False, default=1.0)
    query: TableQuery

    def __post_init__(self) -> None:
        object.__setattr__(self, "clipping_norm", self.query.clipping_norm)
        super().__post_init__()

    @property
    def room(self) -> int:
        """For several N, so that a number of persons that is far from N is read as it is."""
        return _COUNTED * self.persons

    def entries(self, parameters: int) -> int:
        """As many as the query has, whatever the model."""
        return self.query.parameters

    def decode(
        self,
        opened: Integers,
        reference: list[Vector],
        *,
        survivors: int,
        randomness: Randomness,
    ) -> list[Vector]:
        """The opened sum, as ``TableQuery.read`` takes it."""
        return [opened]

    def write_into(self, record: ConfigRecord) -> None:
        """Put it beside a message of the protocol."""
        super().write_into(record)
        bounds = list(self.query.bounds)
        record["lowest"], record["highest"] = (
            [low for low, _ in bounds],
            [high for _, high in bounds],
        )
        record["classes"], record["bins"] = self.query.classes, self.query.bins

    @classmethod
    def read(cls, record: ConfigRecord) -> Self:
        """Read what ``write_into`` wrote."""
        lowest, highest = (_of(record, name, list) for name in ("lowest", "highest"))
        classes, bins = (_of(record, name, int) for name in ("classes", "bins"))
        query = TableQuery(
            bounds=list(zip(lowest, highest, strict=True)), classes=classes, bins=bins
        )
        return cls(query=query, **_common(record))


_KINDS: dict[str, type[SumRequest]] = {
    kind.kind: kind for kind in (GradientSum, AccuracySum, TableSum)
}


def read_request(record: ConfigRecord) -> SumRequest:
    """Read what ``write_into`` wrote; ``MalformedMessageError`` if it is not that."""
    try:
        return _KINDS[_of(record, _KIND, str)].read(record)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MalformedMessageError(
            f"what is to be summed cannot be read: {error_quoted(error)}"
        ) from error


def _common(record: ConfigRecord) -> dict[str, Any]:
    """What requests of all kinds have."""
    persons, min_silos, colluders, radius = (_of(record, name, int) for name in _WHOLES)
    return {
        "unit": _of(record, "unit", str),
        "persons": persons,
        "noise_multiplier": _of(record, "noise-multiplier", float),
        "mechanism": SiloGaussian(min_silos, colluders, radius),
    }


def _of(record: ConfigRecord, name: str, kind: type) -> Any:
    value = record[name]
    if type(value) is not kind:
        raise TypeError(f"{name} is of another type")
    return value


def reordered(vector: Integers, sizes: Sequence[tuple[str, int]], names: Sequence[str]) -> Integers:
    """A vector of arrays in one order, in the order of ``names``.

    ``sizes`` are the names and sizes of the arrays as they lie in ``vector``.
    """
    ends = np.cumsum([size for _, size in sizes])[:-1]
    parts = dict(zip((name for name, _ in sizes), np.split(vector, ends), strict=True))
    return np.concatenate([parts[name] for name in names])
