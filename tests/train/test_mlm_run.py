"""The entry point of pretraining: its loss, its configurations, and what a run leaves."""

import shutil
import subprocess
import sys
from contextlib import nullcontext
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from tiny_runs import TINY, computed, record, run_bare
from transformers import AutoModelForMaskedLM

from m2bert.train import mlm_run as mlm
from m2bert.train.settings import load_settings
from m2bert.train.text.mixture import Masking, open_source
from m2bert.train.text.sources import parse_sources
from m2bert.train.text.tokens import text_hash
from m2bert.train.tokenizer import tokenizer_fingerprint, train_wordpiece

WORDS = [f"w{i}" for i in range(60)]
GIVEN = [*TINY, "tokenizer.vocab_size=100", "data.max_tokens=32", "data.batch_tokens=128", "evaluation.examples=4",
         "evaluation.every=0"]  # fmt: skip
CONFIGS = sorted(path.name for path in files("m2bert.train").joinpath("configs").iterdir() if path.name[:3] == "mlm")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder and a single file, as `data.sources` on the command line."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 90))) for _ in range(120)]
    (folder / "web").mkdir()
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": texts[:60]}), folder / "web" / f"{split}.parquet")
    (folder / "books.txt").write_text("\n\n".join(texts[60:]))
    shares = "{path: %s, variable: 0.25, maximum: 0.25}"
    return f"data.sources=[{shares % (folder / 'web')}, {shares % (folder / 'books.txt')}]"


def run(sources, output, *arguments):
    mlm.main([*GIVEN, sources, f"output_dir={output}", f"data.token_cache={output}-tokens", *arguments])
    return record(output)


def test_a_run_records_its_mixture_data_and_held_out_metrics(sources, tmp_path):
    found = run(sources, tmp_path / "out", "steps=20", "data.accumulate=2")
    assert set(found["mixture"]) == {f"{name}/{kind}" for name in ("web", "books.txt") for kind in
                                      ("variable", "maximum")}  # fmt: skip
    for share in found["mixture"].values():
        assert share["examples"] == pytest.approx(0.25, abs=0.05)
    assert len(found["data"]["web"]["tokens_sha256"]) == len(found["data_fingerprint"]) == 64
    last = found["history"][-1]
    for name in ("", "/web", "/books.txt", "/tokens_128"):
        assert last[f"held_out_loss{name}"] > 0
    assert found["totals"]["masked_tokens"] / found["totals"]["tokens"] == pytest.approx(0.2, abs=0.05)


def test_other_data_is_another_fingerprint(sources, tmp_path):
    other = sources.replace("maximum: 0.25", "maximum: 0.2").replace("variable: 0.25", "variable: 0.3")
    prints = [run(each, tmp_path / str(i), "steps=0")["data_fingerprint"] for i, each in enumerate((sources, other))]
    assert prints[0] != prints[1]


@pytest.mark.parametrize("count", [2000, 5])  # of five none is below the limit: one is held out
def test_texts_for_the_vocabulary_are_those_trained_on(tmp_path, count):
    texts = [f"text number {i}" for i in range(count)]
    (tmp_path / "all.txt").write_text("\n\n".join(texts))
    (source,) = parse_sources([{"path": str(tmp_path / "all.txt")}], None)
    settings = SimpleNamespace(max_tokens=32, token_cache=tmp_path / "cache")
    data = open_source(source, settings, train_wordpiece(texts, 100), seed=0, rank=0, world=1)
    read = list(mlm.TrainingTexts([source]))
    assert len(read) == 4 if count == 5 else 1900 < len(read) < 2000
    assert [text_hash(text) for text in read] == data.train.store.hashes.tolist()


