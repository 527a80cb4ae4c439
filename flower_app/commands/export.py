"""``python -m flower_app export``: a run's results described as an RO-Crate, for archives."""

import argparse
import json
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flower_app.errors import SettingError
from flower_app.report.results_folder import ResultsFolder
from privacy.files import write_durably
from privacy.imports import needing
from privacy.json_text import read_json

if TYPE_CHECKING:
    from rocrate.rocrate import ROCrate

METADATA = "ro-crate-metadata.json"
_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_PROJECT = "https://pypi.org/project/bloomseal"
_PICTURE = "A picture of the report"
_NOT_PRIVATE = f"{_PICTURE}; of a simulation, not private: what the first clients hold"
_FILES = {
    "holdings.png": _NOT_PRIVATE,
    "holdings.svg": _NOT_PRIVATE,
    "report.html": "The run, for a person",
    "metrics.json": "Everything measured",
    "config.json": "Every setting; version, commit and digest of the source",
    "resume.toml": "The settings, to go on with the run",
    "privacy-ledger.jsonl": "What was spent of the privacy budget",
    "model.safetensors": "The finished model",
    "checkpoint.safetensors": "The state after the last round",
    "progress.json": "Accuracy by round",
    "encrypted-round.json": "The release of the encrypted test-time round",
    "task.toml": "What the data are, what was learnt and what may be spent",
}
_KINDS = {".safetensors": "application/octet-stream", ".toml": "application/toml"}
_KINDS |= {".jsonl": "application/jsonl", ".md": "text/markdown"}


def add_command(commands: Any) -> None:
    """Add ``export`` to the app's command line."""
    parser = commands.add_parser(
        "export",
        description=f"Writes {METADATA} into a finished run's folder, which is then an RO-Crate: "
        "archives such as Zenodo and WorkflowHub read from it what each file is, which program "
        "made it, who answers for it, and which privacy was guaranteed. It holds nothing that the "
        "folder does not.",
    )
    parser.add_argument(
        "results", type=Path, metavar="RESULTS_DIR", help="of a run, such as results/latest"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the description.

    Raises
    ------
    SettingError
        If the folder is not one of a finished run, or cannot be written.
    """
    folder = ResultsFolder(options.results.resolve())
    if not folder.finished:
        raise SettingError(
            f"{options.results} is not the folder of a finished run (metrics.json is missing); "
            "give one, such as results/latest"
        )
    try:
        metrics = read_json(folder.file("metrics.json").read_text())
        crate = crate_of(folder.path, metrics)
        described = json.dumps(crate.metadata.generate(), indent=2, ensure_ascii=False)
        write_durably(folder.file(METADATA), described.encode() + b"\n", mode=0o666)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SettingError(f"{options.results} cannot be exported: {error}") from error
    print(f"wrote {folder.file(METADATA)}")
    return 0


def crate_of(folder: Path, metrics: Mapping[str, Any]) -> "ROCrate":
    """The description of a finished run's folder."""
    with needing("export", extra="rocrate"):
        from rocrate.model.contextentity import ContextEntity
        from rocrate.rocrate import ROCrate

    crate = ROCrate()
    files = [
        crate.add_file(path, path.name, properties=_file(path))
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != METADATA and path.suffix != ".lock"
    ]

    def entity(identifier: str, /, **properties: Any) -> Any:
        kept = {key.replace("at_", "@"): value for key, value in properties.items() if value}
        return crate.add(ContextEntity(crate, identifier, properties=kept))

    about, software = metrics["about"], metrics["software"]
    program = entity(
        _PROJECT,
        at_type="SoftwareApplication",
        name="bloomseal",
        softwareVersion=software["version"],
        identifier=software["source_sha256"],
        version=software["commit"],
    )
    profile = entity(_PROFILE, at_type="CreativeWork", name="Process Run Crate", version="0.5")
    controller = about["controller"] and entity(
        "#controller", at_type="Organization", name=about["controller"], email=about["contact"]
    )
    figures = [
        entity(f"#{name.replace(' ', '-')}", at_type="PropertyValue", name=name, value=value)
        for name, value in _figures(metrics).items()
    ]
    action = entity(
        "#run",
        at_type="CreateAction",
        name=f"Private federated training of {metrics['model']} on {metrics['dataset']}",
        description=about["purpose"],
        actionStatus="http://schema.org/CompletedActionStatus",
    )
    action["instrument"] = program
    action["result"] = files
    if controller:
        action["agent"] = controller
        crate.root_dataset["author"] = controller
    crate.name = f"{metrics['model']} on {metrics['dataset']}, trained privately"
    crate.description = about["purpose"] or action["name"]
    crate.root_dataset["conformsTo"] = profile
    crate.root_dataset["mentions"] = action
    crate.root_dataset["variableMeasured"] = figures
    return crate


def _file(path: Path) -> dict[str, Any]:
    kind = _KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    properties: dict[str, Any] = {"name": path.name, "contentSize": str(path.stat().st_size)}
    properties |= {"encodingFormat": kind} if kind else {}
    if text := _FILES.get(path.name) or (_PICTURE if str(kind).startswith("image/") else ""):
        properties["description"] = text
    return properties


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The guarantee and the accuracy; a run without one says so."""
    privacy = metrics["privacy"]
    level = privacy.get("client_level") or privacy["record_level"]
    spent = "infinite: not private" if level["epsilon"] is None else level["epsilon"]
    return {
        "epsilon": spent,
        "delta": level["delta"],
        "protected unit": level["unit"],
        "test accuracy": metrics["accuracy"]["test"],
    }
