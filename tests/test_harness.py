"""Our models in lm-evaluation-harness."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from chats import BUNDLED, TOKENIZER, tiny_model
from export_models import QWEN3
from exports import export_of
from programs import run_here, write_rows
from tiny_adapters import write_base

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.errors import UserError
from minimind_sft.evaluation import harness
from minimind_sft.evaluation.harness import HarnessModel, harness_class, register, settings_from
from minimind_sft.export.choice import choose_family
from minimind_sft.export.huggingface import write_folder
from minimind_sft.inference.loading import Loaded
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.registry import FAMILIES
from minimind_sft.settings.harness import HarnessBatchSettings

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
TASK = """task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def loaded(model: MiniMindForCausalLM | None = None, template=BUNDLED) -> Loaded:
    return Loaded(Path("tiny.pth"), model or tiny_model(), TOKENIZER, template, frozenset(), (), is_minimind=False,
                  trained_length=None)


def of(model: MiniMindForCausalLM | None = None, template=BUNDLED, **batches) -> HarnessModel:
    return HarnessModel(loaded(model, template), HarnessBatchSettings(**batches))


def answers(model: HarnessModel, *requests: tuple[str, dict]) -> list[str]:
    found = dict(model.generate(requests, quiet=True))
    return [found[index] for index in range(len(requests))]


def test_control_tokens_in_a_prompt_are_control_tokens():
    """Prompts come as text, and those of a chat hold the marks of its turns."""
    rendered = of().render(CHAT, add_generation_prompt=True)
    assert of().encode(rendered) == TOKENIZER.encode(rendered)
    assert TOKENIZER.token_to_id("<|im_end|>") in of().encode(rendered)
    begun = [*CHAT, {"role": "assistant", "content": "I am"}]
    assert of().render(begun, add_generation_prompt=False).endswith("</think>\n\nI am")
    with pytest.raises(UserError, match=r"tiny\.pth: the weights have only been pretrained and have no chat template"):
        of(template=None).render(CHAT, add_generation_prompt=True)


TRIMS = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def test_a_message_is_continued_where_its_text_ends():
    trims = of(template=ChatTemplate(TOKENIZER, TRIMS))
    for content in ("I am", "I am ", "<|im_end|>", ""):
        begun = [*CHAT, {"role": "assistant", "content": content}]
        assert of().render(begun, add_generation_prompt=False).endswith(f"</think>\n\n{content}")
        assert trims.render(begun, add_generation_prompt=False).endswith(f"assistant\n{content}".rstrip())
    changed = [*CHAT, {"role": "assistant", "content": "well</think>so"}]
    with pytest.raises(UserError, match=r'^tiny\.pth: the chat template does not write the last message as it is, so '
                                        r'that the model cannot continue it: "well</think>so"$'):
        of().render(changed, add_generation_prompt=False)


@torch.no_grad()
def test_what_does_not_fit_loses_its_beginning():
    model, ids = tiny_model().double(), list(range(20, 40))
    (found,) = of(model, max_length=8).likelihoods([(ids[:15], ids[15:])], quiet=True)
    logits = model.document_logits(torch.tensor(ids[11:19]), (0, 8))
    expected = -torch.nn.functional.cross_entropy(logits[-5:], torch.tensor(ids[15:]), reduction="sum")
    assert found.log_likelihood == pytest.approx(expected.item(), abs=1e-9)
    found = answers(of(model, max_length=8), ("word " * 20, {"max_gen_toks": 3}))
    assert found == answers(of(model, max_length=8), (TOKENIZER.decode(TOKENIZER.encode("word " * 20)[-5:]),
                                                      {"max_gen_toks": 3}))


