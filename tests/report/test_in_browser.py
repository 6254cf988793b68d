"""The page in a real browser: what is drawn, what controls change, and that a text of the run is never more than text.

That nothing is fetched, no policy is violated and no error is logged is asserted after every test (conftest.py).
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from refine_testing.report_runs import HOSTILE, make_run, make_trace

from refine_wrapper.study.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Page

Show = Callable[..., Any]
SEEDS, STEPS = 3, 40
TRACES = """(plot) => plot.data.map((trace) => ({...trace.meta, x: Array.from(trace.x), y: Array.from(trace.y)}))"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", seeds=SEEDS, steps=STEPS, prompts=4)


@pytest.fixture(scope="module")
def page_file(run: Path) -> Path:
    return write_report(run)


def _plot(metric: str) -> str:
    return f'figure[data-metric="{metric}"] .plot'


def _traces(page: Page, metric: str) -> list[dict[str, Any]]:
    return page.eval_on_selector(_plot(metric), TRACES)


def _ids(page: Page) -> list[str]:
    return page.eval_on_selector_all(".group", "(groups) => groups.map((group) => group.dataset.id)")


def _count(page: Page) -> int:
    text = page.text_content("#count") or ""
    return int(text.split()[0].replace(",", ""))


def test_every_curve_is_drawn(show: Show, page_file: Path) -> None:
    page = show(page_file).page
    metrics = page.eval_on_selector_all("figure[data-metric]", "(all) => all.map((one) => one.dataset.metric)")
    assert {"reward", "entropy", "refine/copy_rate", "refine/uplift", "refine/gradient_active_share"} <= set(metrics)
    assert {f"refine/gradient_active_share_draft_{kind}" for kind in ("max", "below_max")} <= set(metrics)
    for metric in metrics:
        settings = 2 if metric.startswith("refine/") and metric != "refine/gradient_active_share" else 4
        kinds = [trace["kind"] for trace in _traces(page, metric)]
        assert kinds.count("mean") == kinds.count("band") == settings, metric
        assert kinds.count("seed") == settings * SEEDS, metric
        # Of the library's own drawing: a line for each mean and each seed, an area for each band, all with a shape.
        lines = page.eval_on_selector_all(
            f"{_plot(metric)} .scatterlayer .trace path.js-line",
            "(paths) => paths.map((path) => path.getAttribute('d'))",
        )
        assert sum(len(d) > 50 for d in lines) >= settings * (1 + SEEDS), metric
        areas = page.eval_on_selector_all(
            f"{_plot(metric)} .scatterlayer .trace path.js-fill",
            "(paths) => paths.map((path) => path.getAttribute('d'))",
        )
        assert sum(len(d) > 50 for d in areas) == settings, metric
    points = page.locator("#held-out .scatterlayer .trace path.point")
    assert points.count() == 4 * (SEEDS + 1)


def test_curves_say_what_the_table_says(show: Show, run: Path, page_file: Path) -> None:
    shown = show(page_file)
    page = shown.page
    shown.after(lambda: page.uncheck("#smooth"))
    table = pd.read_parquet(run / "results.parquet")
    rows = table[
        (table.metric == "reward") & (table.task == "palindrome") & (table.objective == "grpo") & ~table.refined
    ]
    for axis in ("step", "completions", "tokens", "seconds"):
        if axis != "step":
            shown.after(lambda axis=axis: page.check(f'#axis input[value="{axis}"]'))
        [mean] = [t for t in _traces(page, "reward") if (t["kind"], t["setting"]) == ("mean", "grpo · plain 8")]
        expected = rows.groupby("step")[["value", *([] if axis == "step" else [axis])]].mean().reset_index()
        assert mean["y"] == pytest.approx(list(expected["value"]), rel=1e-4)
        assert mean["x"] == pytest.approx(list(expected[axis]), rel=1e-4)
        title = page.text_content(f"{_plot('reward')} .xtitle") or ""
        assert axis in title


