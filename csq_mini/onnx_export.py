"""Export to ONNX, in standard operators.

DequantizeLinear computes step * code, as our hardened layers do, so the graph has the very same weights. ONNX has
integers of 2, 4, 8 and 16 bits only: each layer gets the narrowest that holds its codes.

Source: ONNX operators DequantizeLinear-21 (INT4) and -25 (INT2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .activations import LEAST_CLIP, PACT, activation_bits
from .check import shown
from .files import write_whole
from .modules import copied, inputs_of, named_modules, outputs_of, state_once, unwrap
from .packed.format import weight_key
from .report import stored_bits
from .scheme import Integers, integers


@dataclass(frozen=True)
class ExportedLayer:
    """One quantized layer of an ONNX file."""

    name: str
    weights: int
    stored_bits: int  # in a packed file
    onnx_bits: int

    @property
    def extra_bytes(self) -> int:
        """Bytes in the ONNX file beyond those in a packed file."""
        return math.ceil(self.weights * self.onnx_bits / 8) - math.ceil(self.weights * self.stored_bits / 8)


@dataclass(frozen=True)
class Exported:
    """What :func:`export_onnx` wrote; it prints as a table of the layers."""

    path: Path
    file_bytes: int
    opset: int
    layers: tuple[ExportedLayer, ...]

    def __str__(self) -> str:
        names = [shown(layer.name) for layer in self.layers]
        width = max(map(len, names))
        lines = [f"{'layer':{width}}  weights  stored bits  ONNX type  bytes beyond packed"]
        lines += [
            f"{name:{width}}  {x.weights:7}  {x.stored_bits:11}  {f'INT{x.onnx_bits}':>9}  {x.extra_bytes:19}"
            for name, x in zip(names, self.layers)
        ]
        extra = sum(layer.extra_bytes for layer in self.layers)
        return "\n".join([*lines, f"{shown(str(self.path))}: {self.file_bytes} bytes, opset {self.opset}; ONNX has "
                          f"no integers of other widths, which costs {extra} bytes beyond a packed file"])  # fmt: skip


def export_onnx(model: nn.Module, example: Tensor | tuple[Any, ...], path: str | Path) -> Exported:
    """Write a hardened model as ONNX, each weight a tensor of INT2, INT4, INT8 or INT16 and a DequantizeLinear.

    Batch norm stays an operator of its own, because folding it would destroy the integers
    (:func:`csq_mini.fold_batch_norm`). Activations quantized by PACT become a QuantizeLinear and a DequantizeLinear.
    The first dimension of every input is free. Inputs are called input, input1, ...; outputs by their keys in a dict,
    else output, output1, ...

    Args:
        model: from :func:`csq_mini.harden` or :func:`csq_mini.load_packed`; float32.
        example: an input, or a tuple of inputs, with at least two examples in a batch.
        path: of the file, written whole or not at all.

    Raises:
        ValueError: if the model is not hardened, not float32, fixes the batch, or has a weight that its forward does
            not use; or for another example.
        ImportError: without the packages of the extra ``export``.
    """
    onnx = _import()
    model = unwrap(model)
    found, inputs, (state, first) = integers(model), inputs_of(example), state_once(model)
    if len({len(x) for x in inputs}) != 1 or len(inputs[0]) < 2:
        raise ValueError(f"example must have at least two examples, as many in each input, got batches of "
                         f"{', '.join(str(len(x)) for x in inputs) or 0}: a batch of one would be fixed")  # fmt: skip
    activation_bits(model)  # refuses clips that are not finite
    for name, t in state.items():
        if t.is_floating_point() and (t.dtype != torch.float32 or t.isnan().any()):
            raise ValueError(f"{name} is not float32, or NaN: export a float32 model (hardened from model.float())")
    widths = {name: _width(found[name]) for name in found}
    opset, ir_version = (25, 13) if 2 in widths.values() else (21, 10)  # only the newer ones have INT2
    proto = _with_integers(_graph(model, inputs), found, widths, first)
    proto.ir_version = ir_version
    proto.opset_import[0].version = opset
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    _check_codes(proto, found)
    blob = proto.SerializeToString(deterministic=True)
    write_whole(Path(path), lambda file: file.write(blob))
    layers = tuple(ExportedLayer(n, i.codes.numel(), stored_bits(i.codes), widths[n]) for n, i in found.items())
    return Exported(Path(path), len(blob), opset, layers)


def _import() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise ImportError('the ONNX export needs: pip install "csq-mini[export]"') from error
    return onnx


def _width(ints: Integers) -> int:
    low, high = (int(ints.codes.min()), int(ints.codes.max())) if ints.codes.numel() else (0, 0)
    return next(bits for bits in (2, 4, 8, 16) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))


class _Quantize(nn.Module):
    """PACT in ONNX's operators: clip, quantize, dequantize."""

    def __init__(self, pact: PACT):
        super().__init__()
        clip = pact.alpha.detach().float().clamp(min=LEAST_CLIP)
        self.clip = nn.Buffer(clip)
        self.step = nn.Buffer(clip / torch.full_like(clip, 2**pact.bits - 1))
        self.zero = nn.Buffer(torch.zeros((), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        clipped = torch.minimum(torch.relu(x), self.clip)
        codes = torch.onnx.ops.symbolic("QuantizeLinear", (clipped, self.step, self.zero), dtype=torch.uint8,
                                        shape=x.shape)  # fmt: skip
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, self.step, self.zero), dtype=x.dtype, shape=x.shape)


