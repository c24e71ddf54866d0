"""Two machines and a cut cable: proofs/two_machines.py, where its network namespaces can be made."""

import pytest
import two_machines


@pytest.mark.skipif(not two_machines.can_run(), reason="needs root and the ip command, for network namespaces")
def test_a_cut_cable_stops_both_ends_and_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(two_machines, "RANK_TIMEOUT", 20)  # a slow machine must not take that long between two steps
    monkeypatch.setattr(two_machines, "TCP_RETRIES", 5)
    figures = two_machines.cut_and_resume(tmp_path, cuts=1)
    assert figures["differs"] == []
