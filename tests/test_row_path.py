"""proofs/row_path.py counts the code between a line of JSONL and an optimizer step."""

import json

import pytest
import row_path

pytestmark = pytest.mark.slow


def test_the_path_covers_reading_to_step_without_setup(tmp_path):
    file = tmp_path / "row.jsonl"
    file.write_text(json.dumps(row_path.LINE) + "\n")
    take_step = row_path.prepare_step(file)
    take_step()
    path = row_path.by_file(row_path.functions_entered(take_step))
    assert "read_raw_rows" in path["data/reading.py"] and "train_step" in path["training/loop.py"]
    assert "SFTEncoder.encode" in path["data/samples.py"] and "SFTEncoder.__init__" not in path["data/samples.py"]
    totals = row_path.totals(path)
    assert totals["files"] == len(path) and totals["functions"] < totals["lines"]


def test_each_function_is_counted_once(tmp_path):
    def twice() -> None:
        for _ in range(2):
            row_path.ExampleDataset([])

    path = row_path.by_file(row_path.functions_entered(twice))
    assert set(path) == {"data/dataset.py"}
    assert "ExampleDataset.__init__" in path["data/dataset.py"]
