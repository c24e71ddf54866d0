"""Settings of scripts/evaluate.py: which weights are evaluated, on what, and where the results go."""

from dataclasses import dataclass

from minimind_sft.settings.chat import ChatRuntimeSettings, QuestionSettings, SamplingSettings, WeightSettings
from minimind_sft.settings.data import DataSettings
from minimind_sft.settings.spec import same_setting, setting


@dataclass(frozen=True)
class EvaluatedConversationsSettings:
    """Which conversations to measure the loss on, and how to answer their last questions."""

    data_path: tuple[str, ...] = same_setting(
        DataSettings, "data_path", default=(), decides=None, recorded_as=None,
        help="conversations: files and globs of any kind that docs/data.md lists")
    answers: bool = setting(
        True, "answer the last question of each conversation greedily and score the answers; 0: only the losses")
    max_new_tokens: int = same_setting(SamplingSettings, "max_new_tokens")
    open_thinking: bool = setting(False, "let the model think before it answers; its thoughts are not compared")
    batch_size: int = same_setting(
        QuestionSettings, "batch_size", help="questions to answer at once; affects speed and memory, never an answer")


@dataclass(frozen=True)
class ResultsSettings:
    """Where the results go."""

    out: str | None = setting(
        None, "JSON file for the results; beside it, <name>.answers.jsonl holds the answers, from which an interrupted "
              "evaluation continues", endings=(".json",))
    overwrite: bool = setting(
        False, "evaluate again from the start; results and answers in --out move to FILE.previous")


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of scripts/evaluate.py."""

    weights: WeightSettings = WeightSettings()
    conversations: EvaluatedConversationsSettings = EvaluatedConversationsSettings()
    runtime: ChatRuntimeSettings = ChatRuntimeSettings()
    results: ResultsSettings = ResultsSettings()
