"""Both entry points, end to end on a tiny toy_corpus: repeatable, loadable, and careful with what exists."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from m2bert.train import mlm_run as mlm
from m2bert.train import retrieval_run as opl

TINY = ["model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1", "steps=3", "log_every=1",
        "model.architecture.intermediate_size=32", "model.architecture.max_position_embeddings=64",
        "model.architecture.filter_order=8", "tokenizer.vocab_size=200"]  # fmt: skip
MLM = [*TINY, "data.max_tokens=32", "data.batch_tokens=128", "evaluation.examples=4"]
OPL = [*TINY, "data.tasks=[toy]", "data.batch_size=4", "data.document_tokens=40", "data.passage_tokens=[2, 4]"]


def data(entry, folder):
    """Arguments that name a folder as the data."""
    if entry is opl:
        return [f"data.path={folder}"]
    return [f"data.sources=[{{path: {folder}}}]", f"data.token_cache={folder}/tokens"]


def test_pretraining_then_fine_tuning(toy_corpus, tmp_path):
    mlm.main([*MLM, *data(mlm, toy_corpus), f"output_dir={tmp_path / 'mlm'}"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mlm")
    assert tokenizer.mask_token_id is not None
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "mlm")
    assert model.config.sparse_prediction is False
    record = json.loads((tmp_path / "mlm" / "training.json").read_text())
    assert [row["step"] for row in record["history"]] == [1, 2, 3]
    assert record["history"][-1]["held_out_loss"] > 0
    assert record["config"]["steps"] == 3
    assert "torch" in record["versions"]

    opl.main([*OPL, f"data.path={toy_corpus}", f"model.path={tmp_path / 'mlm'}", f"output_dir={tmp_path / 'opl'}"])
    encoder = AutoModel.from_pretrained(tmp_path / "opl")
    assert encoder.config.pooling == "weighted_mean"
    vectors = encoder(**tokenizer(["budget", "river report"], padding=True, return_tensors="pt")).pooler_output
    assert vectors.shape == (2, 6 * 16)
    assert vectors.isfinite().all()
    assert AutoTokenizer.from_pretrained(tmp_path / "opl").get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(("entry", "arguments"), [(mlm, MLM), (opl, OPL)])
def test_a_run_repeats_bit_for_bit(toy_corpus, tmp_path, entry, arguments):
    for name in ("a", "b"):
        entry.main([*arguments, *data(entry, toy_corpus), f"output_dir={tmp_path / name}"])
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    entry.main([*arguments, "seed=1", *data(entry, toy_corpus), f"output_dir={tmp_path / 'c'}"])
    assert not all(torch.equal(a[key], value) for key, value in load_file(tmp_path / "c" / "model.safetensors").items())


def test_a_finished_run_is_not_overwritten(toy_corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        mlm.main([*MLM, *data(mlm, toy_corpus), f"output_dir={tmp_path / 'out'}"])
    assert (tmp_path / "out" / "model.safetensors").read_text() == "precious"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.architecture.num_layers=5", "num_layers is no field of M2BertConfig; did you mean"),
        ("model.new_model.num_layers=5", "model.new_model.num_layers is no field"),
        ("data.document_tokens=65", "data.document_tokens=65 exceeds the model's max_position_embeddings=64"),
        ("model.new_model.hidden_dropout_prob=x", "model.new_model.hidden_dropout_prob: .*'x'"),
        ("tokenizer.path=nowhere", "no folder 'nowhere'"),
        ("data.tasks=[other]", "other"),
        ("data.path=nowhere", "nowhere"),
        ("tracker=abacus", "abacus"),
    ],
)
def test_bad_settings_are_named(toy_corpus, tmp_path, argument, message):
    with pytest.raises(ValueError, match=message):
        opl.main([*OPL, f"data.path={toy_corpus}", f"output_dir={tmp_path / 'out'}", argument])
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(toy_corpus, tmp_path):
    for split in ("train", "validation"):
        pq.write_table(pa.table({"body": ["words"]}), tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match="no column 'text'.*body"):
        mlm.main([*MLM, *data(mlm, tmp_path), f"output_dir={tmp_path / 'out'}"])


def test_command_line_without_arguments_says_so(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(sys, "argv", ["mlm.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlm, "data_folder", lambda path: (_ for _ in ()).throw(InterruptedError))
    with caplog.at_level("INFO"), pytest.raises(InterruptedError):
        mlm.main([])
    assert "without arguments: the small offline default" in caplog.text


def test_a_checkpoint_keeps_its_architecture_and_its_token_weights(toy_corpus, tmp_path):
    deep = ["model.architecture.num_hidden_layers=3", "model.architecture.num_pooling_heads=2"]
    opl.main([*OPL, *deep, f"data.path={toy_corpus}", f"output_dir={tmp_path / 'first'}"])
    small = [argument for argument in OPL if "architecture" not in argument and "steps" not in argument]
    opl.main(
        [
            *small,
            "steps=0",
            f"model.path={tmp_path / 'first'}",
            f"data.path={toy_corpus}",
            f"output_dir={tmp_path / 'again'}",
        ]
    )
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_incomplete_checkpoints_are_refused(toy_corpus, tmp_path):
    mlm.main([*MLM, *data(mlm, toy_corpus), f"output_dir={tmp_path / 'mlm'}"])
    weights = tmp_path / "mlm" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.0.mixer.in_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing: .*layers.0.mixer.in_proj.weight"):
        opl.main([*OPL, f"data.path={toy_corpus}", f"model.path={tmp_path / 'mlm'}", f"output_dir={tmp_path / 'out'}"])
    with pytest.raises(ValueError, match="nowhere has no config.json"):
        mlm.main([*MLM, *data(mlm, toy_corpus), "tokenizer.path=" + str(tmp_path / "mlm"), "model.path=nowhere",
                  f"output_dir={tmp_path / 'out'}"])  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_runs_record_what_they_read(toy_corpus, tmp_path):
    prints = []
    for name in ("a", "b"):
        opl.main([*OPL, "steps=1", f"data.path={toy_corpus}", f"output_dir={tmp_path / name}"])
        prints.append(json.loads((tmp_path / name / "training.json").read_text())["data_fingerprint"])
    assert prints[0] == prints[1]
    assert len(prints[0]) == 64


def test_a_tokenizer_that_does_not_fit_the_checkpoint_is_refused_before_training(toy_corpus, tmp_path, capsys):
    for name, size in (("small", 60), ("large", 200)):
        given = [f"tokenizer.vocab_size={size}", f"data.path={toy_corpus}", f"output_dir={tmp_path / name}"]
        opl.main([*OPL, "steps=0", *given])
    arguments = [
        f"model.path={tmp_path / 'small'}",
        f"tokenizer.path={tmp_path / 'large'}",
        f"output_dir={tmp_path / 'out'}",
    ]
    capsys.readouterr()
    with pytest.raises(ValueError, match="tokenizer gives ids up to"):
        opl.main([*OPL, f"data.path={toy_corpus}", *arguments])
    assert "step" not in capsys.readouterr().err


def test_long_queries_are_cut_and_counted(toy_corpus, tmp_path, caplog):
    short = ["data.document_tokens=4", "data.passage_share=0", "data.query_dropout=false"]
    with caplog.at_level("WARNING"):
        opl.main([*OPL, *short, f"data.path={toy_corpus}", f"output_dir={tmp_path / 'out'}"])
    assert "13 queries are cut to data.document_tokens=4" in caplog.text
