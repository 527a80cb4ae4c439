"""What a process does without: a deployed client starts one for every message."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from torch import nn

from privacy.inference import DataOwner, Evaluator, compile_model

ROOT = Path(__file__).parents[1]

ENCRYPTION = {"tenseal", "numba"}
ACCOUNTING = {"opacus", "dp_accounting", "scipy.stats"}
SIMULATION = {"ray", "pyarrow", "datasets", "flwr_datasets", "torchvision"}
PICTURES = {"matplotlib", "jinja2"}
MODELS = {"torch", "flwr", "scipy.sparse", "scipy.ndimage", "sklearn"}
SERVICE = {"fastapi", "starlette", "uvicorn", "prometheus_client"}
# What PyTorch loads by itself when it is not spared: by an optimizer's first use, and by
# gradients with weights of their own.
COMPILER = {"torch._dynamo", "sympy"}

MESSAGES = """
import sys
from flwr.app import ArrayRecord, RecordDict
from flower_app import client_app
from flower_app.models.build import build_model
from strategies import InProcessGrid

run = {"deployed": True, "population": 4, "sampling-rate": 1.0, "rounds": 3}
node = {"data-dir": sys.argv[1], "state-dir": sys.argv[1], "allow-unnoised-training": True}
for record_epsilon in (2.0, 0.0):
    run["record-epsilon"] = record_epsilon
    grid = InProcessGrid(client_app.app, 1, run_config=run, node_config=lambda _: node)
    sent = ArrayRecord(build_model("hog-linear").state_dict())
    message = grid.create_message(RecordDict({"arrays": sent}), "train", 1, "1")
    (reply,) = grid.pull_messages(grid.push_messages([message]))
    (array,) = reply.content["arrays"].values()
    assert array.numpy().any(), "nothing was learned"
print(*sys.modules)
"""


def loaded(program: str, *arguments: str) -> set[str]:
    """The modules that a program has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_a_deployed_client_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """With and without a guarantee for records."""
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(12, dtype=np.uint8) % 10)
    modules = loaded(MESSAGES, str(tmp_path))
    assert "torch" in modules
    unneeded = ENCRYPTION | ACCOUNTING | SIMULATION | PICTURES | COMPILER
    assert not modules & unneeded


ONE_ANSWER = """
import sys
from pathlib import Path
import numpy as np
import flower_app.commands.ask
from flower_app.data import encode
from flower_app.pictures.files import read_images
from privacy.inference import DataOwner, Plan

folder = Path(sys.argv[1])
((_, image),) = read_images(folder / "image.npy", fit="exact", notify=print)
plan = Plan.from_json((folder / "plan.json").read_text())
owner = DataOwner.from_secret_state(plan, (folder / "state").read_bytes())
owner.encrypt(encode(image[None], "pixels")[0])
assert owner.decrypt((folder / "answer").read_bytes()).labels
print(*sys.modules)
"""


