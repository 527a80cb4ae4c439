"""A plan from a stranger is refused where it is read, or works to the end."""

import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.inference import (
    ClassOnly,
    DataOwner,
    FloodedLogits,
    InputContract,
    Plan,
    RoundedLogits,
    Square,
    TopClasses,
    accept_plan,
    compile_model,
)
from privacy.inference.errors import PlanRefusedError, ReleaseError

CONTRACT = InputContract((8,), (-1.0, 1.0), classes=3)
MODELS = {
    "slots": (nn.Sequential(nn.Linear(8, 4), Square(), nn.Linear(4, 3)), 1),
    "coefficients": (nn.Sequential(nn.Linear(8, 3)), 1),
    "batch": (nn.Sequential(nn.Linear(8, 4), Square(), nn.Linear(4, 3)), 5),
}
_compiled: dict[str, dict[str, Any]] = {}


def content(kind: str) -> dict[str, Any]:
    """What a service that means well sends, as JSON reads it."""
    if kind not in _compiled:
        model, batch_size = MODELS[kind]
        plan = compile_model(
            model, input_shape=(8,), input_range=(-1.0, 1.0), batch_size=batch_size
        ).plan
        _compiled[kind] = json.loads(plan.to_json())
    return _compiled[kind]


def use(plan: Plan) -> None:
    """All that a data owner does with a plan."""
    assert str(plan)
    assert plan.answer_bytes > 0
    for policy in (ClassOnly(0.5), TopClasses(2), RoundedLogits(0), FloodedLogits(1, 1)):
        try:
            policy.check(plan)
        except ReleaseError:
            continue
    owner = DataOwner(plan)
    assert len(owner.public_material()) == plan.public_bytes
    images = np.linspace(-1.0, 1.0, 8)
    query = owner.encrypt(images if plan.batch_size == 1 else images[None])
    assert len(query) == plan.query_bytes


numbers = st.one_of(
    st.integers(-70, 70),
    st.sampled_from([2**31, 2**63, 10**400, -(10**400), 4096, 8192, 16384]),
    st.floats(),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


def _mutated(found: Any, draw: Any) -> Any:
    """Another value, or the same with something within it changed."""
    if isinstance(found, list | dict) and found and draw(st.booleans()):
        place = draw(
            st.sampled_from(sorted(found) if isinstance(found, dict) else range(len(found)))
        )
        changed = found.copy()
        changed[place] = _mutated(found[place], draw)
        return changed
    if type(found) is int and draw(st.booleans()):
        return found + draw(st.sampled_from([-1, 1, 2, -found, 0.5]))
    return draw(values)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(sorted(MODELS)), data=st.data())
def test_a_plan_is_refused_or_works(kind: str, data: st.DataObject) -> None:
    good = content(kind)
    field = data.draw(st.sampled_from(sorted(good)))
    changed = {**good, field: _mutated(good[field], data.draw)}
    try:
        plan = accept_plan(json.dumps(changed), CONTRACT)
    except PlanRefusedError:
        return
    use(plan)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_good_plan_works(kind: str) -> None:
    use(accept_plan(json.dumps(content(kind)), CONTRACT))


def packed(places: Any) -> str:
    return base64.b64encode(zlib.compress(np.asarray(places, dtype="<i4").tobytes())).decode()


NAN = float("nan")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packing", 5),
        ("packing", "x"),
        ("packing", base64.b64encode(b"no zlib stream").decode()),
        ("packing", packed([0])),
        ("packing", packed(np.zeros(2**22))),
        ("logit_bits", None),
        ("logit_bits", 10**6),
        ("error_bits", True),
        ("worst_error_bits", "x"),
        ("worst_error_bits", 10**9),
        ("answer_scale_bits", -(10**5)),
        ("relin_level", 1.5),
        ("relin_level", True),
        ("operations", 1),
        ("operations", {"add": "many"}),
        ("operations", {"\x1b[2J": 1}),
        ("predicted_ms", None),
        ("predicted_ms", NAN),
        ("headroom_bits", NAN),
        ("headroom_bits", "x"),
        ("batch_size", 0),
        ("batch_size", True),
        ("prime_bits", [NAN, 48, 57]),
        ("prime_bits", [60.0, 48, 57]),
        ("prime_bits", [-200, 218, 200]),
        ("prime_bits", [1, 48, 57]),
        ("prime_bits", [50, 51, 50]),
        ("answer_level", 0),
        ("answer_level", 9),
        ("answer_level", True),
        ("degree", 8192.0),
        ("rotation_levels", [[2, 1]]),
        ("rotation_levels", [[3, 1], [3, 1]]),
        ("rotation_levels", [[10**9 + 1, 1]]),
        ("rotation_levels", [3]),
        ("answers", [[0, 1, 2], []]),
        ("answers", [[0, 1, NAN]]),
        ("packing_shape", [1, 1, 10**12]),
        ("packing_kind", []),
        ("packing_kind", {}),
        ("model_version", "\x1b[2J" * 8),
        ("parties", 5),
        ("blind_layers", [5]),
        ("blind_layers", [[1]]),
        ("blind_layers", [[1, [[1, 1, [0], []]]]]),
        ("blind_layers", [[1, []]]),
        ("blind_sources", [1]),
        ("input_shape", 8),
        ("input_range", "01"),
        ("input_range", [-1.0, NAN]),
    ],
)
def test_a_field_of_another_kind_is_refused_by_name(field: str, value: Any) -> None:
    text = json.dumps({**content("slots"), field: value})
    with pytest.raises(PlanRefusedError, match=field):
        accept_plan(text, CONTRACT)


@pytest.mark.parametrize("text", ["", "5", "[]", '"x"', "null", "[[" * 100_000, "[[[1], 2]]"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanRefusedError):
        accept_plan(text, CONTRACT)
    with pytest.raises(ValueError):
        Plan.from_json(text)


def test_an_older_plan_is_refused_by_its_version() -> None:
    older = {key: value for key, value in content("slots").items() if key != "answer_level"}
    text = json.dumps({**older, "format": 2, "prime_bits": [60, 60, 59]})
    words = "of format 4 but of 2, of an older release; compile the model again"
    with pytest.raises(PlanRefusedError, match=words):
        accept_plan(text, CONTRACT)


def test_keys_of_a_ring_without_a_special_prime_are_refused() -> None:
    text = json.dumps({**content("coefficients"), "relin_level": 1})
    with pytest.raises(PlanRefusedError, match="special prime"):
        accept_plan(text, CONTRACT)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("coefficients", [2**31 - 1, 4]),
        ("coefficients", [2**26 // 4 + 1, 4]),
        ("slots", [1, 2**31 - 1]),
        ("slots", [2, 2**26 // 2048]),
    ],
)
def test_a_plan_whose_packing_would_fill_memory_is_refused_where_it_is_read(
    kind: str, shape: list[int]
) -> None:
    """Also by whoever reads it without expectations: 10 KB of zeros unpacked are 10 MB."""
    if kind == "slots":
        shape = [*shape, content(kind)["degree"] // 2]
    text = json.dumps({**content(kind), "packing_shape": shape, "packing": packed(np.zeros(2**20))})
    with pytest.raises(ValueError, match=r"packing_shape .* at most 67,108,864 places"):
        Plan.from_json(text)
