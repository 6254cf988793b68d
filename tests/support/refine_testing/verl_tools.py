"""A user's file of tools (``multi_turn.function_tool_path``), and a format of calls that a random model can write."""

import os
from typing import Any

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool


@function_tool
def measure(text: str) -> str:
    """Measures a text.

    Args:
        text: What to measure.
    """
    with open(os.environ["REFINE_TESTING_TOOLS"], "a", encoding="utf-8") as file:
        file.write("called\n")
    return f"tool says {len(text)}"


@ToolParser.register("any_text")
class AnyText(ToolParser):
    """Whatever the model writes in its first turn is a call: a random model writes no JSON."""

    async def extract_tool_calls(self, responses_ids: list[int], tools: Any = None) -> tuple[str, list[FunctionCall]]:
        text = self.tokenizer.decode(responses_ids, skip_special_tokens=True)
        return text, [FunctionCall(name="measure", arguments='{"text": "' + "x" * len(responses_ids) + '"}')]
