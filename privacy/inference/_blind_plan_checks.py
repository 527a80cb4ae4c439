"""Checks of a plan's layers for encrypted weights, which a third party evaluates for strangers.

The evaluation follows the plan. A plan that passes reads values that are there, at levels that they
have, with keys that the data owner sends, and rotates a map's values no more often than a
ciphertext has slots.
"""

import math
from typing import TYPE_CHECKING

from privacy.inference.ckks import galois_element
from privacy.inference.rescaling import FIRST, rescaled_after

if TYPE_CHECKING:
    from privacy.inference.plan import BlindLayer, BlindMap, Plan


def check_blind_layers(plan: "Plan") -> None:
    """Refuse layers that cannot be evaluated, with what is wrong with them.

    Raises
    ------
    ValueError
        If a layer reads what was not made before it or more levels than that has, names steps
        without keys, or takes more rotations than any packing.
    """
    layers, last = plan.blind_layers, plan.blind_sources
    if bool(last) != bool(layers):
        raise ValueError("blind_sources are given if, and only if, blind_layers are")
    if not plan.parties:
        if layers:
            raise ValueError("blind_layers are given without parties, who they are for")
        return
    query, read = plan.levels, 0
    levels = [query]
    for index, layer in enumerate(layers):
        if not layer.maps:
            levels.append(query)
            read += 1
            continue
        if any(each.source > index for each in layer.maps):
            raise ValueError("blind_layers read values that were not made before them")
        read += sum(len(each.products) for each in layer.maps if each.source == 0)
        result = layer.entry_level - rescaled_after(layer.rescale)
        if result < 1 or layer.level > min(levels[each.source] for each in layer.maps):
            raise ValueError("blind_layers read more levels than a source has, or leave none")
        if any(each.source == 0 for each in layer.maps) and layer.level != query:
            raise ValueError(f"blind_layers read the query at another level than its {query}")
        _check_relinearised(plan, layer.level)
        for each in layer.maps:
            _check_map(plan, layer, each)
        levels.append(result)
    if layers and read != plan.ciphertexts:
        raise ValueError(f"blind_layers read {read} ciphertexts of {plan.ciphertexts}")
    if list(last) != sorted(set(last)) or any(source > len(layers) for source in last):
        raise ValueError("blind_sources name layers that there are not, or not rising")
    there = [levels[source] for source in last] or [query]
    if plan.answer_level > min(there) or (not layers and plan.answer_level != query):
        raise ValueError(f"answer_level is {plan.answer_level}; the last layer reads {there}")
    _check_relinearised(plan, plan.answer_level)


def _check_relinearised(plan: "Plan", level: int) -> None:
    if level > plan.relin_level:
        raise ValueError(f"relin_level is {plan.relin_level}, and products are made at {level}")


def _check_map(plan: "Plan", layer: "BlindLayer", each: "BlindMap") -> None:
    """A map's products and rotations."""
    slots, products = plan.degree // 2, list(each.products)
    added = layer.entry_level if layer.rescale == FIRST else layer.level
    steps = [(step, added) for group in each.sums for step in group]
    if each.source == 0:
        rising = products == list(range(len(products)))
    else:
        rising = products == sorted(set(products)) and products[-1] < slots
        babies = {step % each.window for step in products} - {0}
        giants = [each.window] if products[-1] >= each.window else []
        steps += [(step, layer.level) for step in (*babies, *giants)]
    if not rising:
        raise ValueError("blind_layers name products that there are not, or not rising")
    # What is added up, and its conjugate: each group multiplies how many values a slot has summed.
    if math.prod(1 + len(group) for group in each.sums) > 2 * slots:
        raise ValueError(f"blind_layers add up more rotations than a ciphertext's {slots} slots")
    keys = dict(plan.rotation_levels)
    for step, level in set(steps):
        if step >= slots or keys.get(galois_element(step, plan.degree), 0) < level:
            raise ValueError(
                f"blind_layers rotate by {step} at level {level}, and rotation_levels have "
                "no key for that"
            )
