"""How a ledger is written down: as a record, and as a file that survives a crash."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from privacy.accounting import LedgerError
from privacy.durable import write_durably

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Steps of the Poisson-subsampled Gaussian mechanism.

    Parameters
    ----------
    noise_multiplier : float
        z; 0 stands for a use without noise, which no ε covers.
    sampling_rate : float
        q in (0, 1].
    steps : int
        How many.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(f"noise_multiplier is {self.noise_multiplier!r}: must be at least 0")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate is {self.sampling_rate!r}: must be in (0, 1]")
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps is {self.steps!r}: must be a whole number, at least 1")


@dataclass(frozen=True)
class Entry:
    """One data set's page: what it spent, and its number of records if noised and released."""

    charges: tuple[Charge, ...] = ()
    released_count: int | None = None

    def plus(self, charges: Sequence[Charge]) -> "Entry":
        """The page with ``charges`` written below; equal neighbours are merged."""
        page = list(self.charges)
        for charge in charges:
            last = page[-1] if page else None
            if last is not None and (last.noise_multiplier, last.sampling_rate) == (
                charge.noise_multiplier,
                charge.sampling_rate,
            ):
                page[-1] = Charge(
                    noise_multiplier=last.noise_multiplier,
                    sampling_rate=last.sampling_rate,
                    steps=last.steps + charge.steps,
                )
            else:
                page.append(charge)
        return replace(self, charges=tuple(page))


def as_record(dataset: str, entry: Entry) -> dict[str, Any]:
    """One data set's page as scalars and lists of scalars."""
    released = [] if entry.released_count is None else [entry.released_count]
    return {
        "format": FORMAT,
        "dataset": dataset,
        "noise_multipliers": [charge.noise_multiplier for charge in entry.charges],
        "sampling_rates": [charge.sampling_rate for charge in entry.charges],
        "steps": [charge.steps for charge in entry.charges],
        "released_count": released,
    }


def from_record(record: Mapping[str, Any]) -> tuple[str, Entry]:
    """The page that ``as_record`` wrote.

    Raises
    ------
    LedgerError
        If it is anything else.
    """
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"format is {record['format']!r}, this version reads {FORMAT}")
        columns = (record["noise_multipliers"], record["sampling_rates"], record["steps"])
        charges = tuple(
            Charge(noise_multiplier=float(z), sampling_rate=float(q), steps=steps)
            for z, q, steps in zip(*columns, strict=True)
        )
        dataset = record["dataset"]
        if not (isinstance(dataset, str) and dataset):
            raise ValueError("dataset is not a name")
        released = [int(count) for count in record["released_count"]]
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"not a ledger's record: {error}") from error
    return dataset, Entry(charges, released[0] if released else None)


def _load(path: Path) -> dict[str, Any]:
    """The file's records by data set; none if there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"ledger {path} cannot be read ({error}); restore it") from error
    try:
        document = json.loads(text)
        records = document["ledgers"]
        if document["format"] != FORMAT or not isinstance(records, dict):
            raise ValueError("unknown format")
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"ledger {path} is damaged ({error}): restore it from a backup; without it what was "
            "spent is unknown"
        ) from error
    return records


def read(path: Path, dataset: str) -> Entry:
    """The data set's page in the file, empty if it has none."""
    record = _load(path).get(dataset)
    if record is None:
        return Entry()
    found, entry = from_record(record)
    if found != dataset:
        raise LedgerError(f"ledger {path} is damaged: '{dataset}' holds '{found}'; restore it")
    return entry


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock"), mode=0o600):
        yield


def write(path: Path, dataset: str, entry: Entry) -> None:
    """Replace the data set's page, in one step: after a crash the old or the new file is there.

    Raises
    ------
    LedgerError
        If it cannot be written.
    """
    records = _load(path) | {dataset: as_record(dataset, entry)}
    text = json.dumps({"format": FORMAT, "ledgers": records}, indent=1)
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise LedgerError(f"ledger {path} cannot be written ({error}); train nothing") from error
