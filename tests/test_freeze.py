"""--freeze: what a pattern names, and that nothing of it changes or takes memory."""

import json
from dataclasses import replace

import pytest
import torch
from processes import on_ranks
from safetensors import safe_open
from tiny import TINY, TINY_MOE, random_documents
from tiny_training import CPU, NO_SCALER, Training

from minimind_sft.data.batching import BatchLayout, TrainingSteps
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.settings.spec import changed, recorded
from minimind_sft.settings.training import PretrainSettings, SFTSettings
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.freezing import freeze, trained_parameters
from minimind_sft.training.identity import run_settings
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import full_tensor, parallelize
from minimind_sft.training.resume import compare_with_run
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.start import starting_model
from minimind_sft.training.summary import describe_model

UNTIED = replace(TINY, tie_word_embeddings=False)


def build(config: ModelConfig = TINY, *patterns: str) -> MiniMindForCausalLM:
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config)
    freeze(model, patterns)
    return model


def frozen(model: MiniMindForCausalLM) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


ATTENTION = {f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
FEED_FORWARD = {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}


def in_layers(names: set[str], *layers: int) -> set[str]:
    return {f"model.layers.{layer}.{name}" for layer in layers for name in names}


@pytest.mark.parametrize(("config", "patterns", "expected"), [
    (TINY, ["embed_tokens"], {"model.embed_tokens.weight"}),
    (TINY, ["lm_head"], {"model.embed_tokens.weight"}),
    (UNTIED, ["model.embed_tokens.weight"], {"model.embed_tokens.weight"}),
    (UNTIED, ["lm_head"], {"lm_head.weight"}),
    (UNTIED, ["model.[en]*"], {"model.embed_tokens.weight", "model.norm.weight"}),
    (TINY, ["norm"], {"model.norm.weight"}),
    (TINY, ["layers.1"], in_layers(ATTENTION | FEED_FORWARD | NORMS, 1)),
    (TINY, ["layers.0-1.mlp"], in_layers(FEED_FORWARD, 0, 1)),
    (TINY, ["layers.*.mlp", "norm"], in_layers(FEED_FORWARD, 0, 1) | {"model.norm.weight"}),
    (TINY, ["layers.*.*_layernorm"], in_layers({"post_attention_layernorm.weight", "input_layernorm.weight"}, 0, 1)),
    (TINY, ["layers.0.self_attn.[kv]_proj"], in_layers({"self_attn.k_proj.weight", "self_attn.v_proj.weight"}, 0)),
    (TINY_MOE, ["layers.?.mlp.gate"], in_layers({"mlp.gate.weight"}, 0, 1)),
    (TINY_MOE, ["layers.1-1.mlp.experts"], in_layers({f"mlp.experts.{name}_proj" for name in ("gate", "up", "down")},
                                                     1)),
])
def test_a_pattern_names_everything_inside_what_it_matches(config, patterns, expected):
    assert frozen(build(config, *patterns)) == expected


def test_a_range_counts_layers_not_digits():
    deep = replace(TINY, num_hidden_layers=12)
    assert frozen(build(deep, "layers.2-10.mlp.up_proj")) == in_layers({"mlp.up_proj.weight"}, *range(2, 11))
    assert frozen(build(deep, "layers.1?.mlp.up_proj")) == in_layers({"mlp.up_proj.weight"}, 10, 11)


@pytest.mark.parametrize(("patterns", "message"), [
    (["embedding"], "--freeze embedding: no 'embedding' here; the model has embed_tokens, layers, lm_head, norm"),
    (["norm", "layers.*.mpl"], "--freeze layers.*.mpl: no 'mpl' here; layers.* has input_layernorm, mlp, "
                               "post_attention_layernorm, self_attn"),
    (["norm,lm_head"], "--freeze norm,lm_head: no 'norm,lm_head' here; the model has embed_tokens, layers, lm_head, "
                       "norm; blanks separate names, not commas"),
    (["layers.0-2"], "--freeze layers.0-2: no '0-2' here; layers has 0-1"),
    (["layers.1-0"], "--freeze layers.1-0: no '1-0' here; layers has 0-1"),
    (["layers.0-99999999999"], "--freeze layers.0-99999999999: no '0-99999999999' here; layers has 0-1"),
    (["norm.weight.x"], "--freeze norm.weight.x: no 'x' here; norm.weight has no parts"),
    (["model"], "--freeze model: names every parameter, and nothing would be left to train"),
    (["model.lm_head"], "--freeze model.lm_head: no 'lm_head' here; model has embed_tokens, layers, norm"),
    ([""], "--freeze : no '' here; the model has embed_tokens, layers, lm_head, norm"),
    (["*"], "--freeze *: names every parameter, and nothing would be left to train"),
    (["layers", "embed_tokens", "norm"],
     "--freeze layers embed_tokens norm: names every parameter, and nothing would be left to train"),
])
def test_a_pattern_without_a_match_and_one_that_leaves_nothing_are_refused(patterns, message):
    with pytest.raises(UserError) as refused:
        build(TINY, *patterns)
    assert str(refused.value) == message


def test_the_user_hears_that_a_tied_head_is_frozen_too_and_how_much_trains():
    torch.manual_seed(0)
    model = MiniMindForCausalLM(TINY)
    assert freeze(model, ["layers.0"]) == []
    assert freeze(model, ["embed_tokens"]) == [
        "embedding and head share one matrix in this model, so --freeze keeps both as they are"]
    assert freeze(MiniMindForCausalLM(UNTIED), ["embed_tokens"]) == []
    assert trained_parameters(model) == 16 * (3 * 16 + 2 * 8) - 16 * 16 + 3 * 16 * 24 + 2 * 16 + 2 * 8 + 16
    line = describe_model(model, None, None, "float32", torch.device("cpu"))
    assert line == "model       new: 16 x 2 layers, 0.0M parameters, of which 2.0K train; float32 on cpu"


def test_a_run_begins_with_what_is_frozen_and_how_much_trains(capsys):
    tokenizer = load_tokenizer(None)
    settings = changed(PretrainSettings(), hidden_size=256, num_hidden_layers=2, freeze=("embed_tokens",))
    model, _ = starting_model(settings, None, tokenizer, None, CPU)
    assert frozen(model) == {"model.embed_tokens.weight"}
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("frozen      embedding and head share one matrix")
    assert shown[1].startswith("model       new: 256 x 2 layers, 3.3M parameters, of which 1.7M train; ")
    with pytest.raises(UserError, match=r"^--freeze embed: no 'embed' here"):
        starting_model(changed(settings, freeze=("embed",)), None, tokenizer, None, CPU)


def steps_of(layout: BatchLayout) -> TrainingSteps:
    return TrainingSteps(random_documents(12), layout, epochs=1, samples_per_step=4, seed=1)


def losses_and_gradients(model: MiniMindForCausalLM, dtype: torch.dtype) -> dict[str, torch.Tensor | None]:
    batch = steps_of(BatchLayout(80))[0].micro_batches[0]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses = model(batch.input_ids, batch.labels, batch.cu_seqlens)
    (losses.loss_sum + losses.aux_loss_sum).backward()
    return {**losses._asdict(), **{name: parameter.grad for name, parameter in model.named_parameters()}}


PATTERNS = [["embed_tokens"], ["layers.0-1"], ["layers.1", "norm"], ["embed_tokens", "layers.0"],
            ["layers.*.*_layernorm", "norm"], ["layers.*.self_attn", "layers.*.mlp"],
            ["embed_tokens", "layers.0", "layers.1.mlp", "layers.1.*layernorm", "norm"]]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("config", [TINY, UNTIED, TINY_MOE], ids=["tied", "untied", "experts"])
@pytest.mark.parametrize("patterns", PATTERNS, ids=" ".join)
def test_what_trains_has_the_gradient_it_always_had(config, patterns, checkpointing):
    whole, part = build(config), build(config, *patterns)
    part.model.gradient_checkpointing = checkpointing
    for dtype in (torch.float32, torch.bfloat16):
        expected, found = losses_and_gradients(whole, dtype), losses_and_gradients(part, dtype)
        for name, gradient in found.items():
            if name in frozen(part):
                assert gradient is None, name
            else:
                torch.testing.assert_close(gradient, expected[name], rtol=0, atol=0, msg=name)
        for model in (whole, part):
            model.zero_grad()


@pytest.mark.parametrize("patterns", [["layers.*.mlp.gate"], ["layers.*.mlp.gate", "layers.0", "embed_tokens"]],
                         ids=["router", "router and everything below it"])
def test_the_auxiliary_loss_reaches_what_is_below_a_frozen_router(patterns):
    model = build(TINY_MOE, *patterns)
    batch = steps_of(BatchLayout(80))[0].micro_batches[0]
    model(batch.input_ids, batch.labels, batch.cu_seqlens).aux_loss_sum.backward()
    below = model.model.layers[1].self_attn.v_proj.weight.grad
    assert below.abs().sum() > 0
    assert all(layer.mlp.gate.weight.grad is None for layer in model.model.layers)


def test_weights_that_are_frozen_stay_and_have_no_optimizer_state():
    model = build(TINY_MOE, "embed_tokens", "layers.0.mlp", "layers.*.input_layernorm")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, 0.1, weight_decay=0.5)
    learner = Learner(model, model, optimizer, NO_SCALER, CPU, torch.float32)
    for step in range(3):
        train_step(learner, steps_of(BatchLayout(64))[step], 1.0)
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == frozen(model) and len(same) == 1 + 4 + 2
    assert {id(parameter) for parameter in optimizer.state} == {
        id(parameter) for parameter in model.parameters() if parameter.requires_grad}


