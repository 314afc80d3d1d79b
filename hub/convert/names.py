"""Convert a state dict of the original M2-BERT research code (HazyResearch/m2, folder bert/) to this model's names.

Tensors are renamed, reshaped and folded; what became of each of them is recorded. Converted models keep the original's
behavior: `padding="visible"` and its pooling.
"""

import itertools
import logging
import re
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import modeling_m2bert  # noqa: F401  (registers m2bert with the Auto classes)
from m2bert.schema import FOREIGN, Schema, checked
from m2bert.terminal import one_line

logger = logging.getLogger(__name__)


class Options(Schema):
    """Options of the research code's configuration, with its defaults. A Literal is the only value supported here."""

    model_config = FOREIGN

    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    intermediate_size: PositiveInt
    max_position_embeddings: PositiveInt
    vocab_size: PositiveInt | None = None
    long_conv_l_max: PositiveInt | None = None
    type_vocab_size: PositiveInt = 2
    use_positional_encodings: bool = True
    use_monarch_mlp: bool = True
    monarch_mlp_nblocks: PositiveInt = 4
    residual_long_conv: bool = True
    hyena_training_additions: bool = False
    hyena_w: float = 10.0
    hyena_w_mod: PositiveFloat = 1
    hyena_emb_dim: PositiveInt = 5
    hyena_filter_order: PositiveInt = 128
    hidden_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    pool_all: bool = False
    use_cls_token: bool = False
    bidirectional: Literal[True] = True
    use_glu_mlp: Literal[True] = True
    monarch_mixer_sequence_mixing: Literal[True] = True
    sequence_token_planting: Literal[False] = False
    hidden_act: Literal["gelu"] = "gelu"


# What tensors cannot tell, as in the released retrieval models: the first token's state through the pooler.
ASSUMED = {"pool_all": False, "use_cls_token": False, "hyena_w_mod": 1, "layer_norm_eps": 1e-12, "pad_token_id": 0,
           "hidden_act": "gelu", "sequence_token_planting": False}  # fmt: skip
SAME = ("hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings", "type_vocab_size",
        "hidden_dropout_prob", "layer_norm_eps", "initializer_range", "residual_long_conv", "pad_token_id")  # fmt: skip
FIELDS = dict(zip(SAME, SAME, strict=True)) | {  # the original's options: this model's
    "use_positional_encodings": "position_embeddings",
    "hyena_w": "filter_frequency",
    "hyena_emb_dim": "filter_embedding_size",
    "hyena_filter_order": "filter_order",
    "hyena_training_additions": "mixer_layer_norm",
}
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"  # the same tensor; a file may keep either name
POSITION_IDS = "bert.embeddings.position_ids"
TYPES = "bert.embeddings.token_type_embeddings.weight"
FIRST = "bert.encoder.layer.0."
UP, DOWN = f"{FIRST}mlp.gated_layers.weight", f"{FIRST}mlp.wo.weight"
FEATURES, HIDDEN = (f"{FIRST}attention.filter_fn.{name}" for name in ("pos_emb.z", "implicit_filter.0.weight"))
DIMENSIONS = {WORDS: {2}, DECODER: {2}, TYPES: {2}, UP: {2, 3}, DOWN: {2, 3}, FEATURES: {3}, HIDDEN: {2}}
PREFIXES = re.compile(r"^(module\.|model\.)*(?=bert\.|cls\.|classifier\.)")
CONSTANT_TABLE = re.compile(r"bert\.encoder\.(layer\.\d+\.attention\.filter_fn2?\.)?flashfft\.\w+")  # of FlashFFTConv
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYER = r"bert\.encoder\.layer\.(\d+)\."
RENAMED = {  # pattern of the original's name: this model's name; the first that matches
    LAYER + r"attention\.in_linear\.weight": r"layers.\1.mixer.in_proj.weight",
    LAYER + r"attention\.in_linear\.bias": r"layers.\1.mixer.short_conv.input_bias",
    LAYER + r"attention\.out_linear\.": r"layers.\1.mixer.out_proj.",
    LAYER + r"attention\.short_filter\.": r"layers.\1.mixer.short_conv.",
    LAYER + r"attention\.layernorm\.": r"layers.\1.mixer.norm.",
    LAYER + r"mlp\.layernorm\.": r"layers.\1.norm.",
    LAYER + r"mlp\.gated_layers\.": r"layers.\1.mlp.up.",
    LAYER + r"mlp\.wo\.": r"layers.\1.mlp.down.",
    r"cls\.predictions\.transform\.dense\.": "lm_head.dense.",
    r"cls\.predictions\.transform\.LayerNorm\.": "lm_head.norm.",
    r"cls\.predictions\.decoder\.": "lm_head.decoder.",
    r"bert\.pooler\.dense\.": "pooler.dense.",
    r"bert\.embeddings\.LayerNorm\.": "embeddings.norm.",
    r"bert\.embeddings\.": "embeddings.",
}
DENSE = re.compile(r"layers\.\d+\.mlp\.(up|down)\.weight")  # (out, in) becomes one block, (1, out, in)


