"""The feed-forward network's kernel against the definition in float64; without a GPU Triton's interpreter runs it."""

import itertools

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from references import glu  # noqa: E402

from modeling_m2bert import m2bert_ops_triton_mlp as mlp  # noqa: E402

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter multiplies bfloat16 as integers")
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=on_gpu)]
NAMES = ["y", "dx", "d_up", "d_down", "d_bias"]
SHAPES = {  # tokens, blocks, hidden, intermediate
    "one token": (1, 4, 32, 64),
    "two tokens, one block": (2, 1, 16, 32),
    "two blocks, odd widths": (17, 2, 14, 30),
    "three blocks": (65, 3, 33, 51),
    "tile edge - 1": (127, 4, 96, 132),
    "tile edge + 1": (129, 4, 260, 96),
    "one wide block, not resident": (5, 1, 300, 40),
    "several tiles of a chunk": (3, 2, 130, 300),
}


def with_gradients(x, up, down, bias, dy, dtype, mask=1.0):
    leaves = [value.detach().to(dtype).requires_grad_() for value in (x, up, down, bias)]
    y = glu(*leaves, mask if isinstance(mask, float) else mask.to(dtype))
    return dict(zip(NAMES, [y, *torch.autograd.grad(y, leaves, dy.to(dtype))], strict=True))


def rounded(x, up, down, bias, dy, dtype, mask=1.0):
    """The same in float32, rounded to dtype where the operation has to: weights, activations and what it stores."""
    x, dy, mask = x.float(), dy.float(), 1.0 if isinstance(mask, float) else mask.float()
    up, down = (torch.block_diag(*weight.to(dtype).float()) for weight in (up, down))
    gate, value = (x @ up.T).chunk(2, dim=-1)
    gate, value = (part.detach().requires_grad_() for part in (gate, value))
    act = F.gelu(gate) * value * mask
    stored = act.detach().to(dtype).float()
    y = stored @ down.T + bias.to(dtype).float()
    d_act = (dy @ down).to(dtype).float()
    d_projected = torch.cat(torch.autograd.grad(act, (gate, value), d_act), dim=1).to(dtype).float()
    results = [y.to(dtype), (d_projected @ up).to(dtype), d_projected.T @ x, dy.T @ stored, dy.sum(0)]
    return dict(zip(NAMES, results, strict=True))


