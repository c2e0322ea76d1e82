"""Runs a TensorRT engine and times it as trtexec does: through TensorRT's Python module, and CUDA's runtime by ctypes.

What happens in which order: samples/common/sampleInference.cpp of https://github.com/NVIDIA/TensorRT, v10.3.0, v11.1.
"""

import ctypes
import gc
import glob
import math
import os
import re
import site
import struct
import sys
import time

# Letters of the module struct, by TensorRT's types.
LETTERS = {"FLOAT": "f", "HALF": "e", "INT8": "b", "UINT8": "B", "INT32": "i", "INT64": "q", "BOOL": "?"}
LIBRARY = "libcudart.so"
# Where CUDA is when the loader does not know it: the toolkit's own folders, and those of NVIDIA's wheels.
FOLDERS = ("/usr/local/cuda*/lib64", "/usr/local/cuda*/targets/*/lib")
WHEELS = ("nvidia/cuda_runtime/lib", "nvidia/cu*/lib")


class Failed(Exception):
    """What is wrong, in one line."""


def say(level, text):
    print("[%s] [%s] %s" % (time.strftime("%m/%d/%Y-%H:%M:%S"), level, text), flush=True)


# --- CUDA -------------------------------------------------------------------------------------------------------------


def library():
    """CUDA's runtime: the one that TensorRT has loaded, else the one that the loader or these folders have."""
    with open("/proc/self/maps") as maps:
        loaded = re.findall(r"(/\S*/libcudart\.so\S*)$", maps.read(), re.MULTILINE)
    packages = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    folders = [*FOLDERS, *(os.path.join(one, wheel) for one in packages for wheel in WHEELS)]
    found = [path for folder in folders for path in sorted(glob.glob(os.path.join(folder, LIBRARY + "*")))]
    for name in [*loaded[:1], LIBRARY, *(LIBRARY + "." + str(one) for one in (13, 12, 11)), *found]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            pass
    raise Failed("CUDA's runtime library is not here (%s)" % LIBRARY)


class Cuda:
    """The functions of CUDA's runtime that are used here. Handles are plain addresses."""

    HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2  # cudaMemcpyKind
    BLOCKING_SYNC = 1  # cudaEventBlockingSync; events spin without it
    SCHEDULE_SPIN = 1  # cudaDeviceScheduleSpin
    CAPTURE_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal

    def __init__(self):
        address, place = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        integer = ctypes.c_int
        self._library = library()
        for name, types in {
            "cudaGetDeviceCount": (ctypes.POINTER(integer),),
            "cudaSetDeviceFlags": (ctypes.c_uint,),
            "cudaMalloc": (place, ctypes.c_size_t),
            "cudaMallocHost": (place, ctypes.c_size_t),
            "cudaMemcpyAsync": (address, address, ctypes.c_size_t, integer, address),
            "cudaStreamCreate": (place,),
            "cudaStreamSynchronize": (address,),
            "cudaStreamWaitEvent": (address, address, ctypes.c_uint),
            "cudaEventCreateWithFlags": (place, ctypes.c_uint),
            "cudaEventRecord": (address, address),
            "cudaEventSynchronize": (address,),
            "cudaEventElapsedTime": (ctypes.POINTER(ctypes.c_float), address, address),
            "cudaStreamBeginCapture": (address, integer),
            "cudaStreamEndCapture": (address, place),
            "cudaGraphInstantiateWithFlags": (place, address, ctypes.c_ulonglong),
            "cudaGraphLaunch": (address, address),
            "cudaGetLastError": (),
        }.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, integer
            setattr(self, name[4:5].lower() + name[5:], function)
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def check(self, code):
        if code:
            raise Failed("Cuda failure: " + self._library.cudaGetErrorString(code).decode())

    def devices(self):
        count = ctypes.c_int(0)
        self.check(self.getDeviceCount(ctypes.byref(count)))
        return count.value

    def new(self, make, *arguments):
        """The address that `make` writes."""
        found = ctypes.c_void_p()
        self.check(make(ctypes.byref(found), *arguments))
        return found.value

    def milliseconds(self, start, end):
        found = ctypes.c_float()
        self.check(self.eventElapsedTime(ctypes.byref(found), start, end))
        return found.value


def content_of(path):
    with open(path, "rb") as file:
        return file.read()


# --- running ----------------------------------------------------------------------------------------------------------


class Tensor:
    """An input or output of the engine, in pinned memory of the host and in the device's."""

    def __init__(self, tensorrt, cuda, engine, name):
        self.name = name
        self.is_input = engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT
        self.shape = tuple(engine.get_tensor_shape(name))
        kind = engine.get_tensor_dtype(name).name
        if kind not in LETTERS or min(self.shape, default=0) < 0:
            raise Failed("tensor %s: neither type %s nor shape %s can be run here" % (name, kind, self.shape))
        self.letter = LETTERS[kind]
        self.bytes = struct.calcsize(self.letter) * math.prod(self.shape)
        self.host = cuda.new(cuda.mallocHost, max(self.bytes, 1))
        self.device = cuda.new(cuda.malloc, max(self.bytes, 1))

    def fill(self, path):
        content = content_of(path)
        if len(content) != self.bytes:
            raise Failed("%s: has %d bytes, input %s has %d" % (path, len(content), self.name, self.bytes))
        ctypes.memmove(self.host, content, self.bytes)

    def values(self):
        count = math.prod(self.shape)
        return struct.unpack("=%d%s" % (count, self.letter), ctypes.string_at(self.host, self.bytes))


