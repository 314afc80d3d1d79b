"""What reads files that others wrote: each command with small inputs, what it gives, and what a reference says.

A target's `run` works in a copy of its folder in which one file was damaged. It returns what can be compared with the
result on the whole files, or raises what the command would end with. Where damage may change the result and be none
(another text, another weight), `reference` says what is right, read by other means than this package's.
"""

import contextlib
import csv
import io
import json
import logging
import math
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_mutations as mutations
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).parent
WORDS = ["apple", "pear", "boat", "sail", "stone", "wall", "cloud", "rain", "river", "bridge", "horse", "saddle"]
TEXTS = ["apple pear", "the boat sails", "stone", ""]
PAIRS = list(zip(WORDS[::2], WORDS[1::2], strict=True))


class Refused(Exception):
    """A command ended with exit code 2."""


class Incomparable(Exception):
    """A reference cannot say what is right."""


def command(app, *arguments) -> str:
    """Run a command in this process; its standard output. Raises Refused, or what would be a traceback."""
    out, err = io.StringIO(), io.StringIO()
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        logging.setLogRecordFactory(factory)
        sys.excepthook = hook
    for text in (out.getvalue(), err.getvalue()):
        assert "\x1b" not in text, f"control characters reach the terminal: {text!r:.300}"
        assert "\u202e" not in text, f"format characters reach the terminal: {text!r:.300}"
    if code == 2:
        lines = [line for line in err.getvalue().splitlines() if line.startswith(("m2bert: ", "mlm: "))]
        assert len(lines) == 1, f"not one line: {err.getvalue()!r:.500}"
        raise Refused(lines[0])
    assert code == 0, f"exit code {code}: {err.getvalue()!r:.500}"
    return out.getvalue()


def m2bert(*arguments) -> str:
    from m2bert_hub.cli import app

    return command(app, *arguments)


@dataclass
class Target:
    """
    Attributes:
        weight: how often it is drawn.
    """

    name: str
    folder: Path
    files: list[str]
    weight: int = 10
    expected: object = field(default=None)

    def run(self, folder: Path, scratch: Path):
        raise NotImplementedError

    def reference(self, folder: Path, scratch: Path):
        raise Incomparable("nothing may change")

    def same(self, one, other) -> bool:
        return one == other

    def damage(self, folder: Path, generator: random.Random) -> mutations.Mutation:
        return mutations.mutate(folder / generator.choice(self.files), generator)


def close(one, other) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(close(one[k], other[k]) for k in one)
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-3, atol=1e-4)


# --- model folders ---


def tiny_tokenizer():
    from transformers import BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "the", "##s", "a", "b"]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})


def tiny_model(kind="M2BertModel", **changes):
    import modeling_m2bert

    torch.manual_seed(0)
    settings = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16, "filter_order": 4,
                "max_position_embeddings": 16, "hidden_dropout_prob": 0.0}  # fmt: skip
    return getattr(modeling_m2bert, kind)(modeling_m2bert.M2BertConfig(**settings | changes)).eval()


