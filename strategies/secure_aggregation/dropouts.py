"""Whether as many clients drop out as was declared."""

from strategies.lost_clients import operator_log

FALSE_ALARM = 1e-6


class ObservedDropouts:
    """Holds the clients that did not see their rounds through against ``dropout_probability``.

    What presence costs is charged from the declared probability (``presence_delta``): where more
    drop out, δ is under-stated. The operator is told, once, in the operator's log. The run goes
    on and its results do not say so: who was there is not noised, and to end the run would show it.

    Parameters
    ----------
    declared : float
        The probability, at most, with which a client that was drawn does not see the round
        through.
    """

    def __init__(self, declared: float) -> None:
        self._declared = declared
        self._drawn = self._lost = 0
        self._warned = False

    def note(self, drawn: int, remaining: int) -> None:
        """Count one round.

        Parameters
        ----------
        drawn : int
            How many clients were asked.
        remaining : int
            How many of them answered to the end, or to where the round was given up.
        """
        from scipy.stats import binom

        self._drawn += drawn
        self._lost += drawn - remaining
        if self._warned or binom.sf(self._lost - 1, self._drawn, self._declared) > FALSE_ALARM:
            return
        self._warned = True
        operator_log.warning(
            "%d of %d clients that were drawn did not see their round through; with "
            "dropout_probability = %g so many would with a probability below %g. The delta that "
            "each round is charged for presence rests on it, so epsilon is under-stated: declare "
            "at least %.2g.",
            self._lost,
            self._drawn,
            self._declared,
            FALSE_ALARM,
            self._lost / self._drawn,
        )
