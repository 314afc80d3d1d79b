"""From rows of token ids to vectors: padding, chunks of a token budget, and encoding shared by the processes."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from .distributed import gather_lists, gather_rows, split_indices


def pad_rows(rows: list[np.ndarray], pad_id: int) -> dict[str, Tensor]:
    """Rows padded on the right to the longest: input_ids and attention_mask (B, L) int64."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for target, filled, row in zip(ids, mask, rows, strict=True):
        target[: len(row)] = row
        filled[: len(row)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def encode(model: torch.nn.Module, rows: list[np.ndarray], pad_id: int, device: torch.device) -> Tensor:
    """Vectors of rows in one forward, (B, W), not normalised."""
    batch = {name: tensor.to(device) for name, tensor in pad_rows(rows, pad_id).items()}
    return model(**batch).pooler_output


def token_chunks(rows: list[np.ndarray], budget_tokens: int) -> list[np.ndarray]:
    """Indices of the rows by falling length, cut so that rows times longest row stays within the budget. A row longer
    than the budget makes a chunk of its own."""
    lengths = np.array([len(row) for row in rows])
    order, chunks, first = np.argsort(-lengths, kind="stable"), [], 0
    while first < len(order):
        last = first + max(1, budget_tokens // int(lengths[order[first]]))
        chunks.append(order[first:last])
        first = last
    return chunks


def with_repeats(chunks: list[np.ndarray]) -> list[tuple[np.ndarray, bool]]:
    """Chunks and whether they are the process's own. Where another process has more, the first is repeated: sharded
    and synchronised models hang unless all processes make the same number of forwards."""
    repeats = max(gather_lists([len(chunks)])) - len(chunks)
    return [(chunk, True) for chunk in chunks] + [(chunks[0], False)] * repeats


@torch.no_grad()
def encode_shared(
    accelerator: Accelerator, model: torch.nn.Module, rows: list[np.ndarray], budget_tokens: int, pad_id: int
) -> Tensor:
    """Vectors of rows, (N, W) on the device, without a graph. Every process encodes its share, in forwards of at most
    `budget_tokens` padded tokens, and gets the whole. N is at least 1."""
    world = accelerator.num_processes
    own = list(split_indices(len(rows)))
    texts = [rows[i] for i in own] or rows[:1]  # a process without a text makes as many forwards as the others
    vectors = None
    for chunk, is_own in with_repeats(token_chunks(texts, budget_tokens)):
        encoded = encode(model, [texts[i] for i in chunk], pad_id, accelerator.device)
        if vectors is None:
            vectors = encoded.new_empty(len(texts), encoded.shape[1])
        if is_own:
            vectors[chunk] = encoded
    gathered, _ = gather_rows(vectors[: len(own)])  # in the order of ranks: 0, world, 2 world, ..., 1, world + 1, ...
    result = torch.empty_like(gathered)
    result[[i for rank in range(world) for i in range(rank, len(rows), world)]] = gathered
    return result
