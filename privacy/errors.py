"""Errors that any part of the library may raise."""


class MissingExtraError(ModuleNotFoundError):
    """A package is not installed that comes with an extra of this distribution.

    Parameters
    ----------
    user : str
        What needs it.
    package : str
        The missing package, by the name it is imported by.
    extra : str
        The extra that brings it; empty for what every installation brings.
    """

    def __init__(self, user: str, package: str, extra: str) -> None:
        wanted = f"'bloomseal[{extra}]'" if extra else "bloomseal"
        super().__init__(
            f"{user} needs {package}, which is not installed: pip install {wanted}", name=package
        )