def _graph(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The float graph as torch exports it, nothing folded: an optimizer would fold batch norm into the weights."""
    model = copied(model).cpu().eval()
    for name, module in list(named_modules(model, remove_duplicate=False)):
        if isinstance(module, PACT):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _Quantize(module))
    inputs = tuple(x.cpu() for x in inputs)
    try:
        with torch.no_grad():
            names = list(outputs_of(model(*inputs)))
        options: dict[str, Any] = {"dynamo": True, "optimize": False, "verbose": False, "opset_version": 21}
        free, called = ({0: torch.export.Dim("batch")},) * len(inputs), [f"input{i or ''}" for i in range(len(inputs))]
        program: Any = torch.onnx.export(model, inputs, input_names=called, dynamic_shapes=free, **options)
    except Exception as error:  # torch raises many kinds
        why = shown(str(error.__cause__ or error).partition("\n")[0])
        raise ValueError(f"torch cannot export {type(model).__name__} with this example: {why}") from error
    proto = program.model_proto
    for given in proto.graph.input:
        if not given.type.tensor_type.shape.dim[0].dim_param:
            raise ValueError(f"{type(model).__name__} fixes the batch of {given.name} to {len(inputs[0])}: "
                             "take sizes from the input in its forward, as in x.view(x.shape[0], -1)")  # fmt: skip
    if len(proto.graph.output) != len(names):
        raise ValueError(f"outputs {names} cannot all be exported: return tensors, in a tuple or a dict")
    _name_outputs(proto.graph, names)
    return proto


def _name_outputs(graph: Any, names: list[str]) -> None:
    """Call the outputs so, and other values that torch has called so otherwise."""
    fixed = {x.name for x in (*graph.input, *graph.initializer)}
    names = [name if name and name not in fixed else f"output.{name}" for name in names]
    new, again = {name: f"{name}.value" for name in names}, []
    for output, name in zip(graph.output, names):
        if output.name in fixed or new.get(output.name) in names:  # an input, or the same tensor once more
            again.append((output.name, name))
        else:
            new[output.name] = name
        output.name = name
    for node in graph.node:
        node.input[:], node.output[:] = ([new.get(x, x) for x in ends] for ends in (node.input, node.output))
    for info in graph.value_info:
        info.name = new.get(info.name, info.name)
    for old, name in again:
        graph.node.add(op_type="Identity", input=[new.get(old, old)], output=[name])


def _with_integers(proto: Any, found: Mapping[str, Integers], widths: Mapping[str, int], first: dict[str, str]) -> Any:
    """The graph with every quantized weight computed from its integers; ``first`` maps other names to the first."""
    import onnx

    graph = proto.graph
    places = {tensor.name: tensor for tensor in graph.initializer}
    nodes, unused = [], []
    for name, ints in found.items():
        key = weight_key(name)
        there = [k for k in places if first.get(k, k) == key]
        unused += [] if there else [key]
        kind = getattr(onnx.TensorProto, f"INT{widths[name]}")
        values = ints.codes.cpu().numpy().astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        graph.initializer.append(onnx.numpy_helper.from_array(values, f"{key}.codes"))  # raw: as dense as the type
        graph.initializer.append(onnx.helper.make_tensor(f"{key}.step", onnx.TensorProto.FLOAT, [], [ints.step]))
        for k in there:
            graph.initializer.remove(places[k])
            nodes.append(onnx.helper.make_node("DequantizeLinear", [f"{key}.codes", f"{key}.step"], [k], name=k))
            graph.value_info.append(onnx.helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, list(ints.shape)))
    if unused:
        raise ValueError(f"forward does not use {', '.join(unused)}: set the layer to None before you convert")
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return _fold_shapes(proto)


def _fold_shapes(proto: Any) -> Any:
    """Compute now what the graph would compute from shapes alone, such as the zeros that stand in for a bias."""
    import onnx_ir
    from onnxscript.optimizer import fold_constants

    model = onnx_ir.from_proto(proto)
    fold_constants(model, should_fold=lambda node: False if node.op_type == "DequantizeLinear" else None)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    return onnx_ir.to_proto(model)


def _strip(proto: Any) -> None:
    """Remove what means something on the exporting machine only: stack traces, paths, names of Python classes."""
    proto.producer_name, proto.producer_version = "csq-mini", ""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""


def _check_codes(proto: Any, found: Mapping[str, Integers]) -> None:
    there = codes_of(proto)
    for name, ints in found.items():
        if not torch.equal(there[weight_key(name)], ints.codes.to(torch.int64)):
            raise ValueError(f"{weight_key(name)} did not survive the export: please report this")


def codes_of(proto: Any) -> dict[str, Tensor]:
    """The integers in an ONNX file or loaded model: weight name -> int64 codes in the weight's shape."""
    import numpy as np
    import onnx

    proto = onnx.load(proto) if isinstance(proto, (str, Path)) else proto
    ending = ".codes"
    return {
        tensor.name.removesuffix(ending): torch.from_numpy(onnx.numpy_helper.to_array(tensor).astype(np.int64))
        for tensor in proto.graph.initializer if tensor.name.endswith(ending)
    }  # fmt: skip
