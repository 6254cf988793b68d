"""Dynamic sampling through TRL's own trainers: what is drawn again, what is trained in the end, what is logged, what it costs."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset, IterableDataset
from packaging.version import Version
from refine_testing.objective import grpo_advantages, leave_one_out_advantages
from refine_testing.resampled import Merged, PayingReward, flat_for, merged
from refine_testing.rewards import checksum, text_of
from refine_testing.tiny import tiny_tokenizer
from refine_testing.traces import read_groups
from refine_testing.trl_host import TRAINERS, chats, logged, q_prime_ids, questions, trainer_for, unpadded, weights_of

from refine_wrapper_trl import RefineGRPOTrainer

pytestmark = pytest.mark.timeout(120)

G, N, P, LIMIT = 4, 3, 3, 4
FLAT = (0, 2, 3, 5, 6, 9, 11, 12, 14)
"""Of 16 questions, those whose rewards are always equal."""
TOLD = "drawn again on other prompts of the data set, at most 4 times a batch"


def _data(kind: Any = questions) -> Dataset:
    return kind(16, number=list(range(16)))


def _run(folder: Path, *, flat: tuple[int, ...] = FLAT, reward: Any = None, **settings: Any) -> tuple[Any, Any]:
    reward = reward or PayingReward(pay=flat_for(*flat))
    given: dict[str, Any] = {
        "per_device_train_batch_size": P * G,
        "num_generations": G,
        "refine_dynamic_sampling": LIMIT,
        "refine_num_drafts": 0,
        "learning_rate": 1e-2,
        "refine_trace_dir": str(folder / "trace"),
        **settings,
    }
    trainer = trainer_for(folder, reward, given.pop("dataset", None) or _data(), **given)
    trainer.train()
    return trainer, reward


def _batches(trainer: Any, reward: Any, num_drafts: int = 0, limit: int = LIMIT) -> list[Merged]:
    return merged(reward.calls, reward.paid, group_size=G, limit=limit, num_drafts=num_drafts)


def _sampled_tokens(trainer: Any, calls: list[dict[str, Any]]) -> int:
    """Tokens of all that was generated so far: prompts as the model got them, completions as the reward got them."""
    prompts = [prompt for generation in trainer.generations[: len(calls)] for prompt in generation.prompts]
    ids = [ids for call in calls for ids in call["completion_ids"]]
    return sum(len(trainer.processing_class(text=prompt)["input_ids"]) for prompt in prompts) + sum(map(len, ids))


def _check_batch(trainer: Any, objective: str, number: int, batch: Merged, num_drafts: int) -> None:
    """What left the host's scoring is the merged batch, row by row, with the advantages of its rewards."""
    output, rows = trainer.batches[number].output, batch.both.refinements
    tokenizer = trainer.processing_class
    questions_P = rows["prompts"][::G]
    prompt_ids = [
        q_prime_ids(tokenizer, question, batch.both.best_text(group, num_drafts))
        if num_drafts
        else tokenizer(text=question)["input_ids"]
        for group, question in enumerate(questions_P)
    ]
    assert unpadded(output["prompt_ids"], output["prompt_mask"]) == [ids for ids in prompt_ids for _ in range(G)]
    assert unpadded(output["completion_ids"], output["completion_mask"]) == [
        list(ids) for ids in rows["completion_ids"]
    ]
    rewards = [float(reward) for reward in batch.both.rewards if reward is not None]
    expected = grpo_advantages(rewards, G) if objective == "grpo" else leave_one_out_advantages(rewards, G)
    assert output["advantages"].tolist() == pytest.approx(expected, abs=1e-5)
    if "num_items_in_batch" in output:
        assert int(output["num_items_in_batch"]) == sum(map(len, rows["completion_ids"]))


