"""Encrypted questions over HTTPS: who is answered, who is refused, and what survives."""

import hmac
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flower_app.processes.certificates import Certificates
from privacy.inference import (
    ClassOnly,
    CompiledModel,
    DataOwner,
    EvaluatorPool,
    InputContract,
    Square,
    compile_model,
)
from privacy.inference_service import InsecureNoAuthentication, KeyFile, OwnerSession, ServiceClient
from privacy.inference_service.errors import ServiceError
from tests.privacy.inference.evaluator.evaluator_program import start_process
from tests.privacy.inference_service.serving import (
    CONTRACT,
    Asking,
    Service,
    X,
    serving,
    small_model,
    worker_with_keys,
)

GUESS = "bloomseal_guess"
Serve = Callable[..., AbstractContextManager[Service]]


def model_with_keys() -> CompiledModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), Square(), nn.Linear(64, 3))
    return compile_model(model, input_shape=(8,), input_range=(-1.0, 1.0))


@contextmanager
def refused(code: str, status: int) -> Iterator["pytest.ExceptionInfo[ServiceError]"]:
    with pytest.raises(ServiceError) as caught:
        yield caught
    assert (caught.value.code, caught.value.status) == (code, status), caught.value


def test_an_owner_is_answered_as_in_the_clear(service: Service) -> None:
    right = small_model().predict(X).argmax(axis=1).tolist()
    with service.client() as client:
        session = OwnerSession(client, client.plan(CONTRACT))
        assert [session.ask(x)[0].label for x in X] == right
        assert session.keys_made == 1
        session.end()


def test_nobody_is_let_in_without_a_token(service: Service) -> None:
    for name in (None, GUESS, ""):
        with service.client(name) as client:
            for act in (
                client.plan_text,
                lambda client=client: client.send_keys(b"x"),
                lambda client=client: client.remove_keys("0" * 32),
                lambda client=client: client.ask("0" * 32, b"x", answer_bytes=1),
                lambda client=client: client._request("GET", "/metrics", largest=1 << 20),
            ):
                with refused("no-token", 401):
                    act()
            body, _ = client._request("GET", "/health", largest=1 << 20)
            assert body == b'{"status":"ok"}'
    service.token_file.remove("ada")
    with service.client("ada") as client, refused("no-token", 401):
        client.plan_text()


def test_metrics_are_the_operators_alone(service: Service) -> None:
    ada = service.owner()
    ada.label()
    with refused("wrong-token", 403):
        ada.client._request("GET", "/metrics", largest=1 << 20)
    with service.client("operator") as operator:
        text = operator._request("GET", "/metrics", largest=1 << 20)[0].decode()
        assert 'bloomseal_requests_total{endpoint="answers",outcome="done"} 1.0' in text
        assert "bloomseal_owners 1.0" in text
        assert "bloomseal_evaluation_seconds_count 1.0" in text
        assert "ada" not in text
        with refused("wrong-token", 403):
            operator.plan_text()


def test_no_owner_is_answered_under_anothers_keys(service: Service) -> None:
    ada, ben = service.owner("ada"), service.owner("ben")
    query = ada.query()
    with refused("no-keys", 404):
        ben.send(query, key_id=ada.key_id)
    with refused("refused", 400):
        ben.send(query)
    with refused("no-keys", 404):
        ben.client.remove_keys(ada.key_id)
    assert ada.keys.decrypt(ada.send(query)).labels


def test_a_query_is_answered_once_whichever_process_answers(service: Service) -> None:
    ada = service.owner()
    query = ada.query()
    ada.send(query)
    with refused("answered-before", 409):
        ada.send(query)
    worker_with_keys(service.pool).kill()
    assert ada.label() >= 0  # in another process
    with refused("answered-before", 409):
        ada.send(query)
    ada.client.send_keys(ada.material)  # the same keys again bring nothing back
    with refused("answered-before", 409):
        ada.send(query)


