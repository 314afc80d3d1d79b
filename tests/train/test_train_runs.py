"""Both entry points, end to end on a tiny corpus: repeatable, loadable, and careful with what exists."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
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
        ("model.architecture.num_layers=5", "num_layers is no field of M2BertConfig; the nearest one is"),
        ("model.new_model.num_layers=5", "model.new_model.num_layers is no field"),
        ("evaluation.steps=0", "evaluation.steps=0 must be at least 1"),
        ("data.documents_per_batch=0", "data.documents_per_batch=0 must be at least 1"),
        ("data.document_tokens=65", "data.document_tokens=65 exceeds the model's max_position_embeddings=64"),
        ("tokenizer.path=nowhere", "no folder 'nowhere'"),
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


def small_run(steps=5, **arguments):
    """run_loop over a linear model; returns (history, weights before each step)."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    weights, factors = [], arguments.pop("factors", {})

    def compute_loss(model, batch):
        weights.append(model.weight.detach().clone())
        return model(batch).sum() * factors.get(len(weights), 1.0), 2

    settings = {"clip_norm": 1e9, "log_every": 1, "get_batch": lambda step: torch.ones(1, 2)} | arguments
    try:
        run = run_loop(
            Accelerator(cpu=True), model, optimizer, schedule, steps=steps, compute_loss=compute_loss, **settings
        )
    finally:
        weights.append(model.weight.detach().clone())
        small_run.weights = weights
    return run, weights


def test_a_loss_that_is_not_finite_stops_before_the_update():
    with pytest.raises(FloatingPointError, match="step 3: loss nan"):
        small_run(factors={3: torch.nan})
    assert len(small_run.weights) == 4
    assert torch.equal(small_run.weights[-1], small_run.weights[-2])


def test_gradients_are_clipped_and_the_schedule_is_followed():
    history, weights = small_run(clip_norm=0.5)
    steps = [(b - a).norm().item() for a, b in zip(weights, weights[1:], strict=False)]
    share = (2 / 3) ** 0.5  # of the gradient's norm in the weight; the bias has the rest
    expected = [0.1 * (1 - i / 5) * 0.5 * share for i in range(5)]
    assert steps == pytest.approx(expected, rel=1e-4)
    assert [row["learning_rate"] for row in history] == pytest.approx([0.08, 0.06, 0.04, 0.02, 0.0])


def test_evaluations_come_when_they_are_due_whatever_is_logged():
    history, _ = small_run(steps=7, log_every=4, evaluate=lambda model: {"score": 1.0}, evaluate_every=3)
    assert [(row["step"], "score" in row) for row in history] == [(3, True), (4, False), (6, True), (7, True)]
    assert small_run(steps=0)[0] == []
    with pytest.raises(ValueError, match="log_every=0"):
        small_run(log_every=0)


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


def test_a_checkpoint_keeps_its_architecture_and_its_token_weights(corpus, tmp_path):
    deep = ["model.architecture.num_hidden_layers=3", "model.architecture.num_pooling_heads=2"]
    opl.main([*OPL, *deep, f"data.path={corpus}", f"output_dir={tmp_path / 'first'}"])
    small = [argument for argument in OPL if "architecture" not in argument and "steps" not in argument]
    opl.main(
        [
            *small,
            "steps=0",
            f"model.path={tmp_path / 'first'}",
            f"data.path={corpus}",
            f"output_dir={tmp_path / 'again'}",
        ]
    )
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_incomplete_checkpoints_are_refused(corpus, tmp_path):
    mlm.main([*MLM, f"data.path={corpus}", f"output_dir={tmp_path / 'mlm'}"])
    weights = tmp_path / "mlm" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.0.mixer.in_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: .*layers.0.mixer.in_proj.weight"):
        opl.main([*OPL, f"data.path={corpus}", f"model.path={tmp_path / 'mlm'}", f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(ValueError, match="nowhere has no config.json"):
        mlm.main([*MLM, f"data.path={corpus}", "tokenizer.path=" + str(tmp_path / "mlm"), "model.path=nowhere",
                  f"output_dir={tmp_path / 'out'}"])  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_runs_record_what_they_read(corpus, tmp_path):
    prints = []
    for name in ("a", "b"):
        opl.main([*OPL, "steps=1", f"data.path={corpus}", f"output_dir={tmp_path / name}"])
        prints.append(json.loads((tmp_path / name / "training.json").read_text())["data_fingerprint"])
    assert prints[0] == prints[1]
    assert len(prints[0]) == 64


def test_a_tokenizer_that_does_not_fit_the_checkpoint_is_refused_before_training(corpus, tmp_path, capsys):
    opl.main([*OPL, "steps=0", "tokenizer.vocab_size=60", f"data.path={corpus}", f"output_dir={tmp_path / 'small'}"])
    opl.main([*OPL, "steps=0", f"data.path={corpus}", f"output_dir={tmp_path / 'large'}"])
    arguments = [
        f"model.path={tmp_path / 'small'}",
        f"tokenizer.path={tmp_path / 'large'}",
        f"output_dir={tmp_path / 'out'}",
    ]
    capsys.readouterr()
    with pytest.raises(ValueError, match="tokenizer gives ids up to"):
        opl.main([*OPL, f"data.path={corpus}", *arguments])
    assert "step" not in capsys.readouterr().err


def test_long_queries_are_cut_and_counted(corpus, tmp_path, caplog):
    short = ["data.document_tokens=4", "data.passage_share=0", "data.query_dropout=false"]
    with caplog.at_level("WARNING"):
        opl.main([*OPL, *short, f"data.path={corpus}", f"output_dir={tmp_path / 'out'}"])
    assert "13 queries are cut to data.document_tokens=4" in caplog.text


def test_help_is_the_entry_points_own_text(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mlm.py", "--help"])
    command_line(lambda argv: pytest.fail("ran"), "mlm")
    assert capsys.readouterr().out
