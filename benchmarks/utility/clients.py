"""Who holds what in the utility benchmark: label-sorted shards, two a client."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHARDS_A_CLIENT = 2


@dataclass(frozen=True, eq=False)
class Holdings:
    """Equal shards of the training images, and which client holds which.

    Attributes
    ----------
    shards
        int64, (shards, images): the rows of each shard.
    clients
        int64, (N, 2): the shards of each client. Several clients may hold a copy of a shard.
    """

    shards: NDArray[np.int64]
    clients: NDArray[np.int64]


def label_sorted(
    labels: NDArray[np.int64], *, shards: int, copies: int, draw: np.random.Generator
) -> Holdings:
    """Sort images by label, cut them in equal shards, and deal ``copies`` of each to clients.

    The images that dividing by ``shards`` leaves over, fewer than ``shards``, are left out.

    Parameters
    ----------
    labels
        int64, (n,).
    shards
        How many to cut.
    copies
        How many clients hold each shard: 1 for disjoint clients.
    draw
        Shuffles the images of a label, and deals.
    """
    rows = draw.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    size = len(rows) // shards
    deck = draw.permutation(np.tile(np.arange(shards), copies))
    return Holdings(
        rows[: shards * size].reshape(shards, size).astype(np.int64),
        deck.reshape(-1, SHARDS_A_CLIENT).astype(np.int64),
    )