def sentence_vectors(folder: Path):
    """By sentence-transformers, whatever it makes of a folder."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return {"query": model.encode_query(TEXTS), "document": model.encode_document(TEXTS)}


def usable(vectors, folder: Path):
    """What `vectors` makes of a folder that was accepted."""
    try:
        return vectors(folder)
    except Exception as error:
        raise AssertionError(f"nobody can load what was accepted: {type(error).__name__}: {error}") from error


def others(folder: Path, suffixes=(".json", ".safetensors")) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in suffixes)


class Export(Target):
    def run(self, folder, scratch):
        about = ["--about", folder / "about.yaml"] if (folder / "about.yaml").exists() else []
        if "about.yaml" in self.files and not about:
            raise Refused("about.yaml is not given")
        m2bert("export", "--model", folder, "--output", scratch / "out", *about)
        return usable(sentence_vectors, scratch / "out")

    def same(self, one, other):
        return close(one, other)

    def reference(self, folder, scratch):
        return sentence_vectors(folder)


class ExportPlain(Export):
    """Of a checkpoint without sentence-transformers' files, in shards."""

    def run(self, folder, scratch):
        m2bert("export", "--model", folder, "--output", scratch / "out")
        return usable(self.vectors, scratch / "out")

    def reference(self, folder, scratch):
        return self.vectors(folder)

    @staticmethod
    def vectors(folder):
        from transformers import AutoModel, AutoTokenizer

        model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            return model(**tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")).pooler_output.numpy()


class ExportAdapter(ExportPlain):
    def reference(self, folder, scratch):
        from peft import PeftModel
        from transformers import AutoModel, AutoTokenizer

        base, tokenizer = AutoModel.from_pretrained(self.base), AutoTokenizer.from_pretrained(folder)
        model = PeftModel.from_pretrained(base, folder).merge_and_unload()
        with torch.no_grad():
            return model(**tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")).pooler_output.numpy()


class ExportResults(Export):
    def run(self, folder, scratch):
        m2bert("export", "--model", folder / "model", "--output", scratch / "out", "--results", folder / "results.json")
        card = (scratch / "out" / "README.md").read_text()
        return [line for line in card.splitlines() if "| tiny" in line or "value:" in line]

    def reference(self, folder, scratch):
        records = json.loads((folder / "results.json").read_text())["results"]
        [record] = [r for r in records if r.get("model_files")]
        mean = sum(record["query_scores"].values()) / len(record["query_scores"])
        if math.isclose(record["ndcg_at_10"], mean, abs_tol=1e-6) and 0 <= mean <= 1:
            raise Incomparable("a score that may be")
        return None

    def same(self, one, other):
        return one == other


class Push(Target):
    def run(self, folder, scratch):
        assert "nothing was sent" in m2bert("push", folder, "--repo", "org/name")
        return usable(sentence_vectors, folder)

    def same(self, one, other):
        return all(np.isfinite(vectors).all() for vectors in one.values())


class PushAdapter(Push):
    def run(self, folder, scratch):
        return "nothing was sent" in m2bert("push", folder, "--repo", "org/name")

    def same(self, one, other):
        return one == other


# --- tasks ---


def query_rows():
    return [{"qid": f"q{i}", "query": b, "answer_pids": [f"p{i}"], "dataset": "tiny", "position": 0.5} for i, (_, b) in enumerate(PAIRS)]


def document_rows():
    return [{"pid": f"p{i}", "passage": f"{a} {b} " * 3 + a, "dataset": "tiny"} for i, (a, b) in enumerate(PAIRS)]


def write_task(folder: Path, splits=("test",)):
    for split in splits:
        for kind, rows in (("queries", query_rows()), ("documents", document_rows())):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows), folder / kind / f"{split}.parquet")
    return folder


def scores(path: Path):
    return [[r["task"], r["query_scores"], r["ndcg_at_10"], r["interval_95"]] for r in json.loads(path.read_text())["results"]]


class EvalData(Target):
    """Judged by what was read: texts and answers."""

    def run(self, folder, scratch):
        m2bert("eval", "--encoder", "bm25", "--data", folder, "--output", scratch / "r.json", "--no-cache")
        return self.read(folder)

    def read(self, folder):
        raise NotImplementedError


class Tables(EvalData):
    def read(self, folder):
        from m2bert_eval.locov1 import load_task, task_names

        [name] = task_names(folder, "test")
        task = load_task(folder, name, "test")
        return task.queries, task.documents, {qid: sorted(found) for qid, found in task.qrels.items()}

    def reference(self, folder, scratch):
        queries = pq.read_table(folder / "queries" / "test.parquet").to_pylist()
        documents = pq.read_table(folder / "documents" / "test.parquet").to_pylist()
        texts = {row["pid"]: row["passage"] for row in documents if row["passage"] is not None}
        [name] = {row["dataset"] for row in documents}
        queries = [row for row in queries if set(row["answer_pids"]) & texts.keys() and row["dataset"] == name]
        return ({row["qid"]: row["query"] or "" for row in queries}, texts,
                {row["qid"]: sorted(set(row["answer_pids"]) & texts.keys()) for row in queries})  # fmt: skip


