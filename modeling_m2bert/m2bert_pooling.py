"""Pool hidden states into one vector per text: `mean`, `weighted_mean`, `cls`, `cls_tanh`, `mean_tanh`."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context in which products of x's device keep the dtype of their inputs."""
    if torch.compiler.is_exporting():  # an exported program has no autocast, and ONNX no word for this
        return nullcontext()
    return torch.autocast("cpu" if x.device.type == "meta" else x.device.type, enabled=False)


def masked_mean(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over real positions: hidden_states (B, L, H), mask (B, L) bool -> (B, H) in float32 at least.

    A row without real positions gives zeros.
    """
    weights = mask.to(torch.promote_types(hidden_states.dtype, torch.float32))
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    with without_autocast(weights):
        return torch.einsum("bl,blh->bh", weights, hidden_states.to(weights.dtype))


def weighted_mean(hidden_states: Tensor, mask: Tensor, log_weights: Tensor) -> Tensor:
    """Return one weighted sum over the real positions for each head, concatenated.

        p_k = sum_t exp(w_tk) x_t / sum_tj exp(w_tj)

    The weights of all heads together sum to one. So a head that gives its tokens small weights has a short vector.

    Args:
        hidden_states: (B, L, H), x.
        mask: (B, L) bool.
        log_weights: (B, L, K), w, for K heads.

    Returns:
        (B, K * H) in float32 at least; a row without real positions gives zeros.
    """
    log_weights = log_weights.to(torch.promote_types(hidden_states.dtype, torch.float32))
    log_weights = log_weights.masked_fill(~mask[..., None], torch.finfo(log_weights.dtype).min)
    weights = log_weights.flatten(1).softmax(dim=1).unflatten(1, log_weights.shape[1:])
    weights = weights.masked_fill(~mask[..., None], 0)
    with without_autocast(weights):
        return torch.einsum("blk,blh->bkh", weights, hidden_states.to(weights.dtype)).flatten(1)


def occurrences(input_ids: Tensor, mask: Tensor) -> Tensor:
    """Count how often each token's id occurs among the real positions of its row.

    Maps input_ids (B, L) and mask (B, L) bool to (B, L) int64. The counts at padding have no meaning.
    """
    ids = input_ids.masked_fill(~mask, -1)
    ordered = ids.sort(dim=1).values
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


def log_saturation(counts: Tensor, saturation: float) -> Tensor:
    """Return the log weight of one occurrence of a token that occurs n times: log(log(1 + n / saturation) / n).

    So all n together weigh log(1 + n / saturation). As in BM25, a frequent word does not dominate those that occur
    once. `counts` (...) holds n, floating point and at least 1.
    """
    return (counts / saturation).log1p().log() - counts.log()


def hartley(size: int, like: Tensor) -> Tensor:
    """Return the orthonormal matrix of the discrete Hartley transform, (n, n) for n = `size`, as `like` in dtype.

        M_ij = (cos(2 pi i j / n) + sin(2 pi i j / n)) / sqrt(n)

    It exists for every n, is symmetric, and spreads what is at one place evenly over all n.
    """
    index = torch.arange(size, device=like.device)
    angles = (index[:, None] * index % size).to(like.dtype) * (2 * math.pi / size)
    return (angles.cos() + angles.sin()) / math.sqrt(size)


def random_signs(heads: int, features: int) -> Tensor:
    """Return the signs with which a new model rotates: (2, K, H) float32, 1 or -1, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randint(2, (2, heads, features), generator=generator, device="cpu") - 1


def rotate(pooled: Tensor, signs: Tensor) -> Tensor:
    """Rotate vectors, so that each number of the result is a sum of all numbers of its vector.

    The lengths of vectors and the angles between them stay. The first d numbers of rotated vectors are a random
    projection, whose cosines estimate those of the whole vectors.

    A vector is a matrix of its K heads and H features. In each of two rounds its numbers are multiplied by signs, and
    the columns and rows of the matrix transformed (`hartley`). These flat factors of a large rotation are Monarch
    matrices.

    Args:
        pooled: (B, K * H).
        signs: (2, K, H), random, 1 or -1.

    Returns:
        (B, K * H) in pooled's dtype.
    """
    _, heads, features = signs.shape
    x = pooled.unflatten(1, (heads, features))
    with without_autocast(x):
        for its in signs.to(x.dtype):
            x = hartley(heads, x) @ (x * its) @ hartley(features, x)
    return x.flatten(1)


class TokenWeights(nn.Embedding):
    """A log weight of every token id for each of K heads, (V, K)."""

    def __init__(self, vocab_size: int, heads: int, saturation: float | None):
        super().__init__(vocab_size, heads)
        self.saturation = saturation

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the log weights of tokens: input_ids (B, L), mask (B, L) bool -> (B, L, K) in float32 at least.

        With a saturation they depend on how often the token occurs, too.
        """
        log_weights = super().forward(input_ids)
        log_weights = log_weights.to(torch.promote_types(log_weights.dtype, torch.float32))
        if self.saturation is not None:
            counts = occurrences(input_ids, mask).clamp(min=1).to(log_weights.dtype)
            log_weights = log_weights + log_saturation(counts, self.saturation)[..., None]
        return log_weights


class LexicalPooler(nn.Module):
    """Pool word embeddings of its own, which no layer changes: the vector depends on which words a text has, not on
    their order."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.lexical_size, padding_idx=config.pad_token_id)
        self.token_log_weights = TokenWeights(config.vocab_size, config.lexical_heads, config.lexical_saturation)

    def forward(self, mask: Tensor, input_ids: Tensor) -> Tensor:
        """Map mask (B, L) bool and input_ids (B, L) -> (B, lexical_heads * lexical_size) in float32 at least."""
        return weighted_mean(self.word_embeddings(input_ids), mask, self.token_log_weights(input_ids, mask))


class M2BertPooler(nn.Module):
    """Compute the model's `pooler_output` as `config.pooling` says. Its width is `config.projection_dim`."""

    def __init__(self, config):
        super().__init__()
        self.pooling = config.pooling
        if config.pooling.endswith("_tanh"):
            self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        elif config.pooling == "weighted_mean":
            heads = config.num_pooling_heads
            self.token_log_weights = TokenWeights(config.vocab_size, heads, config.pooling_saturation)
            if config.pooling_rotation:  # a tensor of the checkpoint, so that no other generator draws others
                size = config.lexical_size if config.lexical_heads else config.hidden_size
                self.register_buffer("rotation_signs", random_signs(config.projection_dim // size, size))
            if config.contextual_pooling:
                self.context_log_weights = nn.Linear(config.hidden_size, heads, bias=False)
            if config.lexical_heads:
                self.lexical, self.lexical_share = LexicalPooler(config), config.lexical_share

    def forward(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """Pool the hidden states of each text.

        Args:
            hidden_states: (B, L, H).
            mask: (B, L) bool, True at real positions.
            input_ids: (B, L), needed by `weighted_mean`.

        Returns:
            (B, config.projection_dim) in float32 at least: in 16 bits a vector of length 1 has it to 3 digits only.
        """
        if self.pooling == "weighted_mean":
            if input_ids is None:
                raise ValueError(
                    "pooling='weighted_mean' weighs tokens by their id and so needs input_ids, not inputs_embeds; "
                    "pass input_ids, or use a model with pooling='mean'"
                )
            pooled = weighted_mean(hidden_states, mask, self.log_weights(hidden_states, mask, input_ids))
            if hasattr(self, "lexical"):
                pooled = self.joined(pooled, self.lexical(mask, input_ids))
            return rotate(pooled, self.rotation_signs) if hasattr(self, "rotation_signs") else pooled
        kind, _, tanh = self.pooling.partition("_")
        if kind == "cls":  # a sum over at most one position; an index would fail for a batch of no texts
            pooled = hidden_states[:, :1].sum(1)
        else:
            assert kind == "mean"  # the configuration allows no other
            pooled = masked_mean(hidden_states, mask)
        if tanh:
            pooled = torch.tanh(self.dense(pooled.to(hidden_states.dtype)))
        return pooled.to(torch.promote_types(hidden_states.dtype, torch.float32))

    def joined(self, pooled: Tensor, lexical: Tensor) -> Tensor:
        """Return both vectors, (B, W) and (B, X), as one of length 1, (B, W + X); see `config.lexical_share`."""
        pooled, lexical = (nn.functional.normalize(vectors, dim=-1) for vectors in (pooled, lexical))
        return torch.cat([(1 - self.lexical_share) ** 0.5 * pooled, self.lexical_share**0.5 * lexical], dim=-1)

    def log_weights(self, hidden_states: Tensor, mask: Tensor, input_ids: Tensor) -> Tensor:
        """Return the log weights of tokens, (B, L, K) in float32 at least.

        With contextual_pooling they depend on the token's hidden state, too.
        """
        log_weights = self.token_log_weights(input_ids, mask)
        if hasattr(self, "context_log_weights"):
            log_weights = log_weights + self.context_log_weights(hidden_states)
        return log_weights
