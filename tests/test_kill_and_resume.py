"""A run killed anywhere resumes to the bits of an undisturbed one: a short proofs/kill_and_resume.py."""

import random

import kill_and_resume
import pytest
from places import PLACES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("variant", kill_and_resume.VARIANTS)
def test_killed_and_resumed_runs_end_with_the_same_bits(tmp_path, variant):
    tally, kills = kill_and_resume.Tally(), len(PLACES) + 1
    if variant == kill_and_resume.IN_4_BITS:
        pytest.importorskip("bitsandbytes", reason="a base in 4 bits needs the bitsandbytes package")
        kills = 4  # every process imports it; the other variants are killed at every place
    kill_and_resume.kill_and_resume(tmp_path, variant, kills, random.Random(7), tally)
    assert tally.kills.total() == kills
    assert len(tally.kills) >= kills - 2, "every place but possibly that of the weights"
    assert tally.lost == []
