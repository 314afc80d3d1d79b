"""M2-BERT (Saad-Falcon et al., ICML 2024): an encoder without attention, for transformers.

It differs from the research code on purpose:
- Padding has no effect by default (`padding="masked"`): a text has the same vectors as without padding.
- Layers are initialized independently. The research code initializes one layer and copies it.
- The short convolution has torch's initialization of convolutions. With a standard deviation of 0.02, its gates would
  be close to zero.
- Block-diagonal layers have the same kind of initialization with one block as with several.
- Filters are computed in float32 at least. Their parameters stay in float32 when the model is cast to float16 or
  bfloat16.
- The masked-LM loss ignores only the label -100. The research code also ignores id 0.
- The forward has no NaN checks and no anomaly mode.
"""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging

from .configuration_m2bert import M2BertConfig
from .m2bert_filter import M2BertFilter
from .m2bert_layers import (
    BlockDiagonalLinear,
    M2BertMixer,
    M2BertMLP,
    ShortConv,
    TokenLinear,
    WideLayerNorm,
    is_quantized,
)
from .m2bert_ops import add_layer_norm
from .m2bert_ops_filter import FilterCache
from .m2bert_packing import Packing, Rows, check_inputs, pack_rows, values_are_hidden, visible_tokens
from .m2bert_pooling import M2BertPooler, random_signs

logger = logging.get_logger(__name__)
OTHER_HEADS, POOLER = r"^(lm_head|classifier|qa_outputs)\.", r"^(model\.)?pooler\."  # tensors that another class has
OUT_PROJ = r".*out_proj"  # is not quantized: no skip goes around it, so that the errors of all layers would add up
ALIGNMENT_BYTES = 64  # torch aligns the memory that it allocates on a CPU to this


class M2BertEmbeddings(nn.Module):
    """Sum of token, type and, if the configuration has them, position embeddings; then LayerNorm and dropout."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = None
        if config.position_embeddings:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = WideLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None, packing: Packing
    ) -> Tensor:
        """Embed and pack (B, L) ids, or (B, L, H) token embeddings -> (T, H)."""
        x = packing.pack(input_ids if inputs_embeds is None else inputs_embeds)
        x = self.word_embeddings(x) if inputs_embeds is None else x
        types = x.new_zeros(1, dtype=torch.long) if token_type_ids is None else packing.pack(token_type_ids)
        x = x + self.token_type_embeddings(types)
        if self.position_embeddings is not None:
            positions = torch.arange(packing.shape[1], device=x.device).expand(packing.shape)
            x = x + self.position_embeddings(packing.pack(positions))
        return self.dropout(self.norm(x))


class M2BertAddNorm(nn.LayerNorm):
    """LayerNorm of a sum."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add and normalize (T, H) and (T, H) -> (T, H). In memory the result is (H, T), as the next mixer reads it."""
        return add_layer_norm(x, y, self.weight, self.bias, self.eps)


class M2BertLayer(GradientCheckpointingLayer):
    """y = mixer(x); output = LayerNorm(y + MLP(y)).

    There is no skip connection around the mixer. With `residual_long_conv`, the residual convolution inside the mixer
    takes its place.
    """

    def __init__(self, config, cache: FilterCache | None = None):
        super().__init__()
        self.mixer = M2BertMixer(config, cache)
        self.mlp = M2BertMLP(config)
        self.norm = M2BertAddNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor, rows: Rows) -> Tensor:
        """Map (T, H) -> (T, H)."""
        mixed = self.mixer(hidden_states, rows)
        return self.norm(mixed, self.mlp(mixed))


def refuse_coarse(form):
    """Raise ValueError if a quantization has weights of 1 or 2 bits, as torchao's and quanto's settings name them."""
    weights = getattr(form, "weights", None) or getattr(getattr(form, "quant_type", None), "weight_dtype", None)
    if str(weights).removeprefix("torch.") in ("int1", "int2", "uint1", "uint2"):
        raise ValueError(
            f"quantization_config has {weights} weights, too coarse for this model: with 12 layers the cosine to the "
            "unquantized vectors is 0.97 or less; take weights of 4 or 8 bits"
        )


