"""What leaves the repository, as those who take it will check it."""

import re
import tarfile
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import click
import pytest
from flwr.cli.app_cmd.publish import _collect_file_paths, _validate_description, _validate_files
from flwr.cli.build import build_fab_from_disk
from flwr.cli.utils import validate_project_name
from packaging.requirements import Requirement
from packaging.version import Version

from privacy.imports import EXTRAS
from tools import release
from tools.release import hub_folder, main, owner_project, sdist

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_folder(tmp_path_factory.mktemp("hub"))


def test_flower_hub_takes_the_folder(app: Path) -> None:
    """By the checks of ``flwr app publish`` before it uploads: names, sizes, text."""
    document = tomllib.loads((app / "pyproject.toml").read_text())
    validate_project_name(app.name, "the folder")
    _validate_description(document["project"]["description"])
    assert len(document["project"]["description"]) < 200
    try:
        _validate_files(_collect_file_paths(app))
    except click.ClickException as error:
        pytest.fail(error.message)
    settings = document["tool"]["flwr"]["app"]
    assert settings["fab-format-version"] == 1
    (flwr,) = (one for one in document["project"]["dependencies"] if one.startswith("flwr"))
    assert Requirement(flwr).specifier.contains(Version(settings["flwr-version-target"]))


def test_a_bundle_asks_for_what_the_app_needs_in_an_environment_of_flowers(app: Path) -> None:
    with zipfile.ZipFile(BytesIO(build_fab_from_disk(app))) as opened:
        sent = tomllib.loads(opened.read("pyproject.toml").decode())
        names = set(opened.namelist())
    assert names >= {"LICENSE", "flower_app/server_app.py", "privacy/imports.py"}
    assert not [name for name in names if name.startswith("flower_app/commands")]
    (group,) = sent["tool"]["uv"]["default-groups"]
    (line,) = sent["dependency-groups"][group]
    assert line == "bloomseal[bundle]"


def test_the_page_on_flower_hub_says_what_it_is_about(app: Path) -> None:
    """As its search and filters read it: YAML between two lines of dashes."""
    _, front, text = (app / "README.md").read_text().split("---\n", 2)
    keys = [line.partition(":")[0] for line in front.splitlines()]
    assert keys == ["tags", "dataset", "framework"]
    document = tomllib.loads((app / "pyproject.toml").read_text())
    name = f"@{document['tool']['flwr']['app']['publisher']}/{document['project']['name']}"
    assert f"flwr new {name}\n" in text
    assert "num-supernodes" in text
    assert "--node-config" in text


def test_the_source_distribution_holds_what_its_tests_read(tmp_path: Path) -> None:
    with tarfile.open(sdist(tmp_path)) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    assert held >= {"CITATION.cff", "Makefile", ".github/workflows/release.yml"}
    assert held >= {"tests/test_release.py", "docs/results/noise.json", "privacy/py.typed"}


def test_the_owners_wheel_asks_for_neither_flower_nor_pytorch() -> None:
    asked = {Requirement(line).name for line in owner_project()["project"]["dependencies"]}
    assert asked >= {"numpy", "cryptography", "numba", "httpx"}
    heavy = set().union(*EXTRAS.values()) - EXTRAS["owner"] - EXTRAS[""]
    assert not asked & (heavy | {"flwr", "dp-accounting", "safetensors"})


def test_the_release_workflow_runs_no_action_that_can_change_and_holds_no_secret() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    actions = re.findall(r"uses: (\S+)(.*)", text)
    assert len(actions) >= 5
    for action, comment in actions:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action
    assert "secrets." not in text
    assert text.count("id-token: write") == 1
    for module in re.findall(r"python -m (tools\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_a_folder_that_holds_anything_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old.whl").write_bytes(b"")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SystemExit, match=r"holds thesis\.tex too; name a folder for releases"):
        main(tmp_path)
    (tmp_path / "thesis.tex").unlink()
    (tmp_path / "bloomseal" / ".git").mkdir(parents=True)
    with pytest.raises(SystemExit, match="holds bloomseal too"):
        main(tmp_path)
    assert (tmp_path / "old.whl").exists()


def test_the_list_of_packages_outlives_the_release_that_is_built_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``make sbom`` writes it into the folder before ``make release`` builds into that."""
    makefile = (ROOT / "Makefile").read_text()
    (written,) = (tmp_path / name for name in re.findall(r"cyclonedx-py .* -o (\S+)", makefile))
    folder = written.parent
    assert f"-m tools.release {folder.name}\n" in makefile
    folder.mkdir()
    written.write_text("{}")
    (folder / "bloomseal-0.1.0-py3-none-any.whl").write_bytes(b"")
    for build in ("wheel", "sdist", "owner_wheel"):  # each takes seconds, and is tested by itself
        monkeypatch.setattr(release, build, lambda *_: None)
    main(folder)
    assert set(folder.iterdir()) == {written, folder / "bloomseal"}


def test_the_version_is_the_same_wherever_it_stands() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
