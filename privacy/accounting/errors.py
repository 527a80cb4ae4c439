"""Errors of a ledger."""


class LedgerError(Exception):
    """A ledger that cannot be trusted, or is not the one that was meant."""


class LedgerBusyError(LedgerError):
    """Another process holds the ledger."""
