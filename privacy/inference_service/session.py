"""The data owner's side: a session with keys."""

import contextlib
import random
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from numpy.typing import ArrayLike

from privacy.inference import Answer, DataOwner, Plan, ReleasePolicy
from privacy.inference.errors import SecretsError
from privacy.inference_service.client import ServiceClient
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.key_file import KeyFile, StoredKeys

_ATTEMPTS = 10
_LONGEST_WAIT = 60.0
_LONGEST_PAUSE = 16.0
"""Seconds before keys are made once more for a question under which they were lost again."""
_KEYS_LOST = ("keys-gone", "no-keys")
_CROWDED = f"others who ask under this token took the place of these keys {_ATTEMPTS} times"
_LESS_CROWDED = "ask from fewer places at once, or have the service's operator raise --key-sets"
_random = random.SystemRandom()

_T = TypeVar("_T")


class OwnerSession:
    """Asks about inputs: makes keys where needed, encrypts, waits its turn, decrypts.

    Parameters
    ----------
    client : ServiceClient
    plan : Plan
        From :meth:`ServiceClient.plan`.
    key_file : KeyFile, optional
        Where keys last until the next session; open it first. Without it they are for this session
        alone: call :meth:`end`.
    release : ReleasePolicy, optional
        Which part of a decryption leaves; by default the class only.
    wait : callable
        Waits for the given seconds when the service is busy, or keys were lost more than once.

    Attributes
    ----------
    keys_made : int
        How often keys were made in this session.

    Raises
    ------
    KeyFileError
        If the file cannot be used.
    ReleaseError
        If the plan cannot carry the policy.
    """

    def __init__(
        self,
        client: ServiceClient,
        plan: Plan,
        *,
        key_file: KeyFile | None = None,
        release: ReleasePolicy | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        if not isinstance(plan, Plan):
            raise TypeError(
                f"plan is of type {type(plan).__name__}; give the plan, as in client.plan()"
            )
        self.keys_made = 0
        self._client = client
        self._plan = plan
        self._digest = plan.digest.hex()
        self._file = key_file
        self._release = release
        self._wait = wait
        self._losses = 0  # of keys, less the answers since
        self._owner: DataOwner | None = None
        self._name = ""
        stored = None if key_file is None else key_file.load()
        if stored is not None and stored.plan == self._digest:
            with contextlib.suppress(SecretsError):  # new keys are made
                self._owner = DataOwner.from_secret_state(plan, stored.state, release=release)
                self._name = stored.key_id

    def ask(self, x: ArrayLike) -> tuple[Answer, float]:
        """Ask about one input, or about a batch for a plan of batches.

        Keys that the service no longer holds (they expired, others took their place, or it was
        restarted) are replaced by new ones: at once, then after pauses of random length, where
        others under the same token take their place again and again.

        Returns
        -------
        answer : Answer
            As the release policy lets it out.
        seconds : float
            That the evaluation took, by the service's word.

        Raises
        ------
        ServiceError
            If the service refuses or cannot be reached, or keys do not last until the answer.
        OutOfRangeError, ValueError
            If the input has another shape, or elements outside the plan's range.
        MessageError
            If the answer is not one.
        ReleaseError
            If these keys have released as many answers as they may.
        """
        remakes = 0
        while True:
            owner = self._owner or self._make_keys()
            query = owner.encrypt(x)
            self._save(owner)  # first, so that no number of a query is used twice
            try:
                answer, seconds = self._patiently(partial(self._ask, query))
            except ServiceError as error:
                if error.code not in _KEYS_LOST:
                    raise
                if remakes == _ATTEMPTS - 1:
                    raise ServiceError("busy", 429, _CROWDED, _LESS_CROWDED) from error
                self._pause()
                self._owner, remakes = None, remakes + 1
                continue
            self._losses = max(0, self._losses - 1)
            decrypted = owner.decrypt(answer)
            self._save(owner)
            return decrypted, seconds

    def _pause(self) -> None:
        """Wait for others: askers who all made keys at once would all lose them once more."""
        if self._losses:
            longest = min(2.0 ** (self._losses - 1), _LONGEST_PAUSE)
            self._wait(_random.uniform(0.0, longest))
        self._losses += 1

    def _ask(self, query: bytes) -> tuple[bytes, float]:
        return self._client.ask(self._name, query, answer_bytes=self._plan.answer_bytes)

    def end(self) -> None:
        """Have the service forget keys that no file stores."""
        if self._file is None and self._owner is not None:
            self._owner = None
            try:
                self._client.remove_keys(self._name)
            except ServiceError as error:
                if error.code not in _KEYS_LOST:  # else there is nothing left to take back
                    raise

    def _make_keys(self) -> DataOwner:
        owner = DataOwner(self._plan, release=self._release)
        binding = self._patiently(self._client.key_binding)
        material = owner.public_material(binding=binding)
        self._name = self._patiently(partial(self._client.send_keys, material))
        self._owner = owner
        self.keys_made += 1
        return owner

    def _save(self, owner: DataOwner) -> None:
        if self._file is not None:
            self._file.save(StoredKeys(self._name, self._digest, owner.secret_state()))

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        for attempt in range(1, _ATTEMPTS):
            try:
                return ask()
            except ServiceError as error:
                if error.status not in (429, 503):
                    raise
                # At random: others were refused at the same time, and would come back together.
                seconds = _random.uniform(1.0, attempt) * float(error.retry_after or 1)
                self._wait(min(seconds, _LONGEST_WAIT))
        return ask()
