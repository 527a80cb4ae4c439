"""What a screen reader has of the page: Chromium's accessibility tree, and the order of keys."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from flower_app.commands.page import page_of
from flower_app.models.specs import MODELS
from privacy.inference_service import Page
from tests.privacy.inference_service.browser.test_page import NAMES, PAGE, READY, opened, status
from tests.privacy.inference_service.serving import Service

Serve = Callable[..., AbstractContextManager[Service]]
OPERATED = ("button", "textbox", "spinbutton", "DisclosureTriangle", "application", "image", "img")
UNITS = ("mmol/l", *[""] * 7)


def tree(context: Any, page: Any) -> list[dict[str, Any]]:
    """The nodes that are not ignored: role, name, description, focusable, heading's level."""
    nodes = context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    result = []
    for node in nodes:
        if not node["ignored"]:
            properties = {each["name"]: each["value"].get("value") for each in node["properties"]}
            read = {key: node.get(key, {}).get("value", "") for key in ("role", "name")}
            result.append(
                read | {"description": node.get("description", {}).get("value", "")} | properties
            )
    return result


@pytest.mark.parametrize(
    ("page_made", "ready"),
    [
        (replace(PAGE, feature_units=UNITS), READY),
        # A model of digits, which this service does not have: the page is there all the same.
        (page_of(MODELS["hog-linear"]), re.compile("^The service's plan was refused")),
    ],
    ids=["numbers", "a drawing"],
)
def test_every_part_has_a_name_and_the_keyboard_passes_them_in_order(
    serve: Serve, context: Any, page_made: Page, ready: re.Pattern[str]
) -> None:
    with serve(page=page_made) as service:
        page = opened(context, service)
        status(page, ready)
        nodes = tree(context, page)
        assert [node for node in nodes if node["role"] in OPERATED and not node["name"]] == []
        roles = [node["role"] for node in nodes]
        assert roles.count("main") == 1
        assert roles.count("status") == 2  # the state, and the answer
        levels = [node["level"] for node in nodes if node["role"] == "heading"]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert {node["name"] for node in nodes if node["role"] == "region"} == {
            "On your side",
            "What the service received",
            "Step by step",
        }
        # Everything that takes the focus takes it in the order of the page, and shows it.
        passed = []
        for _ in range(30):
            page.keyboard.press("Tab")
            place = page.evaluate(
                """() => {
                    const { activeElement: at } = document;
                    const shown = at.type === "file" ? at.nextElementSibling : at;
                    const all = [...document.querySelectorAll("*")];
                    return at === document.body ? null
                        : [all.indexOf(at), getComputedStyle(shown).outlineStyle];
                }"""
            )
            if place is None:
                break
            passed.append(place)
        places = [place for place, _ in passed]
        assert len(places) >= 5
        assert places == sorted(places)
        assert {outline for _, outline in passed} == {"solid"}
        numbers = [node for node in nodes if node["role"] == "textbox"]
        if page_made.inputs == "numbers":
            assert tuple(node["name"] for node in numbers) == NAMES
            assert numbers[0]["description"] == "mmol/l, from -1 to 1"
            assert numbers[1]["description"] == "from -1 to 1"
        else:
            (drawing,) = [node for node in nodes if node["role"] == "application"]
            assert drawing["name"] == "Drawing area"
            assert "arrows move the pen" in drawing["description"]
            page.locator("#drawing").focus()
            for key in ("ArrowUp", "ArrowUp", "Space", "ArrowLeft"):
                page.keyboard.press(key)
            assert page.locator("#place").inner_text() == "Pen down, 46% across, 42% down"
            assert page.locator("#place").get_attribute("aria-live") == "polite"
