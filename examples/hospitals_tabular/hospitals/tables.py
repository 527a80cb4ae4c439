"""The hospitals' tables: the RAND Health Insurance study, a CSV file for each of its six sites.

``python -m hospitals.tables DIR`` writes ``DIR/site-1/visits.csv`` ... ``DIR/site-6/visits.csv``,
each with a policy of its owner, and ``DIR/questions.csv``, ten rows without the answer to ask with.

The study (Newhouse 1993) is in the public domain and comes inside the package statsmodels: 20,190
years of 5,912 persons. A person has one to five rows.
"""

import csv
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

TEST_SHARE = 5  # one person of so many is kept for testing
POLICY = """\
dataset = "{site}/visits"
ledger = "{folder}/ledger.jsonl"
unit = "person"
max-epsilon = 3.2        # of a patient, over all runs: statistics, training and evaluation
max-delta = 1e-5
min-silos = 5
"""


def rows() -> list[dict[str, str]]:
    """All rows of the study, as statsmodels has them."""
    spec = find_spec("statsmodels")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the study comes with statsmodels: pip install statsmodels")
    with (Path(spec.origin).parent / "datasets/randhie/src/randhie.csv").open() as file:
        return list(csv.DictReader(file))


def is_test(person: str) -> bool:
    """Whether a person's rows are for testing: by the number that the study gave the person."""
    return int(person) % TEST_SHARE == 0


def write(folder: Path) -> None:
    """Write the tables."""
    sites: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows():
        sites[row["site"]].append(row)
    for site, table in sorted(sites.items()):
        place = folder / f"site-{site}"
        place.mkdir(parents=True, exist_ok=True)
        _write(place / "visits.csv", table)
        policy = POLICY.format(site=f"site-{site}", folder=place.resolve())
        (place / "policy.toml").write_text(policy)
        persons = {row["zper"] for row in table}
        print(f"{place}: {len(table):,} rows of {len(persons):,} persons")
    asked = [row for row in sites["1"] if is_test(row["zper"])][:10]
    _write(folder / "questions.csv", [{k: v for k, v in r.items() if k != "mdvis"} for r in asked])


def _write(path: Path, table: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "tables"))
