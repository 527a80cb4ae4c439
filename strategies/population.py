"""The population: who may be drawn. Frozen for a run, persistent across runs."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from privacy import arguments
from privacy.accounting import CyclicGroups, FixedSize, Full, Poisson, Sampling
from privacy.files import write_durably
from privacy.json_text import read_json
from privacy.mechanisms import Randomness
from strategies.errors import PopulationExceededError

Identify = Callable[[NodeInfo], str]

_FORMAT = "bloomseal-population-1"


def node_identity(node: NodeInfo) -> str:
    """The identity of a node: its public key where nodes authenticate, else its id in this run.

    A node id is new each time a node registers, so without authentication one client that
    registers twice counts as two.
    """
    if node.public_key:
        return key_identity(node.public_key)
    return f"node:{node.node_id}"


def key_identity(public_key: bytes) -> str:
    """The identity of a node with this public key.

    Parameters
    ----------
    public_key : bytes
        As Flower registers it: the PEM encoding of its SubjectPublicKeyInfo.
    """
    return f"key:{hashlib.sha256(public_key).hexdigest()}"


@dataclass(frozen=True)
class Population:
    """A frozen list of client identities.

    Parameters
    ----------
    identities : tuple of str
        One for each client, without repetition; kept sorted.
    identify : callable, optional
        The identity of a connected node, called once for each node id. Default:
        ``node_identity``.
    name : str
        The population's name in the ledger, for all who read it: name nobody.

    Raises
    ------
    ValueError
        If there is no identity, or one appears twice.
    """

    identities: tuple[str, ...]
    identify: Identify = node_identity
    name: str = "population"

    def __post_init__(self) -> None:
        identities: object = self.identities
        if not isinstance(identities, tuple | list | set | frozenset):
            raise TypeError(f"identities is {identities!r}; give a tuple of texts")
        for identity in identities:
            arguments.text("an identity", identity)
        if not self.identities:
            raise ValueError("a population needs at least one identity")
        ordered = tuple(sorted(self.identities))
        if len(set(ordered)) != len(ordered):
            twice = next(a for a, b in itertools.pairwise(ordered) if a == b)
            raise ValueError(f"identity {twice!r} appears twice in the population; list it once")
        object.__setattr__(self, "identities", ordered)

    def __len__(self) -> int:
        return len(self.identities)

    @classmethod
    def connected(cls, grid: Grid, *, identify: Identify = node_identity) -> "Population":
        """Freeze the clients that are connected now."""
        return cls(tuple({identify(node) for node in grid.get_nodes()}), identify)

    @classmethod
    def load(cls, path: str | Path, *, identify: Identify = node_identity) -> "Population":
        """Read a population that ``save`` wrote.

        Raises
        ------
        ValueError
            If the file is not a population.
        """
        try:
            document = read_json(Path(path).expanduser().read_text())
            if document["format"] != _FORMAT:
                raise KeyError("format")
            identities = tuple(str(identity) for identity in document["identities"])
            name = str(document["name"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a population file ({error!r})") from error
        return cls(identities, identify, name)

    def save(self, path: str | Path) -> None:
        """Write the population to ``path``, whole or not at all; ``~`` is the user's home."""
        document = {
            "format": _FORMAT,
            "name": self.name,
            "identities": list(self.identities),
        }
        content = (json.dumps(document, indent=1) + "\n").encode()
        write_durably(Path(path).expanduser(), content, mode=0o666)


class ClientRegistry:
    """The population's N places during a run, and who holds each.

    A listed population fills them from the start, and strangers are ignored. A number N fills
    them as clients connect, and nobody is turned away: were a newcomer ignored because all places
    are taken, another's leaving would let it in, and a sum would move by 2S where adding or
    removing one is accounted. The cohort is drawn over all N places.
    """

    def __init__(self, population: Population | int) -> None:
        self._listed = isinstance(population, Population)
        if isinstance(population, Population):
            self._places = list(population.identities)
            self._identify = population.identify
            self.size = len(population)
            # Not a digest of the identities: whoever knows all but one could guess the last.
            self.name = f"{population.name}, {len(population)} clients"
        else:
            self._places = []
            self._identify = node_identity
            self.size = arguments.whole("population", population, least=1)
            self.name = f"population, {self.size} clients"
        self._taken = {identity: place for place, identity in enumerate(self._places)}
        self._place_of: dict[int, int | None] = {}  # by node id: a node is identified once

    def locate(self, nodes: Iterable[NodeInfo]) -> tuple[dict[int, int], int]:
        """The nodes that are connected, by place, and how many of them have no place.

        Where one identity is connected twice, its newest registration counts.

        Raises
        ------
        PopulationExceededError
            If the population is a number, and more clients than that have connected by now.
        """
        present = list(nodes)
        for node in sorted((n for n in present if n.node_id not in self._place_of), key=_age):
            self._place_of[node.node_id] = self._place(self._identify(node))
        newest: dict[int, NodeInfo] = {}
        ignored = 0
        for node in present:
            place = self._place_of[node.node_id]
            if place is None:
                ignored += 1
            elif place not in newest or _age(node) > _age(newest[place]):
                newest[place] = node
        return {place: node.node_id for place, node in newest.items()}, ignored

    @property
    def listed(self) -> tuple[str, ...]:
        """The identities of a listed population; none where it is a number.

        A number says nothing of another run of Flower: a SuperNode that does not authenticate has
        a new key, and so another identity, each time it starts.
        """
        return tuple(self._places) if self._listed else ()

    def identity(self, place: int) -> str | None:
        """Who holds a place; None where nobody does yet."""
        return self._places[place] if place < len(self._places) else None

    def _place(self, identity: str) -> int | None:
        if identity not in self._taken and not self._listed:
            if len(self._places) == self.size:
                raise PopulationExceededError(
                    f"population is {self.size}, but more clients than that have connected: who is "
                    "in would hang on who came first, which ε does not account for. Give the "
                    "number of all clients there are, or list them (Population)"
                )
            self._taken[identity] = len(self._places)
            self._places.append(identity)
        return self._taken.get(identity)


def _age(node: NodeInfo) -> tuple[str, int]:
    return node.registered_at, node.node_id


def draw_cohort(
    sampling: Sampling, population: int, *, randomness: Randomness
) -> npt.NDArray[np.intp]:
    """Draw a cohort: ascending indices into the population, under Poisson sampling maybe none.

    Amplification by sampling holds only against those who cannot foresee ``randomness``.
    """
    if isinstance(sampling, Poisson):
        return np.flatnonzero(randomness.bernoulli(sampling.rate, population))
    if isinstance(sampling, Full):
        return np.arange(population)
    keys = randomness.uint64(population)
    while len(np.unique(keys)) < population:  # ties would favour the earlier client
        keys = randomness.uint64(population)
    return np.sort(np.argsort(keys)[: sampling.cohort])


def expected_fraction(sampling: Sampling | CyclicGroups, population: int) -> float:
    """The public fraction of the population that a round is expected to draw."""
    if isinstance(sampling, CyclicGroups):
        return sampling.rate / sampling.groups
    if isinstance(sampling, Poisson):
        return float(sampling.rate)
    if isinstance(sampling, FixedSize):
        if sampling.population != population:
            raise ValueError(
                f"sampling was made for a population of {sampling.population}, "
                f"but the population is {population}"
            )
        return sampling.cohort / population
    return 1.0
