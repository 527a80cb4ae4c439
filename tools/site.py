"""Build the documentation as a site, without the web: ``make docs``.

The pages of ``docs/`` are copied to ``build/pages``, with what only the site has: a page for every
source file that one of them links to, the Python API, and pictures of the diagrams. Zensical makes
``build/site`` of them, as ``tools/site.toml`` says. Then every link and anchor of the site is
followed, and nothing may be loaded from elsewhere.
"""

import ast
import hashlib
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from privacy.files import write_durably

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
CONFIG = ROOT / "tools" / "site.toml"
PACKAGES = ("strategies", "privacy")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^( *)(`{3,}).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`~?([^`]+)`")
_LANGUAGES = {".py": "python", ".toml": "toml", ".diff": "diff", ".json": "json", ".js": "js"}


def public_names(init: Path) -> list[str]:
    """What a package's ``__init__.py`` lists: ``from x import Name as Name``, in its order."""
    return [
        alias.name
        for node in ast.walk(ast.parse(init.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]


def public_packages() -> dict[str, list[str]]:
    """The packages that users import from, with their names and those of their errors."""
    found: dict[str, list[str]] = {}
    folders = [ROOT / "strategies", *sorted(p for p in (ROOT / "privacy").iterdir() if p.is_dir())]
    for folder in folders:
        init = folder / "__init__.py"
        if not init.exists() or not (names := public_names(init)):
            continue
        package = ".".join(folder.relative_to(ROOT).parts)
        errors = folder / "errors.py"
        classes = ast.parse(errors.read_text()).body if errors.exists() else []
        found[package] = [f"{package}.{name}" for name in names] + [
            f"{package}.errors.{node.name}"
            for node in classes
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]
    return found


def api_page(package: str, names: list[str]) -> str:
    """Directions for mkdocstrings: the package's own words, then each name."""
    parts = [
        f"# {package}",
        f"::: {package}\n    options:\n      members: false\n      show_root_heading: false",
    ]
    return "\n\n".join([*parts, *(f"::: {name}" for name in names)]) + "\n"


class _Stage:
    """Copies pages, and what they link to outside ``docs/``, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copied: set[Path] = set()

    def page(self, source: Path, to: str) -> None:
        """A Markdown page at its place in the site, with links that hold there."""
        text = source.read_text()

        def picture(match: re.Match[str]) -> str:
            drawn = diagram(match[1])
            (self._folder / "diagrams").mkdir(exist_ok=True)
            shutil.copy(drawn, self._folder / "diagrams")
            there = posixpath.relpath(f"diagrams/{drawn.name}", posixpath.dirname(to) or ".")
            return f'<a class="diagram" href="{there}"><img src="{there}" alt="diagram"></a>'

        pictures = _MERMAID.sub(picture, text)
        parts, last = [], 0
        for fence in _FENCE.finditer(pictures):
            parts += [self._linked(pictures[last : fence.start()], source, to), fence[0]]
            last = fence.end()
        parts.append(self._linked(pictures[last:], source, to))
        self._write(to, "".join(parts))

    def _linked(self, text: str, source: Path, to: str) -> str:
        def moved(match: re.Match[str]) -> str:
            link = match[2]
            if re.match(r"[a-z]+:|#", link):
                return match[0]
            path, mark, anchor = link.partition("#")
            target = (source.parent / path).resolve()
            place = posixpath.relpath(self._place(target), posixpath.dirname(to) or ".")
            return f"{match[1]}{place}{mark}{anchor}{match[3]}"

        return _LINK.sub(moved, text)

    def _place(self, target: Path) -> str:
        """Where a file or folder is in the site; one outside ``docs/`` becomes a page."""
        if target.is_relative_to(DOCS) and target.suffix != ".py":
            return target.relative_to(DOCS).as_posix()
        if target.is_dir():
            readme = target / "README.md"
            target = readme if readme.exists() else next(iter(sorted(target.glob("*.py"))))
        name = target.relative_to(ROOT).as_posix()
        if target.suffix == ".png":
            raise ValueError(f"{name}: a page links to a picture outside docs/")
        place = f"source/{name}" if target.suffix == ".md" else f"source/{name}.md"
        if target not in self._copied:
            self._copied.add(target)
            if target.suffix == ".md":
                self.page(target, place)
            else:
                language = _LANGUAGES.get(target.suffix, "text")
                text = target.read_text().strip("\n")
                self._write(place, f"# {name}\n\n````{language}\n{text}\n````\n")
        return place

    def _write(self, to: str, text: str) -> None:
        path = self._folder / to
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def diagram(text: str) -> Path:
    """A Mermaid diagram as an SVG file, drawn once; each takes some seconds."""
    path = BUILD / "diagrams" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.svg"
    if not path.exists():
        import mermaidx

        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, mermaidx.render(text).svg().encode(), mode=0o666)
    return path


def config(pages: Path) -> str:
    """The configuration, with the pages of each ``folder/*`` that are not named beside it."""
    text = CONFIG.read_text()

    def files(match: re.Match[str]) -> str:
        names = [p.relative_to(pages).as_posix() for p in sorted((pages / match[1]).glob("*.md"))]
        return ", ".join(f'"{name}"' for name in names if f'"{name}"' not in text)

    return re.sub(r'"([\w/-]+)/\*"', files, text)


def stage(folder: Path, sources: Path) -> None:
    """Write the pages of the site, and the source for the API, into empty folders."""
    for one in (folder, sources):
        shutil.rmtree(one, ignore_errors=True)
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("*.md", "*.py"))
    staged = _Stage(folder)
    for page in sorted(DOCS.rglob("*.md")):
        staged.page(page, page.relative_to(DOCS).as_posix())
    for package, names in public_packages().items():
        path = folder / "reference" / "api" / f"{package}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(api_page(package, names))
    for package in PACKAGES:
        shutil.copytree(ROOT / package, sources / package, ignore=shutil.ignore_patterns("__py*"))
    for file in sources.rglob("*.py"):
        file.write_text(_ROLE.sub(r"``\1``", file.read_text()))  # roles are Sphinx's


class _Page(HTMLParser):
    """The anchors of a page, its links, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names."""
        given: Mapping[str, str | None] = dict(attrs)
        self.anchors |= {name for name in (given.get("id"), given.get("name")) if name}
        if tag == "a" and (link := given.get("href")):
            self.links.add(link)
        loaded = given.get("src") or (given.get("href") if tag == "link" else None)
        if loaded and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.add(loaded)


def faults(site: Path) -> Iterator[str]:
    """Links of a built site that lead nowhere, and what it would load from elsewhere."""
    pages = {file: _Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    for file, page in pages.items():
        name = file.relative_to(site)
        if file.name == "404.html":
            continue  # its links begin at the root of wherever the site will be
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    yield f"{name}: {link}: loaded from elsewhere"
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                yield f"{name}: {link} leads nowhere"
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors and not anchor.startswith("__"):
                    yield f"{name}: {link} has no such heading"


def main() -> int:
    """Build, and say what is wrong."""
    stage(BUILD / "pages", BUILD / "source")
    shutil.rmtree(BUILD / "site", ignore_errors=True)
    (BUILD / "zensical.toml").write_text(config(BUILD / "pages"))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=BUILD, check=False)
    if built.returncode:
        return built.returncode
    wrong = list(faults(BUILD / "site"))
    print("\n".join(wrong) or f"The site is {BUILD / 'site' / 'index.html'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
