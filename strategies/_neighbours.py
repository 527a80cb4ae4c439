"""That ``privacy`` is the package beside this one, and not a module of the host project's own."""

from pathlib import Path

import privacy

_OURS = Path(__file__).parents[1] / "privacy"


def _check() -> None:
    found = [Path(folder).resolve() for folder in getattr(privacy, "__path__", ())]
    if found == [_OURS.resolve()]:
        return
    where = privacy.__file__ or ", ".join(str(folder) for folder in found)
    raise ImportError(
        f"'privacy' is {where} and not bloomseal's package of that name, {_OURS}, on which "
        "'strategies' is built: a top-level module of your project has the same name and comes "
        "first on sys.path. Rename it, or move it into your app's own package",
        name="privacy",
        path=where,
    )


_check()
