"""How ``pytest -n`` shares the tests out, and what every test finds and leaves as it was."""

import gc
import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# Nothing depends on the time that an example takes: the machine may be busy. Every run draws other
# examples; `pytest --hypothesis-profile long` draws more of them.
TIMELESS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("short", TIMELESS, max_examples=100)
settings.register_profile("long", TIMELESS, max_examples=500)
settings.load_profile("short")

# Minutes each, of processes of Flower's; what else starts those takes turns in a third group.
ALONE = ("tests/integration/test_faults.py", "tests/integration/test_deploy.py")
LONG = (
    "tests/integration/",
    "tests/test_tutorials.py",
    "tests/strategies/test_examples.py",
    "tests/privacy/inference/",
    "tests/flower_app/",
)
SMALL_RUN = (
    "tests/flower_app/test_run.py",
    "tests/flower_app/commands/test_export.py",
    "tests/flower_app/report/test_report.py",
)


class ModulesTogether(LoadScopeScheduling):
    """A module's tests go to one process, and so do all that start simulations, with Ray.

    Each of those is many processes: so at most one simulation and two deployments run at a time.
    Modules that look at the same run of the app share a process too: it is made once.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.split("::")[0]
        if module.startswith("tests/integration/"):
            return module if module in ALONE else "simulations"
        return "small run" if module in SMALL_RUN else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ModulesTogether:
    return ModulesTogether(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collecting makes stays to the end: garbage is looked for in the rest alone."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest, so that no process is left alone with it at the end."""

    def place(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A test leaves the loggers as they were: a handler left behind doubles later tests' lines."""
    loggers = [logging.getLogger(name) for name in ("flwr", "bloomseal.operator")]
    before = [(logger, list(logger.handlers), logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
