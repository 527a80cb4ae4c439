"""The new model, and how it differs from the one that it came from."""

import json
from dataclasses import asdict, dataclass

from torch import nn

from privacy.training import TrainingResult


@dataclass(frozen=True)
class ReplacedActivation:
    """One activation and its polynomial.

    Attributes
    ----------
    name : str
        The polynomial's place in the new model.
    activation : str
        The module or function that stood there.
    low, high : float
        The range in which the polynomial was fitted, and in which training keeps values.
    degree : int
        Of the polynomial; 1 where the activation is a straight line in the range.
    fit_error : float
        Largest distance from the activation in the range, as fitted. Training then moves the
        coefficients and the weights together.
    outside : float
        Share of values outside the range after training, on inputs that were not trained on.
    """

    name: str
    activation: str
    low: float
    high: float
    degree: int
    fit_error: float
    outside: float


@dataclass(frozen=True)
class ReplacementReport:
    """What replacing the activations changed. Shares are of ``inputs``, none of them trained on.

    Attributes
    ----------
    activations : tuple of ReplacedActivation
        In the order in which they run.
    pools : tuple of str
        Max pools that became average pools.
    levels : int
        One, and 1, 2, 2, 3, 3, 3 for each activation of degree 2 to 7 along the longest path: what
        the compiler counts for layers in a row. A model of several paths may take more.
    data : str
        Which data were read, and what that means.
    inputs : int
        On how many public inputs the shares were measured.
    agreement : float
        Share of inputs of which original and new model give the same class.
    accuracy_before, accuracy_after : float or None
        Shares of right classes; None without public labels.
    """

    activations: tuple[ReplacedActivation, ...]
    pools: tuple[str, ...]
    levels: int
    data: str
    inputs: int
    agreement: float
    accuracy_before: float | None
    accuracy_after: float | None

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        """The report as a table."""
        width = max(len("place"), *(len(each.name) for each in self.activations))
        kinds = max(len("activation"), *(len(each.activation) for each in self.activations))
        lines = [
            f"{'place':{width}}  {'activation':{kinds}}  {'range':17}  degree  fit error  outside"
        ]
        lines += [
            f"{each.name:{width}}  {each.activation:{kinds}}  "
            f"{f'{each.low:.3g} to {each.high:.3g}':17}  {each.degree:6}  {each.fit_error:9.2g}  "
            f"{each.outside:.2%}"
            for each in self.activations
        ]
        lines += [f"{pool}: averages in place of maxima" for pool in self.pools]
        if self.accuracy_before is not None and self.accuracy_after is not None:
            lines.append(
                f"accuracy    {self.accuracy_before:.2%} before, {self.accuracy_after:.2%}"
            )
        lines += [
            f"agreement   {self.agreement:.2%} of {self.inputs:,} inputs",
            f"levels      {self.levels}",
            f"data        {self.data}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Replacement:
    """A model without activations that encryption cannot evaluate.

    Attributes
    ----------
    model : nn.Module
        The new model; the original is as it was.
    report : ReplacementReport
    training : TrainingResult or None
        Of private data: the guarantee, and the ledger's ε, which is never to be sent.
    """

    model: nn.Module
    report: ReplacementReport
    training: TrainingResult | None = None
