"""Targets that read model folders: export, push, convert and the endpoint's handler."""

import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from fuzz_targets import TEXTS, WORDS, Incomparable, Refused, Target, close, m2bert


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


@torch.no_grad()
def pooled(model, tokenizer, padding=True):
    given = tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    return model(**given).pooler_output.numpy()


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
        return pooled(model, tokenizer)


class ExportAdapter(ExportPlain):
    def reference(self, folder, scratch):
        from peft import PeftModel
        from transformers import AutoModel, AutoTokenizer

        base, tokenizer = AutoModel.from_pretrained(self.base), AutoTokenizer.from_pretrained(folder)
        model = PeftModel.from_pretrained(base, folder).merge_and_unload()
        return pooled(model, tokenizer)


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


def load_here(folder: Path):
    """As `check_loading`, in this process, which is faster."""
    from m2bert.hub import clean_load

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


class PushAdapter(Push):
    def run(self, folder, scratch):
        return "nothing was sent" in m2bert("push", folder, "--repo", "org/name")

    def same(self, one, other):
        return one == other


class Convert(Target):
    def run(self, folder, scratch):
        given = ["--config", folder / "config.json", "--tokenizer", folder / "tokenizer", "--output", scratch / "out"]
        m2bert("convert", folder / "weights.pt", *given)
        return usable(self.summary, scratch / "out")

    @staticmethod
    def summary(folder):
        from transformers import AutoTokenizer

        from modeling_m2bert import M2BertModel

        tokenizer, model = AutoTokenizer.from_pretrained(folder), M2BertModel.from_pretrained(folder)
        return pooled(model, tokenizer, padding="max_length")

    def same(self, one, other):
        return close(one, other)

    def reference(self, folder, scratch):
        """The weights are those that torch reads, and each conversion is compared with the original's formulas."""
        torch.load(folder / "weights.pt", weights_only=True)
        raise Incomparable("checked by its own parity")


class Handler(Target):
    def run(self, folder, scratch):
        try:
            body = json.loads((folder / "request.json").read_text())
        except (ValueError, RecursionError, OSError, UnicodeDecodeError) as error:
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
        return encode(texts, normalize_embeddings=options.get("normalize", True)).tolist()

    def same(self, one, other):
        return close(one, other)
