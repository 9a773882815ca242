"""The store's file: every change is written through to sqlite, so that a killed API process comes back as it was."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

    from tether.devcluster.contracts import Object

_TABLES = """
CREATE TABLE IF NOT EXISTS objects (
  "group" TEXT, plural TEXT, namespace TEXT, name TEXT, body BLOB,
  PRIMARY KEY ("group", plural, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY CHECK (id = 1), version INTEGER);
"""

Key = tuple[str, str, str, str]
"""Group, plural, namespace ("" for cluster-scoped), name."""


class Disk:
    """One sqlite file with the current objects and the resourceVersion counter; OSError when it is in use.

    A change is in the file when ``write`` returns, and survives the death of this process. It is not synced, so
    loss of power may lose the last changes: this is a cluster for development.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # it holds Secrets
        path.chmod(0o600)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
        try:
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")
            self._db.executescript(_TABLES)
        except sqlite3.Error as error:
            self._db.close()
            message = f"{path} cannot be used: {error}; another embedded API may be running on this folder"
            raise OSError(message) from error

    def load(self) -> tuple[int, list[tuple[Key, Object]]]:
        """Return the resourceVersion counter (0 in a new file) and every object."""
        row = self._db.execute("SELECT version FROM counter").fetchone()
        rows = self._db.execute('SELECT "group", plural, namespace, name, body FROM objects')
        return (row[0] if row else 0), [((g, p, ns, n), msgspec.json.decode(body)) for g, p, ns, n, body in rows]

    def write(self, key: Key, obj: Object | None, version: int) -> None:
        """Keep the object, or forget it when it is None, together with the counter."""
        self._db.execute("BEGIN")
        if obj is None:
            self._db.execute('DELETE FROM objects WHERE "group" = ? AND plural = ? AND namespace = ? AND name = ?', key)
        else:
            self._db.execute("REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", (*key, msgspec.json.encode(obj)))
        self._db.execute("REPLACE INTO counter VALUES (1, ?)", (version,))
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()