class M2BertPreTrainedModel(PreTrainedModel):
    """Loading and initialization that all M2-BERT models share."""

    config_class = M2BertConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["M2BertLayer", "M2BertEmbeddings", "M2BertPooler"]
    _keep_in_fp32_modules_strict = ["filter", "residual_filter"]  # when loaded; M2BertFilter keeps them so in casts
    _keys_to_ignore_on_load_unexpected = [OTHER_HEADS]

    def __init__(self, config: M2BertConfig, *inputs, **kwargs):
        config.validate_architecture()  # from_pretrained(..., field=value) changes fields without a check
        super().__init__(config, *inputs, **kwargs)
        if is_quantized(config):
            refuse_coarse(config.quantization_config)
            self._keep_in_fp32_modules = {OUT_PROJ}

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict:
        """Return the modules that are loaded in another dtype. Of out_proj, quantizers are told only to leave it."""
        return {name: kept for name, kept in super()._get_dtype_plan(dtype).items() if name != OUT_PROJ}

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a model as transformers does, and align its weights.

        The rounding of matrix products depends on the alignment, and a loaded model must give the same vectors as the
        saved one. So weights on a CPU that are not aligned to 64 bytes are copied.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT_BYTES:
                tensor.data = tensor.data.clone()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ShortConv):
            bound = 1 / math.sqrt(module.weight.shape[-1])
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
            init.zeros_(module.input_bias)
        elif isinstance(module, BlockDiagonalLinear):
            bound = 1 / math.sqrt(module.weight.shape[-1])
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.bias.shape[0])
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, M2BertFilter):
            module.initialize(self.config)
        elif isinstance(module, M2BertPooler) and hasattr(module, "rotation_signs"):
            init.copy_(module.rotation_signs, random_signs(*module.rotation_signs.shape[1:]))

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        pooler = self.base_model.pooler
        tables = [] if pooler is None else [one for one in pooler.modules() if isinstance(one, nn.Embedding)]
        size = embeddings.weight.shape[0]
        for table in (table for table in tables if len(table.weight) != size):
            old = table.weight
            new = old.new_empty(size, old.shape[1])
            kept = min(len(new), len(old))
            new[:kept], new[kept:] = old.data[:kept], old.data.mean(0)  # a new token starts with the mean of all
            table.weight, table.num_embeddings = nn.Parameter(new, old.requires_grad), size
        return embeddings


