"""Evaluation during a run: what it measures, that it changes nothing, and that all ranks do it together."""

import json
from dataclasses import replace

import pytest
import torch
from chats import BUNDLED, TOKENIZER
from processes import on_ranks
from programs import CHAT, NEW, SFT, questions, succeed, write_rows
from safetensors.torch import load_file
from test_drawing import samples
from tiny_training import CPU

from minimind_sft.data.batching import BatchLayout, EvaluationBatches, TrainingSteps
from minimind_sft.errors import ProcessLost, UserError
from minimind_sft.evaluation.decodable import as_saved
from minimind_sft.evaluation.drawing import draw_questions
from minimind_sft.evaluation.during_training import Answer, Evaluation, Evaluator
from minimind_sft.evaluation.losses import TokenScore, ValidationLoss, validation_loss
from minimind_sft.inference.generate import generate_stream
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.settings.chat import SamplingSettings
from minimind_sft.settings.spec import changed
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import train_step, undisturbed
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.parallel import full_tensor, parallelize

CONFIG = ModelConfig(vocab_size=6400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                     intermediate_size=48)
SETTINGS = changed(SFTSettings(), eval_samples=5, eval_max_new_tokens=12, save_dtype="float32")


def new_model(config: ModelConfig = CONFIG) -> MiniMindForCausalLM:
    """Returns a model whose answers differ from prompt to prompt."""
    torch.manual_seed(0)
    model = MiniMindForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3)
    return model


def evaluator(model: MiniMindForCausalLM, ranks: Ranks = CPU, settings=SETTINGS, rows: int = 12) -> Evaluator:
    dataset = samples(*questions(rows))
    drawn = draw_questions(dataset, settings.evaluation, model.config.context, TOKENIZER, BUNDLED)
    layout = BatchLayout(200, ranks.rank, ranks.world_size)
    return Evaluator(model, EvaluationBatches(dataset, layout), drawn, settings, torch.float32, ranks)


def test_the_model_answers_greedily_and_its_losses_are_measured():
    model = new_model()
    found = evaluator(model)()
    dataset = samples(*questions(12))
    assert found.losses == validation_loss(model, EvaluationBatches(dataset, BatchLayout(200)), CPU.device,
                                           torch.float32)
    expected = []
    for question in draw_questions(dataset, SETTINGS.evaluation, 4096, TOKENIZER, BUNDLED).questions:
        ids = list(generate_stream(model, question.prompt, SamplingSettings(12), {BUNDLED.end_of_turn_id, 0}))
        expected.append((question.text, question.expected, TOKENIZER.decode(ids).strip()))
    assert [(one.question, one.expected, one.answer) for one in found.answers] == expected
    assert len({one.answer for one in found.answers}) > 1
    assert [one.exact for one in found.answers] == [False] * 5


def test_without_samples_only_losses_are_measured():
    found = evaluator(new_model(), settings=changed(SETTINGS, eval_samples=0))()
    assert found.answers == () and found.exact_match is None
    assert set(found.metrics()) == {"eval_loss", "perplexity", "token_accuracy", "eval_tokens", "by_source", "by_kind"}


def test_answers_come_from_the_weights_as_they_are_saved():
    model = new_model()
    model.lm_head.requires_grad_(False)  # tied to the embedding
    copied = as_saved(model, torch.float16)
    for (name, mine), other in zip(copied.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other if name.startswith("model.embed") else other.half().float()), name
        assert (mine is other) == name.startswith("model.embed"), name
    assert model.training and not copied.training


EVALUATION = Evaluation(
    ValidationLoss(1.5, 0.25, 8, by_source={"a.jsonl": TokenScore(1.5, 0.25, 8)}, by_kind={"sum": TokenScore(1, 0, 8)}),
    [Answer("sum", "1 + 1?", "2", "2", True), Answer("sum", "1 + 2?", "3", "4\x1b[2J", False),
     Answer("word", "Hi", None, "Hello.", None)])


def test_the_metrics_hold_everything_and_the_terminal_the_essence():
    assert EVALUATION.metrics() == {
        "eval_loss": 1.5, "perplexity": pytest.approx(4.4817, rel=1e-4), "token_accuracy": 0.25, "eval_tokens": 8,
        "by_source": {"a.jsonl": {"loss": 1.5, "token_accuracy": 0.25, "tokens": 8}},
        "by_kind": {"sum": {"loss": 1, "token_accuracy": 0, "tokens": 8}},
        "exact_match": 0.5, "exact_by_kind": {"sum": [1, 2]},
        "answers": [{"kind": "sum", "question": "1 + 1?", "expected": "2", "answer": "2", "exact": True},
                    {"kind": "sum", "question": "1 + 2?", "expected": "3", "answer": "4\x1b[2J", "exact": False},
                    {"kind": "word", "question": "Hi", "expected": None, "answer": "Hello.", "exact": None}]}
    assert EVALUATION.lines() == [
        "validation loss 1.5000, perplexity 4.48, token accuracy 25.0%, exact match 1 of 2", '"1 + 1?" -> "2" (right)']
    wrong = Evaluation(EVALUATION.losses, EVALUATION.answers[1:])
    assert wrong.lines()[1] == '"1 + 2?" -> "4\\u001b[2J" (expected "3")'
    assert Evaluation(ValidationLoss(60.0, 0, 8, {}, {})).lines() == [
        "validation loss 60.0000, perplexity 1.14e+26, token accuracy 0.0%"]


