"""A connection to an MLflow database that gives columns: over ADBC where its driver is installed, else over SQLAlchemy.

ADBC fetches columns without making Python objects of them: four times as fast as sqlite3's rows (200,000 rows of three
texts: 0.1 s instead of 0.8). ConnectorX took 0.25 s and knows neither read-only files nor snapshots.
"""

from __future__ import annotations

import os
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import quote

import pyarrow as pa

from spark_tracking.errors import InvalidInput, InvalidUri, NotFound, PermissionRefused, SparkTrackingError, Unavailable
from spark_tracking.masking import masked

BATCH_ROWS = 65_536
_BUSY_MILLISECONDS = 60_000
_DIALECTS = {"sqlite": "sqlite", "postgresql": "postgresql", "postgres": "postgresql", "mysql": "mysql"}


class Connection(Protocol):
    """What both kinds can do."""

    def stream(self, sql: str, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of a query as batches of at most `rows`; the columns of `schema` in this order."""

    def begin(self) -> None:
        """Let the queries until `end` see one state."""

    def end(self) -> None:
        """Let go of what `begin` took."""


class Database:
    """An MLflow database, open for reading.

    Attributes:
        dialect: `sqlite`, `postgresql` or `mysql`.
        shown: the URI without a password.
    """

    def __init__(self, uri: str) -> None:
        scheme, _, rest = uri.partition(":")
        self.dialect = _DIALECTS[scheme.split("+")[0].lower()]
        self.shown = masked(uri, uri)
        self._uri = f"{self.dialect}:{rest}"
        if self.dialect == "sqlite" and not os.path.isfile(_sqlite_path(uri)):
            raise NotFound(
                f"There is no database file '{os.path.abspath(_sqlite_path(uri))}', which {self.shown} names. "
                "Four slashes begin an absolute path (sqlite:////srv/mlflow.db), three a relative one."
            )
        with self._errors():
            self._connection = _adbc(self.dialect, self._uri) or _sqlalchemy(self.dialect, uri)

    def table(self, sql: str, schema: pa.Schema) -> pa.Table:
        """All rows of a query."""
        # In one batch: SQLite's driver takes a column's type from the first batch, which may hold nothing but nulls.
        with self._errors():
            return pa.Table.from_batches(self._connection.stream(sql, schema, 1 << 30), schema)

    def stream(self, sql: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows of a query whose columns are never null, in batches."""
        with self._errors():
            yield from self._connection.stream(sql, schema, BATCH_ROWS)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """The queries in here see one state. Keep it short: on SQLite a reader holds up writers' commits."""
        with self._errors():
            self._connection.begin()
        try:
            yield
        finally:
            self._connection.end()

    def text(self, value: str) -> str:
        """`value` as a literal that means the same under every setting of the server.

        What a backslash in quotes means is a setting of PostgreSQL (`standard_conforming_strings`) and of MySQL (`NO_BACKSLASH_ESCAPES`).
        """
        if self.dialect == "mysql" and "\\" in value:
            return f"_utf8mb4 X'{_bytes(value).hex()}'"
        if self.dialect == "sqlite" and "\0" in value:
            return f"CAST(X'{_bytes(value).hex()}' AS TEXT)"
        if "\0" in value:
            raise InvalidInput(f"{value!r} holds a NUL character, which the database {self.shown} cannot store.")
        quoted = "'" + value.replace("'", "''") + "'"
        return "E" + quoted.replace("\\", "\\\\") if self.dialect == "postgresql" and "\\" in value else quoted

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except SparkTrackingError:
            raise
        except Exception as error:
            raise _translated(error, self.shown, self._uri) from None


def _translated(error: Exception, shown: str, uri: str) -> SparkTrackingError:
    """The driver's error as ours, without the password that drivers like to repeat."""
    said = str(getattr(error, "orig", None) or error).strip().splitlines()
    reason = said[0] if said else type(error).__name__
    reason = masked(reason, uri)
    state = str(getattr(error, "sqlstate", None) or getattr(getattr(error, "orig", None), "pgcode", None) or "")
    lower = reason.lower()
    if state == "42P01" or "no such table" in lower or ("relation" in lower and "does not exist" in lower):
        return NotFound(f"The database {shown} holds no MLflow tables ({reason}). Is it the one that MLflow's server uses?")
    if state.startswith(("28", "42501")) or "authentication failed" in lower or "permission denied" in lower or "access denied" in lower:
        return PermissionRefused(f"The database {shown} refused: {reason}. Check the user, and the password (PGPASSWORD or the URI's).")
    if "readonly database" in lower:  # SQLite's journal of a writer that was killed, which who only reads may not roll back
        return Unavailable(f"The database {shown} was left in the middle of a write. Let MLflow open it once, which undoes that write.")
    return Unavailable(f"The database {shown} cannot be read: {reason}. Check that it is there and can be reached from this machine.")


# -- ADBC -------------------------------------------------------------------------------------------------------


class _Adbc:
    def __init__(self, connection: Any, rows_option: str | None, preparation: tuple[str, ...], begin: str | None) -> None:
        self._connection = connection
        self._rows_option = rows_option
        self._begin = begin
        for statement in preparation:
            self._execute(statement)

    def stream(self, sql: str, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        with self._connection.cursor() as cursor:
            if self._rows_option:
                cursor.adbc_statement.set_options(**{self._rows_option: str(min(rows, 1 << 24))})
            cursor.execute(sql)
            for batch in cursor.fetch_record_batch():
                columns = [column.cast(field.type) for column, field in zip(batch.columns, schema)]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def begin(self) -> None:
        self._connection.adbc_connection.set_autocommit(False)
        if self._begin:
            self._execute(self._begin)

    def end(self) -> None:
        self._connection.adbc_connection.rollback()
        self._connection.adbc_connection.set_autocommit(True)

    def _execute(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            cursor.fetchall()


def _adbc(dialect: str, uri: str) -> Connection | None:
    try:
        if dialect == "sqlite":
            return _adbc_sqlite(uri)
        if dialect == "postgresql":
            import adbc_driver_postgresql.dbapi as postgresql

            connection = postgresql.connect(uri, autocommit=True)
            return _Adbc(connection, None, (), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    except ImportError:
        pass
    return None


_of_adbc: set[int] = set()
"""The file descriptors of this process that ADBC's copy of SQLite has open."""


def _adbc_sqlite(uri: str) -> Connection | None:
    """A connection to a file that this process has not open by Python's own copy of SQLite, as MLflow does.

    Two copies of SQLite in one process take each other's locks away, for those are the process's: when one closes the file, another
    process may write in the middle of the other's transaction (https://sqlite.org/howtocorrupt.html, 2.2.1).
    """
    import adbc_driver_sqlite.dbapi as sqlite

    before = _descriptors(uri)
    if before is None or before - _of_adbc:
        return None
    connection = sqlite.connect(_sqlite_file(uri), autocommit=True)
    # MLflow's LIKE minds the case.
    preparation = (f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}", "PRAGMA case_sensitive_like = true")
    opened = _Adbc(connection, "adbc.sqlite.query.batch_rows", preparation, None)
    mine = (_descriptors(uri) or set()) - before
    _of_adbc.update(mine)

    def close() -> None:
        connection.close()
        _of_adbc.difference_update(mine)

    weakref.finalize(opened, close)
    return opened


def _descriptors(uri: str) -> set[int] | None:
    """By which the database's file is open in this process; None where that cannot be told and there may be some."""
    try:
        file = os.stat(_sqlite_path(uri))
    except OSError:
        return set()  # there is no file
    found = set()
    try:
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):
                if os.path.samestat(os.fstat(int(name)), file):
                    found.add(int(name))
    except OSError:
        return None if "sqlite3" in sys.modules else set()
    return found


def _bytes(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{value!r} holds half a character, which no database stores.") from None


def _sqlite_path(uri: str) -> str:
    """The file that an SQLAlchemy URI names."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    if match is None or match.group(1) in ("", ":memory:"):
        raise InvalidUri(f"'{masked(uri, uri)}' names no database file. Expected sqlite:////absolute/path or sqlite:///relative/path.")
    return match.group(1)


def _sqlite_file(uri: str) -> str:
    """SQLite's own URI, read-only, from SQLAlchemy's."""
    return f"file:{quote(_sqlite_path(uri))}?mode=ro"


# -- SQLAlchemy -------------------------------------------------------------------------------------------------


class _SqlAlchemy:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def stream(self, sql: str, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        if self._connection.dialect.paramstyle in ("format", "pyformat"):
            sql = sql.replace("%", "%%")  # such drivers look for their parameters even where there are none
        result = self._connection.execution_options(stream_results=True).exec_driver_sql(sql)
        while found := result.fetchmany(min(rows, BATCH_ROWS)):
            columns = [pa.array(column).cast(field.type) for column, field in zip(zip(*found), schema)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def begin(self) -> None:
        """A transaction is begun by its first query; not by Python's sqlite3, which begins one only before it writes."""
        if self._connection.dialect.name == "sqlite":
            self._connection.exec_driver_sql("BEGIN")

    def end(self) -> None:
        self._connection.rollback()


def _sqlalchemy(dialect: str, uri: str) -> Connection:
    address = f"sqlite:///{_sqlite_file(uri)}&uri=true" if dialect == "sqlite" else uri
    level = {} if dialect == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    try:
        import sqlalchemy

        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool, **level)
    except ImportError as error:
        raise InvalidUri(
            f"Reading '{masked(uri, uri)}' takes a driver that is not installed here ({error}). Install it on every machine that reads: "
            "pip install 'spark-tracking[database]', and name it in the URI (mysql+pymysql://…)."
        ) from error
    connection = engine.connect()
    if dialect == "sqlite":
        for setting in ("case_sensitive_like = true", f"busy_timeout = {_BUSY_MILLISECONDS}"):
            connection.exec_driver_sql(f"PRAGMA {setting}")
    return _SqlAlchemy(connection)
