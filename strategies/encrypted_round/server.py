"""The encrypted test-time round: nodes test the model on data that the server never sees."""

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import PrivacyBudgetExhausted

from privacy import arguments
from privacy.accounting import Budget, Event, Full, Ledger
from privacy.inference import MAX_ROUND_BYTES, EvaluatorProcess
from privacy.inference.errors import EvaluatorFailedError, MessageError
from privacy.mechanisms import LatticeGaussian, Randomness, SumMechanism, SystemRandomness
from privacy.untrusted_text import error_quoted
from strategies import _arguments
from strategies.encrypted_round import messages
from strategies.encrypted_round.evaluators import Evaluators
from strategies.encrypted_round.result import (
    RANGES,
    EncryptedRoundResult,
    node_report,
    release_noised,
    release_public,
)
from strategies.errors import Fault, ReplyError
from strategies.lost_clients import FaultLog, operator_log
from strategies.metrics import NoisedMetrics, PublicMetrics
from strategies.population import ClientRegistry, Population
from strategies.replies import PendingReplies, pull_replies, refuse_error, stream_replies

_MESSAGE_TYPE = f"{MessageType.QUERY}.{messages.ACTION}"
_NAME = "encrypted round"
_BUDGET = "budget=Budget(epsilon=…, delta=…)"


@dataclass(frozen=True)
class _Answered:
    """What a node's questions came to: answers, or why there are none.

    Attributes
    ----------
    node : int
    answers : list of bytes or None
    fault : Fault or None
        None too where the node has nothing to mend, or is none that was asked.
    """

    node: int
    answers: list[bytes] | None = None
    fault: Fault | None = None


