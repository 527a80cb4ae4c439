"""Keeps libraries from configuring the root logger."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def untouched_root_logger() -> Iterator[None]:
    """Keep ``logging.basicConfig`` calls inside from giving the root logger a handler.

    Opacus calls it when it is imported, and absl when it warns. The application's own handlers
    are all there should be: with another, every line that Flower logs would appear twice.
    """
    nothing = logging.NullHandler()
    logging.root.addHandler(nothing)  # basicConfig leaves a root logger with handlers alone
    try:
        yield
    finally:
        logging.root.removeHandler(nothing)
