"""The short convolution's kernels against the definition in float64, in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")

from references import short_conv_gate  # noqa: E402

from modeling_m2bert import m2bert_ops_triton_short as short  # noqa: E402

H = 3
NAMES = ["gated", "gate", "d_projected", "d_projection_bias", "d_weight", "d_bias"]
HALF = [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]


def with_gradients(arguments, rows, directions, dtype):
    leaves = [argument.detach().to(dtype).requires_grad_() for argument in arguments]
    outputs = short_conv_gate(*leaves, *rows)
    gradients = torch.autograd.grad(outputs, leaves, [direction.to(dtype) for direction in directions])
    return dict(zip(NAMES, [*outputs, *gradients], strict=True))


def batch(slots, lengths, dtype, device, columns=None):
    """Random arguments, with NaN wherever no text is."""
    torch.manual_seed(sum(slots) + len(slots))
    columns = sum(slots) if columns is None else columns
    offsets = torch.tensor([0, *slots], device=device).cumsum(0).to(torch.int32)
    lengths = torch.tensor(lengths, device=device, dtype=torch.int32)
    t = torch.arange(columns, device=device)
    real = ((t >= offsets[:-1, None]) & (t < (offsets[:-1] + lengths)[:, None])).any(0)
    parameters = [torch.randn(shape, device=device) for shape in ((3 * H,), (3 * H, 3), (3 * H,))]
    signals = [torch.randn(channels, columns, device=device).to(dtype) for channels in (3 * H, H, H)]
    projected, *directions = [torch.where(real, signal, 0.0) for signal in signals]
    return projected, parameters, directions, (offsets, lengths), real


def run(projected, parameters, directions, rows, real):
    """The kernels' results, from inputs that hold NaN wherever no text is."""
    projected, *directions = (torch.where(real, signal, float("nan")) for signal in (projected, *directions))
    longest = int(rows[1].max()) if len(rows[1]) else 0
    outputs = short.short_conv_gate(projected, *parameters, *rows, longest)
    gradients = short.short_conv_gate_backward(*directions, projected, *parameters, *rows, longest)
    return dict(zip(NAMES, [*outputs, *gradients], strict=True))


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 32 columns and two channels; the interpreter takes long for the ones that suit a GPU."""
    for name, value in {"TILE_T": 32, "TILE_C": 2, "STEPS_C": 1, "TILE_C_BACKWARD": 1, "STEPS_C_BACKWARD": 2}.items():
        monkeypatch.setattr(short, name, value)


BATCHES = {
    "one position": ([1], [1]),
    "short ones": ([3, 1, 1, 2, 7, 1], [3, 1, 1, 2, 7, 1]),
    "tile edge + 1": ([33], [33]),
    "edges in the tile": ([30, 2, 31, 17], [30, 2, 31, 17]),
    "padded": ([36, 36, 9], [35, 1, 7]),
    "empty rows": ([0, 5, 0, 0, 32, 0], [0, 4, 0, 0, 31, 0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", BATCHES)
def test_forward_and_gradients(name, dtype, device, small_tiles, poisoned, hold_to_composite):
    check(*batch(*BATCHES[name], dtype, device), hold_to_composite)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_forward_and_gradients_with_the_tiles_of_a_gpu(dtype, device, poisoned, hold_to_composite):
    slots, lengths = [300, 254, 2, 255, 17], [299, 254, 2, 200, 17]
    check(*batch(slots, lengths, dtype, device), hold_to_composite)


def check(projected, parameters, directions, rows, real, hold_to_composite):
    arguments, dtype = [projected, *parameters], projected.dtype
    exact = with_gradients(arguments, rows, directions, torch.float64)
    composite = with_gradients(arguments, rows, directions, torch.float32)
    composite = {key: value.to(dtype) if value.shape[-1] == len(real) else value for key, value in composite.items()}
    actual = run(projected, parameters, directions, rows, real)
    hold_to_composite(actual, composite, exact)
    for key in ("gated", "gate", "d_projected"):
        assert actual[key].dtype == dtype
        assert (actual[key][:, ~real] == 0).all(), key


def test_more_rows_than_the_search_takes_at_once(device, monkeypatch, small_tiles, poisoned, hold_to_composite):
    monkeypatch.setattr(short, "TILE_R", 8)
    slots = [1, 5] * 10
    check(*batch(slots, slots, torch.float32, device), hold_to_composite)


def test_columns_after_the_last_slot_hold_zeros(device, small_tiles, poisoned):
    projected, parameters, directions, rows, real = batch([5, 4], [5, 3], torch.float32, device, columns=70)
    actual = run(projected, parameters, directions, rows, real)
    for key in ("gated", "gate", "d_projected"):
        assert (actual[key][:, ~real] == 0).all(), key


def test_slices_of_wider_tensors(device, small_tiles, poisoned):
    """Channel-major tensors whose rows are further apart than they are long give the same bits."""
    projected, parameters, directions, rows, real = batch([40, 21], [40, 20], torch.float16, device)
    expected = run(projected, parameters, directions, rows, real)
    wide = [torch.randn(len(x), 128, device=device).to(x.dtype) for x in (projected, *directions)]
    views = [memory[:, 19 : 19 + x.shape[1]].copy_(x) for memory, x in zip(wide, (projected, *directions), strict=True)]
    outputs = short.short_conv_gate(views[0], *parameters, *rows, 40)
    gradients = short.short_conv_gate_backward(*views[1:], views[0], *parameters, *rows, 40)
    for key, value in zip(NAMES, [*outputs, *gradients], strict=True):
        assert torch.equal(value, expected[key]), key


def test_batch_mates_do_not_change_a_row(device, small_tiles):
    projected, parameters, _, rows, _ = batch([37, 20], [37, 20], torch.float32, device)
    both = short.short_conv_gate(projected, *parameters, *rows, 37)
    row = [torch.tensor(values, dtype=torch.int32, device=device) for values in ([0, 20], [20])]
    alone = short.short_conv_gate(projected[:, 37:], *parameters, *row, 20)
    for together, single in zip(both, alone, strict=True):
        assert torch.equal(together[:, 37:], single)


def test_nothing_to_do(device):
    projected, parameters, directions, rows, real = batch([], [], torch.float32, device)
    actual = run(projected, parameters, directions, rows, real)
    assert actual["gated"].shape == (H, 0)
    for name, parameter in zip(["d_projection_bias", "d_weight", "d_bias"], parameters, strict=True):
        assert torch.equal(actual[name], torch.zeros_like(parameter))


@pytest.mark.parametrize("dtype", [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow)
                                                     for dtype in (torch.float16, torch.float32))])  # fmt: skip
def test_machine_code(dtype, launches, compile_sm90):
    """Of signals whose rows are aligned, and of one row that is not."""
    specs = launches({short: ["_short_conv_gate_kernel", "_short_conv_gate_backward_kernel"]})
    for slots, first in (([16, 16], 0), ([19], 1)):
        rows = torch.tensor([0, *slots]).cumsum(0).int(), torch.tensor(slots).int(), max(slots)
        projected, d_gated = (torch.zeros(c, sum(slots) + first, dtype=dtype)[:, first:] for c in (3 * 16, 16))
        parameters = torch.zeros(3 * 16), torch.zeros(3 * 16, 3), torch.zeros(3 * 16)
        short.short_conv_gate(projected, *parameters, *rows)
        short.short_conv_gate_backward(d_gated, d_gated, projected, *parameters, *rows)
    assert len(specs) == 4
    for spec, needs in zip(specs, compile_sm90(specs), strict=True):
        assert needs["stack"] == 0, (spec, needs)
        assert needs["registers"] <= 128, (spec, needs)
