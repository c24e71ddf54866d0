"""Pictures of runs."""

import pytest
from metrics_files import evaluated, ordinary, trained, write_lines

from minimind_sft.errors import UserError
from minimind_sft.report.plots import described_validation, draw, panels_of
from minimind_sft.report.run_files import read_run
from minimind_sft.report.run_names import run_names


def run(path, lines):
    return read_run(write_lines(path, lines))


def drawn(out, runs, title="") -> str:
    pytest.importorskip("matplotlib")
    draw(runs, title, out)
    return out.read_text(encoding="utf-8")


def test_one_run_has_both_losses_in_one_panel_and_several_have_a_panel_each(tmp_path):
    one = run(tmp_path / "a", ordinary())
    small = ["learning rate", "gradient norm", "speed (tokens per second)"]
    unit = "(nats per supervised token)"
    assert [panel.title for panel in panels_of({"a": one})] == [f"loss {unit}", *small]
    assert [panel.title for panel in panels_of({"a": one, "b": one})] == [
        f"training loss {unit}", f"validation loss {unit}", *small]


def test_panels_without_values_are_left_out(tmp_path):
    old = run(tmp_path / "a", [{"step": 1, "loss": 2.0, "learning_rate": 0.1, "supervised_tokens_per_second": 90.0}])
    assert [panel.field for panel in panels_of({"a": old})] == ["loss", "learning_rate", "supervised_tokens_per_second"]
    evaluation = run(tmp_path / "b", [evaluated(0, 2.0)])
    assert [panel.field for panel in panels_of({"b": evaluation})] == ["loss"]
    assert panels_of({"c": run(tmp_path / "c", [{"step": 1, "loss": None, "skipped": "not finite"}])}) == []


def test_a_picture_names_its_panels_and_runs_and_is_the_same_each_time(tmp_path):
    runs = {"$x$ & <b>": run(tmp_path / "a", ordinary()), "_hidden": run(tmp_path / "b", ordinary(last_loss=3.0))}
    text = drawn(tmp_path / "runs.svg", runs, "A $title$")
    for words in ("validation loss (nats per supervised token)", "gradient norm", "A $title$", "$x$ &amp; &lt;b&gt;: ",
                  "_hidden: validation 4.000 → 3.000 at step 40 (perplexity 54.6 → 20.09)"):
        assert f"<!-- {words}" in text.replace(r"\$", "$").replace("<!--  _", "<!-- _"), words
    assert drawn(tmp_path / "again.svg", runs, "A $title$") == text


@pytest.mark.parametrize(("ending", "signature"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".JPG", b"\xff\xd8\xff")])
def test_formats(tmp_path, ending, signature):
    pytest.importorskip("matplotlib")
    draw({"a": run(tmp_path / "a", [trained(1, 2.0)])}, "", tmp_path / f"a{ending}")
    assert (tmp_path / f"a{ending}").read_bytes().startswith(signature)


def test_a_name_in_chinese_is_drawn_without_complaint(tmp_path, recwarn):
    drawn(tmp_path / "a.svg", {"模型": run(tmp_path / "a", ordinary()), "b": run(tmp_path / "b", ordinary())}, "损失")
    assert not list(recwarn)


def test_more_runs_than_colours_and_odd_values(tmp_path):
    lines = [evaluated(0, 5000.0), trained(1, 3.0, grad_norm=0.0, learning_rate=0.0), evaluated(1, 3.0)]
    drawn(tmp_path / "a.svg", {str(number): run(tmp_path / "a", lines) for number in range(10)})


def test_how_the_validation_loss_went():
    assert described_validation([(0, 5000.0), (5, 0.5), (9, 1.0)]) == (
        "5000.000 → 0.500 at step 5 (perplexity 1.014e+304 → 1.649)")


def test_runs_are_named_by_as_many_folders_as_tell_them_apart(tmp_path):
    names = ("a/x/sft_metrics.jsonl", "b/x/sft_metrics.jsonl", "c/other_metrics.jsonl", "c/any.jsonl")
    assert run_names([tmp_path / name for name in names]) == ["a/x/sft", "b/x/sft", "other", "any.jsonl"]
    assert run_names([]) == []
    with pytest.raises(UserError, match=r"sft_metrics.jsonl: given 2 times"):
        run_names([tmp_path / names[0], tmp_path / names[0]])
