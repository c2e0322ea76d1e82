#!/usr/bin/env python3
"""Does for tensorrt.sh what trtexec does, on a board that has TensorRT's Python module and no trtexec.

Needs Python >= 3.9, the module `tensorrt` 10 or later, CUDA's runtime library and the module beside it.
Two ways to call it:

    tensorrt_runner.py --probe    prints TensorRT's version; or why nothing can be built here, with status 4
    tensorrt_runner.py OPTIONS    builds an engine, or runs one: the options of trtexec that edgekit uses from 10 on

What it writes has the form of trtexec's reports: samples/common/sampleReporting.cpp of https://github.com/NVIDIA/TensorRT,
v10.3.0 and v11.1. An option that the release does not have ends it, as it ends trtexec; errors are lines with [E].
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
import traceback

sys.dont_write_bytecode = True  # a bundle holds what its manifest lists, and nothing else

from tensorrt_inference import Cuda, Failed, Tensor, content_of, infer, say  # noqa: E402

LEAST = 10  # major version: since then types are in the model, and tensors are named where they are run
MIB = 1 << 20
TYPES = {"fp32": "FLOAT", "fp16": "HALF", "int8": "INT8"}  # of a layer, where the model does not say it


def major(version):
    return int(version.split(".")[0])


# --- what it is told --------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failed(message)


def parse(words, version):
    """trtexec's options of that TensorRT; raises Failed for another."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    flag = {"action": "store_true"}
    for name in ("onnx", "saveEngine", "timingCacheFile", "memPoolSize", "sparsity", "useDLACore"):
        parser.add_argument("--" + name, default="")
    for name in ("loadEngine", "loadInputs", "exportTimes", "exportProfile", "exportLayerInfo", "exportOutput"):
        parser.add_argument("--" + name, default="")
    parser.add_argument("--profilingVerbosity", default="layer_names_only")
    parser.add_argument("--warmUp", type=float, default=200.0)
    parser.add_argument("--duration", type=float, default=3.0)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--skipInference", **flag)
    parser.add_argument("--allowGPUFallback", **flag)
    newer = major(version) >= 11  # which turned the defaults round, and knows no types but the model's
    for name in ("stronglyTyped", "fp16", "int8", "useCudaGraph", "useSpinWait"):
        if not newer:
            parser.add_argument("--" + name, **flag)
    for name in ("precisionConstraints", "layerPrecisions", "layerOutputTypes"):
        if not newer:
            parser.add_argument("--" + name, default="")
    for name in ("includeDataTransfers", "noCudaGraph"):
        if newer:
            parser.add_argument("--" + name, **flag)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise Failed("Unknown option: " + " ".join(unknown[0].split("=", 1)))
    if newer:
        if options.loadEngine and not options.includeDataTransfers:
            raise Failed("latency is measured with data transfers here: --includeDataTransfers is missing")
        options.stronglyTyped = True
        options.useCudaGraph, options.useSpinWait = not options.noCudaGraph, True
    return options


# --- TensorRT ---------------------------------------------------------------------------------------------------------


def logger(tensorrt):
    letters = {"INTERNAL_ERROR": "E", "ERROR": "E", "WARNING": "W", "INFO": "I"}

    class Logger(tensorrt.ILogger):
        def __init__(self):
            tensorrt.ILogger.__init__(self)

        def log(self, severity, message):
            if severity.name in letters:
                say(letters[severity.name], "[TRT] " + message)

    return Logger()


def build(tensorrt, options):
    """The engine of --onnx into --saveEngine."""
    if not (options.onnx and options.saveEngine):
        raise Failed("Model missing or format not recognized")
    log = logger(tensorrt)
    tensorrt.init_libnvinfer_plugins(log, "")  # some of ONNX's operators are among them
    # Each of these is held: on temporaries the parser ends in a segmentation fault.
    builder = tensorrt.Builder(log)
    typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if options.stronglyTyped else 0
    network = builder.create_network(typed)
    parser = tensorrt.OnnxParser(network, log)
    if not parser.parse_from_file(options.onnx):
        for index in range(parser.num_errors):
            error = parser.get_error(index)
            say("E", "%s %s: %s" % (error.node_operator(), error.node_name(), " ".join(error.desc().split())))
        raise Failed("Failed to parse onnx file")
    config = configuration(tensorrt, builder, options)
    if not options.stronglyTyped:
        allow_types(tensorrt, config, network, options)
    began = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Failed("Engine could not be created from network")
    say("I", "Engine built in %.6g sec." % (time.monotonic() - began))
    with open(options.saveEngine, "wb") as file:
        file.write(engine)
    if options.timingCacheFile:
        with open(options.timingCacheFile, "wb") as file:
            file.write(config.get_timing_cache().serialize())


