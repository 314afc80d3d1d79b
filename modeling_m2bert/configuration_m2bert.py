"""Configuration of M2-BERT: every size and switch of the model, validated when it is built."""

import math

try:
    from huggingface_hub.dataclasses import strict
    from transformers import PreTrainedConfig
except ImportError:  # transformers 4 cannot run the model, but it reads the settings when optimum runs the ONNX model
    from transformers import PretrainedConfig as PreTrainedConfig

    def strict(cls):
        return cls


POOLINGS = ("mean", "weighted_mean", "cls", "cls_tanh", "mean_tanh")
PADDINGS = ("masked", "visible")
AUTO_MAP = {
    "AutoConfig": "configuration_m2bert.M2BertConfig",
    "AutoModel": "modeling_m2bert.M2BertModel",
    "AutoModelForMaskedLM": "modeling_m2bert.M2BertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_m2bert.M2BertForSequenceClassification",
    "AutoModelForMultipleChoice": "modeling_m2bert.M2BertForMultipleChoice",
    "AutoModelForTokenClassification": "modeling_m2bert.M2BertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_m2bert.M2BertForQuestionAnswering",
}


@strict
class M2BertConfig(PreTrainedConfig):
    r"""
    Sizes and switches of an M2-BERT encoder (Saad-Falcon et al., ICML 2024). The defaults are the paper's 80M model
    at 2048 tokens.

    Args:
        vocab_size: rows of the token embedding (30522 WordPieces, rounded up to a multiple of 8).
        hidden_size: width H of every position.
        num_hidden_layers: number of layers; 0 is the layer-free control (embeddings and pooling only).
        intermediate_size: width I of the gated feed-forward network.
        num_blocks: diagonal blocks of the feed-forward matrices; 1 is a dense layer.
        max_position_embeddings: longest sequence in tokens, and the length of the long filters.
        filter_decay_length: number of tokens over which the filters of a new model decay (`None`:
            max_position_embeddings). It sets the decay per token, whatever the context.
        position_embeddings: learn a vector for every position. Convolutions see the order of tokens even without it. In
            a small model for long texts, this table would hold most of the parameters.
        type_vocab_size: number of token types (segments).
        hidden_dropout_prob: dropout after the embeddings and inside the feed-forward network.
        classifier_dropout: dropout before the classifier (`None`: hidden_dropout_prob).
        layer_norm_eps: epsilon of every LayerNorm except the mixer's own (`mixer_layer_norm`).
        initializer_range: standard deviation of the normal initialization.
        filter_order: width O of the sine networks that generate the filters.
        filter_embedding_size: number E of positional features per filter tap, odd: normalized time and (E - 1) / 2
            pairs of cosine and sine.
        filter_frequency: initial frequency inside the sines.
        residual_long_conv: add a second, ungated long convolution of the mixer's input to the mixer's output.
        mixer_layer_norm: normalize the mixer's input, as some older checkpoints do.
        pooling: how `pooler_output` is made: `mean`, `weighted_mean` (one learned weight per token id and head),
            `cls` (position 0), `cls_tanh` and `mean_tanh` (dense layer and tanh on top).
        num_pooling_heads: heads of `weighted_mean`; their pooled vectors are concatenated.
        pooling_saturation: in `weighted_mean`, n occurrences of a token together have the token's weight times
            log(1 + n / pooling_saturation); `None`: times n.
        contextual_pooling: in `weighted_mean`, a token's weight also depends on its last hidden state.
        pooling_rotation: in `weighted_mean`, rotate the concatenated vector. It changes no cosine, and a vector may
            then be cut to its first numbers.
        lexical_heads: in `weighted_mean`, heads of a lexical vector, which stands beside the pooled one in
            `pooler_output`: a weighted mean of word embeddings of its own that pass no layer. 0: none.
        lexical_size: width of these word embeddings.
        lexical_saturation: pooling_saturation of the lexical vector.
        lexical_share: share s of the lexical vector in scores. The cosine of two outputs is s times that of their
            lexical vectors plus 1 - s times that of their pooled vectors.
        padding: `masked` (padding has no effect on a text's vectors) or `visible` (the research code's behavior:
            results depend on how far a text is padded).
        sparse_prediction: compute masked-LM logits only where `labels` is not -100, which saves memory in training.
        pad_token_id: id of the padding token.
        tie_word_embeddings: share the token embedding with the masked-LM decoder.
    """

    model_type = "m2bert"

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    intermediate_size: int = 3072
    num_blocks: int = 4
    max_position_embeddings: int = 2048
    filter_decay_length: int | None = None
    position_embeddings: bool = True
    type_vocab_size: int = 2
    hidden_dropout_prob: float | int = 0.1
    classifier_dropout: float | int | None = None
    layer_norm_eps: float | int = 1e-12
    initializer_range: float | int = 0.02
    filter_order: int = 128
    filter_embedding_size: int = 5
    filter_frequency: float | int = 10.0
    residual_long_conv: bool = True
    mixer_layer_norm: bool = False
    pooling: str = "mean"
    num_pooling_heads: int = 1
    pooling_saturation: float | int | None = None
    contextual_pooling: bool = False
    pooling_rotation: bool = False
    lexical_heads: int = 0
    lexical_size: int = 128
    lexical_saturation: float | int | None = None
    lexical_share: float | int = 0.5
    padding: str = "masked"
    sparse_prediction: bool = False
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        if self.filter_decay_length is None:
            self.filter_decay_length = self.max_position_embeddings
        super().__post_init__(**kwargs)
        self.validate_architecture()

    @property
    def projection_dim(self) -> int:
        """Return the width of `pooler_output`: hidden_size, times num_pooling_heads with `weighted_mean`, and the
        lexical vector.

        sentence-transformers reads the width of its embeddings under this name.
        """
        pooled = self.hidden_size * (self.num_pooling_heads if self.pooling == "weighted_mean" else 1)
        return pooled + self.lexical_heads * self.lexical_size

    def validate_architecture(self):
        """Raise ValueError for fields that do not fit together, naming the field, its value and the fix."""
        super().validate_architecture()
        rules = [  # field names, the condition for their values, and the condition in words
            (("vocab_size", "hidden_size", "intermediate_size", "num_blocks", "max_position_embeddings",
              "filter_decay_length", "type_vocab_size", "filter_order", "num_pooling_heads", "lexical_size"),
             lambda value: value >= 1, "at least 1"),
            (("num_hidden_layers",), lambda value: 0 <= value <= 1000, "from 0 (layer-free) to 1000"),
            (("lexical_heads",), lambda value: value >= 0, "0 (no lexical vector) or more"),
            (("lexical_share",), lambda value: 0 < value < 1, "above 0 and below 1"),
            (("hidden_size", "intermediate_size"), lambda value: value % self.num_blocks == 0,
             f"divisible by num_blocks={self.num_blocks}; choose a divisor, or num_blocks=1 for dense layers"),
            (("hidden_dropout_prob", "classifier_dropout"), lambda value: 0 <= (value or 0) < 1,
             "a probability below 1"),
            (("layer_norm_eps", "initializer_range", "filter_frequency"), lambda value: 0 <= value < math.inf,
             "0 or more, and finite"),
            (("filter_embedding_size",), lambda value: value >= 3 and value % 2 == 1,
             "odd and at least 3: normalized time and pairs of cosine and sine"),
            (("pad_token_id",), lambda value: value is None or 0 <= value < self.vocab_size,
             f"in the vocabulary of vocab_size={self.vocab_size}"),
            (("pooling",), lambda value: value in POOLINGS, f"one of {', '.join(POOLINGS)}"),
            (("padding",), lambda value: value in PADDINGS, f"one of {', '.join(PADDINGS)}"),
            (("pooling_saturation", "lexical_saturation"), lambda value: value is None or 0 < value < math.inf,
             "above 0, or null for none"),
        ]  # fmt: skip
        if self.pooling != "weighted_mean":
            unused = f"left out: only pooling='weighted_mean' has it, not {self.pooling!r}"
            rules.append((("num_pooling_heads",), lambda value: value == 1, unused))
            switches = "pooling_saturation", "contextual_pooling", "pooling_rotation", "lexical_heads"
            rules.append((switches, lambda value: not value, unused))
        if self.lexical_heads and self.pooling_rotation:
            rules.append((("lexical_size",), lambda value: self.projection_dim % value == 0,
                          "a divisor of the pooled vector's width with pooling_rotation=True"))  # fmt: skip
        for names, holds, words in rules:
            for name in names:
                if not holds(getattr(self, name)):
                    raise ValueError(f"{name}={getattr(self, name)!r} must be {words}")


M2BertConfig.register_for_auto_class("AutoConfig")

__all__ = ["M2BertConfig"]
