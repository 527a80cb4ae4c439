"""Test with the oldest and newest versions: ``python -m tools.compatibility [oldest] [newest]``.

Makes an environment of its own with the lowest versions that ``pyproject.toml`` admits of what it
asks for by name (uv's ``lowest-direct``), another with the highest, and runs a fast set of tests in
each: strategies, accounting, mechanisms, secure aggregation, training, encrypted and shared
inference. Prints the table of docs/reference/compatibility.md. ``--with PACKAGE==VERSION`` pins one
package; ``--python PATH`` takes another interpreter. Environments are removed at once.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.release import ROOT

EXTRAS = "training,inference,owner"
SHOWN = (
    *("flwr", "torch", "opacus", "tenseal", "numpy", "scipy", "numba", "dp-accounting"),
    *("cryptography", "safetensors"),
)
# What the tests themselves need; the newest, since nobody installs them with the product.
_OF_TESTS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "mpmath")
TESTS = {
    "strategies": (
        "tests/strategies/test_train_round.py",
        "tests/strategies/test_run.py",
        "tests/strategies/test_in_process.py",
        "tests/strategies/test_checkpoint.py",
        "tests/strategies/test_malformed.py",
        "tests/strategies/test_server_optimizers.py",
    ),
    "accounting": (
        "tests/privacy/accounting/test_ledger.py",
        "tests/privacy/accounting/test_calibration.py",
        "tests/privacy/accounting/test_flower.py",
    ),
    "secure aggregation": (
        "tests/privacy/secure_aggregation/test_rounds.py",
        "tests/privacy/secure_aggregation/test_attacks.py",
        "tests/privacy/secure_aggregation/test_primitives.py",
        "tests/strategies/secure_aggregation/test_rounds.py",
    ),
    "training": (
        "tests/privacy/training/test_train.py",
        "tests/privacy/training/per_example",
    ),
    "encrypted inference": (
        "tests/privacy/inference/test_wire.py",
        "tests/privacy/inference/test_hostile_plans.py",
        "tests/privacy/inference/ckks",
    ),
    "shared inference": ("tests/privacy/shared_inference/test_protocol.py",),
}
_VERSIONS = """
import importlib.metadata, json, platform, sys
names = sys.argv[1:]
print(json.dumps({"python": platform.python_version()}
                 | {name: importlib.metadata.version(name) for name in names}))
"""


def main() -> None:
    """Test with one or both sets of versions, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help="oldest, newest; both by default")
    parser.add_argument("--python", default=sys.executable, metavar="PATH")
    parser.add_argument("--only", action="append", choices=[*TESTS], help="of the tests")
    parser.add_argument("--with", dest="pins", action="append", default=[], metavar="PIN")
    options = parser.parse_args()
    if wrong := set(options.sets) - {"oldest", "newest"}:
        parser.error(f"{', '.join(sorted(wrong))}: give oldest or newest")
    columns = []
    for name in options.sets or ("oldest", "newest"):
        with tempfile.TemporaryDirectory(prefix="compatibility-") as folder:
            pins, groups = options.pins, options.only or [*TESTS]
            columns.append((name, *_tested(name, options.python, pins, groups, Path(folder))))
    print(table(columns))
    if any(outcome.startswith("failed") for _, _, made in columns for outcome in made.values()):
        raise SystemExit(1)


def table(columns: list[tuple[str, dict[str, str], dict[str, str]]]) -> str:
    """Versions and outcomes as Markdown, a column for each environment."""
    lines = [
        f"| | {' | '.join(name for name, _, _ in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for row in ("python", *SHOWN):
        lines.append(f"| {row} | {' | '.join(versions[row] for _, versions, _ in columns)} |")
    for row in columns[0][2]:
        lines.append(f"| tests: {row} | {' | '.join(made[row] for _, _, made in columns)} |")
    return "\n".join(lines)


def _tested(
    name: str, interpreter: str, pins: list[str], groups: list[str], folder: Path
) -> tuple[dict[str, str], dict[str, str]]:
    """The versions of an environment, and of each group of tests how it ended."""
    environment = folder / "env"
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "PYTHON"))}
    subprocess.run([interpreter, "-m", "venv", environment], check=True)
    python = str(environment / "bin" / "python")
    install = ["uv", "pip", "install", "--quiet", "--python", python]
    ours = [f"bloomseal[{EXTRAS}] @ {ROOT.as_uri()}", *pins]
    resolution = "lowest-direct" if name == "oldest" else "highest"
    subprocess.run([*install, "--resolution", resolution, *ours], env=variables, check=True)
    list_them = ["uv", "pip", "freeze", "--python", python]
    listed = subprocess.run(list_them, capture_output=True, text=True, check=True)
    # Tests run on the checkout, and what they need changes no version.
    constraints = folder / "constraints.txt"
    constraints.write_text(
        "".join(f"{line}\n" for line in listed.stdout.splitlines() if "bloomseal" not in line)
    )
    subprocess.run([*install, "-c", str(constraints), *_OF_TESTS], env=variables, check=True)
    versions = subprocess.run(
        [python, "-c", _VERSIONS, *SHOWN], env=variables, capture_output=True, text=True, check=True
    )
    outcomes = {}
    for group in groups:
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS[group]]
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(folder / "numba")}
        done = subprocess.run(
            command, cwd=ROOT, env=variables | threads, capture_output=True, text=True, check=False
        )
        end = (done.stdout.strip().splitlines() or ["no output"])[-1]
        counts = ", ".join(re.findall(r"\d+ (?:passed|failed|errors?|skipped)", end))
        outcomes[group] = counts if done.returncode == 0 else f"failed: {counts or end}"
        print(f"{name}, {group}: {outcomes[group]}", file=sys.stderr, flush=True)
        if done.returncode:
            print(done.stdout[-6000:], done.stderr[-2000:], file=sys.stderr, flush=True)
    return json.loads(versions.stdout), outcomes


if __name__ == "__main__":
    main()
