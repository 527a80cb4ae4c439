"""Follow a run in the terminal to its end, even if Flower's log stream breaks off."""

import re
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

from flower_app.errors import RunFailedError
from flower_app.processes.flower_processes import end_server_app, program
from flower_app.report.outcome import FOLDER_VARIABLE, Outcome, read_outcome
from flower_app.report.results_folder import ResultsFolder, closing_lines, where_to_look
from flower_app.training.resumption import can_go_on
from privacy.json_text import read_json

_STARTED = re.compile(r"Successfully started run (\d+)")
_START_SECONDS = 300.0
_STREAM_SECONDS = 120.0
_SILENCE_SECONDS = 30.0
_STATUS_SECONDS = 2.0
_STATUS_PATIENCE = 60.0
_STATUS_TRIES = 5


def follow(
    command: list[str], environment: dict[str, str], *, connection: str, resumable: bool
) -> int:
    """Show a run's log until the run has ended, then its results.

    Parameters
    ----------
    command : list of str
        ``flwr run ... --stream``.
    environment : dict of str to str
        In which ``flwr`` finds the SuperLink.
    connection : str
        ``flwr``'s name of that SuperLink.
    resumable : bool
        Whether a run that breaks off can be taken up by ``python -m flower_app run``.

    Returns
    -------
    int
        An exit code: 0, or 130 after Ctrl-C.

    Raises
    ------
    RunFailedError
        If the run ended without results, with its reason in one sentence.
    """
    outcomes = Path(environment[FOLDER_VARIABLE])
    stream = _Stream(command, environment, outcomes)
    try:
        outcome = _wait(stream, environment, connection)
    except (KeyboardInterrupt, SystemExit) as ended:  # the second is how SIGTERM arrives
        # At once: no further round may be paid while the other processes end.
        end_server_app(outcomes.parent)
        print(
            "\nStopped. Flower's other processes are ending, which takes up to half a minute; "
            "Ctrl-C again ends them at once.",
            file=sys.stderr,
        )
        if resumable and (how := _resumption(stream.outcome())):
            print(how, file=sys.stderr)
        if isinstance(ended, SystemExit):
            raise
        return 130
    finally:
        stream.close()
    if outcome.state == "finished":
        if not stream.has_shown(where_to_look(Path(outcome.folder))):
            print("Flower's log broke off before its end. The results, from their folder:")
            print("\n".join(closing_lines(Path(outcome.folder))), flush=True)
        return 0
    reason = outcome.reason or (
        "the run broke off without results: its process ended, and could not say why"
    )
    how = _resumption(outcome) if resumable else ""
    raise RunFailedError(f"{reason}. {how}" if how else reason)


class _Stream:
    """The log of a run, shown as it comes, up to the line that names its report."""

    def __init__(self, command: list[str], environment: dict[str, str], outcomes: Path) -> None:
        self.run_id: int | None = None
        self._outcomes = outcomes
        self.heard = time.monotonic()
        self._latest: deque[str] = deque(maxlen=50)
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._show, daemon=True)
        self._reader.start()

    def _show(self) -> None:
        visible = True
        for line in self._process.stdout or ():
            self.heard = time.monotonic()
            self._latest.append(line)
            try:
                if visible:
                    print(line, end="", flush=True)
            except OSError:  # nobody reads any more; the run goes on
                visible = False
            if self.run_id is None and (started := _STARTED.search(line)):
                self.run_id = int(started[1])
            # Hide the end of Flower's simulation, which would follow the results.
            visible = visible and not self._closes(line)

    def _closes(self, line: str) -> bool:
        folder = self.outcome().folder
        return bool(folder) and where_to_look(Path(folder)) in line

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return not self._reader.is_alive()

    def has_shown(self, words: str) -> bool:
        """Whether these words were among the latest lines."""
        return any(words in line for line in tuple(self._latest))

    def outcome(self) -> Outcome:
        """The run's outcome so far."""
        if self.run_id is None:
            return Outcome()
        return read_outcome(self._outcomes, self.run_id) or Outcome()

    def close(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._reader.join()


def _wait(stream: _Stream, environment: dict[str, str], connection: str) -> Outcome:
    """The outcome of a run, once its log has been shown or has fallen silent."""
    begun = time.monotonic()
    ended = None  # when the run was seen to have ended
    while not stream.ended:
        time.sleep(0.2)
        outcome = stream.outcome()
        now = time.monotonic()
        if outcome.state == "finished":
            # The log lags behind the run; its last line shows that it is complete.
            if stream.has_shown(where_to_look(Path(outcome.folder))):
                return outcome
        elif stream.run_id is None:
            if now > begun + _START_SECONDS:
                break
            continue
        elif outcome.state == "running" and ended is None:
            if now < stream.heard + _SILENCE_SECONDS:
                continue
            stream.heard = now  # asked once for each such silence
            if not _finished(stream.run_id, environment, connection):
                continue
        ended = ended or now
        if now > ended + _STREAM_SECONDS:
            return outcome
    if stream.run_id is None:
        raise RunFailedError("Flower did not start the run; what went wrong stands above")
    while True:
        # In this order: a run writes its outcome before Flower lists it as finished.
        finished = _finished(stream.run_id, environment, connection)
        outcome = stream.outcome()
        if finished or outcome.state != "running":
            return outcome
        time.sleep(_STATUS_SECONDS)


def _finished(run_id: int, environment: dict[str, str], connection: str) -> bool:
    """Whether Flower lists a run as ended, or did not answer several times."""
    command = [program("flwr"), "list", connection, "--run-id", str(run_id), "--format", "json"]
    for _ in range(_STATUS_TRIES):
        try:
            listed = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_STATUS_PATIENCE,
                check=False,
            )
            (run,) = read_json(listed.stdout)["runs"]
            return str(run["status"]).startswith("finished")
        except (ValueError, LookupError, subprocess.TimeoutExpired):
            time.sleep(_STATUS_SECONDS)
    return True


def _resumption(outcome: Outcome) -> str:
    """How to go on with a run that broke off; empty where it cannot be resumed."""
    folder = ResultsFolder(Path(outcome.folder))
    if not outcome.begun or not can_go_on(folder.path):
        return ""
    return f"Everything trained and paid so far is there. To go on: {folder.resume_command}"
