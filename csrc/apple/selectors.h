// Every selector of AppleNeuralEngine.framework that the bridge sends, with its types, in one place. The encodings that
// follow from the types were reported by method_getTypeEncoding on macOS 27.0 (M4, M5 Max) where published: compile and
// load B@:I@^@, evaluate B@:I@@^@, unload B@:I^@, the client's B@:@@I^@ and B@:@@@I^@. The others are checked on the
// user's machine like these, before the first use.
// Sources: maderix/ANE, mechramc/Orion, christopherkarani/Espresso, tmc/apple, 4rg0naut/silicon-ledger-public.
#pragma once

#include "objc.h"

namespace torchane::apple {

// The Default quality of service of the framework's own mapper; what nearly every public project uses.
constexpr uint32_t QOS = 21;

// Route A: the in-memory model.
inline const Method<id(id, id, id)> describe_model{"_ANEInMemoryModelDescriptor", '+', "modelWithMILText:weights:optionsPlist:"};
inline const Method<id(id)> model_of{"_ANEInMemoryModel", '+', "inMemoryModelWithDescriptor:"};
inline const Method<id()> model_identifier{"_ANEInMemoryModel", '-', "hexStringIdentifier"};
inline const Method<id()> model_path{"_ANEInMemoryModel", '-', "localModelPath"};
inline const Method<void(id)> set_model_url{"_ANEInMemoryModel", '-', "setModelURL:"};
inline const Method<bool()> compiled_exists{"_ANEInMemoryModel", '-', "compiledModelExists"};
inline const Method<void()> purge_compiled{"_ANEInMemoryModel", '-', "purgeCompiledModel"};
inline const Method<bool(uint32_t, id, id*)> compile_model{"_ANEInMemoryModel", '-', "compileWithQoS:options:error:"};
inline const Method<bool(uint32_t, id, id*)> load_model{"_ANEInMemoryModel", '-', "loadWithQoS:options:error:"};
inline const Method<bool(uint32_t, id, id, id*)> evaluate_model{"_ANEInMemoryModel", '-', "evaluateWithQoS:options:request:error:"};
inline const Method<bool(uint32_t, id*)> unload_model{"_ANEInMemoryModel", '-', "unloadWithQoS:error:"};
inline const Method<id()> inner_model{"_ANEInMemoryModel", '-', "model"};

// Route A2: the client and a directory.
inline const Method<id()> shared_client{"_ANEClient", '+', "sharedConnection"};
inline const Method<id(id, id)> model_at{"_ANEModel", '+', "modelAtURL:key:"};
inline const Method<id()> model_attributes{"_ANEModel", '-', "modelAttributes"};
inline const Method<bool(id)> client_compiled_exists{"_ANEClient", '-', "compiledModelExistsFor:"};
inline const Method<void(id)> client_purge{"_ANEClient", '-', "purgeCompiledModel:"};
inline const Method<bool(id, id, uint32_t, id*)> client_compile{"_ANEClient", '-', "compileModel:options:qos:error:"};
inline const Method<bool(id, id, uint32_t, id*)> client_load{"_ANEClient", '-', "loadModel:options:qos:error:"};
inline const Method<bool(id, id, id, uint32_t, id*)> client_evaluate{"_ANEClient", '-', "evaluateWithModel:options:request:qos:error:"};
inline const Method<bool(id, id, uint32_t, id*)> client_unload{"_ANEClient", '-', "unloadModel:options:qos:error:"};

// Both.
inline const Method<id(SurfaceRef)> surface_object{"_ANEIOSurfaceObject", '+', "objectWithIOSurface:"};
inline const Method<id(id, id, id, id, id, id, id)> make_request{
    "_ANERequest", '+', "requestWithInputs:inputIndices:outputs:outputIndices:weightsBuffer:perfStats:procedureIndex:"};

// What the machine says of itself. Some of these return scalars: a message to one of those as if it were an object crashes.
inline const Method<bool()> device_has_engine{"_ANEDeviceInfo", '+', "hasANE"};
inline const Method<bool()> device_is_virtual{"_ANEDeviceInfo", '+', "isVirtualMachine"};
inline const Method<uint32_t()> device_engines{"_ANEDeviceInfo", '+', "numANEs"};
inline const Method<uint32_t()> device_cores{"_ANEDeviceInfo", '+', "numANECores"};
inline const Method<int64_t()> device_board{"_ANEDeviceInfo", '+', "aneBoardType"};
inline const Method<id()> device_architecture{"_ANEDeviceInfo", '+', "aneArchitectureType"};
inline const Method<id()> device_subtype{"_ANEDeviceInfo", '+', "aneSubType"};
inline const Method<id()> device_product{"_ANEDeviceInfo", '+', "productName"};
inline const Method<id()> device_build{"_ANEDeviceInfo", '+', "buildVersion"};

}  // namespace torchane::apple
