"""The fixture that compiles kernels without a GPU must see what it is there to see."""

import pytest

pytest.importorskip("triton")


def specification(tile_t, num_warps, **changes):
    strides = {"stride_xt": "i32:16", "stride_yt": "i32:16", "stride_zh": "i32:16"}
    return {
        "module": "m2bert_ops_triton_norm",
        "kernel": "_add_layer_norm_kernel",
        "signature": {name: "*fp32:16" for name in ("x", "y", "weight", "bias", "z")}
        | {"tokens": "i32:16", "channels": "i32:16", "eps": "fp32"}
        | strides,
        "constexprs": {"stride_xh": 1, "stride_yh": 1, "TILE_T": tile_t, "TILE_H": 1024},
        "options": {"num_warps": num_warps},
    } | changes


def test_spilled_registers_show_and_results_come_in_order(compile_sm90):
    small, large, limited = compile_sm90(
        [specification(4, 4), specification(16, 4), specification(16, 4, options={"num_warps": 4, "maxnreg": 64})]
    )
    assert 0 < small["registers"] < large["registers"]
    assert limited["registers"] == 64
    assert small["stack"] == large["stack"] == 0 < limited["stack"]
    assert 0 < small["shared"] < large["shared"]
    assert not small["wgmma"]


def test_a_wrong_specification_is_named(compile_sm90):
    with pytest.raises(AssertionError, match="unknown parameters .'tile_t'., missing .'TILE_T'."):
        compile_sm90([specification(4, 4, constexprs={"stride_xh": 1, "stride_yh": 1, "tile_t": 4, "TILE_H": 1024})])
