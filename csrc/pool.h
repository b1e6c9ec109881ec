// A pool of threads that run numbered tasks.
//
//     parallel(tasks, [&](int64_t task, int worker) { ... });
//
// A thread takes its own share of them first, task * threads / tasks being its number, then what others have left: where one set of tasks writes what
// the same tasks of the next one read, numbers stay in a thread's cache. Which thread runs which task is a matter of luck all the same, so a task may
// not depend on another and must write only what is its own: then the result has the same bits for any number of threads. Nothing that is
// summed may be cut by the number of threads.
#pragma once

#include <cstdint>
#include <type_traits>

namespace torchane {

// How many pieces of b, the last one perhaps shorter, make up a.
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads that run tasks, the calling one included.
int threads();

// At least 1. Takes effect at the next parallel region.
void set_threads(int count);

// The processors that this process may run on.
int allowed_cpus();

// Runs function(context, task, worker) for each task in [0, tasks) and returns when all are done; worker
// is in [0, threads()). The function may not throw. If another thread of the process is using the pool,
// or a task asks for it, the tasks run on the caller alone, as worker 0.
using Task = void (*)(void* context, int64_t task, int worker);
void parallel_run(int64_t tasks, Task function, void* context);

template <typename Function>
void parallel(int64_t tasks, Function&& function) {
    using Stored = std::remove_reference_t<Function>;
    parallel_run(
        tasks, [](void* context, int64_t task, int worker) { (*static_cast<Stored*>(context))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&function)));
}

}  // namespace torchane
