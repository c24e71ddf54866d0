"""Losses and answers on conversations, and their scores."""

import math

import pytest
import torch
import torch.nn.functional as F
from chats import BUNDLED, CALL, TOKENIZER, TOOLS, chat, tiny_model
from programs import write_rows

from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.example import make_example
from minimind_sft.errors import UserError
from minimind_sft.evaluation import scores
from minimind_sft.evaluation.conversations import evaluate_conversations, examine
from minimind_sft.evaluation.items import Item
from minimind_sft.evaluation.questions import Row, make_question
from minimind_sft.evaluation.results import Candidate, Store
from minimind_sft.evaluation.scores import answer_scores, score_answers, score_tables, summary
from minimind_sft.inference.loading import Loaded
from minimind_sft.labels import IGNORE_INDEX
from minimind_sft.settings.evaluate import EvaluatedConversationsSettings

ROWS = [chat("Hi", "Hello there.", "Who wrote Faust?", "Goethe."), chat("1+1?", "2") | {"kind": "sums"},
        chat("中国的首都？", "北京。") | {"kind": "sums"}]


def candidate(model: torch.nn.Module, folder) -> Candidate:
    loaded = Loaded(folder / "none.pth", model, TOKENIZER, BUNDLED, frozenset(), (), False)
    return Candidate(loaded, {"weights": "ab"}, {})


def settings(*files, **more) -> EvaluatedConversationsSettings:
    return EvaluatedConversationsSettings(data_path=tuple(map(str, files)), **more)


def test_the_loss_is_the_mean_cross_entropy_of_the_answers(tmp_path):
    model = tiny_model().double()
    found = evaluate_conversations(candidate(model, tmp_path), settings(write_rows(tmp_path / "a.jsonl", ROWS),
                                                                        answers=False), Store(None)).result
    losses, right, size = [], 0, 0
    for number, row in enumerate(ROWS):
        (sequence,) = BUNDLED.encode(parse_conversation(row, f"a.jsonl:{number + 1}"))
        example = make_example(sequence.input_ids, sequence.supervised)
        with torch.no_grad():
            logits = model.document_logits(torch.from_numpy(example.input_ids).long(), (0, len(example.input_ids)))
        labels = torch.from_numpy(example.labels).long()
        losses.append(F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_INDEX)[labels >= 0])
        right += int((logits.argmax(-1) == labels).sum())
        size += sum(len(BUNDLED.tokenizer.decode([token]).encode()) for token in labels.tolist()
                    if token not in (IGNORE_INDEX, BUNDLED.end_of_turn_id))
    losses = torch.cat(losses)
    assert found["all"]["tokens"] == len(losses)
    assert found["all"]["loss"] == pytest.approx(losses.mean().item(), rel=1e-12)
    assert found["all"]["perplexity"] == pytest.approx(math.exp(losses.mean().item()))
    assert found["all"]["bits_per_byte"] == pytest.approx(losses.sum().item() / math.log(2) / size)
    assert found["all"]["token_accuracy"] == right / len(losses)
    kinds = found["by_kind"]
    assert list(kinds) == ["all", "sums"] and [kinds[kind]["rows"] for kind in kinds] == [1, 2]
    assert sum(kinds[kind]["loss"] * kinds[kind]["tokens"] for kind in kinds) == pytest.approx(losses.sum().item())
    assert "questions" not in found["all"]


def test_bytes_are_those_of_the_answers(tmp_path):
    (item,) = examine(candidate(tiny_model(), tmp_path), settings(
        write_rows(tmp_path / "a.jsonl", [chat("中国的首都？", "北京。")]), answers=False), Store(None))
    thoughts = "<think>\n\n</think>\n\n"  # the template writes them before every answer without thoughts
    assert item.losses["bytes"] in (len("北京。".encode()), len(f"{thoughts}北京。".encode()))


def test_what_lies_beyond_the_context_is_cut_and_counted(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [chat("Hi", "word " * 100)])
    whole = examine(candidate(tiny_model(), tmp_path), settings(file, answers=False), Store(None))[0].losses
    cut = examine(candidate(tiny_model(context=50), tmp_path), settings(file, answers=False), Store(None))[0].losses
    assert whole["cut"] == 0 and cut["cut"] > 50
    assert cut["tokens"] + cut["cut"] == whole["tokens"]
    lines = evaluate_conversations(candidate(tiny_model(context=50), tmp_path), settings(file, answers=False),
                                   Store(None)).lines
    assert f"cut: {cut['cut']:,} supervised tokens beyond the model's context" in lines


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    model = tiny_model()
    model.lm_head.weight.data[7] = float("nan")
    file = write_rows(tmp_path / "a.jsonl", [chat("Hi", "Hello.")])
    items = examine(candidate(model, tmp_path), settings(file, answers=False), Store(None))
    assert [item.problem for item in items] == [f"{file}:1: the loss is not finite"]
    with pytest.raises(UserError) as error:
        evaluate_conversations(candidate(model, tmp_path), settings(file, answers=False), Store(None))
    assert str(error.value) == f"--data_path: every row is left out, starting with {file}:1: the loss is not finite"


def test_rows_whose_answers_lie_beyond_the_context_are_no_evaluation(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [chat("x " * 60, "Yes."), chat("y " * 60, "No.")])
    with pytest.raises(UserError) as error:
        evaluate_conversations(candidate(tiny_model(context=20), tmp_path), settings(file, answers=False), Store(None))
    assert str(error.value) == ("--data_path: every row is left out, as the model's context of 20 tokens ends before "
                                "any answer")


