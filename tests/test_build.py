"""Models from settings: shapes, presets, and flags that disagree with weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import UserError
from minimind_sft.model.build import (
    check_context,
    check_memory,
    check_shape,
    check_size,
    find_start,
    given_shape,
    new_model,
    new_model_config,
    place_model,
    stretched,
)
from minimind_sft.model.config import PRESETS, ModelConfig, RopeScaling
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.weights import write_weights
from minimind_sft.settings.model import ModelSettings
from minimind_sft.settings.runtime import RuntimeSettings
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import PretrainSettings
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.start import starting_model


def test_a_new_model_has_the_shape_that_flags_give_and_minimind_s_otherwise():
    shape = new_model_config(ModelSettings(hidden_size=64, use_moe=True, dropout=0.1), vocab_size=100)
    assert shape == ModelConfig(vocab_size=100, hidden_size=64, use_moe=True, dropout=0.1)
    assert (shape.num_hidden_layers, shape.intermediate_size) == (8, 256)  # 64 * pi, rounded up to a multiple of 64


def test_a_preset_sets_the_shape_and_other_flags_change_it():
    shape = new_model_config(ModelSettings(preset="demo", num_hidden_layers=2), vocab_size=100)
    assert (shape.hidden_size, shape.num_hidden_layers, shape.vocab_size) == (256, 2, 100)
    with pytest.raises(UserError, match=r"--preset demo has hidden_size 256, --hidden_size says 64"):
        new_model_config(ModelSettings(preset="demo", hidden_size=64), vocab_size=100)


@pytest.mark.parametrize(("size", "found"), [
    (1, "head_dim is 0, expected at least 1"),
    (24, r"head_dim is 3, expected an even number \(RoPE rotates pairs\)"),
])
def test_a_hidden_size_that_does_not_divide_into_heads_is_refused_by_its_flag(size, found):
    message = f"^--hidden_size {size}: model configuration: {found}; a multiple of 16 always works$"
    with pytest.raises(UserError, match=message):
        new_model_config(ModelSettings(hidden_size=size), vocab_size=100)


def test_new_weights_depend_on_the_seed_alone():
    settings = ModelSettings(hidden_size=32, num_hidden_layers=1)
    one, same, other = (new_model(settings, 50, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize(("flags", "message"), [
    ({"hidden_size": 64}, r"--hidden_size is 64, but w\.pth has hidden_size 256"),
    ({"use_moe": True}, r"--use_moe is 1, but w\.pth has use_moe 0"),
    ({"preset": "26m"}, r"--preset 26m has hidden_size 512, but w\.pth has 256"),
])
def test_weights_of_another_size_than_the_flags_say_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        check_size(ModelSettings(**flags), PRESETS["demo"], Path("w.pth"))
    check_size(ModelSettings(preset="demo", hidden_size=256, use_moe=False), PRESETS["demo"], Path("w.pth"))


def test_from_weight_names_a_file_or_none(tmp_path):
    model = new_model(ModelSettings(hidden_size=32, num_hidden_layers=1), 50, 1)
    write_weights(tmp_path / "mine_32.pth", model, "float32", {})
    assert find_start(ModelSettings(from_weight="none"), str(tmp_path), lambda: "abc") is None
    assert find_start(ModelSettings(from_weight="mine"), str(tmp_path), lambda: "abc") == tmp_path / "mine_32.pth"


def test_gradient_checkpointing_is_set_in_the_model():
    model = new_model(ModelSettings(hidden_size=32, num_hidden_layers=1), 50, 1)
    for wanted in (True, False):
        place_model(model, RuntimeSettings(gradient_checkpointing=wanted), torch.device("cpu"))
        assert model.model.gradient_checkpointing is wanted


def test_a_shape_that_the_weights_do_not_have_is_refused():
    model = ModelSettings(hidden_size=256, use_moe=True)
    assert given_shape(model) == {"hidden_size": 256, "use_moe": True}
    with pytest.raises(ValueError, match=r"^--use_moe is 1, but w\.pth has use_moe 0$"):
        check_shape(model, PRESETS["demo"], Path("w.pth"))


def test_sequences_longer_than_the_context_are_refused():
    model = replace(PRESETS["demo"], positions="learned", max_position_embeddings=512)
    with pytest.raises(UserError, match=r"^--max_seq_len is 1,513, but w\.pth has a context of 512 tokens \(max_posit"):
        check_context(1513, model, Path("w.pth"))
    check_context(512, model, Path("w.pth"))
    with pytest.raises(UserError, match=r"^--max_seq_len is 40,000, but a new model has a context of 32,768 tokens"):
        check_context(40_000, ModelConfig(), None)


def test_dynamic_scaling_lengthens_the_context():
    """transformers keeps the context of the first training in max_position_embeddings."""
    dynamic = RopeScaling("dynamic", factor=2.5, original_max_position_embeddings=512)
    model = replace(PRESETS["demo"], max_position_embeddings=512, rope_scaling=dynamic)
    check_context(1280, model, Path("w.pth"))
    with pytest.raises(UserError, match=r"w\.pth has a context of 1,280 tokens"):
        check_context(1281, model, Path("w.pth"))


def test_only_rope_without_scaling_is_stretched():
    """As in MiniMind, from more than 2,048 positions on; another scaling would silently give way to YaRN."""
    plain, yarn = replace(PRESETS["demo"], max_position_embeddings=4096), RopeScaling()
    assert stretched(plain, Path("w.pth")).rope_scaling == yarn
    assert stretched(replace(plain, rope_scaling=yarn), Path("w.pth")).rope_scaling == yarn
    short = replace(plain, max_position_embeddings=2048)
    assert stretched(short, Path("w.pth")) == short
    for config, has in ((replace(plain, positions="learned"), "learned positions"),
                        (replace(plain, rope_scaling=RopeScaling("llama3")), "a RoPE scaling of its own, llama3")):
        with pytest.raises(UserError, match=rf"^--inference_rope_scaling 1: w\.pth has {has}$"):
            stretched(config, Path("w.pth"))


@pytest.mark.parametrize(("shape", "takes"), [
    ({"hidden_size": 10**6}, "207 GiB"),
    ({"num_hidden_layers": 10**9}, "11,779,785 GiB"), ({"num_hidden_layers": 10**5}, "1,178 GiB")])
def test_a_new_model_larger_than_the_memory_is_refused_before_it_is_built(shape, takes):
    config = replace(ModelConfig(), **shape, head_dim=64, intermediate_size=1536)
    with pytest.raises(UserError, match=f"takes {takes}.*, and this machine has 8 GiB of memory"):
        check_memory(config, 8 * 2**30)
    check_memory(config, None)
    check_memory(PRESETS["64m"], 2**30)


def test_a_run_that_would_exceed_the_context_ends_before_its_data_are_prepared(tmp_path):
    tokenizer = load_tokenizer(PretrainSettings().data.tokenizer_path)
    model = MiniMindForCausalLM(ModelConfig(tokenizer.vocab_size, 32, 1, 2, 2, positions="learned",
                                            max_position_embeddings=64))
    write_weights(tmp_path / "w.pth", model, "float32", {})
    with pytest.raises(UserError, match=r"^--max_seq_len is 65, .*w\.pth has a context of 64 tokens"):
        starting_model(changed(PretrainSettings(), max_seq_len=65), tmp_path / "w.pth", tokenizer, None,
                       Ranks(0, 1, torch.device("cpu")))
