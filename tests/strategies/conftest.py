"""Fixtures of the strategies' tests."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def console() -> Iterator[list[str]]:
    """What the log says that Flower shows on the server's console."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
