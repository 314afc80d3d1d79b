"""Settings of a run: every key with the values it takes, read from YAML files and `key=value` arguments.

configs/NAME-small.yaml of mlm, opl and align hold every key with a comment on its meaning. Another file names only what
differs from them, or from the file it `extends`.
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from m2bert import files as readers
from m2bert.schema import Schema, checked
from m2bert.terminal import nearest

from .text.sources import names_split, refuse_test

PYDOCS = Path("runs") / "pydocs"  # the folder of a source without a path
METRIC_PACKAGES = ("pytrec_eval", "evaluate", "datasets")  # of development scores
SHORTEST_TOKENS = 10  # of a variable-length pretraining example, [CLS] and [SEP] included

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
AtLeast3 = Annotated[int, Field(ge=3)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[list[str], Field(min_length=1)]


class ModelSettings(Schema):
    path: str | None
    start: Literal["standard", "identity"]
    architecture: dict[str, Any]  # fields of M2BertConfig, as in new_model; `check_model`
    new_model: dict[str, Any]


class TokenizerSettings(Schema):
    path: str | None
    vocab_size: AtLeast1


class OptimSettings(Schema):
    lr: Rate
    layer_lr: Rate | None
    pooler_lr: Rate | None
    filter_lr: Rate | None
    research_groups: bool
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    eps: Rate
    weight_decay: Rate
    warmup_share: Share
    clip_norm: Annotated[float, Field(gt=0)]


class RunSettings(Schema):
    """Keys that all entry points have."""

    output_dir: Annotated[str, Field(min_length=1)]
    overwrite: bool
    resume: bool
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    steps: AtLeast0
    log_every: AtLeast1
    checkpoint_every: AtLeast0
    checkpoint_keep: AtLeast1
    precision: Literal["no", "bf16", "fp16", "fp8"] | None
    compile: bool
    gradient_checkpointing: bool
    tracker: str | None
    tokenizer: TokenizerSettings
    optim: OptimSettings
    prepare: str | None

    def contradictions(self) -> list[str]:
        """Return what is wrong between keys that are right each by itself."""
        wrong, filter_lr = [], self.optim.filter_lr
        if self.optim.research_groups and filter_lr is not None:
            wrong.append(f"optim.filter_lr={filter_lr} is the filters' rate, as is research_groups=true; set one")
        if self.prepare is not None and self.data.prepared is not None:
            wrong.append(f"prepare={self.prepare} makes what data.prepared names; set one")
        return wrong

    @model_validator(mode="after")
    def _keys_fit(self):
        if wrong := self.contradictions():
            raise ValueError("; ".join(wrong))
        return self


class MlmData(Schema):
    sources: Annotated[list[Any], Field(min_length=1)]  # `sources.Source`
    max_tokens: Annotated[int, Field(ge=SHORTEST_TOKENS)]
    batch_tokens: AtLeast1
    accumulate: AtLeast1
    mask_probability: Annotated[float, Field(gt=0, lt=1)]
    token_cache: str
    prepared: str | None


class MlmEvaluation(Schema):
    every: AtLeast0
    examples: AtLeast1


class MlmSettings(RunSettings):
    """Every key of train/mlm.py."""

    model: ModelSettings
    data: MlmData
    evaluation: MlmEvaluation

    def contradictions(self):
        wrong, data = super().contradictions(), self.data
        if data.batch_tokens < data.max_tokens:
            wrong.append(f"data.batch_tokens={data.batch_tokens} holds no example of data.max_tokens={data.max_tokens}")
        return wrong


class OplModelSettings(ModelSettings):
    idf_start: bool


class Lora(Schema):
    rank: AtLeast0
    alpha: AtLeast1


class OplData(Schema):
    path: str | None
    tasks: Names | None
    triples: str | None
    triples_config: str | None
    triples_limit: AtLeast1 | None
    development_split: str | None
    development_tasks: Names | None
    development_share: Annotated[float, Field(gt=0, lt=1)]
    development_documents: AtLeast0
    form: Literal["pairs", "grouped", "all"]
    batch_size: AtLeast1
    negatives: AtLeast0
    negatives_path: str | None
    document_tokens: AtLeast3
    document_window: Literal["random", "first"]
    query_tokens: AtLeast3 | None
    query_dropout: bool
    passage_share: Share
    passages_per_document: AtLeast1
    passage_tokens: Annotated[list[AtLeast1], Field(min_length=2, max_length=2)]
    chunk_tokens: AtLeast3 | None
    prepared: str | None


class Loss(Schema):
    name: Literal["opl", "mnrl", "prototype"]
    positive_weight: Rate
    temperature: Annotated[float, Field(gt=0)]
    teacher: str | None
    teacher_cache: str


class OplEvaluation(Schema):
    every: AtLeast0
    batch_tokens: AtLeast1
    document_tokens: AtLeast3 | None
    select: bool


class OplSettings(RunSettings):
    """Every key of train/opl.py."""

    epochs: Annotated[float, Field(gt=0)] | None
    model: OplModelSettings
    lora: Lora
    data: OplData
    loss: Loss
    evaluation: OplEvaluation

    def contradictions(self):
        wrong, data, loss = super().contradictions(), self.data, self.loss
        check_splits(data)
        if data.passage_tokens != sorted(data.passage_tokens):
            wrong.append(f"data.passage_tokens={data.passage_tokens} must be [shortest, longest]")
        if self.epochs is not None and data.passage_share >= 1:
            wrong.append(f"epochs={self.epochs} counts labeled queries; data.passage_share=1 leaves none; set steps")
        if self.lora.rank and self.model.path is None:
            wrong.append(f"lora.rank={self.lora.rank} changes a checkpoint; name one as model.path")
        if loss.name == "mnrl" and data.form == "pairs":
            wrong.append("loss.name=mnrl compares documents of one query; set data.form=all or grouped")
        whole_texts = data.document_window == "first" and not data.passage_share and not data.query_dropout
        if loss.name == "prototype" and (loss.teacher is None or not whole_texts):
            wrong.append(
                "loss.name=prototype imitates a loss.teacher's vectors of whole texts; name one, and set "
                "data.document_window=first, data.passage_share=0 and data.query_dropout=false"
            )
        return wrong


class AlignModelSettings(OplModelSettings):
    teacher_embeddings: bool


class AlignData(Schema):
    sources: Annotated[list[Any], Field(min_length=1)]  # `sources.Source`
    chars: AtLeast1 | None
    max_tokens: Annotated[int, Field(ge=SHORTEST_TOKENS)]
    stretch_tokens: AtLeast3
    span_tokens: Annotated[list[AtLeast1], Field(min_length=2, max_length=2)]
    piece_tokens: AtLeast1 | None
    batch_tokens: AtLeast1
    prepared: str | None


class AlignLoss(Schema):
    teacher: str | None
    teacher_cache: str
    score_weight: Rate
    temperature: Annotated[float, Field(gt=0)]
    piece_weight: Rate


class AlignEvaluation(Schema):
    every: AtLeast0
    chars: AtLeast1
    batch_tokens: AtLeast1


class AlignSettings(RunSettings):
    """Every key of train/align.py."""

    model: AlignModelSettings
    data: AlignData
    loss: AlignLoss
    evaluation: AlignEvaluation

    def contradictions(self):
        wrong, data = super().contradictions(), self.data
        if data.span_tokens != sorted(data.span_tokens):
            wrong.append(f"data.span_tokens={data.span_tokens} must be [shortest, longest]")
        if data.stretch_tokens > data.max_tokens - 2:
            wrong.append(f"data.stretch_tokens={data.stretch_tokens} exceeds data.max_tokens={data.max_tokens} - 2")
        return wrong


def check_splits(data) -> None:
    """Raise ValueError if the section `data` of a retrieval run would train or select on the test split, or select on
    the training split."""
    for key in ("development_split", "triples", "negatives_path"):
        refuse_test(f"data.{key}", getattr(data, key))
    split, wrong = data.development_split, None
    if split is None and data.development_tasks is not None:
        wrong = f"data.development_tasks={data.development_tasks} needs data.development_split; name it"
    elif split is not None and names_split(split, "train"):
        wrong = f"data.development_split={split} is what is trained on; name another, or null to carve one"
    if wrong:
        raise ValueError(wrong)


SCHEMAS = {"mlm": MlmSettings, "opl": OplSettings, "align": AlignSettings}


def is_local(path: str | None) -> bool:
    """Return whether data.path is meant as a folder, and not as the Hub's ORGANIZATION/NAME."""
    return path is not None and (path.count("/") != 1 or Path(path).exists() or Path(path).parent.is_dir())


