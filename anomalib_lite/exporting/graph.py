"""A graph of ONNX operators, written down one call per operator. Names of tensors go in and come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Name = str


class UnsupportedOpsetError(ValueError):
    """An operator that the opset asked for does not have."""


def f32(values: Any) -> np.ndarray:
    """A float32 constant."""
    return np.asarray(values, dtype=np.float32)


def f64(values: Any) -> np.ndarray:
    """A float64 constant."""
    return np.asarray(values, dtype=np.float64)


def i64(values: Any) -> np.ndarray:
    """An int64 constant."""
    return np.asarray(values, dtype=np.int64)


class Graph:
    """Operators in the order they are computed.

    Parameters
    ----------
    opset : version of ONNX's operators
    outer : the graph that this one is the body of a loop or a branch in; what is there can be used here
    for_openvino : whether OpenVINO is to read it, which computes integers of 8 bits in floats, and whose 2026.4 gives
        garbage of a branch that hands on what it was given.

    Examples
    --------
    >>> graph = Graph(18)
    >>> graph("Add", "x", f32(1.0))
    'Add_2'
    """

    def __init__(self, opset: int, outer: Graph | None = None, *, for_openvino: bool = False):
        self.opset = opset
        self.for_openvino: bool = for_openvino if outer is None else outer.for_openvino
        self.nodes: list[Any] = []
        self.constants: dict[Name, np.ndarray] = {} if outer is None else outer.constants
        self._known: dict[tuple[str, tuple[int, ...], bytes], Name] = {} if outer is None else outer._known
        self._numbers: list[int] = [0] if outer is None else outer._numbers

    def constant(self, values: np.ndarray) -> Name:
        """The name of a constant, the same for the same values."""
        values = np.asarray(values, order="C")  # not ascontiguousarray, which makes vectors of scalars
        key = values.dtype.str, values.shape, values.tobytes()
        if key not in self._known:
            self._known[key] = self._new("constant")
            self.constants[self._known[key]] = values
        return self._known[key]

    def __call__(self, operator: str, *inputs: Name | np.ndarray, **attributes: Any) -> Name:
        """Compute an operator of one output."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, count: int, *inputs: Name | np.ndarray, **attributes: Any) -> list[Name]:
        """Compute an operator of several outputs.

        Raises
        ------
        UnsupportedOpsetError
            If the opset does not have it.
        """
        import onnx

        if not onnx.defs.has(operator) or onnx.defs.get_schema(operator).deprecated:
            raise UnsupportedOpsetError(f"ONNX has no operator {operator}")
        try:
            onnx.defs.get_schema(operator, self.opset)
        except onnx.defs.SchemaError as error:
            raise UnsupportedOpsetError(f"opset {self.opset} has no operator {operator}; use a later one") from error
        names = [given if isinstance(given, str) else self.constant(given) for given in inputs]
        outputs = [self._new(operator) for _ in range(count)]
        self.nodes.append(onnx.helper.make_node(operator, names, outputs, **attributes))
        return outputs

    def called(self, name: Name, wanted: Name) -> Name:
        """The same tensor by the name that the graph's users know it by."""
        import onnx

        self.nodes.append(onnx.helper.make_node("Identity", [name], [wanted]))
        return wanted

    def cast(self, name: Name, kind: type[np.generic]) -> Name:
        """The same values as another type of numbers."""
        import onnx

        return self("Cast", name, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))

    def splice(self, model: Any, inputs: Mapping[Name, Name]) -> list[Name]:
        """Take over the operators of a model, given by which of our tensors its inputs are; returns its outputs."""
        from onnx import numpy_helper

        renamed: dict[Name, Name] = {"": "", **inputs}
        for tensor in model.graph.initializer:
            renamed[tensor.name] = self.constant(numpy_helper.to_array(tensor))
        for node in model.graph.node:
            for output in node.output:
                renamed[output] = self._new(node.op_type) if output else ""
            copied = type(node)()
            copied.CopyFrom(node)
            copied.name = ""
            copied.input[:] = [renamed[name] for name in node.input]
            copied.output[:] = [renamed[name] for name in node.output]
            self.nodes.append(copied)
        return [renamed[output.name] for output in model.graph.output]

    def body(self) -> Graph:
        """An empty graph that is to become the body of a loop."""
        return Graph(self.opset, outer=self)

    def choice(self, condition: Name, then: tuple[Graph, Name], otherwise: tuple[Graph, Name], kind: int) -> Name:
        """One of two tensors of the ONNX type `kind`, each computed by a body of its own if it is the one."""
        return self.choices(condition, (then[0], [then[1]]), (otherwise[0], [otherwise[1]]), [kind])[0]

    def choices(
        self,
        condition: Name,
        then: tuple[Graph, list[Name]],
        otherwise: tuple[Graph, list[Name]],
        kinds: list[int],
    ) -> list[Name]:
        """The same of several tensors."""
        from onnx import helper

        branches = []
        for body, names in (then, otherwise):
            outputs = [helper.make_tensor_value_info(*told, None) for told in zip(names, kinds, strict=True)]
            branches.append(helper.make_graph(body.nodes, self._new("branch"), [], outputs))
        return self.several("If", len(kinds), condition, then_branch=branches[0], else_branch=branches[1])

    def loop(self, times: int, body: Graph, number: Name, outputs: Iterable[tuple[Name, Any]]) -> list[Name]:
        """Compute a body `times` over; `number` is what it calls the number of the turn.

        `outputs` are its tensors with their types, which come back stacked along a new first axis.
        """
        import onnx
        from onnx import TensorProto, helper

        outputs = list(outputs)
        go_on = self._new("go_on")
        body.nodes.append(onnx.helper.make_node("Identity", [go_on], [still := self._new("go_on")]))
        inside = helper.make_graph(
            body.nodes,
            self._new("body"),
            [
                helper.make_tensor_value_info(number, TensorProto.INT64, []),
                helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
            ],
            [
                helper.make_tensor_value_info(still, TensorProto.BOOL, []),
                *(helper.make_tensor_value_info(name, kind, None) for name, kind in outputs),
            ],
        )
        return self.several("Loop", len(outputs), i64(times), np.asarray(True), body=inside)

    def new_name(self, of: str) -> Name:
        """A name that nothing else has."""
        return self._new(of)

    def _new(self, of: str) -> Name:
        self._numbers[0] += 1
        return f"{of}_{self._numbers[0]}"
