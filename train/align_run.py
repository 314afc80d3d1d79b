"""Training toward a teacher's vectors of stretches: what train/align.py runs once its arguments are checked."""

import hashlib
import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.nn import functional as F
from transformers import AutoModel

from m2bert import M2BertConfig
from m2bert.eval.progress import counted
from m2bert.files import read_json

from .alignment import ALL_PIECES, AlignBatches, AlignedTexts, StretchEncoder, Windows, align, joined, shard_key, shards
from .cli import ready
from .distributed import sum_over_processes
from .initialization import idf_start_, inverse_document_frequency, make_model, make_tokenizer
from .losses import alignment_loss
from .settings import read_yaml
from .teacher import teacher_hash
from .text.sources import parse_source
from .text.tokens import is_held_out, text_hash
from .tokenizer import load_tokenizer, tokenizer_fingerprint
from .trainer import data_folder, fit, make_accelerator, run
from .verified_files import TOKENIZER, building, prepared_once, read_prepared, write_prepared

logger = logging.getLogger(__name__)

PARTS = ("train", "held_out")
MADE_WITH = (
    "sources",
    "chars",
    "stretch_tokens",
    "span_tokens",
    "piece_tokens",
)  # keys of `data` that a prepared folder remembers


class Teacher:
    """A sentence-transformers model, loaded when a vector is needed that is not kept on disk.

    Args:
        width: of the student's vectors. A teacher of another width is refused before it reads a text.
    """

    def __init__(self, name: str, accelerator, width: int | None = None):
        self.name, self.accelerator, self.width, self._encoder = name, accelerator, width, None

    @property
    def encoder(self):
        """The model as an encoder of the evaluation."""
        if self._encoder is None:
            from m2bert.eval.encoders.sentence_transformer import SentenceTransformerEncoder

            self._encoder = SentenceTransformerEncoder(self.name, str(self.accelerator.device))
            if self.width is not None:
                check_width(self.width, self._encoder.dimensions)
        return self._encoder

    def queries(self, texts: list[str]) -> np.ndarray:
        """See `alignment.Teacher.queries`. They are computed in the precision of the run."""
        with self.accelerator.autocast():
            return self.encoder.encode(texts, "query")

    def chunks(self, texts: list[str], piece_tokens: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `alignment.Teacher.chunks`. One pass gives the vector of a text and those of its pieces."""
        with self.accelerator.autocast():
            if piece_tokens is None:
                rows = self.encoder.encode(texts, "document")
                return rows, rows[:0], np.zeros(len(texts), dtype=np.int64)
            if problem := self.encoder.parts_problem:
                raise ValueError(f"the teacher gives no vectors of pieces: {problem}; set data.piece_tokens=null")
            (rows, _), (pieces, counts) = self.encoder.encode_parts(texts, [1, ALL_PIECES], piece_tokens)
        return rows, pieces, counts

    def token_vectors(self, tokenizer) -> np.ndarray:
        """Return the vectors of a tokenizer's tokens, each read as a text of its own, (V, W) float32."""
        vocabulary = tokenizer.get_vocab()
        texts = [""] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            texts[number] = tokenizer.convert_tokens_to_string([token]).removeprefix("##").strip() or token
        with self.accelerator.autocast():
            return self.encoder.encode(texts, "query")


def check_width(student: int, teacher: int) -> None:
    """Raise ValueError if the vectors of student and teacher have different widths."""
    if student != teacher:
        raise ValueError(
            f"the model's vectors have width {student}, and the teacher's {teacher}; choose "
            "model.new_model.hidden_size and num_pooling_heads so that their product is the teacher's width"
        )


def check_prepared(folder: Path, content: dict, config) -> None:
    """Raise ValueError if a prepared folder was made of other data, or with another teacher, than the settings name."""
    defaults, made = read_yaml("align-small"), content.get("data", {})
    for section, key in [("loss", "teacher"), *(("data", key) for key in MADE_WITH)]:
        value = getattr(getattr(config, section), key)
        if value not in (defaults[section][key], made.get(key, value)):
            raise ValueError(
                f"data.prepared={folder} was made with {section}.{key}={made[key]}, not {value}; prepare it again"
            )


def read_data(accelerator, config, tokenizer):
    """Return the texts to train on, those held out, the tokenizer, and the embeddings that the model begins with,
    (vocabulary, width), or None."""
    if config.data.prepared is not None:
        folder = Path(config.data.prepared)
        arrays, content = read_prepared(folder, "align")
        check_prepared(folder, content, config)
        texts = [AlignedTexts(**arrays[name]) for name in PARTS]
        start = arrays.get("embeddings", {}).get("words")
        return *texts, load_tokenizer(folder / TOKENIZER), start
    texts = [[], []]
    for number, entry in enumerate(config.data.sources):
        source = parse_source(entry, f"data.sources[{number}]", data_folder)
        read = [[text for text in one if text.strip()] for one in source.splits().values()]
        if not read[0]:
            raise ValueError(f"data.sources[{number}]: {source.path} has no text to train on")
        if len(read) == 1:
            held_out = is_held_out(np.array([text_hash(text) for text in read[0]], dtype=np.uint64))
            read = [[text for text, held in zip(read[0], held_out, strict=True) if held == part] for part in (0, 1)]
        for part, more in zip(texts, read, strict=True):
            part += more
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, None, texts[0])
    if not tokenizer.is_fast or None in (tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise ValueError("the tokenizer (tokenizer.path) must be a fast one with [CLS] and [SEP]; name another")
    new = config.prepare is not None or config.model.path is None  # embeddings of a checkpoint stay
    student = student_config(config.model)
    teacher = Teacher(config.loss.teacher, accelerator, student.projection_dim)
    limits = config.data.chars, config.evaluation.chars
    with accelerator.main_process_first():
        start = None
        if config.model.teacher_embeddings and new:
            if config.prepare is None:
                check_embeddings(student.hidden_size, teacher.encoder.dimensions)
            start = teacher.token_vectors(tokenizer)
        parts = [shards(part, limit) for part, limit in zip(texts, limits, strict=True)]
        made_by = teacher_hash(config.loss.teacher), tokenizer_fingerprint(tokenizer)
        chars = sum(len(text) for part in parts for shard in part for text in shard)
        with counted(chars, "teacher", "char", show=accelerator.is_main_process) as count:
            aligned = [aligned_texts(part, tokenizer, teacher, config, made_by, count) for part in parts]
    return *aligned, tokenizer, start


def aligned_texts(parts: list[list[str]], tokenizer, teacher, config, made_by: tuple[str, str], count) -> AlignedTexts:
    """Return the texts of shards with the teacher's vectors, made where `loss.teacher_cache` lacks them."""
    made = []
    for texts in parts:
        key = shard_key(texts, *made_by, config.data, config.seed, teacher.accelerator.mixed_precision)
        folder = Path(config.loss.teacher_cache) / key
        make = partial(align, texts, tokenizer, teacher, config.data, config.seed)
        with count.part(sum(map(len, texts))):
            arrays, _ = prepared_once(folder, "align", lambda scratch, make=make: (make(), {}))
        made.append(AlignedTexts(**arrays["texts"]))
    if not any(len(one.chunks) for one in made):
        raise ValueError("data.sources give no text to train on, or none to hold out; add some")
    return joined(made)


def student_config(settings) -> M2BertConfig:
    """Return the configuration of the model that the section `model` describes."""
    fields = settings.new_model if settings.path is None else read_json(Path(settings.path, "config.json"))
    return M2BertConfig(**fields | settings.architecture)


def check_embeddings(hidden_size: int, width: int) -> None:
    """Raise ValueError if vectors of this `width` cannot be the word embeddings of a model of this `hidden_size`."""
    if width != hidden_size:
        raise ValueError(
            f"the teacher's vectors have width {width}, and model hidden_size={hidden_size}; make them equal, or set "
            "model.teacher_embeddings=false"
        )


def start_embeddings_(model, rows: np.ndarray) -> None:
    """Replace the model's first word embeddings by these `rows`."""
    table = model.get_input_embeddings().weight
    check_embeddings(table.shape[1], rows.shape[1])
    with torch.no_grad():
        table[: len(rows)] = torch.from_numpy(rows).to(table)


def write_data(config):
    """Write texts, the teacher's vectors and the tokenizer into the folder `prepare`, which `data.prepared` reads."""
    path = config.tokenizer.path or config.model.path
    tokenizer = make_tokenizer(config.tokenizer, config.model.path, ()) if path else None
    *texts, tokenizer, start = read_data(make_accelerator(config), config, tokenizer)
    arrays = {name: part._asdict() for name, part in zip(PARTS, texts, strict=True)}
    if start is not None:
        arrays["embeddings"] = {"words": start}
    folder = Path(config.prepare)
    with building(folder) as scratch:
        made = {"teacher": config.loss.teacher, **{key: getattr(config.data, key) for key in MADE_WITH}}
        write_prepared(folder, scratch, "align", arrays, {"data": made}, tokenizer)
    logger.info("wrote %s; train from it with data.prepared=%s", folder, folder)


def train_step(accelerator, loss, model, batch: dict):
    """Run forward and backward on a batch of `Windows.batch`. Return the loss, the mean over processes, and counts."""
    with accelerator.autocast():
        vectors = model(batch["ids"], batch["stretches"], batch["spans"], batch["pieces"])
    value = loss(*vectors, *(rows.to(accelerator.device) for rows in batch["teacher"]))
    accelerator.backward(value)
    tokens, span_tokens = (sum(map(len, batch[name])) for name in ("ids", "spans"))
    counts = {"tokens": tokens + span_tokens, "window_tokens": tokens, "stretches": len(batch["stretches"])}
    return accelerator.reduce(value.detach(), "mean"), counts


@torch.no_grad()
def evaluate(accelerator, batches: list[dict], model) -> dict[str, float]:
    """Return the mean cosines to the teacher of held-out stretches, of spans, and of pieces if there are any."""
    sums, counts = np.zeros(3), np.zeros(3)
    world, last = accelerator.num_processes, len(batches) - 1
    for index in range(accelerator.process_index, -(-len(batches) // world) * world, world):
        # all processes run equally many forwards, since a sharded model needs them all
        batch = batches[min(index, last)]
        with accelerator.autocast():
            vectors = model(batch["ids"], batch["stretches"], batch["spans"], batch["pieces"])
        if index <= last:
            pairs = zip(vectors, (rows.to(accelerator.device) for rows in batch["teacher"]), strict=True)
            sums += [F.cosine_similarity(*pair).sum().item() for pair in pairs]
            counts += [len(rows) for rows in batch["teacher"]]
    totals = sum_over_processes([*sums.tolist(), *counts.tolist()])
    names = ("chunk_cosine", "query_cosine", "piece_cosine")
    return {name: value / count for name, value, count in zip(names, totals[:3], totals[3:], strict=True) if count}


def main(argv: list[str], settings=None):
    """Train with these arguments, or write what is to be trained on if `prepare` names a folder. `settings` are of
    `ready`, if the arguments were checked before."""
    run("align", argv, settings or ready("align", argv), train, write_data)


def train(accelerator, config):
    """Train with the settings `config` and write the model, where no other run writes."""
    tokenizer = None
    if config.data.prepared is None and (config.tokenizer.path or config.model.path):  # a bad one before the data
        tokenizer = make_tokenizer(config.tokenizer, config.model.path, ())
        make_model(AutoModel, config.model, tokenizer)
    texts, held_out, tokenizer, start = read_data(accelerator, config, tokenizer)
    set_seed(config.seed)  # whether a teacher was loaded or not, the model begins and goes on alike
    model, new_tensors = make_model(AutoModel, config.model, tokenizer)
    check_width(model.config.projection_dim, texts.chunks.shape[1])
    longest = max(int(np.diff(part.edges).max()) for part in (texts, held_out))
    if longest > config.data.max_tokens - 2:
        raise ValueError(f"data.prepared has stretches of {longest} tokens; raise data.max_tokens to {longest + 2}")
    if config.model.idf_start and "pooler.token_log_weights.weight" in new_tensors:
        begins = texts.edges[texts.first[1:-1] - 1]  # where the second and later documents begin
        documents = np.split(texts.tokens, begins)
        idf = inverse_document_frequency([documents], model.config.vocab_size, tokenizer.all_special_ids)
        idf_start_(model.pooler.token_log_weights.weight, idf, config.seed)
    if start is not None and "embeddings.word_embeddings.weight" in new_tensors:
        start_embeddings_(model, start)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    special = tokenizer.cls_token_id, tokenizer.sep_token_id
    windows, held = (Windows(part, config.data.max_tokens, special) for part in (texts, held_out))
    rank, world = accelerator.process_index, accelerator.num_processes
    logger.info(
        "%d documents, %d tokens, %d stretches; held out %d, %d, %d",
        *(len(x) for part in (texts, held_out) for x in (part.counts, part.tokens, part.chunks)),
    )
    batches = [held.batch(one) for one in held.cut(held.epoch(None), config.evaluation.batch_tokens)]
    sha256 = hashlib.sha256()
    for array in (*texts, *held_out):
        sha256.update(np.ascontiguousarray(array))
    fingerprint = sha256.hexdigest()
    weights = {key: getattr(config.loss, key) for key in ("score_weight", "temperature", "piece_weight")}
    loss = partial(alignment_loss, **weights)
    fit(
        accelerator,
        config,
        StretchEncoder(model),
        tokenizer,
        steps=config.steps,
        data={"texts_sha256": fingerprint},
        summarize=lambda progress: {"data_fingerprint": fingerprint},
        batches=AlignBatches(windows, config.data.batch_tokens, config.seed, rank, world),
        train_step=partial(train_step, accelerator, loss),
        evaluate=partial(evaluate, accelerator, batches),
    )
