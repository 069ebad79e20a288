"""docs/nbd.md: every item has a test that names it, and every module that it names exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"^\| (\d+) \| [MSY] \| .+ \| ((?:`[a-z.]+` ?)+) \|$", re.MULTILINE)
NUMBERS = re.compile(r"\d+(?: to \d+)?(?:, \d+(?: to \d+)?)*")
"""The item numbers at the start of a docstring: `3, 9, 57 to 61: ...`."""


def rows() -> dict[int, list[str]]:
    """Return the items by number, each with the modules that carry it out."""
    page = (ROOT / "docs" / "nbd.md").read_text()
    return {int(number): re.findall(r"`([a-z.]+)`", where) for number, where in ROW.findall(page)}


def docstrings() -> Iterator[str]:
    for path in (ROOT / "tests").rglob("test_*.py"):
        if "nbd" not in path.as_posix().removeprefix(ROOT.as_posix()):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def named(docstring: str) -> set[int]:
    found: set[int] = set()
    match = NUMBERS.match(docstring)
    for part in match[0].split(", ") if match else ():
        first, _, last = part.partition(" to ")
        found.update(range(int(first), int(last or first) + 1))
    return found


def test_every_item_has_a_test() -> None:
    tested = set().union(*map(named, docstrings()))
    assert list(rows()) == list(range(1, 62))
    assert set(rows()) - tested == set()


def test_item_numbers_are_read_from_docstrings() -> None:
    assert named("3, 57 to 59: and 8 more") == {3, 57, 58, 59}
    assert named("Goal: 7 of 9") == set()


def test_every_named_module_exists() -> None:
    for modules in rows().values():
        for module in modules:
            assert (ROOT / "nbd" / f"{module.replace('.', '/')}.py").exists(), module
