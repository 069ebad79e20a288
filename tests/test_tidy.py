"""The tree stays tidy: who imports whom, sizes, tables of bytes, examples, words."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("admin", "vm", "nbd", "storage", "blockdev")

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# What each package may import of ours. A dotted name allows that module only.
MAY_IMPORT = {
    "admin": {"admin", "vm", "nbd", "storage", "blockdev"},
    "vm": {"vm"},
    "nbd": {"nbd", "blockdev.device", "blockdev.errors"},
    "storage": {"storage", "blockdev.device", "blockdev.errors"},
    "blockdev": {"blockdev"},
}

# What the lowest packages may import of others', besides the standard library.
FOREIGN = {
    "vm": {"trio"},
    "blockdev": {"trio", "numpy", "typing_extensions"},
}
FUSE = "blockdev/fuse.py"  # and only it: pyfuse3 is optional and needs a compiler

# Outside blockdev, only these name concrete devices; the others are given devices.
OPENS_DEVICES = {"admin/daemon/run.py", "admin/daemon/devices.py"}
INTERFACE = {"blockdev.device", "blockdev.errors"}

# Work that is not done belongs in an issue, where somebody finds it.
FORBIDDEN_WORDS = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")

_TABLE_HEADER = re.compile(r"^\s*offset\s+size\s+field\b")
_TABLE_ROW = re.compile(r"^\s*(\d+)\s+(\S+)\s+(\S+)")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_package_module = pytest.mark.parametrize("path", sources(*PACKAGES), ids=name)
every_module = pytest.mark.parametrize("path", sources(*PACKAGES, "tests", "bench"), ids=name)


# Imports


def imported(source: str, package: str) -> Iterator[str]:
    """Yield the modules that a source names, those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                yield f"{package}.{module}"
            elif module in PACKAGES:  # `from blockdev import file` names a module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            else:
                yield module


def is_inside(module: str, allowed: set[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in allowed)


def wrong_imports(path: str, source: str) -> list[str]:
    """Return what a module of ours imports against the rules above."""
    package = path.split("/")[0]
    foreign = FOREIGN.get(package, set()) | ({"pyfuse3"} if path == FUSE else set())
    wrong = []
    for module in imported(source, package):
        top = module.split(".")[0]
        if top in PACKAGES:
            ok = is_inside(module, MAY_IMPORT[package])
            if top == "blockdev" and package == "admin" and path not in OPENS_DEVICES:
                ok = ok and is_inside(module, INTERFACE)
        else:
            ok = package not in FOREIGN or top in sys.stdlib_module_names or top in foreign
        if not ok:
            wrong.append(module)
    return wrong


@every_package_module
def test_imports_point_downwards(path: Path) -> None:
    assert wrong_imports(name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("nbd/server.py", "import storage.pool", ["storage.pool"]),
        ("nbd/server.py", "from blockdev.device import BlockDevice", []),
        ("nbd/server.py", "from blockdev import errors, file", ["blockdev.file"]),
        ("storage/log.py", "def f():\n    from nbd import client", ["nbd.client"]),
        ("storage/log.py", "from .codec import pack", []),
        ("blockdev/file.py", "import msgpack, trio, os.path", ["msgpack"]),
        ("blockdev/fuse.py", "import pyfuse3", []),
        ("blockdev/file.py", "import pyfuse3", ["pyfuse3"]),
        ("vm/argv.py", "from storage.pool import Pool", ["storage.pool"]),
        ("admin/cli/main.py", "from blockdev.file import FileDevice", ["blockdev.file"]),
        ("admin/daemon/run.py", "from blockdev.file import FileDevice", []),
    ],
)
def test_wrong_imports_are_noticed(path: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(path, source) == wrong


# Sizes


def long_functions(source: str) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]


@every_module
def test_modules_and_functions_stay_readable(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MODULE_LINES_MAX, "split this module"
    assert long_functions(source) == [], "split these functions"


def test_long_functions_are_noticed() -> None:
    body = "    pass\n"
    assert long_functions("def f():\n" + body * (FUNCTION_LINES_MAX - 1)) == []
    assert long_functions("async def f():\n" + body * FUNCTION_LINES_MAX) == ["f"]


# Tables of bytes


def docstrings(source: str) -> Iterator[str]:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            yield ast.get_docstring(node) or ""


def table_errors(docstring: str) -> list[str]:
    """Check every table with the header `offset  size  field`, down to the next blank line.

    Each row starts where the one before it ends. After a size that is no number
    the offsets are unknown; the other lines of a table continue their row.
    """
    errors: list[str] = []
    rows = -1  # outside a table
    expected: int | None = 0
    for line in [*docstring.splitlines(), ""]:
        if _TABLE_HEADER.match(line):
            rows, expected = 0, 0
        elif rows >= 0 and (row := _TABLE_ROW.match(line)):
            offset, size, field = int(row[1]), row[2], row[3]
            if expected is not None and offset != expected:
                errors.append(f"{field}: offset {offset}, expected {expected}")
            expected = offset + int(size) if size.isdigit() else None
            rows += 1
        elif rows >= 0 and not line.strip():
            if rows < 1:
                errors.append("a table without rows")
            rows = -1
    return errors


@every_package_module
def test_tables_of_bytes_add_up(path: Path) -> None:
    found = [error for text in docstrings(path.read_text()) for error in table_errors(text)]
    assert found == []


def test_wrong_tables_are_noticed() -> None:
    good = """
        offset  size  field   meaning
             0     8  magic   of eight
                              bytes
             8     2  flags
            10     n  payload
        """
    assert table_errors(good) == []
    assert table_errors(good.replace(" 8     2", " 8     n")) == []  # behind it nothing is known
    assert table_errors(good.replace(" 0     8", " 0     6")) == ["flags: offset 8, expected 6"]
    assert table_errors(good.replace("10     n", "12     4")) == ["payload: offset 12, expected 10"]
    assert table_errors("offset size field\n\n") == ["a table without rows"]


# Examples and words


def test_every_example_pool_is_tested() -> None:
    tests = "\n".join(path.read_text() for path in sources("tests"))
    examples = sorted((ROOT / "pool-configs").glob("*"))
    assert [path.name for path in examples if path.name not in tests] == []


@every_module
def test_nothing_is_left_for_later(path: Path) -> None:
    assert FORBIDDEN_WORDS.findall(path.read_text()) == []


def test_the_format_page_says_what_the_code_says() -> None:
    """FORMAT.md is made from the docstrings that define the bytes: `python -m tools.format_md`."""
    from tools.format_md import render

    assert (ROOT / "FORMAT.md").read_text() == render()
