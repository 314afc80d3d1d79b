"""Options of the research code: as its configuration states them, as the tensors tell them, or assumed."""

import logging
import math
import re

from torch import Tensor

logger = logging.getLogger(__name__)

# What tensors cannot tell, as the released retrieval models have it: the first token's state through the pooler.
DEFAULTS = {"pool_all": False, "use_cls_token": False, "hyena_w_mod": 1, "layer_norm_eps": 1e-12, "pad_token_id": 0,
            "hidden_act": "gelu", "sequence_token_planting": False}  # fmt: skip
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"  # the same tensor; a file may keep either name
KINDS = {
    "true or false": (
        "bidirectional", "use_positional_encodings", "use_glu_mlp", "use_monarch_mlp", "monarch_mixer_sequence_mixing",
        "sequence_token_planting", "residual_long_conv", "hyena_training_additions", "pool_all", "use_cls_token",
    ),
    "a whole number": (
        "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings",
        "type_vocab_size", "pad_token_id", "monarch_mlp_nblocks", "long_conv_l_max", "hyena_emb_dim",
        "hyena_filter_order",
    ),
    "a finite number": ("hidden_dropout_prob", "layer_norm_eps", "initializer_range", "hyena_w", "hyena_w_mod"),
    "a string": ("hidden_act",),
}  # fmt: skip
FIRST = "bert.encoder.layer.0."
TYPES = "bert.embeddings.token_type_embeddings.weight"
UP, DOWN = f"{FIRST}mlp.gated_layers.weight", f"{FIRST}mlp.wo.weight"
FEATURES, HIDDEN = (f"{FIRST}attention.filter_fn.{name}" for name in ("pos_emb.z", "implicit_filter.0.weight"))
DIMENSIONS = {WORDS: {2}, DECODER: {2}, TYPES: {2}, UP: {2, 3}, DOWN: {2, 3}, FEATURES: {3}, HIDDEN: {2}}
MAY_BE_NULL = {"pad_token_id", "long_conv_l_max"}


def infer_options(state_dict: dict[str, Tensor]) -> dict:
    """Options under the names of the original's configuration; what the tensors do not show is left out.

    Args:
        state_dict: tensors (on any device, meta too) under the original's names, without the prefixes of composer and
            DataParallel.

    Raises:
        ValueError: one of the tensors has not the number of dimensions that it has there.
    """
    for name, expected in DIMENSIONS.items():
        if name in state_dict and state_dict[name].ndim not in expected:
            raise ValueError(
                f"{name} has shape {tuple(state_dict[name].shape)}, but the research code's has "
                f"{' or '.join(map(str, expected))} dimensions"
            )
    layers = {int(match[1]) for key in state_dict if (match := re.match(r"bert\.encoder\.layer\.(\d+)\.", key))}
    options = {
        "residual_long_conv": any(".attention.filter_fn2." in key for key in state_dict),
        "bidirectional": any(".implicit_filter_rev." in key for key in state_dict),
        "hyena_training_additions": any(".attention.layernorm." in key for key in state_dict),
        "use_positional_encodings": "bert.embeddings.position_embeddings.weight" in state_dict,
    }
    if layers:
        options["num_hidden_layers"] = max(layers) + 1
    if (words := word_embeddings(state_dict)) is not None:
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


def word_embeddings(state_dict: dict[str, Tensor]) -> Tensor | None:
    """Under whichever of its names it stands."""
    return next((state_dict[name] for name in (WORDS, DECODER) if name in state_dict), None)


def check_types(configuration: dict):
    """Raise ValueError if an option of the original's configuration is of another type than it has there."""
    fits = {
        "true or false": lambda value: isinstance(value, bool),
        "a whole number": lambda value: type(value) is int,
        "a finite number": lambda value: type(value) in (int, float) and math.isfinite(value),
        "a string": lambda value: isinstance(value, str),
    }
    for kind, names in KINDS.items():
        for name in names:
            value = configuration.get(name)
            if name not in configuration or (value is None and name in MAY_BE_NULL) or fits[kind](value):
                continue
            raise ValueError(f"option {name}={value!r} of the original's configuration must be {kind} (--config)")


def options_by_origin(state_dict: dict[str, Tensor], configuration: dict, known: set[str]) -> dict[str, dict]:
    """Every option once, under where it comes from: `config` (stated), else `tensors` (told), else `assumed` (logged).

    Args:
        state_dict: as in `infer_options`.
        configuration: the original's, with whatever else it holds.
        known: names of the options that matter here.
    """
    stated = {name: configuration[name] for name in configuration if name in known}
    told = {name: value for name, value in infer_options(state_dict).items() if name not in stated}
    assumed = {name: value for name, value in DEFAULTS.items() if name not in stated}
    if assumed:
        values = ", ".join(f"{option}={value}" for option, value in assumed.items())
        logger.info("assumed, since tensors do not tell it: %s; a configuration may say otherwise (--config)", values)
    return {"config": stated, "tensors": told, "assumed": assumed}


def check_contradictions(state_dict: dict[str, Tensor], configuration: dict):
    """Raise ValueError if a configuration states what the tensors contradict, with both values."""
    told = infer_options(state_dict)
    if not told.get("use_monarch_mlp", True):
        told.pop("monarch_mlp_nblocks")  # a dense product is one block, whatever the configuration keeps there
    rows, words = configuration.get("vocab_size"), word_embeddings(state_dict)
    if words is not None and rows is not None and -(-rows // 8) * 8 != words.shape[0]:  # the original rounds it up
        told["vocab_size"] = words.shape[0]
    for name, value in told.items():
        if name in configuration and configuration[name] != value:
            raise ValueError(
                f"option {name}={configuration[name]!r} of the configuration contradicts the tensors, which have "
                f"{value!r}; use the configuration that belongs to these weights (--config)"
            )