def _check_metrics(trainer: Any, batches: list[Merged], num_drafts: int) -> None:
    """The host's metrics are those of the batch that is trained; tokens and completions are all that was sampled."""
    calls: list[dict[str, Any]] = []
    for number, batch in enumerate(batches):
        calls += batch.calls
        rewards = [float(reward) for reward in batch.both.rewards if reward is not None]
        lengths = [len(ids) for ids in batch.both.refinements["completion_ids"]]
        extra = sum(len(call["prompts"]) for call in batch.calls[1 + bool(num_drafts) :])
        expected = {
            "reward": fmean(rewards),
            "frac_reward_zero_std": len(batch.kept) / P,
            "completions/mean_length": fmean(lengths),
            "completions/min_length": min(lengths),
            "completions/max_length": max(lengths),
            "num_tokens": _sampled_tokens(trainer, calls),
            "refine/inactive_groups": len(batch.inactive),
            "refine/inactive_groups_kept": len(batch.kept),
            "refine/resampling_rounds": batch.rounds,
            "refine/resampled_groups": batch.groups,
            "refine/resampled_completions": extra,
        }
        if num_drafts:
            expected["refine/groups"] = P
            expected["refine/completions"] = P * (G + N) + extra
            expected["refine/refinement_reward"] = fmean(rewards)
            expected["refine/draft_tokens"] = sum(len(ids) for c in batch.calls[::2] for ids in c["completion_ids"])
            expected["refine/refinement_tokens"] = sum(len(i) for c in batch.calls[1::2] for i in c["completion_ids"])
            expected["refine/gradient_active_share"] = 1 - len(batch.kept) / P
        found = {name: logged(trainer, name)[number] for name in expected}
        assert found == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


@pytest.mark.oldest
@pytest.mark.parametrize("num_drafts", [0, N], ids=["plain", "refined"])
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_groups_without_a_gradient_are_replaced(
    objective: str, num_drafts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer, reward = _run(tmp_path, objective=objective, refine_num_drafts=num_drafts, max_steps=3)
    assert TOLD in capsys.readouterr().err
    batches = _batches(trainer, reward, num_drafts)
    assert len(batches) == 3
    for number, batch in enumerate(batches):
        _check_batch(trainer, objective, number, batch, num_drafts)
    _check_metrics(trainer, batches, num_drafts)
    # The case has what it is to show: groups replaced at once, later, and (over the limit) not at all.
    assert any(batch.inactive and not batch.kept for batch in batches)
    assert max(batch.rounds for batch in batches) > 1
    asked = [number for batch in batches for call in batch.calls for number in call["number"]]
    assert all(
        f"Question {n}:" in text
        for b in batches
        for c in b.calls
        for n, text in zip(c["number"], c["prompts"], strict=True)
    )
    assert len(set(asked)) > 9, "replacements come from all of the data"
    # What the completions table shows is what is trained.
    last = batches[-1].both.refinements
    assert [text_of(c) for c in list(trainer._logs["completion"])[-P * G :]] == [
        text_of(c) for c in last["completions"]
    ]
    shown = list(trainer._logs["prompt"])[-P * G :]  # TRL 1.0 shows q', later ones q
    assert all(prompt.startswith(question) for prompt, question in zip(shown, last["prompts"], strict=True))
    if num_drafts:
        groups = read_groups(tmp_path / "trace")
        for step, batch in enumerate(batches):
            of_step = [group for group in groups if group["step"] == step]
            trained = [group for group in of_step if not group.get("replaced")]
            assert [[r["reward"] for r in group["refinements"]] for group in trained] == [
                pytest.approx(batch.both.rewards[first : first + G]) for first in range(0, P * G, G)
            ]
            assert len(of_step) == P + batch.groups
        assert len({group["group_id"] for group in groups}) == len(groups)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"steps_per_generation": 2, "per_device_train_batch_size": 6, "max_steps": 4}, id="a buffer"),
        pytest.param({"num_iterations": 2, "max_steps": 4}, id="used twice"),
        pytest.param({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 6}, id="accumulated"),
        pytest.param({"refine_num_drafts": N, "refine_draft_ahead": True, "max_steps": 2}, id="draft-ahead"),
        pytest.param({"scale_rewards": "batch"}, id="scaled by the batch"),
    ],
)
def test_whatever_becomes_of_the_batch(settings: dict[str, Any], tmp_path: Path) -> None:
    """Every merged row is trained as often as the host says, and no other."""
    trainer, reward = _run(tmp_path, **settings)
    batches = _batches(trainer, reward, settings.get("refine_num_drafts", 0))
    assert len(batches) == 2
    assert any(batch.groups for batch in batches)
    rows = [
        (tuple(ids), number)
        for b in batches
        for ids, number in zip(b.both.refinements["completion_ids"], b.both.refinements["number"], strict=True)
    ]
    trained = [
        tuple(ids)
        for step in trainer.steps
        for ids in unpadded(step.inputs["completion_ids"], step.inputs["completion_mask"])
    ]
    uses = settings.get("num_iterations", 1)
    assert sorted(trained) == sorted([ids for ids, _ in rows] * uses)
    if settings.get("scale_rewards") == "batch":
        for batch, made in zip(batches, trainer.batches, strict=True):
            rewards = torch.tensor([float(r) for r in batch.both.rewards if r is not None]).view(P, G)
            expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-4)
            assert made.output["advantages"].tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)


