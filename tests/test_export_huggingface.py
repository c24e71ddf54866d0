"""Hugging Face folders: what is in them, and that transformers computes from them what we compute."""

import json
from dataclasses import replace

import pytest
import torch
from chats import BUNDLED, TOKENIZER, TOOLS
from export_models import CONFIGS, LLAMA, LONG, QWEN3, UNNORMALISED, random_weights
from exports import export_of
from safetensors.torch import load_file

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.errors import UserError
from minimind_sft.export.check import compare
from minimind_sft.export.choice import choose_family
from minimind_sft.export.huggingface import write_folder
from minimind_sft.export.model import Export
from minimind_sft.inference.generate import SamplingSettings, generate_batch
from minimind_sft.model.config import RopeScaling
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.model.weights import read_weights

IDS = [1, 400, 4000, 17, 6000, 2, 77, 1024, 5, 900, 31, 3333]


def write(folder, export, name=None, **arguments):
    """Writes a folder in the family of that name, or in the first that can hold the weights."""
    folder.mkdir()
    family = choose_family(export.weights.config, FAMILIES, name)
    write_folder(folder, export, family, **arguments)
    return folder


def loaded(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("name", [*CONFIGS, "phi3"])
def test_transformers_computes_the_same_from_the_folder_of_each_family(name, tmp_path):
    export = export_of(CONFIGS.get(name, LLAMA))
    folder = write(tmp_path / "folder", export, name if name not in CONFIGS else None)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == name
    theirs, ours = loaded(folder), export.weights.build_model().eval()
    assert theirs.config.architectures == config["architectures"] == [type(theirs).__name__]
    ids = torch.tensor(IDS)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        torch.testing.assert_close(ours.document_logits(ids, [0, len(ids)]), expected, rtol=0, atol=1e-4)
        greedy = theirs.generate(ids[None], max_new_tokens=12, do_sample=False, eos_token_id=None)[0, len(ids):]
    (answer,) = generate_batch(ours, [IDS], SamplingSettings(max_new_tokens=12, temperature=0.0), ())
    assert answer == greedy.tolist()
    assert "equal" in str(compare(export, read_weights(folder), Tokenizer.from_folder(folder)))


@pytest.mark.parametrize("config", [UNNORMALISED, LONG, replace(QWEN3, vocab_size=6464)],
                         ids=["unnormalised", "llama3", "padded vocabulary"])
def test_what_is_not_a_default_is_kept(config, tmp_path):
    export = export_of(config)
    theirs = loaded(write(tmp_path / "folder", export))
    ids = torch.arange(100)
    with torch.no_grad():
        ours = export.weights.build_model().eval().document_logits(ids, [0, 100])
        torch.testing.assert_close(ours, theirs(ids[None]).logits[0], rtol=0, atol=1e-4)
    assert theirs.get_input_embeddings().num_embeddings == config.vocab_size


def test_files_and_configuration_of_a_mind_of_the_third_generation(tmp_path):
    folder = write(tmp_path / "folder", export_of(replace(QWEN3, rope_theta=1e6), "bfloat16"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"]
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 1e6 and config["rope_parameters"]["rope_theta"] == 1e6
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    ids = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 0}
    assert ids.items() <= config.items()
    assert json.loads((folder / "generation_config.json").read_text()) == ids
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors and len(tensors) == 2 * 11 + 2
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_large_model_is_divided_into_shards_with_an_index(tmp_path):
    export = export_of(QWEN3)
    folder = write(tmp_path / "folder", export, shard_bytes=900_000)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in export.weights.tensors.values())
    for shard in shards:
        assert set(load_file(folder / shard)) == {name for name, place in index["weight_map"].items() if place == shard}
    state = loaded(folder).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in export.weights.tensors.items())
    assert "equal" in str(compare(export, read_weights(folder), Tokenizer.from_folder(folder)))


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(("messages", "tools"), [
    ([{"role": "user", "content": "Who are you?"}], None),
    ([{"role": "system", "content": "Antworte kurz."}, {"role": "user", "content": " 你好\n\n"}], None),
    ([{"role": "user", "content": "Weather in Rome?"}], TOOLS),
])
def test_apply_chat_template_gives_the_ids_that_training_used(messages, tools, thinking, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "folder", export_of(QWEN3))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False,
                                     enable_thinking=thinking)
    assert ids == BUNDLED.generation_prompt_ids(messages, tools, thinking)


