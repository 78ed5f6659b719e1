/* Work shared between the threads that torch has already: its OpenMP team, found when the library is loaded.
 *
 * Threads of our own would wait for a processor: between two operations those of torch keep theirs busy, waiting for
 * the next one. Nothing is linked. torch puts its OpenMP library where all others find it; where it does not (no
 * GNU OpenMP), the names below are null, `native_has_team` says so, and whoever calls shares the work out.
 */
#include <stdint.h>

#if defined(__linux__)
#pragma weak GOMP_parallel
#pragma weak omp_get_thread_num
#pragma weak omp_get_num_threads
void GOMP_parallel(void (*work)(void *), void *given, unsigned threads, unsigned flags);
int omp_get_thread_num(void);
int omp_get_num_threads(void);

static inline int has_team(void) { return GOMP_parallel && omp_get_thread_num && omp_get_num_threads; }
#else
static inline int has_team(void) { return 0; }
#endif

typedef void Share(const void *given, int64_t share, int64_t shares);

typedef struct {
    Share *work;
    const void *given;
} Shared;

#if defined(__linux__)
static void own_share(void *shared) {
    const Shared *each = shared;
    each->work(each->given, omp_get_thread_num(), omp_get_num_threads());
}
#endif

/* Call `work` once for each share, on up to `threads` threads at the same time. */
static void in_team(Share *work, const void *given, int threads) {
#if defined(__linux__)
    Shared shared = {work, given};
    if (threads > 1 && has_team()) {
        GOMP_parallel(own_share, &shared, (unsigned)threads, 0);
        return;
    }
#endif
    work(given, 0, 1);
}
