"""Targets that read model folders: export, push, convert and the endpoint's handler."""

import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from fuzz_targets import TEXTS, WORDS, Incomparable, Refused, Target, close, m2bert
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

import modeling_m2bert
from m2bert.hub import clean_load


def tiny_tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "the", "##s", "a", "b"]
    return BertTokenizerFast(vocab={token: i for i, token in enumerate(vocabulary)})


def tiny_model(**changes):
    torch.manual_seed(0)
    settings = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16, "filter_order": 4,
                "max_position_embeddings": 16, "hidden_dropout_prob": 0.0}  # fmt: skip
    return modeling_m2bert.M2BertModel(modeling_m2bert.M2BertConfig(**settings | changes)).eval()


def sentence_vectors(folder: Path):
    """By sentence-transformers, whatever it makes of a folder."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return {"query": model.encode_query(TEXTS), "document": model.encode_document(TEXTS)}


def usable(vectors, folder: Path):
    """What `vectors` makes of a folder that was accepted."""
    try:
        return vectors(folder)
    except Exception as error:
        raise AssertionError(f"nobody can load what was accepted: {type(error).__name__}: {error}") from error


@torch.no_grad()
def pooled(model, folder: Path, padding=True):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    return model(**given).pooler_output.numpy()


def others(folder: Path) -> list[str]:
    """The settings, tables and weights within a folder."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


class Export(Target):
    same = staticmethod(close)

    def run(self, folder, scratch):
        about = ["--about", folder / "about.yaml"] if (folder / "about.yaml").exists() else []
        if "about.yaml" in self.files and not about:
            raise Refused("about.yaml is not given")
        m2bert("export", "--model", folder, "--output", scratch / "out", *about)
        return usable(self.vectors, scratch / "out")

    def reference(self, folder, scratch):
        return self.vectors(folder)

    @staticmethod
    def vectors(folder):
        return sentence_vectors(folder)


class ExportPlain(Export):
    """Of a checkpoint without sentence-transformers' files, in shards."""

    @staticmethod
    def vectors(folder):
        return pooled(AutoModel.from_pretrained(folder), folder)


class ExportAdapter(ExportPlain):
    def reference(self, folder, scratch):
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(self.base), folder)
        return pooled(model.merge_and_unload(), folder)


class ExportResults(Target):
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
        return "no card at all"


def load_here(folder: Path):
    """As `check_loading`, in this process, which is faster."""
    try:
        clean_load.main(folder)
    except Exception as error:
        raise ValueError(f"{folder} does not load: {error}") from error


class Push(Target):
    def run(self, folder, scratch):
        with mock.patch("m2bert.hub.push.check_loading", load_here):
            assert "nothing was sent" in m2bert("push", folder, "--repo", "org/name")
        return usable(sentence_vectors, folder)

    def same(self, one, other):
        return all(np.isfinite(vectors).all() for vectors in one.values())


class PushAdapter(Target):
    def run(self, folder, scratch):
        return "nothing was sent" in m2bert("push", folder, "--repo", "org/name")


class Convert(Target):
    same = staticmethod(close)

    def run(self, folder, scratch):
        given = ["--config", folder / "config.json", "--tokenizer", folder / "tokenizer", "--output", scratch / "out"]
        m2bert("convert", folder / "weights.pt", *given)
        return usable(self.vectors, scratch / "out")

    @staticmethod
    def vectors(folder):
        return pooled(modeling_m2bert.M2BertModel.from_pretrained(folder), folder, padding="max_length")

    def reference(self, folder, scratch):
        """The weights are those that torch reads, and each conversion is compared with the original's formulas."""
        torch.load(folder / "weights.pt", weights_only=True)
        raise Incomparable("checked by its own parity")


class Handler(Target):
    same = staticmethod(close)

    def run(self, folder, scratch):
        try:
            body = json.loads((folder / "request.json").read_text())
        except (ValueError, RecursionError, OSError) as error:
            raise Refused("request.json: the container refuses it") from error
        try:
            answer = self.handler(body)
        except ValueError as error:
            raise Refused(f"request.json: {error}") from error
        json.dumps(answer, allow_nan=False)
        return answer["embeddings"] if isinstance(answer, dict) else answer

    def reference(self, folder, scratch):
        body = json.loads((folder / "request.json").read_text())
        texts, options = body["inputs"], body.get("parameters") or {}
        texts = [texts] if isinstance(texts, str) else texts
        model = self.handler.model
        encode = model.encode_query if options.get("task") == "query" else model.encode_document
        return encode(texts, normalize_embeddings=options.get("normalize") is not False).tolist()