def test_what_was_tampered_with_is_refused_and_the_service_lives_on(service: Service) -> None:
    ada = service.owner()
    query = ada.query()
    for place in (0, 5, 40, 60, 80, len(query) // 2, len(query) - 1):
        mutant = bytearray(query)
        mutant[place] ^= 1
        with refused("refused", 400):
            ada.send(bytes(mutant))
    for wrong in (b"", query[:-1], query[:200]):
        with refused("wrong-size", 400):
            ada.send(wrong)
    with refused("too-large", 413):
        ada.send(query + b"\0")
    with refused("no-such-page", 404):
        ada.client._request("GET", "/v1/nothing", largest=1 << 16)
    assert ada.keys.decrypt(ada.send(query)).labels


def test_a_secret_key_is_refused_as_keys(service: Service) -> None:
    ada = service.owner()
    secret, size = ada.keys.secret_state(), ada.plan.public_bytes
    altered = ada.material[:-1] + bytes([ada.material[-1] ^ 1])
    for wrong in (secret[:size].ljust(size, b"\0"), altered):
        with refused("refused", 400):
            ada.client.send_keys(wrong)
    assert ada.label() >= 0  # the keys before stay


def test_sizes_are_looked_at_before_a_body_is_read(serve: Serve) -> None:
    with serve(body_seconds=0.2) as service:
        ada = service.owner()
        for length, status in (
            ("Content-Length: 1000000000000\r\n", b"413"),
            ("Content-Length: 5\r\n", b"400"),
            ("Transfer-Encoding: chunked\r\n", b"411"),
            # Of the right size, but it never comes.
            (f"Content-Length: {ada.plan.query_bytes}\r\n", b"100"),
        ):
            with service.connect() as raw:
                raw.sendall(ada.head(length))
                answer = raw.recv(100_000)
                assert answer.startswith(b"HTTP/1.1 " + status), answer
                if status == b"100":
                    assert b" 408 " in raw.recv(100_000)
        assert ada.label() >= 0


def test_a_process_that_is_ended_in_mid_answer_costs_one_request(service: Service) -> None:
    ada, ben = service.owner("ada"), service.owner("ben")
    worker = worker_with_keys(service.pool)
    worker.timeout = 0.2
    os.kill(worker.pid or 0, signal.SIGSTOP)
    with refused("too-slow", 504) as caught:
        ada.label()
    assert "code" not in str(caught.value)  # its last words are for the operator
    assert ada.label() >= 0
    assert ben.label() >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit is kept")
def test_a_process_that_needs_too_much_memory_costs_one_request(
    certificates: Certificates, tmp_path: Path
) -> None:
    # Keys of megabytes: those of a linear model fit into memory that the process has already.
    with (
        EvaluatorPool(partial(start_process, model_with_keys), processes=1) as pool,
        serving(pool, certificates, tmp_path) as service,
    ):
        ada = service.owner()
        worker = worker_with_keys(service.pool)
        _, most = resource.prlimit(worker.pid or 0, resource.RLIMIT_AS)
        assert most != resource.RLIM_INFINITY
        resource.prlimit(worker.pid or 0, resource.RLIMIT_AS, (1 << 20, 1 << 20))
        ben = service.client("ben")
        material = DataOwner(ada.plan).public_material(binding=ben.key_binding())
        with refused("evaluator-failed", 500):
            ben.send_keys(material)
        assert ben.send_keys(material)
        assert ada.label() >= 0


def test_a_full_queue_is_an_error_and_nobody_occupies_most_of_it(serve: Serve) -> None:
    with serve(queue=1) as service, ExitStack() as stack:  # and two that are answered: 3 places
        owners = [service.owner(name) for name in ("ada", "ben", "cyd", "dan")]
        raws = []
        for owner in owners[:3]:
            raw = stack.enter_context(service.connect())
            raw.sendall(owner.head(f"Content-Length: {owner.plan.query_bytes}\r\n"))
            assert raw.recv(1000).startswith(b"HTTP/1.1 100")  # its body is being waited for
            raws.append(raw)
            if owner is owners[0]:
                with refused("busy", 429):
                    owner.label()
        query = owners[3].query()
        with refused("busy", 503) as caught:
            owners[3].send(query)
        assert caught.value.retry_after == 1
        for owner, raw in zip(owners, raws, strict=False):
            raw.sendall(owner.query())
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")
        # It was not taken when it was refused.
        assert owners[3].keys.decrypt(owners[3].send(query)).labels


def test_an_owner_who_asks_too_often_waits_and_others_do_not(serve: Serve) -> None:
    with serve(requests_per_minute=3) as service:
        ada, ben = service.owner("ada"), service.owner("ben")  # sending keys was one
        ada.label(), ada.label()
        with refused("too-many", 429) as caught:
            ada.label()
        assert caught.value.retry_after == 20 + 1
        assert ben.label() >= 0
        waited = []

        def wait(seconds: float) -> None:
            waited.append(seconds)
            service.clock.now += seconds

        service.clock.now += 60
        session = OwnerSession(ada.client, ada.plan, wait=wait)
        assert [session.ask(X[0])[0].label for _ in range(4)]
        assert waited == [21.0, 20.0]


def test_keys_expire_and_their_memory_goes(serve: Serve) -> None:
    with serve(key_hours=2.0) as service:
        ada, ben = service.owner("ada"), service.owner("ben")
        session = OwnerSession(ada.client, ada.plan)
        session.ask(X[0])
        first = session._name
        service.clock.now += 2 * 3600 - 1
        session.ask(X[0])
        service.clock.now += 1
        with refused("keys-gone", 410) as caught:
            ben.label()
        assert "make new keys" in caught.value.remedy
        assert not service.pool._held
        assert not any(worker.slots for worker in service.pool._workers)
        with refused("keys-gone", 410):
            ben.client.send_keys(ben.material)  # else its answered queries could be asked again
        assert session.ask(X[0])[0].labels  # the session makes new ones by itself
        assert session.keys_made == 2
        assert session._name != first


def test_one_token_holds_several_sets_of_keys_and_no_more(serve: Serve) -> None:
    with serve(key_sets=2) as service:
        first, second = service.owner("ada"), service.owner("ada")
        query = first.query()
        with refused("refused", 400):
            second.send(query)  # under its own keys alone
        assert first.keys.decrypt(first.send(query)).labels
        third = service.owner("ada")
        assert len(service.pool._held) == 2
        with refused("keys-gone", 410):  # used least lately
            second.label()
        assert first.label() >= 0
        assert third.label() >= 0
        third.client.remove_keys(third.key_id)
        first.client.remove_keys(first.key_id)
        with refused("keys-gone", 410):
            third.label()
        assert not service.pool._held


@pytest.mark.parametrize("key_sets", [1, 2, 8])
def test_askers_of_one_token_do_not_break_each_other(serve: Serve, key_sets: int) -> None:
    """Also where there is room for fewer of them: what made room is made anew."""
    right = small_model().predict(X).argmax(axis=1).tolist()
    with serve(key_sets=key_sets) as service:
        sessions = []
        for _ in range(3):
            client = service.client("ada")
            sessions.append(OwnerSession(client, client.plan(CONTRACT)))
        for _ in range(2):
            for session in sessions:
                assert [session.ask(x)[0].label for x in X] == right
        made = [session.keys_made for session in sessions]
        assert made == ([1, 1, 1] if key_sets == 8 else [2, 2, 2])
        for session in sessions:
            session.end()  # what made room cannot be taken back, which is no error
        assert not service.pool._held


def test_askers_at_once_are_all_answered(service: Service) -> None:
    right = small_model().predict(X).argmax(axis=1).tolist() * 5

    def ask(_: int) -> list[int]:
        client = service.client("ada")
        session = OwnerSession(client, client.plan(CONTRACT), wait=lambda _: None)
        return [session.ask(x)[0].label for x in [*X] * 5]

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(ask, range(3))) == [right] * 3


