"""``ask --shared``: images to two workers, of whom neither sees them."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.data import encode
from flower_app.errors import CommandFailedError, DataError
from flower_app.models.specs import MODELS, ModelSpec
from flower_app.shared.folders import PartyFolder
from privacy.shared_inference import Address, DataOwner, Plan, RemoteWorkers
from privacy.shared_inference.errors import LinkError, MaterialError, MessageError

Image = NDArray[np.uint8] | DataError


def ask_workers(
    workers: str,
    folder: Path,
    images: Iterator[tuple[int, str, Image]],
    files: int,
    *,
    top: int | None,
    as_json: bool,
) -> int:
    """Ask about each image, one a question; the number of images without an answer.

    Parameters
    ----------
    workers : str
        Alice's and bob's ``host:port``, with a comma between them.
    folder : path
        The data owner's, from ``provider begin``.

    Raises
    ------
    CommandFailedError
        If nothing can be asked.
    """
    try:
        alice, bob = map(Address.parse, workers.split(","))
    except ValueError as error:
        raise CommandFailedError(
            f"with --shared give alice's and bob's addresses for URL, such as "
            f"alice.example:7441,bob.example:7442 ({error})"
        ) from error
    own = PartyFolder(folder)
    plan, context = own.plan(), own.context(listens=False)
    spec = _spec(plan)
    if top is not None and (plan.answer != "logits" or top > plan.logits):
        raise CommandFailedError(
            f"--top is {top}; this session's workers answer with "
            + ("the class alone" if plan.answer == "class" else f"{plan.logits} classes")
        )
    try:
        owner = DataOwner(plan, own.letter(), own.material)
    except (MessageError, MaterialError) as error:
        raise CommandFailedError(f"{folder}: {error}") from error
    try:
        with RemoteWorkers(owner, alice=alice, bob=bob, context=context) as remote:
            return _ask_all(remote, plan, spec, images, files, top=top or 1, as_json=as_json)
    finally:
        owner.close()


def _spec(plan: Plan) -> ModelSpec:
    """The model of the app whose inputs a plan takes."""
    for spec in MODELS.values():
        if (spec.shape, (spec.low, spec.high)) == (plan.input_shape, plan.input_range):
            return spec
    raise CommandFailedError(
        f"the plan is for inputs of shape {plan.input_shape}, which no model here has"
    )


def _ask_all(
    remote: RemoteWorkers,
    plan: Plan,
    spec: ModelSpec,
    images: Iterator[tuple[int, str, Image]],
    files: int,
    *,
    top: int,
    as_json: bool,
) -> int:
    answered, failed, seconds = 0, 0, []
    for number, name, image in images:
        try:
            if isinstance(image, DataError):
                raise image
            begun = time.perf_counter()
            inputs = encode(image[None], spec.kind)
            classes = _classes(remote, plan, inputs, top)
            seconds.append(time.perf_counter() - begun)
        except MaterialError as error:
            raise CommandFailedError(str(error)) from error
        except (DataError, LinkError, MessageError) as error:
            if not answered and isinstance(error, LinkError):
                raise CommandFailedError(str(error)) from error
            failed += 1
            reason = str(error) if isinstance(error, DataError) else f"{name}: {error}"
            print(f"error: {reason}", file=sys.stderr)
            continue
        answered += 1
        if as_json:
            print(json.dumps({"image": name, "classes": classes}), flush=True)
        else:
            place = f"[{number:>{len(str(files))}}/{files}] " if files > 1 else ""
            print(f"{place}{name}: {' '.join(map(str, classes))}", flush=True)
    middle = f"; {1000 * float(np.median(seconds)):.1f} ms a question" if seconds else ""
    print(f"{answered} answered, {failed} not{middle}", file=sys.stderr)
    return failed


def _classes(remote: RemoteWorkers, plan: Plan, inputs: NDArray[np.float32], top: int) -> list[int]:
    """The best classes in order; of equal logits the first."""
    if plan.answer == "class":
        return [int(remote.classes(inputs)[0])]
    return [int(place) for place in np.argsort(-remote.logits(inputs)[0], kind="stable")[:top]]
