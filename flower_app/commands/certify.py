"""``python -m flower_app certify``: how far encrypted answers are from a trained model's own."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from flower_app.data import Split, encode, load_dataset
from flower_app.encrypted.model import compile_named
from flower_app.errors import SettingError
from flower_app.models.specs import MODELS
from flower_app.report.plots import BLUE, INK, SOFT, drawing
from flower_app.report.results_folder import task_beside, trained_model
from flower_app.tasks import Task, read_holdings, server_test_data
from privacy.inference import Certificate, certify
from privacy.json_text import read_json


def add_command(commands: Any) -> None:
    """Add ``certify`` to the app's command line."""
    parser = commands.add_parser(
        "certify",
        description="Compiles the model of a results folder, asks it encrypted questions about "
        "test images under keys that are thrown away, and writes certificate.json and "
        "certificate.png into the folder.",
    )
    parser.add_argument(
        "results", type=Path, metavar="RESULTS_DIR", help="of a run, such as results/latest"
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="how many test images, or rows (1000, or all)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the certificate.

    Raises
    ------
    SettingError
        If the folder is not one of a finished run, or there are not so many images.
    """
    folder: Path = options.results
    name, weights = trained_model(folder)
    task = task_beside(weights)
    data = _test_data(folder, task)
    images = "images" if task is None else task.things[1]
    count = min(1000, len(data)) if options.images is None else options.images
    if not 1 <= count <= len(data):
        raise SettingError(f"--images is {count}; give 1 to {len(data)} test {images}")
    try:
        compiled = compile_named(name, weights)
    except ValueError as error:
        raise SettingError(f"the model cannot be certified: {error}") from error
    print(compiled.plan)
    print(f"Asking {count} encrypted questions ...", flush=True)
    examples = data.images[:count]
    inputs = encode(examples, "own" if task else MODELS[name].kind)
    result = certify(compiled, inputs, np.asarray(data.labels[:count]))
    (folder / "certificate.json").write_text(result.to_json() + "\n")
    _draw(folder / "certificate.png", result)
    print(
        f"{100 * result.encrypted_accuracy:.2f} % right encrypted, "
        f"{100 * result.plain_accuracy:.2f} % in the clear, {100 * result.agreement:.2f} % the "
        f"same class; largest error of a logit {result.worst_error:.3g}, "
        f"predicted {result.predicted_error:.3g}; {result.evaluate_ms:.1f} ms an evaluation"
    )
    if result.beyond_prediction:
        print(
            f"The prediction was wrong: {result.beyond_prediction} of {result.images} {images} "
            f"have a larger error (they are unlike the {images} that the plan was compiled with); "
            "rely on the largest error here, or on the plan's for the worst input, "
            f"{result.predicted_worst_error:.3g}"
        )
    print(f"wrote {folder / 'certificate.json'} and {folder / 'certificate.png'}")
    return 0


def _test_data(folder: Path, task: Task | None) -> Split:
    """The test data of the run in a folder."""
    if task:
        return (server_test_data(task) if task.test else read_holdings(task).dataset).test
    config = read_json((folder / "config.json").read_text())
    try:
        dataset, data_dir = config["dataset"], config["data-dir"]
    except LookupError as error:
        raise SettingError(f"{folder / 'config.json'} names no {error.args[0]!r}") from error
    return load_dataset(dataset, data_dir=Path(data_dir) if data_dir else None).test


def _draw(path: Path, c: Certificate) -> None:
    """Accuracy, errors, bytes and milliseconds of a fidelity certificate."""
    panels: tuple[tuple[str, dict[str, float], str], ...] = (
        (
            "Share of images (%)",
            {
                "right, in the clear": 100 * c.plain_accuracy,
                "right, encrypted": 100 * c.encrypted_accuracy,
                "same class": 100 * c.agreement,
            },
            "linear",
        ),
        (
            "Error of a logit",
            {
                "largest measured": c.worst_error,
                "predicted": c.predicted_error,
                "predicted, any input": c.predicted_worst_error,
            },
            "log",
        ),
        (
            "Bytes",
            {"keys": c.public_bytes, "query": c.query_bytes, "answer": c.answer_bytes},
            "log",
        ),
        (
            "Milliseconds",
            {"encrypt": c.encrypt_ms, "evaluate": c.evaluate_ms, "decrypt": c.decrypt_ms},
            "log",
        ),
    )
    with drawing(path, 11, 6) as figure:
        for axes, (title, values, scale) in zip(figure.subplots(2, 2).flat, panels, strict=True):
            axes.barh(list(values)[::-1], list(values.values())[::-1], color=BLUE)
            axes.set_xscale(scale)
            axes.margins(x=0.25)
            axes.grid(visible=False)
            for place, value in enumerate(list(values.values())[::-1]):
                axes.text(value, place, f" {value:,.4g}", va="center", color=INK, fontsize=9)
            axes.set_title(title)
        figure.suptitle(f"{c.images} images, model {c.model_version[:8]}", color=SOFT, fontsize=9)