def test_rows_that_cannot_be_answered_are_named_and_keep_their_loss(tmp_path):
    rows = [chat("x " * 60, "Yes."), chat("Hi", "Hello.")]
    file = write_rows(tmp_path / "a.jsonl", rows)
    outcome = evaluate_conversations(candidate(tiny_model(context=70), tmp_path), settings(file, max_new_tokens=2),
                                     Store(None))
    assert (outcome.result["all"]["rows"], outcome.result["all"]["questions"]) == (2, 1)
    (problem,) = outcome.result["problems"]
    assert problem.startswith(f"{file}:1: the prompt has ")


def test_a_row_that_is_no_conversation_is_refused(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"text": "once"}])
    with pytest.raises(UserError, match=r"a.jsonl:1: conversations: expected a conversation"):
        examine(candidate(tiny_model(), tmp_path), settings(file), Store(None))


@pytest.mark.parametrize("size", [1, 2, 64])
def test_answers_do_not_depend_on_the_batch(tmp_path, size):
    rows = [chat(f"Say {'very ' * (n % 4)}{n}", str(n)) for n in range(9)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 1.0)
    items = examine(candidate(model, tmp_path), settings(file, batch_size=size, max_new_tokens=6), Store(None))
    files = [write_rows(tmp_path / f"{number}.jsonl", [row]) for number, row in enumerate(rows[:3])]
    alone = [examine(candidate(model, tmp_path), settings(one, max_new_tokens=6), Store(None))[0].answer
             for one in files]
    assert [item.answer for item in items[:3]] == alone
    assert len({item.answer for item in items}) > 1


def item(answer: str, *turns: dict, kind: str = "all", tools: list | None = None) -> Item:
    conversation = parse_conversation({"messages": [{"role": "user", "content": "?"}, *turns], "tools": tools}, "a:1")
    row = Row(kind, conversation)
    return Item("a", row, question=make_question(row, BUNDLED, False, 4096), answer=answer)


def says(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


TAGGED = '<tool_call>\n{"name": "weather", "arguments": {"city": "罗马"}}\n</tool_call>'


def test_what_is_expected_decides_the_scores():
    pytest.importorskip("rouge_score")
    assert answer_scores(item("rome", says("Rome."))) == {
        "exact_match": 0, "normalised_match": 1, "token_f1": 1, "rouge_l": 1}
    assert answer_scores(item("rome", says("Rome.")), missing=["rouge_l"]).keys() == {
        "exact_match", "normalised_match", "token_f1"}
    assert answer_scores(item("[1]", says("[1.0]"))) == {"exact_match": 0, "json_valid": 1, "json_equal": 1}
    assert answer_scores(item(TAGGED, says("", tool_calls=CALL), tools=TOOLS)) == {
        "exact_match": 1, "call_made": 1, "call_valid": 1, "call_name": 1, "call_exact": 1}
    assert answer_scores(item(TAGGED, says("It rains."), tools=TOOLS))["needless_call"] == 1
    assert "needless_call" not in answer_scores(item(TAGGED, says("It rains.")))


def test_scores_of_a_group():
    pytest.importorskip("rouge_score")
    sacrebleu = pytest.importorskip("sacrebleu")
    items = [item("It is in Rome.", says("It is in Rome.")), item("It is in Paris.", says("It is in Rome.")),
             item("no", says("", tool_calls=CALL), tools=TOOLS), item("{", says("{}")),
             Item("a", Row("all", parse_conversation(chat("a", "b"), "a:9")))]
    score_answers(items)
    found = summary(items)
    assert (found["rows"], found["questions"], found["text_questions"]) == (5, 4, 2)
    assert (found["call_questions"], found["json_questions"]) == (1, 1)
    assert found["exact_match"] == 1 / 4 and found["call_made"] == 0 and found["json_valid"] == 0
    assert found["token_f1"] == (1 + 3 / 4) / 2
    texts = ["It is in Rome.", "It is in Paris."], [["It is in Rome."] * 2]
    assert found["bleu"] == sacrebleu.corpus_bleu(*texts).score
    assert found["chrf"] == sacrebleu.corpus_chrf(*texts).score
    assert "tok:13a" in found["signatures"]["bleu"]
    assert "bleu" not in summary(items, missing=["bleu", "chrf"])


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "missing_packages", lambda texts: {"bleu": "sacrebleu", "chrf": "sacrebleu"})
    file = write_rows(tmp_path / "a.jsonl", ROWS)
    outcome = evaluate_conversations(candidate(tiny_model(), tmp_path), settings(file, max_new_tokens=2), Store(None))
    assert outcome.lines[-1] == "not scored: bleu and chrf; pip install sacrebleu"
    assert outcome.result["not_scored"] == {"bleu": "sacrebleu", "chrf": "sacrebleu"}
    assert "bleu" not in outcome.result["all"]


def test_tables_show_what_there_is():
    groups = [("all rows", {"rows": 1_000, "questions": 3, "exact_match": 0.5, "call_questions": 2, "call_made": 1.0,
                            "needless_call": None}),
              ("中文", {"rows": 5, "questions": 1, "exact_match": 1.0})]
    assert score_tables(groups) == [
        "          questions  exact match",
        "all rows          3        50.0%",
        "中文              1       100.0%",
        "",
        "          calls expected  called  needless calls",
        "all rows               2  100.0%               -"]
