"""Import Opacus without letting it configure the application's logging."""

from privacy._logging import untouched_root_logger

with untouched_root_logger():
    import opacus  # noqa: F401
