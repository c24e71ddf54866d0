"""Shows what a run would learn from its data, and finds what is wrong with them, in one pass.

    python scripts/inspect_data.py dataset/sft_demo.jsonl --eval_data_path dataset/sft_demo_heldout.jsonl
    python scripts/inspect_data.py a.jsonl:0.7 'more/*.jsonl:0.3' --max_seq_len 512 --html report.html
    python scripts/inspect_data.py sft.jsonl --check_prompts 1 --strict 1 && python trainer/train_full_sft.py ...
    python scripts/inspect_data.py book.txt --rows text --json

The flags are those of the trainer. Exit status: 0 if the data are fine to train on; 1 if something is wrong: bad rows,
nothing to learn, training rows in the evaluation data, an answer without its end of turn though nothing was cut, or,
with --check_prompts 1, an answer that is taught after other ids than a chat shows; 2 for flags and files that cannot be
used.
"""

import json
import os
import sys
from pathlib import Path

from minimind_sft.config import SFTConfig
from minimind_sft.data.chat_template import Supervision, make_template
from minimind_sft.data.samples import PretrainEncoder, SFTEncoder
from minimind_sft.data.sources import find_sources
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError, harmless, run_program
from minimind_sft.files import check_writable
from minimind_sft.flags import parse_flags
from minimind_sft.inspection.page import write_page
from minimind_sft.inspection.report import make_report
from minimind_sft.inspection.shown import first_rows, printable
from minimind_sft.inspection.survey import survey
from minimind_sft.inspection.terminal import as_text
from minimind_sft.script_config import InspectConfig
from minimind_sft.terminal import fitted


def main() -> int:
    config = parse_flags(InspectConfig, description=__doc__)
    trainer = config.trainer()
    sources = find_sources(config.data_path, "FILE")
    eval_sources = find_sources(config.eval_data_path, "--eval_data_path") if config.eval_data_path else []
    if any(source.share for source in eval_sources):
        raise UserError("--eval_data_path: expected files without shares; every row is evaluated once")
    page = checked_page(config.html) if config.html else None
    rows = make_rows(trainer)

    files = [path for source in (*sources, *eval_sources) for path in source.files]
    tallies = survey(files, rows, bool(config.check_prompts))
    shown = first_rows(tallies, rows, config.show)
    notes = rows.template.notes if isinstance(rows, SFTEncoder) else []
    report = make_report(tallies, sources, eval_sources, trainer, config.ranks, bool(config.strict), notes)

    if page:
        write_page(page, report, shown)
    if config.json:
        print(json.dumps(report.as_json(), indent=1), flush=True)
    else:
        text = as_text(report, shown, config.most, sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
        written = f"{'page':<12}{printable(str(page))}\n" if page else ""
        print(fitted(text + written, sys.stdout), end="", flush=True)
    return 0 if report.is_fine else 1


def make_rows(trainer) -> SFTEncoder | PretrainEncoder:
    """The encoder of the trainer that these settings are for."""
    tokenizer = load_tokenizer(trainer.tokenizer_path)
    for notice in tokenizer.notices:
        print(harmless(notice), file=sys.stderr)
    if not isinstance(trainer, SFTConfig):
        return PretrainEncoder(tokenizer, trainer.max_seq_len)
    template = make_template(tokenizer, trainer.chat_template, trainer.end_of_turn)
    return SFTEncoder(template, trainer.max_seq_len, trainer.truncation,
                   Supervision(trainer.train_turns, bool(trainer.train_on_prompt)))


def checked_page(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html {path}: expected a name that ends in .html")
    if path.is_dir():
        raise UserError(f"--html {path}: is a folder, expected a file or nothing")
    check_writable(path.parent, "--html")
    return path


if __name__ == "__main__":
    run_program(main)