def test_a_vocabulary_is_trained_once_and_anew_for_other_text_or_size(sources, tmp_path, monkeypatch):
    trained = []

    def count(texts, vocab_size):
        trained.append(vocab_size)
        return train_wordpiece(texts, vocab_size)

    monkeypatch.setattr("m2bert.train.tokenizer.train_wordpiece", count)
    (tmp_path / "all.txt").write_text("\n\n".join(f"text number {i}" for i in range(50)))
    entries = [{"path": str(tmp_path / "all.txt")}]

    def vocabulary(size=90):
        data = SimpleNamespace(prepared=None, sources=entries, token_cache=str(tmp_path / "cache"))
        made = SimpleNamespace(tokenizer=SimpleNamespace(path=None, vocab_size=size), data=data)
        made.model = SimpleNamespace(path=None)
        return tokenizer_fingerprint(mlm.read_sources(made)[1])

    first = vocabulary()
    assert vocabulary() == first  # read again, it tokenizes alike, and tokenized text is found again
    assert trained == [90]
    assert vocabulary(85) != first
    (tmp_path / "all.txt").write_text("\n\n".join(f"other words {i}" for i in range(50)))
    assert vocabulary() != first
    assert trained == [90, 85, 90]
    assert len(list((tmp_path / "cache").iterdir())) == 3  # nothing half-written


def test_token_counts_weigh_sources_by_their_shares():
    def one(counts, **shares):
        train = SimpleNamespace(token_counts=lambda vocab_size: np.array(counts))
        return SimpleNamespace(train=train, source=SimpleNamespace(shares=shares))

    counts = mlm.token_counts([one([900, 100], variable=0.1, maximum=0.1), one([0, 10], maximum=0.8)], 2)
    assert (counts / counts.sum()).tolist() == pytest.approx([0.2 * 0.9, 0.2 * 0.1 + 0.8])
    assert counts.sum() == pytest.approx(1010)
    assert mlm.token_counts([one([0, 0], maximum=0.5), one([1, 3], maximum=0.5)], 2).tolist() == [0.5, 1.5]


@pytest.fixture
def step_data(tiny_config):
    """(model, four rows, masked) in float64."""
    torch.manual_seed(0)
    tokenizer = train_wordpiece([" ".join(WORDS)], 120)
    model = AutoModelForMaskedLM.from_config(tiny_config(sparse_prediction=True)).double()
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 60, n) for n in (8, 40, 11, 30)]
    return model, lambda chosen: Masking(tokenizer).batch([rows[i] for i in chosen], 0.3, np.random.default_rng(1))


