"""``python -m flower_app share``: the model owner's part in inference in shares."""

import argparse
from pathlib import Path
from typing import Any

from flower_app.encrypted.model import load_model
from flower_app.errors import CommandFailedError, SettingError
from flower_app.models.specs import MODELS
from flower_app.report.results_folder import task_beside, trained_model
from flower_app.shared.folders import PartyFolder, write_secret
from flower_app.shared.model import compile_shared, write_shares
from flower_app.tasks import task_spec


def add_command(commands: Any) -> None:
    """Add ``share`` to the app's command line."""
    parser = commands.add_parser(
        "share",
        description="Splits a trained model between two workers, alice and bob, of whom neither "
        "learns it. First `share plan` writes the public plan, with which the provider begins "
        "(`provider begin`) and returns a folder for the model owner; then `share model` writes "
        "the workers' shares into that folder: alice.model and bob.model, each for that worker's "
        "folder as `model`.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="plan|model")
    plan = verbs.add_parser("plan", help="write the public plan of a trained model")
    model = verbs.add_parser("model", help="write both workers' shares of the model")
    for verb in (plan, model):
        verb.add_argument(
            "results", type=Path, metavar="RESULTS_DIR", help="of a run, such as results/latest"
        )
    plan.add_argument("file", type=Path, metavar="PLAN", help="to write")
    plan.add_argument(
        "--answer",
        choices=("class", "logits"),
        default="class",
        help="what data owners learn: the class alone (the default), or all logits",
    )
    plan.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images of a question (1)"
    )
    plan.add_argument(
        "--public-model",
        action="store_true",
        help="both workers may know the weights, which takes fewer exchanges and less material; "
        "questions and answers are hidden as before",
    )
    model.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the model owner's, from `provider begin`"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the plan, or the shares.

    Raises
    ------
    SettingError
        If the model cannot be shared.
    CommandFailedError
        If a file is missing, damaged or there already.
    """
    name, weights = trained_model(options.results)
    model, task = load_model(name, weights), task_beside(weights)
    if options.verb == "plan":
        batch, answer, public = options.batch_size, options.answer, options.public_model
    else:
        folder = PartyFolder(options.folder)
        plan = folder.plan()
        batch, answer, public = plan.batch_size, plan.answer, plan.public_model
    try:
        spec = task_spec(task) if task else MODELS[name]
        compiled = compile_shared(model, spec, batch_size=batch, answer=answer, public_model=public)
    except ValueError as error:
        raise SettingError(f"the model cannot be shared: {error}") from error
    if options.verb == "plan":
        write_secret(options.file, compiled.plan.to_bytes())
        print(compiled.plan)
        print(f"wrote {options.file}, which is public; the provider begins with it")
        return 0
    if compiled.plan.digest != plan.digest:
        raise CommandFailedError(
            f"{folder.plan_file} is not the plan of {weights}; begin anew with `share plan`"
        )
    for worker, path in write_shares(compiled, folder).items():
        print(f"wrote {path}: {worker}'s folder has it as `model`")
    return 0
