"""Audit a running silo strategy: canary persons in one silo, and a lower bound on ε of a person."""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import mse_loss

from privacy import arguments
from privacy.audit import AuditResult, PrivacyCurve, audit, little_noise_p_value, one_hot_records
from privacy.audit.experiment import LESS_NOISE
from privacy.mechanisms import Randomness
from privacy.secure_aggregation import Adversary, ClientPolicy
from privacy.training import DataPolicy, Persons
from strategies.distributed_dpsgd.silo import answer_silo
from strategies.distributed_dpsgd.silo_task import SiloTask
from strategies.distributed_dpsgd.strategy import DistributedDPSGD
from strategies.in_process import InProcessGrid
from strategies.noise_alone import updates_of_rounds
from strategies.secure_aggregation import ContextMemory
from strategies.secure_aggregation.protocol_client import ProtocolClient

_QUIET = 1000  # numbers of the sum that no person moves
_BEYOND = 1000.0  # how many times the clipping norm a canary's gradient is long, at first
_COLLUDER = ProtocolClient(
    ClientPolicy(3, Adversary(max_corrupt_fraction=0.0)), identity=None, memory=ContextMemory()
)


class _Silos(ClientApp):
    """Silos of a linear model: the first has the canaries, colluders add no noise.

    What colluders know of their own noise they take away, which is as if they had added none.
    """

    def __init__(
        self, strategy: DistributedDPSGD, persons: Persons, nobody: Persons, *, numbers: int
    ) -> None:
        super().__init__()
        silos = strategy.silos
        self._persons, self._nobody, self._numbers = persons, nobody, numbers
        self._honest = silos.min_silos - silos.colluders
        self._policy = partial(
            DataPolicy,
            max_epsilon=1e9,
            max_delta=strategy.budget.delta,
            unit=strategy.unit,
            min_silos=silos.min_silos,
            colluders=silos.colluders,
        )

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message to a silo; ``InProcessGrid`` calls this."""
        silo = int(context.node_config["partition-id"])
        if silo >= self._honest:
            return _COLLUDER.reply(
                message,
                context,
                lambda record, terms, schema: lambda: np.zeros(terms.size, dtype=np.int64),
            )
        task = SiloTask(
            model=nn.Linear(self._numbers, 1, bias=False),
            loss=mse_loss,
            persons=lambda: self._nobody if silo else self._persons,
        )
        policy = self._policy(dataset=f"silo {silo}")
        return answer_silo(message, context, task=lambda: task, policy=policy)


def audit_silo_strategy(
    make_strategy: Callable[[Path], DistributedDPSGD],
    *,
    canaries: int = 100,
    rows: int = 4,
    num_rounds: int = 1,
    confidence: float = 0.95,
    guesses: int | None = None,
    randomness: Randomness | None = None,
) -> AuditResult:
    """Attack a run of a silo strategy with canary persons: a lower bound on ε of a person.

    The strategy, its messages, the silos' answers (``answer_silo``), masks and the server's opening
    run as they do elsewhere, in this process. The first silo holds the canaries: persons of several
    rows, each of which moves one number of a linear model's gradient by as much as it can. A fair
    coin decides whether a canary is there. As many silos as may be absent are, and those that may
    collude add no noise, as what they know of their own can be taken away. The attacker adds up
    what the released models moved by in each step, and guesses the coins. The numbers that nobody
    moves show whether there is as much noise as is claimed.

    **Guarantee.** That of :func:`privacy.audit.audit`: a correct strategy is contradicted in at
    most a fraction ``1 - confidence`` of audits.

    **Assumptions.** ``make_strategy`` does not depend on the coins.

    **Not covered.** How persons are drawn, which :func:`privacy.audit.audit_silo_steps` looks at;
    a transport; models with more than one layer.

    Parameters
    ----------
    make_strategy : callable
        Given an empty folder for the ledger, returns the strategy as it will be used. Called once.
    canaries : int
        m.
    rows : int
        Of each canary; where the strategy protects rows, give 1.
    num_rounds : int
        Steps, as for ``start``.
    confidence, guesses, randomness
        As in :func:`privacy.audit.audit`.

    Returns
    -------
    AuditResult
        At the level of the strategy's unit. Its findings begin with "canary persons" or "noise".

    Raises
    ------
    TypeError, ValueError
        If an argument is out of range, the strategy is another, or its steps opened nothing.
    """
    canaries = arguments.whole("canaries", canaries, least=1)
    rows = arguments.whole("rows", rows, least=1)
    numbers = canaries + _QUIET
    claims: list[tuple[float, float, PrivacyCurve]] = []
    quiet: list[float] = []

    def run(included: npt.NDArray[np.bool_]) -> Mapping[str, npt.NDArray[np.float64]]:
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            strategy = make_strategy(Path(folder))
            kind = "DistributedDPSGD(...), from make_strategy"
            arguments.of_kind("the strategy", strategy, (DistributedDPSGD,), kind)
            if strategy.unit == "row" and rows > 1:
                raise ValueError(f"rows is {rows}, and the strategy protects single rows: give 1")
            inputs = one_hot_records(canaries, (numbers,)).repeat_interleave(rows, 0)
            height = _BEYOND * strategy.clipping_norm
            owners = np.repeat(np.arange(canaries), rows)
            persons, nobody = (
                Persons((inputs[chosen], torch.full((len(chosen), 1), height)), owners[chosen])
                for chosen in (np.flatnonzero(included[owners]), np.arange(0))
            )
            grid = InProcessGrid(
                _Silos(strategy, persons, nobody, numbers=numbers), strategy.silos.silos
            )
            grid.offline = set(range(strategy.silos.min_silos + 1, strategy.silos.silos + 1))
            model = ArrayRecord({"weight": Array(np.zeros((1, numbers), np.float32))})
            moved = updates_of_rounds(strategy, grid, model, rounds=num_rounds)
            events, report = strategy._privacy_budget.paid.events, strategy.report()
        if not len(moved):
            raise ValueError("no step of the audit's run was opened; the log says why")
        moved *= strategy._setup.denominator / strategy.clipping_norm
        quiet.append(little_noise_p_value(moved[:, canaries:], sigma=strategy.noise_multiplier))
        curve = PrivacyCurve.of_events(events, delta=report.delta, accountant=report.accountant)
        claims.append((report.epsilon, report.delta, curve))
        return {"canary persons": moved[:, :canaries].sum(axis=0)}

    return audit(
        run,
        canaries=canaries,
        claimed_epsilon=lambda: claims[0][0],
        delta=lambda: claims[0][1],
        confidence=confidence,
        guesses=guesses,
        curve=lambda: claims[0][2],
        p_values=lambda: {LESS_NOISE: quiet[0]},
        randomness=randomness,
    )
