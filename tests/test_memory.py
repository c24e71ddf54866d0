"""The memory estimate compared with what autograd saves and with training processes."""

import json
import runpy
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import accumulate

import pytest
import torch
from memory_probe import Probe, measure, take_steps
from programs import refuse, succeed
from safetensors.torch import save_file

from minimind_sft.device import cpu_multiplies_bfloat16
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.model.config import PRESETS, ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.layers import FEED_FORWARDS, SwiGLU
from minimind_sft.model.shards import Shards
from minimind_sft.paths import REPOSITORY
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.scripts import EstimateSettings
from minimind_sft.settings.spec import changed, problems
from minimind_sft.training import memory
from minimind_sft.training.adapting import attach, hold_frozen_matrices
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.freezing import freeze
from minimind_sft.training.memory import MIB, Plan, Sizes, in_use, kept_by_layer, largest_micro_batch, peak
from minimind_sft.training.saved_bytes import READ, Layer, saved_by_attention, saved_outside_attention

pytestmark = pytest.mark.slow

SMALL = ModelConfig(vocab_size=50, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                    head_dim=16, intermediate_size=160)
EXPERTS = replace(SMALL, use_moe=True, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=96)
GPT2 = replace(SMALL, qk_norm=False, attention_bias="all", mlp_bias=True, norm="layer", mlp="gelu", positions="learned",
               max_position_embeddings=999)
WINDOW = replace(EXPERTS, qk_norm=False, num_shared_experts=1, sliding_window=100)
TOKENS = 320


def bytes_in_graph(config: ModelConfig, dtype: torch.dtype, lengths: list[int], supervised: int,
                   frozen: tuple[str, ...] = (), lora: LoraSettings | None = None) -> int:
    """Returns the bytes that the graph of one forward pass keeps, without weights and their copies."""
    model = MiniMindForCausalLM(config)
    if lora:
        attach(model, lora)
        hold_frozen_matrices(model, dtype)
    freeze(model, frozen)
    weights = {tuple(shape) for parameter in model.parameters() for shape in (parameter.shape, parameter.shape[1:])}
    sizes = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in weights:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    tokens = sum(lengths)
    ids = torch.randint(0, config.vocab_size, (tokens,))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), \
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        labels = torch.where(torch.arange(tokens) < supervised, ids, IGNORE_INDEX)
        losses = model(ids, labels, [0, *accumulate(lengths)])
    assert losses.loss_sum.requires_grad
    return sum(size for size, _ in sizes.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [160, 480, 800], ids=["weights", "flash", "long"])
@pytest.mark.parametrize("config", [SMALL, EXPERTS, replace(SMALL, dropout=0.1), GPT2, WINDOW],
                         ids=["dense", "experts", "dropout", "gpt2", "window"])
