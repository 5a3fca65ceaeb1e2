"""The ledger's tables, and the way from each older format (`user_version`) to the newest."""

import json
import os
import sqlite3

from . import errors

_V1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE remotes (
    name TEXT PRIMARY KEY,
    uuid TEXT NOT NULL DEFAULT '',          -- of the root there; another one means another spool
    cursor INTEGER NOT NULL DEFAULT 0,      -- offset in its journal up to which we have read
    revision INTEGER NOT NULL DEFAULT 0,    -- of config, raised with every change
    config TEXT NOT NULL DEFAULT '',        -- caps and settings as last sent, JSON
    synced TEXT NOT NULL DEFAULT '',
    report TEXT NOT NULL DEFAULT 'null'     -- the agent's status of the last sync, JSON
) WITHOUT ROWID;
CREATE TABLE jobs (
    id TEXT NOT NULL UNIQUE,
    remote TEXT NOT NULL,
    name TEXT NOT NULL,
    folder BLOB NOT NULL,
    state TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    priority INTEGER NOT NULL DEFAULT 0,
    script BLOB NOT NULL,
    options TEXT NOT NULL,
    results_dir TEXT NOT NULL,
    results_state TEXT NOT NULL DEFAULT 'NONE',
    exit INTEGER,
    signal INTEGER,
    why TEXT NOT NULL DEFAULT '',
    pbs TEXT NOT NULL DEFAULT '',
    offered INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT 0,
    added TEXT NOT NULL,
    changed TEXT NOT NULL
);
CREATE INDEX jobs_folder ON jobs(folder);
CREATE INDEX jobs_name ON jobs(name);
CREATE INDEX jobs_state ON jobs(remote, state);
CREATE INDEX jobs_results ON jobs(remote, state) WHERE results_state IN ('NONE', 'PARTIAL');
CREATE TABLE files (
    job TEXT NOT NULL, attempt INTEGER NOT NULL, path BLOB NOT NULL,
    size INTEGER NOT NULL, mode INTEGER NOT NULL, sha256 TEXT NOT NULL, mtime_ns INTEGER NOT NULL,
    source BLOB NOT NULL,                   -- where the content is on this computer
    content BLOB,                           -- or the content itself, of a generated script
    PRIMARY KEY (job, attempt, path)
) WITHOUT ROWID;
CREATE TABLE attempts (
    job TEXT NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
    exit INTEGER, signal INTEGER, why TEXT NOT NULL DEFAULT '', pbs TEXT NOT NULL DEFAULT '',
    added TEXT NOT NULL, started TEXT NOT NULL DEFAULT '', ended TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job, attempt)
) WITHOUT ROWID;
CREATE TABLE ops (
    id TEXT NOT NULL UNIQUE, remote TEXT NOT NULL, op TEXT NOT NULL, job TEXT NOT NULL, attempt INTEGER NOT NULL,
    requested TEXT NOT NULL, done TEXT NOT NULL DEFAULT ''
);
CREATE INDEX ops_pending ON ops(remote, job) WHERE done = '';
CREATE TABLE events (
    id INTEGER PRIMARY KEY, job TEXT NOT NULL, attempt INTEGER NOT NULL, at TEXT NOT NULL, event TEXT NOT NULL,
    old TEXT NOT NULL DEFAULT '', new TEXT NOT NULL DEFAULT '', why TEXT NOT NULL DEFAULT '',
    record TEXT                             -- digest of the journal record behind it: the same one counts once
);
CREATE INDEX events_job ON events(job, id);
CREATE UNIQUE INDEX events_record ON events(job, record) WHERE record IS NOT NULL;
CREATE TABLE results_files (
    job TEXT NOT NULL, attempt INTEGER NOT NULL, path BLOB NOT NULL,
    size INTEGER NOT NULL, mode INTEGER NOT NULL, mtime REAL NOT NULL, sha256 TEXT NOT NULL,
    kind TEXT NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL,
    PRIMARY KEY (job, attempt, path)
) WITHOUT ROWID;
"""

# jobs.missing: the patterns of expected results that are not there, JSON. Results that are here are known again by size
# and time to the nanosecond. Not ALTER TABLE ... DROP COLUMN: SQLite 3.34, which is still about, has none.
_V2 = """
ALTER TABLE jobs ADD COLUMN missing TEXT NOT NULL DEFAULT '[]';
CREATE TABLE results_files_2 (
    job TEXT NOT NULL, attempt INTEGER NOT NULL, path BLOB NOT NULL,
    size INTEGER NOT NULL, mode INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL,
    kind TEXT NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL,
    PRIMARY KEY (job, attempt, path)
) WITHOUT ROWID;
INSERT INTO results_files_2 SELECT job, attempt, path, size, mode, CAST(mtime AS INTEGER) * 1000000000, sha256, kind,
    state, why FROM results_files;
