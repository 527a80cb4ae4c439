"""Write the types of the owner's session for TypeScript: ``python -m tools.browser_types``.

They are made of the JSDoc in its modules, by ``tsc``: on the path, or else by ``npx``.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1] / "privacy" / "inference_service" / "browser"
TYPED = ("session", "owner/plan", "owner/release")
"""The session, and the modules whose types it names."""


def compiler() -> list[str]:
    """The command of TypeScript's compiler.

    Raises
    ------
    FileNotFoundError
        If there is none on the path, and no npx.
    """
    if tsc := shutil.which("tsc"):
        return [tsc]
    if npx := shutil.which("npx"):
        return [npx, "--yes", "--package=typescript@5", "tsc"]
    raise FileNotFoundError("neither tsc nor npx is on the path: install TypeScript or Node")


def declarations(command: list[str]) -> dict[str, str]:
    """The types by their file's name, as the compiler makes them; all modules are checked too."""
    emitting = ["--noEmit", "false", "--declaration", "--emitDeclarationOnly"]
    with tempfile.TemporaryDirectory() as made:
        # By itself: beside a module its types would be read in its place.
        copy = Path(made) / "browser"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("*.d.ts"))
        subprocess.run(
            [*command, "--project", str(copy), *emitting, "--outDir", f"{made}/types"], check=True
        )
        files = {name: Path(made) / "types" / f"{name}.d.ts" for name in TYPED}
        return {f"{name}.d.ts": file.read_text() for name, file in files.items()}


if __name__ == "__main__":
    for name, text in declarations(compiler()).items():
        (ROOT / name).write_text(text)
        print(f"wrote {(ROOT / name).relative_to(ROOT.parents[2])}")
