"""The decoder compared with MiniMind's numbers and with Qwen3 in transformers."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_decoder import TINY, TINY_MOE, build, random_batch

from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.config import ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM

# MiniMind's own numbers


@dataclass
class Reference:
    """Values that MiniMind computed with a tiny model; see REFERENCE.md beside them."""

    model: MiniMindForCausalLM
    weights: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    values: dict

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean cross-entropy and auxiliary loss as MiniMind defines them; its labels are not shifted."""
        rows, length = self.tensors["input_ids"].shape
        labels = torch.full((rows, length), IGNORE_INDEX)
        labels[:, :-1] = self.tensors["labels"][:, 1:]
        losses = self.model(self.tensors["input_ids"].flatten(), labels.flatten(), range(0, rows * length + 1, length))
        return losses.loss_sum / (labels != IGNORE_INDEX).sum(), losses.aux_loss_sum / labels.numel()


@pytest.fixture(params=["dense", "moe", "moe_top2"])
def reference(request: pytest.FixtureRequest, shared: Path) -> Reference:
    folder = shared / "reference" / "minimind" / request.param
    values = json.loads((folder / "expected.json").read_text())
    weights = torch.load(folder / "weights.pth", weights_only=True)
    # Its auxiliary loss is taken over both rows of the batch at once.
    model = MiniMindForCausalLM(ModelConfig(**values["config"], aux_loss_scope="batch"))
    model.load_state_dict(weights, strict=True)
    return Reference(model, weights, load_file(folder / "expected.safetensors"), values)


def test_minimind_state_dict_loads_and_saves_unchanged(reference: Reference):
    torch.testing.assert_close(dict(reference.model.state_dict()), dict(reference.weights), rtol=0, atol=0)


def test_logits_equal_minimind_s(reference: Reference):
    input_ids, expected = reference.tensors["input_ids"], reference.tensors["logits"]
    rows, length = input_ids.shape
    logits = reference.model.eval().document_logits(input_ids.flatten(), range(0, rows * length + 1, length))
    torch.testing.assert_close(logits.view_as(expected), expected, rtol=0, atol=1e-5)


def test_losses_equal_minimind_s(reference: Reference):
    loss, aux_loss = reference.losses()
    assert loss.item() == pytest.approx(reference.values["train_mode_loss"], rel=1e-4)
    assert aux_loss.item() == pytest.approx(reference.values["train_mode_aux_loss"], rel=1e-4)
    reference.model.eval()
    loss, aux_loss = reference.losses()
    assert loss.item() == pytest.approx(reference.values["eval_loss"], rel=1e-4)
    assert aux_loss.item() == 0.0


def test_gradient_norms_equal_minimind_s(reference: Reference):
    sum(reference.losses()).backward()
    norms = {name: gradient.norm().item() for name, gradient in named_gradients(reference.model)}
    assert norms == pytest.approx(reference.values["grad_norms_of_loss_plus_aux"], rel=1e-4)


def test_greedy_continuation_equals_minimind_s(reference: Reference):
    expected = reference.tensors["greedy_ids"][0].tolist()
    ids = expected[:8]
    while len(ids) < len(expected):
        logits = reference.model.eval().document_logits(torch.tensor(ids), (0, len(ids)))
        ids.append(int(logits[-1].argmax()))
    assert ids == expected


def named_gradients(model: MiniMindForCausalLM) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients by the names of the state dict: one for each expert."""
    for name, parameter in model.named_parameters():
        if ".experts." not in name:
            yield name, parameter.grad
            continue
        prefix, projection = name.rsplit(".", 1)
        for expert, gradient in enumerate(parameter.grad):
            yield f"{prefix}.{expert}.{projection}.weight", gradient


# transformers' Qwen3


def qwen3_logits(model: MiniMindForCausalLM, input_ids: torch.Tensor, folder: Path, rope: dict) -> torch.Tensor:
    """Returns the logits of Qwen3 or Qwen3-MoE in transformers, which loads our state dict from a folder."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    options = {
        name: getattr(config, name) for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    }
    rope = {"rope_type": "default", "rope_theta": config.rope_theta, **rope}
    if config.use_moe:
        theirs = transformers.Qwen3MoeConfig(
            **options, rope_parameters=rope, num_experts=config.num_experts, norm_topk_prob=config.norm_topk_prob,
            num_experts_per_tok=config.num_experts_per_tok, moe_intermediate_size=config.moe_intermediate_size,
            architectures=["Qwen3MoeForCausalLM"])
    else:
        theirs = transformers.Qwen3Config(**options, rope_parameters=rope, architectures=["Qwen3ForCausalLM"])
    theirs.save_pretrained(folder)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    qwen3, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager")
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return qwen3.eval()(input_ids[None]).logits[0]


@pytest.mark.parametrize("config", [
    TINY, replace(TINY, tie_word_embeddings=False), TINY_MOE, replace(TINY_MOE, norm_topk_prob=True),
    replace(TINY_MOE, num_experts_per_tok=1, num_experts=3),
], ids=["dense", "untied", "moe", "moe_normalised", "moe_top1"])
def test_logits_equal_those_of_transformers_qwen3(config: ModelConfig, tmp_path: Path):
    model = build(config, std=0.1).eval()
    input_ids, _, cu_seqlens = random_batch([40])
    theirs = qwen3_logits(model, input_ids, tmp_path, rope={})
    torch.testing.assert_close(model.document_logits(input_ids, cu_seqlens), theirs, rtol=0, atol=1e-5)


def test_yarn_logits_equal_those_of_transformers_qwen3(tmp_path: Path):
    yarn = RopeScaling(factor=4.0, original_max_position_embeddings=200, beta_fast=8.0, beta_slow=1.0,
                       attention_factor=1.2)
    model = build(replace(TINY, head_dim=32, rope_theta=1000.0, rope_scaling=yarn, max_position_embeddings=800),
                  std=0.1).eval()
    input_ids, _, cu_seqlens = random_batch([60])
    theirs = qwen3_logits(model, input_ids, tmp_path, rope={
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 200, "beta_fast": 8.0,
        "beta_slow": 1.0, "attention_factor": 1.2})
    ours = model.document_logits(input_ids, cu_seqlens)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    unstretched = MiniMindForCausalLM(replace(model.config, rope_scaling=None)).eval()
    unstretched.load_state_dict(model.state_dict())
    assert (unstretched.document_logits(input_ids, cu_seqlens) - theirs).abs().max() > 1e-3
