"""Give a student of meaning the words of a model without layers: both vectors from one pass, as one vector.

    python experiments/m2bert_mini/add_words.py --model runs/align-mini --words runs/m2bert-small-bag --output DIR

Both models have the same tokenizer. The next stage sets the lexical vector's share (configs/m2bert-mini.yaml).
"""

import argparse

import torch
from transformers import AutoModel

from m2bert.hub.checkpoint import load_strictly
from m2bert.hub.folder import write_folder
from m2bert.train.tokenizer import load_tokenizer, tokenizer_fingerprint


@torch.no_grad()
def with_words(model_path: str, words_path: str):
    """Return the model with the word embeddings and token weights of the other as its lexical vector."""
    words, _ = load_strictly(AutoModel, words_path)
    config = words.config
    contextual = config.num_hidden_layers or config.contextual_pooling or config.position_embeddings
    if contextual or config.pooling != "weighted_mean":
        raise ValueError(f"--words {words_path} is no bag of words (layers, positions, or another pooling); name one")
    fields = {
        "lexical_heads": config.num_pooling_heads,
        "lexical_size": config.hidden_size,
        "lexical_saturation": config.pooling_saturation,
        "pooling_rotation": True,
    }
    model, new = load_strictly(AutoModel, model_path, may_miss=("pooler.",), **fields)
    lexical, table = model.pooler.lexical, words.embeddings.word_embeddings.weight
    lexical.word_embeddings.weight.copy_(
        words.embeddings.norm(table + words.embeddings.token_type_embeddings.weight[0])
    )
    lexical.token_log_weights.weight.copy_(words.pooler.token_log_weights.weight)
    expected = {f"pooler.lexical.{name}" for name in lexical.state_dict()} | {"pooler.rotation_signs"}
    assert new == expected, new
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--words", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    tokenizers = [load_tokenizer(path) for path in (arguments.model, arguments.words)]
    if len(set(map(tokenizer_fingerprint, tokenizers))) > 1:
        raise ValueError(f"--model {arguments.model} and --words {arguments.words} have different tokenizers")
    model = with_words(arguments.model, arguments.words)
    print(f"wrote {write_folder(model, tokenizers[0], arguments.output)}")


if __name__ == "__main__":
    main()
