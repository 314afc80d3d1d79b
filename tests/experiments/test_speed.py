"""The benchmarks time nothing that is wrong, and what is wrong, crashes or hangs costs its own rows only."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from modeling_m2bert.m2bert_ops_dispatch import load_kernels

ROOT = Path(__file__).parents[2]
SPEED = ROOT / "experiments" / "speed"


@pytest.fixture
def speed(script, monkeypatch):
    """Import a file of experiments/speed. The kernels that its arms ask for are forgotten after the test."""
    monkeypatch.setenv("M2BERT_KERNELS", "auto")
    return lambda name: script(f"experiments/speed/{name}.py")


@pytest.fixture
def main(monkeypatch, tmp_path, speed):
    """Run a benchmark with arguments; return its exit status and its records."""

    def run(name, *arguments):
        output = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--device", "cpu", "--output", str(output)])
        try:
            status = speed(name).main() or 0
        except speed("harness").RedGate as ended:
            status = ended.exit_code
        return status, json.loads(output.read_text())

    return run


def test_the_baseline_keeps_the_filters_of_the_model_bit_for_bit(speed):
    base = speed("arms").base_model(64, 1)
    original = speed("original").Original(base).to(dtype=torch.bfloat16)
    assert original.layers[0].mixer.in_proj.weight.dtype == torch.bfloat16
    for name in ("filter", "residual_filter"):
        found, right = (model.layers[0].mixer.get_submodule(name).state_dict() for model in (original, base))
        assert found.keys() == right.keys()
        assert all(torch.equal(found[key], right[key]) for key in right)
    runners, _ = speed("arms").build([speed("arms").Arm("original", "bfloat16")], "cpu", 64, 1)
    (verdict,) = speed("arms").Gate(base, "cpu", training=False).check(runners, torch.arange(1, 65)[None]).values()
    assert verdict["red"] is None
    assert verdict["worst_error"] < 2.5e-2  # half of the bound; 7e-2 with rounded filters


def wrong_gradient(hidden, pooled):
    return hidden, 1.01 * pooled


def raises(hidden, pooled):
    raise RuntimeError("no kernel image")


FAULTS = {  # by the length at which ours has it, with what the record says
    "forward": {
        32: (lambda hidden, pooled: (1.01 * hidden, pooled), "error .* above 1e-04"),
        48: (lambda hidden, pooled: (hidden, torch.nan * pooled), "not finite"),
        64: (raises, "RuntimeError: no kernel image"),
    },
    "training": {32: (wrong_gradient, "^gradient_error .* above 1e-04")},
}


@pytest.mark.parametrize("mode", FAULTS)
def test_a_red_arm_costs_its_own_rows_only(mode, speed, main, monkeypatch):
    arms = speed("arms")

    class Faulty(arms.Runner):
        def forward(self, ids, **inputs):
            hidden, pooled = super().forward(ids, **inputs)
            fault, _ = FAULTS[mode].get(ids.shape[1], (None, None))
            return fault(hidden, pooled) if fault and self.arm.is_ours else (hidden, pooled)

    monkeypatch.setattr(arms, "Runner", Faulty)
    lengths = [16, *FAULTS[mode]]
    settings = ["--lengths", ",".join(map(str, lengths)), "--layers", "1", "--rounds", "3", "--mode", mode]
    status, records = main("forward", "--arms", "ours,original,minilm-l6", *settings)
    assert status == 1
    cells = {(record["arm"], record["length"]): record for record in records}
    assert [*cells] == [(arm, n) for n in lengths for arm in ("ours", "original", "minilm-l6")]
    red = {cell: record["red"] for cell, record in cells.items() if record["red"]}
    assert [*red] == [("ours", n) for n in FAULTS[mode]]
    assert all(re.search(FAULTS[mode][n][1], said) for (_, n), said in red.items())
    assert {cell for cell, record in cells.items() if record["seconds"] is None} == {*red}


def test_a_right_run_ends_with_status_0(main):
    for name, arguments in (
        ("forward", ["--arms", "ours,original", "--lengths", "16", "--layers", "1", "--rounds", "3"]),
        ("ops", ["--ops", "add_layer_norm", "--lengths", "16,32", "--batch-tokens", "32", "--rounds", "3"]),
        ("query", ["--arms", "ours:float32", "--tokens", "8", "--context", "32", "--mixed-lengths", "8,16", "--layers",
                   "1"]),
    ):  # fmt: skip
        status, records = main(name, *arguments)
        assert status == 0
        assert records
        assert all(record["seconds"] > 0 and record["red"] is None for record in records)


def test_a_wrong_operation_costs_its_own_rows_only(main, monkeypatch):
    kernels = load_kernels("torch")
    right = kernels["add_layer_norm"]
    monkeypatch.setitem(kernels, "add_layer_norm", lambda x, *rest: right(x, *rest) + (len(x) == 64))
    settings = ["--lengths", "16,32", "--rounds", "3"]
    status, records = main("ops", "--ops", "add_layer_norm", "--batch-tokens", "64", *settings)
    assert status == 1
    assert {(record["arm"], record["red"] is None) for record in records} == {("ours", False), ("plain", True)}
    assert all((record["seconds"] is None) == (record["arm"] == "ours") for record in records)


def test_a_job_that_fails_costs_its_own_records_only(speed, tmp_path, capsys, monkeypatch):
    harness, output = speed("harness"), tmp_path / "records.json"
    record = harness.make_record("cpu", [1.0], arm="a")

    def fails():
        raise RuntimeError("lost device")

    with pytest.raises(harness.RedGate, match="1 jobs failed"):
        harness.run_jobs([lambda: [record], fails, lambda: [record]], output)
    assert len(json.loads(output.read_text())) == 2
    assert "lost device" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "empty_cache", fails)
    harness.free_memory("cuda")


def test_an_arm_has_its_scratch_and_the_others_the_default(speed, monkeypatch):
    pytest.importorskip("triton")
    arms = speed("arms")
    stages, default = arms.scratch_bytes()
    seen = {}

    class Model(torch.nn.Linear):
        config = SimpleNamespace(num_hidden_layers=1)

        def forward(self, ids):
            seen[os.environ["M2BERT_KERNELS"]] = stages.SCRATCH_BYTES
            return super().forward(ids)

    for name in ("ours-scratch-48", "ours"):
        arms.Runner(arms.Arm(name, "float32"), Model(2, 2)).forward(torch.zeros(1, 2, 2))
    assert seen == {"triton": 48 << 20, "auto": default}


# --- numerics ---

on_triton = pytest.mark.skipif(torch.cuda.is_available(), reason="the numerics run on the GPU itself")


@on_triton
def test_numerics_of_operations_that_do_not_mix_positions(main):
    pytest.importorskip("triton")
    settings = ["--ops", "block_diagonal_glu", "add_layer_norm", "--lengths", "17", "--hidden", "32"]
    status, records = main("numerics", *settings)
    assert status == 0
    assert len(records) == 2 * (4 + 2)  # dtypes, cases
    compared = [record for record in records if "dropout" not in record["op"]]
    assert all(0 < record["error"] < 2e-3 for record in compared)
    names = {name for record in compared for name in record["errors"]}
    assert names == {"y0", "d_x", "d_y", "d_up", "d_down", "d_weight", "d_bias"}


@pytest.mark.slow
@on_triton
@pytest.mark.parametrize(
    ("op", "lengths", "dtype"),
    [("long_conv", "17", "float16"), ("long_conv", "17", "bfloat16"), ("short_conv_gate", "3,17", "float32")],
)
def test_numerics_of_convolutions(op, lengths, dtype, main):
    pytest.importorskip("triton")
    status, records = main("numerics", "--ops", op, "--lengths", lengths, "--channels", "1", "--dtypes", dtype)
    assert status == 0, [record["red"] for record in records]
    names = {record["op"] for record in records}
    assert names == (
        {"short_conv_gate uniform", "short_conv_gate ragged"}
        if op == "short_conv_gate"
        else {f"long_conv {rows}{part}" for rows in ("uniform", "ragged") for part in ("", " without residual")}
        | {"cached_long_conv uniform", "cached_long_conv ragged"}
        | {
            f"long_conv {rows} of {size}"
            for rows in ("uniform", "ragged")
            for size in ("1e-06", "1e+06")
            if dtype == "bfloat16"
        }
    )


@on_triton
@pytest.mark.parametrize("fault", ["wrong", "one value", "moving", "unwritten", "raises"])
def test_a_planted_fault_of_a_kernel_is_red_and_costs_its_own_rows_only(fault, main, monkeypatch):
    pytest.importorskip("triton")
    kernels, calls = load_kernels("triton"), []
    right = kernels["add_layer_norm_backward"]

    def faulty(dz, x, *rest):
        calls.append(x)
        dx, d_weight, d_bias = right(dz, x, *rest)
        if len(x) == 17 and x.dtype == torch.float16 and x.shape[1] == 32:
            match fault:
                case "wrong":
                    dx = dx * 1.01
                case "one value":
                    dx[-1, -1] += 1
                case "moving":
                    d_bias = d_bias * (1 + 2e-3 * (len(calls) % 2))
                case "unwritten":
                    d_bias = torch.empty_like(d_bias).copy_(d_bias)
                    d_bias[3:4] = torch.where(torch.empty(1).isnan(), torch.nan, d_bias[3:4])
                case "raises":
                    raise RuntimeError("no kernel image")
        return dx, d_weight, d_bias

    monkeypatch.setitem(kernels, "add_layer_norm_backward", faulty)
    status, records = main("numerics", "--ops", "add_layer_norm", "--lengths", "1,17", "--hidden", "32")
    assert status == 1
    assert len(records) == 2 * 2 * 2  # dtypes, lengths, cases
    (red,) = [record for record in records if record["red"]]
    assert (red["op"], red["dtype"], red["length"]) == ("add_layer_norm of 32", "float16", 17)
    said = {"wrong": "error of d_x", "one value": "worst error of d_x", "moving": "d_bias differs between two runs",
            "unwritten": "d_bias differs between two runs", "raises": "RuntimeError: no kernel image"}  # fmt: skip
    assert said[fault] in red["red"]


STAND_IN_PART = """\
#!{python}
import json, os, pathlib, sys, time
arguments = sys.argv[sys.argv.index("--ops"):]
value = lambda name: arguments[arguments.index(name) + 1]
output, op = pathlib.Path(value("--output")), value("--ops")
if (op, value("--dtypes")) == ("block_diagonal_glu", "float32"):
    os.kill(os.getpid(), 11)
