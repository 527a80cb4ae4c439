"""JSON that another may have written: of files, and of messages."""

import json
from typing import Any

_DEEPEST = 64  # no document of ours is deeper than a dozen


def read_json(text: str | bytes | bytearray) -> Any:
    """The value that a JSON text holds.

    Nested as deeply as another's text may be, a value would end not only ``json`` with a
    ``RecursionError``, but whatever walks over it later.

    Raises
    ------
    json.JSONDecodeError
        A ``ValueError``: if it is no JSON, or lists and objects are more than 64 deep.
    UnicodeDecodeError
        Another: if its bytes are no text.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    brackets = ("{", "[") if isinstance(text, str) else (b"{", b"[")
    if sum(map(text.count, brackets)) <= _DEEPEST:  # type: ignore[arg-type]
        return value
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for whole in level
            if isinstance(whole, dict | list)
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, dict | list)
        ]
        if not level:
            return value
    raise _too_deep()


def _too_deep() -> json.JSONDecodeError:
    return json.JSONDecodeError(f"lists and objects are more than {_DEEPEST} deep", "", 0)
