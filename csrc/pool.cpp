#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace torchane {
namespace {

// A program's steps follow each other within microseconds: for that long a thread without work spins. Programs of a training step follow each other
// within a millisecond: for that long it looks on and lets every other thread of the machine go first, as long as its work comes so; then it sleeps, so
// that an idle process uses no processor. To be woken takes some 50 us in a virtual machine, which is as long as many a step.
constexpr std::chrono::microseconds SPIN(40), LINGER(2000);

inline void pause_cpu() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Spins until done() or until SPIN has passed; returns done().
template <typename Done>
bool spin(Done done) {
    const auto end = std::chrono::steady_clock::now() + SPIN;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            pause_cpu();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

// Looks until then whether done(), behind every thread that has something to do; returns done().
template <typename Done>
bool linger(Done done, std::chrono::steady_clock::time_point end) {
    do {
        std::this_thread::yield();
        for (int i = 0; i < 16; ++i) {
            if (done()) return true;
            pause_cpu();
        }
    } while (std::chrono::steady_clock::now() < end);
    return done();
}

// A round is a set of tasks. `gate_` says in one word which round it is, whether it may still be joined, and
// how many threads are in it: the caller closes the gate when no task is left and waits for those inside. A
// thread that wakes too late finds the gate closed, and nobody has waited for it.
class Pool {
public:
    explicit Pool(int threads) : threads_(threads), shares_(static_cast<size_t>(threads)), alive_(threads - 1) {
        for (int worker = 1; worker < threads; ++worker) std::thread([this, worker] { work(worker); }).detach();
    }

    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            ends_.store(true);
        }
        wake_.notify_all();
        while (alive_.load() > 0) std::this_thread::yield();
    }

    int threads() const { return threads_; }

    void run(int64_t tasks, Task function, void* context) {
        function_ = function;
        context_ = context;
        for (int64_t share = 0; share < threads_; ++share) {
            shares_[static_cast<size_t>(share)].end = tasks * (share + 1) / threads_;
            shares_[static_cast<size_t>(share)].next.store(tasks * share / threads_, std::memory_order_relaxed);
        }
        {
            std::lock_guard lock(mutex_);
            gate_.store(((gate_.load(std::memory_order_relaxed) >> ROUND) + 1) << ROUND | OPEN);
        }
        if (sleepers_.load() > 0) wake_.notify_all();
        drain(0);
        gate_.fetch_and(~OPEN);
        while (!spin([&] { return (gate_.load(std::memory_order_acquire) & INSIDE) == 0; })) std::this_thread::yield();
    }

private:
    static constexpr uint64_t INSIDE = (1ull << 32) - 1, OPEN = 1ull << 32;
    static constexpr int ROUND = 33;

    // Tasks that follow each other: of a step after the other the same, so that a thread finds in its cache what it wrote there.
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    // A thread's own share first, then what is left of the others'.
    void drain(int worker) {
        for (int turn = 0; turn < threads_; ++turn) {
            Share& share = shares_[static_cast<size_t>((worker + turn) % threads_)];
            while (share.next.load(std::memory_order_relaxed) < share.end) {
                const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
                if (task >= share.end) break;
                function_(context_, task, worker);
            }
        }
    }

    void work(int worker) {
        uint64_t seen = 0;
        const auto called = [&] {
            const uint64_t gate = gate_.load(std::memory_order_acquire);
            return ends_.load(std::memory_order_relaxed) || (gate >> ROUND != seen && gate & OPEN);
        };
        bool lingers = true;
        while (!ends_.load()) {
            const auto since = std::chrono::steady_clock::now();
            if (!spin(called) && !(lingers && linger(called, since + LINGER))) {
                std::unique_lock lock(mutex_);
                sleepers_.fetch_add(1);
                wake_.wait(lock, called);
                sleepers_.fetch_sub(1);
                lingers = std::chrono::steady_clock::now() - since < LINGER;
            }
            uint64_t gate = gate_.load();
            if (gate >> ROUND == seen || !(gate & OPEN)) continue;
            if (!gate_.compare_exchange_strong(gate, gate + 1)) continue;
            seen = gate >> ROUND;
            drain(worker);
            gate_.fetch_sub(1, std::memory_order_release);
        }
        alive_.fetch_sub(1);  // the last touch: the pool may be gone now
    }

    const int threads_;
    Task function_ = nullptr;
    void* context_ = nullptr;
    std::vector<Share> shares_;
    alignas(64) std::atomic<uint64_t> gate_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<int> alive_;
    std::atomic<bool> ends_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// The pool outlives every user: it is never destroyed at exit, when its threads may still be asleep in it.
Pool* pool = nullptr;
std::mutex owner;
std::atomic<int> wanted{0};
thread_local bool inside = false;

// A forked child has none of its parent's threads: it starts with a new pool and a free lock.
void after_fork() {
    new (&owner) std::mutex;
    pool = nullptr;
    inside = false;
}

}  // namespace

int allowed_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

int threads() {
    const int count = wanted.load(std::memory_order_relaxed);
    return count > 0 ? count : allowed_cpus();
}

void set_threads(int count) { wanted.store(count, std::memory_order_relaxed); }

void parallel_run(int64_t tasks, Task function, void* context) {
    const auto alone = [&] {
        for (int64_t task = 0; task < tasks; ++task) function(context, task, 0);
    };
    if (tasks <= 1 || inside || !owner.try_lock()) return alone();
    std::lock_guard lock(owner, std::adopt_lock);
    static const int registered = pthread_atfork(nullptr, nullptr, after_fork);
    (void)registered;
    const int count = threads();
    if (count == 1) return alone();
    if (pool != nullptr && pool->threads() != count) {
        delete pool;
        pool = nullptr;
    }
    if (pool == nullptr) pool = new Pool(count);
    inside = true;
    pool->run(tasks, function, context);
    inside = false;
}

}  // namespace torchane