class TensorAudit:
    """A state dict from which tensors are taken one by one, with a record of what became of each.

    Attributes:
        left: tensors that were not taken yet.
        names: by what became of them: converted; repeated (equal to a converted one); rebuilt (the model makes it);
            constant_tables (of FlashFFTConv); not_converted (the target has no such head).
    """

    def __init__(self, tensors: dict[str, Tensor]):
        self.left = dict(tensors)
        self.names = {"converted": [], "repeated": [], "rebuilt": [], "constant_tables": [], "not_converted": []}

    def take(self, name: str, group: str = "converted") -> Tensor:
        tensor = self.left.pop(name)
        self.names[group].append(name)
        return tensor

    def take_shared(self, names: list[str]) -> Tensor:
        """Take one tensor that has several names, of which a file may keep any. Raises ValueError if two differ."""
        first, *others = [name for name in names if name in self.left] or names[:1]
        tensor = self.take(first)
        for name in others:
            other = self.take(name, "repeated")
            if other.dtype != tensor.dtype or not torch.equal(other, tensor):
                raise ValueError(f"{name} differs from {first}, but this model has one tensor for both: not supported")
        return tensor

    def record(self) -> dict:
        """Return the record as JSON: names where they matter, else numbers."""
        counts = {group: len(self.names[group]) for group in ("converted", "constant_tables")}
        return {"total": sum(map(len, self.names.values()))} | self.names | counts


@dataclass
class Conversion:
    """A converted model, and how it was made."""

    config: "modeling_m2bert.M2BertConfig"
    tensors: dict[str, Tensor]  # under this model's names
    original: dict[str, Tensor]  # under the original's names
    audit: TensorAudit
    options: Options
    origins: dict[str, dict]  # see options_by_origin


