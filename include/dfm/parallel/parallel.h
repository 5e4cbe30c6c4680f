#pragma once
// What a model knows about the ranks it is spread over: a value to hand on. On a group of one (the default) every
// region operation is the identity, so model code has no branches on it.
namespace dfm::parallel {

struct Group {
  int rank = 0;
  int size = 1;
};

struct Parallel {
  Group tensor;   // weights of a layer are split over it
  Group context;  // the tokens of a row are split over it
};

}  // namespace dfm::parallel
