"""The learning rate of each update, by literal values and by transformers' schedules."""

import pytest
from kill_and_resume import repeatable_lines
from tiny_training import Training

from minimind_sft.settings.optimizer import OptimizerSettings
from minimind_sft.training.schedule import Schedule


@pytest.mark.parametrize(("name", "expected"), [
    ("cosine", [4.0, 3.7363961030678927, 3.1, 2.4636038969321073, 2.2]),
    ("linear", [4.0, 3.55, 3.1, 2.65, 2.2]),
    ("constant", [4.0, 4.0, 4.0, 4.0, 4.0]),
    ("wsd", [4.0, 4.0, 4.0, 2.7272077938642145, 2.2]),
])
def test_the_rates_of_six_updates_after_a_warmup_of_one(name, expected):
    schedule = Schedule(name, updates=6, peak=4.0, min_ratio=0.55, warmup=1, decay_share=0.4)
    assert [schedule.rate(update) for update in range(6)] == pytest.approx([2.0, *expected])
    assert schedule.rate(6) == schedule.rate(600) == schedule.rate(5)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_warmup_rises_linearly_to_the_peak(name):
    rates = [Schedule(name, updates=10, peak=4.0, min_ratio=0.0, warmup=3).rate(update) for update in range(10)]
    assert rates[:4] == pytest.approx([1.0, 2.0, 3.0, 4.0])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(4.0 if name == "constant" else 0.0)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "wsd"])
def test_a_single_update_and_a_warmup_longer_than_the_run(name):
    assert Schedule(name, updates=1, peak=2.0).rate(0) == 2.0
    rates = [Schedule(name, updates=3, peak=4.0, warmup=7).rate(update) for update in range(3)]
    assert rates == pytest.approx([0.5, 1.0, 1.5])


def test_a_decay_does_not_begin_before_the_warmup_ends():
    rates = [Schedule("wsd", updates=6, peak=4.0, min_ratio=0.0, warmup=3, decay_share=1.0).rate(update)
             for update in range(6)]
    assert rates == pytest.approx([1.0, 2.0, 3.0, 4.0, 4.0 * (1 - 0.5**0.5), 0.0])


@pytest.mark.parametrize(("name", "theirs", "options"), [
    ("linear", "get_linear_schedule_with_warmup", {"num_training_steps": 40}),
    ("cosine", "get_cosine_with_min_lr_schedule_with_warmup", {"num_training_steps": 40, "min_lr_rate": 0.1}),
    ("wsd", "get_wsd_schedule", {"num_stable_steps": 30, "num_decay_steps": 10, "decay_type": "1-sqrt",
                                 "min_lr_ratio": 0.1}),
])
def test_the_rates_are_those_of_transformers(name, theirs, options):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = getattr(transformers, theirs)(optimizer, num_warmup_steps=0, **options)
    floor = 0.0 if name == "linear" else 0.1
    mine = Schedule(name, updates=41, peak=2.0, min_ratio=floor, decay_share=0.25)
    for update in range(41):
        assert mine.rate(update) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12), update
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("flags", "problem"), [
    ({"schedule": "constant", "min_lr_ratio": 0.2}, "--min_lr_ratio 0.2: --schedule constant does not fall"),
    ({"decay_share": 0.3}, "--decay_share 0.3: only --schedule wsd has a decay of its own"),
    ({"schedule": "wsd", "decay_share": 0.3, "min_lr_ratio": 0.0}, None),
])
def test_flags_that_the_schedule_does_not_read_are_refused(flags, problem):
    assert OptimizerSettings(**flags).problems() == ([problem] if problem else [])


@pytest.mark.parametrize("flags", [{"schedule": "wsd", "decay_share": 0.5}, {"schedule": "linear", "warmup_steps": 4}])
def test_a_resumed_run_has_the_same_rates(tmp_path, flags):
    assert Training(tmp_path / "a", **flags).run() == 0
    assert Training(tmp_path / "b", **flags).run(interrupt_at=9) == 130
    assert Training(tmp_path / "b", resume=True, **flags).run() == 0
    whole, cut = (repeatable_lines(tmp_path / run / "metrics.jsonl") for run in "ab")
    assert whole == cut
    assert len({line["learning_rate"] for line in whole}) > 8
