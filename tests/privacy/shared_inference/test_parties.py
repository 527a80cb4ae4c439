"""Parties: what is altered, replayed or meant for another is refused, also after a restart."""

import contextlib
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from privacy.shared_inference import (
    DataOwner,
    MaterialStore,
    Party,
    Plan,
    Provider,
    SharedModel,
    Worker,
    compile_model,
    converse_in_process,
    share_model,
)
from privacy.shared_inference import provider as provider_module
from privacy.shared_inference.errors import (
    MaterialError,
    MaterialSpentError,
    MaterialUsedError,
    MessageError,
    OutOfRangeError,
)
from privacy.shared_inference.messages import Head, Tag, seal
from tests.privacy.shared_inference.parties import session
from tests.privacy.shared_inference.shared_models import made


@pytest.fixture(scope="module")
def compiled() -> SharedModel:
    shape, model = made("relu")
    return compile_model(model, input_shape=shape, input_range=(-1, 1), batch_size=2)


INPUT = np.linspace(-1, 1, 10)


def test_questions_are_answered_as_the_model_answers(compiled: SharedModel) -> None:
    here = session(compiled, 3)
    for inputs in (INPUT, INPUT[None], np.stack([INPUT, -INPUT])):
        expected = compiled.predict(inputs.reshape(-1, 10))
        assert np.abs(here.logits(inputs) - expected).max() <= compiled.plan.error
    with pytest.raises(MaterialSpentError, match="makes more"):
        here.logits(INPUT)
    here.provision(1)
    here.logits(INPUT)


def test_a_model_that_the_workers_know() -> None:
    shape, model = made("relu")
    given = {"input_shape": shape, "input_range": (-1, 1)}
    compiled = compile_model(model, **given, public_model=True)
    here = session(compiled, 1)
    assert np.abs(here.logits(INPUT) - compiled.predict(INPUT[None])).max() <= compiled.plan.error
    for worker in (here.alice, here.bob):
        assert np.array_equal(worker._weights.own, compiled.weights)
    with pytest.raises(TypeError, match="public_model is 1"):
        compile_model(model, **given, public_model=1)  # type: ignore[arg-type]


def test_classes() -> None:
    shape, model = made("pools")
    compiled = compile_model(
        model, input_shape=shape, input_range=(-1, 1), answer="class", batch_size=3
    )
    inputs = np.random.default_rng(0).uniform(-1, 1, (3, *shape))
    here = session(compiled, 2)
    logits = compiled.predict(inputs)
    assert here.classes(inputs).tolist() == logits.argmax(axis=1).tolist()
    with pytest.raises(ValueError, match="classes"):
        here.logits(inputs)


def test_plans_survive_a_journey(compiled: SharedModel) -> None:
    plan = Plan.from_bytes(compiled.plan.to_bytes())
    assert plan.digest == compiled.plan.digest
    assert str(plan) == str(compiled.plan)


def mutations(message: bytes, count: int, seed: int) -> list[bytes]:
    """A message altered: a bit, a byte, its length, a part of it moved."""
    generator = np.random.default_rng(seed)
    listed = [message[:-1], message + b"\0", b"", message[1:], message[::-1]]
    while len(listed) < count:
        altered = bytearray(message)
        place = int(generator.integers(len(message)))
        if generator.random() < 0.7:
            altered[place] ^= 1 << int(generator.integers(8))
        else:
            altered[place : place + 8] = generator.bytes(len(altered[place : place + 8]))
        if bytes(altered) != message:
            listed.append(bytes(altered))
    return listed


def refused(
    message: bytes, take: Callable[[bytes], object], count: int, *errors: type[Exception]
) -> int:
    """How many altered messages are refused; one that is taken fails the test."""
    for altered in mutations(message, count, seed=count):
        with pytest.raises(errors or MessageError):
            take(altered)
    return count


