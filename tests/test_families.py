"""Every family read from a folder of transformers' and compared with what transformers computes."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

import transformers
from family_models import (
    CASES,
    Batch,
    as_old,
    batch,
    gradients,
    our_logits,
    our_model,
    their_logits,
    their_loss,
    their_model,
)

from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.folder import read_folder


@dataclass
class Case:
    """transformers' model of one case, and the folder that it was saved to."""

    model: transformers.PreTrainedModel
    folder: Path
    documents: Batch


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    model, folder = their_model(*CASES[request.param]), tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return Case(model, folder, batch())


def test_logits(case: Case):
    ours, theirs = our_logits(our_model(case.folder), case.documents), their_logits(case.model, case.documents)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert theirs.std() > 0.5


def test_loss_and_every_gradient(case: Case, tmp_path: Path):
    """Ours for all documents at once, theirs for one after the other."""
    ours, documents = our_model(case.folder), case.documents
    loss = ours(documents.input_ids, documents.labels, documents.cu_seqlens).loss_sum
    loss.backward()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32)
    expected_loss = their_loss(theirs, documents)
    expected_loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-4)

    gradients(theirs).save_pretrained(tmp_path)
    expected = read_folder(tmp_path).tensors
    found = gradients(ours).state_dict()
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm().item()
    assert total > 1
    for name, gradient in expected.items():
        # Some gradients are 0 but for rounding, such as that of a bias of keys without RoPE.
        assert found[name].norm().item() == pytest.approx(gradient.norm().item(), rel=1e-4, abs=1e-6 * total), name
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * total, msg=name)


def test_shards_and_an_old_configuration_are_the_same_model(case: Case, tmp_path: Path):
    case.model.save_pretrained(tmp_path, max_shard_size="10KB")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(as_old(json.loads(path.read_text()))))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected, found = read_folder(case.folder), read_folder(tmp_path)
    assert found.config == expected.config
    torch.testing.assert_close(dict(found.tensors), dict(expected.tensors), rtol=0, atol=0)


def test_a_written_configuration_is_read_as_the_same_by_us_and_by_transformers(case: Case, tmp_path: Path):
    weights = read_folder(case.folder)
    family = FAMILIES[weights.family]
    written = json.loads(json.dumps(family.write_config(weights.config)))
    assert family.read_config(written) == weights.config
    assert family.read_config(as_old(written)) == weights.config
    for name, values in (("5", written), ("4", {k: v for k, v in written.items() if k != "rope_parameters"})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(values))
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
        model.load_state_dict(case.model.state_dict())
        assert type(model) is type(case.model) and values["architectures"] == [type(model).__name__]
        torch.testing.assert_close(their_logits(model.eval(), case.documents),
                                   their_logits(case.model, case.documents), rtol=0, atol=1e-6)


def test_tensors_are_written_back_as_they_were(case: Case):
    weights, theirs = read_folder(case.folder), load_file(case.folder / "model.safetensors")
    entries = FAMILIES[weights.family].entries(weights.config)
    back = {entry.theirs: entry.to_theirs([weights.tensors[name] for name in entry.ours]) for entry in entries}
    torch.testing.assert_close(back, theirs, rtol=0, atol=0)


def test_files_without_the_prefix_of_the_model(case: Case, tmp_path: Path):
    """Saved from the model without its head, as GPT-2 itself is."""
    prefix = FAMILIES[case.model.config.model_type].prefix
    tensors = {name.removeprefix(prefix): tensor
               for name, tensor in load_file(case.folder / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((case.folder / "config.json").read_bytes())
    assert dict(read_folder(tmp_path).tensors).keys() == dict(read_folder(case.folder).tensors).keys()