def configuration(tensorrt, builder, options):
    config = builder.create_builder_config()
    pool = re.fullmatch(r"workspace:(\d+)", options.memPoolSize)
    if pool:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, int(pool[1]) * MIB)
    elif options.memPoolSize:
        raise Failed("Unknown memory pool: --memPoolSize " + options.memPoolSize)
    config.profiling_verbosity = verbosity(tensorrt, options)
    flags = tensorrt.BuilderFlag
    if options.sparsity == "enable":
        config.set_flag(flags.SPARSE_WEIGHTS)
    elif options.sparsity:
        raise Failed("Unknown sparsity mode: --sparsity " + options.sparsity)
    if options.useDLACore:
        if int(options.useDLACore) >= builder.num_DLA_cores:
            raise Failed("Cannot create DLA engine, %s not available" % options.useDLACore)
        config.default_device_type = tensorrt.DeviceType.DLA
        config.DLA_core = int(options.useDLACore)
        if options.allowGPUFallback:
            config.set_flag(flags.GPU_FALLBACK)
    if options.timingCacheFile:
        known = content_of(options.timingCacheFile) if os.path.exists(options.timingCacheFile) else b""
        say("I", "Loaded %d bytes of timing cache from %s" % (len(known), options.timingCacheFile))
        if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return config


def allow_types(tensorrt, config, network, options):
    """The types that layers may have where the model does not say them: for accelerators beside the GPU, in 10."""
    flags = tensorrt.BuilderFlag
    if options.int8:
        config.set_flag(flags.INT8)
    if options.fp16 or (options.useDLACore and not options.int8):  # which has no other floats
        config.set_flag(flags.FP16)
    if options.precisionConstraints == "obey":
        config.set_flag(flags.OBEY_PRECISION_CONSTRAINTS)
    elif options.precisionConstraints or options.layerPrecisions or options.layerOutputTypes:
        raise Failed("types of layers are obeyed here, or not given: --precisionConstraints=obey")
    computing, written = (
        dict(word.rsplit(":", 1) for word in words.split(",") if word)
        for words in (options.layerPrecisions, options.layerOutputTypes)
    )
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.name in computing:
            layer.precision = getattr(tensorrt.DataType, TYPES[computing[layer.name]])
        for index in range(layer.num_outputs if layer.name in written else 0):
            layer.set_output_type(index, getattr(tensorrt.DataType, TYPES[written[layer.name]]))


def verbosity(tensorrt, options):
    found = {"layer_names_only": "LAYER_NAMES_ONLY", "detailed": "DETAILED"}.get(options.profilingVerbosity)
    if found is None:
        raise Failed("Unknown profiling verbosity: --profilingVerbosity " + options.profilingVerbosity)
    return getattr(tensorrt.ProfilingVerbosity, found)


def profiler(tensorrt):
    class Profiler(tensorrt.IProfiler):
        """Times of each layer, which are told one after the other, inference by inference."""

        def __init__(self):
            tensorrt.IProfiler.__init__(self)
            self.layers, self.count, self._place = [], 0, 0

        def report_layer_time(self, layer_name, ms):
            if self._place == len(self.layers):
                again = bool(self.layers) and self.layers[0][0] == layer_name
                self.count += again or not self.layers
                if again:
                    self._place = 0
                else:
                    self.layers.append((layer_name, []))
            self.layers[self._place][1].append(ms)
            self._place += 1

    return Profiler()


