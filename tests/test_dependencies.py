"""No floor of a dependency allows a version that is known to be vulnerable."""

import importlib.metadata
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import compatibility

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "pyproject.toml", *sorted((ROOT / "examples").glob("*/pyproject.toml"))]

# The newest version that each advisory covers.
ADVISORIES = {
    "pillow": {
        "10.2.0": "CVE-2024-28219",
        "11.2.1": "CVE-2025-48379",
        "12.1.0": "CVE-2026-25990",
        "12.1.1": "CVE-2026-40192, CVE-2026-42309",
        "12.2.0": "CVE-2026-55798, CVE-2026-59197 to CVE-2026-59200",
        "12.3.0": "fixed in 13.0.0",
    },
    "torch": {
        "2.5.1": "CVE-2025-32434",
        "2.7.0": "CVE-2025-2953",
        "2.7.1": "CVE-2025-3730",
        "2.8.0": "CVE-2025-55551 and others",
        "2.9.1": "CVE-2026-24747",
        "2.10.0": "CVE-2026-4538",
    },
    "cryptography": {
        "44.0.0": "CVE-2024-12797",
        "46.0.4": "CVE-2026-26007",
        "46.0.5": "CVE-2026-34073",
        "46.0.6": "CVE-2026-39892",
        "48.0.0": "GHSA-537c-gmf6-5ccf",
        "49.0.0": "CVE-2026-69247",
    },
    "starlette": {
        "0.39.2": "CVE-2024-47874",
        "0.47.1": "CVE-2025-54121",
        "0.49.0": "CVE-2025-62727",
        "1.0.0": "CVE-2026-48710",
        "1.2.1": "PYSEC-2026-248",
        "1.3.0": "PYSEC-2026-249",
    },
    "h11": {"0.14.0": "CVE-2025-43859"},
    "jinja2": {"3.1.5": "CVE-2025-27516"},
    "pyarrow": {"14.0.0": "CVE-2023-47248", "23.0.0": "CVE-2026-25087"},
    "filelock": {"3.20.0": "CVE-2025-68146", "3.20.2": "CVE-2026-22701"},
}


def requirements(project: Path) -> list[Requirement]:
    """All that a project asks for, with whichever extra."""
    listed = tomllib.loads(project.read_text())["project"]
    lines = chain(listed["dependencies"], *listed.get("optional-dependencies", {}).values())
    return [one for one in map(Requirement, lines) if one.name != "bloomseal"]


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.parent.name)
def test_no_floor_allows_a_version_that_is_known_to_be_vulnerable(project: Path) -> None:
    allowed = [
        f"{one.name} {version}: {advisory}"
        for one in requirements(project)
        for version, advisory in ADVISORIES.get(one.name.lower(), {}).items()
        if one.specifier.contains(version)
    ]
    assert not allowed


def test_what_is_listed_is_asked_for_and_here() -> None:
    """The list is about packages that we do ask for, and the floors can be had."""
    asked = requirements(ROOT / "pyproject.toml")
    assert ADVISORIES.keys() <= {one.name.lower() for one in asked}
    missing = [
        one.name
        for one in asked
        if one.name != "wandb"  # no test has it
        and not one.specifier.contains(importlib.metadata.version(one.name), prereleases=True)
    ]
    assert not missing


def test_the_page_of_compatibility_names_every_group_of_tests() -> None:
    page = (ROOT / "docs" / "reference" / "compatibility.md").read_text()
    for group in compatibility.TESTS:
        assert f"`{group}`" in page or f"`'{group}'`" in page
        assert f"| tests: {group} |" in page
