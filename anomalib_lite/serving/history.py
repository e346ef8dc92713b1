"""Everything that was judged, and what people said of it, in SQLite (through SQLAlchemy).

Every transaction is on the disk before anybody is told (write-ahead log, synchronous=FULL): a verdict that was
acknowledged survives the process and the power.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anomalib_lite.fitted.calibration import ALARM, GOOD, LOOK_AGAIN, NO_VERDICT
from anomalib_lite.judging import Verdict

VERDICTS = (GOOD, LOOK_AGAIN, ALARM, NO_VERDICT)
_MOST = 1000  # entries told at once

_FORGOTTEN_AT_ONCE = 1000  # rows: verdicts that come meanwhile wait no longer for the disk than for a full batch

PROPOSED, RELEASED, DISCARDED = "proposed", "released", "discarded"


@dataclass(frozen=True)
class Column:
    """What is kept of every verdict under one name.

    Attributes
    ----------
    name : as in the table and in every export
    kind : "Text", "Float", "Integer" or "Boolean"
    may_be_empty : whether it is None of some verdicts
    of_verdict : whether it is what `Verdict.to_dict` has under that name
    """

    name: str
    kind: Literal["Text", "Float", "Integer", "Boolean"] = "Text"
    may_be_empty: bool = False
    of_verdict: bool = False


# All but the id, in the order of exports.
COLUMNS = (
    Column("part"),
    Column("name"),
    Column("lot"),
    Column("camera"),
    Column("time", of_verdict=True),
    Column("verdict", of_verdict=True),
    Column("reason", of_verdict=True),
    Column("score", "Float", may_be_empty=True, of_verdict=True),
    Column("p_value", "Float", may_be_empty=True, of_verdict=True),
    Column("threshold", "Float", of_verdict=True),
    Column("false_alarm_rate", "Float", of_verdict=True),
    Column("version", "Integer"),
    Column("model", of_verdict=True),
    Column("picture", of_verdict=True),
    Column("height", "Integer", may_be_empty=True),
    Column("width", "Integer", may_be_empty=True),
    Column("milliseconds", "Float", of_verdict=True),
    Column("sampled", "Boolean"),
    Column("good", "Boolean", may_be_empty=True),  # what people said last; None: nothing
    Column("regions"),  # JSON
)


@dataclass(frozen=True)
class Version:
    """One version of the model of a part type.

    Attributes
    ----------
    part, number : of which part type, and which of its versions, from 1
    digest : SHA-256 of the model, see `Detector.digest`
    time : when it was made, ISO 8601 in UTC
    state : "proposed", "released" or "discarded"
    note : what it was made from, in words
    """

    part: str
    number: int
    digest: str
    time: str
    state: str
    note: str


class History:
    """The history of a server.

    Parameters
    ----------
    path : path of the SQLite file, made if it is not there

    Raises
    ------
    ImportError
        Without SQLAlchemy.
    OSError
        If the file cannot be opened, or is none.
    """

    def __init__(self, path: Path):
        try:
            import sqlalchemy as sql
        except ImportError as error:
            raise ImportError("serving needs more: pip install 'anomalib_lite[serve]'") from error
        self.path, self._sql = path, sql
        self._writing = threading.Lock()
        metadata = sql.MetaData()
        self._verdicts = sql.Table(
            "verdicts",
            metadata,
            sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
            *(sql.Column(one.name, getattr(sql, one.kind), nullable=one.may_be_empty) for one in COLUMNS),
            sql.Index("by_part", "part", "id"),
            sql.Index("by_version", "part", "version", "verdict"),
            sqlite_autoincrement=True,
        )
        self._said = sql.Table(
            "said",
            metadata,
            sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
            sql.Column("verdict_id", sql.Integer, sql.ForeignKey("verdicts.id"), nullable=False, index=True),
            sql.Column("time", sql.Text, nullable=False),
            sql.Column("good", sql.Boolean),  # None: what was said before is taken back
            sql.Column("kind", sql.Text, nullable=False),
            sql.Column("note", sql.Text, nullable=False),
            sql.Column("who", sql.Text, nullable=False),
            sqlite_autoincrement=True,
        )
        self._versions = sql.Table(
            "versions",
            metadata,
            sql.Column("part", sql.Text, primary_key=True),
            sql.Column("number", sql.Integer, primary_key=True),
            sql.Column("digest", sql.Text, nullable=False),
            sql.Column("time", sql.Text, nullable=False),
            sql.Column("state", sql.Text, nullable=False),
            sql.Column("note", sql.Text, nullable=False),
            sql.Column("current", sql.Boolean, nullable=False),
        )
        self._engine = sql.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})

        @sql.event.listens_for(self._engine, "connect")
        def _prepare(connection: Any, _: Any) -> None:
            for setting in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {setting}")

        try:
            metadata.create_all(self._engine)
        except sql.exc.DatabaseError as error:
            raise OSError(f"{path} cannot be opened as a history: {error.orig}") from error

    # ---------------------------------------------------------------- verdicts

    def write(self, entries: Sequence[tuple[Verdict, Mapping[str, Any]]]) -> list[int]:
        """Write verdicts down, with part, version, lot, camera and sampled of each; their ids, once on the disk.

        Raises
        ------
        OSError
            If they cannot be, such as for a full disk.
        """
        rows = []
        for verdict, about in entries:
            told = verdict.to_dict()
            height, width = verdict.size or (None, None)
            own = {one.name: told[one.name] for one in COLUMNS if one.of_verdict}
            regions = json.dumps(told["regions"])
            rows.append({**own, **about, "name": verdict.id, "height": height, "width": width, "regions": regions})
        with self._transaction() as connection:
            insert = self._verdicts.insert().returning(self._verdicts.c.id, sort_by_parameter_order=True)
            return list(connection.execute(insert, rows).scalars())

    def entry(self, identity: int) -> dict[str, Any] | None:
        """One verdict, with everything that was said of it; None if there is none of that id."""
        with self._engine.connect() as connection:
            row = connection.execute(self._verdicts.select().where(self._verdicts.c.id == identity)).first()
            if row is None:
                return None
            said = connection.execute(
                self._said.select().where(self._said.c.verdict_id == identity).order_by(self._said.c.id)
            )
            return {**_told(row), "said": [dict(one._mapping) for one in said]}

    def entries(
        self,
        part: str,
        *,
        limit: int = 50,
        before: int | None = None,
        since: int | None = None,
        to_look_at: bool = False,
    ) -> list[dict[str, Any]]:
        """Verdicts of a part type, the latest first.

        With `to_look_at` those that nobody has said anything of: alarms, the unsure, and the sample of passes.
        """
        table = self._verdicts
        query = table.select().where(table.c.part == part)
        if before is not None:
            query = query.where(table.c.id < before)
        if since is not None:
            query = query.where(table.c.id > since)
        if to_look_at:
            query = query.where(self._to_look_at())
        query = query.order_by(table.c.id.desc()).limit(max(0, min(limit, _MOST)))
        with self._engine.connect() as connection:
            return [_told(row) for row in connection.execute(query)]

    def count_to_look_at(self, part: str) -> int:
        """How many verdicts of a part type somebody should look at."""
        table = self._verdicts
        query = self._sql.select(self._sql.func.count()).where(table.c.part == part).where(self._to_look_at())
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

    def _to_look_at(self) -> Any:
        table = self._verdicts
        of_interest = self._sql.or_(table.c.verdict.in_([ALARM, LOOK_AGAIN, NO_VERDICT]), table.c.sampled)
        return self._sql.and_(table.c.good.is_(None), of_interest)

    def confirmed(self, part: str) -> list[dict[str, Any]]:
        """Verdicts of a part type that people said something of, in their order."""
        table = self._verdicts
        query = table.select().where(table.c.part == part).where(table.c.good.is_not(None)).order_by(table.c.id)
        with self._engine.connect() as connection:
            return [_told(row) for row in connection.execute(query)]

    def counts(self, part: str, *, version: int | None = None) -> dict[str, int]:
        """How many of each verdict there were, by all versions or one."""
        table, count = self._verdicts, self._sql.func.count()
        query = self._sql.select(table.c.verdict, count).where(table.c.part == part).group_by(table.c.verdict)
        if version is not None:
            query = query.where(table.c.version == version)
        with self._engine.connect() as connection:
            found = dict(tuple(row) for row in connection.execute(query))
        return {verdict: found.get(verdict, 0) for verdict in VERDICTS}

    def course(self, part: str, version: int, *, since: int, limit: int) -> list[dict[str, Any]]:
        """The last `limit` verdicts by a version after the id `since`, the earliest first, without their regions."""
        table = self._verdicts
        told = (table.c.id, table.c.verdict, table.c.p_value, table.c.milliseconds)
        query = self._sql.select(*told).where(table.c.part == part, table.c.version == version, table.c.id > since)
        query = query.order_by(table.c.id.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)][::-1]

    def count_confirmed(self, part: str) -> dict[str, int]:
        """How many parts were confirmed as good, how many of those had alarmed, and how many were confirmed as bad."""
        table, count = self._verdicts, self._sql.func.count()
        query = self._sql.select(table.c.good, table.c.verdict == ALARM, count).where(table.c.part == part)
        query = query.where(table.c.good.is_not(None)).group_by(table.c.good, table.c.verdict == ALARM)
        with self._engine.connect() as connection:
            found = {(bool(good), bool(alarm)): number for good, alarm, number in connection.execute(query)}
        false_alarms = found.get((True, True), 0)
        return {
            "good": false_alarms + found.get((True, False), 0),
            "false_alarms": false_alarms,
            "bad": found.get((False, True), 0) + found.get((False, False), 0),
        }

    def all(
        self, *, part: str | None = None, since: str | None = None, until: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every verdict in its order, of a part type and between two times (ISO 8601), if these are given."""
        table = self._verdicts
        query = table.select().order_by(table.c.id)
        for column, low, high in ((table.c.part, part, part), (table.c.time, since, until)):
            query = query if low is None else query.where(column >= low)
            query = query if high is None else query.where(column <= high)
        with self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=_MOST).execute(query):
                yield _told(row)

    def forget(self, before: str, alarms_before: str) -> list[int]:
        """Remove verdicts of before a time (ISO 8601 in UTC) that nobody has ever said anything of; the ids of some.

        Alarms are removed by a time of their own. Those that somebody spoke of stay, also where it was taken back.
        An empty list says that nothing is left to be removed; SQLite uses the room again.

        Raises
        ------
        OSError
            If they cannot be.
        """
        table, said = self._verdicts, self._said
        too_old = self._sql.or_(
            self._sql.and_(table.c.verdict != ALARM, table.c.time < before),
            self._sql.and_(table.c.verdict == ALARM, table.c.time < alarms_before),
        )
        spoken_of = self._sql.exists().where(said.c.verdict_id == table.c.id)
        # Ids follow time, so that what is too old is all before the first that is not, and no more is looked at.
        kept = self._sql.select(table.c.id).where(table.c.time >= max(before, alarms_before))
        first = kept.order_by(table.c.id).limit(1).scalar_subquery()
        query = self._sql.select(table.c.id).where(too_old, ~spoken_of)
        query = query.where(self._sql.or_(first.is_(None), table.c.id < first))
        with self._transaction() as connection:
            found = list(connection.execute(query.order_by(table.c.id).limit(_FORGOTTEN_AT_ONCE)).scalars())
            connection.execute(table.delete().where(table.c.id.in_(found)))
        return found

    # ---------------------------------------------------------------- what people say

    def say(self, identity: int, good: bool | None, *, kind: str = "", note: str = "", who: str = "") -> bool:
        """Note what somebody said of a verdict: that the part was good, or bad, or (None) nothing after all.

        False if there is no such verdict.
        """
        with self._transaction() as connection:
            table = self._verdicts
            changed = connection.execute(table.update().where(table.c.id == identity).values(good=good))
            if not changed.rowcount:
                return False
            said = {"verdict_id": identity, "time": _now(), "good": good, "kind": kind, "note": note, "who": who}
            connection.execute(self._said.insert().values(**said))
            return True

    # ---------------------------------------------------------------- versions

    def add_version(self, part: str, digest: str, note: str, *, state: str = PROPOSED) -> Version:
        """Write a new version of a part type's model down; the first is current at once."""
        table = self._versions
        with self._transaction() as connection:
            last = connection.execute(
                self._sql.select(self._sql.func.max(table.c.number)).where(table.c.part == part)
            ).scalar()
            version = Version(part, (last or 0) + 1, digest, _now(), state, note)
            connection.execute(table.insert().values(**vars(version), current=last is None))
            return version

    def versions(self, part: str) -> list[Version]:
        """All versions of a part type, the first first."""
        table = self._versions
        with self._engine.connect() as connection:
            rows = connection.execute(table.select().where(table.c.part == part).order_by(table.c.number))
            return [_version(row) for row in rows]

    def current(self, part: str) -> Version | None:
        """The version that judges."""
        table = self._versions
        with self._engine.connect() as connection:
            row = connection.execute(table.select().where(table.c.part == part, table.c.current)).first()
            return None if row is None else _version(row)

    def release(self, part: str, number: int) -> None:
        """Let a version judge from now on."""
        self._set(part, number, RELEASED, current=True)

    def discard(self, part: str, number: int) -> None:
        """A version is not to judge."""
        self._set(part, number, DISCARDED, current=False)

    def _set(self, part: str, number: int, state: str, *, current: bool) -> None:
        table = self._versions
        with self._transaction() as connection:
            if current:
                connection.execute(table.update().where(table.c.part == part).values(current=False))
            mine = (table.c.part == part) & (table.c.number == number)
            connection.execute(table.update().where(mine).values(state=state, current=current))

    def check(self) -> None:
        """Write something that changes nothing; OSError if the disk takes nothing any more."""
        with self._transaction() as connection:
            connection.exec_driver_sql("PRAGMA user_version = 1")

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """One writer at a time; on the disk when it ends."""
        try:
            with self._writing, self._engine.begin() as connection:
                yield connection
        except self._sql.exc.DatabaseError as error:
            raise OSError(f"{self.path}: {error.orig}") from error


def _told(row: Any) -> dict[str, Any]:
    values = dict(row._mapping)
    return {**values, "regions": json.loads(values["regions"])}


def _version(row: Any) -> Version:
    values = dict(row._mapping)
    del values["current"]
    return Version(**values)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
