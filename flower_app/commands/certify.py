"""``python -m flower_app certify``: how far encrypted answers are from a trained model's own."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from flower_app.data import encode, load_dataset
from flower_app.encrypted.evaluator import compile_named
from flower_app.errors import SettingError
from flower_app.models.specs import MODELS
from flower_app.report.plots import plot_certificate
from flower_app.report.results_folder import trained_model
from privacy.inference import certify


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
    parser.add_argument("--images", type=int, default=1000, help="test images (1000)")
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
    config = json.loads((folder / "config.json").read_text())
    try:
        dataset, data_dir = config["dataset"], config["data-dir"]
    except LookupError as error:
        raise SettingError(f"{folder / 'config.json'} names no {error.args[0]!r}") from error
    data = load_dataset(dataset, data_dir=Path(data_dir) if data_dir else None).test
    if not 1 <= options.images <= len(data):
        raise SettingError(f"--images is {options.images}; give 1 to {len(data)} test images")
    try:
        compiled = compile_named(name, weights)
    except ValueError as error:
        raise SettingError(f"the model cannot be certified: {error}") from error
    print(compiled.plan)
    print(f"Asking {options.images} encrypted questions ...", flush=True)
    inputs = encode(data.images[: options.images], MODELS[name].kind)
    result = certify(compiled, inputs, np.asarray(data.labels[: options.images]))
    (folder / "certificate.json").write_text(result.to_json() + "\n")
    plot_certificate(folder / "certificate.png", result)
    print(
        f"{100 * result.encrypted_accuracy:.2f} % right encrypted, "
        f"{100 * result.plain_accuracy:.2f} % in the clear, {100 * result.agreement:.2f} % the "
        f"same class; largest error of a logit {result.worst_error:.3g}, "
        f"predicted {result.predicted_error:.3g}; {result.evaluate_ms:.1f} ms an evaluation"
    )
    if result.beyond_prediction:
        print(
            f"The prediction was wrong: {result.beyond_prediction} of {result.images} images have "
            "a larger error (they are unlike the images that the plan was compiled with); rely on "
            "the largest error here, or on the plan's for the worst input, "
            f"{result.predicted_worst_error:.3g}"
        )
    print(f"wrote {folder / 'certificate.json'} and {folder / 'certificate.png'}")
    return 0
