"""The page on the house: its pictures are what the imports give, its modules are there."""

import re

from tools.house import PAGE, ROOT, arrows, grouped, imports, modules, page_with_pictures, reached


def test_the_committed_pictures_are_what_the_imports_give() -> None:
    page = PAGE.read_text()
    assert page.count("<!-- drawn: ") == page.count("```mermaid") + 1
    assert page_with_pictures(page) == page, "draw them again: make house"


def test_every_module_that_the_page_names_is_there() -> None:
    paths = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+(?:\.py)?)`", PAGE.read_text()))
    assert len(paths) > 40
    assert not {path for path in paths if not (ROOT / path).exists()}


def test_names_of_the_recipes_are_in_a_file_that_the_recipe_names() -> None:
    """Where to add: each ``_NAME`` in code is found in a module of the same paragraph."""
    recipes = PAGE.read_text().partition("## Where to add")[2].split("\n- ")[1:]
    assert len(recipes) >= 9
    lost = []
    for recipe in recipes:
        spans = set(re.findall(r"`([^`]+)`", recipe))
        places = [ROOT / span for span in spans if (ROOT / span).exists()]
        files = [f for place in places for f in (place.glob("*.py") if place.is_dir() else [place])]
        text = "\n".join(file.read_text() for file in files)
        names = {
            span for span in spans if re.fullmatch(r"\w+", span) and not (ROOT / span).exists()
        }
        lost += [name for name in names if not re.search(rf"\b{name}\b", text)]
    assert not lost


def test_commands_that_are_loaded_by_name_are_imports() -> None:
    commands = {name for name in modules() if name.startswith("flower_app.commands.")}
    assert commands
    assert commands <= imports(modules())["flower_app.__main__"]


def test_an_arrow_is_left_out_only_where_a_longer_way_tells_it() -> None:
    graph = {
        "run": {"round", "replies", "budget"},
        "round": {"replies", "budget"},
        "replies": {"budget", "files"},
        "budget": {"replies", "files"},
        "files": set(),
    }
    assert arrows(graph) == [
        ("budget", "-->", "files"),
        ("budget", "<-->", "replies"),
        ("replies", "-->", "files"),
        ("round", "-->", "budget"),
        ("round", "-->", "replies"),
        ("run", "-->", "round"),
    ]


def test_the_drawn_arrows_lead_wherever_the_imports_lead() -> None:
    graph = grouped(imports(modules()), lambda name: name.rpartition(".")[0] or name)
    drawn: dict[str, set[str]] = {node: set() for node in graph}
    for node, arrow, target in arrows(graph):
        drawn[node].add(target)
        if arrow == "<-->":
            drawn[target].add(node)
    assert reached(drawn) == reached(graph)
