"""Kernels without a GPU: Triton's interpreter runs them; its compiler needs no device and says what they occupy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

COMPILER = Path(__file__).with_name("compile_sm90.py")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32",
         torch.int64: "*i64"}  # fmt: skip


@pytest.fixture
def device():
    """Where kernels are tested: the GPU, or the interpreter on the CPU."""
    return DEVICE


@pytest.fixture
def poisoned(monkeypatch):
    """Fill what torch.empty, empty_like and new_empty hand out with NaN: memory that nothing writes shows."""

    def poisoning(allocate):
        def allocate_poisoned(*args, **kwargs):
            memory = allocate(*args, **kwargs)
            return memory.fill_(float("nan")) if memory.is_floating_point() else memory

        return allocate_poisoned

    monkeypatch.setattr(torch, "empty", poisoning(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoning(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoning(torch.Tensor.new_empty))


@pytest.fixture
def hold_to_composite():
    """Judge a kernel by float64: at most twice as far from it as plain torch in the kernel's precision.

    The fixture is a function of dictionaries {name: tensor}: what the kernel returned, what torch computed in the same
    precision, and in float64. Distances are relative to the largest exact value; four rounding errors of the type are
    allowed on top, for torch's result may be exact by chance.
    """

    def distance(actual, exact):
        return ((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()

    def hold(actual, composite, exact):
        for name, value in actual.items():
            assert value.shape == exact[name].shape, name
            if value.numel():
                ours, theirs = distance(value, exact[name]), distance(composite[name], exact[name])
                bound = 2 * theirs + 4 * torch.finfo(value.dtype).eps
                assert ours <= bound, f"{name}: error {ours:.2e}, torch {theirs:.2e}, allowed {bound:.2e}"

    return hold


class Recorder:
    """Stands for a kernel and notes how it is launched, as a specification for compile_sm90: pointers and numbers that
    16 divides are known to be so, and numbers that are 1 are constants, unless the kernel says otherwise."""

    def __init__(self, module, name: str, specs: list):
        kernel = getattr(module, name)
        self.parameters, self.constants = kernel.arg_names, kernel.fn.__annotations__
        options = getattr(kernel, "kwargs", None)  # of an interpreted kernel
        self.plain = (options["do_not_specialize"] if options else kernel.do_not_specialize) or ()
        self.module, self.name, self.specs = module.__name__.rpartition(".")[2], name, specs

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *positional, **named):
        options = {name: named.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in named}
        signature, constexprs = {}, {}
        for name, value in (dict(zip(self.parameters, positional, strict=False)) | named).items():
            if isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype] + ("" if value.data_ptr() % 16 else ":16")
            elif value is None or name in self.constants or (value == 1 and name not in self.plain):
                constexprs[name] = value
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = "i32" if name in self.plain or value % 16 else "i32:16"
        spec = {"module": self.module, "kernel": self.name, "signature": signature, "constexprs": constexprs}
        if spec | {"options": options} not in self.specs:
            self.specs.append(spec | {"options": options})


@pytest.fixture
def launches(monkeypatch):
    """The fixture is a function of kernels {module: names}. It returns the list of how they are launched from now on,
    and keeps them from running."""

    def record(kernels: dict) -> list[dict]:
        specs = []
        for module, names in kernels.items():
            for name in names:
                monkeypatch.setattr(module, name, Recorder(module, name, specs))
        return specs

    return record


@pytest.fixture(scope="session")
def compile_sm90():
    """Compile kernels for Hopper in a process of its own, on any machine, and say what the machine code needs.

    The fixture is a function of specifications as a Recorder writes them ("capability": of another GPU, such as 89). It
    returns a dictionary for each: registers of a thread (255 at most); stack, the bytes of a thread in local memory
    (more than 0: registers were spilled); shared bytes of a block (232448 at most); wgmma, whether the kernel uses
    Hopper's matrix instruction for groups of four warps.
    """
    pytest.importorskip("triton")

    command, environment = [sys.executable, str(COMPILER)], os.environ | {"TRITON_INTERPRET": "0"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as compiler:

        def compile_all(specs: list[dict]) -> list[dict]:
            print(json.dumps(specs), file=compiler.stdin, flush=True)
            answer = compiler.stdout.readline()
            assert answer, "the compiler ended; its error is on standard error"
            return json.loads(answer)

        yield compile_all
        compiler.stdin.close()
