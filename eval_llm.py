"""Chats with a model in the terminal, answers given prompts, or scores it on questions.

    python eval_llm.py --weight full_sft
    python eval_llm.py --weight full_sft --prompt "Who are you?" "你是谁？"
    python eval_llm.py --weight full_sft --score dataset/sft_demo_heldout.jsonl
    python eval_llm.py --weight full_sft --batch_in questions.jsonl --batch_out answers.jsonl
    python eval_llm.py --weight full_sft --lora_weight style:0.5 calls
    python eval_llm.py --weight pretrain --prompt "The capital of France"

Weights that have only been pretrained do not chat: they continue your text. --score still asks them its questions in
the chat template.
"""

import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import read_tools
from minimind_sft.data.sources import find_files
from minimind_sft.errors import UserError, run_program
from minimind_sft.evaluation.answering import check_output, report, score, write_output
from minimind_sft.evaluation.questions import Row, make_question, read_scored_rows
from minimind_sft.evaluation.results import Candidate, sha256_of
from minimind_sft.files import resolved
from minimind_sft.inference.answer_output import Answerer, show
from minimind_sft.inference.batch import BatchAnswerer, BatchOutput, read_batch
from minimind_sft.inference.chat import Chat, Continuation
from minimind_sft.inference.commands import Command, chat_commands, temperature_command
from minimind_sft.inference.dialogue import converse
from minimind_sft.inference.generate import LanguageModel
from minimind_sft.inference.loading import Loaded, load
from minimind_sft.inference.message_history import MessageHistory
from minimind_sft.inference.sampling_defaults import chat_sampling
from minimind_sft.settings.chat import (
    ChatSettings,
    ConversationSettings,
    QuestionSettings,
    SamplingSettings,
    WeightSettings,
)
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.terminal import counted, say, say_all


def main() -> int:
    settings = parse_flags(ChatSettings, description=__doc__)
    chosen, conversation = settings.weights, settings.conversation
    tools = read_tools(conversation.tools) if conversation.tools else None
    rows = scored_rows(settings.questions)
    loaded = load(chosen, settings.runtime, say, needs_template=bool(rows or settings.questions.batch_in))
    model, tokenizer, template = loaded.model, loaded.tokenizer, loaded.template
    if rows:
        assert template is not None, "it was asked for"
        return print_score(settings, rows, model, template, loaded.stop_ids)
    sampling, notices = chat_sampling(settings.sampling, loaded.path)
    say_all("sampling", notices)
    if template is None:
        tell_unused(chosen, conversation)
        continuation = Continuation(model, tokenizer, sampling, loaded.frames_documents, loaded.stop_ids)
        return talk(settings.questions, f"{loaded.path.name} continues the text you type.", continuation,
                    [temperature_command(continuation)])
    if settings.questions.batch_in:
        return answer_batch(settings, sampling, loaded)
    historys = conversation.historys
    if historys is None:
        historys = 0 if settings.questions.prompt else -1
    chat = Chat(model, tokenizer, template, sampling, conversation.system, tools, historys, conversation.open_thinking,
                notify=say, stop_ids=loaded.stop_ids, trained_length=loaded.trained_length)
    chat.check_opening()
    return talk(settings.questions, f"{loaded.path.name} is listening.", chat, chat_commands(chat))


def talk(questions: QuestionSettings, title: str, answerer: Answerer, commands: Sequence[Command]) -> int:
    """Answers every --prompt, or without one what the user types; returns the exit status."""
    if not questions.prompt:
        history = MessageHistory(say if questions.keep_history and sys.stdin and sys.stdin.isatty() else None)
        say(f"{title}\n/help lists commands, Ctrl-D ends.")
        converse(answerer, commands, history, questions.show_speed)
        return 0
    status = 0
    for prompt in questions.prompt:
        say(f"> {prompt}")
        try:
            show(answerer, answerer.reply(prompt), questions.show_speed)
        except UserError as error:
            say(f"error: --prompt: {error}", sys.stderr)
            status = 2
    return status


def answer_batch(settings: ChatSettings, sampling: SamplingSettings, loaded: Loaded) -> int:
    """Writes the rows of --batch_in with the model's answers; returns the exit status."""
    questions, thinking, template = settings.questions, settings.conversation.open_thinking, loaded.template
    assert template is not None and questions.batch_in and questions.batch_out
    source, output = Path(questions.batch_in), BatchOutput(Path(questions.batch_out))
    if resolved(source) == resolved(output.path):
        raise UserError(f"--batch_out {output.path}: this is the file with the questions")
    rows = read_batch(source, template, thinking, loaded.model.config.context)
    identity = {**Candidate.of(loaded, settings.runtime).identity, **asdict(sampling), "batch_in": sha256_of(source),
                "open_thinking": thinking, "batch_size": questions.batch_size}
    output.open(rows, identity, questions.batch_size)
    if 0 < output.done < len(rows):
        say(f"{output.path} has {output.done:,} of {counted(len(rows), 'row')}; the others follow")
    answerer = BatchAnswerer(loaded.model, template, sampling, loaded.stop_ids)
    try:
        answerer.answer(rows, output, questions.batch_size)
    except KeyboardInterrupt:
        say(f"interrupted: {output.path} has {output.done:,} of {counted(len(rows), 'row')}; the same command goes on")
        return 130
    finally:
        output.close()
    problems = [row.problem for row in rows if row.problem]
    say(f"answered {len(rows) - len(problems):,} of {counted(len(rows), 'row')}: {output.path}")
    if problems:
        say(f"error: no answer for {counted(len(problems), 'row')}, starting with {problems[0]}", sys.stderr)
    return 2 if problems else 0


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
    results = score(model, template, asked, settings.sampling.complete(), questions.batch_size, stop_ids)
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


if __name__ == "__main__":
    run_program(main)
