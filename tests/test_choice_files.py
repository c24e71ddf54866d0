"""Multiple-choice questions in the layouts of MMLU, C-Eval and CMMLU."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from programs import write_rows

from minimind_sft.errors import UserError
from minimind_sft.evaluation.choice_files import ChoiceQuestion, read_choices

MMLU = '"Which is prime, 4 or 5?",four,five,both,neither,B\n"Two\nlines, ""quoted""",a,b,c,d,D\n'
CEVAL = "id,question,A,B,C,D,answer,explanation\n0,首都是____。,北京,上海,广州,深圳,A,略\n"
CMMLU = ",Question,A,B,C,D,Answer\n0,一加一等于,一,二,三,四,B\n"


def read(tmp_path, name: str, content: str) -> list[ChoiceQuestion]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return read_choices([path])


def test_mmlu_has_no_header(tmp_path):
    first, second = read(tmp_path, "test/number_theory_test.csv", MMLU)
    assert first == ChoiceQuestion(f"{tmp_path}/test/number_theory_test.csv:1", "mmlu", "number_theory",
                                   "Which is prime, 4 or 5?", ("four", "five", "both", "neither"), 1)
    assert (second.question, second.answer, second.letters) == ('Two\nlines, "quoted"', 3, "ABCD")
    assert second.place.endswith("test.csv:2")


@pytest.mark.parametrize("name, content, benchmark, subject, question, options, answer", [
    ("val/law_val.csv", CEVAL, "ceval", "law", "首都是____。", ("北京", "上海", "广州", "深圳"), 0),
    ("dev/law_dev.csv", "\ufeff" + CEVAL, "ceval", "law", "首都是____。", ("北京", "上海", "广州", "深圳"), 0),
    ("test/arts.csv", CMMLU, "cmmlu", "arts", "一加一等于", ("一", "二", "三", "四"), 1),
    ("a.csv", "answer,question,A,B,C,D\nC,What?,a,b,c,d\n", "mmlu", "a", "What?", ("a", "b", "c", "d"), 2),
    ("a.tsv", "question\tA\tB\tC\tanswer\nWhat?\ta\tb\tc\tC\n", "mmlu", "a", "What?", ("a", "b", "c"), 2),
])
def test_columns_by_letter(tmp_path, name, content, benchmark, subject, question, options, answer):
    (found,) = read(tmp_path, name, content)
    assert (found.benchmark, found.subject, found.question, found.options, found.answer) == (
        benchmark, subject, question, options, answer)


@pytest.mark.parametrize("answer", [1, "B"])
def test_choices_as_a_list(tmp_path, answer):
    row = {"question": "What?", "subject": "anatomy", "choices": ["a", "b", "c"], "answer": answer}
    (found,) = read(tmp_path, "rows.jsonl", json.dumps(row))
    assert (found.benchmark, found.subject, found.options, found.answer) == ("mmlu", "anatomy", ("a", "b", "c"), 1)


def test_parquet_of_the_hub(tmp_path):
    folder = tmp_path / "anatomy"
    folder.mkdir()
    table = pyarrow.table({"question": ["What?"], "choices": [["a", "b"]], "answer": [0]})
    pyarrow.parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    (found,) = read_choices([folder / "test-00000-of-00001.parquet"])
    assert (found.subject, found.options, found.answer) == ("anatomy", ("a", "b"), 0)


ROW = {"question": "What?", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize("changes, problem", [
    ({"answer": 2}, "answer: expected a letter from A to B or a number from 0 to 1, found 2"),
    ({"answer": True}, "answer: expected a letter from A to B or a number from 0 to 1, found true"),
    ({"answer": "AB"}, 'answer: expected a letter from A to B or a number from 0 to 1, found "AB"'),
    ({"answer": None}, "answer: expected the right option, found nothing (C-Eval's test set has no answers; its val "
                       "set has)"),
    ({"choices": ["a"]}, "choices: expected a list of 2 to 26 texts, found a list"),
    ({"choices": ["a", " "]}, 'choices[1]: expected a text, found " "'),
    ({"question": 3}, "question: expected a text, found 3"),
    ({"question": None, "instruction": "What?"}, "question: expected a text, found null"),
])
def test_what_is_no_question_is_refused(tmp_path, changes, problem):
    path = write_rows(tmp_path / "q.jsonl", [ROW, {**ROW, **changes}])
    with pytest.raises(UserError) as error:
        read_choices([path])
    assert str(error.value) == f"{path}:2: {problem}"


@pytest.mark.parametrize("name, content, problem", [
    ("a.csv", "question,A,B,C,D,answer\nWhat?,a,,c,d,A\n", "a.csv:2: B: expected a text, found nothing"),
    ("a.csv", "question,A,B,C,D,answer\nWhat?,a,b,c,d,E\n",
     'a.csv:2: answer: expected a letter from A to D, found "E"'),
    ("a.csv", "What?,a,b,c,d,A\nWhat?,a,b,c\n", "a.csv:2: expected 6 columns as in the header, found 4"),
    ("a.csv", "text,label\nHi,1\n",
     "a.csv:2: expected a multiple-choice question as in MMLU, C-Eval or CMMLU (question, A to D, answer; or question, "
     "choices, answer), found a row with label, text"),
    ("a.jsonl", json.dumps({"question": "What?", "answer": "that"}), "a.jsonl:1: expected a multiple-choice question"),
    ("a.csv", "", "a.csv"),
])
def test_other_files_are_refused(tmp_path, name, content, problem):
    with pytest.raises(UserError) as error:
        read(tmp_path, name, content)
    assert str(error.value).startswith(f"{tmp_path}/{problem}")
