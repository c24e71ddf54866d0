"""Settings of eval_llm.py: which weights answer what, and how."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from minimind_sft.errors import UserError
from minimind_sft.paths import in_repository
from minimind_sft.settings.data import DataSettings, SFTDataSettings
from minimind_sft.settings.foreign_flags import holds_model, load_from_problems
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.runtime import DEVICE_HELP, DTYPES
from minimind_sft.settings.spec import MAX_SEED, flags_of, names_of, same_setting, setting, value_problems


@dataclass(frozen=True)
class WeightSettings:
    """The weights to chat with, and what belongs to them."""

    weight: str = setting(
        "full_sft", "weights to chat with: a NAME (reads <save_dir>/NAME_*.pth or .safetensors), or the path of such a "
                    "file, of a Hugging Face folder or of a GGUF file", kind="path")
    save_dir: str = setting(in_repository("out"), "folder of the weights", kind="path")
    tokenizer_path: str | None = same_setting(DataSettings, "tokenizer_path")
    load_from: str | None = setting(
        None, "MiniMind's name for --tokenizer_path or, if the folder holds a model, for --weight", kind="path")
    lora_weight: tuple[str, ...] = setting(
        (), "adapters to apply, by NAME (reads <save_dir>/lora_NAME_*.safetensors) or path; give each a weight to mix "
            "them, as in style:0.5 calls")
    chat_template: str | None = same_setting(
        SFTDataSettings, "chat_template", help="chat template that the weights were trained with, if not the "
                                               "tokenizer's own: a Jinja file, chatml or alpaca")
    end_of_turn: str | None = same_setting(
        SFTDataSettings, "end_of_turn", help="the --end_of_turn that the weights were trained with")
    hidden_size: int | None = setting(
        None, "hidden size, to choose among several weights of that name", min=1, decides="shape")
    num_hidden_layers: int | None = setting(
        None, "number of layers, for weights without a sidecar", min=1, decides="shape")
    use_moe: bool | None = setting(
        None, "mixture of experts, to choose among several weights of that name", decides="shape")
    inference_rope_scaling: bool = setting(
        False, "stretch RoPE with YaRN, for contexts longer than those in training")

    def __post_init__(self) -> None:
        if [name.lower() for name in self.lora_weight] == ["none"]:  # MiniMind's default
            object.__setattr__(self, "lora_weight", ())
        if not self.load_from:
            return
        name = "weight" if holds_model(self.load_from) else "tokenizer_path"
        if getattr(self, name) == getattr(type(self), name):  # its default
            object.__setattr__(self, name, self.load_from)

    def problems(self) -> list[str]:
        return load_from_problems(self.load_from, self.weight, self.tokenizer_path)


@dataclass(frozen=True)
class ConversationSettings:
    """The messages and tools that the model sees before a question."""

    system: str | None = setting(None, "system turn that opens the conversation", decides="messages")
    tools: str | None = setting(
        None, "JSON file with a list of functions that the model may call", kind="path", decides="messages")
    historys: int | None = setting(
        None, "earlier messages that the model sees, as MiniMind counts them: a question and its answer are two, an "
              "odd number counts as one less; 0: none, -1: all that fit (default: -1 if you type, 0 for --prompt)")
    open_thinking: bool = setting(False, "let the model think before it answers")

    def problems(self) -> list[str]:
        if self.historys is None or self.historys >= -1:
            return []
        return [f"--historys is {self.historys}, expected -1 (all that fit), 0 or more"]


@dataclass(frozen=True)
class QuestionSettings:
    """Which questions to answer; without --prompt and --score, those you type."""

    prompt: tuple[str, ...] = setting((), "answer these prompts one after the other, then exit", decides="messages")
    score: tuple[str, ...] = setting(
        (), "files of conversations, as for --data_path: answer the last question of each greedily, compare, and "
            "report exact matches per kind", kind="path")
    score_out: str | None = setting(None, "JSONL file for the questions and answers of --score, expected and given",
                                    kind="path")
    batch_in: str | None = setting(
        None, "file of conversations, or of questions alone: answer the last question of each row, then exit",
        kind="path")
    batch_out: str | None = setting(
        None, "JSONL file for the rows of --batch_in with the answers; an interrupted batch goes on there",
        endings=(".jsonl",))
    batch_size: int = setting(32, "questions that --score or --batch_in answers at once", min=1)
    show_speed: bool = setting(True, "show tokens/s and the use of the context after each answer")
    keep_history: bool = setting(True, "keep what you type for the next chat, where the arrow keys recall it")

    def problems(self) -> list[str]:
        found = []
        if self.score_out and not self.score:
            found.append("--score_out needs --score, whose results it holds")
        if bool(self.batch_in) != bool(self.batch_out):
            found.append("--batch_in and --batch_out need each other")
        if self.batch_in and self.score:
            found.append("--batch_in does not go with --score")
        return found


@dataclass(frozen=True)
class SamplingSettings:
    """How the next token is chosen.

    In this order, as in CTRL and Hugging Face's `generate`: scores of tokens that have occurred are divided by
    `repetition_penalty` where positive and multiplied where negative; all scores are divided by `temperature`; the
    best `top_k` stay; of those, the fewest whose probabilities sum to at least `top_p` stay. The defaults take the
    best token.

    Raises:
        UserError: for a value out of range.
    """

    max_new_tokens: int = setting(512, "maximum tokens of an answer", min=1)
    temperature: float = setting(0.0, "divides the scores; 0: always the most likely token", min=0)
    top_k: int = setting(0, "sample from this many most likely tokens; 0: all", min=0)
    top_p: float = setting(
        1.0, "sample from the fewest tokens whose probabilities sum to this", above=0, max=1)
    repetition_penalty: float = setting(1.0, "above 1: tokens that already occurred become less likely", min=1e-3,
                                        max=1e3)
    seed: int = setting(0, "seed of the sampling", min=-2**63, max=2**63 - 1)

    def __post_init__(self) -> None:
        if found := value_problems(flags_of(self)):
            raise UserError("; ".join(found))


CHAT_SAMPLING = SamplingSettings(temperature=0.85, top_p=0.85, seed=42)
"""How a chat chooses tokens if neither flags nor the model say otherwise."""


def _left_to_model(name: str) -> Any:
    """Makes the setting of a chat whose default is the model's own."""
    fallback = getattr(CHAT_SAMPLING, name)
    about = {flag.name: flag.setting for flag in flags_of(SamplingSettings)}[name]
    return same_setting(SamplingSettings, name, default=None,
                        help=f"{about.help} (default: as the model's generation_config.json says, else {fallback:g})")


