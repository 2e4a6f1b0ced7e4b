"""Logs -> derived tables: fold what came since a table's watermark into its rows, and commit both together.

runs_latest comes last and is committed even when no run changed, so its watermark vouches for all the others: a table whose
kind had no news needs no commit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress

from spark_tracking.delta.commit_log import Gone
from spark_tracking.delta.table import Raced, Table
from spark_tracking.errors import LakeCorrupt, Unavailable
from spark_tracking.kinds.state import Entity
from spark_tracking.lake.derived_table import DerivedTable
from spark_tracking.lake.log_rows import fold_rows
from spark_tracking.lake.replay import Folding, fold_logs_of, holds, of_logs
from spark_tracking.lake.tables import DERIVED, EVENTS_LOG, METRICS_LOG

ATTEMPTS = 10


class Refresher:
    """Brings derived tables up to date.

    Attributes:
        force: rebuild even where derived rows know what the logs have lost.

    Args:
        logs: the events log and the metrics log, where somebody who works in turns with this one has handles.
    """

    def __init__(self, root: str, *logs: Table) -> None:
        self.logs = {table.spec.name: table for table in logs or (Table(root, EVENTS_LOG), Table(root, METRICS_LOG))}
        self.force = False
        self.tables = [DerivedTable(root, spec) for spec in sorted(DERIVED, key=lambda s: s.kind == "run")]

    def refresh(self) -> int:
        """Fold all that the logs have; returns how many rows changed. Raises Unavailable: others went on refreshing first."""
        return self._insist(self._refresh)

    def rebuild(self) -> int:
        """Fold the logs from their beginning and replace every derived table; returns how many things the logs know.

        Raises:
            Unavailable: others went on refreshing first.
        """
        return self._insist(self._rebuild)

    def _insist(self, work: Callable[[], int]) -> int:
        for _ in range(ATTEMPTS):
            try:
                return work()
            except Raced:
                continue
            except Gone:
                work = self._rebuild
        raise Unavailable(f"Other processes refreshed the lake's tables {ATTEMPTS} times in a row; try again later.")

    def require_whole_logs(self) -> None:
        """Refuse to work on logs that have lost their end: new commits would take the places of the lost ones.

        Raises:
            LakeCorrupt: a log is older than what the derived tables have of it.
        """
        self.tables[-1].update()
        for name, newest, covered in self.tables[-1].lost_ends(self.logs):
            raise LakeCorrupt(
                f"'{self.logs[name].uri}' is at version {newest}, though version {covered} of it was seen: its newest commits are gone. "
                "Restore the folder from a backup, or put back what the lake still has: spark-tracking lake rebuild"
            )

    def _rebuild(self) -> int:
        until = {name: log.update() for name, log in self.logs.items()}
        events, metrics = self.logs.values()
        entities = of_logs(events, metrics)
        if not self.force:
            self._require_nothing_lost(entities)
        for table in self.tables:
            table.update()
            mine = [e for (kind, _), e in entities.items() if kind == table.spec.kind]
            table.write(mine, None, until)
        return len(entities)

    def _require_nothing_lost(self, entities: Folding) -> None:
        """Refuse a rebuild by which something would vanish that the derived tables alone still have."""
        lost = [f"{key[0]} '{key[1]}'" for key, entity in self.stored() if not holds(entities.get(key), entity)]
        if lost:
            raise LakeCorrupt(
                f"The logs have lost something of {len(lost):,} things that the derived tables still show ({', '.join(lost[:3])}"
                f"{', …' if len(lost) > 3 else ''}), so nothing was rebuilt. Restore the lake from a backup, or accept the loss with: "
                "spark-tracking lake rebuild --force, which keeps a copy of those rows in the lake."
            )

    def stored(self) -> Iterator[tuple[tuple[str, str], Entity]]:
        """What the derived tables show, row by row; files that cannot be read are left out."""
        for table in self.tables:
            table.update()
            for rows in table.undamaged(["state", table.spec.key]):
                for id, state in zip(rows[table.spec.key].to_pylist(), rows["state"].to_pylist()):
                    with suppress(LakeCorrupt):
                        yield (table.spec.kind, id), Entity.unpack(table.spec.kind, id, state)

    def _refresh(self) -> int:
        until = {name: log.update() for name, log in self.logs.items()}
        for table in reversed(self.tables):  # runs_latest first, as a reader looks
            table.update()
        vouched = self.tables[-1].watermarks
        if all(vouched[name] >= version for name, version in until.items()):
            return 0
        events, metrics = (log.rows_since(vouched[name], until[name]) for name, log in self.logs.items())
        news = Folding()
        fold_rows(news, events, metrics)
        changed = 0
        for table in self.tables:
            mine = {id: entity for (kind, id), entity in news.items() if kind == table.spec.kind}
            if mine or table is self.tables[-1]:
                self._merge(table, mine, until)
            changed += len(mine)
        if self.tables[-1].is_due():  # here, where all that the logs have is covered
            for table_ in (*self.logs.values(), *self.tables):
                table_.clean_log()
        return changed

    def _merge(self, table: DerivedTable, news: dict[str, Entity], until: dict[str, int]) -> None:
        stored = table.lookup(news)
        unknown = [id for id in news if id not in stored]
        for id, entity in stored.items():
            entity.merge(news[id])
        entities = {**news, **stored}
        if unknown and self._may_have_more(table, [entities[id] for id in unknown]):
            fold_logs_of({(table.spec.kind, id): entities[id] for id in unknown}, table.spec.kind, *self.logs.values())
        table.write(entities.values(), stored, until)
        if table.is_due():
            table.compact()

    def _may_have_more(self, table: DerivedTable, unknown: Collection[Entity]) -> bool:
        """Whether the logs may have had something of these new things before the news.

        Something of a thing may be flushed before its creation is; but who writes of a run has seen its creation, so that what
        he writes is stamped later.
        """
        watermarks = self.tables[-1].watermarks
        if min(watermarks.values()) < 0:
            return False
        first = min(entity.born for entity in unknown)
        return table.spec.kind != "run" or any(log.max_of("hlc", watermarks[name]) >= first for name, log in self.logs.items())
