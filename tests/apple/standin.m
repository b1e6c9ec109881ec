// A stand-in for Apple's frameworks on Linux, for tests only: the classes, selectors, encodings and functions that the
// bridge uses, over GNUstep. It decides nothing: every event goes to a function of the test process (standin.py), which is
// compiler, daemon and engine, and says what becomes of it:
//
//   0 it works   1 an NSException   2 nil   3 NO and no error   4 it hangs   1000 + n NSError n of the framework
//   2000 NSError 1 of the compiler, its text in `reply`   3000 NSError 4097 of Cocoa
//
// GCC's runtime passes exceptions through no objc_setExceptionPreprocessor; this one calls it for those it throws, as
// Apple's does for all.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#import <Foundation/Foundation.h>
#include <objc/runtime.h>

typedef int64_t (*Daemon)(const char *event, const char *identifier, const char *directory, int64_t program, char *reply);
typedef int64_t (*Engine)(int64_t program, int64_t inputs, void **in, int64_t *in_sizes, int64_t outputs, void **out, int64_t *out_sizes);
enum { REPLY = 4096 };

static Daemon daemon_;
static Engine engine_;
static char missing_[128], changed_[128], encoding_[128];
static volatile bool hangs_ = true;
static int64_t written_;  // of each output, in place of an evaluation; 0: it is evaluated
static int64_t live_surfaces, live_models, live_requests, locks_taken;

// A program may be unloaded by the death of a Python object, while an exception of Python's is on its way. The functions of the test
// process are Python's too and must not meet it (an interpreter ends in SystemError, or worse); Apple's framework is none of Python's.
struct Parked {
    int gil;
    void *type, *value, *traceback;
};
static int (*gil_ensure)(void);
static void (*gil_release)(int), (*error_fetch)(void **, void **, void **), (*error_restore)(void *, void *, void *);
static struct Parked park(void) {
    struct Parked parked = {gil_ensure(), NULL, NULL, NULL};
    error_fetch(&parked.type, &parked.value, &parked.traceback);
    return parked;
}
static void unpark(struct Parked parked) {
    error_restore(parked.type, parked.value, parked.traceback);
    gil_release(parked.gil);
}

void standin_register(Daemon daemon, Engine engine) {
    daemon_ = daemon, engine_ = engine;
    gil_ensure = dlsym(RTLD_DEFAULT, "PyGILState_Ensure"), gil_release = dlsym(RTLD_DEFAULT, "PyGILState_Release");
    error_fetch = dlsym(RTLD_DEFAULT, "PyErr_Fetch"), error_restore = dlsym(RTLD_DEFAULT, "PyErr_Restore");
}
// A class or selector that is not there; a selector whose encoding is another. "" for none.
void standin_missing(const char *name) { strncpy(missing_, name, sizeof missing_ - 1); }
void standin_encoding(const char *name, const char *encoding) {
    strncpy(changed_, name, sizeof changed_ - 1);
    strncpy(encoding_, encoding, sizeof encoding_ - 1);
}
// Dispatches write zeros and ask nobody: what is left is the cost of the bridge.
void standin_skip(int64_t written) { written_ = written; }
void standin_release_hangs(void) { hangs_ = false; }
int64_t standin_live(int what) { return what == 0 ? live_surfaces : what == 1 ? live_models : what == 2 ? live_requests : locks_taken; }

// What the bridge looks up of the runtime itself, so that a test can hide or change a class or selector.
static id (*preprocessor)(id);
typedef id (*Preprocessor)(id);
Preprocessor objc_setExceptionPreprocessor(Preprocessor next) {
    Preprocessor before = preprocessor;
    preprocessor = next;
    return before;
}
Class objc_getClass(const char *name) { return strcmp(name, missing_) == 0 ? Nil : objc_lookUpClass(name); }
struct objc_method *class_getInstanceMethod(Class type, SEL selector) {
    static struct objc_method *(*real)(Class, SEL);
    if (real == NULL) real = dlsym(RTLD_NEXT, "class_getInstanceMethod");
    return strcmp(sel_getName(selector), missing_) == 0 ? NULL : real(type, selector);
}
struct objc_method *class_getClassMethod(Class type, SEL selector) {
    static struct objc_method *(*real)(Class, SEL);
    if (real == NULL) real = dlsym(RTLD_NEXT, "class_getClassMethod");
    return strcmp(sel_getName(selector), missing_) == 0 ? NULL : real(type, selector);
}
const char *method_getTypeEncoding(struct objc_method *method) {
    static const char *(*real)(struct objc_method *);
    if (real == NULL) real = dlsym(RTLD_NEXT, "method_getTypeEncoding");
    return strcmp(sel_getName(method_getName(method)), changed_) == 0 ? encoding_ : real(method);
}

