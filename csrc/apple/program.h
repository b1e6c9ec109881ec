// One program on one of the three routes. The steps are separate so that the caller can decide between them.
//
//   made ── is_compiled? ── compile ── load ── bind ── evaluate ... ── unload
//
// Nothing of the framework unloads by itself (dealloc does not): unload() is called on every path, by the destructor at the
// latest.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "foundation.h"
#include "surface.h"

namespace torchane::apple {

// What a program is made of. weights: path in the text, bytes of the whole file. directory: model.mil and the weight files
// lie there already, or will before compile(). inputs and outputs: the ports' names in the text.
struct Source {
    std::string directory, text;
    std::vector<std::pair<std::string, std::string>> weights;
    std::vector<std::string> inputs, outputs;
    // A weight's entry holds its bytes and nothing else, where public projects give an offset of 0 beside them. For a probe.
    bool bytes_alone = false;
};

using Surfaces = std::vector<Surface*>;
using SurfaceSet = std::vector<const Surface*>;

// A run, for a watchdog. serial: another one for each run.
struct Watched {
    int64_t owner = 0;
    std::string name, key;
    double limit_s = 0;
    uint64_t serial = 0;
};

// Sets of surfaces that a program has run with, as long as all of a set live.
class KnownSets : public SurfaceUser {
public:
    bool has(const SurfaceSet& set);
    void add(const std::shared_ptr<KnownSets>& self, const Surfaces& inputs, const Surfaces& outputs);
    void forget(const Surface* surface) override;

private:
    std::set<SurfaceSet> sets_;
    std::mutex mutex_;
};

class Program : public std::enable_shared_from_this<Program> {
public:
    virtual ~Program() = default;

    // What the framework calls it, "" where the route has no such name.
    virtual std::string identifier() { return ""; }
    // The directory that the framework reads the files from.
    virtual std::string directory() = 0;
    // A compiled form of this very program lies in the framework's own cache, so that load() alone is enough.
    virtual bool is_compiled() { return false; }
    virtual void purge() {}
    virtual void compile() = 0;
    virtual void load() = 0;
    virtual void unload() = 0;
    virtual bool is_loaded() const = 0;
    // What the framework says of a loaded program's ports, where the route tells.
    virtual Value attributes() { return {std::string()}; }
    // The place of each port among the framework's symbols, and the bytes that the program writes into each output.
    void bind(std::vector<uint32_t> inputs, std::vector<uint32_t> outputs, std::vector<size_t> sizes_bytes) {
        input_index = std::move(inputs);
        output_index = std::move(outputs);
        output_bytes = std::move(sizes_bytes);
    }
    // Runs to completion. Throws Fault "partial" where it succeeds and has left part of an output unwritten: each output
    // is marked at a few places before, with a NaN that no program computes. Surfaces in the order of the ports' names in Source; their host locks are released for the
    // time of the run. One at a time in the process: overlapping runs gain nothing and hang on M1.
    void run(const Surfaces& inputs, const Surfaces& outputs);
    // The same for surfaces that it has run with since it was loaded. False, and nothing is done, where it has not: somebody may want
    // to look at the ports first.
    bool run_again(const Surfaces& inputs, const Surfaces& outputs);
    // Who looks after a run that does not return, what to call it, and how long it may take: what running() tells.
    void watch(int64_t owner, std::string name, std::string key, double limit_s);

    std::vector<uint32_t> input_index, output_index;
    std::vector<size_t> output_bytes;

protected:
    explicit Program(std::vector<std::string> output_names) : output_names_(std::move(output_names)), known_(std::make_shared<KnownSets>()) {}
    virtual void evaluate(const Surfaces& inputs, const Surfaces& outputs) = 0;

private:
    void run_locked(const Surfaces& inputs, const Surfaces& outputs);

    std::vector<std::string> output_names_;
    Watched watched_;
    std::shared_ptr<KnownSets> known_;
};

// The run that is on the engine now and whom it concerns, or nothing.
std::optional<Watched> running(int64_t owner);

std::shared_ptr<Program> make_memory_program(Source source);   // route A
std::shared_ptr<Program> make_client_program(Source source);   // route A2
std::shared_ptr<Program> make_e5_program(Source source);       // route B

// Checks every selector or function that a route needs: throws Fault "missing" or "encoding" for the first that is not so.
void check_memory_route();
void check_client_route();
void check_e5_route();

// _ANERequests by their surfaces: a request may be reused, and to make one costs more than to run it.
class Requests : public SurfaceUser {
public:
    // self: these requests, which the surfaces are to tell when they go.
    id request(const std::shared_ptr<Requests>& self, const Program& program, const Surfaces& inputs, const Surfaces& outputs);
    void forget(const Surface* surface) override;
    void clear();

private:
    std::map<std::vector<const Surface*>, Owned> made_;
    std::mutex mutex_;
};

}  // namespace torchane::apple