@pytest.mark.oldest
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_at_the_limit_what_is_left_stays_and_teaches_nothing(objective: str, tmp_path: Path) -> None:
    trainer, reward = _run(tmp_path, flat=tuple(range(16)), objective=objective, refine_dynamic_sampling=2)
    before = trainer.batches[0].weights
    assert [len(call["prompts"]) for call in reward.calls] == [P * G] * 6, (
        "the first draw and two more, for two batches"
    )
    batches = _batches(trainer, reward, limit=2)
    for number, batch in enumerate(batches):
        assert batch.kept == [0, 1, 2]
        assert batch.both.refinements["prompts"] == batch.calls[0]["prompts"], "the first draw stays"
        _check_batch(trainer, objective, number, batch, 0)
        assert not trainer.batches[number].output["advantages"].any()
    _check_metrics(trainer, batches, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(trainer.model).items())


@pytest.mark.oldest
@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_with_nothing_to_draw_again_it_is_the_plain_trainer_bit_for_bit(objective: str, tmp_path: Path) -> None:
    def run(folder: Path, **settings: Any) -> tuple[Any, Any]:
        reward = PayingReward()
        given: dict[str, Any] = {"objective": objective, "max_steps": 3, "learning_rate": 1e-2, **settings}
        evaluates = {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "num_generations_eval": 2,
            "per_device_eval_batch_size": 2,
        }
        more = {"eval_dataset": questions(20).select(range(17, 18))}
        trainer = trainer_for(folder, reward, questions(8), more=more, **given, **evaluates)
        trainer.train()
        return trainer, reward

    def history(trainer: Any) -> list[dict[str, Any]]:
        timed = ("time", "per_second")
        return [
            {n: v for n, v in entry.items() if not n.endswith(timed) and not n.startswith("refine/")}
            for entry in trainer.state.log_history
        ]

    trainer, reward = run(tmp_path / "on", refine_num_drafts=0, refine_dynamic_sampling=3)
    plain, plain_reward = run(tmp_path / "plain", plain=True)
    assert logged(trainer, "refine/resampling_rounds") == [0, 0, 0]
    assert not [name for entry in trainer.state.log_history for name in entry if name.startswith("eval_refine/")]
    assert reward.calls == plain_reward.calls
    assert history(trainer) == history(plain)
    expected = weights_of(plain.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(trainer.model).items())


