"""TensorRT's Python module for machines without a GPU, as far as targets/runners/tensorrt_runner.py uses it. It builds
what the stand-in for trtexec builds (beside it, as `stand_in`), and computes with onnxruntime on streams of `cudart.c`.
Names, and what is called when: python/src of https://github.com/NVIDIA/TensorRT, v10.3.0.
"""

from __future__ import annotations

import ctypes
import enum
import json
import time
from pathlib import Path
from typing import Any

from . import stand_in

__version__ = f"{stand_in.SETTINGS['version']}.30"
# What a model may hold, by onnxruntime's words.
TYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(int32)": "INT32"}
NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32"}

DataType = enum.IntEnum("DataType", "FLOAT HALF INT8 INT64 INT32", start=0)
DeviceType = enum.IntEnum("DeviceType", "GPU DLA", start=0)
TensorIOMode = enum.IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
BuilderFlag = enum.IntEnum("BuilderFlag", "FP16 INT8 SPARSE_WEIGHTS GPU_FALLBACK OBEY_PRECISION_CONSTRAINTS")
MemoryPoolType = enum.IntEnum("MemoryPoolType", "WORKSPACE")
ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED", start=0)
LayerInformationFormat = enum.IntEnum("LayerInformationFormat", "ONELINE JSON", start=0)
Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)


class ILogger:
    pass


class IProfiler:
    pass


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    assert namespace == ""
    return True


# --- building ---------------------------------------------------------------------------------------------------------


class Layer:
    """A node of the model; what is asked of it, in trtexec's words."""

    num_outputs = 1
    precision: DataType | None = None
    output: DataType | None = None

    def __init__(self, name: str) -> None:
        self.name = name

    def set_output_type(self, index: int, kind: DataType) -> None:
        assert index == 0
        self.output = kind


class Network:
    def __init__(self, flags: int) -> None:
        self.typed = flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.model = b""
        self.layers: list[Layer] = []

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        self._network, self._logger = network, logger

    def parse_from_file(self, path: str) -> bool:
        self._network.model = Path(path).read_bytes()
        if stand_in.SETTINGS.get("fault") == "build:fail":
            self._logger.log(
                Severity.ERROR, 'ModelImporter.cpp:773: While parsing node number 3 [Foo -> "y"]:\nsome more'
            )
            return False
        import onnx

        graph = onnx.load_model_from_string(self._network.model).graph
        self._network.layers = [Layer(node.name) for node in graph.node]
        return True


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"timing of this GPU\n"


class BuilderConfig:
    default_device_type = DeviceType.GPU
    DLA_core = -1

    def __init__(self) -> None:
        self.pools: dict[int, int] = {}
        self.flags: set[int] = set()
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self._cache = TimingCache(b"")

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.pools[pool] = size

    def set_flag(self, flag: int) -> None:
        self.flags.add(flag)

    def create_timing_cache(self, content: bytes) -> TimingCache:
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> TimingCache:
        return self._cache


class Builder:
    num_DLA_cores = stand_in.SETTINGS.get("dla_cores", 0)

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes:
        import onnx

        assert config.pools == {MemoryPoolType.WORKSPACE: 512 << 20}
        graph = onnx.load_model_from_string(network.model).graph
        layers = stand_in.compiled(graph, {"--stronglyTyped": ""} if network.typed else words_of(network, config))
        if network.typed:
            assert config.flags <= {BuilderFlag.SPARSE_WEIGHTS}, "a typed network takes no type"
        if config.default_device_type is DeviceType.DLA:
            assert config.DLA_core < self.num_DLA_cores
            layers = stand_in.on_accelerator(layers, BuilderFlag.GPU_FALLBACK in config.flags)
        self._logger.log(Severity.INFO, "building")
        stand_in.misbehave("build")
        time.sleep(stand_in.SETTINGS.get("pause_s", 0))
        detailed = config.profiling_verbosity is ProfilingVerbosity.DETAILED
        head = json.dumps({"version": __version__, "layers": layers, "detailed": detailed}).encode()
        return len(head).to_bytes(8, "little") + head + network.model


