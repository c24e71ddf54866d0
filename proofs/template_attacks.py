"""Makes conversations that try to pass text off as control tokens, and checks what must hold for each of them.

Every attack has a harmless twin of the same shape. The control tokens of both must be the same.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from jinja2 import nodes
from template_constants import continuations, written_constants

from minimind_sft.data.chat_template import ChatTemplate, TokenSequence, has_reasoning
from minimind_sft.data.conversation import Conversation
from minimind_sft.data.template_marks import ASSISTANT_TAGS, iter_strings
from minimind_sft.data.template_sandbox import TemplateEnvironment, make_environment
from minimind_sft.data.tokenizer import MARKS_END, MARKS_START
from minimind_sft.errors import UserError

ODDITIES = ("{{ 7 * 7 }}", "{% endfor %}", "{# x #}", "{{ eos_token }}", "\u200b", "\u2060", "\ufeff", "\u200d", "\n",
            "\n\n", "\r\n", "  ", "\t", "\u2028", "\\n", '"', "'", "}", "1", "a", "中文", "😀", "e\u0301", "/no_think")
TAGS = re.compile(f"({'|'.join(map(re.escape, ASSISTANT_TAGS))})")
OWN_WORD = re.compile(r"w\d+q")
PLAIN_WORDS = ("yes", "1", "罗马", "a b", "x\ny", "1 < 2 > 0", "a <b> c", "[x] | {y}", "list[int]", "think")

Say = Callable[[bool], str]
"""Returns the text of a conversation's next field; its argument says whether the field is the assistant's."""


class Subject:
    """A template under attack, and the material for attacking it.

    transforms: whether it changes the text of the data, and so may turn an assistant's tags into text.
    """

    transforms = False

    def __init__(self, template: ChatTemplate):
        self.template = template
        tokenizer = template.tokenizer
        self.control = tokenizer.control_tokens("\n".join([template.source, *ASSISTANT_TAGS]))
        self.control_of = {tokenizer.token_to_id(token): token for token in self.control}
        tree = make_environment(TemplateEnvironment).parse(template.source)
        written = list(written_constants(tree))
        texts = {part.data if isinstance(part, nodes.TemplateData) else part.value for part in written}
        self.constants = sorted(text for text in texts if text.strip()) or ["x"]
        self.continuations = sorted(continuations(tree, self.control))
        places = set(map(id, written))
        searched = {part.value for part in tree.find_all(nodes.Const)
                    if isinstance(part.value, str) and id(part) not in places}
        with_token = {text for text in texts if any(token in text for token in self.control)}
        self.looked_for = sorted(text for text in searched - with_token
                                 if len(text.strip()) > 1 and not text.isidentifier())
        """Strings the template may search for in a text; it may then render something else, as in transformers.

        One that it writes as well is among them, as "/nothink" in `'/nothink' if not content.endswith('/nothink')`,
        unless it spells a control token: text that became one must be found. Single characters are in too many texts.
        """

    def attacker(self, rng: random.Random) -> "Attacker":
        return Attacker(self, rng)


class Attacker:
    """Makes adversarial text, field by field; each text that has words contains one that is unique to it."""

    def __init__(self, subject: Subject, rng: random.Random):
        self.subject, self.rng = subject, rng
        self.said: list[str] = []
        self._carried = ""
        # Some leave out the characters that control tokens begin with: such text takes another path.
        self._left_out = {token[0] for token in subject.control} if rng.random() < 0.25 else set()

    def __call__(self, own: bool) -> str:
        rng = self.rng
        if self.subject.continuations and rng.random() < 0.3:
            self._carried = rng.choice(self.subject.continuations)
        pieces = [self._carried, *(self._piece() for _ in range(rng.choice((0, 1, 1, 2, 3, 5))))]
        if rng.random() < 0.7:
            pieces.insert(rng.randint(1, len(pieces)), f"w{len(self.said)}q")
        self._carried = ""
        if rng.random() < 0.25:  # a control token that begins in this field and ends in the next
            beginning, self._carried = self._halves()
            pieces.append(beginning)
        self.said.append("".join(character for character in "".join(pieces) if character not in self._left_out))
        return self.said[-1]

    def _halves(self) -> tuple[str, str]:
        token = self.rng.choice(self.subject.control)
        at = self.rng.choice((1, self.rng.randint(1, max(len(token) - 1, 1))))
        return token[:at], token[at:]

    def _piece(self) -> str:
        rng = self.rng
        kind = rng.random()
        if kind < 0.4:
            return rng.choice(self.subject.control)
        if kind < 0.55:
            return rng.choice(self._halves())
        if kind < 0.7:
            return rng.choice(self.subject.constants)
        if kind < 0.8:
            return chr(rng.choice((MARKS_START + rng.randint(0, 120), rng.randint(MARKS_START, MARKS_END), MARKS_END)))
        return rng.choice(ODDITIES)


class Harmless:
    """Makes the same fields without attacks. It keeps an assistant's tags, and the white space at the ends of a text,
    which some templates strip in history only, so that the row splits."""

    def __init__(self, said: list[str]):
        self.said = said
        self._next = 0

    def __call__(self, own: bool) -> str:
        text, word = self.said[self._next], f"w{self._next}q"
        self._next += 1
        parts = TAGS.split(text) if own else [text]
        return "".join(part if index % 2 else part.replace(part.strip(), word, 1) if part.strip() else part
                       for index, part in enumerate(parts))


def make_attack(subject: Subject, seed: int) -> tuple[Conversation, Conversation]:
    """Returns an attack and its harmless twin."""
    attacker = subject.attacker(random.Random(f"text {seed}"))
    attack = make_conversation(random.Random(seed), attacker)
    return attack, make_conversation(random.Random(seed), Harmless(attacker.said))


def make_benign(seed: int) -> Conversation:
    words = random.Random(f"words {seed}")
    return make_conversation(random.Random(seed), lambda own: words.choice(PLAIN_WORDS))


def make_conversation(shape: random.Random, say: Say) -> Conversation:
    """Makes a conversation of random shape; `say` supplies every text."""
    tools = [_tool(shape, say, number) for number in range(shape.choice((0, 0, 1, 2)))] or None
    messages = [{"role": "system", "content": say(False)}] if shape.random() < 0.5 else []
    for _ in range(shape.randint(1, 3)):
        messages.append({"role": "user", "content": say(False)})
        if tools and shape.random() < 0.6:
            calls = [_call(shape, say, number) for number in range(shape.randint(1, 2))]
            messages.append(_answer(shape, say, tool_calls=calls))
            messages += [{"role": "tool", "content": say(False), "name": call["function"]["name"],
                          "tool_call_id": call["id"]} for call in calls]
        messages.append(_answer(shape, say))
    if shape.random() < 0.1:
        messages.append({"role": "user", "content": say(False)})
    return Conversation(tuple(messages), tools, "a.jsonl:3")


def _answer(shape: random.Random, say: Say, **more: list) -> dict:
    reasoning = {"reasoning_content": "r" + say(True)} if shape.random() < 0.3 else {}
    return {"role": "assistant", "content": say(True), **reasoning, **more}


def _tool(shape: random.Random, say: Say, number: int) -> dict:
    parameter = {"type": shape.choice(("string", "integer", "array")), "description": say(False)}
    if shape.random() < 0.5:
        parameter |= {"enum": [say(False), "x"], say(False) + "x": say(False)}
    properties = {say(False) + f"p{number}": parameter, "plain": {"type": "string", "description": say(False)}}
    return {"type": "function", "function": {
        "name": say(False) + f"f{number}", "description": say(False),
        "parameters": {"type": "object", "properties": properties, "required": ["plain"]}}}


def _call(shape: random.Random, say: Say, number: int) -> dict:
    values = [say(True), [say(True), 1, None], {say(True) + "k": say(True)}, shape.choice((1, 2.5, True, None))]
    arguments = {say(True) + f"a{place}": value for place, value in enumerate(shape.sample(values, 2))}
    return {"type": "function", "id": f"call0000{number}",
            "function": {"name": say(True) + f"f{number}", "arguments": arguments}}


@dataclass
class Outcome:
    """The outcome of one case.

    refused: the reason, if the attack was refused; refused_shape: the reason, if its harmless twin was refused too.
    looked_for: the template itself renders something else because it found a string it searches for.
    """

    refused: str | None = None
    refused_shape: str | None = None
    looked_for: bool = False
    sequences: int = 0
    turns: int = 0
    problems: list[str] = field(default_factory=list)


class Run(NamedTuple):
    """One stretch of supervised tokens."""

    ids_before: list[int]
    ids: list[int]


def check_attack(subject: Subject, attack: Conversation, twin: Conversation) -> Outcome:
    """Checks that text stayed text, and that every answer follows the ids that a chat would show before it."""
    outcome = Outcome()
    template = subject.template
    if any(message["role"] == "assistant" and not any(map(message.get, ("content", "tool_calls", "reasoning_content")))
           for message in attack.messages):
        outcome.refused_shape = "an empty answer, which no row may have"
        return outcome
    try:
        harmless = template.encode(twin)
    except UserError as error:
        outcome.refused_shape = reason(error)
        return outcome
    try:
        sequences = template.encode(attack)
        outcome.problems += template.prompt_mismatches(attack)
    except UserError as error:
        outcome.refused = reason(error)
        return outcome
    outcome.sequences = len(sequences)
    differences = list(_differences(subject, sequences, harmless))
    outcome.looked_for = bool(differences) and any(
        text in part for part in iter_strings([*attack.messages, attack.tools]) for text in subject.looked_for)
    if not outcome.looked_for:
        outcome.problems += differences
    indices = iter([index for index, message in enumerate(attack.messages) if message["role"] == "assistant"])
    for sequence in sequences:
        text = ""
        for run in supervised_runs(sequence):
            outcome.turns += 1
            text = _check_turn(subject, attack, next(indices, 0), run, outcome.problems)
        decoded = template.tokenizer.decode(sequence.input_ids.tolist())
        if decoded != text:
            outcome.problems.append(f"decodes to {decoded!r} but is rendered as {text!r}")
        if not subject.transforms:
            outcome.problems += _too_many_tokens(subject, attack, sequence, decoded)
    if next(indices, None) is not None:
        outcome.problems.append("a turn is not supervised")
    return outcome


def check_benign(subject: Subject, seed: int) -> tuple[str | None, str | None]:
    """Returns why a harmless conversation is refused, if it is, and what is wrong with that or with its ids."""
    conversation = make_benign(seed)
    try:
        sequences = subject.template.encode(conversation)
    except UserError as error:
        try:
            subject.template.encode(make_conversation(random.Random(seed), lambda own: "words"))
        except UserError:
            return reason(error), None
        return reason(error), f"is refused for its text: {reason(error)}"
    for sequence in sequences:
        ids = sequence.input_ids.tolist()
        tokens = [token_id for token_id in ids if token_id in subject.control_of]
        spelled = [token_id for token_id in subject.template.tokenizer.encode(
            subject.template.tokenizer.decode(ids)) if token_id in subject.control_of]
        if tokens != spelled:
            return None, f"has the control tokens {tokens}, while its template writes {spelled}"
    return None, None


def supervised_runs(sequence: TokenSequence) -> list[Run]:
    ids = sequence.input_ids.tolist()
    edges = np.flatnonzero(np.diff(sequence.supervised, prepend=False, append=False)).tolist()
    return [Run(ids[:start], ids[start:end]) for start, end in zip(edges[0::2], edges[1::2], strict=True)]


def reason(error: UserError) -> str:
    """Returns the kind of a refusal."""
    text = str(error).split(": ", 1)[1]
    if "prompts for this answer" in text:
        return "prompts for an answer otherwise than it renders it"
    if "does not render" in text:
        return "does not render " + text.split("does not render ", 1)[1].split(", so ", 1)[0]
    return text.split(": ", 1)[1] if "refuses the conversation" in text else text


def _differences(subject: Subject, sequences: list[TokenSequence], harmless: list[TokenSequence]) -> Iterator[str]:
    """Compares the control tokens, of the whole and of each supervised stretch, with those of the twin."""
    def control(ids: list[int]) -> list[str]:
        return [subject.control_of[token_id] for token_id in ids if token_id in subject.control_of]

    for ours, theirs in zip_longest(sequences, harmless):
        if ours is None or theirs is None:
            yield f"{len(sequences)} sequences, while the twin has {len(harmless)}"
            return
        found, expected = control(ours.input_ids.tolist()), control(theirs.input_ids.tolist())
        if not _are_alike(subject, found, expected):
            yield f"control tokens {found}, while the twin has {expected}"
        learned, expected_runs = ([control(run.ids) for run in supervised_runs(s)] for s in (ours, theirs))
        if len(learned) != len(expected_runs) or not all(map(partial(_are_alike, subject), learned, expected_runs)):
            yield f"supervised control tokens {learned}, while the twin has {expected_runs}"


def _are_alike(subject: Subject, found: list[str], expected: list[str]) -> bool:
    if not subject.transforms:
        return found == expected
    written, expected_written = ([token for token in tokens if token not in ASSISTANT_TAGS]
                                 for tokens in (found, expected))
    return written == expected_written and Counter(found) <= Counter(expected)


def _check_turn(subject: Subject, attack: Conversation, index: int, run: Run, problems: list[str]) -> str:
    """Checks that a supervised stretch is the answer and one end of turn; returns the text rendered so far."""
    template, decode = subject.template, subject.template.tokenizer.decode
    thinking = has_reasoning(attack.messages[index])
    prompt = template.render(attack.messages[:index], attack.tools, True, thinking)
    full = template.render(attack.messages[:index + 1], attack.tools, False, thinking)
    if template.appends_end_of_turn:
        full += template.end_of_turn
    if decode(run.ids_before) != prompt:
        problems.append(f"before turn {index} stands {decode(run.ids_before)!r}, while {prompt!r} asks for it")
    answer = decode(run.ids)
    rest = full[len(prompt + answer):]
    if not full.startswith(prompt + answer):
        problems.append(f"turn {index} is learned as {answer!r}, which is not what is rendered: {full!r}")
    if template.end_of_turn_id in run.ids[:-1]:
        problems.append(f"turn {index} ends before its end: {answer!r}")
    # gpt-oss ends a turn that calls a tool with a different token.
    if (run.ids[-1] != template.end_of_turn_id and rest) or OWN_WORD.search(rest):
        problems.append(f"turn {index} is learned only to {answer!r}, and not {rest!r}")
    if [token_id for token_id in run.ids if token_id in subject.control_of] == [template.end_of_turn_id]:
        as_text = template.tokenizer.encode_ordinary(answer.removesuffix(template.end_of_turn))
        if run.ids[:-1] != as_text:
            problems.append(f"turn {index} has {len(run.ids) - 1} tokens, its text has {len(as_text)}")
    return full


def _too_many_tokens(subject: Subject, attack: Conversation, sequence: TokenSequence, decoded: str) -> Iterator[str]:
    """Yields control tokens that occur more often than the template spells them: the rest came from the data."""
    spelled = Counter({token: decoded.count(token) for token in subject.control})
    for token, count in _spelled_by_data(subject, attack, decoded).items():
        spelled[token] -= count
    for token_id, count in Counter(sequence.input_ids.tolist()).items():
        token = subject.control_of.get(token_id)
        if token and count > spelled[token]:
            yield f"{token} is there {count} times, but only {spelled[token]} of its spellings are the template's"


def _spelled_by_data(subject: Subject, attack: Conversation, decoded: str) -> Counter:
    """Counts the control tokens spelled in texts that a unique word identifies."""
    spelled: Counter = Counter()
    seen = set()
    for message in [*attack.messages, {"role": "tools", "tools": attack.tools or []}]:
        # An assistant's tags are tags, and a template may cut what it searches for and write it itself.
        own = [*ASSISTANT_TAGS, *subject.looked_for] if message["role"] == "assistant" else []
        for text in iter_strings({name: value for name, value in message.items() if name != "role"}):
            written = [form for form in {text.strip(), json.dumps(text, ensure_ascii=False)[1:-1].strip()}
                       if form in decoded]
            if not OWN_WORD.search(text) or text in seen or not written:
                continue
            seen.add(text)
            for token in subject.control:
                if not any(token in text for text in own):
                    spelled[token] += written[0].count(token)
    return spelled
