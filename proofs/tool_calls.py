"""Shows that the calls which chat templates write are read back, however the answer is cut.

    python proofs/tool_calls.py [--minimind FOLDER] [--json proofs/results/tool_calls.json]

Goes through the bundled templates, MiniMind-3's (FOLDER holds its tokenizer) and every template of TRL's package. Each
writes answers with up to three calls: text in several scripts, quotes, line feeds, nested values, no arguments at all.
The server's reader gets each answer cut in two at every place, character by character, and as tokens, some at a time.
It must find the same calls every time. Where no format is found, the table says why requests with tools are refused.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from templates import NamedTemplate, all_templates

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.errors import UserError, run_program
from minimind_sft.inference.request import Token
from minimind_sft.serving.answers import AnswerReader
from minimind_sft.serving.tool_calls import CallPiece, CallReader
from minimind_sft.serving.tool_formats import Call, ToolFormat

STRING, INTEGER = {"type": "string", "description": "words"}, {"type": "integer", "description": "a number"}
SCHEMA = {"type": "object", "required": [], "properties": {
    "text": STRING, "digits": STRING, "count": INTEGER, "flag": {"type": "boolean", "description": "yes or no"},
    "nothing": {"type": "null", "description": "nothing"}, "deep": {"type": "object", "description": "anything"}}}
TOOLS = [{"type": "function", "function": {"name": name, "description": "does it", "parameters": SCHEMA}}
         for name in ("weather", "get_time-2")]
CALLS = (
    Call("weather", {"text": 'two "words"\n{罗马} 🙂', "digits": "5", "count": -3, "deep": {"a": [1, {"b": None}]}}),
    Call("get_time-2", {}, "call00002"),
    Call("weather", {"flag": True, "nothing": None, "text": "x"}, "call00003"))
QUESTION = {"role": "user", "content": "What is the weather?"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minimind", type=Path, metavar="FOLDER", help="folder with MiniMind-3's tokenizer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    arguments = parser.parse_args()
    rows = {named.name: measure(named) for named in all_templates(arguments.minimind)}
    alike: dict[str, list[str]] = defaultdict(list)
    for name, row in rows.items():
        alike[row.get("refused") or f"one call: {row['call']!r}"].append(name)
        if row.get("wrong"):
            print(f"{name}: {row['wrong']} of {row['readings']} readings are wrong")
    for what, names in sorted(alike.items()):
        print(f"{what}\n    {', '.join(names)}")
    read = [row for row in rows.values() if "readings" in row]
    print(f"{len(read)} of {len(rows)} templates: {sum(row['readings'] for row in read):,} readings, "
          f"{sum(row['wrong'] for row in read)} wrong")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure(named: NamedTemplate) -> dict[str, Any]:
    """Reads a template's calls in every cut; says how often, and how often they came back as others."""
    try:
        template = named.load()
    except UserError:
        return {"refused": "the template itself is refused"}
    try:
        tool_format = ToolFormat.of(template)
    except UserError as error:
        return {"refused": str(error).partition(":")[0]}
    calls = CALLS if tool_format.between is not None else CALLS[:1]
    wanted = [(call.name, dict(call.arguments)) for call in calls]
    readings = [found == wanted for found in readings_of(template, tool_format, written(template, calls))]
    return {"call": tool_format.write(CALLS[1:2]).strip(), "calls": len(calls), "readings": len(readings),
            "wrong": readings.count(False)}


def written(template: ChatTemplate, calls: Sequence[Call]) -> str:
    """Returns what the template writes for an answer, up to the end of the turn."""
    made = [{"type": "function", "id": call.id, "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for call in calls]
    answer = {"role": "assistant", "content": "", "tool_calls": made}
    prompt = template.render([QUESTION], TOOLS, True, False)
    full = template.render([QUESTION, answer], TOOLS, False, False)
    return full.removeprefix(prompt).partition(template.end_of_turn)[0]


def readings_of(template: ChatTemplate, tool_format: ToolFormat, text: str) -> Iterable[Any]:
    """Yields what is read of the text: names and arguments, or None if anything else is left over."""
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(1, len(text)))):
        calls = CallReader(tool_format, TOOLS)
        yield collected([found for piece in pieces for found in calls.push(piece)] + calls.end())
    ids = template.tokenizer.encode(text)
    for at_once in (1, 2, 3, 7, len(ids)):
        answer = AnswerReader(template.tokenizer, False, CallReader(tool_format, TOOLS))
        deltas = [delta for start in range(0, len(ids), at_once)
                  for delta in answer.push([Token(token_id) for token_id in ids[start:start + at_once]])]
        yield collected([delta.call or delta.content for delta in deltas + answer.end("stop")])


def collected(found: Sequence[str | CallPiece]) -> list[tuple[str, Any]] | None:
    """Returns the calls; None if there is other text, or if their arguments are not JSON."""
    calls: list[list[str]] = []
    for piece in found:
        if isinstance(piece, str):
            if piece.strip():
                return None
        elif piece.name is not None:
            calls.append([piece.name, piece.arguments])
        else:
            calls[-1][1] += piece.arguments
    try:
        return [(name, json.loads(arguments)) for name, arguments in calls]
    except json.JSONDecodeError:
        return None


if __name__ == "__main__":
    run_program(main)
