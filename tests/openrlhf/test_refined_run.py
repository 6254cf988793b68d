"""One real run of the launcher, started as `refine-wrapper ablate` does, and all that it wrote.

GRPO with evaluation, a reference model and importance-sampling correction.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from refine_testing.openrlhf_runs import LAUNCHER, NOTE, NUM_PROMPTS, Run, Workshop, by_name, drafts_of, refinements_of
from safetensors.torch import load_file

from refine_wrapper_openrlhf.plugin import register_adapters

# Of a start on a machine that others use, not of what is tested.
pytestmark = pytest.mark.timeout(1200)

LAUNCH = register_adapters()["openrlhf"].launch
N, G, NUM_EVALUATIONS, EVAL_PROMPTS, EVAL_SAMPLES = 3, 2, 2, 2, 2


@pytest.fixture(scope="module")
def run(workshop: Workshop) -> Run:
    folder = workshop.folder()
    workshop.reward(folder)
    values = {"completions": G, "seed": 3, "output": folder / "out", "tensorboard": folder / "tensorboard"}
    assert LAUNCH
    assert LAUNCH.arguments.keys() == values.keys()
    launched = [part.format(**values) for argument in LAUNCH.arguments.values() for part in argument]
    flags = workshop.flags(
        folder,
        rollout__n_samples_per_prompt=8,
        train__batch_size=2 * G,
        ckpt__output_dir=None,
        ckpt__path=None,
        actor__entropy_coef=0,  # only logs it
        eval__dataset=workshop.eval_data,
        eval__steps=1,
        # The training temperature: launched runs know evaluation by more than that.
        eval__temperature=1.0,
        eval__n_samples_per_prompt=EVAL_SAMPLES,
        algo__kl__init_coef=0.01,
        algo__advantage__is_correction_level="token",
        ref__offload=None,
    )
    refine = (by_name("grpo"), f"--refine.num_drafts={N}", *workshop.traced(folder))
    done = workshop.run(folder, *LAUNCHER, *flags, *launched, *refine)
    assert done.code == 0, done.screen[-4000:]
    return done


def test_it_says_what_is_on(run: Run) -> None:
    assert f"N={N} drafts + G={G} refinements = {N + G} completions per prompt" in run.screen
    assert not run.left_behind


def test_drafts_and_refinements_are_rewarded_once_each(run: Run) -> None:
    per_prompt = Counter(call["prompt"] for call in run.calls)
    train = {prompt: count for prompt, count in per_prompt.items() if "eval" not in prompt}
    # Every question is twice in the data.
    assert list(train.values()) == [2 * (N + G)] * (NUM_PROMPTS // 2)


def test_evaluation_is_single_shot(run: Run) -> None:
    per_prompt = Counter(call["prompt"] for call in run.calls if "eval" in call["prompt"])
    assert list(per_prompt.values()) == [NUM_EVALUATIONS * EVAL_SAMPLES] * EVAL_PROMPTS
    assert "eval_sums_pass1" in run.screen


def test_rewards_see_the_question_and_one_answer(run: Run) -> None:
    for call in run.calls:
        assert call["query"].startswith(call["prompt"])
        assert NOTE not in call["query"]
        assert call["prompt"].count("<|im_start|>user") == 1


def test_the_engine_serves_drafts_first_then_the_longest_groups(run: Run) -> None:
    assert {request["policy"] for request in run.requests} == {"priority"}
    expected = [0] * (NUM_PROMPTS * N + NUM_EVALUATIONS * EVAL_PROMPTS * EVAL_SAMPLES)
    for group in run.groups:
        expected += [2**20 - sum(draft["num_tokens"] for draft in drafts_of(group)) // N] * G
    assert sorted(request["priority"] for request in run.requests) == sorted(expected)


def test_each_group_has_one_refined_prompt_with_its_best_draft(run: Run, workshop: Workshop) -> None:
    assert len(run.groups) == NUM_PROMPTS
    assert len({group["group_id"] for group in run.groups}) == NUM_PROMPTS
    for group in run.groups:
        rewards = [draft["reward"] for draft in drafts_of(group)]
        assert len(rewards) == N
        assert len(refinements_of(group)) == G
        shown = group["rounds"][1]
        assert shown["show"] == rewards.index(max(rewards))
        assert NOTE in shown["prompt"]
        assert shown["shown_text"] in shown["prompt"]
        assert all(refinement["held"] for refinement in refinements_of(group))


def test_only_refinements_are_trained_with_the_advantages_of_their_rewards(run: Run, workshop: Workshop) -> None:
    """GRPO's, up to the KL that this run takes off the reward."""
    expected = run.expected_rows(lambda rewards: (rewards - rewards.mean()) / (rewards.std() + 1e-9))
    got = run.trained_rows(workshop.tokenizer)
    assert len(got) == NUM_PROMPTS * G
    assert [row[:2] for row in got] == [row[:2] for row in expected]
    assert all(NOTE in row.prompt for row in got)
    assert [row.advantage for row in got] == pytest.approx([row.advantage for row in expected], abs=0.05)


