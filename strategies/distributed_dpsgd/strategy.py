"""DistributedDPSGD: DP-SGD over the persons of several silos, with nobody to trust."""

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from privacy import arguments
from privacy.accounting import Adjacency, Budget, Full
from privacy.secure_aggregation import FewSilos, ServerModel
from privacy.statistics import Statistics, TableQuery
from strategies import _arguments
from strategies.accounted_strategy import AccountedStrategy
from strategies.checkpoint import Checkpointing, settings_text
from strategies.clipping import FlatClipping
from strategies.distributed_dpsgd.accuracy import (
    MOST_PERSONS,
    LocalEvaluation,
    read_accuracy,
)
from strategies.distributed_dpsgd.description import log_settings, silo_report
from strategies.distributed_dpsgd.plausible_counts import (
    implausible_count,
    implausible_test_count,
    summed_deviation,
)
from strategies.distributed_dpsgd.requests import UNITS, AccuracySum, TableSum
from strategies.distributed_dpsgd.steps import MaskedSum, SiloSteps, StepSetup
from strategies.errors import BudgetError, NoUsableReplyError
from strategies.model_schema import ModelSchema
from strategies.population import ClientRegistry, Population
from strategies.progress import OnRound
from strategies.replies import stream_replies
from strategies.result import PrivacyReport
from strategies.round_cost import EvaluationCost
from strategies.server_optimizers import ServerOptimizer, ServerSGD

_MOST_UNOPENED = 5  # steps in a row; then the silos that are left will not open the next either


