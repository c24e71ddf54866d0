"""When weights and resume states are saved."""

from types import SimpleNamespace

from tiny_training import Training, losses_in_turn

from minimind_sft.training.loop import train_step
from minimind_sft.training.saving import SaveClock


def test_resume_states_are_due_by_steps_or_by_the_clock(monkeypatch):
    by_steps = SaveClock(3)
    assert [step for step in range(1, 10) if by_steps.is_due(step)] == [3, 6, 9]

    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    by_clock = SaveClock(0)
    now = 109.9
    assert not by_clock.is_due(1)
    now = 110.0
    assert by_clock.is_due(2)
    with by_clock.saving():
        now = 111.5
    now = 125.0
    assert not by_clock.is_due(2)  # it is not complete yet: a thread writes it while training continues
    now = 112.0
    by_clock.end(in_background=0.5)
    now = 171.9  # a state took two seconds: the next comes after sixty
    assert not by_clock.is_due(3)
    now = 172.0
    assert by_clock.is_due(4)


def test_background_states_equal_foreground_states(tmp_path):
    assert Training(tmp_path / "a").run() == 0
    written = Training(tmp_path / "b", async_save=1)
    saves, save = [], written.checkpoints.save
    written.checkpoints.save = lambda *arguments: (saves.append(arguments[-1]), save(*arguments))
    assert written.run(interrupt_at=8) == 130
    assert saves == [False, False, True], "after steps 3 and 6 training continues at once, at the end it waits"

    again = Training(tmp_path / "b", resume=True, async_save=1)
    assert again.state.step == 8 and again.run() == 0
    for step in (15, 16):
        one, other = (tmp_path / run / f"resume/step-{step:08d}/manifest.json" for run in "ab")
        assert one.read_text() == other.read_text()


def test_the_clock_counts_only_the_writing_time_of_background_states(tmp_path, monkeypatch):
    """With steps of four seconds ten seconds end after the third; the next ten begin once the state is complete."""
    now = [0.0]
    monkeypatch.setattr("minimind_sft.training.saving.time.monotonic", lambda: now[0])
    monkeypatch.setattr("minimind_sft.training.checkpoint.time", SimpleNamespace(perf_counter=lambda: 0.0))  # no time
    training = Training(tmp_path, async_save=1, save_interval=0)
    save, saved = training.checkpoints.save, []

    def slow_step(*arguments):
        result = train_step(*arguments)
        now[0] += 4.0
        while training.checkpoints.is_writing:
            pass
        return result

    training.step = slow_step
    training.checkpoints.save = lambda state, *more: (saved.append(state.step), save(state, *more))
    assert training.run() == 0
    assert saved == [3, 7, 11, 15, 16]


def test_only_weights_with_a_lower_validation_loss_are_written(tmp_path):
    # Evaluated at steps 0, 4, 8, 12 and 16; what was there before training does not count. The resume state of step 3
    # comes before the first evaluation: the weights are written with it, so that there are some.
    training = Training(tmp_path, evaluate=losses_in_turn(1.0, 3.0, 2.0, 2.5, 2.2))
    training.run()
    assert training.weights == {3: None, 4: 3.0, 8: 2.0}
    assert training.state.best_eval_loss == 2.0


def test_without_keep_best_the_weights_are_the_last(tmp_path):
    training = Training(tmp_path, evaluate=losses_in_turn(1.0, 3.0, 2.0, 2.5, 2.2), keep_best=0)
    training.run()
    assert training.weights == {3: None, 6: None, 9: None, 12: 2.5, 15: None, 16: 2.2}
