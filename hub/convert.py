"""Convert checkpoints of the original M2-BERT research code (HazyResearch/m2, folder bert/) to this model.

`convert_state_dict` renames, reshapes and folds tensors; every tensor of the source is used, known to be redundant, or
reported. Converted models keep the original's behaviour: `padding="visible"` and its pooling.
"""

import logging
import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import modeling_m2bert  # noqa: F401  (registers m2bert with the Auto classes)

from .checkpoint import load_tokenizer
from .folder import check_output, write_folder
from .inert_pickle import read_inert
from .infer_options import DEFAULTS, infer_options

logger = logging.getLogger(__name__)

WIDTHS = ("hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
REQUIRED_OPTIONS = {  # options of the research code with the only value that this model has
    "bidirectional": True,
    "use_positional_encodings": True,
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
    "hyena_w": "filter_frequency",
    "hyena_emb_dim": "filter_embedding_size",
    "hyena_filter_order": "filter_order",
    "hyena_training_additions": "mixer_layer_norm",
}
LAYER_NAMES = {
    "attention.in_linear.weight": "mixer.in_proj.weight",
    "attention.in_linear.bias": "mixer.short_conv.input_bias",
    "attention.out_linear.": "mixer.out_proj.",
    "attention.short_filter.": "mixer.short_conv.",
    "attention.layernorm.": "mixer.norm.",
    "mlp.layernorm.": "norm.",
}
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
    for width in WIDTHS:
        if not isinstance(upstream.get(width), int):
            raise ValueError(f"option {width}={upstream.get(width)!r} of the original's configuration is no number")
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
    blocks = upstream.get("monarch_mlp_nblocks", 4) if upstream.get("use_monarch_mlp", True) else 1
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


def convert_state_dict(
    state_dict: dict[str, Tensor], upstream_config: dict
) -> tuple["modeling_m2bert.M2BertConfig", dict[str, Tensor]]:
    """Configuration and state dict of a research checkpoint.

    Args:
        state_dict: tensors under the original's key names; the prefixes `model.` (composer) and `module.`
            (DataParallel) and the `.flashfft.` constant tables are accepted.
        upstream_config: the original's configuration attributes; those that are missing are told by the tensors, or
            are the defaults of `infer_options`, which are logged.

    Returns:
        (config, tensors). With masked-LM keys the tensors load with strict=True into M2BertForMaskedLM, otherwise
        into M2BertModel; `config.architectures` says which.

    Raises:
        ValueError: an option this model does not have, or tensors that are missing or unexpected (all named).
    """
    source = _clean(state_dict)
    embedding = source.get("bert.embeddings.word_embeddings.weight")
    if embedding is None:
        raise ValueError(
            "state_dict has no bert.embeddings.word_embeddings.weight: not a checkpoint of the M2-BERT research code"
        )
    upstream_config = complete_options(source, upstream_config)
    config = convert_config(upstream_config, embedding.shape[0])
    masked_lm = any(key.startswith("cls.") for key in source)
    _drop_unused_heads(source, masked_lm, config.pooling)

    converted: dict[str, Tensor] = {}
    try:
        for layer in range(config.num_hidden_layers):
            for theirs, ours in (("filter_fn", "filter"), ("filter_fn2", "residual_filter")):
                if ours == "filter" or config.residual_long_conv:
                    prefix = f"bert.encoder.layer.{layer}.attention.{theirs}."
                    filter_tensors = _convert_filter(source, prefix, upstream_config.get("hyena_w_mod", 1))
                    converted |= {f"layers.{layer}.mixer.{ours}.{key}": value for key, value in filter_tensors.items()}
            prefix = f"bert.encoder.layer.{layer}.mlp."
            for theirs, ours in (("gated_layers.weight", "up.weight"), ("wo.weight", "down.weight")):
                weight = source.pop(prefix + theirs)
                converted[f"layers.{layer}.mlp.{ours}"] = weight if weight.ndim == 3 else weight[None]
            converted[f"layers.{layer}.mlp.down.bias"] = source.pop(prefix + "wo.bias")
    except KeyError as error:
        raise ValueError(f"state_dict lacks {error}; num_hidden_layers or another option does not fit it") from None
    unexpected = []
    for key, value in source.items():
        name = _rename(key)
        converted[name or key] = value
        unexpected += [key] if name is None else []
    return config, _finish(config, converted, unexpected, masked_lm)


def complete_options(source: dict[str, Tensor], upstream_config: dict) -> dict:
    """The original's options: as its configuration says, else as the tensors tell, else the defaults."""
    assumed = {option: value for option, value in DEFAULTS.items() if option not in upstream_config}
    if assumed:
        values = ", ".join(f"{option}={value}" for option, value in assumed.items())
        logger.info("assumed, since tensors do not tell it: %s; a configuration may say otherwise (--config)", values)
    return DEFAULTS | infer_options(source) | upstream_config


def _clean(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without prefixes, constant tables and rebuilt buffers."""
    stripped = {
        re.sub(r"^(module\.|model\.)*(?=bert\.|cls\.|classifier\.)", "", key): value
        for key, value in state_dict.items()
    }
    return {
        key: value
        for key, value in stripped.items()
        if ".flashfft." not in key and not key.endswith("embeddings.position_ids")
    }


def _drop_unused_heads(source: dict[str, Tensor], masked_lm: bool, pooling: str):
    unused = ["classifier."] + (["bert.pooler."] if masked_lm or not pooling.endswith("_tanh") else [])
    dropped = [key for key in source if key.startswith(tuple(unused))]
    for key in dropped:
        del source[key]
    if dropped:
        logger.warning("not converted, because the target has no such head: %s", ", ".join(sorted(dropped)))


def _convert_filter(source: dict[str, Tensor], prefix: str, w_mod: float) -> dict[str, Tensor]:
    """One filter module; the constant factor w_mod of the sines goes into the frequencies."""
    frequencies = [source.pop(prefix + f"implicit_filter{rev}.{i}.freq") for rev in ("", "_rev") for i in (1, 3, 5)]
    if any(not torch.equal(frequencies[0], other) for other in frequencies):
        raise ValueError(f"{prefix}implicit_filter: the frequencies of the sines differ, but this model shares them")

    def both(index: int, name: str) -> Tensor:
        return torch.stack([source.pop(f"{prefix}implicit_filter{rev}.{index}.{name}") for rev in ("", "_rev")])

    return {
        "positional_features": source.pop(prefix + "pos_emb.z")[0],
        "time": source.pop(prefix + "pos_emb.t")[0, :, 0],
        "decay": source.pop(prefix + "modulation.deltas")[0, 0].abs(),
        "frequency": frequencies[0][0] * w_mod,
        "skip": source.pop(prefix + "bias"),
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


def _finish(config, converted: dict[str, Tensor], unexpected: list[str], masked_lm: bool) -> dict[str, Tensor]:
    """Prefix for the target class, and account for every tensor."""
    if masked_lm:
        converted = {key if key.startswith("lm_head.") else f"model.{key}": value for key, value in converted.items()}
    with torch.device("meta"):
        target = (AutoModelForMaskedLM if masked_lm else AutoModel).from_config(config)
    config.architectures = [type(target).__name__]
    expected = {key: value.shape for key, value in target.state_dict().items()}
    unexpected += [key for key in converted if key not in expected and key.split("model.")[-1] not in unexpected]
    missing = [key for key in expected if key not in converted]
    reshaped = [key for key in expected if key in converted and converted[key].shape != expected[key]]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(problems.values()):
        text = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in problems.items() if names)
        raise ValueError(f"state_dict does not fit the configuration ({text})")
    return {key: value.contiguous() for key, value in converted.items()}


def convert_checkpoint(
    source: str | Path, upstream_config: dict, output_dir: str | Path, *, tokenizer_dir: str | Path | None = None,
    overwrite: bool = False,
) -> Path:  # fmt: skip
    """Convert a weights file (.pt, .bin, .safetensors; see `read_tensors`) to a Hub folder."""
    check_output(output_dir, overwrite)
    config, tensors = convert_state_dict(read_tensors(source), upstream_config)
    auto_class = AutoModelForMaskedLM if config.architectures[0].endswith("ForMaskedLM") else AutoModel
    model = auto_class.from_config(config)
    model.load_state_dict(tensors, strict=True)
    tokenizer = load_tokenizer(tokenizer_dir) if tokenizer_dir is not None else None
    if tokenizer is None:
        logger.warning("the folder is written without a tokenizer, and so embeds no text; name one with --tokenizer")
    return write_folder(model, tokenizer, output_dir, overwrite=overwrite)


def read_tensors(source: str | Path) -> dict[str, Tensor]:
    """State dict of a file; composer's `state.model` is unwrapped. No code that the file names is run.

    Raises:
        ValueError: it is no such file, or is damaged, or holds no tensors.
    """
    if Path(source).suffix == ".safetensors":
        return load_file(source)
    try:
        try:
            content = torch.load(source, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # foreign objects beside the weights, or worse
            content = read_inert(source)
            logger.info("%s holds more than tensors; what else it names was neither loaded nor run", source)
        content = content["state"]["model"] if "state" in content else content
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:  # a foreign file can fail in any way; none of them is ours
        raise ValueError(f"{source} cannot be read as a state dict ({type(error).__name__}: {error})") from error
    if not tensors:
        raise ValueError(f"{source} cannot be read as a state dict: it holds no tensors by name")
    return tensors