def diagonal_blocks(matrix, blocks):
    rows, columns = (size // blocks for size in matrix.shape)
    return torch.stack([matrix[j * rows : (j + 1) * rows, j * columns : (j + 1) * columns] for j in range(blocks)])


def run(x, up, down, bias, dy, dropout=0.0, seed=None):
    y = mlp.block_diagonal_glu(x, up, down, bias, dropout, seed)
    return dict(zip(NAMES, [y, *mlp.block_diagonal_glu_backward(dy, x, up, down, dropout, seed)], strict=True))


def arguments(tokens, blocks, hidden, intermediate, dtype, device):
    torch.manual_seed(tokens + hidden)
    x, dy = (torch.randn(tokens, hidden, device=device).to(dtype) for _ in range(2))
    up = torch.randn(blocks, 2 * intermediate // blocks, hidden // blocks, device=device) / (hidden / blocks) ** 0.5
    down = torch.randn(blocks, hidden // blocks, intermediate // blocks, device=device)
    return x, up, down / (intermediate / blocks) ** 0.5, torch.randn(hidden, device=device), dy


def check(values, hold_to_composite, mask=1.0, **settings):
    dtype, blocks = values[0].dtype, values[1].shape[0]
    composite = rounded(*values, dtype, mask)
    composite |= {name: diagonal_blocks(composite[name], blocks) for name in ("d_up", "d_down")}
    actual, exact = run(*values, **settings), with_gradients(*values, torch.float64, mask)
    hold_to_composite(actual, composite, exact)
    return actual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_forward_and_gradients(name, dtype, device, poisoned, hold_to_composite):
    actual = check(arguments(*SHAPES[name], dtype, device), hold_to_composite)
    assert actual["y"].dtype == actual["dx"].dtype == dtype
    assert {actual[gradient].dtype for gradient in ("d_up", "d_down", "d_bias")} == {torch.float32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_in_the_activations_dtype_get_gradients_in_it(dtype, device):
    x, up, down, bias, dy = arguments(9, 2, 8, 12, dtype, device)
    expected = run(x, up.to(dtype).float(), down.to(dtype).float(), bias.to(dtype).float(), dy)
    actual = run(x, up.to(dtype), down.to(dtype), bias.to(dtype), dy)
    for name in NAMES:
        assert actual[name].dtype == dtype
        assert torch.equal(actual[name], expected[name].to(dtype)), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout(dtype, device, poisoned):
    x, up, down, bias, dy = arguments(19, 4, 32, 64, dtype, device)
    expected = run(x, up, down, bias, dy)
    wide = torch.cat([torch.full_like(x, float("nan")), x], dim=1)[:, 32:]
    for x_view in (x.T.contiguous().T, wide):
        actual = run(x_view, up.transpose(1, 2).contiguous().transpose(1, 2), down, bias, dy.T.contiguous().T)
        for name in NAMES:
            bound = 4 * torch.finfo(dtype).eps * expected[name].abs().max()
            assert (actual[name] - expected[name]).abs().max() <= bound


def dropout_mask(tokens, channels, dropout, seed, device):
    """(T, I) factors of the activations, seen through a network of one block whose down is the identity."""
    x = torch.ones(tokens, channels, device=device)
    up = torch.ones(1, 2 * channels, channels, device=device) / channels
    identity, bias = torch.eye(channels, device=device)[None], torch.zeros(channels, device=device)
    y = mlp.block_diagonal_glu(x, up, identity, bias, dropout, seed)
    return y / F.gelu(torch.ones((), device=device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [1, 3])
def test_backward_drops_what_the_forward_dropped(blocks, dtype, device, monkeypatch, poisoned, hold_to_composite):
    tokens, channels = 50, 72
    seed = torch.tensor([3 << 33], device=device)
    mask = dropout_mask(tokens, channels, 0.25, seed, device).double()
    mask = torch.where(mask > 0.5, 1 / 0.75, 0.0)
    monkeypatch.setattr(mlp, "TOKENS_AT_ONCE", 32)  # which tokens are taken together makes no difference
    monkeypatch.setattr(mlp, "PROGRAMS", 1)  # of several tiles
    values = arguments(tokens, blocks, 24, channels, dtype, device)
    check(values, hold_to_composite, mask, dropout=0.25, seed=seed)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_fraction_and_scale(dropout, device):
    tokens, channels = 128, 128
    mask = dropout_mask(tokens, channels, dropout, torch.tensor([7], device=device), device)
    kept = mask > 0
    assert torch.allclose(mask[kept], torch.full_like(mask[kept], 1 / (1 - dropout)), rtol=1e-4)
    deviation = (dropout * (1 - dropout) / kept.numel()) ** 0.5
    assert abs(1 - kept.double().mean() - dropout) < 4 * deviation
    for dim in (0, 1):  # no row and no column is special, and neighbors are independent
        assert (1 - kept.double().mean(dim) - dropout).abs().max() < 5 * deviation * 128**0.5
        both = (~kept & ~kept.roll(1, dim)).double().mean()
        assert abs(both - dropout**2) < 6 * deviation * dropout


def test_dropout_repeats_with_its_seed_only(device):
    first, again, other, high = (
        dropout_mask(40, 64, 0.3, torch.tensor([seed], device=device), device) > 0 for seed in (5, 5, 6, 5 + (1 << 40))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, high)


def test_no_tokens(device):
    actual = run(*arguments(0, 2, 8, 16, torch.float32, device))
    assert actual["y"].shape == actual["dx"].shape == (0, 8)
    for name in ("d_up", "d_down", "d_bias"):
        assert (actual[name] == 0).all()


def launch_all(dtype, inner, launches, monkeypatch, dropouts=(0.0, 0.1)):
    """The kernel as it is launched for the paper's model (H / K = 192) and for one block of 768 channels."""
    blocks, tokens = 768 // inner, 32
    monkeypatch.setattr(mlp, "PROGRAMS", 1)  # a program takes several tiles, as it does with many tokens
    specs = launches({mlp: ["_glu_kernel"]})
    x = torch.zeros(tokens, 768, dtype=dtype)
    up, down = torch.zeros(blocks, 512 // blocks, inner), torch.zeros(blocks, inner, 256 // blocks)
    for layout, dropout in itertools.product((x, x.T.contiguous().T), dropouts):
        seed = torch.tensor([1]) if dropout else None
        mlp.block_diagonal_glu(layout, up, down, torch.zeros(768), dropout, seed)
        mlp.block_diagonal_glu_backward(x, layout, up, down, dropout, seed)
    return specs


def is_paper_forward(spec):
    return spec["constexprs"]["PIECES"] and not spec["signature"].keys() & {"seed", "d_up_output"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("inner", "chosen"), [(192, "forward"), *(pytest.param(inner, "all", marks=pytest.mark.slow)
                                                                   for inner in (192, 768))])  # fmt: skip
def test_machine_code(inner, chosen, dtype, launches, monkeypatch, compile_sm90):
    specs = launch_all(dtype, inner, launches, monkeypatch)
    assert len(specs) == 8
    specs = [spec for spec in specs if chosen == "all" or is_paper_forward(spec)]
    for spec, needs in zip(specs, compile_sm90(specs), strict=True):
        # In float32 the assembler may round registers down to let one more program run, for a few bytes of stack.
        assert needs["stack"] <= (64 if dtype == torch.float32 else 0), (spec, needs)
        assert needs["shared"] <= 232448, (spec, needs)
        if "maxnreg" in spec["options"]:  # two programs on each processor: registers, shared memory
            assert needs["registers"] <= 128, (spec, needs)
            assert 2 * (needs["shared"] + 1024) <= 233472, (spec, needs)
        assert needs["wgmma"] != (dtype == torch.float32), (spec, needs)


def test_a_gpu_with_little_shared_memory_gets_smaller_programs(launches, monkeypatch, compile_sm90):
    """99 KB for a program, as on cards of compute capability 8.6 and 8.9."""
    monkeypatch.setattr(mlp, "_shared_bytes", lambda device: 101376)
    specs = launch_all(torch.float16, 192, launches, monkeypatch, dropouts=(0.0,))[:2]
    assert all(needs["shared"] <= 101376 for needs in compile_sm90([spec | {"capability": 89} for spec in specs]))
