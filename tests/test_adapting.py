"""The model of a run that trains adapters: what trains, what the run is identified by, and what continues."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gradient_invariance import GradientKeeper
from processes import on_ranks
from tiny import TINY, TINY_MOE, random_documents
from tiny_adapters import write_base, write_lora

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.errors import UserError
from minimind_sft.model.adapters.adapter import Adapter, Change
from minimind_sft.model.adapters.applying import apply_adapters
from minimind_sft.model.adapters.own_file import read_own, write_adapter
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.lora import adapted, own_parameters
from minimind_sft.model.weights import read_weights
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import LoraSFTSettings
from minimind_sft.training.adapting import (
    adapter_facts,
    adapter_identity,
    adapter_to_continue,
    attach,
    attach_trained,
    describe_adapters,
    hold_frozen_matrices,
)
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.identity import sha256_of_parameters
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import gather_own, parallelize
from minimind_sft.training.resume import compare_with_run
from minimind_sft.training.resume_state import TrainState

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
IDS = torch.arange(20)
SMALL = ModelConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)


def tiny_model(config: ModelConfig = TINY) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    return MiniMindForCausalLM(config)


def uneven_adapter() -> Adapter:
    """Returns an adapter whose rank and scale differ from projection to projection."""
    torch.manual_seed(1)
    return Adapter(Path("x"), {Q: Change(torch.randn(3, 16), torch.randn(16, 3), 0.5),
                               DOWN: Change(torch.randn(5, 24), torch.randn(16, 5), 2.0)},
                   saved={"model.norm.weight": torch.full((16,), 1.5)})


def test_new_adapters_train_and_nothing_else():
    model = tiny_model()
    attach(model, LoraSettings(lora_rank=2, target_modules=("q_proj",), modules_to_save=("norm",)))
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        "model.norm.weight", *(f"model.layers.{i}.self_attn.q_proj.lora_{part}" for i in (0, 1) for part in "AB")}


def test_an_adapter_that_trains_further_keeps_the_rank_and_scale_of_each_projection():
    model, expected, adapter = tiny_model(), tiny_model(), uneven_adapter()
    attach_trained(model, adapter, dropout=0.0)
    apply_adapters(expected, [(adapter, 1.0)])
    torch.testing.assert_close(model.document_logits(IDS, [0, 20]), expected.document_logits(IDS, [0, 20]))
    assert describe_adapters(model) == "rank 3 to 5, scale 0.5 to 2, 2 projections"
    assert set(own_parameters(model)) == {"model.norm.weight", *(f"{name}.lora_{part}" for name in (Q, DOWN)
                                                                 for part in "AB")}
    adapter.changes[Q].a.zero_()
    assert model.get_parameter(f"{Q}.lora_A").abs().min() > 0, "a copy trains, not what was read"


def test_an_uneven_adapter_is_written_and_read_as_it_is(tmp_path):
    model, adapter = tiny_model(), uneven_adapter()
    attach_trained(model, adapter, dropout=0.0)
    facts = adapter_facts(model, LoraSettings(), base="ab" * 32)
    assert facts["lora"] == {"rank": {Q: 3, DOWN: 5}, "scale": {Q: 0.5, DOWN: 2.0}, "quantize": "none",
                             "target_modules": ["down_proj", "q_proj"], "modules_to_save": ["model.norm.weight"]}
    write_adapter(tmp_path / "lora_x_16.safetensors", own_parameters(model), "float32", {"stage": "lora", **facts})
    read = read_own(tmp_path / "lora_x_16.safetensors", TINY)
    assert read.base == "ab" * 32
    for name, change in adapter.changes.items():
        assert torch.equal(read.changes[name].a, change.a) and torch.equal(read.changes[name].b, change.b)
        assert read.changes[name].scale == change.scale
    assert torch.equal(read.saved["model.norm.weight"], adapter.saved["model.norm.weight"])


@pytest.mark.parametrize(("change", "base", "message"), [
    ({"lora_rank": 4}, "ab", "lora_rank was 2 in x, now it is 4"),
    ({"lora_alpha": 8.0}, "ab", "lora_scale was 16.0 in x, now it is 4.0"),
    ({"target_modules": ("q_proj", "o_proj")}, "ab",
     "target_modules was ['q_proj'] in x, now it is ['o_proj', 'q_proj']"),
    ({"modules_to_save": ("norm",)}, "ab", "modules_to_save was [] in x, now it is ['model.norm.weight']"),
    ({"quantize": "nf4"}, "ab", "quantize was none in x, now it is nf4"),
    ({}, "cd", "base was ab in x, now it is cd"),
])
def test_a_resumed_run_must_have_the_same_base_and_adapters(change, base, message):
    lora = LoraSettings(lora_rank=2, target_modules=("q_proj",))
    states = []
    for settings, its_base in ((lora, "ab"), (replace(lora, **change), base)):
        model = tiny_model()
        attach(model, settings)
        states.append(TrainState(identity=adapter_identity(model, settings, its_base)))
    with pytest.raises(UserError) as error:
        compare_with_run(*states, Path("x"), False, print)
    assert str(error.value) == f"--from_resume 1: {message}"


def test_the_same_scale_by_another_formula_is_the_same_run():
    identities = []
    for lora in (LoraSettings(lora_rank=4, lora_alpha=8.0),
                 LoraSettings(lora_rank=4, lora_alpha=4.0, use_rslora=True)):
        model = tiny_model()
        attach(model, lora)
        identities.append(adapter_identity(model, lora, "ab"))
    assert identities[0] == identities[1]


def test_the_values_of_frozen_matrices_in_half_precision_identify_a_model():
    sums = []
    for change in (0.0, 0.0, 1.0):
        model = tiny_model()
        attach(model, LoraSettings(lora_rank=2))
        model.get_parameter(f"{Q}.base.weight").data[0, 0] += change
        hold_frozen_matrices(model, torch.bfloat16)
        assert model.get_parameter(f"{Q}.base.weight").dtype == torch.bfloat16
        assert model.get_parameter(f"{Q}.lora_A").dtype == torch.float32
        sums.append(sha256_of_parameters(model))
    assert sums[0] == sums[1] != sums[2]


@pytest.mark.parametrize("flags", [
    ["--lora_rank", "8"], ["--lora_alpha", "8"], ["--use_rslora"], ["--target_modules", "q_proj"],
    ["--modules_to_save", "norm"]])
def test_an_adapter_to_continue_decides_its_own_shape(flags):
    with pytest.raises(UserError) as error:
        parse_flags(LoraSFTSettings, "", ["--from_lora", "style", *flags])
    assert str(error.value) == f"{flags[0]}: not with --from_lora, whose adapter has its own"


@pytest.mark.parametrize(("flags", "message"), [
    (["--lora_rank", "0"], "--lora_rank is 0, expected at least 1"),
    (["--lora_alpha", "0"], "--lora_alpha is 0.0, expected more than 0 and at most 1,000,000"),
    (["--lora_dropout", "1"], "--lora_dropout is 1.0, expected at least 0 and less than 1"),
    (["--lora_name", "a/b"], "--lora_name is 'a/b', expected a name; --save_dir is the folder"),
    (["--from_weight", "none"], "--from_weight none: an adapter needs a base model"),
    (["--freeze", "layers.0"], "--freeze: not needed; adapters leave everything else as it is, except "
                               "--modules_to_save"),
    (["--save_weight", "x"], "unknown flag --save_weight: here it is --lora_name (--help lists all flags)"),
    (["--lora_r", "8"], "unknown flag --lora_r: here it is --lora_rank (--help lists all flags)"),
    (["--lora_target_modules", "x"], "unknown flag --lora_target_modules: here it is --target_modules "
                                     "(--help lists all flags)"),
    (["--load_in_4bit"], "unknown flag --load_in_4bit: here it is --quantize nf4 (--help lists all flags)"),
])
def test_a_bad_flag_is_named_in_one_line(flags, message):
    with pytest.raises(UserError) as error:
        parse_flags(LoraSFTSettings, "", flags)
    assert str(error.value) == message


def test_the_adapter_to_continue_must_fit(tmp_path):
    base, other = write_base(tmp_path, SMALL), write_base(tmp_path, SMALL, "other", scale=2.0)
    path = write_lora(tmp_path, base, "style")

    def found(weights: Path, **flags) -> str | Adapter:
        settings = changed(LoraSFTSettings(), save_dir=str(tmp_path), **{"from_lora": "style", **flags})
        try:
            return adapter_to_continue(settings, read_weights(weights))
        except UserError as error:
            return str(error)

    adapter = found(base)
    assert isinstance(adapter, Adapter) and adapter.path == path
    assert "was trained on other weights than" in found(other)
    assert found(base, from_lora="style:0.5") == "--from_lora style:0.5: an adapter to train on has no weight"
    assert found(base, lora_name="style") == (
        f"--from_lora reads {path}, and this run would replace it: choose another --lora_name")
    assert found(base, from_lora="nobody").startswith("--from_lora nobody: ")


def one_step(ranks: Ranks, parallel: str, dtype: torch.dtype, config: ModelConfig) -> tuple[list, dict | None]:
    """Returns the gradients of adapters in one step, and what the main rank would write."""
    model = tiny_model(config)
    attach(model, LoraSettings(lora_rank=2, modules_to_save=("norm",)))
    for _, change in adapted(model):
        torch.nn.init.normal_(change.lora_B, std=0.3)
    hold_frozen_matrices(model, dtype)
    wrapped = parallelize(model, ranks, parallel, dtype)
    assert build_optimizer(model, 0.1, 0.1).param_groups[1]["params"], "the norm trains"
    keeper = GradientKeeper([p for p in model.parameters() if p.requires_grad], lr=0.0)
    steps = TrainingSteps(random_documents(8), BatchLayout(40, rank=ranks.rank, world_size=ranks.world_size),
                          epochs=1, samples_per_step=8, seed=1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    train_step(Learner(model, wrapped, keeper, scaler, ranks, dtype), steps[0], grad_clip=0.0)
    written = gather_own(model, ranks)
    return keeper.gradients, {name: tensor.numpy() for name, tensor in written.items()}


@pytest.mark.parametrize(("config", "dtype", "tolerance"), [
    (TINY, torch.float32, 1e-5), (TINY_MOE, torch.float32, 1e-5), (TINY, torch.bfloat16, 5e-2),
    (TINY_MOE, torch.bfloat16, 5e-2)], ids=["dense", "experts", "dense-bfloat16", "experts-bfloat16"])
def test_adapters_get_the_same_gradients_from_one_rank_ddp_and_fsdp(config, dtype, tolerance):
    """bfloat16 rounds by 4e-3, and micro-batches of another size elsewhere."""
    alone, written = on_ranks(1, one_step, "ddp", dtype, config)[0]
    for parallel in ("ddp", "fsdp"):
        main, second = on_ranks(2, one_step, parallel, dtype, config)
        for one, other in zip(main[0], alone, strict=True):
            assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)
        assert list(main[1]) == list(written) and second[1] == {}
        assert all(np.array_equal(main[1][name], written[name]) for name in written)