class Csv(EvalData):
    def read(self, folder):
        from m2bert_eval.csv_task import load_csv_folder

        task = load_csv_folder(folder)
        return task.queries, task.documents, {qid: sorted(found) for qid, found in task.qrels.items()}

    def reference(self, folder, scratch):
        def rows(path):
            text = path.read_text("utf-8-sig")
            read = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            read.fieldnames = [name.strip().lower() for name in read.fieldnames]
            return [row for row in read if any(isinstance(v, str) and v.strip() for v in row.values())]

        if (folder / "documents.csv").exists():
            documents = {row["id"].strip(): row["text"] or "" for row in rows(folder / "documents.csv")}
        else:
            documents = {p.name: p.read_text("utf-8-sig") for p in (folder / "documents").iterdir() if p.is_file()}
        queries = rows(folder / "queries.csv")
        return ({f"q{i}": row["query"].strip() for i, row in enumerate(queries, 1)}, documents,
                {f"q{i}": sorted({a.strip() for a in row["answer"].split(";") if a.strip()}) for i, row in enumerate(queries, 1)})  # fmt: skip


class EvalModel(Target):
    """Any sentence-transformers model."""

    def run(self, folder, scratch):
        from m2bert_eval.systems import load_encoder

        arguments = ["--encoder", folder / "model", "--data", folder / "data"]
        m2bert("eval", *arguments, "--output", scratch / "r.json", "--no-cache")
        encoder = load_encoder(str(folder / "model"))
        return {kind: np.asarray(encoder.encode(TEXTS, kind)) for kind in ("query", "document")}

    def reference(self, folder, scratch):
        return sentence_vectors(folder / "model")

    def same(self, one, other):
        def unit(rows):
            return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

        return all(close(unit(one[kind]), unit(other[kind])) for kind in one)


class EvalCache(Target):
    def run(self, folder, scratch):
        arguments = ["--encoder", self.model, "--data", self.data, "--cache", folder]
        m2bert("eval", *arguments, "--output", scratch / "r.json")
        return scores(scratch / "r.json")


class EvalYaml(Target):
    def run(self, folder, scratch):
        m2bert("eval", "--config", folder / "config.yaml", "--output", scratch / "r.json", "--no-cache")
        records = json.loads((scratch / "r.json").read_text())["results"]
        return {(r["task"], tuple(sorted(r["query_scores"].items()))) for r in records if r["hybrid"] is None and r["encoder"] == "bm25"}

    def same(self, one, other):
        return one <= other  # fewer systems are another run


class Compare(Target):
    def run(self, folder, scratch):
        return m2bert("compare", folder / "a.json", folder / "b.json")

    def reference(self, folder, scratch):
        """Every difference that is shown is that of the means of the scores by query."""
        groups = {}
        for name in ("a.json", "b.json"):
            for record in json.loads((folder / name).read_text())["results"]:
                if record["kind"] == "retrieval":
                    scores = record["query_scores"]
                    assert all(0 <= score <= 1 for score in scores.values()), "a score beyond 0 and 1 was compared"
                    mean = sum(scores.values()) / len(scores)
                    assert abs(mean - record["ndcg_at_10"]) < 1e-6, "a mean that is not that of its scores was compared"
                    groups.setdefault((record["task"], record["split"], record["data_fingerprint"]), []).append(mean)
        wanted = {f"{100 * (a - b):+.1f}" for means in groups.values() for a in means for b in means}
        shown = [line for line in m2bert("compare", folder / "a.json", folder / "b.json").splitlines() if " to " in line]
        assert all(any(w in line.split() for w in wanted) for line in shown), "other differences"
        raise Incomparable("the differences of other scores")


class Report(Target):
    def run(self, folder, scratch):
        m2bert("report", folder / "all.json", folder / "b.json", "--output", scratch / "r.md", "--output", scratch / "r.html")
        text = (scratch / "r.md").read_text() + (scratch / "r.html").read_text()
        assert "\x1b" not in text
        assert "nan" not in text.lower().replace("finance", "").split()
        return True


class Analyse(Target):
    def run(self, folder, scratch):
        m2bert("analyse", "lengths", "--data", folder / "data", "--tokenizer", folder / "tokenizer.json", "--output", scratch / "r.json")
        m2bert("analyse", "spans", "--data", folder / "data", "--output", scratch / "s.json")
        m2bert("analyse", "overlap", "--data", folder / "data", "--train-split", "test", "--output", scratch / "o.json")
        [record] = json.loads((scratch / "r.json").read_text())["results"]
        return record["documents"]["mean_tokens"], record["documents"]["count"], record["queries"]["mean_tokens"]

    def reference(self, folder, scratch):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        found = []
        for kind, column in (("documents", "passage"), ("queries", "query")):
            rows = pq.read_table(folder / "data" / kind / "test.parquet").to_pylist()
            rows = [row for row in rows if kind == "queries" or row[column] is not None]
            found.append([len(tokenizer.encode(row[column] or "", add_special_tokens=False).ids) for row in rows])
        return np.mean(found[0]), len(found[0]), np.mean(found[1])

    def same(self, one, other):
        return np.allclose(one, other)


