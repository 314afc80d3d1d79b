"""Try every form of smaller or offloaded weights on a CPU, and print one JSON line a form.

A line has the smallest cosine to float32 over 20 texts in padded batches, the megabytes of the saved weights, the
cosine after saving and loading, seconds of process time for one document, and nDCG@10 of a task. A form that fails
has its error instead.

    OMP_NUM_THREADS=1 python experiments/quantization/forms.py DATA/locov1_qmsum models/m2bert-small --ndcg
    OMP_NUM_THREADS=1 python experiments/quantization/forms.py DATA/locov1_qmsum FOLDER --longest 512
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from accelerate import cpu_offload, disk_offload
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from m2bert.eval.search import ExactSearch, score_metrics
from m2bert.eval.tasks.load import load_folder

WORDS = (1, 2, 3, 5, 8, 13, 20, 30, 50, 80, 120, 180, 250, 350, 500, 700, 1000, 1500, 2500, 4000)


def load(folder: str, **options) -> nn.Module:
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()


def torchao(name: str, **options):
    """Return a configuration of torchao, which is imported only where it is tried."""
    import torchao.quantization

    return getattr(torchao.quantization, name)(**options)


def by_config(make: Callable, folder: str) -> nn.Module:
    """Quantize while loading."""
    return load(folder, quantization_config=make())


def by_quantize(make: Callable, folder: str, kind: type = nn.Linear) -> nn.Module:
    """Quantize a loaded model in place by torchao."""
    from torchao.quantization import quantize_

    model = load(folder)
    quantize_(model, make(), filter_fn=lambda module, name: isinstance(module, kind))
    return model


def dynamic(folder: str) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(load(folder), {nn.Linear}, dtype=torch.qint8)


def half_table(folder: str) -> nn.Module:
    """Round the weights to float16, as a file holds them, and compute in float32."""
    return load(folder).half().float()


def offloaded(offload: Callable, folder: str, **options) -> nn.Module:
    model = load(folder)
    offload(model, execution_device="cpu", **options)
    return model


def mapped(share: float, scratch: str, folder: str) -> nn.Module:
    """Load with room for this share of the weights in memory, the rest on the disk."""
    size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return load(folder, device_map="auto", max_memory={"cpu": int(share * size)}, offload_folder=scratch)


INT8, DYNAMIC = "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"
TABLE = {"weight_dtype": torch.int8}


def forms(scratch: str) -> dict[str, Callable]:
    """Return how to load each form."""
    from torchao.quantization.granularity import PerGroup

    four, groups = {"load_in_4bit": True}, {"granularity": PerGroup(32)}
    configs = {
        "torchao int8": lambda: TorchAoConfig(torchao(INT8)),
        "torchao int8 dynamic": lambda: TorchAoConfig(torchao(DYNAMIC)),
        "torchao int4": lambda: TorchAoConfig(torchao("Int4WeightOnlyConfig", group_size=32)),
        "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
        "bitsandbytes nf4": lambda: BitsAndBytesConfig(**four, bnb_4bit_quant_type="nf4"),
        "bitsandbytes fp4": lambda: BitsAndBytesConfig(**four, bnb_4bit_quant_type="fp4"),
        "torchao intx 4 bit": lambda: TorchAoConfig(torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, **groups)),
        "quanto int8": lambda: QuantoConfig(weights="int8"),
        "quanto int4": lambda: QuantoConfig(weights="int4"),
    }
    shares = {f"max_memory {share:.0%}": partial(mapped, share, scratch) for share in (0.3, 0.5, 0.7, 0.9)}
    return {
        "float32": load,
        "float16": partial(load, dtype=torch.float16),
        "bfloat16": partial(load, dtype=torch.bfloat16),
        "half()": lambda folder: load(folder).half(),
        "float16 file, float32 in memory": half_table,
        **{name: partial(by_config, make) for name, make in configs.items()},
        "quantize_ int8": partial(by_quantize, partial(torchao, INT8)),
        "quantize_ int8 dynamic": partial(by_quantize, partial(torchao, DYNAMIC)),
        "quantize_ int4": partial(by_quantize, partial(torchao, "Int4WeightOnlyConfig", group_size=32)),
        "quantize_ int8 embeddings": partial(
            by_quantize, partial(torchao, "IntxWeightOnlyConfig", **TABLE), kind=nn.Embedding
        ),
        "quantize_dynamic": dynamic,
        "cpu_offload": partial(offloaded, cpu_offload),
        "disk_offload": partial(offloaded, disk_offload, offload_dir=scratch),
        **shares,
    }


def batches(task, tokenizer, longest: int) -> list[dict]:
    """Return 20 texts of 1 to 4,000 words in padded batches of five, short ones beside long ones."""
    pairs = zip(task.documents.values(), WORDS, strict=False)
    texts = [" ".join(document.split()[:count]) for document, count in pairs]
    options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    return [dict(tokenizer(texts[i::4], **options)) for i in range(4)]


def vectors(model: nn.Module, texts: list[dict]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(**batch).pooler_output.float() for batch in texts])


def seconds(model: nn.Module, tokens: int) -> float:
    """Return the median process time of three calls, after one that is not counted."""
    ids = torch.randint(1000, 30000, (1, tokens), generator=torch.Generator().manual_seed(0))
    times = []
    with torch.no_grad():
        for _ in range(4):
            start = time.process_time()
            model(ids)
            times.append(time.process_time() - start)
    return statistics.median(times[1:])


def reloaded(
    model: nn.Module, texts: list[dict], expected: torch.Tensor | None = None
) -> tuple[float | None, float | str]:
    """Save and load, and return the megabytes of the file, and the smallest cosine to what was saved."""
    size = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
            size = round(sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 1e6, 2)
            return size, cosine(vectors(load(folder), texts), vectors(model, texts) if expected is None else expected)
        except Exception as error:
            return size, one_line(error)


def cosine(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the smallest cosine of two rows."""
    return round(torch.cosine_similarity(found, exact).min().item(), 6)


