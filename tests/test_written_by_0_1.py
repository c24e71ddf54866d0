"""Weights, prepared data and resume states of version 0.1.0 can still be read (written_by_0_1/README.md)."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from kill_and_resume import repeatable_lines
from programs import SFT, succeed
from safetensors.torch import load_file

from minimind_sft.model.weights import read_weights

WRITTEN = Path(__file__).parent / "written_by_0_1"
WEIGHTS = ("pretrain_16.pth", "full_sft_16.pth", "pretrain_16_moe.safetensors")
FLAGS = ["--data_path", "conversations.jsonl", "--tokenizer_path", "tokenizer", "--save_dir", "out",
         "--num_hidden_layers", "2", "--max_seq_len", "64", "--micro_batch_tokens", "64", "--batch_size", "2",
         "--accumulation_steps", "2", "--eval_share", "0.1", "--log_interval", "1", "--device", "cpu",
         "--dtype", "float32", "--from_weight", "pretrain", "--use_moe", "0", "--epochs", "3", "--dropout", "0.1",
         "--keep_best", "0"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_read_as_they_were_written(name):
    path = WRITTEN / "out" / name
    stored = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    weights = read_weights(path)
    assert sidecar["model"].items() <= asdict(weights.config).items()  # later versions may add fields
    assert weights.sidecar == sidecar
    assert not weights.notices
    found = weights.build_model().state_dict()
    assert found.keys() >= stored.keys()
    for key, tensor in stored.items():
        assert torch.equal(found[key], tensor.float()), key


@pytest.mark.parametrize("name", WEIGHTS)
def test_models_compute_the_same_logits(name):
    expected = torch.tensor(json.loads((WRITTEN / "expected/logits.json").read_text())[name])
    model = read_weights(WRITTEN / "out" / name).build_model().eval()
    with torch.no_grad():
        logits = model.document_logits(torch.arange(60, 70), (0, 10))
    torch.testing.assert_close(logits[:, :8], expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """Returns the folder of the old run after the current trainer has finished it."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(WRITTEN, folder, dirs_exist_ok=True)
    before = prepared_files(folder)
    said = succeed(SFT, *FLAGS, "--from_resume", "1", cwd=folder)
    assert "resume      out/checkpoints/full_sft_16_resume/step-00000009" in said
    assert prepared_files(folder).items() > before.items(), "prepared again beside the old folders, as files were added"
    return folder


def prepared_files(folder: Path) -> dict[str, int]:
    """Returns the files of prepared data with the time each was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in (folder / "out/prepared").rglob("*")
            if path.is_file() and path.suffix != ".lock"}


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(resumed):
    """They are equal bit for bit on the machine that wrote them; others sum in another order."""
    (state,) = (resumed / "out/checkpoints/full_sft_16_resume").glob("step-00000021")
    found = load_file(state / "weights-00001-of-00001.safetensors")
    expected = load_file(WRITTEN / "expected/full_precision.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_a_resumed_run_continues_its_metrics(resumed):
    found, expected = (repeatable_lines(folder / "full_sft_16_metrics.jsonl")
                       for folder in (resumed / "out", WRITTEN / "expected"))
    for line, line_then in zip(found, expected, strict=True):
        assert {name: line[name] for name in line_then} == pytest.approx(line_then, rel=1e-4)  # later, there are more


@pytest.mark.slow
def test_a_resumed_run_describes_its_weights_as_before(resumed):
    found, expected = (json.loads((folder / "full_sft_16.json").read_text(encoding="utf-8"))
                       for folder in (resumed / "out", WRITTEN / "expected"))
    assert found.pop("sha256") and expected.pop("sha256")  # of the file; bits differ between machines
    training, training_then = found.pop("training"), expected.pop("training")
    assert found.pop("made_with").keys() == expected.pop("made_with").keys()
    assert found.pop("model").items() >= expected.pop("model").items()
    assert found.pop("family") is None  # 0.2.0 added it, and records the whole path of the tokenizer
    assert found["tokenizer_facts"].pop("name") == str(resumed / expected["tokenizer_facts"].pop("name"))
    assert found == expected
    assert "--from_resume 1" in training.pop("command") and training_then.pop("command")
    assert training.pop("eval_loss") == pytest.approx(training_then.pop("eval_loss"), rel=1e-5)
    assert training == training_then
