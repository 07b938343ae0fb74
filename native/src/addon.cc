// The addon's entry point: one module, one part per facility.
#include "addon.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  snp::InitCatch(env, exports);
  snp::InitFile(env, exports);
  snp::InitMount(env, exports);
  snp::InitNetns(env, exports);
  snp::InitProcess(env, exports);
  snp::InitReceive(env, exports);
  snp::InitSocket(env, exports);
  return exports;
}

NODE_API_MODULE(snp_native, Init)
