"""Load an exported folder in every way that a user may, each in a process of its own, and print a Markdown row per way.

It imports nothing of this package, and so runs wherever a folder and Python are. The outcome is the largest absolute
difference of hidden states and unit vectors from those of `AutoModel` in float32 on the CPU; "absent" names a package
that is not installed, "failed" an error. The exit code is 1 if a way failed.

    python experiments/speed/load_matrix.py FOLDER [FOLDER ..] [--ways AutoModel,peft] [--hub-id ORG/NAME@COMMIT]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

CHILD = "--child"  # of a process that tries one way; the packages that it must do without follow
if sys.argv[1:2] == [CHILD]:
    sys.modules.update(dict.fromkeys(sys.argv[2].split(",")))  # imports of these fail from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

LONG_TEXT = 5 * "minutes of a meeting about a budget, a report and the river "
TEXTS = ["the budget of the committee", "a report", "", LONG_TEXT]
OURS = ("m2bert", "modeling_m2bert", "configuration_m2bert")
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of the repository that stands in a cache
LORA = {"r": 4, "target_modules": ["in_proj", "out_proj"], "target_parameters": ["up.weight", "down.weight"]}
FROM_HUB = "from the Hub"
WITHOUT_POOLER = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")


class Subject(NamedTuple):
    """A folder, or a Hub id and its commit, to load; the file of its expected outputs; a folder to write to."""

    name: str
    revision: str
    expected: Path
    scratch: Path

    @property
    def where(self) -> dict:
        """Keyword arguments of every loader."""
        return {"trust_remote_code": True} | ({"revision": self.revision} if self.revision else {})

    def load(self, auto_class: str = "AutoModel", **options):
        """Return the model, ready for inference."""
        return getattr(transformers, auto_class).from_pretrained(self.name, **self.where, **options).eval()

    def pipeline(self, task: str):
        return transformers.pipeline(task, model=self.name, **self.where, device="cpu")

    def tokenize(self, config, texts: list[str] = TEXTS):
        """Return a batch as the model's vectors are defined."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, **self.where)
        return tokenizer(texts, padding=padding_of(config), truncation=True, return_tensors="pt")

    @torch.no_grad()
    def outputs(self, model) -> dict:
        """Return hidden (B, L, H) and vector (B, P) of unit length, float32. That of a folder WITHOUT_POOLER is plain
        pooling."""
        config, batch = model.config, self.tokenize(model.config)
        found = model(**batch)
        hidden, mask, vector = found.last_hidden_state.float(), batch["attention_mask"][..., None], found.pooler_output
        if config.architectures[0].endswith(WITHOUT_POOLER):
            vector = hidden[:, 0] if config.pooling.startswith("cls") else (hidden * mask).sum(1) / mask.sum(1)
        return {"hidden": hidden.contiguous(), "vector": normalize(vector.float(), dim=1)}

    def right(self) -> dict:
        """Return the outputs of AutoModel."""
        return load_file(self.expected)

    def compare(self, model) -> str:
        """Return the largest absolute difference of a model's outputs from those of AutoModel."""
        return difference(self.outputs(model), self.right())


def padding_of(config) -> str | bool:
    """Return padding to the longest input where padding is seen, else to the longest text of the batch."""
    return "max_length" if config.padding == "visible" else True


def difference(found: dict, expected: dict) -> str:
    """Return the largest absolute difference of tensors."""
    return number(max((tensor - expected[name]).abs().max().item() for name, tensor in found.items()))


def number(value: float) -> str:
    return f"{value:.1e}" if value else "0"


# --- the ways; each returns its outcome ---


def expect(subject: Subject):
    """Write what the ways are compared with."""
    save_file(subject.outputs(subject.load()), subject.expected)


def auto_model(subject: Subject, **options) -> str:
    return subject.compare(subject.load(**options))


def on_disk(subject: Subject) -> str:
    """Leave the weights on the disk, from where a module's are read when it is called. A pooler may be new: then there
    is none to read."""
    where = {"embeddings": "disk", "layers": "disk", "pooler": "cpu"}
    model = subject.load(device_map=where, offload_folder=str(subject.scratch / "disk"))
    if not all(parameter.is_meta for parameter in (*model.embeddings.parameters(), *model.layers.parameters())):
        raise RuntimeError("weights were loaded that should lie on the disk")
    return subject.compare(model)


def offloaded(subject: Subject) -> str:
    """Offload all modules of a loaded model by accelerate: into memory, and onto the disk."""
    from accelerate import cpu_offload, disk_offload

    model, other = subject.load(), subject.load()
    cpu_offload(model, execution_device="cpu")
    disk_offload(other, execution_device="cpu", offload_dir=subject.scratch / "offload")
    return f"cpu {subject.compare(model)}, disk {subject.compare(other)}"


