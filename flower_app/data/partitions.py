"""Who holds what in a simulation: the clients' disjoint shares of the training images.

Made once by ``flwr-datasets`` partitioners on a table of rows and labels, then kept in the
cache folder: importing those partitioners takes seconds, and thousands of client calls in many
processes only need their own rows.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from flower_app.data.cache import cache_folder, code_version, shared_array
from flower_app.data.dataset import Dataset
from privacy import arguments
from privacy.imports import needing

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

PARTITIONS = ("iid", "dirichlet", "shards", "lognormal")
SHARDS_A_CLIENT = 2

_CODE = code_version(sys.modules[__name__])


@dataclass(frozen=True)
class PartitionSpec:
    """How the training images are divided.

    Attributes
    ----------
    kind
        ``"iid"``: equal shares of a shuffled deck. ``"dirichlet"``: each class is divided in
        proportions drawn from Dirichlet(``alpha``) (Hsu et al. 2019, arXiv 1909.06335; with
        the balancing of ``flwr-datasets``). ``"shards"``: sorted by label, cut in two shards a
        client (McMahan et al. 2017, arXiv 1602.05629, section 3). ``"lognormal"``: shuffled,
        with sizes drawn from a log-normal distribution.
    clients, seed
        The number of shares; the same seed gives the same ones.
    alpha
        Above 0: the smaller, the fewer classes a client has.
    sigma
        Standard deviation of the logarithm of the sizes, at least 0.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    kind: str = "shards"
    clients: int = 1000
    seed: int = 0
    alpha: float = 0.3
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in PARTITIONS:
            raise ValueError(
                f"partition = {self.kind!r} is unknown; choose one of {', '.join(PARTITIONS)}"
            )
        arguments.convert(self, "clients", arguments.whole, least=1)
        seed = arguments.whole("partition seed", self.seed, least=0)
        object.__setattr__(self, "seed", seed)
        arguments.convert(self, "alpha", arguments.number, above=0)
        arguments.convert(self, "sigma", arguments.number, least=0)


class Partitions:
    """The shares of all clients.

    ``table`` is int64, (1 + clients + rows,): where each client's rows start, the end of the last
    one's, then the rows of one client after another.
    """

    def __init__(self, table: NDArray[np.int64], clients: int) -> None:
        self._starts = np.array(table[: clients + 1])
        self._rows = table[clients + 1 :]

    @classmethod
    def of(cls, shares: Sequence[NDArray[np.int64]]) -> "Partitions":
        """The shares that are given, each as rows, int64 (n_k,)."""
        starts = np.cumsum([0, *map(len, shares)])
        return cls(np.concatenate([starts, *shares]), len(shares))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def rows(self, client: int) -> NDArray[np.int64]:
        """Return the rows, int64 (n_k,), of the training images that a client holds."""
        if not 0 <= client < len(self):
            raise IndexError(f"client = {client} must be from 0 to {len(self) - 1}")
        return np.array(self._rows[self._starts[client] : self._starts[client + 1]])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """How many images each client holds, int64 (clients,)."""
        return np.diff(self._starts)


def load_partitions(
    spec: PartitionSpec, dataset: Dataset, *, cache_dir: Path | None = None
) -> Partitions:
    """Return the shares that ``spec`` describes of a data set's training images.

    The first call anywhere makes them and keeps them in the cache folder; later ones open the
    file, and within a process return what they opened.

    Raises
    ------
    ValueError
        If there are fewer images than the clients need, or the partitioner finds no division.
    """
    least = spec.clients * (SHARDS_A_CLIENT if spec.kind == "shards" else 1)
    if least > len(dataset.train):
        raise ValueError(
            f"clients = {spec.clients:,} with partition = {spec.kind!r} needs at least {least:,} "
            f"images, and there are {len(dataset.train):,}; lower the number of clients"
        )
    return _open(spec, dataset, cache_folder(cache_dir))


@cache
def _open(spec: PartitionSpec, dataset: Dataset, folder: Path) -> Partitions:
    shape = {"dirichlet": f"-{spec.alpha!r}", "lognormal": f"-{spec.sigma!r}"}.get(spec.kind, "")
    name = f"{dataset.fingerprint}-{spec.kind}{shape}-{spec.clients}-{spec.seed}-{_CODE}.npy"
    table = shared_array(folder / "partitions" / name, lambda: _divide(spec, dataset.train.labels))
    return Partitions(cast(NDArray[np.int64], table), spec.clients)


def _divide(spec: PartitionSpec, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Let flwr-datasets divide a shuffled table of rows and labels."""
    with needing("a partition", extra="app"):
        from datasets import Dataset as Table

    shuffle, draw = np.random.default_rng(spec.seed).spawn(2)
    rows = shuffle.permutation(len(labels))
    partitioner = _partitioner(spec, len(labels), draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the partitioners' own; what matters is checked below
        partitioner.dataset = Table.from_dict({"row": rows, "label": labels[rows]})
        shares = [
            np.asarray(partitioner.load_partition(client).with_format("numpy")["row"][:], np.int64)
            for client in range(spec.clients)
        ]
    starts = np.cumsum([0, *map(len, shares)])
    return np.concatenate([starts, *shares])


def _partitioner(spec: PartitionSpec, images: int, draw: np.random.Generator) -> "Partitioner":
    with needing("a partition", extra="app"):
        from flwr_datasets import partitioner

    if spec.kind == "iid":
        return partitioner.IidPartitioner(num_partitions=spec.clients)
    if spec.kind == "dirichlet":
        return partitioner.DirichletPartitioner(
            num_partitions=spec.clients,
            partition_by="label",
            alpha=float(spec.alpha),
            min_partition_size=0,
            self_balancing=True,
            seed=int(draw.integers(2**31)),
        )
    if spec.kind == "shards":
        return partitioner.ShardPartitioner(
            num_partitions=spec.clients,
            partition_by="label",
            num_shards_per_partition=SHARDS_A_CLIENT,
            seed=int(draw.integers(2**31)),
        )
    logarithms = draw.normal(scale=spec.sigma, size=spec.clients)
    weights = np.exp(logarithms - logarithms.max())
    spare = images - spec.clients
    ends = np.floor(np.cumsum(weights) / weights.sum() * spare).astype(int)
    ends[-1] = spare
    return partitioner.SizePartitioner([1 + int(size) for size in np.diff(ends, prepend=0)])
