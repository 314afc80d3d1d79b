"""Models that a run begins with: a checkpoint or a new one, and starts that help a small model.

Standard initialization sends every text through random filters, and a small budget is spent on undoing that. Layers
started as the identity change nothing at first. Token weights and biases start at token frequencies.

    python -m m2bert.train.initialization [--config NAME_OR_FILE] [section.key=value ...] --output DIR

writes the new model of a configuration, untrained and without token frequencies, as a complete folder;
`tokenizer.path` must name a tokenizer, and `model.path` is not read.
"""

import argparse
import logging
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from m2bert.hub.checkpoint import load_strictly, read_config
from m2bert.hub.folder import check_output, check_tokenizer, write_folder
from m2bert.terminal import run_command

from .cli import check_model
from .settings import load_settings
from .tokenizer import load_tokenizer, train_wordpiece

logger = logging.getLogger(__name__)

MAX_IDF = 8.0
MIN_IDF = 0.05
DOCUMENT_FREQUENCY_TOKENS = 1024  # chunk length over which document frequency is counted
OTHER_HEADS = 0.02  # weight of a token outside its own head, relative to its weight inside
FRAME_ITERATIONS = 8


def make_model(auto_class, settings, tokenizer) -> tuple[PreTrainedModel, set[str]]:
    """Return the checkpoint `path` of the section `model`, or a new model, with the changes of `architecture`; and the
    names of its new tensors: all, or those of a pooler or layers that the checkpoint lacked.

    Raises:
        ValueError: a checkpoint with missing or unexpected tensors, or a tokenizer that does not fit it.
    """
    if settings.path is None:
        size = max(tokenizer.get_vocab().values()) + 1
        fields = {"vocab_size": -(-size // 8) * 8, "pad_token_id": tokenizer.pad_token_id}
        fields |= settings.new_model | settings.architecture
        model = auto_class.from_config(AutoConfig.for_model("m2bert", **fields))
        check_tokenizer(tokenizer, model.config.vocab_size)
        if settings.start == "identity":
            identity_start_(model)
        return model, set(model.state_dict())
    old = read_config(Path(settings.path)).num_hidden_layers
    added = range(old, settings.architecture.get("num_hidden_layers", old))
    may_miss = ("pooler.", *(f"{prefix}layers.{number}." for prefix in ("", "model.") for number in added))
    model, missing = load_strictly(auto_class, settings.path, may_miss=may_miss, **settings.architecture)
    check_tokenizer(tokenizer, model.config.vocab_size)
    if settings.start == "identity":
        for number in added:
            identity_layer_(model.base_model.layers[number])
        if model.base_model.pooler is not None and "pooler.context_log_weights.weight" in missing:
            torch.nn.init.zeros_(model.base_model.pooler.context_log_weights.weight)
    return model, missing


def make_tokenizer(settings, model_path: str | None, texts: Iterable[str]):
    """Return the tokenizer of `tokenizer.path`, else of the checkpoint, else one trained on the texts."""
    path = settings.path or model_path
    if path is not None:
        return load_tokenizer(path)
    logger.info("training a WordPiece tokenizer of %d tokens", settings.vocab_size)
    return train_wordpiece(texts, settings.vocab_size)


@torch.no_grad()
def identity_start_(model) -> None:
    """Make every layer the identity, and zero the vectors of positions and types, in place. Random ones are noise on
    every token's vector: 54.6 against 61.6 nDCG@10 before training on pydocs."""
    embeddings = model.base_model.embeddings
    if embeddings.position_embeddings is not None:
        embeddings.position_embeddings.weight.zero_()
    embeddings.token_type_embeddings.weight.zero_()
    for layer in model.base_model.layers:
        identity_layer_(layer)
    pooler = model.base_model.pooler
    if pooler is not None and hasattr(pooler, "context_log_weights"):
        pooler.context_log_weights.weight.zero_()


@torch.no_grad()
def identity_layer_(layer) -> None:
    """Make a layer the identity, in place: output projection I, residual skip 1, all other paths into the output 0.
    Gradients still reach every parameter after one step."""
    mixer = layer.mixer
    if mixer.residual_filter is None:
        raise ValueError("start='identity' needs residual_long_conv=True: it is the only skip around the gates")
    torch.nn.init.eye_(mixer.out_proj.weight)
    mixer.residual_filter.skip.fill_(1)
    for zero in (mixer.out_proj.bias, mixer.residual_filter.output_weight, mixer.filter.output_weight,
                 mixer.filter.skip, mixer.short_conv.bias, layer.mlp.down.weight, layer.mlp.down.bias):  # fmt: skip
        zero.zero_()


@torch.no_grad()
def unigram_start_(model, counts: np.ndarray) -> None:
    """Start the masked-LM decoder's bias at the log frequency of every token, in place, so that training does not
    first spend its steps on moving the tied embeddings in one common direction. To `counts`, (at most vocab_size,)
    occurrences in the training text, one is added."""
    bias = model.get_output_embeddings().bias
    smoothed = torch.ones(len(bias), dtype=torch.float64)
    smoothed[: len(counts)] += torch.from_numpy(np.asarray(counts, dtype=np.float64))
    bias.copy_((smoothed / smoothed.sum()).log())


def inverse_document_frequency(tasks: list[list[np.ndarray]], vocab_size: int, special_ids: list[int]) -> np.ndarray:
    """Return -log of the fraction of a task's 1024-token chunks that hold a token, in the task where it is most common,
    clipped to [MIN_IDF, MAX_IDF]; (vocab_size,) float32. Special tokens, which are in every text, get the minimum.
    `tasks` are the documents' token ids of each."""
    most = np.zeros(vocab_size)
    for documents in tasks:
        counts, chunks = np.zeros(vocab_size), 0
        for document in documents:
            for start in range(0, len(document), DOCUMENT_FREQUENCY_TOKENS):
                counts[np.unique(document[start : start + DOCUMENT_FREQUENCY_TOKENS])] += 1
                chunks += 1
        most = np.maximum(most, counts / max(chunks, 1))
    idf = (-np.log(np.maximum(most, 1e-9))).clip(MIN_IDF, MAX_IDF)
    idf[special_ids] = MIN_IDF
    return idf.astype(np.float32)


@torch.no_grad()
def idf_start_(weights: torch.Tensor, idf: np.ndarray, seed: int) -> None:
    """Start log weights of tokens, (V, K) for K heads, at the square root of the inverse document frequency, in place.

    A word's weights in query and document multiply to it, as in BM25. Each token has full weight in one head, chosen at
    random, so that the heads see different words.
    """
    generator = torch.Generator().manual_seed(seed)
    head = torch.randint(weights.shape[1], (weights.shape[0],), generator=generator)
    share = torch.full(weights.shape, OTHER_HEADS).scatter_(1, head[:, None], 1.0)
    log_idf = torch.full((weights.shape[0], 1), float(np.log(MAX_IDF)))
    log_idf[: len(idf), 0] = torch.from_numpy(np.log(idf))
    weights.copy_(log_idf / 2 + share.log())


def token_energy(tasks: list[list[np.ndarray]], idf: np.ndarray, saturation: float | None) -> np.ndarray:
    """Return the fraction that each token contributes to the square of a document's vector at `idf_start_`, averaged
    over documents and tasks; (vocab_size,) float64. `saturation` is `config.pooling_saturation`."""
    energy = np.zeros(len(idf))
    for documents in tasks:
        for document in filter(len, documents):
            tokens, counts = np.unique(document, return_counts=True)
            squares = idf[tokens] * (counts if saturation is None else np.log1p(counts / saturation)) ** 2
            energy[tokens] += squares / (squares.sum() * len(documents) * len(tasks))
    return energy


@torch.no_grad()
def frame_start_(embeddings: torch.Tensor, weights: torch.Tensor, energy: np.ndarray):
    """Spread the word embeddings (V, H) of each pooling head evenly over its dimensions, in place.

    A token is of the head where its log `weights` (V, K) are highest, and counts by its `token_energy`, (V,).
    The result is a tight frame (Benedetto & Fickus, 2003). The other words of a document are noise in its cosine with a
    query, and a tight frame has the least of it.

    The embeddings of a head are multiplied by S^(-1/2), S = sum_t energy_t e_t e_t^T, and scaled to one length,
    FRAME_ITERATIONS times. Their means stay zero, for the LayerNorm that follows.
    """
    length = embeddings.norm(dim=1).mean()
    heads = weights.argmax(1)
    energies = torch.zeros(len(embeddings), dtype=torch.float64)
    energies[: len(energy)] = torch.from_numpy(energy)
    for head in range(int(heads.max()) + 1):
        own = heads == head
        codes, own_energies = embeddings[own].double(), energies[own, None]
        for _ in range(FRAME_ITERATIONS):
            codes = torch.nn.functional.normalize(codes - codes.mean(1, keepdim=True), dim=1)
            values, vectors = torch.linalg.eigh(codes.T @ (own_energies * codes))
            scale = values.clamp(min=values.mean() / 1000).rsqrt()
            codes = codes @ (vectors * scale) @ vectors.T
        codes = torch.nn.functional.normalize(codes - codes.mean(1, keepdim=True), dim=1)
        embeddings[own] = (codes * length).to(embeddings.dtype)


def main(argv: list[str]):
    parser = argparse.ArgumentParser(
        prog="initialization",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--start", help="model.start: identity or standard")
    parser.add_argument("--output", required=True)
    arguments, rest = parser.parse_known_args(argv)
    rest += [f"model.start={arguments.start}"] if arguments.start else []
    classes, reasons = {"mlm": AutoModelForMaskedLM, "opl": AutoModel}, []  # opl starts from models of mlm too
    for name in classes:
        try:
            settings = load_settings(name, [*rest, "model.path=null"])
            break
        except ValueError as error:
            reasons.append(f"{name}: {error}")
    else:
        raise ValueError("; ".join(reasons))
    if settings.tokenizer.path is None:
        raise ValueError("tokenizer.path is null; name the folder of the tokenizer that the model is to be made for")
    check_output(arguments.output, overwrite=False)
    check_model(settings.model, {})
    disable_progress_bar()
    set_seed(settings.seed)
    tokenizer = load_tokenizer(settings.tokenizer.path)
    model, _ = make_model(classes[name], settings.model, tokenizer)
    output = write_folder(model, tokenizer, arguments.output)
    print(f"wrote {output}: a new {type(model).__name__} of {model.num_parameters():,} parameters")


if __name__ == "__main__":
    run_command("initialization", lambda: main(sys.argv[1:]))