def convert_state_dict(state_dict: dict[str, Tensor], configuration: dict) -> Conversion:
    """Convert a checkpoint of the research code.

    Args:
        state_dict: tensors under the original's names; prefixes `model.` (composer) and `module.` (DataParallel) are
            accepted.
        configuration: the original's; options that are missing are inferred from the tensors or assumed.

    Returns:
        With masked-LM names the tensors load with strict=True into M2BertForMaskedLM, otherwise into M2BertModel;
        `config.architectures` says which.

    Raises:
        ValueError: names options that are not supported or contradict the tensors, or tensors that do not fit.
    """
    source = check_tensors(state_dict)
    told = infer_options(source)
    origins = options_by_origin(told, configuration)
    merged = {name: value for group in origins.values() for name, value in group.items()}
    options = checked(Options, merged, "option of the original's configuration (--config)")
    rows = len(source.get(WORDS, source.get(DECODER)))
    config = convert_config(options, rows)
    check_contradictions(told, rows, configuration)

    audit = TensorAudit(source)
    masked_lm = any(name.startswith("cls.") for name in source)
    pooler = () if config.pooling.endswith("_tanh") and not masked_lm else ("bert.pooler.",)
    for name in source:
        if CONSTANT_TABLE.fullmatch(name):
            audit.take(name, "constant_tables")
        elif name.startswith(("classifier.", *pooler)):
            audit.take(name, "not_converted")
        elif name == POSITION_IDS:
            audit.take(name, "rebuilt")
    filters = {"filter_fn": "filter"} | ({"filter_fn2": "residual_filter"} if options.residual_long_conv else {})
    try:
        words = audit.take_shared([WORDS, DECODER])
        tensors = {"embeddings.word_embeddings.weight": words}
        for layer, (theirs, ours) in itertools.product(range(config.num_hidden_layers), filters.items()):
            prefix = f"bert.encoder.layer.{layer}.attention.{theirs}."
            converted = _convert_filter(audit, prefix, options.hyena_w_mod)
            tensors |= {f"layers.{layer}.mixer.{ours}.{name}": value for name, value in converted.items()}
        for name in list(audit.left):  # what has no name here is unexpected when the tensors are loaded
            pattern = next((pattern for pattern in RENAMED if re.match(pattern, name)), "(?!)")
            renamed, value = re.sub(f"^{pattern}", RENAMED.get(pattern, ""), name), audit.take(name)
            tensors[renamed] = value[None] if DENSE.fullmatch(renamed) and value.ndim == 2 else value
        if masked_lm:
            tensors["lm_head.decoder.weight"] = words
            tensors = {name if name.startswith("lm_head.") else f"model.{name}": tensors[name] for name in tensors}
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        with torch.device("meta"):
            target = (AutoModelForMaskedLM if masked_lm else AutoModel).from_config(config)
        target.load_state_dict(tensors, strict=True, assign=True)
    except (KeyError, IndexError, RuntimeError, OverflowError) as error:
        problem, last = f"{type(error).__name__}: {one_line(error)}", audit.names["converted"][-1]
        raise ValueError(f"state_dict does not fit the options ({problem}; the last tensor read is {last})") from error
    config.architectures = [type(target).__name__]
    return Conversion(config, tensors, source, audit, options, origins)