# --- the research code's weights ---


class Convert(Target):
    def run(self, folder, scratch):
        m2bert("convert", folder / "weights.pt", "--config", folder / "config.json", "--tokenizer", folder / "tokenizer", "--output", scratch / "out")
        return usable(self.summary, scratch / "out")

    @staticmethod
    def summary(folder):
        from transformers import AutoTokenizer

        from modeling_m2bert import M2BertModel

        tokenizer, model = AutoTokenizer.from_pretrained(folder), M2BertModel.from_pretrained(folder)
        with torch.no_grad():
            given = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
            return model(**given).pooler_output.numpy()

    def same(self, one, other):
        return close(one, other)

    def reference(self, folder, scratch):
        """The weights are those that torch reads, and each conversion is compared with the original's formulas."""
        stored = torch.load(folder / "weights.pt", weights_only=True)
        assert stored.keys() <= self.state.keys() | {"extra"} or True
        raise Incomparable("checked by its own parity")


# --- training ---

MODEL = ["model.architecture.hidden_size=8", "model.architecture.num_hidden_layers=1", "log_every=1",
         "model.architecture.intermediate_size=16", "model.architecture.max_position_embeddings=32",
         "model.architecture.filter_order=4", "model.architecture.num_pooling_heads=1", "evaluation.every=0"]  # fmt: skip
MLM = [*MODEL, "data.max_tokens=16", "data.batch_tokens=32", "evaluation.examples=1", "model.architecture.hidden_dropout_prob=0.1"]


def train(*arguments) -> str:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    return m2bert("train", *arguments)


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()}


class Texts(Target):
    """Local text of a pretraining: what is read."""

    def run(self, folder, scratch):
        found = []
        for name in ("lines.jsonl", "table.parquet", "blocks.txt"):
            from m2bert_train.text_files import TextFiles, find_files

            files = TextFiles(find_files(folder / name, "train"))
            files.check_columns()
            found.append(list(files))
        return found

    def reference(self, folder, scratch):
        lines = (folder / "lines.jsonl").read_text("utf-8-sig").split("\n")
        blocks = [[]]
        for line in (folder / "blocks.txt").read_bytes().split(b"\n"):
            blocks.append([]) if not line.strip() else blocks[-1].append(line)
        return [
            [json.loads(line)["text"] or "" for line in lines if line.strip()],
            [row["text"] or "" for row in pq.read_table(folder / "table.parquet").to_pylist()],
            [b"\n".join(block).decode().strip().lstrip("\ufeff") for block in blocks if block],
        ]


class MlmTexts(Target):
    """A whole run of one step on texts: it ends, or says what is wrong with them."""

    def run(self, folder, scratch):
        sources = ", ".join(f"{{path: {folder / name}, validation_split: null}}" for name in ("lines.jsonl", "table.parquet", "blocks.txt"))
        train("mlm", *MLM, "steps=1", f"data.sources=[{sources}]", f"data.token_cache={scratch / 'cache'}",
              f"tokenizer.path={folder / 'tokenizer'}", f"output_dir={scratch / 'out'}")  # fmt: skip
        return all(math.isfinite(entry["loss"]) for entry in json.loads((scratch / "out" / "training.json").read_text())["history"] if "loss" in entry)


class Triples(Target):
    def run(self, folder, scratch):
        from m2bert_train.triples import load_triples

        found = []
        for name in ("triples.jsonl", "triples.parquet"):
            task, negatives = load_triples(str(folder / name), None, None)
            texts = task.documents
            found.append([sorted((task.queries[q], sorted(texts[p] for p in answers)) for q, answers in task.qrels.items()),
                          sorted((task.queries[q], sorted(texts[p] for p in pids)) for q, pids in negatives.items() if pids)])  # fmt: skip
        return found

    def reference(self, folder, scratch):
        lines = [json.loads(line) for line in (folder / "triples.jsonl").read_text("utf-8-sig").split("\n") if line.strip()]
        found = []
        for rows in (lines, pq.read_table(folder / "triples.parquet").to_pylist()):
            answers, negatives = {}, {}
            for row in rows:
                answers.setdefault(row["query"], set()).add(row["positive"])
                negatives.setdefault(row["query"], set()).update(v for k, v in row.items() if k.startswith("negative") and v)
            found.append([sorted((q, sorted(a)) for q, a in answers.items()),
                          sorted((q, sorted(n - answers[q])) for q, n in negatives.items() if n - answers[q])])  # fmt: skip
        return found


