"""The checks of the project: each test session runs the built wheel in the environment of one host.

`make test` runs them all; `nox -s trl -- -k rloo` passes what follows `--` on to pytest. Environments are
cached outside the checkout and shared (tools/environment.py), so nox makes none itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
CONFIG = ROOT / "pyproject.toml"
sys.path.insert(0, str(ROOT / "tools"))

import environment  # noqa: E402  (found through the line above)
from times import Times  # noqa: E402

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "none"
nox.options.sessions = [
    "lint",
    "core",
    "trl",
    "report",
    "trl_oldest",
    "math_oldest",
    "trl_vllm",
    "evaluation",
    "ablation",
    "openrlhf",
    "openrlhf_oldest",
    "openrlhf_launcher_oldest",
    "verl",
    "verl_oldest",
]

# Tests use models that they make themselves: nothing is fetched, and nothing is reported to anyone.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "DO_NOT_TRACK": "1",
}

NO_TESTS = 5
"""pytest's exit code where no test was selected."""

TIMES = Times()
# After nox's own summary; also of a run that failed, or was interrupted.
atexit.register(lambda: sys.stderr.write(TIMES.summary()))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, types, and that the generated parts of the documents are up to date."""
    python = _dev_python(session)
    with tempfile.TemporaryDirectory(prefix="refine-wrapper-") as scratch, TIMES.session("lint", Path(scratch)):
        session.run(python, "-m", "ruff", "check", ".", external=True)
        session.run(python, "-m", "ruff", "format", "--check", ".", external=True)
        session.run(python, "-m", "pyright", "--pythonpath", python, external=True)
        session.run(python, "tools/docs.py", "--check", external=True)


@nox.session(name="format", default=False)
def format_(session: nox.Session) -> None:
    """Rewrite the sources in the project's format."""
    python = _dev_python(session)
    session.run(python, "-m", "ruff", "check", "--fix-only", "--show-fixes", ".", external=True)
    session.run(python, "-m", "ruff", "format", ".", external=True)


@nox.session
def core(session: nox.Session) -> None:
    """The core, without torch or any host; a warning is an error."""
    _test(session, "dev", "core", "-W", "error")


@nox.session
def trl(session: nox.Session) -> None:
    """TRL's own trainers, with Hugging Face generation."""
    _test(session, "trl", "trl")


@nox.session
def report(session: nox.Session) -> None:
    """`refine-wrapper report`: the page in a real browser, which is found or fetched once (tools/browser.py)."""
    _test(session, "trl", "report")


@nox.session
def trl_oldest(session: nox.Session) -> None:
    """The tests marked `oldest`, on the oldest TRL that is supported."""
    _test(session, "trl-oldest", "trl", "-m", "oldest and not long")


@nox.session
def math_oldest(session: nox.Session) -> None:
    """The math reward on the oldest math-verify that is supported."""
    _test(session, "math-oldest", "trl/rewards", "-k", "math")


@nox.session
def trl_vllm(session: nox.Session) -> None:
    """TRL's own trainers, with vLLM generation on a CPU."""
    _test(session, "trl-vllm", "trl_vllm")


@nox.session
def evaluation(session: nox.Session) -> None:
    """`refine-wrapper eval` with transformers: real models, reasoning-gym, PEFT, kill and going on."""
    _test(session, "trl", "evaluation")


@nox.session
def ablation(session: nox.Session) -> None:
    """`refine-wrapper ablate` on its example, with real TRL."""
    _test(session, "trl", "ablation")


@nox.session
def openrlhf(session: nox.Session) -> None:
    """OpenRLHF's own command line with Ray, DeepSpeed and vLLM on a CPU, and its executor alone."""
    _test(session, "openrlhf", "openrlhf")


@nox.session
def openrlhf_oldest(session: nox.Session) -> None:
    """The executor on the oldest OpenRLHF that an agent file works with."""
    _test(session, "openrlhf-oldest", "openrlhf", "-m", "oldest and not long")


@nox.session
def openrlhf_launcher_oldest(session: nox.Session) -> None:
    """The executor and the command line on the oldest OpenRLHF that the launcher works with."""
    _test(session, "openrlhf-launcher-oldest", "openrlhf", "-m", "(oldest or launcher) and not long")


