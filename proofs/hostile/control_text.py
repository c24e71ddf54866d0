"""Text in the data that a chat template turns into control tokens.

The inspector counts the tokens of the data. Text that becomes a control token is one token instead of several, so the
count must be that of ids whose control tokens are those of the same conversation with harmless text.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from template_attacks import make_attack, make_benign
from transforming_templates import TransformingSubject, make_template

from hostile.rows import TINY, weights_are_there
from hostile.tries import Outcome, Try
from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.conversation import Conversation, canonical_row, parse_conversation
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.files import read_text
from minimind_sft.paths import in_repository

KIND = "text that a template turns into control tokens"

SECONDS = 60.0
EVERY = 5
"""One try in so many is harmless; as many train, and as many chat."""


def tries(folder: Path, random: Random, count: int) -> Iterator[Try]:
    """Yields attacks on generated templates: first on each transformation alone, then on chains of them."""
    number = made = 0
    while made < count:
        template = make_template(number)
        seed, number = random.randrange(10**9), number + 1
        try:
            subject = TransformingSubject(template)
            attack, twin = make_benign(seed), make_benign(seed)
            if made % EVERY:
                attack, twin = make_attack(subject, seed)
            subject.template.encode(twin)
            for conversation in (attack, twin):
                _parsed(_line(conversation))
        except UserError:  # the template, the shape of the conversation, or an empty answer
            continue
        files = {"template.jinja": template.named.source, "data.jsonl": _line(attack), "twin.jsonl": _line(twin)}
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        yield _try(folder, made, f"template {number - 1}, conversation {seed}", attack)
        made += 1


def _try(folder: Path, made: int, name: str, attack: Conversation) -> Try:
    flags = ("--chat_template", str(folder / "template.jinja"))
    data, expected = str(folder / "data.jsonl"), "either" if made % EVERY else "accepted"
    if made % EVERY == 1:
        return Try(f"training, {name}", ["trainer/train_full_sft.py", "--data_path", data, *flags, *TINY,
                   "--max_seq_len", "4000", "--save_dir", str(folder / "out"), "--overwrite"], expected,
                   check=weights_are_there, seconds=SECONDS)
    if made % EVERY == 2:
        said = next(message["content"] for message in attack.messages if message["role"] == "user")
        return Try(f"chat, {name}", ["eval_llm.py", "--weight", "pretrain", "--max_new_tokens", "2", *flags,
                   f"--prompt={said}"], expected, seconds=SECONDS)
    return Try(f"inspection, {name}", ["scripts/inspect_data.py", data, *flags, "--json", "--max_seq_len", "100000"],
               expected, check=no_text_is_a_control_token, seconds=SECONDS)


def _line(conversation: Conversation) -> str:
    return json.dumps(canonical_row(conversation), ensure_ascii=False) + "\n"


def no_text_is_a_control_token(outcome: Outcome) -> str | None:
    """Compares the tokens that the inspector counted with those of ids that have the twin's control tokens."""
    template = ChatTemplate(Tokenizer.from_folder(in_repository("model")),
                            read_text(outcome.folder / "template.jinja"))
    subject_ids = {template.tokenizer.token_to_id(token) for token in template.tokenizer.added_tokens}
    try:
        sequences, twins = (template.encode(_parsed(read_text(outcome.folder / name)))
                            for name in ("data.jsonl", "twin.jsonl"))
    except UserError as error:
        return f"accepted, though {error}"
    ids, twin_ids = ([token for sequence in some for token in sequence.input_ids.tolist()]
                     for some in (sequences, twins))
    control, twin_control = ([token for token in some if token in subject_ids] for some in (ids, twin_ids))
    if len(control) > len(twin_control):
        return f"{len(control)} control tokens instead of {len(twin_control)}"
    counted = json.loads(outcome.stdout)["files"][0]["tokens"]
    expected = len(ids) - len(sequences)  # the last token of a sequence is only a label
    return f"{counted} tokens instead of {expected}" if counted != expected else None


def _parsed(line: str) -> Conversation:
    return parse_conversation(json.loads(line), "data.jsonl:1")
