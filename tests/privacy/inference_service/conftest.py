"""One pool of processes, which each test serves with limits and a clock of its own."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from flower_app.processes.certificates import Certificates, make_certificates
from privacy.inference import EvaluatorPool
from tests.privacy.inference.evaluator.evaluator_program import start_process
from tests.privacy.inference_service.serving import Service, serving, small_model


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def pool() -> Iterator[EvaluatorPool]:
    with EvaluatorPool(partial(start_process, small_model), processes=2) as started:
        started.start_all()
        yield started


@pytest.fixture
def serve(
    pool: EvaluatorPool, certificates: Certificates, tmp_path: Path
) -> Callable[..., AbstractContextManager[Service]]:
    return partial(serving, pool, certificates, tmp_path)


@pytest.fixture
def service(serve: Callable[..., AbstractContextManager[Service]]) -> Iterator[Service]:
    with serve() as started:
        yield started
