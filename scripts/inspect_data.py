"""Shows what a run would learn from its data, and finds problems, in one pass.

    python scripts/inspect_data.py dataset/sft_demo.jsonl --eval_data_path dataset/sft_demo_heldout.jsonl
    python scripts/inspect_data.py a.jsonl:0.7 'more/*.jsonl:0.3' --max_seq_len 512 --html report.html
    python scripts/inspect_data.py sft.jsonl --check_prompts 1 --strict 1 && python trainer/train_full_sft.py ...
    python scripts/inspect_data.py sft.jsonl --from_weight ../Qwen2.5-0.5B
    python scripts/inspect_data.py book.txt --rows text --json

Takes the flags of the trainer. The exit status is 0 if the data are fine to train on, 2 for unusable flags and files,
and 1 if something is wrong: bad rows, nothing to learn, training rows in the evaluation data, an uncut answer without
its end of turn, or, with --check_prompts, an answer that training shows after other ids than a chat does.
"""

import sys
from pathlib import Path

from minimind_sft.data.chat_template import Supervision, make_template
from minimind_sft.data.samples import PretrainEncoder, SFTEncoder
from minimind_sft.data.sources import find_eval_sources, find_sources
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import run_program
from minimind_sft.inspection.page import write_report_page
from minimind_sft.inspection.report import make_report
from minimind_sft.inspection.shown import first_rows, printable
from minimind_sft.inspection.survey import survey
from minimind_sft.inspection.terminal import as_text
from minimind_sft.model.build import find_start
from minimind_sft.report.page import checked_page
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.scripts import InspectSettings
from minimind_sft.settings.training import SFTSettings, TrainSettings
from minimind_sft.terminal import can_colour, say, say_json, say_painted


def main() -> int:
    settings = parse_flags(InspectSettings, description=__doc__)
    data, wanted = settings.data, settings.report
    trainer = settings.trainer()
    sources = find_sources(data.data_path, "FILE")
    eval_sources = find_eval_sources(data.eval_data_path)
    page = checked_page(wanted.html) if wanted.html else None
    encoder = make_encoder(trainer, base=find_base(trainer) if data.from_weight else None)

    files = [path for source in (*sources, *eval_sources) for path in source.files]
    tallies = survey(files, encoder, wanted.check_prompts)
    shown = first_rows(tallies, encoder, wanted.show)
    notes = encoder.template.notes if isinstance(encoder, SFTEncoder) else []
    report = make_report(tallies, sources, eval_sources, trainer, settings.run.ranks, wanted.strict, notes)

    if page:
        write_report_page(page, report, shown)
    if wanted.json:
        say_json(report.as_json())
    else:
        say_painted(as_text(report, shown, wanted.most, can_colour()))
        if page:
            say(f"{'page':<12}{printable(str(page))}")
    return 0 if report.is_fine else 1


def find_base(trainer: TrainSettings) -> Path | None:
    """Finds the weights of --from_weight, as the trainer does."""
    return find_start(trainer.model, trainer.saving.save_dir,
                      tokenizer=lambda: load_tokenizer(trainer.data.tokenizer_path).fingerprint)


def make_encoder(trainer: TrainSettings, base: Path | None) -> SFTEncoder | PretrainEncoder:
    """Makes the encoder of the trainer that these settings are for; `base` brings its tokenizer."""
    data = trainer.data
    tokenizer = load_tokenizer(data.tokenizer_path, base)
    for notice in tokenizer.notices:
        say(notice, sys.stderr)
    if not isinstance(trainer, SFTSettings):
        return PretrainEncoder(tokenizer, data.max_seq_len)
    template = make_template(tokenizer, data.chat_template, data.end_of_turn)
    return SFTEncoder(template, data.max_seq_len, data.truncation,
                      Supervision(data.train_turns, data.train_on_prompt))


if __name__ == "__main__":
    run_program(main)