def own_class(subject: Subject) -> str:
    """Load the class that was saved: every tensor is there and used, and the encoder is the same."""
    config = transformers.AutoConfig.from_pretrained(subject.name, **subject.where)
    kind = "AutoModel" + config.architectures[0].removeprefix("M2Bert").removesuffix("Model")
    load = getattr(transformers, kind).from_pretrained
    model, report = load(subject.name, **subject.where, output_loading_info=True)
    if any(report.values()):
        raise RuntimeError(f"tensors do not fit: {report}")
    with torch.no_grad():
        hidden = model.eval().base_model(**subject.tokenize(config)).last_hidden_state
    return difference({"hidden": hidden}, subject.right())


def sentence_transformer(subject: Subject) -> str:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(subject.name, **subject.where, device="cpu")
    return difference({"vector": encoder.encode(TEXTS, convert_to_tensor=True)}, subject.right())


def feature_extraction(subject: Subject) -> str:
    """Pass one text at a time, and compare where tokens are."""
    run = subject.pipeline("feature-extraction")
    settings = {"padding": padding_of(run.model.config), "truncation": True}
    found = [torch.tensor(run(text, tokenize_kwargs=settings)[0]) for text in TEXTS]
    rows = zip(found, subject.right()["hidden"], strict=True)
    return number(max((tokens - row[: len(tokens)]).abs().max().item() for tokens, row in rows))


def fill_mask(subject: Subject) -> str:
    """Compare probabilities with those of the logits."""
    run = subject.pipeline("fill-mask")
    text, config = f"the {run.tokenizer.mask_token} of the committee", run.model.config
    batch = subject.tokenize(config, [text])
    place = (batch["input_ids"][0] == run.tokenizer.mask_token_id).nonzero().item()
    exact = subject.load("AutoModelForMaskedLM")(**batch).logits[0, place].softmax(-1)
    found = run(text, tokenizer_kwargs={"padding": padding_of(config)})
    return number(max(abs(each["score"] - exact[each["token"]].item()) for each in found))


def text_classification(subject: Subject) -> str:
    """Compare probabilities with those of the logits."""
    run = subject.pipeline("text-classification")
    config = run.model.config
    exact = subject.load("AutoModelForSequenceClassification")(**subject.tokenize(config)).logits.softmax(-1)
    found = run(TEXTS, top_k=None, padding=padding_of(config), truncation=True)
    pairs = [(row, each) for row, scores in zip(exact, found, strict=True) for each in scores]
    return number(max(abs(each["score"] - row[config.label2id[each["label"]]].item()) for row, each in pairs))


def token_classification(subject: Subject) -> str:
    """Compare probabilities of a text's tokens, which this pipeline does not pad, with those of the logits."""
    run = subject.pipeline("token-classification")
    batch, places = run.tokenizer(TEXTS[0], return_tensors="pt"), run.model.config.label2id
    exact = subject.load("AutoModelForTokenClassification")(**batch).logits[0].softmax(-1)
    found = run(TEXTS[0], ignore_labels=[])
    return number(max(abs(each["score"] - exact[each["index"], places[each["entity"]]].item()) for each in found))


def bfloat16(subject: Subject) -> str:
    """Return the smallest cosine with the vectors in float32."""
    vector = subject.outputs(subject.load(dtype=torch.bfloat16))["vector"]
    return f"cosine {(vector * subject.right()['vector']).sum(1).min().item():.6f}"


def compiled(subject: Subject) -> str:
    """Compile by inductor where there is a C++ compiler, else by the backend that only traces."""
    backend = "inductor" if shutil.which("g++") or shutil.which("clang++") else "eager"
    return f"{subject.compare(torch.compile(subject.load(), backend=backend))} (backend {backend})"


def lora(subject: Subject) -> str:
    """Add an empty adapter, which changes nothing; fill it: it is the same once saved and loaded, and once merged."""
    from peft import LoraConfig, PeftModel, get_peft_model

    adapted = get_peft_model(subject.load(), LoraConfig(**LORA)).eval()
    added = subject.compare(adapted)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    filled = subject.outputs(adapted)
    moved = difference(filled, subject.right())
    adapted.save_pretrained(subject.scratch / "adapter")
    again = PeftModel.from_pretrained(subject.load(), subject.scratch / "adapter").eval()
    loaded = difference(subject.outputs(again), filled)
    merged = difference(subject.outputs(again.merge_and_unload()), filled)
    return f"added {added}, moves it by {moved}, loaded {loaded}, merged {merged}"


def next_to_the_package(subject: Subject) -> str:
    """Import the package first: it registers its own classes, which then win over the folder's code."""
    import modeling_m2bert

    model = subject.load()
    if type(model) is not modeling_m2bert.M2BertModel:
        raise RuntimeError(f"the folder's {type(model)} was loaded")
    return subject.compare(model)


class Way(NamedTuple):
    """What runs, the packages it needs besides torch and transformers and those it must do without, and where."""

    run: Callable[[Subject], str | None]
    needs: tuple[str, ...] = ()
    without: tuple[str, ...] = OURS
    environment: dict = {}
    only: str = ""  # end of the class that was saved


