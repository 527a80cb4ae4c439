"""Install each extra into an empty environment: ``python -m tools.environments [NAME ...]``.

Prints a table of what was installed, how large it is, with and without compiled modules, and how
long that took, and runs in each environment what the extra promises. A NAME is one of those in the
table; all are taken without one. ``--python PATH`` takes another interpreter, ``--uv`` has uv
install instead of pip. Environments are removed at once: some are gigabytes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tools.release import ROOT, owner_wheel, sdist, wheel

EXAMPLES = ROOT / "examples"

# An example in one process; the arguments are its folder, its package and the number of nodes.
_EXAMPLE = """
import importlib, sys, tomllib
from pathlib import Path
from strategies import run_in_process
folder, package, nodes = sys.argv[1:]
sys.path.insert(0, folder)
project = tomllib.loads((Path(folder) / "pyproject.toml").read_text())
config = project["tool"]["flwr"]["app"]["config"]
server, client = (f"{package}.{each}_app" for each in ("server", "client"))
server, client = (importlib.import_module(module).app for module in (server, client))
run_in_process(server, client, num_nodes=int(nodes), run_config=config)
"""
_SUMS = """
import numpy as np
from privacy.accounting import Budget, Poisson, calibrate_noise_multiplier
from privacy.mechanisms import add_gaussian
from privacy.secure_aggregation import *
adversary = Adversary(ServerModel.HONEST_BUT_CURIOUS, max_corrupt_fraction=0.1)
policy = ClientPolicy(min_clients=10, adversary=adversary)
clients = {node: SecureClient(policy) for node in range(20)}
vectors = {node: np.full(1000, node) for node in clients}
terms = RoundTerms(run=bytes(16), number=1, size=1000, bound=100, min_clients=10)
server = SecureServer(terms, adversary=adversary, max_dropout_fraction=0.1, cohort=len(clients))
messages = dict.fromkeys(clients, server.invitation())
while messages:
    for node, message in messages.items():
        masking = clients[node].needs_vector(message)
        server.receive(node, clients[node].answer(message, vectors[node] if masking else None))
    messages = server.advance()
assert (server.open() == sum(vectors.values())).all()
print("the sum is right")
"""
_TRAINING = """
import torch
from torch.nn.functional import cross_entropy
from privacy.training import ClipOnly, FullBatch, train
model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(1, 2), torch.nn.Flatten(),
                            torch.nn.Linear(72, 3))
print(train(model, (torch.randn(60, 1, 8, 8), torch.randint(0, 3, (60,))), loss=cross_entropy,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            protection=ClipOnly(clipping_norm=1.0), batches=FullBatch(steps=1)))
"""
_INFERENCE = """
import torch
from torch import nn
from privacy.inference import DataOwner, Evaluator, Square, compile_model
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Square(), nn.Linear(16, 10))
compiled = compile_model(model, input_shape=(1, 8, 8), input_range=(0.0, 1.0))
owner = DataOwner(compiled.plan)
evaluator = Evaluator(compiled, owner.public_material())
print(owner.decrypt(evaluator.evaluate(owner.encrypt(torch.rand(1, 8, 8).numpy()))).label)
"""
# A model's file, from the folder of the first argument, in the processes of a service; no socket.
_SERVICE = """
import sys
from privacy.inference import DataOwner, EvaluatorPool, EvaluatorProcess
command = [sys.executable, "-m", "privacy.inference.evaluator", sys.argv[1] + "/saved.model"]
with EvaluatorPool(lambda: EvaluatorProcess(command), processes=1) as pool:
    owner = DataOwner(pool.plan)
    keys = pool.hold(owner.public_material())
    answer, _ = pool.evaluate(keys, owner.encrypt([[[0.5] * 28] * 28]))
    print(owner.decrypt(answer).label)
