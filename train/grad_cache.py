"""Encode texts, and run forward and backward of a loss over their vectors.

`full_step` has the graph of all texts in memory at once. `cached_step` has that of a chunk at a time, by gradient
caching (Gao et al., 2021):

1. Encode all texts without a graph.
2. Compute the loss on these vectors, and its gradient with respect to each of them.
3. Encode every chunk again with the same dropout, and send the gradients of its vectors back through the model.

So time limits how many texts the loss compares, not memory.

The processes share one loss. Each encodes its own texts and computes the loss over the vectors of all processes. Its
gradients reach only its own texts. They are multiplied by the number of processes, since data parallelism averages
over these.
"""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .distributed import gather_lists, gather_rows, split_indices

# The loss of a batch: vectors (Q, W) of all processes' queries, and (D, W) of their documents -> scalar.
Objective = Callable[[Tensor, Tensor], Tensor]


def encode(model: torch.nn.Module, rows: list[np.ndarray], pad_id: int, device: torch.device) -> Tensor:
    """Return the vectors (B, W) of rows of token ids, not normalized, in one forward. Rows are padded on the right."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True, padding_value=pad_id)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return model(input_ids=ids.to(device), attention_mask=mask.long().to(device)).pooler_output


def token_chunks(rows: list[np.ndarray], budget_tokens: int) -> list[np.ndarray]:
    """Return chunks of row indices, longest rows first. A chunk has at most `budget_tokens` tokens once it is padded. A
    row longer than that is a chunk of its own."""
    lengths = np.array([len(row) for row in rows])
    order, chunks, first = np.argsort(-lengths, kind="stable"), [], 0
    while first < len(order):
        last = first + max(1, budget_tokens // int(lengths[order[first]]))
        chunks.append(order[first:last])
        first = last
    return chunks


def with_repeats(chunks: list[np.ndarray]) -> list[tuple[np.ndarray, bool]]:
    """Return (chunk, True) for each chunk, then (first chunk, False) until every process has the same number.

    Sharded and synchronized models hang unless all processes run the same number of forwards.
    """
    repeats = max(gather_lists([len(chunks)])) - len(chunks)
    return [(chunk, True) for chunk in chunks] + [(chunks[0], False)] * repeats


@torch.no_grad()
def encode_shared(
    accelerator: Accelerator, model: torch.nn.Module, rows: list[np.ndarray], budget_tokens: int, pad_id: int
) -> Tensor:
    """Return the vectors (N, W) of N >= 1 rows, on the device and without a graph.

    Every process encodes its share, in forwards of at most `budget_tokens` padded tokens, and gets all vectors.
    """
    world = accelerator.num_processes
    own = list(split_indices(len(rows)))
    texts = [rows[i] for i in own] or rows[:1]  # a process without a text of its own runs forwards, too
    vectors = None
    for chunk, is_own in with_repeats(token_chunks(texts, budget_tokens)):
        encoded = encode(model, [texts[i] for i in chunk], pad_id, accelerator.device)
        if vectors is None:
            vectors = encoded.new_empty(len(texts), encoded.shape[1])
        if is_own:
            vectors[chunk] = encoded
    gathered, _ = gather_rows(vectors[: len(own)])
    order = [i for rank in range(world) for i in range(rank, len(rows), world)]  # of the rows in `gathered`
    result = torch.empty_like(gathered)
    result[order] = gathered
    return result


def full_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    queries: list[np.ndarray],
    documents: list[np.ndarray],
    objective: Objective,
    pad_id: int,
) -> Tensor:
    """Run one forward for the queries, one for the documents, and backward.

    Args:
        queries, documents: token ids of this process's texts, with special tokens. At least one query.
        objective: the loss over the vectors of all processes, which come in the order of ranks.

    Returns:
        The loss, a detached scalar, the same on all processes.
    """
    query_vectors = encode(model, queries, pad_id, accelerator.device)
    # A process without a document of its own runs the same number of forwards as the others.
    document_vectors = encode(model, documents or queries[:1], pad_id, accelerator.device)[: len(documents)]
    loss = objective(gather_rows(query_vectors)[0], gather_rows(document_vectors)[0])
    accelerator.backward(loss * accelerator.num_processes)
    return loss.detach()


def cached_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    queries: list[np.ndarray],
    documents: list[np.ndarray],
    objective: Objective,
    pad_id: int,
    chunk_tokens: int,
) -> Tensor:
    """Run `full_step` with gradient caching: only one chunk at a time has a graph.

    A chunk has at most `chunk_tokens` tokens with its padding, or is one text.
    """
    rows, device = queries + documents, accelerator.device
    chunks = with_repeats(token_chunks(rows, chunk_tokens))
    states, encoded = [], []
    with torch.no_grad():
        for chunk, _ in chunks:
            states.append(random_state(device))
            encoded.append(encode(model, [rows[i] for i in chunk], pad_id, device))
    state_after_forwards = random_state(device)
    vectors = torch.empty(len(rows), encoded[0].shape[1], dtype=encoded[0].dtype, device=device)
    for (chunk, is_own), part in zip(chunks, encoded, strict=True):
        if is_own:
            vectors[chunk] = part
    vectors.requires_grad_()
    query_vectors, document_vectors = vectors[: len(queries)], vectors[len(queries) :]
    loss = objective(gather_rows(query_vectors)[0], gather_rows(document_vectors)[0])
    (gradients,) = torch.autograd.grad(loss * accelerator.num_processes, vectors)
    for number, ((chunk, is_own), state) in enumerate(zip(chunks, states, strict=True), start=1):
        with nullcontext() if number == len(chunks) else accelerator.no_sync(model):
            set_random_state(state, device)
            again = encode(model, [rows[i] for i in chunk], pad_id, device)
            accelerator.backward((again * gradients[chunk]).sum() * float(is_own))
    set_random_state(state_after_forwards, device)
    return loss.detach()


def random_state(device: torch.device) -> list[Tensor]:
    """Return the states of torch's random generators: that of the CPU and, if there is one, of the accelerator."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def set_random_state(states: list[Tensor], device: torch.device):
    """Set torch's random generators to the states that `random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])
