"""Writes the report of a run, with what the inspector finds in the first rows of its data.

Looking at all rows would take as long as preparing them did; scripts/inspect_data.py does that.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from minimind_sft.data.reading import read_raw_rows
from minimind_sft.data.samples import PretrainEncoder, SFTEncoder
from minimind_sft.data.sources import Source, find_eval_sources, find_sources
from minimind_sft.errors import UserError, one_line
from minimind_sft.inspection.figures import figures, lengths_line
from minimind_sft.inspection.page import shown_findings
from minimind_sft.inspection.report import make_report
from minimind_sft.inspection.survey import survey_chunk
from minimind_sft.inspection.tally import Tally
from minimind_sft.paths import shown
from minimind_sft.report.run_page import Inspected, write_run_page
from minimind_sft.settings.training import TrainSettings

MAX_ROWS = 1000
"""Rows to look at, of all files together: about a second."""
MAX_FILES = 10


def write_report(path: Path, metrics: Path, settings: TrainSettings, encoder: SFTEncoder | PretrainEncoder) -> str:
    """Writes the report of a run as a page, and returns the line that says so.

    A report that cannot be written never makes a run fail: the line says why there is none.

    Args:
        path: the page to write.
        metrics: the metrics file of the run.
    """
    try:
        inspected, looked_at = inspect_beginnings(settings, encoder)
    except Exception as error:  # for instance a file that has gone since it was prepared
        inspected, looked_at = [], f"The inspector could not look at the data: {one_line(error)}"
    try:
        write_run_page(path, metrics, inspected, looked_at)
    except UserError as error:
        return f"report      none: {one_line(error)}"
    except Exception as error:  # the weights are written; nothing about a page is worth a failed run
        return f"report      none: {shown(path)}: {type(error).__name__}: {one_line(error)}"
    return f"report      {shown(path)}"


def inspect_beginnings(settings: TrainSettings,
                       encoder: SFTEncoder | PretrainEncoder) -> tuple[list[Inspected], str]:
    """Returns what the inspector finds in the first rows of the first files, and which rows those are, in words.

    Raises:
        UserError: for a file that cannot be read.
    """
    data = settings.data
    sources, eval_sources = (_first(found) for found in (find_sources(data.data_path, "--data_path"),
                                                         find_eval_sources(data.eval_data_path)))
    files = list(dict.fromkeys(path for source in (*sources, *eval_sources) for path in source.files))
    rows = MAX_ROWS // len(files)
    tallies = {}
    for path in files:
        first = list(islice(read_raw_rows(path), rows))
        tallies[path] = survey_chunk(first, encoder, check_prompts=False).get(str(path), Tally())
    report = make_report(tallies, sources, eval_sources, settings, ranks=1, strict=False)
    inspected = []
    for part in report.parts:
        lengths = [("lengths", lengths_line(part.tally.lengths, data.max_seq_len))] if part.tally.lengths else []
        inspected.append(Inspected(shown(part.name), part.role, [*figures(part.tally), *lengths],
                                   shown_findings(part)))
    whole = all(tally.counts.rows < rows for tally in tallies.values())
    return inspected, "" if whole else (f"The inspector has looked at the first {rows:,} rows of each file; "
                                        "scripts/inspect_data.py looks at all of them.")


def _first(sources: Sequence[Source]) -> list[Source]:
    """Returns the first files of the sources, half of `MAX_FILES`."""
    left, kept = MAX_FILES // 2, []
    for source in sources:
        if left > 0:
            kept.append(source._replace(files=source.files[:left]))
            left -= len(source.files)
    return kept
