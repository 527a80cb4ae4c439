"""The keys of a node's ``--node-config``, which its owner writes, and their values."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flower_app.errors import SettingError
from flower_app.settings import SECURE_AGGREGATION, without_former_names

OWN_PREFIX = "x-"  # of the owner's keys for other programs


@dataclass(frozen=True)
class _Kind:
    """The values of a key: in words, and as a check."""

    words: str
    takes: Callable[[Any], bool]


def _number(words: str, takes: Callable[[float], bool]) -> _Kind:
    def good(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        try:
            return math.isfinite(value) and takes(value)
        except OverflowError:  # a whole number beyond all floating-point ones
            return False

    return _Kind(words, good)


def _whole(least: int) -> _Kind:
    return _Kind(f"a whole number of at least {least}", lambda v: type(v) is int and v >= least)


_TEXT = _Kind("a path in quotes", lambda value: isinstance(value, str))
_SWITCH = _Kind("true or false", lambda value: isinstance(value, bool))
_POSITIVE = _number("a finite number above 0", lambda value: value > 0)
_AT_LEAST_ZERO = _number("a finite number of at least 0", lambda value: value >= 0)

NODE_KEYS: Mapping[str, _Kind] = {
    "data-dir": _TEXT,
    "state-dir": _TEXT,
    "test-dir": _TEXT,
    "dataset-name": _Kind(
        "a name in quotes for where this node's data comes from",
        lambda value: isinstance(value, str) and bool(value.strip()),
    ),
    "max-record-epsilon": _POSITIVE,
    "max-record-delta": _number(
        "a number strictly between 0 and 1, such as 1e-5", lambda value: 1e-300 < value < 1
    ),
    "min-record-noise-multiplier": _AT_LEAST_ZERO,
    "allow-unnoised-training": _SWITCH,
    "report-epsilon": _POSITIVE,
    "report-total-epsilon": _POSITIVE,
    "publish-report": _SWITCH,
    "secure-aggregation": _Kind(
        f"one of {', '.join(SECURE_AGGREGATION)}",
        lambda value: isinstance(value, str) and value in SECURE_AGGREGATION,
    ),
    "min-clients": _whole(3),
    "max-corrupt-fraction": _number(
        "the fraction of a round's clients that may collude, of at least 0 and below 0.5",
        lambda value: 0 <= value < 0.5,
    ),
    "clipping-norm": _POSITIVE,
    "weight-cap": _AT_LEAST_ZERO,
    "signing-key": _TEXT,
    "client-public-keys": _TEXT,
    "partition-id": _whole(0),
    "num-partitions": _whole(1),
}
_FORMER_KEYS: Mapping[str, str] = {
    "minimum-cohort": "min-clients",
    "corrupt": "max-corrupt-fraction",
    "identity": "signing-key",
    "identities": "client-public-keys",
    "min-record-noise": "min-record-noise-multiplier",
}


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse an unknown key, whose limit nobody would enforce, or a value of the wrong kind.

    Keys that begin with ``x-`` are for other programs.

    Raises
    ------
    SettingError
        Naming the key, its value and the values it takes, or the nearest known key.
    """
    try:
        without_former_names(config, _FORMER_KEYS)
    except SettingError as error:
        raise SettingError(f"this node's --node-config is wrong; {error}") from error
    for key, value in config.items():
        if key.startswith(OWN_PREFIX):
            continue
        if key in NODE_KEYS:
            if not NODE_KEYS[key].takes(value):
                raise wrong_key(key, value, NODE_KEYS[key].words)
            continue
        written = key.strip().lower().replace("_", "-").replace(".", "-")
        (near,) = difflib.get_close_matches(written, NODE_KEYS, n=1, cutoff=0.0)
        raise wrong_key(
            key,
            value,
            f"written {near}, if that is meant (a key for other programs begins with {OWN_PREFIX})",
        )


def own_folder(config: Mapping[str, Any], key: str, purpose: str) -> Path:
    """A folder of ``--node-config``: absolute, or from ~.

    A relative one would be another folder, with a new ledger, for a SuperNode started elsewhere.

    Raises
    ------
    SettingError
        If it is not named, relative, or can be no path.
    """
    folder = config.get(key, "")
    if not folder:
        raise SettingError(
            f"{key} = '' is wrong; start this SuperNode with "
            f"--node-config '{key}=\"/path/to/{purpose.replace(' ', '-')}\"'"
        )
    try:
        path = Path(folder).expanduser()
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # such as "~" and a name of nobody
        raise wrong_key(key, folder, f"a path: {error}") from error
    if not path.is_absolute():
        raise wrong_key(key, folder, f"an absolute path, such as {str(resolved)!r}")
    return resolved


def wrong_key(key: str, value: object, expected: str) -> SettingError:
    """The error for a key's owner."""
    return SettingError(
        f"{key} = {value!r:.200} in this node's --node-config is wrong; it must be {expected}"
    )
