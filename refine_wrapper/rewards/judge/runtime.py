"""The judge at work in one process: an event loop of its own, calls that are bounded, shared, cached and counted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from refine_wrapper.rewards.judge.endpoint import Endpoint
from refine_wrapper.rewards.judge.failures import FailureKind, JudgeError, JudgeLimitError
from refine_wrapper.rewards.judge.prompts import Case, JudgePrompt, order_of
from refine_wrapper.rewards.judge.records import Records
from refine_wrapper.rewards.judge.scores import read_scores, reply_schema
from refine_wrapper.rewards.judge.settings import JudgeSettings
from refine_wrapper.rewards.judge.store import CACHE_FAILURES, Reply, Store

_log = logging.getLogger(__name__)
T = TypeVar("T")

COUNTS = (
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "cache_hits",
    CACHE_FAILURES,
    "failures",
    *(f"failures/{kind.value}" for kind in FailureKind),
)
"""What is counted: judgements asked of the endpoint, their tokens, those from the cache, those that gave no score."""

Verdict = list[float] | JudgeError
"""Of one judgement: a score from 0 to 1 for each completion of the case, or why there is none."""


class Runtime:
    """Runs in a thread of its own, so that any thread and any event loop may ask.

    Args:
        settings: Of the judge.
        prompt: Made from them.

    Raises:
        ConfigError: If the client, the cache or the trace cannot be used.
    """

    def __init__(self, settings: JudgeSettings, prompt: JudgePrompt) -> None:
        self._settings = settings
        self._prompt = prompt
        self._store = Store(settings.cache, settings.run)
        self._records = Records(settings.trace_dir)
        self._endpoint = Endpoint(settings)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._cases = 0
        self._busy_since = 0.0
        self._busy_seconds = 0.0
        self._has_judged = False
        self._said: set[FailureKind] = set()
        self._loop = asyncio.new_event_loop()
        self._at_once = asyncio.Semaphore(settings.concurrency)
        self._thread = threading.Thread(target=self._work, name="refine-judge", daemon=True)
        self._thread.start()

    def submit(self, cases: Sequence[Case]) -> Future[list[list[Verdict]]]:
        """All judgements of all cases: for each case ``judgements`` verdicts."""
        return self._run(self._judge_all(cases))

    def counts(self) -> dict[str, int]:
        """What this process has counted so far, by the names in :data:`COUNTS`."""
        own = self._store.own_counts()
        return {name: own.get(name, 0) for name in COUNTS}

    def close(self) -> None:
        """Give up what is under way, close connections and files, and end the thread."""
        self.stop()
        self._thread.join(timeout=10)

    def stop(self) -> None:
        """Have the thread end, without waiting for it. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _work(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._store.close()
        self._loop.close()

    async def _end(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._endpoint.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _judge_all(self, cases: Sequence[Case]) -> list[list[Verdict]]:
        if not self._cases:
            self._busy_since = time.monotonic()
        self._cases += 1
        judgements = range(self._settings.judgements)
        tasks = [asyncio.create_task(self._judge(case, number)) for case in cases for number in judgements]
        try:
            verdicts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # one may have raised: a limit, or a wrong key
                task.cancel()
            self._cases -= 1
            if not self._cases:
                self._busy_seconds += time.monotonic() - self._busy_since
        width = len(judgements)
        self._say_failures(verdicts)
        return [verdicts[start : start + width] for start in range(0, len(verdicts), width)]

    async def _judge(self, case: Case, number: int) -> Verdict:
        settings = self._settings
        order = order_of(case, number)
        request = self._request(case, order, number)
        # With its number: without a seed (settings can take it out) several judgements are one request otherwise.
        key = hashlib.sha256(json.dumps([request, number], sort_keys=True).encode()).hexdigest()
        reply, cached = None, False
        verdict: Verdict
        try:
            reply, cached = await self._reply(key, request)
            if reply.finish == "length":
                raise JudgeError(FailureKind.CUT_OFF, f"the reply was cut off at max_tokens = {settings.max_tokens}")
            scores = read_scores(reply.text, settings, len(order))
            verdict = [score for _, score in sorted(zip(order, scores, strict=True))]
            self._has_judged = True
        except JudgeError as error:
            verdict = error
            self._store.add({"failures": 1, f"failures/{error.kind.value}": 1})
        self._records.write(key, request, reply, verdict, order, cached=cached)
        return verdict

    async def _reply(self, key: str, request: Mapping[str, Any]) -> tuple[Reply, bool]:
        """The reply, and whether it cost nothing."""
        known = self._store.get(key)
        if known is None and key not in self._under_way:
            task = asyncio.create_task(self._paid(key, request))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
            # Shielded: who else waits for it must get it, also when this caller gives up.
            return await asyncio.shield(task), False
        reply = known or await asyncio.shield(self._under_way[key])
        self._store.add({"cache_hits": 1})
        return reply, True

    async def _paid(self, key: str, request: Mapping[str, Any]) -> Reply:
        settings = self._settings
        async with self._at_once:
            waited = self._busy_seconds + time.monotonic() - self._busy_since
            if settings.max_seconds is not None and waited >= settings.max_seconds:
                raise _limit_error(f"max_seconds = {settings.max_seconds:g}", settings)
            reached = self._store.take_call(settings.max_calls, settings.max_total_tokens)
            if reached is not None:
                raise _limit_error(reached, settings)
            reply = await self._endpoint.ask(request)
        self._store.put(key, reply)
        return reply

    def _request(self, case: Case, order: Sequence[int], number: int) -> dict[str, Any]:
        settings = self._settings
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": self._prompt.messages(case, order),
            "temperature": settings.sampling_temperature,
            "max_tokens": settings.max_tokens,
            "seed": number,
        }
        if settings.read == "json" and settings.structured:
            schema = {"name": "judgement", "strict": True, "schema": reply_schema(settings, len(order))}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        request.update(settings.request)
        return {name: value for name, value in request.items() if value is not None}

    def _say_failures(self, verdicts: Sequence[Verdict]) -> None:
        """Each kind once on the screen; all of them are counted.

        Raises:
            JudgeError: If nothing was ever judged: that is no bad reply but a judge that does not work.
        """
        failed = [verdict for verdict in verdicts if isinstance(verdict, JudgeError)]
        if failed and not self._has_judged:
            kinds = Counter(error.kind.value for error in failed).most_common()
            raise JudgeError(
                failed[0].kind,
                f"refine: the judge has given no score so far ({', '.join(f'{n} {kind}' for kind, n in kinds)}). "
                f"The first: {failed[0].detail}",
            )
        for error in failed:
            if error.kind not in self._said:
                self._said.add(error.kind)
                _log.warning("refine: a judgement failed (further ones of this kind are only counted): %s", error)


def _limit_error(what: str, settings: JudgeSettings) -> Exception:
    if settings.cache is None:
        kept = "Without `cache` a resumed run pays for all of them again."
    else:
        kept = f"What was paid is in {settings.cache}: raise the limit and resume, and nothing is paid twice."
    return JudgeLimitError(f"refine: the judge has reached its limit for the run {settings.run!r}: {what}. {kept}")
