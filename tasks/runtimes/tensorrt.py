"""TensorRT 11 behind the interface of `tasks.runtimes`. *Unverified on a GPU*: none has run it.

TensorRT 11 is strongly typed: every precision is the graph's own, int8 where it stands between
QuantizeLinear and DequantizeLinear with zero points of 0 (`tasks.quantization.readiness`). Its
kernels are chosen for one GPU, so an engine is no part of a bundle: it is built from the
bundle's ``model.onnx`` on the machine that serves, once, and kept under
``$STILLROOM_HOME/engines`` by what it depends on: the file's hash, the GPU, the version.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tasks.errors import UnavailableError
from tasks.files import file_sha256
from tasks.home import home
from tasks.runtimes.interface import INPUTS, LONGEST

MOST = 64
"""Texts that an engine takes at a time."""
WORKSPACE = 1 << 30
"""Bytes that the builder may use to try a kernel."""


def missing() -> str | None:
    """Why it cannot run here; None where it can."""
    for package in ("tensorrt", "cuda.bindings"):
        if not _installed(package):
            return f"{package} is not installed: pip install tensorrt cuda-bindings"
    from cuda.bindings import runtime as cuda

    status, count = cuda.cudaGetDeviceCount()
    return None if status == cuda.cudaError_t.cudaSuccess and count else "no NVIDIA GPU"


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def profiles(longest: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Smallest, likeliest and largest ``(batch, length)``: one text at a time, and batches."""
    return (
        ((1, 2), (1, min(16, longest)), (1, longest)),
        ((2, 2), (8, min(32, longest)), (MOST, longest)),
    )


def longest_of(model: onnx.ModelProto) -> int:
    """Pieces that a graph's position table reaches to: an engine for more cannot be built."""
    named = {one.key: one.value for one in model.metadata_props}
    return int(named.get(LONGEST, 512))


def engine_name(model: str, gpu: str, capability: tuple[int, int], version: str) -> str:
    """Where an engine is kept: another file, GPU or version is another engine.

    Args:
        model: sha256 of the ``.onnx`` file, which also says how long a text may be.
        gpu: its name, as CUDA has it.
        capability: compute capability, major and minor.
        version: of TensorRT.
    """
    kind = "".join(c if c.isalnum() else "-" for c in gpu.lower())
    return f"{model[:16]}-{kind}-sm{capability[0]}{capability[1]}-trt{version}.engine"


