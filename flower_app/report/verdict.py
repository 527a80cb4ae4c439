"""The first line of the page: what a guesser gains, in a word, on a scale."""

from dataclasses import dataclass

# How often the best guesser is right, up to which a word of ours is used, and its colour.
_WORDS = (
    (0.55, "Strong protection", "--s1"),
    (0.65, "Good protection", "--s2"),
    (0.80, "Moderate protection", "--s3"),
    (0.95, "Weak protection", "--s4"),
    (1.00, "Next to no protection", "--s5"),
)


@dataclass(frozen=True)
class Verdict:
    """What a page shows of an attack's largest advantage.

    Attributes
    ----------
    success : float
        How often whoever guesses at even odds is right, at most: (1 + advantage) / 2.
    word : str
    place, label_place : float
        On the scale from 50 % to 100 %, in parts of a hundred; that of the label stays inside.
    bands : tuple of (float, str)
        Widths of the words on the scale, and their colours.
    ticks : tuple of (float, str)
        Places and labels of their ends.
    legend : str
    """

    success: float
    word: str
    place: float
    label_place: float
    bands: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    legend: str


def verdict_on(advantage: float) -> Verdict:
    """The verdict on an attack's largest advantage, from 0 to 1."""
    success = (1 + advantage) / 2
    word = next(name for end, name, _ in _WORDS if success <= end)
    ends = [0.5, *(end for end, _, _ in _WORDS)]
    bands = tuple(
        (round(_place(end) - _place(begin), 2), colour)
        for begin, (end, _, colour) in zip(ends, _WORDS, strict=False)
    )
    short = [f"{name.partition(' protection')[0].lower()} to {end:.0%}" for end, name, _ in _WORDS]
    return Verdict(
        success=success,
        word=word if advantage < 1 else "No protection",
        place=_place(success),
        label_place=min(max(_place(success), 9.0), 91.0),
        bands=bands,
        ticks=tuple((_place(end), f"{100 * end:.0f} %") for end in ends),
        legend=", ".join(text.replace("%", " %") for text in short[:-1]) + ", next to none above",
    )


def _place(success: float) -> float:
    return round(200 * (success - 0.5), 2)
