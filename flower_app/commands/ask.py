"""``python -m flower_app ask``: classify images with a service that sees none of them."""

import argparse
import contextlib
import getpass
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_data_path

from flower_app.commands.own_questions import Question, find_questions, own_questions
from flower_app.commands.plan_questions import (
    find_plan_questions,
    plan_questions,
    read_plan,
    same_plan,
)
from flower_app.data import encode
from flower_app.errors import CommandFailedError, DataError
from flower_app.models.specs import MODELS, ModelSpec
from flower_app.pictures.digits import FITS, Fit
from flower_app.pictures.files import STDIN, find_images, read_images
from flower_app.tasks import Task, read_task, task_spec
from privacy.inference import Answer, InputContract, Plan, TopClasses, accept_plan
from privacy.inference.errors import (
    MessageError,
    OutOfRangeError,
    PlanRefusedError,
    ReleaseError,
)
from privacy.inference_service import KeyFile, OwnerSession, ServiceClient
from privacy.inference_service.errors import KeyFileError, KeyFileInUseError, ServiceError
from privacy.json_text import read_json

if TYPE_CHECKING:
    from privacy.shared_inference import Plan as SharedPlan

_PASSPHRASE, _TOKEN = "BLOOMSEAL_PASSPHRASE", "BLOOMSEAL_TOKEN"


_About = Task | Plan | None
"""What questions are about: rows or pictures of a task, inputs of a plan, or images of digits."""


class AskError(CommandFailedError):
    """A reason why nothing can be asked, with the remedy."""


