"""Write what pages take from the source: ``make pages``; with ``--notebooks`` those too.

Programs stand in pages between ``<!-- program: PATH -->`` and ``<!-- end -->``, or one cell of
them (``PATH#2``); the command lines in ``docs/reference/commands.md``; notebooks, with
their outputs, beside their programs. A test fails while one differs.
"""

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMANDS = DOCS / "reference" / "commands.md"
NOTEBOOKS = {
    DOCS / "tutorials" / "fedavg.ipynb": DOCS / "tutorials" / "fedavg.py",
    DOCS / "tutorials" / "encrypted-questions.ipynb": DOCS / "tutorials" / "encrypted_questions.py",
}
PACKAGES = ("flower_app", "privacy", "benchmarks")
PROGRAM = re.compile(r"(<!-- program: ([^\s#]+)(?:#(\d+))? -->\n).*?(<!-- end -->)", re.DOTALL)
_LANGUAGES = {".py": "python", ".diff": "diff", ".toml": "toml", ".sh": "sh"}


def with_programs(page: str) -> str:
    """The text of a page with the programs that it names, as their files are now."""

    def shown(match: re.Match[str]) -> str:
        path = ROOT / match[2]
        text = cells(path)[int(match[3]) - 1][1] if match[3] else path.read_text().strip("\n")
        return f"{match[1]}```{_LANGUAGES[path.suffix]}\n{text}\n```\n{match[4]}"

    return PROGRAM.sub(shown, page)


def cells(program: Path) -> list[tuple[str, str]]:
    """The title and the text of each part of a program that begins with ``# %% title``."""
    parts = re.split(r"^# %% (.+)\n", program.read_text(), flags=re.MULTILINE)
    return [(title, text.strip("\n")) for title, text in zip(parts[1::2], parts[2::2], strict=True)]


def notebook(program: Path) -> Any:
    """A program as a notebook that was not run: a title above each cell."""
    from nbformat import v4

    title = ast.get_docstring(ast.parse(program.read_text()))
    made = [v4.new_markdown_cell(f"# {title}")]
    for heading, text in cells(program):
        made += [v4.new_markdown_cell(f"## {heading}"), v4.new_code_cell(text)]
    for number, cell in enumerate(made):
        cell.id = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def executed(program: Path) -> Any:
    """A program as a notebook with what a run printed; errors are raised."""
    from nbclient import NotebookClient

    run = notebook(program)
    NotebookClient(run, timeout=600, record_timing=False).execute()
    run.metadata.pop("language_info", None)  # it names this machine's version of Python
    for cell in run.cells:
        if cell.cell_type == "code":  # what was logged is long, and another each time
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return run


def command_pages() -> str:
    """The page of all command lines, in Markdown."""
    parts = [
        "# Commands",
        "<!-- Written by `make pages` from the argument parsers; edit those, not this page. -->",
        "`--help` after any command prints the same. Options stand in any order and are not "
        "abbreviated. What a contributor runs is listed by `make help`.",
    ]
    for parser in _parsers():
        parts += list(_described(parser, level=2))
    return "\n\n".join(parts) + "\n"


def _parsers() -> Iterator[argparse.ArgumentParser]:
    """Of every package that can be run, by its ``command_parser``."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("__main__.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            module = importlib.import_module(name)
            yield module.command_parser(*getattr(module, "COMMANDS", ()))


def _described(
    parser: argparse.ArgumentParser, *, level: int, purpose: str | None = None
) -> Iterator[str]:
    """Heading, sentences, table of arguments; then the same of each command in it."""
    yield f"{'#' * level} {parser.prog.removeprefix('python -m ')}"
    if text := parser.description or purpose:
        yield _escaped(" ".join(text.split()))
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    commands = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    rows = [_row(action) for action in actions if action not in commands]
    if rows:
        yield "| argument | meaning |\n|---|---|\n" + "\n".join(rows)
    if parser.epilog:
        yield _escaped(" ".join(parser.epilog.split()))
    for action in commands:
        purposes = {choice.dest: choice.help for choice in action._choices_actions}
        for name, command in action.choices.items():
            yield from _described(command, level=level + 1, purpose=purposes.get(name))


def _row(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper().replace("_", "-")
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        name = f"`{value}`"
    elif action.nargs == 0:
        name = ", ".join(f"`{option}`" for option in action.option_strings)
    else:
        name = ", ".join(f"`{option} {value}`" for option in action.option_strings)
    text = " ".join((action.help or "").split())
    if action.choices is not None and not all(str(choice) in text for choice in action.choices):
        text += f"{'; ' if text else ''}one of {', '.join(map(str, action.choices))}"
    if action.required and action.option_strings:
        text += " (must be given)"
    return f"| {name} | {_escaped(text)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def pages() -> dict[Path, str]:
    """Every page that takes something from the source, with its text as it should be."""
    texts = {page: page.read_text() for page in sorted(DOCS.rglob("*.md"))}
    fresh = {page: with_programs(text) for page, text in texts.items() if PROGRAM.search(text)}
    return fresh | {COMMANDS: command_pages()}


def main() -> None:
    """Write all of it."""
    for page, text in pages().items():
        page.write_text(text)
        print(f"wrote {page.relative_to(ROOT)}")
    if sys.argv[1:] == ["--notebooks"]:
        import nbformat

        for path, program in NOTEBOOKS.items():
            nbformat.write(executed(program), path)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
