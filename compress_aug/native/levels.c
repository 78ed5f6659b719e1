/* What the library says about itself: the version of its interface, and which of its kernels this processor can run.
 *
 * Every other file here is compiled once for each level and exports NAME_LEVEL; this one is compiled once.
 */
#include "team.h"

#define EXPORTED __attribute__((visibility("default")))

/* Compared with ABI in __init__.py: change both whenever the arguments of a kernel change. */
EXPORTED int native_abi(void) { return 3; }

/* Whether kernels that are told how many threads may work share their work out themselves. */
EXPORTED int native_has_team(void) { return has_team(); }

EXPORTED const char *native_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#if defined(WITH_avx512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vbmi")) {
#if defined(WITH_avx512_bf16)
        if (__builtin_cpu_supports("avx512bf16")) return "avx512_bf16";
#endif
        return "avx512";
    }
#endif
#if defined(WITH_avx2)
    if (__builtin_cpu_supports("avx2")) return "avx2";
#endif
#endif
    return "baseline";
}