static NSString *words(int64_t code) {
    switch (code) {
    case 3: return @"Program Inference timed out";
    case 4: return @"Program creation failure";
    case 6: return @"Program load failure (0x50004)";
    case 8: return @"Program Inference error: status=0x1d: statusType=0x9";
    case 9: return @"File access failure";
    case 10: return @"verifyBundleAtPath: invalid model";
    case 22: return @"No ANE hardware: host or guest too old";
    case 23: return @"Program not found at inference (status=0xe)";
    default: return @"ANE error";
    }
}

static void throw_exception(NSString *reason) {
    NSException *exception = [NSException exceptionWithName:NSInternalInconsistencyException reason:reason userInfo:nil];
    if (preprocessor) exception = preprocessor(exception);
    [exception raise];
}

// What a decision means for a call that returns an object or a BOOL; true where the call goes on.
static bool goes_on(int64_t decided, const char *reply, NSError **error) {
    if (decided == 0) return true;
    if (decided == 1) throw_exception([NSString stringWithFormat:@"the stand-in was told to throw: %s", reply]);
    while (decided == 4 && hangs_) usleep(10000);
    if (error == NULL) return false;
    if (decided >= 3000) {
        *error = [NSError errorWithDomain:NSCocoaErrorDomain code:4097 userInfo:
            [NSDictionary dictionaryWithObject:@"connection to service named com.apple.ANECompilerService" forKey:NSLocalizedDescriptionKey]];
    } else if (decided >= 2000) {
        NSString *text = [NSString stringWithFormat:@"_ANECompiler : ANECCompile() FAILED err=(%s)", reply];
        *error = [NSError errorWithDomain:@"com.apple.appleneuralengine.compiler" code:1 userInfo:
            [NSDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey]];
    } else if (decided >= 1000) {
        *error = [NSError errorWithDomain:@"com.apple.appleneuralengine" code:(NSInteger)(decided - 1000) userInfo:
            [NSDictionary dictionaryWithObject:words(decided - 1000) forKey:NSLocalizedDescriptionKey]];
    }
    return false;
}

static int64_t ask(const char *event, NSString *identifier, NSString *directory, int64_t program, char *reply) {
    reply[0] = '\0';
    struct Parked parked = park();
    int64_t decided = daemon_(event, identifier ? [identifier UTF8String] : "", directory ? [directory UTF8String] : "", program, reply);
    unpark(parked);
    return decided;
}

// IOSurface

struct Surface {
    int64_t references, locks, bytes;
    void *base;
};

NSString *const kIOSurfaceWidth = @"IOSurfaceWidth";
NSString *const kIOSurfaceHeight = @"IOSurfaceHeight";
NSString *const kIOSurfaceBytesPerElement = @"IOSurfaceBytesPerElement";
NSString *const kIOSurfaceBytesPerRow = @"IOSurfaceBytesPerRow";
NSString *const kIOSurfaceAllocSize = @"IOSurfaceAllocSize";
NSString *const kIOSurfacePixelFormat = @"IOSurfacePixelFormat";

