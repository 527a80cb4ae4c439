"""The peers, and an environment for each below the user's cache folder."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from benchmarks.harness import Log

NON_COMMERCIAL = "BLOOMSEAL_NON_COMMERCIAL"


class NotMeasuredError(Exception):
    """Why a peer has no figures here."""


@dataclass(frozen=True)
class Peer:
    """A project that users could pick instead."""

    module: str
    """Of this folder; it runs in the peer's environment."""
    title: str
    packages: tuple[str, ...]
    """Everything that the peer needs and this environment does not have, with its version."""
    non_commercial: bool = False
    """Whether its licence allows no other use, so that installing it needs the user's word."""


PEERS = (
    Peer(
        "orion",
        "Orion",
        ("orion-v2-compiler==2.1.8", "orion-v2-evaluator==2.1.8", "orion-v2-lattigo==6.2.4"),
    ),
    Peer(
        "pyhelayers",
        "pyhelayers",
        ("pyhelayers==1.5.5.4", "onnx==1.22.0", "ml_dtypes==0.5.4"),
        non_commercial=True,
    ),
    Peer(
        "crypten",
        "CrypTen, two parties that must not collude",
        (
            "crypten==0.4.1",
            "omegaconf==2.3.0",
            "antlr4-python3-runtime==4.9.3",
            "onnx==1.22.0",
            "ml_dtypes==0.5.4",
        ),
    ),
)

JAX_PRIVACY = Peer(
    "factors",
    "jax_privacy",
    (
        "jax_privacy==2.0.0",
        "jax==0.10.2",
        "jaxlib==0.10.2",
        "absl-py==2.5.1",
        "annotated-types==0.8.0",
        "chex==0.1.92",
        "dm-tree==0.1.10",
        "ml_dtypes==0.6.0",
        "opt_einsum==3.4.0",
        "optax==0.2.8",
        "pydantic==2.14.4",
        "pydantic_core==2.50.5",
        "toolz==1.2.0",
        "typing_extensions==4.16.0",
        "typing-inspection==0.4.5",
        "wrapt==2.5.2",
    ),
)
"""Of whom factors of correlated noise are asked, and private steps."""

OPAKE = Peer(
    "opake_steps",
    "Opake",
    (
        "opake-base==0.16.1",
        "opake-engine==0.16.1",
        "opake-accounting==0.16.1",
        "opake-dpsgd==0.16.1",
        "optree==0.20.0",
        "typing_extensions==4.16.0",
    ),
)
"""Of whom private steps are asked."""


def interpreter(peer: Peer, *, make: bool, log: Log) -> Path:
    """The peer's Python, in an environment that is made once and reused.

    Its packages are its own; PyTorch and NumPy, which would be gigabytes more, are those of the
    environment that runs this, behind the peer's own on the path.

    Parameters
    ----------
    peer : Peer
        Whose.
    make : bool
        Whether to make an environment where there is none.
    log : callable
        Told what is installed.

    Raises
    ------
    NotMeasuredError
        If there is no environment and none may or can be made.
    """
    shared = sysconfig.get_paths()["purelib"]
    made_of = "\n".join([platform.python_version(), shared, *peer.packages])
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    folder = platformdirs.user_cache_path("bloomseal") / "peers" / f"{peer.module}-{digest}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists():
        return python
    if not make:
        raise NotMeasuredError("it has no environment yet; a run without --quick makes one")
    if peer.non_commercial and os.environ.get(NON_COMMERCIAL) != "1":
        raise NotMeasuredError(
            "its licence allows non-commercial use only; "
            f"set {NON_COMMERCIAL}=1 if yours is, and it will be installed"
        )
    log(f"{peer.title}: installing {', '.join(peer.packages)} in {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    install = ["install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    _run([sys.executable, "-m", "pip", "--python", str(python), *install, *peer.packages])
    (own,) = (folder / "lib").glob("python*/site-packages")
    (own / "shared.pth").write_text(f"{shared}\n")
    ready.touch()
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # pip says what is wrong last, but for its hints.
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = (errors or done.stderr.splitlines() or [f"code {done.returncode}"])[-1]
        raise NotMeasuredError(f"it does not install here: {why}")