FROZEN = ("embed_tokens", "layers.0.mlp")


def state_files(folder) -> dict[str, set[str]]:
    """Returns the names of the tensors in each file of the newest resume state."""
    newest = max((folder / "resume").glob("step-*"))
    found = {}
    for path in newest.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found[path.name.partition("-")[0]] = set(file.keys())
    return found


def test_an_interrupted_run_continues_to_the_same_bits(tmp_path):
    whole = Training(tmp_path / "a", freeze=FROZEN)
    assert whole.run() == 0
    assert Training(tmp_path / "b", freeze=FROZEN).run(interrupt_at=5) == 130
    files = state_files(tmp_path / "b")
    names = {name for name, _ in whole.model.named_parameters()}
    assert files["weights"] == names
    assert {name.partition("|")[2] for name in files["optimizer"]} == names - frozen(whole.model)
    rest = Training(tmp_path / "b", resume=True, freeze=FROZEN)
    assert rest.state.step == 5 and rest.run() == 0
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, rest.model.get_parameter(name)), name


def test_a_resumed_run_may_freeze_other_parts(tmp_path):
    """A part that trains only now starts with fresh moments; one that is frozen now loses its own."""
    assert Training(tmp_path, freeze=FROZEN).run(interrupt_at=5) == 130
    rest = Training(tmp_path, resume=True, freeze=("layers.1",))
    had = rest.model.model.layers[0].self_attn.q_proj.weight
    new = rest.optimizer.state[rest.model.embed_tokens.weight]
    assert rest.optimizer.state[had]["step"] == 5 and not any(moment.any() for moment in new.values())
    assert rest.run() == 0
    steps = {name: int(rest.optimizer.state[parameter]["step"]) for name, parameter in rest.model.named_parameters()
             if parameter in rest.optimizer.state}
    assert steps["model.embed_tokens.weight"] == rest.state.step - 5
    assert steps["model.layers.0.self_attn.q_proj.weight"] == rest.state.step
    assert not any(name.startswith("model.layers.1.") for name in steps)


