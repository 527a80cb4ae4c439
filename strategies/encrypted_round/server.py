"""The encrypted test-time round: nodes test the model on data that the server never sees."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median

from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import PrivacyBudgetExhausted

from privacy import arguments
from privacy.accounting import Budget, Event, Full, Ledger
from privacy.inference import EvaluatorPool, EvaluatorProcess
from privacy.inference.errors import EvaluatorFailedError, MessageError
from privacy.inference.plan_check import MAX_ROUND_BYTES
from privacy.mechanisms import LatticeGaussian, Randomness, SumMechanism, SystemRandomness
from privacy.untrusted_text import error_quoted
from strategies.checkpoint import lasting_path
from strategies.encrypted_round import messages
from strategies.encrypted_round.report import (
    RANGES,
    EncryptedRoundResult,
    no_accuracy,
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


class EncryptedRound:
    """Has the nodes of a population test a model on their own data, under encryption.

    Over Flower's ``query`` messages: every node is sent the plan; it makes keys for this round
    alone and sends public ones, with some of its images encrypted; processes that hold the
    model and never a secret key evaluate, mask and re-randomise; the node decrypts, compares
    with its labels, and reports one number. ``answer_encrypted_round`` is the node's side.

    **Guarantee.** The server learns nothing of images, labels and classes but the reports, under
    ring-LWE at 128 bits. The released accuracy is noised and paid for in the population's ledger,
    at client level, unless every node that reports has agreed to its publication. A node that
    sends garbage, too much, or nothing harms nobody else: the console shows each kind of fault
    once, the node gets the reason why its questions are refused, the operator's log who it was.

    **Assumptions.** The server follows the protocol. Each node protects its report from such a
    server by noise of its own.

    **Not covered.** A server that answers as it likes: its answers need not be the model's, and
    reports on chosen answers are an oracle for the encrypted data. Then one image can decide every
    answer to its node, and the node's noise hides it far less
    (``NoisedAccuracy.malicious_epsilon``). How long the round took.

    Parameters
    ----------
    population : Population or int
        All of it is asked. The strategy's, if they share a ledger.
    start_evaluator : callable
        Starts a process that holds the compiled model; called anew where one died.
    images : int
        How many images a node asks about, at most.
    metrics : NoisedMetrics or PublicMetrics
        How reports are released: ``noised_accuracy(z)``, or ``PublicMetrics()``, to which nodes
        agree or not.
    budget : Budget
        The population's; a round that would pass it does not begin.
    ledger : path-like, optional
        The population's ledger; needed for noised metrics.
    max_bytes : int
        Of a node's keys and questions together, at most.
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

    @arguments.refuse_old_names({"target_epsilon": _BUDGET, "target_delta": _BUDGET})
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
        self._registry = ClientRegistry(population)
        self._start = start_evaluator
        arguments.called_with("start_evaluator", start_evaluator, 0, "a function of no argument")
        noised = "noised_accuracy(noise_multiplier) or PublicMetrics()"
        arguments.of_kind("metrics", metrics, (NoisedMetrics, PublicMetrics), noised)
        images = arguments.whole("images", images, least=1)
        max_bytes = arguments.whole("max_bytes", max_bytes, least=1)
        arguments.of_kind("budget", budget, (Budget,), "Budget(epsilon=3.0, delta=1e-5)")
        if isinstance(metrics, NoisedMetrics):
            if dict(metrics.ranges) != RANGES:
                raise ValueError("metrics has other ranges; take noised_accuracy(noise_multiplier)")
            if ledger is None:
                raise ValueError("ledger is not set; noised metrics are paid for in one")
        self._images, self._metrics = images, metrics
        self._budget = budget
        self._ledger = None if ledger is None else lasting_path("ledger", ledger)
        self._max_bytes = max_bytes
        self._workers = None if workers is None else arguments.whole("workers", workers, least=1)
        self._mechanism: SumMechanism = LatticeGaussian() if mechanism is None else mechanism
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness

    @property
    def event(self) -> Event | None:
        """The round's event in the ledger; None where metrics are public."""
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
        timeout = arguments.seconds("timeout", timeout)
        with contextlib.ExitStack() as stack:
            event, ledger = self.event, None
            if event is not None:
                ledger = stack.enter_context(self._open_ledger(event))
            pool = stack.enter_context(EvaluatorPool(self._start, processes=self._workers))
            node_of, ignored = self._registry.locate(grid.get_nodes())
            operator_log.info(
                "encrypted round: asking %d of %d nodes; %d unknown nodes ignored",
                len(node_of),
                self._registry.size,
                ignored,
            )
            exchange = _Exchange(
                grid,
                timeout,
                pool,
                images=self._images,
                max_bytes=self._max_bytes,
                public=isinstance(self._metrics, PublicMetrics),
            )
            exchange.answer_questions(list(node_of.values()))
            reports = exchange.collect_reports()
            if isinstance(self._metrics, PublicMetrics):
                left_out = partial(exchange.faults.metrics_left_out, _NAME)
                released = release_public(self._metrics, reports, left_out=left_out)
            else:
                if ledger is None or event is None:
                    raise RuntimeError("noised metrics without a ledger")
                ledger.append(event, run=name, round=0)
                released = release_noised(
                    self._metrics,
                    reports,
                    population=self._registry.size,
                    mechanism=self._mechanism,
                    randomness=self._randomness,
                )
        if released.accuracy is None:
            exchange.faults.once(no_accuracy(self._metrics, released, self._registry.size))
        plan, seconds = pool.plan, exchange.seconds
        room = (self._max_bytes - plan.public_bytes) // plan.query_bytes * plan.batch_size
        return EncryptedRoundResult(
            asked=self._registry.size if ledger else len(node_of),
            **released._asdict(),
            ms_per_query=1000 * median(seconds) if seconds else None,
            images=min(self._images, room),
            plan=plan,
        )

    def _open_ledger(self, event: Event) -> Ledger:
        name = self._registry.name
        ledger = Ledger.open(
            self._ledger or "",
            population=name if self._randomness.private else f"{name} (seeded: not private)",
        )
        if ledger.would_exceed(event, self._budget):
            ledger.close()
            raise PrivacyBudgetExhausted(
                f"the encrypted round would pass the budget of ε = {self._budget.epsilon:g}; "
                "raise its noise, or reserve for it before training"
            )
        return ledger


