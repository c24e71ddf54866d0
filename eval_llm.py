"""Chats with a model in the terminal, answers given prompts, or scores it on questions.

    python eval_llm.py --weight full_sft
    python eval_llm.py --weight full_sft --prompt "Who are you?" "你是谁？"
    python eval_llm.py --weight full_sft --score dataset/sft_demo_heldout.jsonl
    python eval_llm.py --weight full_sft --lora_weight style:0.5 calls
    python eval_llm.py --weight pretrain --prompt "The capital of France"

Weights that have only been pretrained do not chat: they continue your text. --score still asks them its questions in
the chat template.
"""

import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.conversation import read_tools
from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import BUNDLED, brings_tokenizer, load_tokenizer, tokenizer_name
from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.errors import UserError, harmless, run_program
from minimind_sft.inference.chat import Chat, continue_text
from minimind_sft.inference.dialogue import converse, show
from minimind_sft.inference.generate import LanguageModel
from minimind_sft.inference.lowering import ready_to_decode
from minimind_sft.inference.scoring import (
    Row,
    check_output,
    make_question,
    read_scored_rows,
    report,
    score,
    write_output,
)
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
from minimind_sft.settings.chat import (
    ChatRuntimeSettings,
    ChatSettings,
    ConversationSettings,
    QuestionSettings,
    WeightSettings,
)
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.terminal import fitted, say


def main() -> int:
    settings = parse_flags(ChatSettings, description=__doc__)
    chosen, conversation = settings.weights, settings.conversation
    tools = read_tools(conversation.tools) if conversation.tools else None
    rows = scored_rows(settings.questions)
    path = find_weights(chosen.weight, chosen.save_dir, flag="--weight", hidden_size=chosen.hidden_size,
                        use_moe=chosen.use_moe, tokenizer=lambda: load_tokenizer(chosen.tokenizer_path).fingerprint)
    tokenizer = load_tokenizer(chosen.tokenizer_path, path)
    weights = read_weights(path)
    say_all("tokenizer", tokenizer.notices)
    say_all("weights", (*weights.notices, *check_weights(chosen, weights, tokenizer)))
    adapters = read_adapters(chosen.lora_weight, chosen.save_dir, weights, "--lora_weight")
    for adapter, weight in adapters:
        say_all("adapter", (f"{adapter.path}: {len(adapter.changes)} projections, weight {weight:g}", *adapter.notices,
                            *base_notices(adapter, settings.runtime.quantize)))
    stop_ids = named_stop_ids(path, tokenizer)
    continues = not adapters and is_pretrained_only(weights, tokenizer, chosen)
    template = None
    if rows or not continues:
        template = make_template(tokenizer, chosen.chat_template, chosen.end_of_turn)
        check_template(weights, template, chosen.chat_template, chosen.end_of_turn)
        say_all("template", template.notes)
    check_adapters([adapter for adapter, _ in adapters], weights, tokenizer, template, chosen.chat_template,
                   chosen.end_of_turn)
    model = build_model(settings.runtime, weights.without_padding(tokenizer.vocab_size), adapters,
                        stretch=chosen.inference_rope_scaling)
    if rows:
        return print_score(settings, rows, model, template, stop_ids)

    if template is None:
        tell_unused(chosen, conversation)
        framed = tokenizer.adds_bos or is_minimind(weights)
        return talk(settings.questions, f"{path.name} continues the text you type.",
                    lambda prompt: continue_text(model, tokenizer, prompt, settings.sampling, framed, stop_ids),
                    lambda: None)
    chat = Chat(model, tokenizer, template, settings.sampling, conversation.system, tools, conversation.historys,
                conversation.open_thinking, notify=say, stop_ids=stop_ids)
    chat.check_opening()
    return talk(settings.questions, f"{path.name} is listening.", chat.reply, chat.clear)


