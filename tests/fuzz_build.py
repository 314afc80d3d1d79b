"""Small inputs for every target."""

import contextlib
import json
import random
from pathlib import Path

import fabricated_records as made
import fuzz_mutations as mutations
import fuzz_tasks as tasks
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
from fuzz_targets import PAIRS, TEXTS, WORDS, Target, m2bert
from fuzz_training import MLM, MlmTexts, Resume, Texts, TokenCache, TrainValue, TrainYaml, Triples, train
from original_model import FIXTURES, Fixture
from peft import LoraConfig, get_peft_model
from transformers.utils.logging import disable_progress_bar

from m2bert.hub.folder import write_folder
from m2bert.hub.handler import EndpointHandler
from m2bert.train.loop import Log
from m2bert.train.settings import read_yaml

ABOUT = {"license": "apache-2.0", "language": ["en"], "limits": ["Short texts."], "text": "A model.",
         "data": [{"name": "pydocs", "license": "PSF-2.0", "hub": "org/data"}]}  # fmt: skip
TRAINING = {"config": {"steps": 3, "model": {"path": None}}, "data_fingerprint": "ab" * 32, "versions": {"torch": "2"},
            "history": [{"step": 1, "loss": 2.5}]}  # fmt: skip
PARITY = {"reference": "r", "texts": 2, "tokens": 9, "float64": {"a": 1e-9}, "float32": {"a": 1e-6}}
CONVERSION = {"source": "org/name", "revision": "ab" * 20, "license": "apache-2.0", "files": {"m.bin": "ab" * 32},
              "tensors": {"total": 3}, "options": {"assumed": {"x": 1}}, "date": "2026-01-01", "parity": PARITY,
              "masked": {"text": "x", "cosine": [{"tokens": 8, "texts": 2, "mean": 0.9, "lowest": 0.8}]}}  # fmt: skip


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def build(root: Path) -> list[Target]:
    """Make every target's folder below `root`. Later targets read what earlier ones wrote."""
    disable_progress_bar()
    tokenizer = tiny_tokenizer()
    return [*models(root, tokenizer), *evaluations(root, tokenizer), *trainings(root, tokenizer)]


