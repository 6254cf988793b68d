"""Make, or reuse, one of the environments in environments/*.txt, and print the path of its python.

    python3 tools/environment.py trl        # progress on stderr, the path on stdout
    python3 tools/environment.py --list     # size and last use of each
    python3 tools/environment.py --prune    # remove those that this checkout does not use

The hosts' pins conflict, and each environment is gigabytes and minutes. So they live outside the checkout, in
the user's cache (`$REFINE_WRAPPER_CACHE`, else `$XDG_CACHE_HOME/refine-wrapper`, else
`~/.cache/refine-wrapper`), named after a hash of their pins: a fresh clone reuses them, and a changed pin
makes a new one. noxfile.py imports this module.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

PINS = Path(__file__).resolve().parent.parent / "environments"

# Environments that are only a few packages laid over another one through PYTHONPATH.
OVERLAYS = {
    "trl-oldest": "trl",
    "math-oldest": "trl",
    "openrlhf-oldest": "openrlhf",
    "openrlhf-launcher-oldest": "openrlhf",
    "verl-oldest": "verl",
}

# Written last: a build that was interrupted lacks it, and is removed. (Building under a temporary name and
# renaming is not possible: the scripts of a virtual environment hold its absolute path.)
_MARKER = ".complete"

_ADVICE = """\
What to do: run the command by hand to see all of its output.
- No matching distribution: {pins} names the Python that its pins were resolved with, and this is {python}
  (make PYTHON=python3.11); or the index is out of reach (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).
- No space left: make room, or set REFINE_WRAPPER_CACHE to a folder on another disk (it is {cache} now)."""
_ADVICE_VENV = "What to do: if ensurepip is missing, install your system's package python3-venv (or python3.11-venv)."


class EnvironmentBuildError(RuntimeError):
    """An environment, or the wheel for it, could not be made; the message says why and what to do."""


@dataclass(frozen=True)
class Environment:
    """A cached environment, made or not yet made."""

    name: str
    path: Path
    pins: Path
    base: Environment | None = None
    """The environment that this one is laid over, for an overlay."""

    @property
    def python(self) -> Path:
        return self.base.python if self.base else self.path / "bin" / "python"

    @property
    def pythonpath(self) -> str:
        """The value of PYTHONPATH that `python` needs: an overlay's folder, otherwise nothing."""
        return str(self.path) if self.base else ""

    @property
    def is_ready(self) -> bool:
        # The python is a link to the one that made it, which may have been uninstalled since.
        return (self.path / _MARKER).exists() and self.python.exists() and (not self.base or self.base.is_ready)


def names() -> list[str]:
    """The environments that can be made."""
    return sorted(file.stem for file in PINS.glob("*.txt"))


def find(name: str) -> Environment:
    """The environment `name` of this checkout, for the Python that runs this; it need not exist yet."""
    if name not in names():
        raise EnvironmentBuildError(f"there is no environment {name!r}; there are: {', '.join(names())}")
    pins = PINS / f"{name}.txt"
    base = find(OVERLAYS[name]) if name in OVERLAYS else None
    identity = [
        *_requirements(pins),
        sys.implementation.cache_tag,
        sysconfig.get_platform(),
        base.path.name if base else "",
    ]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]
    return Environment(name, _cache() / f"{name}-{digest}", pins, base)


def prepare(name: str) -> Environment:
    """Make the environment unless it is there. Does not wait for a run that is using it."""
    environment = find(name)
    if not environment.is_ready:
        with hold(name):
            pass
    _note_use(environment)
    return environment


@contextlib.contextmanager
def hold(name: str) -> Generator[Environment]:
    """Make the environment unless it is there, and keep every other process from holding it meanwhile.

    Who installs a wheel must hold the environment until the tests of that wheel are over: environments are
    shared by all checkouts of the user. Holding an overlay holds its base. Not reentrant: a process must not
    hold one twice.
    """
    environment = find(name)
    with contextlib.ExitStack() as stack:
        if environment.base:
            stack.enter_context(hold(environment.base.name))
        stack.enter_context(_lock(environment.path))
        if not environment.is_ready:
            _build(environment)
        _note_use(environment)
        yield environment


def build_wheel(project: Path, folder: Path) -> Path:
    """Build the wheel of `project` into the empty `folder`, with the builder pinned in `dev`."""
    # --no-isolation: an isolated build would fetch the newest builder from the index, each time.
    build = [str(prepare("dev").python), "-m", "build", "--wheel", "--no-isolation"]
    _run([*build, "--outdir", str(folder), str(project)], failure=f"the wheel of {project} could not be built")
    [wheel] = folder.glob("*.whl")
    return wheel


def install_wheel(environment: Environment, wheel: Path) -> None:
    """Install the built `wheel` in an environment that the caller holds, in place of any earlier one."""
    # No index: the dependencies are among the pins, and what is tested must be this very file.
    _pip(environment, "install", "--no-index", "--no-deps", "--force-reinstall", str(wheel))