def test_best_by_exact_match_needs_answers_that_can_be_compared():
    by_answers = changed(SETTINGS, best_by="exact_match")
    evaluator(new_model(), settings=by_answers)
    with pytest.raises(UserError, match=r"^--best_by exact_match: none of the 5 questions .* at most 1 token "):
        evaluator(new_model(), settings=changed(by_answers, eval_max_new_tokens=1))


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, use_moe=True)], ids=["dense", "experts"])
def test_an_evaluation_leaves_random_state_modes_and_gradients_as_they_were(config):
    model = new_model(config)
    model.model.layers[0].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = build_optimizer(model, 0.1, 0.1)
    learner = Learner(model, model, optimizer, torch.amp.GradScaler("cpu", enabled=False), CPU, torch.float32)
    modes = [module.training for module in model.modules()]
    before, state = [parameter.clone() for parameter in model.parameters()], torch.get_rng_state()
    with undisturbed(learner):
        torch.rand(3)
        evaluator(model)()
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())


def trained(ranks: Ranks, parallel: str, dtype: torch.dtype, with_evaluation: bool) -> tuple[list, list[dict]]:
    """Makes two steps with dropout; returns the weights and, from evaluations before and after them, the metrics."""
    model = new_model(replace(CONFIG, dropout=0.1)).train()
    wrapped = parallelize(model, ranks, parallel, dtype)
    learner = Learner(model, wrapped, build_optimizer(model, 0.01, 0.1),
                      torch.amp.GradScaler("cpu", enabled=False), ranks, dtype)
    evaluate, found = evaluator(model, ranks), []
    steps = TrainingSteps(samples(*questions(12)), BatchLayout(200, ranks.rank, ranks.world_size), epochs=1,
                          samples_per_step=6, seed=1)
    for step in range(3):
        if with_evaluation:
            with undisturbed(learner):
                found.append(evaluate().metrics())
        if step < 2:
            torch.manual_seed(step) if step == 0 else None  # a drawn number would show in the second step
            train_step(learner, steps[step], 1.0)
    return [full_tensor(parameter.detach()).numpy() for parameter in model.parameters()], found


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_evaluate_as_one_does_and_train_as_if_they_did_not(parallel):
    ((with_it, found), (_, found_by_other)), ((without, _), _) = (
        on_ranks(2, trained, parallel, torch.float32, with_evaluation) for with_evaluation in (True, False))
    assert all((one == other).all() for one, other in zip(with_it, without, strict=True))
    assert found == found_by_other
    _, (alone, *_) = trained(CPU, "ddp", torch.float32, True)
    assert found[0]["answers"] == alone["answers"]
    assert found[0]["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)
    assert found[0]["token_accuracy"] == alone["token_accuracy"] and found[2] != found[0]


def fails_in_evaluation(ranks: Ranks, failing: str) -> str:
    evaluate = evaluator(new_model(), ranks)
    if ranks.rank == 1:
        def fail(*_: object) -> None:
            raise UserError("no memory")

        evaluate._model.token_losses = fail if failing == "losses" else evaluate._model.token_losses
        evaluate._answer = fail if failing == "answers" else evaluate._answer
    try:
        evaluate()
    except (UserError, ProcessLost) as error:
        return str(error)


@pytest.mark.parametrize("failing", ["losses", "answers"])
def test_a_rank_that_fails_in_an_evaluation_stops_the_others(failing):
    assert on_ranks(2, fails_in_evaluation, failing) == ["rank 1 has failed (its message says why)", "no memory"]


@pytest.mark.slow
def test_a_run_with_evaluations_ends_with_the_weights_of_one_without_and_answers_as_the_chat_does(
        tmp_path, sft_data):
    held = write_rows(tmp_path / "held.jsonl", questions(9))
    common = [*NEW, "--data_path", sft_data, "--device", "cpu", "--dropout", 0.1, "--learning_rate", "1e-2",
              "--epochs", 3, "--batch_size", 8, "--keep_best", 0]
    succeed(SFT, *common, "--eval_share", 0, "--save_dir", tmp_path / "without")
    succeed(SFT, *common, "--eval_data_path", held, "--eval_interval", 5, "--eval_samples", 9,
             "--eval_max_new_tokens", 12, "--save_dir", tmp_path / "with")
    parts = [[*sorted((tmp_path / run / "checkpoints/full_sft_32_resume").glob("step-*"))][-1] for run in
             ("without", "with")]
    for name in ("weights", "optimizer"):
        one, other = (load_file(part / f"{name}-00001-of-00001.safetensors") for part in parts)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    lines = map(json.loads, (tmp_path / "with/full_sft_32_metrics.jsonl").read_text().splitlines())
    evaluations = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 5, 10, 15]
    assert set(evaluations[-1]["by_kind"]) == {"even", "odd"} and list(evaluations[-1]["by_source"]) == [str(held)]
    succeed(CHAT, "--weight", tmp_path / "with/full_sft_32.pth", "--tokenizer_path", "bundled", "--score", held,
             "--score_out", tmp_path / "scored.jsonl", "--max_new_tokens", 12, "--device", "cpu")
    scored = map(json.loads, (tmp_path / "scored.jsonl").read_text().splitlines())
    chat = {row["messages"][-1]["content"]: (row["kind"], row["expected"], row["answer"], row["exact"])
            for row in scored}
    answers = {one["question"]: (one["kind"], one["expected"], one["answer"], one["exact"])
               for one in evaluations[-1]["answers"]}
    assert answers == chat and len(answers) == 9
    assert any(answer for _, _, answer, _ in answers.values())
