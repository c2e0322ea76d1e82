/* CUDA's runtime for machines without a GPU: both memories are the host's, but what lies in which is checked. A stream does
 * nothing until somebody waits for it, so that a wait that is missing shows: then what is read is what was there before.
 * Compiled with -DGPUS=N, the devices that it says it has. Error codes: driver_types.h of CUDA.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, INVALID_VALUE = 1, NO_DEVICE = 100, INVALID_HANDLE = 400, NOT_READY = 600, IN_USE = 708, NOT_CAPTURABLE = 900 };
enum { COPY, RECORD, WAIT, CALL };
enum { HOST = 1, DEVICE = 2 };
enum { HOST_TO_DEVICE = 1, DEVICE_TO_HOST = 2 };

typedef struct stream stream;
typedef struct event {
    long issued, done; /* how often it was recorded, and how often a stream has come to it */
    double ms;
    stream *in;
} event;
typedef struct op {
    int kind;
    void *to;
    const void *from;
    size_t bytes;
    event *of;
    long count;
    void (*call)(void);
    struct op *next;
} op;
typedef struct graph {
    op *first, *last;
} graph;
struct stream {
    graph queue;
    graph *capture;
};
static struct block {
    char *start;
    size_t bytes;
    int where;
    struct block *next;
} *blocks;

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e3 * (double)now.tv_sec + 1e-6 * (double)now.tv_nsec;
}

static int allocate(void **place, size_t bytes, int where) {
    struct block *block = malloc(sizeof *block);
    *block = (struct block){malloc(bytes), bytes, where, blocks};
    memset(block->start, 0x5a, bytes);
    blocks = block;
    *place = block->start;
    return OK;
}

static int lies_in(const void *place, size_t bytes, int where) {
    for (struct block *block = blocks; block; block = block->next)
        if ((const char *)place >= block->start && (const char *)place + bytes <= block->start + block->bytes)
            return block->where == where;
    return 0;
}

static int push(stream *to, op what) {
    graph *queue = to->capture ? to->capture : &to->queue;
    op *added = malloc(sizeof *added);
    *added = what;
    added->next = NULL;
    if (queue->last) queue->last->next = added;
    else queue->first = added;
    queue->last = added;
    return OK;
}

static int step(stream *one);

static int until(event *one, long count) {
    while (one->done < count)
        if (step(one->in)) return INVALID_HANDLE;
    return OK;
}

static int step(stream *one) {
    op *next = one->queue.first;
    if (!next) return 1;
    one->queue.first = next->next;
    if (!one->queue.first) one->queue.last = NULL;
    if (next->kind == COPY) memcpy(next->to, next->from, next->bytes);
    if (next->kind == CALL) next->call();
    if (next->kind == WAIT) until(next->of, next->count);
    if (next->kind == RECORD) {
        next->of->ms = now_ms();
        next->of->done = next->count;
    }
    free(next);
    return 0;
}

int cudaGetDeviceCount(int *count) {
    *count = GPUS;
    return GPUS ? OK : NO_DEVICE;
}

const char *cudaGetErrorString(int code) {
    switch (code) {
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case INVALID_VALUE: return "invalid argument";
    case INVALID_HANDLE: return "invalid resource handle";
    case NOT_READY: return "device not ready";
    case NOT_CAPTURABLE: return "operation not permitted when stream is capturing";
    default: return "unknown error";
    }
}

int cudaGetLastError(void) { return OK; }
int cudaSetDeviceFlags(unsigned flags) { return blocks && flags == 1 ? IN_USE : INVALID_VALUE; }
int cudaMalloc(void **place, size_t bytes) { return allocate(place, bytes, DEVICE); }
int cudaMallocHost(void **place, size_t bytes) { return allocate(place, bytes, HOST); }

int cudaStreamCreate(stream **made) {
    *made = calloc(1, sizeof **made);
    return OK;
}

int cudaStreamSynchronize(stream *one) {
    if (one->capture) return NOT_CAPTURABLE;
    while (!step(one)) {}
    return OK;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, stream *on) {
    int source = kind == HOST_TO_DEVICE ? HOST : DEVICE, target = kind == HOST_TO_DEVICE ? DEVICE : HOST;
    if (!lies_in(from, bytes, source) || !lies_in(to, bytes, target)) return INVALID_VALUE;
    return push(on, (op){.kind = COPY, .to = to, .from = from, .bytes = bytes});
}

int cudaEventCreateWithFlags(event **made, unsigned flags) {
    *made = calloc(1, sizeof **made);
    return flags < 2 ? OK : INVALID_VALUE;
}

int cudaEventRecord(event *one, stream *on) {
    one->in = on;
    return push(on, (op){.kind = RECORD, .of = one, .count = ++one->issued});
}

int cudaStreamWaitEvent(stream *on, event *one, unsigned flags) {
    return flags ? INVALID_VALUE : push(on, (op){.kind = WAIT, .of = one, .count = one->issued});
}

int cudaEventSynchronize(event *one) { return until(one, one->issued); }

int cudaEventElapsedTime(float *ms, event *from, event *to) {
    if (!from->issued || !to->issued) return INVALID_HANDLE;
    if (from->done < from->issued || to->done < to->issued) return NOT_READY;
    *ms = (float)(to->ms - from->ms);
    return OK;
}

int cudaStreamBeginCapture(stream *one, int mode) {
    if (one->queue.first || mode != 1) return INVALID_VALUE;
    one->capture = calloc(1, sizeof *one->capture);
    return OK;
}

int cudaStreamEndCapture(stream *one, graph **made) {
    *made = one->capture;
    one->capture = NULL;
    return OK;
}

int cudaGraphInstantiateWithFlags(graph **made, graph *of, unsigned long long flags) {
    *made = of;
    return flags ? INVALID_VALUE : OK;
}

int cudaGraphLaunch(graph *one, stream *on) {
    for (op *each = one->first; each; each = each->next) push(on, *each);
    return OK;
}

/* Not CUDA's: how the stand-in for TensorRT has a stream do its work. */
int stand_in_call(void (*call)(void), stream *on) { return push(on, (op){.kind = CALL, .call = call}); }
