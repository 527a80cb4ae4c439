"""Our side of the pipe to a peer."""

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from benchmarks._peers.environments import NotMeasuredError

ROOT = Path(__file__).parents[2]
PATIENCE = 300.0


@dataclass(frozen=True)
class Reply:
    """What one image took, in seconds, and gave."""

    evaluation: float
    end_to_end: float
    processor: float | None
    """Of the evaluation, all threads; None where more processes than one work."""
    logits: tuple[float, ...]
    costs: Mapping[str, float] = field(default_factory=dict)
    """Of the evaluation, where more parties than one work: ``exchanges``, ``bytes``, and seconds of
    all ``processor``s."""


class Asked:
    """A peer's process: it gets ready when this is made, and answers one image at a time.

    Parameters
    ----------
    command : sequence of str
        A program that ends in ``serving.serve``, and the file of its case.
    patience : float
        Seconds to wait for it, each time.

    Raises
    ------
    NotMeasuredError
        If it ends or says nothing, now or at any later question.
    """

    def __init__(self, command: Sequence[str], *, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            ready = self._reply()
        except NotMeasuredError:
            self.close()
            raise
        self.parameters: str = ready["parameters"]
        self.sizes: Mapping[str, int] = ready["sizes"]

    def ask(self, image: int, delay: float = 0.0) -> Reply:
        """Have one image answered, by its place in the case.

        ``delay``, in seconds, is waited at each exchange between a peer's parties.
        """
        questions = cast(IO[bytes], self._process.stdin)
        # Whether it has ended, and how, is found where its reply is read.
        with contextlib.suppress(BrokenPipeError):
            questions.write(f"{image} {delay}\n".encode())
            questions.flush()
        answer = self._reply()
        return Reply(
            answer["evaluation"],
            answer["end_to_end"],
            answer["processor"],
            tuple(answer["logits"]),
            answer["costs"],
        )

    def close(self) -> None:
        """End the process: it stops by itself when there are no more questions."""
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def __enter__(self) -> "Asked":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _reply(self) -> dict[str, Any]:
        pipe = cast(IO[bytes], self._process.stdout)
        if not select.select([pipe], [], [], self._patience)[0]:
            self._process.kill()
            raise NotMeasuredError(f"it did not answer within {self._patience:g} s")
        line = pipe.readline()
        if not line.endswith(b"\n"):
            code = self._process.wait()
            self._errors.seek(0)
            errors = self._errors.read().decode(errors="replace").strip().splitlines()
            raise NotMeasuredError(
                f"it ended with code {code}: {errors[-1] if errors else 'no word'}"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer
