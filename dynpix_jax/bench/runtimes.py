"""A network here and, with the same weights, in other runtimes: each that is installed, in turn, on a CPU.

`make bench-runtimes` installs PyTorch, ONNX Runtime and OpenVINO into an environment of their own and runs
this. Norms are folded into the convolutions for them, and their results are compared with ours first.
"sparse" runs the inside of each residual block at a share of the positions, with random masks and no gates.
Leave the machine alone meanwhile.

example:
  dynpix bench runtimes --network resnet50 --runs 7
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from typing import cast as typed

import flax.linen as nn
import jax
import numpy as np
from matplotlib.figure import Figure

from dynpix_jax.backbones.base import BackboneConfig
from dynpix_jax.backbones.hrnet import HRNetConfig
from dynpix_jax.backbones.mobilenet import MobileNetConfig
from dynpix_jax.backbones.resnet import ResNetConfig
from dynpix_jax.bench.arguments import make_folder
from dynpix_jax.bench.masks import KINDS, Kind, make_mask
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.text import a_path, parse_size
from dynpix_jax.core.typing import Array, Mask, Variables
from dynpix_jax.evaluation.timing import Timing, timed
from dynpix_jax.nn.conv import Conv, DepthwiseConv
from dynpix_jax.nn.norm import BatchNorm
from dynpix_jax.nn.residual import Block
from dynpix_jax.ops.conv import torch_padding
from dynpix_jax.ops.resize import RESIZE_SCOPE
from dynpix_jax.ops.sparse import active_set, sparse_block


@dataclasses.dataclass(frozen=True)
class Network:
    """A backbone that is timed, up to one of its features.

    Attributes:
        config: The backbone.
        feature: Name of the stage whose feature map is computed.
    """

    config: BackboneConfig
    feature: str


NETWORKS: dict[str, Network] = {
    "resnet50": Network(ResNetConfig(), "res5"),
    # The branch of the highest resolution.
    "hrnet_w18_small": Network(HRNetConfig(arch="w18s1"), "stage4/0"),
    "mobilenetv2": Network(MobileNetConfig(se=False), MobileNetConfig(se=False).stages[-1].name),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the program."""
    parser.add_argument("--network", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--size", default="480x640", metavar="HxW", help="of the image (default: 480x640)")
    parser.add_argument("--density", nargs="+", type=float, default=[0.3, 0.5, 0.7], metavar="D")
    parser.add_argument("--mask", choices=KINDS, default="random", help="of the masks (default: random)")
    parser.add_argument("--runs", type=int, default=7, metavar="N", help="rounds that count (default: 7)")
    parser.add_argument("--out", type=a_path, help="folder of pictures: median times over density")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each network; gives the exit status."""
    size = parse_size(args.size)
    if jax.default_backend() != "cpu" or args.runs < 1:
        raise UserError(f"--runs {args.runs}: expected at least 1, on a CPU ({jax.default_backend()} here)")
    if not all(0 <= density <= 1 for density in args.density):
        raise UserError(f"--density {args.density}: expected shares from 0 to 1")
    if args.out is not None:
        make_folder(args.out)
    for name in args.network:
        programs = runtimes(NETWORKS[name], size, args.density, args.mask)
        timings = timed(programs, args.runs)
        where = f"float32, {cores()} CPU cores, {args.runs} rounds in turn"
        print(f"\n{name}, {args.size}, {args.mask} masks, {where}\n")
        table(timings, args.density)
        if args.out is not None:
            picture(timings, f"{name}, {args.size}", args.density).savefig(
                args.out / f"runtimes-{name}.png", dpi=110
            )
    return 0


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sparse_program(density: float) -> str:
    """Name of the program that computes at a share of the positions."""
    return f"sparse, density {density:g}"


def _dense(timings: Mapping[str, Timing], densities: Sequence[float]) -> dict[str, Timing]:
    sparse = {sparse_program(density) for density in densities}
    return {name: timing for name, timing in timings.items() if name not in sparse}


def table(timings: Mapping[str, Timing], densities: Sequence[float] = ()) -> None:
    """Prints the times, and the medians over that of the fastest program which computes everywhere."""
    fastest = min(timing.median for timing in _dense(timings, densities).values())
    print("| runtime | median ms | least ms | median / the fastest dense one |\n|---|---|---|---|")
    for label, timing in timings.items():
        print(f"| {label} | {timing.median:.0f} | {timing.least:.0f} | {timing.median / fastest:.2f} |")


def picture(timings: Mapping[str, Timing], title: str, densities: Sequence[float]) -> Figure:
    """The sparse program's curve over density, and a line for each program that computes everywhere."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    names = {density: sparse_program(density) for density in densities}
    curve = {density: timings[name].median for density, name in names.items() if name in timings}
    if curve:
        axes.plot(list(curve), list(curve.values()), "o-", color="C0", label="dynpix, sparse")
    for number, (label, timing) in enumerate(_dense(timings, densities).items()):
        axes.axhline(timing.median, color=f"C{number}", ls=("--", "-.", ":")[number % 3], label=label)
    axes.set(xlabel="density", ylabel="ms", xlim=(0, 1), ylim=(0, None), title=title)
    axes.legend(fontsize=8)
    return figure


def runtimes(
    timed_network: Network, size: tuple[int, int], densities: Sequence[float], kind: Kind
) -> dict[str, Callable[[], Any]]:
    """The network's programs by name; a UserError if a runtime computes something else."""
    config, top = timed_network.config, timed_network.feature
    network: Any = config.build()
    image = jax.random.normal(jax.random.key(0), (1, *size, 3))
    variables = jax.jit(network.init)(jax.random.key(1), image[:, :64, :64])

    @jax.jit
    def dense(variables: Variables, image: Array) -> Array:
        found: Array = network.apply(variables, image)[top]
        return found

    listed: dict[str, Callable[[], Any]] = {"dynpix, dense": partial(dense, variables, image)}

    @jax.jit
    def sparse(variables: Variables, image: Array, masks: Mapping[str, Mask]) -> Array:
        found = network.apply(variables, image, partial(_run_sparse, masks=masks), method="run")[0]
        return typed(Array, found[top])

    for density in densities if config.block_specs else ():
        masks = block_masks(config, size, density, kind)
        listed[sparse_program(density)] = partial(sparse, variables, image, masks)
    expected = np.asarray(dense(variables, image)).transpose(0, 3, 1, 2)
    nodes = record(lambda image: network.apply(variables, image)[top], image)
    given = np.ascontiguousarray(np.asarray(image).transpose(0, 3, 1, 2))
    for name, make in (("torch", _torch), ("onnxruntime", _onnxruntime), ("openvino", _openvino)):
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"left out: {name} is not installed")
            continue
        program = make(nodes, given)
        found = np.asarray(program())
        if np.abs(found - expected).max() > 1e-3 * np.abs(expected).max():
            raise UserError(f"{name}: it computes something else than we do; expected the same to 1e-3")
        listed[name] = program
    return listed


def block_masks(config: BackboneConfig, size: tuple[int, int], density: float, kind: Kind) -> dict[str, Mask]:
    """A mask of that density for each residual block whose inside can skip positions."""
    strides = {stage.name: stage.stride for stage in config.stages}
    masks: dict[str, Mask] = {}
    for number, spec in enumerate(config.block_specs):
        if spec.splits:
            height, width = (-(-side // strides[spec.stage]) for side in size)
            key = jax.random.key(number)
            masks[spec.name] = make_mask(kind, key, (1, height, width), density)
    return masks


def _run_sparse(block: Block, x: Array, masks: Mapping[str, Mask]) -> tuple[Array, None]:
    """A block whose inside runs at the positions of its mask."""
    if block.spec.name not in masks:
        return block(x), None
    reduced = block.reduce(x, train=False)
    init, shortcut = block.shortcut_in_parts(x, train=False)
    layers = (*block.spatial_layers(), *block.expand_layers())
    active = active_set(masks[block.spec.name])
    return sparse_block(reduced, active, layers, init=init, combine=shortcut), None


# ----------------------------------------------------------------- the network as a list of operations


@dataclasses.dataclass
class Node:
    """One operation on maps (B, C, H, W).

    Attributes:
        kind: Name of ONNX's operator: Conv, Relu, Clip (to 0..6), MaxPool (3x3, stride 2), Add or Resize
            (bilinear, corners not aligned); or Norm, a multiplication by ``kernel`` (C,) and a sum with
            ``bias``.
        inputs: Indices of nodes; -1 is the image.
        kernel: (Cout, Cin / groups, kh, kw) of a convolution.
        bias: (Cout,).
        name: Path of its module: "res2_1/conv1".
        size: (H, W) after a Resize.
        strides: Stride of rows and columns.
        dilation: Dilation of the kernel.
        groups: Groups of channels.
    """

    kind: str
    inputs: tuple[int, ...]
    kernel: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 0, 0), np.float32))
    bias: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    name: str = ""
    size: tuple[int, ...] = ()

    @property
    def padding(self) -> int:
        """Zeros on every side."""
        return torch_padding(self.kernel.shape[2:], (self.dilation,) * 2)[0]


_KINDS = {"relu": "Relu", "relu6": "Clip"}


def record(apply: Callable[[Array], Array], image: Array, *, fold: bool = True) -> list[Node]:
    """The operations of a network of plain layers.

    Convolutions and norms are traced as functions of their own, which carry the names of their modules.

    Args:
        apply: The network.
        image: Its input.
        fold: Whether norms are folded into the convolutions before them.
    """
    layers: dict[str, tuple[str, Any]] = {}

    def named(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, Conv | DepthwiseConv | BatchNorm):
            return call(*args, **kwargs)
        name = "/".join(module.path)
        with jax.ensure_compile_time_eval():
            layers[name] = type(module).__name__, module.layer()

        def layer(x: Array) -> Any:
            return call(x, **kwargs)

        layer.__name__ = name
        return jax.jit(layer)(*args)

    with nn.intercept_methods(named):
        traced = jax.make_jaxpr(apply)(image)
    nodes: list[Node] = []

    def layer(name: str, source: int) -> int:
        return _layer(name, *layers[name], source, nodes, fold=fold)

    last = _follow(traced.jaxpr, [-1], {name: partial(layer, name) for name in layers}, nodes)[0]
    return _read_by(last, nodes)


def _read_by(last: int, nodes: list[Node]) -> list[Node]:
    """The nodes that node ``last`` needs, itself at the end."""
    needed, left = set(), [last]
    while left:
        number = left.pop()
        if number >= 0 and number not in needed:
            needed.add(number)
            left += nodes[number].inputs
    order = {number: place for place, number in enumerate([-1, *sorted(needed)], -1)}
    return [
        dataclasses.replace(nodes[number], inputs=tuple(order[source] for source in nodes[number].inputs))
        for number in sorted(needed)
    ]


def _follow(
    jaxpr: Any, inputs: list[Any], layers: Mapping[str, Callable[[int], int]], nodes: list[Node]
) -> list[Any]:
    """Appends the operations of a program; gives the nodes that make its results."""
    made = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(value: Any) -> Any:
        return made.get(value) if not hasattr(value, "val") else None

    for step in jaxpr.eqns:
        name, primitive = step.params.get("name", ""), step.primitive.name
        given = [of(value) for value in step.invars]
        maps = tuple(number for number in given if number is not None)
        inside = step.params.get("jaxpr") or step.params.get("call_jaxpr")
        if name in layers:
            made[step.outvars[0]] = layers[name](maps[0])
            continue
        if maps and RESIZE_SCOPE in str(step.source_info.name_stack).split("/"):  # one axis, then the other
            source = nodes[maps[0]].inputs[0] if nodes[maps[0]].kind == "Resize" else maps[0]
            nodes.append(Node("Resize", (source,), size=step.outvars[0].aval.shape[1:3]))
            made[step.outvars[0]] = len(nodes) - 1
            continue
        kind = _KINDS.get(name) or {"add": "Add", "reduce_window_max": "MaxPool"}.get(primitive)
        if kind and maps:
            nodes.append(Node(kind, maps))
            made[step.outvars[0]] = len(nodes) - 1
        elif inside is not None:
            results = _follow(getattr(inside, "jaxpr", inside), given, layers, nodes)
            made |= dict(zip(step.outvars, results, strict=True))
        elif maps:
            raise UserError(f"{primitive}: this network cannot be run elsewhere; expected plain layers")
    return [of(value) for value in jaxpr.outvars]


def _layer(name: str, kind: str, layer: Any, source: int, nodes: list[Node], *, fold: bool) -> int:
    if kind == "BatchNorm":  # always behind its convolution
        multiplier, offset = np.asarray(layer.multiplier), np.asarray(layer.offset)
        if not fold:
            nodes.append(Node("Norm", (source,), multiplier, offset, name=name))
            return len(nodes) - 1
        node = nodes[source]
        node.kernel = node.kernel * multiplier[:, None, None, None]
        node.bias = node.bias * multiplier + offset
        return source
    kernel = np.asarray(layer.kernel).transpose(3, 2, 0, 1)
    groups = len(kernel) if kind == "DepthwiseConv" else 1
    bias = np.zeros(len(kernel), np.float32)
    nodes.append(Node("Conv", (source,), kernel, bias, layer.strides[0], layer.dilation[0], groups, name))
    return len(nodes) - 1


# ----------------------------------------------------------------- other runtimes


def run_torch(nodes: list[Node], image: Any, weights: list[Any], biases: list[Any]) -> Any:
    """The network in PyTorch, op by op."""
    functional = importlib.import_module("torch").nn.functional
    maps = {-1: image}
    for number, (node, kernel, bias) in enumerate(zip(nodes, weights, biases, strict=True)):
        x = [maps[source] for source in node.inputs]
        if node.kind == "Conv":
            window = (node.strides, node.padding, node.dilation, node.groups)
            maps[number] = functional.conv2d(x[0], kernel, bias, *window)
        elif node.kind == "Norm":
            fixed = kernel.new_zeros(kernel.shape), kernel.new_ones(kernel.shape)
            maps[number] = functional.batch_norm(x[0], *fixed, kernel, bias, eps=0)
        elif node.kind == "MaxPool":
            maps[number] = functional.max_pool2d(x[0], 3, 2, 1)
        elif node.kind == "Add":
            maps[number] = x[0] + x[1]
        elif node.kind == "Resize":
            maps[number] = functional.interpolate(x[0], node.size, mode="bilinear")
        else:
            maps[number] = x[0].relu() if node.kind == "Relu" else functional.relu6(x[0])
    return maps[len(nodes) - 1]


def channels_last(array: np.ndarray) -> Any:
    """A tensor of PyTorch, with the channels last in memory if it has four axes."""
    torch = importlib.import_module("torch")
    tensor = torch.from_numpy(np.array(array))
    return tensor.contiguous(memory_format=torch.channels_last) if array.ndim == 4 else tensor


def _torch(nodes: list[Node], image: np.ndarray) -> Callable[[], Any]:
    torch = importlib.import_module("torch")
    weights, biases = ([channels_last(getattr(node, of)) for node in nodes] for of in ("kernel", "bias"))
    given = channels_last(image)

    def program() -> Any:
        with torch.inference_mode():
            return run_torch(nodes, given, weights, biases).numpy()

    return program


def onnx_model(nodes: list[Node], shape: tuple[int, ...]) -> bytes:
    """The network in ONNX's format."""
    onnx = importlib.import_module("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    values: list[Any] = []
    steps = []
    if any(node.kind == "Clip" for node in nodes):
        values = [
            numpy_helper.from_array(np.float32(limit), name) for name, limit in (("zero", 0), ("six", 6))
        ]
    for number, node in enumerate(nodes):
        inputs, attributes = [f"map{source}" for source in node.inputs], {}
        if node.kind == "Conv":
            for name, value in ((f"kernel{number}", node.kernel), (f"bias{number}", node.bias)):
                values.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
                inputs.append(name)
            attributes = {
                "strides": [node.strides] * 2,
                "dilations": [node.dilation] * 2,
                "pads": [node.padding] * 4,
                "group": node.groups,
            }
        elif node.kind == "MaxPool":
            attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
        elif node.kind == "Clip":
            inputs += ["zero", "six"]
        elif node.kind == "Resize":
            values.append(numpy_helper.from_array(np.array(node.size, np.int64), f"size{number}"))
            inputs += ["", "", f"size{number}"]
            attributes = {"mode": "linear", "axes": [2, 3]}
        steps.append(helper.make_node(node.kind, inputs, [f"map{number}"], **attributes))
    number_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        steps,
        "network",
        [helper.make_tensor_value_info("map-1", number_type, shape)],
        [helper.make_tensor_value_info(f"map{len(nodes) - 1}", number_type, None)],
        values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    encoded: bytes = model.SerializeToString()
    return encoded


def _onnxruntime(nodes: list[Node], image: np.ndarray) -> Callable[[], Any]:
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(onnx_model(nodes, image.shape), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"map-1": image})[0]


def _openvino(nodes: list[Node], image: np.ndarray) -> Callable[[], Any]:
    """OpenVINO in float32: by itself it takes bfloat16 where the processor has it."""
    core = importlib.import_module("openvino").Core()
    model = core.read_model(onnx_model(nodes, image.shape), b"")
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", options)
    return lambda: compiled([image])[compiled.outputs[0]]