def test_a_layer_keeps_what_is_estimated(config, length, dtype):
    """Uses a document of `length` tokens and one of three fifths, about the shortest that is padded to it."""
    lengths = [length * 3 // 5, length]
    one, three = (bytes_in_graph(replace(config, num_hidden_layers=layers), dtype, lengths, sum(lengths))
                  for layers in (1, 3))
    outside = saved_outside_attention(Layer(config), dtype)
    estimated = sum(outside.values()) - outside[READ] + saved_by_attention(config, dtype, length)
    assert estimated * sum(lengths) == pytest.approx((three - one) / 2, rel=0.03)


@pytest.mark.parametrize(("patterns", "fewer"), [
    (("layers.*.mlp",), 1), (("layers.*.self_attn", "embed_tokens"), 1), (("embed_tokens", "layers.0-1"), 3)],
    ids=["feed-forward", "attention", "lower layers"])
@pytest.mark.parametrize("config", [SMALL, EXPERTS, GPT2], ids=["dense", "experts", "gpt2"])
def test_a_frozen_part_keeps_what_is_estimated(config, patterns, fewer):
    """Layers below all that trains keep nothing; a model with two more layers keeps what two others keep."""
    if config is GPT2 and "embed_tokens" in patterns:
        patterns = (*patterns, "embed_positions")
    lengths = [96, 160]
    few, many = (bytes_in_graph(replace(config, num_hidden_layers=layers), torch.float32, lengths, sum(lengths),
                                patterns) for layers in (fewer, fewer + 2))
    kept = kept_by_layer(replace(config, num_hidden_layers=fewer + 2),
                         Plan(256, 160, torch.float32, freeze=patterns))
    assert sum(kept.values()) * sum(lengths) == pytest.approx((many - few) / 2, rel=0.03)
    whole = kept_by_layer(config, Plan(256, 160, torch.float32))
    assert (kept == whole) == ("layers.0-1" in patterns)


def test_frozen_parameters_have_no_gradients_and_no_moments():
    large = replace(SMALL, vocab_size=150_000, num_hidden_layers=4)
    embedding = 150_000 * 48
    plan = Plan(TOKENS, 160, torch.float32)
    whole, part = (in_use(large, each) for each in (plan, replace(plan, freeze=("lm_head",))))
    assert whole["optimizer"] - part["optimizer"] == 8 * embedding
    assert whole["gradients"] - part["gradients"] == 4 * embedding
    assert whole["weights"] == part["weights"]
    upper = Sizes.of(large, replace(plan, freeze=("embed_tokens", "layers.0-2")))
    assert len(upper.layers) == 1 and upper.head == upper.embedding == 0
    assert upper.trained == upper.total - embedding - 3 * (upper.total - embedding - 48) // 4
    assert kept_by_layer(large, replace(plan, freeze=("embed_tokens", "layers"))) == {}


@pytest.mark.parametrize("lora", [
    LoraSettings(lora_rank=4), LoraSettings(lora_rank=4, lora_dropout=0.1),
    LoraSettings(lora_rank=4, target_modules=("q_proj", "v_proj"), modules_to_save=("layers.*.input_layernorm",))],
    ids=["all", "dropout", "q and v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [SMALL, EXPERTS, GPT2], ids=["dense", "experts", "gpt2"])
def test_a_layer_with_adapters_keeps_what_is_estimated(config, dtype, lora):
    """Two more layers of a model keep what two layers keep whose input has a gradient."""
    lengths = [96, 160]
    few, many = (bytes_in_graph(replace(config, num_hidden_layers=layers), dtype, lengths, sum(lengths), lora=lora)
                 for layers in (2, 4))
    kept = kept_by_layer(replace(config, num_hidden_layers=4), Plan(256, 160, dtype, lora=lora))
    assert sum(kept.values()) * sum(lengths) == pytest.approx((many - few) / 2, rel=0.03)


ADAPTERS_OF_SMALL = 4 * (2 * (48 + 64) + 2 * (48 + 32) + 3 * (48 + 160))
"""Parameters of adapters of rank 4: q and o, k and v, and the feed-forward network."""
MATRICES_OF_SMALL = 2 * 48 * 64 + 2 * 48 * 32 + 3 * 48 * 160


def test_only_adapters_have_gradients_and_moments():
    plan = Plan(TOKENS, 160, torch.bfloat16, lora=LoraSettings(lora_rank=4))
    rest = 50 * 48 + 48 + 2 * 48 + 2 * 16  # embedding and norms
    parts = in_use(SMALL, plan)
    assert parts["optimizer"] == 8 * ADAPTERS_OF_SMALL
    assert parts["weights"] == 4 * (ADAPTERS_OF_SMALL + rest) + 2 * MATRICES_OF_SMALL
    assert parts["gradients"] == 4 * ADAPTERS_OF_SMALL
    in_4_bits = in_use(SMALL, replace(plan, lora=LoraSettings(lora_rank=4, quantize="nf4")))
    scales = MATRICES_OF_SMALL / 64 * (1 + 4 / 256)  # 8 bits for 64 numbers, float32 for 256 scales
    assert in_4_bits["weights"] == 4 * (ADAPTERS_OF_SMALL + rest) + MATRICES_OF_SMALL / 2 + scales
    with_head = in_use(SMALL, replace(plan, lora=LoraSettings(lora_rank=4, modules_to_save=("lm_head",))))
    assert with_head["optimizer"] == 8 * (ADAPTERS_OF_SMALL + 50 * 48)


def test_the_base_in_float32_may_take_more_than_training():
    large, plan = replace(PRESETS["64m"], num_hidden_layers=32), Plan(64, 64, torch.bfloat16, lora=LoraSettings())
    assert set(peak(large, plan)) == {"weights in float32", "libraries"}
    assert "activations" in peak(large, replace(plan, micro_batch_tokens=8192))
    assert "activations" in peak(large, replace(plan, lora=LoraSettings(quantize="nf4")))


def test_adapters_are_asked_for_by_their_rank():
    assert problems(changed(EstimateSettings(), quantize="nf4", lora_dropout=0.1)) == [
        "--lora_dropout: expected --lora_rank beside it, the rank of the adapters",
        "--quantize: expected --lora_rank beside it, the rank of the adapters"]
    assert problems(changed(EstimateSettings(), quantize="nf4", lora_rank=8)) == []


def test_where_the_peak_is():
    """With a large vocabulary and one micro-batch, at the end: all gradients, and the embedding's beside the head's."""
    large, plan = replace(SMALL, vocab_size=150_000, num_hidden_layers=4), Plan(TOKENS, 160, torch.float32)
    assert "loss" in in_use(large, plan)
    assert "loss" in in_use(large, replace(plan, freeze=("embed_tokens",), gradient_checkpointing=True))
    alone = in_use(large, replace(plan, micro_batch_tokens=16, several_micro_batches=False))
    assert alone["embedding's gradient"] == 4 * 150_000 * 48
    assert alone["gradients"] == alone["weights"] and "loss" not in alone
    assert "backward" in in_use(SMALL, replace(plan, micro_batch_tokens=4096, gradient_checkpointing=True))


def test_layers_with_and_without_a_window_are_counted_apart():
    mixed = replace(SMALL, num_hidden_layers=4, sliding_window=100, full_attention_layers=(1,),
                    layers_without_rope=(1,))
    plan = Plan(TOKENS, 160, torch.float32)
    window, whole = (in_use(replace(SMALL, num_hidden_layers=4, sliding_window=size), plan)["activations"]
                     for size in (100, None))
    assert in_use(mixed, plan)["activations"] == pytest.approx((3 * window + whole) / 4, rel=0.01)
    assert len(set(Sizes.of(mixed, plan).layers)) == 2


def test_the_estimate_follows_a_change_of_the_layer(monkeypatch):
    class LeakySwiGLU(SwiGLU):
        def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
            return super().forward(x_TD) + x_TD.exp()  # autograd saves the result, 48 numbers per token

    before = saved_outside_attention(Layer(SMALL), torch.float32)["feed-forward"]
    monkeypatch.setitem(FEED_FORWARDS, "swiglu", LeakySwiGLU)
    another = replace(SMALL, rope_theta=1e4)  # the answer for SMALL is cached
    assert saved_outside_attention(Layer(another), torch.float32)["feed-forward"] == before + 4 * 48


def test_a_dense_layer_keeps_what_its_shapes_say():
    kept = kept_by_layer(SMALL, Plan(TOKENS, 2048, torch.float32, on_cpu=False))
    assert kept == pytest.approx({
        "norm and projections": 4 * (48 + 1 + 48 + 64 + 32 + 6),  # x, its norm, what q and k were, the norms' sums
        "attention": 4 * (64 + 2 * 32 + 64 + 4 + 64),  # q, k, v, out, a sum per head; what o_proj reads
        "feed-forward": 4 * (48 + 1 + 48 + 3 * 160),  # x, its norm; gate, up and their product
    })


@pytest.mark.parametrize("config", [SMALL, EXPERTS], ids=["dense", "experts"])
def test_the_last_feed_forward_network_counts_only_read_positions(config):
    few, all_of_them = (bytes_in_graph(config, torch.float32, [160, 160], supervised) for supervised in (128, TOKENS))
    counted_few, counted_all = (in_use(config, Plan(TOKENS, 160, torch.float32, supervised_share=share))["activations"]
                                for share in (128 / TOKENS, 1.0))
    behind = (TOKENS - 128) * 4 * (2 * config.hidden_size + 1)  # the last norm and the head's gradient of its output
    assert counted_all - counted_few + behind == pytest.approx(all_of_them - few, rel=0.03)


def test_attention_of_mixed_lengths_counts_as_the_larger_kind():
    short, mixed = (kept_by_layer(SMALL, Plan(TOKENS, length, torch.float32))["attention"] for length in (384, 2048))
    assert mixed >= short
    on_gpu = kept_by_layer(SMALL, Plan(TOKENS, 160, torch.bfloat16, on_cpu=False))["attention"]
    assert on_gpu == 2 * (64 + 2 * 32 + 64) + 4 * 4 + 2 * 64  # q, k, v, out; a sum per head; what o_proj reads


LLAMA = {"vocab_size": 16_000, "hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
         "intermediate_size": 1024, "qk_norm": False, "tie_word_embeddings": False}
QWEN2 = {"vocab_size": 80_000, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
         "intermediate_size": 1408, "qk_norm": False, "attention_bias": "qkv"}
SHAPE_OF_GPT2 = {"vocab_size": 25_000, "hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 6,
                 "head_dim": 64, "intermediate_size": 1536, "qk_norm": False, "attention_bias": "all",
                 "mlp_bias": True, "norm": "layer", "mlp": "gelu", "positions": "learned",
                 "max_position_embeddings": 1024}
"""Shapes of other families in small."""

FAST = "bfloat16" if cpu_multiplies_bfloat16() else "float32"
IMPORTS = 271 * MIB
"""The part of `LIBRARIES` for the interpreter and PyTorch; the rest is what their kernels allocate at first use."""


@pytest.mark.parametrize("probe", [
    Probe([[512, 512, 512, 512], [1500]], dtype=FAST, steps=2),
    Probe([[2048], [300, 700, 512]], dtype=FAST, steps=2, gradient_checkpointing=True),
    Probe([[400, 400], [400, 400]], dtype="float32", model={"use_moe": True}, steps=2, supervised_share=0.3),
    Probe([[400, 300], [600]], dtype=FAST, model=LLAMA, steps=2),
    Probe([[700], [600]], dtype=FAST, model=QWEN2, steps=2, freeze=["embed_tokens", "layers.0-1"]),
    Probe([[400, 300], [600]], dtype=FAST, model=SHAPE_OF_GPT2, steps=2),
    Probe([[400, 600], [1000]], dtype=FAST, model=LLAMA, steps=2, lora={"target_modules": ["all-linear", "lm_head"]}),
    pytest.param(Probe([[400, 600], [1000]], dtype=FAST, model=LLAMA, steps=2, lora={"quantize": "nf4"}),
                 marks=pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")),
], ids=["dense", "checkpointing", "experts", "llama", "qwen2, partly frozen", "gpt2", "adapters",
        "4 bits"])
def test_the_peak_of_a_process_is_within_15_percent(probe):
    """The prediction uses the measured imports; this machine's kernels may allocate less than is counted."""
    measured = measure(probe, threads=1)
    without_set_up = sum(peak(probe.config, probe.plan).values()) - memory.LIBRARIES + measured["before"]
    assert without_set_up / 1.15 < measured["peak"] < 1.15 * (without_set_up + memory.LIBRARIES - IMPORTS)


def peak_of_tensors(probe: Probe) -> int:
    """Returns the most bytes that tensors take at any time of these steps; unlike resident memory, always the same."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        take_steps(probe, Ranks(0, 1, torch.device("cpu")))
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def test_batch_size_and_row_length_do_not_change_the_peak():
    """Equal micro-batches of one document instead of eight, and four times as many in a step."""
    few, twice_as_large, many_and_long = (
        peak_of_tensors(Probe(batches, model={"num_hidden_layers": 2}, dtype=FAST, steps=1))
        for batches in ([[64] * 8] * 2, [[128] * 8] * 2, [[512]] * 8))
    assert many_and_long < few + 4 * MIB < twice_as_large


def test_the_largest_micro_batch_just_fits():
    plan = Plan(4096, 512, torch.bfloat16)
    tokens = largest_micro_batch(PRESETS["26m"], plan, 2048 * MIB)
    fits, too_much = (sum(peak(PRESETS["26m"], replace(plan, micro_batch_tokens=n)).values())
                      for n in (tokens, tokens + 64))
    assert tokens % 64 == 0 and fits <= 2048 * MIB < too_much
    assert largest_micro_batch(PRESETS["26m"], plan, 500 * MIB) == 0


def test_fsdp_divides_the_optimizer_among_ranks():
    alone, ddp, fsdp = (peak(PRESETS["64m"], Plan(512, 512, torch.bfloat16, ranks=ranks, parallel=parallel))
                        for ranks, parallel in ((1, "ddp"), (4, "ddp"), (4, "fsdp")))
    assert ddp["optimizer"] == alone["optimizer"] == 4 * fsdp["optimizer"] == 8 * PARAMETERS_64M
    assert sum(fsdp.values()) < sum(ddp.values())


PARAMETERS_64M = 63_912_192
"""Parameters of the preset: 6,400 x 768 for the head, 8 layers of 768 x (768 + 2 x 384 + 768 + 3 x 2,432) and norms."""


def test_a_background_save_counts_a_copy_of_weights_and_moments():
    plan = Plan(512, 512, torch.bfloat16, ranks=4, parallel="fsdp", async_save=True)
    for asked, more in ((plan, 3 * PARAMETERS_64M), (replace(plan, parallel="ddp"), 12 * PARAMETERS_64M),
                        (replace(plan, on_cpu=False), 0)):  # from a GPU it is copied to main memory
        here, without = (sum(peak(PRESETS["64m"], each).values()) for each in (asked, replace(asked, async_save=False)))
        assert here - without == pytest.approx(more, abs=1)


def test_estimate_memory_prints_the_estimate_as_text_and_json(tmp_path):
    shown = succeed("scripts/estimate_memory.py", "--preset", "26m", "--device", "cpu", "--memory", 4, "--freeze",
                    "embed_tokens")
    assert "512 x 8 layers, 30.0M parameters, of which 26.7M train" in shown
    assert "largest --micro_batch_tokens that fits into 4 GiB" in shown
    told = json.loads(succeed("scripts/estimate_memory.py", "--preset", "64m-moe", "--device", "cuda", "--dtype",
                              "bfloat16", "--gradient_checkpointing", 1, "--json"))
    assert told["peak"] == pytest.approx(sum(told["parts"].values()), abs=10)
    assert "libraries" not in told["parts"]
    assert "below --max_seq_len" in refuse("scripts/estimate_memory.py", "--max_seq_len", 9999)


def test_a_folder_is_estimated_by_its_shapes_alone(tmp_path, monkeypatch, capsys):
    model = MiniMindForCausalLM(replace(SMALL, vocab_size=6400, num_hidden_layers=3))
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["qwen3"].write_config(model.config)))
    save_file({name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"},
              tmp_path / "model.safetensors")
    monkeypatch.setattr(Shards, "read", None)
    monkeypatch.setattr(sys, "argv", ["estimate_memory.py", "--from_weight", str(tmp_path), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "scripts/estimate_memory.py"), run_name="__main__")
    assert not ended.value.code
    assert "48 x 3 layers, 0.4M parameters" in capsys.readouterr().out
