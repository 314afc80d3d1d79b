"""Held-out metrics are those of the masked tokens, however the examples are batched."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM

from m2bert.train.text import mixture as held_out
from m2bert.train.text.mixture import HeldOut
from m2bert.train.text.mixture import Example, Masking
from m2bert.train.tokenizer import train_wordpiece

TOKENIZER = train_wordpiece([f"word{i} and{i}" for i in range(200)], 120)


@pytest.fixture
def model(tiny_config, randomised):
    torch.manual_seed(0)
    return randomised(
        AutoModelForMaskedLM.from_config(tiny_config(max_position_embeddings=200, sparse_prediction=True))
    )


def examples():
    rng = np.random.default_rng(0)
    return [Example(rng.integers(5, 120, n), source, "variable") for n in (10, 50, 128, 129, 200)
            for source in ("a", "b")]  # fmt: skip


def test_metrics_are_means_over_the_masked_tokens_of_a_source_and_of_lengths(model):
    tested = HeldOut(examples(), 400, Masking(TOKENIZER))
    metrics = tested.evaluate(model, Accelerator(cpu=True))
    losses, right, names = [], [], []
    for rows, batch in tested.batches:
        for i, row in enumerate(rows):
            alone = {key: value[i : i + 1, : len(row.ids)] for key, value in batch.items()}
            with torch.no_grad():
                logits = model(**alone).logits
            labels = alone["labels"][alone["labels"] != -100]
            assert batch["labels"][i, len(row.ids) :].eq(-100).all()
            losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
            right += (logits.argmax(-1) == labels).tolist()
            names += [(row.source, len(row.ids))] * len(labels)
    groups = {
        "": lambda source, length: True,
        "/a": lambda source, length: source == "a",
        "/b": lambda source, length: source == "b",
        "/tokens_128": lambda source, length: length <= 128,
        "/tokens_512": lambda source, length: length > 128,
    }
    assert len(metrics) == 3 * len(groups)
    for group, belongs in groups.items():
        chosen = [belongs(*name) for name in names]
        loss = np.mean(np.array(losses)[chosen])
        assert metrics[f"held_out_loss{group}"] == pytest.approx(loss, rel=1e-5)
        assert metrics[f"held_out_perplexity{group}"] == pytest.approx(np.exp(loss), rel=1e-4)
        assert metrics[f"held_out_accuracy{group}"] == pytest.approx(np.mean(np.array(right)[chosen]))


def test_metrics_do_not_depend_on_the_batches(model):
    small, large = (HeldOut(examples(), tokens, Masking(TOKENIZER)) for tokens in (200, 5000))
    assert len(small.batches) > len(large.batches)
    a, b = (tested.evaluate(model, Accelerator(cpu=True)) for tested in (small, large))
    assert a == pytest.approx(b, rel=1e-5)


def test_processes_share_the_batches(model, monkeypatch):
    tested = HeldOut(examples(), 400, Masking(TOKENIZER))
    assert len(tested.batches) % 3 == 1  # the last turn repeats a batch on two processes, which must not count

    def sums(world):
        found = []
        monkeypatch.setattr(held_out, "sum_over_processes", lambda sums: found.append(sums) or [1.0] * len(sums))
        for rank in range(world):
            tested.evaluate(model, SimpleNamespace(process_index=rank, num_processes=world, device="cpu"))
        return np.sum(found, axis=0)

    assert sums(3) == pytest.approx(sums(1), rel=1e-5)


def test_fifteen_per_cent_are_masked():
    rows = [Example(np.full(202, 50), "a", "maximum") for _ in range(100)]
    batches = HeldOut(rows, 5000, Masking(TOKENIZER)).batches
    masked = sum(int((batch["labels"] != -100).sum()) for _, batch in batches)
    assert masked / (100 * 202) == pytest.approx(0.15, abs=0.01)
