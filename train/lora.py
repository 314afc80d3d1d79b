"""LoRA by peft: train a small change of a checkpoint's large matrices, and keep only the change.

Adapted are the mixers' projections (`target_modules`) and the block-diagonal weights (`target_parameters`: a change of
rank r for every block). Modules that the checkpoint lacked, such as a new pooler, are trained and kept whole. Anyone
loads the result with `PeftModel.from_pretrained(AutoModel.from_pretrained(base, trust_remote_code=True), adapter)`;
`m2bert export --model ADAPTER --output DIR` merges the two into a complete folder.
"""

import dataclasses
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from m2bert.hub.folder import save_tokenizer, whole_folder

PROJECTIONS = ["in_proj", "out_proj"]
BLOCK_DIAGONAL = ["up.weight", "down.weight"]
TRAINING_ONLY = {"hidden_dropout_prob", "classifier_dropout", "sparse_prediction"}  # fields that change no inference
CARD = """---
library_name: peft
---

# LoRA adapter of an M2-BERT

Of rank {rank}, for the model in `{base}`.

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}", trust_remote_code=True), path)
```

`m2bert export --model path --output merged` writes the merged model as a complete folder.

Before pushing this folder, push the base, and write its Hub id in place of the local path: into this card, with a line
`base_model: ORGANISATION/NAME` at its head and with `revision="COMMIT"` where it is loaded, and, as
`base_model_name_or_path`, into adapter_config.json. Then remove this paragraph.
"""


def add_lora(model: PreTrainedModel, rank: int, alpha: float, new_tensors: set[str]):
    """A checkpoint with adapters, at first the same function. Only they and the modules of `new_tensors` are trained.

    Args:
        model: loaded from a folder, which the adapter will name as its base.
        rank: of the change of a projection, and of a block.
        alpha: the change is scaled by alpha / rank.
        new_tensors: names of tensors that the checkpoint lacked (`make_model`).

    Raises:
        ValueError: peft is not installed, rank is less than 1, the model is new, or differs from its checkpoint in more
            than weights: an adapter carries weights alone.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError("lora.rank needs the package peft, which is not installed: pip install peft") from error
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    if not model.name_or_path or new_tensors >= set(model.state_dict()):
        raise ValueError("LoRA changes a checkpoint, and this model is new; name one (model.path)")
    base = Path(model.name_or_path).resolve()
    _check_same_architecture(model, base)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=PROJECTIONS,
        target_parameters=BLOCK_DIAGONAL,
        modules_to_save=sorted({name.rpartition(".")[0] for name in new_tensors}) or None,
        base_model_name_or_path=str(base),
    )
    adapted = get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(base)  # peft writes the path as it was given
    return adapted


def _check_same_architecture(model: PreTrainedModel, base: Path):
    stored = AutoConfig.from_pretrained(base, trust_remote_code=False)
    fields = [field.name for field in dataclasses.fields(stored) if field.name not in TRAINING_ONLY]
    changed = {name: getattr(model.config, name) for name in fields}
    changed = {name: value for name, value in changed.items() if value != getattr(stored, name)}
    if changed:
        text = ", ".join(f"{name}={value!r} (base: {getattr(stored, name)!r})" for name, value in changed.items())
        raise ValueError(
            f"an adapter cannot carry what model.architecture changed of {base}: {text}. Write the changed model as a "
            "folder first (steps=0 without lora), and name it as model.path"
        )


def write_adapter(
    model,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    extra_files: dict[str, str] | None = None,
    state_dict: dict | None = None,
) -> Path:
    """Write the adapters of a model of `add_lora` as a folder for peft, with tokenizer and card; whole or not at all.

    Args:
        state_dict: the weights, where the model holds only a shard of them. The others as for `write_folder`.

    Raises:
        ValueError: output_dir may not be written, see `check_output`.
    """
    settings = model.peft_config["default"]
    with whole_folder(output_dir, overwrite) as new:
        model.save_pretrained(new, state_dict=state_dict, save_embedding_layers=False)
        save_tokenizer(tokenizer, model.config.max_position_embeddings, new)
        card = CARD.format(base=settings.base_model_name_or_path, rank=settings.r)
        for name, text in ({"README.md": card} | (extra_files or {})).items():
            (new / name).write_text(text, encoding="utf-8")
    return Path(output_dir).resolve()
