#pragma once
// Two libraries, one name: LibTorch's libc10 and libsentencepiece both export a variable FLAGS_minloglevel, of 4 bytes
// there and of 32 or more here. The loader gives both the one it meets first; if that is libc10's, sentencepiece
// overwrites what lies behind it when the program starts (seen: a mutex that TorchScript then waits for for ever).
namespace dfm::text {

// Where the program's own variable of that name is, large enough for either, which the loader prefers to both. Asking
// links it in.
const void* shared_log_level();

}  // namespace dfm::text
