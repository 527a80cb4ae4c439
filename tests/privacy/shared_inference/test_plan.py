"""Plans of strangers: ranges, lengths and memory; and formats, which change with their numbers."""

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from torch import nn

from privacy.mechanisms.randomness import KeyStream, Randomness
from privacy.shared_inference import Party, Plan, Provider, compile_model
from privacy.shared_inference.errors import CannotPlanError, MessageError
from privacy.shared_inference.frames import State
from privacy.shared_inference.material import deal
from privacy.shared_inference.material_files import Bundle, MaterialStore
from privacy.shared_inference.messages import Head, Letter, Tag, seal, unseal

FORMAT = 3


def written(
    *steps: dict[str, Any], arrays: tuple[int, ...] = (), version: int = FORMAT, **fields: Any
) -> bytes:
    """A plan for four inputs and one logit as it is written, whatever it says."""
    head = {
        "input_shape": [4],
        "input_range": [-1.0, 1.0],
        "batch_size": 1,
        "logits": 1,
        "answer": "logits",
        "input_bits": 0,
        "answer_bits": 0,
        "error": 0.0,
        "public_model": False,
        "steps": steps,
    }
    body = json.dumps(head | fields, separators=(",", ":")).encode()
    return (
        struct.pack("<4sBQ", b"BSSP", version, len(body))
        + body
        + struct.pack(f"<{len(arrays)}i", *arrays)
    )


def affine(source: int, columns: int, rows: int = 1) -> dict[str, Any]:
    return {"kind": "affine", "terms": [[source, rows, columns, -1, -1]]}


def line(**fields: Any) -> dict[str, Any]:
    own = {"source": 0, "size": 4, "width": 8, "shift": 0, "offset": 1, "slope": 2}
    return {"kind": "line", **own, "knots": [-3, 5], "turns": [1, -2]} | fields


def largest(**fields: Any) -> dict[str, Any]:
    return {"kind": "largest", "source": 0, "width": 8, "window": 4, "places": 4} | fields


def with_line(**fields: Any) -> bytes:
    return written(line(**fields), affine(1, 4))


def with_windows(*places: int, **fields: Any) -> bytes:
    return written(largest(**fields), affine(1, 1), arrays=places)


