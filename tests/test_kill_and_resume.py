"""A run killed anywhere resumes to the bits of an undisturbed one: a short proofs/kill_and_resume.py."""

import random

import kill_and_resume
import pytest
from places import PLACES


@pytest.mark.parametrize("variant", kill_and_resume.VARIANTS)
def test_no_kill_costs_a_bit(tmp_path, variant):
    tally = kill_and_resume.Tally()
    kill_and_resume.kill_and_resume(tmp_path, variant, len(PLACES) + 1, random.Random(7), tally)
    assert tally.kills.total() == len(PLACES) + 1
    assert len(tally.kills) >= len(PLACES) - 1, "all places, but for weights written only at the end"
    assert tally.lost == []