class EncryptedRound:
    """Has the nodes of a population test a model on their own data, under encryption.

    Over Flower's ``query`` messages: every node is sent the plan; it makes keys for this round
    alone and sends public ones, with some of its images encrypted; processes that hold the
    model and never a secret key evaluate, mask and re-randomise; the node decrypts, compares
    with its labels, and reports one number. ``answer_encrypted_round`` is the node's side.

    **Guarantee.** The server learns nothing of images, labels and classes but the reports, under
    ring-LWE at 128 bits. What is told of the reports is noised and paid for in the population's
    ledger, at client level, unless every node that reports has agreed to its publication. A node
    that sends garbage, too much, or nothing costs nobody else anything. The console is told each
    kind of that once, the node why its questions are refused, the operator's log who it was.

    **Assumptions.** The server follows the protocol. Each node protects its report from the
    server by noise of its own.

    **Not covered.** A server that answers as it likes: its answers need not be the model's, and
    reports on chosen answers are an oracle for what was encrypted, as narrow as the nodes' noise
    makes it. How long the round took.

    Parameters
    ----------
    population : Population or int
        Who is asked: all of it. As the strategy's, if they share a ledger.
    start_evaluator : callable
        Starts a process that holds the compiled model; called for each worker, and again where
        one died.
    images : int
        How many images a node asks about, at most.
    metrics : NoisedMetrics or PublicMetrics
        What is told of the reports: ``noised_accuracy(z)``, or ``PublicMetrics()``, to which
        nodes agree or not.
    budget : Budget
        The population's; a round that would pass it is not begun.
    ledger : path-like, optional
        The population's ledger; needed for noised metrics.
    max_bytes : int
        What a node may send: keys and questions together.
    workers : int, optional
        How many processes evaluate. Default: one a core.
    mechanism : SumMechanism, optional
        Default: ``LatticeGaussian()``.
    randomness : Randomness, optional
        Of the noise. Default: the operating system's.

    Raises
    ------
    ValueError
        If settings are out of range or contradict each other.
    """

    @_arguments.refuse_old_names({"target_epsilon": _BUDGET, "target_delta": _BUDGET})
    def __init__(
        self,
        *,
        population: Population | int,
        start_evaluator: Callable[[], EvaluatorProcess],
        images: int,
        metrics: NoisedMetrics | PublicMetrics,
        budget: Budget,
        ledger: str | os.PathLike[str] | None = None,
        max_bytes: int = MAX_ROUND_BYTES,
        workers: int | None = None,
        mechanism: SumMechanism | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        self._register = ClientRegistry(population)
        self._start = start_evaluator
        arguments.called_with("start_evaluator", start_evaluator, 0, "a function of no argument")
        noised = "noised_accuracy(noise_multiplier) or PublicMetrics()"
        arguments.of_kind("metrics", metrics, (NoisedMetrics, PublicMetrics), noised)
        images = arguments.whole("images", images, least=1)
        max_bytes = arguments.whole("max_bytes", max_bytes, least=1)
        workers = None if workers is None else arguments.whole("workers", workers, least=1)
        arguments.of_kind("budget", budget, (Budget,), "Budget(epsilon=3.0, delta=1e-5)")
        if isinstance(metrics, NoisedMetrics):
            if dict(metrics.ranges) != RANGES:
                raise ValueError("metrics has other ranges; take noised_accuracy(noise_multiplier)")
            if ledger is None:
                raise ValueError("ledger is not set; noised metrics are paid for in one")
        self._images, self._metrics = images, metrics
        self._budget = budget
        self._ledger = None if ledger is None else _arguments.file_path("ledger", ledger)
        self._max_bytes = max_bytes
        self._workers = (os.cpu_count() or 1) if workers is None else workers
        self._mechanism: SumMechanism = LatticeGaussian() if mechanism is None else mechanism
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness

    @property
    def event(self) -> Event | None:
        """What the round costs; nothing where metrics are public."""
        if not isinstance(self._metrics, NoisedMetrics):
            return None
        return self._mechanism.account(
            noise_multiplier=self._metrics.noise_multiplier, sampling=Full()
        )

    def run(
        self, grid: Grid, *, timeout: float = 3600.0, name: str = "test"
    ) -> EncryptedRoundResult:
        """Ask everyone who is connected, evaluate, and collect the reports.

        Parameters
        ----------
        grid : Grid
        timeout : float
            Seconds to wait for questions, and again for reports.
        name : str
            Of the run, for the ledger.

        Raises
        ------
        PrivacyBudgetExhausted
            If the round would pass the budget; nobody was asked.
        EvaluatorFailedError
            If no evaluator comes up.
        PopulationExceededError
            If the population is a number, and more clients than that are connected.
        """
        with contextlib.ExitStack() as stack:
            watch, ledger = FaultLog(), None
            if self.event is not None:
                ledger = stack.enter_context(self._open_ledger())
            evaluators = stack.enter_context(Evaluators(self._start, self._workers))
            node_of, ignored = self._register.locate(grid.get_nodes())
            operator_log.info(
                "encrypted round: asking %d of %d nodes; %d unknown nodes ignored",
                len(node_of),
                self._register.size,
                ignored,
            )
            identifiers, second = self._evaluate_all(
                grid, list(node_of.values()), evaluators, timeout, watch
            )
            reports = self._reports(grid, identifiers, second, timeout, watch)
            if isinstance(self._metrics, PublicMetrics):
                released = release_public(
                    self._metrics, reports, left_out=partial(watch.metrics_left_out, _NAME)
                )
            else:
                if ledger is None or self.event is None:
                    raise RuntimeError("noised metrics without a ledger")
                ledger.append(self.event, run=name, round=0)
                released = release_noised(
                    self._metrics,
                    reports,
                    population=self._register.size,
                    mechanism=self._mechanism,
                    randomness=self._randomness,
                )
            plan = evaluators.plan
            room = (self._max_bytes - plan.public_bytes) // plan.query_bytes * plan.batch_size
            return EncryptedRoundResult(
                asked=self._register.size if ledger else len(node_of),
                answered=released.answered,
                accuracy=released.accuracy,
                accuracy_noise=released.accuracy_noise,
                ms_per_query=evaluators.median_ms,
                images=min(self._images, room),
                plan=plan,
            )

    def _open_ledger(self) -> Ledger:
        name = self._register.name
        ledger = Ledger.open(
            self._ledger or "",
            population=name if self._randomness.private else f"{name} (seeded: not private)",
        )
        event = self.event
        if event and ledger.would_exceed(event, self._budget):
            ledger.close()
            raise PrivacyBudgetExhausted(
                f"the encrypted round would pass the budget of ε = {self._budget.epsilon:g}; "
                "raise its noise, or reserve for it before training"
            )
        return ledger

    # Questions and answers --------------------------------------------------------------------

    def _evaluate_all(
        self,
        grid: Grid,
        nodes: list[int],
        evaluators: Evaluators,
        timeout: float,
        watch: FaultLog,
    ) -> tuple[list[str], dict[int, tuple[Message, int]]]:
        """Send the plan, and answer each node's questions as they come, or say why not."""
        plan = evaluators.plan
        content = messages.plan_message(
            plan, images=self._images, public=isinstance(self._metrics, PublicMetrics)
        )
        first = [Message(content, node, _MESSAGE_TYPE) for node in nodes]
        asked = PendingReplies(first)
        identifiers: list[str] = []
        second: dict[int, tuple[Message, int]] = {}

        def send(future: Future[_Answered]) -> None:
            done = future.result()
            node = done.node
            watch.dropped(_NAME, done.fault)
            if done.answers is not None:
                message = Message(messages.answers_message(done.answers), node, _MESSAGE_TYPE)
                identifiers.extend(grid.push_messages([message]))
                second[node] = message, min(len(done.answers) * plan.batch_size, self._images)
            elif done.fault not in (None, Fault.DECLINED, Fault.ERROR):
                told = messages.refusal_message(done.fault)
                identifiers.extend(grid.push_messages([Message(told, node, _MESSAGE_TYPE)]))

        with ThreadPoolExecutor(evaluators.size) as threads:
            under_way: deque[Future[_Answered]] = deque()
            for reply in stream_replies(grid, first, timeout=timeout):
                under_way.append(threads.submit(self._answer, reply, asked, evaluators))
                # A node's questions take megabytes: only so many are held at once.
                while len(under_way) > 2 * evaluators.size or (under_way and under_way[0].done()):
                    send(under_way.popleft())
            while under_way:
                send(under_way.popleft())
        operator_log.info(
            "encrypted round: answered %d nodes; silent: %s", len(second), asked.silent
        )
        return identifiers, second

    def _answer(self, reply: Message, asked: PendingReplies, evaluators: Evaluators) -> _Answered:
        """The answers to a node's questions, unless they are refused."""
        node = reply.metadata.src_node_id
        try:
            with evaluators.lock:
                asked.answer(reply)
            questions = messages.read_questions(
                _content(reply),
                evaluators.plan,
                images=self._images,
                max_bytes=self._max_bytes,
            )
            answers = evaluators.answer(questions)
        except (ReplyError, MessageError, EvaluatorFailedError) as error:
            operator_log.warning("encrypted round: refused the questions of %s: %s", node, error)
            if isinstance(error, ReplyError):
                return _Answered(node, fault=error.fault)
            failed = isinstance(error, EvaluatorFailedError)
            return _Answered(node, fault=Fault.EVALUATOR if failed else Fault.QUESTIONS)
        except Exception as error:  # a stranger's reply costs itself and nothing else
            operator_log.warning(
                "encrypted round: cannot read what %s asks: %s", node, error_quoted(error)
            )
            return _Answered(node, fault=Fault.UNREADABLE)
        return _Answered(node, answers)

    # Reports ----------------------------------------------------------------------------------

    def _reports(
        self,
        grid: Grid,
        identifiers: list[str],
        second: dict[int, tuple[Message, int]],
        timeout: float,
        watch: FaultLog,
    ) -> list[MetricRecord]:
        asked = PendingReplies(message for message, _ in second.values())
        reports = []
        for reply in pull_replies(grid, identifiers, timeout=timeout):
            node = reply.metadata.src_node_id
            if node not in asked.nodes:  # it was told that its questions are refused
                continue
            try:
                asked.answer(reply)
                accuracy = messages.read_accuracy(_content(reply))
            except ReplyError as error:
                operator_log.warning("encrypted round: dropped the report of %s: %s", node, error)
                watch.dropped(_NAME, error.fault)
                continue
            except Exception as error:
                operator_log.warning(
                    "encrypted round: cannot read the report of %s: %s", node, error_quoted(error)
                )
                watch.dropped(_NAME, Fault.UNREADABLE)
                continue
            reports.append(node_report(accuracy, images=second[node][1]))
        operator_log.info("encrypted round: %d reports; silent: %s", len(reports), asked.silent)
        return reports


def _content(reply: Message) -> RecordDict:
    refuse_error(reply, reason=True)
    if not reply.has_content():
        raise ReplyError("the reply is empty", Fault.UNREADABLE)
    return reply.content
