"""Runs ONNX graphs in torch, so that gradients can be had with no PyTorch source."""

from guidedq.ir.onnx_interpreter.finding import find_weighted
from guidedq.ir.onnx_interpreter.interpreter import OnnxInterpreter
from guidedq.ir.onnx_interpreter.parsing import ParsedGraph, parse_model
from guidedq.ir.onnx_interpreter.weighted import WeightedNode

__all__ = ["OnnxInterpreter", "ParsedGraph", "WeightedNode", "find_weighted", "parse_model"]
