"""Real runs of OpenRLHF's command line on a CPU, and what they leave to read."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from refine_testing.signals import take_interrupts
from refine_testing.starting import killed_at_start, repeated_at_start
from refine_testing.tiny import save_tiny, tiny_tokenizer
from refine_wrapper.core.trace import read_trace

CPU_HOST = Path(__file__).parents[1] / "openrlhf_cpu"
LAUNCHER = ("-m", "refine_wrapper_openrlhf.train_ppo_ray")
HOST = ("-m", "openrlhf.cli.train_ppo_ray")
OPERATORS = Path(sys.prefix) / "torch_extensions"
"""Where DeepSpeed's compiled operators are kept: with the environment, not once per session."""
TIMEOUT = 900
"""Seconds that one command may take: on a quiet machine it takes a tenth of it, but machines are shared."""
NUM_PROMPTS = 4
NOTE = "It may be wrong"
"""Part of the built-in template: whoever sees it has seen a draft."""

REWARD = '''
import json, os

def reward_func(queries, prompts, labels):
    """Pays by what the completion says; every call is written down."""
    [query], [prompt], [label] = queries, prompts, labels
    completion = query[len(prompt):] if query.startswith(prompt) else query
    value = sum(completion.encode()) % 11 / 10
    with open({log!r}, "a") as file:
        file.write(json.dumps({{"query": query, "prompt": prompt, "label": label, "reward": value}}) + chr(10))
{fault}
    import torch
    reward = torch.tensor([value])
    return {{"rewards": reward, "scores": reward, "extra_logs": {{"paid": reward}}}}
'''


class Row(NamedTuple):
    """One trained row: the prompt it is trained under, its answer, its advantage."""

    prompt: str
    answer: str
    advantage: float


@dataclass(frozen=True)
class Run:
    """A finished command."""

    code: int
    screen: str
    folder: Path
    left_behind: list[str]

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """The trace, training groups only."""
        return [group for group in read_trace(self.folder / "trace") if group["id"][0] == "train"]

    @cached_property
    def calls(self) -> list[dict[str, Any]]:
        """Every call of the reward function."""
        file = self.folder / "rewards.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """Every row that a policy (and a critic) was given to train on."""
        return self._recorded("record-[0-9]*.jsonl")

    @cached_property
    def requests(self) -> list[dict[str, Any]]:
        """Every request of the rollout engine, as its scheduler got it."""
        return self._recorded("record-requests-*.jsonl")

    def _recorded(self, pattern: str) -> list[dict[str, Any]]:
        files = sorted(self.folder.rglob(pattern))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    @cached_property
    def steps(self) -> list[dict[str, float]]:
        """What the host logged after each rollout."""
        logged = re.findall(r"lobal step \d+: (\{.*?\})(?:\x1b|$)", self.screen, re.M)
        return [ast.literal_eval(re.sub(r"\bnan\b", "None", text)) for text in logged]

    def trained_rows(self, tokenizer: Any) -> list[Row]:
        """What the policy was given to train on: by prompt, answer and advantage of its first token; sorted."""
        rows: list[Row] = []
        for row in self.trained:
            tokens, mask = row["sequence"][1:], row["action_mask"]  # the mask is over next tokens
            start = mask.index(1)
            advantages = [value for value, on in zip(row["advantages"], mask, strict=True) if on]
            answer = [token for token, on in zip(tokens, mask, strict=True) if on]
            prompt = tokenizer.decode([row["sequence"][0], *tokens[:start]])
            rows.append(Row(prompt, tokenizer.decode(answer, skip_special_tokens=True), advantages[0]))
        return sorted(rows)

    def expected_rows(self, advantages: Callable[[Any], Any]) -> list[Row]:
        """The same from the trace and the definition of a mode alone: what fills each slot, under which prompt; sorted.

        Args:
            advantages: Gives the advantages of the rewards of a group, as float32.
        """
        import torch

        rows: list[Row] = []
        for group in self.groups:
            samples, rounds = group["samples"], group["rounds"]
            filled = [samples[index] for index, _, _ in group["slots"]]
            values = advantages(torch.tensor([sample["reward"] for sample in filled])).tolist()
            for sample, (_, on_question, _), value in zip(filled, group["slots"], values, strict=True):
                sampled_on = rounds[sample["round"]].get("prompt", group["question"])
                rows.append(Row(group["question"] if on_question else sampled_on, sample["text"], value))
        return sorted(rows)

    def weights(self) -> dict[str, Any]:
        """Of the trained model."""
        from safetensors.torch import load_file

        return load_file(self.folder / "out" / "model.safetensors")


def drafts_of(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples of the first round, of a group in a trace."""
    return [sample for sample in group["samples"] if sample["round"] == 0]


