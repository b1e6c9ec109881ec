#include "program.h"

#include <algorithm>
#include <numeric>

#include "selectors.h"

namespace torchane::apple {
namespace {

std::mutex one_run;

// More sets of surfaces than a step uses of one program; beyond it the requests are made anew.
constexpr size_t MOST_SETS = 256;

// A NaN with a payload: programs write no NaN, or the plain one.
constexpr uint16_t MARK = 0x7EA5;
constexpr size_t MARKS = 5;

// The places of the marks: first, last and evenly between.
template <class F>
void at_marks(Surface& surface, size_t bytes, F&& visit) {
    const size_t last = bytes / sizeof(uint16_t) - 1;
    auto* numbers = static_cast<uint16_t*>(surface.data());
    for (size_t mark = 0; mark < MARKS; ++mark) visit(numbers[last * mark / (MARKS - 1)]);
}

void mark(const Surfaces& outputs, const std::vector<size_t>& bytes) {
    for (size_t port = 0; port < outputs.size(); ++port) {
        const bool was_held = outputs[port]->is_held();
        outputs[port]->hold();
        at_marks(*outputs[port], bytes[port], [](uint16_t& number) { number = MARK; });
        if (!was_held) outputs[port]->release();
    }
}

void require_written(const Surfaces& outputs, const std::vector<size_t>& bytes, const std::vector<std::string>& names) {
    for (size_t port = 0; port < outputs.size(); ++port) {
        const bool was_held = outputs[port]->is_held();
        size_t left = 0;
        outputs[port]->hold();
        at_marks(*outputs[port], bytes[port], [&](uint16_t& number) { left += number == MARK; });
        if (!was_held) outputs[port]->release();
        if (left != 0)
            throw Fault("partial", "run", "it reported success and left " + std::to_string(left) + " of " + std::to_string(MARKS) +
                                              " probed places of output " + names[port] + " unwritten");
    }
}

// For the time of a run the surfaces are the engine's.
class Lent {
public:
    Lent(const Surfaces& inputs, const Surfaces& outputs) {
        for (const Surfaces* all : {&inputs, &outputs})
            for (Surface* surface : *all)
                if (surface->release()) held_.push_back(surface);
    }
    ~Lent() {
        for (Surface* surface : held_) {
            try {
                surface->retake();
            } catch (const Fault&) {  // is_held() then says so, and the next hold() tries again
            }
        }
    }

private:
    Surfaces held_;
};

SurfaceSet set_of(const Surfaces& inputs, const Surfaces& outputs) {
    SurfaceSet set;
    set.reserve(inputs.size() + outputs.size());
    set.insert(set.end(), inputs.begin(), inputs.end());
    set.insert(set.end(), outputs.begin(), outputs.end());
    return set;
}

// What is on the engine, for a thread that looks after it. Its own mutex: the one of runs is held while a run hangs. There is no
// clock here: how long is too long is for the watchdog to say, which knows whether the process was stopped or asleep meanwhile.
std::mutex watching;
const Watched* watched_now = nullptr;
uint64_t runs_shown = 0;

class Shown {
public:
    explicit Shown(const Watched& run) { show(run.owner ? &run : nullptr); }
    ~Shown() { show(nullptr); }

private:
    static void show(const Watched* run) {
        std::lock_guard<std::mutex> guard(watching);
        watched_now = run, ++runs_shown;
    }
};

// The wrapped surfaces and their places, in ascending order of the places.
std::pair<id, id> bound(const Surfaces& surfaces, const std::vector<uint32_t>& index) {
    std::vector<size_t> order(surfaces.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return index[a] < index[b]; });
    std::vector<id> objects, places;
    for (size_t port : order) objects.push_back(surfaces[port]->object()), places.push_back(number(index[port]));
    return {array(objects), array(places)};
}

}  // namespace

