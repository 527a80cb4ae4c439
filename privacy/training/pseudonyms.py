"""One person under one name in several silos, without the identifier: keyed hashes of ids."""

import hashlib
import hmac
import unicodedata
from collections.abc import Sequence

from privacy.arguments import shown
from privacy.mechanisms.person_sums import PersonIds, person_named

_LEAST_KEY = 32  # bytes: as long as the hash


def keyed_person_ids(person_ids: PersonIds, key: bytes) -> list[str]:
    """HMAC-SHA-256 (RFC 2104) of each row's id, for silos that hold the same persons.

    Silos that share a key give the same person the same text, and ``Persons`` takes it as an id.
    Whoever compares the silos' lists sees which persons are in two of them, so that one of the two
    can leave them out (``in_earlier_silos``): then no person is in two silos, and the ε of a run is
    theirs whole.

    **Guarantee.** Whoever has lists and not the key learns of them how many rows each person has
    and who is on several lists, as by random names (if HMAC-SHA-256 is a pseudorandom function).

    **Assumptions.** The key is random, of at least 32 bytes, made for one project, and known to
    none but the silos; the silos write identifiers alike.

    **Not covered.** Whoever has the key and a list of identifiers, such as all insurance numbers,
    finds out who is on a list: let the silos compare nothing themselves, and let whoever compares
    never see the key. How many persons there are, and are in common, is exact and outside ε.

    Parameters
    ----------
    person_ids : sequence of int or str, or an array of them
        As for ``Persons``: whole numbers are equal however they are written. Of text, equal
        characters in another encoding (NFC) are equal, capitals are not small letters.
    key : bytes
        ``secrets.token_bytes(32)``, brought to every silo on a way of its own.

    Returns
    -------
    list of str
        64 hexadecimal digits a row; "" where the id is missing, or neither a whole number nor
        text: ``Persons`` takes such a row as nobody's.

    Raises
    ------
    TypeError, ValueError
        If ``key`` is no bytes, or too few; or ``person_ids`` is no sequence of ids.

    Examples
    --------
    >>> key = bytes(range(32))  # secrets.token_bytes(32) in use
    >>> first, again, other = keyed_person_ids(["0042", 42, "Ann"], key)
    >>> first == again, first == other, len(first)
    (True, False, 64)
    """
    if not isinstance(key, bytes | bytearray):
        raise TypeError(f"key is {type(key).__name__}; give bytes: secrets.token_bytes(32)")
    if len(key) < _LEAST_KEY:
        raise ValueError(
            f"key has {len(key)} bytes; give at least {_LEAST_KEY}: secrets.token_bytes(32)"
        )
    if isinstance(person_ids, str | bytes) or not hasattr(person_ids, "__iter__"):
        raise TypeError(f"person_ids is {shown(person_ids)}; give one id a row, each an int or str")
    listed = getattr(person_ids, "tolist", None)  # arrays and tensors
    ids = list(person_ids) if listed is None else listed()
    return [_hashed(person_named(given), bytes(key)) for given in ids]


def in_earlier_silos(lists: Sequence[Sequence[str]]) -> list[set[str]]:
    """For each silo the names that a silo before it has too: whom it leaves out.

    For whoever compares the lists of ``keyed_person_ids``, one a silo, and tells each silo its own
    set. Which persons a silo leaves out depends on nobody else's records.
    """
    seen: set[str] = set()
    left_out = []
    for names in lists:
        own = set(names) - {""}
        left_out.append(own & seen)
        seen |= own
    return left_out


def _hashed(person: int | str | None, key: bytes) -> str:
    if person is None:
        return ""
    kind = "n" if isinstance(person, int) else "t"
    text = unicodedata.normalize("NFC", f"{kind}{person}")
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
