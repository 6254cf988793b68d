"""The start-up that all hosts share: what is refused, which paths workers get, what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from core_standins import built_in

from refine_wrapper.errors import ConfigError
from refine_wrapper.hosts.start import HostFacts, announcement, check_start, num_context, with_absolute_paths
from refine_wrapper.settings.config import RefineConfig

FACTS = HostFacts("trl", "GRPOTrainer", 8, 8, "num_generations", "refine_match_budget=True, which shrinks it")


def test_what_is_said() -> None:
    assert announcement(FACTS, RefineConfig(), built_in(), "A note.") == (
        "refine-wrapper: on for GRPOTrainer. N=4 drafts + G=8 refinements = 12 completions per prompt; the plain run "
        "samples 8.\n"
        "  mode=paper selector=best template=append evaluation=single_shot\n"
        "  To match the plain run's 8 completions: refine_match_budget=True, which shrinks it.\n"
        "  A note."
    )
    assert announcement(FACTS, RefineConfig(mode="joint"), built_in()).splitlines()[0] == (
        "refine-wrapper: on for GRPOTrainer. 8 completions per prompt, all of them trained, as many as the plain run "
        "samples."
    )
    shrunk = announcement(replace(FACTS, group_size=4), RefineConfig(match_budget=True, refine_share=0.5), built_in())
    assert "N=4 drafts + G=4 refinements = 8 completions per prompt, as many as the plain run samples." in shrunk
    assert "The group size changed from 8 to 4: a reward that knows the group size must read num_generations." in shrunk
    assert "refine_share=0.5: a group that is not refined has 4 completions, fewer than the plain run's 8." in shrunk
    named = announcement(FACTS, RefineConfig(objective="dapo"), built_in())
    assert "objective=dapo; not set: the overlong penalty" in named


def test_a_group_size_that_the_mode_cannot_work_with_is_refused() -> None:
    check_start(FACTS, RefineConfig(mode="joint"), built_in())
    with pytest.raises(ConfigError, match="num_drafts must be from 1 to 3"):
        check_start(replace(FACTS, group_size=4), RefineConfig(mode="joint"), built_in())


def test_training_under_the_question_is_refused_where_the_host_corrects_by_the_samplers_log_probs() -> None:
    corrected = replace(FACTS, corrections={"vllm_importance_sampling_correction": "it to False"})
    check_start(corrected, RefineConfig(mode="joint"), built_in())
    for settings in ({"mode": "on_failure"}, {"mode": "rescue"}, {"train_under": "question"}):
        with pytest.raises(ConfigError, match=r"vllm_importance_.* Set it to False, or train_under=sampled"):
            check_start(corrected, RefineConfig(**settings), built_in())
    check_start(corrected, RefineConfig(mode="on_failure", train_under="sampled"), built_in())


def test_a_refined_evaluation_has_groups_of_its_own_size_and_chooses_no_answers() -> None:
    evaluated = replace(FACTS, evaluation_size=2, evaluation_setting="num_generations_eval")
    check_start(evaluated, RefineConfig(mode="joint"), built_in())
    with pytest.raises(ConfigError, match=r"from 1 to 1.*about num_generations_eval=2, because of evaluation=refine"):
        check_start(evaluated, RefineConfig(mode="joint", evaluation="refine"), built_in())
    with pytest.raises(ConfigError, match="'rescue' replaces wrong answers by right ones"):
        check_start(evaluated, RefineConfig(mode="rescue", evaluation="refine"), built_in())


def test_what_is_context_is_what_a_matched_budget_takes_out() -> None:
    assert [num_context(RefineConfig(mode=mode), 8, built_in()) for mode in ("paper", "joint", "rescue")] == [4, 0, 4]


def test_workers_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("{question}{draft}")
    config = with_absolute_paths(RefineConfig(trace_dir=Path("trace"), template="mine.txt"))
    assert (config.trace_dir, config.template) == (tmp_path / "trace", str(tmp_path / "mine.txt"))
    assert with_absolute_paths(RefineConfig()) == RefineConfig()
