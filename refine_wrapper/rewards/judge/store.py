"""Replies that were paid for, and what a run has spent: one SQLite file for several processes."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from refine_wrapper.errors import ConfigError

_log = logging.getLogger(__name__)
_TABLES = """
create table if not exists replies (
    key text primary key, text text not null, finish text not null, prompt_tokens integer, completion_tokens integer
);
create table if not exists counts (
    run text not null, name text not null, value integer not null, primary key (run, name)
);
"""
_BUSY_SECONDS = 30.0
CACHE_FAILURES = "cache_failures"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said.

    Attributes:
        finish: Why it ended, in the endpoint's words: ``stop``, ``length``.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


class Store:
    """Replies by the content of their request, and counts by run.

    A disk that fails later on costs a warning and is counted; what is not stored is asked again, and limits then hold
    for this process alone. Not for several threads at once.

    Args:
        path: The file; None keeps everything in this process.
        run: Whose counts these are.

    Raises:
        ConfigError: If the file cannot be made or is no such file.
    """

    def __init__(self, path: Path | None, run: str) -> None:
        self._run = run
        self._own: Counter[str] = Counter()
        self._warned = False
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                path or ":memory:", timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            # A step may have thousands of replies, and each would wait for the disk. A killed process loses nothing by
            # this; a machine that loses its power may lose the file.
            self._file.execute("pragma synchronous = off")
            self._file.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"refine: judge: the cache {str(path)!r} cannot be used: {error}.") from None

    def get(self, key: str) -> Reply | None:
        """The reply to a request, if it was paid before."""
        try:
            query = "select text, finish, prompt_tokens, completion_tokens from replies where key = ?"
            row = self._file.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            self._failed(error)
            return None
        return None if row is None else Reply(*row)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, and count its tokens."""
        spent = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        self._own.update(spent)
        try:
            values = (key, reply.text, reply.finish, reply.prompt_tokens, reply.completion_tokens)
            with self._transaction():
                self._file.execute("insert or ignore into replies values (?, ?, ?, ?, ?)", values)
                self._add(spent)
        except sqlite3.Error as error:
            self._failed(error)

    def add(self, counts: Mapping[str, int]) -> None:
        """Add to the counts of the run."""
        self._own.update(counts)
        try:
            self._add(counts)
        except sqlite3.Error as error:
            self._failed(error)

    def take_call(self, max_calls: int | None, max_tokens: int | None) -> str | None:
        """Count one more call, or say in words which limit of the run is reached. Exact also among processes."""
        try:
            with self._transaction():
                reached = _reached(self.counts(), max_calls, max_tokens)
                if reached is None:
                    self._add({"calls": 1})
        except sqlite3.Error as error:
            self._failed(error)
            reached = _reached(self._own, max_calls, max_tokens)
        if reached is None:
            self._own["calls"] += 1
        return reached

    def counts(self) -> dict[str, int]:
        """The counts of the run, of all processes that share the file."""
        with closing(self._file.execute("select name, value from counts where run = ?", (self._run,))) as rows:
            return dict(rows)

    def own_counts(self) -> dict[str, int]:
        """The counts of this process."""
        return dict(self._own)

    def close(self) -> None:
        self._file.close()

    @contextmanager
    def _transaction(self) -> Generator[None]:
        # It writes from its beginning, so that no other process reads in between.
        self._file.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._file.execute("rollback")
            raise
        self._file.execute("commit")

    def _add(self, counts: Mapping[str, int]) -> None:
        self._file.executemany(
            "insert into counts values (?, ?, ?) on conflict (run, name) do update set value = value + excluded.value",
            [(self._run, name, value) for name, value in counts.items() if value],
        )

    def _failed(self, error: sqlite3.Error) -> None:
        self._own[CACHE_FAILURES] += 1
        if not self._warned:
            self._warned = True
            _log.warning("refine: judge: the cache fails, and judging goes on without it: %s", error)


def _reached(counts: Mapping[str, int], max_calls: int | None, max_tokens: int | None) -> str | None:
    calls = counts.get("calls", 0)
    if max_calls is not None and calls >= max_calls:
        return f"max_calls = {max_calls}"
    tokens = counts.get("prompt_tokens", 0) + counts.get("completion_tokens", 0)
    if max_tokens is not None and tokens >= max_tokens:
        return f"max_total_tokens = {max_tokens} ({tokens} spent)"
    return None
