"""The plan of a start: which content of the members' paths opens, creates or refuses a pool."""

from pathlib import Path
from uuid import UUID

import pytest

from admin.config.load import MemberConfig
from admin.daemon.pool_record import MemberRecord, PoolRecord
from admin.daemon.start_plan import Content, Found, Plan, make_plan, resolve_without
from admin.errors import ConfigError, RefusedError
from storage.errors import ForeignMemberError, InvalidArgumentError, MissingMemberError

ONE, TWO = UUID(int=1), UUID(int=2)
RECORD = PoolRecord(ONE, "then")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path


def absent(path: Path, size_bytes: int | None = 1 << 30) -> Found:
    return Found(MemberConfig(path, size_bytes), Content.ABSENT)


def member(path: Path, pool: UUID = ONE) -> Found:
    return Found(MemberConfig(path), Content.POOL, pool, 1 << 30)


def other(path: Path) -> Found:
    return Found(MemberConfig(path), Content.OTHER, None, 1 << 30)


def empty(path: Path, size_bytes: int = 0, wanted: int | None = None) -> Found:
    return Found(MemberConfig(path, wanted), Content.EMPTY, None, size_bytes)


def test_absent_and_empty_files_make_a_pool(here: Path) -> None:
    found = [absent(here / "a"), empty(here / "b", 1 << 30), empty(here / "c", 0, 1 << 30)]
    assert make_plan(found, None) == Plan(create=True, use=found, absent=[])


def test_present_members_are_opened_and_absent_ones_listed(here: Path) -> None:
    found = [member(here / "a"), absent(here / "b")]
    for record in (None, RECORD):
        plan = make_plan(found, record)
        assert plan == Plan(create=False, use=found[:1], absent=found[1:])


def test_the_missing_pool_of_a_home_is_never_replaced(here: Path) -> None:
    for found in (absent(here / "a"), empty(here / "a", 1 << 30), other(here / "a")):
        with pytest.raises(MissingMemberError, match=r"was here before.*not mounted"):
            make_plan([found], RECORD, format_paths=[here / "a"])


def test_other_content_in_the_place_of_a_member_is_refused(here: Path) -> None:
    for found in (empty(here / "b", 1 << 30), other(here / "b")):
        with pytest.raises(MissingMemberError, match="is no member of pool"):
            make_plan([member(here / "a"), found], None)


def test_data_is_never_overwritten_unless_named(here: Path) -> None:
    with pytest.raises(RefusedError, match=f"--format {here}/a"):
        make_plan([other(here / "a")], None)
    with pytest.raises(RefusedError, match=f"--format {here}/b"):
        make_plan([other(here / "a"), other(here / "b")], None, format_paths=[here / "a"])
    assert make_plan([other(here / "a")], None, format_paths=[here / "a"]).create
    with pytest.raises(InvalidArgumentError, match="not a member of this configuration"):
        make_plan([absent(here / "a")], None, format_paths=[here / "z"])
    with pytest.raises(RefusedError, match="for new pools"):
        make_plan([member(here / "a")], None, format_paths=[here / "a"])


def test_pools_are_not_mixed(here: Path) -> None:
    with pytest.raises(ForeignMemberError, match="different pools"):
        make_plan([member(here / "a"), member(here / "b", TWO)], None)
    with pytest.raises(RefusedError, match="another --home"):
        make_plan([member(here / "a", TWO)], RECORD)


def test_files_are_made_only_where_they_belong(here: Path) -> None:
    with pytest.raises(ConfigError, match="give its size"):
        make_plan([absent(here / "a", None)], None)
    with pytest.raises(ConfigError, match="give its size"):
        make_plan([empty(here / "a")], None)
    with pytest.raises(RefusedError, match="not mounted"):
        make_plan([absent(here / "disk" / "a")], None)
    with pytest.raises(RefusedError, match="attach the disk"):
        make_plan([absent(Path("/dev/disk/by-id/none"))], None)


def test_without_needs_a_pool(here: Path) -> None:
    with pytest.raises(MissingMemberError, match="no pool to open"):
        make_plan([absent(here / "a")], None, without=[ONE])


def test_without_takes_uuids_and_known_paths() -> None:
    record = PoolRecord(ONE, "then", None, [MemberRecord(TWO, "/disks/b")])
    assert resolve_without([str(ONE)], None) == {ONE: None}
    assert resolve_without([str(TWO)], record) == {TWO: "/disks/b"}
    assert resolve_without(["/disks/b"], record) == {TWO: "/disks/b"}
    with pytest.raises(InvalidArgumentError, match=r"known: .*0002 \(/disks/b\)"):
        resolve_without(["/disks/c"], record)
