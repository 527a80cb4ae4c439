"""``python -m flower_app serve``: answer encrypted questions to a trained model over HTTPS."""

import argparse
import contextlib
import logging
import shlex
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flower_app.commands.page import page_of
from flower_app.encrypted.evaluator import start_evaluator
from flower_app.errors import SettingError, counted
from flower_app.models.specs import MODELS
from flower_app.processes.certificates import make_certificates
from flower_app.processes.listening import listen
from flower_app.report.results_folder import TASK_FILE, task_beside, trained_model
from flower_app.tasks import task_spec
from privacy.arguments import seconds, whole
from privacy.imports import needing
from privacy.inference import EvaluatorPool, EvaluatorProcess, InputContract, PackedModel
from privacy.inference.errors import EvaluatorFailedError, ModelFileError
from privacy.inference_service import (
    InsecureNoAuthentication,
    Page,
    ServiceLimits,
    ServiceServer,
    TokenFile,
    create_app,
)
from privacy.inference_service.client import is_loopback
from privacy.inference_service.errors import TokenFileError
from privacy.inference_service.page import check_origins
from privacy.inference_service.questions import Questions
from privacy.inference_service.server import check_certificate

_DEFAULTS = ServiceLimits()
_MOST_MEGABYTES = (1 << 43) - 1  # bytes in 63 bits


@dataclass(frozen=True)
class _Security:
    """Certificate and key (None without TLS), tokens (None without authentication).

    ``ask`` holds the arguments of the command ``ask`` for somebody on this machine, ``invitation``
    a token for the page. ``folder`` lasts as long as the service.
    """

    certificate: Path | None
    key: Path | None
    tokens: TokenFile | None
    ask: tuple[str, ...]
    invitation: str
    folder: Path


@dataclass(frozen=True)
class _Model:
    """What is served, and how it is asked.

    ``file`` holds it compiled, for the processes. ``about`` holds the arguments of ``ask`` that say
    what is asked about, ``plan`` the plan of a model that only its plan describes.
    """

    name: str
    file: Callable[[], contextlib.AbstractContextManager[Path]]
    page: Page | None
    about: tuple[str, ...]
    plan: str = ""