def test_an_answer_ends_at_a_stop_word_and_without_control_tokens(monkeypatch):
    said = [*TOKENIZER.encode("Rome.\nIt is old."), TOKENIZER.token_to_id("<|im_start|>"), *TOKENIZER.encode(" So")]
    seen = {}

    def generate(model, prompts, sampling, stop_ids, is_complete):
        seen.update(stop_ids=stop_ids, sampling=sampling)
        count = next((n for n in range(1, len(said)) if is_complete(said[:n])), len(said))
        return [said[:count] for _ in prompts]

    monkeypatch.setattr(harness, "generate_greedily", generate)
    monkeypatch.setattr(harness, "generate_batch", generate)
    ask = {"until": ["\n", "<|im_start|>"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.7}
    assert answers(of(), ("Which city?", ask)) == ["Rome."]
    ids = {token: TOKENIZER.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>", "<|im_start|>")}
    assert seen["stop_ids"] == set(ids.values())
    assert (seen["sampling"].max_new_tokens, seen["sampling"].temperature) == (9, 0.0)
    assert answers(of(), ("Which city?", {"until": " old"})) == ["Rome.\nIt is"]
    assert seen["stop_ids"] == {ids["<|im_end|>"], ids["<|endoftext|>"]} and seen["sampling"].max_new_tokens == 256
    assert answers(of(), ("Which city?", {"do_sample": True, "top_k": 3})) == ["Rome.\nIt is old. So"]
    assert (seen["sampling"].temperature, seen["sampling"].top_k) == (1.0, 3)


def test_answers_come_back_in_order_whatever_the_batch():
    requests = [(text, {"max_gen_toks": count}) for text, count in [("One", 4), ("Two and three", 9), ("Four", 4)]]
    assert answers(of(batch_size=1), *requests) == answers(of(batch_size=8), *requests)


@pytest.mark.parametrize("arguments, problem", [
    ({"num_beams": 4}, "the task's generation_kwargs have num_beams: 4, which minimind does not have; --gen_kwargs"),
    ({"max_gen_toks": 64}, "the task wants 64 new tokens, which leaves no room for a prompt in the context of 64"),
    ({"do_sample": True, "temperature": -1.0}, "--temperature is -1.0"),
])
def test_what_cannot_be_generated_is_refused(arguments, problem):
    with pytest.raises(UserError, match=problem):
        answers(of(max_length=64), ("Hi", arguments))


def test_arguments_of_the_harness_are_settings():
    found = settings_from({"weight": "pretrain", "lora_weight": "style:0.5 calls", "batch_size": "auto:4",
                           "device": "cpu", "max_length": 512, "use_moe": False, "dtype": None})
    assert (found.weights.weight, found.weights.lora_weight) == ("pretrain", ("style:0.5", "calls"))
    assert (found.runtime.device, found.batches.batch_size, found.batches.max_length) == ("cpu", 32, 512)
    with pytest.raises(UserError, match="unknown flag --pretrained"):
        settings_from({"pretrained": "gpt2"})


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'minimind-sft\[harness\]'"):
        harness_class()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Returns the harness's models of random weights: ours, and its own of the exported folder."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm-eval[hf]")
    folder = tmp_path_factory.mktemp("harness")
    export = export_of(QWEN3)
    write_folder(folder, export, choose_family(QWEN3, FAMILIES, None))
    theirs = huggingface.HFLM(pretrained=str(folder), dtype="float32", device="cpu", max_length=48)
    return harness_class()(loaded(export.weights.build_model().eval()), max_length=48), theirs


def instances(*arguments: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=one, task_name="test") for one in arguments]


@pytest.mark.slow
def test_likelihoods_are_those_of_the_harness_s_own_backend(both):
    pairs = instances(("The capital of Italy is", " Rome"), ("The capital of Italy is ", "Rome."), ("", "Rome is old."),
                      ("", "<|im_start|>system"), ("<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>assistant\n你好"),
                      ("word " * 60, "and more words"), ("中国的首都是", "北京"), ("The capital of Italy is", " Milan"))
    ours, theirs = (model.loglikelihood(pairs, disable_tqdm=True) for model in both)
    for (value, greedy), (other, other_greedy) in zip(ours, theirs, strict=True):
        assert value == pytest.approx(other, abs=1e-4) and greedy == other_greedy
    texts = instances(("Rome.",), ("Rome was not built in a day. " * 20,), ("",))
    assert [model.loglikelihood_rolling(texts, disable_tqdm=True) for model in both[:1]] == [
        pytest.approx(both[1].loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-3)]


@pytest.mark.slow
def test_answers_are_those_of_the_harness_s_own_backend(both):
    ours, theirs = both
    chats = [[*CHAT, *more] for more in ([], [{"role": "assistant", "content": "I"}])]
    assert [model.apply_chat_template(chats[0]) for model in both[:1]] == [theirs.apply_chat_template(chats[0])]
    assert ours.apply_chat_template(chats[1], add_generation_prompt=False) == theirs.apply_chat_template(
        chats[1], add_generation_prompt=False)
    prompts = ["Rome", "Who are you?", ours.apply_chat_template(CHAT), "word " * 60]
    asked = instances(*((prompt, {"until": ["e", "<|im_end|>"], "max_gen_toks": 12}) for prompt in prompts),
                      *((prompt, {"until": [], "max_gen_toks": 8, "do_sample": False}) for prompt in prompts))
    assert ours.generate_until(asked, disable_tqdm=True) == theirs.generate_until(asked, disable_tqdm=True)


@pytest.mark.slow
def test_the_harness_evaluates_our_model_by_its_name(tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval")
    from lm_eval.tasks import TaskManager

    write_base(tmp_path, QWEN3, "mine")
    data = write_rows(tmp_path / "capitals.jsonl", [
        {"question": f"The capital of {country} is", "choices": [" Rome", " Oslo"], "answer": answer}
        for country, answer in (("Italy", 0), ("Norway", 1), ("Lazio", 0))])
    (tmp_path / "capitals.yaml").write_text(TASK % data)
    register()
    found = lm_eval.simple_evaluate(
        "minimind", f"weight=mine,save_dir={tmp_path}", tasks=["capitals"], device="cpu", bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False))
    assert found["config"]["model"] == "minimind" and found["config"]["model_dtype"] == "torch.float32"
    rights = [sample["acc"] for sample in found["samples"]["capitals"]]
    assert len(rights) == 3 and found["results"]["capitals"]["acc,none"] == pytest.approx(sum(rights) / 3)


@pytest.mark.slow
@pytest.mark.parametrize("typed, given", [
    (["--tasks", "mmlu"], ["--model", "minimind", "--device", "auto", "--batch_size", "32", "--tasks", "mmlu"]),
    (["run", "--tasks", "mmlu", "--device", "cpu", "-b", "8"],
     ["run", "--model", "minimind", "--tasks", "mmlu", "--device", "cpu", "-b", "8"]),
    (["-C", "config.yaml"], ["--model", "minimind", "-C", "config.yaml"]),
    (["ls", "tasks"], ["ls", "tasks"]),
])
def test_the_program_hands_its_flags_to_the_harness(typed, given, monkeypatch):
    main = pytest.importorskip("lm_eval.__main__", reason="needs lm-eval")
    seen = []
    monkeypatch.setattr(main, "cli_evaluate", lambda: seen.extend(sys.argv[1:]))
    assert run_here("scripts/run_harness.py", *typed).returncode == 0
    assert seen == given
    def missing() -> None:
        raise ValueError("Tasks not found: mmlu2")

    monkeypatch.setattr(main, "cli_evaluate", missing)
    done = run_here("scripts/run_harness.py", "--tasks", "mmlu2")
    assert done.returncode == 2 and done.stderr.startswith("error: --tasks: Tasks not found: mmlu2; python scripts/")
    done = run_here("scripts/run_harness.py", "--model", "hf", "--tasks", "mmlu")
    assert done.returncode == 2 and "this program runs the model minimind" in done.stderr
