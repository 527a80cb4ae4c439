"""A session of inference in shares: its folders, and its workers as processes of this machine."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from flower_app.errors import CommandFailedError
from flower_app.processes.certificates import make_party_certificates
from flower_app.shared import worker_process
from flower_app.shared.folders import NAMES, PartyFolder, write_secret
from privacy.shared_inference import Address, Party, Plan, Provider

STATE = "state"
"""The provider's file of secrets, in its folder."""
_BUNDLE = Path(__file__).parents[2]
_END_SECONDS = 10.0


def begin_session(
    plan: Plan, folder: Path, *, alice: str, bob: str, lifetime: timedelta
) -> list[PartyFolder]:
    """Make the provider's folder, and in it one for each party, with letter and certificate.

    ``alice`` and ``bob`` are the hosts where they listen.

    Raises
    ------
    CommandFailedError
        If a file is there already or cannot be written, or a host is no name; nothing is left.
    """
    names = [*NAMES.values(), PartyFolder(folder).plan_file.name, STATE]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            if (folder / name).exists():
                raise CommandFailedError(f"{folder / name} is there already; give another folder")
        with tempfile.TemporaryDirectory(prefix="begun-", dir=folder) as begun:
            _write_session(plan, Path(begun), {Party.ALICE: alice, Party.BOB: bob}, lifetime)
            for name in names:  # the state comes last: with it there is a session
                (Path(begun) / name).rename(folder / name)
    except OSError as error:
        raise CommandFailedError(f"{folder}: {error}") from error
    except ValueError as error:
        raise CommandFailedError(str(error)) from error
    return [PartyFolder(folder / name) for name in NAMES.values()]


def _write_session(
    plan: Plan, folder: Path, hosts: Mapping[Party, str], lifetime: timedelta
) -> None:
    """All that a session begins with, into an empty folder."""
    provider = Provider(plan, (folder / STATE).absolute())
    parties = {party: PartyFolder(folder / name) for party, name in NAMES.items()}
    for party, own in parties.items():
        own.path.mkdir(mode=0o700)
        write_secret(own.plan_file, plan.to_bytes())
        write_secret(own.letter_file, provider.letter(party))
    write_secret(PartyFolder(folder).plan_file, plan.to_bytes())
    callers = (Party.ALICE, Party.BOB, Party.DATA_OWNER)
    make_party_certificates(
        {NAMES[party]: (parties[party].tls_files, hosts.get(party)) for party in callers},
        lifetime=lifetime,
    )


def deal(folder: Path, questions: int) -> list[Path]:
    """Make material for more questions, into the parties' folders in the provider's; the files.

    Raises
    ------
    MaterialError, OSError
        If the session's state cannot be used, or the disk is full.
    """
    provider = Provider(PartyFolder(folder).plan(), (folder / STATE).absolute())
    places = [
        PartyFolder(folder / NAMES[party]).material
        for party in (Party.ALICE, Party.BOB, Party.DATA_OWNER)
    ]
    return provider.write_material(questions, alice=places[0], bob=places[1], data_owner=places[2])


@contextmanager
def started_worker(
    name: str, folder: Path, *options: str
) -> Iterator[tuple["subprocess.Popen[str]", Address]]:
    """A worker's process on this machine, and where it listens; ended with the block.

    Raises
    ------
    CommandFailedError
        If it does not come up.
    """
    # The app may run from a bundle that is not installed: Python must find its folder.
    paths = [str(_BUNDLE), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", worker_process.__name__, name, str(folder.resolve())]
    log = folder / "worker.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [*command, *options],
            cwd=_BUNDLE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            line = process.stdout.readline() if process.stdout else ""
            _, listens, rest = line.partition(" listens on ")
            if not listens:
                process.wait()
                raise CommandFailedError(f"{name} did not start: {log.read_text().strip()}")
            yield process, Address.parse(rest.split(",")[0])
        finally:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
