"""The pages of docs hold what the committed results say."""

import json
import shutil
from pathlib import Path

import pytest

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


def test_what_is_red_or_not_timed_is_on_no_page(script, tmp_path, monkeypatch):
    pages = script("experiments/pages.py")
    shutil.copytree(pages.EXPERIMENTS / "speed", tmp_path / "speed")
    shutil.copy(DOCS / "performance.md", tmp_path)
    red = {"red": "wrong", "device": "cuda", "mode": "forward", "batch": 1, "length": 512, "dtype": "bfloat16",
           "seconds": None, "quantiles": [None] * 3}  # fmt: skip
    (tmp_path / "speed" / "results" / "gpu").mkdir()
    records = [red | {"arm": "ours"}, red | {"op": "long_conv uniform", "arm": "triton", "mode": "numerics"}]
    (tmp_path / "speed" / "results" / "gpu" / "numerics.json").write_text(json.dumps(records))
    for name in ("EXPERIMENTS", "DOCS"):
        monkeypatch.setattr(pages, name, tmp_path)
    pages.performance()
    assert (tmp_path / "performance.md").read_text() == (DOCS / "performance.md").read_text()


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
