"""A run killed anywhere resumes to the bits of an undisturbed one: a short proofs/kill_and_resume.py."""

import random

import kill_and_resume
import pytest
from places import PLACES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("variant", kill_and_resume.VARIANTS)
def test_killed_and_resumed_runs_end_with_the_same_bits(tmp_path, variant):
    tally = kill_and_resume.Tally()
    kill_and_resume.kill_and_resume(tmp_path, variant, len(PLACES) + 1, random.Random(7), tally)
    assert tally.kills.total() == len(PLACES) + 1
    assert len(tally.kills) >= len(PLACES) - 1, "every place but possibly that of the weights"
    assert tally.lost == []
