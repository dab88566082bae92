/* A pretended CUDA driver: memory is the host's, and kernels do nothing.
 *
 *     cc -shared -fPIC -o libcuda.so.1 pretended_driver.c -ldl
 *
 * On it the host half of a CUDA program runs where there is no GPU: dispatchers, uploads, streams,
 * launches, errors. It is an H100 of CUDA 13.0 unless the environment says otherwise:
 *
 *   PRETENDED_DEVICES=0           no device
 *   PRETENDED_VERSION=12040       the driver's version, here 12.4
 *   PRETENDED_CAPABILITY=80       the compute capability, here 8.0
 *   PRETENDED_FAIL="cuMemAlloc 3 2"   from its 3rd call on the function returns error 2
 *   PRETENDED_LOG=file            where a line per allocation, copy and launch goes
 *
 * Functions are named as in cuda.h, without the suffixes _v2 and so on; memory begins as zeros.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef int Device;
typedef void *Handle;
typedef uint64_t Address;

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500, TOO_LARGE = 720,
       NOT_SUPPORTED = 801 };
enum { MULTIPROCESSORS = 132, BLOCKS_PER_MULTIPROCESSOR = 3, REGISTERS = 160 };
static const size_t MEMORY = 80ull << 30;
static Handle const CONTEXT = (Handle)0x1000;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static void note(const char *format, ...) {
    const char *path = getenv("PRETENDED_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list values;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fclose(file);
}

/* The error that PRETENDED_FAIL asks for in this call of ``function``. */
static Result asked_for(const char *function) {
    static int calls = 0;
    char name[64];
    int first, error;
    const char *text = getenv("PRETENDED_FAIL");
    if (!text || sscanf(text, "%63s %d %d", name, &first, &error) != 3) return SUCCESS;
    if (strcmp(name, function)) return SUCCESS;
    return ++calls >= first ? error : SUCCESS;
}
#define FAIL_IF_ASKED do { Result error = asked_for(__func__); if (error) return error; } while (0)

static Handle new_handle(void) {
    static uintptr_t last = 0x1000;
    return (Handle)(last += 0x10);
}

/* The driver and the device */

static int devices(void) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && (!*visible || *visible == '-') ? 0 : number("PRETENDED_DEVICES", 1);
}
Result cuInit(unsigned flags) {
    FAIL_IF_ASKED;
    return devices() ? SUCCESS : NO_DEVICE;
}
Result cuDriverGetVersion(int *version) {
    *version = number("PRETENDED_VERSION", 13000);
    return SUCCESS;
}
Result cuDeviceGetCount(int *n) { *n = devices(); return SUCCESS; }
Result cuDeviceGet(Device *device, int ordinal) { *device = ordinal; return SUCCESS; }
Result cuDeviceGetName(char *name, int size, Device device) {
    snprintf(name, size, "a pretended GPU");
    return SUCCESS;
}
Result cuDeviceTotalMem(size_t *bytes, Device device) { *bytes = MEMORY; return SUCCESS; }
Result cuDeviceGetUuid(char *uuid, Device device) { memset(uuid, 7, 16); return SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, Device device) {
    static const int known[][2] = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},      /* threads of a block, its x, y, z */
        {5, 2147483647}, {6, 65535}, {7, 65535},       /* blocks in x, y, z */
        {8, 49152}, {10, 32}, {12, 65536},             /* shared bytes, warp, registers of a block */
        {13, 1980000}, {16, MULTIPROCESSORS}, {19, 1}, /* clock in kHz, -, host memory is mapped */
        {39, 2048}, {41, 1}, {81, 233472}, {82, 65536}, /* threads, -, shared bytes, registers */
        {95, 1}, {97, 232448},                         /* cooperative launches, shared bytes at most */
    };
    int capability = number("PRETENDED_CAPABILITY", 90);
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute) *value = known[i][1];
    return SUCCESS;
}

/* The context: one, which is current once anything made it so */

