"""The pictures of the house show what the imports give."""

from tools.house import arrows, grouped, imports, modules, reached


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
