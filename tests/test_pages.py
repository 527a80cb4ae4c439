"""Programs in the pages can be pasted and run as they stand, and do what is said of them."""

import ast
import builtins
import contextlib
import importlib
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.supercore.object_ref import validate
from torch import nn

from flower_app.encrypted.model import compile_app_model
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from privacy.accounting import Poisson, Repeated, read_ledger
from privacy.inference import Square, accept_plan, compile_model
from privacy.inference_service import ServiceClient
from strategies import InProcessGrid, answer_encrypted_round, decline

ROOT = Path(__file__).parents[1]
HOW_TO = ROOT / "docs" / "how-to"
PACKAGES = ("privacy", "strategies", "flower_app")


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("strategy.md", "for one client of 100"),
        ("client-training.md", "weight=60"),
        ("secure-aggregation.md", "the sum is right"),
        ("encrypted-inference.md", "ring degree"),
        ("shared-inference.md", "exchanges"),
    ],
)
def test_the_first_program_of_a_page_runs(
    page: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert says in output(programs_of(page)[0], tmp_path, monkeypatch, capsys)


def programs_of(page: str) -> list[str]:
    """A how-to page's Python programs, in their order."""
    text = (HOW_TO / page).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def output(program: str, folder: Path, monkeypatch: Any, capsys: Any) -> str:
    """What a program prints that is started in an empty folder by a user who lives there."""
    (folder / "program.py").write_text(program)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    runpy.run_path("program.py", run_name="__main__")
    return str(capsys.readouterr().out)


def test_what_is_shown_as_python_is_python() -> None:
    """Excerpts too, whose names come from what stands around them."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*/README.md")]
    shown = 0
    for page in pages:
        for text in re.findall(
            r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
        ):
            shown += 1
            try:
                ast.parse(text)
            except SyntaxError as error:
                pytest.fail(f"{page.name}, {text.splitlines()[(error.lineno or 1) - 1]!r}: {error}")
    assert shown > 15


def test_flower_finds_the_apps_of_the_strategys_first_program(tmp_path: Path) -> None:
    """It looks for their names in the source text, one assignment a line."""
    text = (HOW_TO / "strategy.md").read_text()
    program = re.search(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert program is not None
    (package := tmp_path / "myapp").mkdir()
    (package / "__init__.py").touch()
    (package / "app.py").write_text(program[1])
    for name in ("server", "client"):
        assert validate(f"myapp.app:{name}", project_dir=tmp_path) == (True, None)


def test_the_client_app_of_client_training_plans_its_noise_once(tmp_path: Path) -> None:
    """Every round begins anew, as on a deployed node: nothing is kept but the ledger."""
    programs = programs_of("client-training.md")
    (program,) = [each for each in programs if "app = ClientApp()" in each]
    (started,) = [each for each in programs if each.startswith("run_in_process(")]
    assert "dataset-name" in started
    assert "state-dir" in started
    (tmp_path / "client_app.py").write_text(program)
    node = {"dataset-name": "ward-7/2025", "state-dir": str(tmp_path / "new" / "folder")}
    sent = RecordDict({"arrays": ArrayRecord(torch.nn.Linear(8, 3).state_dict())})
    replies = []
    for _ in range(21):
        app = runpy.run_path(str(tmp_path / "client_app.py"))["app"]
        grid = InProcessGrid(app, 1, node_config=lambda _: node)
        (reply,) = grid.send_and_receive([Message(sent, 1, MessageType.TRAIN)])
        replies.append(reply)

    bare = InProcessGrid(app, 1)
    (reply,) = bare.send_and_receive([Message(sent, 1, MessageType.TRAIN)])
    assert "--node-config lacks dataset-name and state-dir" in reply.error.reason

    *within, beyond = replies
    assert not any(reply.has_error() for reply in within)
    assert not any(character.isdigit() for character in beyond.error.reason)
    assert beyond.error.code == decline(replies[0], "told from a crash").error.code
    contents = read_ledger(tmp_path / "new" / "folder" / "ledger.jsonl")
    assert contents.population == "ward-7/2025"
    (event,) = {record.event for record in contents.records}
    assert isinstance(event, Repeated)
    assert (event.times, event.release.sampling) == (20, Poisson(0.05))
    assert len(contents.records) == 20
    assert 2.99 < contents.epsilon(1e-5) <= 3.0


def test_the_trial_on_made_up_data_of_client_training_runs_and_finds_a_slip(
    tmp_path: Path,
) -> None:
    programs = programs_of("client-training.md")
    (program,) = [each for each in programs if "made_up" in each]
    (trial := tmp_path / "trial.py").write_text(program)
    runpy.run_path(str(trial))
    for right, wrong, told in (
        (", torch.nn.Flatten(0))", ")", r"\(60, 1\)|shape"),
        (".float()", "", "float|Float|integer"),
    ):
        assert right in program
        trial.write_text(program.replace(right, wrong))
        with pytest.raises((ValueError, TypeError, RuntimeError), match=told):
            runpy.run_path(str(trial))


def test_the_audit_of_a_training_runs_and_sees_that_its_noise_is_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = programs_of("audit.md")
    (program,) = [each for each in programs if "audit_training(" in each]
    printed = output(program, tmp_path, monkeypatch, capsys)
    assert printed.endswith(" False\n")  # not blind
    unnoised = program.replace("noise_multiplier=noise", "noise_multiplier=noise / 20")
    assert unnoised != program
    assert "guesses are right" in output(unnoised, tmp_path, monkeypatch, capsys)


def test_the_figures_of_the_accounting_page_are_what_its_programs_compute(tmp_path: Path) -> None:
    """Each figure stands in a comment behind the call; the second program continues the first."""
    first, second = programs_of("accounting.md")[:2]
    program = ast.parse(first + second)
    lines = (first + second).splitlines()
    names: dict[str, Any] = {}
    compared = 0
    with contextlib.chdir(tmp_path):
        for statement in program.body:
            figure = re.search(r"\)  # ([0-9.]+)", lines[(statement.end_lineno or 1) - 1])
            if isinstance(statement, ast.Expr) and figure:
                value = eval(ast.unparse(statement), names)  # noqa: S307
                decimals = len(figure[1].partition(".")[2])
                assert round(value, decimals) == float(figure[1]), ast.unparse(statement)
                compared += 1
            else:
                exec(ast.unparse(statement), names)  # noqa: S102
    assert compared == 4


def test_the_bytes_of_the_documented_plan_are_those_of_its_program() -> None:
    text = (HOW_TO / "encrypted-inference.md").read_text()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), Square(), nn.Linear(64, 10))
    assert "nn.Sequential(nn.Flatten(), nn.Linear(784, 64), Square(), nn.Linear(64, 10))" in text
    plan = compile_model(model, input_shape=(1, 28, 28), input_range=(0.0, 1.0)).plan
    documented = re.search(
        r"^bytes +keys ([\d,]+), query ([\d,]+), answer ([\d,]+)$", text, re.MULTILINE
    )
    assert documented is not None
    computed = (plan.public_bytes, plan.query_bytes, plan.answer_bytes)
    assert tuple(int(n.replace(",", "")) for n in documented.groups()) == computed


@pytest.mark.parametrize(("importer", "says"), [("from_sklearn", "setosa"), ("from_onnx", "True")])
def test_the_programs_with_models_from_elsewhere_run(
    importer: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    programs = programs_of("imported-models.md")
    (program,) = [each for each in programs if f"{importer}(" in each]
    assert f"# {says}\n" in program
    assert output(program, tmp_path, monkeypatch, capsys) == f"{says}\n"


def test_the_program_about_networks_with_relu_runs_to_an_encrypted_answer(tmp_path: Path) -> None:
    programs = programs_of("relu-networks.md")
    (program,) = [each for each in programs if "replace_activations(" in each]
    (tmp_path / "relu.py").write_text(program)
    names = runpy.run_path(str(tmp_path / "relu.py"))
    report = names["replaced"].report
    assert report.agreement > 0.97
    assert report.accuracy_after > report.accuracy_before - 0.01
    assert names["compiled"].plan.classes == 10


def test_the_bytes_that_the_service_page_shows_are_those_of_the_model() -> None:
    text = (HOW_TO / "service.md").read_text()
    plan = compile_app_model(build_model("hog-linear"), MODELS["hog-linear"]).plan
    shown = re.search(
        r"keys ([\d,]+) bytes, a question ([\d,]+), an answer ([\d,]+)$", text, re.MULTILINE
    )
    assert shown is not None
    computed = (plan.public_bytes, plan.query_bytes, plan.answer_bytes)
    assert tuple(int(n.replace(",", "")) for n in shown.groups()) == computed


def test_the_metrics_of_the_strategys_example_are_taken() -> None:
    programs = programs_of("strategy.md")
    (program,) = [each for each in programs if "metrics = Metrics(" in each]
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102
    assert names["metrics"].evaluation_noise == 4.0


def _exists(dotted: str) -> bool:
    """Whether ``privacy.x.Name`` is a module, or a name in one."""
    module, _, name = dotted.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name) or bool(
            importlib.import_module(dotted)
        )
    except ModuleNotFoundError:
        return False


def _section(heading: str) -> str:
    text = (ROOT / "CHANGELOG.md").read_text()
    return text.partition(f"\n## [{heading}]")[2].partition("\n## [")[0]


def _to_this_release() -> str:
    """What has changed since the release before this one, whether it is released or not yet."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return _section("Unreleased") + _section(version)


def test_a_heading_of_the_changelog_is_there_once() -> None:
    headings = re.findall(r"^### (\w+)$", _section("Unreleased"), re.MULTILINE)
    assert headings == ["Added", "Changed", "Removed", "Fixed"]


def test_names_that_the_changelog_sends_to_are_there() -> None:
    """In the right column of a table, right of an arrow, or where one imports from now."""
    text = _to_this_release()
    name = r"`((?:privacy|strategies|flower_app)\.[\w.]+)`"
    cells = [line.rsplit("|", 2)[1] for line in text.splitlines() if line.startswith("|")]
    sent = re.findall(rf"(?:→|\bin|\bfrom)\s+{name}", text)
    sent += re.findall(name, "\n".join(cells))
    assert len(sent) > 10
    assert [each for each in sent if not _exists(each)] == []


def test_errors_in_the_changelog_have_their_names_of_today() -> None:
    folders = [file.parent for part in PACKAGES for file in (ROOT / part).rglob("errors.py")]
    modules = [".".join((*folder.relative_to(ROOT).parts, "errors")) for folder in folders]
    errors = {name for module in modules for name in dir(importlib.import_module(module))}
    named = set(re.findall(r"`(?:\w+\.)*(\w+Error)`", _to_this_release()))
    assert len(named) > 20
    assert {name for name in named if name not in errors and not hasattr(builtins, name)} == set()


@pytest.mark.parametrize("call", [accept_plan, ServiceClient.plan, answer_encrypted_round])
def test_the_contract_of_a_plan_is_asked_for_by_its_name(call: Any) -> None:
    assert "`Expectation`, `expectation=` | `InputContract`, `contract=`" in _to_this_release()
    with pytest.raises(TypeError, match="expectation: not an argument here; give contract"):
        call(expectation=None)
