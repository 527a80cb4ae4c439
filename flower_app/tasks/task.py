"""A task of one's own: data, columns, model and budget, as ``task.toml`` describes them."""

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from flower_app.errors import SettingError
from flower_app.tasks.columns import Category, Column, Number, can_be_told_apart, canonical
from flower_app.tasks.pictures import Pictures
from flower_app.tasks.tables import TableForm

MODELS_OF_TASKS = ("logistic", "mlp", "cnn")
_LARGEST_SIDE = 256

_T = TypeVar("_T")


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes
    ----------
    home : Path
        The folder from which paths and modules are relative.
    name, controller, purpose : str
        What it is called; who answers for the data, and why they are used, for the report.
    model : str
        One of ``MODELS_OF_TASKS``, or ``module:function`` that gives an ``nn.Module``.
    columns : tuple of Column
        Of a table; empty where the data are pictures.
    pictures : Pictures or None
    target, person, client : str
        Columns: the class of a row, whose it is, and the client that holds it; "" where none says.
    classes, class_names : tuple of str
        As they stand in the data, and as they are called.
    holders : Path or None
        A folder with a file or a folder for each client.
    table : Path or None
        One file for all of them, with the column ``client``.
    test : Path or None
        Test data that are public or belong to nobody in the run.
    test_share : float
        What is kept for testing otherwise.
    ranges_are_public : bool
        Whether the user has confirmed that ranges and categories were not read from private data.
    mode, epsilon, delta
        As the settings of a run.
    population : int
        How many clients; 0 where nobody said.
    silos, persons, colluders : int
        Of ``mode = "silos"``.
    training : tuple of (str, number)
        Settings that take the place of the model's recipe, by the fields' names.
    text : str
        The file.
    """

    home: Path
    name: str
    controller: str
    purpose: str
    model: str
    columns: tuple[Column, ...]
    pictures: Pictures | None
    target: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    person: str
    client: str
    holders: Path | None
    table: Path | None
    test: Path | None
    test_share: float
    ranges_are_public: bool
    mode: str
    epsilon: float
    delta: float
    population: int
    silos: int
    persons: int
    colluders: int
    training: tuple[tuple[str, float], ...]
    text: str

    @property
    def form(self) -> TableForm:
        """The table that all clients share."""
        return TableForm(self.columns, self.target, self.classes, self.person, self.client)

    @property
    def own_form(self) -> TableForm:
        """The table of one client, or of the test rows: it need not say whose it is."""
        return TableForm(self.columns, self.target, self.classes, self.person)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of what a model of a table sees."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def unit(self) -> str:
        """What ``mode = "silos"`` protects: ``person``, or ``row`` where every row is another's."""
        return "person" if self.person else "row"

    @property
    def things(self) -> tuple[str, str]:
        """One example, and several."""
        return ("picture", "pictures") if self.pictures else ("row", "rows")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a run that stand in the task, by the fields' names."""
        common: dict[str, Any] = {"dataset": self.name, "model": self.model, "mode": self.mode}
        common |= {"epsilon": self.epsilon, "delta": self.delta}
        for name, value in (("controller", self.controller), ("purpose", self.purpose)):
            common |= {name: value} if value else {}
        if self.mode == "silos":
            return common | {
                "silos": self.silos,
                "records": self.persons,
                "colluders": self.colluders,
            }
        return common | ({"population": self.population} if self.population else {})

    @property
    def digest(self) -> str:
        """Of what all parties must mean alike: inputs, classes, model, mode and unit."""
        parts = [
            [[column.name, *map(str, vars(column).values())] for column in self.columns],
            list(self.pictures.shape) if self.pictures else [],
            [self.target, *self.classes],
            [self.model, self.mode, self.unit],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read_task(path: Path, *, home: Path | None = None) -> Task:
    """The task that a file describes.

    Parameters
    ----------
    path : Path
    home : Path, optional
        Where its paths and modules are relative to; by default the file's folder.

    Raises
    ------
    SettingError
        Naming the first key that is missing, unknown or wrong, its value and the remedy.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise SettingError(
            f"task = {str(path)!r} is wrong; it cannot be read ({why}): give a task.toml, as "
            "`python -m flower_app new FOLDER` writes it"
        ) from error
    return _read(text, str(path), (home or path.parent).absolute())


@cache
def _read(text: str, path: str, home: Path) -> Task:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path} is no TOML: {error}; mend it") from error
    except RecursionError as error:
        raise SettingError(f"{path} is no TOML: brackets are nested too deeply; mend it") from error
    root = _Section(path, "", document)
    data, target = root.section("data"), root.section("target")
    privacy, training = root.section("privacy"), root.section("training")
    pictures = _pictures(root.section("pictures")) if "pictures" in document else None
    columns = () if pictures else _columns(root.section("columns"))
    none: tuple[str, ...] = ()
    classes = target.get("classes", none, _texts, "a list of two or more different texts")
    if len({canonical(value) for value in classes}) < max(2, len(classes)):
        raise target.wrong("classes", list(classes), "a list of two or more different texts")
    names = target.get("names", classes, _texts, "a list of texts")
    if len(names) != len(classes):
        raise target.wrong("names", list(names), f"as many as the classes, {len(classes)}")
    mode = privacy.get("mode", "clients", _mode, "'clients' or 'silos'")
    silos = mode == "silos"
    holders, table = data.path("clients", home), data.path("table", home)
    task = Task(
        home=home,
        name=root.get("name", "", _text, "a short name in quotes", required=True),
        controller=root.get("controller", "", _text, "text in quotes"),
        purpose=root.get("purpose", "", _text, "text in quotes"),
        model=root.get(
            "model", "logistic", _model, f"{', '.join(MODELS_OF_TASKS)}, or 'module:function'"
        ),
        columns=columns,
        pictures=pictures,
        target="" if pictures else target.get("column", "", _text, "a column", required=True),
        classes=classes,
        class_names=names,
        person="" if pictures else data.get("person-column", "", _text, "a column's name"),
        client=data.get("client-column", "", _text, "a column's name"),
        holders=holders,
        table=table,
        test=data.path("test", home),
        test_share=data.get("test-share", 0.0, _share, "a number above 0 and below 1"),
        ranges_are_public=data.get("ranges-are-public", True, _switch, "true or false"),
        mode=mode,
        epsilon=privacy.get("epsilon", 3.0, _positive, "a positive number"),
        delta=privacy.get("delta", 1e-5, _share, "a number strictly between 0 and 1"),
        population=0 if silos else privacy.get("clients", 0, _whole, "a whole number above 0"),
        silos=privacy.get("silos", 0, _silos, "3 or more", required=True) if silos else 0,
        persons=privacy.get("persons", 0, _whole, "a whole number above 0", required=True)
        if silos
        else 0,
        colluders=privacy.get("colluders", 1, _whole, "1 or more") if silos else 0,
        training=_training(training, silos=silos),
        text=text,
    )
    for section in (root, data, target, privacy, training):
        section.refuse_the_rest()
    _check_roles(path, task)
    return task


def _check_roles(path: str, task: Task) -> None:
    """Refuse a task whose parts contradict each other."""
    if task.holders and task.table:
        raise SettingError(
            f"{path}: [data] names both clients (a folder) and table (a CSV file); name one of them"
        )
    if not (task.holders or task.table or task.test):
        raise SettingError(
            f"{path}: [data] names neither clients (a folder) nor table (a CSV file); name one of "
            "them, or for a deployment, whose nodes have the data, a file of test rows: "
            'test = "test.csv"'
        )
    inputs = [column.name for column in task.columns]
    roles = {"target": task.target, "person-column": task.person, "client-column": task.client}
    for role, name in roles.items():
        if name and name in inputs:
            raise SettingError(
                f"{path}: {role} = {name!r} is also one of [columns]; a model must not see it: "
                "leave it out there"
            )
    if task.client and not task.table:
        raise SettingError(
            f"{path}: [data] client-column = {task.client!r} is for a table of all clients; with "
            "clients, a folder with a file for each, or on nodes, leave it out"
        )
    if task.table and not task.client:
        raise SettingError(
            f"{path}: [data] client-column is missing; name the column that says which client "
            "holds a row"
        )
    if (task.test is None) == (task.test_share == 0):
        fault = "both test and test-share" if task.test else "neither test nor test-share"
        raise SettingError(
            f"{path}: [data] has {fault}; give a file of test data, or a share such as "
            "test-share = 0.2"
        )
    if task.pictures and task.table:
        raise SettingError(
            f"{path}: [data] table is for [columns]; with [pictures] name clients, a folder with a "
            "folder for each client, in which a folder for each class holds its pictures"
        )
    if task.model == "cnn" and not task.pictures:
        raise SettingError(f"{path}: model = 'cnn' is wrong; it is for pictures: choose logistic")


class _Section:
    """A table of the file whose keys are taken one by one; a key that is left over is wrong."""

    def __init__(self, path: str, name: str, given: dict[str, Any]) -> None:
        self._path, self._name, self._given = path, name, given
        self._known: list[str] = []

    @property
    def _place(self) -> str:
        return f"{self._path}: [{self._name}] " if self._name else f"{self._path}: "

    def section(self, name: str) -> "_Section":
        self._known.append(name)
        given = self._given.get(name, {})
        if not isinstance(given, dict):
            raise self.wrong(name, given, f"a table, [{name}]")
        return _Section(self._path, name, given)

    def get(
        self,
        key: str,
        default: _T,
        check: Callable[[Any], _T | None],
        words: str,
        *,
        required: bool = False,
    ) -> _T:
        self._known.append(key)
        if key not in self._given:
            if required:
                written = difflib.get_close_matches(key, self._given, n=1, cutoff=0.5)
                hint = f" (it has {written[0]})" if written else ""
                raise SettingError(f"{self._place}{key} is missing{hint}; give {words}")
            return default
        value = check(self._given[key])
        if value is None:
            raise self.wrong(key, self._given[key], words)
        return value

    def path(self, key: str, home: Path) -> Path | None:
        text = self.get(key, "", _text, "a path in quotes")
        if not text:
            return None
        try:
            return home / Path(text).expanduser()
        except RuntimeError as error:
            raise self.wrong(key, text, f"a path: {error}") from error

    def items(self) -> Mapping[str, Any]:
        self._known += self._given
        return self._given

    def wrong(self, key: str, value: object, words: str) -> SettingError:
        return SettingError(f"{self._place}{key} = {value!r:.200} is wrong; it must be {words}")

    def refuse_the_rest(self) -> None:
        for key, value in self._given.items():
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(self._known)}"
                raise SettingError(f"{self._place}{key} = {value!r:.100} is not known; {hint}")


def _columns(section: _Section) -> tuple[Column, ...]:
    columns = []
    for name, given in section.items().items():
        column = _column(name, given)
        if column is None:
            raise section.wrong(
                name,
                given,
                "the range of a number, [lowest, highest], or a list of categories as text, "
                '["a", "b"]; both from public knowledge',
            )
        if isinstance(column, Number) and not can_be_told_apart(column.low, column.high):
            raise section.wrong(
                name,
                given,
                "a range whose numbers single precision tells apart: within 1e30, and wide beside "
                "its ends. Count from a nearer origin, such as days since 2020",
            )
        columns.append(column)
    if not columns:
        raise section.wrong(
            "columns", {}, "the columns that the model sees, each with its range or its categories"
        )
    return tuple(columns)


def _column(name: str, given: Any) -> Column | None:
    if not isinstance(given, list) or len(given) < 2:
        return None
    if all(isinstance(value, str) for value in given):
        different = len({canonical(value) for value in given}) == len(given)
        return Category(name, tuple(given)) if different else None
    numbers = [_finite(value) for value in given]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None or numbers[0] >= numbers[1]:
        return None
    return Number(name, numbers[0], numbers[1])


def _pictures(section: _Section) -> Pictures:
    side = section.get(
        "side",
        28,
        lambda v: v if type(v) is int and 4 <= v <= _LARGEST_SIDE else None,
        f"a whole number of pixels from 4 to {_LARGEST_SIDE}",
    )
    pictures = Pictures(side, section.get("colours", False, _switch, "true or false"))
    section.refuse_the_rest()
    return pictures


_TRAINING = {
    "clients": "rounds clipping_norm server_learning_rate server_momentum local_learning_rate "
    "local_steps example_clipping_norm",
    "silos": "rounds record_sampling_rate clipping_norm server_learning_rate server_momentum",
}
_WHOLE_ONES = ("rounds", "local_steps")


def _training(section: _Section, *, silos: bool) -> tuple[tuple[str, float], ...]:
    given: list[tuple[str, float]] = []
    for name in _TRAINING["silos" if silos else "clients"].split():
        whole = name in _WHOLE_ONES
        value = section.get(
            name.replace("_", "-"),
            None,
            _whole if whole else _at_least_zero,
            "a whole number above 0" if whole else "a number of at least 0",
        )
        if value is not None:
            given.append((name, value))
    return tuple(given)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _texts(value: Any) -> tuple[str, ...] | None:
    good = isinstance(value, list) and bool(value) and all(_text(each) for each in value)
    return tuple(value) if good else None


def _switch(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _mode(value: Any) -> str | None:
    return value if value in ("clients", "silos") else None


def _model(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    module, colon, function = value.partition(":")
    named = bool(colon) and function.isidentifier()
    return value if value in MODELS_OF_TASKS or (named and bool(module)) else None


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _positive(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and number > 0 else None


def _at_least_zero(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and number >= 0 else None


def _share(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and 0 < number < 1 else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and 1 <= value <= 10**9 else None


def _silos(value: Any) -> int | None:
    return value if type(value) is int and 3 <= value <= 10**6 else None
