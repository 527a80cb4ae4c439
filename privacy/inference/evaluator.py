"""The evaluator: answers encrypted questions, and cannot hold a secret key."""

import threading

from privacy.inference import _wire
from privacy.inference._keys import read_keys
from privacy.inference._seal import seal
from privacy.inference._wire import MessageError, Reader, Tag
from privacy.inference.compiled import CompiledModel
from privacy.inference.plan import SESSION_KEY_BYTES

REPLAY_WINDOW = 1024
"""How far a query may lag behind the newest one, in queries."""


class Evaluator:
    """Answers one data owner's queries with a compiled model.

    Parameters
    ----------
    compiled : CompiledModel
    public_material : bytes
        What :meth:`DataOwner.public_material` returned. It is fixed by the plan to the byte: a
        session key, a public key and the evaluation keys that the plan names. There is no field
        and no method that takes a secret key.

    Raises
    ------
    MessageError
        If the material is not exactly that.
    """

    def __init__(self, compiled: CompiledModel, public_material: bytes) -> None:
        self.plan = compiled.plan
        self._encoded = compiled.encoded
        ring = self._encoded.ring
        digest = self._encoded.digest
        _, body = _wire.open_message(
            public_material,
            Tag.MATERIAL,
            self.plan,
            digest,
            lambda body: bytes(body[:SESSION_KEY_BYTES]),
        )
        reader = Reader(body)
        self._session_key = reader.raw(SESSION_KEY_BYTES)
        self._keys = read_keys(reader, ring, self.plan)
        self._encryptor = seal.Encryptor(ring.last.context, self._keys.public)
        self._encoded.prepare()
        self._lock = threading.Lock()
        self._newest = -1
        self._seen = 0

    def evaluate(self, query: bytes) -> bytes:
        """Answer one query.

        Parameters
        ----------
        query : bytes
            What :meth:`DataOwner.encrypt` returned.

        Returns
        -------
        bytes
            For :meth:`DataOwner.decrypt`; to everyone else it is noise.

        Raises
        ------
        MessageError
            If the query was truncated, altered, replayed, or belongs to another plan or other
            keys.
        """
        plan = self.plan
        query_id, body = _wire.open_message(
            query, Tag.QUERY, plan, self._encoded.digest, lambda _: self._session_key
        )
        self._refuse_replay(query_id)
        answer = self._encoded.answer(body, self._keys, self._encryptor)
        return _wire.seal_message(
            Tag.ANSWER, plan, self._encoded.digest, query_id, answer, self._session_key
        )

    def _refuse_replay(self, query_id: int) -> None:
        """Each query is answered once; ids may arrive out of order within a window."""
        with self._lock:
            age = self._newest - query_id
            if age >= REPLAY_WINDOW or (age >= 0 and self._seen >> age & 1):
                raise MessageError(f"query {query_id} was answered before; encrypt again")
            if age < 0:
                self._seen = (self._seen << -age if -age < REPLAY_WINDOW else 0) | 1
                self._seen &= (1 << REPLAY_WINDOW) - 1
                self._newest = query_id
            else:
                self._seen |= 1 << age
