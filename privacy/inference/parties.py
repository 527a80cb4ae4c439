"""The declaration that three different parties take part, without which weights are not hidden."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ThreeParties:
    """Who holds the model, who the data, and who evaluates: three names, all different.

    Encrypted weights hide the model from a third party that evaluates. Where the evaluator is
    the model owner there is nobody to hide it from; where it is the data owner it holds the
    secret key and decrypts the weights. Both are refused here. The names become part of the plan
    and of its digest, which is in every message, so that nobody joins under another arrangement.

    Attributes
    ----------
    model_owner, data_owner, evaluator : str

    Guarantee
        None beyond the refusal: a name is a declaration, and who bears it is for the operator
        and TLS to establish.
    Assumptions
        The evaluator and the data owner do not collude: together they decrypt the weights.
    Not covered
        Two names for one party.

    Raises
    ------
    ValueError
        If a name is empty or two are the same.
    """

    model_owner: str
    data_owner: str
    evaluator: str

    def __post_init__(self) -> None:
        taken: dict[str, str] = {}
        for field in fields(self):
            name = getattr(self, field.name)
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"{field.name} is {name!r}; give the name of that party")
            key = name.strip().casefold()
            if key in taken:
                raise ValueError(
                    f"{field.name} and {taken[key]} are both {name!r}; encrypted weights hide a "
                    "model from a third party only. Without one, compile without parties"
                )
            taken[key] = field.name

    @property
    def names(self) -> tuple[str, str, str]:
        """The three names: model owner, data owner, evaluator."""
        return (self.model_owner, self.data_owner, self.evaluator)
