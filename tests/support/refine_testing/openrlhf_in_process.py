"""OpenRLHF's command line with all its actors in one process, for what has nothing to do with Ray.

Trainer, policy, critic, reference model, DeepSpeed, vLLM's engine, data and our adapter are the real ones. A STAND-IN takes
the place of Ray: an actor is an object with a thread (or an event loop) of its own, and what it is given and returns is
pickled, as Ray does. A real run spends nearly all of its time importing PyTorch, vLLM and DeepSpeed in five processes; here
one process imports them once, and each run is forked from it.

Started by ``Workshop``: ``main`` reads one job a line, and writes one answer a line.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as futures
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import Any

_actors: dict[int, _Actor] = {}
_numbers = itertools.count()


class _Ref:
    """What a call of an actor returns at once."""

    def __init__(self, future: futures.Future[Any]) -> None:
        self.future = future


class _Method:
    def __init__(self, actor: _Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *args: Any, **kwargs: Any) -> _Ref:
        return _Ref(self._actor.call(self._name, args, kwargs))


class _Actor:
    """An instance of an actor's class: its calls run one after the other, those of asynchronous classes on a loop."""

    def __init__(self, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._number = next(_numbers)
        _actors[self._number] = self
        self._cls = cls
        self._instance = cls.__new__(cls)
        functions = inspect.getmembers(cls, inspect.isfunction)
        self._loop = None
        if any(inspect.iscoroutinefunction(function) for _, function in functions):
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._thread = futures.ThreadPoolExecutor(1)
        self.call("__init__", args, kwargs).result()

    def __reduce__(self) -> Any:
        return _actor, (self._number,)

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_") and name != "__ray_ready__":
            raise AttributeError(name)
        return _Method(self, name)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> futures.Future[Any]:
        args = tuple(_get(argument) if isinstance(argument, _Ref) else argument for argument in args)
        args, kwargs = _shipped((args, kwargs))
        method = getattr(self._cls, name)
        if self._loop is not None:
            return asyncio.run_coroutine_threadsafe(self._on_loop(method, args, kwargs), self._loop)
        return self._thread.submit(lambda: _shipped(method(self._instance, *args, **kwargs)))

    async def _on_loop(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = method(self._instance, *args, **kwargs)
        return _shipped(await result if inspect.isawaitable(result) else result)


def _actor(number: int) -> _Actor:
    """What a handle of an actor is at the other end."""
    return _actors[number]


def _shipped(value: Any) -> Any:
    """As it comes out at the other end of Ray."""
    import cloudpickle

    return cloudpickle.loads(cloudpickle.dumps(value))


def _get(refs: Any, timeout: float | None = None) -> Any:
    return [_get(ref, timeout) for ref in refs] if isinstance(refs, list) else refs.future.result(timeout)


def _put(value: Any) -> _Ref:
    future: futures.Future[Any] = futures.Future()
    future.set_result(_shipped(value))
    return _Ref(future)


def _wait(refs: list[_Ref], num_returns: int = 1, timeout: float | None = None) -> tuple[list[_Ref], list[_Ref]]:
    futures.wait([ref.future for ref in refs], timeout, return_when=futures.FIRST_COMPLETED)
    ready = [ref for ref in refs if ref.future.done()][:num_returns]
    return ready, [ref for ref in refs if ref not in ready]


class _Placement:
    def ready(self) -> _Ref:
        return _put(None)


def _replace_ray() -> None:
    import ray
    import ray.actor
    import ray.util.scheduling_strategies as strategies

    # By its name, because ray.util has a function that is called as this module.
    placement: Any = importlib.import_module("ray.util.placement_group")

    def create(self: Any, args: Any = None, kwargs: Any = None, **options: Any) -> _Actor:
        return _Actor(self.__ray_metadata__.modified_class, tuple(args or ()), dict(kwargs or {}))

    ray.actor.ActorClass._remote = create
    ray.get, ray.put, ray.wait = _get, _put, _wait
    ray.init = lambda *args, **kwargs: None
    placement.placement_group = lambda *args, **kwargs: _Placement()
    strategies.PlacementGroupSchedulingStrategy = lambda *args, **kwargs: None


def _import_everything() -> None:
    """What takes long. Before it Ray is replaced, for some take its functions by name."""
    _replace_ray()
    for name in (
        "deepspeed",
        "openrlhf.trainer.ppo_trainer",
        "openrlhf.trainer.ppo_trainer_async",
        "openrlhf.trainer.ray.ppo_actor",
        "openrlhf.trainer.ray.ppo_critic",
        "vllm.v1.engine.core_client",
        "vllm.v1.worker.cpu_worker",
        "refine_wrapper_openrlhf.generator",
    ):
        importlib.import_module(name)


def _run(job: dict[str, Any]) -> int:
    """One command, in this forked process. Returns its exit code."""
    screen = os.open(job["screen"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    os.setsid()
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    import torch

    # Its EngineCore too is forked, and finds all that is imported.
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and "get_mp_context" in vars(module):
            module.get_mp_context = lambda: multiprocessing.get_context("fork")
    torch.manual_seed(0)
    module, *arguments = job["command"]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # of its own, for whatever is imported may print
    os.dup2(2, 1)
    _import_everything()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if not child:
            code = 1
            try:
                code = _run(job)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os.killpg(0, signal.SIGTERM)  # what it forked itself
                os._exit(code)
        if job["serves"]:
            print(json.dumps({"process": child}), file=answers, flush=True)
            continue
        end = time.monotonic() + job["timeout"]
        ended, status = 0, 0
        while not ended and time.monotonic() < end:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        if not ended:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps({"code": code}), file=answers, flush=True)