struct Surface *IOSurfaceCreate(NSDictionary *properties) {
    char reply[REPLY];
    if (ask("surface", nil, nil, 0, reply) != 0) return NULL;
    int64_t bytes = [[properties objectForKey:kIOSurfaceAllocSize] longLongValue];
    if (bytes <= 0 || [[properties objectForKey:kIOSurfaceHeight] intValue] != 1) return NULL;
    struct Surface *made = malloc(sizeof *made);
    *made = (struct Surface){1, 0, bytes, NULL};
    if (posix_memalign(&made->base, 16384, (size_t)bytes) != 0) {
        free(made);
        return NULL;
    }
    memset(made->base, 0xA5, (size_t)bytes);  // Apple promises nothing of what lies in new memory
    __sync_add_and_fetch(&live_surfaces, 1);
    return made;
}
int IOSurfaceLock(struct Surface *surface, uint32_t options, uint32_t *seed) {
    (void)options, (void)seed;
    __sync_add_and_fetch(&locks_taken, 1);
    __sync_add_and_fetch(&surface->locks, 1);
    return 0;
}
int IOSurfaceUnlock(struct Surface *surface, uint32_t options, uint32_t *seed) {
    (void)options, (void)seed;
    return __sync_sub_and_fetch(&surface->locks, 1) < 0 ? (int)0xe00002c2 : 0;
}
void *IOSurfaceGetBaseAddress(struct Surface *surface) { return surface->base; }
size_t IOSurfaceGetAllocSize(struct Surface *surface) { return (size_t)surface->bytes; }
void CFRelease(struct Surface *surface) {
    if (__sync_sub_and_fetch(&surface->references, 1) > 0) return;
    free(surface->base);
    free(surface);
    __sync_sub_and_fetch(&live_surfaces, 1);
}

@interface _ANEIOSurfaceObject : NSObject {
@public
    struct Surface *surface;
}
+ (id)objectWithIOSurface:(struct Surface *)surface;
@end
@implementation _ANEIOSurfaceObject
+ (id)objectWithIOSurface:(struct Surface *)given {
    _ANEIOSurfaceObject *made = [[[self alloc] init] autorelease];
    __sync_add_and_fetch(&given->references, 1);
    made->surface = given;
    return made;
}
- (void)dealloc {
    CFRelease(surface);
    [super dealloc];
}
@end

// Requests

@interface _ANERequest : NSObject {
@public
    NSArray *inputs, *inputIndices, *outputs, *outputIndices;
}
+ (id)requestWithInputs:(id)inputs inputIndices:(id)inputIndices outputs:(id)outputs outputIndices:(id)outputIndices
          weightsBuffer:(id)weightsBuffer perfStats:(id)perfStats procedureIndex:(id)procedureIndex;
@end
@implementation _ANERequest
+ (id)requestWithInputs:(id)given inputIndices:(id)places outputs:(id)results outputIndices:(id)result_places
          weightsBuffer:(id)weightsBuffer perfStats:(id)perfStats procedureIndex:(id)procedureIndex {
    (void)weightsBuffer, (void)perfStats;
    char reply[REPLY];
    if (!goes_on(ask("request", nil, nil, 0, reply), reply, NULL) || procedureIndex == nil) return nil;
    if ([given count] != [places count] || [results count] != [result_places count]) return nil;
    _ANERequest *made = [[[self alloc] init] autorelease];
    made->inputs = [given retain], made->inputIndices = [places retain];
    made->outputs = [results retain], made->outputIndices = [result_places retain];
    __sync_add_and_fetch(&live_requests, 1);
    return made;
}
- (void)dealloc {
    [inputs release], [inputIndices release], [outputs release], [outputIndices release];
    __sync_sub_and_fetch(&live_requests, 1);
    [super dealloc];
}
@end

enum { MOST_PORTS = 256 };

// The memory of surfaces by the place of their symbols; -1 where a place is taken twice or a lock is held.
static int64_t placed(NSArray *objects, NSArray *places, void **memory, int64_t *sizes) {
    int64_t count = (int64_t)[objects count];
    if (count > MOST_PORTS) return -1;
    memset(memory, 0, sizeof(void *) * MOST_PORTS);
    for (int64_t i = 0; i < count; ++i) {
        int64_t at = [[places objectAtIndex:(NSUInteger)i] longLongValue];
        struct Surface *surface = ((_ANEIOSurfaceObject *)[objects objectAtIndex:(NSUInteger)i])->surface;
        if (at < 0 || at >= count || memory[at] != NULL || surface->locks != 0) return -1;
        memory[at] = surface->base, sizes[at] = surface->bytes;
    }
    return count;
}