@dataclass(frozen=True)
class _Evaluated:
    """Answers to a node's questions, or why there are none.

    ``fault`` is None too where the node has nothing to mend, or was not asked.
    """

    node: int
    answers: list[bytes] | None = None
    fault: Fault | None = None


class _Exchange:
    """The messages of one round: plan, questions, answers, reports.

    ``seconds`` are those that each evaluation took.
    """

    def __init__(
        self,
        grid: Grid,
        timeout: float,
        pool: EvaluatorPool,
        *,
        images: int,
        max_bytes: int,
        public: bool,
    ) -> None:
        self._grid, self._timeout, self._pool = grid, timeout, pool
        self._images, self._max_bytes, self._public = images, max_bytes, public
        self.seconds: list[float] = []
        self.faults = FaultLog()
        self._lock = threading.Lock()
        self._sent: list[str] = []  # ids of answers and refusals
        self._answered: dict[int, tuple[Message, int]] = {}  # with the number of images, by node

    def answer_questions(self, nodes: Iterable[int]) -> None:
        """Send the plan, and answer each node's questions as they come, or refuse them."""
        content = messages.plan_message(self._pool.plan, images=self._images, public=self._public)
        plans = [Message(content, node, _MESSAGE_TYPE) for node in nodes]
        asked = PendingReplies(plans)
        workers = self._pool.processes
        with ThreadPoolExecutor(workers) as threads:
            under_way: deque[Future[_Evaluated]] = deque()
            for reply in stream_replies(self._grid, plans, timeout=self._timeout):
                under_way.append(threads.submit(self._evaluate, reply, asked))
                # A node's questions take megabytes: memory holds only so many at once.
                while len(under_way) > 2 * workers or (under_way and under_way[0].done()):
                    self._send(under_way.popleft().result())
            while under_way:
                self._send(under_way.popleft().result())
        operator_log.info(
            "encrypted round: answered %d nodes; silent: %s", len(self._answered), asked.silent
        )

    def _evaluate(self, reply: Message, asked: PendingReplies) -> _Evaluated:
        """The answers to a node's questions, unless they are refused."""
        node = reply.metadata.src_node_id
        try:
            with self._lock:
                asked.answer(reply)
            questions = messages.read_questions(
                _content(reply), self._pool.plan, images=self._images, max_bytes=self._max_bytes
            )
            keys = self._pool.hold(questions.material)
            try:
                answers = [self._pool.evaluate(keys, query) for query in questions.queries]
            finally:
                self._pool.drop(keys)
        except (ReplyError, MessageError, EvaluatorFailedError) as error:
            operator_log.warning("encrypted round: refused the questions of %s: %s", node, error)
            if isinstance(error, ReplyError):
                return _Evaluated(node, fault=error.fault)
            failed = isinstance(error, EvaluatorFailedError)
            return _Evaluated(node, fault=Fault.EVALUATOR if failed else Fault.QUESTIONS)
        except Exception as error:  # a stranger's reply costs itself and nothing else
            operator_log.warning(
                "encrypted round: cannot read the questions of %s: %s", node, error_quoted(error)
            )
            return _Evaluated(node, fault=Fault.UNREADABLE)
        self.seconds += [seconds for _, seconds in answers]
        return _Evaluated(node, [answer for answer, _ in answers])

    def _send(self, evaluated: _Evaluated) -> None:
        """Send a node its answers, or why its questions are refused where it can mend that."""
        node, answers, fault = evaluated.node, evaluated.answers, evaluated.fault
        self.faults.dropped(_NAME, fault)
        if answers is not None:
            message = Message(messages.answers_message(answers), node, _MESSAGE_TYPE)
            images = min(len(answers) * self._pool.plan.batch_size, self._images)
            self._answered[node] = message, images
        elif fault not in (None, Fault.DECLINED, Fault.ERROR):
            message = Message(messages.refusal_message(fault), node, _MESSAGE_TYPE)
        else:
            return
        self._sent.extend(self._grid.push_messages([message]))

    def collect_reports(self) -> list[MetricRecord]:
        """The reports of the nodes that were answered; unusable ones are dropped."""
        asked = PendingReplies(message for message, _ in self._answered.values())
        reports = []
        for reply in pull_replies(self._grid, self._sent, timeout=self._timeout):
            node = reply.metadata.src_node_id
            if node not in asked.nodes:  # its questions were refused
                continue
            try:
                asked.answer(reply)
                accuracy = messages.read_accuracy(_content(reply))
            except ReplyError as error:
                operator_log.warning("encrypted round: dropped the report of %s: %s", node, error)
                self.faults.dropped(_NAME, error.fault)
                continue
            except Exception as error:
                operator_log.warning(
                    "encrypted round: cannot read the report of %s: %s", node, error_quoted(error)
                )
                self.faults.dropped(_NAME, Fault.UNREADABLE)
                continue
            reports.append(node_report(accuracy, images=self._answered[node][1]))
        operator_log.info("encrypted round: %d reports; silent: %s", len(reports), asked.silent)
        return reports


def _content(reply: Message) -> RecordDict:
    refuse_error(reply, reason=True)
    if not reply.has_content():
        raise ReplyError("the reply is empty", Fault.UNREADABLE)
    return reply.content
