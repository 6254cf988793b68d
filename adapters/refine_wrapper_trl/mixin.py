"""The seam: three private methods of TRL's trainers, stable in name and arguments from 1.0 to 1.16.

``_generate_and_score_completions`` only notes which data set rows a batch has. ``_generate`` samples the rounds of its
groups. ``_calculate_rewards`` scores against q, as the host's caller keeps its own ``prompts``; it is wrapped on the
trainer itself for the length of a batch, outside of what any subclass makes of it. ``get_batch_samples`` (transformers)
lets draft-ahead see the next batch; without that setting it is passed through.
No host method is copied: TRL's own GRPOWithReplayBufferTrainer did that and silently degenerated (trl #6804).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refine_wrapper.errors import SeamError
from refine_wrapper_trl.batches import Batches


class Seam:
    """What refinement overrides in a trainer. The launch hook puts it into TRL's own classes.

    A class of its own beside :class:`RefineMixin`, so that ``class Mine(RefineMixin, GRPOTrainer)`` has an order of
    methods also where the launch hook got to ``GRPOTrainer`` before.
    """

    refine_settings: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed, by refine(cls, **settings)
    _refine_batches: Batches | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refine_start()

    def _refine_start(self) -> None:
        self._refine_batches = Batches.of(self, self.refine_settings)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        host: Any = super()
        batches = self._refine_batches
        if batches is None or not batches.applies():
            return host._generate_and_score_completions(inputs)
        with batches.batch(inputs) as batch:
            return batches.leave_untrained(batch, host._generate_and_score_completions(inputs))

    def _generate(self, prompts: list[Any]) -> Any:
        host: Any = super()
        batches = self._refine_batches
        if batches is None or batches.sampling_context or not batches.applies():
            return host._generate(prompts)
        if not batches.in_batch:
            raise SeamError(
                f"refine: {type(self).__name__} generates without calling _generate_and_score_completions of TRL's "
                "trainer, so its drafts cannot be scored. It must call super()._generate_and_score_completions(inputs)."
            )
        return batches.generate(host._generate, prompts)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        host: Any = super()
        batches = self._refine_batches
        seen = batches.look_ahead(epoch_iterator) if batches else epoch_iterator
        return host.get_batch_samples(seen, *args, **kwargs)


class RefineMixin(Seam):
    """Goes before a TRL trainer class: ``class Mine(RefineMixin, GRPOTrainer)``, or :func:`refine_wrapper_trl.refine`.

    Raises:
        ConfigError, BudgetError, TemplateError, PluginError: At construction, before anything is sampled.
        SeamError: If a subclass bypasses the methods that refinement stands on.
    """
