"""The one error of this folder."""


class DataError(ValueError):
    """Data that is missing, corrupt or out of reach; the message names it and the remedy."""
