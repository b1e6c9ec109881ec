#include "program.h"

#include <algorithm>
#include <numeric>

#include "selectors.h"

namespace torchane::apple {
namespace {

std::mutex running;

// More sets of surfaces than a step uses of one program; beyond it the requests are made anew.
constexpr size_t MOST_REQUESTS = 256;

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
    std::lock_guard<std::mutex> one(running);
    if (!is_loaded()) throw Fault("refused", "run", "the program is not loaded");
    if (inputs.size() != input_index.size() || outputs.size() != output_index.size())
        throw Fault("refused", "run", "the program was bound to " + std::to_string(input_index.size()) + " inputs and " +
                                          std::to_string(output_index.size()) + " outputs");
    Pool pool;
    mark(outputs, output_bytes);
    {
        Lent lent(inputs, outputs);
        evaluate(inputs, outputs);
    }
    require_written(outputs, output_bytes, output_names_);
}

id Requests::request(const std::shared_ptr<Requests>& self, const Program& program, const Surfaces& inputs, const Surfaces& outputs) {
    std::vector<const Surface*> key(inputs.begin(), inputs.end());
    key.insert(key.end(), outputs.begin(), outputs.end());
    {
        std::lock_guard<std::mutex> guard(mutex_);
        if (auto found = made_.find(key); found != made_.end()) return found->second.get();
        if (made_.size() >= MOST_REQUESTS) made_.clear();
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
