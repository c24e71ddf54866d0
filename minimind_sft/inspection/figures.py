"""Formats what the terminal and the page share: bars of lengths, lines of findings, a file's figures."""

from collections import Counter
from typing import NamedTuple

from minimind_sft.inspection.report import Plan
from minimind_sft.inspection.tally import KINDS, Finding, Tally
from minimind_sft.report.formats import percent
from minimind_sft.terminal import counted

BARS = 12
LINES_NAMED = 10
FIELDS_NAMED = 20


class Bar(NamedTuple):
    """The number of sequences of `first` to `last` tokens; `is_over`: longer than max_seq_len."""

    first: int
    last: int
    sequences: int
    is_over: bool


def bars(lengths: Counter, max_seq_len: int) -> list[Bar]:
    """Returns about `BARS` bars of equal width up to the longest sequence, and one for all above max_seq_len."""
    if not lengths:
        return []
    top = min(max(lengths), max_seq_len)
    width = -(-top // BARS)
    over = sum(count for length, count in lengths.items() if length > max_seq_len)
    found = []
    for first in range(1, top + 1, width):
        last = min(first + width - 1, top)
        count = sum(count for length, count in lengths.items() if first <= length <= last)
        found.append(Bar(first, last, count, False))
    return [*found, Bar(max_seq_len + 1, max(lengths), over, True)] if over else found


def quantile(lengths: Counter, share: float) -> int:
    """Returns the length that `share` of the sequences do not exceed."""
    left = share * lengths.total()
    for length in sorted(lengths):
        left -= lengths[length]
        if left <= 0:
            return length
    return max(lengths)


def figures(tally: Tally) -> list[tuple[str, str]]:
    """Returns (name, value) of everything that is not a finding."""
    counts = tally.counts
    forms = ", ".join(f"{form} {count:,}" for form, count in tally.forms.most_common())
    lines = [("rows", f"{tally.usable:,} of {counts.rows:,}" + (f"; by form: {forms}" if forms else ""))]
    if tally.ignored:
        lines.append(("ignored", f"fields that nothing reads, by rows: {_most_common(tally.ignored)}"))
    if not tally.lengths:
        return lines
    lines.append(("tokens", f"{counts.tokens:,} in {counted(tally.sequences, 'sequence')}, {counts.supervised:,} "
                            f"supervised ({percent(tally.supervised_share)})"))
    if tally.turns:
        lines.append(("answers", f"{tally.turns:,} supervised, {percent(tally.ended_share)} of them with their end of "
                                 "turn"))
    if tally.compared:
        differ = tally.findings["mismatched"].count
        found = f"{counted(differ, 'row')} with other ids" if differ else "the same ids before all"
        lines.append(("prompts", f"{counted(tally.compared, 'answer')} compared with a chat: {found}"))
    return lines


def _most_common(names: Counter) -> str:
    common = sorted(names.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {count:,}" for name, count in common[:FIELDS_NAMED])
    return shown + ", ..." * (len(common) > FIELDS_NAMED)


def lengths_line(lengths: Counter, max_seq_len: int) -> str:
    return (f"median {quantile(lengths, 0.5):,}, 95% up to {quantile(lengths, 0.95):,}, longest {max(lengths):,} "
            f"tokens; max_seq_len {max_seq_len:,}")


def findings(tally: Tally) -> list[tuple[str, Finding, str]]:
    """Returns (kind, finding, description) of each kind that was found."""
    return [(kind, finding, f"{counted(finding.count, 'row')} {KINDS[kind].what}")
            for kind, finding in tally.findings.items() if finding.count]


def plan_line(plan: Plan | None) -> str:
    if plan is None:
        return "none: there is nothing to train on"
    held_out = f"; {plan.held_out:,} held out for evaluation" if plan.held_out else ""
    all_steps = plan.epochs * plan.steps_per_epoch
    limit = f", stopped by --max_steps {plan.steps:,}" if plan.steps < all_steps else ""
    return (f"{plan.steps:,}: {counted(plan.epochs, 'epoch')} of {counted(plan.steps_per_epoch, 'step')}{limit}; "
            f"{counted(plan.samples_per_step, 'sample')} a step, {counted(plan.samples, 'sample')} an epoch{held_out}")
