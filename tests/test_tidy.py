"""The tree stays tidy: who imports whom, sizes, tables of bytes, examples, words."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("admin", "vm", "nbd", "storage", "blockdev")

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

# The rooms of each package, and its modules that lie in none, lowest first: a module imports only
# from its own room and from those before it. ARCHITECTURE.md draws the same.
ROOMS = {
    "blockdev": "errors device linux rawio direct openfile file memory | simulation",
    "nbd": "errors constants stream tlssocket tls uri copy | server client",
    "storage": (
        "errors environment info settings throttle"
        " | format catalogue members map log checkpoint recovery cleaning volumes transfer verify"
        " | pool_report pool"
    ),
    "admin": "errors names sizes periods fullness home | config api reports daemon cli | __main__",
}
STRANGERS = {("nbd", "client", "server")}  # a room that does not import one before it

# The door of storage: what other packages may import of it.
STORAGE_DOOR = {
    "storage.pool",
    "storage.info",
    "storage.errors",
    "storage.settings",
    "storage.throttle",
    "storage.volumes.management",
    "storage.catalogue.schedule",
    "storage.catalogue.retention",
    "storage.catalogue.resume_token",
    "storage.transfer.stream",
    "storage.verify.check",
    "storage.verify.scrub_pass",
}

# What each package may import of ours. A dotted name allows that module only.
MAY_IMPORT = {
    "admin": {"admin", "vm", "nbd", "blockdev"} | STORAGE_DOOR,
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

# Outside blockdev, only this names concrete devices; the others are given devices.
OPENS_DEVICES = {"admin/daemon/devices.py"}
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


@cache
def modules() -> frozenset[str]:
    """The modules of all packages; a package itself is one."""
    found = set()
    for path in sources(*PACKAGES):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return frozenset(found)


def imported(source: str) -> Iterator[str]:
    """Yield the modules that a source names, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert not node.level, "name the module that is imported"
            for alias in node.names:  # `from blockdev import file` names a module
                inner = f"{module}.{alias.name}"
                yield inner if inner in modules() else module


def is_inside(module: str, allowed: set[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in allowed)


def wrong_imports(path: str, source: str) -> list[str]:
    """Return what a module of ours imports against the rules above."""
    package = path.split("/")[0]
    foreign = FOREIGN.get(package, set()) | ({"pyfuse3"} if path == FUSE else set())
    wrong = []
    for module in imported(source):
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
        ("nbd/copy.py", "import storage.pool", ["storage.pool"]),
        ("nbd/copy.py", "from blockdev.device import BlockDevice", []),
        ("nbd/copy.py", "from blockdev import errors, file", ["blockdev.file"]),
        ("storage/pool.py", "def f():\n    from nbd import client", ["nbd.client"]),
        ("admin/home.py", "from storage.info import PoolInfo", []),
        ("admin/home.py", "from storage.map import layer", ["storage.map.layer"]),
        ("blockdev/file.py", "import msgpack, trio, os.path", ["msgpack"]),
        ("blockdev/fuse.py", "import pyfuse3", []),
        ("blockdev/file.py", "import pyfuse3", ["pyfuse3"]),
        ("vm/argv.py", "from storage.pool import Pool", ["storage.pool"]),
        ("admin/cli/main.py", "from blockdev.file import FileDevice", ["blockdev.file"]),
        ("admin/daemon/devices.py", "from blockdev.file import FileDevice", []),
        ("admin/daemon/run.py", "from blockdev.file import FileDevice", ["blockdev.file"]),
    ],
)
def test_wrong_imports_are_noticed(path: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(path, source) == wrong


# Rooms


def floors(package: str) -> list[str]:
    """The rooms and loose modules of a package, lowest first."""
    return ROOMS[package].replace("|", " ").split()


def upward_imports(module: str, source: str) -> list[str]:
    """Return the imports of a module that lead into a room after its own."""
    package, *inner = module.split(".")
    order = floors(package)
    wrong = []
    for target in imported(source):
        top, *rest = target.split(".")
        if top != package or not rest or not inner:
            continue
        up = order.index(rest[0]) > order.index(inner[0])
        if up or (package, inner[0], rest[0]) in STRANGERS:
            wrong.append(target)
    return wrong


def dotted(path: Path) -> str:
    return name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


every_room_module = pytest.mark.parametrize("path", sources(*ROOMS), ids=name)


@every_room_module
def test_rooms_import_only_rooms_before_them(path: Path) -> None:
    assert upward_imports(dotted(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("storage.map.layer", "from storage.format.entry import RAW", []),
        ("storage.map.layer", "from storage.map import page", []),
        ("storage.map.layer", "from storage.log import buffer", ["storage.log.buffer"]),
        ("storage.map.layer", "def f():\n    import storage.pool", ["storage.pool"]),
        (
            "storage.errors",
            "if TYPE_CHECKING:\n    from storage.info import PoolInfo",
            ["storage.info"],
        ),
        ("nbd.client.link", "from nbd.server.session import x", ["nbd.server.session"]),
    ],
)
def test_imports_into_later_rooms_are_noticed(module: str, source: str, wrong: list[str]) -> None:
    assert upward_imports(module, source) == wrong


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return some modules that import each other in a circle, or nothing."""
    left = {one: set(others) for one, others in graph.items()}
    while ends := [one for one, others in left.items() if not others & left.keys() - {one}]:
        for one in ends:
            del left[one]
    return sorted(left)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {dotted(path): set(imported(path.read_text())) for path in sources(*PACKAGES)}
    assert circle(graph) == []


def test_a_circle_is_noticed() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"trio"}}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_is_listed_and_says_what_it_is_for(package: str) -> None:
    """In three lines or so: a first sentence, then what it takes and gives."""
    folder = ROOT / package
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert set(floors(package)) == there | rooms
    for room in rooms:
        tree = ast.parse((folder / room / "__init__.py").read_text())
        assert len((ast.get_docstring(tree) or "").splitlines()) in range(3, 13)


def test_the_picture_of_the_rooms_is_right() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    picture = page.split("```\nrooms\n")[1].split("```")[0].splitlines()
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in picture} == ROOMS


# Private attributes


def reached_into(source: str) -> list[str]:
    """Return private attributes of other objects that a module uses: those that no class in it,
    around the use, has as its own. An object of the same class may be reached into."""
    found: list[str] = []

    def visit(node: ast.AST, own: frozenset[str]) -> None:
        if isinstance(node, ast.ClassDef):
            own |= {one.attr for one in ast.walk(node) if is_own(one)} | {
                one.name for one in node.body if isinstance(one, ast.FunctionDef)
            }
        elif isinstance(node, ast.Attribute) and not is_own(node):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.attr not in own:
                found.append(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            visit(child, own)

    def is_own(node: ast.AST) -> TypeGuard[ast.Attribute]:
        return (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        )

    visit(ast.parse(source), frozenset())
    return found


@every_package_module
def test_nothing_reaches_into_other_objects(path: Path) -> None:
    assert reached_into(path.read_text()) == []


def test_reaching_into_other_objects_is_noticed() -> None:
    method = "class A:\n    def f(self, other):\n        self._x = 1\n        return other."
    assert reached_into(method + "_x") == []  # of the same class
    assert reached_into(method + "_f") == ["other._f"]
    assert reached_into(method + "__class__") == []
    assert reached_into("pool._log.run()") == ["pool._log"]


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