def check_tensors(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under their names without prefixes. Raises ValueError naming all that no model here has."""
    source, odd = {}, []
    for key, value in state_dict.items():
        name = PREFIXES.sub("", str(key))
        dense = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            odd.append(f"{key!r} is no dense tensor but {type(value).__name__}; save the tensors of the model alone")
        elif name in source:
            odd.append(f"{name!r} stands there twice, with and without the prefix of {key!r}")
        elif name == POSITION_IDS:
            whole = value.dtype in (torch.int64, torch.int32)
            if not whole or not torch.equal(value.flatten().long(), torch.arange(value.numel())):
                odd.append(f"{name} does not count 0, 1, 2, ..")
        elif value.dtype not in WEIGHT_TYPES and not CONSTANT_TABLE.fullmatch(name):
            odd.append(f"{name} is {value.dtype}; weights are float16, bfloat16, float32 or float64")
        elif value.ndim not in DIMENSIONS.get(name, {value.ndim}):
            odd.append(f"{name} has shape {tuple(value.shape)}; expected dimensions: {DIMENSIONS[name]}")
        source[name] = value
    if not source.keys() & {WORDS, DECODER}:
        odd.append(f"there is no {WORDS}")
    if odd:
        raise ValueError(f"state_dict is of no M2-BERT of the research code: {', '.join(odd[:5])}")
    return source


def infer_options(state_dict: dict[str, Tensor]) -> dict:
    """Infer options of the original's configuration from the shapes of its tensors; omit what they do not show."""
    layers = {int(match[1]) for name in state_dict if (match := re.match(LAYER, name))}
    options = {
        "residual_long_conv": any(".attention.filter_fn2." in name for name in state_dict),
        "bidirectional": any(".implicit_filter_rev." in name for name in state_dict),
        "hyena_training_additions": any(".attention.layernorm." in name for name in state_dict),
        "use_positional_encodings": "bert.embeddings.position_embeddings.weight" in state_dict,
    }
    if layers:
        options["num_hidden_layers"] = max(layers) + 1
    if (words := state_dict.get(WORDS, state_dict.get(DECODER))) is not None:
        options["hidden_size"] = words.shape[1]
    if (types := state_dict.get(TYPES)) is not None:
        options["type_vocab_size"] = types.shape[0]
    up, down = state_dict.get(UP), state_dict.get(DOWN)
    if up is not None and down is not None:  # (I or 2 I, H) and (H, I), or blocks of them
        blocks = up.shape[0] if up.ndim == 3 else 1
        width = down.shape[-1] * blocks
        options |= {"use_monarch_mlp": up.ndim == 3, "monarch_mlp_nblocks": blocks, "intermediate_size": width}
        options["use_glu_mlp"] = up.shape[-2] * blocks == 2 * width
    if (features := state_dict.get(FEATURES)) is not None:  # (1, N, E)
        options |= {"max_position_embeddings": features.shape[1], "hyena_emb_dim": features.shape[2]}
    if (hidden := state_dict.get(HIDDEN)) is not None:  # (O, E)
        options["hyena_filter_order"] = hidden.shape[0]
    return options


def options_by_origin(told: dict, configuration: dict) -> dict[str, dict]:
    """Return every option once, by its origin: `config`, else `tensors` (`told`, inferred), else `assumed` (logged)."""
    stated = {name: configuration[name] for name in configuration if name in Options.model_fields}
    told = {name: value for name, value in told.items() if name not in stated}
    assumed = {name: value for name, value in ASSUMED.items() if name not in stated}
    if assumed:
        values = ", ".join(f"{option}={value}" for option, value in assumed.items())
        logger.info("assumed, since tensors do not tell it: %s; a configuration may say otherwise (--config)", values)
    return {"config": stated, "tensors": told, "assumed": assumed}


def check_contradictions(told: dict, rows: int, configuration: dict) -> None:
    """Raise ValueError, with both values, if a configuration contradicts the tensors (`told`, rows of embeddings)."""
    dense = not told.get("use_monarch_mlp", True)  # a dense product is one block, whatever the configuration says
    told = {name: value for name, value in told.items() if not (dense and name == "monarch_mlp_nblocks")}
    stated = configuration.get("vocab_size")
    if stated is not None and -(-stated // 8) * 8 != rows:  # the original rounds it up
        told["vocab_size"] = rows
    if configuration.get("long_conv_l_max") is not None and "max_position_embeddings" in told:
        told["long_conv_l_max"] = told["max_position_embeddings"]
    for name, value in told.items():
        if name in configuration and configuration[name] != value:
            raise ValueError(
                f"option {name}={configuration[name]!r} of the configuration contradicts the tensors, which have "
                f"{value!r}; use the configuration that belongs to these weights (--config)"
            )


def convert_config(options: Options, vocab_size: int) -> "modeling_m2bert.M2BertConfig":
    """Return the configuration of this model. Raises ValueError naming a field that it cannot have."""
    blocks = options.monarch_mlp_nblocks if options.use_monarch_mlp else 1
    fields = {ours: getattr(options, theirs) for theirs, ours in FIELDS.items()}
    pooling = "cls" if options.use_cls_token else "mean_tanh" if options.pool_all else "cls_tanh"
    return AutoConfig.for_model(
        "m2bert", vocab_size=vocab_size, num_blocks=blocks, pooling=pooling, padding="visible", **fields
    )


def _convert_filter(audit: TensorAudit, prefix: str, w_mod: float) -> dict[str, Tensor]:
    """Convert a filter module; the constant factor w_mod of the sines goes into the frequencies."""
    sines = [f"{prefix}implicit_filter{rev}.{index}.freq" for rev in ("", "_rev") for index in (1, 3, 5)]
    frequency = audit.take_shared(sines)[0]

    def both(index: int, name: str) -> Tensor:
        return torch.stack([audit.take(f"{prefix}implicit_filter{rev}.{index}.{name}") for rev in ("", "_rev")])

    return {
        "positional_features": audit.take(prefix + "pos_emb.z")[0],
        "time": audit.take(prefix + "pos_emb.t")[0, :, 0],
        "decay": audit.take(prefix + "modulation.deltas")[0, 0].abs(),
        "frequency": frequency if w_mod == 1 else frequency.double() * w_mod,  # rounded once, when it is loaded
        "skip": audit.take(prefix + "bias"),
        "input_weight": both(0, "weight"),
        "input_bias": both(0, "bias"),
        "hidden_weight": torch.stack([both(2, "weight"), both(4, "weight")]),
        "hidden_bias": torch.stack([both(2, "bias"), both(4, "bias")]),
        "output_weight": both(6, "weight"),
    }