@pytest.mark.parametrize("losses", [1, 9, 10])
def test_keys_that_are_lost_again_and_again_are_made_after_pauses(
    serve: Serve, losses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where many more ask at once, under one token, than it may have sets of keys."""
    right = int(small_model().predict(X)[0].argmax())
    with serve(key_sets=1) as service:
        pauses = []
        for _ in range(2):
            client = service.client("ada")
            waited: list[float] = []
            session = OwnerSession(client, client.plan(CONTRACT), wait=waited.append)
            left = losses

            def ask_late(*question: Any, ask: Any = client.ask, **rest: Any) -> Any:
                nonlocal left
                if left:
                    left -= 1
                    service.owner("ada")  # whose keys take the place
                return ask(*question, **rest)

            monkeypatch.setattr(client, "ask", ask_late)
            if losses == 10:
                with refused("busy", 429) as caught:
                    session.ask(X[0])
                assert "--key-sets" in caught.value.remedy
            else:
                assert session.ask(X[0])[0].label == right
                assert session.keys_made == losses + 1
            pauses.append(waited)
        assert [len(waited) for waited in pauses] == [min(losses, 9) - 1] * 2
        assert all(0 <= seconds <= 16 for waited in pauses for seconds in waited)
        assert losses == 1 or pauses[0] != pauses[1]  # askers do not come back together


def test_without_authentication_askers_have_the_room_of_all(
    pool: EvaluatorPool, certificates: Certificates, tmp_path: Path
) -> None:
    right = small_model().predict(X).argmax(axis=1).tolist()
    everybody = InsecureNoAuthentication()
    with serving(
        pool, certificates, tmp_path, authentication=everybody, key_sets=1, owners=3
    ) as service:
        sessions = []
        for name in (None, None, "whoever"):
            client = service.client(name)
            sessions.append(OwnerSession(client, client.plan(CONTRACT)))
        for session in sessions * 2:
            assert [session.ask(x)[0].label for x in X] == right
        assert [session.keys_made for session in sessions] == [1, 1, 1]


def test_captured_material_is_worth_nothing_under_another_token(service: Service) -> None:
    ada, ben = service.owner("ada"), service.owner("ben")
    query = ada.query()
    ada.send(query)
    with refused("refused", 400) as caught:
        ben.client.send_keys(ada.material)
    assert "bound to something else" in str(caught.value)
    with refused("no-keys", 404):
        ben.send(query, key_id=ada.key_id)
    # Whoever reads material can bind it anew; its session key is known, whatever else is altered.
    forged = _bound(ada.material, ben.client.key_binding())
    with refused("keys-gone", 410):
        ben.client.send_keys(forged)
    ada.client.remove_keys(ada.key_id)
    with refused("keys-gone", 410):
        ben.client.send_keys(forged)
    with refused("keys-gone", 410):
        ada.client.send_keys(_bound(ada.material, ada.client.key_binding(), altered=True))
    assert ben.label() >= 0
    assert len(service.pool._held) == 1
    # A name's next token has nothing of what its last one sent.
    service.token_file.remove("ben")
    token = service.token_file.add("ben")
    with service.client(token) as client:
        with refused("no-keys", 404):
            client.ask(ben.key_id, ben.query(), answer_bytes=ben.plan.answer_bytes)
        with refused("refused", 400):
            client.send_keys(ben.material)


def _bound(material: bytes, binding: bytes, *, altered: bool = False) -> bytes:
    """What somebody makes of material who can read it: bound to something else, and signed."""
    signed = bytearray(material[:-32])
    signed[-1] ^= altered
    session_key = bytes(signed[70:102])
    return bytes(signed) + hmac.digest(session_key, bytes(signed) + binding, "sha256")


def test_material_can_be_bound_anew_by_whoever_reads_it(service: Service) -> None:
    """The control of the test before: such material is good where its keys were never seen."""
    ada = service.client("ada")
    owner = DataOwner(ada.plan(CONTRACT))
    name = ada.send_keys(_bound(owner.public_material(), ada.key_binding()))
    query = owner.encrypt(X[0])
    answer, _ = ada.ask(name, query, answer_bytes=owner.plan.answer_bytes)
    assert owner.decrypt(answer).labels


def test_what_was_captured_before_a_restart_is_refused_after_it(serve: Serve) -> None:
    with serve() as service:
        ada = service.owner("ada")
        query = ada.query()
        ada.send(query)
        keys = service.token_file
    with serve(tokens=keys) as service:
        client = service.client(ada.token)
        with refused("refused", 400):
            client.send_keys(ada.material)
        with refused("no-keys", 404):
            client.ask(ada.key_id, query, answer_bytes=ada.plan.answer_bytes)


def test_keys_are_made_anew_after_a_restart_without_anybodys_doing(
    serve: Serve, tmp_path: Path
) -> None:
    right = small_model().predict(X).argmax(axis=1).tolist()
    token, tokens = "", None
    for x, label in zip(X[:2], right[:2], strict=True):
        with serve(tokens=tokens) as service, KeyFile(tmp_path / "my.keys", "horse") as file:
            tokens = service.token_file
            token = token or service.tokens["ada"]
            client = service.client(token)
            session = OwnerSession(client, client.plan(CONTRACT), key_file=file)
            assert session.ask(x)[0].label == label
            assert session.keys_made == 1


def one_logit_model() -> CompiledModel:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 1))
    return compile_model(layers, input_shape=(8,), input_range=(-1.0, 1.0))


def test_one_logit_is_decided_at_the_owners_threshold(
    certificates: Certificates, tmp_path: Path
) -> None:
    logits = one_logit_model().predict(X)[:, 0]
    with (
        EvaluatorPool(partial(start_process, one_logit_model), processes=1) as pool,
        serving(pool, certificates, tmp_path) as service,
    ):
        client = service.client("ada")
        plan = client.plan(InputContract((8,), (-1.0, 1.0), classes=2))
        for threshold in (0.0, float(np.sort(logits)[1:3].mean())):
            session = OwnerSession(client, plan, release=ClassOnly(threshold))
            answers = [session.ask(x)[0] for x in X]
            assert [answer.label for answer in answers] == (logits > threshold).astype(int).tolist()
            assert all(answer.logits is None for answer in answers)
        assert 0 < sum(answer.label for answer in answers) < len(X)


def test_no_more_owners_than_there_is_room_for(serve: Serve) -> None:
    with serve(owners=2) as service:
        ada, ben = service.owner("ada"), service.owner("ben")
        with refused("full", 503):
            service.owner("cyd")
        assert service.owner("ben").label() >= 0  # who has room may send more keys
        assert ada.label() >= 0
        ada.client.remove_keys(ada.key_id)
        assert service.owner("cyd").label() >= 0
        assert ben.label() >= 0


def test_a_client_trusts_no_stranger_and_speaks_no_plain_http(service: Service) -> None:
    with pytest.raises(ValueError, match="without TLS"):
        ServiceClient(service.url.replace("https", "http"), token=GUESS)
    with ServiceClient(service.url, token=GUESS) as stranger:
        with refused("untrusted", 0) as caught:
            stranger.plan_text()
        assert "ca=" in caught.value.remedy


def test_a_client_reads_no_more_than_an_answer(service: Service) -> None:
    ada = service.owner()
    with refused("too-large", 0):
        ada.client._request("GET", "/v1/plan", largest=10)
    assert isinstance(ada, Asking)
