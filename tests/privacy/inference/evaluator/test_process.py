"""The evaluator behind a process boundary, and a data owner that survives a restart."""

import math
import os
import signal
import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import nn

from privacy.inference import (
    CompiledModel,
    DataOwner,
    Evaluator,
    EvaluatorProcess,
    FloodedLogits,
    compile_model,
)
from privacy.inference.errors import (
    EvaluatorFailedError,
    EvaluatorTimeoutError,
    MessageError,
    ReleaseError,
    SecretsError,
)
from tests.privacy.inference.evaluator.evaluator_program import (
    ROOT,
    model_of_a_library_that_prints,
    small_model,
    start_compiling,
    start_process,
)

X = np.array([[0.0, 1.0, 0.5, 0.25], [1.0, 1.0, 0.0, 0.0], [0.2, 0.9, 0.1, 0.4]])


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return small_model()


@pytest.fixture(scope="module")
def process() -> Iterator[EvaluatorProcess]:
    """One that compiles by itself, and does without TenSEAL: importing it fails."""
    nothing = "import sys; sys.modules.update(tenseal=None, zstandard=None)"
    with start_compiling(model_of_a_library_that_prints, first=nothing) as running:
        yield running


def test_a_process_answers_one_owner_after_the_other(
    process: EvaluatorProcess, compiled: CompiledModel
) -> None:
    """Without TenSEAL, from compiling to the answer, and whatever a library prints."""
    right = compiled.predict(X).argmax(axis=1).tolist()
    assert process.plan.digest == compiled.plan.digest
    for _ in range(2):
        owner = DataOwner(process.plan)
        process.use_keys(owner.public_material())
        answers = [process.evaluate(owner.encrypt(x)) for x in X]
        assert [owner.decrypt(answer).label for answer, _ in answers] == right
        assert all(seconds > 0 for _, seconds in answers)


def test_what_a_process_refuses_costs_only_its_sender(process: EvaluatorProcess) -> None:
    owner, other = DataOwner(process.plan), DataOwner(process.plan)
    process.use_keys(owner.public_material())
    query = owner.encrypt(X[0])
    with pytest.raises(MessageError, match="altered"):
        process.evaluate(other.encrypt(X[0]))
    with pytest.raises(MessageError, match="bytes"):
        process.evaluate(owner.secret_state())
    answer, _ = process.evaluate(query)
    assert owner.decrypt(answer).labels
    with pytest.raises(MessageError, match="answered before"):
        process.evaluate(query)
    with pytest.raises(MessageError, match="bytes"):
        process.use_keys(owner.secret_state())
    # The keys before are gone with the attempt: nobody is answered under another's.
    with pytest.raises(MessageError, match="before its public material"):
        process.evaluate(owner.encrypt(X[0]))


def test_a_process_that_dies_is_an_error_with_its_last_words() -> None:
    program = (
        "import sys\nfrom privacy.inference import serve_evaluations\n"
        "serve_evaluations(lambda: sys.exit('its last words'))"
    )
    with pytest.raises(EvaluatorFailedError, match="its last words"):
        EvaluatorProcess([sys.executable, "-c", program], folder=ROOT)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"no plan", "no plan"),
        (b"\xff", "no plan"),
        (b"plan", r"a reply of kind b''"),
        (b"plan, ?", r"a reply of kind b'\?'"),
        (b"plan, +, +short", "an answer of 5 bytes"),
        (b"plan, +, +" + struct.pack(">d", math.nan), "an answer that took nan s"),
        (b"plan, +, +" + struct.pack(">d", -1.0), r"an answer that took -1\.0 s"),
        (b"plan, +, huge", "a frame of 268,435,457 bytes, more than any has"),
    ],
)
def test_a_process_that_sends_what_no_evaluator_does_is_ended(
    sent: bytes, said: str, compiled: CompiledModel
) -> None:
    """A stranger's question may have taken it over; it is not waited for, nor taken at its word."""
    plan = compiled.plan.to_json().encode()
    frames = [plan if each == b"plan" else each for each in sent.split(b", ")]
    written = b"".join(
        struct.pack(">I", (1 << 28) + 1) if each == b"huge" else struct.pack(">I", len(each)) + each
        for each in [*frames, b""]
    )
    program = f"import os, sys; os.write(1, {written!r}); sys.stdin.read()"
    with pytest.raises(EvaluatorFailedError, match=rf"^the evaluator's process sent {said}.*-9"):
        EvaluatorProcess([sys.executable, "-c", program]).evaluate(b"a question")


def test_a_process_that_goes_silent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.inference.evaluator.process._EXIT_SECONDS", 0.2)
    program = "import os, sys; os.close(1); sys.stdin.read()"
    with pytest.raises(EvaluatorFailedError, match=r"ended \(code -9\)"):
        EvaluatorProcess([sys.executable, "-c", program])