def test_task_seeds_running_mean_and_legend(show: Show, page_file: Path) -> None:
    shown = show(page_file)
    page = shown.page
    before = _traces(page, "reward")
    shown.after(lambda: page.select_option("#task", "sort"))
    other_task = _traces(page, "reward")
    assert [t["setting"] for t in other_task] == [t["setting"] for t in before]
    assert [t["y"] for t in other_task] != [t["y"] for t in before]
    shown.after(lambda: page.uncheck("#seeds"))
    assert {t["kind"] for t in _traces(page, "reward")} == {"mean", "band"}
    smooth = [t["y"] for t in _traces(page, "reward")]
    shown.after(lambda: page.uncheck("#smooth"))
    assert [t["y"] for t in _traces(page, "reward")] != smooth
    # One legend for all charts, by keyboard.
    button = page.get_by_role("button", name="grpo · plain 8")
    button.focus()
    shown.after(lambda: page.keyboard.press("Space"))
    assert button.get_attribute("aria-pressed") == "false"
    for metric in ("reward", "entropy"):
        assert "grpo · plain 8" not in {t["setting"] for t in _traces(page, metric)}
    assert page.locator("#held-out .scatterlayer .trace path.point").count() == 3 * (SEEDS + 1)


def test_other_metrics_and_measures_can_be_chosen(show: Show, page_file: Path) -> None:
    page = show(page_file).page
    page.select_option("#other-metric", "host/grad_norm")
    assert len(page.eval_on_selector("#other .plot", TRACES)) == 4 * (SEEDS + 2)
    title = "#held-out .xtitle"
    assert "single-shot" in (page.text_content(title) or "")
    page.select_option("#held-out-metric", "eval/with_draft")
    page.wait_for_function("() => document.querySelector('#held-out .xtitle').textContent.includes('own draft')")


def test_the_summary_is_there_without_scripts(show: Show, page_file: Path) -> None:
    page = show(page_file, java_script_enabled=False).page
    text = page.inner_text("main")
    assert "no difference shown in any of 4 comparisons at 3 seeds" in text
    assert "1 of 25 cells failed" in text
    assert page.locator("table.comparisons tbody tr").count() == 4
    assert page.locator("table.settings").first.locator("tbody tr").count() == 8
    assert "JavaScript, which is off" in text
    page.click("#failed summary")
    assert "RuntimeError: <b>out of memory</b>" in page.inner_text("#failed pre")
    assert "line 10\n" not in page.inner_text("#failed pre")  # the end of a log, not all of it


def test_filters_change_what_is_listed(show: Show, page_file: Path) -> None:
    page = show(page_file).page
    groups = json.loads(page.text_content("#data") or "")["groups"]
    cells = json.loads(page.text_content("#data") or "")["cells"]

    def check(expected: Callable[[dict[str, Any]], bool]) -> None:
        wanted = [group["id"] for group in groups if expected(group)]
        assert 0 < len(wanted) < len(groups), "the filter must tell groups apart"
        assert _count(page) == len(wanted)
        assert _ids(page) == wanted[:20]
        page.click("#filters button[type=reset]")
        page.wait_for_function(
            "(all) => document.querySelector('#count').textContent.startsWith(String(all))", arg=len(groups)
        )

    assert _count(page) == len(groups)
    page.select_option("#filter-draft", "max")
    check(lambda group: group["at_max"] is True)
    page.select_option("#filter-draft", "below")
    check(lambda group: group["at_max"] is False)
    for action in ("refine", "plain", "skip"):
        page.select_option("#filter-action", action)
        check(lambda group, action=action: group["action"] == action)
    page.check("#filter-mixed")
    check(lambda group: len({s["reward"] for s in group["samples"] if s["slot"] is not None} - {None}) > 1)
    page.fill("#filter-from", "20")
    page.fill("#filter-to", "30")
    check(lambda group: 20 <= group["step"] <= 30)
    page.select_option("#filter-cell", label="sort-dapo-refined-1")
    check(lambda group: cells[group["cell"]]["name"] == "sort-dapo-refined-1")
    page.select_option("#filter-cell", label="sort, dapo · 4 + 4, best")
    check(lambda group: cells[group["cell"]]["name"].startswith("sort-dapo-refined"))
    word = re.findall(r"Write (\w+)", groups[7]["question"])[0]
    page.fill("#filter-text", word.upper())
    check(lambda group: word in json.dumps(group))
    page.fill("#filter-text", "nothing says this")
    assert _count(page) == 0
    assert _ids(page) == []