@nox.session
def verl(session: nox.Session) -> None:
    """veRL's own main_ppo with vLLM, FSDP2, TransferQueue and Ray, on a CPU."""
    _test(session, "verl", "verl")


@nox.session
def verl_oldest(session: nox.Session) -> None:
    """The tests marked `oldest`, on the oldest veRL that is supported: its worker classes, without Ray or an engine."""
    _test(session, "verl-oldest", "verl", "-m", "oldest and not long")


@nox.session(default=False)
@nox.parametrize("host", ["trl", "trl_vllm", "openrlhf", "verl"])
def long(session: nox.Session, host: str) -> None:
    """The tests marked `long`, of each host. They run only here."""
    _test(session, host.replace("_", "-"), host, "-m", "long", none_is_fine=True)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """`refine-wrapper demo`, with what follows `--`."""
    with _installed(session, "trl") as env:
        command = env.python.with_name("refine-wrapper")
        session.run(str(command), "demo", *session.posargs, env=_variables(env), external=True)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """The sdist, and the wheel made from that sdist, into dist/."""
    session.run(_dev_python(session), "-m", "build", "--no-isolation", "--outdir", "dist", external=True)


def _test(session: nox.Session, name: str, folder: str, *options: str, none_is_fine: bool = False) -> None:
    """Run the tests in tests/`folder` on the wheel, in the environment `name`; `long` ones only if asked for."""
    tests = ROOT / "tests" / folder
    if not tests.is_dir():
        session.error(f"there is no folder tests/{folder}")  # before an environment is made for nothing
    selected, others = _split(session.posargs)
    with _installed(session, name) as env, tempfile.TemporaryDirectory(prefix="refine-wrapper-") as scratch:
        variables = {
            **_variables(env),
            **OFFLINE,
            "HF_HOME": f"{scratch}/huggingface",
            "REFINE_WRAPPER_TEST_INSTALLED": "1",
        }
        pytest = (str(env.python), "-m", "pytest", f"--config-file={CONFIG}", f"--rootdir={ROOT}")
        work = Path(scratch, "work")
        work.mkdir()
        # In a folder of its own: trainers write where they are started, and the sources must not be
        # importable there.
        with session.chdir(work), TIMES.session(session.name, Path(scratch)) as measured:
            session.run(
                *pytest,
                f"--junitxml={measured.junit}",
                *options,
                *others,
                *(selected or [str(tests)]),
                env={**variables, **measured.variables},
                external=True,
                success_codes=[0, NO_TESTS] if none_is_fine else [0],
            )


@contextlib.contextmanager
def _installed(session: nox.Session, name: str) -> Generator[environment.Environment]:
    """The environment `name` with the wheel of this checkout in it, held so that no other run swaps it."""
    with contextlib.ExitStack() as stack:
        with _explained(session):
            wheel = _wheel()
            env = stack.enter_context(environment.hold(name))
            environment.install_wheel(env, wheel)
        yield env


@functools.cache
def _wheel() -> Path:
    """The wheel, built once for all sessions of this run, outside the source tree."""
    folder = Path(tempfile.mkdtemp(prefix="refine-wrapper-wheel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return environment.build_wheel(ROOT, folder)


def _variables(env: environment.Environment) -> dict[str, str]:
    """What makes a process import the installed packages, and nothing from the folder it is started in."""
    return {
        "PYTHONPATH": env.pythonpath,
        "PYTHONSAFEPATH": "1",
        # Empty is unset. Container images often set it; every process would then compile its host anew, for 10 s.
        "PYTHONDONTWRITEBYTECODE": "",
    }


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Which tests were asked for (absolute, because pytest runs elsewhere), and the other arguments."""
    tests = [argument for argument in arguments if argument.startswith("tests/")]
    return [str(ROOT / test) for test in tests], [argument for argument in arguments if argument not in tests]


def _dev_python(session: nox.Session) -> str:
    with _explained(session):
        return str(environment.prepare("dev").python)


@contextlib.contextmanager
def _explained(session: nox.Session) -> Generator[None]:
    """Fail the session with the message alone: a traceback would hide what to do."""
    try:
        yield
    except environment.EnvironmentBuildError as error:
        session.error(str(error))
