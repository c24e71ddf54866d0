"""proofs/export_readers.py: what its cells say of one tiny model."""

from dataclasses import replace

import pytest
from export_models import CONFIGS, UNNORMALISED, random_weights
from exports import export_of

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from export_readers import folder_cells, gguf_cells, minimind_cells  # noqa: E402


def test_each_reader_computes_what_we_compute(tmp_path):
    export = export_of(CONFIGS["llama"])
    cells = folder_cells(export, tmp_path / "huggingface") | gguf_cells(export, tmp_path)
    assert (cells["layout"], cells["prompt"], cells["ours, folder"]) == ("llama", "same ids", "0e+00")
    for column in ("transformers, folder", "transformers, GGUF"):
        difference, ids = cells[column].split(", ")
        assert float(difference) < 1e-4 and ids == "same ids"
    assert minimind_cells(export, tmp_path / "x.pth", None) == {"MiniMind": "not given"}


def test_refusals_name_the_field(tmp_path):
    export = replace(export_of(CONFIGS["llama"]), weights=random_weights(UNNORMALISED))
    assert minimind_cells(export, tmp_path / "x.pth", None) == {"MiniMind": "refused: norm_topk_prob"}
    assert set(gguf_cells(export, tmp_path).values()) == {"refused: norm_topk_prob"}
