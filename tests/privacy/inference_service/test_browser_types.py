"""Types of the session for TypeScript say what its JSDoc says."""

import re
import shutil

import pytest

from tools.browser_types import ROOT, TYPED, declarations


def test_types_have_every_option_method_and_property_and_no_other() -> None:
    text, types = ((ROOT / f"session{end}").read_text() for end in (".js", ".d.ts"))
    body = text.partition("export class OwnerSession {")[2].partition("\n}\n")[0]
    methods = set(re.findall(r"^  (\w+)\(", body, re.MULTILINE))
    typed = types.partition("export class OwnerSession {")[2].partition("\n}\n")[0]
    assert methods == set(re.findall(r"^    (\w+)\(", typed, re.MULTILINE)) >= {"ask", "end"}
    options = re.findall(r"@param \{.*\} \[?options\.(\w+)", body)
    assert options == re.findall(
        r"^        (\w+)\??:", typed.partition("}: {")[2].partition("})")[0], re.M
    )
    for name in TYPED[1:]:
        text, types = ((ROOT / f"{name}{end}").read_text() for end in (".js", ".d.ts"))
        for block in re.findall(r"@typedef \{object\} \w+.*?\*/", text, re.DOTALL):
            kind = block.split()[2]
            named = re.findall(r"@property \{.*?\} \[?(\w+)", block)
            typed = types.partition(f"export type {kind} = {{")[2].partition("\n};")[0]
            assert named == re.findall(r"^    (\w+)\??:", typed, re.MULTILINE), kind


def test_types_are_what_the_compiler_makes_of_jsdoc() -> None:
    tsc = shutil.which("tsc")
    if tsc is None:
        pytest.skip("no TypeScript here: put tsc on the path (npm install -g typescript)")
    for name, text in declarations([tsc]).items():
        assert (ROOT / name).read_text() == text, "run `python -m tools.browser_types`"
