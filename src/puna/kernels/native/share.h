// Tasks shared among the threads that torch has already, so that no second team spins beside its own.
#pragma once
#include <dlfcn.h>
#include <atomic>
#include "simd.h"
#include "team.h"

// Runs task(i) for every i below n_tasks, in no order, on n_threads threads: those of the OpenMP library that torch has
// loaded, or where there is none, those of team.h.
template <class Task> void share(int n_threads, int64_t n_tasks, Task&& task) {
    using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
    static const Parallel parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (n_threads == 1 || n_tasks == 1) {
        for (int64_t i = 0; i < n_tasks; ++i) task(i);
        return;
    }
    if (!parallel) {
        together(n_threads, 1, [&](Member& team) { team.each(n_tasks, task); });
        return;
    }
    struct Call {
        std::remove_reference_t<Task>& task;
        int64_t n_tasks;
        std::atomic<int64_t> taken{0};
    } call{task, n_tasks};
    parallel(
        [](void* data) {
            Call& call = *(Call*)data;
            for (int64_t i; (i = call.taken.fetch_add(1, std::memory_order_relaxed)) < call.n_tasks;) call.task(i);
        },
        &call, n_threads, 0);
}

// A thread's memory for one task, from the border of a cache line. It stays for the next one.
inline uint8_t* scratch(int64_t n_bytes) {
    static thread_local std::vector<uint8_t> room;
    if ((int64_t)room.size() < n_bytes + 64) room.resize(n_bytes + 64);
    return (uint8_t*)padded((int64_t)room.data(), 64);
}
