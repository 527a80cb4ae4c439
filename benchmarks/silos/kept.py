"""Figures that took long, kept in a file one by one: a run that was stopped goes on with them."""

import json
from pathlib import Path
from typing import Any

from privacy.files import write_durably


class KeptFigures:
    """Figures by name, each on disk before the next is worked out.

    It does not notice that the code has changed since: ``forget`` them then.

    Parameters
    ----------
    file : Path or None
        Holds a JSON object; made when the first figure comes. None: nothing is kept.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._figures: dict[str, Any] = {}
        if file is not None and file.exists():
            self._figures = json.loads(file.read_text(encoding="utf-8"))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._figures)

    def __contains__(self, name: object) -> bool:
        """Whether there is a figure of this name, whatever the type of ``name``."""
        return repr(name) in self._figures

    def __getitem__(self, name: object) -> Any:
        """The figure, as JSON gives it back."""
        return self._figures[repr(name)]

    def __setitem__(self, name: object, figure: Any) -> None:
        """Keep a figure: numbers, text, and lists or objects of them."""
        self._figures[repr(name)] = figure
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_durably(self._file, json.dumps(self._figures, indent=0).encode(), mode=0o644)

    def forget(self) -> None:
        """Remove the file: the next run begins anew."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