DROP TABLE results_files;
ALTER TABLE results_files_2 RENAME TO results_files;
"""

_V3 = """
CREATE TABLE proofs (                       -- a run found an attempt's results whole
    job TEXT NOT NULL, attempt INTEGER NOT NULL, run TEXT NOT NULL,
    at REAL NOT NULL,                       -- seconds since 1970, by this computer's clock
    boot TEXT NOT NULL, up REAL NOT NULL,   -- which boot of it, and seconds since then
    manifest TEXT NOT NULL,                 -- digest of paths, sizes and hashes that were proved
    how TEXT NOT NULL                       -- sync, local, deep
);
CREATE INDEX proofs_job ON proofs(job, attempt);
CREATE TABLE keeps (job TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE clearances (                   -- the last refusal to clean a job
    job TEXT PRIMARY KEY, attempt INTEGER NOT NULL, at REAL NOT NULL, why TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_cleanup ON jobs(remote) WHERE results_state IN ('VERIFIED', 'CLEANUP_ELIGIBLE');
"""

_V4 = """
CREATE TABLE parents (                      -- the jobs a job waits for
    job TEXT NOT NULL, parent TEXT NOT NULL,
    place INTEGER NOT NULL,                 -- in its list
    condition TEXT NOT NULL,                -- how each has to end: ok, any, fail
    PRIMARY KEY (job, parent)
) WITHOUT ROWID;
CREATE INDEX parents_parent ON parents(parent);
"""

# What became of each element of a job array that ended, JSON as chasqui_agent.elements has it; "" of any other job.
_V5 = """
ALTER TABLE jobs ADD COLUMN elements TEXT NOT NULL DEFAULT '';
ALTER TABLE attempts ADD COLUMN elements TEXT NOT NULL DEFAULT '';
"""

MIGRATIONS = (_V1, _V2, _V3, _V4, _V5)  # the script at n leads from format n to n + 1


def prepare(db: sqlite3.Connection) -> str:
    """Bring the ledger to the newest format, each step whole or not at all; returns its id. Raises LedgerNewer."""
    if _version(db) < len(MIGRATIONS):
        db.execute("BEGIN IMMEDIATE")
        try:
            for number in range(_version(db), len(MIGRATIONS)):  # asked again: another chasqui may have been first
                _run(db, MIGRATIONS[number])
                db.execute("PRAGMA user_version = %d" % (number + 1))
            db.execute("INSERT OR IGNORE INTO meta VALUES ('id', ?)", (json.dumps(os.urandom(16).hex()),))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    if _version(db) > len(MIGRATIONS):
        raise errors.LedgerNewer(path=_path(db), found=_version(db), known=len(MIGRATIONS))
    return str(json.loads(db.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0]))


def _run(db: sqlite3.Connection, script: str) -> None:
    # Not executescript: it commits what came before, and half a migration would stay.
    for statement in script.split(";\n"):
        if statement.strip():
            db.execute(statement)


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _path(db: sqlite3.Connection) -> str:
    return str(db.execute("PRAGMA database_list").fetchone()[2])
