"""The server's side of a step: sums that silos mask, opened for at least the fewest silos."""

from dataclasses import dataclass, field
from typing import ClassVar

from flwr.app import RecordDict
from flwr.serverapp import Grid

from privacy.accounting import AdditiveDelta, Event, Poisson
from privacy.mechanisms import Randomness, SiloGaussian, SystemRandomness
from privacy.secure_aggregation import Adversary, FewSilos, ServerStage
from strategies.clipping import Clipping
from strategies.distributed_dpsgd.requests import INVITED_FOR, GradientSum, SumRequest
from strategies.model_schema import ModelSchema
from strategies.privacy_budget import PrivacyBudget
from strategies.replies import RecordKeys
from strategies.run import Run
from strategies.secure_aggregation.messages import KEY, protocol_record
from strategies.secure_aggregation.train_round import MaskedRound, next_number
from strategies.train_round import EveryoneInEveryRound


@dataclass(frozen=True, kw_only=True)
class StepSetup:
    """Settings that all steps share.

    Attributes
    ----------
    silos : FewSilos
        Who takes part, and how many of them may be absent or collude.
    unit : "person" or "row"
        Whom the sums protect.
    persons : int
        N, a public number of these over all silos.
    sampling_rate : float
        p.
    stage_timeout : float
        Seconds that a stage without gradients waits for a silo.
    """

    silos: FewSilos
    unit: str
    persons: int
    sampling_rate: float
    stage_timeout: float
    record_keys: RecordKeys = field(default_factory=RecordKeys)
    randomness: Randomness = field(default_factory=SystemRandomness)

    @property
    def population(self) -> int:
        """N."""
        return self.persons

    @property
    def sampling(self) -> Poisson:
        """Of a step."""
        return Poisson(self.sampling_rate)

    @property
    def cohort_sampling(self) -> Poisson:
        """Likewise."""
        return self.sampling

    @property
    def expected_cohort(self) -> float:
        """p·N."""
        return self.sampling_rate * self.persons

    @property
    def denominator(self) -> float:
        """p·N, by which a step's sum is divided."""
        return self.expected_cohort

    @property
    def mechanism(self) -> SiloGaussian:
        """The silos' noise."""
        return SiloGaussian(self.silos.min_silos, self.silos.colluders)

    # The protocol's conditions: everybody is asked, and as many may vanish as leave the fewest.

    @property
    def min_clients(self) -> int:
        """The fewest silos whose sum is opened."""
        return self.silos.min_silos

    max_clients: ClassVar[int | None] = None
    max_dropout_fraction: ClassVar[float | None] = None
    client_public_keys: ClassVar[tuple[bytes, ...]] = ()

    @property
    def adversary(self) -> Adversary:
        """The server with the colluders."""
        return self.silos.adversary

    def noise_shares(self, clipping: Clipping, z: float) -> tuple[float, float | None]:
        """All of the noise is on the gradients."""
        return z, None

    def step(
        self, clipping_norm: float, noise_multiplier: float, *, planned: int = 1
    ) -> GradientSum:
        """The request of a step, the first of so many."""
        return GradientSum(
            unit=self.unit,
            persons=self.persons,
            clipping_norm=clipping_norm,
            sampling_rate=self.sampling_rate,
            noise_multiplier=noise_multiplier,
            mechanism=self.mechanism,
            planned=planned,
        )


class SiloSteps(EveryoneInEveryRound):
    """The steps of a run, and other sums between them.

    That a step does not open costs no privacy, and no δ: silos take part whatever persons they
    hold or drew.
    """

    presence = AdditiveDelta(0.0)
    mechanism = SiloGaussian.name

    def __init__(self, setup: StepSetup, clipping_norm: float) -> None:
        self._setup, self._norm = setup, clipping_norm
        self._number = 0

    def account(self, noise_multiplier: float, parameters: int) -> Event:
        """The event of a step of a model of so many parameters."""
        return self._setup.step(self._norm, noise_multiplier).event(parameters)

    def check_presence(self, rounds: int, budget: PrivacyBudget) -> None:
        """Nothing is charged for presence."""

    def open(self, number: int, schema: ModelSchema, run: Run, grid: Grid) -> "MaskedSum":
        """A new step, with the noise multiplier of the run's state."""
        request = self._setup.step(
            run.state.clipping.norm,
            run.noise_multiplier,
            planned=max(1, run.last - number + 1),
        )
        return self.sum(f"step {number}", number, request, schema, run, grid)

    def sum(
        self,
        name: str,
        number: int,
        request: SumRequest,
        schema: ModelSchema,
        run: Run,
        grid: Grid,
    ) -> "MaskedSum":
        """Another sum over the silos' persons; ``schema`` is of the model that is sent with it."""
        self._number = next_number(self._number)
        return MaskedSum(
            number=number,
            schema=schema,
            encoding=request,
            settings=self._setup,
            sequence=self._number,
            randomness=self._setup.randomness,
            run=run,
            grid=grid,
            name=name,
        )


@dataclass(eq=False, kw_only=True)
class MaskedSum(MaskedRound):
    """One sum over the silos' persons, as the server plays it.

    Silos learn with the first message what is to be summed, beside the run's configuration, and
    those whose owner does not allow it decline before anybody counts on them.
    """

    name: str

    @property
    def _name(self) -> str:
        return self.name

    @property
    def is_paid(self) -> bool:
        """Whether silos were asked for their sums."""
        return self._updates_asked

    def _content(self, stage: ServerStage, request: bytes) -> RecordDict:
        content = super()._content(stage, request)
        if stage is ServerStage.ADVERTISING:
            record = protocol_record(request)
            self.encoding.write_into(record)
            record[INVITED_FOR] = self.schema.size
            content[KEY] = record
        return content
