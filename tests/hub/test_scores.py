"""Scores on a card are of exactly the model that it describes, and say where they come from."""

import hashlib
import json

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from m2bert.eval.encoders.fingerprint import model_files
from m2bert.hub.scores import leaderboard_file, model_index, read_scores


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "model"
    (folder / "1_Dense").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text('{\n  "padding": "visible"\n}\n')
    (folder / "modules.json").write_text("[]")
    settings = {"max_seq_length": 8, "processing_kwargs": {"text": {"padding": "max_length"}}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "1_Dense" / "model.safetensors").write_bytes(b"dense")
    return folder


def record(model_files, ndcg_at_10=0.8126, **changes):
    return {
        "kind": "retrieval", "system": "mine / truncate", "encoder": "mine", "policy": "truncate", "hybrid": None,
        "task": "qmsum", "split": "test", "source": "data", "revision": None, "data_fingerprint": "f" * 64,
        "ndcg_at_10": ndcg_at_10, "query_scores": {"q1": ndcg_at_10 - 0.01, "q2": ndcg_at_10 + 0.01},
        "interval_95": [round(ndcg_at_10 - 0.0326, 4), round(ndcg_at_10 + 0.0274, 4)],
        "counts": {"documents": 35, "queries": 272}, "vectors": "one",
        "claim": "zero-shot", "trained_on": ["books"], "model_fingerprint": "a" * 64, "model_files": model_files,
        "vectors_per_document": 1.0, "seen_share": 0.9, "device": "cpu", "dtype": "float32",
        "versions": {"torch": "2"}, "date": "2026-11-20",
    } | changes  # fmt: skip


def write(tmp_path, *records):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"format": 1, "results": list(records)}))
    return [path]


def test_scores_of_the_very_model_are_taken_with_bm25_beside_them(tmp_path, model_dir):
    own = record(model_files(model_dir))
    other = record(model_files(model_dir) | {"model.safetensors": "0" * 64}, 0.95)
    hybrid = record(model_files(model_dir), 0.96, hybrid={"with": "bm25"})
    bm25 = record(None, system="bm25", claim="untrained", ndcg_at_10=0.91, trained_on=[], policy="whole")
    scores = read_scores(write(tmp_path, other, own, own, hybrid, bm25), model_dir)  # the same twice is one
    assert [score["ndcg_at_10"] for score in scores.own] == [0.8126]
    assert scores.bm25["f" * 64]["ndcg_at_10"] == 0.91
    (result,) = model_index(scores)
    assert (result.metric_value, result.dataset_name, result.dataset_split) == (81.26, "qmsum", "test")


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "1_Dense/model.safetensors", "model-00002.safetensors", "added_tokens.json",
     "2_Dense/model.safetensors"],
)  # fmt: skip
def test_a_file_that_changed_or_came_later_disowns_the_score(tmp_path, model_dir, name):
    files = write(tmp_path, record(model_files(model_dir)))
    (model_dir / name).parent.mkdir(exist_ok=True)
    (model_dir / name).write_bytes(b'{"padding": "other"}')
    with pytest.raises(ValueError, match=f"differs in {name}"):
        read_scores(files, model_dir)


def test_a_folder_that_export_would_pool_otherwise_has_no_scores(tmp_path, model_dir):
    """Without modules.json sentence-transformers pools in a way of its own, and an adapter is not what was measured."""
    (model_dir / "modules.json").unlink()
    with pytest.raises(ValueError, match="has no modules.json; export it, evaluate that"):
        read_scores(write(tmp_path, record(model_files(model_dir))), model_dir)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_files": None}, "hold no score of .*; run `m2bert eval --encoder"),
        ({"model_files": ["x"]}, "hold no score of .*; run `m2bert eval --encoder"),
        ({"data_fingerprint": None}, "data_fingerprint"),
        ({"source": ""}, "source"),
        ({"versions": {}}, "versions"),
        ({"device": None}, "device"),
        ({"claim": "not stated", "trained_on": []}, "trained_on"),
        ({"claim": "SOTA"}, "claim is 'SOTA'"),
        ({"trained_on": ["qmsum (test)"]}, "trained on"),
        ({"task": "qmsum +1000", "trained_on": ["qmsum (test)"]}, "trained on"),
        ({"ndcg_at_10": 0.83}, "mean of query_scores"),
        ({"ndcg_at_10": float("nan")}, "NaN"),
    ],
)
def test_a_number_without_its_origin_or_against_reason_is_refused(tmp_path, model_dir, changes, named):
    with pytest.raises(ValueError, match=named):
        read_scores(write(tmp_path, record(model_files(model_dir)) | changes), model_dir)


@pytest.mark.parametrize("changes", [{"date": None}, {"versions": {}}, {"ndcg_at_10": 0.01}])
def test_bm25_beside_it_is_held_to_the_same(tmp_path, model_dir, changes):
    bm25 = record(None, 0.91, system="bm25", claim="untrained") | changes
    with pytest.raises(ValueError, match="the score of 'bm25'"):
        read_scores(write(tmp_path, record(model_files(model_dir)), bm25), model_dir)


def test_two_scores_of_one_thing_are_refused(tmp_path, model_dir):
    own = record(model_files(model_dir))
    with pytest.raises(ValueError, match="two scores of task 'qmsum' under policy 'truncate': 0.8126 and 0.7"):
        read_scores(write(tmp_path, own, record(model_files(model_dir), 0.7)), model_dir)


def test_the_twin_with_masked_padding_differs_in_that_alone(tmp_path, model_dir):
    """As `write_folder` makes it; test_card.py has it with real folders."""

    def twin(length):
        settings = json.dumps({"max_seq_length": length}, indent=2) + "\n"
        texts = {"config.json": '{\n  "padding": "masked"\n}\n', "sentence_bert_config.json": settings}
        return model_files(model_dir) | {
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()
        }

    own, masked, shorter = record(model_files(model_dir)), record(twin(8), 0.5), record(twin(4), 0.4)
    stranger = record(model_files(model_dir) | {"config.json": "1" * 64}, 0.3)
    scores = read_scores(write(tmp_path, own, masked, shorter, stranger), model_dir)
    assert [score["ndcg_at_10"] for score in scores.own] == [0.8126]
    assert [score["ndcg_at_10"] for score in scores.masked] == [0.5]


def test_leaderboards_get_scores_on_data_of_the_hub_only_in_the_hubs_form(tmp_path, model_dir):
    files = model_files(model_dir)
    revision = "q" * 40 + "," + "d" * 40
    local, pair = record(files), record(files, task="qasper", source="hazyresearch/LoCoV1", revision=revision)
    single = record(files, task="scifact", source="mteb/scifact", revision="e" * 40)
    (text,) = leaderboard_file(read_scores(write(tmp_path, local, pair, single), model_dir)).values()
    entries = parse_eval_result_entries(yaml.safe_load(text))
    assert [(entry.dataset_id, entry.dataset_revision, entry.task_id, entry.value) for entry in entries] == [
        ("hazyresearch/LoCoV1-Documents", "d" * 40, "qasper", 81.26),
        ("mteb/scifact", "e" * 40, "scifact", 81.26),
    ]
    assert entries[0].date == "2026-11-20"
    assert "95 % interval 78.0 to 84.0, zero-shot" in entries[0].notes
    assert leaderboard_file(read_scores(write(tmp_path, local), model_dir)) == {}