static Handle current = NULL;
Result cuDevicePrimaryCtxRetain(Handle *context, Device device) {
    *context = CONTEXT;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRelease(Device device) { return SUCCESS; }
Result cuCtxGetCurrent(Handle *context) { *context = current; return SUCCESS; }
Result cuCtxSetCurrent(Handle context) { current = context; return SUCCESS; }
Result cuCtxPushCurrent(Handle context) { current = context; return SUCCESS; }
Result cuCtxPopCurrent(Handle *context) { *context = current; return SUCCESS; }
Result cuCtxGetDevice(Device *device) { *device = 0; return SUCCESS; }
Result cuCtxSynchronize(void) { FAIL_IF_ASKED; return SUCCESS; }

/* Memory */

Result cuMemGetInfo(size_t *unused, size_t *total) { *unused = *total = MEMORY; return SUCCESS; }
Result cuMemAlloc(Address *address, size_t bytes) {
    FAIL_IF_ASKED;
    void *memory = NULL;
    if (posix_memalign(&memory, 512, bytes ? bytes : 1)) return OUT_OF_MEMORY;
    memset(memory, 0, bytes);
    *address = (Address)memory;
    note("allocate %zu\n", bytes);
    return SUCCESS;
}
Result cuMemFree(Address address) { free((void *)address); return SUCCESS; }
static Result copy(const char *way, void *to, const void *from, size_t bytes, Handle stream) {
    memcpy(to, from, bytes);
    note("%s %zu stream %p\n", way, bytes, stream);
    return SUCCESS;
}
Result cuMemcpyHtoD(Address to, const void *from, size_t bytes) {
    FAIL_IF_ASKED;
    return copy("upload", (void *)to, from, bytes, NULL);
}
Result cuMemcpyHtoDAsync(Address to, const void *from, size_t bytes, Handle stream) {
    FAIL_IF_ASKED;
    return copy("upload", (void *)to, from, bytes, stream);
}
Result cuMemcpyDtoH(void *to, Address from, size_t bytes) {
    FAIL_IF_ASKED;
    return copy("download", to, (void *)from, bytes, NULL);
}
Result cuMemcpyDtoHAsync(void *to, Address from, size_t bytes, Handle stream) {
    FAIL_IF_ASKED;
    return copy("download", to, (void *)from, bytes, stream);
}
Result cuPointerGetAttribute(void *value, int attribute, Address address) {
    memset(value, 0, sizeof(int));
    if (attribute == 1) *(Handle *)value = CONTEXT;
    if (attribute == 2) *(int *)value = 2; /* device memory */
    if (attribute == 3) *(Address *)value = address;
    return SUCCESS;
}
Result cuPointerGetAttributes(unsigned n, int *attributes, void **values, Address address) {
    for (unsigned i = 0; i < n; i++) cuPointerGetAttribute(values[i], attributes[i], address);
    return SUCCESS;
}

/* Streams and events: everything is done at once */

Result cuStreamCreate(Handle *stream, unsigned flags) {
    *stream = new_handle();
    note("stream %p\n", *stream);
    return SUCCESS;
}
Result cuStreamDestroy(Handle stream) { return SUCCESS; }
Result cuStreamSynchronize(Handle stream) { FAIL_IF_ASKED; return SUCCESS; }
Result cuStreamGetCtx(Handle stream, Handle *context) { *context = CONTEXT; return SUCCESS; }
Result cuStreamGetDevice(Handle stream, Device *device) { *device = 0; return SUCCESS; }
Result cuStreamIsCapturing(Handle stream, int *status) { *status = 0; return SUCCESS; }
Result cuEventCreate(Handle *event, unsigned flags) { *event = new_handle(); return SUCCESS; }
Result cuEventRecord(Handle event, Handle stream) { return SUCCESS; }
Result cuEventSynchronize(Handle event) { return SUCCESS; }
Result cuEventDestroy(Handle event) { return SUCCESS; }
Result cuEventElapsedTime(float *ms, Handle from, Handle to) { *ms = 1; return SUCCESS; }

/* Programs: a kernel's handle is its name */

Result cuLibraryLoadData(Handle *library, const void *code, void *options, void *option_values,
                         unsigned n, void *more, void *more_values, unsigned n_more) {
    FAIL_IF_ASKED;
    *library = new_handle();
    uint32_t flags; /* of the ELF header; they hold the architecture that the machine code is for */
    memcpy(&flags, (const char *)code + 48, sizeof flags);
    note("load flags %08x\n", flags);
    return SUCCESS;
}
Result cuLibraryUnload(Handle library) { return SUCCESS; }
Result cuLibraryGetKernel(Handle *kernel, Handle library, const char *name) {
    *kernel = strdup(name);
    return SUCCESS;
}
Result cuLibraryGetModule(Handle *module, Handle library) { *module = library; return SUCCESS; }
Result cuModuleGetGlobal(Address *address, size_t *bytes, Handle module, const char *name) {
    return NOT_FOUND;
}
Result cuKernelGetFunction(Handle *function, Handle kernel) { *function = kernel; return SUCCESS; }
Result cuFuncGetAttribute(int *value, int attribute, Handle function) {
    *value = attribute == 0 ? 1024 : attribute == 4 ? REGISTERS : 0; /* threads of a block at most */
    return SUCCESS;
}
Result cuKernelGetAttribute(int *value, int attribute, Handle kernel, Device device) {
    return cuFuncGetAttribute(value, attribute, kernel);
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Handle kernel, int threads,
                                                   size_t shared) {
    *blocks = BLOCKS_PER_MULTIPROCESSOR;
    return SUCCESS;
}
typedef struct { int id; char padding[4]; union { int number; char bytes[64]; } value; } Attribute;
typedef struct {
    unsigned grid[3], block[3], shared_bytes;
    Handle stream;
    Attribute *attributes;
    unsigned n_attributes;
} Launch;
Result cuLaunchKernelEx(const Launch *launch, Handle kernel, void **arguments, void **extra) {
    FAIL_IF_ASKED;
    const unsigned *grid = launch->grid, *block = launch->block;
    int cooperative = 0;
    for (unsigned i = 0; i < launch->n_attributes; i++)
        if (launch->attributes[i].id == 2) cooperative = launch->attributes[i].value.number;
    if (cooperative && grid[0] * grid[1] * grid[2] > MULTIPROCESSORS * BLOCKS_PER_MULTIPROCESSOR)
        return TOO_LARGE;
    note("launch %s grid %u,%u,%u block %u,%u,%u stream %p cooperative %d\n", (char *)kernel, grid[0],
         grid[1], grid[2], block[0], block[1], block[2], launch->stream, cooperative);
    return SUCCESS;
}

/* Names and addresses */

Result cuGetErrorName(Result error, const char **name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_PRETENDED";
    return SUCCESS;
}
Result cuGetErrorString(Result error, const char **text) { *text = "pretended"; return SUCCESS; }
static Result missing(void) {
    note("call of a function that is not pretended\n");
    return NOT_SUPPORTED;
}
Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                           int *status) {
    Dl_info self;
    dladdr((void *)cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOLOAD | RTLD_LAZY);
    *function = !strcmp(name, "cuGetProcAddress") ? (void *)cuGetProcAddress_v2 : dlsym(library, name);
    if (!*function) *function = (void *)missing;
    if (status) *status = 0;
    return SUCCESS;
}