OFFLINE = {"HF_HUB_OFFLINE": "1"}  # and by its id, from a cache
SENTENCES = ("sentence-transformers",)
WAYS = {
    "AutoModel, without this package": Way(auto_model),
    "the saved class": Way(own_class),
    "SentenceTransformer": Way(sentence_transformer, SENTENCES),
    'pipeline("feature-extraction")': Way(feature_extraction),
    'pipeline("fill-mask")': Way(fill_mask, only="ForMaskedLM"),
    'pipeline("text-classification")': Way(text_classification, only="ForSequenceClassification"),
    'pipeline("token-classification")': Way(token_classification, only="ForTokenClassification"),
    'dtype="auto"': Way(partial(auto_model, dtype="auto")),
    'device_map="cpu"': Way(partial(auto_model, device_map="cpu"), ("accelerate",)),
    'device_map="disk"': Way(on_disk, ("accelerate",)),
    "offload": Way(offloaded, ("accelerate",)),
    "bfloat16": Way(bfloat16),
    "torch.compile": Way(compiled),
    "peft: LoRA": Way(lora, ("peft",)),
    "without triton": Way(auto_model, without=(*OURS, "triton")),
    "without a GPU": Way(auto_model, environment={"CUDA_VISIBLE_DEVICES": ""}),
    "beside this package, imported first": Way(next_to_the_package, ("m2bert",), without=()),
    "offline, AutoModel by Hub id": Way(auto_model, environment=OFFLINE),
    "offline, SentenceTransformer by Hub id": Way(sentence_transformer, SENTENCES, environment=OFFLINE),
    FROM_HUB: Way(auto_model),
}


def versions_of(packages) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    installed = {found.name for found in metadata.distributions()}
    return {name: metadata.version(name) for name in packages if name in installed}


def start(what: str, way: Way, subject: Subject) -> str:
    """Return the outcome of a way, tried in a process of its own: the last line that it prints."""
    if missing := {*way.needs} - versions_of(way.needs).keys():
        return f"absent: {', '.join(missing)}"
    command = [sys.executable, "-P", __file__, CHILD, ",".join(way.without), what, *map(str, subject)]
    own = {"HF_HOME": str(subject.scratch / "hf"), "TORCHINDUCTOR_CACHE_DIR": str(subject.scratch / "inductor")}
    environment = os.environ | ({} if what == FROM_HUB else own) | way.environment
    done = subprocess.run(command, capture_output=True, text=True, cwd=subject.scratch, env=environment)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["no output"]
    return f"failed: {lines[-1][:200]}" if done.returncode else lines[-1]


def rows(folder: Path, chosen: list[str], hub_id: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (class, way, versions, outcome) of every way that fits the folder."""
    config = json.loads((folder / "config.json").read_text())
    saved = config["architectures"][0]
    title = f"{saved}, {config['padding']}"
    with tempfile.TemporaryDirectory() as scratch:
        here = Subject(str(folder.resolve()), "", Path(scratch, "expected.safetensors"), Path(scratch))
        repository = Path(scratch, "hf", "hub", "models--organization--name")  # as if downloaded before
        shutil.copytree(folder, repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        cached = here._replace(name="organization/name", revision=COMMIT)
        name, revision = hub_id.split("@")
        on_hub = here._replace(name=name, revision=revision)
        outcome = start("expect", Way(expect), here)
        if not here.expected.is_file():
            yield title, "AutoModel", "", outcome
            return
        for what in chosen:
            way = WAYS[what]
            subject = on_hub if what == FROM_HUB else cached if way.environment == OFFLINE else here
            if saved.endswith(way.only) and subject.name:
                versions = versions_of(["torch", "transformers", *way.needs])
                yield title, what, ", ".join(map(" ".join, versions.items())), start(what, way, subject)


def main() -> int:
    """Print the table; return 1 if a way failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--ways", default="", help="some of them: beginnings of their names, with commas between")
    parser.add_argument("--hub-id", metavar="ID@COMMIT", default="@", help="of the same model on the Hub, to load too")
    asked = parser.parse_args()
    for beginning in asked.ways.split(","):
        if not any(what.startswith(beginning) for what in WAYS):
            parser.error(f"--ways {beginning!r} begins none of: {'; '.join(WAYS)}")
    chosen = [what for what in WAYS if what.startswith(tuple(asked.ways.split(",")))]
    failed = False
    print("| class, padding | way | versions | outcome |\n|---|---|---|---|")
    for folder in asked.folders:
        for row in rows(folder, chosen, asked.hub_id):
            print("|", " | ".join(cell.replace("|", "/") for cell in row), "|", flush=True)
            failed |= row[-1].startswith("failed")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        what, name, revision, *folders = sys.argv[3:]
        print((WAYS[what].run if what in WAYS else expect)(Subject(name, revision, *map(Path, folders))))
    else:
        sys.exit(main())