def test_rollout_logprobs_are_those_of_the_refinement(run: Run) -> None:
    for row in run.trained:
        pairs = list(zip(row["rollout_log_probs"], row["action_mask"], strict=True))
        assert all(value == 0 for value, on in pairs if not on)
        assert all(value < 0 for value, on in pairs if on)
    # The trainer finds the same probabilities for the same tokens; shifted by one they would differ by units.
    first = run.trained[0]
    gaps = [
        abs(ours - theirs)
        for ours, theirs, on in zip(
            first["rollout_log_probs"], first["action_log_probs"], first["action_mask"], strict=True
        )
        if on
    ]
    assert sum(gaps) / len(gaps) < 0.05


def test_metrics_are_the_cores_in_the_hosts_log(run: Run) -> None:
    assert len(run.steps) == 2
    for number, step in enumerate(run.steps):
        groups = [group for group in run.groups if group["step"] == number]
        assert step["refine/groups"] == len(groups) == 2
        assert step["refine/completions"] == 2 * (N + G)
        assert step["refine/refined_share"] == 1
        drafts = [draft["reward"] for group in groups for draft in drafts_of(group)]
        assert step["refine/draft_reward_mean"] == pytest.approx(sum(drafts) / len(drafts), abs=1e-4)
        refinements = [r["reward"] for group in groups for r in refinements_of(group)]
        assert step["refine/refinement_reward"] == pytest.approx(sum(refinements) / len(refinements), abs=1e-4)
        assert step["refine/refinement_reward"] == pytest.approx(step["rollout/reward_mean"], abs=1e-4)
        # What the user's reward logs is there too, of refinements only.
        assert step["paid"] == pytest.approx(step["rollout/reward_mean"], abs=1e-4)


def test_tensorboard_has_the_same_names_and_numbers(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [file] = (run.folder / "tensorboard").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    assert LAUNCH
    written = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    assert written.keys() >= set(LAUNCH.metrics.values())
    names = {name for step in run.steps for name in step if name.startswith("refine/")}
    assert names >= {"refine/uplift", "refine/draft_reward_mean", "refine/gradient_active_share"}
    for name in names:
        # A share of groups of some kind is not there in a step without such groups.
        logged = {number: step[name] for number, step in enumerate(run.steps, start=1) if name in step}
        assert written[LAUNCH.train_prefix + name] == pytest.approx(logged, rel=1e-5), name
    assert written["train/refine/uplift"].keys() == {1, 2}


def test_the_trained_model_loads(run: Run, workshop: Workshop) -> None:
    """From the folder that `refine-wrapper ablate` takes it from, as `refine-wrapper eval` does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert LAUNCH
    folder = run.folder / "out" / LAUNCH.models[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    trained = run.weights()["model.norm.weight"]
    assert torch.equal(model.model.norm.weight.to(trained.dtype), trained)
    assert AutoTokenizer.from_pretrained(folder)("1 + 1")["input_ids"] == workshop.tokenizer("1 + 1")["input_ids"]


def test_weights_move(run: Run, workshop: Workshop) -> None:
    before, after = load_file(f"{workshop.model}/model.safetensors"), run.weights()
    assert any(not torch.equal(before[name].to(after[name].dtype), after[name]) for name in before)
    assert all(torch.isfinite(value.float()).all() for value in after.values())
