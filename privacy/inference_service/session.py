"""The data owner's side: a session with keys."""

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from numpy.typing import ArrayLike

from privacy.inference import Answer, DataOwner, Plan, ReleasePolicy, SecretsError
from privacy.inference_service.client import ServiceClient
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.key_file import KeptKeys, KeyFile

_ATTEMPTS = 10
_REMAKES = 3
_LONGEST_WAIT = 60.0
_KEYS_LOST = ("keys-gone", "no-keys")

_T = TypeVar("_T")


class OwnerSession:
    """Asks about inputs: makes keys when they are needed, encrypts, waits its turn, decrypts.

    Parameters
    ----------
    client : ServiceClient
    plan : Plan
        From :meth:`ServiceClient.plan`.
    key_file : KeyFile, optional
        Where keys last until the next session; open it first. Without it they are for this session
        alone: call :meth:`end`.
    release : ReleasePolicy, optional
        What leaves a decryption; by default the class only.
    wait : callable
        Is given seconds to wait when the service is busy.

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
    TypeError
        If ``plan`` is none.
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
        self._owner: DataOwner | None = None
        self._name = ""
        kept = None if key_file is None else key_file.load()
        if kept is not None and kept.plan == self._digest:
            try:
                self._owner = DataOwner.from_secret_state(plan, kept.state, release=release)
                self._name = kept.key_id
            except SecretsError:
                self._owner = None  # new keys are made

    def ask(self, x: ArrayLike) -> tuple[Answer, float]:
        """Ask about one input, or about a batch for a plan of batches.

        Keys that the service does not hold any more (they expired, others took their place, or it
        was restarted) are replaced by new ones.

        Returns
        -------
        answer : Answer
            What the release policy lets out.
        seconds : float
            That the evaluation took, as the service says.

        Raises
        ------
        ServiceError
            If the service refuses or cannot be reached.
        OutOfRangeError, ValueError
            If the input is not what the plan is for.
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
                if error.code not in _KEYS_LOST or remakes == _REMAKES:
                    raise
                self._owner, remakes = None, remakes + 1
                continue
            done = owner.decrypt(answer)
            self._save(owner)
            return done, seconds

    def _ask(self, query: bytes) -> tuple[bytes, float]:
        return self._client.ask(self._name, query, answer_bytes=self._plan.answer_bytes)

    def end(self) -> None:
        """Take keys back that nobody keeps.

        Raises
        ------
        ServiceError
            If the service cannot be reached.
        """
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
            self._file.save(KeptKeys(self._name, self._digest, owner.secret_state()))

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        for _ in range(_ATTEMPTS - 1):
            try:
                return ask()
            except ServiceError as error:
                if error.status not in (429, 503):
                    raise
                self._wait(min(float(error.retry_after or 1), _LONGEST_WAIT))
        return ask()