lengths = [int(length) for length in value("--lengths").split(",")]
records = [dict(op=op, dtype=value("--dtypes"), length=length, red=None) for length in lengths]
output.write_text(json.dumps(records[:1] if op == "add_layer_norm" else records))
if op == "add_layer_norm" and value("--dtypes") == "float16":
    time.sleep(60)
"""


def test_a_process_of_the_numerics_that_crashes_or_hangs_costs_its_own_rows_only(main, tmp_path, monkeypatch):
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN_PART.format(python=sys.executable))
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ops = ["--ops", "short_conv_gate", "block_diagonal_glu", "add_layer_norm", "--dtypes", "float32", "float16"]
    status, records = main("numerics", *ops, "--lengths", "1,2,10240", "--jobs", "2", "--budget-seconds", "2")
    assert status == 1
    red = {(record["op"], record["dtype"]): record["red"] for record in records if record["red"]}
    assert "status -11 before the lengths 1,2" in red["block_diagonal_glu", "float32"]
    assert "before the lengths 2: out of time" in red["add_layer_norm", "float16"]
    assert "status 0 before the lengths 2" in red["add_layer_norm", "float32"]
    green = {(record["op"], record["dtype"], record["length"]) for record in records if not record["red"]}
    assert green == {
        *(("short_conv_gate", dtype, length) for dtype in ("float32", "float16") for length in (1, 2, 10240)),
        *(("block_diagonal_glu", "float16", length) for length in (1, 2)),
        *(("add_layer_norm", dtype, 1) for dtype in ("float32", "float16")),
    }


# --- run.sh ---

STEPS = ["numerics", "ops", "ops-training", "forward", "training", "batches", "scratch", "peers"]
STAND_IN = """\
#!{python}
import os, pathlib, signal, subprocess, sys, time
arguments = sys.argv[1:]
if arguments[0] == "-c":
    sys.exit("flash_attn" in arguments[1] or "torch" in arguments[1] and not int(os.environ["STAND_IN_GPU"]))
