#pragma once
// Names of the scalars in extra_state.pt, beside the weights of an iteration: what train needs to go on and generate to
// know the model and its encoders. The model's shape is stored as `model.<option>` integers (model.num_layers, ...),
// the data set's card as the text of its dfm_dataset.json.
namespace dfm::checkpoint::extra {

inline constexpr const char* kFileName = "extra_state.pt";
inline constexpr const char* kWeightsFileName = "model_weights.pt";
inline constexpr const char* kOptimizerFileName = "optimizer_states.pt";
inline constexpr const char* kConfigFileName = "run_config.yaml";
inline constexpr const char* kModelLinkName = "model.pth";

inline constexpr const char* kIteration = "iteration";                     // int
inline constexpr const char* kConsumedSamples = "consumed_samples";        // int
inline constexpr const char* kSeed = "seed";                               // int, the bits of the unsigned seed
inline constexpr const char* kDatasetNumSamples = "dataset_num_samples";   // int
inline constexpr const char* kDatasetFingerprint = "dataset_fingerprint";  // str, 16 hexadecimal digits
inline constexpr const char* kDatasetCard = "dataset_card";                // str, JSON
inline constexpr const char* kMixedPrecision = "mixed_precision";          // str
inline constexpr const char* kWeightsId = "model_weights_id";       // int, content_id() of the file saved with it
inline constexpr const char* kOptimizerId = "optimizer_states_id";  // int: files of two saves do not mix
inline constexpr const char* kVersion = "dfm_version";              // str
inline constexpr const char* kModelPrefix = "model.";               // + option of section `model`: int

}  // namespace dfm::checkpoint::extra
