"""Loads what answers questions: weights and adapters with their tokenizer and chat template."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import BUNDLED, brings_tokenizer, load_tokenizer, tokenizer_name
from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.inference.generate import LanguageModel
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.inference.sharing import SharedMatrices
from minimind_sft.inference.stopping import named_stop_ids
from minimind_sft.matching import base_notices, check_adapters, check_template, check_tokenizer
from minimind_sft.model.adapters.adapter import Adapter
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.adapters.reading import read_adapters
from minimind_sft.model.build import check_shape, stretched
from minimind_sft.model.finding import find_weights
from minimind_sft.model.loaded import Weights
from minimind_sft.model.quantized import base_model
from minimind_sft.model.weights import read_weights
from minimind_sft.settings.chat import ChatRuntimeSettings, WeightSettings
from minimind_sft.terminal import counted


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to decode, and what belongs to it.

    template: None if the weights have only been pretrained, unless `load` was told that a template is needed.
    stop_ids: tokens that end an answer, besides the template's end of turn.
    adapters: those applied, with their weights.
    """

    path: Path
    model: LanguageModel
    tokenizer: Tokenizer
    template: ChatTemplate | None
    stop_ids: frozenset[int]
    adapters: Sequence[tuple[Adapter, float]]
    is_minimind: bool
    """Whether the weights are MiniMind's, whose .pth files have no sidecar."""
    trained_length: int | None = None
    """Tokens of the longest document that the weights were trained on, if the sidecar says so and nothing else was
    trained on top of them."""

    @property
    def frames_documents(self) -> bool:
        """Whether it was pretrained on documents between bos and eos: MiniMind's and Llama's models were."""
        return self.tokenizer.adds_bos or self.is_minimind


def load(chosen: WeightSettings, runtime: ChatRuntimeSettings, say: Callable[[str], None],
         needs_template: bool = False, flags: tuple[str, str] = ("--weight", "--lora_weight"),
         shared: SharedMatrices | None = None) -> Loaded:
    """Loads the weights and adapters that the settings name; passes on notices about them, a line each.

    Args:
        needs_template: also for weights that have only been pretrained and would continue text.
        flags: those that name the weights and the adapters, for messages.
        shared: the matrices of other models, which this one uses where they are equal.

    Raises:
        UserError: if files are missing, or do not belong together.
    """
    def notify(label: str, lines: Iterable[str]) -> None:
        for line in lines:
            say(f"{label:<12}{line}")

    path = find_weights(chosen.weight, chosen.save_dir, flag=flags[0], hidden_size=chosen.hidden_size,
                        use_moe=chosen.use_moe, tokenizer=lambda: load_tokenizer(chosen.tokenizer_path).fingerprint)
    tokenizer = load_tokenizer(chosen.tokenizer_path, path)
    weights = read_weights(path)
    notify("tokenizer", tokenizer.notices)
    notify("weights", (*weights.notices, *_check_weights(chosen, weights, tokenizer)))
    adapters = read_adapters(chosen.lora_weight, chosen.save_dir, weights, flags[1])
    for adapter, weight in adapters:
        notify("adapter", (f"{adapter.path}: {counted(len(adapter.changes), 'projection')}, weight {weight:g}",
                           *adapter.notices, *base_notices(adapter, runtime.quantize)))
    template = None
    if needs_template or adapters or not _is_pretrained_only(weights, tokenizer, chosen):
        template = make_template(tokenizer, chosen.chat_template, chosen.end_of_turn)
        check_template(weights, template, chosen.chat_template, chosen.end_of_turn)
        notify("template", template.notes)
    check_adapters([adapter for adapter, _ in adapters], weights, tokenizer, template, chosen.chat_template,
                   chosen.end_of_turn)
    model = _build_model(runtime, weights.without_padding(tokenizer.vocab_size), adapters,
                         chosen.inference_rope_scaling, shared)
    return Loaded(path, model, tokenizer, template, named_stop_ids(path, tokenizer), adapters,
                  is_minimind=weights.sidecar is None and not brings_tokenizer(path),
                  trained_length=None if adapters else _trained_length(weights.sidecar or {}))


def _trained_length(sidecar: dict[str, Any]) -> int | None:
    try:
        return int(sidecar["training"]["experience"]["longest"])
    except (KeyError, TypeError, ValueError):  # written by another project, or an older version
        return None


def _check_weights(settings: WeightSettings, weights: Weights, tokenizer: Tokenizer) -> list[str]:
    """Compares the weights with flags and tokenizer; returns what the user should know.

    Raises:
        UserError: if the weights disagree with the flags, or were trained with another tokenizer.
    """
    check_shape(settings, weights.config, weights.path)
    # In MiniMind, `--load_from model` names its own tokenizer; the folder of that name here holds the bundled one.
    is_ours = settings.load_from is not None and tokenizer_name(settings.load_from) == BUNDLED
    return check_tokenizer(weights, tokenizer, None if is_ours else settings.tokenizer_path)


def _build_model(runtime: ChatRuntimeSettings, weights: Weights, adapters: Sequence[tuple[Adapter, float]],
                 stretch: bool, shared: SharedMatrices | None) -> LanguageModel:
    """Builds the model in its fast form for decoding; `stretch` applies YaRN for longer contexts."""
    if stretch:
        weights = replace(weights, config=stretched(weights.config, weights.path))
    device = resolve_device(runtime.device)
    model = base_model(weights, runtime.quantize)
    if adapters:
        apply_adapters(model, adapters)
    return ready_to_decode(model.to(device, resolve_dtype(runtime.dtype, device)).eval(), shared)


def _is_pretrained_only(weights: Weights, tokenizer: Tokenizer, settings: WeightSettings) -> bool:
    """Says whether the weights have seen no chats: by the sidecar, like MiniMind by the file's name, or because a base
    model has no chat template."""
    if weights.sidecar is not None:
        return weights.sidecar.get("stage") == "pretrain"
    if brings_tokenizer(weights.path):
        return not (tokenizer.chat_template or tokenizer.named_templates or settings.chat_template)
    return "pretrain" in weights.path.name
