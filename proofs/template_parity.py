"""Compares rendered chat templates and their ids with those of transformers, for the same conversations.

    python proofs/template_parity.py [--minimind FOLDER] [--json proofs/results/template_parity.json]

Text: every case below, with and without the generation prompt, with thinking on, off and by default, for the bundled
templates, MiniMind-3's (FOLDER holds its tokenizer) and every template of TRL's package. Each rendering must equal that
of `apply_chat_template` character for character, or both must refuse.

Ids: a sequence is encoded in pieces, cut at both ends of every answer. The pieces are found again in transformers'
rendering. (1) Our ids are transformers' ids of each piece. (2) They are also transformers' ids of the uncut text,
except in words with a cut inside or in the white space around a cut. (A word is what the pre-tokenizer makes of the
text: a merge never crosses a word's end, and where a word ends in white space depends on what follows.)
"""

import argparse
import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import tokenizers
import transformers
from templates import NamedTemplate, all_templates
from tqdm import tqdm
from transformers.utils import chat_template_utils

from minimind_sft.data.chat_template import ChatTemplate, has_reasoning
from minimind_sft.data.conversation import Conversation
from minimind_sft.data.template_marks import THINKING_FLAGS, MarkedTemplate, Request
from minimind_sft.data.template_sandbox import PINNED_DATE
from minimind_sft.errors import UserError, run_program

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city, e.g. \"Rom\"",
     "parameters": {"type": "object", "required": ["city"], "properties": {
         "city": {"type": "string", "description": "城市 & <country>"},
         "unit": {"type": "string", "enum": ["C", "F"]}}}}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {
        "type": "object", "properties": {}}}},
]


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def says(content: str, **more: Any) -> dict:
    return {"role": "assistant", "content": content, **more}


def call(name: str, call_id: str, **arguments: Any) -> dict:
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}


def result(content: str, name: str, call_id: str) -> dict:
    return {"role": "tool", "content": content, "name": name, "tool_call_id": call_id}


SYSTEM = {"role": "system", "content": "Be brief."}
CASES: dict[str, tuple[list[dict], list[dict] | None]] = {
    "plain": ([user("What is 1 < 2?"), says("It is true.")], None),
    "question waiting": ([user("Who?")], None),
    "system": ([SYSTEM, user("Who?"), says("Me.")], None),
    "empty system": ([{"role": "system", "content": ""}, user("Who?"), says("Me.")], None),
    "several turns": ([SYSTEM, user("One?"), says("1"), user("Two?"), says("2"), user("Three?"), says("3")], None),
    "Chinese": ([user("你好,“世界”?"), says("你好!\n很高兴😀。")], None),
    "blank lines": ([user("\n\n  Who?  \n\n"), says("\n\n  Me.  \n\n"), user(" \n"), says("\tYes \n")], None),
    "empty answer": ([user("Who?"), says(""), user("?"), says("Me.")], None),
    "markup": ([user("{{ 7 * 7 }} {% if %} <b>&amp;</b> 'x' \"y\" \\n"), says("{# no #} <i>\u2028</i>")], None),
    "reasoning": ([user("Who?"), says("Me.", reasoning_content="The asker\nwants a name.")], None),
    "reasoning, several turns": ([user("One?"), says("1", reasoning_content="count"), user("Two?"),
                                  says("2", reasoning_content="\ncount on\n"), user("Three?"), says("3")], None),
    "reasoning in the content": ([user("One?"), says("<think>\ncount\n</think>\n\n1"), user("Two?"), says("2")], None),
    "tools": ([user("Hello"), says("Hello!")], TOOLS),
    "system and tools": ([SYSTEM, user("Hello"), says("Hello!")], TOOLS),
    "tool call": ([user("Weather?"), says("", tool_calls=[call("get_weather", "call00001", city="罗马", unit="C")]),
                   result('{"t": 20.5}', "get_weather", "call00001"), says("20.5 degrees.")], TOOLS),
    "call waiting for its result": ([user("Weather?"), says("", tool_calls=[call("now", "call00001")]),
                                     result("noon", "now", "call00001")], TOOLS),
    "words, reasoning and a call": (
        [user("Weather?"), says("I look.", reasoning_content="look", tool_calls=[
            call("get_weather", "call00001", city="a\"b\n", deep={"x": [1, None, True, 2.5]})]),
         result("rain", "get_weather", "call00001"), says("Rain.", reasoning_content="so"), user("Thanks"),
         says("Bye.")], TOOLS),
    "two calls": ([user("Both?"), says("", tool_calls=[call("now", "call00001"),
                                                       call("get_weather", "call00002", city="Rom")]),
                   result("noon", "now", "call00001"), result("sun", "get_weather", "call00002"), says("Sun.")], TOOLS),
}