import flower_app.commands.serve
from privacy.inference_service import InsecureNoAuthentication, ServiceLimits, create_app
import httpx, uvicorn
from privacy.inference_service import Page, ServiceServer
print(create_app.__name__, Page.__name__, ServiceServer.__name__)
assert "torch" not in sys.modules
"""
_ONNX = """
import sys, numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper
from privacy.inference import compile_model, from_onnx
weights = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])], [weights])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), "model.onnx")
print(compile_model(from_onnx("model.onnx"), input_shape=(4,), input_range=(0.0, 1.0)).plan.classes)
"""
# Keys, a question and an answer that was made elsewhere, for the folder of the first argument.
_OWNER = """
import sys
from pathlib import Path
import numpy as np
import flower_app.commands.ask
from flower_app.data import encode
from flower_app.pictures.files import read_images
from privacy.inference import DataOwner, Plan
from privacy.inference_service import KeyFile, OwnerSession, ServiceClient
folder = Path(sys.argv[1])
np.save("image.npy", np.full((28, 28), 255, dtype=np.uint8))
((_, image),) = read_images(Path("image.npy"), fit="exact", notify=print)
plan = Plan.from_json((folder / "plan.json").read_text())
DataOwner(plan).public_material()
owner = DataOwner.from_secret_state(plan, (folder / "state").read_bytes())
print(len(owner.encrypt(encode(image[None], "pixels")[0])), "bytes sent")
print(owner.decrypt((folder / "answer").read_bytes()).label)
assert not {"torch", "flwr"} & set(sys.modules)  # SEAL makes the keys
"""
_ANSWER = """
import sys
from pathlib import Path
import numpy as np
from torch import nn
from privacy.inference import DataOwner, Evaluator, compile_model
folder = Path(sys.argv[1])
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
compiled = compile_model(model, input_shape=(1, 28, 28), input_range=(0.0, 1.0))
owner = DataOwner(compiled.plan)
answer = Evaluator(compiled, owner.public_material()).evaluate(owner.encrypt(np.zeros((1, 28, 28))))
(folder / "plan.json").write_text(compiled.plan.to_json())
(folder / "state").write_bytes(owner.secret_state())
(folder / "answer").write_bytes(answer)
compiled.save(folder / "saved.model")
"""

Command = tuple[str, ...]
_PLAN: Command = (
    *("-m", "flower_app", "plan", "--epsilon", "3"),
    *("--delta", "1e-5", "--population", "200"),
)
_APP: Command = (
    *("-m", "flower_app", "run", "--nodes", "5", "--cpus", "1"),
    *("rounds=1", "sampling-rate=1.0", "encrypted-test-images=2"),
)


@dataclass(frozen=True)
class Environment:
    """What is installed, what must not come with it, and what must run there."""

    asked: tuple[str, ...]
    without: frozenset[str]
    commands: tuple[Command, ...]


def _example(name: str, package: str, nodes: int) -> Command:
    return ("-c", _EXAMPLE, str(EXAMPLES / name), package, str(nodes))


_HEAVY = frozenset({"torch", "tenseal", "ray", "matplotlib", "opacus", "numba"})
_OWNERS = frozenset({"numba", "tenseal"})
# Those in which an answer, or a model, that was made in this environment is used: it needs PyTorch.
_ASKING = frozenset({"bloomseal-owner", "bloomseal[owner]", "bloomseal[service]"})
_NUMPY = _example("numpy_from_fedavg", "meters", 1000)
_SKLEARN = _example("sklearn_breast_cancer", "cancer", 100)


def environments(folder: Path) -> dict[str, Environment]:
    """The environments by the names of the table; wheels, an answer and a model lie in a folder."""
    ours, owners, source = wheel(ROOT, folder), owner_wheel(folder), sdist(folder)
    answer: Command = ("-c", _OWNER, str(folder))

    def extra(name: str, without: frozenset[str], *commands: Command) -> Environment:
        return Environment((f"{ours}[{name}]",), without, commands)

    return {
        "bloomseal": Environment((str(ours),), _HEAVY, (_NUMPY, _PLAN, ("-c", _SUMS))),
        "bloomseal, from its source": Environment((str(source),), _HEAVY, (_NUMPY, ("-c", _SUMS))),
        "bloomseal and scikit-learn": Environment((str(ours), "scikit-learn"), _HEAVY, (_SKLEARN,)),
        "bloomseal[simulation]": extra("simulation", _HEAVY - {"ray"}, _NUMPY),
        "bloomseal-owner": Environment((str(owners),), (_HEAVY | {"flwr"}) - _OWNERS, (answer,)),
        "bloomseal[owner]": extra("owner", _HEAVY - _OWNERS, answer),
        "bloomseal[training]": extra(
            "training", frozenset({"tenseal", "ray", "matplotlib"}), ("-c", _TRAINING)
        ),
        "bloomseal[inference]": extra(
            "inference", frozenset({"ray", "matplotlib", "opacus"}), ("-c", _INFERENCE)
        ),
        "bloomseal[onnx]": extra("onnx", frozenset({"ray", "matplotlib"}), ("-c", _ONNX)),
        "bloomseal[service]": extra(
            "service", frozenset({"torch", "ray", "matplotlib"}), ("-c", _SERVICE, str(folder))
        ),
        "bloomseal[app]": extra("app", frozenset(), _APP),
        "bloomseal[all]": extra("all", frozenset(), _APP, ("-c", _ONNX)),
    }


def _clean() -> dict[str, str]:
    """The variables of somebody who has never heard of this checkout."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "PYTHON"))}


