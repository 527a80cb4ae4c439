"""A data set's policy: what its owner allows, in a file on the node that no server can weaken."""

import difflib
import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from privacy.accounting import Budget
from privacy.arguments import convert, delta, lasting_file, number, shown, text, whole
from privacy.training.errors import PolicyError
from privacy.training.ledger import UNITS, ClientLedger, Unit
from privacy.training.protection import Batches, ClipAndNoise, Protection

_NEEDED = ("dataset", "ledger", "max-epsilon", "max-delta")  # in a file
_LEAST_SECONDS, _MOST_SECONDS = 0.001, 86_400  # of a pace that hides something, and ends

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataPolicy:
    """What the owner of a data set allows to be done with it, over all runs and by anybody.

    It is checked on the node, against what a run asks for; nothing that a server sends changes
    it. ``check_step`` is for a silo's steps, ``check_training`` for ``ClipAndNoise`` clients, and
    ``open_ledger`` has the budget that both spend. What is declined is named by the rule, without
    a number of the owner's; the numbers go to the node's own log.

    **Guarantee.** Together with the ledger: all uses of the data set under one name are
    (max_epsilon, max_delta)-private for each of its units, whatever servers ask for.

    **Assumptions.** One name and one ledger for the data set, in all its uses, and the ledger is
    kept. For steps with other silos: the silos that pool their knowledge with the server are at
    most ``colluders``, and follow the protocol.

    **Not covered.** What all units have in common. That the node declines, and by which rule.

    Parameters
    ----------
    dataset : str
        The data set's name in the ledger; all uses under one name compose.
    max_epsilon, max_delta : float
        ε and δ of one unit, over all runs.
    unit : "person" or "row"
        Whom the guarantee is for: a person, whatever number of rows they have, or a row. A run that
        protects the other is declined: one row more of a person exchanges that person's mean for
        another, which may move a step by 2 S.
    max_clipping_norm : float, optional
        The largest S of one unit. Default: any.
    max_sampling_rate : float
        The largest p with which a step draws a unit.
    min_silos : int
        The fewest silos, this one included, whose sum may be opened.
    colluders : int
        How many of the other silos may pool their knowledge with the server, at most half of
        ``min_silos``: a step whose noise is sized for fewer is declined.
    answer_seconds : float
        A silo's sum goes out at a multiple of so many seconds after it was asked for, for how long
        it took tells how many were drawn. From 0.001 to 86,400; 0: at once.
    ledger : path-like, optional
        The ledger's file, absolute or from ``~``. Default: the caller keeps the ledger, as a
        simulation does.

    Examples
    --------
    The file that ``load`` reads::

        dataset = "st-anna/cardiology/2025"
        ledger = "~/cardiology-ledger.jsonl"
        unit = "person"
        max-epsilon = 3.0
        max-delta = 1e-5
        max-clipping-norm = 1.0
        max-sampling-rate = 0.05
        min-silos = 5
        colluders = 1
        answer-seconds = 5.0
    """

    dataset: str
    max_epsilon: float
    max_delta: float
    unit: Unit = "person"
    max_clipping_norm: float | None = None
    max_sampling_rate: float = 1.0
    min_silos: int = 3
    colluders: int = 1
    answer_seconds: float = 0.0
    ledger: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        give = "a name by where the data comes from, such as 'ward-7/2025'"
        object.__setattr__(self, "dataset", text("dataset", self.dataset, give))
        convert(self, "max_epsilon", number, above=0)
        convert(self, "max_delta", delta)
        if self.unit not in UNITS:
            raise ValueError(f"unit is {shown(self.unit)}; give 'person' or 'row'")
        if self.max_clipping_norm is not None:
            convert(self, "max_clipping_norm", number, above=0)
        convert(self, "max_sampling_rate", number, above=0, most=1)
        convert(self, "min_silos", whole, least=3)
        convert(self, "colluders", whole, least=1, most=self.min_silos // 2)
        give = f"0, for at once, or from {_LEAST_SECONDS} to {_MOST_SECONDS}"
        convert(self, "answer_seconds", number, least=0, most=_MOST_SECONDS, give=give)
        if 0 < self.answer_seconds < _LEAST_SECONDS:
            raise ValueError(f"answer_seconds is {self.answer_seconds}; give {give}")
        if self.ledger is not None:
            object.__setattr__(self, "ledger", lasting_file("ledger", self.ledger))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a policy from a TOML file, whose keys are the parameters with hyphens.

        A file names a ledger: on a node one that is kept in memory would forget what was spent.

        Raises
        ------
        PolicyError
            If the file cannot be read, a key is unknown or missing, or a value is wrong. Its words
            are for the owner.
        """
        file = lasting_file("the policy", path)
        try:
            given = tomllib.loads(file.read_text(encoding="utf-8-sig"))
            arguments = _arguments(cls, given)
            try:
                return cls(**arguments)
            except (TypeError, ValueError) as error:
                raise ValueError(_in_hyphens(cls, str(error))) from error
        except RecursionError as error:
            raise PolicyError(
                f"the policy {file} cannot be used: its brackets are nested too deeply"
            ) from error
        except (OSError, UnicodeDecodeError, TypeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise PolicyError(f"the policy {file} cannot be used: {reason}") from error

    @property
    def budget(self) -> Budget:
        """ε and δ of one unit, over all runs."""
        return Budget(self.max_epsilon, self.max_delta)

    def open_ledger(self) -> ClientLedger:
        """The data set's ledger of the unit's ε, with the owner's budget.

        It is in memory where no file is named.

        Raises
        ------
        LedgerError
            As ``ClientLedger``; so too if the file is a ledger of the other unit.
        """
        path = None if self.ledger is None else Path(self.ledger)
        return ClientLedger(dataset=self.dataset, budget=self.budget, path=path, unit=self.unit)

    def check_step(
        self,
        *,
        unit: Unit,
        clipping_norm: float | None,
        sampling_rate: float | None,
        min_silos: int,
        colluders: int,
    ) -> None:
        """Decline a step with other silos that the owner does not allow.

        Parameters
        ----------
        unit : "person" or "row"
            Whom the step protects.
        clipping_norm, sampling_rate : float or None
            S of one unit, and p; None for counts, which clip no gradient and draw nobody.
        min_silos : int
            The fewest silos whose sum is opened.
        colluders : int
            For how many colluding silos the noise is sized.

        Raises
        ------
        PolicyError
            By the name of the rule.
        """
        self._check_unit(unit, clipping_norm, sampling_rate)
        if min_silos < self.min_silos:
            raise self._declined("min_silos", min_silos)
        if colluders < self.colluders:
            raise self._declined("colluders", colluders)

    def check_training(self, protection: Protection, batches: Batches) -> None:
        """Decline a training of this node alone that the owner does not allow.

        Parameters
        ----------
        protection : ClipOnly or ClipAndNoise
            Without noise it is declined; noise protects rows.
        batches : FullBatch or PoissonBatches
            As ``train`` and ``pay`` are given them.

        Raises
        ------
        PolicyError
            By the name of the rule.
        """
        if not isinstance(protection, ClipAndNoise):
            raise self._declined("max_epsilon", "no noise")
        if protection.delta > self.max_delta:
            raise self._declined("max_delta", protection.delta)
        self._check_unit("row", protection.clipping_norm, batches.sampling_rate)

    def _check_unit(
        self, unit: Unit, clipping_norm: float | None, sampling_rate: float | None
    ) -> None:
        if unit != self.unit:
            raise self._declined("unit", unit)
        for name, asked in (
            ("max_clipping_norm", clipping_norm),
            ("max_sampling_rate", sampling_rate),
        ):
            largest = getattr(self, name)
            if asked is not None and largest is not None and asked > largest:
                raise self._declined(name, asked)

    def _declined(self, rule: str, asked: object) -> PolicyError:
        _log.warning(
            "declined for data set %s: %s is %r in its policy, and %r was asked",
            self.dataset,
            _kebab(rule),
            getattr(self, rule),
            asked,
        )
        return PolicyError(f"the owner of the data does not allow it: {_kebab(rule)}")


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _in_hyphens(policy: type[DataPolicy], sentence: str) -> str:
    """A sentence that begins with an argument's name, which a file writes with hyphens."""
    name, _, rest = sentence.partition(" ")
    known = {field.name for field in fields(policy)}
    return f"{_kebab(name) if name in known else name} {rest}"


def _arguments(policy: type[DataPolicy], given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments from a file's keys."""
    known = {_kebab(field.name): field.name for field in fields(policy)}
    for key, value in given.items():
        if isinstance(value, dict):
            raise ValueError(f"a policy has no part [{key}]: its keys stand without a heading")
        if key not in known:
            (near,) = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(f"{key} is no rule of a policy; the nearest is {near}")
    needed = [key for key in _NEEDED if key not in given]
    if needed:
        raise ValueError(f"{needed[0]} is missing")
    return {known[key]: value for key, value in given.items()}
