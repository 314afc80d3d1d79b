"""Compare a converted model with the reference implementation, and its vectors with those of `padding="masked"`."""

import copy
import logging
import math

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .names import Conversion
from .reference import reference_forward

logger = logging.getLogger(__name__)

TOLERANCE = 1e-9  # of float64; rounding alone stays far below, and any other formula far above
LONGEST_PARITY_TOKENS = 512
MASKED_BUDGET_TOKENS = 4096  # of padded texts; at least three of them
PARAGRAPH = (
    "The committee met on Tuesday to discuss the budget of the coming year. Several members asked how the cost of the "
    "new library had been estimated, and whether the old building could be sold. The treasurer answered that both "
    "figures were taken from a report of the previous spring. After a long debate the proposal was accepted with a "
    "small change. A second meeting was planned for the end of the month, when the architect will present her drawings "
    "and the residents may ask questions. "
)


def check_parity(conversion: Conversion, model: PreTrainedModel) -> dict:
    """Compare outputs of two random texts, one of them padded, with the reference implementation in float64.

    Args:
        model: the converted one, in float32, with padding="visible".

    Returns:
        Largest difference of every output, for the model in float64 and in float32; number and length of the texts.

    Raises:
        ValueError: the model in float64 is not the original, or in float32 its outputs are not finite.
    """
    config = conversion.config
    length = min(LONGEST_PARITY_TOKENS, config.max_position_embeddings)
    logger.info("comparing the model with the reference implementation on 2 texts of %d tokens", length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, length // 2 :], mask[1, length // 2 :] = config.pad_token_id or 0, 0
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    expected = reference_forward(conversion.original, conversion.options, **inputs)
    double = copy.deepcopy(model).double()
    double.load_state_dict(conversion.tensors)  # as they are in the file, not rounded to float32
    differences = {"float64": _differences(double, inputs, expected)}
    del double
    differences["float32"] = _differences(model, inputs, expected)
    if not all(value <= TOLERANCE for value in differences["float64"].values()):  # not a number is no agreement
        raise ValueError(
            f"the converted model is not the original: in float64 their outputs differ by {differences['float64']}; "
            "an option is not what the tensors were trained with (--config), or the tensors are damaged (not finite)"
        )
    if not all(map(math.isfinite, differences["float32"].values())):
        raise ValueError(
            "the converted model's outputs in float32 are not finite; the tensors are damaged, or too large for it"
        )
    return {"reference": "the original's formulas in float64", "texts": 2, "tokens": length} | differences


@torch.no_grad()
def _differences(model: PreTrainedModel, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of every output."""
    outputs = model(**inputs, output_hidden_states=True)
    found = dict(outputs) | {"last_hidden_state": outputs.hidden_states[-1]}
    return {name: (value - found[name]).abs().max().item() for name, value in expected.items()}


@torch.no_grad()
def compare_paddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict | None:
    """Compare the vector of a text padded to the maximum with padding="visible", as the original gives it, with its
    vector with padding="masked".

    Args:
        model: in float32, with padding="visible".
        tokenizer: if None, texts are random ids.

    Returns:
        The cosines for texts of several lengths; None if there is nothing to pad.
    """
    longest = model.config.max_position_embeddings
    lengths = [4**power for power in range(2, 16) if 4**power < longest]
    if not lengths:
        return None
    per_length = max(1, min(8, MASKED_BUDGET_TOKENS // (longest * len(lengths))))
    if longest * len(lengths) > MASKED_BUDGET_TOKENS:  # the shortest, one between, the longest
        lengths = sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})
    cosines = []
    what = f"comparing padding visible and masked, texts padded to {longest} tokens"
    with tqdm(total=per_length * len(lengths), desc=what, unit="text", leave=False) as bar:
        for tokens in lengths:
            found = []
            texts = _texts(per_length, tokens, model.config, tokenizer)
            for ids in texts:
                found.append(_cosine(model, ids[None]))
                bar.update()
            mean, shortest = sum(found) / len(found), min(len(ids) for ids in texts)
            cosines.append({"tokens": shortest, "texts": len(found), "mean": mean, "lowest": min(found)})
    what = "random ids" if tokenizer is None else "one English paragraph, repeated, begun at different sentences"
    return {"text": what, "cosine": cosines}


def _texts(number: int, tokens: int, config, tokenizer: PreTrainedTokenizerBase | None) -> list[Tensor]:
    """Return ids of `number` texts, each of `tokens` tokens, or fewer if the tokenizer takes several words as one."""
    if tokenizer is None:
        generator = torch.Generator().manual_seed(tokens)
        return list(torch.randint(config.vocab_size, (number, tokens), generator=generator))
    sentences = [f"{sentence}. " for sentence in PARAGRAPH.removesuffix(". ").split(". ")]
    repeats = 1 + tokens // len(sentences)  # a sentence has more than one token
    starts = [index % len(sentences) for index in range(number)]
    texts = ["".join(sentences[start:] + sentences[:start]) * repeats for start in starts]
    return [torch.tensor(ids) for ids in tokenizer(texts, truncation=True, max_length=tokens)["input_ids"]]


def _cosine(model: PreTrainedModel, ids: Tensor) -> float:
    """Return the cosine for one text (1, L). With padding="masked" its vector is that of the text without padding."""
    config = model.config
    padded = ids.new_full((1, config.max_position_embeddings), config.pad_token_id or 0)
    padded[:, : ids.shape[1]] = ids
    mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long()[None]
    vectors = [model(padded, mask).pooler_output, model(ids).pooler_output]
    return torch.cosine_similarity(*(vector.double() for vector in vectors)).item()