def test_a_data_owner_with_keys_asks_without_pytorch_and_seal(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    compiled = compile_model(model, input_shape=(1, 28, 28), input_range=(0.0, 1.0))
    owner = DataOwner(compiled.plan)
    query = owner.encrypt(np.zeros((1, 28, 28)))
    answer = Evaluator(compiled, owner.public_material()).evaluate(query)
    np.save(tmp_path / "image.npy", np.full((28, 28), 255, dtype=np.uint8))
    (tmp_path / "plan.json").write_text(compiled.plan.to_json())
    (tmp_path / "state").write_bytes(owner.secret_state())
    (tmp_path / "answer").write_bytes(answer)
    modules = loaded(ONE_ANSWER, str(tmp_path))
    assert "numba" in modules
    assert not modules & (MODELS | SERVICE | ACCOUNTING | SIMULATION | PICTURES)
    assert "tenseal" not in modules


def test_workers_in_shares_and_their_provider_do_without_pytorch() -> None:
    program = (
        "import sys\n"
        "import flower_app.commands.provider, flower_app.commands.worker\n"
        "from privacy.shared_inference import RemoteWorkers, WorkerServer, share_model\n"
        "modules = set(sys.modules)\n"
        "from privacy.shared_inference import *\n"
        "assert 'torch' in sys.modules and 'compile_model' in globals()\n"  # for that alone
        "print(*modules)\n"
    )
    modules = loaded(program)
    assert "numba" in modules
    assert not modules & (MODELS | SERVICE | ACCOUNTING | SIMULATION | PICTURES)
    assert not modules & {"tenseal", "pyarrow"}


def test_a_service_of_a_models_file_does_without_pytorch() -> None:
    program = (
        "import sys, flower_app.commands.serve\n"
        "from privacy.inference import Evaluator, EvaluatorPool, PackedModel\n"
        "from privacy.inference_service import ServiceServer\n"
        "print(*sys.modules)\n"
    )
    modules = loaded(program)
    assert "fastapi" in modules
    assert not modules & ({"torch", "flwr"} | ACCOUNTING | SIMULATION | PICTURES)


def test_strategies_and_the_servers_half_of_silos_sums_do_without_pytorch() -> None:
    """Nor do they load what only clients use."""
    program = (
        "import sys, strategies\n"
        "from privacy.mechanisms import SiloGaussian\n"
        "from privacy.secure_aggregation import FewSilos\n"
        "from privacy.statistics import TableQuery\n"
        "TableQuery(bounds=[(0, 1)]).event(SiloGaussian(3), noise_multiplier=1.0)\n"
        "assert FewSilos(10) and strategies.DPFedAvg\n"
        "print(*sys.modules)\n"
    )
    modules = loaded(program)
    assert "numpy" in modules
    assert not modules & ({"torch"} | ENCRYPTION | ACCOUNTING | SIMULATION | PICTURES)


def test_what_strategies_load_later_is_there() -> None:
    """Each public name, as a program that imports it by name gets it."""
    program = (
        "import sys, strategies\n"
        "from strategies import EncryptedRound, audit_strategy, noised_accuracy\n"
        "from strategies import ENCRYPTED_ROUND, EncryptedRoundResult, answer_encrypted_round\n"
        "assert not hasattr(strategies, 'NoSuchName')\n"
        "print(*sys.modules)\n"
    )
    modules = loaded(program)
    assert modules >= {"numba", "scipy.stats"}
    assert "torch" not in modules  # an evaluator needs none


def test_the_command_line_answers_without_pytorch() -> None:
    program = (
        "import sys, flower_app.__main__ as command\n"
        "try: command.main(['run', '--help'])\n"
        "except SystemExit: print(*sys.modules)\n"
    )
    modules = loaded(program)
    assert "flower_app.commands.run" in modules
    assert not modules & ({"torch"} | ENCRYPTION | ACCOUNTING | SIMULATION | PICTURES)


def test_the_client_app_loads_scipy_and_pytorch_only_for_a_message_that_needs_them() -> None:
    modules = loaded("import sys, flower_app.client_app\nprint(*sys.modules)")
    assert not {name for name in modules if name.split(".")[0] in ("scipy", "torch")}


def test_encrypted_inference_loads_no_other_library_of_models() -> None:
    program = (
        "import sys, privacy.inference\n"
        "assert not any(name.startswith('privacy.inference.importers') for name in sys.modules)\n"
        "from privacy.inference import Certificate, certify, from_onnx, from_sklearn\n"
        "from privacy.inference import PrivateData, PublicData, Replacement, ReplacementReport\n"
        "from privacy.inference import replace_activations\n"
        "assert not hasattr(privacy.inference, 'NoSuchName')\n"
        "print(*sys.modules)\n"
    )
    modules = loaded(program)
    assert "privacy.inference.importers.onnx_models" in modules
    assert not modules & {"onnx", "sklearn", "onnxruntime"}
