"""Importing Opacus gives the root logger a handler; an application's own is all it should have.

Without this every line that Flower logs would appear twice.
"""

import logging

_before = list(logging.root.handlers), logging.root.level

import opacus  # noqa: E402, F401

logging.root.handlers[:], level = _before
logging.root.setLevel(level)