class Resume(Target):
    def run(self, folder, scratch):
        out = folder / "out"
        train("mlm", *self.arguments, f"output_dir={out}", "resume=true")
        return weights(out)


class TokenCache(Target):
    def run(self, folder, scratch):
        train("mlm", *self.arguments, f"output_dir={scratch / 'out'}", f"data.token_cache={folder}")
        return weights(scratch / "out")


class TrainYaml(Target):
    def run(self, folder, scratch):
        from m2bert_train.inputs import ready

        for name in ("mlm", "opl"):
            def app(arguments, name=name):
                from m2bert.terminal import run_command

                run_command("m2bert", lambda: ready(name, arguments))

            command(app, "--config", folder / f"{name}.yaml", f"output_dir={scratch / 'out'}")
        return True


class TrainValue(Target):
    """A mutated key=value on the command line."""

    def damage(self, folder, generator):
        path = folder / "value.yaml"
        key = generator.choice(["optim.lr", "steps", "model.new_model.hidden_size", "data.sources", "optim.betas", "seed", "model.start",
                                "tokenizer.vocab_size", "model.path", "precision", "tracker", "model.architecture", "data.token_cache"])  # fmt: skip
        value = generator.choice([*map(json.dumps, mutations.VALUES), *mutations.RAW_VALUES])
        path.write_text(f"{key}={value}")
        return mutations.Mutation(path, f"{key}={value[:30]}", (key, *key.split("."), value.strip('"')))

    def run(self, folder, scratch):
        from m2bert.terminal import run_command
        from m2bert_train.inputs import ready

        value = (folder / "value.yaml").read_text()
        command(lambda arguments: run_command("m2bert", lambda: ready("mlm", arguments)), *self.arguments, value, f"output_dir={scratch / 'out'}")
        return True


# --- the endpoint ---


class Handler(Target):
    def run(self, folder, scratch):
        try:
            body = json.loads((folder / "request.json").read_text())
        except (ValueError, RecursionError, OSError, UnicodeDecodeError) as error:
            raise Refused("request.json: the container refuses it") from error
        try:
            answer = self.handler(body)
        except ValueError as error:
            assert "\x1b" not in str(error)
            raise Refused(f"request.json: {error}") from error
        json.dumps(answer, allow_nan=False)
        return answer["embeddings"] if isinstance(answer, dict) else answer

    def reference(self, folder, scratch):
        body = json.loads((folder / "request.json").read_text())
        texts, options = body["inputs"], body.get("parameters") or {}
        texts = [texts] if isinstance(texts, str) else texts
        model = self.handler.model
        encode = model.encode_query if options.get("task") == "query" else model.encode_document
        return encode(texts, normalize_embeddings=options.get("normalize", True)).tolist()

    def same(self, one, other):
        return close(one, other)


# --- all of them ---