class M2BertModel(M2BertPreTrainedModel):
    """The encoder. It returns hidden states of every position and one vector per text, `pooler_output`."""

    def __init__(self, config: M2BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = M2BertEmbeddings(config)
        cache = FilterCache(config.num_hidden_layers)
        self.layers = nn.ModuleList([M2BertLayer(config, cache) for _ in range(config.num_hidden_layers)])
        self.pooler = M2BertPooler(config) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self._warned_full = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: (B, L) token ids, L <= max_position_embeddings. B may be 0.
            attention_mask: (B, L), ones then zeros in every row; None means no padding.
            token_type_ids: (B, L); None means type 0.
            inputs_embeds: (B, L, H) token embeddings, in place of input_ids.
            output_hidden_states: also return the num_hidden_layers + 1 hidden states, embeddings first.

        Returns:
            last_hidden_state (B, L, H), pooler_output (B, config.projection_dim), not normalized, in float32 at least,
            and, if asked for, hidden_states. Under autocast the states have autocast's dtype, except hidden_states[0]
            and those of a float64 model. With `padding="masked"` the hidden states are exactly zero at padded
            positions. All else depends on the text alone, up to rounding: not on its padding, and not on the other
            texts of the batch or their order.

        Raises:
            ValueError: a shape is wrong, a sequence is too long, an id is outside the vocabulary (checked on CPU), or,
                with `padding="masked"`, a mask is not ones then zeros. Values of ids and mask are not checked inside
                torch.compile.
        """
        check_inputs(self.config, input_ids, inputs_embeds, attention_mask, token_type_ids)
        if self.pooler is not None and not self.training:
            self._warn_if_full(input_ids, attention_mask)
        x = input_ids if input_ids is not None else inputs_embeds
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        padding_mask = None
        if attention_mask is not None:
            mask = attention_mask.to(device=x.device, dtype=torch.bool)
            padding_mask = visible_tokens(mask) if self.config.padding == "masked" else None

        packing = pack_rows(x.shape[:2], x.device, padding_mask)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        states = []
        x = self.embeddings(input_ids, token_type_ids, inputs_embeds, packing)
        for layer in self.layers:
            if output_hidden_states:  # the next layer reads the returned tensor, so that this gets a gradient
                states.append(packing.unpack(x))
                x = packing.repack(states[-1], like=x)
            x = layer(x, packing.rows)
        states.append(packing.unpack(x))
        return BaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=None if self.pooler is None else self.pooler(states[-1], mask, input_ids),
            hidden_states=tuple(states) if output_hidden_states else None,
        )

    def _warn_if_full(self, input_ids: Tensor | None, mask: Tensor | None):
        """Warn once if a text has the model's maximum length, since tokenizers truncate to it without a warning."""
        longest = self.config.max_position_embeddings
        if torch.compiler.is_compiling() or self._warned_full or input_ids is None or input_ids.shape[1] < longest:
            return
        if values_are_hidden(input_ids) or (mask is not None and not bool((mask[:, -1] != 0).any())):
            return
        self._warned_full = True
        logger.warning("at least one text reached %d tokens; what is longer was cut", longest)


class M2BertLMHead(nn.Module):
    """Dense layer, GELU, LayerNorm and decoder. The decoder shares the token embedding and has a bias of its own."""

    def __init__(self, config):
        super().__init__()
        linear = nn.Linear if is_quantized(config) else TokenLinear
        self.dense = linear(config.hidden_size, config.hidden_size)
        self.norm = WideLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (..., H) -> (..., V)."""
        return self.decoder(self.norm(nn.functional.gelu(self.dense(hidden_states))))


def cross_entropy(logits: Tensor, labels: Tensor, **kwargs) -> Tensor:
    """Return the mean cross entropy of logits (..., V) over labels (...) that are not -100, in float32 at least.

    With `num_items_in_batch`, as gradient accumulation gives it, the loss is the sum divided by that number.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return fixed_cross_entropy(wide, labels.flatten().to(wide.device), **kwargs)


class M2BertForMaskedLM(M2BertPreTrainedModel):
    """The encoder with a masked-language-model head (paper section 4.2)."""

    _tied_weights_keys = {"lm_head.decoder.weight": "model.embeddings.word_embeddings.weight"}
    _keys_to_ignore_on_load_unexpected = [OTHER_HEADS, POOLER]

    def __init__(self, config: M2BertConfig):
        super().__init__(config)
        self.model = M2BertModel(config, add_pooling_layer=False)
        self.lm_head = M2BertLMHead(config)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, value):
        self.lm_head.decoder = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Predict masked tokens.

        Args:
            labels: (B, L) token ids, -100 where nothing is predicted. The other arguments: as for M2BertModel.forward.

        Returns:
            logits (B, L, V), or (number of labels that are not -100, V) with labels and `sparse_prediction`. With
            labels also the loss, the mean cross entropy over labels that are not -100. With `num_items_in_batch`, as
            gradient accumulation gives it, the loss is the sum divided by that number.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, inputs_embeds, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        if labels is not None and self.config.sparse_prediction:
            predicted = labels != -100
            hidden_states, labels = hidden_states[predicted], labels[predicted]
        logits = self.lm_head(hidden_states)
        loss = None if labels is None else cross_entropy(logits, labels, **kwargs)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class M2BertClassifier(M2BertPreTrainedModel):
    """The encoder, dropout and a linear layer: what classifiers of texts, choices and tokens have in common."""

    def __init__(self, config: M2BertConfig, num_outputs: int, add_pooling_layer: bool = True):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = M2BertModel(config, add_pooling_layer)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        width = config.projection_dim if add_pooling_layer else config.hidden_size
        self.classifier = nn.Linear(width, num_outputs)
        self.post_init()

    def classify(self, outputs: BaseModelOutputWithPooling) -> Tensor:
        """Return logits (B, num_outputs) of the encoder's vectors, in the dtype of its hidden states."""
        return self.classifier(self.dropout(outputs.pooler_output.to(outputs.last_hidden_state.dtype)))