def test_pages_of_groups_by_keyboard(show: Show, page_file: Path) -> None:
    page = show(page_file).page
    first = _ids(page)
    assert len(first) == 20
    assert page.is_disabled("#previous")
    page.focus("#next")
    page.keyboard.press("Enter")
    assert not set(page.eval_on_selector_all(".group", "(all) => all.map((one) => one.textContent)")) & {""}
    assert page.text_content("#page") == f"Page 2 of {-(-_count(page) // 20)}"
    assert page.is_enabled("#previous")
    page.focus(".group summary")
    page.keyboard.press("Enter")
    page.wait_for_selector(".group[open] .sample")


@pytest.mark.parametrize(
    ("mode", "titles"),
    [
        ("paper", {"Drafts: context only; number", "Refinements, with number", "in the prompt: trained"}),
        ("joint", {"Answers to the question: trained; number", "in the prompt: trained"}),
        ("on_failure", {"Answers to the question: trained", "in the prompt: trained; all samples are wrong"}),
        ("rescue", {"in the prompt: right ones take a slot; all samples are wrong"}),
        ("rounds", {"Drafts: context only; number", "in the prompt: context only; number", "in the prompt: trained"}),
    ],
)
def test_a_group_shows_its_rounds_and_what_is_shown_to_which(
    show: Show, tmp_path: Path, mode: str, titles: set[str]
) -> None:
    # Most first samples are wrong, so that modes that wait for that have something to do.
    trace = make_trace(tmp_path, steps=5, prompts=2, plain_share=0.3, skill=-0.2, gain=0.6, mode=mode, num_drafts=2)
    page = show(write_report(trace)).page
    groups = {group["id"]: group for group in json.loads(page.text_content("#data") or "")["groups"]}
    refined = next(id for id in _ids(page) if groups[id]["action"] == "refine")
    said = ""
    for id in _ids(page):
        group, shown = groups[id], page.locator(f'.group[data-id="{id}"]')
        samples, rounds = group["samples"], group["rounds"]
        shown.locator("summary").first.click()
        shown.locator(".inside").wait_for()
        said += "\n".join(shown.locator("h4").all_text_contents())
        assert shown.locator(".sample pre").all_text_contents() == [sample["text"] for sample in samples]
        in_prompts = [samples[at]["text"] for at in sorted({r["show"] for r in rounds} - {None})]
        assert shown.locator(".sample.chosen pre").all_text_contents() == in_prompts
        assert bool(in_prompts) == (group["action"] == "refine")
        for tag, count in (
            ("repeats what it was shown", sum(sample["copy"] for sample in samples)),
            ("trained as an answer to the question", sum(sample["on_question"] for sample in samples)),
            ("takes slot", sum(s["slot"] is not None and rounds[s["round"]]["use"] == "take" for s in samples)),
            ("lost its slot", sum(s["slot"] is None and rounds[s["round"]]["use"] == "fill" for s in samples)),
        ):
            assert shown.locator(".tag", has_text=tag).count() == count, (id, tag)
    assert [title for title in titles if title not in said] == []
    taken = [sample for group in groups.values() for sample in group["samples"] if sample["on_question"]]
    assert bool(taken) == (mode in ("on_failure", "rescue"))
    shown = next(r for r in groups[refined]["rounds"] if r["show"] is not None)
    assert groups[refined]["samples"][shown["show"]]["text"] in shown["prompt"]


