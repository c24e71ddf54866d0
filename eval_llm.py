"""Chats with a model in the terminal, answers given prompts, or scores it on questions.

    python eval_llm.py --weight full_sft
    python eval_llm.py --weight full_sft --prompt "Who are you?" "你是谁？"
    python eval_llm.py --weight full_sft --score dataset/sft_demo_heldout.jsonl
    python eval_llm.py --weight pretrain --prompt "The capital of France"

Weights that have only been pretrained do not chat: they continue the text they are given (--score puts the questions
to them in the chat template all the same).
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from minimind_sft.config import ChatConfig
from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.conversation import read_tools
from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.data.tokenizer_choice import BUNDLED, load_tokenizer, tokenizer_name
from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.errors import UserError, harmless, run_program
from minimind_sft.flags import parse_flags
from minimind_sft.inference.chat import Chat, continue_text
from minimind_sft.inference.dialogue import converse, show
from minimind_sft.inference.generate import LanguageModel, SamplingSettings
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
from minimind_sft.matching import check_template, check_tokenizer
from minimind_sft.model.config import YarnScaling
from minimind_sft.model.finding import find_weights
from minimind_sft.model.weights import Weights, read_weights
from minimind_sft.terminal import fitted, say


def main() -> int:
    config = parse_flags(ChatConfig, description=__doc__)
    settings = SamplingSettings(max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                                top_p=config.top_p, top_k=config.top_k, repetition_penalty=config.repetition_penalty,
                                seed=config.seed)
    tools = read_tools(config.tools) if config.tools else None
    rows = scored_rows(config)
    tokenizer = load_tokenizer(config.tokenizer_path)
    template = make_template(tokenizer, config.chat_template, config.end_of_turn)
    path = find_weights(config.weight, config.save_dir, flag="--weight", hidden_size=config.hidden_size,
                        use_moe=config.use_moe, tokenizer=tokenizer.fingerprint)
    weights = read_weights(path)
    for notice in (*tokenizer.notices, *weights.notices, *check_weights(config, weights, tokenizer, template)):
        say(harmless(notice))
    for note in template.notes:
        say(f"{'template':<12}{note}")
    model = build_model(config, weights.without_padding(tokenizer.vocab_size))
    if rows:
        return print_score(config, rows, model, template, settings)

    if is_pretrained_only(weights):
        tell_unused(config)
        return talk(config, f"{path.name} continues the text you type.",
                    lambda prompt: continue_text(model, tokenizer, prompt, settings, weights.sidecar is None),
                    lambda: None)
    chat = Chat(model, tokenizer, template, settings, config.system, tools, config.historys,
                bool(config.open_thinking), notify=say)
    chat.check_opening()
    return talk(config, f"{path.name} is listening.", chat.reply, chat.clear)


def talk(config: ChatConfig, title: str, answer: Callable[[str], Iterator[str]], clear: Callable[[], None]) -> int:
    """Answers the --prompt, all of them, or what is typed; returns the exit status."""
    if not config.prompt:
        say(f"{title}\n/help lists commands, Ctrl-D ends.")
        converse(answer, clear, bool(config.show_speed))
        return 0
    status = 0
    for prompt in config.prompt:
        print(f"> {harmless(prompt)}", flush=True)
        try:
            show(answer(prompt), bool(config.show_speed))
        except UserError as error:
            print(fitted(f"error: --prompt: {harmless(str(error))}", sys.stderr), file=sys.stderr)
            status = 2
    return status


def scored_rows(config: ChatConfig) -> list[Row]:
    """
    Raises:
        UserError: if a file of --score cannot be used, or --score_out cannot be written.
    """
    if not config.score:
        return []
    files = find_files(config.score, "--score")
    if config.score_out:
        check_output(Path(config.score_out), files)
    return read_scored_rows(files)


def print_score(config: ChatConfig, rows: list[Row], model: LanguageModel, template: ChatTemplate,
                settings: SamplingSettings) -> int:
    """Asks what the rows ask, writes --score_out and prints the table."""
    context = model.config.max_position_embeddings
    questions = [make_question(row, template, bool(config.open_thinking), context) for row in rows]
    results = score(model, template, questions, settings, config.batch_size)
    try:
        if config.score_out:
            write_output(results, Path(config.score_out))
    finally:  # answering took long: the table comes even if the disk is full
        for line in report(results, shutil.get_terminal_size().columns):
            say(line)
    return 0


def tell_unused(config: ChatConfig) -> None:
    """Names the flags that mean nothing to weights that only continue text."""
    given = [f"--{name}" for name in ("system", "tools", "historys", "open_thinking") if getattr(config, name)]
    if given:
        say(f"{', '.join(given)}: not used; weights that have only been pretrained continue each text by itself")


def check_weights(config: ChatConfig, weights: Weights, tokenizer: Tokenizer, template: ChatTemplate) -> list[str]:
    """Compares the weights with flags, tokenizer and template; returns what the user should know.

    Raises:
        UserError: if the weights disagree with the flags, or were trained with another tokenizer or chat template.
    """
    for name in ("hidden_size", "num_hidden_layers", "use_moe"):
        has = int(getattr(weights.config, name))
        if getattr(config, name) not in (None, has):
            raise UserError(f"--{name} is {getattr(config, name)}, but {weights.path} has {name} {has}")
    # MiniMind's `--load_from model` means its own tokenizer, in the folder that here has the bundled one.
    is_ours = config.load_from is not None and tokenizer_name(config.load_from) == BUNDLED
    notices = check_tokenizer(weights, tokenizer, None if is_ours else config.tokenizer_path)
    check_template(weights, template, config.chat_template, config.end_of_turn)
    return notices


def build_model(config: ChatConfig, weights: Weights) -> LanguageModel:
    if config.inference_rope_scaling:
        weights = replace(weights, config=replace(weights.config, rope_scaling=YarnScaling()))
    device = resolve_device(config.device)
    return ready_to_decode(weights.build_model().to(device, resolve_dtype(config.dtype, device)).eval())


def is_pretrained_only(weights: Weights) -> bool:
    """Whether the weights have seen no chat; without a sidecar, as MiniMind has it: by the name."""
    if weights.sidecar is None:
        return "pretrain" in weights.path.name
    return weights.sidecar.get("stage") == "pretrain"


if __name__ == "__main__":
    run_program(main)
