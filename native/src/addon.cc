// The addon's entry point: one module, one part per facility.
#include "addon.h"

#include "job.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  auto* jobs = new snp::Jobs(env);  // Goes with the environment.
  snp::InitCatch(env, exports, jobs);
  snp::InitCgroup(env, exports, jobs);
  snp::InitFile(env, exports, jobs);
  snp::InitMemory(env, exports, jobs);
  snp::InitMount(env, exports);
  snp::InitNetns(env, exports, jobs);
  snp::InitPages(env, exports);
  snp::InitPressure(env, exports);
  snp::InitProcess(env, exports);
  snp::InitReceive(env, exports);
  snp::InitSocket(env, exports);
  snp::InitSpawn(env, exports, jobs);
  return exports;
}

NODE_API_MODULE(snp_native, Init)
