"""EvaluationSettings: everything about a held-out measurement but the model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refine_wrapper.errors import ConfigError
from refine_wrapper.settings.config import explain

SINGLE_SHOT, WITH_DRAFT, WITH_ORACLE_DRAFT = "single_shot", "with_draft", "with_oracle_draft"
MEASURES = {
    SINGLE_SHOT: "sampled on the question, as the method is evaluated",
    WITH_DRAFT: "sampled on the question with one own draft, whatever that draft is worth; no label is used",
    WITH_ORACLE_DRAFT: "sampled on the question with the draft that the reward chose among N: an oracle, for the "
    "reward looks at the held-out label; what training conditions on, and no accuracy that can be had in use",
}
"""Name of each measure -> what it is."""


class EvaluationSettings(BaseModel):
    """Settings of a measurement; how q' is built and which draft the oracle takes comes from ``RefineConfig``.

    Frozen, and without the model, so that one section ``evaluate:`` of a plan serves many models.

    Raises:
        ConfigError: For an unknown name (with the nearest valid one), a bad value, or values that exclude each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    data: str = Field(
        "",
        description="Problems: a file (.jsonl, .json, .csv, .parquet), or reasoning-gym:TASK?seed=1&size=200.",
    )
    prompt_field: str | None = Field(
        None, description="Field with the question, text or messages; a.b looks inside. Unset: prompt, question ..."
    )
    answer_field: str | None = Field(
        None, description="Field with the right answer. Unset: answer, solution, ground_truth, label ..."
    )
    reward: str | None = Field(
        None,
        description="A registered reward (math, format, reasoning-gym), module:function or file.py:function. Unset: "
        "reasoning-gym for its tasks, else math.",
    )
    correct_at: float | None = Field(
        None, description="Rewards from here on count as right. Unset: refine.max_reward, the highest there is."
    )
    draft_choice: Literal["own", "oracle", "both", "none"] = Field(
        "own",
        description="Also measure with a draft in the prompt: own, the model's own, unseen by the reward; oracle, the "
        "one that the training reward selects among N, which uses the held-out label; both; none.",
    )
    samples: int = Field(4, ge=1, description="k, completions per problem and measure: avg@k, pass@j for j up to k.")
    temperature: float = Field(1.0, ge=0.0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Nucleus sampling.")
    top_k: int = Field(0, ge=0, description="Sample among the k likeliest tokens; 0: all.")
    max_new_tokens: int = Field(1024, ge=1, description="Most tokens of one completion, draft or answer.")
    seed: int = Field(0, ge=0, description="Seed of the sampling.")
    limit: int | None = Field(None, ge=1, description="Only the first so many problems.")
    system: str | None = Field(None, description="A system message before every question; asks for the chat template.")
    # Not yes and no: in YAML these are not text.
    chat: Literal["auto", "always", "never"] = Field(
        "auto", description="Chat template: auto, for questions that are messages; always, for text too; never."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict[str, Any], description="Variables of the chat template, e.g. enable_thinking: false."
    )
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="What generates. auto: vLLM where it is installed and there is a GPU, else transformers."
    )
    engine_options: dict[str, Any] = Field(
        default_factory=dict[str, Any],
        description="Handed to vllm.LLM or from_pretrained as they are, e.g. tensor_parallel_size: 2.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Completions that are sampled together. Unset: 64, with vLLM 1024."
    )
    max_model_tokens: int | None = Field(
        None, ge=1, description="Longest prompt and completion together. Unset: what the model's config says."
    )
    too_long: Literal["error", "skip"] = Field(
        "error", description="Questions that leave no room for max_new_tokens: refuse to start, or leave them out."
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).model_fields)) from None
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(
                f"refine: temperature = 0 gives the same completion {self.samples} times: set samples to 1 (--samples "
                "1), or a temperature above 0."
            )
        if self.system is not None and self.chat == "never":
            raise ConfigError("refine: a system message needs the chat template: leave out chat = never (--no-chat).")

    @property
    def with_own_draft(self) -> bool:
        """Whether accuracy with an own draft is measured."""
        return self.draft_choice in ("own", "both")

    @property
    def with_oracle_draft(self) -> bool:
        """Whether accuracy with a draft chosen by the reward is measured."""
        return self.draft_choice in ("oracle", "both")

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what is measured, in order."""
        drafted = ((WITH_DRAFT, self.with_own_draft), (WITH_ORACLE_DRAFT, self.with_oracle_draft))
        return (SINGLE_SHOT, *(name for name, measured in drafted if measured))

    def on_question(self, num_drafts: int) -> int:
        """Completions on q itself per problem: k, or N where the oracle chooses among more than k."""
        return max(self.samples, num_drafts) if self.with_oracle_draft else self.samples

    def completions(self, num_drafts: int) -> int:
        """All completions per problem. The samples on q are the drafts of the other measures as well."""
        return self.on_question(num_drafts) + self.samples * (len(self.measures) - 1)

    def replace(self, **changes: Any) -> EvaluationSettings:
        """A validated copy with some settings changed."""
        return EvaluationSettings(**{**self.model_dump(), **changes})
