"""Read tensors from a PyTorch file that holds more than tensors, without running anything that the file names.

Training frameworks save random states, timers and metrics beside the weights, which `torch.load(weights_only=True)`
refuses. The unpickler here knows tensors and the dictionaries they are in. Every other global that the file names
becomes a `Placeholder`, which ignores everything done to it.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class Placeholder:
    """Stands for an object of a foreign class, or for the result of a foreign function."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    __setstate__ = __setitem__ = append = extend = add = __init__


class InertUnpickler(pickle.Unpickler):
    """Reads `data.pkl` of a file of torch.save; `read` returns the bytes of a storage by its name."""

    def __init__(self, file: io.BufferedIOBase, read: Callable[[str], bytes]):
        super().__init__(file)
        self.read = read
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str):
        """Return our own stand-ins for what tensors need, and Placeholder for anything else."""
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: (
                # torch refuses a view that reaches beyond the storage
                storage.as_strided(size, stride, offset) if isinstance(storage, Tensor) else Placeholder()
            ),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "builtins.getattr": lambda *_: Placeholder,  # names classes within classes, and methods
            "__builtin__.getattr": lambda *_: Placeholder,
        } | {f"torch.{storage}": dtype for storage, dtype in DTYPES.items()}
        return known.get(f"{module}.{name}", Placeholder)

    def persistent_load(self, pid):
        """Return a storage as a tensor of one dimension."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Placeholder()
        if key not in self.storages:
            content = bytearray(self.read(str(key)))
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(content, dtype=dtype, count=count) if count else empty
        return self.storages[key]


def read_inert(path: str | Path):
    """Read what `torch.save` wrote: tensors and plain containers, with Placeholders for everything else.

    A file of a few bytes cannot ask for much memory: the unpickler would allocate all numbers up to the one under
    which a pickle keeps an object, and all bytes that it announces. Both are checked first. A damaged file can fail
    with any exception.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        order = f"{root}byteorder"
        big = order in archive.namelist() and archive.open(order).read(6) != b"little"
        if big or any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its numbers are big-endian, or it is compressed; save it again, by torch.save here")
        pickled = archive.read(f"{root}data.pkl")
        operations = list(pickletools.genops(pickled))  # raises ValueError if fewer bytes follow than announced
        if any(kind.name.endswith("PUT") and number >= len(operations) for kind, number, _ in operations):
            raise ValueError(f"it keeps an object under a number beyond its {len(operations)} operations")
        return InertUnpickler(io.BytesIO(pickled), lambda key: archive.read(f"{root}data/{key}")).load()
