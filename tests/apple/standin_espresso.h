// The half of the stand-in for Espresso's e5rt_* functions; standin.m includes it and has what it calls.

// Espresso's functions. A handle begins with what it is, so that a wrong one is found.

enum Kind { CONFIG = 1, COMPILER, OPTIONS, LIBRARY, FUNCTION, OP_OPTIONS, OPERATION, PORT, BUFFER, STREAM };
struct Handle {
    enum Kind kind;
    int64_t program, bytes, encoded;
    int port;          // its place among the symbols
    bool is_output;
    void *data;
    struct Handle *held;
    struct Handle *in[MOST_PORTS], *out[MOST_PORTS];
    char directory[1024], name[256];
};
static char last_error[REPLY + 64];
static int64_t failed(const char *why, int64_t status) {
    snprintf(last_error, sizeof last_error, "E5RT: %s (%lld)", why, (long long)status);
    return status;
}
static struct Handle *handle(enum Kind kind) {
    struct Handle *made = calloc(1, sizeof *made);
    made->kind = kind;
    return made;
}
static struct Handle *is(void *given, enum Kind kind) { return given && ((struct Handle *)given)->kind == kind ? given : NULL; }
const char *e5rt_get_last_error_message(void) { return last_error; }

#define FREES(name) int64_t name(void **given) { free(*given); *given = NULL; return 0; }
FREES(e5rt_e5_compiler_config_options_release)
FREES(e5rt_e5_compiler_release)
FREES(e5rt_e5_compiler_options_release)
FREES(e5rt_program_function_release)
FREES(e5rt_precompiled_compute_op_create_options_release)
FREES(e5rt_execution_stream_operation_release)
FREES(e5rt_io_port_release)
FREES(e5rt_execution_stream_release)
int64_t e5rt_program_library_release(void **given) {
    char reply[REPLY];
    struct Handle *library = is(*given, LIBRARY);
    if (library == NULL) return failed("not a library", 1);
    NSAutoreleasePool *pool = [[NSAutoreleasePool alloc] init];
    ask("unload", [NSString stringWithUTF8String:library->directory], nil, library->program, reply);
    [pool drain];
    free(*given);
    *given = NULL;
    return 0;
}
#define CREATE(name, kind) int64_t name(void **out) { *out = handle(kind); return 0; }
CREATE(e5rt_e5_compiler_config_options_create, CONFIG)
CREATE(e5rt_e5_compiler_options_create, OPTIONS)
CREATE(e5rt_execution_stream_create, STREAM)
int64_t e5rt_e5_compiler_config_options_set_cache_bundle_location(void *config, const char *path) {
    return is(config, CONFIG) && path ? 0 : failed("not a config", 1);
}
int64_t e5rt_e5_compiler_create_with_config(void **out, void *config) {
    if (!is(config, CONFIG)) return failed("not a config", 1);
    *out = handle(COMPILER);
    return 0;
}
int64_t e5rt_e5_compiler_options_set_compute_device_types_mask(void *options, uint64_t mask) {
    return is(options, OPTIONS) && mask == 4 ? 0 : failed("the mask would let ops run elsewhere", 1);
}
int64_t e5rt_e5_compiler_options_set_segmenter(void *options, const char *name) {
    return is(options, OPTIONS) && strcmp(name, "graph") == 0 ? 0 : failed("no such segmenter", 1);
}
int64_t e5rt_e5_compiler_compile(void *compiler, const char *path, void *options, void **out) {
    NSAutoreleasePool *pool = [[NSAutoreleasePool alloc] init];
    char reply[REPLY];
    if (!is(compiler, COMPILER) || !is(options, OPTIONS)) return failed("not a compiler", 1);
    NSString *directory = [[NSString stringWithUTF8String:path] stringByDeletingLastPathComponent];
    int64_t decided = ask("compile", directory, directory, 0, reply);
    if (decided == 0) decided = ask("load", directory, directory, 0, reply);
    [pool drain];
    if (decided == 1 || (decided == 4 && hangs_)) goes_on(decided, reply, NULL);
    if (decided != 0) return failed(reply[0] ? reply : "compile failed", decided == 2000 ? 11 : decided);
    struct Handle *library = handle(LIBRARY);
    library->program = atoll(reply);
    snprintf(library->directory, sizeof library->directory, "%s", path);
    *out = library;
    return 0;
}
int64_t e5rt_program_library_retain_program_function(void *library, const char *name, void **out) {
    if (!is(library, LIBRARY) || strcmp(name, "main") != 0) return failed("no such function", 2);
    struct Handle *made = *out = handle(FUNCTION);
    made->program = ((struct Handle *)library)->program;
    return 0;
}
int64_t e5rt_precompiled_compute_op_create_options_create_with_program_function(void **out, void *function) {
    if (!is(function, FUNCTION)) return failed("not a function", 1);
    struct Handle *made = *out = handle(OP_OPTIONS);
    made->program = ((struct Handle *)function)->program;
    return 0;
}
int64_t e5rt_precompiled_compute_op_create_options_set_operation_name(void *options, const char *name) {
    return is(options, OP_OPTIONS) && name ? 0 : failed("not op options", 1);
}
int64_t e5rt_precompiled_compute_op_create_options_set_allocate_intermediate_buffers(void *options, int value) {
    return is(options, OP_OPTIONS) && value == 1 ? 0 : failed("not op options", 1);
}
int64_t e5rt_execution_stream_operation_create_precompiled_compute_operation_with_options(void **out, void *options) {
    if (!is(options, OP_OPTIONS)) return failed("not op options", 1);
    struct Handle *made = *out = handle(OPERATION);
    made->program = ((struct Handle *)options)->program;
    return 0;
}
static int64_t port(void *operation, const char *name, void **out, bool is_output) {
    NSAutoreleasePool *pool = [[NSAutoreleasePool alloc] init];
    char reply[REPLY];
    if (!is(operation, OPERATION)) return failed("not an operation", 1);
    int64_t place = ask(is_output ? "output port" : "input port", [NSString stringWithUTF8String:name], nil, ((struct Handle *)operation)->program, reply);
    [pool drain];
    if (place < 0) return failed("no port of this name", 2);
    struct Handle *made = *out = handle(PORT);
    made->port = (int)place, made->is_output = is_output, made->held = operation;
    return 0;
}
int64_t e5rt_execution_stream_operation_retain_input_port(void *operation, const char *name, void **out) { return port(operation, name, out, false); }
int64_t e5rt_execution_stream_operation_retain_output_port(void *operation, const char *name, void **out) { return port(operation, name, out, true); }
int64_t e5rt_buffer_object_alloc(void **out, uint64_t bytes, uint32_t type) {
    if (type >= 3) return failed("Invalid BufferType @ AllocMemory", 1);
    struct Handle *made = *out = handle(BUFFER);
    made->bytes = (int64_t)bytes;
    if (posix_memalign(&made->data, 16384, bytes) != 0) return failed("no memory", 3);
    memset(made->data, 0xA5, bytes);
    __sync_add_and_fetch(&live_surfaces, 1);
    return 0;
}
int64_t e5rt_buffer_object_get_data_ptr(void *buffer, void **out) {
    if (!is(buffer, BUFFER)) return failed("not a buffer", 1);
    *out = ((struct Handle *)buffer)->data;
    return 0;
}
int64_t e5rt_buffer_object_release(void **buffer) {
    if (!is(*buffer, BUFFER)) return failed("not a buffer", 1);
    free(((struct Handle *)*buffer)->data);
    free(*buffer);
    *buffer = NULL;
    __sync_sub_and_fetch(&live_surfaces, 1);
    return 0;
}
int64_t e5rt_io_port_bind_buffer_object(void *given, void *buffer) {
    struct Handle *port = is(given, PORT);
    if (port == NULL || !is(buffer, BUFFER)) return failed("not a port and a buffer", 1);
    if (port->held->encoded) return failed("Op is encoded", 2);
    (port->is_output ? port->held->out : port->held->in)[port->port] = buffer;
    return 0;
}
int64_t e5rt_execution_stream_operation_prepare_op_for_encode(void *operation) {
    struct Handle *op = is(operation, OPERATION);
    if (op == NULL || !op->encoded) return failed("Op has not been encoded and hence cannot be reset to 'ReadyForEncode'", 2);
    op->encoded = 0;
    return 0;
}
int64_t e5rt_execution_stream_encode_operation(void *stream, void *operation) {
    struct Handle *into = is(stream, STREAM), *op = is(operation, OPERATION);
    if (into == NULL || op == NULL || op->encoded) return failed("cannot encode", 2);
    if (into->held) return failed("Reset stream to add more operations to stream.", 2);
    into->held = op, op->encoded = 1;
    return 0;
}
int64_t e5rt_execution_stream_reset(void *stream) {
    struct Handle *of = is(stream, STREAM);
    if (of == NULL || of->held == NULL) return failed("a stream that was not used", 2);
    of->held = NULL;
    return 0;
}
int64_t e5rt_execution_stream_execute_sync(void *stream) {
    struct Handle *of = is(stream, STREAM);
    if (of == NULL || of->held == NULL) return failed("nothing is encoded", 2);
    void *in[MOST_PORTS], *out[MOST_PORTS];
    int64_t in_sizes[MOST_PORTS], out_sizes[MOST_PORTS], inputs = 0, outputs = 0;
    for (; of->held->in[inputs]; ++inputs) in[inputs] = of->held->in[inputs]->data, in_sizes[inputs] = of->held->in[inputs]->bytes;
    for (; of->held->out[outputs]; ++outputs) out[outputs] = of->held->out[outputs]->data, out_sizes[outputs] = of->held->out[outputs]->bytes;
    int64_t decided = run(of->held->program, inputs, in, in_sizes, outputs, out, out_sizes);
    if (decided == 1 || decided == 4) {
        NSAutoreleasePool *pool = [[NSAutoreleasePool alloc] init];
        goes_on(decided, "evaluate", NULL);
        [pool drain];
    }
    return decided == 0 ? 0 : failed("execution failed", decided);
}
