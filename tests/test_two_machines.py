"""Two machines and a broken connection: proofs/two_machines.py, if network namespaces are available."""

import pytest
import two_machines

pytestmark = pytest.mark.slow


def test_a_broken_connection_stops_both_machines_and_loses_nothing(tmp_path, monkeypatch):
    if not two_machines.can_run():
        pytest.skip("needs root and the ip command, for network namespaces")
    monkeypatch.setattr(two_machines, "RANK_TIMEOUT", 20)  # longer than any step of a slow machine
    monkeypatch.setattr(two_machines, "TCP_RETRIES", 5)
    figures = two_machines.cut_and_resume(tmp_path, cuts=1)
    assert figures["differs"] == []
