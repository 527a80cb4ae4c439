"""Secure aggregation among few silos, such as hospitals: everybody is everybody's neighbour."""

import math
from dataclasses import dataclass

from privacy.arguments import convert, whole
from privacy.secure_aggregation.neighbours import RoundPlan, plan_round
from privacy.secure_aggregation.terms import LARGEST_COHORT, Adversary, ServerModel, check_server


@dataclass(frozen=True)
class FewSilos:
    """The silos of a federation, how many may collude, and how many may be absent from a step.

    Give its parts to the protocol: ``RoundTerms(min_clients=f.min_silos, …)``;
    ``SecureServer(terms, adversary=f.adversary, max_dropout_fraction=None, cohort=f.silos)``;
    ``ClientPolicy(min_clients=f.min_silos, adversary=f.adversary)``. Noise in shares is then
    sized by ``SiloGaussian(f.min_silos, f.colluders)``.

    Parameters
    ----------
    silos : int
        All of them, at least 3.
    colluders : int
        How many may pool what they know, with each other and with the server, about the others'
        data: at least 1, and fewer than half.
    absent : int, optional
        How many may be missing from a step that is opened all the same. Each costs accuracy in
        every step, since the noise is sized for the fewest: the sum of all silos has
        √(silos / (silos - absent - colluders)) times the noise that it needs. Default: one in
        five, so none of 3 or 4, one of 5, two of 10.
    server : ServerModel
        What the server may do.

    Raises
    ------
    TypeError, ValueError
        If one is of the wrong kind or out of range, or so few silos cannot withstand so many.

    Notes
    -----
    **Guarantee.** That of a complete graph: the server, together with ``colluders`` silos, learns
    the sum of ``min_silos`` silos or more, or nothing. There is no probability in it beyond that
    of the cryptography, however few silos there are.

    **Assumptions.** Those of ``SecureClient``.

    **Not covered.** What a sum shows of a single silo among so few: noise is for that.
    """

    silos: int
    colluders: int = 1
    absent: int | None = None
    server: ServerModel = ServerModel.HONEST_BUT_CURIOUS

    def __post_init__(self) -> None:
        give = (
            f"from 3 to {LARGEST_COHORT}: of two, each learns the other's sum by taking its own "
            "from the total"
        )
        convert(self, "silos", whole, least=3, most=LARGEST_COHORT, give=give)
        give = "at least 1: a silo knows its own part, and sees the sum"
        convert(self, "colluders", whole, least=1, give=give)
        check_server("server", self.server)
        if not 2 * self.colluders < self.silos:
            raise ValueError(
                f"colluders is {self.colluders} of {self.silos} silos; no protocol withstands half "
                "of its members: assume fewer, or bring more silos in"
            )
        most = self.silos - self._plan(3).min_survivors
        if self.absent is None:
            object.__setattr__(self, "absent", min(self.silos // 5, most))
        give = f"at most {most} of {self.silos}, or the others could not withstand {self.colluders}"
        convert(self, "absent", whole, least=0, most=most, give=give)

    @property
    def min_silos(self) -> int:
        """The fewest silos whose sum is opened."""
        return self.silos - (self.absent or 0)

    @property
    def adversary(self) -> Adversary:
        """The server with the colluders, as the protocol takes it."""
        # Rounded down, or so many times the number of silos could be one more.
        return Adversary(self.server, math.nextafter(self.colluders / self.silos, 0.0))

    def plan(self) -> RoundPlan:
        """The graph and thresholds of a step that all silos begin."""
        return self._plan(self.min_silos)

    def _plan(self, min_clients: int) -> RoundPlan:
        return plan_round(
            self.silos,
            adversary=self.adversary,
            max_dropout_fraction=None,
            min_clients=min_clients,
        )

    def __str__(self) -> str:
        """Who may collude, in words."""
        others = "another silo" if self.colluders == 1 else f"{self.colluders} other silos"
        absent = f"{self.absent or 'none'} of the {self.silos} may be absent from it"
        return (
            f"a step opens the sum of at least {self.min_silos} silos; {absent}; no silo's own "
            f"part shows to the server ({self.server.value}) together with {others}"
        )
