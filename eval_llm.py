"""Chats with a model in the terminal, answers given prompts, or scores it on questions.

    python eval_llm.py --weight full_sft
    python eval_llm.py --weight full_sft --prompt "Who are you?" "你是谁？"
    python eval_llm.py --weight full_sft --score dataset/sft_demo_heldout.jsonl
    python eval_llm.py --weight pretrain --prompt "The capital of France"

Weights that have only been pretrained do not chat: they continue the text they are given (--score puts the questions
to them in the chat template all the same).
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from minimind_sft.config import ChatConfig, YarnScaling
from minimind_sft.data.chat_template import ChatTemplate, make_template
from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.reading import find_files, read_rows
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.device import resolve_device, resolve_dtype
from minimind_sft.errors import UserError, run_program
from minimind_sft.flags import parse_flags
from minimind_sft.inference.chat import Chat, continue_text, score, score_table
from minimind_sft.inference.frozen import ready_to_decode
from minimind_sft.inference.generate import LanguageModel, SamplingSettings
from minimind_sft.matching import BUNDLED, check_template, check_tokenizer, load_tokenizer, tokenizer_name
from minimind_sft.model.pretrained import Weights, find_weights, read_weights


def main() -> int:
    config = parse_flags(ChatConfig, description=__doc__)
    score_files = find_files([config.score], "--score") if config.score else []
    tokenizer = load_tokenizer(config.tokenizer_path)
    template = make_template(tokenizer, config.chat_template, config.end_of_turn)
    path = find_weights(config.weight, config.save_dir, flag="--weight", hidden_size=config.hidden_size,
                        use_moe=config.use_moe)
    weights = read_weights(path)
    for notice in (*weights.notices, *check_weights(config, weights, tokenizer, template)):
        print(notice)
    model = build_model(config, weights.without_padding(tokenizer.vocab_size))
    settings = SamplingSettings(max_new_tokens=config.max_new_tokens, temperature=config.temperature,
                                top_p=config.top_p, top_k=config.top_k, repetition_penalty=config.repetition_penalty,
                                seed=config.seed)
    if config.score:
        questions = [(str(row.get("kind", "all")), parse_conversation(row, place))
                     for file in score_files for place, row in read_rows(file)]
        for line in score_table(score(model, tokenizer, template, questions, settings, config.batch_size)):
            print(line)
        return 0

    chat = Chat(model, tokenizer, template, settings, config.system, config.historys, bool(config.open_thinking))
    if is_pretrained_only(weights):
        def answer(prompt: str) -> Iterator[str]:
            return continue_text(model, tokenizer, prompt, settings)
    else:
        answer = chat.reply
    for prompt in config.prompt or typed_prompts(path):
        if config.prompt:
            print(f"> {prompt}")
        show(answer(prompt), bool(config.show_speed))
    return 0


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


def typed_prompts(path: Path) -> Iterator[str]:
    """What the person at the terminal types, until an empty line, Ctrl-D or Ctrl-C."""
    print(f"{path.name}: type a message; an empty line ends the chat.")
    while True:
        try:
            prompt = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not prompt.strip():
            return
        yield prompt


def show(pieces: Iterator[str], show_speed: bool) -> None:
    """Prints an answer while it is made; Ctrl-C cuts it short."""
    start, tokens = time.perf_counter(), 0
    try:
        for piece in pieces:
            tokens += 1
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" ...", end="")
    elapsed = time.perf_counter() - start
    print(f"\n[{tokens} tokens, {tokens / elapsed:.0f} tokens/s]\n" if show_speed else "\n")


if __name__ == "__main__":
    run_program(main)
