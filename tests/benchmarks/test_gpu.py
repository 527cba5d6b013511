"""The command for the day of a GPU runs where there is none: forecasts, a rehearsal, and a refusal."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu


def test_forecasts_follow_from_what_was_counted(capsys):
    assert gpu.main(["--dry-run"]) == 0
    assert capsys.readouterr().out.count("forecast_us") == 3 * 2 * 3 * 2
    counted = json.loads(gpu.LAUNCHES.read_text())["fixed_point"]
    small, large = gpu.forecast("fixed_point", "tested", 1, 768), gpu.forecast("fixed_point", "tested", 64, 2048 * 768)
    assert small == counted["tested"]["launches"] * gpu.LAUNCH
    assert large == counted["tested"]["passes"] * 64 * 2048 * 768 * 4 / gpu.BANDWIDTH


def test_without_a_device_it_refuses(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 1
    assert "no CUDA or ROCm device is here" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()


def test_a_run_goes_on_where_it_ended_and_stops_where_something_is_wrong(tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "gpu.json", []

    def part(name, result):
        return lambda device, sizes: calls.append(name) or result

    parts = {"correct": part("correct", {"wrong": []}), "overhead": part("overhead", {"rows": [1]})}
    monkeypatch.setattr(gpu, "PARTS", {**parts, "growth": lambda device, sizes: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        gpu.main(["--rehearse", "--out", str(out)])
    assert json.loads(out.read_text())["overhead"] == {"rows": [1]}
    monkeypatch.setattr(gpu, "PARTS", {**parts, "growth": part("growth", {"rows": []})})
    assert gpu.main(["--rehearse", "--out", str(out)]) == 0
    assert calls == ["correct", "overhead", "growth"]
    monkeypatch.setattr(gpu, "PARTS", {"correct": part("correct", {"wrong": ["anderson"]}), "never": None})
    out.unlink()
    assert gpu.main(["--rehearse", "--out", str(out)]) == 1
    assert "computes something else" in capsys.readouterr().out


@pytest.mark.slow
def test_every_part_runs_tiny_on_the_cpu(tmp_path):
    assert gpu.main(["--rehearse", "--out", str(tmp_path / "gpu.json")]) == 0
    done = json.loads((tmp_path / "gpu.json").read_text())
    assert set(gpu.PARTS) <= set(done)
