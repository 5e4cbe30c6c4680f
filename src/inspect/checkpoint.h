#pragma once
// Run folders and iterations of `dfm train`.
#include <filesystem>
#include <string>

#include "inspect/facts.h"

namespace dfm::inspect {

bool is_run_folder(const std::filesystem::path& folder);
bool is_iteration_folder(const std::filesystem::path& folder);

// `problem`: what is wrong with the iteration, or with the newest one of the run.
Facts inspect_run(const std::filesystem::path& folder, std::string& problem);
Facts inspect_iteration(const std::filesystem::path& folder, std::string& problem);

// For people: the settings that make a run what it is, out of all.
void fold_config(Facts& facts);

}  // namespace dfm::inspect
