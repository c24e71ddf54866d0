"""Shows which fields of a conversation each chat template renders.

    python proofs/template_fields.py [--minimind FOLDER] [--json proofs/results/template_fields.json]

Probes the bundled templates, MiniMind-3's (FOLDER holds its tokenizer) and every template of TRL's package with
conversations of known words, as training does (minimind_sft/data/template_fields.py). A field is rendered ("yes"),
silently dropped ("no"), or the template itself refuses such a conversation ("refused"). Training refuses rows that need
a dropped field, and names file, line and field.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from templates import all_templates

from minimind_sft.data.template_fields import RenderedFields, Shape
from minimind_sft.data.template_marks import MarkedTemplate
from minimind_sft.errors import run_program

USER, SYSTEM, RESULT = (Shape(role, True, 0, False) for role in ("user", "system", "tool"))
ANSWER, CALL = Shape("assistant", True, 0, False), Shape("assistant", False, 1, False)
COLUMNS: dict[str, tuple[tuple[Shape, ...], bool, tuple[str, str]]] = {
    "system turn": ((SYSTEM, USER, ANSWER), False, ("system", "content")),
    "functions on offer": ((USER, ANSWER), True, ("", "tools")),
    "call": ((USER, CALL), False, ("assistant", "tool_calls")),
    "second call": ((USER, CALL._replace(calls=2)), False, ("assistant", "tool_calls")),
    "words beside a call": ((USER, CALL._replace(content=True)), False, ("assistant", "content")),
    "tool's result": ((CALL, RESULT, ANSWER), False, ("tool", "content")),
    "reasoning": ((USER, ANSWER._replace(reasoning=True)), False, ("assistant", "reasoning_content")),
    "reasoning alone": ((USER, ANSWER._replace(content=False, reasoning=True)), False,
                        ("assistant", "reasoning_content")),
}
"""For each column: the form of a conversation, whether it has tools, and the field that must be rendered."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minimind", type=Path, metavar="FOLDER", help="folder with MiniMind-3's tokenizer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    arguments = parser.parse_args()
    rows = {named.name: rendered(MarkedTemplate(named.tokenizer, named.source))
            for named in all_templates(arguments.minimind)}
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def rendered(template: MarkedTemplate) -> dict[str, str]:
    """Returns "yes", "no" or "refused" for every column."""
    refused = []

    def render(*conversation: object) -> str | None:
        text = template.probe_text(*conversation)
        refused.append(text is None)
        return text

    fields, row = RenderedFields(render), {}
    for name, (shapes, with_tools, field) in COLUMNS.items():
        refused.clear()
        is_lost = field in fields.probe(shapes, with_tools)
        row[name] = "refused" if all(refused) else "no" if is_lost else "yes"
    return row


def print_table(rows: dict[str, dict[str, str]]) -> None:
    """Prints one line for all templates that render the same fields."""
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, row in rows.items():
        alike[tuple(row.values())].append(name.removeprefix("trl/"))
    print("| templates | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for values, names in sorted(alike.items(), key=lambda group: (group[0].count("no"), group[1])):
        shown = [name for name in names if name.removesuffix("_training") == name or name[:-9] not in names]
        print(f"| {', '.join(shown)} | " + " | ".join(values) + " |")
    lost = {column: sum(row[column] == "no" for row in rows.values()) for column in COLUMNS}
    print(f"| not rendered by, of {len(rows)} | " + " | ".join(map(str, lost.values())) + " |")


if __name__ == "__main__":
    run_program(main)