def _run(python: Path, command: Command, folder: Path) -> str:
    done = subprocess.run(
        [python, *command],
        cwd=folder,
        env=_clean() | {"HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:300]}\n{done.stdout[-3000:]}")
    return done.stdout


def _megabytes(folder: Path) -> tuple[float, float]:
    """Of all files, and of those that are no compiled modules; pip itself is left out."""
    total = compiled = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and "pip" not in path.parts:
            size = path.lstat().st_size
            total += size
            compiled += size * (path.suffix == ".pyc")
    return total / 1e6, (total - compiled) / 1e6


def measure(
    name: str, environment: Environment, interpreter: str, scratch: Path, *, uv: bool
) -> None:
    """Print packages, megabytes and seconds of one environment, and run its programs."""
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        folder = Path(place) / "env"
        subprocess.run([interpreter, "-m", "venv", folder], check=True)
        python = folder / "bin" / "python"
        started = time.perf_counter()
        install = [str(python), "-m", "pip", "install", "--quiet", *environment.asked]
        if uv:
            options = ("--quiet", "--compile-bytecode", "--python", str(python))
            install = ["uv", "pip", "install", *options, *environment.asked]
        subprocess.run(install, env=_clean(), check=True)
        seconds = time.perf_counter() - started
        (site,) = folder.glob("lib/python3*/site-packages")
        size, uncompiled = _megabytes(folder)
        unwanted = {name for name in environment.without if (site / name).exists()}
        if unwanted:
            raise SystemExit(f"{environment.asked} brought {', '.join(sorted(unwanted))}")
        packages = sum(1 for _ in site.glob("*.dist-info")) - 1
        row = f"| `{name}` | {packages} | {size:,.0f} | {uncompiled:,.0f} | {seconds:.0f} |"
        print(row, flush=True)
        _run(python, ("-m", "pip", "check"), Path(place))
        for command in environment.commands:
            print(_run(python, command, Path(place))[-500:], file=sys.stderr)


def main() -> None:
    """Measure the environments that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--python", default=sys.executable, metavar="PATH")
    parser.add_argument("--uv", action="store_true", help="install with uv")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="environments-"))
    try:
        known = environments(scratch)
        if wrong := set(options.names) - known.keys():
            raise SystemExit(f"{', '.join(wrong)}: not one of {', '.join(known)}")
        if _ASKING & set(options.names or known):
            subprocess.run([sys.executable, "-c", _ANSWER, scratch], cwd=ROOT, check=True)
        version = _run(Path(options.python), ("--version",), scratch).strip()
        by = "uv" if options.uv else "pip"
        print(f"| {version}, by {by} | packages | MB | MB, not compiled | s |", flush=True)
        print("|---|---|---|---|---|", flush=True)
        for name in options.names or known:
            measure(name, known[name], options.python, scratch, uv=options.uv)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
