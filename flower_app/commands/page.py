"""``python -m flower_app page``: a copy of the page on which owners ask from a browser."""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from flower_app.errors import SettingError
from flower_app.models.specs import MODELS, ModelSpec
from flower_app.tasks import read_task, task_spec
from privacy.files import write_durably
from privacy.inference import InputContract
from privacy.inference_service import Choice, Page


def add_command(commands: Any) -> None:
    """Add ``page`` to the app's command line."""
    parser = commands.add_parser(
        "page",
        description="Writes the page that `serve` has at /, as files to host elsewhere, and prints "
        "the SHA-256 of its index.html, which names the hashes of all its scripts; or, under a "
        "name that ends in .html, as one file to keep and to open from a disk. The service must "
        "name the copy's origin: serve --origin URL, or --origin null for a file on a disk.",
    )
    parser.add_argument(
        "output",
        type=Path,
        metavar="FOLDER_OR_FILE.html",
        help="to write into, or the one file",
    )
    models = sorted(name for name, spec in MODELS.items() if spec.in_ckks)
    parser.add_argument("model", nargs="?", choices=models, help="that the service has, or")
    parser.add_argument(
        "--task", type=Path, metavar="FILE", help="task.toml of a table that it was trained for"
    )
    parser.add_argument(
        "--service", required=True, metavar="URL", help="of the service, https://host:port"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the files; a folder, file or URL that cannot be used is a SettingError."""
    output: Path = options.output
    if (options.model is None) == (options.task is None):
        raise SettingError("give the name of a model, or --task FILE, and one of them alone")
    spec = MODELS[options.model] if options.model else _table_spec(options.task)
    try:
        page = page_of(spec, service=options.service)
        if output.suffix == ".html":
            write_durably(output, page.single_file, mode=0o644)
        else:
            page.write(output)
            output /= "index.html"
    except (ValueError, OSError) as error:
        raise SettingError(str(error)) from error
    print(f"{hashlib.sha256(output.read_bytes()).hexdigest()}  {output}")
    return 0


def _table_spec(path: Path) -> ModelSpec:
    task = read_task(path)
    if task.pictures:
        raise SettingError(f"{path} is of pictures, for which there is no page")
    return task_spec(task)


def page_of(spec: ModelSpec, *, service: str = "") -> Page:
    """The page for a model of images of digits, or of a table's rows."""
    contract = InputContract(
        spec.shape, (spec.low, spec.high), spec.classes, feature_names=spec.feature_names
    )
    if spec.kind == "own":
        title = "Ask about a row, without showing it"
        choices = tuple(Choice(*each) for each in spec.choices)
        return Page(
            title,
            contract,
            "numbers",
            spec.feature_names,
            service=service,
            choices=choices,
            may_be_empty=True,
        )
    title = "Ask about a digit, without showing it"
    return Page(title, contract, spec.kind, service=service)
