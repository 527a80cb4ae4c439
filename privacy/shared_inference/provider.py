"""The provider: correlated randomness ahead of time, of which it sees no use.

It talks to nobody while questions are answered. Whoever has its state, or its letters, and the
messages of one worker, reads everything.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from privacy.arguments import lasting_file, whole
from privacy.files import replacement, write_durably
from privacy.json_text import read_json
from privacy.mechanisms.randomness import SystemRandomness
from privacy.shared_inference.errors import MaterialError, MessageError
from privacy.shared_inference.material import OWNER_PIECE_BYTES, deal, worker_piece_bytes
from privacy.shared_inference.material_files import Bundle
from privacy.shared_inference.messages import Letter, Party
from privacy.shared_inference.plan import Plan
from privacy.shared_inference.ring import SEED_BYTES, Buffer, Stream

_SESSION_BYTES = 16
_MOST_QUESTIONS = 1 << 48
_SEEDS = ("alice_seed", "bob_seed", "alice_model", "bob_model", "alice_key", "bob_key", "owner_key")


@dataclass(frozen=True)
class Provision:
    """Material for questions from ``first`` on: one piece of bytes for each party, which is secret.

    Attributes
    ----------
    first, count : int
    alice, bob, data_owner : bytes
    """

    first: int
    count: int
    alice: bytes
    bob: bytes
    data_owner: bytes


class Provider:
    """Makes material for one plan.

    Parameters
    ----------
    plan : Plan
    state : path, optional
        Of a file that keeps the secrets and which questions have material, for the next process;
        made if there is none. Without it both end with this object.

    Raises
    ------
    MaterialError
        If the file is damaged or of another plan.

    Notes
    -----
    **Guarantee.** Material is of the operating system's randomness, fresh for every question; a
    number is never dealt twice, also after a crash or by two processes at once. The provider gets
    no message of anybody.

    **Assumptions.** It follows the protocol, its state stays secret, and it tells neither worker
    anything but the worker's own material.

    **Not covered.** A provider that deals wrong material makes answers wrong, and nobody sees it. A
    state file put back from a copy deals numbers again.
    """

    def __init__(self, plan: Plan, state: str | Path | None = None) -> None:
        self._plan = plan
        self._file = None if state is None else lasting_file("state", state)
        self._randomness = SystemRandomness()
        if self._file is not None and self._file.exists():
            self._secrets, self._next = _read(self._file, plan)
        else:
            drawn = self._randomness.bytes(_SESSION_BYTES + len(_SEEDS) * SEED_BYTES)
            self._secrets = {"session": drawn[:_SESSION_BYTES]}
            for place, name in enumerate(_SEEDS):
                start = _SESSION_BYTES + place * SEED_BYTES
                self._secrets[name] = drawn[start : start + SEED_BYTES]
            self._next = 0
            self._keep()
        seeds = (self._secrets["alice_seed"], self._secrets["bob_seed"])
        first, second = (Stream(seed).take(plan.weights) for seed in seeds)
        self._masks = first + second

    def letter(self, party: Party) -> bytes:
        """What makes somebody a party; secret. Give each to one holder, who keeps it."""
        secrets = self._secrets
        named = {
            Party.ALICE: ("alice_key", "alice_seed", "alice_model"),
            Party.BOB: ("bob_key", "bob_seed", "bob_model"),
            Party.DATA_OWNER: ("owner_key",),
            Party.MODEL_OWNER: ("alice_seed", "bob_seed", "alice_model", "bob_model"),
        }
        if party not in named:
            raise ValueError(
                f"party is {party!r}; give Party.ALICE, BOB, DATA_OWNER or MODEL_OWNER"
            )
        chosen = tuple(secrets[name] for name in named[party])
        return Letter(party, secrets["session"], chosen).to_bytes(self._plan)

    def provision(self, questions: int) -> Provision:
        """Material for so many more questions of ``batch_size`` images each, in memory."""
        bundles = self._begun(whole("questions", questions, least=1))
        listed = [np.empty(bundle.bytes, np.uint8) for bundle in bundles]
        for bundle, written in zip(bundles, listed, strict=True):
            written[: len(bundle.header)] = np.frombuffer(bundle.header, np.uint8)
        for question, pieces in self._dealt(bundles[0]):
            for bundle, piece, written in zip(bundles, pieces, listed, strict=True):
                start = bundle.start(question)
                bundle.seal(question, piece, written.data[start : start + bundle.sealed_bytes])
        # Large parts are let go as they are copied: fresh memory takes longer than the copy.
        del pieces, piece, written
        parties = (listed.pop(0).tobytes() for _ in bundles)
        return Provision(bundles[0].first, questions, *parties)

    def write_material(
        self,
        questions: int,
        *,
        alice: str | Path,
        bob: str | Path,
        data_owner: str | Path,
        questions_a_file: int = 1000,
    ) -> list[Path]:
        """Material for so many more questions, into files in the parties' folders.

        A piece is written as soon as it is made, so that memory stays flat. Each party gets what is
        in its folder, and takes it in by :meth:`MaterialStore.look`.

        Parameters
        ----------
        questions : int
        alice, bob, data_owner : path
            Folders, made where there are none.
        questions_a_file : int
            A file is removed when all its questions were asked.

        Returns
        -------
        list of Path
            The files.
        """
        left = whole("questions", questions, least=1)
        most = whole("questions_a_file", questions_a_file, least=1)
        folders = [Path(folder) for folder in (alice, bob, data_owner)]
        for folder in folders:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written: list[Path] = []
        while left:
            bundles = self._begun(min(left, most))
            left -= bundles[0].count
            paths = [f / bundle.name for f, bundle in zip(folders, bundles, strict=True)]
            with ExitStack() as stack:
                files = [stack.enter_context(replacement(path)) for path in paths]
                for file, bundle in zip(files, bundles, strict=True):
                    file.write(bundle.header)
                rooms = [memoryview(bytearray(bundle.sealed_bytes)) for bundle in bundles]
                for question, pieces in self._dealt(bundles[0]):
                    for file, bundle, piece, room in zip(
                        files, bundles, pieces, rooms, strict=True
                    ):
                        bundle.seal(question, piece, room)
                        file.write(room)
            written += paths
        return written

    def _begun(self, questions: int) -> list[Bundle]:
        """The three parties' bundles for the next questions."""
        plan, session = self._plan, self._secrets["session"]
        with ExitStack() as stack:
            if self._file is not None:
                # Another process may have dealt since.
                stack.enter_context(FileLock(f"{self._file}.lock"))
                self._next = _read(self._file, plan)[1]
            first = self._next
            # On disk before the first piece is made: after a crash numbers are left out, never
            # dealt again.
            self._next += questions
            self._keep()
        sizes = (worker_piece_bytes(plan, 0), worker_piece_bytes(plan, 1), OWNER_PIECE_BYTES)
        parties = (Party.ALICE, Party.BOB, Party.DATA_OWNER)
        keys = [self._secrets[name] for name in ("alice_key", "bob_key", "owner_key")]
        return [
            Bundle(party, session, key, first, questions, size)
            for party, key, size in zip(parties, keys, sizes, strict=True)
        ]

    def _dealt(self, bundle: Bundle) -> Iterator[tuple[int, tuple[Buffer, Buffer, Buffer]]]:
        """Each question of bundles in a row, and its pieces."""
        for question in range(bundle.first, bundle.first + bundle.count):
            yield question, deal(self._plan, self._masks, self._randomness)

    def _keep(self) -> None:
        if self._file is None:
            return
        fields = {name: value.hex() for name, value in self._secrets.items()}
        fields |= {"plan": self._plan.digest.hex()}
        write_durably(self._file, json.dumps({**fields, "next": self._next}).encode())


def _read(file: Path, plan: Plan) -> tuple[dict[str, bytes], int]:
    try:
        fields = read_json(file.read_text())
        number, digest = fields.pop("next"), fields.pop("plan")
        secrets = {name: bytes.fromhex(value) for name, value in fields.items()}
        sizes = dict.fromkeys(_SEEDS, SEED_BYTES) | {"session": _SESSION_BYTES}
        if {name: len(value) for name, value in secrets.items()} != sizes:
            raise MessageError("its parts are others")
        if type(number) is not int or not 0 <= number < _MOST_QUESTIONS:
            raise MessageError(f"its next question is {number!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MaterialError(
            f"{file} is no provider's state ({error}); restore it, or begin a new session with "
            "another file and new letters"
        ) from error
    if digest != plan.digest.hex():
        raise MaterialError(f"{file} is a provider's state for another plan; give another file")
    return secrets, number