def test_none_of_ten_thousand_altered_messages_is_accepted(compiled: SharedModel) -> None:
    count = 2_000
    here = session(compiled, count + 2)
    plan, provider = compiled.plan, here.provider
    letters = {party: provider.letter(party) for party in Party if party != Party.PROVIDER}
    models = share_model(compiled, letters[Party.MODEL_OWNER])

    here.alice.prepare()
    question = here.owner.ask(INPUT)
    asked = MessageError, MaterialSpentError  # the second where its number is altered
    total = refused(question.for_alice, lambda m: next(here.alice.answer(m)), count, *asked)
    assert here.alice.material.next_question == 0  # a stranger's question spends nothing

    both = converse_in_process(
        here.alice.answer(question.for_alice), here.bob.answer(question.for_bob)
    )
    total += refused(both[0], lambda m: here.owner.logits(question, m, both[1]), count)
    assert here.owner.logits(question, *both).shape == (1, 4)

    one = here.owner.ask(INPUT)
    message = next(here.bob.answer(one.for_bob))
    for altered in mutations(message, count, seed=1):
        conversation = here.alice.answer(here.owner.ask(INPUT).for_alice)
        next(conversation)
        with pytest.raises(MessageError):
            conversation.send(altered)
        total += 1

    material = provider.provision(1)

    def taken(altered: bytes) -> None:
        worker = Worker(plan, letters[Party.ALICE], models[0])
        worker.material.add(altered)
        worker.material.read(material.first)

    total += refused(material.alice, taken, count, MessageError, MaterialSpentError)
    letter, model = letters[Party.ALICE], models[0]
    total += refused(letter, lambda m: Worker(plan, m, model), count // 2)
    total += refused(model, lambda m: Worker(plan, letter, m), count // 2)
    assert total == 10_000


def test_messages_for_others_are_refused(compiled: SharedModel) -> None:
    here, elsewhere = session(compiled, 3), session(compiled, 3)
    question = here.owner.ask(INPUT)
    with pytest.raises(MessageError, match="not a question for this worker"):
        next(here.alice.answer(question.for_bob))
    with pytest.raises(MessageError, match="session"):
        next(elsewhere.alice.answer(question.for_alice))
    plan, letter = compiled.plan, here.provider.letter
    with pytest.raises(MessageError, match="another party than alice or bob"):
        Worker(plan, letter(Party.DATA_OWNER), b"")
    with pytest.raises(MessageError, match="another party than model_owner"):
        share_model(compiled, letter(Party.ALICE))
    models = share_model(compiled, letter(Party.MODEL_OWNER))
    with pytest.raises(MessageError, match="another party"):
        Worker(plan, letter(Party.ALICE), models[1])
    material = here.provider.provision(1)
    with pytest.raises(MessageError, match="another party"):
        here.alice.material.add(material.bob)
    shape, model = made("relu", seed=1)
    changed = compile_model(model, input_shape=shape, input_range=(-1, 1), batch_size=3)
    with pytest.raises(MessageError, match="another plan"):
        Worker(changed.plan, letter(Party.ALICE), models[0])


def test_a_question_is_answered_once(compiled: SharedModel) -> None:
    here = session(compiled, 4)
    question = here.owner.ask(INPUT)
    for _ in range(2):
        here.alice.prepare()
    first = converse_in_process(
        here.alice.answer(question.for_alice), here.bob.answer(question.for_bob)
    )
    assert here.alice.prepared == 1  # the next one; the one that was used is forgotten
    with pytest.raises(MaterialUsedError, match="of question 1"):
        next(here.alice.answer(question.for_alice))
    here.owner.logits(question, *first)
    with pytest.raises(ValueError, match="answered before"):
        here.owner.logits(question, *first)
    # Numbers may be left out; what lies before is spent.
    later = here.owner.ask(INPUT, number=3)
    next(here.bob.answer(later.for_bob))
    with pytest.raises(MaterialUsedError, match="of question 4"):
        here.owner.ask(INPUT, number=2)
    with pytest.raises(MaterialUsedError):
        here.bob.material.use(2)


def test_a_worker_that_died_loses_what_it_had_begun_and_uses_nothing_twice(
    compiled: SharedModel, tmp_path: Path
) -> None:
    here = session(compiled, 40, tmp_path)
    for _ in range(3):
        here.logits(INPUT)
    begun = here.owner.ask(INPUT)
    next(here.alice.answer(begun.for_alice))
    stale = (tmp_path / "ALICE" / "000000000000.material").read_bytes()

    plan, letter = compiled.plan, here.provider.letter
    models = share_model(compiled, letter(Party.MODEL_OWNER))
    with pytest.raises(MaterialError, match="another worker or data owner"):
        Worker(plan, letter(Party.ALICE), models[0], tmp_path / "ALICE")
    lock = here.alice.material._lock
    assert lock is not None
    lock.release()  # what the system does for a process that dies
    restarted = Worker(plan, letter(Party.ALICE), models[0], tmp_path / "ALICE")
    restarted.material.add(stale)
    with pytest.raises(MaterialUsedError) as caught:
        next(restarted.answer(begun.for_alice))
    again = here.owner.ask(INPUT, number=caught.value.next_question)
    both = converse_in_process(restarted.answer(again.for_alice), here.bob.answer(again.for_bob))
    logits = here.owner.logits(again, *both)
    assert np.abs(logits - compiled.predict(INPUT[None])).max() <= plan.error
    assert begun.number + 1 < caught.value.next_question <= begun.number + 16
    restarted.close()
    with contextlib.closing(
        Worker(plan, letter(Party.ALICE), models[0], tmp_path / "ALICE")
    ) as after_an_orderly_end:
        assert after_an_orderly_end.material.next_question == caught.value.next_question + 1
    strange = tmp_path / "ALICE" / "strange.material"
    strange.write_bytes(here.provider.provision(1).bob)
    with pytest.raises(MessageError, match="remove it"):
        Worker(plan, letter(Party.ALICE), models[0], tmp_path / "ALICE")
    strange.unlink()
    Worker(plan, letter(Party.ALICE), models[0], tmp_path / "ALICE").close()
    other = Provider(plan)
    theirs = share_model(compiled, other.letter(Party.MODEL_OWNER))[0]
    with pytest.raises(MaterialError, match="another session"):
        Worker(plan, other.letter(Party.ALICE), theirs, tmp_path / "ALICE")


def test_bundles_are_removed_when_they_are_spent(compiled: SharedModel, tmp_path: Path) -> None:
    here = session(compiled, 2, tmp_path)
    here.provision(1)
    assert here.alice.material.left == 3
    for _ in range(2):
        here.logits(INPUT)
    assert [path.name for path in (tmp_path / "ALICE").glob("*.material")] == [
        "000000000002.material"
    ]
    assert (tmp_path / "ALICE" / "000000000002.material").stat().st_mode & 0o777 == 0o600


def _dies(*_: object) -> None:
    raise MemoryError


def test_material_is_let_go_by_another_thread_than_took_it(tmp_path: Path) -> None:
    def opened() -> MaterialStore:
        return MaterialStore(Party.ALICE, bytes(16), bytes(32), 8, tmp_path)

    store = opened()
    with ThreadPoolExecutor(1) as elsewhere:
        busy = elsewhere.submit(opened).exception()
        assert isinstance(busy, MaterialError)
        assert "another worker or data owner" in str(busy)
        elsewhere.submit(store.close).result()
    opened().close()


def test_a_provider_deals_no_number_twice(
    compiled: SharedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, plan = tmp_path / "state", compiled.plan
    first = Provider(plan, state)
    letters = [first.letter(Party(number)) for number in range(4)]
    assert (first.provision(3).first, first.provision(2).first) == (0, 3)
    again = Provider(plan, state)
    assert [again.letter(Party(number)) for number in range(4)] == letters
    assert again.provision(1).first == 5
    assert first.provision(2).first == 6  # which knows of the other's
    with monkeypatch.context() as patched:
        patched.setattr(provider_module, "deal", _dies)
        with pytest.raises(MemoryError):
            again.provision(4)
    assert Provider(plan, state).provision(1).first == 12
    assert state.stat().st_mode & 0o777 == 0o600
    state.write_bytes(state.read_bytes()[:-30])
    with pytest.raises(MaterialError, match="restore it"):
        Provider(plan, state)
    shape, model = made("one logit")
    another = compile_model(model, input_shape=shape, input_range=(-1, 1)).plan
    Provider(another, tmp_path / "another")
    with pytest.raises(MaterialError, match="another plan"):
        Provider(plan, tmp_path / "another")


def test_no_two_questions_share_material(compiled: SharedModel) -> None:
    """Nor do a question's pieces: no word of 16 bytes stands twice, but correction words."""
    here = session(compiled)
    made_of = here.provider.provision(5)
    key = here.alice.material
    key.add(made_of.alice)
    here.bob.material.add(made_of.bob)
    stores = key, here.bob.material
    seeds = [
        bytes(store.read(number)[start : start + 32])
        for store in stores
        for number in range(5)
        for start in (0, 32, 64)
    ]
    assert len(set(seeds)) == 25  # both workers know a question's third one


def test_no_message_is_sealed_as_another() -> None:
    """A question's exchanges have one key, for both directions: their nonces must differ."""
    head = Head(Tag.EXCHANGE, Party.ALICE, Party.BOB, bytes(16))
    sealed = {seal(head, b"", bytes(32))[-28:-16] for _ in range(1000)}
    assert len(sealed) == 1000


def test_inputs_out_of_range_are_refused(compiled: SharedModel) -> None:
    here = session(compiled, 1)
    for wrong in (1.001, -2.0, np.nan):
        with pytest.raises(OutOfRangeError, match="feature 3"):
            here.owner.ask(np.where(np.arange(10) == 3, wrong, 0.0))
    with pytest.raises(ValueError, match="1 to 2 of them"):
        here.owner.ask(np.zeros((3, 10)))
    assert here.owner.material.left == 1  # nothing was spent


@pytest.mark.parametrize("name", ["relu", "pools"])
def test_altered_plans_are_refused_or_are_other_plans(name: str) -> None:
    shape, model = made(name)
    plan = compile_model(model, input_shape=shape, input_range=(-1, 1), answer="class").plan
    written = plan.to_bytes()
    for altered in mutations(written, 600, seed=5):
        try:
            other = Plan.from_bytes(altered)
        except MessageError:
            continue
        assert other.digest != plan.digest
        assert other.to_bytes() == altered


def test_a_plan_is_what_it_was_made_of(compiled: SharedModel) -> None:
    wider = dataclasses.replace(compiled.plan, batch_size=3)
    assert wider.digest != compiled.plan.digest
    with pytest.raises(MessageError, match="another plan"):
        DataOwner(wider, Provider(compiled.plan).letter(Party.DATA_OWNER))
