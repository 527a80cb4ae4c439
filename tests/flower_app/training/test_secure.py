"""The app with secure aggregation: settings, whole small runs, what a deployed node insists on."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from flower_app import client_app
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.settings import Settings
from flower_app.training import secure_aggregation as secure
from flower_app.training.node_policy import NodePolicy, run_settings
from flower_app.training.secure_aggregation import simulated_identity
from strategies import Budget, DPFedAvg, FolderMemory, Full, InProcessGrid, SecureAggregation
from tests.flower_app.app_runs import run_app


def test_a_run_says_what_its_server_was_kept_from(tmp_path: Path) -> None:
    run = run_app(
        tmp_path,
        nodes=20,
        rounds=2,
        sampling_rate=1.0,
        encrypted_test_images=0,
        secure_aggregation="malicious",
        min_clients=5,
        dropout_probability=0.0,
    )
    client_level = run.metrics["privacy"]["client_level"]
    told = client_level["secure_aggregation"]
    assert (told["server"], told["min_clients"], told["noise_placement"]) == (
        "malicious",
        5,
        "central",
    )
    assert told["aborted_rounds"] == []
    assert "sees no single update" in client_level["trusted"]
    page = (run.folder / "report.html").read_text()
    assert "Secure aggregation: the sum of at least" in page
    assert "The server adds the noise, and sees the sum without it" in page
    assert "The server sees each client's update in the clear" not in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secure-aggregation": "on"}, ["secure-aggregation", "'on'", "malicious"]),
        ({"min-clients": 2}, ["min-clients", "2", "at least 3"]),
        ({"max-corrupt-fraction": 0.5}, ["max-corrupt-fraction", "0.5"]),
        ({"max-dropout-fraction": 1.0}, ["max-dropout-fraction", "1.0"]),
        ({"dropout-probability": -0.1}, ["dropout-probability", "-0.1"]),
        ({"noise-placement": "distributed"}, ["noise", "'distributed'", "honest-but-curious"]),
    ],
    ids=str,
)
def test_wrong_settings_are_named(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingError) as error:
        Settings.from_config(change)
    assert all(word in str(error.value) for word in words)


def ask(run_config: dict[str, Any], node_config: dict[str, Any]) -> str:
    """Why a deployed node does not train when it is asked to in the clear; as its log says it."""
    content = RecordDict({"arrays": ArrayRecord(build_model("hog-linear").state_dict())})
    InProcessGrid(client_app.app, 1)  # a message needs a run
    message = Message(content, 1, MessageType.TRAIN)
    node_config = {"allow-unnoised-training": True, **node_config}
    context = Context(1, 1, node_config, RecordDict(), {"deployed": True, **run_config})
    said: list[str] = []
    keep = logging.Handler()
    keep.emit = lambda record: said.append(  # type: ignore[method-assign]
        str(record.exc_info[1]) if record.exc_info else record.getMessage()
    )
    logging.getLogger("flwr").addHandler(keep)
    reply = client_app.app(message, context)
    logging.getLogger("flwr").removeHandler(keep)
    assert reply.has_error()
    if reply.error.reason.startswith("UnprotectedRequestError"):
        return reply.error.reason
    assert reply.error.reason == "this node could not do its part; its owner finds why in its log"
    return " ".join(said)


def test_a_deployed_node_says_itself_what_it_insists_on(tmp_path: Path) -> None:
    """The run's own minimum is the server's word, and does not count."""
    run: dict[str, Any] = {"secure-aggregation": "honest-but-curious", "min-clients": 3}
    node: dict[str, Any] = {"data-dir": str(tmp_path)}
    assert "state-dir = '' is wrong" in ask(run, node)
    node["state-dir"] = str(tmp_path / "state")
    assert "min-clients = '' is wrong" in ask(run, node)
    node["min-clients"] = 50
    assert ask(run, node).startswith("UnprotectedRequestError")


@pytest.mark.parametrize("name", ["clipping-norm", "weight-cap"])
@pytest.mark.parametrize("wrong", ["0.1", True, -1.0, math.inf, math.nan])
def test_what_a_node_pins_is_a_number(name: str, wrong: Any, tmp_path: Path) -> None:
    node = {"data-dir": str(tmp_path), "min-clients": 50, "state-dir": str(tmp_path / "state")}
    run: dict[str, Any] = {"secure-aggregation": "honest-but-curious"}
    said = ask(run, {**node, name: wrong})
    assert f"{name} = {wrong!r} in this node's --node-config is wrong" in said
    assert ask(run, {**node, name: 0.25}).startswith("UnprotectedRequestError")


def test_nodes_pin_how_their_updates_are_bounded(tmp_path: Path) -> None:
    """A round under another norm is refused by name, before the node looks at its data."""

    def node_config(place: int) -> dict[str, Any]:
        return {
            "data-dir": str(tmp_path / "not there"),
            "allow-unnoised-training": True,
            "min-clients": 3,
            "state-dir": str(tmp_path / str(place)),
            "clipping-norm": 0.5,
        }

    class Listening(InProcessGrid):
        def _work(self, message: Message) -> Message:
            reply = super()._work(message)
            if reply.has_error():
                refused.append(reply.error.reason)
            return reply

    refused: list[str] = []
    run_config = {"deployed": True, "secure-aggregation": "honest-but-curious"}
    grid = Listening(client_app.app, 12, run_config=run_config, node_config=node_config)
    strategy = DPFedAvg(
        population=12,
        sampling=Full(),
        clipping=0.6,
        noise_multiplier=1.0,
        budget=Budget(math.inf, 1e-5),
        ledger=tmp_path / "ledger.jsonl",
        secure_aggregation=SecureAggregation(min_clients=3, dropout_probability=0.0),
    )
    strategy.start(grid, ArrayRecord(build_model("hog-linear").state_dict()), num_rounds=1)
    assert set(refused) == {
        "UnacceptableTermsError: the clipping norm is 0.6; this client pins 0.5"
    }


def test_a_deployed_node_that_insists_is_not_talked_out_of_it(tmp_path: Path) -> None:
    node = {
        "data-dir": str(tmp_path),
        "secure-aggregation": "honest-but-curious",
        "min-clients": 50,
        "state-dir": str(tmp_path / "state"),
    }
    assert ask({"secure-aggregation": "off"}, node).startswith("UnprotectedRequestError")


def test_a_run_too_weak_for_the_owner_is_declined_before_the_node_has_a_part_in_it(
    tmp_path: Path,
) -> None:
    """A node that only adds zeros would let the run go on that teaches nothing."""
    grid = InProcessGrid(
        client_app.app,
        1,
        run_config={"deployed": True, "secure-aggregation": "honest-but-curious"},
        node_config=lambda _: {
            "data-dir": str(tmp_path),
            "state-dir": str(tmp_path / "state"),
            "min-clients": 3,
        },
    )
    content = RecordDict({"secure-aggregation": ConfigRecord({"anything": b""})})
    (reply,) = grid.send_and_receive([Message(content, 1, MessageType.TRAIN)])
    assert reply.error.reason.startswith("the run asks for record-epsilon = 0.0")
    assert not (tmp_path / "state").exists()


def test_a_simulated_run_on_a_node_with_an_owner_is_declined(tmp_path: Path) -> None:
    """Or the run's own minimum would be taken for the owner's."""
    node = {"data-dir": str(tmp_path), "min-clients": 50, "state-dir": str(tmp_path)}
    grid = InProcessGrid(
        client_app.app,
        1,
        run_config={"secure-aggregation": "honest-but-curious", "min-clients": 3},
        node_config=lambda _: node,
    )
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, MessageType.TRAIN)])
    assert reply.error.reason == "deployed = False is wrong; this node is no simulated one"


def test_a_deployed_node_reads_its_identity_and_those_it_pins(tmp_path: Path) -> None:
    own, other = simulated_identity(0), simulated_identity(1)
    (tmp_path / "own.key").write_text(own.private.hex())
    (tmp_path / "all.keys").write_text(f"{own.public.hex()}\n{other.public.hex()}\n")
    node = {
        "data-dir": str(tmp_path),
        "min-clients": 50,
        "state-dir": str(tmp_path / "state"),
    }
    run = {"secure-aggregation": "malicious"}
    assert "signing-key = '' is wrong" in ask(run, node)
    node["signing-key"] = str(tmp_path / "own.key")
    assert "client-public-keys = '' is wrong" in ask(run, node)
    node["client-public-keys"] = str(tmp_path / "all.keys")
    assert ask(run, node).startswith("UnprotectedRequestError")
    (tmp_path / "own.key").write_text(f"{own.private.hex()}\n{other.private.hex()}\n")
    assert "must hold this node's private key alone, and holds 2 keys" in ask(run, node)
    (tmp_path / "own.key").write_text(own.private.hex())
    (tmp_path / "all.keys").write_text("abcd")
    assert "must hold keys of 32 bytes" in ask(run, node)


OWN: dict[str, tuple[dict[str, Any], str]] = {
    "a minimum": ({"min-clients": 10}, "honest-but-curious"),
    "a pinned norm": ({"min-clients": 10, "clipping-norm": 0.5}, "honest-but-curious"),
    "pinned identities": ({"min-clients": 10, "client-public-keys": "all"}, "malicious"),
    "a key of its own": ({"min-clients": 10, "signing-key": "own"}, "malicious"),
    "its word": ({"min-clients": 10, "secure-aggregation": "malicious"}, "malicious"),
    "its word, less than what is implied": (
        {
            "min-clients": 10,
            "client-public-keys": "all",
            "secure-aggregation": "honest-but-curious",
        },
        "honest-but-curious",
    ),
}
ASKED = ("off", "honest-but-curious", "malicious")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("corrupt", [0.0, 0.3])
@pytest.mark.parametrize("own", OWN)
def test_a_run_never_weakens_what_an_owner_left_out(
    own: str, corrupt: float, asked: str, tmp_path: Path
) -> None:
    """Neither the mode, where other keys imply one, nor the share that may collude."""
    context = node_of(
        tmp_path, OWN[own][0], {"secure-aggregation": asked, "max-corrupt-fraction": corrupt}
    )
    insists = own_insistence(context)
    assert insists is not None
    adversary = insists.policy.adversary
    stronger = max(asked, OWN[own][1], key=ASKED.index)
    assert adversary.server.value == stronger
    assert adversary.max_corrupt_fraction == max(0.1, corrupt)
    context.node_config["max-corrupt-fraction"] = 0.05
    insists = own_insistence(context)
    assert insists is not None
    assert insists.policy.adversary.max_corrupt_fraction == 0.05


PINS: list[dict[str, Any]] = [
    {"clipping-norm": 0.5},
    {"weight-cap": 0.0},
    {"max-corrupt-fraction": 0.3},
]


@pytest.mark.parametrize("pins", PINS, ids=str)
def test_what_an_owner_pins_is_not_passed_over_by_a_run_in_the_clear(
    pins: dict[str, Any], tmp_path: Path
) -> None:
    """Nothing else keeps a run to it, so each pin asks for secure aggregation."""
    node = {"data-dir": str(tmp_path), "state-dir": str(tmp_path / "state"), **pins}
    run = {"secure-aggregation": "off"}
    said = ask(run, node)
    assert "min-clients = '' is wrong" in said
    assert f"which its {next(iter(pins))} asks for" in said
    assert ask(run, {**node, "min-clients": 5}).startswith("UnprotectedRequestError")


@pytest.mark.parametrize("pins", PINS, ids=str)
def test_an_owner_may_pin_and_still_take_part_in_the_clear(
    pins: dict[str, Any], tmp_path: Path
) -> None:
    """By the owner's own word; in a run with secure aggregation the pins count."""
    own = {"min-clients": 10, "secure-aggregation": "off", **pins}
    assert own_insistence(node_of(tmp_path, own, {"secure-aggregation": "off"})) is None
    insists = own_insistence(node_of(tmp_path, own, {"secure-aggregation": "honest-but-curious"}))
    assert insists is not None
    policy = insists.policy
    kept = {
        "clipping-norm": policy.clipping_norm,
        "weight-cap": policy.weight_cap,
        "max-corrupt-fraction": policy.adversary.max_corrupt_fraction,
    }
    assert {name: kept[name] for name in pins} == pins