def add_command(commands: Any) -> None:
    """Add ``serve`` to the app's command line."""
    parser = commands.add_parser(
        "serve",
        description="Serves the model of a results folder, or any compiled model that "
        "CompiledModel.save wrote. On a loopback address, without a "
        "certificate or tokens of yours, it makes both for this occasion and prints the `ask` "
        "command that uses them. TLS and authentication are on unless switched off by name.",
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="RESULTS_DIR_OR_FILE",
        help="the folder of a run, such as results/latest, or a compiled model's file",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8443, help="port (8443); 0 takes a free one")
    safety = parser.add_argument_group("who gets in")
    safety.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM, with its chain")
    safety.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's key, PEM")
    safety.add_argument(
        "--tokens", type=Path, metavar="FILE", help="made with `python -m flower_app token add`"
    )
    safety.add_argument(
        "--insecure-no-tls",
        action="store_true",
        help="speak plain HTTP, for instance behind a proxy on this machine that ends TLS",
    )
    safety.add_argument(
        "--insecure-no-authentication",
        action="store_true",
        help="let everybody in who can connect, as one owner, sharing all owners' quota",
    )
    safety.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="of a page elsewhere that may ask, such as https://clinic.example, or null for a page "
        "that is a file on a disk; once for each",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--workers", type=int, help="evaluating processes (as many as this one may use cores)"
    )
    limits.add_argument(
        "--worker-memory",
        type=int,
        metavar="MB",
        help="memory limit per process, besides the model (what the plan needs, and 256)",
    )
    for name, kind, text in (
        ("answer-seconds", float, "answer timeout, after which the process is ended (60)"),
        ("queue", int, "requests that wait, at most"),
        ("requests-per-minute", int, "limit for one owner"),
        ("owners", int, "owners whose keys are held, at most"),
        ("key-sets", int, "key sets of one owner at a time, one for each asker"),
        ("key-hours", float, "lifetime of an owner's keys"),
    ):
        default = getattr(_DEFAULTS, name.replace("-", "_"), 60.0)
        text = text if "(" in text else f"{text} ({default:g})"
        limits.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=text)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until ended; a wrong option, folder or file, or a taken port, is a SettingError."""
    model = _from_file(options.model) if options.model.is_file() else _from_run(options.model)
    limits, patience, memory = _limits(options)
    try:
        check_origins(options.origin)
    except ValueError as error:
        raise SettingError(f"--{error}") from error

    used: list[int] = []

    def start() -> EvaluatorProcess:
        process = start_evaluator(file, memory=memory)
        used.append(process.memory)
        process.timeout = patience
        return process

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    with contextlib.ExitStack() as stack:
        security = stack.enter_context(_security(options))
        listening = stack.enter_context(listen(options.host, options.port))
        print(f"{'Loading' if model.plan else 'Compiling'} {model.name} ...", flush=True)
        try:
            file = stack.enter_context(model.file())
            pool = stack.enter_context(EvaluatorPool(start, processes=options.workers))
        except (EvaluatorFailedError, ValueError) as error:
            raise SettingError(f"the model cannot be served: {error}") from error
        app = create_app(
            pool,
            authentication=security.tokens or InsecureNoAuthentication(),
            limits=limits,
            page=model.page,
            origins=options.origin,
        )
        server = ServiceServer(
            app,
            certificate=security.certificate,
            key=security.key,
            shutdown_seconds=patience,
        )
        _announce(options, security, listening, pool, used[0], model)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has finished the requests under way
            server.run(sockets=[listening])
    print("Stopped.")
    return 0


def _from_run(results: Path) -> _Model:
    """The model of a run; its faults end the command here, with one sentence."""
    name, weights = trained_model(results)
    with needing("a run's model", extra="app"):
        from flower_app.encrypted.model import compiled_file, load_model  # PyTorch

    load_model(name, weights)
    task = task_beside(weights)
    has_page = task is None or not task.pictures
    spec = task_spec(task) if task else MODELS[name]
    return _Model(
        name,
        lambda: compiled_file(name, weights),
        page_of(spec) if has_page else None,
        ("QUESTIONS", "--task", str(weights.with_name(TASK_FILE).absolute()))
        if task
        else ("IMAGE_OR_FOLDER",),
    )


def _from_file(file: Path) -> _Model:
    """Any compiled model, from its file; its faults end the command here, with one sentence."""
    try:
        plan = PackedModel.load(file).plan
    except ModelFileError as error:
        raise SettingError(str(error)) from error
    if plan.parties:
        raise SettingError(
            f"{file} is a model for a third party, {plan.parties[2]}, who evaluates encrypted "
            "weights; a service has them in the clear. Compile it without parties"
        )
    contract = InputContract(
        plan.input_shape,
        plan.input_range,
        plan.classes,
        multi_label=plan.multi_label,
        feature_names=plan.feature_names,
    )
    title = "Ask about numbers, without showing them"
    is_vector = len(plan.input_shape) == 1
    return _Model(
        file.name,
        lambda: contextlib.nullcontext(file),
        Page(title, contract, "numbers", plan.feature_names) if is_vector else None,
        ("QUESTIONS",),
        plan.to_json(),
    )


def _limits(options: argparse.Namespace) -> tuple[ServiceLimits, float, int | None]:
    """Of owners, of an answer in seconds, and of a process's memory in bytes."""
    memory = options.worker_memory
    try:
        if memory is not None:
            memory = whole("--worker-memory", memory, least=1, most=_MOST_MEGABYTES) << 20
        limits = ServiceLimits(
            queue=options.queue,
            requests_per_minute=options.requests_per_minute,
            owners=options.owners,
            key_sets=options.key_sets,
            key_hours=options.key_hours,
        )
        return limits, seconds("--answer-seconds", options.answer_seconds), memory
    except ValueError as error:
        raise SettingError(str(error)) from error