def run(tensorrt, options):
    """The engine of --loadEngine for the inputs of --loadInputs, and the reports that are asked for."""
    print_settings(tensorrt, options)
    cuda = Cuda()
    log = logger(tensorrt)
    tensorrt.init_libnvinfer_plugins(log, "")
    runtime = tensorrt.Runtime(log)
    if options.useDLACore:
        runtime.DLA_core = int(options.useDLACore)
    engine = runtime.deserialize_cuda_engine(content_of(options.loadEngine))
    context = None if engine is None else engine.create_execution_context()
    if context is None:
        raise Failed("Engine deserialization failed")
    times = None
    if options.exportProfile:
        times = context.profiler = profiler(tensorrt)
        context.enqueue_emits_profile = False
    tensors = [Tensor(tensorrt, cuda, engine, engine.get_tensor_name(one)) for one in range(engine.num_io_tensors)]
    files = dict(word.rsplit(":", 1) for word in options.loadInputs.split(",") if word)
    for one in tensors:
        if not context.set_tensor_address(one.name, one.device):
            raise Failed("tensor %s: its address was refused" % one.name)
        if one.is_input:
            if one.name not in files:
                raise Failed("--loadInputs names no file for input " + one.name)
            one.fill(files[one.name])
    trace = infer(cuda, context, tensors, options)
    if options.exportTimes:
        write(options.exportTimes, listed(trace_row(row) for row in trace if row[4] >= options.warmUp))
    if times is not None:
        write(options.exportProfile, profile_rows(times))
    if options.exportLayerInfo:
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        write(options.exportLayerInfo, inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))
    if options.exportOutput:
        write(options.exportOutput, listed(output_row(one) for one in tensors if not one.is_input))


def print_settings(tensorrt, options):
    say("I", "=== Inference Options ===")
    for name, on in (
        ("Data transfers", True),
        ("Spin-wait", options.useSpinWait),
        ("CUDA Graph", options.useCudaGraph),
    ):
        say("I", "%s: %s" % (name, "Enabled" if on else "Disabled"))
    say("I", "TensorRT version: " + tensorrt.__version__)


# --- reports ----------------------------------------------------------------------------------------------------------


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def number(value):
    """As C++ prints it."""
    return "%.6g" % value if isinstance(value, float) else str(int(value))


def listed(rows):
    return "[\n  " + "\n, ".join(rows) + "\n]\n"


def trace_row(row):
    names = ("Enq", "H2d", "Compute", "D2h")
    times = {
        edge + name + "Ms": row[2 * place + index]
        for place, name in enumerate(names)
        for index, edge in enumerate(("start", "end"))
    }
    spans = [times["end%sMs" % name] - times["start%sMs" % name] for name in names[1:]]
    times.update(zip(("h2dMs", "computeMs", "d2hMs"), spans), latencyMs=sum(spans))
    return "{ " + ", ".join('"%s" : %s' % (name, number(value)) for name, value in times.items()) + " }"


def profile_rows(times):
    whole = sum(sum(one) for _, one in times.layers) or 1.0
    rows = ['{ "count" : %d }' % times.count]
    for name, found in times.layers:
        values = (sum(found), statistics.mean(found), statistics.median(found), 100 * sum(found) / whole)
        words = zip(("timeMs", "averageMs", "medianMs", "percentage"), map(number, values))
        rows.append('{ "name" : %s, ' % json.dumps(name) + ", ".join('"%s" : %s' % one for one in words) + " }")
    return listed(rows)


def output_row(tensor):
    return '{ "name" : %s\n  , "dimensions" : "%s"\n  , "values" : [ %s ]\n  }' % (
        json.dumps(tensor.name),
        "x".join(map(str, tensor.shape)),
        ", ".join(map(number, tensor.values())),
    )


# --- how it is called -------------------------------------------------------------------------------------------------


def probe():
    """TensorRT's version; raises Failed where nothing can be built or run."""
    try:
        import tensorrt
    except ImportError as error:
        raise Failed("Python cannot import tensorrt: %s" % error) from None
    if major(tensorrt.__version__) < LEAST:
        raise Failed("Python has TensorRT %s, and only trtexec can build with one before 10" % tensorrt.__version__)
    try:
        count = Cuda().devices()
    except (Failed, AttributeError) as error:
        raise Failed("Python has TensorRT %s, but no GPU: %s" % (tensorrt.__version__, error)) from None
    if count == 0:
        raise Failed("Python has TensorRT %s, but no GPU: CUDA sees none" % tensorrt.__version__)
    return tensorrt.__version__


def main(words, tensorrt=None):
    """Status. `tensorrt` is a module to use in place of TensorRT's: tests hand over one that builds without a GPU."""
    if words == ["--probe"]:
        try:
            print(probe())
        except Failed as error:
            print(" ".join(str(error).split()))
            return 4
        return 0
    try:
        if tensorrt is None:
            import tensorrt
        options = parse(words, tensorrt.__version__)
        if options.loadEngine:
            run(tensorrt, options)
        else:
            build(tensorrt, options)
    except (Failed, OSError) as error:
        say("E", str(error))
        return 1
    except Exception as error:
        say("E", "%s: %s" % (type(error).__name__, " ".join(str(error).split())))
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