def gradients(model, batch):
    model.zero_grad()
    loss, counts = mlm.train_step(Accelerator(cpu=True), model, batch)
    return loss, counts, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_accumulated_batches_give_the_loss_and_gradients_of_one(step_data):
    model, make = step_data
    whole = make([0, 1, 2, 3]) | {"counts": {"examples/a/variable": 4}}
    parts = [{key: value[rows] for key, value in whole.items() if key != "counts"} for rows in ([0], [1, 2], [3])]
    parts = [part | {"counts": {"examples/a/variable": len(part["labels"])}} for part in parts]
    masked = [int((part["labels"] != -100).sum()) for part in parts]
    assert len(set(masked)) == 3  # a mean of means would differ
    loss, counts, expected = gradients(model, [whole])
    split_loss, split_counts, split = gradients(model, parts)
    tensors = {key: value for key, value in whole.items() if key != "counts"}
    assert loss.item() == pytest.approx(model(**tensors).loss.item(), rel=1e-12)
    assert split_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    for a, b in zip(expected, split, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert counts == split_counts
    assert counts == {"masked_tokens": sum(masked), "tokens": 89, "examples/a/variable": 4}


def test_gradients_are_exchanged_once_a_step(step_data, monkeypatch):
    model, make = step_data
    accelerator, waiting = Accelerator(cpu=True), []
    monkeypatch.setattr(accelerator, "no_sync", lambda model: waiting.append(model) or nullcontext())
    mlm.train_step(accelerator, model, [make([i]) | {"counts": {}} for i in range(3)])
    assert len(waiting) == 2


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_those_of_the_paper(name):
    config = load_settings("mlm", ["--config", name]).model_dump()
    parse = [{**entry, "path": "org/" + str(entry["path"]).split("/")[-1]} for entry in config["data"]["sources"]]
    parsed = parse_sources(parse, None)
    assert config["data"]["batch_tokens"] >= config["data"]["max_tokens"]
    assert config["data"]["max_tokens"] <= config["model"]["new_model"]["max_position_embeddings"]
    if name == "mlm-small.yaml":
        return
    assert config["data"]["mask_probability"] == 0.3
    optim = config["optim"]
    assert (optim["lr"], optim["betas"], optim["eps"], optim["weight_decay"]) == (5e-4, [0.9, 0.98], 1e-6, 1e-5)
    assert (optim["warmup_share"], optim["clip_norm"]) == (0.06, 1.0)
    assert optim["layer_lr"] is optim["filter_lr"] is optim["pooler_lr"] is None
    assert [sum(source.shares.values()) for source in parsed] == pytest.approx([0.34, 0.33, 0.33])
    if name not in ("mlm-2k-short.yaml", "mlm-2k-long.yaml"):
        assert [source.shares["variable"] for source in parsed] == [0.1, 0.1, 0.1]


TWO_PROCESSES = """
import sys
import torch
from accelerate import Accelerator
from transformers import AutoModelForMaskedLM
from m2bert.train import mlm_run as mlm

folder = sys.argv[1]
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model = AutoModelForMaskedLM.from_pretrained(f"{folder}/model", dtype=torch.float64)
model.config.sparse_prediction = True
batches = torch.load(f"{folder}/batches.pt")
model = accelerator.prepare(model)
loss, counts = mlm.train_step(accelerator, model, batches[accelerator.process_index])
gradients = [p.grad for p in accelerator.unwrap_model(model).parameters() if p.grad is not None]
torch.save((loss, counts, gradients), f"{folder}/found-{accelerator.process_index}.pt")
"""


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradients_of_one(step_data, tmp_path):
    model, make = step_data
    whole = make([0, 1, 2, 3])
    parts = [[0], [1], [2], [3]]
    parts = [{key: value[rows] for key, value in whole.items()} | {"counts": {}} for rows in parts]
    loss, counts, expected = gradients(model, parts)
    model.save_pretrained(tmp_path / "model")  # with its code, which must not shadow the package
    torch.save([[parts[0], parts[1]], [parts[2], parts[3]]], tmp_path / "batches.pt")
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "script.py"), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]
    assert sum(one[1]["tokens"] for one in found) == counts["tokens"]
    for rank_loss, _, rank_gradients in found:
        assert rank_loss.item() == pytest.approx(loss.item(), rel=1e-10)
        for a, b in zip(expected, rank_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory):
    """A folder of prepared data."""
    folder = tmp_path_factory.mktemp("prepared")
    mlm.main([*GIVEN, sources, f"data.token_cache={folder / 'cache'}", f"prepare={folder / 'made'}"])
    return folder / "made"


def test_a_machine_without_data_libraries_trains_the_same_model_from_prepared_data(sources, made, tmp_path):
    more = ["steps=6", "data.accumulate=2", "evaluation.every=3"]
    usual = run(sources, tmp_path / "usual", *more)
    done = run_bare("mlm", [*GIVEN, *more, f"data.prepared={made}", f"output_dir={tmp_path / 'bare'}"])
    assert done.returncode == 0, done.stderr[-3000:]
    bare = record(tmp_path / "bare")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "modules.json"):
        assert (tmp_path / "usual" / name).read_bytes() == (tmp_path / "bare" / name).read_bytes()
    assert computed(usual["history"]) == computed(bare["history"])
    for name in ("totals", "data", "mixture", "data_fingerprint"):
        assert usual[name] == bare[name]


@pytest.mark.parametrize("name", ["text1.safetensors", "tokenizer/tokenizer.json", "prepared.json"])
def test_damaged_prepared_data_is_refused(made, tmp_path, name):
    shutil.copytree(made, tmp_path / "made")
    changed = bytearray((made / name).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "made" / name).write_bytes(changed)
    with pytest.raises(ValueError, match=name):
        mlm.main([*GIVEN, f"data.prepared={tmp_path / 'made'}", f"output_dir={tmp_path / 'out'}"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["prepare=MADE"], "prepare="),
        (["prepare=new", "data.prepared=MADE"], "prepare=new"),
        (["prepare=new", "data.sources=[{path: org/name}]", "tokenizer.path=a/b"], "org/name is streamed"),
        (["data.prepared=MADE", "data.sources=[{path: other}]"], "data.sources"),
    ],
)
def test_what_cannot_be_prepared_or_used_is_named(made, tmp_path, monkeypatch, given, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        mlm.main([*GIVEN, "output_dir=out", *(each.replace("MADE", str(made)) for each in given)])
    assert not (tmp_path / "new").exists()
