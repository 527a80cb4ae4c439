"""The encrypted test-time round over Flower's messages, with real ClientApps."""

import base64
import hashlib
import hmac
import json
import math
import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import PrivacyBudgetExhausted
from scipy import stats

from privacy.accounting import (
    Full,
    GaussianRelease,
    read_ledger,
)
from privacy.accounting.errors import LedgerError
from privacy.inference import DataOwner, EvaluatorProcess, Plan, accept_plan
from privacy.inference.errors import PlanRefusedError
from privacy.mechanisms import SystemRandomness
from strategies import Budget, EncryptedRound, NoisedMetrics, PublicMetrics, noised_accuracy
from strategies.encrypted_round import NoisedAccuracy
from strategies.encrypted_round.errors import ReportRefusedError, RoundError
from strategies.encrypted_round.node import make_questions, private_folder
from strategies.lost_clients import operator_log
from tests.strategies.encrypted_round.federation import (
    CONTRACT,
    IMAGES,
    Misbehave,
    Shared,
    Wiretap,
    accuracy_of,
    client_app,
    data_of,
    every_byte,
    model,
    start_evaluator,
)

RECORD, TYPE = "encrypted-round", "query.encrypted_round"
SECRETS = "encrypted-round.secrets"


@pytest.fixture(scope="module")
def evaluator() -> Iterator[EvaluatorProcess]:
    with start_evaluator() as process:
        yield process


@pytest.fixture(scope="module")
def plan() -> Plan:
    return model().plan


def a_round(evaluator: EvaluatorProcess, population: int, **settings: Any) -> EncryptedRound:
    usual: dict[str, Any] = {
        "population": population,
        "start_evaluator": lambda: Shared(evaluator),
        "images": IMAGES,
        "metrics": PublicMetrics(),
        "budget": Budget(math.inf, 1e-5),
        "workers": 1,
    }
    return EncryptedRound(**(usual | settings))


def test_reports_are_the_clear_models_accuracies(
    evaluator: EvaluatorProcess, tmp_path: Path
) -> None:
    grid = Wiretap(client_app(tmp_path), 4)
    result = a_round(evaluator, 4).run(grid)
    assert result.accuracy == pytest.approx(np.mean([accuracy_of(k) for k in range(4)]))
    assert (result.asked, result.answered, result.images) == (4, 4, IMAGES)
    assert result.ms_per_query is not None
    assert result.ms_per_query > 0
    questions = [m for m in grid.seen if m.has_content() and RECORD in m.content.config_records]
    sizes = {
        len(record["material"]) + sum(map(len, record["queries"]))  # type: ignore[arg-type]
        for m in questions
        if (record := m.content.config_records[RECORD])["stage"] == "questions"
    }
    assert sizes == {result.bytes_from_node}


def test_no_secret_and_no_image_is_in_any_message(
    evaluator: EvaluatorProcess, plan: Plan, tmp_path: Path
) -> None:
    grid = Wiretap(client_app(tmp_path), 2)
    secrets: list[bytes] = []

    def look(reply: Message) -> None:
        for path in tmp_path.rglob(SECRETS):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            stored = json.loads(path.read_text())
            owner = DataOwner.from_secret_state(plan, base64.b64decode(stored["owner"]))
            (residues,) = owner._secret.residues[:1]
            secrets.extend([residues[:64].astype("<u8").tobytes(), path.read_bytes()])

    grid.after = look
    a_round(evaluator, 2).run(grid)
    assert len(secrets) >= 4
    seen = every_byte(grid.seen)
    for secret in secrets:
        assert secret not in seen
    for partition in range(2):
        inputs, labels = data_of(partition)
        for row in inputs:
            for form in (row.astype("<f8"), row.astype("<f4"), row.astype("<f2")):
                assert form[:3].tobytes() not in seen
            assert repr(float(row[0])).encode() not in seen
        assert labels.astype(np.uint8).tobytes() not in seen
        assert repr(labels.tolist()).encode()[1:-1] not in seen
    # The search can find what is there: the plan, and public keys.
    assert plan.model_version.encode() in seen
    reports = [m for m in grid.seen if m.has_content() and m.content.metric_records]
    assert [dict(r) for m in reports for r in m.content.metric_records.values()] == [
        {"accuracy": accuracy_of(k)} for k in range(2)
    ]
    assert not list(tmp_path.rglob(SECRETS)), "secrets outlived the round"
    assert all(not grid.context(node).state for node in (1, 2)), "secrets in Flower's state"


