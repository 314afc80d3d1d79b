"""Fine-tuning runs: forms, losses, caching, processes, selection."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from m2bert.eval.search import score_ranking
from m2bert.eval.tasks.schema import load_task
from m2bert.train import retrieval_run as opl
from m2bert.train.grad_cache import encode
from m2bert.train.losses import make_objective
from m2bert.train.pairs import mine_negatives
from m2bert.train.pairs.batches import PairBatches
from m2bert.train.pairs.development import METRIC, Development
from m2bert.train.pairs.tokens import TokenTask, tokenise, wrap
from m2bert.train.settings import load_settings, read_chain
from m2bert.train.teacher import MappedEncoder
from m2bert.train.tokenizer import train_wordpiece

ROOT = Path(__file__).parents[2]
TINY = ["model.architecture.hidden_size=16", "model.architecture.num_hidden_layers=1", "steps=3", "log_every=1",
        "model.architecture.intermediate_size=32", "model.architecture.max_position_embeddings=64",
        "model.architecture.filter_order=8", "tokenizer.vocab_size=200", "data.batch_size=4", "data.document_tokens=40",
        "data.passage_tokens=[2, 4]"]  # fmt: skip
PLAIN = ["data.document_window=first", "data.passage_share=0", "data.query_dropout=false"]


def run(folder, output, *arguments):
    opl.main([*TINY, f"data.path={folder}", f"output_dir={output}", *arguments])
    record = json.loads((output / "training.json").read_text())
    return load_file(output / "model.safetensors"), record


@pytest.mark.parametrize(
    ("arguments", "forwards"),
    [
        (["data.form=pairs", "data.negatives=3"], None),  # 2 forwards for each of 4 pairs; whichever they are
        (["data.form=grouped", "data.negatives=3"], 5),
        (["data.form=grouped", "data.negatives=3", "loss.name=mnrl"], 5),
        (["data.form=all", "loss.name=mnrl", "data.chunk_tokens=60"], 2),
    ],
)
def test_forms_and_losses(toy_corpus, tmp_path, arguments, forwards):
    weights, record = run(toy_corpus, tmp_path / "out", *PLAIN, *arguments)
    assert all(tensor.isfinite().all() for tensor in weights.values())
    totals = record["totals"]
    assert totals["query_forwards"] == 12
    if forwards is None:
        assert totals["document_forwards"] == totals["pairs"] == 12
    else:
        assert totals["query_forwards"] + totals["document_forwards"] == forwards * totals["positives"]
    assert 0 <= record["history"][-1][METRIC] <= 1


def test_forwards_and_gradients_of_single_pairs_and_groups(tiny_config):
    """One query, its answer and 32 negatives: 66 forwards as pairs, 34 as a group, the same gradients."""
    torch.manual_seed(0)
    model = AutoModel.from_config(tiny_config()).double().train()
    texts = [torch.randint(5, 120, (20,)).numpy() for _ in range(40)]
    task = TokenTask("one", [str(i) for i in range(40)], texts, [texts[3][:5]], [[3]], [[]])
    encoded, found = [], {}
    model.register_forward_pre_hook(lambda module, args, kwargs: encoded.append(len(kwargs["input_ids"])),
                                    with_kwargs=True)  # fmt: skip
    accelerator = Accelerator(cpu=True)
    objective = make_objective(SimpleNamespace(name="opl", positive_weight=3.0))
    for form, size in (("pairs", 33), ("grouped", 1)):
        settings = SimpleNamespace(form=form, batch_size=size, negatives=32, document_window="first",
                                   document_tokens=40, query_tokens=None, passage_share=0.0)  # fmt: skip
        batch = PairBatches([task], settings, (2, 3), seed=0).next_batch()
        encoded.clear()
        loss, counts = opl.make_train_step(accelerator, objective, 0, None)(model, batch)
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        found[form] = loss, gradients
        assert sum(encoded) == {"pairs": 66, "grouped": 34}[form]
        assert sum(encoded) == counts["query_forwards"] + counts["document_forwards"]
        assert (counts["pairs"], counts["positives"]) == (33, 1)
    assert found["pairs"][0].item() == pytest.approx(found["grouped"][0].item(), rel=1e-12)
    for name, gradient in found["grouped"][1].items():
        assert (found["pairs"][1][name] - gradient).abs().max() <= 1e-10 * gradient.abs().max(), name


def test_an_epoch_sets_the_steps(toy_corpus, tmp_path):
    _, record = run(toy_corpus, tmp_path / "out", *PLAIN, "epochs=1", "data.form=pairs", "data.negatives=2")
    assert record["history"][-1]["step"] == 10  # 13 queries, 3 pairs each, 4 pairs a step
    assert record["totals"]["positives"] >= 13


def test_the_weights_that_were_best_are_kept(toy_corpus, tmp_path):
    arguments = ["optim.lr=3.0", "optim.pooler_lr=3.0", "evaluation.every=1"]
    _, record = run(toy_corpus, tmp_path / "out", *PLAIN, *arguments, "evaluation.select=true")
    scores = {row["step"]: row[METRIC] for row in record["history"] if METRIC in row}
    assert set(scores) == {0, 1, 2, 3}
    assert record["best"]["score"] == max(scores.values()) > scores[3]


def test_development_texts_that_are_cut_are_counted(caplog):
    texts = [torch.arange(5, 5 + count).numpy() for count in (3, 9, 30)]
    task = TokenTask("one", ["a", "b", "c"], texts, texts, [[0], [1], [2]], [[], [], []])
    with caplog.at_level("INFO"):
        development = Development([task], 20, 10, (2, 3), 0, 100)
    assert "development: 2 of 3 queries are cut to 10 tokens" in caplog.text
    assert "development: 1 of 3 documents are cut to 20 tokens" in caplog.text
    assert [len(row) for row in development.queries[0]] == [5, 10, 10]


def test_development_scores_are_those_of_the_metric(toy_corpus, tiny_config):
    tokenizer = train_wordpiece(load_task(toy_corpus, "toy", "validation").documents.values(), 110)
    torch.manual_seed(0)
    model, accelerator = AutoModel.from_config(tiny_config()).eval(), Accelerator(cpu=True)
    tasks = [load_task(toy_corpus, "toy", split) for split in ("train", "validation")]
    tokens = [tokenise(tokenizer, task) for task in tasks]
    tokens[1] = TokenTask(**vars(tokens[1]) | {"name": "second"})
    special = tokenizer.cls_token_id, tokenizer.sep_token_id
    found = Development(tokens, 40, 10, special, tokenizer.pad_token_id, batch_tokens=100)(accelerator, model)
    expected = []
    with torch.no_grad():
        for task, ids in zip(tasks, tokens, strict=True):
            queries, documents = (
                torch.cat([encode(model, [wrap(row[: limit - 2], special)], 0, torch.device("cpu")) for row in rows])
                for rows, limit in ((ids.queries, 10), (ids.documents, 40))
            )
            cosine = torch.cosine_similarity(queries[:, None], documents[None], dim=-1).tolist()
            ranking = {qid: dict(zip(task.documents, row, strict=True)) for qid, row in zip(task.queries, cosine,
                                                                                         strict=True)}  # fmt: skip
            values = score_ranking(ranking, task.qrels)
            expected.append(sum(values.values()) / len(values))
    assert found == pytest.approx({METRIC: sum(expected) / 2, f"{METRIC}/toy": expected[0],
                                   f"{METRIC}/second": expected[1]}, abs=1e-6)  # fmt: skip


def test_passages_fit_a_model_no_longer_than_the_documents(toy_corpus, tmp_path):
    changes = ["model.architecture.max_position_embeddings=24", "data.document_tokens=24", "data.passage_share=1",
               "data.passage_tokens=[20, 60]", "data.query_dropout=false"]  # fmt: skip
    weights, _ = run(toy_corpus, tmp_path / "out", *changes)
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_path_into_a_local_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert opl.is_local("data/locov1")
    assert opl.is_local("./locov1")
    assert opl.is_local("locov1")
    assert not opl.is_local("org/locov1")


def test_a_run_goes_on_with_its_vocabulary_and_teacher_alone(toy_corpus, tmp_path):
    """Both are named by path, and the files there may change."""
    teacher = tmp_path / "teacher"
    run(toy_corpus, teacher)
    given = [*TINY, *PLAIN, f"data.path={toy_corpus}", "loss.name=prototype", f"loss.teacher={teacher}",
             f"loss.teacher_cache={tmp_path / 'cache'}", f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    accelerator, config = Accelerator(cpu=True), load_settings("opl", given)
    texts = list(load_task(toy_corpus, "toy", "train").documents.values())

    def identity(size):
        return opl.read_data(accelerator, config, train_wordpiece(texts, size)).identity

    first = identity(110)
    assert first == identity(110)
    assert {key for key, value in identity(80).items() if first[key] != value} == {"vocabulary"}
    (teacher / "README.md").write_text("another card")
    assert {key for key, value in identity(110).items() if first[key] != value} == {"teacher"}


# With None in sys.modules a package cannot be imported, nor found by code that looks for it.
BARE = """
import sys
missing = "datasets pyarrow sentence_transformers pandas sklearn scipy evaluate mteb bm25s pytrec_eval matplotlib peft"
sys.modules.update(dict.fromkeys(missing.split()))
from m2bert.train.cli import train
train("opl", sys.argv[1:])
"""


@pytest.mark.parametrize("loss", [[], ["loss.name=prototype", *PLAIN]], ids=["opl", "prototype"])
def test_a_machine_without_data_libraries_trains_the_same_model_from_prepared_data(toy_corpus, tmp_path, loss):
    given = [*TINY, *loss]
    if loss:
        run(toy_corpus, tmp_path / "teacher", "seed=3")
        given += [f"loss.teacher={tmp_path / 'teacher'}", f"loss.teacher_cache={tmp_path / 'cache'}"]
    opl.main([*given, f"data.path={toy_corpus}", f"prepare={tmp_path / 'made'}"])
    usual, record = run(toy_corpus, tmp_path / "usual", *given[len(TINY) :])
    if loss:
        (tmp_path / "teacher").rename(tmp_path / "gone")
    given += [f"data.prepared={tmp_path / 'made'}", f"output_dir={tmp_path / 'bare'}"]
    done = subprocess.run([sys.executable, "-c", BARE, *given], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no development scores" in done.stderr
    bare = json.loads((tmp_path / "bare" / "training.json").read_text())
    assert bare["data_fingerprint"] == record["data_fingerprint"]
    found = load_file(tmp_path / "bare" / "model.safetensors")
    assert found.keys() == usual.keys()
    assert all(torch.equal(found[name], usual[name]) for name in usual)
    given += ["overwrite=true"]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *given, "evaluation.select=true"], capture_output=True, text=True
    )
    assert done.returncode
    assert "evaluation.select=true needs development scores" in done.stderr
    with pytest.raises(ValueError, match=r"made with data.tasks=None, not \['toy'\]"):
        opl.main([*given, "data.tasks=[toy]", "overwrite=true"])


def test_mined_negatives_are_used(toy_corpus, tmp_path):
    negatives = tmp_path / "negatives.parquet"
    mine_negatives.main(["--data", str(toy_corpus), "--task", "toy", "--negatives", "3", "--output", str(negatives)])
    arguments = [*PLAIN, "data.form=grouped", "data.negatives=3"]
    mined, _ = run(toy_corpus, tmp_path / "mined", *arguments, f"data.negatives_path={negatives}")
    drawn, _ = run(toy_corpus, tmp_path / "random", *arguments)
    assert any(not torch.equal(mined[key], drawn[key]) for key in mined)


@pytest.mark.slow
@pytest.mark.parametrize("heads", [6, 2])  # the teacher's width, and a third of it
def test_a_student_turns_towards_its_teacher(toy_corpus, tmp_path, heads):
    teacher = tmp_path / "teacher"
    run(toy_corpus, teacher, "optim.pooler_lr=0.5", "seed=3")
    arguments = [*PLAIN, "loss.name=prototype", f"loss.teacher={teacher}", f"loss.teacher_cache={tmp_path / 'cache'}",
                 f"tokenizer.path={teacher}", "steps=25", f"model.architecture.num_pooling_heads={heads}",
                 "optim.lr=1e-2", "data.batch_size=13", "log_every=1"]  # fmt: skip
    weights, record = run(toy_corpus, tmp_path / "student", *arguments)
    losses = [row["loss"] for row in record["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert not any(name.startswith(("encoder.", "map.")) for name in weights)
    assert AutoModel.from_pretrained(tmp_path / "student").config.num_pooling_heads == heads
    assert AutoTokenizer.from_pretrained(tmp_path / "student").get_vocab()


def test_a_compiled_student_of_another_width_loses_its_map(toy_corpus, tmp_path, monkeypatch):
    teacher, compile_model, compiled = tmp_path / "teacher", torch.compile, []
    run(toy_corpus, teacher)
    AcceleratorState._reset_state(reset_partial_state=True)  # or this process goes on without compilation
    monkeypatch.setattr(
        torch, "compile", lambda model, **_: compiled.append(model) or compile_model(model, backend="eager")
    )
    arguments = [*PLAIN, "loss.name=prototype", f"loss.teacher={teacher}", f"loss.teacher_cache={tmp_path / 'cache'}",
                 f"tokenizer.path={teacher}", "model.architecture.num_pooling_heads=2"]  # fmt: skip
    weights, _ = run(toy_corpus, tmp_path / "student", *arguments, "compile=true", "evaluation.select=true")
    assert [type(model) for model in compiled] == [MappedEncoder]
    assert weights.keys() == load_file(teacher / "model.safetensors").keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.negatives=13", "data.passage_share=0"], "task 'toy' has 13 documents, too few for data.negatives=13"),
        (["data.path=./gone"], "data.path=.*gone has no queries/train.parquet"),
        (["data.query_tokens=65"], "data.query_tokens=65 exceeds"),
    ],
)
def test_bad_settings_are_named(toy_corpus, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(toy_corpus, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


CONFIGURATIONS = {path.stem for path in (ROOT / "train" / "configs").glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(name for name in CONFIGURATIONS if not name.startswith("mlm")))
def test_shipped_configurations_say_where_they_write(name):
    assert read_chain(name)[-1]["output_dir"] == f"runs/{name}"
    assert load_settings("opl", ["--config", name]).loss.name in ("opl", "mnrl", "prototype")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["data.passage_share=0.5", "loss.name=mnrl"],
        ["data.form=grouped", "data.negatives=3", "data.passage_share=0", "data.chunk_tokens=60"],
        [*PLAIN, "loss.name=prototype", "model.architecture.num_pooling_heads=2"],
    ],
)
def test_two_processes_learn_what_one_does(toy_corpus, tmp_path, arguments):
    run(toy_corpus, tmp_path / "teacher")
    if "loss.name=prototype" in arguments:
        arguments = [*arguments, f"loss.teacher={tmp_path / 'teacher'}", f"loss.teacher_cache={tmp_path / 'cache'}"]
    arguments = [*arguments, f"tokenizer.path={tmp_path / 'teacher'}", "optim.eps=1e-3"]
    one, record = run(toy_corpus, tmp_path / "one", *arguments)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    launch += ["--rdzv-endpoint=localhost:0", str(ROOT / "train" / "opl.py"), *TINY, f"data.path={toy_corpus}"]
    launch += [f"output_dir={tmp_path / 'two'}", *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    two, shared = load_file(tmp_path / "two" / "model.safetensors"), json.loads(
        (tmp_path / "two" / "training.json").read_text())  # fmt: skip
    assert shared["processes"] == 2
    assert shared["totals"] == record["totals"]
    for a, b in zip(record["history"], shared["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    for name, tensor in one.items():
        assert (two[name] - tensor).abs().max() <= 1e-4 * max(1, tensor.abs().max()), name


def test_embeddings_start_as_frames_only_where_they_are_new(toy_corpus, tmp_path):
    name, start = "embeddings.word_embeddings.weight", ["steps=0", "model.architecture.pooling=weighted_mean"]
    new, _ = run(toy_corpus, tmp_path / "new", *start)
    plain, _ = run(toy_corpus, tmp_path / "plain", *start, "model.idf_start=false")
    kept, _ = run(toy_corpus, tmp_path / "kept", *start, f"model.path={tmp_path / 'plain'}")
    assert not torch.equal(new[name], plain[name])
    lengths = new[name].norm(dim=1)
    assert torch.allclose(lengths[lengths > 0], lengths.max())
    assert torch.equal(kept[name], plain[name])