def test_a_replaced_group_says_so(show: Show, tmp_path: Path) -> None:
    trace = make_trace(tmp_path, steps=1, prompts=2, plain_share=0.0)
    first, *rest = (trace / "groups.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.dumps({**json.loads(first), "replaced": True, "trained": False})
    (trace / "groups.jsonl").write_text("\n".join([first, *rest]) + "\n", encoding="utf-8")
    page = show(write_report(trace)).page
    assert page.locator(".group .tag", has_text="replaced").count() == 1
    group = page.locator(".group", has=page.locator(".tag", has_text="replaced"))
    group.locator("summary").first.click()
    group.locator(".inside").wait_for()
    assert "in the prompt: not trained" in group.inner_text()
    assert "sampled, not trained" in group.inner_text()


def test_texts_of_the_run_stay_text(show: Show, tmp_path: Path) -> None:
    page = show(write_report(make_trace(tmp_path, steps=3, prompts=2, hostile=True))).page
    scripts = page.locator("script").count()
    for group in page.locator(".group").all():
        group.locator("summary").first.click()
        group.locator(".inside").wait_for()
    # Also where text goes on being text: searching for it.
    page.fill("#filter-text", "</script><script>")
    page.locator(".group > summary").first.click()
    page.wait_for_selector(".group .inside")
    texts = page.locator(".sample pre").all_text_contents()
    for hostile in HOSTILE:
        assert any(text.startswith(hostile) for text in texts)
    page.wait_for_timeout(200)  # a script that ran late would have
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == scripts
    assert page.locator("#list img, #list svg, #list script, #list b").count() == 0
    assert page.locator("footer").count() == 1  # `</body>` in a draft ended nothing


def test_the_policy_would_stop_what_got_in(chromium: Any, page_file: Path, listener: tuple[str, list[str]]) -> None:
    """Were a text ever taken for HTML: no script of it runs, and nothing is sent anywhere."""
    address, asked = listener
    attack = """(address) => {
      const script = document.createElement("script");
      script.textContent = "window.hacked = 5";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend", `<img src="${address}/image" onerror="window.hacked = 6">`);
      return fetch(`${address}/fetch`, {mode: "no-cors"}).catch(() => null);
    }"""

    def attacked(content: Path) -> int | None:
        page = chromium.new_page()
        page.goto(content.as_uri())
        page.evaluate(attack, address)
        page.wait_for_timeout(300)
        hacked = page.evaluate("window.hacked")
        page.close()
        return hacked

    assert attacked(page_file) is None
    assert asked == []
    # The same on a page without the policy, so that this test can fail.
    unprotected = page_file.with_name("unprotected.html")
    unprotected.write_text("<!doctype html><body>", encoding="utf-8")
    assert attacked(unprotected) is not None
    assert set(asked) == {"/image", "/fetch"}


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join(30)


def test_dark_and_light_follow_the_reader(show: Show, page_file: Path) -> None:
    shown = show(page_file, color_scheme="dark")
    page = shown.page

    def colours() -> tuple[str, str]:
        line = page.eval_on_selector(_plot("reward"), "(plot) => plot.data.at(-1).line.color")
        return page.evaluate("getComputedStyle(document.body).backgroundColor"), line

    dark = colours()
    shown.after(lambda: page.emulate_media(color_scheme="light"))
    light = colours()
    assert all(one != other for one, other in zip(dark, light, strict=True))


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(show: Show, page_file: Path, width: int) -> None:
    page = show(page_file, viewport={"width": width, "height": 800}).page
    page.locator(".group > summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in page.locator(".plot").all():
        box = plot.bounding_box()
        assert box is not None
        assert box["width"] > 200


def test_a_chart_can_be_saved_as_a_picture(show: Show, page_file: Path) -> None:
    page = show(page_file).page
    with page.expect_download() as download:
        page.hover(_plot("reward"))
        page.click(f"{_plot('reward')} .modebar-btn[data-title*='Download']")
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def test_a_trace_without_texts(show: Show, tmp_path: Path) -> None:
    page = show(write_report(make_trace(tmp_path, steps=5, texts=False))).page
    assert "has no texts" in page.inner_text("#summary")
    metrics = page.eval_on_selector_all("figure[data-metric]", "(all) => all.map((one) => one.dataset.metric)")
    assert "refine/copy_rate" not in metrics
    assert "refine/uplift" in metrics
    page.locator(".group > summary").first.click()
    page.wait_for_selector(".group .inside")
    assert page.locator(".group .inside .reward").count() == 8
