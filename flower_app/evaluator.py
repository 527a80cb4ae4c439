"""The evaluator's own process: the model and public keys, never a secret key, never an image.

``python -m flower_app.evaluator MODEL FILE`` reads the model from a safetensors file, compiles it,
and speaks in frames over its standard streams: it sends its plan, takes one frame of public
material, then answers each frame that holds a query with one that holds the seconds it took and
the answer. It ends when its input does.
"""

import os
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

from safetensors.torch import load_file

from flower_app.models import MODELS, build_model
from privacy.inference import CompiledModel, Evaluator, compile_model

LARGEST_FRAME = 1 << 28  # bytes


def compile_named(name: str, weights: Path) -> CompiledModel:
    """Compile a model of the app from its weights."""
    spec = MODELS[name]
    model = build_model(name)
    model.load_state_dict(load_file(weights))
    return compile_model(model, input_shape=spec.shape, input_range=(spec.low, spec.high))


def write_frame(stream: BinaryIO, *parts: bytes) -> None:
    """Write one frame: its length, then its bytes."""
    stream.write(struct.pack(">I", sum(map(len, parts))))
    for part in parts:
        stream.write(part)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """Read one frame; None at the end.

    Raises
    ------
    ValueError
        If a frame is cut short or larger than any that is meant.
    """
    head = stream.read(4)
    if not head:
        return None
    (size,) = struct.unpack(">I", head.ljust(4, b"\0"))
    if len(head) < 4 or size > LARGEST_FRAME:
        raise ValueError("a frame is malformed")
    body = stream.read(size)
    if len(body) < size:
        raise ValueError("a frame is cut short")
    return body


def main(arguments: list[str]) -> int:
    """Serve until the input ends."""
    # Answers leave through the original standard output; whatever a library prints does not.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    questions = sys.stdin.buffer
    name, weights = arguments
    compiled = compile_named(name, Path(weights))
    write_frame(answers, compiled.plan.to_json().encode())
    material = read_frame(questions)
    if material is None:
        return 0
    evaluator = Evaluator(compiled, material)
    while (query := read_frame(questions)) is not None:
        begun = time.perf_counter()
        answer = evaluator.evaluate(query)
        write_frame(answers, struct.pack(">d", time.perf_counter() - begun), answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
