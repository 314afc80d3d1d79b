"""Masked-language-model pretraining (paper section 4.2): the body of train/mlm.py."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from accelerate.utils import send_to_device
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerBase

from .cli import ready
from .distributed import sum_over_processes
from .initialization import make_model, unigram_start_
from .text.mixture import (
    IGNORE,
    HeldOut,
    Masking,
    MixtureBatches,
    SourceData,
    held_out_examples,
    observed_shares,
    open_source,
    tokenize_source,
)
from .text.sources import Source, parse_sources
from .text.tokens import TokenStore, is_held_out, text_hash
from .tokenizer import cached_wordpiece, load_tokenizer
from .trainer import data_folder, fit, run
from .verified_files import TOKENIZER, building, read_prepared, write_prepared

logger = logging.getLogger(__name__)

PYDOCS_ALONE = [{"path": None}]  # the default of data.sources


class TrainingTexts:
    """The training texts of local sources, without those held out, read from disk each time they are iterated."""

    def __init__(self, sources: list[Source]):
        self.sources = sources

    def __iter__(self) -> Iterator[str]:
        for source in self.sources:
            texts, held_out = source.splits()[source.split], set()
            if source.validation_split is None:
                hashes = np.array([text_hash(text) for text in texts if text.strip()], dtype=np.uint64)
                held_out = {*hashes[is_held_out(hashes)].tolist()}
            yield from (text for text in texts if not held_out or text_hash(text) not in held_out)

    def identity(self) -> list:
        """Return what changes when the texts may have changed."""
        return [[one.splits()[one.split].identity(), one.validation_split is None] for one in self.sources]


def read_sources(config) -> tuple[list[Source], PreTrainedTokenizerBase, dict[str, list[TokenStore]]]:
    """Return the sources, the tokenizer, and the tokens of each source where `data.prepared` has them.

    The tokenizer is the prepared one, else that of `tokenizer.path`, else of the checkpoint, else one trained on the
    sources, once.
    """
    if config.data.prepared is not None:
        folder = Path(config.data.prepared)
        arrays, content = read_prepared(folder, "mlm")
        if config.data.sources not in (PYDOCS_ALONE, content["data.sources"]):
            raise ValueError(f"data.prepared={folder} was made of other data.sources; leave them out, or prepare again")
        sources = [Source.model_validate(source) for source in content["sources"]]
        stores = {
            name: [TokenStore.of(arrays[file], fingerprint) for file, fingerprint in files.items()]
            for name, files in content["stores"].items()
        }
        return sources, load_tokenizer(folder / TOKENIZER), stores
    sources = parse_sources(config.data.sources, data_folder)
    for source in sources:
        for texts in () if source.on_hub else source.splits().values():
            texts.check()
    path = config.tokenizer.path or config.model.path
    if path is not None:
        return sources, load_tokenizer(path), {}
    return sources, cached_wordpiece(TrainingTexts(sources), config.tokenizer.vocab_size, config.data.token_cache), {}


def write_data(config):
    """Write the tokens of all sources and the tokenizer into the folder `prepare`, which `data.prepared` reads."""
    sources, tokenizer, _ = read_sources(config)
    arrays, stores = {}, {}
    for source in sources:
        made = tokenize_source(source, tokenizer, config.data.token_cache)
        stores[source.name] = {}
        for store in made:
            file = f"text{len(arrays)}"
            stores[source.name][file] = store.fingerprint
            arrays[file] = {"tokens": store.tokens, "lengths": store.lengths, "hashes": store.hashes}
    dumped = [source.model_copy(update={"path": str(source.path)}).model_dump() for source in sources]
    content = {"data.sources": config.data.sources, "sources": dumped, "stores": stores}
    folder = Path(config.prepare)
    with building(folder) as scratch:
        write_prepared(folder, scratch, "mlm", arrays, content, tokenizer)
    logger.info("wrote %s; train from it with data.prepared=%s", folder, folder)


def token_counts(data: list[SourceData], vocab_size: int) -> np.ndarray:
    """Return how often each token occurs in the mixture, (vocab_size,): sources are weighted by their shares, and of a
    streamed one the texts read first are counted."""
    counts = [one.train.token_counts(vocab_size) for one in data]
    total = sum(count.sum() for count in counts)
    shares = [sum(one.source.shares.values()) for one in data]
    return sum(share * total / max(count.sum(), 1) * count for share, count in zip(shares, counts, strict=True))


def train_step(accelerator, model, batch: list[dict]):
    """Run forward and backward over the micro-batches of a step. Return the loss, the mean over all masked tokens of
    all micro-batches and processes, and counts of this process: tokens, masked_tokens, those of sources and kinds."""
    masked = sum(int((micro["labels"] != IGNORE).sum()) for micro in batch)
    masked_of_all = sum_over_processes([float(masked)])[0]
    if not masked_of_all:
        raise ValueError(
            "no token of a step was masked: the tokenizer (tokenizer.path) gives special tokens alone, or the batch is "
            "too small for data.mask_probability"
        )
    counts, loss = Counter(masked_tokens=masked), 0.0
    for number, micro in enumerate(batch):
        tensors = {name: value for name, value in micro.items() if name != "counts"}
        with nullcontext() if number == len(batch) - 1 else accelerator.no_sync(model):
            inputs = send_to_device(tensors, accelerator.device)
            part = model(**inputs, num_items_in_batch=masked_of_all).loss
            accelerator.backward(part * accelerator.num_processes)  # gradients are averaged over processes
        loss = loss + part.detach()
        counts.update(micro["counts"], tokens=int(micro["attention_mask"].sum()))
    return accelerator.reduce(loss, "sum"), dict(counts)


def main(argv: list[str], settings=None):
    """Train with these arguments, or write what is to be trained on if `prepare` names a folder. `settings` are of
    `ready`, if the arguments were checked before."""
    run("mlm", argv, settings or ready("mlm", argv), train, write_data)


def train(accelerator, config):
    """Train with the settings `config` and write the model, where no other run writes."""
    rank, world = accelerator.process_index, accelerator.num_processes
    with accelerator.local_main_process_first():
        sources, tokenizer, stores = read_sources(config)
        model, _ = make_model(AutoModelForMaskedLM, config.model, tokenizer)  # a bad one before the text is tokenized
        data = [
            open_source(
                source, config.data, tokenizer, seed=config.seed, rank=rank, world=world, stores=stores.get(source.name)
            )
            for source in sources
        ]
    masking = Masking(tokenizer)
    held_out = HeldOut(held_out_examples(data, config.evaluation.examples), config.data.batch_tokens, masking)
    if config.model.path is None and config.model.start == "identity":
        unigram_start_(model, token_counts(data, model.config.vocab_size))
    model.config.sparse_prediction = True
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    description = {one.source.name: one.description for one in data}

    def summarize(progress):
        model.config.sparse_prediction = False
        shares = observed_shares(data, progress.totals)
        for name, share in shares.items():
            logger.info("%s: %s", name, ", ".join(f"{what} {value:.4f}" for what, value in share.items()))
        fingerprint = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        return {"data_fingerprint": fingerprint, "data": description, "mixture": shares}

    fit(
        accelerator,
        config,
        model,
        tokenizer,
        steps=config.steps,
        data=description,
        summarize=summarize,
        batches=MixtureBatches(data, config.data, masking, seed=config.seed, rank=rank),
        train_step=partial(train_step, accelerator),
        evaluate=lambda model: held_out.evaluate(model, accelerator),
    )