class TensorRtRuntime:
    """An ONNX classifier on a GPU: token ids in, logits out.

    Args:
        model: the ``.onnx`` file.
        folder: where engines and the timing cache are kept.

    Raises:
        UnavailableError: the file does not parse, or no engine comes of it; says the first error.
    """

    def __init__(self, model: Path, *, folder: Path | None = None) -> None:
        import tensorrt as trt
        from cuda.bindings import runtime as cuda

        self._trt, self._cuda = trt, cuda
        self._logger = trt.Logger(trt.Logger.ERROR)
        kept = folder or home() / "engines"
        kept.mkdir(parents=True, exist_ok=True)
        gpu, capability = self._gpu()
        path = kept / engine_name(file_sha256(model), gpu, capability, trt.__version__)
        plan = path.read_bytes() if path.is_file() else self._build(model, kept, path)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            path.unlink(missing_ok=True)
            raise UnavailableError(f"{path}: TensorRT cannot load it",
                                   next_command="stillroom doctor")  # fmt: skip
        self._longest = int(self._engine.get_tensor_profile_shape(INPUTS[0], 0)[2][1])
        self._gpu_name = gpu
        self._contexts: dict[int, Any] = {}
        self._stream = self._checked(cuda.cudaStreamCreate())
        self._buffers: dict[str, tuple[int, int]] = {}

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Logits ``[batch, classes]`` float32 for ids and mask ``[batch, length]`` int64.

        Raises:
            UnavailableError: a text is longer than the engine takes, or CUDA refuses.
        """
        starts = range(0, len(input_ids), MOST)
        parts = [self._run(input_ids[at : at + MOST], attention_mask[at : at + MOST])
                 for at in starts]  # fmt: skip
        return np.concatenate(parts)

    def _run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Of at most `MOST` texts."""
        cuda, kinds = self._cuda, self._cuda.cudaMemcpyKind
        context = self._context(*input_ids.shape)
        arrays = [np.ascontiguousarray(a, dtype=np.int64) for a in (input_ids, attention_mask)]
        for name, given in zip(INPUTS, arrays, strict=True):  # alive until the stream is done
            context.set_input_shape(name, given.shape)
            context.set_tensor_address(name, self._buffer(name, given.nbytes))
            self._checked(cuda.cudaMemcpyAsync(
                self._buffers[name][0], given.ctypes.data, given.nbytes,
                kinds.cudaMemcpyHostToDevice, self._stream))  # fmt: skip
        logits = np.empty(tuple(context.get_tensor_shape("logits")), dtype=np.float32)
        context.set_tensor_address("logits", self._buffer("logits", logits.nbytes))
        if not context.execute_async_v3(int(self._stream)):
            raise UnavailableError("TensorRT: the engine did not run",
                                   next_command="stillroom doctor")  # fmt: skip
        self._checked(cuda.cudaMemcpyAsync(
            logits.ctypes.data, self._buffers["logits"][0], logits.nbytes,
            kinds.cudaMemcpyDeviceToHost, self._stream))  # fmt: skip
        self._checked(cuda.cudaStreamSynchronize(self._stream))
        return logits

    def describe(self) -> dict[str, Any]:
        """Name, version and the GPU, for reports."""
        return {
            "runtime": "tensorrt",
            "version": self._trt.__version__,
            "provider": self._gpu_name,
        }

    def close(self) -> None:
        """Free buffers, stream and engine."""
        for address, _ in self._buffers.values():
            self._checked(self._cuda.cudaFree(address))
        self._checked(self._cuda.cudaStreamDestroy(self._stream))
        self._buffers.clear()
        self._contexts.clear()
        del self._engine, self._runtime

    def _context(self, batch: int, length: int) -> Any:
        """The execution context whose optimisation profile takes a shape."""
        if not 2 <= length <= self._longest:
            raise UnavailableError(
                f"TensorRT: found a text of {length} pieces, expected 2 to {self._longest}",
                next_command="stillroom doctor",
            )
        profile = 0 if batch == 1 else 1
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            context.set_optimization_profile_async(profile, int(self._stream))
            self._checked(self._cuda.cudaStreamSynchronize(self._stream))
            self._contexts[profile] = context
        return self._contexts[profile]

    def _buffer(self, name: str, size: int) -> int:
        """Address of device memory of at least `size` bytes; grows, never shrinks."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            if room:
                self._checked(self._cuda.cudaFree(address))
            address = int(self._checked(self._cuda.cudaMalloc(size)))
            self._buffers[name] = (address, size)
        return address

    def _build(self, model: Path, folder: Path, path: Path) -> bytes:
        """Build an engine with the kernels that earlier builds timed, and keep both."""
        trt = self._trt
        builder = trt.Builder(self._logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse(model.read_bytes()):
            raise UnavailableError(f"{model}: {parser.get_error(0).desc()}",
                                   next_command="stillroom doctor")  # fmt: skip
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
        for shapes in profiles(longest_of(onnx.load(model, load_external_data=False))):
            profile = builder.create_optimization_profile()
            for name in INPUTS:
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        timings = folder / f"timing-trt{trt.__version__}.cache"
        known = timings.read_bytes() if timings.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise UnavailableError(f"{model}: TensorRT builds no engine of it",
                                   next_command="stillroom doctor")  # fmt: skip
        _keep({timings: config.get_timing_cache().serialize(), path: plan})
        return bytes(plan)

    def _gpu(self) -> tuple[str, tuple[int, int]]:
        """Name and compute capability of the GPU in use."""
        device = self._checked(self._cuda.cudaGetDevice())
        found = self._checked(self._cuda.cudaGetDeviceProperties(device))
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return name, (int(found.major), int(found.minor))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        """What a CUDA call returns.

        Raises:
            UnavailableError: it failed.
        """
        status, *values = answer
        if status != self._cuda.cudaError_t.cudaSuccess:
            raise UnavailableError(f"CUDA: {status.name}", next_command="stillroom doctor")
        return values[0] if values else None


def _keep(files: Mapping[Path, Any]) -> None:
    """Write files that another process may be reading, each at once."""
    for path, content in files.items():
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(bytes(content))
        part.replace(path)
