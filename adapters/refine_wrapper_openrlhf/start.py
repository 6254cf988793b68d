"""Before anything starts: settings, what cannot work, and one word on the screen. Runs where flags are parsed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from refine_wrapper.core.planner import Planner
from refine_wrapper.errors import BudgetError, ConfigError, PromptError
from refine_wrapper.hosts.budget import check_room, matched_batch_size, matched_group_size
from refine_wrapper.hosts.objectives import settings_on
from refine_wrapper.hosts.start import HostFacts, announce, check_start, num_context, with_absolute_paths
from refine_wrapper.plugins.manager import Plugins
from refine_wrapper.settings.config import RefineConfig
from refine_wrapper.settings.sources import LAUNCH_VARIABLE, resolve
from refine_wrapper_openrlhf.objectives import OWN_DYNAMIC_SAMPLING, apply_objective
from refine_wrapper_openrlhf.request import RunSettings

GROUP_ESTIMATORS = ("rloo", "reinforce_baseline", "group_norm", "dr_grpo")
"""Advantage estimators with a baseline per prompt: with one refinement all advantages would be 0."""


def prepare(parsed: Any, flags: Mapping[str, Any]) -> None:
    """Resolve the settings; if they are active, check the parsed flags and make the run a refined one.

    Args:
        parsed: The namespace of OpenRLHF's parser, with dots in its names; changed in place.
        flags: The settings that were given as flags.

    Raises:
        ConfigError, BudgetError: With what to write instead, before a cluster or a model is started.
    """
    config = with_absolute_paths(resolve(flags=flags))
    options = vars(parsed)
    config.refuse_dynamic_sampling(*OWN_DYNAMIC_SAMPLING)
    if config.objective is None and not config.active:
        return
    plugins = Plugins(config.plugin_modules)
    if config.objective is not None:
        _take_objective(options, config, plugins)
    if not config.active:
        return
    config.check_pipelined("OpenRLHF")
    check_reward(options)
    plain = options["rollout.n_samples_per_prompt"]
    context = num_context(config, plain, plugins)
    if config.match_budget and context:
        _match_budget(options, context)
    facts = _facts(options, plain)
    check_group(options)
    check_batch(options)
    check_start(facts, config, plugins)
    _check_lengths(options, config, plugins)
    reward_urls = tuple(options["reward.remote_url"].split(","))
    settings = RunSettings(config.model_dump(mode="json"), reward_urls, os.environ.get(LAUNCH_VARIABLE))
    options["refine.settings"] = json.dumps(settings.to_json())  # a mapping would be made a namespace by the host
    options["train.agent_func_path"] = str(Path(__file__).with_name("launched_agent.py"))
    _swap_generator()
    announce(facts, config, plugins, *_notes(options))


def _facts(options: Mapping[str, Any], plain: int) -> HostFacts:
    """What the start-up of all hosts must know of this run."""
    level, enabled = "algo.advantage.is_correction_level", "algo.advantage.is_correction_enable"
    corrections: dict[str, str] = {}
    if options.get(level, "off") != "off":
        corrections[f"--{level} {options[level]}"] = f"--{level} off"
    if options.get(enabled):  # before 0.11.2
        corrections[f"--{enabled}"] = f"no --{enabled}"
    return HostFacts(
        host="openrlhf",
        title="OpenRLHF",
        group_size=options["rollout.n_samples_per_prompt"],
        plain_group_size=plain,
        group_size_setting="--rollout.n_samples_per_prompt",
        match_budget="--refine.match_budget, which shrinks --rollout.n_samples_per_prompt and --train.batch_size",
        evaluation_size=options["eval.n_samples_per_prompt"] if options["eval.dataset"] else None,
        evaluation_setting="--eval.n_samples_per_prompt",
        corrections=corrections,
    )


def _notes(options: Mapping[str, Any]) -> list[str]:
    """What else is said on the screen."""
    group_size, batch = options["rollout.n_samples_per_prompt"], options["train.batch_size"]
    notes = [f"--rollout.n_samples_per_prompt {group_size} --train.batch_size {batch}"]
    if not options["rollout.max_new_tokens"]:
        notes.append(
            f"--rollout.max_new_tokens is not set: drafts and the room for answers are half of --data.max_len "
            f"{options['data.max_len']}."
        )
    return notes


def _take_objective(options: dict[str, Any], config: RefineConfig, plugins: Plugins) -> None:
    """Have the host train the named objective, whether it is refined or not, and say so."""
    name = str(config.objective)
    objective = settings_on("openrlhf", name, plugins)
    apply_objective(options, name, objective)
    missing = f"; not set: {objective.missing}" if objective.missing else ""
    click.echo(f"refine-wrapper: objective={name}{missing}.", err=True)


def check_reward(options: Mapping[str, Any]) -> None:
    """Drafts need a reward that can be asked for one sample, without the prompt that the sample was written under.

    Raises:
        ConfigError: For an agent file, a reward-model actor, or a reward file that is not there.
    """
    if options["train.agent_func_path"]:
        raise ConfigError(
            "refine: --train.agent_func_path cannot be refined from outside: such an agent scores its own samples, and "
            "would see the draft in the prompt. For a single-turn agent leave the flag out and give the reward as "
            "--reward.remote_url; or build the agent with refine_wrapper_openrlhf.make_agent_executor and start "
            "openrlhf.cli.train_ppo_ray itself."
        )
    urls = options["reward.remote_url"]
    if not urls:
        model = options["reward.model_name_or_path"] or "MODEL"
        raise ConfigError(
            "refine: a reward model inside the trainer (--reward.model_name_or_path) cannot score drafts, and would "
            "read the draft as part of a refinement. Serve it instead: `python -m openrlhf.cli.serve_rm "
            f"--reward.model_name_or_path {model} --port 5000`, and pass --reward.remote_url "
            "http://HOST:5000/get_reward. Or pass a file with reward_func: --reward.remote_url reward.py."
        )
    first = urls.split(",")[0]
    if first.endswith(".py") and not Path(first).is_file():
        raise ConfigError(f"refine: --reward.remote_url: there is no file {first!r} (looked in {os.getcwd()!r}).")


def check_group(options: Mapping[str, Any]) -> None:
    """Refuse a group estimator with one refinement.

    Raises:
        BudgetError: With the number to set.
    """
    estimator, group_size = options["algo.advantage.estimator"], options["rollout.n_samples_per_prompt"]
    if estimator in GROUP_ESTIMATORS and group_size < 2:
        raise BudgetError(
            f"refine: --algo.advantage.estimator {estimator} compares the samples of a prompt that are trained, and "
            f"--rollout.n_samples_per_prompt {group_size} leaves nothing to compare. Set "
            "--rollout.n_samples_per_prompt to 2 or more, or use an estimator without groups (reinforce, gae)."
        )


def check_batch(options: Mapping[str, Any]) -> None:
    """Refuse a train batch larger than a rollout: OpenRLHF would step once in several rollouts, without a word.

    Raises:
        BudgetError: With the numbers to set.
    """
    group_size, prompts = options["rollout.n_samples_per_prompt"], options["rollout.batch_size"]
    rows, batch = group_size * prompts, options["train.batch_size"]
    if batch > rows:
        raise BudgetError(
            f"refine: a rollout has --rollout.batch_size {prompts} x --rollout.n_samples_per_prompt {group_size} = "
            f"{rows} samples to train on, fewer than --train.batch_size {batch}: only every "
            f"{-(-batch // rows)}th rollout would update the policy. Set --train.batch_size to {rows} or a divisor of "
            "it."
        )
    if rows % batch:
        click.echo(
            f"refine-wrapper: --train.batch_size {batch} does not divide the {rows} samples of a rollout; the last "
            "update of each is smaller. Divisors do.",
            err=True,
        )


def _match_budget(options: dict[str, Any], num_context: int) -> None:
    """Take what is not trained out of the group, and the same share out of the train batch: as many updates as before.

    Raises:
        BudgetError: If the numbers do not come out whole, or leave the policy's processes without a micro-batch each.
    """
    smallest = 2 if options["algo.advantage.estimator"] in GROUP_ESTIMATORS else 1
    plain = options["rollout.n_samples_per_prompt"]
    batch = matched_batch_size(
        options["train.batch_size"], plain, num_context, setting="--train.batch_size", smallest=smallest
    )
    ranks = options["actor.num_nodes"] * options["actor.num_gpus_per_node"]
    ranks //= options["ds.ring_attn_size"] * options["ds.tensor_parallel_size"]
    micro = options["train.micro_batch_size"]
    if batch % (micro * max(1, ranks)):
        raise BudgetError(
            f"refine: match_budget makes --train.batch_size {options['train.batch_size']} into {batch}, and DeepSpeed "
            f"needs a multiple of --train.micro_batch_size {micro} x {ranks} processes = {micro * ranks}. Lower "
            "--train.micro_batch_size, or raise --train.batch_size."
        )
    options["train.batch_size"] = batch
    options["rollout.n_samples_per_prompt"] = matched_group_size(plain, num_context, smallest=smallest)


def _check_lengths(options: Mapping[str, Any], config: RefineConfig, plugins: Plugins) -> None:
    """Refuse lengths that hold no q', and build all that settings name (mode, selector, template, plugins) once."""
    from refine_wrapper_openrlhf.call import make_room

    max_length = options["data.max_len"]
    answer_tokens = options["rollout.max_new_tokens"] or max(1, max_length // 2)
    room = make_room(_tokenizer(options), max_length, answer_tokens)
    planner = Planner(config, room, plugins)
    question = "?"
    if options["data.apply_chat_template"]:
        question = room.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    try:
        overhead = planner.prompts.overhead_tokens(question)
    except PromptError:
        return  # such prompts stay plain, and are counted as refine/fallbacks/unsupported_prompt
    check_room(
        room.max_prompt_tokens,
        overhead_tokens=overhead,
        draft_tokens=config.draft_tokens,
        answer_tokens=answer_tokens,
        model_setting="--data.max_len",
        answer_setting="--rollout.max_new_tokens",
    )


def _tokenizer(options: Mapping[str, Any]) -> Any:
    """The policy's, as the host loads it."""
    from openrlhf.utils.utils import get_tokenizer

    def load() -> Any:
        model, fast = options["actor.model_name_or_path"], not options["data.disable_fast_tokenizer"]
        return get_tokenizer(model, None, "left", None, use_fast=fast)

    if not options["use_ms"]:
        return load()
    # The host turns to ModelScope after its flags are parsed, which is now.
    from modelscope.utils.hf_util.patcher import patch_context

    with patch_context():
        return load()


def _swap_generator() -> None:
    """Upstream's trainers find the class of their samples generator among the names of their own modules.

    Doing it here, where the command runs, is enough: Ray ships a decorated actor class by value, and its globals with
    it, so the trainer's process gets this class by name.
    """
    from openrlhf.trainer import ppo_trainer, ppo_trainer_async

    from refine_wrapper_openrlhf.generator import RefineSamplesGenerator

    for module in (ppo_trainer, ppo_trainer_async):
        module.SamplesGenerator = RefineSamplesGenerator
