"""Environment variables that torchrun sets, with values that it never sets."""

import pytest
from programs import NEW, SFT, refuse

from minimind_sft.environment import number_in_environment
from minimind_sft.errors import UserError
from minimind_sft.training.distributed import join_ranks, restarted_by_torchrun


@pytest.mark.parametrize(("text", "expected"), [(None, 7), ("0", 0), ("12", 12), ("012", 12)])
def test_a_number(monkeypatch, text, expected):
    monkeypatch.delenv("GROUP_RANK", raising=False)
    if text is not None:
        monkeypatch.setenv("GROUP_RANK", text)
    assert number_in_environment("GROUP_RANK", 7) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", "1e3", " 1", "１", "13", "9" * 5000])
def test_anything_else_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv("GROUP_RANK", text)
    with pytest.raises(UserError) as error:
        number_in_environment("GROUP_RANK", 0, max=12)
    assert str(error.value) == ("environment variable GROUP_RANK: expected a number from 0 to 12, found "
                                f"{text[:40]!r}; torchrun sets it, and a run without torchrun needs none")


@pytest.mark.parametrize(("variables", "refused"), [
    ({"RANK": "x"}, "RANK: expected a number from 0 to 0"), ({"RANK": "1"}, "RANK: expected a number from 0 to 0"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected a number from 1"), ({"LOCAL_RANK": "-1"}, "LOCAL_RANK: expected"),
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999"}, "MASTER_PORT: expected"),
    ({"WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "variables MASTER_ADDR and MASTER_PORT: expected"),
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "variables MASTER_ADDR and MASTER_PORT: expected"),
])
def test_ranks_that_cannot_meet(monkeypatch, variables, refused):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=refused), join_ranks("cpu", 1.0):
        pass


def test_a_restart_is_counted(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "x")
    with pytest.raises(UserError, match="TORCHELASTIC_RESTART_COUNT"):
        restarted_by_torchrun()


def test_a_program_says_so_in_one_line(tmp_path):
    assert refuse(SFT, *NEW, "--save_dir", tmp_path / "out", RANK="x", WORLD_SIZE="y").startswith(
        "error: environment variable WORLD_SIZE: expected a number from 1 to 1,000,000, found 'y'")
    assert not (tmp_path / "out").exists()
