// One listening socket for every TCP port of a network namespace: a program of the kernel's socket lookup (BPF_PROG_TYPE_SK_LOOKUP,
// Linux 5.9) hands it all connections. The port that was asked for is the accepted socket's own.
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <array>
#include <cstddef>
#include <cstring>

#include "visit.h"

namespace snp {

namespace {

constexpr int kBacklog = 128;

int Bpf(bpf_cmd command, bpf_attr* attributes) {
  return static_cast<int>(syscall(SYS_bpf, command, attributes, sizeof(*attributes)));
}

constexpr bpf_insn Op(uint8_t code, uint8_t to, uint8_t from, int16_t offset, int32_t value) {
  bpf_insn op{};
  op.code = code;
  op.dst_reg = to & 0xf;
  op.src_reg = from & 0xf;
  op.off = offset;
  op.imm = value;
  return op;
}

constexpr bpf_insn Move(uint8_t to, uint8_t from) {
  return Op(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}

constexpr bpf_insn Set(uint8_t to, int32_t value) {
  return Op(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}

constexpr bpf_insn Call(bpf_func_id function) {
  return Op(BPF_JMP | BPF_CALL, 0, 0, 0, function);
}

// A listening socket of both families, or of IPv4 alone where there is no IPv6. Its own port is any.
Fd Listen() {
  Fd fd(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.Valid()) {
    const int off = 0;
    sockaddr_in6 any{};
    any.sin6_family = AF_INET6;
    if (setsockopt(fd.Get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) == 0 &&
        bind(fd.Get(), reinterpret_cast<sockaddr*>(&any), sizeof(any)) == 0 && listen(fd.Get(), kBacklog) == 0)
      return fd;
  }
  fd.Reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in any{};
  any.sin_family = AF_INET;
  if (fd.Valid() && (bind(fd.Get(), reinterpret_cast<sockaddr*>(&any), sizeof(any)) != 0 || listen(fd.Get(), kBacklog) != 0)) fd.Reset(-1);
  return fd;
}

// A map that holds the socket for the program.
Fd MapOf(int listener) {
  bpf_attr make{};
  make.map_type = BPF_MAP_TYPE_SOCKMAP;
  make.key_size = sizeof(uint32_t);
  make.value_size = sizeof(uint64_t);
  make.max_entries = 1;
  Fd map(Bpf(BPF_MAP_CREATE, &make));
  if (!map.Valid()) return map;
  const uint32_t key = 0;
  const uint64_t value = static_cast<uint64_t>(listener);
  bpf_attr put{};
  put.map_fd = static_cast<uint32_t>(map.Get());
  put.key = reinterpret_cast<uint64_t>(&key);
  put.value = reinterpret_cast<uint64_t>(&value);
  if (Bpf(BPF_MAP_UPDATE_ELEM, &put) != 0) map.Reset(-1);
  return map;
}

// The program: a TCP connection gets the map's socket; everything else, and all when the map is empty, goes its ordinary way.
Fd ProgramOf(int map) {
  constexpr int16_t kKeyOffset = -4;
  // From behind each of the two jumps to the last two instructions.
  constexpr int16_t kOtherProtocol = 14;
  constexpr int16_t kNoSocket = 7;
  const std::array program{
      Move(BPF_REG_6, BPF_REG_1),
      Op(BPF_LDX | BPF_MEM | BPF_W, BPF_REG_2, BPF_REG_6, offsetof(bpf_sk_lookup, protocol), 0),
      Op(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_2, 0, kOtherProtocol, IPPROTO_TCP),
      Op(BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, kKeyOffset, 0),
      Move(BPF_REG_2, BPF_REG_10),
      Op(BPF_ALU64 | BPF_ADD | BPF_K, BPF_REG_2, 0, 0, kKeyOffset),
      Op(BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, map),
      Op(0, 0, 0, 0, 0),
      Call(BPF_FUNC_map_lookup_elem),
      Op(BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, kNoSocket, 0),
      Move(BPF_REG_7, BPF_REG_0),
      Move(BPF_REG_1, BPF_REG_6),
      Move(BPF_REG_2, BPF_REG_7),
      Set(BPF_REG_3, 0),
      Call(BPF_FUNC_sk_assign),
      Move(BPF_REG_1, BPF_REG_7),
      Call(BPF_FUNC_sk_release),
      Set(BPF_REG_0, SK_PASS),
      Op(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  static constexpr char kLicense[] = "Apache-2.0";
  bpf_attr load{};
  load.prog_type = BPF_PROG_TYPE_SK_LOOKUP;
  load.expected_attach_type = BPF_SK_LOOKUP;
  load.insns = reinterpret_cast<uint64_t>(program.data());
  load.insn_cnt = static_cast<uint32_t>(program.size());
  load.license = reinterpret_cast<uint64_t>(kLicense);
  return Fd(Bpf(BPF_PROG_LOAD, &load));
}

class CatchVisit : public Visit {
 public:
  explicit CatchVisit(int ns) : Visit(ns) {
  }

 protected:
  int Make(std::vector<Fd>* made) override {
    Fd listener = Listen();
    if (!listener.Valid()) return errno;
    const Fd map = MapOf(listener.Get());
    if (!map.Valid()) return errno;
    const Fd program = ProgramOf(map.Get());
    if (!program.Valid()) return errno;
    bpf_attr attach{};
    attach.link_create.prog_fd = static_cast<uint32_t>(program.Get());
    attach.link_create.target_fd = static_cast<uint32_t>(Namespace());
    attach.link_create.attach_type = BPF_SK_LOOKUP;
    Fd link(Bpf(BPF_LINK_CREATE, &attach));
    if (!link.Valid()) return errno;
    made->push_back(std::move(listener));
    made->push_back(std::move(link));
    return 0;
  }
};

// netnsCatch(ns) -> promise of [listening descriptor, descriptor that keeps it so] or -errno
Napi::Value NetnsCatch(const Napi::CallbackInfo& info) {
  return JobsOf(info)->Start(std::make_unique<CatchVisit>(IntAt(info, 0)));
}

}  // namespace

void InitCatch(Napi::Env env, Napi::Object exports, Jobs* jobs) {
  exports.Set("netnsCatch", Napi::Function::New(env, NetnsCatch, "netnsCatch", jobs));
}

}  // namespace snp
