"""Answers the rows of a file into another file, and goes on where it was interrupted."""

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import parse_question
from minimind_sft.data.reading import read_rows
from minimind_sft.errors import UserError
from minimind_sft.files import open_regular, path_exists, peek_object
from minimind_sft.inference.chat import assistant_message, opens_reasoning
from minimind_sft.inference.generate import LanguageModel, SamplingSettings, generate_batch, generate_greedily
from minimind_sft.inference.stopping import chat_stop_ids
from minimind_sft.locks import FolderLock
from minimind_sft.set_aside import is_there
from minimind_sft.strict_json import parse_json
from minimind_sft.terminal import progress_bar
from minimind_sft.writing import append_to, check_writable, cut, write_text_atomically

ANSWER, REASONING, PROBLEM = "model_answer", "model_reasoning", "problem"
"""The fields that a row gets: the answer; its reasoning; why there is no answer."""


@dataclass(frozen=True)
class BatchRow:
    """A row of the input: as it was read, and the ids that the model sees, or why it cannot be asked.

    thinks: whether the model may reason before it answers: it was asked to, or the template always opens the reasoning.
    """

    row: dict
    prompt: list[int]
    thinks: bool = False
    problem: str = ""


def read_batch(path: Path, template: ChatTemplate, thinking: bool, context: int) -> list[BatchRow]:
    """Reads all rows. A row that the template refuses, or that is too long for the context, has a problem.

    Raises:
        UserError: names file and line, for a row that is not a conversation, or has one of the fields for answers.
    """
    found = []
    for place, row in read_rows(path):
        for name in (ANSWER, REASONING, PROBLEM):
            if name in row:
                raise UserError(f"{place}: {name}: the row has this field already, and the answer would replace it")
        conversation = parse_question(row, place)
        messages, tools = conversation.messages, conversation.tools
        prompt: list[int] = []
        thinks, problem = thinking, ""
        try:
            prompt = template.generation_prompt_ids(messages, tools, thinking)
            thinks = thinking or opens_reasoning(template, messages, tools, thinking)
            if len(prompt) >= context:
                problem = f"{place}: the prompt has {len(prompt):,} tokens, the model's context is {context:,}"
        except UserError as error:
            problem = str(error).replace("the conversation:", f"{place}:", 1)
        found.append(BatchRow(row, prompt, thinks, problem))
    return found


@dataclass
class BatchOutput:
    """The output, and beside it a record of what its answers depend on, and a lock while this process writes.

    done: the rows that it already has.
    """

    path: Path
    done: int = 0

    def __post_init__(self) -> None:
        self._lock = FolderLock(self.path.with_name(f".{self.path.name}.lock"))

    @property
    def record(self) -> Path:
        return self.path.with_name(f"{self.path.name}.run.json")

    def open(self, rows: Sequence[BatchRow], identity: Mapping[str, Any], batch_size: int) -> None:
        """Takes the lock and finds how far an earlier run came. A last batch that is not complete is cut off.

        Raises:
            UserError: if another process answers there, or if the file holds something else, or answers of other
                weights, settings or rows.
        """
        check_writable(self.path.parent, "--batch_out")
        if not self._lock.try_take():
            raise UserError(f"--batch_out {self.path}: another process is writing there "
                            f"({self._lock.described_holder()})")
        text = json.dumps(identity, indent=2)
        identity = json.loads(text)
        earlier = peek_object(self.record)
        if not path_exists(self.path):
            if is_there(self.record) and "batch_in" not in earlier:
                raise UserError(f"{self.record}: the file exists and was not made by --batch_in; choose another "
                                "--batch_out")
            write_text_atomically(self.record, text)
            append_to(self.path).close()
            return
        if not earlier:
            raise UserError(f"--batch_out {self.path}: the file exists and was not made by --batch_in; choose another "
                            "name")
        others = [name for name in {**earlier, **identity} if earlier.get(name) != identity.get(name)]
        if others:
            raise UserError(f"--batch_out {self.path}: holds answers that were made with other {', '.join(others)}; "
                            "choose another name")
        with open_regular(self.path) as file:
            lines = [line for line in file if line.endswith(b"\n")]
        self._check_ours(lines, rows)
        complete = len(lines) == len(rows)
        self.done = len(rows) if complete else len(lines) // batch_size * batch_size
        cut(self.path, sum(map(len, lines[:self.done])))

    def close(self) -> None:
        self._lock.release()

    def _check_ours(self, lines: Sequence[bytes], rows: Sequence[BatchRow]) -> None:
        """Checks that each line is one of the rows with its answer; what others wrote is not cut off.

        Raises:
            UserError: names the first line that is not.
        """
        for number, line in enumerate(lines, 1):
            try:
                answered = parse_json(line.decode(), f"{self.path}:{number}")
                is_ours = _are_answers(answered) and json.loads(json.dumps(rows[number - 1].row)) == {
                    name: value for name, value in answered.items() if name not in (ANSWER, REASONING, PROBLEM)}
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                is_ours = False
            if not is_ours:
                raise UserError(f"--batch_out {self.path}:{number}: not the answer to a row of --batch_in; choose "
                                "another name")

    def append(self, rows: Sequence[dict]) -> None:
        """Adds rows, and waits until they are on the disk.

        Raises:
            UserError: if that is impossible.
        """
        try:
            with append_to(self.path) as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); with room, the same command goes "
                            "on") from error
        self.done += len(rows)


def _are_answers(row: dict[str, Any]) -> bool:
    """Whether the fields that a row gets are there, with an answer or the reason why there is none."""
    given = {name: row[name] for name in (ANSWER, REASONING, PROBLEM) if name in row}
    if row[ANSWER] is None:
        return given.keys() == {ANSWER, PROBLEM} and isinstance(row[PROBLEM], str)
    return PROBLEM not in given and all(isinstance(value, str) for value in given.values())


@dataclass(frozen=True)
class BatchAnswerer:
    """A model that answers batches of rows.

    Each batch draws with a seed of its own, the seed of the settings plus the number of the batch's first row, so that
    an interrupted run goes on to the same answers.
    """

    model: LanguageModel
    template: ChatTemplate
    settings: SamplingSettings
    stop_ids: Collection[int] = ()

    def answer(self, rows: Sequence[BatchRow], output: BatchOutput, batch_size: int) -> None:
        """Answers the rows that the output does not have, `batch_size` at a time, with a progress bar."""
        with progress_bar(label="answering", total=len(rows), initial=output.done, unit=" rows") as bar:
            for start in range(output.done, len(rows), batch_size):
                batch = rows[start:start + batch_size]
                output.append(list(self._answered(batch, start)))
                bar.update(len(batch))

    def _answered(self, batch: Sequence[BatchRow], start: int) -> Iterator[dict]:
        stop_ids = chat_stop_ids(self.template, self.stop_ids)
        settings = replace(self.settings, seed=self.settings.seed + start)
        generate = generate_batch if settings.temperature else generate_greedily
        answers = iter(generate(self.model, [row.prompt for row in batch if not row.problem], settings, stop_ids))
        for row in batch:
            if row.problem:
                yield {**row.row, ANSWER: None, PROBLEM: row.problem}
                continue
            said = assistant_message(self.template.tokenizer.decode(next(answers)), row.thinks)
            reasoning = {REASONING: said["reasoning_content"]} if "reasoning_content" in said else {}
            yield {**row.row, ANSWER: said["content"], **reasoning}
