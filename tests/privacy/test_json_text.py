"""JSON of others: whatever is wrong with it is a ValueError, and so is too much depth."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from privacy.accounting import read_ledger
from privacy.accounting.errors import LedgerError
from privacy.correlated_noise import NoiseInstance
from privacy.correlated_noise.errors import NoiseSecretError
from privacy.inference import Plan
from privacy.inference_service.errors import TokenFileError
from privacy.inference_service.tokens import TokenFile
from privacy.json_text import read_json
from privacy.shared_inference.frames import refused
from strategies import Population


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_values_are_those_of_json() -> None:
    document = {"a": [1, 2.5, None, {"b": "[[[" * 99}], "c": {}}
    assert read_json(json.dumps(document)) == document
    assert read_json(json.dumps(document).encode()) == document
    assert read_json(nested(64)) == json.loads(nested(64))
    wide = [[n] for n in range(1000)]
    assert read_json(json.dumps(wide)) == wide


@pytest.mark.parametrize("depth", [65, 900, 10**6])
@pytest.mark.parametrize("wrap", ["{}", '{{"a": {}}}', '[0, {{"b": {}}}]'])
def test_what_is_nested_too_deeply_is_no_json(depth: int, wrap: str) -> None:
    for text in (wrap.format(nested(depth)), wrap.format(nested(depth)).encode()):
        with pytest.raises(json.JSONDecodeError, match="more than 64 deep"):
            read_json(text)
    with pytest.raises(ValueError, match="Expecting value"):
        read_json("[" * 40)


READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "past noise": (NoiseInstance.load, NoiseSecretError),
    "a ledger": (read_ledger, LedgerError),
    "a population": (Population.load, ValueError),
    "tokens": (lambda path: TokenFile(path).callers(), TokenFileError),
    "a plan": (lambda path: Plan.from_json(path.read_text()), ValueError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "text", [nested(10**5), "[" * 10**5, nested(900)], ids=["deep", "open", "900"]
)
def test_no_file_of_brackets_ends_who_reads_it(reader: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(0o600)
    read, error = READERS[reader]
    with pytest.raises(error):
        read(path)


def test_no_refusal_of_brackets_ends_who_asked() -> None:
    assert "cannot be read" in str(refused(nested(10**5).encode(), "worker 0"))