def add_command(commands: Any) -> None:
    """Add ``ask`` to the app's command line."""
    parser = commands.add_parser(
        "ask",
        description="Encrypts images or rows here, has a service evaluate them, and decrypts the "
        "answers here. Prints the class of each. The secret key is kept in a file, encrypted under "
        f"a passphrase, which is asked for or taken from {_PASSPHRASE}.",
    )
    parser.add_argument(
        "url",
        metavar="URL",
        help="of the service, https://host:port; with --shared, alice's and bob's host:port with "
        "a comma between them",
    )
    parser.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="QUESTIONS",
        help="pictures (PNG, JPEG, GIF, BMP, TIFF, WebP) of any size, also photographs, light on "
        "dark or dark on light; .npy, .npz or .csv with one or several (0 to 255, or 0 to 1); "
        "folders of these; - for one of them from standard input. With --task what its data "
        "are: CSV files and folders of them, or a row as 'age=40,sex=female'; or pictures",
    )
    parser.add_argument(
        "--task", type=Path, metavar="FILE", help="task.toml that the model was trained for"
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="plan of a compiled model (JSON), from whoever has the model: questions are CSV files "
        "and .npy files of its inputs, folders of them, or a row as '5.1,3.5,1.4,0.2'",
    )
    parser.add_argument(
        "--fit",
        choices=FITS,
        default=FITS[0],
        help="how pictures of another size are brought to 28 by 28: the drawing is cut out and "
        "centred as MNIST's digits are (digit, the default), all of it is scaled (whole, for "
        "garments), or they are refused and pixels are taken as they are (exact)",
    )
    parser.add_argument(
        "--shared",
        type=Path,
        metavar="FOLDER",
        help="ask two workers in shares, with the data owner's folder from `provider begin`",
    )
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificates to trust, PEM")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"with your token; or set {_TOKEN}"
    )
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="of secret keys (one a service, among your data)"
    )
    parser.add_argument(
        "--one-time-keys", action="store_true", help="make keys for this call and keep none"
    )
    parser.add_argument("--top", type=int, metavar="K", help="print the K best classes in order")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each image")
    parser.add_argument(
        "--insecure-no-tls", action="store_true", help="allow http://, where anybody may listen"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask.

    Returns
    -------
    int
        0 if every image has an answer, otherwise 1.

    Raises
    ------
    AskError
        If nothing can be asked.
    """
    if options.top is not None and options.top < 1:
        raise AskError(f"--top is {options.top}; give 1 or more classes")
    if options.shared is not None:
        return _ask_workers(options)
    if options.one_time_keys and options.keys is not None:
        raise AskError("--one-time-keys contradicts --keys; give one of them")
    if options.url.lower().startswith("http://") and not options.insecure_no_tls:
        raise AskError(
            f"{options.url} is without TLS: whoever listens can take the token and forge messages; "
            "use https, or give --insecure-no-tls"
        )
    if options.insecure_no_tls:
        print("warning: without TLS whoever listens can take the token", file=sys.stderr)
    try:
        client = ServiceClient(
            options.url,
            token=_token(options.token_file),
            ca=options.ca,
            insecure_no_tls=options.insecure_no_tls,
        )
    except OSError as error:
        raise AskError("--ca" + str(error).removeprefix("ca")) from error
    except ValueError as error:
        raise AskError(str(error)) from error
    if options.task is not None and options.plan is not None:
        raise AskError("--task contradicts --plan; give one of them")
    about: _About = None
    if options.task is not None:
        about = read_task(options.task)
    elif options.plan is not None:
        about = read_plan(options.plan)
    files, missing = _files(options.images, about)
    if not files:
        return 1
    with client, contextlib.ExitStack() as stack:
        try:
            text = client.plan_text()
            if isinstance(about, Plan):
                plan, questions = same_plan(text, about), plan_questions(files, about, _notify)
            elif about is not None:
                plan, _ = accepted_plan(text, about)
                questions = own_questions(files, about, notify=_notify)
            else:
                plan, spec = accepted_plan(text)
                questions = _encoded(_all_images(files, options.fit), spec)
            if options.top is not None and options.top > plan.classes:
                raise AskError(
                    f"--top is {options.top}; the model has {plan.classes} classes, give at most "
                    "that many"
                )
            release = None if options.top is None else TopClasses(options.top)
            key_file = _key_file(options, stack)
            session = OwnerSession(client, plan, key_file=key_file, release=release)
            try:
                failed = ask_all(session, plan, questions, len(files), as_json=options.json)
                return 1 if failed or missing else 0
            finally:
                session.end()
        except ServiceError as error:
            if error.code == "untrusted":
                remedy = "give its authority's certificate with --ca FILE, over a channel you trust"
                raise AskError(f"{error.message}; {remedy}") from error
            raise AskError(str(error)) from error
        except (PlanRefusedError, KeyFileError, ReleaseError, MessageError) as error:
            raise AskError(str(error)) from error


def _ask_workers(options: argparse.Namespace) -> int:
    """Ask in shares; options that belong to a service are refused."""
    named = {
        "--ca": options.ca,
        "--token-file": options.token_file,
        "--keys": options.keys,
        "--plan": options.plan,
    }
    switches = {
        "--one-time-keys": options.one_time_keys,
        "--insecure-no-tls": options.insecure_no_tls,
    }
    strange = [name for name, value in (named | switches).items() if value]
    if strange:
        raise AskError(f"{strange[0]} is for a service; --shared takes all from its folder")
    from flower_app.commands.ask_shared import ask_workers, shared_spec

    task = None if options.task is None else read_task(options.task)
    files, missing = _files(options.images, task)
    if not files:
        return 1

    def questions(plan: "SharedPlan") -> Iterator[Question]:
        spec = shared_spec(plan, task)
        if task is not None:
            return own_questions(files, task, notify=_notify)
        return _encoded(_all_images(files, options.fit), spec)

    failed = ask_workers(
        options.url,
        options.shared,
        questions,
        len(files),
        names=task.class_names if task else (),
        top=options.top,
        as_json=options.json,
    )
    return 1 if failed or missing else 0


def accepted_plan(text: str, task: Task | None = None) -> tuple[Plan, ModelSpec]:
    """A service's plan, checked against the task, or without one against the app's models.

    Raises
    ------
    PlanRefusedError
        If it is for none of them, or could harm.
    """
    try:
        shape = tuple(read_json(text)["input_shape"])
    except (ValueError, LookupError, TypeError) as error:
        raise PlanRefusedError("the service did not send a plan; is it one of ours?") from error
    for spec in [task_spec(task)] if task else MODELS.values():
        if spec.shape == shape:
            contract = InputContract(
                spec.shape, (spec.low, spec.high), spec.classes, feature_names=spec.feature_names
            )
            plan = accept_plan(text, contract)
            if task and plan.class_names not in ((), spec.class_names):
                raise PlanRefusedError(
                    f"the plan's classes are {', '.join(plan.class_names)}, and {task.name} has "
                    f"{', '.join(spec.class_names)}; give the task.toml of the model that is served"
                )
            return plan, spec
    if task:
        raise PlanRefusedError(
            f"the plan is for inputs of shape {shape}, and {task.name} has "
            f"{task_spec(task).shape}; give the task.toml of the model that is served"
        )
    raise PlanRefusedError(
        f"the plan is for inputs of shape {shape}, which no model here has; give the task.toml of "
        "the model with --task, or its plan with --plan"
    )


def _files(paths: list[Path], about: _About) -> tuple[list[Path], int]:
    """The files at all paths, and the number of paths without any; those are printed."""
    if paths.count(STDIN) > 1:
        raise AskError("- is given twice; standard input can be read once")
    files, missing = [], 0
    for path in paths:
        try:
            if isinstance(about, Plan):
                files += find_plan_questions(path, about)
            elif about is not None:
                files += find_questions(path, about)
            else:
                files += find_images(path, notify=_notify)
        except DataError as error:
            missing += 1
            print(f"error: {error}", file=sys.stderr)
    return files, missing


def _notify(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def ask_all(
    session: OwnerSession,
    plan: Plan,
    questions: Iterator[Question],
    files: int,
    *,
    as_json: bool,
) -> int:
    """Ask each question; the number of those without an answer."""
    begun, evaluating, answered, failed = time.perf_counter(), [], 0, 0
    for number, name, inputs in questions:
        try:
            if isinstance(inputs, DataError):
                raise inputs
            answer, seconds = session.ask(inputs)
        except (DataError, OutOfRangeError, ServiceError, MessageError) as error:
            if isinstance(error, ServiceError) and error.code not in _OF_ONE_IMAGE:
                raise
            failed += 1
            reason = str(error) if isinstance(error, DataError) else f"{name}: {error}"
            print(f"error: {reason}", file=sys.stderr)
            continue
        answered += 1
        evaluating.append(seconds)
        classes = _classes(answer)
        names = [plan.class_names[label] for label in classes] if plan.class_names else []
        if as_json:
            line = {"image": name, "classes": list(classes)} | ({"names": names} if names else {})
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            shown = ", ".join(names) or " ".join(map(str, classes)) or "none"
            place = f"[{number:>{len(str(files))}}/{files}] " if files > 1 else ""
            print(f"{place}{name}: {shown}", flush=True)
    seconds = time.perf_counter() - begun
    keys = "new keys" if session.keys_made else "the keys kept here" if answered else "no keys"
    print(
        f"{answered} answered, {failed} not, in {seconds:.1f} s under {keys}"
        + (f"; evaluation {1000 * float(np.median(evaluating)):.1f} ms" if evaluating else ""),
        file=sys.stderr,
    )
    return failed


def _classes(answer: Answer) -> tuple[int, ...]:
    """The class; the best ones, where more were asked for; or the labels that hold."""
    if answer.label_sets is not None:
        return answer.label_sets[0]
    return (answer.label,) if answer.top is None else answer.top[0]


_OF_ONE_IMAGE = {"evaluator-failed", "too-slow"}
"""Refusals after which the next image may well be answered."""


Image = NDArray[np.uint8] | DataError


def _all_images(files: list[Path], fit: Fit) -> Iterator[tuple[int, str, Image]]:
    """Each image with its file's number and its own name, or the reason why a file has none."""
    for number, file in enumerate(files, 1):
        try:
            for name, image in read_images(file, fit=fit, notify=_notify):
                yield number, name, image
        except DataError as error:
            yield number, file.name, error


def _encoded(images: Iterator[tuple[int, str, Image]], spec: ModelSpec) -> Iterator[Question]:
    """Each image as the model sees it, one at a time: its public features are computed here."""
    for number, name, image in images:
        if isinstance(image, DataError):
            yield number, name, image
        else:
            yield number, name, encode(image[None], spec.kind)[0]


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(_TOKEN) or None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AskError(f"the token cannot be read: {error}") from error


def _key_file(options: argparse.Namespace, stack: contextlib.ExitStack) -> KeyFile | None:
    if options.one_time_keys:
        return None
    path = options.keys
    if path is None:
        name = hashlib.sha256(options.url.rstrip("/").encode()).hexdigest()[:16]
        path = user_data_path("bloomseal") / "keys" / f"{name}.keys"
    try:
        new = not path.exists()
    except OSError as error:
        raise AskError(f"{path} cannot be used: {error.strerror}") from error
    file = KeyFile(path, _passphrase(new=new))
    try:
        return stack.enter_context(file)
    except KeyFileInUseError:
        if options.keys is not None:
            raise
        _notify(f"another `ask` uses {path}; this one makes keys for itself and keeps none")
        return None


def _passphrase(*, new: bool) -> str:
    if _PASSPHRASE in os.environ:
        return os.environ[_PASSPHRASE]
    if not sys.stdin.isatty():
        raise AskError(
            f"there is no terminal to ask for the passphrase; set {_PASSPHRASE}, or give "
            "--one-time-keys"
        )
    try:
        passphrase = getpass.getpass("New passphrase for your keys: " if new else "Passphrase: ")
        again = getpass.getpass("Once more: ") if new else passphrase
    except EOFError as error:
        raise AskError("no passphrase was given; nothing was asked") from error
    if again != passphrase:
        raise AskError("the two passphrases differ; try again")
    return passphrase
