"""Times computing at active positions only against computing everywhere.

example:
  dynpix bench perforated-conv --spec res4_480x640 --density .1 .3 .5
  dynpix bench bottleneck --spec res4_480x640 --backward
  dynpix bench pooling --spec pooling_425x560
  dynpix bench model --config=configs/pag/bsds500.py:variant=gated,gate_scope=residual --size 480x640

Programs run in turn, so that a slow moment of the machine meets all of them: trust the ratios of one run more
than milliseconds of two. "time" is the median over that of the first line, "MACs" the multiply-accumulates
that a mask leaves over those of the first line, and "time / MACs" is 1 where skipping saves all that it
promises. No data and no weights are read.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
from types import ModuleType

from dynpix_jax.cli.common import add_distributed, help_of
from dynpix_jax.core import processes

# Program -> (module of `dynpix_jax.bench`, line of help).
PROGRAMS = {
    "perforated-conv": ("conv", "one convolution of the papers"),
    "dense-conv": ("dense_conv", "one convolution of the papers computed everywhere, on a CPU"),
    "bottleneck": ("bottleneck", "one gated bottleneck of PAG"),
    "pooling": ("pooling", "the five-branch module of recurrent scene parsing"),
    "model": ("model", "a config's whole network"),
    "break-even": ("break_even", "from which density on sparse execution pays"),
    "runtimes": ("runtimes", "a network here, in PyTorch, ONNX Runtime and OpenVINO, on a CPU"),
    "train-step": ("train_step", "a training step here and in PyTorch, on a CPU"),
    "row-costs": ("row_costs", "residual blocks of HRNet by active rows"),
    "loader": ("loader", "a config's training data: start, images a second, processor time"),
    "budgets": ("budgets", "prediction in steps against the clock"),
    "curves": ("curves", "draw accuracy against MACs of evaluated runs"),
    "pixelnet-sampling": ("pixelnet_sampling", "training steps at sampled pixels against dense ones"),
    "precision": ("precision", "training in bfloat16 against float32: their losses"),
    "roofline": ("roofline", "from which density on the kernels of TPUs and GPUs should win"),
    "soak": ("soak", "train while processes, disk and files are harmed: the same parameters"),
    "device": ("device", "all implementations on this device: right results, and how fast"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    programs = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (_, line) in PROGRAMS.items():
        module = _module(name)
        program = programs.add_parser(name, help=line, **help_of(module.__doc__))
        module.add_arguments(program)
        add_distributed(program)


def run(args: argparse.Namespace) -> int:
    """Runs the program and gives its exit status."""
    processes.start(args.distributed)
    with contextlib.nullcontext() if processes.is_first() else contextlib.redirect_stdout(io.StringIO()):
        status: int = _module(args.what).run(args)
    return status


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"dynpix_jax.bench.{PROGRAMS[name][0]}")
