"""A deployment's clients, listed by their node keys."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from flower_app.__main__ import main
from flower_app.errors import SettingError
from flower_app.processes.certificates import make_node_key
from flower_app.settings import Settings
from flower_app.training.assembly import listed_population
from strategies import Population, node_identity


def keys(folder: Path, count: int) -> list[Path]:
    return [make_node_key(folder / str(number), "node").public for number in range(count)]


def listed(path: Path, **more: int) -> Population:
    config = {"deployed": True, "population-file": str(path), **more}
    found = listed_population(Settings.from_config(config))
    assert found is not None
    return found


def test_it_lists_the_nodes_as_flower_will_show_them(tmp_path: Path) -> None:
    path, public = tmp_path / "clients.json", keys(tmp_path, 3)
    assert main(["population", str(path), *map(str, public)]) == 0
    shown = [public_key_to_bytes(load_ssh_public_key(key.read_bytes())) for key in public]
    identities = {node_identity(NodeInfo(node_id=7, public_key=key)) for key in shown}
    assert set(listed(path).identities) == identities


def test_a_list_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, public = tmp_path / "clients.json", keys(tmp_path, 1)
    path.write_text("precious")
    assert main(["population", str(path), str(public[0])]) == 1
    assert "is there already" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_a_key_that_is_none_or_comes_twice_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (public,) = keys(tmp_path, 1)
    private = public.with_suffix("")
    for given in ([public, public], [private], [tmp_path / "nowhere.pub"]):
        assert main(["population", str(tmp_path / "clients.json"), *map(str, given)]) == 1
        assert str(given[-1]) in capsys.readouterr().err
    assert not (tmp_path / "clients.json").exists()


def test_another_number_than_it_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clients.json"
    Population(("a", "b")).save(path)
    assert len(listed(path, population=2)) == 2
    with pytest.raises(SettingError, match="population = 3 is wrong; population-file lists 2"):
        listed(path, population=3)
    path.write_text("{}")
    with pytest.raises(SettingError, match="not a population file"):
        listed(path)