def test_each_round_has_keys_of_its_own(evaluator: EvaluatorProcess, tmp_path: Path) -> None:
    grid = Wiretap(client_app(tmp_path), 1)
    for _ in range(2):
        a_round(evaluator, 1).run(grid)
    first, second = (
        m.content.config_records[RECORD]["material"]
        for m in grid.seen
        if m.has_content()
        and RECORD in m.content.config_records
        and "material" in m.content.config_records[RECORD]
    )
    assert first != second


# Nodes that misbehave ---------------------------------------------------------------------------


def _questions(change: Any) -> Misbehave:
    """Alter the node's first message."""

    def bad(message: Message, reply: Message, folder: Path) -> Message:
        if message.content.config_records[RECORD]["stage"] == "plan":
            record = reply.content.config_records[RECORD]
            change(record, folder, message)
        return reply

    return bad


def _secret_as_public_key(record: ConfigRecord, folder: Path, message: Message) -> None:
    """A well-formed, authenticated message whose public key is the secret one."""
    secrets = json.loads((folder / SECRETS).read_text())
    plan = Plan.from_json(secrets["plan"])
    owner = DataOwner.from_secret_state(plan, base64.b64decode(secrets["owner"]))
    residues = owner._secret.residues
    material = bytearray(record["material"])  # type: ignore[arg-type]
    body = 70  # the header's length
    secret = residues.astype("<u8").tobytes()
    material[body + 32 : body + 32 + len(secret)] = secret
    key = bytes(material[body : body + 32])
    signed = bytes(material[:-32])
    record["material"] = signed + hmac.new(key, signed, hashlib.sha256).digest()


def _secret_beside(record: ConfigRecord, folder: Path, message: Message) -> None:
    record["secret-key"] = (folder / SECRETS).read_bytes()


def _garbage(record: ConfigRecord, folder: Path, message: Message) -> None:
    record["material"] = os.urandom(len(record["material"]))  # type: ignore[arg-type]


def _oversized(record: ConfigRecord, folder: Path, message: Message) -> None:
    """Good questions, one more than was asked for."""
    secrets = json.loads((folder / SECRETS).read_text())
    owner = DataOwner.from_secret_state(
        Plan.from_json(secrets["plan"]), base64.b64decode(secrets["owner"])
    )
    record["queries"] = [*record["queries"], owner.encrypt(np.zeros(6))]  # type: ignore[misc]


def _swollen(record: ConfigRecord, folder: Path, message: Message) -> None:
    record["queries"] = [b"\0" * 30_000_000]


def _of_another_plan(record: ConfigRecord, folder: Path, message: Message) -> None:
    text = message.content.config_records[RECORD]["plan"]
    other = replace(Plan.from_json(str(text)), logit_bits=20)
    owner = DataOwner(other)
    record["material"] = owner.public_material()
    record["queries"] = [owner.encrypt(np.zeros(6))]


def _not_bytes(record: ConfigRecord, folder: Path, message: Message) -> None:
    record["queries"] = [1, 2, 3]


def _report(records: dict[str, Any]) -> Misbehave:
    def bad(message: Message, reply: Message, folder: Path) -> Message:
        if message.content.config_records[RECORD]["stage"] == "answers":
            return Message(RecordDict(records), reply_to=message)
        return reply

    return bad


def _raise(message: Message, reply: Message, folder: Path) -> Message:
    raise RuntimeError("this node is broken")


def _error(message: Message, reply: Message, folder: Path) -> Message:
    return Message(Error(2, "no"), reply_to=message)


