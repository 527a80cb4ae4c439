"""The app's trackers: where they may write, and what of the settings they show."""

from dataclasses import replace
from pathlib import Path

import pytest

from flower_app.errors import SettingError
from flower_app.report.results_folder import ResultsFolder
from flower_app.settings import Settings
from flower_app.training.tracking import check_tracking, tracked

pytest.importorskip("tensorboard")
pytest.importorskip("mlflow")


def settings(tracking: str, uri: str) -> Settings:
    return replace(Settings(), tracking=tracking, tracking_uri=uri)


@pytest.mark.parametrize(
    ("tracking", "uri", "words"),
    [
        ("mlflow", "http://bob:hunter2@mlflow.example:5000", "it holds a password"),
        ("mlflow", "postgresql://bob:hunter2@db.example/mlflow", "it holds a password"),
        ("tensorboard", "s3://bucket/runs", "it must be an absolute path"),
        ("tensorboard", "runs", "it must be an absolute path"),
        ("mlflow", "runs", "it must be an absolute path"),
    ],
)
def test_where_nothing_is_written(tracking: str, uri: str, words: str) -> None:
    with pytest.raises(SettingError, match=words) as refused:
        check_tracking(settings(tracking, uri))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("tracking", "uri"),
    [
        ("mlflow", "http://mlflow.example:5000"),
        ("mlflow", "sqlite:////srv/mlflow.db"),
        ("tensorboard", "/srv/runs"),
    ],
)
def test_where_they_write(tracking: str, uri: str) -> None:
    check_tracking(settings(tracking, uri))


def test_they_show_no_place_of_the_server(tmp_path: Path) -> None:
    folder = ResultsFolder(tmp_path / "private-place" / "run")
    place = tmp_path / "private-place" / "events"
    with tracked(settings("tensorboard", str(place)), folder, {}):
        pass
    (events,) = (place / "run").iterdir()
    content = events.read_bytes()
    assert b"clipping-norm | " in content
    assert b"private-place" not in content