def test_a_resumed_run_reports_another_freeze(tmp_path):
    settings = changed(SFTSettings(), freeze=("embed_tokens", "norm"))
    assert recorded(settings, "weights")["freeze"] == ["embed_tokens", "norm"]
    told = []

    def compare(before: dict, now: SFTSettings) -> list[str]:
        told.clear()
        fresh = TrainState(settings=run_settings(now, torch.float32))
        compare_with_run(TrainState(settings=json.loads(json.dumps(before))), fresh, tmp_path, False, told.append)
        return told

    same = run_settings(settings, torch.float32)
    assert compare(same, settings) == []
    assert compare(same, SFTSettings()) == ["resume      --freeze was ['embed_tokens', 'norm'], now it is []"]
    older = {name: value for name, value in run_settings(SFTSettings(), torch.float32).items() if name != "freeze"}
    assert compare(older, SFTSettings()) == []
    assert compare(older, settings) == ["resume      --freeze was [], now it is ['embed_tokens', 'norm']"]


def after_two_steps(ranks: Ranks, parallel: str, use_moe: bool, checkpointing: bool) -> dict[str, list]:
    """Returns the weights after two steps of two micro-batches each, and how many parameters have moments."""
    model = build(TINY_MOE if use_moe else TINY, "embed_tokens", "layers.0.*norm", "layers.1.mlp", "layers.*.*.q_*")
    model.model.gradient_checkpointing = checkpointing
    wrapped = parallelize(model, ranks, parallel, torch.float32)
    optimizer = build_optimizer(model, 0.01, 0.1)
    steps = steps_of(BatchLayout(40, rank=ranks.rank, world_size=ranks.world_size))
    for step in range(2):
        train_step(Learner(model, wrapped, optimizer, NO_SCALER, ranks, torch.float32), steps[step], 1.0)
    return {"moments": [len(optimizer.state)],
            **{name: full_tensor(parameter.detach()).flatten().tolist()
               for name, parameter in model.named_parameters()}}


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "use_moe", "checkpointing"), [
    ("ddp", True, False), ("ddp", False, True), ("fsdp", False, False), ("fsdp", True, True)])
def test_ranks_train_the_same_parts_as_one_process(parallel, use_moe, checkpointing):
    alone = after_two_steps(CPU, parallel, use_moe, checkpointing)
    for found in on_ranks(2, after_two_steps, parallel, use_moe, checkpointing):
        assert found.keys() == alone.keys() and found["moments"] == alone["moments"]
        for name, values in alone.items():
            assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name


@pytest.mark.slow
def test_compiled_layers_train_the_same_parts():
    torch.compiler.reset()
    patterns = ["embed_tokens", "layers.0", "layers.1.mlp"]
    plain, compiled = build(TINY_MOE, *patterns), build(TINY_MOE, *patterns)
    for layer in compiled.model.layers:
        layer.compile(dynamic=True, backend="aot_eager")
    expected, found = (losses_and_gradients(model, torch.float32) for model in (plain, compiled))
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