MISBEHAVIOUR: dict[str, Misbehave] = {
    "a secret key as the public one": _questions(_secret_as_public_key),
    "a secret key beside": _questions(_secret_beside),
    "garbage": _questions(_garbage),
    "too many questions": _questions(_oversized),
    "a huge question": _questions(_swollen),
    "keys of another plan": _questions(_of_another_plan),
    "numbers for questions": _questions(_not_bytes),
    "not a number": _report({"metrics": MetricRecord({"accuracy": float("nan")})}),
    "infinite": _report({"metrics": MetricRecord({"accuracy": float("inf")})}),
    "a list": _report({"metrics": MetricRecord({"accuracy": [0.5, 0.5]})}),
    "more than asked": _report({"metrics": MetricRecord({"accuracy": 0.5, "images": 12})}),
    "nothing": _report({}),
    "an exception": _raise,
    "an error": _error,
}


def test_a_node_that_misbehaves_costs_only_itself(
    evaluator: EvaluatorProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {k + 1: fault for k, fault in enumerate(MISBEHAVIOUR.values())}
    nodes = len(bad) + 2  # a good one first and last
    grid = Wiretap(client_app(tmp_path, misbehave=bad), nodes)
    caplog.set_level("INFO", logger="bloomseal.operator")
    operator_log.addHandler(caplog.handler)
    try:
        result = a_round(evaluator, nodes).run(grid)
    finally:
        operator_log.removeHandler(caplog.handler)
    assert result.answered == 2
    assert result.accuracy == pytest.approx((accuracy_of(0) + accuracy_of(nodes - 1)) / 2)
    assert "the message holds a secret key" in caplog.text
    assert "something beside public keys" in caplog.text
    assert "another plan" in caplog.text
    assert "does not hold 1 to 12 questions" in caplog.text
    who = [r.getMessage() for r in caplog.records if r.name == "bloomseal.operator"]
    dropped = [line for line in who if "refused" in line or "dropped" in line]
    assert len(dropped) == len(bad)
    # The console is told each kind once, and neither who it was nor what it wrote.
    dropped = [line for line in caplog.messages if "will drop others like it" in line]
    kinds = ("not such as the plan asks", "is not one finite number", "raised an exception")
    assert [sum(kind in line for line in dropped) for kind in kinds] == [1, 1, 1]
    assert len(dropped) == len(kinds)
    assert "secret key" not in "".join(dropped)


def test_a_node_whose_questions_are_refused_gets_the_reason(
    evaluator: EvaluatorProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Wiretap(client_app(tmp_path, misbehave={1: _questions(_garbage)}), 3)
    result = a_round(evaluator, 3).run(grid)
    assert result.answered == 2
    said = [r.getMessage() for r in caplog.records if r.name == "strategies.encrypted_round.node"]
    (line,) = said
    assert "the server refused this node's questions: 'its keys and questions are not" in line
    refused = [
        m.metadata.dst_node_id
        for m in grid.seen
        if m.has_content()
        and RECORD in m.content.config_records
        and m.content.config_records[RECORD]["stage"] == "refusal"
    ]
    assert len(refused) == 1


def test_a_node_that_declines_says_why_in_its_own_log(
    evaluator: EvaluatorProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It knows why, and is not told of it again."""
    grid = Wiretap(client_app(tmp_path, agree=False), 2)
    a_round(evaluator, 2).run(grid)
    own = [r.getMessage() for r in caplog.records if r.name == "strategies.encrypted_round.node"]
    assert len(own) == 2
    assert all("its owner has not agreed" in line for line in own)
    (console,) = [line for line in caplog.messages if "will drop others like it" in line]
    assert "the node declines" in console
    assert b"refusal" not in every_byte(grid.seen)


def test_a_node_that_is_away_is_no_fault(
    evaluator: EvaluatorProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = Wiretap(client_app(tmp_path), 3)
    grid.offline.add(2)
    assert a_round(evaluator, 3).run(grid).answered == 2
    assert "will drop others like it" not in caplog.text


def test_no_node_counts_for_more_than_its_share(
    evaluator: EvaluatorProcess, tmp_path: Path
) -> None:
    boast = {1: _report({"metrics": MetricRecord({"accuracy": 1e9})})}
    grid = Wiretap(client_app(tmp_path, misbehave=boast), 4)
    result = a_round(evaluator, 4).run(grid)
    assert result.accuracy is not None
    honest = np.mean([accuracy_of(k) for k in (0, 2, 3)])
    assert abs(result.accuracy - honest) <= (1.5 - honest) / 4 + 1e-9


def test_a_node_that_vanishes_costs_only_itself(
    evaluator: EvaluatorProcess, tmp_path: Path
) -> None:
    grid = Wiretap(client_app(tmp_path), 3)

    def vanish(reply: Message) -> None:
        if reply.has_content() and reply.content.config_records:
            grid.offline.add(2)

    grid.after = vanish
    result = a_round(evaluator, 3).run(grid)
    assert result.answered == 2
    assert result.accuracy == pytest.approx((accuracy_of(0) + accuracy_of(2)) / 2)


def test_an_evaluator_that_dies_is_replaced(evaluator: EvaluatorProcess, tmp_path: Path) -> None:
    dying = start_evaluator()
    use_keys, sets = dying.use_keys, iter(["its own check's", "the first node's"])

    def hang_over_the_first_nodes(*arguments: Any, **named: Any) -> None:
        if next(sets, None) == "the first node's":
            assert dying.pid is not None
            dying.timeout = 0.2
            os.kill(dying.pid, signal.SIGSTOP)  # it hangs over the keys, and is ended
        use_keys(*arguments, **named)

    dying.use_keys = hang_over_the_first_nodes  # type: ignore[method-assign]
    started = [dying, Shared(evaluator)]
    grid = Wiretap(client_app(tmp_path), 2)
    result = a_round(evaluator, 2, start_evaluator=lambda: started.pop(0)).run(grid)
    assert result.answered == 1
    assert result.accuracy == accuracy_of(1)
    assert not started


# Servers that misbehave -------------------------------------------------------------------------


def _tell(tmp_path: Path, record: dict[str, Any], **settings: Any) -> Message:
    grid = Wiretap(client_app(tmp_path, **settings), 1)
    sent = Message(RecordDict({RECORD: ConfigRecord(record)}), 1, TYPE)
    (reply,) = grid.send_and_receive([sent])
    return reply


def _plan_record(text: str) -> dict[str, Any]:
    return {"stage": "plan", "plan": text, "images": 5, "public-release": False}


def _altered(plan: Plan, **fields: Any) -> str:
    return json.dumps(json.loads(plan.to_json()) | fields)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"prime_bits": [50, 50]}, "128 bits"),
        ({"degree": 1024}, "128 bits"),
        ({"degree": 512}, "degree is 512"),
        ({"input_range": [0.0, 0.5]}, "input_range"),
        ({"input_range": [-1.0, 1.0]}, "input_range"),
        ({"input_shape": [7]}, "input_shape"),
        ({"logits": 2}, "answers read|classes"),
        ({"classes": 3}, "unknown fields"),
        ({"input_scale_bits": 60}, "need not fit"),
        ({"input_scale_bits": 20.5}, "input_scale_bits is 20.5"),
        ({"packing_shape": [9000, 2048]}, "packing_shape is|bytes"),
        ({"rotation_levels": [[2, 1]]}, "rotation_levels"),
        ({"parties": ["a", "b", "c"]}, "relin_level is 0, and products are made at 1"),
        ({"model_version": "z" * 32}, "hexadecimal digits"),
        ({"packing": "no base64"}, "packing cannot be read"),
        ({"format": 9}, "format"),
        ({"extra": 1}, "unknown fields"),
    ],
)
def test_a_node_refuses_a_weak_or_other_plan_by_name(
    plan: Plan, tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    reply = _tell(tmp_path, _plan_record(_altered(plan, **fields)))
    assert reply.has_error()
    assert "PlanRefusedError" in str(reply.error.reason)
    assert re.search(why, str(reply.error.reason))
    assert not list(tmp_path.rglob(SECRETS)), "keys were kept for a plan that was refused"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", "1" * 5_000_000])
def test_a_node_refuses_what_is_no_plan(tmp_path: Path, text: str) -> None:
    reply = _tell(tmp_path, _plan_record(text))
    assert reply.has_error()
    assert "PlanRefusedError" in str(reply.error.reason)


def test_a_node_holds_its_own_limit_of_bytes(plan: Plan, tmp_path: Path) -> None:
    limit = plan.public_bytes + 3 * plan.query_bytes
    accepted = accept_plan(plan.to_json(), replace(CONTRACT, max_bytes=limit))
    asked = make_questions(accepted, *data_of(0), images=10, folder=tmp_path, max_bytes=limit)
    assert len(asked.queries) == 3
    assert len(asked.material) + sum(map(len, asked.queries)) <= limit
    with pytest.raises(PlanRefusedError, match="are allowed"):
        accept_plan(plan.to_json(), replace(CONTRACT, max_bytes=plan.query_bytes))


def test_no_word_about_the_data_leaves_with_an_error(plan: Plan, tmp_path: Path) -> None:
    """Whether an input is out of range, and any other error's words, are the node's own."""
    outside = np.full((4, 6), 123.4375)
    with pytest.raises(RoundError, match="outside the range") as caught:
        make_questions(plan, outside, np.zeros(4), images=4, folder=tmp_path)
    assert "123" not in str(caught.value)

    def broken() -> tuple[Any, Any]:
        raise ValueError("patient 123.4375 is not readable")

    from strategies import answer_encrypted_round

    sent = Message(RecordDict({RECORD: ConfigRecord(_plan_record(plan.to_json()))}), 1, TYPE)
    Wiretap(client_app(tmp_path), 1).push_messages([sent])
    reply = answer_encrypted_round(sent, data=broken, contract=CONTRACT, folder=tmp_path / "node")
    assert "ValueError" in str(reply.error.reason)
    assert "123" not in str(reply.error.reason)


def test_a_node_publishes_nothing_that_its_owner_did_not_agree_to(
    evaluator: EvaluatorProcess, tmp_path: Path
) -> None:
    grid = Wiretap(client_app(tmp_path, agree=False), 2)
    result = a_round(evaluator, 2).run(grid)
    assert (result.answered, result.accuracy) == (0, None)
    reasons = [str(m.error.reason) for m in grid.seen if m.has_error()]
    assert len(reasons) == 2
    assert all("has not agreed" in reason for reason in reasons)
    assert b"material" not in every_byte(grid.seen)


def test_answers_are_read_once_and_all_together(
    evaluator: EvaluatorProcess, plan: Plan, tmp_path: Path
) -> None:
    def ask(folder: Path) -> list[bytes]:
        questions = make_questions(plan, *data_of(0), images=4, folder=private_folder(folder))
        evaluator.use_keys(questions.material)
        return [evaluator.evaluate(query)[0] for query in questions.queries]

    answers = ask(tmp_path / "0")
    record = {"stage": "answers", "answers": answers}
    assert not _tell(tmp_path, record).has_error()
    again = _tell(tmp_path, record)
    assert "no open round" in str(again.error.reason)

    # One image alone is not reported on, and the keys are spent on the attempt.
    some = {"stage": "answers", "answers": ask(tmp_path / "0")[:1]}
    assert "1 answers came to 4 questions" in str(_tell(tmp_path, some).error.reason)
    assert "no open round" in str(_tell(tmp_path, some).error.reason)

    # Answers under the keys of an earlier round.
    ask(tmp_path / "0")
    assert "cannot be read" in str(_tell(tmp_path, record).error.reason)


# A node that restarts ---------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_a_node_restarted_between_the_messages(
    evaluator: EvaluatorProcess, tmp_path: Path, kept: bool
) -> None:
    """It lives on what is in its folder; without that, it fails cleanly."""
    grid = Wiretap(client_app(tmp_path), 2)

    def restart(reply: Message) -> None:
        if reply.has_content() and reply.content.config_records:
            grid._contexts.clear()
            if not kept:
                shutil.rmtree(tmp_path / "1", ignore_errors=True)

    grid.after = restart
    result = a_round(evaluator, 2).run(grid)
    assert result.answered == (2 if kept else 1)
    lost = [str(m.error.reason) for m in grid.seen if m.has_error()]
    assert [("no open round" in reason) for reason in lost] == ([] if kept else [True])


def test_a_damaged_secret_fails_cleanly(
    evaluator: EvaluatorProcess, plan: Plan, tmp_path: Path
) -> None:
    folder = private_folder(tmp_path / "0")
    make_questions(plan, *data_of(0), images=1, folder=folder)
    (folder / SECRETS).write_text("{")
    reply = _tell(tmp_path, {"stage": "answers", "answers": [b""]})
    assert "damaged" in str(reply.error.reason)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with pytest.raises(RoundError, match="0700"):
        private_folder(folder)
    (tmp_path / "link").symlink_to(private_folder(tmp_path / "closed"))
    with pytest.raises(RoundError, match="0700"):
        private_folder(tmp_path / "link")


# What is told -----------------------------------------------------------------------------------


def test_noised_metrics_are_paid_for_and_a_silent_node_is_taken_out(
    evaluator: EvaluatorProcess, tmp_path: Path
) -> None:
    bad = {1: MISBEHAVIOUR["garbage"]}
    grid = Wiretap(client_app(tmp_path, agree=False, misbehave=bad), 4)
    ledger = tmp_path / "ledger.jsonl"
    z = 1e-4
    result = a_round(evaluator, 4, metrics=noised_accuracy(z), ledger=ledger).run(grid, name="me")
    right = np.mean([accuracy_of(k) for k in (0, 2, 3)])
    # Eight standard deviations: false alarm below 1e-14.
    assert result.accuracy_noise is not None
    assert result.accuracy == pytest.approx(right, abs=8 * result.accuracy_noise)
    assert result.answered == pytest.approx(3, abs=8 * 1.5 * z)
    assert result.answered != 3
    assert result.asked == 4
    (record,) = read_ledger(ledger).records
    assert record.event == GaussianRelease(z, Full())
    assert record.run == "me"


def test_the_ledger_is_written_before_noise_is_drawn(
    evaluator: EvaluatorProcess, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.jsonl"

    class PaidRandomness(SystemRandomness):
        def bytes(self, count: int) -> bytes:
            assert len(read_ledger(ledger).records) == 1
            return super().bytes(count)

    settings = {"metrics": noised_accuracy(0.5), "ledger": ledger, "randomness": PaidRandomness()}
    a_round(evaluator, 2, **settings).run(Wiretap(client_app(tmp_path), 2))
    assert len(read_ledger(ledger).records) == 1


def test_without_an_accuracy_no_noise_of_one_is_reported(
    evaluator: EvaluatorProcess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Too few reports, noised (false alarm 3e-5); none, public. A noise of 0 would say "public"."""
    grid = Wiretap(client_app(tmp_path), 2)
    noised = a_round(evaluator, 2, metrics=noised_accuracy(1e4), ledger=tmp_path / "ledger.jsonl")
    result = noised.run(grid)
    assert (result.accuracy, result.accuracy_noise) == (None, None)
    (why,) = [r.getMessage() for r in caplog.records if "accuracy is None" in r.getMessage()]
    assert re.search(r"population of 2 .*well below 0\.354$", why)
    assert result.plan.packing not in repr(result)
    assert len(repr(result)) < 4000
    caplog.clear()
    result = a_round(evaluator, 2).run(Wiretap(client_app(tmp_path, agree=False), 2))
    assert (result.accuracy, result.accuracy_noise) == (None, None)
    assert "accuracy is None: no node sent a report" in caplog.text


def test_a_round_beyond_the_budget_asks_nobody(evaluator: EvaluatorProcess, tmp_path: Path) -> None:
    grid = Wiretap(client_app(tmp_path), 2)
    costly = a_round(
        evaluator,
        2,
        metrics=noised_accuracy(0.5),
        ledger=tmp_path / "ledger.jsonl",
        budget=Budget(1.0, 1e-5),
    )
    with pytest.raises(PrivacyBudgetExhausted, match="would pass the budget"):
        costly.run(grid)
    assert not grid.seen
    assert not read_ledger(tmp_path / "ledger.jsonl").records


def test_the_noise_of_a_released_accuracy_is_as_reported(tmp_path: Path) -> None:
    from privacy.mechanisms import LatticeGaussian, SystemRandomness
    from strategies.encrypted_round.report import node_report, release_noised

    reports = [node_report(0.9, images=5)] * 90
    results = [
        release_noised(
            noised_accuracy(2.0),
            reports,
            population=100,
            mechanism=LatticeGaussian(),
            randomness=SystemRandomness(),
        )
        for _ in range(200)
    ]
    values = np.array([r.accuracy for r in results])
    stated = float(np.mean([r.accuracy_noise for r in results if r.accuracy_noise is not None]))
    spread = 199 * values.var(ddof=1) / stated**2
    # A ratio of Gaussians is nearly Gaussian; 5 % on the deviation on top of a 1e-6 interval.
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], 199)
    assert low * 0.9 < spread < high * 1.1
    assert abs(values.mean() - 0.9) < 5.5 * stated / math.sqrt(200) + 0.001


def test_settings_that_contradict_each_other_are_refused(evaluator: EvaluatorProcess) -> None:
    for settings, why in (
        ({"metrics": noised_accuracy(1.0)}, "ledger"),
        ({"metrics": NoisedMetrics(ranges={"loss": (0, 1)}, noise_multiplier=1.0)}, "ranges"),
        ({"images": 0}, "images"),
    ):
        with pytest.raises(ValueError, match=why):
            a_round(evaluator, 2, **settings)


# What a node tells ------------------------------------------------------------------------------


def test_a_nodes_own_noise_hides_an_image_and_is_counted(tmp_path: Path) -> None:
    report = NoisedAccuracy(epsilon=1.0, total_epsilon=3.0, delta=1e-5)
    spent = []
    for k in range(7):
        report.check(tmp_path)
        report.release(5, 10, tmp_path, name=f"run {k}")
        spent.append(read_ledger(tmp_path / "report-ledger.jsonl").epsilon(1e-5))
    assert spent[0] == pytest.approx(1.0, rel=1e-4)
    assert 2.5 < spent[-1] <= 3.0
    with pytest.raises(ReportRefusedError, match="as often as its owner allows") as caught:
        report.check(tmp_path)
    assert not any(character.isdigit() for character in str(caught.value))
    with pytest.raises(ReportRefusedError):
        report.release(5, 10, tmp_path, name="once more")


def test_a_nodes_noise_has_the_deviation_its_epsilon_asks_for(tmp_path: Path) -> None:
    """Balle and Wang's curve for sensitivity 1, ε = 1, δ = 1e-5: σ = 3.73."""
    report = NoisedAccuracy(epsilon=1.0, total_epsilon=1000.0)
    assert report.noise == pytest.approx(3.7306, abs=1e-3)
    draws = np.array(
        [1000 * report.release(500, 1000, tmp_path, name="r") - 500 for _ in range(150)]
    )
    # Rounding adds 1/12 to the variance; false alarm 1e-6.
    spread = 149 * draws.var(ddof=1) / (report.noise**2 + 1 / 12)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], 149)
    assert low < spread < high
    assert np.allclose(draws, np.round(draws), atol=1e-6)


def test_a_node_that_cannot_pay_says_nothing(evaluator: EvaluatorProcess, tmp_path: Path) -> None:
    """A damaged ledger stops the report before any number leaves."""
    grid = Wiretap(client_app(tmp_path, report=NoisedAccuracy()), 1)
    private_folder(tmp_path / "0")
    (tmp_path / "0" / "report-ledger.jsonl").write_text("{}\n")
    result = a_round(evaluator, 1).run(grid)
    assert result.answered == 0
    assert b"accuracy" not in every_byte(m for m in grid.seen if m.has_content())
    with pytest.raises(LedgerError):
        NoisedAccuracy().release(1, 1, tmp_path / "0", name="r")


def test_a_report_cannot_cost_more_than_all_of_them() -> None:
    with pytest.raises(ValueError, match="total_epsilon"):
        NoisedAccuracy(epsilon=4.0, total_epsilon=3.0)