def load_settings(name: str, argv: list[str]) -> RunSettings:
    """Return the settings of `mlm`, `opl` or `align`. Needs no torch, but for a dry run.

    Args:
        argv: `[--config FILE] [--dry-run] [section.key=value ...]`, the last one counts; FILE is a path, or a name in
            `configs/`. With `--dry-run` the run is scaled down to two steps on stand-in data (`dry_run.scale_down`).
    """
    values, where = read_yaml(f"{name}-small"), "configuration"
    arguments = iter([argument for argument in argv if argument != "--dry-run"])
    for argument in arguments:
        if argument == "--config":
            file = next(arguments, "")
            layers, where = read_chain(file), f"{where} {file}"
        elif "=" in argument and not argument.startswith("-"):
            key, value = argument.split("=", 1)
            layer = readers.parse_yaml(value, f"argument {argument!r}")
            for part in reversed(key.split(".")):
                layer = {part: layer}
            layers = [layer]
        else:
            raise ValueError(f"argument {argument!r} is not understood; use --config FILE and section.key=value")
        for layer in layers:
            if "steps" in layer and "epochs" in values:
                layer = {"epochs": None} | layer  # epochs would replace the steps
            values = merged(values, layer)
    settings = checked(SCHEMAS[name], values, where)
    if "--dry-run" in argv:
        from .dry_run import scale_down

        settings = checked(SCHEMAS[name], scale_down(settings.model_dump()), "dry run")
    return settings


def merged(base: dict, update: dict) -> dict:
    """Return `base` with `update` laid over it, section by section."""
    sections = {
        key: merged(base[key], value)
        for key, value in update.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | update | sections


def read_chain(name: str, above: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Return a YAML file and, before it, the files it extends: found beside it, by path, or among the shipped."""
    if name in above:
        raise ValueError(f"configuration {name} extends itself ({' -> '.join([*above, name])}); remove one `extends`")
    content = read_yaml(name)
    if "extends" not in content:
        return [content]
    base = str(content.pop("extends"))
    beside = Path(name).parent / base
    return [*read_chain(str(beside) if beside.is_file() else base, (*above, name)), content]


def read_yaml(name: str) -> dict[str, Any]:
    """Read a YAML file by path, or by name among the shipped configurations."""
    if Path(name).is_file():
        return readers.read_yaml(name)
    shipped = files("m2bert.train").joinpath("configs")
    file = shipped.joinpath(name if name.endswith(".yaml") else f"{name}.yaml")
    if not file.is_file():
        known = [path.name.removesuffix(".yaml") for path in shipped.iterdir()]
        raise ValueError(
            f"configuration {name!r} is neither a file nor one of the shipped configurations{nearest(name, known)}"
        )
    return readers.read_yaml(file)
