"""The plan that compares rewards: one command, with the reward as an axis."""

from __future__ import annotations

from pathlib import Path

from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.study.ablation.cell import cells_of
from refine_wrapper.study.ablation.plan import read_plan

EXAMPLES = Path(__file__).parents[3] / "examples" / "ablation"


def test_the_rewards_differ_and_nothing_else(tmp_path: Path) -> None:
    plan, plugins = read_plan(EXAMPLES / "judge.yaml"), Plugins(entry_points=True)
    plan.check(plugins)
    cells = [cell for cell in cells_of(plan, tmp_path, plugins) if cell.values.get("reward") and cell.host]
    trained = {(cell.task, cell.refine is None, cell.seed) for cell in cells}
    assert {
        (task, plain, seed) for task in ("rule", "judge", "both") for plain in (True, False) for seed in range(3)
    } <= trained
    assert len({cell.command for cell in cells if cell.refine is None}) == 1
    assert {cell.values["reward"] for cell in cells} == {"rule", "judge", "both"}
    assert (EXAMPLES / "../trl/judge/train.py").resolve().is_file()