@contextlib.contextmanager
def _security(options: argparse.Namespace) -> Iterator[_Security]:
    """Certificate and tokens: the given ones, or made for this occasion and then removed."""
    certificate, key, ask = options.tls_certificate, options.tls_key, []
    if (certificate is None) != (key is None):
        raise SettingError("--tls-certificate and --tls-key belong together; give both")
    if options.insecure_no_tls and certificate is not None:
        raise SettingError("--insecure-no-tls contradicts --tls-certificate; give one of them")
    if options.insecure_no_authentication and options.tokens is not None:
        raise SettingError("--insecure-no-authentication contradicts --tokens; give one of them")
    if options.insecure_no_authentication and "null" in options.origin:
        raise SettingError(
            "--origin null lets every page on the web ask that hides its origin: give --tokens, or "
            "leave it out"
        )
    local = is_loopback(options.host)
    with tempfile.TemporaryDirectory(prefix="bloomseal-trial-") as made:
        folder = Path(made)
        if options.insecure_no_tls:
            ask.append("--insecure-no-tls")
        elif certificate is None:
            if not local:
                raise SettingError(
                    f"--host {options.host} is not this machine alone: give --tls-certificate and "
                    "--tls-key (or, where a proxy ends TLS, --insecure-no-tls)"
                )
            trial = make_certificates(folder, options.host)
            certificate, key = trial.certificate, trial.key
            ask += ["--ca", str(trial.ca)]
        else:
            try:
                check_certificate(certificate, key)
            except OSError as error:
                raise SettingError(f"--tls-{error}") from error
        tokens, invitation = None, ""
        if options.tokens is not None:
            tokens = _given_tokens(options.tokens)
        elif not options.insecure_no_authentication:
            if not local:
                raise SettingError(
                    f"--host {options.host} is not this machine alone: make tokens with `python -m "
                    "flower_app token add FILE NAME` and give --tokens FILE"
                )
            tokens = TokenFile(folder / "tokens.json")
            for name, role in (("trial", "owner"), ("operator", "operator")):
                file = folder / f"{name}.token"
                file.touch(0o600)
                file.write_text(tokens.add(name, role=role))  # type: ignore[arg-type]
            ask += ["--token-file", str(folder / "trial.token")]
            invitation = f"#token={tokens.add('page')}"
        yield _Security(certificate, key, tokens, tuple(ask), invitation, folder)


def _given_tokens(path: Path) -> TokenFile:
    tokens = TokenFile(path)
    try:
        callers = tokens.callers()
        if not callers:
            raise SettingError(
                f"{path} holds no tokens; make one: python -m flower_app token add {path} NAME"
            )
        if any(caller.questions is not None for caller in callers):
            Questions(tokens.questions_file).check()
    except TokenFileError as error:
        raise SettingError(str(error)) from error
    return tokens


def _announce(
    options: argparse.Namespace,
    security: _Security,
    listening: socket.socket,
    pool: EvaluatorPool,
    memory: int,
    model: _Model,
) -> None:
    plan, port, page, about = pool.plan, listening.getsockname()[1], model.page, model.about
    if model.plan:
        file = security.folder / "plan.json"
        file.write_text(model.plan)
        about += ("--plan", str(file))
    host = "localhost" if options.host == "127.0.0.1" else options.host
    host = f"[{host}]" if ":" in host else host
    url = f"{'http' if security.certificate is None else 'https'}://{host}:{port}"
    for insecure, warning in (
        (options.insecure_no_tls, "without TLS: whoever listens can use tokens and forge messages"),
        (options.insecure_no_authentication, "without authentication: everybody can ask"),
    ):
        if insecure:
            print(f"warning: serving {warning}", file=sys.stderr)
    print(
        f"Serving {url} with {counted(pool.processes, 'process', 'processes')}, "
        f"{memory >> 20} MB limit each besides the model; keys {plan.public_bytes:,} bytes, "
        f"a question {plan.query_bytes:,}, an answer {plan.answer_bytes:,}"
    )
    if security.ask and is_loopback(options.host):
        command = ["python", "-m", "flower_app", "ask", url, *about, *security.ask]
        print("To ask, on this machine:\n  " + shlex.join(command))
        if page is not None:
            print(f"Or in a browser on it:\n  {url}/{security.invitation}")
            if "--ca" in security.ask:
                print("  (it will warn of the certificate, which is for this occasion)")
    if page is not None:
        print(f"The page's index.html has SHA-256 {page.sha256}")
    print("Ctrl-C ends it.", flush=True)