def models(root: Path, tokenizer) -> list[Target]:
    targets = []
    for pooling, heads in (("cls_tanh", 1), ("weighted_mean", 2)):
        model = tiny_model(pooling=pooling, num_pooling_heads=heads)
        folder = write_folder(model, tokenizer, root / f"export-{pooling}")
        write(folder / "training.json", TRAINING)
        write(folder / "conversion.json", CONVERSION)
        push = mutations.copy(folder, root / f"push-{pooling}")
        write(folder / "about.yaml", ABOUT)
        targets.append(Export(f"export {pooling}", folder, [*others(folder), "about.yaml"], 22))
        code = ["README.md", "requirements.txt", "handler.py", "modeling_m2bert.py"]
        targets.append(Push(f"push {pooling}", push, [*others(push), *code], 8))

    folder, base, adapter = root / "export-plain", root / "base", root / "export-adapter"
    tiny_model().save_pretrained(folder, max_shard_size="4KB")
    tokenizer.save_pretrained(folder)
    targets.append(ExportPlain("export plain", folder, others(folder), 10))

    model = tiny_model()
    model.save_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["in_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    write(adapter / "adapter_config.json", settings | {"base_model_name_or_path": str(base)})
    targets.append(ExportAdapter("export adapter", adapter, others(adapter), 8, base=base))

    push = mutations.copy(adapter, root / "push-adapter")
    write(push / "adapter_config.json", settings | {"base_model_name_or_path": "org/base"})
    write(push / "README.md", "---\nbase_model: org/base\nlicense: mit\ntags: [a]\n---\n# Adapter\n")
    names = ["README.md", "README.md", "adapter_config.json", "adapter_model.safetensors"]
    targets.append(PushAdapter("push adapter", push, names, 5))

    if FIXTURES.is_dir():
        fixture, folder = Fixture("short_input"), root / "convert"
        state = fixture.embedding_state()
        write(folder / "config.json", fixture.config)
        torch.save({name: tensor.clone() for name, tensor in state.items()}, folder / "weights.pt")
        tokenizer.save_pretrained(folder / "tokenizer")
        names = ["weights.pt", "config.json"] * 2 + [f"tokenizer/{name}" for name in others(folder / "tokenizer")]
        targets.append(Convert("convert", folder, names, 10))

    request = {"inputs": TEXTS, "parameters": {"task": "query", "policy": "truncate", "normalize": False}}
    write(root / "handler" / "request.json", request)
    handler = EndpointHandler(str(root / "export-weighted_mean"))
    return [*targets, Handler("handler", root / "handler", ["request.json"], 10, handler=handler)]


def evaluations(root: Path, tokenizer) -> list[Target]:
    data, tables = tasks.write_task(root / "eval-tables"), ["queries/test.parquet", "documents/test.parquet"]
    targets = [tasks.Tables("eval tables", data, tables, 14)]

    one, two = root / "eval-csv", root / "eval-csv-2"
    for row in tasks.document_rows():
        write(one / "documents" / f"{row['pid']}.txt", row["passage"])
    queries = [f'"{row["query"]}",{row["answer_pids"][0]}.txt' for row in tasks.query_rows()]
    documents = [f'{row["pid"]}.txt,"{row["passage"]}"' for row in tasks.document_rows()]
    for folder in (one, two):
        write(folder / "queries.csv", "\n".join(["query,answer", *queries, ""]))
    write(two / "documents.csv", "\n".join(["id,text", *documents, ""]))
    targets.append(tasks.Csv("eval csv", one, ["queries.csv", "queries.csv", "documents/p0.txt"], 8))
    targets.append(tasks.Csv("eval csv 2", two, ["queries.csv", "documents.csv"], 6))

    folder = root / "eval-model"
    model = write_folder(tiny_model(), tokenizer, folder / "model")
    mutations.copy(data, folder / "data")
    targets.append(tasks.EvalModel("eval model", folder, [f"model/{name}" for name in others(model)], 18))

    cache = root / "eval-cache"
    m2bert("eval", "--encoder", model, "--data", data, "--cache", cache, "--output", root / "scores.json")
    targets.append(tasks.EvalCache("eval cache", cache, files_of(cache), 8, model=model, data=data))

    encoders = [{"model": "bm25"}, {"model": "tfidf-rp:8", "name": "t", "policies": ["truncate"]}]
    config = {"tasks": [{"data": str(data), "names": ["tiny"], "split": "test"}], "encoders": encoders,
              "policies": ["truncate"], "hybrids": ["rrf"], "rerank_depth": 3}  # fmt: skip
    write(root / "eval-yaml" / "config.yaml", config)
    targets.append(tasks.EvalYaml("eval yaml", root / "eval-yaml", ["config.yaml"], 10))

    folder = root / "export-results"
    mutations.copy(model, folder / "model")
    encoder = {"model": str(folder / "model"), "trained_on": ["other"]}
    config = write(root / "scored.yaml", {"tasks": {"data": str(data)}, "encoders": encoder})
    m2bert("eval", "--config", config, "--no-cache", "--output", folder / "results.json")
    targets.append(ExportResults("export results", folder, ["results.json"], 8))

    folder, few = root / "results", {"queries": 8}
    groups = made.by_length(0.1, 0.2, None, 0.3)
    other = made.retrieval("other / truncate", by_length=groups, failures=[made.example()], **few)
    all_kinds = [made.retrieval(**few), made.bm25(**few), made.mteb(), made.needle(places=range(4)), made.lengths(),
                 made.spans(), made.efficiency(), made.OVERLAP, other]  # fmt: skip
    for name, records in (("a", all_kinds[:1]), ("b", all_kinds[1:2]), ("all", all_kinds)):
        write(folder / f"{name}.json", {"format": 1, "results": [clamp(record) for record in records]})
    targets.append(tasks.Compare("compare", folder, ["a.json", "b.json"], 10))
    targets.append(tasks.Report("report", folder, ["all.json"], 8))

    folder = root / "analyse"
    mutations.copy(data, folder / "data")
    tokenizer.save_pretrained(folder)
    names = ["tokenizer.json", *(f"data/{name}" for name in tables)]
    return [*targets, tasks.Analyse("analyse", folder, names, 8)]


def clamp(record: dict) -> dict:
    """Scores of made-up records, between 0 and 1, and their mean."""
    if "query_scores" in record:
        record["query_scores"] = {name: min(max(score, 0.0), 1.0) for name, score in record["query_scores"].items()}
        record["ndcg_at_10"] = sum(record["query_scores"].values()) / len(record["query_scores"])
    return record


def trainings(root: Path, tokenizer) -> list[Target]:
    folder = root / "texts"
    texts = [" ".join(random.Random(i).choices(WORDS, k=20 + i)) for i in range(12)]
    write(folder / "lines.jsonl", "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))
    blocks = write(folder / "blocks.txt", "\n\n".join(texts))
    pq.write_table(pa.table({"text": texts}), folder / "table.parquet")
    tokenizer.save_pretrained(folder / "tokenizer")
    names = ["lines.jsonl", "blocks.txt", "table.parquet"]
    settings = [f"tokenizer/{name}" for name in others(folder / "tokenizer")]
    targets = [Texts("texts", folder, names, 10), MlmTexts("mlm texts", folder, [*names, *settings], 6)]

    rows = [{"query": a, "positive": f"{b} {a}", "negative": texts[i], "negative_2": None if i % 2 else b}
            for i, (a, b) in enumerate(PAIRS)]  # fmt: skip
    folder = root / "triples"
    triples = write(folder / "triples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "triples.parquet")
    targets.append(Triples("triples", folder, ["triples.jsonl", "triples.parquet"], 8))

    source = {"path": str(blocks), "validation_split": None}
    arguments = [*MLM, f"data.sources={json.dumps([source])}", "steps=2"]
    arguments.append(f"tokenizer.path={root / 'texts' / 'tokenizer'}")
    cache = root / "token-cache"
    train("mlm", *arguments, f"output_dir={root / 'trained'}", f"data.token_cache={cache}")
    targets.append(TokenCache("token cache", cache, files_of(cache), 5, arguments=arguments))

    folder = root / "resume"
    resumed = [*arguments, f"data.token_cache={root / 'tokens-of-resume'}", "checkpoint_every=1"]
    unfinished(folder / "out", resumed)
    targets.append(Resume("resume", folder, files_of(folder), 10, arguments=resumed))

    folder = root / "train-yaml"
    mlm, opl, align = (read_yaml(f"{name}-small.yaml") for name in ("mlm", "opl", "align"))
    mlm["data"]["sources"] = [source | {"variable": 0.5, "maximum": 0.5}]
    opl["data"]["triples"] = str(triples)
    write(folder / "mlm.yaml", mlm)
    write(folder / "opl.yaml", opl)
    align["data"]["sources"], align["loss"]["teacher"] = [source], "org/teacher"
    write(folder / "align.yaml", align)
    targets.append(TrainYaml("train yaml", folder, ["mlm.yaml", "opl.yaml", "align.yaml"], 12))

    write(root / "train-value" / "value.yaml", "seed=1")
    return [*targets, TrainValue("train value", root / "train-value", ["value.yaml"], 8, arguments=arguments)]


def unfinished(output: Path, arguments: list[str]):
    """Leave the checkpoints of a run that ended after its first step."""

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
