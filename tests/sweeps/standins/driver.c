/* A stand-in for the CUDA driver, libcuda.so.1, which makes an MPS server as the first program does.
 * The environment variable STANDIN_ERROR is what cuInit returns; with STANDIN_IGNORES_MPS, it makes
 * no server. */
#include <stdio.h>
#include <stdlib.h>

int cuInit(unsigned int flags) {
    const char *error = getenv("STANDIN_ERROR"), *pipe = getenv("CUDA_MPS_PIPE_DIRECTORY");
    char path[512];
    if (error) return atoi(error);
    if (getenv("STANDIN_IGNORES_MPS")) return 0;
    if (pipe)
        snprintf(path, sizeof path, "%s/server", pipe);
    else
        snprintf(path, sizeof path, "%s/default/server", getenv("STANDINS"));
    FILE *file = fopen(path, "w");
    if (!file) return 805;
    fputs("4321\n", file);
    fclose(file);
    return 0;
}

int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return number < 2 ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = 0; return device < 2 ? 0 : 101; }