def prune() -> list[Path]:
    """Remove the environments, unless in use, that no pins of this checkout name for this Python."""
    current = {find(name).path for name in names()}
    removed: list[Path] = []
    for path in _existing():
        if path in current:
            continue
        with contextlib.suppress(BlockingIOError), _lock(path, wait=False):
            shutil.rmtree(path)
            removed.append(path)
    return removed


def cache() -> Path:
    """The folder of all that is made once for all checkouts of the user."""
    home = os.environ.get("REFINE_WRAPPER_CACHE")
    if not home:
        # An empty or relative XDG_CACHE_HOME is to be ignored, says its specification.
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        home = (xdg if xdg.is_absolute() else Path.home() / ".cache") / "refine-wrapper"
    return Path(home).absolute()


def _cache() -> Path:
    return cache() / "envs"


def _existing() -> list[Path]:
    cache = _cache()
    return sorted(path for path in cache.iterdir() if path.is_dir()) if cache.is_dir() else []


def _requirements(pins: Path) -> list[str]:
    """The pins without comments, sorted, so that only a change of a version makes a new environment."""
    lines = (line.split("#")[0].strip() for line in pins.read_text(encoding="utf-8").splitlines())
    return sorted(line for line in lines if line)


def _note_use(environment: Environment) -> None:
    for used in (environment, environment.base):
        if used:
            os.utime(used.path / _MARKER)


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool = True) -> Generator[None]:
    """Hold the lock of an environment's folder; the system frees it when the process ends, however it ends.

    The lock is an empty file beside the folder, and stays: were it removed, two processes could each lock a
    file of its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            _say(f"{path.name} is in use by another run; waiting for it to end")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(environment: Environment) -> None:
    start = time.monotonic()
    _say(f"making the environment {environment.name} in {environment.path}, once; this can take minutes")
    shutil.rmtree(environment.path, ignore_errors=True)
    if environment.base:
        # Of an overlay only the packages themselves: what they need is in the base.
        target = ("--target", str(environment.path))
        _pip(environment, "install", "--no-deps", *target, "-r", str(environment.pins))
    else:
        _run(
            [sys.executable, "-m", "venv", str(environment.path)],
            failure=f"{environment.path} could not be made",
            advice=_ADVICE_VENV,
        )
        # --no-compile: compiling all of it takes a minute of CPU, and the first import compiles what is used.
        torch = [pin for pin in _requirements(environment.pins) if re.match(r"torch\s*==", pin)]
        if torch:
            # torch first and with its dependencies: which ones it has differs between its CPU and CUDA
            # builds, so the pins cannot list them. The pins constrain those they do list, so that nothing is
            # installed twice.
            _say(f"  {torch[0]}")
            _pip(environment, "install", "--no-compile", *torch, "-c", str(environment.pins))
        _say(f"  {len(_requirements(environment.pins))} pins of environments/{environment.pins.name}")
        _pip(environment, "install", "--no-compile", "--no-deps", "-r", str(environment.pins))
    (environment.path / _MARKER).touch()
    _say(f"made the environment {environment.name} in {time.monotonic() - start:.0f} s")


def _pip(environment: Environment, *arguments: str) -> None:
    command = [str(environment.python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    _run(
        command,
        failure=f"the environment {environment.name} could not be made",
        advice=_ADVICE.format(
            pins=f"environments/{environment.pins.name}",
            python=sys.version.split()[0],
            cache=environment.path.parent.parent,
        ),
    )


def _run(command: Sequence[str], *, failure: str, advice: str = "") -> None:
    """Run a step in silence; when it fails, show the end of its output."""
    # The caller's PYTHONPATH could hide packages from pip, or show it some that are not in the environment.
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        command, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if result.returncode:
        # pip warns of every find-links folder that it skips, which buries the error.
        lines = [line for line in result.stdout.splitlines() if not line.startswith("WARNING: Location")]
        output = "\n".join(f"  | {line}" for line in lines[-25:])
        raise EnvironmentBuildError(f"{failure}. This failed:\n  {shlex.join(command)}\n{output}\n{advice}".rstrip())


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _list() -> None:
    current = {find(name).path for name in names()}
    for path in _existing():
        marker = path / _MARKER
        size = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
        used = (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(marker.stat().st_mtime)) if marker.exists() else "incomplete"
        )
        state = "" if path in current else "  not used by this checkout (--prune removes it)"
        print(f"{path.name:28} {size / 2**20:7.0f} MiB  {used:16}{state}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("name", nargs="?", choices=names(), help="the environment to make or reuse")
    action.add_argument("--list", action="store_true", help="show the environments in the cache")
    action.add_argument("--prune", action="store_true", help="remove those that no pin of this checkout refers to")
    options = parser.parse_args()
    try:
        if options.list:
            _list()
        elif options.prune:
            for path in prune():
                print(f"removed {path}")
        else:
            environment = prepare(options.name)
            if environment.pythonpath:
                _say(f"an overlay: run this python with PYTHONPATH={environment.pythonpath}")
            print(environment.python)
    except EnvironmentBuildError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the next run starts this environment anew")


if __name__ == "__main__":
    main()
