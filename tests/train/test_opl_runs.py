"""Fine-tuning runs: forms, losses, caching, processes, selection."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny_runs import OPL, PLAIN, ROOT, finish, launch, record, run_bare, same, weights
from transformers import AutoModel, AutoTokenizer

from m2bert.eval.search import score_ranking
from m2bert.eval.tasks.schema import load_task
from m2bert.train import retrieval_run as opl
from m2bert.train.grad_cache import encode
from m2bert.train.losses import make_objective
from m2bert.train.pairs import mine_negatives
from m2bert.train.pairs.batches import PairBatches
from m2bert.train.pairs.development import METRIC, Development
from m2bert.train.pairs.tokens import TokenTask, tokenize, wrap
from m2bert.train.settings import load_settings
from m2bert.train.teacher import MappedEncoder
from m2bert.train.tokenizer import train_wordpiece


def run(folder, output, *arguments):
    opl.main([*OPL, f"data.path={folder}", f"output_dir={output}", *arguments])
    return weights(output), record(output)


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
    trained, found = run(toy_corpus, tmp_path / "out", *PLAIN, *arguments)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    totals = found["totals"]
    assert totals["query_forwards"] == 12
    if forwards is None:
        assert totals["document_forwards"] == totals["pairs"] == 12
    else:
        assert totals["query_forwards"] + totals["document_forwards"] == forwards * totals["positives"]
    assert 0 <= found["history"][-1][METRIC] <= 1


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
    _, found = run(toy_corpus, tmp_path / "out", *PLAIN, "epochs=1", "data.form=pairs", "data.negatives=2")
    assert found["history"][-1]["step"] == 10  # 13 queries, 3 pairs each, 4 pairs a step
    assert found["totals"]["positives"] >= 13


def test_development_scores_are_those_of_the_metric(toy_corpus, tiny_config):
    tokenizer = train_wordpiece(load_task(toy_corpus, "toy", "validation").documents.values(), 110)
    torch.manual_seed(0)
    model, accelerator = AutoModel.from_config(tiny_config()).eval(), Accelerator(cpu=True)
    tasks = [load_task(toy_corpus, "toy", split) for split in ("train", "validation")]
    tokens = [tokenize(tokenizer, task) for task in tasks]
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
    trained, _ = run(toy_corpus, tmp_path / "out", *changes)
    assert all(tensor.isfinite().all() for tensor in trained.values())


def test_a_run_goes_on_with_its_vocabulary_and_teacher_alone(toy_corpus, tmp_path):
    """Both are named by path, and the files there may change."""
    teacher = tmp_path / "teacher"
    run(toy_corpus, teacher)
    given = [*OPL, *PLAIN, f"data.path={toy_corpus}", "loss.name=prototype", f"loss.teacher={teacher}",
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


@pytest.mark.parametrize("loss", [[], ["loss.name=prototype", *PLAIN]], ids=["opl", "prototype"])
def test_a_machine_without_data_libraries_trains_the_same_model_from_prepared_data(toy_corpus, tmp_path, loss):
    if loss:
        run(toy_corpus, tmp_path / "teacher", "seed=3")
        loss = [*loss, f"loss.teacher={tmp_path / 'teacher'}", f"loss.teacher_cache={tmp_path / 'cache'}"]
    opl.main([*OPL, *loss, f"data.path={toy_corpus}", f"prepare={tmp_path / 'made'}"])
    usual, whole_record = run(toy_corpus, tmp_path / "usual", *loss)
    if loss:
        (tmp_path / "teacher").rename(tmp_path / "gone")
    given = [*OPL, *loss, f"data.prepared={tmp_path / 'made'}", f"output_dir={tmp_path / 'bare'}"]
    done = run_bare("opl", given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no development scores" in done.stderr
    assert record(tmp_path / "bare")["data_fingerprint"] == whole_record["data_fingerprint"]
    assert same(weights(tmp_path / "bare"), usual)
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
    trained, found = run(toy_corpus, tmp_path / "student", *arguments)
    losses = [row["loss"] for row in found["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert not any(name.startswith(("encoder.", "map.")) for name in trained)
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
    trained, _ = run(toy_corpus, tmp_path / "student", *arguments, "compile=true", "evaluation.select=true")
    assert [type(model) for model in compiled] == [MappedEncoder]
    assert trained.keys() == weights(teacher).keys()


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
    one, alone = run(toy_corpus, tmp_path / "one", *arguments)
    given = [*OPL, f"data.path={toy_corpus}", f"output_dir={tmp_path / 'two'}", *arguments]
    finish(launch([ROOT / "train" / "opl.py", *given], processes=2))
    two, shared = weights(tmp_path / "two"), record(tmp_path / "two")
    assert shared["processes"] == 2
    assert shared["totals"] == alone["totals"]
    for a, b in zip(alone["history"], shared["history"], strict=True):
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
