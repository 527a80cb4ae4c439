"""A run's model, compiled for shares, and split between the workers."""

from contextlib import ExitStack
from pathlib import Path

from torch import nn

from flower_app.encrypted.model import public_sample
from flower_app.errors import CommandFailedError
from flower_app.models.specs import ModelSpec
from flower_app.shared.folders import PartyFolder, write_secret
from privacy.shared_inference import SharedModel, compile_model, share_model
from privacy.shared_inference.errors import MessageError


def compile_shared(
    model: nn.Sequential,
    spec: ModelSpec,
    *,
    batch_size: int = 1,
    answer: str = "logits",
    public_model: bool = False,
) -> SharedModel:
    """Compile a run's model, its tolerance that of images drawn by rule, or of the whole range.

    The plan depends on nobody's data: whoever compiles the model gets the same one.
    """
    return compile_model(
        model,
        input_shape=spec.shape,
        input_range=(spec.low, spec.high),
        sample=public_sample(spec),
        batch_size=batch_size,
        answer=answer,
        public_model=public_model,
    )


def write_shares(compiled: SharedModel, folder: PartyFolder) -> dict[str, Path]:
    """Write both workers' shares into the model owner's folder; the files by worker.

    Raises
    ------
    CommandFailedError
        If the folder's letter is not the model owner's, or a file is there already or cannot be
        written; then neither is left.
    """
    try:
        shares = share_model(compiled, folder.letter())
    except MessageError as error:
        raise CommandFailedError(f"{folder.letter_file}: {error}") from error
    files = {worker: folder.path / f"{worker}.model" for worker in ("alice", "bob")}
    with ExitStack() as undo:  # both, or none: a second try would be refused for the first file
        for path, share in zip(files.values(), shares, strict=True):
            write_secret(path, share)
            undo.callback(path.unlink)
        undo.pop_all()
    return files
