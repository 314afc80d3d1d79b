"""Small inputs for every target."""

import contextlib
import json
import random
import sys
from pathlib import Path

import fuzz_mutations as mutations
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzz_models import (
    Convert,
    Export,
    ExportAdapter,
    ExportPlain,
    ExportResults,
    Handler,
    Push,
    PushAdapter,
    others,
    tiny_model,
    tiny_tokenizer,
)
from fuzz_targets import PAIRS, ROOT, TEXTS, WORDS, Target, command
from fuzz_tasks import (
    Analyse,
    Compare,
    Csv,
    EvalCache,
    EvalModel,
    EvalYaml,
    Report,
    Tables,
    document_rows,
    query_rows,
    write_task,
)
from fuzz_training import MLM, MlmTexts, Resume, Texts, TokenCache, TrainValue, TrainYaml, Triples, train


def build(root: Path) -> list[Target]:
    """Make every target's folder below `root`, and what each gives when nothing is damaged."""
    from m2bert.hub.folder import write_folder

    targets: list[Target] = []
    tokenizer = tiny_tokenizer()
    about = {
        "license": "apache-2.0",
        "language": ["en"],
        "data": [{"name": "pydocs", "license": "PSF-2.0", "hub": "org/data"}],
        "limits": ["Short texts."],
        "text": "A model.",
    }

    for pooling, heads in (("cls_tanh", 1), ("weighted_mean", 2)):
        folder = write_folder(
            tiny_model(pooling=pooling, num_pooling_heads=heads), tokenizer, root / f"export-{pooling}"
        )
        record = {
            "config": {"steps": 3, "model": {"path": None}},
            "data_fingerprint": "ab" * 32,
            "versions": {"torch": "2"},
            "history": [{"step": 1, "loss": 2.5}],
        }
        (folder / "training.json").write_text(json.dumps(record))
        conversion = {
            "source": "org/name",
            "revision": "ab" * 20,
            "license": "apache-2.0",
            "files": {"m.bin": "ab" * 32},
            "tensors": {"total": 3},
            "options": {"assumed": {"x": 1}},
            "date": "2026-01-01",
            "parity": {"reference": "r", "texts": 2, "tokens": 9, "float64": {"a": 1e-9}, "float32": {"a": 1e-6}},
            "masked": {"text": "x", "cosine": [{"tokens": 8, "texts": 2, "mean": 0.9, "lowest": 0.8}]},
        }
        (folder / "conversion.json").write_text(json.dumps(conversion))
        push = mutations.copy(folder, root / f"push-{pooling}")
        (folder / "about.yaml").write_text(json.dumps(about))
        targets.append(Export(f"export {pooling}", folder, [*others(folder), "about.yaml"], 22))
        files = [*others(push), "README.md", "requirements.txt", "handler.py", "modeling_m2bert.py"]
        targets.append(Push(f"push {pooling}", push, files, 8))

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = root / "export-plain"
    tiny_model().save_pretrained(folder, max_shard_size="4KB")
    tokenizer.save_pretrained(folder)
    targets.append(ExportPlain("export plain", folder, others(folder), 10))

    folder = root / "export-adapter"
    base = tiny_model()
    base.save_pretrained(root / "base")
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["in_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(root / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    target = ExportAdapter("export adapter", folder, others(folder), 8)
    target.base = root / "base"
    targets.append(target)

    folder = mutations.copy(folder, root / "push-adapter")
    config |= {"base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("---\nbase_model: org/base\nlicense: mit\ntags: [a]\n---\n# Adapter\n")
    targets.append(
        PushAdapter(
            "push adapter", folder, ["README.md", "README.md", "adapter_config.json", "adapter_model.safetensors"], 5
        )
    )

    data = write_task(root / "eval-tables")
    targets.append(Tables("eval tables", data, ["queries/test.parquet", "documents/test.parquet"], 14))

    folder = root / "eval-csv"
    (folder / "documents").mkdir(parents=True)
    for row in document_rows():
        (folder / "documents" / f"{row['pid']}.txt").write_text(row["passage"])
    rows = "".join(f'"{row["query"]}",{row["answer_pids"][0]}.txt\n' for row in query_rows())
    (folder / "queries.csv").write_text("query,answer\n" + rows)
    targets.append(Csv("eval csv", folder, ["queries.csv", "queries.csv", "documents/p0.txt"], 8))
    folder = mutations.copy(folder, root / "eval-csv-2")
    mutations.shutil.rmtree(folder / "documents")
    rows = "".join(f'{row["pid"]}.txt,"{row["passage"]}"\n' for row in document_rows())
    (folder / "documents.csv").write_text("id,text\n" + rows)
    targets.append(Csv("eval csv 2", folder, ["queries.csv", "documents.csv"], 6))

    folder = root / "eval-model"
    write_folder(tiny_model(), tokenizer, folder / "model")
    mutations.copy(data, folder / "data")
    files = [f"model/{name}" for name in others(folder / "model")]
    targets.append(EvalModel("eval model", folder, files, 18))

    from m2bert.hub.cli import app

    folder = root / "eval-cache"
    command(
        app,
        "eval",
        "--encoder",
        root / "eval-model" / "model",
        "--data",
        data,
        "--cache",
        folder,
        "--output",
        root / "scores.json",
    )
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    cache = EvalCache("eval cache", folder, sorted(files), 8)
    cache.model, cache.data = root / "eval-model" / "model", data
    targets.append(cache)

    folder = root / "eval-yaml"
    folder.mkdir()
    config = {
        "tasks": [{"data": str(data), "names": ["tiny"], "split": "test"}],
        "encoders": [{"model": "bm25"}, {"model": "tfidf-rp:8", "name": "t", "policies": ["truncate"]}],
        "policies": ["truncate"],
        "hybrids": ["rrf"],
        "rerank_depth": 3,
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    targets.append(EvalYaml("eval yaml", folder, ["config.yaml"], 10))

    folder = root / "export-results"
    mutations.copy(root / "eval-model" / "model", folder / "model")
    config = {"tasks": {"data": str(data)}, "encoders": {"model": str(folder / "model"), "trained_on": ["other"]}}
    (root / "scored.yaml").write_text(json.dumps(config))
    command(app, "eval", "--config", root / "scored.yaml", "--no-cache", "--output", folder / "results.json")
    targets.append(ExportResults("export results", folder, ["results.json"], 8))

    sys.path.insert(0, str(ROOT / "eval"))
    import fabricated_records as made

    sys.path.pop(0)
    folder = root / "results"
    folder.mkdir()
    few = {"queries": 8}
    everything = [
        made.retrieval(**few),
        made.bm25(**few),
        made.mteb(),
        made.needle(places=range(4)),
        made.lengths(),
        made.spans(),
        made.efficiency(),
        made.OVERLAP,
        made.retrieval(
            "other / truncate", by_length=made.by_length(0.1, 0.2, None, 0.3), failures=[made.example()], **few
        ),
    ]
    for name, records in (("a", everything[:1]), ("b", everything[1:2]), ("all", everything)):
        records = [clamp(record) for record in records]
        (folder / f"{name}.json").write_text(json.dumps({"format": 1, "results": records}))
    targets.append(Compare("compare", folder, ["a.json", "b.json"], 10))
    targets.append(Report("report", folder, ["all.json"], 8))

    folder = root / "analyse"
    mutations.copy(data, folder / "data")
    tokenizer.save_pretrained(folder)
    targets.append(
        Analyse("analyse", folder, ["tokenizer.json", "data/queries/test.parquet", "data/documents/test.parquet"], 8)
    )

    fixtures = ROOT.parents[1] / "shared" / "fixtures" / "upstream_parity"
    if fixtures.is_dir():
        sys.path.insert(0, str(ROOT / "hub"))
        from original_model import Fixture

        sys.path.pop(0)
        fixture = Fixture("short_input")
        folder = root / "convert"
        folder.mkdir()
        torch.save({name: tensor.clone() for name, tensor in fixture.embedding_state().items()}, folder / "weights.pt")
        (folder / "config.json").write_text(json.dumps(fixture.config))
        tokenizer.save_pretrained(folder / "tokenizer")
        files = [
            "weights.pt",
            "weights.pt",
            "config.json",
            "config.json",
            *(f"tokenizer/{n}" for n in others(folder / "tokenizer")),
        ]
        target = Convert("convert", folder, files, 10)
        target.state = fixture.embedding_state()
        targets.append(target)

    folder = root / "texts"
    folder.mkdir()
    texts = [" ".join(random.Random(i).choices(WORDS, k=20 + i)) for i in range(12)]
    (folder / "lines.jsonl").write_text(
        "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts))
    )
    (folder / "blocks.txt").write_text("\n\n".join(texts))
    pq.write_table(pa.table({"text": texts}), folder / "table.parquet")
    tokenizer.save_pretrained(folder / "tokenizer")
    names = ["lines.jsonl", "blocks.txt", "table.parquet"]
    targets.append(Texts("texts", folder, names, 10))
    targets.append(
        MlmTexts("mlm texts", folder, [*names, *(f"tokenizer/{n}" for n in others(folder / "tokenizer"))], 6)
    )

    folder = root / "triples"
    folder.mkdir()
    rows = [
        {"query": a, "positive": f"{b} {a}", "negative": texts[i], "negative_2": None if i % 2 else b}
        for i, (a, b) in enumerate(PAIRS)
    ]
    (folder / "triples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "triples.parquet")
    targets.append(Triples("triples", folder, ["triples.jsonl", "triples.parquet"], 8))

    sources = f"data.sources=[{{path: {root / 'texts' / 'blocks.txt'}, validation_split: null}}]"
    arguments = [*MLM, sources, "steps=2", f"tokenizer.path={root / 'texts' / 'tokenizer'}"]
    folder = root / "token-cache"
    train("mlm", *arguments, f"output_dir={root / 'trained'}", f"data.token_cache={folder}")
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    target = TokenCache("token cache", folder, sorted(files), 5)
    target.arguments = arguments
    targets.append(target)

    folder = root / "resume"
    target = Resume("resume", folder, [], 10)
    target.arguments = [*arguments, f"data.token_cache={root / 'tokens-of-resume'}", "checkpoint_every=1"]
    unfinished(folder / "out", target.arguments)
    target.files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    targets.append(target)

    folder = root / "train-yaml"
    folder.mkdir()
    from m2bert.train.settings import read_yaml

    for name in ("mlm", "opl"):
        content = read_yaml(f"{name}-small.yaml")
        if name == "mlm":
            content["data"]["sources"] = [
                {"path": str(root / "texts" / "blocks.txt"), "validation_split": None, "variable": 0.5, "maximum": 0.5}
            ]
        else:
            content["data"]["triples"] = str(root / "triples" / "triples.jsonl")
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    targets.append(TrainYaml("train yaml", folder, ["mlm.yaml", "opl.yaml"], 12))

    folder = root / "train-value"
    folder.mkdir()
    (folder / "value.yaml").write_text("seed=1")
    target = TrainValue("train value", folder, ["value.yaml"], 8)
    target.arguments = arguments
    targets.append(target)

    from m2bert.hub.handler import EndpointHandler

    folder = root / "handler"
    folder.mkdir()
    (folder / "request.json").write_text(
        json.dumps({"inputs": TEXTS, "parameters": {"task": "query", "policy": "truncate", "normalize": False}})
    )
    target = Handler("handler", folder, ["request.json"], 10)
    target.handler = EndpointHandler(str(root / "export-weighted_mean"))
    targets.append(target)
    return targets


def clamp(record: dict) -> dict:
    """Scores of made-up records, between 0 and 1, and their mean."""
    if "query_scores" in record:
        record["query_scores"] = {name: min(max(score, 0.0), 1.0) for name, score in record["query_scores"].items()}
        record["ndcg_at_10"] = sum(record["query_scores"].values()) / len(record["query_scores"])
    return record


def unfinished(output: Path, arguments: list[str]):
    """Leave the checkpoints of a run that ended after its first step."""
    from m2bert.train.record import Log

    class Killed(BaseException):
        pass

    count, steps = Log.count, []

    def counting(*given):
        count(*given)
        steps.append(1)
        if len(steps) == 2:
            raise Killed

    Log.count = counting
    with contextlib.suppress(Killed):
        try:
            train("mlm", *arguments, f"output_dir={output}")
        finally:
            Log.count = count
    assert list(output.with_name(f"{output.name}.run").glob("step-*")), "no checkpoint was left"
