/* A pool of threads, started when first needed, which sleep between jobs. One job at a time: who comes while another
 * runs works alone. A job does not wait for threads that wake too late to take part in it. */
#include "threads.h"

#include <pthread.h>
#include <stdatomic.h>

enum { MOST_THREADS = 256 };

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held by whoever runs a job */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;  /* guards all below */
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static int sleepers_started; /* threads of the pool */
static int places;           /* threads that may still join the job */
static int working;          /* threads of the pool that have joined and not left */
static size_t number;        /* of the job: a thread joins each once at most */
static Work job_work;
static void *job_context;
static size_t job_parts;
static atomic_size_t job_next;

static void take_parts(void) {
    for (size_t part; (part = atomic_fetch_add(&job_next, 1)) < job_parts;) job_work(job_context, part);
}

static void *sleeper(void *unused) {
    size_t seen = 0;
    pthread_mutex_lock(&gate);
    for (;;) {
        while (!places || seen == number) pthread_cond_wait(&begun, &gate);
        seen = number;
        places--;
        working++;
        pthread_mutex_unlock(&gate);
        take_parts();
        pthread_mutex_lock(&gate);
        if (!--working) pthread_cond_signal(&ended);
    }
    return unused;
}

/* A forked child has none of its parent's threads; the locks may have been held by one of them. */
static void forget(void) {
    pthread_mutex_init(&owner, NULL);
    pthread_mutex_init(&gate, NULL);
    pthread_cond_init(&begun, NULL);
    pthread_cond_init(&ended, NULL);
    sleepers_started = places = working = 0;
}

static void start_sleepers(int wanted) {
    static int forks_handled;
    if (!forks_handled) forks_handled = !pthread_atfork(NULL, NULL, forget);
    pthread_attr_t attributes;
    if (sleepers_started >= wanted || pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; sleepers_started < wanted; sleepers_started++)
        if (pthread_create(&thread, &attributes, sleeper, NULL)) break;
    pthread_attr_destroy(&attributes);
}

void run_parts(int threads, size_t parts, Work work, void *context) {
    int others = threads < MOST_THREADS ? threads - 1 : MOST_THREADS - 1;
    if (parts < 2 || others < 1 || pthread_mutex_trylock(&owner)) {
        for (size_t part = 0; part < parts; part++) work(context, part);
        return;
    }
    pthread_mutex_lock(&gate);
    start_sleepers(others);
    job_work = work;
    job_context = context;
    job_parts = parts;
    atomic_store(&job_next, 0);
    places = others;
    number++;
    pthread_cond_broadcast(&begun);
    pthread_mutex_unlock(&gate);
    take_parts();
    pthread_mutex_lock(&gate);
    places = 0;
    while (working) pthread_cond_wait(&ended, &gate);
    pthread_mutex_unlock(&gate);
    pthread_mutex_unlock(&owner);
}
