"""Cut a graph with exits into files that the runtime runs one after another.

The graph is exported and quantised whole, so that every form and every search over layers is what
it is without exits; then it is cut where the states are handed on.

    model.onnx     input_ids, attention_mask → logits, hidden_0
    model.1.onnx   hidden_0, attention_mask  → logits, hidden_1
    model.2.onnx   hidden_1, attention_mask  → logits

A later stage also takes ``input_ids`` where its part of the graph reads the last piece's place
from them. What all layers share (the bias of masked pieces, MPNet's of relative positions) is
computed in each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from torch import nn

from tasks.evaluation.adaptive import choose, tradeoff
from tasks.files import write_json
from tasks.modeling.exits import Exits
from tasks.problems.classification import Row, Split, pad
from tasks.quantization.confidence import fit_temperature
from tasks.quantization.export import exit_outputs, require_close
from tasks.release.servable import Servable
from tasks.release.stages import stage_names
from tasks.runtimes.interface import INPUTS
from tasks.runtimes.onnx import OnnxRuntime
from tasks.training.exits import look


def cut_into_stages(path: Path, exits: int) -> list[str]:
    """Replace a graph with exits by the files of its stages; returns their names, in order.

    Args:
        path: ``model.onnx``, in the folder that the others go to.
        exits: how many it has before its end.
    """
    model = onnx.load(path)
    logits, hidden = exit_outputs(exits)
    cuts = [_cut(model.graph, name) for name in hidden]
    names = stage_names(exits + 1)
    for index, name in enumerate(names):
        renamed = {state: f"{state}_fp32" for state in hidden}  # unless they are what is cut
        renamed |= {cut.name: state for cut, state in zip(cuts, hidden, strict=True)}
        if index < exits:
            renamed[logits[index]] = "logits"
        wanted = [*logits, "logits"][index], *(cut.name for cut in cuts[index : index + 1])
        part = _part(model, wanted, given=cuts[index - 1 : index] if index else [])
        onnx.save(_with_names(part, renamed), path.with_name(name))
    return list(names)


def calibrate_exits(
    model: nn.Module, exits: Exits, ids: Sequence[Row], labels: np.ndarray
) -> list[float]:
    """Fold a temperature into each exit, as `fit_temperature` has it; returns them in order."""
    rows = _exit_logits(model, exits, ids)
    temperatures = [fit_temperature(logits, labels) for logits in rows]
    for head, temperature in zip(exits.heads.values(), temperatures, strict=True):
        for parameter in head.parameters():
            parameter.data.div_(temperature)
    return temperatures


def check_exits(model: nn.Module, exits: Exits, path: Path, ids: Sequence[Row]) -> float:
    """Largest absolute difference in the exits' logits between a model and its fp32 graph.

    Raises:
        IntegrityError: it exceeds `TOLERANCE`.
    """
    runtime, (names, _) = OnnxRuntime(path), exit_outputs(len(exits.layers))
    batch, mask = pad(list(ids), model.config.pad_token_id)  # type: ignore[union-attr,arg-type]
    found = runtime.outputs(batch.numpy(), mask.numpy(), names)
    runtime.close()
    expected = _exit_logits(model, exits, ids)
    worst = float(np.max([np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]))
    require_close(worst, float(np.max([np.abs(b).max() for b in expected])), "an exit's logits")
    return worst


def serve_in_stages(
    folder: Path,
    layers: Sequence[int],
    confidence: float | Literal["auto"],
    *,
    validation: Split,
    max_loss: float,
) -> dict[str, Any]:
    """Cut the graph of a servable folder, and write down at which confidence it stops.

    Args:
        layers: how many have run at each exit.
        confidence: of params; ``auto`` is chosen on validation.
        max_loss: points of accuracy that stopping early may cost there.

    Returns:
        What ``metrics/quantize.json`` says of it under ``exits``.
    """
    serving = json.loads((folder / "serving.json").read_text("utf-8"))
    names = cut_into_stages(folder / serving["model"], len(layers))
    write_json(folder / "serving.json", serving | {"stages": names, "confidence": 1.0})
    servable = Servable(folder)
    # one by one, as they are served
    each = [list(servable.every_exit(*servable.encode([text]))) for text in validation.texts]
    servable.close()
    logits = np.stack([np.concatenate(rows) for rows in zip(*each, strict=True)])
    chosen = choose(logits, validation.labels, max_loss) if confidence == "auto" else confidence
    write_json(folder / "serving.json", serving | {"stages": names, "confidence": chosen})
    full, found = (tradeoff(logits, validation.labels, at) for at in (1.0, chosen))
    return {"layers": list(layers), **found, "full_depth": full["accuracy"], "max_loss": max_loss}


def _exit_logits(model: nn.Module, exits: Exits, ids: Sequence[Row]) -> list[np.ndarray]:
    """Of each exit ``[texts, classes]`` float32."""
    found = exits.answer(look(model, ids, exits.layers).states)
    return [logits.detach().numpy() for logits in found]


def _cut(graph: onnx.GraphProto, name: str) -> onnx.ValueInfoProto:
    """The tensor that the next layer reads where states are handed on.

    It is the output of that name, or what is cast to it in a fp16 graph and dequantised to it in
    one with ranges: so what follows is the same operators as before the cut.
    """
    info = next(output for output in graph.output if output.name == name)
    cut = onnx.ValueInfoProto()
    cut.CopyFrom(info)
    maker = next(node for node in graph.node if name in node.output)
    if maker.op_type == "Cast":
        cut.name = maker.input[0]
        cut.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    elif maker.op_type == "DequantizeLinear":
        zero = next(t for t in graph.initializer if t.name == maker.input[2])
        cut.name, cut.type.tensor_type.elem_type = maker.input[0], zero.data_type
    return cut


def _part(
    model: onnx.ModelProto, wanted: Sequence[str], given: Sequence[onnx.ValueInfoProto]
) -> onnx.ModelProto:
    """What of a graph makes the wanted tensors out of given ones and its own inputs."""
    known = {info.name: info for info in (*model.graph.output, *model.graph.input, *given)}
    makers = {output: node for node in model.graph.node for output in node.output}
    needed, made = set(wanted), set[str]()
    todo = list(wanted)
    stop = {info.name for info in (*model.graph.input, *given)}
    while todo:
        name = todo.pop()
        if name in stop or name not in makers or name in made:
            continue
        made |= set(makers[name].output)
        todo += makers[name].input
        needed |= set(makers[name].input)
    nodes = [node for node in model.graph.node if set(node.output) & made]
    inputs = [known[n] for n in (*(g.name for g in given), *INPUTS) if n in needed]
    outputs = [known.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in wanted]
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    graph = onnx.helper.make_graph(nodes, model.graph.name, inputs, outputs, constants)
    part: onnx.ModelProto = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )
    return part


def _with_names(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """The model with tensors renamed, in place."""
    for node in model.graph.node:
        for place in (node.input, node.output):
            place[:] = [names.get(name, name) for name in place]
    for info in (*model.graph.input, *model.graph.output):
        info.name = names.get(info.name, info.name)
    return model