def talk(questions: QuestionSettings, title: str, answer: Callable[[str], Iterator[str]],
         clear: Callable[[], None]) -> int:
    """Answers every --prompt, or without one what the user types; returns the exit status."""
    if not questions.prompt:
        say(f"{title}\n/help lists commands, Ctrl-D ends.")
        converse(answer, clear, questions.show_speed)
        return 0
    status = 0
    for prompt in questions.prompt:
        print(f"> {harmless(prompt)}", flush=True)
        try:
            show(answer(prompt), questions.show_speed)
        except UserError as error:
            print(fitted(f"error: --prompt: {harmless(str(error))}", sys.stderr), file=sys.stderr)
            status = 2
    return status


def scored_rows(questions: QuestionSettings) -> list[Row]:
    """Reads the rows of --score.

    Raises:
        UserError: if a file of --score cannot be used, or --score_out cannot be written.
    """
    if not questions.score:
        return []
    files = find_files(questions.score, "--score")
    if questions.score_out:
        check_output(Path(questions.score_out), files)
    return read_scored_rows(files)


def print_score(settings: ChatSettings, rows: list[Row], model: LanguageModel, template: ChatTemplate,
                stop_ids: Collection[int]) -> int:
    """Answers the questions of the rows, writes --score_out and prints the table."""
    questions, thinks = settings.questions, settings.conversation.open_thinking
    asked = [make_question(row, template, thinks, model.config.context) for row in rows]
    results = score(model, template, asked, settings.sampling, questions.batch_size, stop_ids)
    try:
        if questions.score_out:
            write_output(results, Path(questions.score_out))
    finally:  # answering took long: print the table even if the disk is full
        for line in report(results, shutil.get_terminal_size().columns):
            say(line)
    return 0


def tell_unused(chosen: WeightSettings, conversation: ConversationSettings) -> None:
    """Names the flags that have no effect on weights that only continue text."""
    flags = {"chat_template": chosen.chat_template, "end_of_turn": chosen.end_of_turn, **asdict(conversation)}
    given = [f"--{name}" for name, value in flags.items() if value]
    if given:
        say(f"{', '.join(given)}: not used; weights that have only been pretrained continue each text by itself")


def check_weights(settings: WeightSettings, weights: Weights, tokenizer: Tokenizer) -> list[str]:
    """Compares the weights with flags and tokenizer; returns what the user should know.

    Raises:
        UserError: if the weights disagree with the flags, or were trained with another tokenizer.
    """
    check_shape(settings, weights.config, weights.path)
    # In MiniMind, `--load_from model` names its own tokenizer; the folder of that name here holds the bundled one.
    is_ours = settings.load_from is not None and tokenizer_name(settings.load_from) == BUNDLED
    return check_tokenizer(weights, tokenizer, None if is_ours else settings.tokenizer_path)


def build_model(runtime: ChatRuntimeSettings, weights: Weights, adapters: Sequence[tuple[Adapter, float]],
                stretch: bool) -> LanguageModel:
    """Builds the model in its fast form for decoding; `stretch` applies YaRN for longer contexts."""
    if stretch:
        weights = replace(weights, config=stretched(weights.config, weights.path))
    device = resolve_device(runtime.device)
    model = base_model(weights, runtime.quantize)
    if adapters:
        apply_adapters(model, adapters)
    return ready_to_decode(model.to(device, resolve_dtype(runtime.dtype, device)).eval())


def is_pretrained_only(weights: Weights, tokenizer: Tokenizer, settings: WeightSettings) -> bool:
    """Says whether the weights have seen no chats: by the sidecar, like MiniMind by the file's name, or because a base
    model has no chat template."""
    if weights.sidecar is not None:
        return weights.sidecar.get("stage") == "pretrain"
    if brings_tokenizer(weights.path):
        return not (tokenizer.chat_template or tokenizer.named_templates or settings.chat_template)
    return "pretrain" in weights.path.name


def is_minimind(weights: Weights) -> bool:
    """Says whether the weights are MiniMind's, whose .pth files have no sidecar."""
    return weights.sidecar is None and not brings_tokenizer(weights.path)


def say_all(label: str, lines: Iterable[str]) -> None:
    for line in lines:
        say(f"{label:<12}{harmless(line)}")


if __name__ == "__main__":
    run_program(main)