static int64_t run(int64_t program, int64_t inputs, void **in, int64_t *in_sizes, int64_t outputs, void **out, int64_t *out_sizes) {
    if (written_ == 0) {
        struct Parked parked = park();
        int64_t decided = engine_(program, inputs, in, in_sizes, outputs, out, out_sizes);
        unpark(parked);
        return decided;
    }
    for (int64_t i = 0; i < outputs; ++i) memset(out[i], 0, (size_t)(written_ < out_sizes[i] ? written_ : out_sizes[i]));
    return 0;
}

static bool evaluate(int64_t program, _ANERequest *request, NSError **error) {
    void *in[MOST_PORTS], *out[MOST_PORTS];
    int64_t in_sizes[MOST_PORTS], out_sizes[MOST_PORTS];
    int64_t inputs = placed(request->inputs, request->inputIndices, in, in_sizes);
    int64_t outputs = placed(request->outputs, request->outputIndices, out, out_sizes);
    if (inputs < 0 || outputs < 0) return goes_on(1008, "", error);
    return goes_on(run(program, inputs, in, in_sizes, outputs, out, out_sizes), "evaluate", error);
}

// Models

static NSString *digest(NSData *bytes) { return [[[bytes md5Digest] description] stringByReplacingOccurrencesOfString:@" " withString:@""]; }

static void write_files(NSString *directory, NSData *text) {
    NSFileManager *files = [NSFileManager defaultManager];
    if ([files fileExistsAtPath:directory]) [text writeToFile:[directory stringByAppendingPathComponent:@"net.plist"] atomically:YES];
}

@interface _ANEInMemoryModelDescriptor : NSObject {
@public
    NSData *text;
    NSString *identifier;
}
+ (id)modelWithMILText:(id)text weights:(id)weights optionsPlist:(id)options;
@end
@implementation _ANEInMemoryModelDescriptor
+ (id)modelWithMILText:(id)text weights:(id)weights optionsPlist:(id)options {
    char reply[REPLY];
    if (![text isKindOfClass:[NSData class]] || ![weights isKindOfClass:[NSDictionary class]] || options != nil) return nil;
    if (!goes_on(ask("descriptor", nil, nil, 0, reply), reply, NULL)) return nil;
    NSMutableData *all = [NSMutableData data];
    NSArray *keys = [[weights allKeys] sortedArrayUsingSelector:@selector(compare:)];
    for (NSString *key in keys) {
        NSData *bytes = [[weights objectForKey:key] objectForKey:@"data"];
        if (![bytes isKindOfClass:[NSData class]]) return nil;
        [all appendData:bytes];
    }
    _ANEInMemoryModelDescriptor *made = [[[self alloc] init] autorelease];
    made->text = [text retain];
    made->identifier = [[NSString stringWithFormat:@"%@_%@_0", digest(text), digest(all)] retain];
    return made;
}
- (void)dealloc {
    [text release], [identifier release];
    [super dealloc];
}
@end

@interface _ANEModel : NSObject {
@public
    NSString *directory, *identifier;
    int64_t program;
}
+ (id)modelAtURL:(id)url key:(id)key;
- (id)modelAttributes;
@end
@implementation _ANEModel
+ (id)modelAtURL:(id)url key:(id)key {
    if (url == nil || key == nil) return nil;
    _ANEModel *made = [[[self alloc] init] autorelease];
    made->directory = [[url path] retain];
    made->identifier = [[NSString stringWithFormat:@"%@ %@", [url path], key] retain];
    __sync_add_and_fetch(&live_models, 1);
    return made;
}
// The symbols of a loaded program, from the daemon's "input\n...\n\noutput\n...".
- (id)modelAttributes {
    char reply[REPLY * 4];
    ask("symbols", identifier, directory, program, reply);
    NSArray *halves = [[NSString stringWithUTF8String:reply] componentsSeparatedByString:@"\n\n"];
    if ([halves count] != 2) return [NSDictionary dictionary];
    NSDictionary *names = [NSDictionary dictionaryWithObjectsAndKeys:
        [[halves objectAtIndex:0] componentsSeparatedByString:@"\n"], @"kANEFModelInputSymbolsArrayKey",
        [[halves objectAtIndex:1] componentsSeparatedByString:@"\n"], @"kANEFModelOutputSymbolsArrayKey", nil];
    return [NSDictionary dictionaryWithObject:names forKey:@"ANEFModelDescription"];
}
- (void)dealloc {
    [directory release], [identifier release];
    __sync_sub_and_fetch(&live_models, 1);
    [super dealloc];
}
@end

