{
  "targets": [
    {
      "target_name": "snp_native",
      "sources": [
        "native/src/addon.cc",
        "native/src/catch.cc",
        "native/src/cgroup.cc",
        "native/src/file.cc",
        "native/src/memory.cc",
        "native/src/mount.cc",
        "native/src/netns.cc",
        "native/src/pages.cc",
        "native/src/pressure.cc",
        "native/src/process.cc",
        "native/src/receive.cc",
        "native/src/socket.cc",
        "native/src/spawn.cc"
      ],
      "include_dirs": ["<!@(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NAPI_DISABLE_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED", "_GNU_SOURCE"],
      "cflags": ["-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"],
      # Threads of its jobs may outlive the last environment that has it loaded.
      "ldflags": ["-Wl,-z,nodelete"],
      "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti"],
      "cflags_cc!": ["-std=gnu++17", "-std=c++17"],
      "configurations": {
        "Release": { "cflags": ["-O2"] },
        "Debug": { "cflags": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"], "ldflags": ["-fsanitize=address,undefined"] }
      }
    }
  ]
}