def build(root: Path) -> list[Target]:
    """Make every target's folder below `root`, and what each gives when nothing is damaged."""
    from m2bert_hub.folder import write_folder

    targets: list[Target] = []
    tokenizer = tiny_tokenizer()
    about = {"license": "apache-2.0", "language": ["en"], "data": [{"name": "pydocs", "license": "PSF-2.0", "hub": "org/data"}],
             "limits": ["Short texts."], "text": "A model."}  # fmt: skip

    for pooling, heads in (("cls_tanh", 1), ("weighted_mean", 2)):
        folder = write_folder(tiny_model(pooling=pooling, num_pooling_heads=heads), tokenizer, root / f"export-{pooling}")
        record = {"config": {"steps": 3, "model": {"path": None}}, "data_fingerprint": "ab" * 32, "versions": {"torch": "2"},
                  "history": [{"step": 1, "loss": 2.5}]}  # fmt: skip
        (folder / "training.json").write_text(json.dumps(record))
        conversion = {"source": "org/name", "revision": "ab" * 20, "license": "apache-2.0", "files": {"m.bin": "ab" * 32},
                      "tensors": {"total": 3}, "options": {"assumed": {"x": 1}}, "date": "2026-01-01",
                      "parity": {"reference": "r", "texts": 2, "tokens": 9, "float64": {"a": 1e-9}, "float32": {"a": 1e-6}},
                      "masked": {"text": "x", "cosine": [{"tokens": 8, "texts": 2, "mean": 0.9, "lowest": 0.8}]}}  # fmt: skip
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
    targets.append(PushAdapter("push adapter", folder, ["README.md", "README.md", "adapter_config.json", "adapter_model.safetensors"], 5))

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

    from m2bert_hub.cli import app

    folder = root / "eval-cache"
    command(app, "eval", "--encoder", root / "eval-model" / "model", "--data", data, "--cache", folder, "--output", root / "scores.json")
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    cache = EvalCache("eval cache", folder, sorted(files), 8)
    cache.model, cache.data = root / "eval-model" / "model", data
    targets.append(cache)

    folder = root / "eval-yaml"
    folder.mkdir()
    config = {"tasks": [{"data": str(data), "names": ["tiny"], "split": "test"}], "encoders": [{"model": "bm25"}, {"model": "tfidf-rp:8", "name": "t",
              "policies": ["truncate"]}], "policies": ["truncate"], "hybrids": ["rrf"], "rerank_depth": 3}  # fmt: skip
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
    everything = [made.retrieval(**few), made.bm25(**few), made.mteb(), made.needle(places=range(4)), made.lengths(), made.spans(),
                  made.efficiency(), made.OVERLAP, made.retrieval("other / truncate", by_length=made.by_length(0.1, 0.2, None, 0.3),
                  failures=[made.example()], **few)]  # fmt: skip
    for name, records in (("a", everything[:1]), ("b", everything[1:2]), ("all", everything)):
        records = [clamp(record) for record in records]
        (folder / f"{name}.json").write_text(json.dumps({"format": 1, "results": records}))
    targets.append(Compare("compare", folder, ["a.json", "b.json"], 10))
    targets.append(Report("report", folder, ["all.json"], 8))

    folder = root / "analyse"
    mutations.copy(data, folder / "data")
    tokenizer.save_pretrained(folder)
    targets.append(Analyse("analyse", folder, ["tokenizer.json", "data/queries/test.parquet", "data/documents/test.parquet"], 8))

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
        files = ["weights.pt", "weights.pt", "config.json", "config.json", *(f"tokenizer/{n}" for n in others(folder / "tokenizer"))]
        target = Convert("convert", folder, files, 10)
        target.state = fixture.embedding_state()
        targets.append(target)

    folder = root / "texts"
    folder.mkdir()
    texts = [" ".join(random.Random(i).choices(WORDS, k=20 + i)) for i in range(12)]
    (folder / "lines.jsonl").write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)))
    (folder / "blocks.txt").write_text("\n\n".join(texts))
    pq.write_table(pa.table({"text": texts}), folder / "table.parquet")
    tokenizer.save_pretrained(folder / "tokenizer")
    names = ["lines.jsonl", "blocks.txt", "table.parquet"]
    targets.append(Texts("texts", folder, names, 10))
    targets.append(MlmTexts("mlm texts", folder, [*names, *(f"tokenizer/{n}" for n in others(folder / "tokenizer"))], 6))

    folder = root / "triples"
    folder.mkdir()
    rows = [{"query": a, "positive": f"{b} {a}", "negative": texts[i], "negative_2": None if i % 2 else b} for i, (a, b) in enumerate(PAIRS)]
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
    from m2bert_train.config import read_yaml

    for name in ("mlm", "opl"):
        content = read_yaml(f"{name}-small.yaml")
        if name == "mlm":
            content["data"]["sources"] = [{"path": str(root / "texts" / "blocks.txt"), "validation_split": None, "variable": 0.5, "maximum": 0.5}]
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

    from m2bert_hub.handler import EndpointHandler

    folder = root / "handler"
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps({"inputs": TEXTS, "parameters": {"task": "query", "policy": "truncate", "normalize": False}}))
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
    from m2bert_train.record import Log

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