void Program::run(const Surfaces& inputs, const Surfaces& outputs) {
    require_unforked();  // before the lock, which another thread may have held when it was forked
    std::lock_guard<std::mutex> one(one_run);
    run_locked(inputs, outputs);
    known_->add(known_, inputs, outputs);
}

bool Program::run_again(const Surfaces& inputs, const Surfaces& outputs) {
    require_unforked();
    std::lock_guard<std::mutex> one(one_run);
    if (!is_loaded() || !known_->has(set_of(inputs, outputs))) return false;
    run_locked(inputs, outputs);
    return true;
}

void Program::watch(int64_t owner, std::string name, std::string key, double limit_s) {
    std::lock_guard<std::mutex> one(one_run);
    watched_ = {owner, std::move(name), std::move(key), limit_s, 0};
}

std::optional<Watched> running(int64_t owner) {
    std::lock_guard<std::mutex> guard(watching);
    if (watched_now == nullptr || watched_now->owner != owner) return std::nullopt;
    Watched found = *watched_now;
    found.serial = runs_shown;
    return found;
}

void Program::run_locked(const Surfaces& inputs, const Surfaces& outputs) {
    if (!is_loaded()) throw Fault("refused", "run", "the program is not loaded");
    if (inputs.size() != input_index.size() || outputs.size() != output_index.size())
        throw Fault("refused", "run", "the program was bound to " + std::to_string(input_index.size()) + " inputs and " +
                                          std::to_string(output_index.size()) + " outputs");
    Pool pool;
    mark(outputs, output_bytes);
    {
        Lent lent(inputs, outputs);
        Shown shown(watched_);
        evaluate(inputs, outputs);
    }
    require_written(outputs, output_bytes, output_names_);
}

bool KnownSets::has(const SurfaceSet& set) {
    std::lock_guard<std::mutex> guard(mutex_);
    return sets_.contains(set);
}

void KnownSets::add(const std::shared_ptr<KnownSets>& self, const Surfaces& inputs, const Surfaces& outputs) {
    SurfaceSet set = set_of(inputs, outputs);
    if (has(set)) return;
    for (const Surfaces* all : {&inputs, &outputs})
        for (Surface* surface : *all) surface->used_by(self);
    std::lock_guard<std::mutex> guard(mutex_);
    if (sets_.size() >= MOST_SETS) sets_.clear();
    sets_.insert(std::move(set));
}

void KnownSets::forget(const Surface* surface) {
    std::lock_guard<std::mutex> guard(mutex_);
    std::erase_if(sets_, [&](const SurfaceSet& set) { return std::find(set.begin(), set.end(), surface) != set.end(); });
}

id Requests::request(const std::shared_ptr<Requests>& self, const Program& program, const Surfaces& inputs, const Surfaces& outputs) {
    const SurfaceSet key = set_of(inputs, outputs);
    {
        std::lock_guard<std::mutex> guard(mutex_);
        if (auto found = made_.find(key); found != made_.end()) return found->second.get();
        if (made_.size() >= MOST_SETS) made_.clear();
    }
    for (const Surfaces* all : {&inputs, &outputs})
        for (Surface* surface : *all) surface->used_by(self);
    const auto [in, in_places] = bound(inputs, program.input_index);
    const auto [out, out_places] = bound(outputs, program.output_index);
    id made = make_request.on_class(in, in_places, out, out_places, nullptr, nullptr, number(0));
    Owned kept(not_nil(made, make_request.call()));
    std::lock_guard<std::mutex> guard(mutex_);
    made_[key] = std::move(kept);
    return made;
}

void Requests::forget(const Surface* surface) {
    Pool pool;
    std::lock_guard<std::mutex> guard(mutex_);
    std::erase_if(made_, [&](const auto& entry) { return std::find(entry.first.begin(), entry.first.end(), surface) != entry.first.end(); });
}

void Requests::clear() {
    Pool pool;
    std::lock_guard<std::mutex> guard(mutex_);
    made_.clear();
}

}  // namespace torchane::apple
