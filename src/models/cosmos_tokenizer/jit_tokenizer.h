#pragma once
// A tokenizer whose TorchScript files are run as they are: for networks that the native one does not know.
#include <memory>

#include "models/cosmos_tokenizer/cosmos_tokenizer.h"

namespace dfm::models {

// Of files.encoder_jit and files.decoder_jit. Geometry is found by running them on small clips. DataError: files that
// are damaged or do not behave as encoder and decoder of a tokenizer, also when their code names another device than
// options.device.
std::unique_ptr<VideoTokenizer> open_jit_tokenizer(const CosmosFiles& files, const EncoderOptions& options);

}  // namespace dfm::models