@pytest.mark.parametrize("wrong", [True, "3", math.nan, math.inf, -1, 0, [3], 10**400])
@pytest.mark.parametrize("name", ["timeout", "owners", "memory"])
def test_limits_of_a_process_are_checked_before_it_is_started(name: str, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name} is .*(give|must be)"):
        EvaluatorProcess(["/not/started"], **{name: wrong})


def test_a_program_is_given_with_its_arguments_in_a_list() -> None:
    with pytest.raises(TypeError, match=r"^command is 'python serve\.py'; give the program and"):
        EvaluatorProcess("python serve.py")


def test_a_process_that_hangs_is_ended(process: EvaluatorProcess) -> None:
    with start_process(small_model) as stuck:
        assert stuck.pid is not None
        stuck.timeout = 0.2
        os.kill(stuck.pid, signal.SIGSTOP)
        with pytest.raises(EvaluatorTimeoutError, match=r"0\.2 s.*code -9"):
            stuck.use_keys(DataOwner(process.plan).public_material())


def test_owners_beside_each_other_are_kept_apart(process: EvaluatorProcess) -> None:
    owners = [DataOwner(process.plan) for _ in range(2)]
    for slot, owner in enumerate(owners):
        process.use_keys(owner.public_material(), slot=slot)
    with pytest.raises(MessageError, match="altered"):
        process.evaluate(owners[0].encrypt(X[0]), slot=1)
    for slot, owner in enumerate(owners):
        answer, _ = process.evaluate(owner.encrypt(X[0]), slot=slot)
        assert owner.decrypt(answer).labels
    process.forget(0)
    with pytest.raises(MessageError, match="before its public material"):
        process.evaluate(owners[0].encrypt(X[0]), slot=0)
    answer, _ = process.evaluate(owners[1].encrypt(X[0]), slot=1)
    assert owners[1].decrypt(answer).labels


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit is kept")
def test_a_process_that_needs_too_much_memory_ends() -> None:
    with (
        start_process(small_model, memory=1 << 16) as small,
        pytest.raises(EvaluatorFailedError, match=r"MemoryError|bad_alloc"),
    ):
        small.use_keys(DataOwner(small.plan).public_material())


def test_an_owner_reads_its_answers_after_a_restart(compiled: CompiledModel) -> None:
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    queries = [owner.encrypt(x) for x in X]
    state = owner.secret_state()
    answers = [evaluator.evaluate(query) for query in queries]
    again = DataOwner.from_secret_state(compiled.plan, state)
    right = compiled.predict(X).argmax(axis=1).tolist()
    assert [again.decrypt(answer).label for answer in answers] == right
    with pytest.raises(MessageError, match="not open"):
        again.decrypt(answers[0])
    # It goes on asking under the same keys, with ids of its own.
    assert again.decrypt(evaluator.evaluate(again.encrypt(X[1]))).label == right[1]


def test_a_limit_of_answers_outlives_a_restart(compiled: CompiledModel) -> None:
    policy = FloodedLogits(statistical_bits=1, queries=1)
    owner = DataOwner(compiled.plan, release=policy)
    evaluator = Evaluator(compiled, owner.public_material())
    queries = [owner.encrypt(x) for x in X[:2]]
    owner.decrypt(evaluator.evaluate(queries[0]))
    again = DataOwner.from_secret_state(compiled.plan, owner.secret_state(), release=policy)
    with pytest.raises(ReleaseError, match="make new keys"):
        again.decrypt(evaluator.evaluate(queries[1]))


def test_damaged_or_foreign_secrets_are_refused(compiled: CompiledModel) -> None:
    state = DataOwner(compiled.plan).secret_state()
    for damaged in (
        state[:-1],
        state[:100] + bytes([state[100] ^ 1]) + state[101:],
        b"",
        bytes(200),
    ):
        with pytest.raises(SecretsError, match="damaged"):
            DataOwner.from_secret_state(compiled.plan, damaged)

    other = compile_model(nn.Sequential(nn.Linear(4, 2)), input_shape=(4,), input_range=(0, 1))
    with pytest.raises(SecretsError, match="another plan"):
        DataOwner.from_secret_state(other.plan, state)


def test_no_evaluator_takes_a_kept_secret(compiled: CompiledModel) -> None:
    """Neither as it is kept, nor cut or padded to the length of a message."""
    owner = DataOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    state = owner.secret_state()
    for size in (compiled.plan.public_bytes, compiled.plan.query_bytes, len(state)):
        with pytest.raises(MessageError):
            Evaluator(compiled, state[:size].ljust(size, b"\0"))
        with pytest.raises(MessageError):
            evaluator.evaluate(state[:size].ljust(size, b"\0"))
