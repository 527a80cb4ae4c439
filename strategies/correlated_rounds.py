"""Rounds whose noise is correlated: groups that take turns, a row of noise for each."""

import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from logging import INFO, WARNING
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid
from flwr.supercore import log

from privacy.accounting import (
    AdditiveDelta,
    CyclicGroups,
    Event,
    GaussianRelease,
    GroupRelease,
    Record,
)
from privacy.correlated_noise import (
    CorrelatedMechanism,
    CorrelatedNoise,
    Factor,
    MinSeparation,
    NoiseInstance,
    relative_error,
)
from privacy.correlated_noise.errors import NoiseSecretError
from privacy.correlated_noise.instance import new_name
from privacy.files import remove_leftovers
from privacy.mechanisms import lattice_radius
from strategies.checkpoint import Checkpoint, NoiseRows
from strategies.clipping import AdaptiveClipping, Clipping
from strategies.lost_clients import operator_log
from strategies.model_schema import ModelSchema
from strategies.privacy_budget import PrivacyBudget
from strategies.run import Run
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.secure_aggregation.train_round import MaskedRounds
from strategies.server_optimizers import ServerAdam, ServerOptimizer, ServerYogi
from strategies.train_round import ClearRounds, Round, RoundSetup

SUFFIX = ".noise"
"""Of the file that holds a run's past noise, after the name of its checkpoint."""


def secret_file(checkpoint: Path) -> Path:
    """The file beside a checkpoint that holds the run's past noise, while it lasts."""
    return checkpoint.with_name(checkpoint.name + SUFFIX)