def adapted(model: nn.Module, texts: list[dict]) -> str:
    """Say whether the weights of a LoRA adapter get gradients."""
    from peft import LoraConfig, get_peft_model

    try:
        tuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=["in_proj", "out_proj"])).train()
        tuned(**texts[0]).pooler_output.float().square()[:, ::3].sum().backward()
        grads = [weight.grad for name, weight in tuned.named_parameters() if "lora_B" in name]
        return "trains" if all(grad is not None and grad.isfinite().all() and grad.any() for grad in grads) else "no"
    except Exception as error:
        return one_line(error)


def ndcg(model: nn.Module, folder: str, task) -> float:
    """Return the mean nDCG@10, times 100, of one vector a document."""
    encoder = SentenceTransformer(folder, trust_remote_code=True)
    encoder[0].model = model
    queries = encoder.encode_query(list(task.queries.values()))
    rows = encoder.encode_document(list(task.documents.values()), batch_size=4)
    search = ExactSearch(list(task.documents), len(queries))
    search.add_vectors(queries, list(task.documents), rows, [1] * len(rows))
    scores = score_metrics(search.run(list(task.queries)), task.qrels)["ndcg_at_10"]
    return round(100 * sum(scores.values()) / len(scores), 2)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def measure(name: str, make: Callable, options, texts: list[dict], exact: torch.Tensor, task) -> dict:
    """Return a form's line."""
    row = {"model": Path(options.folder).name, "form": name}
    try:
        model = make(options.folder)
        row["megabytes"], row["saved"] = reloaded(model, texts)
        found = vectors(model, texts)
        row["cosine"] = cosine(found, exact)
        row["saved_after_calls"] = reloaded(model, texts, found)[1]
        row["lora"] = adapted(model, texts)
        row["seconds"] = {tokens: round(seconds(model, tokens), 4) for tokens in options.tokens}
        if options.ndcg:
            row["ndcg_at_10"] = ndcg(model, options.folder, task)
    except Exception as error:
        row["error"] = one_line(error)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder of a task.")
    parser.add_argument("folder", help="Folder of a model.")
    parser.add_argument("--ndcg", action="store_true", help="Score the task.")
    parser.add_argument("--longest", type=int, default=16384, help="Tokens of a text.")
    parser.add_argument("--tokens", type=int, nargs="*", default=[2048, 8192], help="Lengths to time.")
    parser.add_argument("--only", help="Forms whose names have this in them.")
    options = parser.parse_args()
    names = ("torch", "transformers", "accelerate", "peft", "torchao", "bitsandbytes", "optimum-quanto")
    print(json.dumps({name: metadata.version(name) for name in names}), flush=True)
    [task] = load_folder(options.data, None, "test")
    tokenizer = AutoTokenizer.from_pretrained("models/m2bert-small", trust_remote_code=True)
    texts = batches(task, tokenizer, options.longest)
    exact = vectors(load(options.folder), texts)
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in forms(scratch).items():
            if (options.only or "") in name:
                print(json.dumps(measure(name, make, options, texts, exact, task)), flush=True)


if __name__ == "__main__":
    main()