if "pytest" in arguments:
    try:
        print("running", *arguments, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit("FAILED test_of_a_kernel")
step = pathlib.Path(arguments[arguments.index("--output") + 1])
step.write_text(os.environ["M2BERT_COMMIT"])
match step.stem:
    case "ops":
        sys.exit(1)
    case "forward":
        os.abort()
    case "training":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(60)
    case "batches":  # leaves a process that holds its output
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
"""
TIMEOUT = '#!/bin/sh\nsignal=$1; shift 3; exec {timeout} $signal --kill-after=0.2 0.5 "$@"\n'  # in place of its limits
SANITIZER = '#!/bin/sh\nshift 4; exec "$@"\n'


def dry_run(tmp_path, gpu=True, seconds=0, sanitizer=False):
    """Run run.sh with stand-ins; return its exit status, its log, and the names of the records that it left."""
    programs, output = tmp_path / "bin", tmp_path / "output"
    programs.mkdir()
    texts = {
        "python": STAND_IN.format(python=sys.executable),
        "timeout": TIMEOUT.format(timeout=shutil.which("timeout")),
    }
    if sanitizer:
        texts["compute-sanitizer"] = SANITIZER
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHON": str(programs / "python")}
    environment |= {"STAND_IN_GPU": str(int(gpu)), "SECONDS": str(seconds)}
    ended = subprocess.run([SPEED / "run.sh", output], env=environment, capture_output=True, text=True, timeout=50)
    records = list(output.glob("*.json"))
    assert len({path.read_text() for path in records}) <= 1  # one commit, although the first record changes the tree
    return ended.returncode, (output / "log.txt").read_text(), sorted(path.stem for path in records)


def steps_of(log):
    """Return {name: limit in seconds} of the steps that were begun, in their order."""
    return {name: int(limit) for name, limit in re.findall(r"^== ([\w-]+), at \d+ s, limit (\d+) s", log, re.MULTILINE)}


def test_no_step_of_a_gpu_run_loses_another(tmp_path):
    status, log, records = dry_run(tmp_path)
    limits = steps_of(log)
    assert [*limits] == [*STEPS, "tests"]
    assert records == sorted(STEPS)
    *benchmarks, _ = limits.values()
    assert sum(benchmarks) + 5 * len(benchmarks) <= 520
    assert "FAILED test_of_a_kernel" in log
    assert status == 1
    assert re.findall("^not green: (.*)", log, re.MULTILINE) == [
        "ops (status 1)",
        "forward (status 134)",
        "training (status 137)",
        "tests (status 124)",
    ]
    for tool in ("racecheck", "memcheck"):
        assert f"not run: {tool}" in log
    assert "ours-torch:float32" in log
    assert "ours:float16" in log


@pytest.mark.parametrize(("seconds", "begun"), [(490, True), (517, False)])
def test_a_gpu_run_ends_in_time(seconds, begun, tmp_path):
    status, log, _ = dry_run(tmp_path, seconds=seconds, sanitizer=True)
    assert status == 1
    limits = steps_of(log)
    assert [*limits] == ([*STEPS, "racecheck", "memcheck", "tests"] if begun else [])
    assert all(5 <= limit <= 520 - seconds - 5 for limit in limits.values())
    assert log.count("(no time left)") == (0 if begun else len(STEPS) + 3)


def test_a_cpu_run_has_no_limits(tmp_path):
    _, log, _ = dry_run(tmp_path, gpu=False, seconds=600)
    steps = ["forward", "training", "query", "ops", "ops-training", "modernbert", "long"]
    assert steps_of(log) == dict.fromkeys(steps, 0)
