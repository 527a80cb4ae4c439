"""Draw the pictures of docs/explanation/house.md from the imports of the source: ``make house``.

A room is a folder with its modules. An arrow points from the room that imports to the one it
imports. An arrow that longer ways already tell is left out; rooms that import each other are
joined by one arrow with two heads.
"""

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "house.md"
FLOORS = ("flower_app", "strategies", "privacy")
_NAMED = 6
_PICTURE = re.compile(r"(<!-- drawn: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)

Graph = Mapping[str, set[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the three packages, by its dotted name."""
    files = (file for floor in FLOORS for file in sorted((root / floor).rglob("*.py")))
    return {_dotted(file.relative_to(root)): file for file in files}


def imports(names: Mapping[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports, wherever in it the statement stands.

    ``import_module(f"package.{name}")`` may import every module of the package.
    """
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= (inside & names.keys()) or {node.module}
            elif folder := _loaded_by_name(node):
                graph[name] |= {other for other in names if other.startswith(folder)}
        graph[name] &= names.keys() - {name}
    return graph


def grouped(graph: Graph, room_of: Callable[[str], str | None]) -> dict[str, set[str]]:
    """The graph of rooms: modules whose room is None are left out."""
    rooms: dict[str, set[str]] = {}
    for name, targets in graph.items():
        if (room := room_of(name)) is not None:
            others = {other for target in targets if (other := room_of(target)) is not None}
            rooms.setdefault(room, set()).update(others - {room})
    return rooms


def reached(graph: Graph) -> dict[str, set[str]]:
    """All that each node leads to, by arrows of the graph."""
    ways = {node: set(targets) for node, targets in graph.items()}
    for middle in graph:
        for node in graph:
            if middle in ways[node]:
                ways[node] |= ways[middle]
    return ways


def arrows(graph: Graph) -> list[tuple[str, str, str]]:
    """The arrows to draw: (from, mermaid's arrow, to)."""
    ways = reached(graph)

    def in_a_circle(one: str, other: str) -> bool:
        return other in ways[one] and one in ways[other]

    drawn = []
    for node, targets in sorted(graph.items()):
        for target in sorted(targets):
            told_by_others = any(
                target in ways[other]
                and not in_a_circle(node, other)
                and not in_a_circle(other, target)
                for other in targets - {target}
            )
            if node in graph[target]:
                if node < target:
                    drawn.append((node, "<-->", target))
            elif not told_by_others:
                drawn.append((node, "-->", target))
    return drawn


def mermaid(graph: Graph, box_of: Callable[[str], str]) -> str:
    """A picture as a block that GitHub draws; ``box_of`` names the frame around a node.

    Arrows between nodes of two frames are drawn as one between the frames.
    """
    boxes = sorted({box_of(node) for node in graph}, key=_floor)
    frames = {f"b{number}": box for number, box in enumerate(boxes)}
    between = {
        one: {
            other
            for other, target in frames.items()
            if other != one
            and any(box_of(t) == target for n in graph if box_of(n) == box for t in graph[n])
        }
        for one, box in frames.items()
    }
    lines = ["```mermaid", "flowchart TD"]
    numbers = {node: f"n{number}" for number, node in enumerate(sorted(graph))}
    for frame, box in frames.items():
        lines.append(f'  subgraph {frame}["{box}"]')
        lines += [
            f'    {numbers[n]}["{n.removeprefix(box + "/")}"]'
            for n in sorted(graph)
            if box_of(n) == box
        ]
        lines.append("  end")
    inside = {
        node: {other for other in targets if box_of(other) == box_of(node)}
        for node, targets in graph.items()
    }
    lines += [f"  {numbers[a]} {arrow} {numbers[b]}" for a, arrow, b in arrows(inside)]
    lines += [f"  {a} {arrow} {b}" for a, arrow, b in arrows(between)]
    return "\n".join([*lines, "```"])


def draw_floors(graph: Graph) -> str:
    """All rooms of the three packages.

    Modules that stand in a package itself make up three rooms: those that its folders import,
    below them, whether they import folders themselves or not, and the rest, above. A room of many
    is named after the first of them: their own picture is "Inside the strategies".
    """
    ways = reached(graph)
    shared = {
        target
        for name in graph
        if name not in FLOORS and not _is_loose(name)
        for target in ways[name]
        if _is_loose(target) and _floor_of(target) == _floor_of(name)
    }

    def level(name: str) -> tuple[bool, bool]:
        floor = _floor_of(name)
        stands_on_folders = any(
            _floor_of(other) == floor and other not in FLOORS and not _is_loose(other)
            for other in ways[name]
        )
        return name in shared, stands_on_folders and name in shared

    def room_of(name: str) -> str | None:
        floor, _, rest = name.partition(".")
        if name in FLOORS:
            return None  # it only re-exports
        if not _is_loose(name):
            return f"{floor}/{rest.split('.')[0]}"
        alike = [
            other.partition(".")[2]
            for other in sorted(graph)
            if _is_loose(other) and _floor_of(other) == floor and level(other) == level(name)
        ]
        if len(alike) > _NAMED:
            return f"{floor}/{', '.join(alike[:2])}<br/>and {len(alike) - 2} more modules"
        return f"{floor}/" + "<br/>".join(
            ", ".join(alike[start : start + 3]) for start in range(0, len(alike), 3)
        )

    return mermaid(grouped(graph, room_of), _floor_of)


def draw_inside(graph: Graph, folder: str) -> str:
    """One folder: its modules one by one, and its own folders as rooms."""
    depth = folder.count(".") + 1

    def room_of(name: str) -> str | None:
        parts = name.split(".")
        inside = name.startswith(folder + ".")
        return "/".join(parts[: depth + 1]) if inside else None

    return mermaid(grouped(graph, room_of), lambda _: folder.replace(".", "/"))


def rooms_table(names: Mapping[str, Path]) -> str:
    """One line for each folder: its name and the first sentence of its docstring."""
    lines = ["| folder | holds |", "|---|---|"]
    for name, file in sorted(names.items(), key=lambda item: (_floor(item[0]), item[0])):
        if file.name == "__init__.py":
            words = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0]
            words = " ".join(words.replace("``", "`").split())
            lines.append(f"| `{name.replace('.', '/')}` | {words} |")
    return "\n".join(lines)


def page_with_pictures(page: str) -> str:
    """The page with every picture drawn anew."""
    names = modules()
    graph = imports(names)

    def drawn(match: re.Match[str]) -> str:
        subject = match[2]
        if subject == "floors":
            text = draw_floors(graph)
        elif subject == "rooms":
            text = rooms_table(names)
        else:
            text = draw_inside(graph, subject)
        return f"{match[1]}{text}\n{match[3]}"

    return _PICTURE.sub(drawn, page)


def _loaded_by_name(node: ast.AST) -> str:
    """The ``package.`` of a call of ``import_module(f"package.{name}")``; else empty."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")):
        return ""
    if not (node.args and isinstance(node.args[0], ast.JoinedStr)):
        return ""
    first = node.args[0].values[0]
    return str(first.value) if isinstance(first, ast.Constant) else ""


def _dotted(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _floor_of(name: str) -> str:
    return re.split(r"[./]", name)[0]


def _is_loose(name: str) -> bool:
    """Whether a module stands in a package itself, in none of its folders."""
    return name.count(".") == 1 and not (ROOT / name.replace(".", "/")).is_dir()


def _floor(name: str) -> int:
    return FLOORS.index(_floor_of(name))


if __name__ == "__main__":
    PAGE.write_text(page_with_pictures(PAGE.read_text()))
