"""Every fuzzing target takes or refuses its seeds, and all inputs that earlier runs kept."""

import pytest

from fuzz.target import CORPUS, corpus
from fuzz.targets import TARGETS, load


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_anything_but_taken_or_refused(name: str) -> None:
    """`python -m fuzz` makes more of them; whatever raises something else is a fault here too."""
    target = load(name)
    taken = [target.run(content) for content in target.seeds]
    assert any(taken), "no seed is a good input: the parser's depths are not reached"
    for path in corpus(name):
        target.run(path.read_bytes())


def test_a_corpus_belongs_to_a_target_and_is_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= TARGETS.keys()
    assert sum(path.stat().st_size for path in files) < 400_000
