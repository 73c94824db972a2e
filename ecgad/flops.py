"""What a method costs: parameters, and multiply-accumulates a record, counted the same way for all.

The count is fvcore's walk over the traced `forward` of one record, with our own counters. Three
things make such counts wrong elsewhere, and are excluded here: attention products that are not
seen, fused layers that hide a whole block, and operations passed over in silence. An operation that
is neither counted nor known to hold no product stops the count.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from ecgad.parts.detector import Detector


class Cost(NamedTuple):
    """A multiply-accumulate (MAC) is one product and one addition inside a matrix product.

    Norms, activations, softmax and other element-wise work are not counted, as is usual.
    """

    method: str
    shape: tuple[int, ...]  # (c, *grid) of one record
    parameters: int  # trained by gradient
    macs_record: int  # one record through `forward`, all passes
    frozen_parameters: int = 0  # of an encoder that is not trained; not in `parameters`
    frozen_macs: int = 0  # spent in modules that are frozen altogether; within `macs_record`
    stored: int = 0  # other numbers a model keeps: centres, components, running statistics


class Reference(NamedTuple):
    """A published method's cost, for comparison."""

    method: str
    parameters: int
    macs_pass: int
    passes: tuple[int, int]  # fewest and most for one record


MCF = Reference("MCF", parameters=7_085_779, macs_pass=910_000_000, passes=(24, 30))
"""Jiang et al., MICCAI 2023: a global branch of 12 x 4800 and a beat of 12 x 480 a pass, and one
pass for each of 3 masks of each of 8 to 10 heartbeats. Counted from the released code
(github.com/MediaBrain-SJTU/ECGAD, `model.py` with 12 leads and hidden width 50; `test.py`)."""


def count(model: Detector) -> Cost:
    """The cost of `model`, for one record of the shape it was built for.

    Raises `NotImplementedError` when the model uses an operation of unknown cost.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    stored = sum(v.numel() for v in model.state_dict().values()) - trained - frozen
    by_module = _macs(model)
    return Cost(
        method=type(model).__module__.rpartition(".")[2],
        shape=model.shape,
        parameters=trained,
        macs_record=by_module[""],
        frozen_parameters=frozen,
        frozen_macs=sum(by_module[name] for name in _frozen(model)),
        stored=stored,
    )


def costs_of(
    methods: Sequence[str] | None,
    shape: tuple[int, ...],
    settings: Mapping[str, Any],
    left_out: Callable[[str], None],
) -> list[Cost]:
    """The costs of `methods` built for `shape`; of None, of all that can be built with `settings`:
    of the others `left_out` hears why. Raises what `build` raises for a method that was named."""
    from ecgad.methods import build, names

    costs = []
    for name in methods or names():
        try:
            costs.append(count(build(name, shape, settings)))
        except (TypeError, ValueError) as error:
            if methods:
                raise
            left_out(f"left out: {name}: {error}")
    return costs


def _macs(model: Detector) -> Counter[str]:
    """MACs of each submodule for one record; those of the whole model under the name ""."""
    import torch

    with warnings.catch_warnings():  # fvcore compiles its losses with torch.jit, which warns
        warnings.filterwarnings("ignore", "`torch.jit")  # of which kind, depends on the version
        from fvcore.nn import FlopCountAnalysis

    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            x = torch.zeros(1, *model.shape, device=place)
            analysis = FlopCountAnalysis(model, (x,)).clear_op_handles()
            analysis.set_op_handle(**COUNTED, **dict.fromkeys(NO_PRODUCT))
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            by_module = analysis.by_module()
            unknown = analysis.unsupported_ops()
    finally:
        for module, training in was_training.items():
            module.training = training
    if unknown:
        raise NotImplementedError(
            f"{type(model).__module__} uses {', '.join(sorted(unknown))}, whose cost is unknown; "
            "add each to COUNTED or NO_PRODUCT in ecgad/flops.py"
        )
    return Counter({name: int(macs) for name, macs in by_module.items()})


def _frozen(model: nn.Module, prefix: str = "") -> list[str]:
    """Names of the outermost submodules whose parameters are all frozen."""
    names = []
    for child, module in model.named_children():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            names.append(prefix + child)
        else:
            names += _frozen(module, f"{prefix}{child}.")
    return names


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _linear(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Q K^T and its product with V: n m d each, for every head of every sample."""
    *heads, n, d = _shape(inputs[0])
    m, dv = _shape(inputs[2])[-2:]
    return math.prod(heads) * n * m * (d + dv)


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    """Each kernel weight meets every place of the output, or of the input when transposed."""
    grid = _shape(inputs[0] if inputs[6].toIValue() else outputs[0])
    return grid[0] * math.prod(_shape(inputs[1])) * math.prod(grid[2:])


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Every combination of the equation's letters is one product, for two operands."""
    equation = inputs[0].toIValue().replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise NotImplementedError(f"einsum {equation!r}: only two operands without '...' counted")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, inputs[1].node().inputs(), strict=True):
        sizes |= dict(zip(term, _shape(operand), strict=True))
    return math.prod(sizes.values())


COUNTED: dict[str, Any] = {
    "aten::linear": _linear,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::mv": _matmul,
    "aten::bmm": _matmul,
    "aten::dot": _matmul,
    "aten::addmm": _linear,
    "aten::baddbmm": _linear,
    "aten::_convolution": _convolution,
    "aten::einsum": _einsum,
    "aten::cdist": _matmul,
    "aten::scaled_dot_product_attention": _attention,
}

# Beside the shape and copy operations that fvcore knows to be free.
_ELEMENTS = """abs add add_ bitwise_and bitwise_or clamp_max clamp_min cos div div_ dropout_ elu
erf exp expm1 gelu hardtanh isfinite isnan le leaky_relu leaky_relu_ lerp log log1p logical_and
logical_not logical_or lt maximum minimum mish mul mul_ ne neg pow reciprocal rsqrt rsub sigmoid
sign silu silu_ sin softplus sqrt square sub sub_ tanh where"""
_REDUCTIONS = """all amax amin any argmax argmin argsort avg_pool1d avg_pool2d batch_norm cumsum
group_norm instance_norm layer_norm linalg_vector_norm log_softmax logsumexp max_pool1d max_pool2d
mean min norm prod softmax sort std std_mean sum topk var var_mean"""
_MOVES = """alias clone expand_as flip im2col index_add index_select lift_fresh mH mT masked_select
movedim new_ones numpy_T one_hot ones_like pad reflection_pad1d reflection_pad2d repeat
repeat_interleave replication_pad1d replication_pad2d scatter scatter_ scatter_add swapaxes
tensor_split tril triu unflatten unfold upsample_bilinear2d upsample_linear1d upsample_nearest1d
upsample_nearest2d upsample_trilinear3d view_as zero_"""
NO_PRODUCT = [f"aten::{name}" for ops in (_ELEMENTS, _REDUCTIONS, _MOVES) for name in ops.split()]
