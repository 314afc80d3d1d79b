"""The pages of docs hold what the committed results say; the benchmarks refuse to time what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"


def test_the_tables_of_docs_are_those_of_the_results(script, tmp_path, monkeypatch):
    pages = script("experiments/pages.py")
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    for path in DOCS.glob("*.md"):
        shutil.copy(path, tmp_path)
    pages.main([])
    for path in DOCS.glob("*.md"):
        assert (tmp_path / path.name).read_text() == path.read_text()
    for name in pages.PAGES:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing"):
        pages.fill(tmp_path / "results.md", {"nothing": ""})


def test_twins_are_run_at_the_best_rate_and_at_equal_operations(script, tmp_path, monkeypatch):
    runs = script("experiments/replicas/twin_runs.py")
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    rates = {"lr": 1e-3, "pooler_lr": None, "filter_lr": 1e-3}
    for mixer, flops in (("none", 1), ("long-conv", 2), ("attention", 5)):
        for number, (rate, seed, steps, loss) in enumerate(
            [(1e-3, 0, 10, 6.0), (2e-3, 0, 10, 5.0), (2e-3, 1, 10, 5.5), (2e-3, 0, 25, 4.0)]
        ):
            record = {"entry": "mlm", "mixer": mixer, **rates, "layer_lr": rate, "seed": seed, "steps": steps,
                      "flops": flops * steps, "scores": {"held_out_loss": loss}}  # fmt: skip
            (tmp_path / f"mlm-{mixer}-{number}-seed{seed}.json").write_text(json.dumps(record))
    best = runs.rates(runs.best("mlm", "long-conv"))
    assert best == "optim.lr=0.001 optim.layer_lr=0.002 optim.pooler_lr=null optim.filter_lr=0.001"
    assert runs.equal_steps("mlm", "long-conv") == 25


def test_a_wrong_arm_is_not_timed(script):
    arms, harness = (script(f"experiments/speed/{name}.py") for name in ("arms", "harness"))
    runners, base = arms.build([arms.Arm("original", "float32"), arms.Arm("ours", "float32")], "cpu", 64, 1)
    right, ids = arms.Gate(base, "cpu", training=False), arms.token_ids(1, 64, "cpu")
    assert all(verdict["worst_error"] < 1e-5 for verdict in right.check(runners, ids).values())
    for fault in (1.5, torch.nan):
        with torch.no_grad():
            runners[1].model.layers[0].mixer.out_proj.weight[0] *= fault
        with pytest.raises(harness.RedGate, match="ours:float32"):
            right.check(runners, ids)