@pytest.mark.parametrize(
    ("stream", "setting"), [(False, "same"), (True, "new")], ids=["as the setting says", "as a stream needs it"]
)
def test_groups_drawn_again_on_their_own_prompts(
    stream: bool, setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if stream and Version(trl.__version__) < Version("1.10"):
        pytest.skip("streams came later than TRL 1.0")
    rows = _data().to_list()
    dataset = IterableDataset.from_generator(lambda: iter(rows)) if stream else _data()
    draws = 0

    def script(prompt: str, row: int) -> str:
        """At the first draw of a batch the same for all rows but those of group 0; at the second different ones."""
        nonlocal draws
        draws += row == 0
        return "equal" if draws % 2 and row >= G else "abcdef"[: 1 + row % 4]

    reward, settings = PayingReward(), {"refine_dynamic_sampling_prompts": setting}
    trainer, _ = _run(tmp_path, reward=reward, dataset=dataset, script=script, **settings)
    assert f"their own prompts{' (the data set is a stream)' if stream else ''}, at most 4" in capsys.readouterr().err
    batches = _batches(trainer, reward)
    assert len(batches) == 2
    for number, batch in enumerate(batches):
        assert (batch.inactive, batch.kept, batch.rounds) == ([1, 2], [], 1)
        assert batch.calls[1]["prompts"] == batch.calls[0]["prompts"][G:]
        _check_batch(trainer, "grpo", number, batch, 0)


def test_what_reward_functions_log_goes_with_their_rows(tmp_path: Path) -> None:
    class Logging(PayingReward):
        def __call__(self, *args: Any, log_extra: Any, log_metric: Any, **columns: Any) -> list[float | None]:
            log_extra(
                "seen", [f"{n}: {text}" for n, text in zip(columns["number"], columns["completions"], strict=True)]
            )
            log_metric("asked", len(columns["number"]))
            return super().__call__(*args, **columns)

    reward = Logging(pay=flat_for(*FLAT))
    trainer, _ = _run(tmp_path, reward=reward)
    batches = _batches(trainer, reward)
    rows = [
        row
        for b in batches
        for row in zip(b.both.refinements["number"], b.both.refinements["completions"], strict=True)
    ]
    seen = list(trainer._logs["extra"]["seen"])
    assert seen == [f"{number}: {text}" for number, text in rows[-len(seen) :]]
    assert logged(trainer, "asked") == [fmean(len(call["prompts"]) for call in batch.calls) for batch in batches]


@pytest.mark.parametrize("num_drafts", [0, N], ids=["plain", "refined"])
def test_rows_of_a_rollout_function(num_drafts: int, tmp_path: Path) -> None:
    """Its masks, log-probabilities and fields go with the rows that are put into the batch."""
    tokenizer = tiny_tokenizer()
    count = iter(range(10**6))

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        made = [next(count) for _ in prompts]
        own = [tokenizer.encode(f"number {n}", add_special_tokens=False) for n in made]
        return {
            "prompt_ids": [
                tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=True, return_dict=True)[
                    "input_ids"
                ]
                for p in prompts
            ],
            "completion_ids": [[*ids, tokenizer.eos_token_id] for ids in own],
            "logprobs": [[-0.5] * (len(ids) + 1) for ids in own],
            "env_mask": [[n % 2, *[1] * len(ids)] for n, ids in zip(made, own, strict=True)],
            "made": made,
        }

    class Checked(PayingReward):
        def __call__(self, *args: Any, **columns: Any) -> list[float | None]:
            assert [f"number {n}" for n in columns["made"]] == [text_of(c) for c in columns["completions"]]
            return super().__call__(*args, **columns)

    reward = Checked(pay=flat_for(*FLAT))
    trainer, _ = _run(
        tmp_path,
        reward=reward,
        dataset=_data(chats),
        refine_num_drafts=num_drafts,
        more={"rollout_func": rollout},
    )
    batches = _batches(trainer, reward, num_drafts)
    assert any(batch.groups for batch in batches)
    for batch, made in zip(batches, trainer.batches, strict=True):
        rows = batch.both.refinements
        masks = unpadded(made.output["tool_mask"], made.output["completion_mask"])
        assert masks == [
            [n % 2, *[1] * (len(ids) - 1)] for n, ids in zip(rows["made"], rows["completion_ids"], strict=True)
        ]
        assert unpadded(made.output["completion_ids"], made.output["completion_mask"]) == rows["completion_ids"]
        if num_drafts == 0:
            assert logged(trainer, "completions/mean_length")[batches.index(batch)] == pytest.approx(
                fmean(map(sum, masks))
            )


