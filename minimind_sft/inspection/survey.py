"""Surveys all rows in one pass, on all cores, with the trainer's encoder."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from minimind_sft.data.chat_template import MAX_COMPARED
from minimind_sft.data.conversation import Conversation, canonical_row
from minimind_sft.data.example import Example
from minimind_sft.data.fields import ignored_fields
from minimind_sft.data.formats import form_name
from minimind_sft.data.prepared import work_on_files
from minimind_sft.data.reading import RawRow, parse_raw_row
from minimind_sft.data.samples import EncodedRow, PretrainEncoder, SFTEncoder
from minimind_sft.errors import UserError
from minimind_sft.inspection.tally import Position, Tally, split_place
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.terminal import counted


def survey(files: Sequence[Path], encoder: SFTEncoder | PretrainEncoder,
           check_prompts: bool = False) -> dict[Path, Tally]:
    """Returns the tally of each file.

    Raises:
        UserError: for a file that cannot be read. Anything wrong with a row is a finding.
    """
    tallies = {path: Tally() for path in files}
    by_name = {str(path): tally for path, tally in tallies.items()}
    work = partial(survey_chunk, encoder=encoder, check_prompts=check_prompts)
    for _, found in work_on_files(work, list(tallies), "inspecting", show_progress=True):
        for name, tally in found.items():
            by_name[name] += tally
    return tallies


def survey_chunk(raw_rows: list[RawRow], encoder: SFTEncoder | PretrainEncoder,
                 check_prompts: bool) -> dict[str, Tally]:
    """Returns the tallies of some rows by the names of their files."""
    readable: list[tuple[str, dict]] = []
    errors: dict[int, UserError] = {}
    for number, raw in enumerate(raw_rows):
        try:
            readable.append((raw.place, parse_raw_row(raw)))
        except UserError as error:
            errors[number] = error
    unknown_id = unwritten_unknown_id(encoder)
    results = zip(readable, encoder.encode(readable), _answers(encoder, readable), strict=True)
    tallies: dict[str, Tally] = {}
    found: dict[str, list[tuple[Position, int, int]]] = {}
    for number, raw in enumerate(raw_rows):
        name, position = split_place(raw.place)
        tally = tallies.setdefault(name, Tally())
        if number in errors:
            _add_bad(tally, raw.place, position, errors[number])
            continue
        (_, row), encoded, answers = next(results)
        if isinstance(encoded, UserError):
            _add_bad(tally, raw.place, position, encoded)
            continue
        _add_row(tally, raw.place, position, row, encoded)
        _add_unknown(tally, position, encoded, unknown_id)
        if isinstance(encoded.parsed, Conversation) and isinstance(encoder, SFTEncoder):
            _add_answers(tally, position, encoded, answers, encoder)
            if check_prompts:
                _compare_prompts(tally, position, encoded.parsed, encoder)
        found.setdefault(name, []).append((position, *_hashes(encoded.parsed)))
    for name, of_file in found.items():
        positions, hashes, questions = zip(*of_file, strict=True)
        tallies[name].positions.append(np.array(positions, np.uint32))
        tallies[name].rows.append(np.array(hashes, np.uint64))
        tallies[name].questions.append(np.array(questions, np.uint64))
    return tallies


def _add_bad(tally: Tally, place: str, position: Position, error: UserError) -> None:
    tally.counts.add(place, error)
    tally.findings["bad"].add(position, str(error))


def _add_row(tally: Tally, place: str, position: Position, row: dict, encoded: EncodedRow) -> None:
    tally.counts.add(place, encoded)
    tally.samples += len(encoded.samples)
    tally.sequences += sum(map(len, encoded.samples))
    tally.forms["text" if isinstance(encoded.parsed, str) else form_name(row)] += 1
    tally.add_ignored(dict.fromkeys(sorted(ignored_fields(row, isinstance(encoded.parsed, str))), 1))
    if not encoded.samples:
        tally.findings["dropped"].add(position)
    elif encoded.was_cut:
        longest = max(len(sequence.input_ids) for sequence in encoded.sequences)
        tally.findings["truncated"].add(position, counted(longest, "token"))
    if isinstance(encoded.parsed, str):
        tally.lengths.update(len(one.labels) + 1 for sample in encoded.samples for one in sample)
        if not encoded.parsed.strip():
            tally.findings["empty"].add(position, "no text")
        return
    tally.lengths.update(len(sequence.input_ids) for sequence in encoded.sequences)
    messages = encoded.parsed.messages
    empty = [f"turn {number} ({message['role']})" for number, message in enumerate(messages, 1)
             if message["role"] in ("user", "system") and not message["content"].strip()]
    if empty:
        tally.findings["empty"].add(position, ", ".join(empty))
    broken = list(_broken_alternations([message["role"] for message in messages]))
    if broken:
        tally.findings["not_alternating"].add(position, ", ".join(broken))


def unwritten_unknown_id(encoder: SFTEncoder | PretrainEncoder) -> int | None:
    """Returns the tokenizer's unknown token, or None if there is none or the chat template writes it too."""
    unknown_id = encoder.tokenizer.unknown_id
    sources = encoder.template.sources if isinstance(encoder, SFTEncoder) else ()
    name = None if unknown_id is None else encoder.tokenizer.id_to_token(unknown_id)
    return None if name is None or any(name in source for source in sources) else unknown_id


