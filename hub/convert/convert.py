"""Convert checkpoints of the original M2-BERT research code (HazyResearch/m2, folder bert/) to this model.

`convert_state_dict` renames, reshapes and folds tensors; what became of every tensor of the source is in its account.
Converted models keep the original's behaviour: `padding="visible"` and its pooling.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import modeling_m2bert  # noqa: F401  (registers m2bert with the Auto classes)

from .infer_options import DECODER, WORDS, check_contradictions, check_types, options_by_origin, word_embeddings
from .ledger import Account, Ledger, without_prefixes

WIDTHS = ("hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "monarch_mlp_nblocks")
REQUIRED_OPTIONS = {  # options of the research code with the only value that this model has
    "bidirectional": True,
    "use_glu_mlp": True,
    "monarch_mixer_sequence_mixing": True,
    "sequence_token_planting": False,
    "hidden_act": "gelu",
}
SAME_NAME = (
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_dropout_prob",
    "layer_norm_eps",
    "initializer_range",
    "residual_long_conv",
    "pad_token_id",
)
RENAMED = {
    "use_positional_encodings": "position_embeddings",
    "hyena_w": "filter_frequency",
    "hyena_emb_dim": "filter_embedding_size",
    "hyena_filter_order": "filter_order",
    "hyena_training_additions": "mixer_layer_norm",
}
ELSEWHERE = {"use_monarch_mlp", "monarch_mlp_nblocks", "long_conv_l_max", "pool_all", "use_cls_token", "hyena_w_mod"}
OPTIONS = {*REQUIRED_OPTIONS, *SAME_NAME, *RENAMED, *ELSEWHERE}
LAYER_NAMES = {
    "attention.in_linear.weight": "mixer.in_proj.weight",
    "attention.in_linear.bias": "mixer.short_conv.input_bias",
    "attention.out_linear.": "mixer.out_proj.",
    "attention.short_filter.": "mixer.short_conv.",
    "attention.layernorm.": "mixer.norm.",
    "mlp.layernorm.": "norm.",
}
POSITION_IDS = "bert.embeddings.position_ids"
HEAD_NAMES = {
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.norm.",
    "cls.predictions.decoder.": "lm_head.decoder.",
    "bert.pooler.dense.": "pooler.dense.",
    "bert.embeddings.LayerNorm.": "embeddings.norm.",
    "bert.embeddings.": "embeddings.",
}


def convert_config(upstream: dict, vocab_size: int) -> "modeling_m2bert.M2BertConfig":
    """M2BertConfig of a research configuration. Raises ValueError naming an option that this model does not have."""
    upstream = {"monarch_mlp_nblocks": 4, "hyena_w_mod": 1} | upstream
    for name in (*WIDTHS, "hyena_w_mod"):
        value = upstream.get(name)
        if value is None or value <= 0:
            raise ValueError(f"option {name}={value!r} of the original's configuration is no positive number")
    for option, value in REQUIRED_OPTIONS.items():
        if upstream.get(option, value) != value:
            raise ValueError(
                f"option {option}={upstream[option]!r} is not supported: this model has {option}={value!r} only"
            )
    positions, taps = upstream["max_position_embeddings"], upstream.get("long_conv_l_max")
    if taps is not None and taps != positions:
        raise ValueError(
            f"option long_conv_l_max={taps} differs from max_position_embeddings={positions}: not supported"
        )
    blocks = upstream["monarch_mlp_nblocks"] if upstream.get("use_monarch_mlp", True) else 1
    for width in ("hidden_size", "intermediate_size"):
        if upstream[width] % blocks:
            raise ValueError(
                f"option monarch_mlp_nblocks={blocks} does not divide {width}={upstream[width]}: padded blocks are not "
                "supported"
            )
    pooling = "cls" if upstream.get("use_cls_token") else "mean_tanh" if upstream.get("pool_all") else "cls_tanh"
    fields = {name: upstream[name] for name in SAME_NAME if name in upstream}
    fields |= {ours: upstream[theirs] for theirs, ours in RENAMED.items() if theirs in upstream}
    return AutoConfig.for_model(
        "m2bert", vocab_size=vocab_size, num_blocks=blocks, pooling=pooling, padding="visible", **fields
    )


@dataclass
class Conversion:
    """A converted model, and how it came about."""

    config: "modeling_m2bert.M2BertConfig"
    tensors: dict[str, Tensor]  # under this model's names
    original: dict[str, Tensor]  # under the original's names
    account: Account
    origins: dict[str, dict]  # the original's options, see options_by_origin

    @property
    def options(self) -> dict:
        """All of the original's options."""
        return {name: value for group in self.origins.values() for name, value in group.items()}


