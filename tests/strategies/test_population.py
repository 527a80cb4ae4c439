"""Who is a client, and who is not."""

from pathlib import Path

import pytest
from flwr.app import ConfigRecord
from flwr.proto.node_pb2 import NodeInfo

from strategies import Population, node_identity
from strategies.errors import PopulationExceededError
from strategies.population import ClientRegistry
from tests.strategies.federation import grid_of, model, noiseless


def node(number: int, key: bytes = b"", at: str = "") -> NodeInfo:
    return NodeInfo(node_id=number, public_key=key, registered_at=at)


def test_a_client_that_registers_again_is_not_a_second_client() -> None:
    """With keys, the newest registration stands for it; two places are never taken."""
    register = ClientRegistry(3)
    first, _ = register.locate([node(1, b"a", "1"), node(2, b"b", "2")])
    again, ignored = register.locate([node(9, b"a", "5"), node(1, b"a", "1"), node(2, b"b", "2")])
    assert first == {0: 1, 1: 2}
    assert again == {0: 9, 1: 2}
    assert ignored == 0


def test_newcomers_beyond_a_number_are_refused_and_those_who_come_back_are_not() -> None:
    register = ClientRegistry(2)
    register.locate([node(1, b"a", "1"), node(2, b"b", "1")])
    assert register.locate([node(9, b"a", "2")]) == ({0: 9}, 0)
    with pytest.raises(PopulationExceededError, match="population is 2"):
        register.locate([node(9, b"a", "2"), node(3, b"c", "2")])


def test_a_listed_population_knows_its_own(tmp_path: Path) -> None:
    keys = [b"alice", b"bob"]
    population = Population(tuple(node_identity(node(0, key)) for key in keys))
    register = ClientRegistry(population)
    found, ignored = register.locate([node(7, b"eve"), node(8, b"bob"), node(9)])
    assert list(found.values()) == [8]
    assert ignored == 2
    path = tmp_path / "population.json"
    population.save(path)
    assert Population.load(path).identities == population.identities
    assert Population.load(path) == population
    population.save(str(tmp_path / "text.json"))
    assert Population.load(str(tmp_path / "text.json")) == population
    for text in ("", "[]", '{"format": "other"}', '{"format": "bloomseal-population-1"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="not a population"):
            Population.load(path)
    with pytest.raises(ValueError, match="twice"):
        Population(("a", "a"))
    with pytest.raises(ValueError, match="at least one"):
        Population(())


def test_the_connected_can_be_frozen(tmp_path: Path) -> None:
    population = Population.connected(grid_of(5))
    strategy = noiseless(tmp_path, population=population)
    messages = list(strategy.configure_train(1, model(), ConfigRecord(), grid_of(9)))
    assert sorted(m.metadata.dst_node_id for m in messages) == [1, 2, 3, 4, 5]
