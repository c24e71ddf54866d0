"""Models of one base share its matrices, and answer as each does alone."""

from dataclasses import replace

import pytest
import torch
from tiny_adapters import write_base, write_lora

from minimind_sft.inference.generate import SamplingSettings, generate_batch
from minimind_sft.inference.loading import load
from minimind_sft.inference.lowering import LoweredModel, best_pack
from minimind_sft.inference.sharing import SharedMatrices
from minimind_sft.model.config import ModelConfig
from minimind_sft.settings.chat import ChatRuntimeSettings, WeightSettings

SMALL = ModelConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
GREEDY = SamplingSettings(max_new_tokens=12, temperature=0.0)


def test_equal_matrices_are_packed_once():
    packed = []

    def pack(weights, bias_O):
        packed.append(weights)
        return lambda x_TI: x_TI

    weight_OI, other_OI = torch.ones(4, 3), torch.eye(4, 3)
    shared = SharedMatrices()
    share = shared.pack_with(pack)
    first = share([weight_OI, other_OI], None)
    assert share([weight_OI.clone(), other_OI.clone()], None) is first and len(packed) == 1
    others = [([other_OI, weight_OI], None), ([weight_OI], None), ([weight_OI.bfloat16(), other_OI], None),
              ([weight_OI.view(3, 4), other_OI], None), ([weight_OI, other_OI], torch.zeros(8)),
              ([weight_OI, other_OI], torch.ones(8))]
    for number, (weights, bias_O) in enumerate(others, start=2):
        assert share(weights, bias_O) is not first and len(packed) == number
    assert shared.pack_with(lambda *_: len)([weight_OI, other_OI], None) is len, "another kind of packing"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_of_one_base_share_it_and_answer_as_alone(tmp_path, dtype):
    if best_pack(torch.zeros(1, dtype=getattr(torch, dtype))) is None:
        pytest.skip("this machine packs no matrices")
    base = write_base(tmp_path, SMALL)
    adapters = [(), (str(write_lora(tmp_path, base, "style", seed=1)),),
                (str(write_lora(tmp_path, base, "calls", seed=2, saved=("model.norm",))),)]
    shared = SharedMatrices()

    def loaded(lora: tuple[str, ...], with_others: SharedMatrices | None) -> LoweredModel:
        chosen = replace(WeightSettings(), weight=str(base), lora_weight=lora)
        return load(chosen, replace(ChatRuntimeSettings(), device="cpu", dtype=dtype), lambda line: None,
                    shared=with_others).model

    together, products = [], []
    for lora in adapters:
        together.append(loaded(lora, shared))
        products.append(len(shared._products))
    # In each form, four products for each of two layers and the head; an adapter adds two to each of a layer's.
    assert products in ([9, 9 + 16, 9 + 32], [18, 18 + 32, 18 + 64])
    assert len({id(model.embed_tokens) for model in together}) == 1
    answers = [generate_batch(model, [[5, 6, 7], [9, 8]], GREEDY, ()) for model in together]
    assert answers == [generate_batch(loaded(lora, None), [[5, 6, 7], [9, 8]], GREEDY, ()) for lora in adapters]
    assert answers[1] != answers[0] != answers[2]
