"""Both entry points, end to end on a tiny corpus: repeatable, loadable, and careful with what exists."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from m2bert_train import mlm, opl
from m2bert_train.loop import run_loop
from m2bert_train.runs import command_line

WORDS = ["budget", "committee", "report", "minutes", "river", "mountain", "forest"]
WORDS += ["engine", "wheel", "piston", "violin", "sonata", "rhythm"]
TINY = ["model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1", "steps=3", "log_every=1",
        "model.architecture.intermediate_size=32", "model.architecture.max_position_embeddings=64",
        "model.architecture.filter_order=8", "tokenizer.vocab_size=200"]  # fmt: skip
MLM = [*TINY, "data.row_tokens=32", "data.batch_rows=4", "evaluation.rows=8"]
OPL = [*TINY, "data.task=toy", "data.documents_per_batch=4", "data.document_tokens=40", "evaluation.steps=1",
       "data.passage_tokens=[2, 4]"]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve documents a split, each about one word; LoCoV1 schema."""
    folder = tmp_path_factory.mktemp("corpus")
    for kind in ("queries", "documents"):
        (folder / kind).mkdir()
    for split in ("train", "validation"):
        passages = [
            " ".join(f"{word} {WORDS[(i + j) % 13]} of number {j}" for j in range(30)) for i, word in enumerate(WORDS)
        ]
        pids = [f"{split}_{i}" for i in range(len(WORDS))]
        documents = {"pid": pids, "passage": passages, "dataset": ["toy"] * len(WORDS)}
        queries = {"qid": [f"q{pid}" for pid in pids], "query": [f"the {word} please" for word in WORDS],
                   "answer_pids": [[pid] for pid in pids], "dataset": ["toy"] * len(WORDS)}  # fmt: skip
        pq.write_table(pa.table(documents), folder / "documents" / f"{split}.parquet")
        pq.write_table(pa.table(queries), folder / "queries" / f"{split}.parquet")
    return folder


def test_pretraining_then_fine_tuning(corpus, tmp_path):
    mlm.main([*MLM, f"data.path={corpus}", f"output_dir={tmp_path / 'mlm'}"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mlm")
    assert tokenizer.mask_token_id is not None
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "mlm")
    assert model.config.sparse_prediction is False
    record = json.loads((tmp_path / "mlm" / "training.json").read_text())
    assert [row["step"] for row in record["history"]] == [1, 2, 3]
    assert record["history"][-1]["held_out_loss"] > 0
    assert record["config"]["steps"] == 3
    assert "torch" in record["versions"]

    opl.main([*OPL, f"data.path={corpus}", f"model.path={tmp_path / 'mlm'}", f"output_dir={tmp_path / 'opl'}"])
    encoder = AutoModel.from_pretrained(tmp_path / "opl")
    assert encoder.config.pooling == "weighted_mean"
    vectors = encoder(**tokenizer(["budget", "river report"], padding=True, return_tensors="pt")).pooler_output
    assert vectors.shape == (2, 6 * 16)
    assert vectors.isfinite().all()
    assert AutoTokenizer.from_pretrained(tmp_path / "opl").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(("entry", "arguments"), [(mlm, MLM), (opl, OPL)])
def test_a_run_repeats_bit_for_bit(corpus, tmp_path, entry, arguments):
    for name in ("a", "b"):
        entry.main([*arguments, f"data.path={corpus}", f"output_dir={tmp_path / name}"])
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    entry.main([*arguments, "seed=1", f"data.path={corpus}", f"output_dir={tmp_path / 'c'}"])
    assert not all(torch.equal(a[key], value) for key, value in load_file(tmp_path / "c" / "model.safetensors").items())


def test_a_finished_run_is_not_overwritten(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        mlm.main([*MLM, f"data.path={corpus}", f"output_dir={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "model.safetensors").read_text() == "precious"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("loss.name=triplet", "loss.name='triplet' is unknown; choose opl or mnrl"),
        ("model.start=zeros", "model.start='zeros' is unknown"),
        ("data.task=other", "other"),
        ("data.path=nowhere", "nowhere"),
    ],
)
def test_bad_settings_are_named(corpus, tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        opl.main([*OPL, f"data.path={corpus}", f"output_dir={tmp_path / 'out'}", argument])
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(corpus, tmp_path):
    pq.write_table(pa.table({"body": ["words"]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column 'text'.*body"):
        mlm.main([*MLM, f"data.path={tmp_path}", f"output_dir={tmp_path / 'out'}"])


def test_a_loss_that_is_not_finite_stops_before_the_update():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    seen = []

    def compute_loss(model, batch):
        seen.append(model.weight.detach().clone())
        return model(batch).sum() * (torch.nan if len(seen) == 3 else 1.0), 2

    with pytest.raises(FloatingPointError, match="step 3: loss nan"):
        run_loop(Accelerator(cpu=True), model, optimizer, schedule, steps=5, get_batch=lambda step: torch.ones(1, 2),
                 compute_loss=compute_loss, clip_norm=1.0, log_every=1)  # fmt: skip
    assert len(seen) == 3
    assert torch.equal(model.weight, seen[-1])


def test_command_line_without_arguments_says_so(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(sys, "argv", ["mlm.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlm, "data_folder", lambda path: (_ for _ in ()).throw(InterruptedError))
    with caplog.at_level("INFO"), pytest.raises(InterruptedError):
        mlm.main([])
    assert "without arguments: the small offline default" in caplog.text


def test_bad_input_on_the_command_line_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mlm.py", "step=3"])
    with pytest.raises(SystemExit) as stop:
        command_line(mlm.main, "mlm")
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip() == "mlm: unknown configuration key 'step'; the nearest known one is 'steps'"
