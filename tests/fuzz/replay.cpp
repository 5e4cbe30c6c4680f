// Runs a fuzz target without libFuzzer: on its seeds, then on mutations of them, the same ones each time.
//   pickle_fuzz SECONDS          mutate for so long
//   pickle_fuzz FILE...          run these inputs (what libFuzzer found)
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <string_view>

#include "fuzz/fuzz_target.h"

namespace {

using Clock = std::chrono::steady_clock;

void run(const std::string& input) {
  const auto start = Clock::now();
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
  if (Clock::now() - start > std::chrono::seconds(10)) {
    std::fprintf(stderr, "an input of %zu bytes took more than 10 s\n", input.size());
    std::abort();
  }
}

class Mutator {
 public:
  explicit Mutator(std::vector<std::string> seeds) : seeds_(std::move(seeds)) {}

  std::string next() {
    std::string input = pick();
    for (std::size_t count = 1 + below(4); count > 0; --count) mutate(input);
    return input;
  }

 private:
  std::size_t below(std::size_t end) { return end == 0 ? 0 : random_() % end; }
  const std::string& pick() { return seeds_[below(seeds_.size())]; }

  void mutate(std::string& input) {
    static constexpr std::string_view kLengths[] = {{"\0\0\0\0", 4},         {"\xff\xff\xff\xff", 4},
                                                    {"\xff\xff\xff\x7f", 4}, {"\0\0\0\x80", 4},
                                                    {"\x01\0\0\0", 4},       {"\xff\xff\xff\xff\xff\xff\xff\x7f", 8}};
    const std::size_t place = below(input.size());
    switch (below(7)) {
      case 0:
        if (!input.empty()) input[place] = static_cast<char>(input[place] ^ (1U << below(8)));
        break;
      case 1:
        if (!input.empty()) input[place] = static_cast<char>(random_());
        break;
      case 2:
        input.resize(place);
        break;
      case 3:
        input.erase(place, 1 + below(8));
        break;
      case 4: {
        const std::string_view value = kLengths[below(std::size(kLengths))];
        input.replace(place, value.size(), value);
        break;
      }
      case 5: {  // a piece of this or another seed
        const std::string& other = pick();
        const std::size_t first = below(other.size());
        input.insert(place, other, first, below(64));
        break;
      }
      default:
        input.insert(place, 1, static_cast<char>(random_()));
        break;
    }
  }

  std::vector<std::string> seeds_;
  std::mt19937 random_{1};
};

}  // namespace

int main(int argc, char** argv) {
  char* end = nullptr;
  const double seconds = argc > 1 ? std::strtod(argv[1], &end) : 3;
  if (argc > 1 && *end != '\0') {
    for (int i = 1; i < argc; ++i) {
      std::ifstream file(argv[i], std::ios::binary);
      run({std::istreambuf_iterator<char>(file), {}});
    }
    return 0;
  }
  for (const std::string& seed : fuzz_seeds()) {
    const std::size_t before = dfm::test::num_accepted;
    run(seed);
    if (dfm::test::num_accepted == before) {
      std::fprintf(stderr, "a seed of %zu bytes is refused, want valid seeds\n", seed.size());
      return 1;
    }
  }
  Mutator mutator(fuzz_seeds());
  std::size_t count = 0;
  for (const auto start = Clock::now(); Clock::now() - start < std::chrono::duration<double>(seconds); ++count) {
    run(mutator.next());
  }
  std::printf("%zu inputs, %zu read without an error\n", count, dfm::test::num_accepted);
  return count > 100 ? 0 : 1;
}
