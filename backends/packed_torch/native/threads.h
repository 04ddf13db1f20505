/* A few threads that wait for work. */
#ifndef GUIDEDQ_THREADS_H
#define GUIDEDQ_THREADS_H

#include <stddef.h>

typedef void (*Work)(void *context, size_t part);

/* Do all `parts`, each once, in any order, on up to `threads` threads, this one among them; return when all are done. */
void run_parts(int threads, size_t parts, Work work, void *context);

#endif