def convert_state_dict(state_dict: dict[str, Tensor], upstream_config: dict) -> Conversion:
    """Configuration and state dict of a research checkpoint.

    Args:
        state_dict: tensors under the original's key names; the prefixes `model.` (composer) and `module.`
            (DataParallel) and the `.flashfft.` constant tables are accepted.
        upstream_config: the original's configuration attributes; those that are missing are told by the tensors, or
            are the defaults of `infer_options`, which are logged.

    Returns:
        With masked-LM keys the tensors load with strict=True into M2BertForMaskedLM, otherwise into M2BertModel;
        `config.architectures` says which.

    Raises:
        ValueError: an option that is of a wrong type, that this model does not have or that the tensors contradict; or
            tensors that are missing, unexpected, no weights or that would be lost (all named).
    """
    source = without_prefixes(state_dict)
    if (words := word_embeddings(source)) is None:
        raise ValueError(f"state_dict has no {WORDS}: not a checkpoint of the M2-BERT research code")
    check_types(upstream_config)
    origins = options_by_origin(source, upstream_config, OPTIONS)
    options = {name: value for group in origins.values() for name, value in group.items()}
    config = convert_config(options, len(words))
    check_contradictions(source, upstream_config)

    ledger = Ledger(source)
    masked_lm = any(key.startswith("cls.") for key in source)
    pooler = () if config.pooling.endswith("_tanh") and not masked_lm else ("bert.pooler.",)
    ledger.leave(("classifier.", *pooler))
    if POSITION_IDS in source:
        ledger.rebuild(POSITION_IDS, config.max_position_embeddings)
    ledger.check_weights()
    converted = {"embeddings.word_embeddings.weight": ledger.take_shared([WORDS, DECODER])}
    for layer in range(config.num_hidden_layers):
        converted |= _convert_layer(ledger, f"bert.encoder.layer.{layer}.", f"layers.{layer}.", options)
    for key in [key for key in ledger.left if _rename(key)]:
        converted[_rename(key)] = ledger.take(key)
    if masked_lm:
        converted["lm_head.decoder.weight"] = words
        converted = {key if key.startswith("lm_head.") else f"model.{key}": value for key, value in converted.items()}
    tensors = _check_fit(config, converted, list(ledger.left), masked_lm)
    return Conversion(config, tensors, source, ledger.account, origins)


def _convert_layer(ledger: Ledger, theirs: str, ours: str, options: dict) -> dict[str, Tensor]:
    """What is not only renamed: the filters and the feed-forward matrices of a layer."""
    converted = {}
    filters = {"filter_fn": "filter"} | ({"filter_fn2": "residual_filter"} if options["residual_long_conv"] else {})
    for their_filter, our_filter in filters.items():
        prefix = f"{theirs}attention.{their_filter}."
        try:
            tensors = _convert_filter(ledger, prefix, options["hyena_w_mod"])
        except (IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{prefix}* has tensors of other shapes than the research code's ({error})") from error
        converted |= {f"{ours}mixer.{our_filter}.{key}": value for key, value in tensors.items()}
    for their_matrix, our_matrix in (("gated_layers", "up"), ("wo", "down")):
        weight = ledger.take(f"{theirs}mlp.{their_matrix}.weight")
        converted[f"{ours}mlp.{our_matrix}.weight"] = weight if weight.ndim == 3 else weight[None]
    return converted | {f"{ours}mlp.down.bias": ledger.take(f"{theirs}mlp.wo.bias")}


def _convert_filter(ledger: Ledger, prefix: str, w_mod: float) -> dict[str, Tensor]:
    """One filter module; the constant factor w_mod of the sines goes into the frequencies."""
    sines = [f"{prefix}implicit_filter{rev}.{index}.freq" for rev in ("", "_rev") for index in (1, 3, 5)]
    frequency = ledger.take_shared(sines)[0]

    def both(index: int, name: str) -> Tensor:
        return torch.stack([ledger.take(f"{prefix}implicit_filter{rev}.{index}.{name}") for rev in ("", "_rev")])

    return {
        "positional_features": ledger.take(prefix + "pos_emb.z")[0],
        "time": ledger.take(prefix + "pos_emb.t")[0, :, 0],
        "decay": ledger.take(prefix + "modulation.deltas")[0, 0].abs(),
        "frequency": frequency if w_mod == 1 else frequency.double() * w_mod,  # rounded once, when it is loaded
        "skip": ledger.take(prefix + "bias"),
        "input_weight": both(0, "weight"),
        "input_bias": both(0, "bias"),
        "hidden_weight": torch.stack([both(2, "weight"), both(4, "weight")]),
        "hidden_bias": torch.stack([both(2, "bias"), both(4, "bias")]),
        "output_weight": both(6, "weight"),
    }


def _rename(key: str) -> str | None:
    if match := re.match(r"bert\.encoder\.layer\.(\d+)\.", key):
        rest = key[match.end() :]
        for theirs, ours in LAYER_NAMES.items():
            if rest.startswith(theirs):
                return f"layers.{match[1]}.{ours}{rest.removeprefix(theirs)}"
        return None
    for theirs, ours in HEAD_NAMES.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None


def _check_fit(config, converted: dict[str, Tensor], unexpected: list[str], masked_lm: bool) -> dict[str, Tensor]:
    """The tensors, if they are those of the target class, which is noted in the configuration."""
    with torch.device("meta"):
        target = (AutoModelForMaskedLM if masked_lm else AutoModel).from_config(config)
    config.architectures = [type(target).__name__]
    expected = {key: value.shape for key, value in target.state_dict().items()}
    problems = {
        "missing": [key for key in expected if key not in converted],
        "unexpected": unexpected + [key for key in converted if key not in expected],
        "of another shape": [key for key in expected if key in converted and converted[key].shape != expected[key]],
    }
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in problems.items() if names)
        raise ValueError(f"state_dict does not fit the configuration ({text})")
    return {key: value.contiguous() for key, value in converted.items()}