class DistributedDPSGD(AccountedStrategy):
    """DP-SGD over the persons of several silos, at the accuracy of one trusted curator's noise.

    Each step every silo draws its own persons with probability p, clips each person's gradient to
    S, sums, adds its share of discrete Gaussian noise, and masks; the server opens the sum of at
    least the fewest silos, divides by the public p·N, and steps an optimizer. (DP-SGD, Abadi et al.
    2016, Algorithm 1, with the noise of Kairouz, Liu and Steinke 2021, arXiv 2102.06387, in shares,
    and the sum opened by secure aggregation.)

    **Guarantee.** All models, and accuracies, are (ε, δ)-differentially private for every person
    of a silo that does not collude, against everybody: those outside, the other silos, the server,
    and the server with ``silos.colluders`` of the silos, with the ε that the ledger's events
    compose to. No person moves a step's sum by more than S, whatever number of rows they have.

    **Assumptions.** All silos but the colluders run the client's side (``answer_silo``) and keep
    their draws, shares and keys secret. No silo leaves a step because of whom it holds or drew. N,
    and the settings, are public or chosen without looking at persons' data.

    **Not covered.** A person in two silos counts as two. That a silo takes part at all. How long it
    takes for a step, which depends on how many persons it drew. False sums: a silo that does not
    follow the protocol can spoil the model.

    Parameters
    ----------
    silos : FewSilos
        How many silos there are, how many may be absent from a step, and how many may pool their
        knowledge with the server. The noise is sized for the fewest honest ones, before the run.
    persons : int
        N, a public number of persons (or rows) over all silos. A silo whose own are more cuts its
        sums to what so many could make: they never wrap around the ring of masked sums.
    sampling_rate : float
        p, with which a step draws each person, in (0, 1).
    clipping_norm : float
        S, of one person's gradient.
    budget : Budget
        ε and δ of a person over all runs; ``math.inf`` as ε sets no limit.
    ledger : path-like
        The server's ledger of all runs over these silos. Each silo has a ledger of its own beside.
    unit : "person" or "row"
        Whom it protects: a person with all rows, or a row, each clipped by itself. Silos whose
        policy has the other unit decline.
    noise_multiplier : float, optional
        z: the fewest honest silos' noise on a step's sum has standard deviation z·S at least.
        Default: ``start`` calibrates it so that all steps fit the budget.
    optimizer : ServerOptimizer, optional
        Default: ``ServerSGD()``, whose learning rate is 1.
    evaluation : LocalEvaluation, optional
        Default: silos are not asked to evaluate.
    evaluate_every : int, optional
        Call ``evaluate_fn`` and log a line after every so many steps. Default: as ``evaluation``
        says, or after each.
    checkpointing : Checkpointing, optional
    population : Population, optional
        Which nodes are the silos. Default: as many as ``silos`` says, whoever connects.
    on_round : OnRound, optional
        Called with a ``RoundProgress`` after each step that was paid; ``strategies.tracking`` has
        some. Default: nothing.
    stage_timeout : float
        Seconds that a stage without gradients waits for a silo that does not answer; a step has
        four. The gradients wait as long as ``start`` says.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, out of range, or contradicts another.

    Examples
    --------
    >>> strategy = DistributedDPSGD(
    ...     silos=FewSilos(10),
    ...     persons=20_000,
    ...     sampling_rate=0.02,
    ...     clipping_norm=1.0,
    ...     budget=Budget(epsilon=3.0, delta=1e-5),
    ...     optimizer=ServerSGD(learning_rate=0.5, momentum=0.9),
    ...     ledger="~/silos-ledger.jsonl",
    ... )  # doctest: +SKIP
    >>> result = strategy.start(grid, initial_arrays, num_rounds=250)  # doctest: +SKIP
    """

    _unopened_words = (
        "A step opened nothing: too few silos saw it through; the operator's log says which are "
        "missing. It teaches the model nothing, and is paid only where silos were asked for their "
        "sums; result.privacy lists all such steps."
    )

    def __init__(
        self,
        *,
        silos: FewSilos,
        persons: int,
        sampling_rate: float,
        clipping_norm: float,
        budget: Budget,
        ledger: str | os.PathLike[str],
        unit: Literal["person", "row"] = "person",
        noise_multiplier: float | None = None,
        optimizer: ServerOptimizer | None = None,
        evaluation: LocalEvaluation | None = None,
        evaluate_every: int | None = None,
        checkpointing: Checkpointing | None = None,
        population: Population | None = None,
        on_round: OnRound | None = None,
        stage_timeout: float = 600.0,
    ) -> None:
        _arguments.check_on_round(on_round)
        arguments.of_kind("silos", silos, (FewSilos,), "FewSilos(10)")
        limit = "Budget(epsilon=3.0, delta=1e-5), with epsilon=math.inf for no limit"
        arguments.of_kind("budget", budget, (Budget,), limit)
        tested = "LocalEvaluation(every=..., noise_multiplier=...), or leave it out"
        arguments.of_kind("evaluation", evaluation, (LocalEvaluation, type(None)), tested)
        kept = "Checkpointing(path, resume=...), or leave it out"
        arguments.of_kind("checkpointing", checkpointing, (Checkpointing, type(None)), kept)
        if silos.server is not ServerModel.HONEST_BUT_CURIOUS:
            raise ValueError(
                f"silos.server is {silos.server.value}, against which steps are not played yet; "
                "give FewSilos without it"
            )
        listed = "Population(identities), or leave it out"
        arguments.of_kind("population", population, (Population, type(None)), listed)
        if unit not in UNITS:
            raise ValueError(f"unit is {arguments.shown(unit)}; give 'person' or 'row'")
        if population is not None and len(population) != silos.silos:
            raise ValueError(
                f"population lists {len(population)} nodes, and silos says {silos.silos}; make "
                "them agree"
            )
        if optimizer is not None:
            _arguments.check_optimizer(optimizer)
        self.silos, self.unit, self.evaluation = silos, unit, evaluation
        self._step_setup = StepSetup(
            silos=silos,
            unit=unit,
            persons=arguments.whole("persons", persons, least=1, most=MOST_PERSONS),
            sampling_rate=arguments.number("sampling_rate", sampling_rate, above=0, below=1),
            stage_timeout=arguments.seconds("stage_timeout", stage_timeout),
        )
        clipping = FlatClipping(arguments.number("clipping_norm", clipping_norm, above=0))
        self.clipping_norm = clipping.norm
        z = _arguments.noise_multiplier(noise_multiplier, budget)
        if z is not None:
            self._step_setup.step(clipping.norm, z).event(1)  # refuses what cannot be accounted
        every = 1 if evaluation is None else evaluation.every
        if evaluate_every is not None:
            every = arguments.whole("evaluate_every", evaluate_every, least=1)
            if evaluation is not None and every != evaluation.every:
                raise ValueError(
                    f"evaluate_every is {every}, and evaluation.every {evaluation.every}; leave "
                    "evaluate_every out"
                )
        self._evaluate_step: MaskedSum | None = None
        super().__init__(
            registry=ClientRegistry(silos.silos if population is None else population),
            ledger=ledger,
            budget=budget,
            unit_name=f"{unit}s of {silos.silos} silos",
            guarantee=(Adjacency.ADD_OR_REMOVE_ONE, "pld"),
            clipping=clipping,
            optimizer=ServerSGD() if optimizer is None else optimizer,
            noise_multiplier=z,
            checkpointing=checkpointing,
            min_available_nodes=silos.min_silos,
            evaluates=evaluation is not None,
            evaluate_every=every,
            on_round=on_round,
        )

    @property
    def _setup(self) -> StepSetup:
        return self._step_setup

    def _make_rounds(self) -> SiloSteps:
        return SiloSteps(self._step_setup, self.clipping_norm)

    def _settings(self) -> str:
        return settings_text(
            {
                "silos": self.silos,
                "persons": self._setup.persons,
                "unit": self.unit,
                "sampling_rate": self._setup.sampling_rate,
                "clipping_norm": self.clipping_norm,
                "optimizer": self._initial_optimizer,
                "noise_multiplier": self._given_noise,
                "budget": self.budget,
                "evaluation": self.evaluation,
            }
        )

    def _draw(self, server_round: int, grid: Grid) -> tuple[list[int], int]:
        """All silos that are connected."""
        return self._run.draw(f"step {server_round}", Full(), grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Open the silos' sum, once it is paid, and step; too many unopened ones end the run."""
        stepped = super().aggregate_train(server_round, replies)
        last = self._run.state.aborted[-_MOST_UNOPENED:]
        if last == list(range(server_round - _MOST_UNOPENED + 1, server_round + 1)):
            self._run.stop(
                f"steps {last[0]} to {last[-1]} opened nothing: fewer silos than "
                f"{self.silos.min_silos} see a step through"
            )
        return stepped

    # Evaluation --------------------------------------------------------------------------------

    def _accuracy(self) -> AccuracySum | None:
        """The request of an evaluation."""
        if self.evaluation is None:
            return None
        return AccuracySum(
            unit=self.unit,
            persons=max(self._setup.persons, self.evaluation.persons or 0),
            noise_multiplier=self.evaluation.noise_multiplier,
            mechanism=self._setup.mechanism,
        )

    def _evaluation_cost(self) -> EvaluationCost:
        request, given = self._accuracy(), self.evaluation
        if request is None or given is None:
            return EvaluationCost()
        return EvaluationCost(
            (request.event(1),), "evaluation", given.noise_multiplier, given.every
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the silos for their right answers, where an evaluation is due and affordable."""
        self._evaluate_step = None
        request, run = self._accuracy(), self._run
        if request is None or not self._is_evaluated(server_round):
            return []
        nodes, drawn = run.draw(f"step {server_round}, evaluation", Full(), grid)
        if run.has_ended():
            return []
        current = self._rounds_of_run.sum(
            f"step {server_round}, evaluation",
            server_round,
            request,
            ModelSchema(arrays),
            run,
            grid,
        )
        self._evaluate_step = current
        return current.begin(nodes, self._content(server_round, arrays, config), drawn=drawn)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The accuracy and the number of persons, noised, once they are paid."""
        current, self._evaluate_step = self._evaluate_step, None
        request, evaluation = self._accuracy(), self.evaluation
        if current is None or request is None or evaluation is None:
            return None
        current.gather(replies)
        if current.is_paid:
            due = self._evaluation_cost().events
            self._privacy_budget.pay(due, run=self._run.state.name, number=server_round)
            self.epsilon_by_round[server_round] = self.epsilon()
        opened = current.release().update
        if opened is None:
            self._run.faults.once(
                "An evaluation opened nothing: too few silos saw it through; the operator's log "
                "says which are missing."
            )
            return None
        accuracy = read_accuracy(opened[0], request.noise_multiplier)
        self._warn_of_count(
            partial(implausible_test_count, expected=evaluation.persons),
            2 * float(opened[0][1]),
            2 * request.clipping_norm * request.noise_multiplier,
        )
        return accuracy

    def _warn_of_count(
        self, implausible: Callable[..., str | None], count: float, deviation: float
    ) -> None:
        """Say once if the opened number of persons cannot be that of the silos' data."""
        mechanism, silos = self._setup.mechanism, self.silos.silos
        line = implausible(
            count,
            summed_deviation(deviation, silos=silos, honest=mechanism.honest),
            persons=self._setup.persons,
            unit=self.unit,
        )
        if line is not None:
            self._run.faults.once(line, about="an implausible number of persons")

    # Statistics --------------------------------------------------------------------------------

    def statistics(
        self, grid: Grid, query: TableQuery, *, noise_multiplier: float, timeout: float = 3600
    ) -> Statistics:
        """Ask all silos for the statistics of their tables, once, from the same budget.

        Means, deviations, class counts and histograms with noise, to normalise a table without
        looking at it. Do it before ``start``: the noise of training is then calibrated to what is
        left.

        Parameters
        ----------
        grid : Grid
        query : TableQuery
            Its bounds come from elsewhere than the data.
        noise_multiplier : float
            z: the noise on every number of persons has a deviation of about z times
            ``query.clipping_norm``.
        timeout : float
            Seconds that the silos have for their sums.

        Raises
        ------
        BudgetError
            If it does not fit what is left of the budget; nobody was asked.
        NoUsableReplyError
            If too few silos saw it through.
        """
        arguments.of_kind("query", query, (TableQuery,), "TableQuery(bounds=[(low, high), ...])")
        timeout = arguments.seconds("timeout", timeout)
        request = TableSum(
            unit=self.unit,
            persons=self._setup.persons,
            noise_multiplier=noise_multiplier,
            mechanism=self._setup.mechanism,
            query=query,
        )
        due, name, run = [request.event(1)], "statistics", self._run
        with self._privacy_budget.held(self._read_checkpoint):
            if not self._privacy_budget.affordable(due):
                raise BudgetError(
                    f"statistics would pass {self._privacy_budget}; nobody was asked. Give a "
                    "larger noise_multiplier, or ask for fewer columns"
                )
            run.wait_for_nodes(grid)
            nodes, drawn = run.draw(name, Full(), grid)
            no_model = ModelSchema(ArrayRecord([np.zeros(1, np.float32)]))
            current = self._rounds_of_run.sum(name, 0, request, no_model, run, grid)
            content = self._content(0, no_model.record(no_model.arrays), ConfigRecord())
            messages = current.begin(nodes, content, drawn=drawn)
            current.gather(stream_replies(grid, messages, timeout=timeout))
            if current.is_paid:
                self._privacy_budget.pay(due, run=run.state.name, number=0)
            opened = current.release().update
        if opened is None:
            raise NoUsableReplyError(
                f"statistics opened nothing: fewer silos than {self.silos.min_silos} saw it "
                f"through ({run.faults.reasons()})"
            )
        read = query.read(opened[0], request.mechanism, noise_multiplier=request.noise_multiplier)
        self._warn_of_count(implausible_count, read.count, read.noise)
        return read

    @property
    def _rounds_of_run(self) -> SiloSteps:
        rounds = self._rounds
        if not isinstance(rounds, SiloSteps):
            raise TypeError("the rounds of a run are another strategy's")
        return rounds

    # In words ----------------------------------------------------------------------------------

    def _noise_words(self, length: float) -> str:
        return (
            f"Noise: about {length:.3g}·S on each step's average (z·√d/(p·N)), if the fewest "
            "honest silos take part; all persons together can move it by at most S."
        )

    def report(self) -> PrivacyReport:
        """The guarantee as it stands, with all that the ledger holds."""
        return silo_report(self._setup, self._privacy_budget, self._run.state)

    def summary(self) -> None:
        """Log the settings. All of them are public."""
        log_settings(self._setup, self._privacy_budget, self._run.state)
