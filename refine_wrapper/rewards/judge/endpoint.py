"""The endpoint that judges, by the `openai` client: its retries, its back-off, its reading of Retry-After."""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Mapping
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.rewards.judge.failures import FailureKind, JudgeError
from refine_wrapper.rewards.judge.settings import JudgeSettings
from refine_wrapper.rewards.judge.store import Reply

_INSTALL: Final = "pip install 'refine-wrapper[judge]'"
# What no other answer can be expected from: key, model or address are wrong.
_HOPELESS: Final = (401, 403, 404)


class Endpoint:
    """Asks one question at a time; belongs to one event loop.

    Args:
        settings: Of the judge.

    Raises:
        ConfigError: If `openai` is not installed, or the variable with the key is empty and no address is given.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        try:
            self._openai = importlib.import_module("openai")
        except ModuleNotFoundError as error:
            if error.name != "openai":
                raise
            raise ConfigError(f"refine: the judge needs the openai client: {_INSTALL}") from None
        key = os.environ.get(settings.api_key_variable)
        if not key and settings.base_url is None:
            raise ConfigError(
                f"refine: judge: the variable {settings.api_key_variable} has no key. Set it, or name an endpoint of "
                "your own: base_url: http://host:8000/v1"
            )
        self._patience = settings.patience
        self._where = settings.base_url or "the endpoint"
        self._client = self._openai.AsyncOpenAI(
            api_key=key or "none",  # the client insists on one
            base_url=settings.base_url,
            max_retries=settings.retries,
            timeout=settings.timeout,
        )

    async def ask(self, request: Mapping[str, Any]) -> Reply:
        """The reply to a request.

        Raises:
            JudgeError: If there is none within the time and the retries.
            ConfigError: If there can be none: the key, the model or the address is wrong.
        """
        openai = self._openai
        try:
            # The client's own time limit starts anew with every byte.
            done = await asyncio.wait_for(self._client.chat.completions.create(**request), self._patience)
        except (asyncio.TimeoutError, TimeoutError):
            raise JudgeError(FailureKind.TIMEOUT, f"no reply within patience = {self._patience:g} s") from None
        except openai.APITimeoutError as error:
            raise JudgeError(FailureKind.TIMEOUT, str(error)) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            raise JudgeError(FailureKind.UNREACHABLE, f"{self._where}: {error} {cause or ''}".strip()) from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except (openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            raise JudgeError(FailureKind.NO_REPLY, f"{type(error).__name__}: {error}") from None
        return _reply(done)

    async def close(self) -> None:
        await self._client.close()

    def _status_error(self, error: Any) -> Exception:
        status = int(error.status_code)
        if status in _HOPELESS:
            return ConfigError(f"refine: judge: {self._where} refuses every request ({status}): {error}")
        if status == 429:
            return JudgeError(FailureKind.RATE_LIMITED, str(error))
        kind = FailureKind.SERVER_ERROR if status >= 500 else FailureKind.REFUSED
        return JudgeError(kind, f"{status}: {error}")


def _reply(done: Any) -> Reply:
    try:
        choice = done.choices[0]
        text = choice.message.content
    except (AttributeError, IndexError, TypeError):
        raise JudgeError(FailureKind.NO_REPLY, f"no chat completion: {done!r:.200}") from None
    if not isinstance(text, str) or not text.strip():
        detail = f"an empty reply ({getattr(choice.message, 'refusal', None) or choice.finish_reason})"
        raise JudgeError(FailureKind.NO_REPLY, detail)
    usage = getattr(done, "usage", None)
    return Reply(
        text,
        str(choice.finish_reason),
        int(getattr(usage, "prompt_tokens", 0) or 0),
        int(getattr(usage, "completion_tokens", 0) or 0),
    )