class M2BertForSequenceClassification(M2BertClassifier):
    """The encoder with a linear classifier on `pooler_output`."""

    def __init__(self, config: M2BertConfig):
        super().__init__(config, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classify texts.

        Args:
            labels: (B,) class ids, or (B, num_labels) floats for regression and multi-label problems. The other
                arguments: as for M2BertModel.forward.

        Returns:
            logits (B, num_labels), and with labels the loss.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classify(outputs)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
            items = kwargs.get("num_items_in_batch")
            if items is not None and self.config.problem_type != "single_label_classification":
                loss = loss * labels.numel() / items  # transformers' function gives a mean whatever the number
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class M2BertForMultipleChoice(M2BertClassifier):
    """The encoder with a linear score on `pooler_output`, for one of several texts."""

    def __init__(self, config: M2BertConfig):
        super().__init__(config, num_outputs=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Score the choices C of each question.

        Args:
            input_ids: (B, C, L) token ids; attention_mask and token_type_ids likewise.
            inputs_embeds: (B, C, L, H) token embeddings, in place of input_ids.
            labels: (B,) the right choices, -100 for a question that does not count.

        Returns:
            logits (B, C), hidden_states of B * C texts, and with labels the loss, the mean cross entropy.
        """
        main_input = input_ids if inputs_embeds is None else inputs_embeds
        if main_input is not None and main_input.dim() < 3:
            raise ValueError(f"inputs have shape {tuple(main_input.shape)}; expected (batch, choices, length)")
        inputs = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        flat = [x if x is None else x.flatten(0, 1) for x in inputs]
        outputs = self.model(*flat, return_dict=True, **kwargs)
        logits = self.classify(outputs).view(main_input.shape[:2])
        loss = None if labels is None else cross_entropy(logits, labels, **kwargs)
        return MultipleChoiceModelOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class M2BertForTokenClassification(M2BertClassifier):
    """The encoder with a linear classifier on the hidden state of every token."""

    _keys_to_ignore_on_load_unexpected = [OTHER_HEADS, POOLER]

    def __init__(self, config: M2BertConfig):
        super().__init__(config, config.num_labels, add_pooling_layer=False)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Classify tokens.

        Args:
            labels: (B, L) class ids, -100 where none counts. The other arguments: as for M2BertModel.forward.

        Returns:
            logits (B, L, num_labels), and with labels the loss, the mean cross entropy over labels that are not -100.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else cross_entropy(logits, labels, **kwargs)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


class M2BertForQuestionAnswering(M2BertPreTrainedModel):
    """The encoder with a linear layer that scores every token as the first and as the last of an answer."""

    _keys_to_ignore_on_load_unexpected = [OTHER_HEADS, POOLER]

    def __init__(self, config: M2BertConfig):
        super().__init__(config)
        self.model = M2BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Find the answer in each text.

        Args:
            start_positions: (B,) the first token of the answer. One of L or more, as where truncation cut the answer
                off, does not count. The other arguments: as for M2BertModel.forward.
            end_positions: (B,) its last token.

        Returns:
            start_logits (B, L) and end_logits (B, L). With both positions also the loss, the mean of the two cross
            entropies.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, inputs_embeds, return_dict=True, **kwargs)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss, start_logits=start_logits, end_logits=end_logits, hidden_states=outputs.hidden_states
        )


M2BertModel.register_for_auto_class("AutoModel")
M2BertForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
M2BertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
M2BertForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
M2BertForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
M2BertForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")

__all__ = [
    "M2BertPreTrainedModel",
    "M2BertModel",
    "M2BertForMaskedLM",
    "M2BertForSequenceClassification",
    "M2BertForMultipleChoice",
    "M2BertForTokenClassification",
    "M2BertForQuestionAnswering",
]