def test_around_earlier_answers_the_text_is_the_same_but_not_every_id(tmp_path):
    """Training cuts the text at both ends of an answer; transformers tokenizes an earlier one with what is around."""
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "folder", export_of(QWEN3))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"},
                {"role": "user", "content": "12+3=?"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ours = BUNDLED.generation_prompt_ids(messages)
    assert theirs.decode(ids) == theirs.decode(ours)
    assert len(ids) == len(ours) + 1  # the two line ends before the answer are one token in training


def test_a_minimind_3_with_its_own_tokenizer_becomes_a_qwen3(shared, tmp_path):
    transformers = pytest.importorskip("transformers")
    reference = shared / "reference" / "minimind"
    tokenizer = Tokenizer.from_folder(reference)
    template, weights = ChatTemplate(tokenizer), read_weights(reference / "moe" / "weights.pth")
    folder = write(tmp_path / "folder", Export(weights, tokenizer, template, "float32"))
    theirs, (expected,) = loaded(folder), load_file(reference / "moe" / "expected.safetensors")["logits"][:1]
    ids = load_file(reference / "moe" / "expected.safetensors")["input_ids"][:1]
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits[0], expected, rtol=0, atol=1e-4)
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    messages = [{"role": "user", "content": "你是谁？ 12+3"}]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokens.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True, return_dict=False)
    assert ids == template.generation_prompt_ids(messages, TOOLS)


HEADERLESS = ("{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
              "{%- endfor %}\n")


def test_a_template_without_a_generation_prompt_gets_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    template = ChatTemplate(TOKENIZER, HEADERLESS)
    folder = write(tmp_path / "folder", replace(export_of(QWEN3), template=template))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who are you?"}]
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == template.generation_prompt_ids(messages)
    assert theirs.decode(ids).endswith("<|im_start|>assistant\n")
    plain = theirs.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    assert plain == template.render(messages)


def test_a_template_for_tools_goes_along(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(TOKENIZER.state, TOKENIZER.special, BUNDLED.source,
                          {"tool_use": BUNDLED.source.replace("# Tools", "# Functions")})
    template = ChatTemplate(tokenizer)
    folder = write(tmp_path / "folder", Export(random_weights(QWEN3), tokenizer, template, "float32"))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Weather in Rome?"}]
    for tools in (None, TOOLS):
        ids = theirs.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False,
                                         enable_thinking=False)
        assert ids == template.generation_prompt_ids(messages, tools)


def test_the_tokenizer_in_the_folder_is_the_same_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path / "folder", export_of(QWEN3))
    assert Tokenizer.from_folder(folder).fingerprint == TOKENIZER.fingerprint
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("Hello  world 1234!", "你好，世界", "<|im_start|>user\n<think>", " \t\n", "é\u200d🙂"):
        assert theirs(text)["input_ids"] == TOKENIZER.encode(text)
        assert theirs.decode(TOKENIZER.encode(text)) == text


def test_texts_begin_with_bos_where_they_did_in_training(tmp_path):
    """transformers looks for that in tokenizer.json; a GGUF file and tokenizer_config.json have it elsewhere."""
    transformers = pytest.importorskip("transformers")
    tokenizer, special = TOKENIZER, {**TOKENIZER.special, "bos_token": "<|im_start|>"}
    for adds_bos in (True, False):
        tokenizer = Tokenizer(tokenizer.state, special, adds_bos=adds_bos)
        folder = write(tmp_path / str(adds_bos), Export(export_of(QWEN3).weights, tokenizer, None, "float32"))
        expected = [*([tokenizer.bos_id] if adds_bos else []), *tokenizer.encode("Hello")]
        assert transformers.AutoTokenizer.from_pretrained(folder)("Hello").input_ids == expected
        tokenizer = Tokenizer.from_folder(folder)
        assert tokenizer.adds_bos is adds_bos


def test_weights_without_a_template_get_none(tmp_path):
    folder = write(tmp_path / "folder", replace(export_of(QWEN3), template=None))
    assert not (folder / "chat_template.jinja").exists()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]


def test_ends_of_text_that_a_base_names_are_kept_if_they_are_tokens(tmp_path):
    folder = write(tmp_path / "folder", replace(export_of(QWEN3), named_stop_ids=frozenset({7, 2, -1, 10**9})))
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0, 7]


def test_values_too_large_for_the_dtype_are_refused(tmp_path):
    export = export_of(QWEN3, "float16")
    export.weights.tensors["model.norm.weight"][0] = 1e6
    with pytest.raises(UserError, match=r"--dtype float16: model.norm.weight has values too large .* \(up to 1e\+06"):
        write(tmp_path / "folder", export)


def test_the_family_of_the_weights_comes_first():
    plain = CONFIGS["llama"]
    assert choose_family(plain, FAMILIES, "mistral").name == "mistral"
    assert choose_family(plain, FAMILIES, "gpt2").name == "llama"


@pytest.mark.parametrize(("changes", "named"), [
    ({"num_shared_experts": 1, "use_moe": True}, "num_shared_experts 1"),
    ({"norm": "layer"}, "norm 'layer'"),
    ({"rope_scaling": RopeScaling("dynamic", 2.0, 64)},
     r"rope_scaling dynamic \(factor 2, original_max_position_embeddings 64\)"),
    ({"sliding_window": 8, "use_moe": True, "full_attention_layers": (0,)}, "full_attention_layers"),
])
def test_what_no_family_can_express_is_refused_by_field(changes, named):
    with pytest.raises(UserError, match=named):
        choose_family(replace(QWEN3, **changes), FAMILIES, None)
