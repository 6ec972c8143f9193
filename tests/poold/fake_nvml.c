/* A libnvidia-ml.so.1 for tests: two GPUs, and what goes wrong by environment. Drives the real pynvml. */
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct { void *device; unsigned long long type, data; unsigned int gi, ci; } Event;

static int fails(const char *name) { return getenv(name) != NULL; }

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return fails("FAKE_NVML_NODRIVER") ? 9 : 0; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { (void)code; return "fake"; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) { strncpy(text, "570.00", size); return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = fails("FAKE_NVML_EMPTY") ? 0 : 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    if (index == 1 && fails("FAKE_NVML_LOST")) return 15;
    *device = (void *)(unsigned long)(index + 1);
    return 0;
}
int nvmlDeviceGetUUID(void *device, char *text, unsigned int size) {
    strncpy(text, device == (void *)1 ? "GPU-one" : "GPU-two", size);
    return 0;
}
int nvmlDeviceGetName(void *device, char *text, unsigned int size) { (void)device; strncpy(text, "Fake", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    (void)device;
    memory->total = 128ULL << 30;
    memory->free = 100ULL << 30;
    memory->used = 28ULL << 30;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) { (void)device; rates->gpu = 42; rates->memory = 1; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) { (void)device; *major = 9; *minor = 0; return 0; }
int nvmlDeviceGetTotalEccErrors(void *device, int kind, int counter, unsigned long long *count) {
    (void)kind; (void)counter;
    if (!fails("FAKE_NVML_ECC")) return 3;
    *count = device == (void *)1 ? 7 : 0;
    return 0;
}
int nvmlEventSetCreate(void **set) { *set = (void *)1; return 0; }
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) { (void)device; (void)types; (void)set; return 0; }
int nvmlEventSetWait_v2(void *set, Event *event, unsigned int timeout_ms) {
    static int told = 0;
    (void)set; (void)timeout_ms;
    if (!fails("FAKE_NVML_XID") || told) return 10;
    told = 1;
    event->device = (void *)2;
    event->type = 8;
    event->data = (unsigned long long)atoi(getenv("FAKE_NVML_XID"));
    return 0;
}
