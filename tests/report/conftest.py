"""A real headless Chromium, and pages opened in it under watch. Without a browser these tests fail and say what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from browser import find_browser

# Before any script of the page: what the policy refuses is noted in a place that the page does not know.
_NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.effectiveDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`);
});
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    found = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found.executable, env=found.environment, timeout=60_000)
        yield browser
        browser.close()


@dataclass
class Shown:
    """A page in the browser, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])

    @property
    def violations(self) -> list[str]:
        return self.page.evaluate("window.violations")

    def wait_drawn(self) -> None:
        self.page.wait_for_selector("body[data-drawn=yes]", timeout=60_000)

    def after(self, change: Callable[[], Any]) -> None:
        """Make a change and wait until the curves are drawn again."""
        change()
        self.wait_drawn()


@pytest.fixture
def show(chromium: Browser) -> Iterator[Callable[..., Shown]]:
    """Opens a file; at the end of the test nothing but that file may have been asked for, and nothing have gone wrong."""
    opened: list[tuple[Path, Shown]] = []

    def open_page(path: Path, **options: Any) -> Shown:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.add_init_script(_NOTE_VIOLATIONS)
        shown = Shown(context.new_page())
        shown.page.set_default_timeout(30_000)

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                shown.errors.append(message.text)

        shown.page.on("request", lambda request: shown.requests.append(request.url))
        shown.page.on("console", note)
        shown.page.on("pageerror", lambda error: shown.errors.append(str(error)))
        shown.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            shown.wait_drawn()
        opened.append((path, shown))
        return shown

    yield open_page
    for path, shown in opened:
        # Pictures made in memory are no requests to anybody.
        assert [url for url in shown.requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
        assert shown.errors == []
        if shown.page.evaluate("typeof window.violations") != "undefined":
            assert shown.violations == []
        shown.page.context.close()