class Peer:
    """transformers' tokenizer with the same template."""

    def __init__(self, named: NamedTemplate, content_in_parts: bool):
        state = named.tokenizer.__reduce__()[1][0]
        # The post-processor of byte-level tokenizers cuts blanks off the offsets.
        self.tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps({**state, "post_processor": None})),
            **named.tokenizer.special)
        self.tokenizer.chat_template = named.source
        self.content_in_parts = content_in_parts

    def render(self, messages: list[dict], tools: list[dict] | None, ask: bool, thinking: bool | None) -> str | None:
        """Returns the rendering; None if the template refuses."""
        if self.content_in_parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        flags = {} if thinking is None else dict.fromkeys(THINKING_FLAGS, thinking)
        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=ask,
                                                      tokenize=False, **flags)
        except Exception:  # a template may raise anything
            return None


class TextCounts(NamedTuple):
    equal: int
    both_refuse: int
    differs: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minimind", type=Path, metavar="FOLDER", help="folder with MiniMind-3's tokenizer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    arguments = parser.parse_args()
    with mock.patch.object(chat_template_utils, "datetime", PinnedDatetime):
        rows = [measure(named) for named in tqdm(all_templates(arguments.minimind), unit="template")]
    print_table(rows)
    if arguments.json:
        versions = {"transformers": transformers.__version__, "cases": list(CASES)}
        arguments.json.write_text(json.dumps({**versions, "templates": rows}, indent=1, ensure_ascii=False) + "\n",
                                  encoding="utf-8")


