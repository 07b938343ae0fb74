// Control groups in each mounted hierarchy (cgroups(7)), for whoever brings a process there.
#pragma once

#include <string>
#include <vector>

#include "addon.h"

namespace snp {

// A mounted hierarchy.
struct Hierarchy {
  std::string root;
  bool second = false;
  bool cpuset = false;
};

// The hierarchies of three arguments from `index` on: their roots, whether each is of version 2, and whether it has cpusets.
std::vector<Hierarchy> HierarchiesAt(const Napi::CallbackInfo& info, size_t index);

// Makes a group with all above it. `path` has a leading slash. Answers 0 or an errno.
int MakeGroup(const Hierarchy& hierarchy, const std::string& path);

}  // namespace snp
