"""Settings of scripts/evaluate.py: which weights are evaluated, on what, and where the results go."""

from dataclasses import dataclass

from minimind_sft.settings.chat import ChatRuntimeSettings, QuestionSettings, SamplingSettings, WeightSettings
from minimind_sft.settings.data import DataSettings
from minimind_sft.settings.spec import MAX_SEED, same_setting, setting


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
class ChoiceSettings:
    """Which multiple-choice questions to ask, and how."""

    choices: tuple[str, ...] = setting(
        (), "multiple-choice questions in the layout of MMLU, C-Eval or CMMLU, a file per subject: the most likely "
            "option is the answer", kind="path")
    scored_options: str = setting(
        "letters", "letters: the question lists its options, and the likelihood of their letters counts; texts: it "
                   "lists none, and the likelihood of their texts counts", choices=("letters", "texts"))
    few_shot: int = setting(0, "solved examples of the same subject before each question", min=0)
    few_shot_path: tuple[str, ...] = setting((), "files with these examples, in the same layout", kind="path")

    def problems(self) -> list[str]:
        found = []
        if bool(self.few_shot) != bool(self.few_shot_path):
            found.append("--few_shot and --few_shot_path go together: how many examples, and where they are")
        if (self.few_shot or self.few_shot_path) and not self.choices:
            found.append("--few_shot needs --choices, whose questions the examples come before")
        return found


@dataclass(frozen=True)
class TextSettings:
    """Which plain text to predict, as a measure of what was forgotten."""

    text_path: tuple[str, ...] = setting(
        (), "plain text to measure the perplexity of: a .txt file is one text, in other files each row's text is one",
        kind="path")
    text_context: int | None = setting(
        None, "tokens that the model reads at most (default: 1,024, or its context if that is less)", min=2)
    text_stride: int | None = setting(
        None, "tokens by which the window moves through a longer text; smaller: more context, slower (default: half of "
              "--text_context)", min=1)

    def problems(self) -> list[str]:
        if (self.text_context or self.text_stride) and not self.text_path:
            return ["--text_context and --text_stride need --text_path, whose text they are for"]
        return []


@dataclass(frozen=True)
class ComparisonSettings:
    """A second model to compare with, on the same rows."""

    against: str | None = same_setting(
        WeightSettings, "weight", default=None,
        help="weights to compare with, by NAME or path; differences are those from these weights to --weight")
    against_lora: tuple[str, ...] = setting(
        (), "adapters to apply to --against, as for --lora_weight; to see what an adapter changes, give --weight and "
            "--against the same weights, and only --lora_weight the adapter")
    blind: bool = setting(
        False, "vote between the answers of both, in the terminal, without knowing whose they are; needs --out, where "
               "the votes are kept")
    comparison_seed: int = setting(
        42, "decides the order of questions and answers under --blind, and what the bootstrap draws", min=0,
        max=MAX_SEED)

    def problems(self) -> list[str]:
        if self.against:
            return []
        return [f"--{name} needs --against" for name in ("against_lora", "blind") if getattr(self, name)]


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
    choices: ChoiceSettings = ChoiceSettings()
    texts: TextSettings = TextSettings()
    comparison: ComparisonSettings = ComparisonSettings()
    runtime: ChatRuntimeSettings = ChatRuntimeSettings()
    results: ResultsSettings = ResultsSettings()

    def problems(self) -> list[str]:
        if not self.comparison.blind:
            return []
        found = ["--blind needs --out, where the votes are kept"] if not self.results.out else []
        if not (self.conversations.data_path and self.conversations.answers):
            found.append("--blind needs --data_path, whose questions are answered")
        return found
