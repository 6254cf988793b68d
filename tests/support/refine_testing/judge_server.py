"""A local HTTP server that speaks the chat completions protocol: judges by a rule, or misbehaves as a script says."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_QUOTED = re.compile(r"<quote-(\w{16})>\n(.*?)\n</quote-\1>", re.DOTALL)


def quoted(request: dict[str, Any]) -> list[str]:
    """What is quoted in a request: the question, the label if it is shown, the completions."""
    return [match[2] for match in _QUOTED.finditer(request["messages"][1]["content"])]


@dataclass(frozen=True)
class Fault:
    """How one request is answered instead.

    Attributes:
        status: HTTP status.
        headers: Further headers.
        body: Sent instead of a completion.
        share: Only this share of the bytes that were announced is sent, then the connection is closed.
        seconds: Waits before each of twenty pieces of the body.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    share: float = 1.0
    seconds: float = 0.0


@dataclass
class JudgeServer:
    """Judges by ``rule``; the next requests that match ``faults`` misbehave first.

    Attributes:
        rule: From a request to the judge's reply.
        fault: From a request and how often this very request came before to what goes wrong, if anything.
    """

    url: str = ""
    rule: Callable[[dict[str, Any]], str] = lambda request: json.dumps({"score": len(quoted(request)[-1]) % 11})
    fault: Callable[[dict[str, Any], int], Fault | None] = lambda request, before: None
    asked: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [request for _, request in self.asked]

    def take(self, request: dict[str, Any]) -> Fault | None:
        with self._lock:
            before = sum(request == earlier for earlier in self.requests)
            self.asked.append((time.monotonic(), request))
        return self.fault(request, before)


@contextmanager
def judge_server() -> Generator[JudgeServer]:
    """The server, on a free port of this machine."""
    judge = JudgeServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fault = judge.take(request) or Fault()
            body = fault.body if fault.body is not None else _completion(request, judge.rule(request))
            try:
                self._answer(fault, body)
            except OSError:  # the client gave up
                self.close_connection = True

        def _answer(self, fault: Fault, body: bytes) -> None:
            self.send_response(fault.status)
            for name, value in {"content-type": "application/json", **fault.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            sent = body[: int(len(body) * fault.share)]
            step = max(1, len(sent) // 20)
            for start in range(0, len(sent), step):
                time.sleep(fault.seconds)
                self.wfile.write(sent[start : start + step])
                self.wfile.flush()
            if len(sent) < len(body):
                self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _completion(request: dict[str, Any], text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    content = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
    return json.dumps({**content, "choices": [choice], "usage": usage}).encode()