def words_of(network: Network, config: BuilderConfig) -> dict[str, str]:
    """What trtexec is told for the same."""
    words = {"FLOAT": "fp32", "HALF": "fp16", "INT8": "int8"}
    told = {f"--{name}": "" for name in ("fp16", "int8") if BuilderFlag[name.upper()] in config.flags}
    named = [one for one in network.layers if one.precision is not None]
    assert all(one.precision is one.output for one in named)
    if BuilderFlag.OBEY_PRECISION_CONSTRAINTS in config.flags:
        told["--precisionConstraints"] = "obey"
    precisions = ",".join(f"{one.name}:{words[DataType(one.precision or 0).name]}" for one in named)
    return {**told, "--layerPrecisions": precisions}


# --- running ----------------------------------------------------------------------------------------------------------


class Runtime:
    DLA_core = -1

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        size = int.from_bytes(content[:8], "little")
        head = json.loads(content[8 : 8 + size])
        if head["version"] != __version__:
            self._logger.log(Severity.ERROR, "6: The engine plan file is not compatible with this version of TensorRT")
            return None
        if self.DLA_core < 0 and any("region" in layer for layer in head["layers"]):
            self._logger.log(Severity.ERROR, "the engine needs a DLA core, and none is set")
            return None
        return Engine(head, content[8 + size :])


class Engine:
    def __init__(self, head: dict[str, Any], model: bytes) -> None:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 4
        self.session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self.head = head
        self.inputs = [row.name for row in self.session.get_inputs()]
        self._rows = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self._rows)

    def _row(self, name: str) -> Any:
        return next(row for row in self._rows if row.name == name)

    def get_tensor_name(self, index: int) -> str:
        return str(self._rows[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._row(name).shape)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[TYPES[self._row(name).type]]

    def create_execution_context(self) -> Context:
        return Context(self)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self)


class Inspector:
    execution_context: Context | None = None

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_engine_information(self, form: LayerInformationFormat) -> str:
        assert form is LayerInformationFormat.JSON
        assert self.execution_context is not None
        return stand_in.layer_info(self._engine.head, True)


class Context:
    profiler: Any = None
    enqueue_emits_profile = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cuda = ctypes.CDLL("libcudart.so")
        self._places: dict[str, int] = {}
        self._call = ctypes.CFUNCTYPE(None)(self._compute)  # held for as long as a graph may call it
        self._stream: int | None = None
        self._took_ms = 0.0

    def set_tensor_address(self, name: str, place: int) -> bool:
        self._places[name] = place
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._stream = stream
        return self._cuda.stand_in_call(self._call, ctypes.c_void_p(stream)) == 0

    def report_to_profiler(self) -> bool:
        assert not self.enqueue_emits_profile
        self._cuda.cudaStreamSynchronize(ctypes.c_void_p(self._stream))
        layers = self._engine.head["layers"]
        for layer in layers:
            self.profiler.report_layer_time(stand_in.title(layer), self._took_ms / len(layers))
        return True

    def _compute(self) -> None:
        import numpy as np

        engine, inputs = self._engine, {}
        began = time.perf_counter()
        for name in engine.inputs:
            dtype = np.dtype(NUMPY[engine.get_tensor_dtype(name).name])
            shape = engine.get_tensor_shape(name)
            content = ctypes.string_at(self._places[name], int(np.prod(shape)) * dtype.itemsize)
            inputs[name] = np.frombuffer(content, dtype).reshape(shape)
        names = [name for name in self._places if name not in engine.inputs]
        for name, value in zip(names, engine.session.run(names, inputs), strict=True):
            ctypes.memmove(self._places[name], value.tobytes(), value.nbytes)
        self._took_ms = 1e3 * (time.perf_counter() - began)
