"""Every shape in which prompts reach TRL: text, conversations, conversations already rendered as text, the user's template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from refine_testing.rewards import RecordingReward
from refine_testing.tiny import CHATML, tiny_tokenizer
from refine_testing.trl_runs import IMPROVE, appended, chat_data, check_refined, make, plain_data, turned

pytestmark = [pytest.mark.timeout(120), pytest.mark.oldest]

SYSTEM = "You are a careful clerk."
HISTORY = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "What is it?"}]


def rendered_data(data: Dataset, **chat: Any) -> Dataset:
    """The same conversations as text, rendered by the user before training."""
    tokenizer = tiny_tokenizer()
    return data.map(
        lambda row: {
            "text": tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True, **chat)
        },
        remove_columns="prompt",
    ).rename_column("text", "prompt")


def with_history(data: Dataset) -> Dataset:
    rows = [{**row, "prompt": [*HISTORY, *row["prompt"]]} for row in data]
    return Dataset.from_list(rows)


CONVERSATIONS = {
    "bare": chat_data(),
    "system": chat_data(system=SYSTEM),
    "history": with_history(chat_data()),
}


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_text(tmp_path: Path, algorithm: str) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, algorithm=algorithm, reward_funcs=reward, train_dataset=plain_data())
    trainer.train()
    found = check_refined(trainer, reward, num_batches=2)
    assert all(question.startswith("What is ") for batch in found for question in batch.questions_P)


def test_text_with_turns(tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, reward_funcs=reward, refine_template="turns")
    trainer.train()
    check_refined(trainer, reward, num_batches=2, refine=lambda q, draft: f"{q}{draft}\n\n{IMPROVE}\n\n")


@pytest.mark.parametrize("template", ["append", "turns"])
@pytest.mark.parametrize("shape", list(CONVERSATIONS))
def test_conversations(tmp_path: Path, shape: str, template: str) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=CONVERSATIONS[shape], refine_template=template)
    trainer.train()
    found = check_refined(trainer, reward, num_batches=2, refine={"append": appended, "turns": turned}[template])
    for question in found[0].questions_P:
        assert question[-1]["content"].endswith("?")
        assert (question[0]["content"] == SYSTEM) is (shape == "system")


def test_conversations_with_rloo(tmp_path: Path) -> None:
    reward = RecordingReward()
    trainer = make(tmp_path, algorithm="rloo", reward_funcs=reward, train_dataset=chat_data(system=SYSTEM))
    trainer.train()
    check_refined(trainer, reward, num_batches=2)


@pytest.mark.parametrize("template", ["append", "turns"])
@pytest.mark.parametrize("shape", list(CONVERSATIONS))
def test_conversations_rendered_before(
    tmp_path: Path, shape: str, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """q' is the text that the chat template makes of the refined conversation, so the draft is in a turn of its own kind."""
    reward = RecordingReward()
    data = rendered_data(CONVERSATIONS[shape])
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=data, refine_template=template)
    assert "Prompts are chats already rendered as text" in capsys.readouterr().err
    trainer.train()
    conversation_of = dict(zip(data["prompt"], CONVERSATIONS[shape]["prompt"], strict=True))
    refine: Any = {"append": appended, "turns": turned}[template]

    def as_text(question: str, draft: str) -> str:
        return tiny_tokenizer().apply_chat_template(
            refine(conversation_of[question], draft), tokenize=False, add_generation_prompt=True
        )

    check_refined(trainer, reward, num_batches=2, refine=as_text)


THINKING = CHATML.removesuffix("{% endif %}") + "{% if not thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("rendered_before", [False, True])
def test_chat_template_kwargs(tmp_path: Path, thinking: bool, rendered_before: bool) -> None:
    """Variables of the chat template hold for q' too, and a rendered prompt is recognised by them."""
    reward, tokenizer = RecordingReward(), tiny_tokenizer()
    tokenizer.chat_template = THINKING
    data = chat_data(system=SYSTEM)
    texts = {}
    if rendered_before:
        for prompt in data["prompt"]:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, thinking=thinking)
            texts[text] = prompt
        data = data.remove_columns("prompt").add_column("prompt", list(texts))
    trainer = make(
        tmp_path,
        reward_funcs=reward,
        processing_class=tokenizer,
        train_dataset=data,
        chat_template_kwargs={"thinking": thinking},
        refine_template="turns",
    )
    trainer.train()

    def refine(question: Any, draft: str) -> Any:
        if not rendered_before:
            return turned(question, draft)
        return tokenizer.apply_chat_template(
            turned(texts[question], draft), tokenize=False, add_generation_prompt=True, thinking=thinking
        )

    check_refined(trainer, reward, num_batches=2, refine=refine, thinking=thinking)


@pytest.mark.parametrize("conversational", [False, True])
def test_template_file(tmp_path: Path, conversational: bool) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Old try: {draft}\nAsked: {question} Write {{x}} in \\boxed{}.\n", encoding="utf-8")
    reward = RecordingReward()
    data = chat_data() if conversational else plain_data()
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=data, refine_template=str(file))
    trainer.train()

    def refine(question: Any, draft: str) -> Any:
        if isinstance(question, str):
            return f"Old try: {draft}\nAsked: {question} Write {{x}} in \\boxed{{}}."
        return [{"role": "user", "content": refine(question[0]["content"], draft)}]

    check_refined(trainer, reward, num_batches=2, refine=refine)


def test_template_file_with_turns(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "turns: ['{question}', 'I said: {draft}', 'Again.']\ntext: '{question} / {draft} /'", encoding="utf-8"
    )
    reward = RecordingReward()
    trainer = make(tmp_path, reward_funcs=reward, train_dataset=chat_data(), refine_template=str(file))
    trainer.train()

    def refine(question: Any, draft: str) -> Any:
        return [
            *question,
            {"role": "assistant", "content": f"I said: {draft}"},
            {"role": "user", "content": "Again."},
        ]

    check_refined(trainer, reward, num_batches=2, refine=refine)