@pytest.mark.parametrize("own", [{}, {"min-clients": 10, "secure-aggregation": "off"}], ids=str)
def test_without_an_owners_wish_the_run_decides_whether_updates_are_summed(
    own: dict[str, Any], tmp_path: Path
) -> None:
    assert own_insistence(node_of(tmp_path, own, {"secure-aggregation": "off"})) is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("secure-aggregation", "curious"),
        ("secure-aggregation", True),
        ("max-corrupt-fraction", 0.5),
        ("max-corrupt-fraction", "0.1"),
        ("max-corrupt-fraction", math.nan),
        ("min-clients", "many"),
        ("min-clients", "40"),
        ("min-clients", 40.7),
        ("min-clients", 2),
        ("min-clients", True),
        ("state-dir", 5),
        ("state-dir", "~nobody-of-that-name/state"),
    ],
)
def test_a_wrong_word_of_the_owners_is_named(name: str, wrong: Any, tmp_path: Path) -> None:
    context = node_of(tmp_path, {"min-clients": 10, name: wrong}, {})
    with pytest.raises(SettingError, match=f"{name} = {wrong!r} in this node's --node-config is"):
        own_insistence(context)


def test_a_nodes_folder_and_key_files_may_begin_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its secrets lie where its ledgers do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = {"signing-key": "~/own", "client-public-keys": "~/all", "state-dir": "~/state"}
    context = node_of(tmp_path, {"min-clients": 10}, {})
    context.node_config.update(keys)
    insists = own_insistence(context)
    assert insists is not None
    assert insists.memory == FolderMemory(tmp_path / "state")
    assert NodePolicy.of(context.node_config).state == tmp_path / "state"


def node_of(folder: Path, node: dict[str, Any], run: dict[str, Any]) -> Context:
    """A deployed node; the names of its key files are taken to lie in ``folder``."""
    keys = [simulated_identity(place) for place in range(3)]
    (folder / "own").write_text(keys[0].private.hex())
    (folder / "all").write_text("\n".join(key.public.hex() for key in keys))
    node = {"data-dir": str(folder), "state-dir": str(folder / "state")} | node
    if {"signing-key", "client-public-keys"} & set(node) or ASKED[2] in {
        *node.values(),
        *run.values(),
    }:
        node |= {"signing-key": str(folder / "own"), "client-public-keys": str(folder / "all")}
    return Context(1, 1, node, RecordDict(), {"deployed": True, **run})


def own_insistence(context: Context) -> Any:
    return secure._own(run_settings(context), context)
