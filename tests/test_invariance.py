"""The gradient of a step does not depend on its division: proofs/gradient_invariance.py, but for similar variants."""

import gradient_invariance
import pytest

pytestmark = pytest.mark.slow


SIMILAR = {f"{ranks} ranks, {parallel}, micro-batches of {tokens} tokens" for ranks, parallel, tokens in (
    (2, "DDP", 48), (2, "FSDP", 4096), (4, "DDP", 4096), (4, "FSDP", 48))}
"""The other four have each number of ranks with either size, and with DDP and FSDP."""


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return gradient_invariance.measure([cut for cut in gradient_invariance.CUTS if cut.name not in SIMILAR])


def test_every_division_gives_the_gradient_of_the_whole_batch(rows):
    assert len(rows) == 25 - len(SIMILAR)
    for row in rows:
        assert all(row[name] <= 1e-10 for name in gradient_invariance.COMPARED), row
    assert any(row["dense"] > 0 for row in rows), "no variant sums in another order"


def test_the_measure_detects_wrong_gradients():
    controls = gradient_invariance.measure_controls()
    assert len(controls) == 2
    assert all(value > 1e-3 for value in controls.values()), controls
