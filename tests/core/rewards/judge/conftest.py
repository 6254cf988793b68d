"""A STAND-IN for the `openai` client, which is not in this environment; with the real one: tests/trl_vllm."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from refine_wrapper.rewards.judge import JudgeReward

_QUOTED = re.compile(r"<quote-(\w{16})>\n(.*?)\n</quote-\1>", re.DOTALL)


def quoted(request: dict[str, Any]) -> list[str]:
    """What is quoted in a request, in order: question, label if shown, completions."""
    return [match[2] for match in _QUOTED.finditer(request["messages"][1]["content"])]


def verdict(*scores: float) -> str:
    """A reply in JSON: about one answer, or about several."""
    return json.dumps({"score": scores[0]} if len(scores) == 1 else {"scores": list(scores)})


@dataclass
class Endpoint:
    """What the stand-in answers, and what it was asked.

    ``answer`` gives the text of a reply, an (unfinished) pair of text and finish reason, or an exception.
    """

    answer: Callable[[dict[str, Any]], Any] = lambda request: verdict(len(quoted(request)[-1]))
    seconds: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    clients: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def create(self, **request: Any) -> Any:
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        answer = self.answer(request)
        if isinstance(answer, BaseException):
            raise answer
        text, finish = answer if isinstance(answer, tuple) else (answer, "stop")
        choice = SimpleNamespace(finish_reason=finish, message=SimpleNamespace(content=text, refusal=None))
        return SimpleNamespace(choices=[choice], usage=SimpleNamespace(prompt_tokens=100, completion_tokens=10))


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """The module `openai` with one endpoint behind it."""
    endpoint = Endpoint()

    class OpenAIError(Exception): ...

    class APIConnectionError(OpenAIError): ...

    class APITimeoutError(APIConnectionError): ...

    class APIStatusError(OpenAIError):
        def __init__(self, status_code: int) -> None:
            super().__init__(f"Error code: {status_code}")
            self.status_code = status_code

    class AsyncOpenAI:
        def __init__(self, **settings: Any) -> None:
            endpoint.clients.append(settings)
            self.chat = SimpleNamespace(completions=endpoint)

        async def close(self) -> None: ...

    module = ModuleType("openai")
    for kind in (OpenAIError, APIConnectionError, APITimeoutError, APIStatusError, AsyncOpenAI):
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "openai", module)
    return endpoint


@pytest.fixture
def make(endpoint: Endpoint, tmp_path: Path) -> Iterator[Callable[..., JudgeReward]]:
    """Makes judges with settings by name; the cache is one file for all of them."""
    made: list[JudgeReward] = []

    def make(kind: type[JudgeReward] = JudgeReward, **settings: Any) -> Any:
        values = {"model": "m", "base_url": "http://judge/v1", "cache": tmp_path / "judge.sqlite", **settings}
        made.append(kind(**values))
        return made[-1]

    yield make
    for judge in made:
        judge.close()
