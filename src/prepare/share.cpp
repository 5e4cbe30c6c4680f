#include "prepare/share.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <unordered_map>

#include "dfm/base/error.h"
#include "dfm/base/file.h"
#include "dfm/base/hash.h"
#include "dfm/data/ordered_work.h"
#include "dfm/data/plan.h"
#include "dfm/data/shard_writer.h"

namespace dfm::prepare {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are written as they lie in memory");
using Numbers = std::vector<std::uint64_t>;

void write_numbers(const RunState& state, const std::string& name, const Numbers& numbers) {
  state.write(name, as_text(std::as_bytes(std::span(numbers))));
}

Numbers read_numbers(const RunState& state, const std::string& name) {
  const std::string bytes = state.read(name);
  Numbers numbers(bytes.size() / sizeof(std::uint64_t));
  if (bytes.size() % sizeof(std::uint64_t) != 0) {
    throw DataError("{}: got {} bytes, want a multiple of {}", name, bytes.size(), sizeof(std::uint64_t));
  }
  if (!bytes.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

Numbers items_to_do(const RunState& state, std::size_t num_items) {
  const std::vector<char> is_done = state.done_items(num_items);
  Numbers items;
  for (std::uint64_t i = 0; i < num_items; ++i) {
    if (is_done[i] == 0) items.push_back(i);
  }
  return items;
}

// What an item costs. Captions are told apart by their hash: here a collision costs balance only.
struct Measure {
  std::uint64_t pixels = 0, caption = 0, tokens = 0;
};
constexpr std::uint64_t kMeasureNumbers = 3;

// Roughly: four letters are a token, and one ends the text.
std::uint64_t estimate_tokens(const std::string& caption) {
  return std::min<std::uint64_t>(data::kTextRows, caption.size() / 4 + 2);
}

Measure measure_item(const data::Source& source, const data::LoadLimits& limits, std::uint64_t index, bool with_text) {
  Measure measure{.pixels = static_cast<std::uint64_t>(source.num_pixels(index, limits))};
  if (!with_text) return measure;
  try {
    const std::string caption = source.item(index).caption.value_or("");
    measure.caption = fnv1a64(caption);
    measure.tokens = estimate_tokens(caption);
  } catch (const Error& error) {  // the item is skipped when its turn comes
    if (error.code() != ExitCode::kData) throw;
  }
  return measure;
}

// Of items [first], [first + step] ... of the list.
Numbers measure(const data::Source& source, const data::LoadLimits& limits, std::int64_t num_threads,
                const Numbers& items, std::uint64_t first, std::uint64_t step, bool with_text) {
  const std::uint64_t count = items.size() > first ? (items.size() - first + step - 1) / step : 0;
  constexpr std::uint64_t kWindow = 256;
  data::OrderedWork<Measure> work(0, count, kWindow);
  const data::WorkerThreads<Measure> threads(num_threads, work, [&](std::uint64_t i) {
    return measure_item(source, limits, items[first + i * step], with_text);
  });
  Numbers numbers;
  while (const std::optional<Measure> item = work.next()) {
    numbers.insert(numbers.end(), {item->pixels, item->caption, item->tokens});
  }
  return numbers;
}

// What each leader has to do for its host's captions, in pixels. A picture of n pixels takes Cosmos' encoder about
// 0.7 million multiplications a pixel, and convolutions run at half the speed of T5's matrix products.
std::vector<double> text_costs(const std::vector<Measure>& measures, std::int64_t text_parameters, const Host& host,
                               int num_ranks) {
  constexpr double kParametersPerPixel = 1.4e6;
  std::vector<double> costs(static_cast<std::size_t>(num_ranks), 0);
  if (text_parameters == 0) return costs;
  std::unordered_map<std::uint64_t, std::uint64_t> tokens_of;
  double all_tokens = 0, different_tokens = 0;
  for (const Measure& measure : measures) {
    all_tokens += static_cast<double>(measure.tokens);
    if (tokens_of.emplace(measure.caption, measure.tokens).second) {
      different_tokens += static_cast<double>(measure.tokens);
    }
  }
  const double of_a_host = std::min(different_tokens, all_tokens / static_cast<double>(host.leaders.size()));
  for (const int leader : host.leaders) {
    costs[static_cast<std::size_t>(leader)] = of_a_host * static_cast<double>(text_parameters) / kParametersPerPixel;
  }
  return costs;
}

std::string new_run_name() {
  std::random_device random;
  return fmt::format("{}{:08x}{:08x}", kRunPrefix, random(), random());
}

Share share_of_one(const data::Source& source, const RunState& state) {
  Share share;
  share.items = items_to_do(state, source.size());
  share.first_number = state.next_number(0);
  share.run_name = new_run_name();
  share.of_host = {share.items};
  return share;
}

}  // namespace

Host find_host(comm::World& world) {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  const std::vector<std::string> names = world.gather_text(std::string("host ") + name.data());
  Host host{.ranks = {}, .leaders = {}};
  for (std::size_t rank = 0; rank < names.size(); ++rank) {
    const auto first = std::find(names.begin(), names.end(), names[rank]);
    if (first == names.begin() + static_cast<std::ptrdiff_t>(rank)) host.leaders.push_back(static_cast<int>(rank));
    if (names[rank] == names.at(static_cast<std::size_t>(world.rank()))) host.ranks.push_back(static_cast<int>(rank));
  }
  return host;
}

Share deal_items(const data::Source& source, const data::LoadLimits& limits, std::int64_t num_threads,
                 std::int64_t text_parameters, const Host& host, RunState& state, comm::World& world) {
  if (world.size() == 1) return share_of_one(source, state);
  Share share;
  const auto num_ranks = static_cast<std::size_t>(world.size());
  Numbers items;
  nlohmann::json from_first;
  if (world.is_first()) {
    from_first["run"] = new_run_name();
    from_first["text_parameters"] = text_parameters;
    for (int rank = 0; rank < world.size(); ++rank) from_first["next"].push_back(state.next_number(rank));
    items = items_to_do(state, source.size());
    write_numbers(state, from_first["run"].get<std::string>() + "-items", items);
  }
  from_first = nlohmann::json::parse(world.gather_text(world.is_first() ? from_first.dump() : "").at(0));
  share.run_name = from_first.at("run");
  share.host_leader = host.leader();
  text_parameters = from_first.at("text_parameters");
  share.first_number = from_first.at("next").at(static_cast<std::size_t>(world.rank()));
  if (!world.is_first()) items = read_numbers(state, share.run_name + "-items");

  const auto sizes_name = [&](std::size_t rank) { return fmt::format("{}-sizes-{}", share.run_name, rank); };
  const auto rank = static_cast<std::size_t>(world.rank());
  write_numbers(state, sizes_name(rank),
                measure(source, limits, num_threads, items, rank, num_ranks, /*with_text=*/text_parameters > 0));
  static_cast<void>(world.gather_text("measured"));
  std::vector<Measure> measures(items.size());
  for (std::size_t peer = 0; peer < num_ranks; ++peer) {
    const Numbers numbers = read_numbers(state, sizes_name(peer));
    for (std::size_t i = 0; (i + 1) * kMeasureNumbers <= numbers.size() && peer + i * num_ranks < items.size(); ++i) {
      const std::uint64_t* const of_item = numbers.data() + i * kMeasureNumbers;
      measures[peer + i * num_ranks] = {.pixels = of_item[0], .caption = of_item[1], .tokens = of_item[2]};
    }
  }
  std::vector<double> costs;
  for (const Measure& measure : measures) costs.push_back(1 + static_cast<double>(measure.pixels));
  const auto dealt = data::deal_by_cost(costs, world.size(), text_costs(measures, text_parameters, host, world.size()));
  for (const int peer : host.ranks) {
    if (peer == world.rank()) share.place_on_host = share.of_host.size();
    std::vector<std::uint64_t>& of_peer = share.of_host.emplace_back();
    for (const std::int64_t i : dealt[static_cast<std::size_t>(peer)]) {
      of_peer.push_back(items[static_cast<std::size_t>(i)]);
    }
  }
  share.items = share.of_host[share.place_on_host];
  return share;
}

}  // namespace dfm::prepare