class Pipeline:
    """Inferences on three streams, two of them under way at once: the data of one move while another is computed."""

    DEPTH = 2

    def __init__(self, cuda, context, tensors, options):
        self._cuda, self._context, self._profiled = cuda, context, bool(options.exportProfile)
        self._inputs = [one for one in tensors if one.is_input]
        self._outputs = [one for one in tensors if not one.is_input]
        self._in, self._compute, self._out = (cuda.new(cuda.streamCreate) for _ in range(3))
        kind = 0 if options.useSpinWait else cuda.BLOCKING_SYNC
        self._events = [[cuda.new(cuda.eventCreateWithFlags, kind) for _ in range(6)] for _ in range(self.DEPTH)]
        self._enqueued = [(0.0, 0.0)] * self.DEPTH
        self._active, self._next = [False] * self.DEPTH, 0
        self._graph = self._captured() if options.useCudaGraph else None
        self._start = cuda.new(cuda.eventCreateWithFlags, cuda.BLOCKING_SYNC)
        main = cuda.new(cuda.streamCreate)
        self._began_s = time.perf_counter()
        cuda.check(cuda.eventRecord(self._start, main))
        for stream in (self._in, self._compute, self._out):
            cuda.check(cuda.streamWaitEvent(stream, self._start, 0))

    def _captured(self):
        """The graph of one inference, or None where the engine does what no graph can hold."""
        cuda, stream = self._cuda, self._compute
        self._copy_in(stream)
        self._enqueue()  # what happens the first time alone belongs to no graph
        cuda.check(cuda.streamSynchronize(stream))
        cuda.check(cuda.streamBeginCapture(stream, cuda.CAPTURE_THREAD_LOCAL))
        taken = self._context.execute_async_v3(stream)
        graph = ctypes.c_void_p()
        code = cuda.streamEndCapture(stream, ctypes.byref(graph))
        if code or not taken:
            cuda.getLastError()  # which clears it
            say("W", "CUDA graph capture failed. The inference will be launched without using CUDA graph.")
            return None
        return cuda.new(cuda.graphInstantiateWithFlags, graph, 0)

    def _copy_in(self, stream):
        for one in self._inputs:
            code = self._cuda.memcpyAsync(one.device, one.host, one.bytes, self._cuda.HOST_TO_DEVICE, stream)
            self._cuda.check(code)

    def _enqueue(self):
        if not self._context.execute_async_v3(self._compute):
            raise Failed("Inference enqueue failed.")
        if self._profiled and not self._context.report_to_profiler():
            say("W", "Failed to collect layer timing info from previous enqueueV3()")

    def start(self):
        """One more inference, unless as many are under way as may be."""
        if self._active[self._next]:
            return
        cuda, (in_start, in_end, start, end, out_start, out_end) = self._cuda, self._events[self._next]
        check, record, wait = cuda.check, cuda.eventRecord, cuda.streamWaitEvent
        check(record(in_start, self._in))
        self._copy_in(self._in)
        check(record(in_end, self._in))
        check(wait(self._compute, in_end, 0))
        before_s = time.perf_counter()
        check(record(start, self._compute))
        if self._graph is None:
            self._enqueue()
        else:
            check(cuda.graphLaunch(self._graph, self._compute))
        check(record(end, self._compute))
        after_s = time.perf_counter()
        check(wait(self._out, end, 0))
        check(record(out_start, self._out))
        for one in self._outputs:
            check(cuda.memcpyAsync(one.host, one.device, one.bytes, cuda.DEVICE_TO_HOST, self._out))
        check(record(out_end, self._out))
        self._enqueued[self._next] = (before_s, after_s)
        self._active[self._next] = True
        self._move()

    def end(self, trace):
        """Wait for the one that was started first, if there is one, and add its times; when it began to compute, in
        milliseconds.
        """
        if not self._active[self._next]:
            return 0.0
        events = self._events[self._next]
        self._cuda.check(self._cuda.eventSynchronize(events[-1]))
        enqueued = [1e3 * (one - self._began_s) for one in self._enqueued[self._next]]
        trace.append((*enqueued, *(self._cuda.milliseconds(self._start, one) for one in events)))
        self._active[self._next] = False
        return trace[-1][4]

    def end_all(self, trace):
        for _ in range(self.DEPTH):
            self.end(trace)
            self._move()

    def _move(self):
        self._next = self.DEPTH - 1 - self._next


def infer(cuda, context, tensors, options):
    """Inferences until --duration after --warmUp, and --iterations after it at least. Rows of eight times, milliseconds
    since the beginning: enqueued from, to, input copied from, to, computed from, to, output copied from, to.
    """
    if cuda.setDeviceFlags(cuda.SCHEDULE_SPIN):  # before CUDA 12 not once the device is in use
        cuda.getLastError()  # which clears it
    pipeline = Pipeline(cuda, context, tensors, options)
    trace, lasted_ms, skipped, count = [], 0.0, 0, 0
    limit_ms = 1e3 * options.duration + options.warmUp
    gc.disable()
    while count < options.iterations + skipped or lasted_ms < limit_ms:
        count += 1
        pipeline.start()
        lasted_ms = max(lasted_ms, pipeline.end(trace))
        if 0 < lasted_ms < options.warmUp:
            skipped += 1
    pipeline.end_all(trace)
    gc.enable()
    return sorted(trace, key=lambda row: row[2])