@dataclass(frozen=True)
class ChatSamplingSettings:
    """How the next token is chosen; flags come before what the model's generation_config.json says."""

    max_new_tokens: int = same_setting(SamplingSettings, "max_new_tokens")
    temperature: float | None = _left_to_model("temperature")
    top_k: int | None = _left_to_model("top_k")
    top_p: float | None = _left_to_model("top_p")
    repetition_penalty: float | None = _left_to_model("repetition_penalty")
    seed: int = same_setting(SamplingSettings, "seed", default=CHAT_SAMPLING.seed, min=-MAX_SEED, max=MAX_SEED)

    def complete(self, defaults: SamplingSettings = CHAT_SAMPLING) -> SamplingSettings:
        """Returns the settings, with those that no flag gave from `defaults`."""
        return replace(defaults, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class ChatRuntimeSettings:
    """Where the model computes."""

    device: str = setting("auto", DEVICE_HELP)
    dtype: str = setting("float32", "precision of the weights while answering", choices=DTYPES)
    quantize: str = same_setting(
        LoraSettings, "quantize", help="keep the matrices in 4 bits, as train_lora.py --quantize does (needs "
                                       "bitsandbytes): nf4")


@dataclass(frozen=True)
class ChatSettings:
    """Settings of eval_llm.py."""

    weights: WeightSettings = WeightSettings()
    questions: QuestionSettings = QuestionSettings()
    conversation: ConversationSettings = ConversationSettings()
    sampling: ChatSamplingSettings = ChatSamplingSettings()
    runtime: ChatRuntimeSettings = ChatRuntimeSettings()

    def problems(self) -> list[str]:
        taking = "--score" if self.questions.score else "--batch_in" if self.questions.batch_in else None
        if not taking:
            return []
        return [f"--{name} does not go with {taking}, which takes the conversations as the rows have them"
                for group in (self.questions, self.conversation)
                for name in names_of(group, "messages") if getattr(group, name)]