class CorrelatedRounds:
    """Makes the rounds of a run of which each adds a row of correlated noise.

    **Guarantee.** A row is begun, durably where there is a file, before anybody is asked for it,
    and its number is never used again: neither its noise nor what it takes back of the past. A
    client that was asked in a row is not asked again for ``groups`` rows.

    Parameters
    ----------
    setup : RoundSetup
        Its mechanism correlates noise, its sampling is in groups.
    inner : ClearRounds or MaskedRounds
        Bound and sum.
    momentum : float
        Of the server's optimizer.
    """

    def __init__(
        self,
        setup: RoundSetup,
        mechanism: CorrelatedMechanism,
        sampling: CyclicGroups,
        inner: ClearRounds | MaskedRounds,
        *,
        momentum: float,
    ) -> None:
        self._setup, self._mechanism, self._groups = setup, mechanism, sampling
        self._inner, self._momentum = inner, momentum
        self.turns = sampling.groups
        self._name = new_name()
        self._instance: NoiseInstance | None = None
        self._noise: CorrelatedNoise | None = None
        self._path: Path | None = None
        self._source: Path | None = None  # of the run that this one goes on from
        self._unusable = ""  # why the past noise of a resumed run cannot be used
        self._open = False  # a row was begun, and neither drawn nor skipped
        self._asked: dict[str, int] = {}  # the last row of each identity in this process

    # As Rounds ---------------------------------------------------------------------------------

    @property
    def presence(self) -> AdditiveDelta:
        """As without correlated noise."""
        return self._inner.presence

    @property
    def mechanism(self) -> str:
        """Its name."""
        return self._mechanism.name

    def account(self, noise_multiplier: float, parameters: int) -> Event:
        """One participation, with all that it shows in its own and in later rounds."""
        return self._inner.account(noise_multiplier, parameters)

    def due(self, event: Event, ahead: int = 0) -> Event:
        """The event of a client of the group whose turn it is."""
        if not isinstance(event, GaussianRelease | AdditiveDelta):
            raise TypeError(f"{event!r} is not paid in turns")
        return GroupRelease(event, self._name, self._row + ahead, self.turns)

    def noise_left(self, rounds: int) -> float:
        """What later rounds have not taken back; of a run that is resumed, as if it had begun."""
        return relative_error(
            self._factor(rounds).coefficients,
            rounds=rounds,
            participation=MinSeparation(self.turns),
            momentum=self._momentum,
            iterates="last",
        )

    def check_presence(self, rounds: int, budget: PrivacyBudget) -> None:
        """As without correlated noise."""
        self._inner.check_presence(rounds, budget)

    def open(self, number: int, schema: ModelSchema, run: Run, grid: Grid) -> Round:
        """A new round, of the row that was begun for it."""
        return self._inner.open(number, schema, run, grid, noise=_Row(self._draw))

    # The instance ------------------------------------------------------------------------------

    @property
    def _row(self) -> int:
        """The number of the row that is open, or of the next one."""
        begun = 0 if self._instance is None else self._instance.rows
        return begun - self._open

    def take_up(self, checkpoint: Checkpoint, source: Path, records: Iterable[Record]) -> None:
        """Go on from the rows that a checkpoint's model holds, where their noise is there.

        If not, new noise is begun, of a new instance: nothing is taken back of the old, and the
        ledger adds up both.
        """
        if (rows := checkpoint.rows) is None:
            return
        path = self._source = secret_file(source)
        try:
            instance = NoiseInstance.load(path)
            _warn_if_others_may_read(path)
            events = [record.event for record in records]
            paid = [
                e.row for e in events if isinstance(e, GroupRelease) if e.instance == rows.instance
            ]
            if instance.name != rows.instance or instance.rows < rows.count:
                raise NoiseSecretError("it is of another run, or older than the checkpoint")
            if instance.tag(rows.count) != rows.tag:
                raise NoiseSecretError("its rows are not those that the checkpoint's model holds")
            if instance.rows <= max(paid, default=-1):
                raise NoiseSecretError("it is older than the ledger, which has later rounds")
        except NoiseSecretError as error:
            if rows.count:  # else nothing is lost
                self._unusable = f"{path}: {error}"
            return
        self._instance, self._name = instance.without(rows.count), instance.name

    def begin(
        self,
        path: Path | None,
        *,
        rounds: int,
        parameters: int,
        clipping: Clipping,
        z: float,
        listed: Sequence[str],
    ) -> None:
        """Draw the past again, or begin a new instance for so many rounds.

        The past is drawn again for the same ``listed`` clients only: under another identity one
        of them could come early, and without a past nothing of its round is taken back.
        """
        self._path = None if path is None else secret_file(path)
        radius = self._mechanism.radius
        if isinstance(self._inner, MaskedRounds):
            radius = lattice_radius(parameters)
        share, _ = self._setup.noise_shares(clipping, z)
        if self._instance is not None:
            try:
                self._check_past(
                    self._instance, rounds, parameters, radius=radius, z=share, listed=listed
                )
                self._noise = self._instance.noise()
            except NoiseSecretError as error:
                self._unusable = str(error)
                self._instance, self._name = None, new_name()
        if self._unusable:
            log(
                WARNING,
                "The past noise of the run cannot be used (%s). New noise is begun. It costs no "
                "privacy beyond what is paid, but takes back nothing of the noise in the model, "
                "and the budget may end the run up to %d rounds early: clients pay for turns of "
                "both.",
                self._unusable,
                self.turns,
            )
        if self._instance is None:
            factor = self._factor(rounds)
            sigma = self._mechanism.sigma(
                factor, noise_multiplier=share, radius=radius, size=parameters
            )
            self._noise = CorrelatedNoise(factor, sigma=sigma, size=parameters)
            instance = NoiseInstance.new(
                self._name, factor, sigma=sigma, size=parameters, randomness=self._setup.randomness
            )
            self._instance = replace(instance, clients=_tag_of(listed, instance.group_key))
        log(
            INFO,
            "\t     Correlated noise (%s), ‖c‖ = %.4g; instance %s, %d rows so far",
            self._instance.factor.kind,
            self._instance.factor.norm,
            self._name,
            self._instance.rows,
        )
        if self._path is not None and not listed:
            log(
                INFO,
                "\t     If interrupted, the run cannot go on with its past noise: the population "
                "is a number. List the clients (Population) for that",
            )

    def _check_past(
        self,
        instance: NoiseInstance,
        rounds: int,
        parameters: int,
        *,
        radius: int,
        z: float,
        listed: Sequence[str],
    ) -> None:
        """Refuse a file's noise that is not accounted for, with a ``NoiseSecretError``."""
        factor, unlike = instance.factor, "it is of another model, or of other noise"
        if not listed:
            raise NoiseSecretError(
                "clients are not known again: the population is a number; list them"
            )
        if instance.clients != _tag_of(listed, instance.group_key):
            raise NoiseSecretError("clients are not known again: the population lists others")
        if not self._mechanism.fits(factor, self.turns):
            raise NoiseSecretError(
                "its coefficients are not this mechanism's, or not for so many groups"
            )
        if factor.rows is not None and instance.rows + rounds > factor.rows:
            raise NoiseSecretError(
                f"it is for {factor.rows} rounds, {instance.rows} were begun, and {rounds} are "
                "to come"
            )
        try:
            wanted = self._mechanism.sigma(
                factor, noise_multiplier=z, radius=radius, size=parameters
            )
        except ValueError as error:
            raise NoiseSecretError(unlike) from error
        if (instance.size, instance.sigma) != (parameters, wanted):
            raise NoiseSecretError(unlike)

    def _factor(self, rounds: int) -> Factor:
        return self._mechanism.factor(
            rounds=rounds, momentum=self._momentum, groups=self._groups.groups
        )

    def begin_row(self) -> Callable[[str], bool]:
        """Begin the next row, durably; returns who of the population has their turn in it.

        Raises
        ------
        OSError
            If the file cannot be written: nobody may be asked then.
        """
        if self._instance is None or self._noise is None:
            raise RuntimeError("correlated noise is planned in start(); it is not known yet")
        self._skip_undrawn()
        instance = self._instance.begin_row(self._noise, self._setup.randomness)
        self._save(instance)
        self._open = True
        row, key = instance.rows - 1, instance.group_key

        def may_take_part(identity: str) -> bool:
            if group_of(identity, key, self.turns) != row % self.turns:
                return False
            before = self._asked.get(identity)
            if before is not None and row - before < self.turns:
                operator_log.error(
                    "row %d: a client was asked in row %d, less than %d rows ago; not asked",
                    row,
                    before,
                    self.turns,
                )
                return False
            self._asked[identity] = row
            return True

        return may_take_part

    def settle(self) -> NoiseRows | None:
        """After a round: which rows the model holds, for the checkpoint."""
        if self._instance is None:
            return None
        self._skip_undrawn()
        count = self._instance.rows
        return NoiseRows(self._name, count, self._instance.tag(count))

    def forget(self) -> None:
        """Remove the files of past noise: the run is over."""
        for path in (self._path, self._source):
            if path is not None:
                path.unlink(missing_ok=True)
                remove_leftovers(path)  # of a process that was killed while it wrote

    def remind(self) -> None:
        """Say that the file of past noise is left, for a run that may be resumed."""
        for path in dict.fromkeys((self._path, self._source)):
            if path is not None and path.exists():
                log(
                    WARNING,
                    "%s is left for a run that goes on from this one. It is a secret: whoever has "
                    "it and the models sees every sum without noise. Delete it if nobody goes on, "
                    "and hand its folder to nobody with it.",
                    path,
                )

    def _draw(self) -> npt.NDArray[np.int64]:
        if self._instance is None or self._noise is None or not self._open:
            raise RuntimeError("no row of noise was begun, or it was drawn already")
        self._open = False
        key = self._instance.keys[-1]
        if key is None:
            raise RuntimeError("the row was skipped")
        return self._noise.draw(key)

    def _skip_undrawn(self) -> None:
        """Leave out a row of which nothing was released."""
        if not self._open or self._instance is None or self._noise is None:
            return
        self._open = False
        self._noise.skip()
        self._save(self._instance.without(self._instance.rows - 1))

    def _save(self, instance: NoiseInstance) -> None:
        if self._path is not None:
            instance.save(self._path)
        self._instance = instance


