"""The model owner: a compiled model, masked for the workers."""

from typing import TYPE_CHECKING

from privacy.shared_inference.messages import Head, Letter, Party, Tag, seal
from privacy.shared_inference.ring import Stream

if TYPE_CHECKING:
    from privacy.shared_inference.compile import SharedModel


def share_model(model: "SharedModel", letter: bytes) -> tuple[bytes, bytes]:
    """Messages that give the workers a model: for alice, and for bob.

    In shares, or as it is where it was compiled with ``public_model``.

    Parameters
    ----------
    model : SharedModel
    letter : bytes
        The model owner's, from :meth:`Provider.letter`.

    Raises
    ------
    MessageError
        If the letter is not the model owner's, or of another plan.

    Notes
    -----
    **Guarantee.** Each message holds the weights minus both workers' masks: uniformly random to a
    worker, who knows one of them. It may serve all questions of the session. A public model's holds
    the weights, encrypted for its worker.

    **Assumptions.** The workers do not collude, and the provider colludes with neither, nor with
    the data owner: of an answer's shares both learn the last layer. The letter and the model are
    not at a worker, unless the worker may know the model.

    **Not covered.** A second model under the same letter: the difference of both would be seen.
    """
    opened = Letter.from_bytes(letter, model.plan, Party.MODEL_OWNER)
    seeds, keys = opened.secrets[:2], opened.secrets[2:]
    weights = model.weights
    if not model.plan.public_model:
        first, second = (Stream(seed).take(model.plan.weights) for seed in seeds)
        weights = weights - first - second
    body = weights.astype("<u8").tobytes()
    alice, bob = (
        seal(Head(Tag.MODEL, Party.MODEL_OWNER, party, opened.session), body, key)
        for party, key in zip((Party.ALICE, Party.BOB), keys, strict=True)
    )
    return alice, bob
