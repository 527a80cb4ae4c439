"""Numbers of things, in words."""


def counted(number: int, one: str, many: str = "") -> str:
    """How many there are of something: ``1 image``, ``1,000 images``, ``1 process``.

    Parameters
    ----------
    number : int
    one : str
        What one is called.
    many : str
        What several are called; by default with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
