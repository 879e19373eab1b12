"""ONNX's own tests of its operators, in torch."""

from __future__ import annotations

import pytest
import torch
from operator_suite import Case, cases, difference, tensors, variants

from edgepack.errors import ModelError
from edgepack.torchgraph.onnx.build import build_module

MODULES = (
    *("argmax", "batch_normalization", "bitshift", "causal_conv_with_state", "center_crop_pad", "clip"),
    *("col2im", "concat", "conv", "convinteger", "convtranspose", "cumprod", "cumsum", "det", "hannwindow"),
    *("melweightmatrix", "depthtospace", "dequantizelinear", "dft", "div"),
    *(
        "dynamicquantizelinear",
        "einsum",
        "expand",
        "eyelike",
        "flatten",
        "gather",
        "gatherelements",
        "gathernd",
        "gelu",
    ),
    *("gemm", "gridsample", "groupnormalization", "gru", "hardmax", "hardsigmoid", "if_", "instance_normalization"),
    *("isinf", "loop", "lrn", "lstm", "matmulinteger", "maxunpool", "mod"),
    *("onehot", "pad", "pow", "prelu", "qlinearconv", "qlinearmatmul", "quantizelinear", "rangeop", "reducel2"),
    *("resize", "reversesequence", "rnn", "rotaryembedding", "scan", "scatterelements", "scatternd"),
    *(
        "selu",
        "shrink",
        "slice",
        "softmax",
        "spacetodepth",
        "split",
        "squeeze",
        "stft",
        "tensorscatter",
        "tile",
        "trilu",
    ),
    *("unsqueeze", "upsample", "where"),
)
ELSEWHERE = {"test_scan_sum": "is that of opset 8", "test_col2im_5d": "a constant was expected"}
"""What is refused, and why."""


@pytest.mark.parametrize("module", MODULES)
def test_an_operator_computes_what_onnx_says(module: str) -> None:
    group = list(cases(module))
    assert group
    for case in group:
        if case.name in ELSEWHERE:
            with pytest.raises(ModelError, match=ELSEWHERE[case.name]):
                build_module(case.model, tensors(case), case.name)
        else:
            assert_right(case)


def assert_right(case: Case) -> None:
    """Its inputs from outside, or as many of them as the importer takes so."""
    errors = []
    for variant in variants(case):
        try:
            module = build_module(variant.model, tensors(variant), case.name)
        except ModelError as err:
            errors.append(err.message)
            continue
        with torch.no_grad():
            assert difference(variant, module(*tensors(variant))) is None, case.name
        return
    pytest.fail("\n".join(errors))
