// Threads that work through a list of phases together: each phase is a number of tasks that they share.
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

    // Returns when all threads have come here and the last of them has done `work`. Those who wait do `idle`, again
    // and again.
    template <class Work, class Idle> void barrier(Work&& work, Idle&& idle) {
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == n_) {
            work();
            arrived_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            idle();
            pause(spins);
        }
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

// How many tasks of one thread's share in one phase have been taken.
struct alignas(64) Counter {
    std::atomic<int64_t> taken{0};
};

// One thread's view of a call. All threads must go through the same phases in the same order.
class Member {
  public:
    Member(int id, Crew& crew, std::vector<Counter>& counters) : id(id), crew_(crew), counters_(counters) {}

    const int id;

    // One phase.
    template <class Task> void each(int64_t n_tasks, Task&& task) {
        take(n_tasks, task);
        wait([] {});
    }

    // A phase, then row(i) for a number of rows that are little work each, then last() once. A few rows are not worth a
    // phase: whoever comes last does them.
    template <class Task, class Row, class Last>
    void each(int64_t n_tasks, Task&& task, int64_t n_rows, Row&& row, Last&& last) {
        take(n_tasks, task);
        if (n_rows <= FEW_ROWS) {
            wait([&] {
                for (int64_t i = 0; i < n_rows; ++i) row(i);
                last();
            });
            return;
        }
        wait([] {});
        take(n_rows, row);
        wait(last);
    }

    template <class Task, class Row> void each(int64_t n_tasks, Task&& task, int64_t n_rows, Row&& row) {
        each(n_tasks, task, n_rows, row, [] {});
    }

    // What this thread will probably read after the phase that comes: it is fetched while the thread waits.
    void expect(const uint8_t* data, int64_t n_bytes) {
        expected_ = data;
        expected_end_ = data + n_bytes;
    }

  private:
    static constexpr int64_t FEW_ROWS = 2;

    // Each thread has a run of neighbouring tasks, since memory is read fastest in order and by one core; a thread that
    // is done goes on with what others have left.
    template <class Task> void take(int64_t n_tasks, Task&& task) {
        const int n = crew_.size();
        Counter* phase = counters_.data() + phase_++ * n;
        for (int turn = 0; turn < n; ++turn) {
            const int whose = (id + turn) % n;
            const int64_t first = n_tasks * whose / n, end = n_tasks * (whose + 1) / n;
            for (int64_t i; (i = first + phase[whose].taken.fetch_add(1, std::memory_order_relaxed)) < end;) task(i);
        }
    }

    template <class Last> void wait(Last&& last) {
        crew_.barrier(last, [&] {
            for (int i = 0; i < 4 && expected_ < expected_end_; ++i, expected_ += 64) _mm_prefetch(expected_, _MM_HINT_T1);
        });
    }

    Crew& crew_;
    std::vector<Counter>& counters_;
    size_t phase_ = 0;
    const uint8_t* expected_ = nullptr;
    const uint8_t* expected_end_ = nullptr;
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
    std::vector<Counter> counters(n_phases * n_threads);
    const std::function<void(int)> work = [&](int id) {
        Member member(id, *crew, counters);
        body(member);
    };
    crew->run(work);
}