// What compile, load and unload are on both routes.
static bool compile(_ANEModel *model, NSError **error) {
    char reply[REPLY];
    int64_t decided = ask("compile", model->identifier, model->directory, 0, reply);
    return goes_on(decided, reply, error);
}
static bool load(_ANEModel *model, NSError **error) {
    char reply[REPLY];
    if (!goes_on(ask("load", model->identifier, model->directory, 0, reply), reply, error)) return false;
    model->program = atoll(reply);
    return true;
}
static bool unload(_ANEModel *model, NSError **error) {
    char reply[REPLY];
    return goes_on(ask("unload", model->identifier, model->directory, model->program, reply), reply, error);
}

@interface _ANEInMemoryModel : NSObject {
    _ANEInMemoryModelDescriptor *descriptor;
    _ANEModel *model;
}
+ (id)inMemoryModelWithDescriptor:(id)descriptor;
- (id)hexStringIdentifier;
- (id)localModelPath;
- (void)setModelURL:(id)url;
- (bool)compiledModelExists;
- (void)purgeCompiledModel;
- (bool)compileWithQoS:(unsigned int)qos options:(id)options error:(id *)error;
- (bool)loadWithQoS:(unsigned int)qos options:(id)options error:(id *)error;
- (bool)evaluateWithQoS:(unsigned int)qos options:(id)options request:(id)request error:(id *)error;
- (bool)unloadWithQoS:(unsigned int)qos error:(id *)error;
- (id)model;
@end
@implementation _ANEInMemoryModel
+ (id)inMemoryModelWithDescriptor:(id)given {
    char reply[REPLY];
    if (!goes_on(ask("model", nil, nil, 0, reply), reply, NULL) || given == nil) return nil;
    _ANEInMemoryModel *made = [[[self alloc] init] autorelease];
    made->descriptor = [given retain];
    NSString *path = [NSTemporaryDirectory() stringByAppendingPathComponent:made->descriptor->identifier];
    made->model = [[_ANEModel modelAtURL:[NSURL fileURLWithPath:path isDirectory:YES] key:@""] retain];
    ASSIGN(made->model->identifier, made->descriptor->identifier);
    return made;
}
- (void)dealloc {
    [descriptor release], [model release];
    [super dealloc];
}
- (id)hexStringIdentifier { return descriptor->identifier; }
- (id)localModelPath { return model->directory; }
- (void)setModelURL:(id)url { ASSIGN(model->directory, [url path]); }
- (bool)compiledModelExists {
    char reply[REPLY];
    return ask("exists", model->identifier, model->directory, 0, reply) == 1;
}
- (void)purgeCompiledModel {
    char reply[REPLY];
    ask("purge", model->identifier, model->directory, 0, reply);
}
- (bool)compileWithQoS:(unsigned int)qos options:(id)options error:(id *)error {
    if (qos != 21 || options == nil) return goes_on(1026, "", error);
    write_files(model->directory, descriptor->text);
    return compile(model, error);
}
- (bool)loadWithQoS:(unsigned int)qos options:(id)options error:(id *)error {
    return qos == 21 && options != nil ? load(model, error) : goes_on(1026, "", error);
}
- (bool)evaluateWithQoS:(unsigned int)qos options:(id)options request:(id)request error:(id *)error {
    return qos == 21 && options != nil && request != nil ? evaluate(model->program, request, error) : goes_on(1026, "", error);
}
- (bool)unloadWithQoS:(unsigned int)qos error:(id *)error { return qos == 21 ? unload(model, error) : goes_on(1026, "", error); }
- (id)model { return model; }
@end

