// Threads that work through a list of phases together: each phase is a number of tasks, taken by whoever is free.
//
// A phase ends with a barrier. Waiting threads spin, since phases last microseconds; between calls they spin a little
// and then sleep.
#pragma once
#include <immintrin.h>
#include <sched.h>
#include <unistd.h>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

constexpr int SPINS_BEFORE_YIELD = 1 << 12;   // within a call: only another process can make it this long
constexpr int SPINS_BEFORE_SLEEP = 1 << 14;   // between calls: about the time that Python needs for one token

class Crew {
  public:
    explicit Crew(int n) : n_(n), owner_(getpid()) {
        for (int id = 1; id < n; ++id) threads_.emplace_back([this, id] { serve(id); });
    }

    ~Crew() {
        if (owner_ != getpid()) {  // a forked child has no threads to end
            for (auto& thread : threads_) thread.detach();
            return;
        }
        ended_.store(true);
        call_.fetch_add(1);
        call_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    int size() const { return n_; }
    pid_t owner() const { return owner_; }

    // Runs work(id) on every thread, the caller's as number 0, and returns when all are done.
    void run(const std::function<void(int)>& work) {
        work_ = &work;
        running_.store(n_ - 1);
        call_.fetch_add(1);
        call_.notify_all();
        work(0);
        for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) pause(spins);
    }

    void barrier() {
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) pause(spins);
    }

  private:
    static void pause(int spins) {
        if (spins < SPINS_BEFORE_YIELD) _mm_pause();
        else sched_yield();
    }

    void serve(int id) {
        uint32_t seen = 0;
        for (;;) {
            for (int spins = 0; call_.load(std::memory_order_acquire) == seen; ++spins) {
                if (spins < SPINS_BEFORE_SLEEP) _mm_pause();
                else call_.wait(seen);
            }
            seen = call_.load(std::memory_order_acquire);
            if (ended_.load()) return;
            (*work_)(id);
            running_.fetch_sub(1, std::memory_order_acq_rel);
        }
    }

    int n_;
    pid_t owner_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* work_ = nullptr;
    alignas(64) std::atomic<uint32_t> call_{0};
    alignas(64) std::atomic<int> running_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<bool> ended_{false};
};

// One thread's view of a call. All threads must go through the same phases in the same order.
class Member {
  public:
    Member(int id, Crew& crew, std::vector<std::atomic<int64_t>>& counters) : id(id), crew_(crew), counters_(counters) {}

    const int id;

    template <class Task> void each(int64_t n_tasks, Task&& task) {
        auto& next = counters_[phase_++];
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;) task(i);
        crew_.barrier();
    }

  private:
    Crew& crew_;
    std::vector<std::atomic<int64_t>>& counters_;
    size_t phase_ = 0;
};

// Runs body(member) on `n_threads` threads; one call at a time in a process. At most `n_phases` phases.
template <class Body> void together(int n_threads, size_t n_phases, Body&& body) {
    static std::mutex one_at_a_time;
    static std::unique_ptr<Crew> crew;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    if (crew && crew->owner() != getpid()) crew.release();  // made before a fork: its threads are not here
    if (!crew || crew->size() != n_threads) {
        crew.reset();
        crew = std::make_unique<Crew>(n_threads);
    }
    std::vector<std::atomic<int64_t>> counters(n_phases);
    const std::function<void(int)> work = [&](int id) {
        Member member(id, *crew, counters);
        body(member);
    };
    crew->run(work);
}
