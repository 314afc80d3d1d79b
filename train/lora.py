"""LoRA by peft: train a small change of a checkpoint's large matrices, and write only the change.

peft adapts the mixers' projections (`target_modules`) and the block-diagonal weights (`target_parameters`: a change of
rank r for every block). Modules that the checkpoint lacked, such as a new pooler, are trained and written whole. CARD
says how the result is loaded; `m2bert export --model ADAPTER --output DIR` merges it into a complete folder.
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
`base_model: ORGANIZATION/NAME` at its head and with `revision="COMMIT"` where it is loaded, and, as
`base_model_name_or_path`, into adapter_config.json. Then remove this paragraph.
"""


def add_lora(model: PreTrainedModel, rank: int, alpha: float, new_tensors: set[str]):
    """Return a checkpoint with adapters, at first the same function. Only they and new modules are trained.

    Args:
        model: loaded from a folder, which the adapter will name as its base. It may differ in weights alone.
        rank, alpha: of the change of a projection, and of a block; it is scaled by alpha / rank.
        new_tensors: names of tensors that the checkpoint lacked (`make_model`).
    """
    from peft import LoraConfig, get_peft_model

    base = Path(model.name_or_path).resolve()
    stored = AutoConfig.from_pretrained(base, trust_remote_code=False)
    fields = [field.name for field in dataclasses.fields(stored) if field.name not in TRAINING_ONLY]
    pairs = [(name, getattr(model.config, name), getattr(stored, name)) for name in fields]
    changed = [f"{name}={new!r} (base: {old!r})" for name, new, old in pairs if new != old]
    if changed:
        raise ValueError(
            f"an adapter cannot carry what model.architecture changed of {base}: {', '.join(changed)}. Write the "
            "changed model as a folder first (steps=0 without lora), and name it as model.path"
        )
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=PROJECTIONS,
        target_parameters=BLOCK_DIAGONAL,
        modules_to_save=sorted({name.rpartition(".")[0] for name in new_tensors}) or None,
    )
    adapted = get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(base)  # peft writes the path as it was given
    return adapted


def write_adapter(
    model,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    extra_files: dict[str, str] | None = None,
    state_dict: dict | None = None,
) -> Path:
    """Write the adapters of a model of `add_lora` as a folder for peft, as `write_folder` writes a model."""
    settings = model.peft_config["default"]
    with whole_folder(output_dir, overwrite) as new:
        model.save_pretrained(new, state_dict=state_dict, save_embedding_layers=False)
        save_tokenizer(tokenizer, model.config.max_position_embeddings, new)
        card = CARD.format(base=settings.base_model_name_or_path, rank=settings.r)
        for name, text in ({"README.md": card} | (extra_files or {})).items():
            (new / name).write_text(text, encoding="utf-8")
    return Path(output_dir).resolve()