class PinnedDatetime(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return PINNED_DATE


def measure(named: NamedTemplate) -> dict[str, Any]:
    """Measures one template; returns its row of the table."""
    marked = MarkedTemplate(named.tokenizer, named.source)
    peer = Peer(named, marked.content_in_parts)
    text = compare_texts(marked, peer)
    row = {"template": named.name, "renderings": text.equal + text.both_refuse + len(text.differs),
           "equal": text.equal, "both_refuse": text.both_refuse, "differs": text.differs}
    try:
        template = named.load()
    except UserError as error:
        return {**row, "sequences": None, "earlier_reasoning": earlier_reasoning(peer), "sequences_compared": 0,
                "ids_equal": 0, "cuts_that_matter": 0, "rows_refused": len(CASES), "verdict": f"refused: {error}"}
    ids = compare_ids(template, peer)
    plain = Conversation((user("a"), says("b"), user("c"), says("d")), None, "")
    sequences = len(template.encode(plain))
    verdict = "one sequence" if sequences == 1 else "split"
    if template.appends_end_of_turn:
        verdict += f", with --end_of_turn {template.end_of_turn}"
    return {**row, "sequences": sequences, "earlier_reasoning": earlier_reasoning(peer), **ids, "verdict": verdict}


def compare_texts(marked: MarkedTemplate, peer: Peer) -> TextCounts:
    equal, both_refuse, differs = 0, 0, []
    for name, (messages, tools) in CASES.items():
        for ask in (False, True):
            for thinking in (None, False, True):
                theirs = peer.render(messages, tools, ask, thinking)
                try:
                    (ours,) = marked.plain_texts(messages, tools, [Request(len(messages), ask, thinking)], name)
                except UserError:
                    ours = None
                equal += ours == theirs and ours is not None
                both_refuse += ours is None and theirs is None
                if ours != theirs:
                    differs.append(f"{name}, generation prompt {ask}, thinking {thinking}")
    return TextCounts(equal, both_refuse, differs)


def earlier_reasoning(peer: Peer) -> str:
    """Returns how the template treats the reasoning of turns before the last."""
    messages = [user("a"), says("b", reasoning_content="FIRST"), user("c"), says("d", reasoning_content="SECOND")]
    text = peer.render(messages, None, False, True)
    if text is None:
        return "refused"
    if "SECOND" not in text:
        return "none is written" if "FIRST" not in text else "only the first"
    return "kept" if "FIRST" in text else "dropped"


def compare_ids(template: ChatTemplate, peer: Peer) -> dict[str, int]:
    """Counts, over all cases, sequences compared, equal ones, cuts that change an id, and rows only we refuse."""
    compared = equal = cuts_that_matter = refused = 0
    for name, (messages, tools) in CASES.items():
        try:
            sequences = template.encode(Conversation(tuple(messages), tools, name))
        except UserError:
            refused += peer.render(messages, tools, False, None) is not None
            continue
        for sequence, (text, cuts) in zip(sequences, peer_sequences(template, peer, messages, tools), strict=True):
            pieces, changed = encode_pieces(peer, text, cuts)
            compared += 1
            equal += sequence.input_ids.tolist() == [token_id for token_id, _, _ in pieces]
            cuts_that_matter += changed
    return {"sequences_compared": compared, "ids_equal": equal, "cuts_that_matter": cuts_that_matter,
            "rows_refused": refused}


def peer_sequences(template: ChatTemplate, peer: Peer, messages: list[dict],
                   tools: list[dict] | None) -> list[tuple[str, list[int]]]:
    """Returns the text of every sequence and where to cut it, from transformers' renderings alone."""
    turns = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            thinking = has_reasoning(message)
            prompt = peer.render(messages[:index], tools, True, thinking)
            full = peer.render(messages[:index + 1], tools, False, thinking)
            end = full.find(template.end_of_turn, len(prompt))
            answered = full if end < 0 else full[:end + len(template.end_of_turn)]
            turns.append((prompt, answered, full))
    sequences = []
    for index, (_, answered, full) in enumerate(turns):
        follows = index + 1 < len(turns) and turns[index + 1][0].startswith(answered)
        if follows and not template.appends_end_of_turn:
            continue
        if template.appends_end_of_turn:
            full += template.end_of_turn
        cuts = [at for before, said, _ in turns[:index + 1] if full.startswith(said) for at in (len(before), len(said))]
        if template.appends_end_of_turn:
            cuts.pop()  # the answer now ends where the text does
        sequences.append((full, cuts))
    return sequences


def encode_pieces(peer: Peer, text: str, cuts: list[int]) -> tuple[list[tuple[int, int, int]], int]:
    """Returns (id, start, end) of all tokens of the cut text, and how many cuts change an id of the uncut text.

    Raises:
        AssertionError: if the ids of the uncut text differ anywhere else.
    """
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece = peer.tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        pieces += [(token_id, start + a, start + b)
                   for token_id, (a, b) in zip(piece["input_ids"], piece["offset_mapping"], strict=True)]
    whole = peer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = [(token_id, a, b) for token_id, (a, b) in zip(whole["input_ids"], whole["offset_mapping"], strict=True)]
    words: dict[int, tuple[int, int]] = {}
    for word, (_, a, b) in zip(whole.word_ids(), tokens, strict=True):
        first, last = words.get(word, (a, b))
        words[word] = min(first, a), max(last, b)
    at_cuts = [around(text, cut, list(words.values())) for cut in cuts]
    changed = (Counter(pieces) - Counter(tokens)) + (Counter(tokens) - Counter(pieces))
    changed_at = {next((place for place in at_cuts if place[0] <= a and b <= place[1]), None) for _, a, b in changed}
    assert None not in changed_at, text
    return pieces, len(changed_at)


def around(text: str, cut: int, words: list[tuple[int, int]]) -> tuple[int, int]:
    """Returns the range in which a cut can matter: the white space around it, and the words touching that."""
    start = len(text[:cut].rstrip())
    end = len(text) - len(text[cut:].lstrip())
    reached = [word for word in words if (word[0] < end and start < word[1]) or word[0] < cut < word[1]]
    return min([start, *(word[0] for word in reached)]), max([end, *(word[1] for word in reached)])


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = ["template", "renderings", "equal", "both refuse", "differ", "two turns", "earlier reasoning",
               "sequences with equal ids", "cuts that change an id", "rows refused", "verdict"]
    table = [columns] + [[
        row["template"], row["renderings"], row["equal"], row["both_refuse"], len(row["differs"]),
        row["sequences"] or "-", row["earlier_reasoning"], f"{row['ids_equal']} of {row['sequences_compared']}",
        row["cuts_that_matter"], row["rows_refused"], row["verdict"]] for row in rows]
    widths = [max(len(str(line[column])) for line in table) for column in range(len(columns) - 1)]
    for number, line in enumerate(table):
        cells = [str(cell).ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)]
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "|".join("-" * (len(cell) + 2) for cell in cells) + "|")


if __name__ == "__main__":
    run_program(main)