class _Row:
    """A row, drawn when the first part of it is asked for: after the round was paid."""

    def __init__(self, draw: Callable[[], npt.NDArray[np.int64]]) -> None:
        self._draw = draw
        self._row: npt.NDArray[np.int64] | None = None

    def add_to(self, integers: npt.NDArray[np.int64], part: slice) -> None:
        """Add a part of it in place."""
        if self._row is None:
            self._row = self._draw()
        integers += self._row[part]


def group_of(identity: str, key: bytes, groups: int) -> int:
    """The group of a client: a hash of its identity alone, under the run's key."""
    digest = hmac.digest(key, identity.encode(), hashlib.sha256)
    return int.from_bytes(digest[:16], "big") % groups


def _tag_of(listed: Sequence[str], key: bytes) -> bytes:
    """By which a list of clients is known again, and nobody without the key can guess at them."""
    return hmac.digest(key, json.dumps(["clients", *listed]).encode(), hashlib.sha256)


def check_correlated(
    mechanism: CorrelatedMechanism,
    sampling: object,
    *,
    clipping: Clipping,
    optimizer: ServerOptimizer,
    secure_aggregation: SecureAggregation | None,
) -> CyclicGroups:
    """Refuse settings under which correlated noise is not accounted, or does not cancel."""
    if not isinstance(sampling, CyclicGroups):
        raise ValueError(
            f"mechanism is {mechanism}, which needs clients that take part every so many rounds: "
            "give sampling=CyclicGroups(b), each client in every b-th round"
        )
    mechanism.check_turns(sampling)
    if isinstance(clipping, AdaptiveClipping):
        raise ValueError(
            "clipping is adaptive, and correlated noise is sized once for the whole run: give a "
            "fixed norm"
        )
    if isinstance(optimizer, ServerAdam | ServerYogi):
        raise ValueError(
            f"optimizer is {type(optimizer).__name__}; noise of several rounds cancels only where "
            "the model is a sum of all updates: give ServerSGD(...), with momentum if wanted"
        )
    if secure_aggregation is not None and secure_aggregation.noise_placement == "distributed":
        raise ValueError(
            "secure_aggregation.noise_placement is 'distributed'; correlated noise takes back "
            "noise of earlier rounds, which clients of other groups have drawn and nobody else "
            "knows: leave it at 'central'"
        )
    return sampling


def _warn_if_others_may_read(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        log(
            WARNING,
            "%s could be read by others than its owner. Whoever has a copy and the models sees "
            "the sums of the rounds so far without noise.",
            path,
        )