def test_completions_that_an_override_changes_are_scored_as_it_left_them(tmp_path: Path) -> None:
    """An override of `_generate` outside of refinement sees the merged batch, and has the last word."""

    class Shouting(TRAINERS["grpo"][0]):  # type: ignore[misc]
        def _generate(self, prompts: list[Any]) -> Any:
            generated = super()._generate(prompts)
            shouted = [text.upper() + "!" for text in generated[3]]
            return (*generated[:3], shouted, *generated[4:])

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
            output = super()._generate_and_score_completions(inputs)
            self.numbers = [row["number"] for row in inputs]
            return output

    reward = PayingReward(pay=flat_for(*FLAT))
    trainer, _ = _run(tmp_path, reward=reward, base=Shouting, max_steps=1)
    *before, last = reward.calls
    (batch,) = merged(before, reward.paid, group_size=G, limit=LIMIT)
    assert batch.groups
    assert all(text.endswith("!") for text in last["completions"])
    assert trainer.numbers == last["number"] == batch.both.refinements["number"]
    assert len(last["prompts"]) == P * G
    paid = [float(reward) for reward in reward.paid(last) if reward is not None]
    assert trainer.batches[0].output["advantages"].tolist() == pytest.approx(grpo_advantages(paid, G), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        pytest.param({"reward_weights": [2.0, 1.0]}, 2, id="summed"),
        pytest.param(
            {"reward_weights": [2.0, 1.0], "multi_objective_aggregation": "normalize_then_sum"},
            0,
            id="normalised apart",
        ),
        pytest.param(
            {"objective": "rloo", "reward_clip_range": (0.0, 3.0), "reward_weights": [9.0, 0.0]}, 2, id="clipped"
        ),
        pytest.param({"objective": "rloo", "reward_weights": [9.0, 0.0]}, 0, id="not clipped"),
    ],
)
def test_what_counts_is_what_advantages_come_from(settings: dict[str, Any], rounds: int, tmp_path: Path) -> None:
    """Two functions whose weighted sum is always 2: no gradient in it, but in each of them alone."""

    def one(completions: list[str], **_: Any) -> list[float]:
        return [0.5 + round(32 * checksum(text)) / 64 for text in completions]  # sums are exact

    def other(completions: list[str], **_: Any) -> list[float]:
        return [2 - 2 * value for value in one(completions)]

    trainer = trainer_for(
        tmp_path, [one, other], _data(), refine_num_drafts=0, refine_dynamic_sampling=2, max_steps=1, **settings
    )
    trainer.train()
    assert logged(trainer, "refine/resampling_rounds") == [rounds]
    assert bool(trainer.batches[0].output["advantages"].abs().max() > 1e-2) == (rounds == 0)


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_a_resumed_run_goes_on_as_if_never_stopped(objective: str, tmp_path: Path) -> None:
    """What is drawn again follows from the step, the seed and the rewards: a checkpoint has all of it."""
    given: dict[str, Any] = {"objective": objective, "refine_num_drafts": N, "max_steps": 4, "save_strategy": "steps"}
    first, reward = _run(tmp_path / "first", save_steps=2, **given)
    again = PayingReward(pay=flat_for(*FLAT))
    resumed = trainer_for(
        tmp_path / "resumed",
        again,
        _data(),
        per_device_train_batch_size=P * G,
        num_generations=G,
        refine_dynamic_sampling=LIMIT,
        learning_rate=1e-2,
        save_steps=100,
        **given,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    batches = _batches(first, reward, N)
    assert all(batch.groups for batch in batches[2:])
    assert again.calls == [call for batch in batches[2:] for call in batch.calls]
    expected = weights_of(first.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(resumed.model).items())
    assert resumed.state.epoch == first.state.epoch


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ({"refine_objective": "dapo"}, 9),
        ({"refine_objective": "dapo", "refine_dynamic_sampling": 2}, 2),
        ({"refine_objective": "dapo", "refine_dynamic_sampling": 0}, None),
        ({"refine_objective": "grpo"}, None),
    ],
)
def test_the_objective_dapo_has_it(
    settings: dict[str, Any], rounds: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_for(tmp_path, PayingReward(), _data(), refine_num_drafts=0, **settings)
    told = capsys.readouterr().err
    assert isinstance(trainer, RefineGRPOTrainer)
    assert ("dynamic sampling" in told) == (rounds is not None)
    if rounds is not None:
        assert f"at most {rounds} times a batch" in told
        assert "objective=dapo; not set: the overlong penalty" in told
