"""The mixture: its masks, its shares, its batches' budget, and that a run goes on where it stopped."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM

from m2bert.train.text import mixture
from m2bert.train.text.mixture import (
    Example,
    HeldOut,
    Masking,
    MixtureBatches,
    held_out_examples,
    observed_shares,
    open_source,
)
from m2bert.train.text.sources import parse_sources
from m2bert.train.tokenizer import train_wordpiece

WORDS = [f"w{i}" for i in range(60)]
TOKENIZER = train_wordpiece([" ".join(WORDS)], 400)
HELD_OUT_TOKENIZER = train_wordpiece([f"word{i} and{i}" for i in range(200)], 120)
ORDINARY = sorted(set(TOKENIZER.get_vocab().values()) - set(TOKENIZER.all_special_ids))
SHARES = {"web": (0.10, 0.24), "wiki": (0.10, 0.23), "books": (0.10, 0.23)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sources; the books are long."""
    folder, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    for name, words in (("web", 40), ("wiki", 100), ("books", 2000)):
        for split, count in (("train", 60), ("validation", 6)):
            texts = [" ".join(rng.choice(WORDS, rng.integers(words // 2, 2 * words))) for _ in range(count)]
            (folder / name).mkdir(exist_ok=True)
            pq.write_table(pa.table({"text": texts}), folder / name / f"{split}.parquet")
    return folder


@pytest.fixture
def make(folder):
    """A process's batches; keyword arguments change the settings."""

    def make(rank=0, world=1, seed=0, shares=SHARES, **changes):
        entries = [{"path": str(folder / name), "variable": v, "maximum": m} for name, (v, m) in shares.items()]
        settings = SimpleNamespace(**{"max_tokens": 64, "batch_tokens": 512, "accumulate": 1, "mask_probability": 0.3,
                                      "token_cache": folder / "cache"} | changes)  # fmt: skip
        data = [open_source(source, settings, TOKENIZER, seed=seed, rank=rank, world=world)
                for source in parse_sources(entries, None)]  # fmt: skip
        return MixtureBatches(data, settings, Masking(TOKENIZER), seed=seed, rank=rank)

    return make


def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a["counts"] == b["counts"] and all(torch.equal(a[k], b[k]) for k in ("input_ids", "labels"))


def sums(batches):
    return sum((Counter(batch["counts"]) for batch in batches), Counter())


@pytest.mark.parametrize("shares", [SHARES, {"web": (0.05, 0.0), "books": (0.0, 0.95)}, {"wiki": (1.0, 0.0)}])
def test_examples_come_in_the_shares_asked_for_in_every_window(make, shares):
    mixture = make(shares=shares)
    seen = []
    for window in range(1, 40):
        while mixture.window < window - 1 or not mixture.batches or mixture.offset < len(mixture.batches):
            seen += mixture.next_batch()
        counted = sums(seen)
        total = window * mixture.window_examples
        for name, (variable, maximum) in shares.items():
            for kind, share in (("variable", variable), ("maximum", maximum)):
                assert abs(counted[f"examples/{name}/{kind}"] - share * total) < 1.001


def test_shares_are_reported_as_seen(make):
    mixture = make()
    batches = [mixture.next_batch()[0] for _ in range(200)]
    shares = observed_shares(mixture.data, sums(batches))
    for what in ("wanted", "examples", "tokens"):
        assert sum(share[what] for share in shares.values()) == pytest.approx(1, abs=1e-3)
    for name, (variable, maximum) in SHARES.items():
        assert shares[f"{name}/variable"]["examples"] == pytest.approx(variable, abs=0.02)
        assert shares[f"{name}/maximum"]["examples"] == pytest.approx(maximum, abs=0.02)
        assert shares[f"{name}/variable"]["tokens"] < variable


def test_a_batch_keeps_its_budget_and_short_examples_keep_together(make):
    mixture = make()
    lengths = []
    for _ in range(200):
        (batch,) = mixture.next_batch()
        assert batch["input_ids"].numel() <= 512
        lengths.append(batch["attention_mask"].sum(1))
        tokens = sum(value for key, value in batch["counts"].items() if key.startswith("tokens/"))
        assert tokens == batch["attention_mask"].sum()
    padded = sum(len(rows) * int(rows.max()) for rows in lengths)
    assert padded / sum(int(rows.sum()) for rows in lengths) < 1.05
    assert max(len(rows) for rows in lengths) > 8  # of the short ones more fit
    assert min(int(rows.min()) for rows in lengths) == 10


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_goes_on_bit_for_bit_from_any_step(make, accumulate):
    mixture = make(accumulate=accumulate)
    states, batches = [mixture.state()], []
    for _ in range(40):
        batches.append(mixture.next_batch())
        states.append(mixture.state())
    assert mixture.window >= 2
    assert len(batches[0]) == accumulate
    for step in range(0, 40, 3):
        again = make(accumulate=accumulate)
        again.next_batch()
        again.restore(states[step])
        assert same([again.next_batch() for _ in range(40 - step)], batches[step:])


def test_batches_differ_by_seed_and_every_one_has_masks_of_its_own(make):
    first, other = ([one.next_batch() for _ in range(20)] for one in (make(), make(seed=1)))
    assert not same(first, other)
    mixture = make(batch_tokens=64, accumulate=2, shares={"books": (0.0, 1.0)})
    masks = [(batch["labels"] != -100).numpy().tobytes() for _ in range(50) for batch in mixture.next_batch()]
    assert len(set(masks)) == 100


def test_processes_see_different_rows(make):
    def contents(rank):
        mixture = make(rank=rank, world=2, shares={"books": (0.0, 1.0)})
        rows = torch.cat([batch["input_ids"].where(batch["labels"] == -100, batch["labels"])
                          for _ in range(100) for batch in mixture.next_batch()])  # fmt: skip
        return {tuple(row.tolist()) for row in rows}, len(rows), mixture.data[0].train.sizes["maximum"]

    (a, count, size), (b, _, _) = contents(0), contents(1)
    assert 2 * count < size  # less than an epoch
    assert len(a) == count
    assert not a & b


def test_what_is_read_and_left_out_is_logged(tmp_path, caplog):
    for name, text in (("train.txt", "w1 " * 70), ("train-1.md", "w1"), ("validation.txt", "w1 w2")):
        (tmp_path / name).write_text(text)
    (source,) = parse_sources([{"path": str(tmp_path)}], None)
    with caplog.at_level("INFO"):
        open_source(source, SimpleNamespace(max_tokens=64, token_cache=tmp_path), TOKENIZER, seed=0, rank=0, world=1)
    assert "1 files left out for their type (train-1.md)" in caplog.text
    assert ": 1 documents, 70 tokens; 1 longer than 64 tokens are read in parts, 0 give no passage; 1 held out" in (
        caplog.text
    )


def masked(probability=0.3, count=100):
    """Return the masked batch of rows of random tokens, and the rows."""
    rng = np.random.default_rng(0)
    rows = [np.array([TOKENIZER.cls_token_id, *rng.choice(ORDINARY, n), TOKENIZER.sep_token_id])
            for n in rng.integers(3, 120, count)]  # fmt: skip
    return Masking(TOKENIZER).batch(rows, probability, rng) | {"rows": rows}


def test_masking_is_80_10_10_of_the_chosen_and_never_special():
    made = masked()
    ids, labels, attention = made["input_ids"], made["labels"], made["attention_mask"].bool()
    chosen = labels != -100
    original = ids.where(~chosen, labels)
    for row, mask, expected in zip(original, attention, made["rows"], strict=True):
        assert mask.tolist() == [True] * len(expected) + [False] * (len(row) - len(expected))
        assert row[mask].tolist() == expected.tolist()
        assert (row[~mask] == TOKENIZER.pad_token_id).all()
    special = torch.tensor(TOKENIZER.all_special_ids)
    ordinary = attention & ~torch.isin(original, special)
    assert not (chosen & ~ordinary).any()
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.3, abs=0.02)
    hidden = ids[chosen]
    is_mask, is_kept = hidden == TOKENIZER.mask_token_id, hidden == original[chosen]
    assert is_mask.float().mean() == pytest.approx(0.8, abs=0.03)
    assert is_kept.float().mean() == pytest.approx(0.1, abs=0.03)
    assert set(hidden[~is_mask & ~is_kept].tolist()) <= set(ORDINARY)


def test_a_batch_has_a_masked_token_at_least():
    assert (masked(probability=0.0, count=3)["labels"] != -100).sum() == 1


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(ValueError, match="no mask_token"):
        Masking(SimpleNamespace(cls_token="[X]", sep_token="[X]", pad_token="[X]", mask_token=None))


@pytest.fixture
def model(tiny_config, randomized):
    torch.manual_seed(0)
    return randomized(
        AutoModelForMaskedLM.from_config(tiny_config(max_position_embeddings=200, sparse_prediction=True))
    )


def held_out_rows():
    rng = np.random.default_rng(0)
    return [Example(rng.integers(5, 120, n), source, "variable") for n in (10, 50, 128, 129, 200)
            for source in ("a", "b")]  # fmt: skip


def test_metrics_are_means_over_the_masked_tokens_of_a_source_and_of_lengths(model):
    tested = HeldOut(held_out_rows(), 400, Masking(HELD_OUT_TOKENIZER))
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


def test_metrics_depend_neither_on_the_batches_nor_on_the_number_of_processes(model, monkeypatch):
    small, large = (HeldOut(held_out_rows(), tokens, Masking(HELD_OUT_TOKENIZER)) for tokens in (400, 5000))
    assert len(small.batches) > len(large.batches)
    assert len(small.batches) % 3 == 1  # the last turn repeats a batch on two processes, which must not count

    def sums(tested, world):
        found = []
        monkeypatch.setattr(mixture, "sum_over_processes", lambda sums: found.append(sums) or [1.0] * len(sums))
        for rank in range(world):
            tested.evaluate(model, SimpleNamespace(process_index=rank, num_processes=world, device="cpu"))
        return np.sum(found, axis=0)

    assert sums(small, 3) == pytest.approx(sums(small, 1), rel=1e-5)
    assert sums(large, 1) == pytest.approx(sums(small, 1), rel=1e-5)


def test_a_run_without_any_held_out_example_is_refused(caplog):
    def take(kind, count):
        raise ValueError("too short")

    source = SimpleNamespace(name="short", shares={"variable": 0.3, "maximum": 0.7})
    with pytest.raises(ValueError, match="validation text"):
        held_out_examples([SimpleNamespace(source=source, validation=SimpleNamespace(take=take))], 4)
    assert [record.args[0] for record in caplog.records] == ["variable", "maximum"]


def test_fifteen_per_cent_are_masked():
    rows = [Example(np.full(202, 50), "a", "maximum") for _ in range(100)]
    batches = HeldOut(rows, 5000, Masking(HELD_OUT_TOKENIZER)).batches
    masked = sum(int((batch["labels"] != -100).sum()) for _, batch in batches)
    assert masked / (100 * 202) == pytest.approx(0.15, abs=0.01)