NSString *const kANEFModelTypeKey = @"kANEFModelType";
NSString *const kANEFModelMILValue = @"kANEFModelMIL";
NSString *const kANEFNetPlistFilenameKey = @"NetPlistFilename";

@interface _ANEClient : NSObject
+ (id)sharedConnection;
- (bool)compiledModelExistsFor:(id)model;
- (void)purgeCompiledModel:(id)model;
- (bool)compileModel:(id)model options:(id)options qos:(unsigned int)qos error:(id *)error;
- (bool)loadModel:(id)model options:(id)options qos:(unsigned int)qos error:(id *)error;
- (bool)evaluateWithModel:(id)model options:(id)options request:(id)request qos:(unsigned int)qos error:(id *)error;
- (bool)unloadModel:(id)model options:(id)options qos:(unsigned int)qos error:(id *)error;
@end
@implementation _ANEClient
+ (id)sharedConnection {
    static _ANEClient *shared;
    char reply[REPLY];
    if (!goes_on(ask("client", nil, nil, 0, reply), reply, NULL)) return nil;
    if (shared == nil) shared = [[self alloc] init];
    return shared;
}
- (bool)compiledModelExistsFor:(id)given {
    char reply[REPLY];
    return ask("exists", ((_ANEModel *)given)->identifier, ((_ANEModel *)given)->directory, 0, reply) == 1;
}
- (void)purgeCompiledModel:(id)given {
    char reply[REPLY];
    ask("purge", ((_ANEModel *)given)->identifier, ((_ANEModel *)given)->directory, 0, reply);
}
static bool is_text(NSDictionary *options) {
    return [[options objectForKey:kANEFModelTypeKey] isEqual:kANEFModelMILValue] && [[options objectForKey:kANEFNetPlistFilenameKey] isEqual:@"model.mil"];
}
- (bool)compileModel:(id)given options:(id)options qos:(unsigned int)qos error:(id *)error {
    return qos == 21 && is_text(options) ? compile(given, error) : goes_on(1010, "", error);
}
- (bool)loadModel:(id)given options:(id)options qos:(unsigned int)qos error:(id *)error {
    return qos == 21 && is_text(options) ? load(given, error) : goes_on(1010, "", error);
}
- (bool)evaluateWithModel:(id)given options:(id)options request:(id)request qos:(unsigned int)qos error:(id *)error {
    return qos == 21 && options != nil && request != nil ? evaluate(((_ANEModel *)given)->program, request, error) : goes_on(1026, "", error);
}
- (bool)unloadModel:(id)given options:(id)options qos:(unsigned int)qos error:(id *)error {
    return qos == 21 && options != nil ? unload(given, error) : goes_on(1026, "", error);
}
@end

@interface _ANEDeviceInfo : NSObject
+ (bool)hasANE;
+ (bool)isVirtualMachine;
+ (unsigned int)numANEs;
+ (unsigned int)numANECores;
+ (long long)aneBoardType;
+ (id)aneArchitectureType;
+ (id)buildVersion;
@end
@implementation _ANEDeviceInfo
+ (bool)hasANE {
    char reply[REPLY];
    return ask("has engine", nil, nil, 0, reply) == 0;
}
+ (bool)isVirtualMachine {
    char reply[REPLY];
    return ask("is virtual", nil, nil, 0, reply) == 1;
}
+ (unsigned int)numANEs { return 1; }
+ (unsigned int)numANECores { return 16; }
+ (long long)aneBoardType { return 0x1234; }
+ (id)aneArchitectureType { return @"h16g"; }
+ (id)buildVersion {
    char reply[REPLY];
    ask("build", nil, nil, 0, reply);
    return [NSString stringWithUTF8String:reply];
}
@end

#include "standin_espresso.h"