def refinements_of(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples that a group in a trace has beside them."""
    return [sample for sample in group["samples"] if sample["round"] > 0]


def by_name(objective: str) -> str:
    """The flag that takes an objective by its name. The test that every objective is trained looks for calls of this."""
    return f"--refine.objective={objective}"


def compile_operators() -> None:
    """Compile the two operators that DeepSpeed compiles where it is first used, unless this environment has them.

    Takes a minute or two of both cores, which no single run should be charged for. A compilation that was killed leaves
    a lock behind that everyone else would wait for.
    """
    operators = {"FusedAdamBuilder": "fused_adam", "ShareMemCommBuilder": "deepspeed_shm_comm"}
    if all((OPERATORS / name / f"{name}.so").exists() for name in operators.values()):
        return
    for lock in OPERATORS.glob("*/lock"):
        lock.unlink()
    load = f"[get_accelerator().create_op_builder(name).load() for name in {tuple(operators)}]"
    subprocess.run(
        [sys.executable, "-c", f"from deepspeed.accelerator import get_accelerator; {load}"],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(OPERATORS), "DS_ACCELERATOR": "cpu"},
        check=True,
        timeout=900,
        stdout=subprocess.DEVNULL,
    )


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of this machine, and where it takes jobs."""

    folder: Path
    dashboard: str

    def actors(self, seconds: float = 20) -> list[str]:
        """The actors that are still alive when these seconds to end are over."""
        end = time.monotonic() + seconds
        while (alive := self._alive()) and time.monotonic() < end:
            time.sleep(0.2)
        return alive

    def jobs(self) -> dict[str, str]:
        """Submitted jobs, also those that ended: name -> status."""
        with urllib.request.urlopen(f"{self.dashboard}/api/jobs/", timeout=60) as answer:
            jobs = json.load(answer)
        return {job["submission_id"]: job["status"] for job in jobs if job["submission_id"]}

    def _alive(self) -> list[str]:
        # Ray gives the process of an actor its name: `ray::RolloutRayActor.generate`.
        names = [_name(number).split("(")[0] for number in _processes(self.folder)]
        return [name for name in names if name.startswith("ray::") and not name.strip().endswith(_OWN_OF_RAY)]


class Workshop:
    """A model, data and a way to run commands. Everything is in one folder with a short name (Ray's sockets need one)."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="rw-"))
        self.model = save_tiny(self.root / "model", hidden_size=64)
        self.tokenizer = tiny_tokenizer()
        self.data = self.write(
            "train.jsonl",
            # More than a run takes, which some need. Duplicates on purpose: groups are not known by their prompt.
            [{"input": f"{n // 2} + {n // 2}?", "label": str(n), "datasource": "sums"} for n in range(2 * NUM_PROMPTS)],
        )
        self.eval_data = self.write(
            "eval.jsonl", [{"input": f"eval {n}?", "label": str(n), "datasource": "sums"} for n in range(2)]
        )
        self._count = 0
        self._in_process: subprocess.Popen[str] | None = None

    def write(self, name: str, rows: list[dict[str, Any]]) -> str:
        """A data set of these rows, as a file."""
        path = self.root / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def close(self) -> None:
        if self._in_process is not None:
            self._in_process.kill()
            self._in_process.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def folder(self) -> Path:
        self._count += 1
        folder = self.root / str(self._count)
        folder.mkdir()
        return folder

    def reward(self, folder: Path, fault: str = "") -> str:
        """A reward file; ``fault`` is Python in the function, where `query`, `completion` and `value` are known."""
        path = folder / "reward.py"
        fault = "\n".join(f"    {line}" for line in fault.splitlines())
        path.write_text(REWARD.format(log=str(folder / "rewards.jsonl"), fault=fault))
        return str(path)

    def flags(self, folder: Path, **changed: Any) -> list[str]:
        """A run of two rollouts of two prompts. None leaves a flag out, True gives it without a value; `_` is `.`."""
        group_size = changed.get("rollout__n_samples_per_prompt", 2)
        values = {
            "actor__model_name_or_path": self.model,
            "data__prompt_dataset": self.data,
            "data__input_key": "input",
            "data__label_key": "label",
            "data__apply_chat_template": True,
            "data__max_len": 448,
            "data__max_samples": NUM_PROMPTS,
            "actor__num_nodes": 1,
            "actor__num_gpus_per_node": 1,
            "ref__num_nodes": 1,
            "ref__num_gpus_per_node": 1,
            "critic__num_gpus_per_node": 1,
            "vllm__num_engines": 1,
            "vllm__tensor_parallel_size": 1,
            "vllm__enforce_eager": True,
            "vllm__sync_backend": "gloo",
            "vllm__gpu_memory_utilization": 0.3,
            "vllm__enable_prefix_caching": True,
            "train__colocate_all": True,
            "algo__kl__init_coef": 0,
            "ds__zero_stage": 2,
            "ds__attn_implementation": "eager",
            "ds__param_dtype": "bf16",
            "rollout__max_new_tokens": 12,
            "rollout__batch_size": 2,
            "rollout__micro_batch_size": 2,
            "rollout__n_samples_per_prompt": group_size,
            "train__batch_size": 2 * group_size,
            "train__micro_batch_size": 2,
            "actor__adam__lr": 1e-2,
            "actor__lr_warmup_ratio": 0.0,
            "algo__advantage__estimator": "group_norm",
            "reward__remote_url": str(folder / "reward.py"),
            "ckpt__output_dir": str(folder / "out"),
            "ckpt__path": str(folder / "checkpoints"),
            **changed,
        }
        flags: list[str] = []
        for name, value in values.items():
            if value is None:
                continue
            flags.append("--" + name.replace("__", "."))
            if value is not True:
                flags += [str(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
        return flags

    def traced(self, folder: Path) -> list[str]:
        return ["--refine.trace_dir", str(folder / "trace"), "--refine.trace_texts"]

    def run(
        self,
        folder: Path,
        *command: str,
        interrupt_at: str = "",
        gpus: int = 1,
        variables: dict[str, str] | None = None,
    ) -> Run:
        """Run a command of this environment's python in a session of its own, to its end or to the time limit.

        Args:
            folder: Where it runs.
            interrupt_at: Press Ctrl-C once the screen has this text.
            gpus: Logical GPUs of its Ray.
            variables: Added to its environment.
        """
        return repeated_at_start(
            lambda attempt: self._run(folder, command, interrupt_at, gpus, variables or {}),
            lambda run: killed_at_start(run.code, run.screen, begun=bool(run.steps or run.calls)),
            " ".join(command[:4]),
        )

    def _run(
        self, folder: Path, command: tuple[str, ...], interrupt_at: str, gpus: int, variables: dict[str, str]
    ) -> Run:
        log = folder / "screen.log"
        with log.open("w") as screen:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env={**self.environment(folder, gpus), **variables},
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=take_interrupts,
            )
            end = time.monotonic() + TIMEOUT
            interrupted = not interrupt_at
            try:
                while process.poll() is None and time.monotonic() < end:
                    if not interrupted and interrupt_at in log.read_text(errors="replace"):
                        os.killpg(process.pid, signal.SIGINT)
                        interrupted = True
                    time.sleep(0.1)
            finally:
                ended = process.poll() is not None
                left = _left_behind(folder, seconds=20 if ended else 0)
                names = [_name(number) for number in left]
                for number in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
                process.wait()
                shutil.rmtree(folder / "ray", ignore_errors=True)
        text = log.read_text(errors="replace")
        assert ended, f"not over after {TIMEOUT} s:\n{text[-3000:]}"
        return Run(process.returncode, text, folder, names)

    def run_in_process(self, folder: Path, *command: str) -> Run:
        """Run a module's command (``-m``, its name, its arguments) with all of OpenRLHF in one process.

        See ``refine_testing.openrlhf_in_process``: for what has nothing to do with Ray. Takes a tenth of the time.
        """
        answer, text = self._ask(folder, command, serves=False)
        assert answer["code"] is not None, f"not over after {TIMEOUT} s:\n{text[-3000:]}"
        return Run(answer["code"], text, folder, [])

    @contextlib.contextmanager
    def serving(self, folder: Path, *command: str) -> Generator[None]:
        """The same for a command that serves until it is ended."""
        process = self._ask(folder, command, serves=True)[0]["process"]
        try:
            yield
        finally:
            os.kill(process, signal.SIGTERM)

    def _ask(self, folder: Path, command: tuple[str, ...], *, serves: bool) -> tuple[dict[str, Any], str]:
        process = self._in_process = self._in_process or self._start_in_process()
        assert process.stdin is not None
        assert process.stdout is not None
        assert command[0] == "-m"
        log = folder / "screen.log"
        environment = self.environment(folder, 1)
        job = {
            "command": command[1:],
            "folder": str(folder),
            "screen": str(log),
            "environment": {name: environment[name] for name in ("REFINE_TEST_RECORD", "HF_DATASETS_CACHE")},
            "serves": serves,
            "timeout": TIMEOUT,
        }
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        text = log.read_text(errors="replace") if log.exists() else ""
        assert answer, f"the process with OpenRLHF ended:\n{text[-3000:]}"
        return json.loads(answer), text

    def _start_in_process(self) -> subprocess.Popen[str]:
        shared = self.root / "in_process"
        shared.mkdir()
        environment = {**self.environment(shared, 1), "RAY_ADDRESS": "stand-in"}
        environment["PYTHONPATH"] += f"{os.pathsep}{Path(__file__).parents[1]}"
        process = subprocess.Popen(
            # Not by -m: what is in the main module is shipped by value.
            [sys.executable, "-c", "from refine_testing.openrlhf_in_process import main; main()"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=shared,
        )
        assert process.stdout is not None
        while process.stdout.readline().strip() != "ready":
            assert process.poll() is None, "could not import the host"
        return process

    @contextlib.contextmanager
    def cluster(self, folder: Path) -> Generator[Cluster]:
        """A Ray cluster of this machine that runs before a command and after it."""
        folder.mkdir()
        ports = dict(
            zip(("--port", "--dashboard-port", *_AGENT_PORTS), _free_ports(2 + len(_AGENT_PORTS)), strict=True)
        )
        start = ("start", "--head", "--block", "--num-gpus", "1", "--num-cpus", "8", "--temp-dir", str(folder / "ray"))
        more = ("--object-store-memory", "100000000", "--include-dashboard", "true", "--dashboard-host", "127.0.0.1")
        with (folder / "log").open("w") as log:
            head = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *start, *more]
                + [str(item) for option in ports.items() for item in option],
                env=self.environment(folder, 1),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            end = time.monotonic() + 300
            dashboard = f"http://127.0.0.1:{ports['--dashboard-port']}"
            while not _takes_jobs(dashboard):
                assert head.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, "Ray's dashboard did not start:\n" + (folder / "log").read_text()
                time.sleep(0.2)
            yield Cluster(folder, dashboard)
        finally:
            head.terminate()
            for number in _left_behind(folder, seconds=10):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            head.wait()

    def environment(self, folder: Path, gpus: int) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("REFINE_WRAPPER_", "PYTEST_", "RAY_"))}
        path = [str(CPU_HOST), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            **inherited,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",  # the test of Ctrl-C waits for words on the screen, which is a file here
            "REFINE_TEST_RAY": str(folder / "ray"),
            "REFINE_TEST_GPUS": str(gpus),
            "REFINE_TEST_RECORD": str(folder / "record"),
            "HF_HOME": str(self.root / "huggingface"),
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "HF_HUB_OFFLINE": "1",
            "TORCH_EXTENSIONS_DIR": str(OPERATORS),
            "TMPDIR": str(self.root),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "DS_ACCELERATOR": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_CI_ENV": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # One process less to start; OpenRLHF's --train.full_determinism_enable sets it too.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # vLLM compiles its sampler where it is first used: half a minute for a few tokens.
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "RAY_memory_monitor_refresh_ms": "0",
            # How long a node may take to come up, in seconds.
            "RAY_raylet_start_wait_time_s": "300",
            # Ray gives its workers the lowest share of the CPU: beside anything else that computes they would starve.
            "RAY_worker_niceness": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # How long the start of a dashboard may take, in all and each of its modules.
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "150",
            "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "150",
        }


_OWN_OF_RAY = ("::IDLE", "::DashboardAgent", "::RuntimeEnvAgent")
"""Processes with an actor's kind of name that belong to a cluster itself."""
# Of Ray's services with a fixed port each, which another cluster of this machine may have.
_AGENT_PORTS = ("--dashboard-agent-listen-port", "--ray-client-server-port")


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, different from each other."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _takes_jobs(dashboard: str) -> bool:
    """By giving it one: the dashboard answers before it has anybody to hand a job to."""
    job = urllib.request.Request(
        f"{dashboard}/api/jobs/", data=b'{"entrypoint": "true"}', headers={"Content-Type": "application/json"}
    )
    with contextlib.suppress(OSError):
        urllib.request.urlopen(job, timeout=60).close()
        return True
    return False


def _left_behind(folder: Path, seconds: float) -> list[int]:
    """Processes of a run that are still there when these seconds to end are over."""
    end = time.monotonic() + seconds
    while (processes := _processes(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    return processes


def _processes(folder: Path) -> list[int]:
    """Known by their environment: Ray gives its processes sessions of their own."""
    mark = f"REFINE_TEST_RAY={folder / 'ray'}\0".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes() + b"\0" and "Z" not in _state(entry):
                found.append(int(entry.name))
    return found


def _state(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]


def _name(number: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    return str(number)