def _add_unknown(tally: Tally, position: Position, encoded: EncodedRow, unknown_id: int | None) -> None:
    sequences = ([sequence.input_ids for sequence in encoded.sequences]
                 or [example.input_ids for sample in encoded.samples for example in sample])
    count = 0 if unknown_id is None else sum(int(np.count_nonzero(ids == unknown_id)) for ids in sequences)
    if count:
        tally.findings["unknown"].add(position, counted(count, "token"))


def _broken_alternations(roles: list[str]) -> Iterator[str]:
    for number, (before, role) in enumerate(pairwise(roles), 2):
        if before == role and role in ("user", "assistant"):
            yield f"turn {number}: {role} after {role}"
    if roles[-1] in ("user", "tool"):
        yield f"ends with a {roles[-1]} turn"


def _answers(encoder: SFTEncoder | PretrainEncoder, readable: list[tuple[str, dict]]) -> list:
    """Encodes the rows with only their answers supervised. Returns Nones if training supervises nothing else."""
    if not (isinstance(encoder, SFTEncoder) and encoder.supervision.prompt):
        return [None] * len(readable)
    return SFTEncoder(encoder.template, encoder.max_seq_len, encoder.truncation,
                      replace(encoder.supervision, prompt=False)).encode(readable)


def _add_answers(tally: Tally, position: Position, encoded: EncodedRow, answers: EncodedRow | None,
                 encoder: SFTEncoder) -> None:
    """Counts answers and their ends by the labels that training uses."""
    assert isinstance(encoded.parsed, Conversation)
    trained = answers or encoded
    cuts_tails = trained.was_cut and encoder.truncation == "tail"
    missing = 0
    for example in (example for sample in trained.samples for example in sample):
        ended, unended, cut_here = answer_ends(example, encoder.template.end_of_turn_id)
        tally.turns += ended + unended
        tally.ended += ended
        missing += unended - (cut_here and cuts_tails and len(example.labels) == encoder.max_seq_len - 1)
    # Some templates end a call with another token than an answer, or with none.
    missing -= sum("tool_calls" in message for message in encoded.parsed.messages)
    if missing > 0:
        tally.findings["unended"].add(position, f"{missing} of its answers")


def answer_ends(example: Example, end_of_turn_id: int) -> tuple[int, int, bool]:
    """Counts answers with and without a supervised end-of-turn token.

    Returns:
        (with, without, whether the last of those without ends where the sequence ends).
    """
    labels = example.labels
    supervised = labels != IGNORE_INDEX
    ended = labels == end_of_turn_id
    goes_on = np.append(supervised[1:], False)
    open_ends = supervised & ~ended & ~goes_on
    return int(np.count_nonzero(ended)), int(np.count_nonzero(open_ends)), bool(open_ends[-1])


def _compare_prompts(tally: Tally, position: Position, conversation: Conversation, encoder: SFTEncoder) -> None:
    answers = sum(message["role"] == "assistant" for message in conversation.messages)
    tally.compared += min(answers, MAX_COMPARED)
    try:
        mismatches = encoder.template.prompt_mismatches(conversation)
    except UserError as error:  # a chat cannot show what training teaches
        mismatches = [str(error)]
    if mismatches:
        prefix = f"{conversation.place}: "
        tally.findings["mismatched"].add(position, "; ".join(one.removeprefix(prefix) for one in mismatches))


def _hashes(parsed: Conversation | str) -> tuple[int, int]:
    """Returns the hash of a row, and that of everything in it except the assistant's turns."""
    if isinstance(parsed, str):
        return _hash(parsed), 0
    given = [message for message in parsed.messages if message["role"] != "assistant"]
    return _hash(canonical_row(parsed)), _hash([given, parsed.tools])


def _hash(value: object) -> int:
    """Returns 64 bits: with ten million rows, two different ones collide in one of 370,000 files."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
