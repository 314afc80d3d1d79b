"""Compile kernels for sm_90 without a GPU: a line of input holds specifications, a line of output resources, as JSON;
the `compile_sm90` fixture documents both. A process of its own, because in an interpreting process kernels cannot be
compiled.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ROOT = Path(__file__).parents[2]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def source_of(spec: dict) -> ASTSource:
    kernel = getattr(importlib.import_module(f"modeling_m2bert.{spec['module']}"), spec["kernel"])
    constexprs = spec["constexprs"]
    given = {**spec["signature"], **dict.fromkeys(constexprs, "constexpr")}
    signature = {name: given[name].removesuffix(":16") for name in kernel.arg_names}
    aligned = [index for index, name in enumerate(kernel.arg_names) if given[name].endswith(":16")]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    return ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)


def resources(compiled) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage).group(1)) for key in ("REG", "STACK"))
    wgmma = "wgmma.mma_async" in compiled.asm["ptx"]
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared, "wgmma": wgmma}


def main():
    package = types.ModuleType("modeling_m2bert")  # kernel files without the model: they know torch and triton only
    package.__path__ = [str(ROOT / "modeling_m2bert")]
    sys.modules["modeling_m2bert"] = package
    for line in sys.stdin:
        results = []
        for spec in json.loads(line):
            target = GPUTarget("cuda", spec.get("capability", 90), 32)
            results.append(resources(triton.compile(source_of(spec), target=target, options=spec.get("options", {}))))
        print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()
