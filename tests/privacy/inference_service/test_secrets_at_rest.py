"""Tokens and secret keys on disk."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from privacy.inference import DataOwner
from privacy.inference_service import KeyFile, OwnerSession, ServiceClient, TokenFile
from privacy.inference_service.errors import (
    KeyFileError,
    KeyFileInUseError,
    ServiceError,
    TokenFileError,
)
from privacy.inference_service.key_file import StoredKeys
from tests.privacy.inference_service.serving import CONTRACT, Service, X, small_model


def test_keys_last_until_the_next_session(service: Service, tmp_path: Path) -> None:
    path, right = tmp_path / "owner.keys", small_model().predict(X).argmax(axis=1).tolist()
    made, labels = 0, []
    for x in X[:2]:
        with service.client() as client, KeyFile(path, "correct horse") as file:
            session = OwnerSession(client, client.plan(CONTRACT), key_file=file)
            labels.append(session.ask(x)[0].label)
            session.end()
            made += session.keys_made
    assert (labels, made) == (right[:2], 1)
    assert path.stat().st_mode & 0o777 == 0o600


class LosesAnswers(ServiceClient):
    """A client whose connection breaks once the service has the query."""

    def ask(self, name: str, query: bytes, *, answer_bytes: int) -> tuple[bytes, float]:
        super().ask(name, query, answer_bytes=answer_bytes)
        raise ServiceError("unreachable", 0, "the connection broke", "ask again")


def test_a_session_that_failed_uses_no_number_of_a_query_twice(
    service: Service, tmp_path: Path
) -> None:
    path, authority = tmp_path / "owner.keys", service.certificates.ca
    with (
        LosesAnswers(service.url, token=service.tokens["ada"], ca=authority) as client,
        KeyFile(path, "correct horse") as file,
    ):
        session = OwnerSession(client, client.plan(CONTRACT), key_file=file)
        with pytest.raises(ServiceError, match="broke"):
            session.ask(X[0])
    with service.client() as client, KeyFile(path, "correct horse") as file:
        session = OwnerSession(client, client.plan(CONTRACT), key_file=file)
        assert session.ask(X[0])[0].labels
        assert session.keys_made == 0


def test_what_lies_on_disk_is_ciphertext(tmp_path: Path) -> None:
    path, state = tmp_path / "owner.keys", DataOwner(small_model().plan).secret_state()
    with KeyFile(path, "correct horse") as file:
        file.save(StoredKeys("name", "digest", state))
        first = path.read_bytes()
        file.save(StoredKeys("name", "digest", state))
        second = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert first[-64:] != second[-64:]
    plain = [state[i : i + 16] for i in range(0, len(state) - 16, 997)]
    plain += [base64.b64encode(state)[i : i + 16] for i in range(0, len(state), 997)]
    assert not any(part in first or part in second for part in plain if part.strip(b"\0"))
    path.write_bytes(second[:-1] + bytes([second[-1] ^ 1]))
    with KeyFile(path, "correct horse") as file, pytest.raises(KeyFileError, match="not open"):
        file.load()
    path.write_bytes(second)
    with KeyFile(path, "wrong horse") as file, pytest.raises(KeyFileError, match="passphrase"):
        file.load()
    with KeyFile(path, "correct horse") as file:
        assert file.load() == StoredKeys("name", "digest", state)
        with pytest.raises(KeyFileError, match="another session"), KeyFile(path, "correct horse"):
            pass
        path.chmod(0o644)
        with pytest.raises(KeyFileError, match="chmod 600"):
            file.load()
    with pytest.raises(KeyFileError, match="empty"):
        KeyFile(path, "")


def test_tokens_are_kept_as_hashes_and_taken_back_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    file, running = TokenFile(path), TokenFile(path)
    token, other = file.add("ada"), file.add("watch", role="operator")
    assert path.stat().st_mode & 0o777 == 0o600
    assert token not in path.read_text()
    assert running.caller(token) == file.callers()[0]
    holder = running.caller(other)
    assert holder is not None
    assert (holder.name, holder.role) == ("watch", "operator")
    assert running.caller(token[:-1]) is None
    with pytest.raises(TokenFileError, match="remove it first"):
        file.add("ada")
    with pytest.raises(TokenFileError, match="not a name"):
        file.add("../ada")
    file.remove("ada")
    assert running.caller(token) is None
    path.chmod(0o640)
    with pytest.raises(TokenFileError, match="chmod 600"):
        running.caller(other)


def test_a_file_is_entered_in_one_thread_and_left_in_another(tmp_path: Path) -> None:
    path = tmp_path / "owner.keys"
    file = KeyFile(path, "correct horse")
    with ThreadPoolExecutor(1) as elsewhere:
        file.__enter__()
        for other in (file, KeyFile(path, "correct horse")):
            busy = elsewhere.submit(other.__enter__).exception()
            assert isinstance(busy, KeyFileInUseError)
        elsewhere.submit(file.__exit__, None, None, None).result()
    with KeyFile(path, "correct horse"):
        pass
