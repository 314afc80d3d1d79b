"""Late chunks of any sentence-transformers model: pool parts of a text from the states of one pass."""

import inspect

import numpy as np

POOLS_ONE_TOKEN = ("cls", "lasttoken")  # beginnings of the names of poolings that take the vector of one token


def pools_itself(transformer) -> bool:
    """Return whether the transformer module gives the vector of a text, instead of the vectors of its tokens."""
    return getattr(transformer, "module_output_name", None) == "sentence_embedding"


def late_chunking_problem(model) -> str:
    """Return why a `SentenceTransformer` cannot pool parts of a text; empty if it can.

    It can if its pooling is over all tokens, as a mean is, and takes a mask that chooses the tokens of a part.
    """
    transformer, *others = model
    inner, modes = getattr(transformer, "model", None), []
    if pools_itself(transformer):
        pooler = getattr(inner, "pooler", None)
        # M2-BERT's pooler takes three arguments, one of them a mask of tokens. BERT's takes no mask.
        if pooler is not None and len(inspect.signature(pooler.forward).parameters) == 3:
            modes = [getattr(pooler, "pooling", "")]
    elif inner is not None and hasattr(transformer, "modality_config"):
        modes = [mode for module in others for mode in np.atleast_1d(getattr(module, "pooling_mode", []))]
    single = [str(mode) for mode in modes if str(mode).startswith(POOLS_ONE_TOKEN)]
    if modes and not single:
        return ""
    kind = ", ".join(single) or f"of {type(transformer).__name__} is unknown or takes no mask of tokens, so it"
    return f"its pooling {kind} is no mean over tokens; use best-chunk"


class TokenStates:
    """The states of a batch's tokens after one pass of the model, which can be pooled in any number of parts.

    Args:
        model: a `SentenceTransformer` in evaluation mode that has no `late_chunking_problem`.
        features: what the model's `preprocess` returns, on the model's device.
    """

    def __init__(self, model, features: dict):
        self.transformer, *self.others = model
        self.mask = features["attention_mask"].bool()  # (B, L)
        # The prompt is masked here: with `prompt_length`, the pooling would drop as many tokens of every part.
        prompt = features.pop("prompt_length", None)
        if prompt is not None and not all(getattr(module, "include_prompt", True) for module in self.others):
            self.mask = self.mask & (self.mask.cumsum(1) > int(prompt))
        if pools_itself(self.transformer):
            names = ("input_ids", "attention_mask", "token_type_ids")
            outputs = self.transformer.model(**{name: features[name] for name in names if name in features})
            self.features = {**features, "hidden": outputs.last_hidden_state}
        else:
            self.features = self.transformer(features)

    def pooled(self, counts) -> dict:
        """Return the vectors (sum of counts, d) of all parts, those of a text consecutive, as a model's outputs.

        Special tokens belong to the first and the last part, a prompt to the first.

        Args:
            counts: (B,), in how many equal parts each text is divided.
        """
        import torch

        counts = counts.to(self.mask.device)
        total = self.mask.sum(1, keepdim=True).clamp(min=1)
        rank = self.mask.cumsum(1) - 1  # (B, L): a token's number among those of its text
        part = rank * counts[:, None] // total  # (B, L): the number of the part that a token belongs to
        if pools_itself(self.transformer):
            first = -(-part * total // counts[:, None])  # the rank of the first token of that part
            return self._after_pooling({"sentence_embedding": self._pool_parts(part, rank - first, counts)})
        numbers = torch.arange(int(counts.max()), device=counts.device)
        masks = [(self.mask & (part == number)).to(self.features["attention_mask"].dtype) for number in numbers]
        parts = [self._after_pooling({**self.features, "attention_mask": mask})["sentence_embedding"] for mask in masks]
        return {"sentence_embedding": torch.stack(parts, 1)[numbers < counts[:, None]]}

    def _after_pooling(self, outputs: dict) -> dict:
        """Return the outputs of the modules that follow the transformer."""
        for module in self.others:
            outputs = module(outputs)
        return outputs

    def _pool_parts(self, part, offset, counts):
        """Pool each part as if it were a text, so that the pooler reads every token once, not once for every part.

        Args:
            part: (B, L), the number of a token's part in its text.
            offset: (B, L), the number of a token in its part.
        """
        row = (counts.cumsum(0) - counts)[:, None] + part  # (B, L): the number of the part in the whole batch
        real = self.mask.flatten().nonzero()[:, 0]
        row, offset = row.flatten()[real], offset.flatten()[real]
        shape = int(counts.sum()), int(offset.max()) + 1
        places, inputs = row * shape[1] + offset, []
        for whole in (self.features["hidden"], self.mask, self.features["input_ids"]):
            tokens = whole.flatten(0, 1)
            tokens = tokens if len(real) == len(tokens) else tokens[real]
            table = tokens.new_zeros(shape[0] * shape[1], *tokens.shape[1:])
            inputs.append(table.index_copy_(0, places, tokens).unflatten(0, shape))
        return self.transformer.model.pooler(*inputs)
