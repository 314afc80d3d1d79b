"""Tensors out of a PyTorch file that holds more than tensors, without running anything that the file names.

Training frameworks save random states, timers and metrics beside the weights, which `torch.load(weights_only=True)`
refuses. Here the pickle is read by an unpickler that knows how tensors are put together and the dictionaries they lie
in; every other global that the file names becomes a `Placeholder`, which takes whatever is done to it and does nothing.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class Placeholder:
    """Stands for an object of a foreign class, or for what a foreign function would have returned."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        """As a list would, and forgotten."""

    def extend(self, items):
        """As a list would, and forgotten."""

    def add(self, item):
        """As a set would, and forgotten."""


class InertUnpickler(pickle.Unpickler):
    """Reads `data.pkl` of a file of torch.save.

    Args:
        read: the bytes of a storage by its name.
    """

    def __init__(self, file: io.BufferedIOBase, read):
        super().__init__(file)
        self.read = read
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str):
        """The few globals that tensors need, as our own; a Placeholder for any other."""
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
            ("builtins", "getattr"): attribute_of,
            ("__builtin__", "getattr"): attribute_of,
        }
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        return known.get((module, name), Placeholder)

    def persistent_load(self, pid):
        """A storage as a tensor of one dimension, read once."""
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Placeholder()
        if key not in self.storages:
            content = bytearray(self.read(str(key)))
            size = torch.empty(0, dtype=dtype).element_size()
            if len(content) != count * size:
                raise ValueError(f"storage {key} has {len(content)} bytes, not {count} numbers of {size}")
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else empty
        return self.storages[key]


def rebuild_tensor(storage, offset, size, stride, *_):
    """A view of a storage; torch refuses one that reaches beyond it."""
    return storage.as_strided(size, stride, offset) if isinstance(storage, Tensor) else Placeholder()


def attribute_of(*_):
    """For `getattr`, through which classes within classes and methods are named: something to make or to call."""
    return Placeholder


def rebuild_parameter(data, *_):
    """The tensor of a parameter."""
    return data


def check_memo(pickled: bytes):
    """Raise ValueError if a pickle keeps an object under a number that its length does not explain, or names more bytes
    than follow: the unpickler would allocate memory for all of them."""
    operations = [(operation.name, argument) for operation, argument, _ in pickletools.genops(pickled)]
    for name, argument in operations:
        if name.endswith("PUT") and argument >= len(operations):
            raise ValueError(f"{name} {argument} among {len(operations)} operations")


def read_inert(path: str | Path):
    """What `torch.save` wrote, with tensors and plain containers whole and everything else replaced by Placeholders.

    Raises:
        ValueError: it is no file of torch.save (of torch 1.6 or newer), is damaged or compressed, or is big-endian.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
            if root is None:
                raise ValueError("it holds no data.pkl")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, which torch.save never does")
            pickled = archive.read(f"{root}data.pkl")
            check_memo(pickled)
            return InertUnpickler(io.BytesIO(pickled), lambda key: archive.read(f"{root}data/{key}")).load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path} cannot be read as a file of torch.save ({type(error).__name__}: {error})") from error
