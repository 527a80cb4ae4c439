"""The keys under which a round's records stand in its messages."""

from dataclasses import dataclass

from privacy import arguments


@dataclass(frozen=True, kw_only=True)
class RecordKeys:
    """Keys in the records of a message, as in Flower's ``FedAvg``.

    Parameters
    ----------
    arrays : str
        The ``ArrayRecord`` that is sent; Flower's ``arrayrecord_key``.
    config : str
        The ``ConfigRecord`` that is sent; Flower's ``configrecord_key``.
    weighted_by : str
        The metric of a reply that says how much it counts; Flower's ``weighted_by_key``.
    """

    arrays: str = "arrays"
    config: str = "config"
    weighted_by: str = "num-examples"

    def __post_init__(self) -> None:
        for name in ("arrays", "config", "weighted_by"):
            text = arguments.text(f"record_keys.{name}", getattr(self, name))
            object.__setattr__(self, name, text)