BIG = 1 << 26
HOSTILE = {
    "knots that fall": with_line(knots=[5, -3]),
    "a knot twice": with_line(knots=[5, 5]),
    "no knots": with_line(knots=[], turns=[]),
    "turns too few": with_line(turns=[1]),
    "knots too many": with_line(knots=[*range(257)], turns=[1] * 257),
    "a knot too large": with_line(knots=[0, (1 << 62) + 1]),
    "a knot in words": with_line(knots="01"),
    "a slope too large": with_line(slope=1 << 63),
    "a slope with a point": with_line(slope=1.0),
    "a turn too large": with_line(turns=[1, -(1 << 63)]),
    "an offset too large": with_line(offset=-(1 << 63)),
    "a line too wide": with_line(width=63),
    "a line too narrow": with_line(width=1),
    "a line cut too far": with_line(shift=62),
    "a line of more bits than a number": with_line(width=62, shift=3),
    "a ReLU of more bits than a number": written(
        {"kind": "relu", "source": 0, "size": 4, "width": 62, "shift": 3}, affine(1, 4)
    ),
    "a model that somebody knows": written(line(), affine(1, 4), public_model=1),
    "a line of other size": with_line(size=3),
    "a line of the future": with_line(source=1),
    "a line at the end": written(line(), logits=4),
    "a line for a class": written(affine(0, 4), line(source=1, size=1), answer="class", logits=4),
    "windows of two": with_windows(0, 1, 2, 3, window=2),
    "windows of five": with_windows(0, 1, 2, 3, 3, window=5, places=5),
    "windows of truth": with_windows(0, 1, 2, 3, window=True),
    "a window cut short": with_windows(0, 1, 2, 3, window=3),
    "no windows": with_windows(places=0),
    "places below zero": with_windows(0, 1, 2, -1),
    "places beyond": with_windows(0, 1, 2, 4),
    "places missing": with_windows(0, 1, 2),
    "places too many": with_windows(0, 1, 2, 3, 3),
    "windows too wide": with_windows(0, 1, 2, 3, width=63),
    "windows of the future": with_windows(0, 1, 2, 3, source=1),
    "two maxima for a class": written(
        largest(places=8), arrays=(0, 1, 2, 3, 3, 2, 1, 0), answer="class", logits=4
    ),
    "axes without end": written(affine(0, 1), input_shape=[1] * 33),
    "a model for a whole disk": written(affine(0, 4, BIG), affine(1, BIG, BIG), affine(2, BIG)),
    "questions for a whole disk": written(line(), affine(1, 4), batch_size=BIG),
    "comparisons for a whole disk": written(
        line(size=BIG, knots=[*range(256)], turns=[1] * 256), affine(1, BIG), input_shape=[BIG]
    ),
    "windows for a whole disk": written(
        largest(), affine(1, 1), arrays=(0, 1, 2, 3), batch_size=BIG
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_plans_that_do_not_hold_together_are_refused(case: str) -> None:
    with pytest.raises(MessageError):
        Plan.from_bytes(HOSTILE[case])


def test_the_same_plans_without_the_fault_are_read() -> None:
    relu = {"kind": "relu", "source": 0, "size": 4, "width": 61, "shift": 3}
    for good in (
        written(relu, affine(1, 4)),
        with_line(),
        with_windows(0, 1, 2, 3),
        with_windows(0, 1, 3, window=3, places=3),
    ):
        assert Plan.from_bytes(good).to_bytes() == good


def test_a_question_that_no_reader_would_take_is_not_compiled() -> None:
    with pytest.raises(CannotPlanError, match="smaller batch_size"):
        compile_model(nn.Linear(8, 2), input_shape=8, input_range=(0, 1), batch_size=1 << 25)


EVERY_STEP = written(
    affine(0, 4, 8),
    {"kind": "relu", "source": 1, "size": 8, "width": 12, "shift": 3},
    {"kind": "square", "source": 2, "size": 8, "shift": 1},
    line(source=3, size=8, width=16, shift=2),
    {"kind": "maximum", "source": 4, "width": 20, "places": [2, 2, 4]},
    largest(source=5, width=24, places=8),
    {"kind": "affine", "terms": [[6, 1, 2, 2, 1], [0, 1, 4, -1, -1]]},
    arrays=(*(0, 2), *(1, 3), *(4, 5, 6, 7), *(0, 1, 2, 3, 2, 3, 4, 5), *(0, 1), 1),
    batch_size=3,
)


class Known(Randomness):
    """The same bytes for everybody."""

    private = False

    def __init__(self) -> None:
        self._stream = KeyStream(bytes(32))

    def bytes(self, count: int) -> bytes:
        return self._stream.bytes(count)


def test_a_format_that_changes_gets_a_new_number() -> None:
    """Where this fails on purpose, count the version in ``plan`` or ``messages`` up, then these."""
    plan = Plan.from_bytes(EVERY_STEP)
    assert plan.to_bytes() == EVERY_STEP
    session = bytes(range(16))
    head = Head(Tag.EXCHANGE, Party.BOB, Party.ALICE, session, 5, 6)
    bundle = Bundle(Party.BOB, session, bytes(32), 7, 8, 9)
    alice, bob, owner = deal(plan, np.arange(plan.weights, dtype=np.uint64), Known())
    formats = {
        "plan": EVERY_STEP,
        "material of alice": alice,
        "material of bob": bob,
        "material of the data owner": owner,
        "message": head.to_bytes(),
        "bundle": bundle.header,
        "letter": Letter(Party.DATA_OWNER, session, (bytes(32),)).to_bytes(plan),
        "state": State(bytes(32), 1, 2).to_bytes(),
    }
    assert {name: hashlib.sha256(made).hexdigest()[:16] for name, made in formats.items()} == {
        "plan": "9e801b6312ef5a77",
        "material of alice": "5157f96ab555da92",
        "material of bob": "fa018a19f404f3c9",
        "material of the data owner": "2a9a641d63a599ad",
        "message": "12df8cd7e2e66699",
        "bundle": "3250121b3c195590",
        "letter": "8dc806c6a4906f5b",
        "state": "bc46af79e96bc03a",
    }


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_what_another_release_wrote_is_refused_by_name(other: int) -> None:
    with pytest.raises(MessageError, match=f"a plan of format {other}.*compile the model anew"):
        Plan.from_bytes(written(line(), affine(1, 4), version=other))
    plan = Plan.from_bytes(with_line())
    provider = Provider(plan)
    letter = bytearray(provider.letter(Party.DATA_OWNER))
    session = Letter.from_bytes(bytes(letter), plan, Party.DATA_OWNER).session
    letter[4] = other
    with pytest.raises(MessageError, match=f"the letter is of format {other}.*new session"):
        Letter.from_bytes(bytes(letter), plan, Party.DATA_OWNER)
    material = bytearray(Bundle(Party.BOB, session, bytes(32), 0, 1, 64).header)
    material[4] = other
    with pytest.raises(MessageError, match=f"the material is of format {other}.*new session"):
        MaterialStore(Party.BOB, session, bytes(32), 64).add(bytes(material))
    head = Head(Tag.MODEL, Party.MODEL_OWNER, Party.BOB, session)
    message = bytearray(seal(head, bytes(8), bytes(32)))
    message[4] = other
    with pytest.raises(MessageError, match=f"the model is of format {other}.*new session"):
        unseal(bytes(message), head, bytes(32), 8)
