"""The account of a foreign state dict: what became of each of its tensors."""

import re
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

TABLE = re.compile(r"bert\.encoder\.(layer\.\d+\.attention\.filter_fn2?\.)?flashfft\.\w+")
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class Account:
    """Names of a file's tensors, without prefixes, by what became of them; together they are all of them."""

    converted: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)  # found equal to a converted one
    rebuilt: list[str] = field(default_factory=list)  # found to be what the model makes by itself
    constant_tables: list[str] = field(default_factory=list)  # of FlashFFTConv
    not_converted: list[str] = field(default_factory=list)  # the target has no such head

    def record(self) -> dict:
        """As JSON: names where they tell something, else numbers."""
        names = asdict(self)
        total = sum(len(group) for group in names.values())
        counts = {key: len(names[key]) for key in ("converted", "constant_tables")}
        return {"total": total} | names | counts


class Ledger:
    """A state dict from which tensors are taken one by one; each is noted in the account."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors, self.left, self.account = tensors, dict(tensors), Account()
        for name in tensors:
            if TABLE.fullmatch(name):
                self._note(name, "constant_tables")

    def _note(self, name: str, group: str) -> Tensor:
        getattr(self.account, group).append(name)
        return self.left.pop(name)

    def take(self, name: str) -> Tensor:
        """A tensor to convert. Raises ValueError if it is not there."""
        if name not in self.left:
            raise ValueError(f"state_dict lacks {name!r}; num_hidden_layers or another option does not fit it")
        return self._note(name, "converted")

    def take_shared(self, names: list[str]) -> Tensor:
        """One tensor that stands under several names; files of safetensors keep only one of them.

        Raises:
            ValueError: it stands under none of them, or the tensors differ.
        """
        found = [name for name in names if name in self.left] or names[:1]
        first = self.take(found[0])
        for name in found[1:]:
            self.repeat(name, first, found[0])
        return first

    def repeat(self, name: str, other: Tensor, other_name: str):
        """A second copy of a converted tensor. Raises ValueError if it is none: it would be lost."""
        if self.left[name].dtype != other.dtype or not torch.equal(self.left[name], other):
            raise ValueError(f"{name} differs from {other_name}, but this model has one tensor for both: not supported")
        self._note(name, "repeated")

    def rebuild(self, name: str, count: int):
        """The whole numbers 0 to count - 1 of positions. Raises ValueError if they are others."""
        positions, expected = self.left[name].flatten(), torch.arange(count)
        if positions.dtype not in (torch.int64, torch.int32) or not torch.equal(positions.long(), expected):
            raise ValueError(f"{name} does not count 0, 1, .. to {count - 1}: other positions are not supported")
        self._note(name, "rebuilt")

    def check_weights(self):
        """Raise ValueError if anything that is left is of no type that weights have."""
        for name, tensor in self.left.items():
            if tensor.dtype not in WEIGHT_TYPES:
                raise ValueError(f"{name} is {tensor.dtype}; weights are float16, bfloat16, float32 or float64")

    def leave(self, prefixes: tuple[str, ...]):
        """Heads that the target does not have."""
        for name in [name for name in self.left if name.startswith(prefixes)]:
            self._note(name, "not_converted")


def without_prefixes(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the original's names: without `model.` (composer) and `module.` (DataParallel).

    Raises:
        ValueError: two tensors would have the same name.
    """
    stripped = {}
    for key, value in state_dict.items():
        name = re.sub(r"^(module\.|model\.)*(?=bert\.|cls\.|classifier\.)", "", key)
        if name in stripped:
            raise ValueError(f"state_dict holds {name!r} twice, with and without the prefix of {key!r}; keep one model")
        stripped[name] = value
    return stripped
