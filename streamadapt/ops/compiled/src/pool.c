/* A few threads that sleep between jobs.
 *
 * The caller works as well and never waits for a thread that has not begun: where the others wake
 * too late, it has done everything by itself. One job at a time; who finds the pool taken works
 * alone. After a fork the child starts with a pool of its own.
 */

#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

enum { MOST_THREADS = 64 };

static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static pthread_cond_t done = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int started;         /* threads that exist */
static int wanted;          /* that may join the job */
static int busy;            /* that are at it */
static uint64_t job_number; /* so that a thread joins a job once */
static sa_unit job_run;
static void *job_context;
static int64_t job_units;
static _Atomic int64_t next_unit;

static void work_off(sa_unit run, void *context, int64_t units) {
    for (;;) {
        int64_t unit = atomic_fetch_add_explicit(&next_unit, 1, memory_order_relaxed);
        if (unit >= units) return;
        run(context, unit);
    }
}

static void *worker(void *unused) {
    uint64_t seen = 0;
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (job_number == seen || wanted == 0) pthread_cond_wait(&work, &lock);
        seen = job_number;
        wanted--;
        busy++;
        sa_unit run = job_run;
        void *context = job_context;
        int64_t units = job_units;
        pthread_mutex_unlock(&lock);
        work_off(run, context, units);
        pthread_mutex_lock(&lock);
        if (--busy == 0) pthread_cond_signal(&done);
    }
    return NULL;
}

static void after_fork(void) {
    pthread_mutex_init(&taken, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&work, NULL);
    pthread_cond_init(&done, NULL);
    started = wanted = busy = 0;
}

static void prepare(void) { pthread_atfork(NULL, NULL, after_fork); }

/* Holding `lock`. Threads take no signals: those are the program's. */
static void start(int threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (started < threads) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, worker, NULL) != 0) break;
        started++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void sa_parallel(sa_unit run, void *context, int64_t units, int threads) {
    int others = threads - 1;
    if (others > MOST_THREADS) others = MOST_THREADS;
    if (others > units - 1) others = (int)(units - 1);
    if (others <= 0 || pthread_mutex_trylock(&taken) != 0) {
        for (int64_t unit = 0; unit < units; unit++) run(context, unit);
        return;
    }
    pthread_once(&once, prepare);
    pthread_mutex_lock(&lock);
    if (started < others) start(others);
    job_run = run;
    job_context = context;
    job_units = units;
    atomic_store_explicit(&next_unit, 0, memory_order_relaxed);
    job_number++;
    wanted = others < started ? others : started;
    if (wanted == 1) pthread_cond_signal(&work);
    else if (wanted > 1) pthread_cond_broadcast(&work);
    pthread_mutex_unlock(&lock);
    work_off(run, context, units);
    pthread_mutex_lock(&lock);
    wanted = 0; /* who has not begun need not */
    while (busy > 0) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&taken);
}
